//! What is expected of pglocks behind the pooler that lends its first client's session.

use super::{GAVE_UP, Kind, LOST, OVERLAP, Road, Story, Target, ms, overlap};
use crate::history::End;

/// Returns a story in which these runs go through the forwarding pooler.
fn forwarded(tale: Story, runs: &[usize]) -> Story {
    runs.iter().fold(tale, |tale, &number| {
        tale.request(number, |request| request.road = Road::Forwarder)
    })
}

#[test]
fn a_session_that_is_lent_twice_is_caught_whatever_happens_to_the_pooler() {
    use Kind::*;
    forwarded(overlap(), &[1, 2]).fails_for(OVERLAP);
    for kind in [KillForwarder, EndForwarded, EndSession] {
        let tale = forwarded(overlap(), &[1, 2]).fault(kind, Target::Forwarded, 400, 401);
        tale.fails_for(OVERLAP);
    }
}

#[test]
fn a_session_that_ended_is_an_excuse_for_those_who_noticed() {
    use Kind::*;
    let lost = |kind, target| {
        let tale = forwarded(overlap(), &[1]).end(1, End::Code(74), LOST);
        let tale = tale.job(1, |stay| stay.left = false);
        tale.fault(kind, target, 400, 401)
    };
    for kind in [KillForwarder, EndForwarded] {
        let verdict = lost(kind, Target::Forwarded).passes().verdict();
        let why = format!("{} behind the forwarding pooler", kind.name());
        assert_eq!(verdict.explained[&why].count, 1, "{kind:?}");
    }
    // An eviction of another holder may end the session, and an eviction of a key that is not ours another session.
    lost(Evict, Target::Key("b")).passes();
    let direct = lost(Evict, Target::Key("b")).request(1, |request| request.road = Road::Direct);
    direct.fails_among_others_for(OVERLAP);
    lost(EndSession, Target::Pooled).fails_among_others_for(OVERLAP);
    // No cable leads there.
    let killed = |target| lost(Cut, target).fault(KillPglock, Target::Run(1), 200, 201);
    killed(Target::Host(0)).fails_among_others_for(OVERLAP);
    // It did not get a reply to the release, and could not notice.
    let silent = forwarded(overlap(), &[1]).run(1, |run| run.ended = ms(2100));
    silent.fault(KillForwarder, Target::Forwarded, 400, 401).passes();
}

#[test]
fn a_session_that_is_lent_to_another_client_seems_silent() {
    let silent = LOST.replace("because", "the server did not respond within 1s");
    let tale = || {
        let tale = Story::default().holds(1, 0, 1000).end(1, End::Code(74), &silent);
        let tale = tale.holds(2, 500, 1500).request(2, |request| request.keys = vec!["b"]);
        tale.job(1, |stay| stay.left = false)
    };
    forwarded(tale(), &[1, 2]).passes();
    forwarded(tale(), &[1]).fails_for("nobody was silent");
    forwarded(tale(), &[2]).fails_for("nobody was silent");
    // Before it began.
    let tale = tale().run(2, |run| (run.began, run.ended) = (ms(1200), ms(1500)));
    let tale = tale.job(2, |stay| stay.entered = ms(1210));
    forwarded(tale, &[1, 2]).fails_for("nobody was silent");
}

#[test]
fn a_lock_that_another_session_answers_for_needs_a_session_that_ended() {
    let other = LOST.replace("because", "the session no longer holds it");
    let tale = |road| {
        let tale = Story::default().holds(1, 0, 1000).end(1, End::Code(74), &other);
        let tale = tale.request(1, |request| request.road = road);
        tale.job(1, |stay| stay.left = false)
    };
    const LOST_BY_OTHERS: &str = "its session had lost the lock";
    tale(Road::Forwarder).fails_for(LOST_BY_OTHERS);
    let ended = |road| tale(road).fault(Kind::EndForwarded, Target::All, 400, 401);
    ended(Road::Forwarder).passes();
    ended(Road::Direct).fails_for(LOST_BY_OTHERS);
}

#[test]
fn a_lock_stays_in_the_session_of_a_client_that_is_gone() {
    const IN_VAIN: &str = "waited in vain";
    // Run 1 is killed and leaves its lock behind; run 3 waits for it from 30 s on, in vain.
    let tale = |road| {
        let tale = Story::default().holds(1, 0, 1000).end(1, End::Signal(9), "");
        let tale = tale.fault(Kind::KillPglock, Target::Run(1), 900, 901);
        let tale = tale.request(1, |request| request.road = road);
        let tale = tale.waits(3, 30_000, 42_000, 75, &GAVE_UP.replace("5s", "12s"));
        tale.request(3, |request| request.wait = Some(12))
    };
    tale(Road::Forwarder).passes();
    tale(Road::Direct).fails_among_others_for(IN_VAIN);
    let ended = tale(Road::Forwarder).fault(Kind::KillForwarder, Target::Forwarded, 25_000, 25_001);
    ended.fails_for(IN_VAIN);
}
