//! An evicted holder terminates its job first, and releases the lock when the job is dead.

use crate::support::case::Case;
use crate::support::journal::{Journal, state};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::server::{SUPERUSER, Server, number, rows};
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, repetitions, unique};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use postgres::{Client, NoTls};
use serde_json::Value;
use std::time::Duration;

/// The first number of an eviction mark, as `docs/protocol.md` has it.
const MARK: i32 = -613_922_599;

/// The first number of a forced eviction mark, from there, too.
const FORCED_MARK: i32 = 30_756_868;

/// A holder with a job that only KILL ends, which it gets soon. Its heartbeats are frequent enough that an eviction
/// through a pooler is noticed soon.
fn stubborn(run: Pglock, journal: &Journal) -> Running {
    let limits = ["--heartbeat", "0.5", "--kill-after", "0.7"];
    let holder = run.args(limits).sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    // Which shows its limit.
    let name = format!("application_name LIKE 'pglock:%:{}'", holder.pid());
    let heartbeat = format!("SELECT 1 FROM pg_stat_activity WHERE {name} AND query LIKE '/* pglock holds %'");
    let mut observer = Server::shared().client();
    eventually(SOON, "a heartbeat", || !rows(&mut observer, &heartbeat).is_empty());
    holder
}

fn evict(evictor: Pglock, key: &str) -> Pglock {
    evictor.args(["evict", "--yes", "--key", key])
}

/// Asserts status 74, and that the one line names the requester.
#[track_caller]
fn assert_evicted(output: &Output, by: &str, done: &str) {
    let line = output.code(74).stderr_line();
    assert!(line.contains(": evicted by ") && line.contains(by), "{line}");
    assert!(line.ends_with(done), "{line}");
}

const KILLED: &str = "; terminated the job with SIGTERM, then SIGKILL";

/// Evicts a holder with two waiters behind it, and asserts that nobody started before its job was dead.
#[track_caller]
fn evict_before_two_waiters(key: &str, run: impl Fn() -> Pglock, evictor: Pglock) {
    let journal = Journal::new();
    let holder = stubborn(run(), &journal);
    let waiters = [0, 1].map(|_| {
        let waiter = run().args(["-v", "--poll", "0.02"]).sh(&journal.alone()).spawn();
        waiter.await_stderr("; waiting");
        waiter
    });
    let output = evict(evictor, key).output();
    let text = String::from_utf8_lossy(&output.code(0).silent().stdout).into_owned();
    let who = format!("{}:{} (backend ", hostname(), holder.pid());
    assert!(text.contains(&format!("\nwaiting for {who}")), "{output}");
    assert!(text.contains(" to terminate its job, up to 4s 700ms\n"), "{output}");
    assert!(text.contains(&format!("\nevicted {who}")), "{output}");
    // The grace period is over when the evictor returns; a waiter does not keep it.
    assert!(output.took < Duration::from_secs(5), "{output}");
    assert_evicted(&holder.finish(), &format!(" as role \"{SUPERUSER}\""), KILLED);
    for waiter in waiters {
        waiter.finish().code(0);
    }
    journal.assert_alone(3..=3);
}

/// P10, P75
#[test]
fn no_waiter_starts_before_the_evicted_job_is_dead() {
    for _ in 0..repetitions("PGLOCK_TEST_EVICTIONS", 3) {
        let case = Case::new();
        evict_before_two_waiters(&case.key, || case.run(), case.server.pglock());
    }
}

/// P10, P75: nor through a pooler, where the next holder gets the same backend.
#[test]
fn no_waiter_starts_before_the_evicted_job_is_dead_behind_a_pooler() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    for n in 0..repetitions("PGLOCK_TEST_EVICTIONS", 3) {
        let key = unique("pooled");
        let evictor = if n % 2 == 0 { server.pglock() } else { bouncer.pglock() };
        evict_before_two_waiters(&key, || bouncer.run(&key), evictor);
    }
}

