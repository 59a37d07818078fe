//! Tests of the decisions: single cases, and random sequences of events.
//!
//! The random sequences run against a model world with a lock, a job and a session, in which only possible events
//! happen: a job exits once, and a lost session does not come back. The world checks the promises with each action, and
//! at the end that the run has finished.

use super::*;
use crate::outcome::ExitReason;
use crate::run::session::timing::Timing;
use Signal::*;
#[cfg(target_os = "linux")]
use nix::libc;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(on_lost: OnLost) -> Policy {
    Policy {
        conflict_status: 75,
        on_lost,
        min_hold: Duration::ZERO,
        stop_signal: None,
        timing: Timing {
            heartbeat: 5 * SECOND,
            kill_after: 10 * SECOND,
        },
        is_recorded: false,
    }
}

fn sent(signal: impl Into<SignalNumber>) -> Event {
    Event::Signal(SignalInfo {
        signal: signal.into(),
        from_terminal: false,
    })
}

fn typed(signal: Signal) -> Event {
    Event::Signal(SignalInfo {
        signal: signal.into(),
        from_terminal: true,
    })
}

fn stopped(signal: Signal, by_terminal: bool) -> Event {
    Event::JobStopped {
        signal: signal as i32,
        by_terminal,
    }
}

fn alive_until(next_due: Instant) -> Event {
    Event::Alive { next_due }
}

fn forward(signal: impl Into<SignalNumber>) -> Action {
    Action::Forward(signal.into())
}

/// Returns the signals that end a process by default and have no use of their own for pglock.
fn other_signals() -> impl Iterator<Item = SignalNumber> {
    let named = [SIGALRM, SIGVTALRM, SIGPROF, SIGXCPU, SIGXFSZ, SIGSYS, SIGABRT].map(SignalNumber::from);
    #[cfg(target_os = "linux")]
    let (more, real_time) = (vec![SIGIO, SIGPWR, SIGSTKFLT], libc::SIGRTMIN()..=libc::SIGRTMAX());
    #[cfg(not(target_os = "linux"))]
    let (more, real_time) = (Vec::<Signal>::new(), 0..0);
    let more = more.into_iter().map(SignalNumber::from);
    named
        .into_iter()
        .chain(more)
        .chain(real_time.map(SignalNumber::from_raw))
}

fn stop_self(signal: Signal) -> Action {
    Action::StopSelf(signal as i32)
}

/// Returns a state in which the lock is held and the job is about to start, and the time.
fn starting() -> (RunState, Instant) {
    let now = Instant::now();
    let mut state = RunState::new(policy(OnLost::Stop), Wait::Indefinitely);
    state.handle(Event::Connected, now);
    state.handle(Event::Answered, now);
    state.handle(alive_until(now + 10 * SECOND), now);
    assert_eq!(state.handle(Event::Acquired, now), []);
    assert!(state.is_starting());
    (state, now)
}

/// Returns a state in which the job runs, and the time.
fn running(in_callers_group: bool, on_lost: OnLost) -> (RunState, Instant) {
    let (mut state, now) = starting();
    state.policy.on_lost = on_lost;
    assert_eq!(state.handle(Event::JobStarted { in_callers_group }, now), []);
    (state, now)
}

#[test]
fn a_run_without_incidents_exits_with_the_status_of_the_job() {
    let (mut state, now) = running(false, OnLost::Stop);
    let reason = ExitReason::Code(3);
    assert_eq!(
        state.handle(Event::JobExited(reason), now),
        [Action::Reap, Action::Release]
    );
    let finish = Action::Finish(Outcome::Job(reason));
    assert_eq!(state.handle(Event::Released { was_held: true }, now), [finish]);
}

#[test]
fn the_stop_signal_ends_a_wait_unless_the_terminal_sent_it() {
    let now = Instant::now();
    let named = |signal: Signal| Policy {
        stop_signal: Some(signal.into()),
        ..policy(OnLost::Stop)
    };
    let mut state = RunState::new(named(SIGWINCH), Wait::Indefinitely);
    assert_eq!(state.handle(typed(SIGWINCH), now), []);
    assert_eq!(state.handle(sent(SIGUSR1), now), []);
    let finish = Action::Finish(Outcome::Interrupted(SIGWINCH as i32));
    assert_eq!(state.handle(sent(SIGWINCH), now), [finish]);
    assert_eq!(
        RunState::new(policy(OnLost::Stop), Wait::Indefinitely).handle(sent(SIGWINCH), now),
        []
    );
}

/// Returns a state in which the job runs with a minimum hold time of a minute, and the time.
fn running_with_min_hold() -> (RunState, Instant) {
    let (mut state, now) = running(false, OnLost::Stop);
    state.min_hold_until = Some(now + 60 * SECOND);
    (state, now)
}

