# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_pglock_global_optspecs
    string join \n h/help V/version
end

function __fish_pglock_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_pglock_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_pglock_using_subcommand
    set -l cmd (__fish_pglock_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c pglock -n "__fish_pglock_needs_command" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_needs_command" -s V -l version -d 'Print version'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "run" -d 'Run a command while holding a lock'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "list" -d 'List the holders and waiters of a database\'s advisory locks'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "evict" -d 'Terminate the sessions that hold a lock; their pglocks then terminate the jobs'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "check" -d 'Check whether the connection is suitable for locks: server, pooler, timeouts'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "key" -d 'Print the number of a key, without connecting to a server'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "completions" -d 'Print shell completions or a page of the manual'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "init" -d 'Create the table of recorded runs'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "history" -d 'Show recorded runs, or check when a job last succeeded'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s k -l key -d 'Lock to acquire: a name, an integer, or two integers A,B' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l hash -d 'Hash scheme, to share a lock with another tool [default: sha256]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as in its documentation), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'Symfony Lock component (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'Rails migrations'
sqlx-migrate\t'sqlx migrations (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as on its command line'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'goose session locker'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s w -l wait -l timeout -d 'Time limit for connecting and waiting' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s E -l conflict-exit-code -d 'Exit status if the lock is held or the wait times out [default: 75]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l slots -d 'Allow N holders at once; all users of the key must give the same N' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l min-hold -d 'Hold the lock for at least this long [default: 0s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l on-lost -d 'When the lock is lost, stop the job or let it run on [default: stop]' -r -f -a "stop\t'Terminate the job: SIGTERM, then SIGKILL'
ignore\t'Let the job run on without the lock'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l kill-after -d 'When the lock is lost, time from SIGTERM to SIGKILL [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l heartbeat -d 'Interval of heartbeats, and time limit for each reply [default: 5s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l poll -d 'Maximum interval between attempts when polling [default: 5s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l stop-signal -d 'Signal that also ends a wait, such as an image\'s STOPSIGNAL' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l once-per -d 'Record the run, and skip a job that has succeeded this recently' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l table -d 'Table of recorded runs, as [SCHEMA.]NAME [default: public.pglock_run]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l scope -d 'Lifetime of the lock: session or transaction [default: auto]' -r -f -a "auto\t'Transaction behind a pooler, session otherwise'
session\t'Session of a direct connection'
transaction\t'Open transaction'
session-pooled\t'Session, through a pooler that uses session pooling'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l note -d 'Text to show while the lock is held, such as a reason' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s c -l command -d 'Run this text with $SHELL, or /bin/sh' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s s -l shared -d 'Acquire a shared lock instead of an exclusive one'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s x -l exclusive -d 'Acquire an exclusive lock; this is the default'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s n -l no-wait -l nonblock -d 'Do not wait if the lock is held'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l fair -d 'Acquire the lock in order of arrival, among waiters with --fair'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l token -d 'Pass a fencing token to the job in PGLOCK_TOKEN'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s o -l close -d 'Do not let the job inherit the connection'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l record -d 'Record the run in the table of pglock init, for pglock history'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s q -l quiet -d 'Do not report that the lock is already held'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s v -l verbose -d 'Log each step to standard error'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand list" -s k -l key -d 'Show only this key, with its slots and waiters; exit with 75 if it is held' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l hash -d 'Hash scheme for names, as for run [default: sha256]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as in its documentation), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'Symfony Lock component (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'Rails migrations'
sqlx-migrate\t'sqlx migrations (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as on its command line'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'goose session locker'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand list" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l json -d 'Print JSON'
complete -c pglock -n "__fish_pglock_using_subcommand list" -l watch -d 'Refresh every 2 seconds until interrupted'
complete -c pglock -n "__fish_pglock_using_subcommand list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s k -l key -d 'Lock whose holders to terminate, including its slots' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l hash -d 'Hash scheme for names, as for run [default: sha256]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as in its documentation), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'Symfony Lock component (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'Rails migrations'
sqlx-migrate\t'sqlx migrations (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as on its command line'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'goose session locker'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l waiters -d 'Terminate the waiters, too'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l force -d 'Release the lock at once, even while the job is still being terminated'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s y -l yes -d 'Skip the confirmation prompt; required without a terminal'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand check" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand check" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand check" -l scope -d 'Lifetime of the lock: session or transaction [default: auto]' -r -f -a "auto\t'Transaction behind a pooler, session otherwise'
session\t'Session of a direct connection'
transaction\t'Open transaction'
session-pooled\t'Session, through a pooler that uses session pooling'"
complete -c pglock -n "__fish_pglock_using_subcommand check" -l json -d 'Print JSON'
complete -c pglock -n "__fish_pglock_using_subcommand check" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand key" -l hash -d 'Hash scheme for names, as for run; all prints every scheme [default: sha256]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as in its documentation), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'Symfony Lock component (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'Rails migrations'
sqlx-migrate\t'sqlx migrations (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as on its command line'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'goose session locker'
node-pg-migrate\t'node-pg-migrate'
all\t'Every scheme'"
complete -c pglock -n "__fish_pglock_using_subcommand key" -l dbname -d 'Name of the database, for schemes that hash it' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand key" -l sql -d 'Print the SQL expression that computes the number'
complete -c pglock -n "__fish_pglock_using_subcommand key" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand init" -l table -d 'Table of recorded runs, as [SCHEMA.]NAME [default: public.pglock_run]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand init" -l grant -d 'Role to record and read runs; repeat the option for more' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand init" -l keep -d 'How long to keep runs, except each key\'s last success [default: 90d]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand init" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand init" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand init" -l print -d 'Print the SQL, for a migration tool, and do not connect'
complete -c pglock -n "__fish_pglock_using_subcommand init" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c pglock -n "__fish_pglock_using_subcommand history" -s k -l key -d 'Only this key; repeat the option for more' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -l hash -d 'Hash scheme for names, as for run [default: sha256]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as in its documentation), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'Symfony Lock component (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'Rails migrations'
sqlx-migrate\t'sqlx migrations (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as on its command line'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'goose session locker'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand history" -l last -d 'How many runs to show, of all keys together [default: 20]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -l ok-within -d 'Exit with status 75 unless each --key has succeeded within this time' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -l table -d 'Table of recorded runs, as [SCHEMA.]NAME [default: public.pglock_run]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -s d -l dsn -d 'Server to connect to: a postgresql:// URI or key=value pairs' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -l connect-timeout -d 'Time limit for connecting to one address [default: 10s]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand history" -l failed -d 'Show only runs that ended without success'
complete -c pglock -n "__fish_pglock_using_subcommand history" -l json -d 'Print JSON'
complete -c pglock -n "__fish_pglock_using_subcommand history" -l metrics -d 'Print metrics in Prometheus\' text format'
complete -c pglock -n "__fish_pglock_using_subcommand history" -l prune -d 'Remove runs of all keys that are older than --keep of pglock init'
complete -c pglock -n "__fish_pglock_using_subcommand history" -s h -l help -d 'Print help (see more with \'--help\')'

# Prints the arguments of the job before the cursor, one per line; fails if the cursor is not in the job.
function __fish_pglock_job
    set -l arguments (commandline -opc)
    test "$arguments[2]" = run
    or return 1
    set -e arguments[1..2]
    set -l keyed
    while set -q arguments[1]
        set -l argument $arguments[1]
        if string match -qr -- '^(--key|-[sxnoqvh]*k)' $argument
            set keyed yes
        end
        if test "$argument" = --
            set -e arguments[1]
            string escape -- $arguments
            return 0
        else if string match -qr -- '^(--key|--hash|--wait|--timeout|--conflict-exit-code|--slots|--min-hold|--on-lost|--kill-after|--heartbeat|--poll|--stop-signal|--once-per|--table|--dsn|--connect-timeout|--scope|--note|--command|-[sxnoqvh]*[kwEdc])$' $argument
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
complete -c pglock -n "__fish_pglock_using_subcommand completions" -a "bash zsh fish man man-run man-list man-evict man-check man-key man-completions man-init man-history"
# pglock's own arguments are never file names.
complete -c pglock -f