/// P75: the next holder gets the backend of the evicted one. The requester neither waits for it nor terminates it.
#[test]
fn the_next_holder_behind_a_pooler_is_left_alone() {
    let server = Server::shared();
    leave_alone_the_next_holder(&server.database(), server.pglock());
}

/// P75: also by an evictor behind a pooler, whose transaction keeps what it has once seen of the other sessions.
#[test]
fn so_it_is_if_the_evictor_is_behind_a_pooler() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    leave_alone_the_next_holder(&server.database(), bouncer.pglock());
}

#[track_caller]
fn leave_alone_the_next_holder(database: &str, evictor: Pglock) {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction", "default_pool_size=1"]);
    let (key, journal) = (unique("pool_of_one"), Journal::new());
    let run = || bouncer.run(&key).env("PGDATABASE", database);
    let holder = stubborn(run(), &journal);
    let next = run().sh("echo mine; read -r _; exit 0").spawn();
    eventually(SOON, "the next one to wait for the backend", || {
        bouncer.pool(database, "cl_waiting") == 1
    });
    let evictor = evict(evictor.env("PGDATABASE", database), &key).spawn();
    next.await_stdout("mine\n");
    let output = evictor.finish();
    output.code(0).silent();
    assert!(output.took < Duration::from_millis(2500), "{output}");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let now = format!("key \"{key}\" is now held by {}:{} ", hostname(), next.pid());
    assert!(text.contains(&now), "{output}");
    assert_evicted(&holder.finish(), "", KILLED);
    next.finish().code(0).silent();
}

/// P75: a slot, of the only one.
#[test]
fn a_slot_is_released_when_the_evicted_job_is_dead() {
    let case = Case::new();
    evict_before_two_waiters(&case.key, || case.run().args(["--slots", "1"]), case.server.pglock());
}

/// P75: each of them has the key until its own job is dead.
#[test]
fn all_shared_holders_are_evicted() {
    let (case, journal) = (Case::new(), Journal::new());
    let job = format!(
        "trap '' TERM; {}; note \"pid $$\"; sleep 600 & note \"pid $!\"; note ready; wait",
        journal.note()
    );
    let holders = ["0.3", "0.7", "1"].map(|grace| {
        let run = case
            .run()
            .args(["--shared", "--heartbeat", "0.5", "--kill-after", grace]);
        run.sh(&job).spawn()
    });
    journal.await_count("ready", 3);
    let waiter = case.run().sh(&journal.alone()).spawn();
    case.await_locks(3, 1);
    let output = evict(case.server.pglock(), &case.key).output();
    let text = String::from_utf8_lossy(&output.code(0).silent().stdout).into_owned();
    assert_eq!(text.matches("\nevicted ").count(), 3, "{output}");
    for holder in holders {
        assert_evicted(&holder.finish(), "", KILLED);
    }
    waiter.finish().code(0).silent();
    journal.assert_alone(1..=1);
}

/// P75: the requester does not wait longer than the job needs.
#[test]
fn a_job_that_terminates_is_not_waited_for_longer_than_that() {
    let case = Case::new();
    let holder = case
        .run()
        .args(["--kill-after", "60"])
        .sh("echo ready; exec sleep 600")
        .spawn();
    holder.await_stdout("ready\n");
    let output = evict(case.server.pglock(), &case.key).output();
    output.code(0).silent();
    // A direct session listens from 0.9 s on.
    assert!(output.took < Duration::from_secs(4), "{output}");
    let evicted = holder.finish();
    let text = String::from_utf8_lossy(&evicted.code(74).stderr).into_owned();
    assert!(text.ends_with("; terminated the job with SIGTERM\n"), "{text}");
}

/// A role of its own for a holder, and another for its evictor.
struct Roles {
    owner: String,
    other: String,
}

impl Roles {
    fn new(server: &Server) -> Roles {
        let (owner, other) = (unique("owner"), unique("other"));
        server.sql(&format!("CREATE ROLE {owner} LOGIN; CREATE ROLE {other} LOGIN"));
        Roles { owner, other }
    }

    fn client(&self, server: &Server) -> Client {
        let mut config = server.config();
        config.user(&self.other).dbname("postgres");
        config.connect(NoTls).unwrap()
    }
}