#[test]
fn a_short_job_keeps_the_lock_for_the_minimum_hold_time_unless_signalled() {
    let exited = Event::JobExited(ExitReason::Code(3));
    let finish = Action::Finish(Outcome::Job(ExitReason::Code(3)));
    let (mut state, now) = running_with_min_hold();
    assert_eq!(state.handle(exited, now), [Action::Reap]);
    assert_eq!(state.handle(typed(SIGTSTP), now), [stop_self(SIGTSTP)]);
    state.handle(alive_until(now + 120 * SECOND), now);
    assert_eq!(state.deadline(), Some(now + 60 * SECOND));
    assert_eq!(state.handle(sent(SIGUSR1), now), []);
    assert_eq!(state.clone().handle(sent(SIGTERM), now), [Action::Release]);
    assert_eq!(
        state.clone().handle(Event::LockLost, now),
        [Action::Disconnect, finish],
        "the job was guarded until it exited"
    );
    assert_eq!(state.handle(Event::Tick, now + 60 * SECOND), [Action::Release]);

    // A signal that ended the job, or arrived while it ran, is a signal to pglock as well.
    let (mut state, now) = running_with_min_hold();
    assert_eq!(state.handle(sent(SIGTERM), now), [forward(SIGTERM)]);
    assert_eq!(state.handle(exited, now), [Action::Reap, Action::Release]);

    // The others end the hold time, but one that the job may have handled does not skip it.
    for signal in other_signals() {
        let (mut state, now) = running_with_min_hold();
        assert_eq!(state.handle(sent(signal), now), [forward(signal)]);
        assert_eq!(state.handle(exited, now), [Action::Reap]);
        assert_eq!(state.handle(sent(signal), now), [Action::Release]);
    }

    // A long job needs no extra hold time, and a server that does not respond ends the hold time.
    let (mut state, now) = running_with_min_hold();
    let late = now + 61 * SECOND;
    assert_eq!(state.clone().handle(exited, late), [Action::Reap, Action::Release]);
    state.handle(exited, now);
    assert_eq!(
        state.handle(Event::Tick, now + 10 * SECOND),
        [Action::Disconnect, finish]
    );
}

#[test]
fn a_terminating_signal_ends_the_wait_and_leaves_the_queue() {
    let by_operators = [SIGINT, SIGTERM, SIGHUP, SIGQUIT].map(SignalNumber::from);
    for signal in by_operators.into_iter().chain(other_signals()) {
        let now = Instant::now();
        let mut state = RunState::new(policy(OnLost::Stop), Wait::Indefinitely);
        let finish = [Action::Finish(Outcome::Interrupted(signal.as_raw()))];
        assert_eq!(
            state.clone().handle(sent(signal), now),
            finish,
            "not connected: no queue to leave"
        );
        state.handle(Event::Connected, now);
        assert_eq!(state.handle(sent(signal), now), [Action::CancelWait]);
        let mut granted = state.clone();
        assert_eq!(granted.handle(Event::Acquired, now), [Action::Release]);
        assert_eq!(granted.handle(Event::Released { was_held: true }, now), finish);
        assert_eq!(
            state.clone().handle(Event::NotAcquired(Outcome::Conflict(75)), now),
            finish
        );
        assert_eq!(
            state.clone().handle(sent(SIGINT), now),
            finish,
            "a second signal does not wait for the queue"
        );
        assert_eq!(state.handle(Event::Tick, now + SECOND), finish);
    }
    for signal in [SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT] {
        let mut state = RunState::new(policy(OnLost::Stop), Wait::Indefinitely);
        assert_eq!(state.handle(sent(signal), Instant::now()), []);
    }
}

#[test]
fn the_wait_times_out() {
    let now = Instant::now();
    let mut state = RunState::new(policy(OnLost::Stop), Wait::Until(now + SECOND));
    let late = now + 2 * SECOND;
    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    assert_eq!(state.handle(Event::Tick, now), []);
    assert_eq!(
        state.clone().handle(Event::Tick, late),
        unavailable,
        "not even connected"
    );
    state.handle(Event::Connected, now);
    assert_eq!(
        state.clone().handle(Event::Tick, late),
        unavailable,
        "no answer, or that of a pooler"
    );
    state.handle(Event::Contended, now);
    assert_eq!(state.handle(Event::Tick, late), [Action::Finish(Outcome::Conflict(75))]);
}

