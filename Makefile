# moe_ep.h - plain GNU make, no configure step.  `make help` lists the targets and the variables.
# SPDX-License-Identifier: MIT

CC ?= cc
CXX ?= c++
CFLAGS ?= -O2 -g1
BLAS ?= 1
PREFIX ?= /usr/local
LIBDIR ?= $(PREFIX)/lib
DESTDIR ?=
V ?= 0
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ "$$n" -gt 4 ] && n=4; echo $$n)

VERSION := $(shell sed -n 's/^.define MOE_EP_VERSION_STRING "\(.*\)"/\1/p' moe_ep.h)
B := build

# ---- what the machine offers (looked up by pkg-config, overridable) ------------------------------
ifeq ($(BLAS),1)
BLAS_CFLAGS ?= $(patsubst -I%,-isystem %,$(shell pkg-config --cflags openblas 2>/dev/null))
BLAS_LIBS ?= $(or $(shell pkg-config --libs openblas 2>/dev/null),-lopenblas)
BLAS_DEFINE := -DMOE_EP_USE_BLAS
else
BLAS_CFLAGS :=
BLAS_LIBS :=
BLAS_DEFINE := -DMOE_EP_NO_BLAS
endif
JSON_CFLAGS ?= $(shell pkg-config --cflags jansson 2>/dev/null)
JSON_LIBS ?= $(or $(shell pkg-config --libs jansson 2>/dev/null),-ljansson)
YAML_CFLAGS ?= $(shell pkg-config --cflags yaml-0.1 2>/dev/null)
YAML_LIBS ?= $(or $(shell pkg-config --libs yaml-0.1 2>/dev/null),-lyaml)
STB_CFLAGS ?= $(patsubst -I%,-isystem %,$(or $(shell pkg-config --cflags stb 2>/dev/null),-I/usr/include/stb))

# The solver is an oracle of one test, which skips itself without it.
GLPK_LIBS ?= $(shell printf '\043include <glpk.h>\n' | $(CC) -E - >/dev/null 2>&1 && echo -lglpk)

# What the scripts in tests/ read from the environment.
SCRIPT_ENV = CC="$(CC)" CXX="$(CXX)" CFLAGS="$(CFLAGS)" LDFLAGS="$(LDFLAGS)" BLAS=$(BLAS) MAKE="$(MAKE)" \
  BLAS_CFLAGS="$(BLAS_CFLAGS)" BLAS_LIBS="$(BLAS_LIBS)" STB_CFLAGS="$(STB_CFLAGS)" JOBS=$(JOBS) ONLY="$(ONLY)" \
  GLPK_LIBS="$(GLPK_LIBS)"

WARN := -Wall -Wextra
CSTD := -std=gnu99
TFLAGS := $(CSTD) $(CFLAGS) $(WARN) -I. -Itests

ifeq ($(V),1)
Q :=
say = @:
else
Q := @
say = @printf '  %-5s %s\n' $(1) $(2)
endif