fn as_role(run: Pglock, role: &str) -> Pglock {
    run.env("PGUSER", role).env("PGDATABASE", "postgres")
}

/// Waits until the holder of the case has sent two more heartbeats, so that it has seen whatever there is to see. After
/// each, it looks for the evictor if it is marked.
#[track_caller]
fn await_heartbeats(case: &Case) {
    let name = format!("application_name LIKE 'pglock:{} %'", case.key);
    let sent = format!("SELECT query_start FROM pg_stat_activity WHERE {name} AND query LIKE '/* pglock %'");
    let mut queries = vec![case.value(&sent)];
    eventually(SOON, "two heartbeats", || {
        queries.push(case.value(&sent));
        queries.dedup();
        queries.len() > 5
    });
}

fn marks(case: &Case) -> usize {
    let backend = case.backend();
    let class = MARK as u32;
    let sql = format!("SELECT 1 FROM pg_locks WHERE objsubid = 2 AND classid = {class} AND objid = {backend}");
    case.sql(&sql).len()
}

/// P75: nothing happens, neither to the job nor to the lock, and no mark is left.
#[test]
fn a_role_without_the_right_changes_nothing() {
    let (case, journal) = (Case::new(), Journal::new());
    let roles = Roles::new(case.server);
    let run = as_role(case.run(), &roles.owner).args(["--heartbeat", "0.3"]);
    let holder = run.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    let refused = evict(as_role(case.server.pglock(), &roles.other), &case.key).output();
    let text = String::from_utf8_lossy(&refused.code(77).stderr).into_owned();
    assert!(text.contains("GRANT pg_signal_backend to it"), "{text}");
    assert_eq!(marks(&case), 0);
    await_heartbeats(&case);
    assert_eq!((case.locks().granted, journal.count("TERM")), (1, 0));
    case.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
    let allowed = evict(as_role(case.server.pglock(), &roles.other), &case.key).spawn();
    journal.await_count("TERM", 1);
    holder.signal(Signal::SIGUSR2);
    allowed.finish().code(0).silent();
    assert_evicted(&holder.finish(), &format!(" as role {:?}", roles.other), "SIGTERM");
}

/// Returns the options for keys that the name of a session does not show as they are, each of its own.
fn unreadable_keys() -> [Vec<String>; 5] {
    let key = |text: &str| vec!["--key".to_owned(), format!("{}{text}", unique("k"))];
    let computed = || [key(""), key(""), vec!["--hash".to_owned(), "hashtext".to_owned()]].concat();
    [key("\u{fc}ssel"), key(" it's"), key("\t"), key(" slots=3"), computed()]
}

/// P10, P43, P72, P75: a holder whose query tag is not visible is asked too, whatever its keys look like in the name of
/// its session: it is not taken for a session of a pool, in which another client has left a lock behind.
#[test]
fn a_key_that_a_name_cannot_show_is_evicted_like_any_other() {
    let server = Server::shared();
    let roles = Roles::new(server);
    server.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
    let as_other = || as_role(server.pglock(), &roles.other);
    for keys in unreadable_keys() {
        let run = as_role(server.pglock(), &roles.owner).arg("run").args(&keys);
        let holder = run
            .args(["--heartbeat", "0.5"])
            .sh("echo ready; exec sleep 600")
            .spawn();
        holder.await_stdout("ready\n");
        let list = as_other().args(["list", "--json"]).output();
        let list: Value = serde_json::from_slice(&list.code(0).stdout).unwrap();
        let locks = list["locks"].as_array().unwrap();
        let own = || locks.iter().filter(|lock| lock["user"] == roles.owner.as_str());
        assert!(
            own().count() > 0 && own().all(|lock| lock["leftover"] == false),
            "{list:#}"
        );
        // What only the server can compute is known by another name, too: the number itself.
        let number = own().next().unwrap()["key"].as_str().unwrap().to_owned();
        let evicts_by_number = keys.iter().any(|option| option == "--hash");
        let evict = as_other().args(["evict", "--yes"]);
        let evict = if evicts_by_number {
            evict.args(["--key", &number])
        } else {
            evict.args(&keys)
        };
        let output = evict.output();
        assert!(output.code(0).to_string().contains("\nwaiting for "), "{output}");
        let evicted = holder.finish().code(74).to_string();
        assert!(evicted.contains(&format!(" as role {:?}; ", roles.other)), "{evicted}");
    }
}