#[test]
fn a_waiter_abandons_a_connection_that_does_not_respond() {
    let now = Instant::now();
    let waiting = |has_answered: bool| {
        let mut state = RunState::new(policy(OnLost::Stop), Wait::Indefinitely);
        state.handle(Event::Connected, now);
        if has_answered {
            state.handle(Event::Answered, now);
        }
        state.handle(alive_until(now + SECOND), now);
        state
    };
    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    let mut state = waiting(false);
    assert_eq!(
        state.handle(Event::Tick, now + SECOND),
        unavailable,
        "nothing was answered"
    );
    let mut limited = waiting(false);
    limited.wait = Wait::Until(now + 60 * SECOND);
    assert_eq!(
        limited.handle(Event::Tick, now + SECOND),
        [Action::AbandonConnection],
        "there is time for another attempt"
    );
    let mut state = waiting(true);
    assert_eq!(state.handle(Event::Tick, now + SECOND), [Action::AbandonConnection]);
    assert_eq!(
        state.clone().handle(Event::Tick, now + 6 * SECOND),
        [Action::AbandonConnection],
        "the machine may be too busy to let the session's thread connect"
    );
    // The session connects again, and waits on.
    state.handle(alive_until(now + 12 * SECOND), now + 2 * SECOND);
    assert_eq!(state.handle(Event::Tick, now + 6 * SECOND), []);
    assert_eq!(
        state.handle(Event::Tick, now + 12 * SECOND),
        [Action::AbandonConnection]
    );
}

/// A lock that was acquired, and of which the session reports nothing more before the job is started.
#[test]
fn a_silent_session_is_given_up_before_the_job_is_started() {
    let now = Instant::now();
    let mut state = RunState::new(policy(OnLost::Stop), Wait::Indefinitely);
    state.handle(Event::Answered, now);
    state.handle(alive_until(now + SECOND), now);
    state.handle(Event::Acquired, now);
    assert!(state.is_starting());
    assert_eq!(state.handle(Event::Tick, now + SECOND), [Action::AbandonConnection]);
    assert!(!state.is_starting());
    assert_eq!(state.handle(alive_until(now + 6 * SECOND), now + SECOND), []);
    assert!(!state.is_starting(), "a report from before it noticed starts no job");

    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    for end in [Event::LockLost, Event::EvictionRequested] {
        assert_eq!(state.clone().handle(end, now + SECOND), unavailable, "{end:?}");
    }
    let mut once = RunState::new(policy(OnLost::Stop), Wait::Try);
    once.handle(alive_until(now + SECOND), now);
    once.handle(Event::Acquired, now);
    assert_eq!(once.handle(Event::Tick, now + SECOND), unavailable, "it does not wait");
    // Nobody else was seen to hold it, so its time is up without a conflict.
    let mut limited = RunState::new(policy(OnLost::Stop), Wait::Until(now + SECOND));
    limited.handle(alive_until(now + SECOND), now);
    limited.handle(Event::Acquired, now);
    let late = now + 2 * SECOND;
    limited.handle(Event::Tick, late);
    assert_eq!(
        limited.handle(Event::Tick, late + OVERSLEEP_ALLOWANCE),
        [Action::AbandonConnection]
    );
    assert_eq!(limited.handle(Event::Tick, late + OVERSLEEP_ALLOWANCE), unavailable);
    // The session takes the lock back, connects again, and acquires it.
    state.handle(Event::Withdrawn, now + SECOND);
    state.handle(Event::Disconnected, now + SECOND);
    state.handle(alive_until(now + 8 * SECOND), now + 2 * SECOND);
    state.handle(Event::Acquired, now + 3 * SECOND);
    assert!(state.is_starting());
}

#[test]
fn an_evicted_job_is_dead_before_the_lock_is_released() {
    let lost = Action::Finish(Outcome::Failed(ExitCode::Lost));
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(
        state.handle(Event::EvictionRequested, now),
        [Action::SignalAll(SIGTERM)]
    );
    let mut killed = state.clone();
    state.handle(Event::JobExited(ExitReason::Code(0)), now);
    assert!(state.is_draining());
    assert_eq!(state.handle(Event::GroupEmpty, now), [Action::Reap, Action::Release]);
    assert_eq!(state.handle(Event::Released { was_held: true }, now), [lost]);

    let kill_at = now + 10 * SECOND;
    assert_eq!(killed.deadline(), Some(kill_at));
    assert_eq!(killed.handle(Event::Tick, kill_at), [Action::SignalAll(SIGKILL)]);
    // Lost before the job is dead: there is nothing to release.
    assert_eq!(killed.handle(Event::LockLost, kill_at), []);
    killed.handle(Event::JobExited(ExitReason::Signal(9)), kill_at);
    assert_eq!(
        killed.handle(Event::GroupEmpty, kill_at),
        [Action::Reap, Action::Disconnect, lost]
    );

    let (mut ignoring, now) = running(false, OnLost::Ignore);
    assert_eq!(
        ignoring.handle(Event::EvictionRequested, now),
        [Action::Release, Action::ReportUnguarded]
    );
    // The lock that seemed to be lost is still there.
    let (mut unguarded, now) = running(false, OnLost::Ignore);
    assert_eq!(unguarded.handle(Event::LockLost, now), [Action::ReportUnguarded]);
    assert_eq!(unguarded.handle(Event::EvictionRequested, now), [Action::Release]);
    let (mut state, now) = starting();
    assert_eq!(state.handle(Event::EvictionRequested, now), [Action::Release]);
    assert!(!state.is_starting(), "no job starts any more");
}

