//! Whether the check notices: correct histories pass, and each that is wrong in one way is caught for that.

mod excuses;
mod forwarder;
mod records;

use super::check::{Verdict, check};
use super::history::{End, Fault, History, Run, Stay, Target, Write};
use super::plan::Kind;
use super::request::{Request, Road};

/// A history in the making. Times are milliseconds, long after the clock's start.
#[derive(Default)]
struct Story(History);

fn ms(at: u64) -> u128 {
    (u128::from(at) + 1_000_000) * 1_000_000
}

impl Story {
    /// Adds a run for the key `a`, whose job runs for all but 10 ms at both ends.
    fn holds(self, number: usize, began: u64, ended: u64) -> Story {
        self.waits(number, began, ended, 0, "").job(number, |stay| {
            stay.entered = ms(began + 10);
            stay.last = ms(ended - 10);
        })
    }

    /// Adds a run that does not acquire the lock.
    fn waits(mut self, number: usize, began: u64, ended: u64, code: i32, stderr: &str) -> Story {
        let run = Run {
            request: Request {
                keys: vec!["a"],
                wait: Some(5),
                ..Request::default()
            },
            pid: 1000 + number as i32,
            began: ms(began),
            ended: ms(ended),
            end: End::Code(code),
            stderr: stderr.to_owned(),
        };
        self.0.runs.insert(number, run);
        self
    }

    /// Adds the job of a run, which has left unless it is changed.
    fn job(mut self, number: usize, change: impl FnOnce(&mut Stay)) -> Story {
        let found = self.0.stays.iter().position(|stay| stay.run == number);
        let index = found.unwrap_or_else(|| {
            self.0.stays.push(Stay {
                run: number,
                left: true,
                ..Stay::default()
            });
            self.0.stays.len() - 1
        });
        change(&mut self.0.stays[index]);
        self
    }

    fn run(mut self, number: usize, change: impl FnOnce(&mut Run)) -> Story {
        change(self.0.runs.get_mut(&number).unwrap());
        self
    }

    fn request(self, number: usize, change: impl FnOnce(&mut Request)) -> Story {
        self.run(number, |run| change(&mut run.request))
    }

    fn end(self, number: usize, end: End, stderr: &str) -> Story {
        self.run(number, |run| {
            (run.end, run.stderr) = (end, stderr.to_owned());
        })
    }

    fn token(self, number: usize, token: &str) -> Story {
        let tale = self.request(number, |request| request.token = true);
        tale.job(number, |stay| stay.token = Some(token.to_owned()))
    }

    fn writes(self, number: usize, at: u64, accepted: bool) -> Story {
        let (at, key) = (ms(at), "a".to_owned());
        self.job(number, |stay| stay.writes.push(Write { at, key, accepted }))
    }

    fn fault(mut self, kind: Kind, target: Target, began: u64, ended: u64) -> Story {
        self.0.faults.push(Fault {
            kind,
            target,
            began: ms(began),
            ended: ms(ended),
        });
        self
    }

    fn verdict(&self) -> Verdict {
        check(&self.0)
    }

    #[track_caller]
    fn passes(self) -> Story {
        assert_eq!(self.verdict().violations, Vec::<String>::new());
        self
    }

    /// Asserts that this is one of the violations.
    #[track_caller]
    fn fails_among_others_for(self, expected: &str) {
        let violations = self.verdict().violations;
        let is_found = violations.iter().any(|violation| violation.contains(expected));
        assert!(is_found, "{violations:?}");
    }

    /// Asserts that this is the only violation.
    #[track_caller]
    fn fails_for(self, expected: &str) {
        let violations = self.verdict().violations;
        assert!(
            violations.len() == 1 && violations[0].contains(expected),
            "{violations:?}"
        );
    }
}

/// Returns a story in which the first job runs from 10 to 990, and the second one from 510.
fn overlap() -> Story {
    let tale = Story::default();
    let tale = tale.holds(1, 0, 1000).holds(2, 390, 1500);
    tale.job(2, |stay| stay.entered = ms(510))
}

