# moe-ep.bash - completion of moe-ep for bash 4 and later
# SPDX-License-Identifier: MIT
# It asks the tool for its commands, options and names, so that it knows those of the version that is installed.
# Installed where bash-completion looks; by hand:  . examples/packaging/moe-ep.bash

declare -gA _moe_ep_cache # -g: bash-completion loads this file inside a function

# _moe_ep_ask TOOL ARGUMENT...: what the tool prints, asked once per shell; in REPLY
_moe_ep_ask() {
    local key="$*"
    if [ -z "${_moe_ep_cache[$key]-}" ]; then
        _moe_ep_cache[$key]=$("$@" 2>/dev/null </dev/null)
    fi
    REPLY=${_moe_ep_cache[$key]}
}

# _moe_ep_names TOOL SECTION: the first words under a heading of `moe-ep presets`; in REPLY
_moe_ep_names() {
    _moe_ep_ask "$1" presets
    REPLY=$(awk -v section="$2" '/^[^ ]/ { on = $1 == section } on && /^  [^ ]/ { print $1 }' <<<"$REPLY")
}

# _moe_ep_choices TOOL COMMAND OPTION: the values that the help lists for an option; in REPLY
_moe_ep_choices() {
    _moe_ep_ask "$1" "$2" --help
    REPLY=$(awk -v option="$3" '
        function rest(line, at) { return substr(line, at + length(option)) }
        match($0, "(^|  )" option " ") && !found {
            text = rest($0, RSTART + (RLENGTH > length(option) + 1 ? 2 : 0)); found = 1
            sub(/  +--.*/, "", text)
            next
        }
        found && /^   +[^- ]/ && !ended { sub(/^ +/, " "); text = text $0; next }
        found { ended = 1 }
        END {
            while (gsub(/\([^()]*\)/, "", text)) continue  # what stands in brackets explains
            sub(/^ *[A-Z,.]+ /, "", text)
            sub(/^ *[a-z ]+: /, "", text)
            sub(/;.*/, "", text)
            n = split(text, word, / *[,|] *| or /)
            for (i = 1; i <= n; i++) { sub(/^ +/, "", word[i]); sub(/  .*/, "", word[i]) }
            for (i = 1; i <= n; i++) if (match(word[i], /^ *[a-z][a-z0-9-]* *$/)) print word[i]
        }' <<<"$REPLY")
}

# _moe_ep_options TOOL COMMAND: its options, from the usage line and the list below it; in REPLY
_moe_ep_options() {
    _moe_ep_ask "$1" "$2" --help
    REPLY=$({
        sed -n '/^usage:/,/^$/s/[][]/  /gp' <<<"$REPLY"
        sed '/^usage:/,/^$/d' <<<"$REPLY"
        printf '  --help\n'
    } | awk '/^usage:/ { gsub(/ --/, "   --") } 1' |
        grep -oE -- '(^|  )--[a-z][a-z-]*( |$)|--[a-z][a-z-]* [A-Z]' | grep -oE -- '--[a-z-]+' | sort -u)
}

_moe_ep() {
    local tool=${COMP_WORDS[0]} command=${COMP_WORDS[1]}
    local word=${COMP_WORDS[COMP_CWORD]} last=${COMP_WORDS[COMP_CWORD - 1]}
    local REPLY='' list=''
    COMPREPLY=()
    command -v "$tool" >/dev/null 2>&1 || return
    if [ "$COMP_CWORD" = 1 ]; then
        _moe_ep_ask "$tool" --help
        list="$(awk '/^  [a-z]/ { print $1 }' <<<"$REPLY") --help --version"
    else
        case $last in
            --model) _moe_ep_names "$tool" models; list=$REPLY ;;
            --machine) _moe_ep_names "$tool" machines; list=$REPLY ;;
            --router) _moe_ep_names "$tool" routers; list=$REPLY ;;
            --policy | --overlap | --split | --kernels | --color | --format | --mode | --type)
                _moe_ep_choices "$tool" "$command" "$last"; list=$REPLY ;;
            --weights) # of drops and route it is a file
                if [ "$command" = inspect ]; then _moe_ep_choices "$tool" "$command" "$last"; list=$REPLY; fi ;;
            --dispatch | --combine) _moe_ep_choices "$tool" "$command" --combine; list=$REPLY ;;
            --matrix) list="dispatch combine" ;;
            --isa) list="portable avx2 avx512" ;;
            *)
                case $word in
                    -*) _moe_ep_options "$tool" "$command"; list=$REPLY ;;
                esac ;;
        esac
    fi
    # without a list files are completed, by the options of `complete`
    [ -z "$list" ] || mapfile -t COMPREPLY <<<"$(compgen -W "$list" -- "$word")"
    [ -n "${COMPREPLY[*]}" ] || COMPREPLY=()
}
complete -o bashdefault -o default -F _moe_ep moe-ep
