//! What the run table may say, and how often a key may succeed.

use super::{Kind, LOST, Story, Target, ms};
use crate::history::{End, Row};

impl Story {
    /// Makes a run a recorded one with an interval of 3 s, whose job exited with 0, and adds its row.
    fn recorded(self, number: usize) -> Story {
        let tale = self.request(number, |request| {
            request.record = true;
            request.once_per = Some(3);
        });
        let mut tale = tale.job(number, |stay| stay.status = Some(0));
        let stay = tale.0.stays.iter().find(|stay| stay.run == number).unwrap();
        let row = Row {
            id: number as i64,
            run: number,
            key: "a".into(),
            slot: 0,
            shared: false,
            started: stay.entered - 5_000_000,
            ended: Some(stay.last),
            exit_status: Some(0),
            outcome: "ok".into(),
        };
        tale.0.rows.push(row);
        tale
    }

    fn row(mut self, number: usize, change: impl FnOnce(&mut Row)) -> Story {
        change(self.0.rows.iter_mut().find(|row| row.run == number).unwrap());
        self
    }

    fn without_row(mut self, number: usize) -> Story {
        self.0.rows.retain(|row| row.run != number);
        self
    }

    fn outcome(self, number: usize, outcome: &str) -> Story {
        self.row(number, |row| row.outcome = outcome.to_owned())
    }
}

/// Returns two successes, the second of which began so many milliseconds after the first.
fn two(apart: u64) -> Story {
    let tale = Story::default().holds(1, 0, 500).holds(2, apart, apart + 500);
    tale.recorded(1).recorded(2)
}

const KILLED: (Kind, Target, u64, u64) = (Kind::KillPglock, Target::Run(1), 480, 481);

#[test]
fn two_successes_in_an_interval_are_caught() {
    two(3000).passes();
    two(2000).fails_among_others_for("began within the interval of run 1, which had succeeded");
    two(2000).fails_among_others_for("run 1 and run 2 succeeded within one interval, 2000 ms apart");
    let other = two(2000).request(2, |request| request.keys = vec!["b"]);
    other.row(2, |row| row.key = "b".into()).passes();
    // Whoever does not ask is not told.
    two(2000).request(2, |request| request.once_per = None).passes();
    // Not even a run that failed began in time.
    let failed = two(2000).outcome(2, "failed").request(2, |request| request.status = 3);
    let failed = failed.end(2, End::Code(3), "").job(2, |stay| stay.status = Some(3));
    failed.fails_for("began within the interval of run 1");
}

#[test]
fn a_repetition_is_explained_only_by_a_success_that_a_fault_kept_from_being_recorded() {
    let (kind, target, began, ended) = KILLED;
    let killed = || two(2000).outcome(1, "abandoned").end(1, End::Signal(9), "");
    let verdict = killed().fault(kind, target, began, ended).passes().verdict();
    assert_eq!(
        (verdict.unrecorded["KillPglock"], verdict.repeated["KillPglock"]),
        (1, 1)
    );
    killed().fails_among_others_for("is not recorded, and no fault explains it");
    // Only of the first one.
    let second = two(2000).outcome(2, "abandoned").end(2, End::Signal(9), "");
    let second = second.fault(kind, Target::Run(2), began, 2481);
    second.fails_among_others_for("succeeded within one interval");
    let lost = two(2000).outcome(1, "lost").end(1, End::Code(74), LOST);
    let lost = lost.fault(Kind::Crash, Target::All, 470, 475);
    assert_eq!(lost.passes().verdict().repeated["a lost lock"], 1);
    // The row is gone with the primary.
    let missed = |kind| two(2000).without_row(1).fault(kind, Target::All, 1000, 1500);
    let verdict = missed(Kind::Failover).passes().verdict();
    assert_eq!(verdict.repeated["a standby that lagged behind"], 1);
    for kind in [Kind::Switchover, Kind::Restart, Kind::Crash] {
        missed(kind).fails_among_others_for("is not recorded, and no fault explains it");
    }
}