/// Returns the same story, after the session of the first one ended at 400, which it reports.
fn explained_overlap(kind: Kind) -> Story {
    let lost = "pglock: lost the lock on key \"a\" at noon: because; terminated the job with SIGTERM\n";
    let tale = overlap().fault(kind, Target::Run(1), 400, 401);
    tale.end(1, End::Code(74), lost).job(1, |stay| stay.left = false)
}

const OVERLAP: &str = " overlap for ";
const LOST: &str = "pglock: lost the lock on key \"a\" at noon: because; terminated the job with SIGTERM\n";
const GAVE_UP: &str = "pglock: key \"a\" in database \"postgres\" is held by vm:1001 (backend 7); gave up after 5s\n";

#[test]
fn one_after_the_other_passes() {
    let tale = Story::default().holds(1, 0, 1000).holds(2, 500, 1500);
    let tale = tale.job(2, |stay| stay.entered = ms(995));
    tale.token(1, "1").token(2, "2").passes();
}

#[test]
fn a_double_grant_is_caught() {
    overlap().fails_for(OVERLAP);
    // One shared holder is not enough; two are.
    let shared = overlap().request(1, |request| request.shared = true);
    assert_eq!(shared.verdict().violations.len(), 1);
    shared.request(2, |request| request.shared = true).passes();
    // One key in common is enough.
    let several = overlap().request(1, |request| request.keys = vec!["a", "b"]);
    several
        .request(2, |request| request.keys = vec!["a", "c"])
        .fails_for(OVERLAP);
    let others = overlap().request(1, |request| request.keys = vec!["b"]);
    others.passes();
}

#[test]
fn a_slot_that_two_have_is_caught() {
    let slots = |first, second| {
        let slots = |request: &mut Request| request.slots = Some(3);
        let tale = overlap().request(1, slots).request(2, slots);
        let tale = tale.job(1, |stay| stay.slot = first);
        tale.job(2, |stay| stay.slot = second)
    };
    slots(Some(0), Some(1)).passes();
    slots(Some(1), Some(1)).fails_for(OVERLAP);
    // Slot 0 is the key itself.
    let plain = |slot| slots(slot, None).request(2, |request| request.slots = None);
    plain(Some(1)).passes();
    plain(Some(0)).fails_for(OVERLAP);
}

#[test]
fn a_release_before_the_job_is_over_is_caught() {
    let tale = Story::default().holds(1, 0, 1000);
    let tale = tale.job(1, |stay| stay.last = ms(1300));
    tale.fails_for("the job lived on for 300 ms");
    let killed = Story::default().holds(1, 0, 1000).end(1, End::Signal(9), "");
    let killed = killed.job(1, |stay| stay.last = ms(1300));
    let by = |kind| (kind, Target::Run(1), 500, 501);
    let (kind, target, began, ended) = by(Kind::KillPglock);
    let killed = killed.fault(kind, target, began, ended).passes();
    let mut other = killed;
    other.0.faults[0].kind = Kind::KillJob;
    other.fails_for("the job lived on");
}

#[test]
fn tokens_that_do_not_order_are_caught() {
    let in_turn = |first, second| {
        let tale = Story::default().holds(1, 0, 1000).holds(2, 2000, 3000);
        tale.token(1, first).token(2, second)
    };
    in_turn("1", "2").passes();
    in_turn("2", "1").fails_for("and run 1 before it had 2");
    in_turn("1", "1").fails_for("and run 1 before it had 1");
    let none = Story::default().holds(1, 0, 1000);
    none.request(1, |request| request.token = true)
        .fails_for("has no token");
}

