//! Which overlaps are excused, and which are not.

use super::{Kind, LOST, OVERLAP, Request, Road, Story, Target, explained_overlap, ms, overlap};
use crate::history::End;

#[test]
fn an_overlap_is_excused_by_what_ended_the_session_and_by_nothing_else() {
    use Kind::*;
    for kind in [EndSession, TermBackend, EvictForced] {
        let verdict = explained_overlap(kind).passes().verdict();
        assert_eq!(verdict.explained[&kind.name()].count, 1, "{kind:?}");
    }
    for kind in [
        Evict,
        KillBackend,
        Crash,
        Restart,
        StalledRestart,
        Failover,
        Switchover,
        Cut,
        CutServer,
        Delay,
        StopBackend,
    ] {
        explained_overlap(kind).fails_for(OVERLAP);
    }
    for kind in [TermJob, SlowDisk, Exhaust, Reconnect] {
        assert_eq!(explained_overlap(kind).verdict().violations.len(), 2, "{kind:?}");
    }
}

#[test]
fn a_restart_or_an_eviction_is_an_excuse_only_where_the_loser_could_not_come_back() {
    use Kind::*;
    let ends = [
        (Crash, Target::All),
        (Restart, Target::All),
        (KillBackend, Target::All),
        (Failover, Target::All),
        (Switchover, Target::All),
        (Evict, Target::Key("a")),
    ];
    for (end, target) in ends {
        let tale = || explained_overlap(Reconnect).fault(end, target, 400, 480);
        let is_explained_by = |tale: Story, suffix: &str| {
            let verdict = tale.verdict();
            let overlaps = verdict
                .violations
                .iter()
                .filter(|violation| violation.contains(OVERLAP));
            overlaps.count() == 0 && verdict.explained.contains_key(&format!("{}{suffix}", end.name()))
        };
        tale().fails_for(OVERLAP);
        let killed = tale().fault(KillPglock, Target::Run(1), 200, 201);
        assert!(is_explained_by(killed, " of a killed pglock"), "{end:?}");
        let stopped = tale().fault(StopPglock, Target::Run(1), 200, 450);
        assert!(is_explained_by(stopped, " of a stopped pglock"), "{end:?}");
        for hindrance in [Cut, CutServer, Delay, Exhaust, StopBackend] {
            let hindered = tale().fault(hindrance, Target::All, 410, 490);
            assert!(
                is_explained_by(hindered, " with the server out of reach"),
                "{end:?} {hindrance:?}"
            );
        }
        // Of another host, and only after the other job had started.
        tale().fault(Cut, Target::Host(1), 410, 490).fails_for(OVERLAP);
        tale().fault(Cut, Target::Host(0), 600, 700).fails_for(OVERLAP);
        let pooled = tale().request(1, |request| request.road = Road::Pooler);
        assert_eq!(is_explained_by(pooled, " behind the pooler"), end != Evict, "{end:?}");
        let pooled = tale().request(2, |request| request.road = Road::Pooler);
        pooled.fails_for(OVERLAP);
    }
}

#[test]
fn a_pglock_that_stands_still_during_a_restart_is_an_excuse_only_for_newcomers() {
    let stalled = |second_began| {
        let tale = Story::default().holds(1, 5000, 8500).holds(2, second_began, 9000);
        let tale = tale.end(1, End::Code(74), LOST).job(1, |stay| stay.left = false);
        let tale = tale.job(2, |stay| stay.entered = ms(7600));
        let tale = tale.request(2, |request| request.wait = Some(20));
        tale.fault(Kind::StalledRestart, Target::All, 6000, 7500)
    };
    // It comes back before newcomers.
    stalled(7400).fails_for(OVERLAP);
    let stopped = |second_began| stalled(second_began).fault(Kind::StopPglock, Target::Run(1), 6000, 7500);
    stopped(7400).passes();
    // Those that knew of the holder wait for its end.
    stopped(1000).fails_for(OVERLAP);
    stopped(1000).request(2, |request| request.road = Road::Pooler).passes();
    stopped(1000).fault(Kind::Cut, Target::Host(0), 2000, 3000).passes();
}

