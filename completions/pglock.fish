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
complete -c pglock -n "__fish_pglock_needs_command" -f -a "completions" -d 'Print the completions for a shell, or the manual page'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "run" -d 'Run a command while holding a lock'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "list" -d 'List who holds and who waits for the locks of the database, pglock\'s and anybody else\'s'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "evict" -d 'End the sessions that hold a lock, so that it is free; their pglocks stop their jobs'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "check" -d 'Say whether the connection is fit for locks: server, pooler, timeouts, one line each'
complete -c pglock -n "__fish_pglock_needs_command" -f -a "key" -d 'Print the number of a key, without a server'
complete -c pglock -n "__fish_pglock_using_subcommand completions" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s k -l key -d 'The lock: a name, an integer, or two integers A,B; name:42 is a name. Several keys are taken together, or none' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l hash -d 'How a name becomes a number, to share a lock with another tool; a scheme that is a tool\'s own lock takes no --key [default: sha256] [env: PGLOCK_HASH]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as its documentation does), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'the lock component of Symfony (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'the migrations of Rails'
sqlx-migrate\t'the migrations of sqlx (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as its command is'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'the session locker of goose'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s w -l wait -l timeout -d 'Wait at most this long, connecting included; 0 is --no-wait [default: for ever] [env: PGLOCK_WAIT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s E -l conflict-exit-code -d 'Exit status when someone else holds the lock, or the wait is over [default: 75] [env: PGLOCK_CONFLICT_EXIT_CODE]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l slots -d 'Let at most N hold the key at once, and tell the job which slot it has; all who use the key must give the same N' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l min-hold -d 'Keep the lock at least this long after it was acquired, however short the job [default: 0]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l on-lost -d 'When the lock is lost: stop the job, or ignore it and let the job run on unguarded [default: stop] [env: PGLOCK_ON_LOST]' -r -f -a "stop\t'Stop it: TERM, then KILL'
ignore\t'Let it run to its end, unguarded'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l kill-after -d 'How long a job that is stopped because the lock is lost has from TERM to KILL [default: 10s] [env: PGLOCK_KILL_AFTER]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l heartbeat -d 'How often to ask the server for a sign of life, and how long it may take to answer [default: 5s] [env: PGLOCK_HEARTBEAT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l poll -d 'The longest pause between two tries, where there is no queue to wait in: behind a pooler, and without plpgsql [default: 1s] [env: PGLOCK_POLL]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s d -l dsn -d 'The server: a postgresql:// URI or key=value pairs [env: PGLOCK_DSN, else DATABASE_URL, else PG*]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l connect-timeout -d 'How long connecting to one address may take; 0 is no limit [default: what connect_timeout or PGCONNECT_TIMEOUT says, or 10s] [env: PGLOCK_CONNECT_TIMEOUT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l scope -d 'What the lock lives as long as: session, transaction, or session-pooled (through a pooler that pools whole sessions); auto is transaction behind a pooler, else session [default: auto] [env: PGLOCK_SCOPE]' -r -f -a "auto\t'What is right for the connection'
session\t'A session that is ours alone'
transaction\t'A transaction'
session-pooled\t'A session, through a pooler of sessions'"
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s s -l shared -d 'Share the lock with others that take it shared; without, nobody else holds it'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s n -l no-wait -l nonblock -d 'Do not wait if the lock is held by someone else'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l fair -d 'Wait in line: those who ask for it are served strictly in the order in which they came'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -l token -d 'Give the job a fencing token: PGLOCK_TOKEN is greater than that of every earlier holder, over crashes and failovers of the server too'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s o -l close -d 'Do not hand the session\'s socket to the job: if pglock is killed, the lock is free though the job runs'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s q -l quiet -d 'Do not say it when someone else holds the lock'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s v -l verbose -d 'Say each step on standard error'
complete -c pglock -n "__fish_pglock_using_subcommand run; and not __fish_pglock_job >/dev/null" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_using_subcommand list" -s k -l key -d 'Only this key, with its slots and those who wait in line; exit with 75 if somebody holds it' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l hash -d 'How a name becomes a number, as for `run` [default: sha256] [env: PGLOCK_HASH]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as its documentation does), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'the lock component of Symfony (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'the migrations of Rails'
sqlx-migrate\t'the migrations of sqlx (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as its command is'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'the session locker of goose'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand list" -s d -l dsn -d 'The server: a postgresql:// URI or key=value pairs [env: PGLOCK_DSN, else DATABASE_URL, else PG*]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l connect-timeout -d 'How long connecting to one address may take; 0 is no limit [default: what connect_timeout or PGCONNECT_TIMEOUT says, or 10s] [env: PGLOCK_CONNECT_TIMEOUT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand list" -l json -d 'Print JSON'
complete -c pglock -n "__fish_pglock_using_subcommand list" -l watch -d 'Look again every 2 seconds, until interrupted'
complete -c pglock -n "__fish_pglock_using_subcommand list" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s k -l key -d 'The lock whose holders are to go, with its slots' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l hash -d 'How a name becomes a number, as for `run` [default: sha256] [env: PGLOCK_HASH]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as its documentation does), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'the lock component of Symfony (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'the migrations of Rails'
sqlx-migrate\t'the migrations of sqlx (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as its command is'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'the session locker of goose'
node-pg-migrate\t'node-pg-migrate'"
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s d -l dsn -d 'The server: a postgresql:// URI or key=value pairs [env: PGLOCK_DSN, else DATABASE_URL, else PG*]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l connect-timeout -d 'How long connecting to one address may take; 0 is no limit [default: what connect_timeout or PGCONNECT_TIMEOUT says, or 10s] [env: PGLOCK_CONNECT_TIMEOUT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand evict" -l waiters -d 'Those who wait for it too'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s y -l yes -d 'Do not ask; needed where there is no terminal to ask on'
complete -c pglock -n "__fish_pglock_using_subcommand evict" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_using_subcommand check" -s d -l dsn -d 'The server: a postgresql:// URI or key=value pairs [env: PGLOCK_DSN, else DATABASE_URL, else PG*]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand check" -l connect-timeout -d 'How long connecting to one address may take; 0 is no limit [default: what connect_timeout or PGCONNECT_TIMEOUT says, or 10s] [env: PGLOCK_CONNECT_TIMEOUT]' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand check" -l scope -d 'What the lock lives as long as: session, transaction, or session-pooled (through a pooler that pools whole sessions); auto is transaction behind a pooler, else session [default: auto] [env: PGLOCK_SCOPE]' -r -f -a "auto\t'What is right for the connection'
session\t'A session that is ours alone'
transaction\t'A transaction'
session-pooled\t'A session, through a pooler of sessions'"
complete -c pglock -n "__fish_pglock_using_subcommand check" -l json -d 'Print JSON'
complete -c pglock -n "__fish_pglock_using_subcommand check" -s h -l help -d 'Print help'
complete -c pglock -n "__fish_pglock_using_subcommand key" -l hash -d 'How a name becomes a number, as for `run`; all prints every scheme [default: sha256] [env: PGLOCK_HASH]' -r -f -a "sha256\t'pglock itself; django-pglocks 2.0 and later'
sha256-le\t'django-pglock'
fnv1a\t'go-pglock (as its documentation does), rotationalio/pglock'
fnv1\t'coder'
md5\t'GoodJob (Ruby)'
sqlx\t'PgAdvisoryLock of sqlx (Rust)'
crc32\t'the lock component of Symfony (PHP)'
crc32-signed\t'django-pglocks before 2.0'
with-advisory-lock\t'with_advisory_lock (Ruby), without a prefix: a pair'
pg-lock\t'heroku/pg_lock (Ruby): a pair'
hashtext\t'hashtext(name) in SQL'
hashtextextended\t'hashtextextended(name, 0) in SQL, PostgreSQL 11 and later'
rails-migrate\t'the migrations of Rails'
sqlx-migrate\t'the migrations of sqlx (Rust)'
golang-migrate-url\t'golang-migrate, given a URL, as its command is'
golang-migrate-instance\t'golang-migrate, given an open connection (WithInstance)'
prisma-migrate\t'Prisma Migrate'
goose\t'the session locker of goose'
node-pg-migrate\t'node-pg-migrate'
all\t'all of them'"
complete -c pglock -n "__fish_pglock_using_subcommand key" -l dbname -d 'The database, for the schemes that make the number of its name' -r -f
complete -c pglock -n "__fish_pglock_using_subcommand key" -l sql -d 'Print the SQL expression that computes the number instead'
complete -c pglock -n "__fish_pglock_using_subcommand key" -s h -l help -d 'Print help'

# The words of the job that stand before the cursor, a line each; fails where the cursor is not in the job.
function __fish_pglock_job
    set -l words (commandline -opc)
    test "$words[2]" = run
    or return 1
    set -e words[1..2]
    set -l keyed
    while set -q words[1]
        set -l word $words[1]
        if string match -qr -- '^(--key|-[snoqvh]*k)' $word
            set keyed yes
        end
        if test "$word" = --
            set -e words[1]
            string escape -- $words
            return 0
        else if string match -qr -- '^(--key|--hash|--wait|--timeout|--conflict-exit-code|--slots|--min-hold|--on-lost|--kill-after|--heartbeat|--poll|--dsn|--connect-timeout|--scope|-[snoqvh]*[kwEd])$' $word
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
complete -c pglock -n "__fish_pglock_using_subcommand completions" -a "bash zsh fish man"
# No word of pglock's own is the name of a file.
complete -c pglock -f
