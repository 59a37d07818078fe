//! The decisions, one by one and over random sequences of events.
//!
//! The random sequences run against a small world that has a lock, a job and a session, and that only lets
//! happen what can happen: a job ends once, a session that is lost does not come back. The world checks each action
//! against the promises the moment it is taken, and at the end everything must have come to an end.

use super::*;
use Signal::*;
use proptest::prelude::*;

const SECOND: Duration = Duration::from_secs(1);

fn policy(on_lost: OnLost) -> Policy {
    Policy {
        conflict_status: 75,
        on_lost,
        min_hold: Duration::ZERO,
        timing: Timing {
            heartbeat: 5 * SECOND,
            kill_after: 10 * SECOND,
        },
    }
}

fn sent(signal: Signal) -> Event {
    Event::Arrived(SignalInfo {
        signal,
        from_terminal: false,
    })
}

fn typed(signal: Signal) -> Event {
    Event::Arrived(SignalInfo {
        signal,
        from_terminal: true,
    })
}

fn stopped(signal: Signal, by_terminal: bool) -> Event {
    Event::Stopped {
        signal: signal as i32,
        by_terminal,
    }
}

fn stop_self(signal: Signal) -> Action {
    Action::StopSelf(signal as i32)
}

/// A state in which the lock is ours and the job is to be started, and the time.
fn starting() -> (RunState, Instant) {
    let now = Instant::now();
    let mut state = RunState::new(policy(OnLost::Stop), None);
    state.step(Event::Connected, now);
    state.step(Event::Alive(now + 10 * SECOND), now);
    assert_eq!(state.step(Event::Held, now), []);
    assert!(state.is_starting());
    (state, now)
}

/// A state in which the job runs, and the time.
fn running(callers_group: bool, on_lost: OnLost) -> (RunState, Instant) {
    let (mut state, now) = starting();
    state.policy.on_lost = on_lost;
    assert_eq!(state.step(Event::Started { callers_group }, now), []);
    (state, now)
}

#[test]
fn a_good_day() {
    let (mut state, now) = running(false, OnLost::Stop);
    let end = ExitReason::Code(3);
    assert_eq!(state.step(Event::Ended(end), now), [Action::Reap, Action::Release]);
    let finish = Action::Finish(Outcome::Job(end));
    assert_eq!(state.step(Event::Released { was_held: true }, now), [finish]);
}

/// A state in which the job runs under a lock that is to be kept for a minute.
fn running_for_a_minute() -> (RunState, Instant) {
    let (mut state, now) = running(false, OnLost::Stop);
    state.keep_until = Some(now + 60 * SECOND);
    (state, now)
}

#[test]
fn a_lock_is_kept_after_a_short_job_and_a_signal_ends_that() {
    let end = Event::Ended(ExitReason::Code(3));
    let finish = Action::Finish(Outcome::Job(ExitReason::Code(3)));
    let (mut state, now) = running_for_a_minute();
    assert_eq!(state.step(end, now), [Action::Reap]);
    assert_eq!(state.step(typed(SIGTSTP), now), [stop_self(SIGTSTP)]);
    state.step(Event::Alive(now + 120 * SECOND), now);
    assert_eq!(state.deadline(), Some(now + 60 * SECOND));
    assert_eq!(state.step(sent(SIGUSR1), now), []);
    assert_eq!(state.clone().step(sent(SIGTERM), now), [Action::Release]);
    assert_eq!(
        state.clone().step(Event::Lost, now),
        [Action::Cut, finish],
        "the job was guarded to its end"
    );
    assert_eq!(state.step(Event::Tick, now + 60 * SECOND), [Action::Release]);

    // The signal that ended the job, or came before its end, is a signal to pglock too.
    let (mut state, now) = running_for_a_minute();
    assert_eq!(state.step(sent(SIGTERM), now), [Action::Forward(SIGTERM)]);
    assert_eq!(state.step(end, now), [Action::Reap, Action::Release]);

    // A long job has kept it long enough, and a silent server is not waited for.
    let (mut state, now) = running_for_a_minute();
    let late = now + 61 * SECOND;
    assert_eq!(state.clone().step(end, late), [Action::Reap, Action::Release]);
    state.step(end, now);
    assert_eq!(state.step(Event::Tick, now + 10 * SECOND), [Action::Cut, finish]);
}