#[test]
fn an_evicted_job_that_cannot_be_killed_keeps_the_lock_that_it_still_has() {
    let (mut state, now) = running(false, OnLost::Stop);
    state.handle(Event::EvictionRequested, now);
    let kill_at = now + 10 * SECOND;
    state.handle(Event::Tick, kill_at);
    state.handle(Event::JobExited(ExitReason::Signal(9)), kill_at);
    let mut hidden = state.clone();
    for seconds in 0..60 {
        let now = kill_at + seconds * SECOND;
        assert_eq!(state.handle(Event::GroupAlive, now), []);
        assert_eq!(state.handle(Event::Tick, now), [Action::SignalAll(SIGKILL)]);
    }
    let mut lost = state.clone();
    let now = kill_at + 60 * SECOND;
    assert_eq!(state.handle(Event::GroupEmpty, now), [Action::Reap, Action::Release]);
    // The requester ends the session at last.
    lost.handle(Event::LockLost, now);
    assert_eq!(lost.handle(Event::GroupAlive, now), []);
    let ended = [
        Action::Reap,
        Action::Disconnect,
        Action::Finish(Outcome::Failed(ExitCode::Lost)),
    ];
    assert_eq!(lost.handle(Event::Tick, now + SECOND), ended);
    // Where the system does not show what is left, that holds nobody up.
    assert_eq!(
        hidden.handle(Event::Tick, kill_at + 2 * SECOND),
        [Action::Reap, Action::Release]
    );
}

#[test]
fn a_signal_between_acquisition_and_start_prevents_the_job() {
    let (mut state, now) = starting();
    let mut other = state.clone();
    assert_eq!(state.handle(typed(SIGINT), now), [Action::Release]);
    assert!(!state.is_starting());
    assert_eq!(other.handle(sent(SIGUSR1), now), []);
    assert_eq!(other.handle(typed(SIGTSTP), now), [stop_self(SIGTSTP)]);
    assert!(other.is_starting());
    assert_eq!(
        other.handle(Event::JobNotStarted(ExitCode::NotFound), now),
        [Action::Release]
    );
}

#[test]
fn a_withdrawn_lock_starts_no_job_and_ends_no_wait() {
    let (mut state, now) = starting();
    assert_eq!(state.handle(Event::Withdrawn, now), []);
    assert!(!state.is_starting());
    assert_eq!(state.handle(Event::Disconnected, now), []);
    assert_eq!(state.deadline(), None);
    assert_eq!(state.handle(Event::Connected, now), []);
    assert_eq!(state.handle(Event::Acquired, now), []);
    assert!(state.is_starting());

    // It was about to be released, since a signal had ended the run.
    let (mut state, now) = starting();
    assert_eq!(state.handle(sent(SIGTERM), now), [Action::Release]);
    let finish = Action::Finish(Outcome::Interrupted(SIGTERM as i32));
    assert_eq!(state.handle(Event::Withdrawn, now), [Action::Disconnect, finish]);
}

#[test]
fn a_loss_between_acquisition_and_start_prevents_the_job() {
    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    for on_lost in [OnLost::Stop, OnLost::Ignore] {
        let (mut state, now) = starting();
        state.policy.on_lost = on_lost;
        let due = now + 10 * SECOND;
        assert_eq!(state.clone().handle(Event::LockLost, now), unavailable);
        assert_eq!(state.clone().handle(Event::Tick, due), [Action::AbandonConnection]);

        // Stopped by Ctrl-Z and continued an hour later: the session has time to report before the job starts.
        let later = now + 3600 * SECOND;
        assert_eq!(state.handle(Event::Tick, later), []);
        assert!(!state.is_starting());
        assert_eq!(state.deadline(), Some(later + OVERSLEEP_ALLOWANCE));
        let mut silent = state.clone();
        let end = later + OVERSLEEP_ALLOWANCE;
        assert_eq!(silent.handle(Event::Tick, end), [Action::AbandonConnection]);
        assert!(!silent.is_starting());
        assert_eq!(state.handle(alive_until(later + 10 * SECOND), later), []);
        assert!(state.is_starting());
    }
}

