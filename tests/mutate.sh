#!/bin/sh
# tests/mutate.sh - mutation testing, see mutate.py; `make mutate SECTION=5 N=50`.
# SPDX-License-Identifier: MIT
# environment: SECTION (default: all), N mutants per section (default 16), SEED, JOBS
. tests/lib.sh
if ! have python3 || ! have gcc; then
    skip "mutants" "python3 or gcc is not installed (packages python3, gcc, and tcc for speed)"
    finish 1
    exit
fi
exec python3 tests/mutate.py ${SECTION:+--section "$SECTION"} --count "${N:-16}" --seed "${SEED:-1}" --jobs "${JOBS:-2}"