#[test]
fn a_signal_ends_the_wait_and_leaves_the_queue() {
    for signal in [SIGINT, SIGTERM, SIGHUP, SIGQUIT] {
        let now = Instant::now();
        let mut state = RunState::new(policy(OnLost::Stop), None);
        let finish = [Action::Finish(Outcome::Interrupted(signal as i32))];
        assert_eq!(
            state.clone().step(sent(signal), now),
            finish,
            "not connected: nothing to leave"
        );
        state.step(Event::Connected, now);
        assert_eq!(state.step(sent(signal), now), [Action::Cancel]);
        let mut granted = state.clone();
        assert_eq!(granted.step(Event::Held, now), [Action::Release]);
        assert_eq!(granted.step(Event::Released { was_held: true }, now), finish);
        assert_eq!(state.clone().step(Event::NotHeld(Outcome::Conflict(75)), now), finish);
        assert_eq!(state.clone().step(sent(SIGINT), now), finish, "enough is enough");
        assert_eq!(state.step(Event::Tick, now + SECOND), finish);
    }
    for signal in [SIGUSR1, SIGUSR2, SIGWINCH, SIGCONT] {
        let mut state = RunState::new(policy(OnLost::Stop), None);
        assert_eq!(state.step(sent(signal), Instant::now()), []);
    }
}

#[test]
fn the_wait_is_over_when_it_is_over() {
    let now = Instant::now();
    let limited = Policy { ..policy(OnLost::Stop) };
    let mut state = RunState::new(limited, Some(now + SECOND));
    let late = now + 2 * SECOND;
    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    assert_eq!(state.step(Event::Tick, now), []);
    assert_eq!(state.clone().step(Event::Tick, late), unavailable, "not even connected");
    state.step(Event::Connected, now);
    assert_eq!(state.step(Event::Tick, late), [Action::Finish(Outcome::Conflict(75))]);
}

#[test]
fn a_signal_between_grant_and_start_starts_no_job() {
    let (mut state, now) = starting();
    let mut other = state.clone();
    assert_eq!(state.step(typed(SIGINT), now), [Action::Release]);
    assert!(!state.is_starting());
    assert_eq!(other.step(sent(SIGUSR1), now), []);
    assert_eq!(other.step(typed(SIGTSTP), now), [stop_self(SIGTSTP)]);
    assert!(other.is_starting());
    assert_eq!(
        other.step(Event::NotStarted(ExitCode::NotFound), now),
        [Action::Release]
    );
}

#[test]
fn a_loss_between_grant_and_start_starts_no_job() {
    let unavailable = [Action::Finish(Outcome::Failed(ExitCode::Unavailable))];
    for on_lost in [OnLost::Stop, OnLost::Ignore] {
        let (mut state, now) = starting();
        state.policy.on_lost = on_lost;
        let due = now + 10 * SECOND;
        assert_eq!(state.clone().step(Event::Lost, now), unavailable);
        assert_eq!(state.clone().step(Event::Tick, due), unavailable);

        // Stopped by Ctrl-Z, and continued an hour later: the session has its moment before the job begins.
        let later = now + 3600 * SECOND;
        assert_eq!(state.step(Event::Tick, later), []);
        assert!(!state.is_starting());
        assert_eq!(state.deadline(), Some(later + OVERSLEEP_ALLOWANCE));
        let mut silent = state.clone();
        assert_eq!(silent.step(Event::Tick, later + OVERSLEEP_ALLOWANCE), unavailable);
        assert_eq!(state.step(Event::Alive(later + 10 * SECOND), later), []);
        assert!(state.is_starting());
    }
}

