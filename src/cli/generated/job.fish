# Prints the arguments of the job before the cursor, one per line; fails if the cursor is not in the job.
function __fish_pglock_job
    set -l arguments (commandline -opc)
    test "$arguments[2]" = run
    or return 1
    set -e arguments[1..2]
    set -l keyed
    while set -q arguments[1]
        set -l argument $arguments[1]
        if string match -qr -- '^(--key|-[@FLAGS@]*k)' $argument
            set keyed yes
        end
        if test "$argument" = --
            set -e arguments[1]
            string escape -- $arguments
            return 0
        else if string match -qr -- '^(@LONG@|-[@FLAGS@]*[@LETTERS@])$' $argument
            # Skips the value of the option.
            set -q arguments[2]
            or return 1
            set -e arguments[1]
        else if not string match -q -- '-*' $argument
            string escape -- $arguments
            return 0
        end
        set -e arguments[1]
    end
    set -l current (commandline -ct)
    test -n "$keyed$current"
    and not string match -q -- '-*' "$current"
end

function __fish_pglock_complete_job
    complete -C (string join ' ' -- (__fish_pglock_job) (commandline -ct))
end

complete -c pglock -n "__fish_pglock_job >/dev/null" -x -a "(__fish_pglock_complete_job)"
complete -c pglock -n "__fish_pglock_using_subcommand completions" -a "@TARGETS@"
# pglock's own arguments are never file names.
complete -c pglock -f