#[test]
fn an_end_that_is_not_recorded_needs_a_message_and_a_fault() {
    const NOT_RECORDED: &str = "pglock: could not record how the run on key \"a\" ended: the server is gone\n";
    let one = || Story::default().holds(1, 0, 500).recorded(1).outcome(1, "abandoned");
    let said = |kind| {
        one()
            .end(1, End::Code(0), NOT_RECORDED)
            .fault(kind, Target::All, 480, 481)
    };
    assert_eq!(said(Kind::KillProxy).passes().verdict().unrecorded["KillProxy"], 1);
    said(Kind::SlowDisk).fails_among_others_for("it had no reason not to record its end");
    let silent = one().fault(Kind::KillProxy, Target::All, 480, 481);
    silent.fails_for("is not recorded, and no fault explains it");
    let other = Story::default().holds(1, 0, 500).end(1, End::Code(0), NOT_RECORDED);
    let other = other.fault(Kind::KillProxy, Target::All, 480, 481);
    other.fails_for("it was not to record anything");
}

#[test]
fn a_row_that_is_not_true_is_caught() {
    let one = || Story::default().holds(1, 0, 500).recorded(1).passes();
    let early = one().row(1, |row| row.started = ms(100));
    early.fails_for("a row with a start that is not before its job's");
    let early = one().row(1, |row| row.ended = Some(ms(400)));
    early.fails_for("an end that is not its job's");
    one()
        .row(1, |row| row.ended = Some(ms(700)))
        .fails_for("an end that is not its job's");
    let slow = one().row(1, |row| row.ended = Some(ms(700)));
    slow.fault(Kind::Delay, Target::Host(0), 400, 450).passes();
    one().row(1, |row| row.ended = None).fails_for("without an end");
    one()
        .row(1, |row| row.exit_status = Some(3))
        .fails_for("with another status");
    one()
        .outcome(1, "failed")
        .fails_among_others_for("a recorded failure of a job that succeeded");
    one().outcome(1, "lost").fails_among_others_for("recorded as lost");
    one()
        .outcome(1, "running")
        .fails_among_others_for("recorded as running");
    one()
        .row(1, |row| row.key = "b".into())
        .fails_among_others_for("was not to record this key");
    one()
        .row(1, |row| row.run = 7)
        .fails_among_others_for("a row of no run");
    let failed = one().end(1, End::Code(3), "").request(1, |request| request.status = 3);
    let failed = failed.job(1, |stay| stay.status = Some(3));
    failed.fails_for("a recorded success of a job that did not succeed");
}

#[test]
fn a_run_that_still_seems_to_run_is_caught() {
    let (kind, target, began, ended) = KILLED;
    let tale = || two(5000).outcome(1, "running").end(1, End::Signal(9), "");
    let tale = || tale().fault(kind, target, began, ended);
    tale().fails_for("a run is still recorded as running");
    // Nobody has come since, or not to the same place.
    tale()
        .without_row(2)
        .request(2, |request| request.record = false)
        .passes();
    tale().row(2, |row| row.slot = 1).passes();
    let shared = tale().row(1, |row| row.shared = true);
    shared.fails_for("a run is still recorded as running");
    let shared = tale().row(1, |row| row.shared = true).row(2, |row| row.shared = true);
    shared.passes();
}

#[test]
fn a_run_that_was_due_is_caught() {
    const NOT_DUE: &str = "pglock: key \"a\" last succeeded 1s ago on vm (took 0s); not again within 3s\n";
    let refused = |began: u64| {
        let tale = Story::default().holds(1, 0, 500).recorded(1);
        let tale = tale.waits(2, began, began + 100, 75, NOT_DUE);
        tale.request(2, |request| (request.record, request.once_per) = (true, Some(3)))
    };
    refused(2000).passes();
    refused(4000).fails_for("no job of the key had succeeded within the interval");
    let failed = refused(2000).job(1, |stay| stay.status = Some(3));
    failed.fails_among_others_for("no job of the key had succeeded within the interval");
    let plain = refused(2000).request(2, |request| request.once_per = None);
    plain.fails_for("it was not to look for a success");
    let other = refused(2000).request(2, |request| request.once_per = Some(2));
    other.fails_for("it does not say \"; not again within 2s\"");
}