# ---- what there is to build ----------------------------------------------------------------------
TESTS := $(sort $(patsubst tests/%.c,$(B)/tests/%,$(wildcard tests/test_*.c)))
EXAMPLES := $(sort $(patsubst examples/%.c,$(B)/examples/%,$(wildcard examples/[0-9]*.c)))
BENCHES := $(sort $(patsubst bench/%.c,$(B)/bench/%,$(wildcard bench/bench_*.c)))
TOOL_SOURCES := $(wildcard examples/moe_ep_cli.c examples/cli_*.c)
TOOL := $(if $(filter %/moe_ep_cli.c,$(TOOL_SOURCES)),$(B)/moe-ep)
TOOL_OBJECTS := $(patsubst examples/%.c,$(B)/cli/%.o,$(TOOL_SOURCES))
# Everything that names the expert forward runs once more on the loops of the library for other languages.
NOBLAS_TESTS := $(if $(filter 1,$(BLAS)),$(patsubst $(B)/tests/%,$(B)/noblas/%,$(filter %forward %hooks,$(TESTS))))
HEADERS := moe_ep.h $(wildcard tests/*.h examples/*.h bench/*.h)
TRACE ?= examples/data
DEMO_ARGS ?= report $(TRACE)/prose_topk_ids.npy $(TRACE)/c_topk_ids.npy $(TRACE)/python_topk_ids.npy \
  --devices 8 --html $(B)/report.html

.PHONY: lib install-header install-lib dist deb
.PHONY: all demo demo-run test test-run build-tests check check-run bench validate examples tool install uninstall \
        golden clean help deps deps-check

all: deps-check
	+@$(MAKE) --no-print-directory build-all

.PHONY: build-all fuzz mutate coverage
build-all: $(B)/moe_ep.o $(TOOL) $(EXAMPLES) $(TESTS) $(NOBLAS_TESTS) $(BENCHES)

help:
	@echo "moe_ep.h $(VERSION)"
	@echo
	@echo "  make            build the implementation, the tool, the examples and the tests"
	@echo "  make demo       install what is missing, then run the main job on the bundled trace"
	@echo "  make test       install what is missing, build and run every test (ONLY=text: those that match)"
	@echo "  make check      the heavier gates: sanitizers, compilers x standards, analysers"
	@echo "  make fuzz       run the fuzz targets (FUZZ_ONLY=, FUZZ_RUNS=, FUZZ_SECONDS=, FUZZ_ENGINE=)"
	@echo "  make mutate     change the header in a few hundred places: do the tests notice? (SECTION=5 N=50)"
	@echo "  make coverage   lines and branches the tests reach, per section (SECTION=5: what it lacks)"
	@echo "  make bench      build and run the benchmarks, output in $(B)/bench/ (BENCH_ARGS=--quick)"
	@echo "  make validate   the step-time formulas against published measurements, as a table"
	@echo "  make examples   build the examples"
	@echo "  make golden     rewrite examples/out/*.txt and examples/python from what they print and the header says now"
	@echo "  make lib        $(SO) and libmoe_ep.a in $(B)/, for Python and other languages (LIB_BLAS=1: OpenBLAS)"
	@echo "  make install    header, libraries, CMake and pkg-config files, tool, man page, completion, under"
	@echo "                  DESTDIR + PREFIX (now $(DESTDIR)$(PREFIX)); install-header, install-lib: only those"
	@echo "  make uninstall  remove them"
	@echo "  make deps       install the packages that are missing (Debian, Ubuntu), or name them"
	@echo "  make dist       $(B)/moe_ep-$(VERSION).tar.gz, the same bytes every time"
	@echo "  make deb        Debian packages in $(B)/deb/ (needs dpkg-dev and debhelper)"
	@echo "  make clean      remove $(B)/"
	@echo
	@echo "  CC=$(CC)  CXX=$(CXX)  CFLAGS='$(CFLAGS)'  PREFIX=$(PREFIX)  LIBDIR=$(LIBDIR)  DESTDIR=$(DESTDIR)"
	@echo "  BLAS=$(BLAS)      0: build and test without OpenBLAS"
	@echo "  V=$(V)         1: print whole commands"
	@echo "  JOBS=$(JOBS)      how many things test and check do at a time"
	@echo "  MOE_EP_TRACES   folder of recorded load traces for the tests that use some (optional)"

# ---- dependencies --------------------------------------------------------------------------------
deps:
	@$(SCRIPT_ENV) sh tests/deps.sh install

deps-check:
	@$(SCRIPT_ENV) sh tests/deps.sh check

# ---- the implementation --------------------------------------------------------------------------
$(B)/moe_ep.c: Makefile
	@mkdir -p $(B)
	@printf '#define MOE_EP_IMPLEMENTATION\n#include "moe_ep.h"\n' > $@

# The flags that built the objects: a change of BLAS, CC or CFLAGS rebuilds them.
$(B)/flags: FORCE
	@mkdir -p $(B)
	@printf '%s\n' '$(CC) $(CFLAGS) $(LDFLAGS) BLAS=$(BLAS)' | cmp -s - $@ || \
	  printf '%s\n' '$(CC) $(CFLAGS) $(LDFLAGS) BLAS=$(BLAS)' > $@
FORCE:

$(B)/moe_ep.o: $(B)/moe_ep.c moe_ep.h $(B)/flags
	$(call say,CC,$@)
	$(Q)$(CC) -std=c99 $(CPPFLAGS) $(CFLAGS) $(WARN) -I. $(BLAS_DEFINE) $(BLAS_CFLAGS) -c $< -o $@

# Flags for a source that says in a comment "needs: jansson" or "needs: glpk".
needs = $(if $(shell grep -l 'needs: jansson' $(1)),$(2))
needs_glpk = $(if $(shell grep -l 'needs: glpk' $(1)),$(GLPK_LIBS))

# Test programs ask what the library does, not how fast they do so themselves: without the optimiser they compile in a
# quarter of the time.  Those that compute much, or have a copy of the header, are faster at -O1, both together.
TEST_O1 := test_balance test_basics test_forward test_forward_amx test_loads_portable test_place test_place_plain
# _FORTIFY_SOURCE in CFLAGS wants the optimiser, and says so where there is none.
test_level = $(if $(filter $(TEST_O1),$(notdir $@)),-O1,-O0 -U_FORTIFY_SOURCE)

# ---- tests, examples, benchmarks: one source each, linked with the implementation -----------------
# tests that are others once more
$(B)/tests/test_forward_amx $(B)/noblas/test_forward_amx: tests/test_forward.c
$(B)/tests/test_loads_portable: tests/test_loads.c
$(B)/tests/%: tests/%.c $(HEADERS) $(B)/moe_ep.o
	@mkdir -p $(@D) && rm -f $@
	$(call say,CC,$@)
	$(Q)$(CC) $(TFLAGS) $(test_level) $< $(B)/moe_ep.o -o $@ $(LDFLAGS) $(call needs_glpk,$<) \
	  $(BLAS_LIBS) -lm -pthread

$(B)/noblas/%: tests/%.c $(HEADERS) $(B)/lib/moe_ep_lib.o
	@mkdir -p $(@D) && rm -f $@
	$(call say,CC,$@)
	$(Q)$(CC) $(TFLAGS) $(test_level) $< $(B)/lib/moe_ep_lib.o -o $@ $(LDFLAGS) $(NOBLAS_LIBS) -lm -pthread

$(B)/examples/%: examples/%.c $(HEADERS) $(B)/moe_ep.o
	@mkdir -p $(@D) && rm -f $@
	$(call say,CC,$@)
	$(Q)$(CC) $(CSTD) $(CFLAGS) $(WARN) -I. -Iexamples $(call needs,$<,$(JSON_CFLAGS)) $< $(B)/moe_ep.o -o $@ \
	  $(LDFLAGS) $(call needs,$<,$(JSON_LIBS)) $(BLAS_LIBS) -lm

$(B)/bench/%: bench/%.c $(HEADERS) $(B)/moe_ep.o
	@mkdir -p $(@D) && rm -f $@
	$(call say,CC,$@)
	$(Q)$(CC) $(CSTD) $(CFLAGS) $(WARN) -I. -Ibench -Iexamples $< $(B)/moe_ep.o -o $@ $(LDFLAGS) $(BLAS_LIBS) \
	  -lm -pthread -ldl

$(B)/cli/%.o: examples/%.c $(HEADERS) $(B)/flags
	@mkdir -p $(@D)
	$(call say,CC,$@)
	$(Q)$(CC) $(CSTD) $(CPPFLAGS) $(CFLAGS) $(WARN) -I. -Iexamples $(STB_CFLAGS) $(JSON_CFLAGS) $(YAML_CFLAGS) \
	  -c $< -o $@

$(B)/moe-ep: $(TOOL_OBJECTS) $(B)/moe_ep.o
	$(call say,LINK,$@)
	$(Q)$(CC) $(CFLAGS) $^ -o $@ $(LDFLAGS) $(JSON_LIBS) $(YAML_LIBS) $(BLAS_LIBS) -lm -pthread

tool: $(TOOL)
examples: $(EXAMPLES)

# ---- the main job --------------------------------------------------------------------------------
demo: deps
	+@$(MAKE) --no-print-directory demo-run

demo-run: $(TOOL)
	@echo "  $(B)/moe-ep $(DEMO_ARGS)"
	@$(B)/moe-ep $(DEMO_ARGS)

# ---- tests ---------------------------------------------------------------------------------------
# -k: a program that does not compile is one failure, the others still run.
parallel = $(if $(findstring -j,$(MAKEFLAGS))$(findstring --jobserver,$(MAKEFLAGS)),,-j$(JOBS))

test: deps
	+@$(MAKE) --no-print-directory test-run

test-run:
	+@$(MAKE) --no-print-directory -k $(parallel) build-tests || echo "  (not everything could be built)"
	@$(SCRIPT_ENV) sh tests/run.sh $(TESTS) $(NOBLAS_TESTS)

# ONLY=name of a test program builds just that one.
SOME := $(strip $(if $(ONLY),$(foreach t,$(TESTS) $(NOBLAS_TESTS),$(if $(findstring $(ONLY),$t),$t))))
build-tests: $(B)/moe_ep.o $(or $(SOME),$(TOOL) $(EXAMPLES) $(TESTS) $(NOBLAS_TESTS) $(BENCHES) lib)

check: deps
	@$(SCRIPT_ENV) sh tests/deps.sh install --check || echo "  (going on: a gate without its tool skips and names it)"
	+@$(MAKE) --no-print-directory check-run

check-run:
	+@$(MAKE) --no-print-directory $(parallel) build-tests
	@$(SCRIPT_ENV) sh tests/run.sh --check $(TESTS) $(NOBLAS_TESTS)

# ---- how the tests are tested --------------------------------------------------------------------
fuzz:
	@$(SCRIPT_ENV) sh tests/fuzz/fuzz.sh

# SECTION=5 N=50 SEED=1
mutate:
	@$(SCRIPT_ENV) SECTION="$(SECTION)" N="$(or $(N),16)" SEED="$(or $(SEED),1)" sh tests/mutate.sh

coverage:
	@$(SCRIPT_ENV) sh tests/coverage.sh $(if $(SECTION),--lines $(SECTION))

golden: $(EXAMPLES) lib
	@$(SCRIPT_ENV) sh tests/examples.sh --update
	@$(SCRIPT_ENV) sh tests/python.sh --update

bench: $(BENCHES)
	@for b in $(BENCHES); do \
	  echo "== $$b $(BENCH_ARGS)"; $$b $(BENCH_ARGS) > $$b.txt || { echo "$$b failed" >&2; exit 1; }; cat $$b.txt; \
	done

validate: $(B)/tests/test_published
	@$(B)/tests/test_published --table

# ---- the library, for languages that do not include headers ---------------------------------------
# Only moe_ep_* functions are exported.  The expert forward uses its own loops unless LIB_BLAS=1.
LIB_BLAS ?= 0
SOVERSION := $(firstword $(subst ., ,$(VERSION)))
SO := libmoe_ep.so.$(VERSION)
ifeq ($(LIB_BLAS),1)
LIB_FLAGS = -DMOE_EP_USE_BLAS $(BLAS_CFLAGS)
LIB_LIBS = $(BLAS_LIBS) -lm
NOBLAS_LIBS = $(BLAS_LIBS)
else
LIB_FLAGS = -DMOE_EP_NO_BLAS
LIB_LIBS = -lm
endif

$(B)/lib/moe_ep_lib.c: Makefile
	@mkdir -p $(@D)
	@printf '%s\n' '#define MOE_EP_IMPLEMENTATION' \
	  '#define MOE_EP_API extern __attribute__((visibility("default")))' '#include "moe_ep.h"' > $@

# The command and what the compiler said stay in a file: gcc is asked for every warning that tests/compile/matrix.sh
# knows, which counts that as one of its own.
LIB_WARN := $(shell sh tests/compile/strict.sh --library $(CC))
compile_lib = $(CC) -std=c99 $(CPPFLAGS) $(CFLAGS) $(WARN) $(LIB_WARN) -fPIC -fvisibility=hidden -I. $(LIB_FLAGS) \
  -c $< -o $@

$(B)/lib/moe_ep_lib.o: $(B)/lib/moe_ep_lib.c moe_ep.h $(B)/lib/flags tests/compile/strict.sh
	$(call say,CC,$@)
	$(Q)printf '%s\n' '$(compile_lib)' > $(B)/lib/moe_ep_lib.log; \
	  $(compile_lib) 2>> $(B)/lib/moe_ep_lib.log; code=$$?; sed 1d $(B)/lib/moe_ep_lib.log >&2; exit $$code

$(B)/lib/flags: FORCE
	@mkdir -p $(@D)
	@printf '%s\n' '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LIB_FLAGS)' | cmp -s - $@ || \
	  printf '%s\n' '$(CC) $(CPPFLAGS) $(CFLAGS) $(LDFLAGS) $(LIB_FLAGS)' > $@

$(B)/$(SO): $(B)/lib/moe_ep_lib.o
	$(call say,LINK,$@)
	$(Q)$(CC) -shared -Wl,-soname,libmoe_ep.so.$(SOVERSION) -Wl,-z,defs $(CFLAGS) $< -o $@ $(LDFLAGS) $(LIB_LIBS)
	$(Q)ln -sf $(SO) $(B)/libmoe_ep.so.$(SOVERSION) && ln -sf libmoe_ep.so.$(SOVERSION) $(B)/libmoe_ep.so

$(B)/libmoe_ep.a: $(B)/lib/moe_ep_lib.o
	$(call say,AR,$@)
	$(Q)rm -f $@ && $(AR) rcs $@ $<

lib: $(B)/$(SO) $(B)/libmoe_ep.a

# ---- installation --------------------------------------------------------------------------------
# moe_ep: the header alone, for programs that compile the implementation themselves.
# libmoe_ep: the same header and the compiled library.
define PC
prefix=$(PREFIX)
includedir=$${prefix}/include

Name: moe_ep
Description: Mixture-of-Experts routing and expert-parallel load-balance maths, one C header
Version: $(VERSION)
Cflags: -I$${includedir}
Libs: -lm
endef
define PC_LIB
prefix=$(PREFIX)
includedir=$${prefix}/include
libdir=$(LIBDIR)

Name: libmoe_ep
Description: Mixture-of-Experts routing and expert-parallel load-balance maths, compiled
Version: $(VERSION)
Cflags: -I$${includedir}
Libs: -L$${libdir} -lmoe_ep
Libs.private: $(strip $(LIB_LIBS))
endef
export PC PC_LIB

DEST = $(DESTDIR)$(PREFIX)
DEST_LIB = $(DESTDIR)$(LIBDIR)
MAN = $(DEST)/share/man/man1/moe-ep.1
COMPLETION = $(DEST)/share/bash-completion/completions/moe-ep

install: deps-check install-header install-lib $(TOOL)
	@if [ -n "$(TOOL)" ]; then \
	  mkdir -p "$(DEST)/bin" "$(dir $(MAN))" "$(dir $(COMPLETION))" && \
	  install -m 755 $(B)/moe-ep "$(DEST)/bin/moe-ep" && \
	  install -m 644 examples/packaging/moe-ep.bash "$(COMPLETION)" && \
	  sed 's/@VERSION@/$(VERSION)/' examples/moe-ep.1 > "$(MAN)" && chmod 644 "$(MAN)"; \
	fi
	@echo "installed moe_ep $(VERSION) under $(DEST)$(if $(DESTDIR),,; run ldconfig once for the shared library)"

install-header:
	@mkdir -p "$(DEST)/include" "$(DEST)/share/pkgconfig" "$(DEST)/share/cmake/moe_ep"
	install -m 644 moe_ep.h "$(DEST)/include/moe_ep.h"
	@printf '%s\n' "$$PC" > "$(DEST)/share/pkgconfig/moe_ep.pc" && chmod 644 "$(DEST)/share/pkgconfig/moe_ep.pc"
	@install -m 644 examples/packaging/cmake/moe_epConfig.cmake "$(DEST)/share/cmake/moe_ep/"
	@sed 's/@VERSION@/$(VERSION)/' examples/packaging/cmake/moe_epConfigVersion.cmake.in \
	  > "$(DEST)/share/cmake/moe_ep/moe_epConfigVersion.cmake"
	@chmod 644 "$(DEST)/share/cmake/moe_ep/moe_epConfigVersion.cmake"

install-lib: lib
	@mkdir -p "$(DEST_LIB)/pkgconfig"
	install -m 644 $(B)/$(SO) "$(DEST_LIB)/$(SO)"
	@ln -sf $(SO) "$(DEST_LIB)/libmoe_ep.so.$(SOVERSION)" && ln -sf libmoe_ep.so.$(SOVERSION) "$(DEST_LIB)/libmoe_ep.so"
	@install -m 644 $(B)/libmoe_ep.a "$(DEST_LIB)/libmoe_ep.a"
	@printf '%s\n' "$$PC_LIB" > "$(DEST_LIB)/pkgconfig/libmoe_ep.pc" && chmod 644 "$(DEST_LIB)/pkgconfig/libmoe_ep.pc"

uninstall:
	rm -f "$(DEST)/include/moe_ep.h" "$(DEST)/share/pkgconfig/moe_ep.pc" "$(DEST)/bin/moe-ep" "$(MAN)" "$(COMPLETION)" \
	  "$(DEST_LIB)/$(SO)" "$(DEST_LIB)/libmoe_ep.so.$(SOVERSION)" "$(DEST_LIB)/libmoe_ep.so" \
	  "$(DEST_LIB)/libmoe_ep.a" "$(DEST_LIB)/pkgconfig/libmoe_ep.pc"
	rm -rf "$(DEST)/share/cmake/moe_ep"
# Folders that are empty now go too, except the system's own.
	@case "$(DEST)" in /usr | /usr/local) exit 0 ;; esac; cd "$(DEST)" 2>/dev/null || exit 0; \
	  rmdir "$(DEST_LIB)/pkgconfig" "$(DEST_LIB)" lib share/cmake share/pkgconfig share/man/man1 share/man \
	    share/bash-completion/completions share/bash-completion share bin include "$(DEST)" 2>/dev/null || :

# ---- packages --------------------------------------------------------------------------------------
dist:
	@sh examples/packaging/dist.sh $(VERSION) $(B)/moe_ep-$(VERSION).tar.gz

deb: dist
	@sh examples/packaging/deb.sh $(VERSION) $(B)/moe_ep-$(VERSION).tar.gz $(B)/deb

clean:
	rm -rf $(B)

.DELETE_ON_ERROR:
