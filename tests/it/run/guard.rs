//! The loser of a lock guards the end of its job: it reconnects and holds the key until the job is dead.

use crate::support::case::Case;
use crate::support::gate::{Answer, Gate};
use crate::support::journal::{Journal, state};
use crate::support::pgbouncer::PgBouncer;
use crate::support::pglock::{Output, Pglock, Running};
use crate::support::proxy::Proxy;
use crate::support::server::{Server, claim, number, rows};
use crate::support::wait::{SOON, eventually};
use crate::support::{hostname, repetitions, unique};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use std::cell::Cell;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const KILLED: &str = "; terminated the job with SIGTERM, then SIGKILL";

/// Asserts status 74 and one line that names the key.
#[track_caller]
fn assert_lost(output: &Output, key: &str, done: &str) -> String {
    let line = output.code(74).stderr_line();
    let front = format!("lost the lock on key \"{key}\" at 20");
    assert!(line.starts_with(&front) && line.ends_with(done), "{line}");
    line
}

/// Does something while a newcomer that does not wait starts every `interval`. Returns the newcomers' statuses.
fn with_newcomers(interval: Duration, newcomer: impl Fn() -> Pglock + Sync, during: impl FnOnce()) -> Vec<i32> {
    struct StopOnDrop<'a>(&'a AtomicBool);
    impl Drop for StopOnDrop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let starter = scope.spawn(|| {
            let mut started: Vec<Child> = Vec::new();
            while !is_over.load(Ordering::SeqCst) {
                let mut newcomer = newcomer();
                let command = newcomer.command().stdin(Stdio::null());
                started.push(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
                thread::sleep(interval);
            }
            let status = |mut child: Child| child.wait().unwrap().code().unwrap_or(-1);
            started.into_iter().map(status).collect()
        });
        let stop = StopOnDrop(&is_over);
        during();
        drop(stop);
        starter.join().unwrap()
    })
}

/// Restarts the server under a job that only KILL ends, with two waiters, and with newcomers all the while. All of them
/// are made by `run`. Returns what the loser says.
#[track_caller]
fn restart_under_newcomers(run: impl Fn(&str) -> Pglock + Sync, restart: impl FnOnce(), interval: Duration) -> String {
    let (key, journal) = (unique("restart"), Journal::new());
    let short = ["--heartbeat", "1", "--kill-after", "1.2"];
    let holder = run(&key).args(short).sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    // They come back by themselves, and leave the old job its time if they have not seen its guard.
    let waiters = [0, 1].map(|_| {
        let waiter = run(&key).args(short).arg("-v").sh(&journal.alone()).spawn();
        waiter.await_stderr("; waiting\n");
        waiter
    });
    let newcomer = || run(&key).args(["-n", "-q"]).sh(&journal.alone());
    let mut ended = None;
    let statuses = with_newcomers(interval, newcomer, || {
        restart();
        ended = Some(holder.finish());
    });
    let count = |code| statuses.iter().filter(|status| **status == code).count();
    println!(
        "newcomers: {} ran, {} conflicts, {} without a server",
        count(0),
        count(75),
        count(69)
    );
    assert_eq!(count(0) + count(75) + count(69), statuses.len(), "{statuses:?}");
    let ended = ended.unwrap();
    for waiter in waiters {
        waiter.finish().code(0);
    }
    journal.assert_alone(3..=usize::MAX);
    ended.code(74).stderr_line()
}

const SOMETIMES: Duration = Duration::from_millis(100);
const OFTEN: Duration = Duration::from_millis(20);

fn restart_repeatedly(restart: fn(&Server)) {
    let server = Server::start();
    for n in 0..repetitions("PGLOCK_TEST_RESTARTS", 2) {
        let interval = if n % 2 == 0 { SOMETIMES } else { OFTEN };
        let line = restart_under_newcomers(|key| server.run(key), || restart(&server), interval);
        // Whatever there is to say in between, nobody else had the key.
        assert!(line.ends_with(KILLED), "{line}");
    }
}

/// Does the same with holder, waiters and newcomers behind a pooler, which hides the restart from all but the holder.
fn restart_repeatedly_behind_a_pooler(restart: fn(&Server)) {
    let server = Server::start();
    let bouncer = PgBouncer::with(&server, &["pool_mode=transaction", "server_login_retry=1"]);
    for _ in 0..repetitions("PGLOCK_TEST_RESTARTS", 1) {
        let line = restart_under_newcomers(|key| bouncer.run(key), || restart(&server), SOMETIMES);
        // Another client may have had the key for a short time: a try that the pooler had kept through the restart.
        assert!(line.contains(KILLED), "{line}");
        println!("{line}");
    }
}