#[test]
fn each_signal_reaches_the_job_once() {
    let all = [SIGTERM, SIGINT, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP];
    for signal in all {
        for callers_group in [false, true] {
            let (mut state, now) = running(callers_group, OnLost::Stop);
            assert_eq!(state.step(sent(signal), now), [Action::Forward(signal)]);
            let forwarded = if callers_group {
                vec![]
            } else {
                vec![Action::Forward(signal)]
            };
            assert_eq!(state.step(typed(signal), now), forwarded);
        }
    }
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(state.step(sent(SIGCHLD), now), []);
}

#[test]
fn a_stop_is_shown_to_the_shell_and_a_continuation_reaches_the_job() {
    // On a terminal, the key has stopped the job, and fg continues the whole group.
    let (mut state, now) = running(true, OnLost::Stop);
    assert_eq!(state.step(typed(SIGTSTP), now), []);
    assert_eq!(state.step(stopped(SIGTSTP, false), now), [stop_self(SIGTSTP)]);
    let mut alone = state.clone();
    assert_eq!(state.step(Event::Continued, now), []);
    assert_eq!(state.step(sent(SIGCONT), now), []);
    assert_eq!(alone.step(sent(SIGCONT), now), [Action::Resume]);

    // In a group of its own, the job is stopped and continued by what we pass on.
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(
        state.step(stopped(SIGSTOP, false), now),
        [],
        "somebody stopped the job only"
    );
    assert_eq!(state.step(Event::Continued, now), []);
    assert_eq!(state.step(sent(SIGTSTP), now), [Action::Forward(SIGTSTP)]);
    assert_eq!(state.step(stopped(SIGTSTP, false), now), [stop_self(SIGTSTP)]);
    assert_eq!(state.step(sent(SIGCONT), now), [Action::Resume]);
    state.step(Event::Continued, now);
    assert_eq!(state.step(stopped(SIGTTIN, true), now), [stop_self(SIGTTIN)]);
}

#[test]
fn a_lost_lock_stops_the_job_with_term_then_kill() {
    let (mut state, now) = running(false, OnLost::Stop);
    assert_eq!(state.step(Event::Lost, now), [Action::SignalAll(SIGTERM)]);
    assert_eq!(
        state.step(sent(SIGTERM), now),
        [Action::Forward(SIGTERM)],
        "a second TERM is passed on"
    );
    assert_eq!(state.step(Event::Tick, now + 9 * SECOND), []);
    let kill_at = now + 10 * SECOND;
    assert_eq!(state.deadline(), Some(kill_at));
    assert_eq!(state.step(Event::Tick, kill_at), [Action::SignalAll(SIGKILL)]);
    assert_eq!(state.step(Event::Ended(ExitReason::Signal(9)), kill_at), []);
    let buried = [
        Action::Reap,
        Action::Cut,
        Action::Finish(Outcome::Failed(ExitCode::Lost)),
    ];
    assert_eq!(state.clone().step(Event::GroupEmpty, kill_at), buried);
    assert_eq!(
        state.step(Event::Tick, kill_at),
        [Action::SignalAll(SIGKILL)],
        "for what was born since"
    );
    assert_eq!(state.step(Event::Tick, kill_at + 3 * SECOND), buried, "not for ever");
}

#[test]
fn what_the_leader_leaves_behind_has_its_grace_too() {
    let (mut state, now) = running(false, OnLost::Stop);
    state.step(Event::Lost, now);
    assert_eq!(state.step(Event::Ended(ExitReason::Signal(15)), now), []);
    assert!(state.is_draining());
    assert_eq!(state.step(sent(SIGTERM), now), [], "the leader is dead");
    assert_eq!(state.step(Event::Tick, now + 10 * SECOND), [Action::SignalAll(SIGKILL)]);
}

#[test]
fn a_stopped_job_is_continued_to_see_its_term() {
    let (mut state, now) = running(false, OnLost::Stop);
    state.step(stopped(SIGSTOP, false), now);
    assert_eq!(
        state.step(Event::Lost, now),
        [Action::SignalAll(SIGTERM), Action::Resume]
    );
}