#[test]
fn each_signal_reaches_the_job_once() {
    let all = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP];
    for signal in all {
        for in_callers_group in [false, true] {
            let (mut state, now) = running(in_callers_group, OnLost::Stop);
            assert_eq!(state.handle(sent(signal), now), [forward(signal)]);
            let forwarded = if in_callers_group {
                vec![]
            } else {
                vec![forward(signal)]
            };
            assert_eq!(state.handle(typed(signal), now), forwarded);
        }
    }
    for signal in other_signals() {
        let (mut state, now) = running(true, OnLost::Stop);
        assert_eq!(state.handle(sent(signal), now), [forward(signal)]);
        state.handle(Event::LockLost, now);
        assert_eq!(state.handle(sent(signal), now), [forward(signal)]);
    }
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(state.handle(sent(SIGCHLD), now), []);
}

#[test]
fn a_stop_is_visible_to_the_shell_and_sigcont_reaches_the_job() {
    // On a terminal, Ctrl-Z stops the job, and `fg` continues the whole group.
    let (mut state, now) = running(true, OnLost::Stop);
    assert_eq!(state.handle(typed(SIGTSTP), now), []);
    assert_eq!(state.handle(stopped(SIGTSTP, false), now), [stop_self(SIGTSTP)]);
    let mut alone = state.clone();
    assert_eq!(state.handle(Event::JobContinued, now), []);
    assert_eq!(state.handle(sent(SIGCONT), now), []);
    assert_eq!(alone.handle(sent(SIGCONT), now), [Action::ContinueJob]);

    // A job may stop itself by SIGSTOP when it gets Ctrl-Z, and pglock may learn of either first.
    let (state, now) = running(true, OnLost::Stop);
    let mut typed_first = state.clone();
    assert_eq!(typed_first.handle(typed(SIGTSTP), now), []);
    assert_eq!(typed_first.handle(stopped(SIGSTOP, false), now), [stop_self(SIGSTOP)]);
    let mut stopped_first = state.clone();
    assert_eq!(
        stopped_first.handle(stopped(SIGSTOP, false), now),
        [],
        "a process stopped only the job"
    );
    let mut continued = stopped_first.clone();
    assert_eq!(stopped_first.handle(typed(SIGTSTP), now), [stop_self(SIGTSTP)]);
    assert_eq!(continued.handle(Event::JobContinued, now), []);
    assert_eq!(continued.handle(typed(SIGTSTP), now), []);
    assert_eq!(continued.handle(sent(SIGCONT), now), []);
    assert_eq!(continued.handle(stopped(SIGSTOP, false), now), []);

    // In its own group, the job is stopped and continued by the forwarded signals.
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(
        state.handle(stopped(SIGSTOP, false), now),
        [],
        "a process stopped only the job"
    );
    assert_eq!(state.handle(Event::JobContinued, now), []);
    assert_eq!(state.handle(sent(SIGTSTP), now), [forward(SIGTSTP)]);
    assert_eq!(state.handle(stopped(SIGTSTP, false), now), [stop_self(SIGTSTP)]);
    assert_eq!(state.handle(sent(SIGCONT), now), [Action::ContinueJob]);
    state.handle(Event::JobContinued, now);
    assert_eq!(state.handle(stopped(SIGTTIN, true), now), [stop_self(SIGTTIN)]);
}

#[test]
fn a_lost_lock_terminates_the_job_with_sigterm_then_sigkill() {
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(state.handle(Event::LockLost, now), [Action::SignalAll(SIGTERM)]);
    assert_eq!(
        state.handle(sent(SIGTERM), now),
        [forward(SIGTERM)],
        "a second SIGTERM is forwarded"
    );
    assert_eq!(state.handle(Event::Tick, now + 9 * SECOND), []);
    let kill_at = now + 10 * SECOND;
    assert_eq!(state.deadline(), Some(kill_at));
    assert_eq!(state.handle(Event::Tick, kill_at), [Action::SignalAll(SIGKILL)]);
    assert_eq!(state.handle(Event::JobExited(ExitReason::Signal(9)), kill_at), []);
    let drained = [
        Action::Reap,
        Action::Disconnect,
        Action::Finish(Outcome::Failed(ExitCode::Lost)),
    ];
    assert_eq!(state.clone().handle(Event::GroupEmpty, kill_at), drained);
    assert_eq!(
        state.handle(Event::Tick, kill_at),
        [Action::SignalAll(SIGKILL)],
        "for processes forked since"
    );
    assert_eq!(
        state.handle(Event::Tick, kill_at + 3 * SECOND),
        drained,
        "not indefinitely"
    );
}

#[test]
fn processes_that_outlive_the_leader_get_the_grace_period_too() {
    let (mut state, now) = running(false, OnLost::Stop);
    state.handle(Event::LockLost, now);
    assert_eq!(state.handle(Event::JobExited(ExitReason::Signal(15)), now), []);
    assert!(state.is_draining());
    assert_eq!(state.handle(sent(SIGTERM), now), [], "the leader has exited");
    assert_eq!(
        state.handle(Event::Tick, now + 10 * SECOND),
        [Action::SignalAll(SIGKILL)]
    );
}