fn restart_fast(server: &Server) {
    server.stop_fast();
    server.restart();
}

/// P10, P25
#[test]
fn nobody_starts_before_the_job_is_dead_that_lost_its_lock_in_a_fast_restart() {
    restart_repeatedly(restart_fast);
}

/// P10, P25
#[test]
fn nor_in_an_immediate_restart() {
    restart_repeatedly(Server::restart);
}

/// P10, P25
#[test]
fn nor_in_a_fast_restart_behind_a_pooler() {
    restart_repeatedly_behind_a_pooler(restart_fast);
}

/// P10, P25
#[test]
fn nor_in_an_immediate_restart_behind_a_pooler() {
    restart_repeatedly_behind_a_pooler(Server::restart);
}

/// P10, P25: the server goes on, so only the age of the pool's sessions tells a newcomer that something has happened.
#[test]
fn nor_in_a_restart_of_the_pooler() {
    let server = Server::shared();
    let settings = ["pool_mode=transaction"];
    let bouncer = PgBouncer::with(server, &settings);
    let port = bouncer.port().to_string();
    let bouncer = Cell::new(Some(bouncer));
    let restart = || {
        let old = bouncer.take().unwrap();
        old.kill();
        bouncer.set(Some(old.again(&settings)));
    };
    for _ in 0..repetitions("PGLOCK_TEST_RESTARTS", 1) {
        let line = restart_under_newcomers(|key| server.run(key).env("PGPORT", &port), restart, SOMETIMES);
        assert!(line.contains(KILLED), "{line}");
    }
}

/// P10, P25
#[test]
fn nor_in_a_crash() {
    if Server::shared().version() < 15 {
        println!("SKIPPED: PostgreSQL before 15 does not tell newcomers when it crashed");
        return;
    }
    restart_repeatedly(Server::crash_restart);
}

/// Starts a holder whose job goes on after TERM until USR2.
#[track_caller]
fn lingering(run: Pglock, journal: &Journal) -> Running {
    let before = journal.count("ready");
    let holder = run.args(["--kill-after", "60"]).sh(&journal.recording("TERM")).spawn();
    journal.await_count("ready", before + 1);
    holder
}

/// Waits until a guard holds the key, in place of this backend. Returns its backend.
#[track_caller]
fn await_guard(case: &Case, lost: Pid) -> Pid {
    let name = format!("translate(application_name, ',', ' ') LIKE 'pglock:{} %'", case.key);
    let sql = format!(
        "SELECT pid FROM pg_stat_activity WHERE {name} AND pid <> {lost} AND EXISTS (\
         SELECT 1 FROM pg_locks l WHERE l.pid = pg_stat_activity.pid AND locktype = 'advisory' AND granted)"
    );
    let mut found = Vec::new();
    eventually(SOON, "a guard", || {
        found = case.sql(&sql).concat();
        !found.is_empty()
    });
    Pid::from_raw(found[0].parse().unwrap())
}

/// Terminates the session of the holder, and waits until it guards. Returns the guard's backend.
#[track_caller]
fn terminate(case: &Case, backend: Pid) -> Pid {
    case.sql(&format!("SELECT pg_terminate_backend({backend})"));
    await_guard(case, backend)
}

/// Terminates the session of this holder, which may have several keys.
#[track_caller]
fn terminate_holder(server: &Server, holder: &Running) {
    let name = format!("application_name LIKE 'pglock:%:{}'", holder.pid());
    server.sql(&format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {name}"
    ));
}

/// P25: the guard bears the loser's name, is free again when the job is dead, and takes the key as often as needed.
#[test]
fn the_loser_of_a_terminated_session_holds_the_key_until_its_job_is_dead() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = lingering(case.run(), &journal);
    let mut backend = case.backend();
    for _ in 0..3 {
        backend = terminate(&case, backend);
        let line = case.run().args(["-n", "true"]).output().code(75).stderr_line();
        assert!(
            line.contains(&format!("{}:{} (backend {backend}", hostname(), holder.pid())),
            "{line}"
        );
    }
    assert_eq!(journal.count("TERM"), 1);
    holder.signal(Signal::SIGUSR2);
    let line = assert_lost(&holder.finish(), &case.key, "; terminated the job with SIGTERM");
    assert!(
        line.contains(": terminating connection due to administrator command;"),
        "{line}"
    );
    case.run().args(["-n", "true"]).output().code(0).silent();
}