/// P10, P75: a name that a user has made up does not tell which keys its pglock holds.
#[test]
fn a_holder_named_after_another_key_is_asked_before_it_is_terminated() {
    let (case, journal) = (Case::new(), Journal::new());
    let roles = Roles::new(case.server);
    case.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
    let run = as_role(case.run(), &roles.owner).env("PGAPPNAME", "pglock:another-key");
    let limits = ["--heartbeat", "0.5", "--kill-after", "0.7"];
    let holder = run.args(limits).sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let output = evict(as_role(case.server.pglock(), &roles.other), &case.key).output();
    let text = output.code(0).to_string();
    assert!(text.contains("\nwaiting for a session of the pool (backend "), "{text}");
    assert_evicted(&holder.finish(), "", KILLED);
    case.run().sh(&journal.alone()).output().code(0);
    journal.assert_alone(2..=2);
}

/// P10, P75: how long a holder may take is not known to a role that does not see its query tag, or if the server does
/// not record it: a slow holder is asked, but its session is not terminated.
#[test]
fn a_holder_whose_limit_is_hidden_is_not_terminated() {
    // A configured name takes the place of `pglock:` and the keys.
    for (is_recorded, configured_name) in [(true, None), (false, None), (true, Some("billing"))] {
        let (case, journal) = (Case::new(), Journal::new());
        let roles = Roles::new(case.server);
        case.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
        let evictor = if is_recorded {
            as_role(case.server.pglock(), &roles.other)
        } else {
            case.sql(&format!("ALTER ROLE {} SET track_activities = off", roles.owner));
            case.server.pglock()
        };
        let limits = ["--heartbeat", "0.3", "--kill-after", "60"];
        let mut run = as_role(case.run(), &roles.owner).args(limits);
        if let Some(name) = configured_name {
            run = run.env("PGAPPNAME", name);
        }
        let holder = run.sh(&journal.recording("TERM")).spawn();
        journal.await_count("ready", 1);
        // Limits that the holder does not keep.
        let evictor = evictor.env("PGLOCK_HEARTBEAT", "1").env("PGLOCK_KILL_AFTER", "0.1");
        let output = evict(evictor, &case.key).output();
        let text = output.code(75).to_string();
        assert!(
            text.contains(" was not evicted: its job may still be terminating"),
            "{text}"
        );
        let cause = if is_recorded {
            "GRANT pg_read_all_stats"
        } else {
            "track_activities is off"
        };
        assert!(text.contains(cause), "{text}");
        assert!(!text.contains("did not react"), "{text}");
        // The holder has been asked, and keeps the lock until its job is dead.
        assert_eq!((journal.count("TERM"), case.locks().granted), (1, 1));
        holder.signal(Signal::SIGUSR2);
        holder.await_stderr(": evicted by ");
        holder.finish().code(74);
        assert_eq!(case.locks().granted, 0);
    }
}

/// P10, P75: nor if the holder has not shown it yet, because its first heartbeat is due later.
#[test]
fn a_holder_before_its_first_heartbeat_is_not_terminated() {
    let server = Server::shared();
    let bouncer = PgBouncer::with(server, &["pool_mode=transaction"]);
    let (key, journal) = (unique("pooled"), Journal::new());
    let run = bouncer.run(&key).args(["--heartbeat", "60", "--kill-after", "60"]);
    let holder = run.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    // For longer than the limit of the evictor.
    let is_idle = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{key} %' \
         AND query_start < clock_timestamp() - interval '2.5 s'"
    );
    eventually(SOON, "an idle holder", || !server.sql(&is_idle).is_empty());
    let evictor = server.pglock().env("PGLOCK_HEARTBEAT", "1");
    let output = evict(evictor.env("PGLOCK_KILL_AFTER", "0.1"), &key).output();
    let text = output.code(75).to_string();
    assert!(
        text.contains("its limit is not in its query tag, before its first heartbeat"),
        "{text}"
    );
    assert!(!text.contains("terminated its session"), "{text}");
    assert_eq!((server.locks(&key).granted, journal.count("TERM")), (1, 0));
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(3).silent();
}