#[test]
fn a_stopped_job_is_continued_so_that_it_handles_sigterm() {
    let (mut state, now) = running(false, OnLost::Stop);
    state.handle(stopped(SIGSTOP, false), now);
    assert_eq!(
        state.handle(Event::LockLost, now),
        [Action::SignalAll(SIGTERM), Action::ContinueJob]
    );
}

#[test]
fn an_overdue_report_is_a_loss_unless_pglock_itself_was_stopped() {
    let (mut state, now) = running(false, OnLost::Stop);
    let due = now + 10 * SECOND;
    assert_eq!(state.deadline(), Some(due));
    let mut slept = state.clone();
    assert_eq!(state.handle(Event::Tick, due), [Action::SignalAll(SIGTERM)]);

    // Stopped for an hour and continued: the session gets time to report, once.
    let later = now + 3600 * SECOND;
    assert_eq!(slept.handle(Event::Tick, later), []);
    assert_eq!(slept.deadline(), Some(later + OVERSLEEP_ALLOWANCE));
    let mut silent = slept.clone();
    slept.handle(alive_until(later + 10 * SECOND), later);
    assert_eq!(slept.deadline(), Some(later + 10 * SECOND));
    // The grace period has counted from when the report was due.
    let even_later = later + 2 * OVERSLEEP_ALLOWANCE;
    assert_eq!(silent.handle(Event::Tick, even_later), [Action::SignalAll(SIGTERM)]);
    assert_eq!(silent.handle(Event::Tick, even_later), [Action::SignalAll(SIGKILL)]);
}

/// The job is dead at most H + D + G after the last query that reached the server. If pglock was starved of CPU time at
/// the worst instant, that is still well within the margin of the server's limit.
#[test]
fn a_stall_at_the_deadline_stays_within_the_margin() {
    let (mut state, now) = running(false, OnLost::Stop);
    let due = now + 10 * SECOND;
    let stalled = due + Duration::from_millis(300);
    assert_eq!(state.handle(Event::Tick, stalled), []);
    let again = stalled + OVERSLEEP_ALLOWANCE + Duration::from_millis(300);
    assert_eq!(state.handle(Event::Tick, again), [Action::SignalAll(SIGTERM)]);
    assert_eq!(state.deadline(), Some(due + OVERSLEEP_ALLOWANCE + 10 * SECOND));
}

#[test]
fn an_ignored_loss_is_reported_once_and_the_status_of_the_job_stands() {
    let (mut state, now) = running(false, OnLost::Ignore);
    assert_eq!(state.handle(Event::LockLost, now), [Action::ReportUnguarded]);
    assert_eq!(state.handle(Event::LockLost, now), []);
    assert_eq!(state.deadline(), None);
    let reason = ExitReason::Code(5);
    assert_eq!(
        state.handle(Event::JobExited(reason), now),
        [Action::Reap, Action::Disconnect, Action::Finish(Outcome::Job(reason))]
    );
}

#[test]
fn an_unconfirmed_release_times_out_and_the_status_of_the_job_stands() {
    let finish = Action::Finish(Outcome::Job(ExitReason::Code(0)));
    let (mut state, now) = running(false, OnLost::Stop);
    state.handle(Event::JobExited(ExitReason::Code(0)), now);
    assert_eq!(state.deadline(), Some(now + 5 * SECOND));
    assert_eq!(
        state.handle(sent(SIGTERM), now),
        [],
        "the job it was meant for has exited"
    );
    assert_eq!(
        state.handle(Event::Tick, now + 5 * SECOND),
        [Action::Disconnect, finish]
    );
}