#[test]
fn a_failover_is_an_excuse_only_for_newcomers() {
    use Kind::*;
    let failed_over = |kind, second_began, second_entered| {
        let tale = Story::default().holds(1, 5000, 8500).holds(2, second_began, 9000);
        let tale = tale.end(1, End::Code(74), LOST).job(1, |stay| stay.left = false);
        let tale = tale.job(2, |stay| stay.entered = ms(second_entered));
        let tale = tale.request(2, |request| request.wait = Some(20));
        tale.fault(kind, Target::All, 6000, 7500)
    };
    for kind in [Failover, Switchover] {
        failed_over(kind, 6100, 7600).passes();
        failed_over(kind, 5900, 7600).fails_for(OVERLAP);
        // The loser had time to come back.
        failed_over(kind, 6100, 8100).fails_for(OVERLAP);
    }
    failed_over(Crash, 6100, 7600).fails_for(OVERLAP);
}

#[test]
fn a_terminated_session_is_an_excuse_only_if_somebody_wanted_the_lock_then() {
    let terminated = |second_began| {
        let tale = Story::default().holds(1, 0, 3000).holds(2, second_began, 3500);
        let tale = tale.job(2, |stay| stay.entered = ms(second_began.max(450)));
        tale.fault(Kind::EndSession, Target::Run(1), 400, 401)
    };
    terminated(300).passes();
    terminated(1500).fails_for(OVERLAP);
    // Another one had got in and out before the loser could claim the lock.
    let between = |ended| {
        let tale = terminated(1500).holds(3, 200, ended);
        tale.job(3, |stay| stay.entered = ms(450))
    };
    between(600).passes();
    between(1200).fails_for(OVERLAP);
    between(1200).request(1, |request| request.road = Road::Pooler).passes();
    let other = terminated(1500).holds(3, 200, 600);
    other.request(3, |request| request.keys = vec!["b"]).fails_for(OVERLAP);
}

#[test]
fn one_that_stands_in_the_queue_leaves_a_lost_lock_alone() {
    let waited = |change: fn(&mut Request)| {
        let tale = Story::default().holds(1, 0, 6000).holds(2, 1000, 6500);
        let tale = tale.job(2, |stay| stay.entered = ms(4500)).request(2, change);
        tale.fault(Kind::EndSession, Target::Run(1), 4400, 4401)
    };
    let in_queue = |_: &mut Request| {};
    waited(in_queue).fails_for(OVERLAP);
    waited(|request| request.road = Road::Pooler).passes();
    waited(in_queue).run(2, |run| run.began = ms(3000)).passes();
    // It has just lost its own session, and tries anew.
    let disturbed = waited(in_queue).fault(Kind::EndSession, Target::Run(2), 4000, 4001);
    disturbed.passes();
}

#[test]
fn a_proxy_that_closes_its_connections_is_an_excuse_only_if_another_road_led_to_the_lock() {
    for kind in [Kind::KillProxy, Kind::CutProxy] {
        let cut = |began: u64, road| {
            let at = began + 6000;
            let tale = Story::default()
                .holds(1, at - 500, at + 2000)
                .holds(2, began, at + 2500);
            let tale = tale.job(2, |stay| stay.entered = ms(at + 50));
            let tale = tale.request(1, |request| request.road = Road::Proxy);
            let tale = tale.request(2, |request| request.road = road);
            tale.request(2, |request| request.wait = Some(9))
                .fault(kind, Target::Proxied, at, at + 1)
        };
        // It stood in the queue, and left the lock to a loser who could come back.
        match kind {
            Kind::KillProxy => drop(cut(0, Road::Direct).passes()),
            _ => cut(0, Road::Direct).fails_for(OVERLAP),
        }
        cut(0, Road::Direct).run(2, |run| run.began = ms(5000)).passes();
        cut(0, Road::Pooler).passes();
        // It lost its session too, and leaves the lock to the loser.
        cut(0, Road::Proxy).fails_for(OVERLAP);
        let other = cut(0, Road::Direct).request(1, |request| request.road = Road::Direct);
        other.fails_for(OVERLAP);
    }
}