/// P10, P75: a holder is asked, too, if the server has cut off the end of its query tag.
#[test]
fn a_holder_whose_query_tag_is_cut_is_asked() {
    let server = Server::with(&["track_activity_query_size=100"]);
    let key = unique("noted");
    let note = "a note with which the query tag of a heartbeat has more than 99 bytes";
    let holder = server.run(&key).args(["--note", note]).holding();
    let heartbeat = "SELECT 1 FROM pg_stat_activity WHERE query LIKE '/* pglock holds % limit %'";
    eventually(SOON, "a heartbeat", || !server.sql(heartbeat).is_empty());
    let output = evict(server.pglock(), &key).output();
    assert!(
        output.code(0).silent().to_string().contains("\nwaiting for "),
        "{output}"
    );
    holder.finish().code(74);
}

/// P75: `pglock evict` says so if it terminates a session that it could not ask.
#[test]
fn a_job_without_its_pglock_may_still_run_and_evict_says_so() {
    let case = Case::new();
    let run = case.run().args(["--heartbeat", "0.3", "--kill-after", "0.1"]);
    let holder = run.sh("echo $$; exec sleep 600").spawn();
    holder.await_stdout("\n");
    let job = Pid::from_raw(holder.stdout().trim().parse().unwrap());
    await_heartbeats(&case);
    holder.signal(Signal::SIGKILL);
    let is_silent = format!(
        "SELECT 1 FROM pg_stat_activity WHERE application_name LIKE 'pglock:{} %' \
         AND query_start < clock_timestamp() - interval '1 s'",
        case.key
    );
    eventually(SOON, "no heartbeat", || !case.sql(&is_silent).is_empty());
    let output = evict(case.server.pglock(), &case.key).output();
    let expected = " cannot be asked; terminated its session, although its job may still run\n";
    assert!(output.code(0).to_string().contains(expected), "{output}");
    assert!(kill(job, None).is_ok(), "the job is dead");
    kill(job, Signal::SIGKILL).unwrap();
    let mut psql = case.client();
    rows(&mut psql, &format!("SELECT pg_advisory_lock({})", number(&case.key)));
    let output = evict(case.server.pglock(), &case.key).output();
    assert!(output.code(0).to_string().contains(expected), "{output}");
}

/// P75: of several sessions, none is evicted if the role may not evict one of them, also if that one cannot be asked.
#[test]
fn all_sessions_are_evicted_or_none() {
    let case = Case::new();
    let roles = Roles::new(case.server);
    case.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
    let lock = format!("SELECT pg_advisory_lock_shared({})", number(&case.key));
    let mut superuser = case.client();
    rows(&mut superuser, &lock);
    let mut config = case.server.config();
    let mut owner = config.user(&roles.owner).dbname("postgres").connect(NoTls).unwrap();
    rows(&mut owner, &lock);
    let output = evict(as_role(case.server.pglock(), &roles.other), &case.key).output();
    assert!(!output.code(77).to_string().contains("\nevicted "), "{output}");
    assert_eq!(case.locks().granted, 2);
    drop(superuser);
    eventually(SOON, "the end of the superuser's session", || case.locks().granted == 1);
    evict(as_role(case.server.pglock(), &roles.other), &case.key)
        .output()
        .code(0);
    assert!(owner.simple_query("SELECT 1").is_err());
}

