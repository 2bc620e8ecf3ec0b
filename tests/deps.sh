#!/bin/sh
# tests/deps.sh - what building and testing needs.
# SPDX-License-Identifier: MIT
# usage: deps.sh check     says what is missing, exit 1 if anything is
#        deps.sh install   installs it on Debian and Ubuntu; elsewhere names the packages, exit 1
#        deps.sh install --all   also the compilers that only widen the test matrix, GLPK, Open MPI and numpy
#        deps.sh install --check   all that and what only `make check` uses: sanitizer runtimes, analysers, AFL++,
#                         cross compilers and qemu (about 1.5 GB), and where apt-get has them more compilers and
#                         BLAS builds (1 GB); a gate whose tool is missing skips and names it
# environment: CC, BLAS (0: no OpenBLAS wanted), STB_CFLAGS
# Each thing is looked for by using it, not by asking a package manager; with nothing missing, nothing
# is run that needs a network.
mode=${1:-check} all=${2:-}
CC=${CC:-cc} BLAS=${BLAS:-1} STB_CFLAGS=${STB_CFLAGS:--I/usr/include/stb}
if [ "${CC%% *}" != cc ] && ! command -v "${CC%% *}" >/dev/null 2>&1; then
    echo "CC=$CC: not found" >&2
    exit 1
fi
tmp=$(mktemp -d "${TMPDIR:-/tmp}/moe_ep_deps.XXXXXX") || exit 2
trap 'rm -rf "$tmp"' EXIT

compiles() { # compiles SOURCE FLAGS...
    printf '%s\n' "$1" >"$tmp/t.c"
    shift
    $CC "$tmp/t.c" -o "$tmp/t" "$@" >/dev/null 2>&1
}

probe() { # sets missing to the things that do not work
    missing=
    if compiles '#include <math.h>
int main(int c, char **v) { (void)v; return (int)floor((double)c) - 1; }' -lm; then
        if command -v pkg-config >/dev/null 2>&1; then
            blas_flags=$(pkg-config --cflags --libs openblas 2>/dev/null) || blas_flags=-lopenblas
            json_flags=$(pkg-config --cflags --libs jansson 2>/dev/null) || json_flags=-ljansson
            yaml_flags=$(pkg-config --cflags --libs yaml-0.1 2>/dev/null) || yaml_flags=-lyaml
        else
            missing="$missing pkgconf"
            blas_flags=-lopenblas json_flags=-ljansson yaml_flags=-lyaml
        fi
        # shellcheck disable=SC2086
        [ "$BLAS" = 0 ] || compiles '#include <cblas.h>
int main(void) { float x = 1, y = 2; return cblas_sdot(1, &x, 1, &y, 1) < 1; }' $blas_flags ||
            missing="$missing openblas"
        # shellcheck disable=SC2086
        compiles '#include <jansson.h>
int main(void) { json_decref(json_object()); return 0; }' $json_flags || missing="$missing jansson"
        # shellcheck disable=SC2086
        compiles '#include <yaml.h>
int main(void) { return yaml_get_version_string() == NULL; }' $yaml_flags || missing="$missing yaml"
        # shellcheck disable=SC2086
        compiles '#include <stb_ds.h>
int main(void) { return 0; }' $STB_CFLAGS || missing="$missing stb"
    else
        missing="$missing cc"
        command -v pkg-config >/dev/null 2>&1 || missing="$missing pkgconf"
        [ "$BLAS" = 0 ] || missing="$missing openblas"
        missing="$missing jansson yaml stb"
    fi
    if [ -n "$all" ]; then # --all or --check
        command -v g++ >/dev/null 2>&1 || missing="$missing g++"
        command -v clang++ >/dev/null 2>&1 || missing="$missing clang"
        compiles '#include <glpk.h>
int main(void) { return glp_version()[0] == 0; }' -lglpk || missing="$missing glpk"
        command -v mpicc >/dev/null 2>&1 && command -v mpirun >/dev/null 2>&1 || missing="$missing openmpi"
        python3 -c 'import numpy' 2>/dev/null || /usr/bin/python3 -c 'import numpy' 2>/dev/null ||
            missing="$missing numpy"
    fi
    [ "$all" != --check ] || probe_check
}

# probe_check: adds the tools of the heavy gates, each by the command that the gate calls
probe_check() {
    while read -r command thing; do
        command -v "$command" >/dev/null 2>&1 || missing="$missing $thing"
    done <<END
clang clang
tcc tcc
musl-gcc musl-tools
valgrind valgrind
cppcheck cppcheck
clang-tidy clang-tidy
shellcheck shellcheck
afl-fuzz afl++
lintian lintian dpkg-dev debhelper
qemu-s390x qemu-user
$(for machine in aarch64:arm64 riscv64:riscv64 s390x:s390x; do
    echo "${machine%:*}-linux-gnu-gcc gcc-${machine%:*}-linux-gnu libc6-dev-${machine#*:}-cross"
done)
arm-linux-gnueabihf-gcc gcc-arm-linux-gnueabihf libc6-dev-armhf-cross
powerpc64le-linux-gnu-gcc gcc-powerpc64le-linux-gnu libc6-dev-ppc64el-cross
END
    printf 'int main(void) { return 0; }\n' >"$tmp/rt.c"
    clang -fsanitize=address "$tmp/rt.c" -o "$tmp/rt" >/dev/null 2>&1 || missing="$missing libclang-rt-dev"
    # the unversioned gcc-multilib conflicts with the cross compilers
    gcc -m32 "$tmp/rt.c" -o "$tmp/rt" >/dev/null 2>&1 || missing="$missing gcc-$(gcc -dumpversion)-multilib"
    $CC "$tmp/rt.c" -lblas -o "$tmp/rt" >/dev/null 2>&1 || missing="$missing libblas-dev libblis4-openmp"
}