#[test]
fn silence_is_a_loss_but_not_while_we_slept_ourselves() {
    let (mut state, now) = running(false, OnLost::Stop);
    let due = now + 10 * SECOND;
    assert_eq!(state.deadline(), Some(due));
    let mut slept = state.clone();
    assert_eq!(state.step(Event::Tick, due), [Action::SignalAll(SIGTERM)]);

    // Stopped for an hour and continued: the session gets a moment to find out, once.
    let later = now + 3600 * SECOND;
    assert_eq!(slept.step(Event::Tick, later), []);
    assert_eq!(slept.deadline(), Some(later + OVERSLEEP_ALLOWANCE));
    let mut silent = slept.clone();
    slept.step(Event::Alive(later + 10 * SECOND), later);
    assert_eq!(slept.deadline(), Some(later + 10 * SECOND));
    // The time to the KILL has run since the session was due.
    let even_later = later + 2 * OVERSLEEP_ALLOWANCE;
    assert_eq!(silent.step(Event::Tick, even_later), [Action::SignalAll(SIGTERM)]);
    assert_eq!(silent.step(Event::Tick, even_later), [Action::SignalAll(SIGKILL)]);
}

/// The rule of the README: dead H+D+G after the last message that reached the server, and if this process was starved for a
/// moment at the worst time, still well within the margin of the server's limit.
#[test]
fn a_stall_at_the_deadline_is_within_the_margin() {
    let (mut state, now) = running(false, OnLost::Stop);
    let due = now + 10 * SECOND;
    let stalled = due + Duration::from_millis(300);
    assert_eq!(state.step(Event::Tick, stalled), []);
    let again = stalled + OVERSLEEP_ALLOWANCE + Duration::from_millis(300);
    assert_eq!(state.step(Event::Tick, again), [Action::SignalAll(SIGTERM)]);
    assert_eq!(state.deadline(), Some(due + OVERSLEEP_ALLOWANCE + 10 * SECOND));
}

#[test]
fn an_ignored_loss_is_said_once_and_the_job_ends_as_it_ends() {
    let (mut state, now) = running(false, OnLost::Ignore);
    assert_eq!(state.step(Event::Lost, now), [Action::SayUnguarded]);
    assert_eq!(state.step(Event::Lost, now), []);
    assert_eq!(state.deadline(), None);
    let end = ExitReason::Code(5);
    assert_eq!(
        state.step(Event::Ended(end), now),
        [Action::Reap, Action::Cut, Action::Finish(Outcome::Job(end))]
    );
}

#[test]
fn a_release_that_is_not_confirmed_is_bounded_and_the_code_stands() {
    let finish = Action::Finish(Outcome::Job(ExitReason::Code(0)));
    let (mut state, now) = running(false, OnLost::Stop);
    state.step(Event::Ended(ExitReason::Code(0)), now);
    assert_eq!(state.deadline(), Some(now + 5 * SECOND));
    assert_eq!(
        state.step(sent(SIGTERM), now),
        [],
        "the job that it was meant for has ended"
    );
    assert_eq!(state.step(Event::Tick, now + 5 * SECOND), [Action::Cut, finish]);
}