/// P75: a superuser's session is beyond `pg_signal_backend`, as for `pg_terminate_backend`.
#[test]
fn a_superusers_lock_is_not_for_others_to_evict() {
    let case = Case::new();
    let roles = Roles::new(case.server);
    case.sql(&format!("GRANT pg_signal_backend TO {}", roles.other));
    let holder = case.holder();
    evict(as_role(case.server.pglock(), &roles.other), &case.key)
        .output()
        .code(77);
    holder.finish().code(0).silent();
}

/// P75: over TCP, where what a server sends on its own is filtered, a holder whose heartbeats are rare notices it, too.
#[test]
fn an_eviction_is_noticed_at_once_over_tcp() {
    let case = Case::new();
    let dsn = case.server.dsn();
    let holder = case.run().env("PGLOCK_DSN", &dsn).args(["--heartbeat", "30"]).holding();
    // Which has begun to listen.
    let name = format!("application_name LIKE 'pglock:%:{}'", holder.pid());
    let heartbeat = format!("SELECT 1 FROM pg_stat_activity WHERE {name} AND query LIKE '/* pglock holds %'");
    eventually(SOON, "a heartbeat", || !case.sql(&heartbeat).is_empty());
    let output = evict(case.server.pglock(), &case.key).output();
    assert!(output.code(0).took < Duration::from_secs(10), "{output}");
    holder.finish().code(74);
}

/// P75: the holder checks the requester's role itself, since any client can place a mark. It looks at the requesters
/// anew each time, in the transaction of its lock too.
#[test]
fn a_mark_counts_only_if_its_role_may_evict() {
    for scope in ["session", "transaction"] {
        let (case, journal) = (Case::new(), Journal::new());
        let roles = Roles::new(case.server);
        let run = as_role(case.run(), &roles.owner).args(["--heartbeat", "0.3", "--scope", scope]);
        let holder = run.sh(&journal.recording("TERM")).spawn();
        journal.await_count("ready", 1);
        let backend = case.backend();
        let place = |client: &mut Client| {
            rows(client, "SET application_name = 'pglock evict x'");
            rows(client, &format!("SELECT pg_advisory_lock_shared({MARK}, {backend})"));
            rows(client, &format!("NOTIFY pglock_{backend}"));
        };
        let mut outsider = roles.client(case.server);
        place(&mut outsider);
        await_heartbeats(&case);
        assert_eq!((case.locks().granted, journal.count("TERM")), (1, 0));
        assert_eq!(holder.stderr(), "");
        // Beside the mark that does not count.
        let mut superuser = case.client();
        place(&mut superuser);
        journal.await_count("TERM", 1);
        holder.signal(Signal::SIGUSR2);
        assert_evicted(
            &holder.finish(),
            &format!("evicted by x as role \"{SUPERUSER}\""),
            "SIGTERM",
        );
    }
}

/// P25, P75: a guard checks it, too. A role that may not evict cannot have it give up the key.
#[test]
fn a_forced_mark_counts_only_if_its_role_may_evict() {
    let (case, journal) = (Case::new(), Journal::new());
    let roles = Roles::new(case.server);
    let run = as_role(case.run(), &roles.owner).args(["--kill-after", "60"]);
    let holder = run.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    let backend = case.backend();
    let mut outsider = roles.client(case.server);
    rows(&mut outsider, "SET application_name = 'pglock evict x'");
    for mark in [MARK, FORCED_MARK] {
        rows(
            &mut outsider,
            &format!("SELECT pg_advisory_lock_shared({mark}, {backend})"),
        );
    }
    case.sql(&format!("SELECT pg_terminate_backend({backend})"));
    let name = format!("application_name LIKE 'pglock:{} %'", case.key);
    let guard = format!("SELECT 1 FROM pg_stat_activity WHERE {name} AND query LIKE '/* pglock guards %'");
    eventually(SOON, "the guard", || !case.sql(&guard).is_empty());
    case.assert_held();
    holder.signal(Signal::SIGUSR2);
    let line = holder.finish().code(74).stderr_line();
    assert!(!line.contains("evicted"), "{line}");
}

