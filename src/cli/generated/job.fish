# The words of the job that stand before the cursor, a line each; fails where the cursor is not in the job.
function __fish_pglock_job
    set -l words (commandline -opc)
    test "$words[2]" = run
    or return 1
    set -e words[1..2]
    set -l keyed
    while set -q words[1]
        set -l word $words[1]
        if string match -qr -- '^(--key|-[@FLAGS@]*k)' $word
            set keyed yes
        end
        if test "$word" = --
            set -e words[1]
            string escape -- $words
            return 0
        else if string match -qr -- '^(@LONG@|-[@FLAGS@]*[@LETTERS@])$' $word
            # The value of an option.
            set -q words[2]
            or return 1
            set -e words[1]
        else if not string match -q -- '-*' $word
            string escape -- $words
            return 0
        end
        set -e words[1]
    end
    set -l current (commandline -ct)
    test -n "$keyed$current"
    and not string match -q -- '-*' "$current"
end

function __fish_pglock_complete_job
    complete -C (string join ' ' -- (__fish_pglock_job) (commandline -ct))
end

complete -c pglock -n "__fish_pglock_job >/dev/null" -x -a "(__fish_pglock_complete_job)"
complete -c pglock -n "__fish_pglock_using_subcommand completions" -a "@SHELLS@"
# No word of pglock's own is the name of a file.
complete -c pglock -f