#[test]
fn an_overlap_that_the_tokens_do_not_explain_is_caught() {
    let tale = |first, second| {
        let tale = explained_overlap(Kind::EndSession);
        tale.token(1, first).token(2, second)
    };
    let verdict = tale("1", "2").passes().verdict();
    assert_eq!(verdict.explained["EndSession"].ordered, 1);
    // The one whose session was ended has the newer token, or the same.
    tale("2", "1").fails_among_others_for(OVERLAP);
    tale("1", "1").fails_among_others_for(OVERLAP);
    // The one who came in later has lost the lock before, while its job was being started.
    let late = overlap().token(1, "2").token(2, "1");
    let late = late.run(1, |run| run.began = ms(400));
    let late = late.run(2, |run| run.began = ms(0));
    let late = late.job(1, |stay| stay.entered = ms(450));
    late.fault(Kind::EndSession, Target::Run(2), 400, 401).passes();
}

#[test]
fn a_stale_write_is_caught() {
    let tale = |stale_is_accepted| {
        let tale = explained_overlap(Kind::EndSession);
        let tale = tale.token(1, "1").token(2, "2").writes(1, 20, true);
        tale.writes(2, 520, true).writes(1, 900, stale_is_accepted)
    };
    let verdict = tale(false).passes().verdict();
    assert_eq!((verdict.accepted, verdict.refused), (2, 1));
    tale(true).fails_for("run 1 wrote with 1, where run 2 had written with 2");
    let refused = Story::default().holds(1, 0, 1000).token(1, "1");
    refused.writes(1, 20, false).fails_for("run 1 was refused with 1");
}

#[test]
fn a_pglock_that_does_not_end_is_caught() {
    let hung = Story::default().waits(1, 0, 90_000, 0, "");
    hung.end(1, End::Hung, "").fails_for("it had to end, and did not");
}

#[test]
fn an_end_that_nothing_explains_is_caught() {
    let holder = || Story::default().holds(1, 0, 1000);
    let cases = [
        (End::Code(1), "", "unexpected exit"),
        (End::Code(70), "pglock: no", "unexpected exit"),
        (End::Code(75), "pglock: no", "unexpected exit"),
        (End::Code(69), "pglock: no", "unexpected exit"),
        (End::Code(74), LOST, "nothing happened to the session"),
        (End::Code(0), "pglock: hello", "it does not say \"\""),
        (End::Signal(9), "", "nobody killed it"),
        (End::Signal(15), "", "nobody ended it"),
        (End::Signal(11), "", "unexpected exit"),
    ];
    for (end, line, expected) in cases {
        holder().end(1, end, line).fails_for(expected);
    }
    let killed = holder().job(1, |stay| stay.left = false);
    killed.fails_for("unexpected exit");
    let waiter = Story::default().waits(1, 0, 5100, 69, "pglock: the server is gone");
    waiter.fails_for("the server was there");
}

#[test]
fn a_wait_that_a_restart_ends_is_caught() {
    let fails = |ended, line: &str| {
        let tale = Story::default().waits(1, 0, ended, 69, line);
        tale.fault(Kind::Crash, Target::All, 400, 480)
    };
    fails(5100, "pglock: cannot connect; gave up after 5s\n").passes();
    fails(500, "pglock: cannot connect\n").fails_for("the wait ended before its time was up");
    let at_once = fails(500, "pglock: cannot connect\n");
    at_once.request(1, |request| request.wait = None).passes();
    let not_started = "pglock: lost the lock on key \"a\" at noon: because; the job was not started\n";
    fails(500, not_started).fails_for("the wait ended before its time was up");
    let evicted = "pglock: evicted while waiting for key \"a\" by root@ops:1\n";
    fails(500, evicted).fails_for("nobody evicted it");
    let by = fails(500, evicted).fault(Kind::EvictForced, Target::Key("a"), 300, 350);
    by.passes();
    let silent = "pglock: the server stopped responding 2s after startup\n";
    fails(2000, silent).fails_for("nobody was silent");
    fails(2000, silent).fault(Kind::Cut, Target::Host(0), 300, 350).passes();
}