/// P75: with `--force` the lock is free at once, and nobody guards the end of the job.
#[test]
fn force_frees_the_lock_at_once() {
    let (case, journal) = (Case::new(), Journal::new());
    let run = case.run().args(["--kill-after", "2"]);
    let holder = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let output = evict(case.server.pglock(), &case.key).arg("--force").output();
    output.code(0).silent();
    case.run().args(["-n", "true"]).output().code(0).silent();
    let pids = journal.pids();
    assert!(pids.iter().all(|pid| state(*pid).is_some()), "the job is dead already");
    let ended = holder.finish();
    let line = ended.code(74).stderr_line();
    assert!(line.contains(" (evicted by ") && line.ends_with(KILLED), "{line}");
}

/// P75: also while another requester waits for the job.
#[test]
fn force_frees_the_lock_at_once_beside_another_eviction() {
    for _ in 0..3 {
        let (case, journal) = (Case::new(), Journal::new());
        let run = case.run().args(["--kill-after", "4"]);
        let holder = run.sh(&journal.stubborn_alone()).spawn();
        journal.await_count("ready", 1);
        let patient = evict(case.server.pglock(), &case.key).spawn();
        patient.await_stdout("waiting for ");
        evict(case.server.pglock(), &case.key).arg("--force").output().code(0);
        case.run().args(["-n", "true"]).output().code(0).silent();
        let pids = journal.pids();
        assert!(pids.iter().all(|pid| state(*pid).is_some()), "the job is dead already");
        patient.finish().code(0);
        holder.finish().code(74);
    }
}

/// P23, P75
#[test]
fn a_job_that_ignores_the_loss_goes_on_without_its_lock() {
    let (case, journal) = (Case::new(), Journal::new());
    let run = case.run().args(["--on-lost", "ignore", "--min-hold", "600"]);
    let holder = run.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    evict(case.server.pglock(), &case.key).output().code(0).silent();
    assert_eq!(case.locks().granted, 0);
    case.run().args(["-n", "true"]).output().code(0).silent();
    holder.await_stderr("\n");
    holder.signal(Signal::SIGUSR2);
    let line = holder.finish().code(3).stderr_line();
    assert!(line.contains(": evicted by "), "{line}");
    assert!(
        line.ends_with("; the job continues unguarded (--on-lost ignore)"),
        "{line}"
    );
    assert_eq!(journal.count("TERM"), 0);
}

/// P17, P75: the job is over, so its status stands.
#[test]
fn an_eviction_ends_the_minimum_hold() {
    let case = Case::new();
    let holder = case.run().args(["--min-hold", "600"]).sh("echo $$; exit 4").spawn();
    holder.await_stdout("\n");
    let job = Pid::from_raw(holder.stdout().trim().parse().unwrap());
    eventually(SOON, "the job to be reaped", || kill(job, None).is_err());
    let output = evict(case.server.pglock(), &case.key).output();
    output.code(0).silent();
    assert!(output.took < Duration::from_secs(4), "{output}");
    assert_eq!(holder.finish().code(4).silent().stdout.last(), Some(&b'\n'));
    assert_eq!(case.locks().granted, 0);
}

/// P75: a holder that does not react within its own limit is terminated, with a warning.
#[test]
fn a_stopped_holder_is_terminated_after_its_limit() {
    let (case, journal) = (Case::new(), Journal::new());
    let run = case.run().args(["--heartbeat", "0.4", "--kill-after", "2"]);
    let holder = run.sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", 1);
    await_heartbeats(&case);
    holder.signal(Signal::SIGSTOP);
    eventually(SOON, "the stop", || state(holder.pid()) == Some('T'));
    let output = evict(case.server.pglock(), &case.key).output();
    let text = String::from_utf8_lossy(&output.code(0).stderr).into_owned();
    assert!(
        text.ends_with(" did not react; terminated its session, although its job may still run\n"),
        "{output}"
    );
    assert!(output.took >= Duration::from_millis(1200), "{output}");
    assert_eq!((case.locks().granted, journal.count("TERM")), (0, 0));
    // The grace period of the job is over as well: it is killed right after SIGTERM.
    holder.signal(Signal::SIGCONT);
    holder.finish().code(74);
}