#[test]
fn a_lock_that_was_not_ours_at_the_end_is_a_lost_lock() {
    for (on_lost, outcome) in [
        (OnLost::Stop, Outcome::Failed(ExitCode::Lost)),
        (OnLost::Ignore, Outcome::Job(ExitReason::Code(0))),
    ] {
        let (mut state, now) = running(false, on_lost);
        state.step(Event::Ended(ExitReason::Code(0)), now);
        let ended = [Action::Cut, Action::Finish(outcome)];
        let given_back = Event::Released { was_held: false };
        assert_eq!(state.clone().step(given_back, now), ended);
        assert_eq!(state.step(Event::Lost, now), ended, "closed by the server");
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TheJob {
    None,
    Running,
    Ended,
    Reaped,
}

/// What is true, whatever the state machine believes.
struct World {
    state: RunState,
    now: Instant,
    job: TheJob,
    session_lives: bool,
    lock_held: bool,
    release_ordered: bool,
    lost_under_the_job: bool,
    /// By the timing rule: when the server may give the lock to another, unless it hears of us.
    given_away_at: Instant,
    finished: Option<Outcome>,
}

/// What a random sequence is made of; each is turned into the events that it can cause in the world as it is.
#[derive(Clone, Debug)]
enum Chance {
    Signal(usize, bool),
    Milliseconds(u64),
    SignOfLife,
    Connect,
    Grant,
    Start,
    Refuse,
    LoseSession,
    Stop,
    Continue,
    End(u8),
}

fn chance() -> impl Strategy<Value = Chance> {
    prop_oneof![
        1 => (0..10usize, any::<bool>()).prop_map(|(signal, typed)| Chance::Signal(signal, typed)),
        1 => (0..20_000u64).prop_map(Chance::Milliseconds),
        1 => Just(Chance::SignOfLife),
        1 => Just(Chance::Connect),
        3 => Just(Chance::Grant),
        3 => Just(Chance::Start),
        1 => Just(Chance::Refuse),
        1 => Just(Chance::LoseSession),
        1 => Just(Chance::Stop),
        1 => Just(Chance::Continue),
        1 => any::<u8>().prop_map(Chance::End),
    ]
}

impl World {
    fn new(on_lost: OnLost) -> World {
        World {
            state: RunState::new(policy(on_lost), None),
            now: Instant::now(),
            job: TheJob::None,
            session_lives: true,
            lock_held: false,
            release_ordered: false,
            lost_under_the_job: false,
            given_away_at: Instant::now() + 3600 * SECOND,
            finished: None,
        }
    }

    fn happens(&mut self, chance: Chance, callers_group: bool) {
        let signals = [
            SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1, SIGUSR2, SIGWINCH, SIGTSTP, SIGCONT, SIGCHLD,
        ];
        match chance {
            Chance::Signal(n, false) => self.tell(sent(signals[n]), callers_group),
            Chance::Signal(n, true) => self.tell(typed(signals[n]), callers_group),
            Chance::Milliseconds(ms) => {
                self.now += Duration::from_millis(ms);
                self.tell(Event::Tick, callers_group);
                self.check_the_timing_rule(callers_group);
            }
            Chance::SignOfLife if self.session_lives => {
                self.hear();
                self.tell(Event::Alive(self.now + 10 * SECOND), callers_group);
            }
            Chance::Connect if self.session_lives && !self.lock_held => {
                self.tell(Event::Connected, callers_group);
            }
            Chance::Grant if self.session_lives && !self.lock_held && !self.release_ordered => {
                self.lock_held = true;
                self.hear();
                self.tell(Event::Alive(self.now + 10 * SECOND), callers_group);
                self.tell(Event::Held, callers_group);
            }
            Chance::Start if self.finished.is_none() && self.state.is_starting() => {
                assert_eq!(self.job, TheJob::None, "a second job");
                assert!(!self.release_ordered, "a job after the release");
                assert!(self.session_lives, "a job without a lock");
                self.job = TheJob::Running;
                self.tell(Event::Started { callers_group }, callers_group);
            }
            Chance::Refuse if self.session_lives && !self.lock_held && self.job == TheJob::None => {
                self.session_lives = false;
                self.tell(Event::NotHeld(Outcome::Conflict(75)), callers_group);
            }
            Chance::LoseSession if self.session_lives && self.lock_held => {
                self.session_lives = false;
                self.lock_held = false;
                self.lost_under_the_job |= self.job == TheJob::Running;
                self.tell(Event::Lost, callers_group);
            }
            Chance::Stop if self.job == TheJob::Running => {
                self.tell(stopped(SIGTSTP, false), callers_group);
            }
            Chance::Continue if self.job == TheJob::Running => {
                self.tell(Event::Continued, callers_group);
            }
            Chance::End(code) if self.job == TheJob::Running => {
                self.job = TheJob::Ended;
                self.tell(Event::Ended(ExitReason::Code(code)), callers_group);
            }
            _ => {}
        }
    }

    /// A message has reached the server now: it gives the lock away H + D + G and the margin later.
    fn hear(&mut self) {
        self.given_away_at = self.now + 10 * SECOND + 10 * SECOND + 3 * SECOND;
    }

    /// Whoever wakes up in time, or had been asleep and has had its moment to find out, has killed the job before
    /// another can have the lock.
    fn check_the_timing_rule(&mut self, callers_group: bool) {
        if self.now <= self.given_away_at || self.job != TheJob::Running {
            return;
        }
        // It may just have woken up, with the time to the KILL over. Then it takes the allowance and no more.
        self.now += OVERSLEEP_ALLOWANCE;
        self.tell(Event::Tick, callers_group);
        self.tell(Event::Tick, callers_group);
        assert!(
            self.job != TheJob::Running || self.state.unguarded,
            "the job lives, and the lock may be another's"
        );
    }

    fn tell(&mut self, event: Event, callers_group: bool) {
        if self.finished.is_some() {
            return;
        }
        for action in self.state.step(event, self.now) {
            assert_eq!(self.finished, None, "something is done after the end");
            self.act(action, callers_group);
        }
    }

    fn act(&mut self, action: Action, callers_group: bool) {
        match action {
            Action::Forward(_) | Action::Resume | Action::SignalAll(_) => {
                assert!(
                    matches!(self.job, TheJob::Running | TheJob::Ended),
                    "a signal to a pid that is not ours: {:?}",
                    self.job
                );
                if action == Action::SignalAll(SIGKILL) && self.job == TheJob::Running {
                    self.job = TheJob::Ended;
                    self.tell(Event::Ended(ExitReason::Signal(9)), callers_group);
                }
            }
            Action::Reap => {
                assert_eq!(self.job, TheJob::Ended, "reaping what has not ended");
                self.job = TheJob::Reaped;
            }
            Action::Release => {
                assert!(
                    matches!(self.job, TheJob::None | TheJob::Reaped),
                    "the lock is released under a job that is {:?}",
                    self.job
                );
                self.release_ordered = true;
            }
            Action::Finish(outcome) => {
                assert!(
                    matches!(self.job, TheJob::None | TheJob::Reaped),
                    "the end, and the job is {:?}",
                    self.job
                );
                self.finished = Some(outcome);
            }
            Action::Cancel | Action::StopSelf(_) | Action::SayUnguarded | Action::Cut => {}
        }
    }

    /// Lets everything come to its end: the job by KILL or by itself, the session by answering.
    fn play_out(&mut self, callers_group: bool) {
        for _ in 0..10 {
            if self.state.is_draining() && self.job == TheJob::Ended {
                self.tell(Event::GroupEmpty, callers_group);
            }
            if self.release_ordered && self.session_lives {
                self.session_lives = false;
                self.tell(Event::Released { was_held: true }, callers_group);
            }
            if !self.lost_under_the_job {
                self.happens(Chance::Refuse, callers_group);
                self.happens(Chance::End(0), callers_group);
            }
            self.now += 11 * SECOND;
            self.tell(Event::Tick, callers_group);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(ProptestConfig::default().cases.max(1000)))]
    #[test]
    fn the_promises_hold_whatever_happens(
        chances in prop::collection::vec(chance(), 1..60),
        callers_group: bool,
        ignore: bool,
        min_hold in 0..40u32,
    ) {
        let on_lost = if ignore { OnLost::Ignore } else { OnLost::Stop };
        let mut world = World::new(on_lost);
        world.state.policy.min_hold = min_hold * SECOND;
        for chance in chances {
            world.happens(chance, callers_group);
        }
        let lost = world.lost_under_the_job && world.finished.is_none();
        if ignore && lost {
            world.lost_under_the_job = false; // The job is left to end by itself.
        }
        world.play_out(callers_group);
        let outcome = world.finished.expect("an end");
        if lost && !ignore {
            prop_assert_eq!(outcome, Outcome::Failed(ExitCode::Lost));
        }
    }
}
