#!/bin/sh
# tests/manpage.sh - the man page and the bash completion know every command and option that the tool knows.
# SPDX-License-Identifier: MIT
. tests/lib.sh
export OPENBLAS_NUM_THREADS=1 # the tool starts some hundreds of times
tool=build/moe-ep page=examples/moe-ep.1
if [ ! -x $tool ]; then
    fail "$tool is built"
    finish 1
    exit
fi
sed 's/\\-/-/g' $page >"$tmp/page"

# What the tool says of itself: "COMMAND --option" lines.
$tool --help | awk '/^  [a-z]/ { print $1 }' >"$tmp/commands"
while read -r command; do
    $tool "$command" --help >"$tmp/help" 2>/dev/null </dev/null
    {
        sed -n '/^usage:/,/^$/p' "$tmp/help" | tr ' []' '\n\n\n' | grep -E '^--[a-z]'
        sed '/^usage:/,/^$/d' "$tmp/help" | grep -oE -- '(^|  )--[a-z][a-z-]*( |$)|--[a-z][a-z-]* [A-Z]' |
            grep -oE -- '--[a-z-]+'
    } | sort -u | sed "s/^/$command /"
done <"$tmp/commands" >"$tmp/options"
commands=$(wc -l <"$tmp/commands") options=$(wc -l <"$tmp/options")
[ "$commands" -ge 9 ] && [ "$options" -ge 80 ]
result $? "$commands commands with $options options are looked at"

while read -r command; do
    grep -qE "^\.B moe-ep $command\$" "$tmp/page" && grep -qxF ".B $command" "$tmp/page" || echo "$command"
done <"$tmp/commands" >"$tmp/missing"
[ ! -s "$tmp/missing" ]
result $? "the man page has every command in SYNOPSIS and COMMANDS" "$tmp/missing"
while read -r command option; do
    grep -qE -- "(^|[^a-z-])$option([^a-z-]|\$)" "$tmp/page" || echo "$command $option"
done <"$tmp/options" >"$tmp/missing"
[ ! -s "$tmp/missing" ]
result $? "the man page has every option" "$tmp/missing"
# An option of two commands has to be said of both: what other commands have in their sections does not count.  Those of
# report are also the others'.
while read -r command; do
    awk -v own=".SH OPTIONS OF $(echo "$command" | tr '[:lower:]' '[:upper:]')" '
        /^\.SH/ { on = !/ OPTIONS OF / || $0 == own || $0 == ".SH OPTIONS OF REPORT" } on' "$tmp/page" >"$tmp/section"
    sed -n "s/^$command //p" "$tmp/options" | while read -r option; do
        grep -qE -- "(^|[^a-z-])$option([^a-z-]|\$)" "$tmp/section" || echo "$command $option"
    done
done <"$tmp/commands" >"$tmp/missing"
[ ! -s "$tmp/missing" ]
result $? "and of each command where it is looked for" "$tmp/missing"
grep -oE -- '(^|[^a-z-])--[a-z][a-z-]*' "$tmp/page" | grep -oE -- '--[a-z-]*' | sort -u | while read -r option; do
    cut -d' ' -f2 "$tmp/options" | grep -qxF -- "$option" && continue
    case $option in
        --help | --version | --init-expert-location | --ep-num-redundant-experts | --eplb*) ;; # the last are SGLang's
        *) $tool place "$option" </dev/null 2>&1 | grep -q unrecognized && echo "$option" ;;
    esac
done >"$tmp/extra"
[ ! -s "$tmp/extra" ]
result $? "the man page has no option that the tool has not" "$tmp/extra"
while read -r command option; do
    case $command in presets) continue ;; esac
    # an option that nobody knows behind it, so that the command does not start its work
    $tool "$command" "$option" --none --none </dev/null 2>&1 | grep -qF "unrecognized option '$option'" &&
        echo "$command $option"
done <"$tmp/options" >"$tmp/missing"
[ ! -s "$tmp/missing" ]
result $? "every option in the help is taken" "$tmp/missing"
if have man; then
    LC_ALL=C.UTF-8 MANROFFSEQ='' MANWIDTH=100 man --warnings -E UTF-8 -l -Tutf8 -Z $page >/dev/null 2>"$tmp/warnings"
    [ ! -s "$tmp/warnings" ]
    result $? "man formats the page without a warning" "$tmp/warnings"
else skip "man formats the page" "not installed (package man-db)"; fi

if ! have bash; then
    skip "bash completion" "not installed (package bash)"
    finish 6
    exit
fi
cat >"$tmp/complete.bash" <<'EOF_BASH'
load() { . examples/packaging/moe-ep.bash; } # as bash-completion does, inside a function
load
complete -p moe-ep
while IFS= read -r line; do
    read -ra words <<<"$line"
    [ -n "$line" ] && [ "${line: -1}" != ' ' ] || words+=("")
    COMP_WORDS=(build/moe-ep "${words[@]}")
    COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _moe_ep
    printf '%s: %s\n' "$line" "${COMPREPLY[*]}"
done
EOF_BASH
completes() { printf '%s\n' "$@" | bash "$tmp/complete.bash" 2>&1 | tail -n 1 | sed 's/^[^:]*: *//'; }
bash -n examples/packaging/moe-ep.bash
result $? "the completion is bash"
[ "$(completes '' | tr ' ' '\n' | grep -v '^-' | sort)" = "$(sort "$tmp/commands")" ]
result $? "every command is completed"
while read -r command; do
    [ "$command" != presets ] || continue
    completes "$command --" | tr ' ' '\n' | grep -vx -- --help | sort >"$tmp/got"
    sed -n "s/^$command //p" "$tmp/options" | grep -vx -- --help | diff - "$tmp/got" | sed "s/^/$command /"
done <"$tmp/commands" >"$tmp/diff"
[ ! -s "$tmp/diff" ]
result $? "every option of every command is completed, and no other" "$tmp/diff"
[ "$(completes 'place --policy ')" = "best eplb eplb-global eplb-hierarchical trtllm lpt contiguous round-robin" ]
result $? "place --policy completes the planners"
[ "$(completes 'report --kernels ')" = "auto normal low-latency" ] &&
    [ "$(completes 'sweep --kernels ')" = "auto normal low-latency" ]
result $? "--kernels completes the kernels"
[ "$(completes 'simulate --policy ')" = "balanced rr rand copy lognormal" ]
result $? "simulate --policy completes the routings"
[ "$(completes 'report --format ')" = "text json html csv svg" ] &&
    [ "$(completes 'traffic --combine ')" = "bf16 fp32 fp8 mxfp8 nvfp4" ]
result $? "formats and wires are completed"
[ "$(completes 'inspect --weights ')" = "bf16 f16 f32 fp8 int8 mxfp4 nvfp4" ] &&
    [ -z "$(completes 'drops --weights ')" ]
result $? "inspect --weights completes formats, drops --weights files"
[ "$(completes 'report --model deepseek-v2')" = "deepseek-v2 deepseek-v2-lite" ]
result $? "report --model completes the presets"
[ "$(completes 'report --machine h2')" = "h20 h200" ] && [ "$(completes 'route --router mixt')" = mixtral ]
result $? "machines and routers are completed"
[ -z "$(completes 'report examples/')" ]
result $? "where a file is wanted bash completes files"
finish 15