packages() { # packages MANAGER: names of what is missing, for that manager
    for thing in $missing; do
        case $1:$thing in
            apt:cc) echo gcc libc6-dev ;;
            apt:pkgconf) echo pkg-config ;;
            apt:openmpi) echo libopenmpi-dev openmpi-bin ;;
            dnf:openmpi) echo openmpi-devel ;;
            apk:openmpi) echo openmpi openmpi-dev ;;
            brew:openmpi) echo open-mpi ;;
            apt:numpy | dnf:numpy) echo python3-numpy ;;
            apk:numpy) echo py3-numpy ;;
            pacman:numpy) echo python-numpy ;;
            apt:openblas | apt:jansson | apt:yaml | apt:stb | apt:glpk) echo "lib$thing-dev" ;;
            dnf:yaml) echo libyaml-devel ;;
            pacman:yaml | brew:yaml) echo libyaml ;;
            apk:yaml) echo yaml-dev ;;
            dnf:cc) echo gcc glibc-devel ;;
            dnf:pkgconf) echo pkgconf-pkg-config ;;
            dnf:openblas | dnf:jansson | dnf:glpk) echo "$thing-devel" ;;
            dnf:stb) echo stb_ds-devel ;;
            dnf:g++) echo gcc-c++ ;;
            apk:cc) echo gcc musl-dev ;;
            apk:openblas | apk:jansson | apk:glpk) echo "$thing-dev" ;;
            pacman:cc | pacman:g++ | brew:cc | brew:g++) echo gcc ;;
            brew:clang) echo llvm ;;
            brew:stb) ;; # not packaged there, see below
            *) echo "$thing" ;;
        esac
    done | tr '\n' ' ' | sed 's/ $//'
}

tell() {
    echo "missing:$missing"
    echo "install it, then run make again:"
    echo "  Debian, Ubuntu   apt-get install $(packages apt)"
    [ "$all" = --check ] && return # other distributions have other names for them
    echo "  Fedora, RHEL     dnf install $(packages dnf)"
    echo "  Arch             pacman -S $(packages pacman)"
    echo "  Alpine           apk add $(packages apk)"
    echo "  macOS            brew install $(packages brew)"
    case $missing in
        *stb*) echo "  (Homebrew has no stb: put stb_ds.h anywhere and run make STB_CFLAGS=-I/that/folder)" ;;
    esac
    case $missing in
        *openblas*) echo "  (without OpenBLAS: make BLAS=0 ...)" ;;
    esac
}

# root: how to become root, into as_root; "no" when there is no way without a password
root() {
    as_root=
    [ "$(id -u)" = 0 ] && return
    if command -v sudo >/dev/null 2>&1 && sudo -n true 2>/dev/null; then as_root="sudo -n"; else as_root=no; fi
}
apt() {
    # shellcheck disable=SC2086
    $as_root env DEBIAN_FRONTEND=noninteractive apt-get -q -y "$@" </dev/null >"$tmp/apt.log" 2>&1
}
# widen: what only gives a gate more rows, one by one, where the distribution has it
widen() {
    [ "$mode $all" = "install --check" ] && command -v apt-cache >/dev/null 2>&1 || return 0
    root
    [ "$as_root" != no ] || return 0
    while read -r file thing; do
        # shellcheck disable=SC2086
        ls $file >/dev/null 2>&1 && continue
        apt-cache show "$thing" >/dev/null 2>&1 || continue
        echo "installing $thing"
        apt install --no-install-recommends "$thing" || echo "  ($thing could not be installed)"
    done <<END
$(for compiler in gcc-11 g++-11 clang-13 clang-15 clang-16 clang-19 meson; do echo "/usr/bin/$compiler $compiler"; done)
/usr/bin/ninja ninja-build
$(for variant in serial openmp; do echo "/usr/lib/*/openblas-$variant/*.so.0 libopenblas0-$variant"; done)
$(for variant in serial openmp pthread; do echo "/usr/lib/*/blis-$variant/*.so.4 libblis4-$variant"; done)
END
}

probe
if [ -z "$missing" ]; then
    widen
    exit 0
fi
if [ "$mode" != install ]; then
    tell >&2
    echo "  (on Debian and Ubuntu \`make deps\` does it)" >&2
    exit 1
fi
root
list=$(packages apt)
if ! command -v apt-get >/dev/null 2>&1; then
    tell >&2
    exit 1
fi
if [ "$as_root" = no ]; then
    echo "missing:$missing; neither root nor sudo without a password, so run this and then make again:" >&2
    echo "  sudo apt-get install $list" >&2
    exit 1
fi
echo "installing what is missing: $list"
# shellcheck disable=SC2086
if ! apt install --no-install-recommends $list; then
    echo "  (updating the package lists first)"
    apt update || { cat "$tmp/apt.log" >&2; exit 1; }
    apt install --no-install-recommends $list || { tail -n 20 "$tmp/apt.log" >&2; exit 1; }
fi
probe
if [ -n "$missing" ]; then
    echo "installed, but still not usable:$missing" >&2
    tell >&2
    exit 1
fi
widen