/// P25: in the same mode, all of several keys, the same slot, and in either scope.
#[test]
fn every_kind_of_lock_is_guarded() {
    let other = unique("other");
    let kinds: [(&[&str], &[&str]); 5] = [
        (&["--shared"], &[]),
        (&["--scope", "transaction"], &[]),
        (&["--key", &other], &[]),
        (&["--slots", "1"], &["--slots", "1"]),
        (&["--hash", "hashtext"], &["--hash", "hashtext"]),
    ];
    for (options, newcomers) in kinds {
        let (case, journal) = (Case::new(), Journal::new());
        let holder = lingering(case.run().args(options), &journal);
        let name = format!("translate(application_name, ',', ' ') LIKE 'pglock:{} %'", case.key);
        let lost = case.value(&format!("SELECT pid FROM pg_stat_activity WHERE {name}"));
        terminate(&case, Pid::from_raw(lost.parse().unwrap()));
        case.run().args(newcomers).args(["-n", "true"]).output().code(75);
        if options == ["--shared"] {
            case.run().args(["--shared", "-n", "true"]).output().code(0).silent();
        }
        if options[0] == "--key" {
            case.server.run(&other).args(["-n", "true"]).output().code(75);
        }
        holder.signal(Signal::SIGUSR2);
        holder.finish().code(74);
        case.run()
            .args(newcomers)
            .args(["-n", "true"])
            .output()
            .code(0)
            .silent();
    }
}

/// P25: while other clients have some of several keys, the others are guarded, whichever of them come first, and so is
/// one that becomes free; in either scope.
#[test]
fn a_guard_takes_the_keys_that_are_free_while_another_client_has_one() {
    for scope in ["session", "transaction"] {
        guard_what_is_free(scope);
    }
}

/// Has two other clients wait for two of three keys, in each order of the keys, and terminates the holder.
#[track_caller]
fn guard_what_is_free(scope: &str) {
    let assert_guarded = |case: &Case| {
        case.await_locks(1, 0);
        case.run().args(["-n", "true"]).output().code(75);
    };
    let mut cases = [Case::new(), Case::new(), Case::new()];
    for _ in 0..cases.len() {
        let [free, freed, taken] = &cases;
        let journal = Journal::new();
        let keys = ["--key", &freed.key, "--key", &taken.key];
        let run = free.run().args(keys).args(["--scope", scope]);
        let holder = lingering(run, &journal);
        let (first, second) = (taken.foreign_waiter().0, freed.foreign_waiter().0);
        taken.await_locks(1, 1);
        freed.await_locks(1, 1);
        terminate_holder(free, &holder);
        first.await_stdout("mine\n");
        second.await_stdout("mine\n");
        assert_guarded(free);
        second.finish().code(0).silent();
        assert_guarded(freed);
        first.finish().code(0).silent();
        assert_guarded(taken);
        holder.signal(Signal::SIGUSR2);
        holder.finish().code(74);
        cases.iter().for_each(|case| case.await_locks(0, 0));
        cases.rotate_left(1);
    }
}

/// P25: however many keys there are.
#[test]
fn a_guard_takes_many_keys_that_are_free() {
    let (case, journal) = (Case::new(), Journal::new());
    let mut keys: Vec<i64> = (0..300).map(|_| number(&unique("many"))).collect();
    // A number is its own key, so the first of them is known.
    keys.sort_unstable();
    let arguments = keys.iter().map(|key| format!("--key={key}"));
    let run = case.server.pglock().arg("run").args(arguments);
    let holder = lingering(run, &journal);
    let [first, .., last] = keys[..] else { unreachable!() };
    let mut other = case.server.client();
    let backend = rows(&mut other, "SELECT pg_backend_pid()").concat().concat();
    let wait = format!("SELECT pg_advisory_lock({first})");
    thread::scope(|scope| {
        let waiter = scope.spawn(|| rows(&mut other, &wait));
        let waiting = format!("SELECT 1 FROM pg_locks WHERE NOT granted AND pid = {backend}");
        eventually(SOON, "a waiter", || !case.sql(&waiting).is_empty());
        terminate_holder(case.server, &holder);
        waiter.join().unwrap();
    });
    let guarded = format!("SELECT pg_try_advisory_xact_lock({last})");
    eventually(SOON, "a guard", || case.value(&guarded) == "f");
    drop(other);
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
}