#[test]
fn a_wait_that_goes_on_says_so_once_and_for_a_reason() {
    const GOES_ON: &str = "pglock: lost the connection while waiting for key \"a\": the server is gone; reconnecting\n";
    let restart = |line: &str| {
        let tale = Story::default().holds(1, 0, 1000).end(1, End::Code(0), line);
        tale.fault(Kind::Crash, Target::All, 2, 5)
    };
    restart(GOES_ON).passes();
    restart("pglock: cannot connect; retrying until the wait for key \"a\" is over\n").passes();
    restart(&GOES_ON.repeat(2)).fails_for("it does not say \"\"");
    let mut calm = restart(GOES_ON);
    calm.0.faults.clear();
    calm.fails_for("it had no reason to connect again");
    let at_once = restart(GOES_ON).request(1, |request| request.wait = None);
    at_once.fails_for("it went on waiting, and was not to wait");
}

#[test]
fn a_loss_that_was_not_noticed_is_caught() {
    let crash = |began, ended| {
        let tale = Story::default().holds(1, 0, 1000);
        tale.fault(Kind::Crash, Target::All, began, ended)
    };
    crash(400, 800).fails_for("its lock was lost by a Crash, and it did not notice");
    // The job may have been over, or not have had the lock.
    crash(400, 995).passes();
    crash(5, 800).passes();
    // It could not be notified.
    let cut = crash(400, 800).fault(Kind::Cut, Target::Host(0), 300, 350);
    cut.passes();
    let pooled = crash(400, 800).request(1, |request| request.road = Road::Pooler);
    pooled.passes();
}

#[test]
fn a_loss_is_reported_with_its_reason() {
    let lost = |kind, why: &str| {
        let line = format!("pglock: lost the lock on key \"a\" at noon: {why}; terminated the job\n");
        explained_overlap(Kind::EndSession)
            .end(1, End::Code(74), &line)
            .fault(kind, Target::Run(1), 300, 350)
    };
    let command = "terminating connection due to administrator command";
    lost(Kind::EndSession, command).passes();
    lost(Kind::EndSession, &format!("{command} (evicted by root@ops)")).fails_for("nobody evicted it");
    lost(Kind::Evict, &format!("{command} (evicted by root@ops)")).passes();
    lost(Kind::EvictForced, &format!("{command} (evicted by root@ops)")).passes();
    lost(Kind::Evict, "evicted by root@ops").passes();
    lost(Kind::EvictForced, "evicted by root@ops").fails_for("nobody asked for it");
    lost(Kind::EndSession, "the session no longer holds it").fails_for("its session had lost the lock");
    let silent = "the server did not respond within 1s";
    lost(Kind::EndSession, silent).fails_for("nobody was silent");
    lost(Kind::Cut, silent).passes();
    let silent = explained_overlap(Kind::EndSession).end(1, End::Code(74), "pglock: oh\n");
    silent.fails_for("it does not say \"pglock: lost the lock");
    let twice = explained_overlap(Kind::EndSession).end(1, End::Code(74), &LOST.repeat(2));
    twice.fails_for("more than one line");
}

#[test]
fn a_wait_that_is_too_short_is_caught() {
    let gives_up = |ended, line| Story::default().holds(1, 0, 9000).waits(2, 100, ended, 75, line);
    gives_up(5100, GAVE_UP).passes();
    gives_up(5000, GAVE_UP).fails_for("it gave up after 4900 ms");
    gives_up(5100, "pglock: no; not waiting").fails_for("it does not say \"; gave up after 5s\"");
    gives_up(10_200, GAVE_UP).fails_for("it gave up after 10100 ms");
    let at_once = gives_up(200, GAVE_UP).request(2, |request| request.wait = None);
    at_once.fails_for("it does not say \"; not waiting\"");
}

