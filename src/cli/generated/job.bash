# Sets $job to the index in COMP_WORDS where the job begins; fails if the cursor is not in the job.
_pglock_job() {
    local line=$COMP_LINE i word first='' value='' keyed=''
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        # Bash also splits at = and :, but only whitespace begins a new argument.
        if ((i > 0)) && [[ $line != [[:blank:]]* ]]; then
            [[ $word != = ]] || value=''
            line=${line#"$word"}
            continue
        fi
        line=${line#"${line%%[![:blank:]]*}"}
        line=${line#"$word"}
        if ((i == 0)); then
            continue
        elif [[ -z $first ]]; then
            [[ $word == run ]] && ((i < COMP_CWORD)) || return 1
            first=run
        elif [[ -n $value ]]; then
            value=''
        elif [[ $word == -- ]]; then
            job=$((i + 1))
            ((job <= COMP_CWORD))
            return
        elif [[ $word == -* ]]; then
            [[ ! $word =~ ^(--key|-[@FLAGS@]*k) ]] || keyed=1
            [[ ! $word =~ ^(@LONG@|-[@FLAGS@]*[@LETTERS@])$ ]] || value=1
        elif [[ -n $word || -n $keyed ]]; then
            job=$i
            return
        fi
    done
    return 1
}