/// P25: a client of another kind that waits in the server's queue is there first, and the loser names it.
#[test]
fn the_loser_names_the_client_that_came_first() {
    let (case, journal) = (Case::new(), Journal::new());
    let run = case.run().args(["--kill-after", "0.7"]);
    let holder = run.sh(&journal.stubborn_alone()).spawn();
    journal.await_count("ready", 1);
    let backend = case.backend();
    let (other, others_backend) = case.foreign_waiter();
    case.await_locks(1, 1);
    case.sql(&format!("SELECT pg_terminate_backend({backend})"));
    other.await_stdout("mine\n");
    let line = assert_lost(&holder.finish(), &case.key, " before the job was dead");
    let named = format!("; key \"{}\" was acquired by \"psql\" ", case.key);
    let backend = format!("(backend {others_backend}");
    assert!(line.contains(&named) && line.contains(&backend), "{line}");
    other.finish().code(0).silent();
}

/// P25: of several keys, the loser names those that the other client has.
#[test]
fn the_loser_names_the_keys_that_were_taken() {
    let (free, taken, journal) = (Case::new(), Case::new(), Journal::new());
    let holder = lingering(free.run().args(["--key", &taken.key]), &journal);
    let (other, _) = taken.foreign_waiter();
    taken.await_locks(1, 1);
    terminate_holder(&free, &holder);
    other.await_stdout("mine\n");
    // The guard waits for it.
    taken.await_locks(1, 1);
    holder.signal(Signal::SIGUSR2);
    let line = holder.finish().code(74).stderr_line();
    let named = format!("; key \"{}\" was acquired by \"psql\" ", taken.key);
    assert!(line.contains(&named), "{line}");
    other.finish().code(0).silent();
}

/// P25: also of many.
#[test]
fn the_loser_names_the_key_that_was_taken_of_many() {
    let (server, journal) = (Server::start(), Journal::new());
    let keys = (1..=30).map(|key| format!("--key={key}"));
    let holder = lingering(server.pglock().arg("run").args(keys), &journal);
    let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
    let mut clients: Vec<_> = (1..=25).map(|key| (key, server.client())).collect();
    thread::scope(|scope| {
        for (key, client) in &mut clients {
            scope.spawn(move || rows(client, &format!("SELECT pg_advisory_lock({key})")));
        }
        eventually(SOON, "waiters", || server.value(waiting) == "25");
        terminate_holder(&server, &holder);
    });
    eventually(SOON, "a guard in the queue", || server.value(waiting) == "1");
    holder.signal(Signal::SIGUSR2);
    let line = holder.finish().code(74).stderr_line();
    assert!(
        line.contains("; key 1 was acquired by user \"postgres\" (backend "),
        "{line}"
    );
}

/// P25: while a waiter looks for a claim of one of several keys, the others are claimed only once. Otherwise a claim
/// would stay when the guard ends its claims, and delay the next job.
#[test]
fn no_claim_is_left_when_the_guard_has_its_keys_again() {
    let (one, looked_at, journal) = (Case::new(), Case::new(), Journal::new());
    let has_claim = |case: &Case| {
        let claim = claim(&case.key);
        case.value(&format!("SELECT NOT pg_try_advisory_xact_lock({claim})")) == "t"
    };
    let holder = lingering(one.run().args(["--key", &looked_at.key]), &journal);
    let others = [&one, &looked_at].map(|case| {
        let (other, _) = case.foreign_waiter();
        case.await_locks(1, 1);
        other
    });
    let mut looking = looked_at.client();
    let claim = claim(&looked_at.key);
    rows(&mut looking, &format!("SELECT pg_advisory_lock({claim})"));
    terminate_holder(&one, &holder);
    others.iter().for_each(|other| other.await_stdout("mine\n"));
    for _ in 0..3 {
        eventually(SOON, "the first claim", || has_claim(&one));
    }
    rows(&mut looking, &format!("SELECT pg_advisory_unlock({claim})"));
    eventually(SOON, "the second claim", || has_claim(&looked_at));
    for other in others {
        other.finish().code(0).silent();
    }
    eventually(SOON, "the end of the claims", || {
        !has_claim(&looked_at) && !has_claim(&one)
    });
    one.assert_held();
    looked_at.assert_held();
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
}