#[test]
fn a_job_under_a_lock_left_in_the_pool_is_caught() {
    let leftover = |began, ended| {
        let tale = Story::default().holds(1, 0, 1000);
        tale.fault(Kind::Leftover, Target::Key("a"), began, ended)
    };
    const CAUGHT: &str = "run 1 was inside under a lock left in the pool";
    leftover(300, 600).fails_for(CAUGHT);
    leftover(0, 600).fails_for(CAUGHT);
    leftover(1000, 1500).passes();
    let shared = leftover(300, 600).request(1, |request| request.shared = true);
    shared.fails_for(CAUGHT);
    let other = leftover(300, 600).request(1, |request| request.keys = vec!["b"]);
    other.passes();
    let slot = |slot| {
        let tale = leftover(300, 600).request(1, |request| request.slots = Some(3));
        tale.job(1, |stay| stay.slot = Some(slot))
    };
    slot(0).fails_for(CAUGHT);
    slot(1).passes();
    // It had lost its lock before.
    let forced = leftover(300, 600).fault(Kind::EvictForced, Target::Key("a"), 290, 295);
    forced.passes();
    // The client of the pool stood in the queue when the job's session was ended.
    let ended = leftover(300, 600).fault(Kind::EndSession, Target::Run(1), 290, 295);
    ended.passes();
    // The session that had ended before was another client's.
    let ended = |at| {
        let tale = Story::default().holds(1, 3000, 4000).holds(2, 2450, 2900);
        let tale = tale.request(1, |request| request.road = Road::Pooler);
        let tale = tale.fault(Kind::EndSession, Target::Pooled, at, at + 1);
        tale.fault(Kind::Leftover, Target::Key("a"), 3300, 3600)
    };
    ended(2000).fails_for(CAUGHT);
    ended(2600).passes();
    let asked = leftover(300, 600).fault(Kind::Evict, Target::Key("a"), 290, 295);
    asked.fails_for(CAUGHT);
    // The server was being stopped, and had ended only the session of the holder; or it was back.
    let restart = |began, ended| {
        let tale = leftover(300, 301).end(1, End::Code(74), LOST);
        tale.fault(Kind::Restart, Target::All, began, ended)
    };
    restart(290, 500).passes();
    restart(250, 295).fails_for(CAUGHT);
}

#[test]
fn an_excuse_counts_for_its_target_and_its_time() {
    let met = |target, began, ended| {
        let tale = overlap().fault(Kind::EndSession, target, began, ended);
        tale.verdict().violations.len()
    };
    assert_eq!(met(Target::Run(1), 400, 401), 0);
    assert_eq!(met(Target::Run(3), 400, 401), 1);
    // After the second job had started.
    assert_eq!(met(Target::Run(1), 600, 601), 1);
    for (target, is_met) in [
        (Target::All, true),
        (Target::Key("a"), true),
        (Target::Key("b"), false),
        (Target::Pooled, false),
    ] {
        assert_eq!(met(target, 400, 401) == 0, is_met, "{target:?}");
    }
    // Long before the first one had the lock: its session is a newer one.
    let late = Story::default().holds(1, 0, 9000).holds(2, 8000, 9500);
    let late = late.job(1, |stay| stay.entered = ms(7900));
    let late = late.fault(Kind::EvictForced, Target::All, 4000, 4500);
    late.fails_for(OVERLAP);
}

#[test]
fn a_job_that_is_not_stopped_in_time_is_caught() {
    let lives_on = |until| {
        let tale = Story::default().holds(1, 0, until).holds(2, 500, until + 500);
        tale.fault(Kind::EndSession, Target::Run(1), 400, 401)
    };
    lives_on(3000).passes();
    lives_on(8000).fails_for(OVERLAP);
    // Its pglock was stopped, and could not stop it before it went on.
    let stopped = lives_on(8000).fault(Kind::StopPglock, Target::Run(1), 300, 3000);
    stopped.passes();
    let stopped = lives_on(12000).fault(Kind::StopPglock, Target::Run(1), 300, 3000);
    stopped.fails_for(OVERLAP);
}

#[test]
fn a_cut_is_an_excuse_only_without_a_pglock() {
    let cut = |kind| {
        let tale = explained_overlap(Kind::Cut).fault(kind, Target::Run(1), 200, 201);
        tale.verdict().violations.len()
    };
    assert_eq!(cut(Kind::StopPglock), 0);
    assert_eq!(cut(Kind::StopJob), 1);
    let killed = explained_overlap(Kind::Cut).fault(Kind::KillPglock, Target::Run(1), 200, 201);
    killed.end(1, End::Signal(9), "").passes();
}
