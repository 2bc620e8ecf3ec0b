#!/bin/sh
# tests/cmake.sh - CMake projects that use an installed copy (find_package) and a source copy (FetchContent).
# SPDX-License-Identifier: MIT
. tests/lib.sh
MAKE=${MAKE:-make}
unset MAKEFLAGS MFLAGS MAKELEVEL
if ! have cmake; then
    skip "CMake" "not installed (package cmake)"
    finish 1
    exit
fi
version=$(sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
prefix=$tmp/prefix
check "make install-header install-lib" "$MAKE" --no-print-directory install-header install-lib \
    PREFIX="$prefix" CC="$CC"

mkdir "$tmp/project"
cat >"$tmp/project/alone.c" <<'END'
#define MOE_EP_STATIC
#include <moe_ep.h>
#include <stdio.h>
int main(void) { printf("%s\n", moe_ep_version()); return moe_ep_imbalance(NULL, 1, NULL) < 0 ? 0 : 1; }
END
sed '/MOE_EP_STATIC/d' "$tmp/project/alone.c" >"$tmp/project/linked.c"

# configure NAME CMAKE-ARGUMENTS...: configures and builds $tmp/project in $tmp/NAME
configure() {
    name=$1
    shift
    # shellcheck disable=SC2086
    cmake -S "$tmp/project" -B "$tmp/$name" -DCMAKE_C_COMPILER="${CC%% *}" \
        -DCMAKE_BUILD_TYPE=Debug -DCMAKE_C_FLAGS_DEBUG=-O0 "$@" >"$tmp/log" 2>&1 &&
        cmake --build "$tmp/$name" >>"$tmp/log" 2>&1
}
# prints NAME PROGRAM...: each program prints the version
prints() {
    name=$1
    shift
    for program in "$@"; do
        [ "$("$tmp/$name/$program" 2>&1)" = "$version" ]
        result $? "$name: $program runs and prints $version"
    done
}

cat >"$tmp/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.10)
project(consumer C)
find_package(moe_ep REQUIRED)
add_executable(alone alone.c)
target_link_libraries(alone PRIVATE moe_ep::header)
target_compile_options(alone PRIVATE -O1)
if(LIBRARIES)
  add_executable(shared linked.c)
  target_link_libraries(shared PRIVATE moe_ep::moe_ep)
  add_executable(static linked.c)
  target_link_libraries(static PRIVATE moe_ep::static)
elseif(TARGET moe_ep::moe_ep OR TARGET moe_ep::static)
  message(FATAL_ERROR "a library that is not installed is offered")
endif()
END
configure found -DCMAKE_PREFIX_PATH="$prefix" -DLIBRARIES=ON
result $? "find_package finds the installed copy and builds with it" "$tmp/log"
prints found alone shared static

mkdir -p "$tmp/header/lib"
cp -r "$prefix/include" "$prefix/share" "$tmp/header/"
configure header -DCMAKE_PREFIX_PATH="$tmp/header" -DLIBRARIES=OFF
result $? "find_package finds a copy of the header alone" "$tmp/log"
prints header alone

# which_version WANTED: what find_package says to a wanted version
which_version() {
    mkdir -p "$tmp/v"
    printf '%s\nproject(v NONE)\nfind_package(moe_ep %s)\nmessage("found=${moe_ep_FOUND}")\n' \
        'cmake_minimum_required(VERSION 3.10)' "$1" >"$tmp/v/CMakeLists.txt"
    rm -rf "$tmp/v/build"
    cmake -S "$tmp/v" -B "$tmp/v/build" -DCMAKE_PREFIX_PATH="$prefix" 2>&1 | sed -n 's/^found=//p'
}
major=${version%%.*} minor=${version#*.} minor=${minor%%.*}
for case in "$version EXACT:1" "$major.$minor:1" "$major.$minor.0:1" "$major.$((minor + 1)):0" "$((major + 1)).0:0" \
    "$major.$minor.999:0" "$major:1" "$((major + 1)):0"; do
    [ "$(which_version "${case%:*}")" = "${case##*:}" ]
    result $? "find_package(moe_ep ${case%:*}) finds it: ${case##*:}"
done

cat >"$tmp/project/CMakeLists.txt" <<'END'
cmake_minimum_required(VERSION 3.18)
project(consumer C)
include(FetchContent)
FetchContent_Declare(moe_ep URL "${TARBALL}" SOURCE_SUBDIR examples/packaging/cmake)
FetchContent_MakeAvailable(moe_ep)
add_executable(alone alone.c)
target_link_libraries(alone PRIVATE moe_ep::header)
target_compile_options(alone PRIVATE -O1)
add_executable(linked linked.c)
target_link_libraries(linked PRIVATE moe_ep::moe_ep)
END
if tar --version 2>/dev/null | grep -q 'GNU tar'; then
    sh examples/packaging/dist.sh "$version" "$tmp/moe_ep.tar.gz" >"$tmp/log" 2>&1
    configure fetched -DTARBALL="$tmp/moe_ep.tar.gz"
    result $? "FetchContent takes the tarball and builds with it" "$tmp/log"
    prints fetched alone linked
    # the same header: this time without the kernels, which export nothing (symbols.sh)
    configure fetched_shared -DTARBALL="$tmp/moe_ep.tar.gz" -DBUILD_SHARED_LIBS=ON \
        -DCMAKE_C_FLAGS_DEBUG="-O0 -DMOE_EP_NO_SIMD"
    result $? "the same with BUILD_SHARED_LIBS" "$tmp/log"
    prints fetched_shared linked
    if have nm; then
        nm -D --defined-only "$(find "$tmp/fetched_shared" -name 'libmoe_ep.so' | head -n 1)" | awk '{ print $3 }' |
            grep -v '^moe_ep_' | grep -vE '^_(init|fini)$' >"$tmp/strange"
        [ ! -s "$tmp/strange" ]
        result $? "that library exports moe_ep_* only" "$tmp/strange"
    fi
else skip "FetchContent" "GNU tar is needed for the tarball"; fi
finish 10