/// P75: a guard that is evicted has nothing more to do than it does already, and the requester waits for it.
#[test]
fn an_evicted_guard_stays_until_its_job_is_dead() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = lingering(case.run(), &journal);
    terminate(&case, case.backend());
    let evict = case
        .server
        .pglock()
        .args(["evict", "--yes", "--key", &case.key])
        .spawn();
    evict.await_stdout("waiting for ");
    case.assert_held();
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
    evict.finish().code(0).silent();
}

/// P75: with `--force` not even the guard holds the key.
#[test]
fn a_guard_can_be_evicted_by_force() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = lingering(case.run(), &journal);
    terminate(&case, case.backend());
    let evict = case
        .server
        .pglock()
        .args(["evict", "--yes", "--force", "--key", &case.key]);
    evict.output().code(0).silent();
    case.run().args(["-n", "true"]).output().code(0).silent();
    assert_eq!(journal.count("USR2"), 0);
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(74);
}

/// P23: nobody guards a job that runs on.
#[test]
fn an_ignored_loss_is_not_guarded() {
    let (case, journal) = (Case::new(), Journal::new());
    let holder = lingering(case.run().args(["--on-lost", "ignore"]), &journal);
    case.sql(&format!("SELECT pg_terminate_backend({})", case.backend()));
    holder.await_stderr("unguarded");
    case.await_locks(0, 0);
    case.run().args(["-n", "true"]).output().code(0).silent();
    holder.signal(Signal::SIGUSR2);
    holder.finish().code(3);
}

/// P20: a job that dies at once is not delayed by the search for who ended the session, even if the server is gone.
#[test]
fn a_job_that_dies_at_once_is_not_delayed() {
    let server = Server::start();
    let mut delays: Vec<Duration> = Vec::new();
    for n in 0..10 {
        let key = unique("prompt");
        let holder = server.run(&key).sh("echo $$; exec sleep 600").spawn();
        holder.await_stdout("\n");
        let job = Pid::from_raw(holder.stdout().trim().parse().unwrap());
        let began = Instant::now();
        if n % 2 == 0 {
            let name = format!("application_name LIKE 'pglock:{key} %'");
            server.sql(&format!(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {name}"
            ));
        } else {
            server.stop_fast();
        }
        let output = holder.finish();
        delays.push(began.elapsed());
        assert!(
            output.code(74).stderr.ends_with(b"; terminated the job with SIGTERM\n"),
            "{output}"
        );
        assert!(state(job).is_none(), "{output}");
        if n % 2 == 1 {
            server.restart();
        }
    }
    delays.sort_unstable();
    println!("from the order to the exit of pglock: {delays:?}");
    assert!(delays[delays.len() / 2] < Duration::from_millis(500), "{delays:?}");
}

/// P96: the guard's first session falls silent after its login, as one to a server that hangs. The guard gives it up,
/// and its next session keeps others out while the old job is alive.
#[test]
fn the_guard_gives_up_a_session_that_falls_silent() {
    let case = Case::new();
    let proxy = Proxy::silent_after(case.server, &[usize::MAX, 0]);
    let run = Pglock::alone().args(["run", "--key", &case.key, "--heartbeat", "0.5", "--kill-after", "1m"]);
    let job = "trap '' TERM; echo ready; read -r _; exit 0";
    let holder = run.env("PGLOCK_DSN", proxy.dsn()).sh(job).spawn();
    holder.await_stdout("ready\n");
    case.terminate_backends();
    proxy.await_silence();
    eventually(SOON, "the guard", || case.locks().granted == 1);
    case.assert_held();
    holder.finish().code(74);
}

/// P25: a server that refuses the guard's login for a moment, as one whose pg_hba.conf is being replaced, does not end
/// the guard.
#[test]
fn the_guard_outlasts_a_refusal() {
    for (sqlstate, message) in [
        ("28000", "no pg_hba.conf entry for host"),
        ("3D000", "database \"postgres\" does not exist"),
    ] {
        let (case, journal) = (Case::new(), Journal::new());
        let gate = Gate::before(case.server, Answer::Relay);
        let holder = lingering(case.run().env("PGLOCK_DSN", gate.dsn()), &journal);
        gate.set(Answer::Error(sqlstate, message));
        let before = gate.connections();
        case.terminate_backends();
        eventually(SOON, "two attempts of the guard", || gate.connections() >= before + 2);
        gate.set(Answer::Relay);
        case.await_locks(1, 0);
        case.assert_held();
        holder.signal(Signal::SIGUSR2);
        assert_lost(&holder.finish(), &case.key, "; terminated the job with SIGTERM");
    }
}