#[test]
fn a_reported_holder_that_is_none_is_caught() {
    let told_of = |pid: i32| {
        let line = GAVE_UP.replace("1001", &pid.to_string());
        let tale = Story::default().holds(1, 0, 9000);
        tale.waits(2, 100, 5100, 75, &line)
    };
    told_of(1001).passes();
    told_of(1002).fails_for("reported a holder that was none");
    told_of(1003).fails_for("reported a holder that was none");
    // A lock in the pool has the name of a client that has gone.
    let left = told_of(1003).fault(Kind::Leftover, Target::Key("a"), 5000, 5050);
    left.fails_for("run 1 was inside under a lock left in the pool");
    let other = told_of(1001).request(1, |request| request.keys = vec!["b"]);
    let other = other.holds(3, 0, 9000).job(3, |stay| stay.entered = ms(20));
    other.fails_for("reported a holder that was none");
}

#[test]
fn a_forgotten_waiter_is_caught() {
    let waits = |free_from| {
        let tale = Story::default().holds(1, 0, free_from);
        tale.waits(2, 100, 12_100, 75, &GAVE_UP.replace("5s", "12s"))
            .request(2, |request| request.wait = Some(12))
    };
    waits(11_000).passes();
    waits(6000).fails_for("run 2 waited in vain, though no client held a for 6100 ms");
    // Another client held it.
    waits(6000).holds(3, 9000, 11_000).passes();
    // The server was gone.
    waits(6000).fault(Kind::Crash, Target::All, 8000, 8500).passes();
    // Faults of a client that does not want the key do not count.
    waits(6000)
        .fault(Kind::StopPglock, Target::Run(9), 8000, 8500)
        .fails_for("in vain");
}

#[test]
fn a_queue_out_of_order_is_caught() {
    let line = |second: u64| {
        let tale = Story::default().holds(1, 0, 10_000);
        let tale = tale.holds(2, 1000, 20_000).holds(3, second, 16_000);
        let tale = tale.job(2, |stay| stay.entered = ms(17_000));
        let tale = tale.job(3, |stay| stay.entered = ms(11_000));
        let fair = |request: &mut Request| request.fair = true;
        tale.request(2, fair).request(3, fair)
    };
    line(6000).fails_for("run 2 came before run 3 and was served after it");
    // They came at about the same time.
    line(2000).passes();
    let stopped = line(6000).fault(Kind::StopPglock, Target::Run(2), 9000, 12_000);
    stopped.passes();
    line(6000).request(3, |request| request.fair = false).passes();
}

#[test]
fn a_job_without_a_run_is_caught() {
    let mut tale = Story::default().holds(1, 0, 1000);
    tale.0.runs.clear();
    tale.fails_for("a job of run 1, which is unknown");
}

#[test]
fn lines_of_jobs_are_parsed_and_unknown_ones_reported() {
    let text = "enter 5 1 77 2 A\nwritten 6 1 a:2\nenter 6 2 78 - -\nalive 7 1\nrefused 8 1 a:2\nleave 9 1 3\n";
    let stays = History::stays_from(text).unwrap();
    let [first, second] = &stays[..] else {
        panic!("{stays:?}");
    };
    assert_eq!((first.entered, first.last, first.left), (5, 9, true));
    assert_eq!((first.status, second.status), (Some(3), None));
    assert_eq!((first.slot, first.token.as_deref()), (Some(2), Some("A")));
    let accepted: Vec<bool> = first.writes.iter().map(|write| write.accepted).collect();
    assert_eq!(accepted, [true, false]);
    assert_eq!((second.pid, second.left), (78, false));
    assert_eq!((second.slot, second.token.as_deref()), (None, None));
    let wrong = |text| History::stays_from(text).unwrap_err();
    assert!(wrong("enter 5 1 77 - -\nenter 6 1 78 - -\n").contains("started its job twice"));
    for line in ["enter", "enter x 1 2 - -", "enter 5 1 77", "gone 5 1", "leave 5 1"] {
        assert!(wrong(line).contains("an unknown line"), "{line}");
    }
}