#[test]
fn a_lock_that_was_no_longer_held_at_the_release_is_a_lost_lock() {
    for (on_lost, outcome) in [
        (OnLost::Stop, Outcome::Failed(ExitCode::Lost)),
        (OnLost::Ignore, Outcome::Job(ExitReason::Code(0))),
    ] {
        let (mut state, now) = running(false, on_lost);
        state.handle(Event::JobExited(ExitReason::Code(0)), now);
        let finished = [Action::Disconnect, Action::Finish(outcome)];
        let released = Event::Released { was_held: false };
        assert_eq!(state.clone().handle(released, now), finished);
        assert_eq!(state.handle(Event::LockLost, now), finished, "closed by the server");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum JobState {
    None,
    Running,
    Exited,
    Reaped,
}

/// The model: what is true, whatever the state machine assumes.
struct World {
    state: RunState,
    now: Instant,
    job: JobState,
    is_session_alive: bool,
    lock_held: bool,
    release_ordered: bool,
    lost_during_job: bool,
    /// When the server releases the lock of a silent session, by the timing rule.
    server_releases_at: Instant,
    finished: Option<Outcome>,
}

/// An element of a random sequence. The world turns it into the events it can cause in its present state.
#[derive(Clone, Debug)]
enum Incident {
    Signal(usize, bool),
    Milliseconds(u64),
    Heartbeat,
    Connect,
    Grant,
    Start,
    Refuse,
    LoseSession,
    Withdraw,
    Contend,
    Evict,
    Stop,
    Continue,
    End(u8),
    /// A process of the job is seen.
    Linger,
}

const SIGNALS: [Signal; 12] = [
    SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP, SIGCONT, SIGCHLD, SIGALRM, SIGABRT,
];

fn incident() -> impl Strategy<Value = Incident> {
    prop_oneof![
        1 => (0..SIGNALS.len(), any::<bool>()).prop_map(|(signal, typed)| Incident::Signal(signal, typed)),
        1 => (0..20_000u64).prop_map(Incident::Milliseconds),
        1 => Just(Incident::Heartbeat),
        1 => Just(Incident::Connect),
        3 => Just(Incident::Grant),
        3 => Just(Incident::Start),
        1 => Just(Incident::Refuse),
        1 => Just(Incident::LoseSession),
        1 => Just(Incident::Withdraw),
        1 => Just(Incident::Contend),
        1 => Just(Incident::Evict),
        1 => Just(Incident::Stop),
        1 => Just(Incident::Continue),
        1 => any::<u8>().prop_map(Incident::End),
        1 => Just(Incident::Linger),
    ]
}

impl World {
    fn new(on_lost: OnLost) -> World {
        World {
            state: RunState::new(policy(on_lost), Wait::Indefinitely),
            now: Instant::now(),
            job: JobState::None,
            is_session_alive: true,
            lock_held: false,
            release_ordered: false,
            lost_during_job: false,
            server_releases_at: Instant::now() + 3600 * SECOND,
            finished: None,
        }
    }

    fn apply(&mut self, incident: Incident, in_callers_group: bool) {
        match incident {
            Incident::Signal(n, false) => self.deliver(sent(SIGNALS[n]), in_callers_group),
            Incident::Signal(n, true) => self.deliver(typed(SIGNALS[n]), in_callers_group),
            Incident::Milliseconds(ms) => {
                self.now += Duration::from_millis(ms);
                self.deliver(Event::Tick, in_callers_group);
                self.check_the_timing_rule(in_callers_group);
            }
            Incident::Heartbeat if self.is_session_alive => {
                self.reach_server();
                self.deliver(alive_until(self.now + 10 * SECOND), in_callers_group);
            }
            Incident::Connect if self.is_session_alive && !self.lock_held => {
                self.deliver(Event::Connected, in_callers_group);
            }
            Incident::Grant if self.is_session_alive && !self.lock_held && !self.release_ordered => {
                self.lock_held = true;
                self.reach_server();
                self.deliver(alive_until(self.now + 10 * SECOND), in_callers_group);
                self.deliver(Event::Answered, in_callers_group);
                self.deliver(Event::Acquired, in_callers_group);
            }
            Incident::Start if self.finished.is_none() && self.state.is_starting() => {
                assert_eq!(self.job, JobState::None, "a second job");
                assert!(!self.release_ordered, "a job after the release");
                assert!(self.is_session_alive, "a job without a lock");
                self.job = JobState::Running;
                self.deliver(Event::JobStarted { in_callers_group }, in_callers_group);
            }
            Incident::Refuse if self.is_session_alive && !self.lock_held && self.job == JobState::None => {
                self.is_session_alive = false;
                self.deliver(Event::NotAcquired(Outcome::Conflict(75)), in_callers_group);
            }
            Incident::LoseSession if self.is_session_alive && self.lock_held => {
                self.is_session_alive = false;
                self.lock_held = false;
                self.lost_during_job |= self.job == JobState::Running;
                self.deliver(Event::LockLost, in_callers_group);
            }
            Incident::Withdraw if self.is_session_alive && self.lock_held && self.job == JobState::None => {
                self.lock_held = false;
                self.deliver(Event::Withdrawn, in_callers_group);
            }
            Incident::Contend if self.is_session_alive && !self.lock_held => {
                self.deliver(Event::Answered, in_callers_group);
                self.deliver(Event::Contended, in_callers_group);
            }
            Incident::Evict if self.is_session_alive && self.lock_held => {
                self.lost_during_job |= self.job == JobState::Running;
                // It is seen in the reply to a heartbeat.
                self.reach_server();
                self.deliver(alive_until(self.now + 10 * SECOND), in_callers_group);
                self.deliver(Event::EvictionRequested, in_callers_group);
            }
            Incident::Stop if self.job == JobState::Running => {
                self.deliver(stopped(SIGTSTP, false), in_callers_group);
            }
            Incident::Continue if self.job == JobState::Running => {
                self.deliver(Event::JobContinued, in_callers_group);
            }
            Incident::End(code) if self.job == JobState::Running => {
                self.job = JobState::Exited;
                self.deliver(Event::JobExited(ExitReason::Code(code)), in_callers_group);
            }
            Incident::Linger if self.state.is_draining() => {
                self.deliver(Event::GroupAlive, in_callers_group);
            }
            _ => {}
        }
    }

    /// Records that a query reached the server, which releases the lock of a silent session H + D + G plus the margin
    /// later.
    fn reach_server(&mut self) {
        self.server_releases_at = self.now + 10 * SECOND + 10 * SECOND + 3 * SECOND;
    }

    /// Checks that the job is dead before another session can acquire the lock, if pglock wakes up in time. If it
    /// overslept, the allowance comes on top.
    fn check_the_timing_rule(&mut self, in_callers_group: bool) {
        if self.now <= self.server_releases_at || self.job != JobState::Running {
            return;
        }
        // pglock may just have woken up after the grace period. Then it takes the allowance and no longer.
        self.now += OVERSLEEP_ALLOWANCE;
        self.deliver(Event::Tick, in_callers_group);
        self.deliver(Event::Tick, in_callers_group);
        assert!(
            self.job != JobState::Running || self.state.is_unguarded,
            "the job runs, and another session may hold the lock"
        );
    }

    fn deliver(&mut self, event: Event, in_callers_group: bool) {
        if self.finished.is_some() {
            return;
        }
        for action in self.state.handle(event, self.now) {
            assert_eq!(self.finished, None, "an action after the run has finished");
            self.act(action, in_callers_group);
        }
    }

    fn act(&mut self, action: Action, in_callers_group: bool) {
        match action {
            Action::Forward(_) | Action::ContinueJob | Action::SignalAll(_) => {
                assert!(
                    matches!(self.job, JobState::Running | JobState::Exited),
                    "a signal to a pid that may be reused: {:?}",
                    self.job
                );
                if action == Action::SignalAll(SIGKILL) && self.job == JobState::Running {
                    self.job = JobState::Exited;
                    self.deliver(Event::JobExited(ExitReason::Signal(9)), in_callers_group);
                }
            }
            Action::Reap => {
                assert_eq!(self.job, JobState::Exited, "reaping a job that has not exited");
                self.job = JobState::Reaped;
            }
            Action::Release => {
                assert!(
                    matches!(self.job, JobState::None | JobState::Reaped) || self.state.is_unguarded,
                    "the lock is released and the job is {:?}",
                    self.job
                );
                self.release_ordered = true;
            }
            Action::Finish(outcome) => {
                assert!(
                    matches!(self.job, JobState::None | JobState::Reaped),
                    "the run has finished and the job is {:?}",
                    self.job
                );
                self.finished = Some(outcome);
            }
            // The session's thread finds a lock that it has reported lost, and takes it back.
            Action::AbandonConnection => self.apply(Incident::Withdraw, in_callers_group),
            Action::CancelWait | Action::StopSelf(_) | Action::ReportUnguarded | Action::Disconnect => {}
        }
    }

    /// Runs everything to its end: the job exits or is killed, and the session confirms the release.
    fn play_out(&mut self, in_callers_group: bool) {
        for _ in 0..10 {
            if self.state.is_draining() && self.job == JobState::Exited {
                self.deliver(Event::GroupEmpty, in_callers_group);
            }
            if self.release_ordered && self.is_session_alive {
                self.is_session_alive = false;
                self.deliver(Event::Released { was_held: true }, in_callers_group);
            }
            if !self.lost_during_job {
                self.apply(Incident::Refuse, in_callers_group);
                self.apply(Incident::End(0), in_callers_group);
            }
            self.now += 11 * SECOND;
            self.deliver(Event::Tick, in_callers_group);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]
    #[test]
    fn the_promises_hold_for_any_sequence_of_events(
        incidents in prop::collection::vec(incident(), 1..60),
        in_callers_group: bool,
        ignore: bool,
        min_hold in 0..40u32,
    ) {
        let on_lost = if ignore { OnLost::Ignore } else { OnLost::Stop };
        let mut world = World::new(on_lost);
        world.state.policy.min_hold = min_hold * SECOND;
        for incident in incidents {
            world.apply(incident, in_callers_group);
        }
        let lost = world.lost_during_job && world.finished.is_none();
        if ignore && lost {
            world.lost_during_job = false; // The job continues until it exits.
        }
        world.play_out(in_callers_group);
        let outcome = world.finished.expect("the run finishes");
        if lost && !ignore {
            prop_assert_eq!(outcome, Outcome::Failed(ExitCode::Lost));
        }
    }
}
