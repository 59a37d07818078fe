//! The model at its small size, at a larger size with `make model`, and with each fix switched off.

use super::properties::{EVERY_WAIT_ENDURES, NEVER_TWICE};
use super::rules::{Fixes, Rules};
use super::steps::Step;
use super::world::Budget;
use stateright::{Checker, HasDiscoveries, Model};
use std::collections::BTreeMap;
use std::time::Instant;

const NO_FAULTS: Budget = Budget {
    total: 0,
    terminations: 0,
    restarts: 0,
    cuts: 0,
    evictions: 0,
    kills: 0,
    loop_delays: 0,
    thread_delays: 0,
    vanishings: 0,
    loans: 0,
    signals: 0,
};

/// One fault of any kind.
const ANY_FAULT: Budget = Budget {
    total: 1,
    terminations: 1,
    restarts: 1,
    cuts: 1,
    evictions: 1,
    kills: 1,
    loop_delays: 1,
    thread_delays: 1,
    vanishings: 1,
    loans: 1,
    signals: 1,
};

/// Explores all worlds, and returns the steps to those in which a property does not hold.
#[expect(
    clippy::print_stdout,
    reason = "shown with --nocapture: the size, and the steps to a fault"
)]
fn explore(rules: Rules) -> BTreeMap<&'static str, Vec<Step>> {
    let start = Instant::now();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{rules:?}");
    let checker = rules.checker().threads(threads).finish_when(HasDiscoveries::Any);
    let checker = checker.spawn_bfs().join();
    println!(
        "{} worlds, {} steps, depth {}, {:.1?}",
        checker.unique_state_count(),
        checker.state_count(),
        checker.max_depth(),
        start.elapsed()
    );
    let mut found = BTreeMap::new();
    for (property, path) in checker.discoveries() {
        let steps = path.into_actions();
        println!("{property:?} does not hold after {} steps:", steps.len());
        for step in &steps {
            println!("    {step:?}");
        }
        found.insert(property, steps);
    }
    found
}

/// Explores a model with a fix switched off and one fault, or all that the budget says, and asserts that two jobs run
/// at once; and that none do with all fixes.
fn assert_overlap(fixes: Fixes, budget: Budget) {
    let total = budget.total.max(1);
    let rules = Rules {
        fixes,
        ..Rules::new(2, 1, 1, Budget { total, ..budget })
    };
    let found = explore(rules.clone());
    assert!(found.contains_key(NEVER_TWICE), "the model misses the fault: {found:?}");
    let fixed = Rules {
        fixes: Fixes::ALL,
        ..rules
    };
    assert!(explore(fixed).is_empty());
}

#[test]
fn one_fault_breaks_nothing() {
    assert!(explore(Rules::new(2, 1, 1, ANY_FAULT)).is_empty());
    assert!(explore(Rules::new(2, 2, 2, ANY_FAULT)).is_empty());
    assert!(explore(Rules::new(3, 1, 1, ANY_FAULT)).is_empty());
}

/// The sizes are `PGLOCK_MODEL`, each as `pglocks,faults,heartbeat,grace`, in ticks.
#[test]
fn more_faults_break_nothing() {
    let sizes = std::env::var("PGLOCK_MODEL").unwrap_or_else(|_| "2,2,1,1".into());
    for size in sizes.split_whitespace() {
        let numbers: Vec<u8> = size
            .split(',')
            .map(|number| number.parse().expect("a number"))
            .collect();
        let [clients, total, heartbeat, kill_after] = numbers[..] else {
            panic!("PGLOCK_MODEL: {size} is not pglocks,faults,heartbeat,grace");
        };
        let budget = Budget { total, ..ANY_FAULT };
        let rules = Rules::new(clients.into(), heartbeat.into(), kill_after.into(), budget);
        assert!(explore(rules).is_empty());
    }
}

/// In a cut network, the margin covers a loop that is late by two ticks altogether, and no more.
#[test]
fn the_margin_covers_what_is_said() {
    let budget = Budget {
        total: 4,
        cuts: 1,
        loop_delays: 3,
        ..NO_FAULTS
    };
    let rules = Rules::new(2, 1, 1, budget);
    assert_eq!(rules.covered_delay, 2);
    assert!(explore(rules.clone()).is_empty());
    let covered_delay = 3;
    let found = explore(Rules { covered_delay, ..rules });
    assert!(found.contains_key(NEVER_TWICE), "{found:?}");
}

#[test]
fn without_the_guard_a_restart_overlaps() {
    let fixes = Fixes {
        guard_stands: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            restarts: 1,
            ..NO_FAULTS
        },
    );
}

#[test]
fn without_the_newcomers_half_second_a_restart_overlaps() {
    let fixes = Fixes {
        newcomer_waits: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            restarts: 1,
            ..NO_FAULTS
        },
    );
}

#[test]
fn an_eviction_that_does_not_ask_overlaps() {
    let fixes = Fixes {
        eviction_asks: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            evictions: 1,
            ..NO_FAULTS
        },
    );
}

#[test]
fn without_the_look_for_leftovers_a_lent_session_overlaps() {
    let fixes = Fixes {
        leftovers_count: false,
        ..Fixes::ALL
    };
    assert_overlap(fixes, Budget { loans: 1, ..NO_FAULTS });
}

#[test]
fn without_the_proof_a_vanished_lock_overlaps() {
    let fixes = Fixes {
        heartbeat_proves: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            vanishings: 1,
            ..NO_FAULTS
        },
    );
}

/// The evictor has to wait as long as the server would: a network that is cut for less than D delays the reaction of
/// the holder until H + D + G.
#[test]
fn an_evictor_without_a_margin_overlaps() {
    let budget = Budget {
        total: 2,
        evictions: 1,
        cuts: 1,
        ..NO_FAULTS
    };
    let rules = Rules::new(2, 1, 1, budget);
    assert!(explore(rules.clone()).is_empty());
    let eviction_limit = rules.timing.job_limit;
    let found = explore(Rules {
        eviction_limit,
        ..rules
    });
    assert!(found.contains_key(NEVER_TWICE), "{found:?}");
}

/// The holder's network is cut in the restart in which its session ends together with the waiter's, so its guard comes
/// late, or its thread does.
#[test]
fn a_waiter_that_does_not_wait_for_the_old_job_overlaps() {
    let fixes = Fixes {
        waiter_waits: false,
        ..Fixes::ALL
    };
    let restart = Budget {
        total: 2,
        restarts: 1,
        ..NO_FAULTS
    };
    assert_overlap(fixes, Budget { cuts: 1, ..restart });
    assert_overlap(
        fixes,
        Budget {
            thread_delays: 1,
            ..restart
        },
    );
}

/// The server grants the key, and ends the session before the job is started.
#[test]
fn a_waiter_that_does_not_withdraw_ends_its_wait() {
    let fixes = Fixes {
        waiter_withdraws: false,
        ..Fixes::ALL
    };
    let budget = Budget {
        total: 1,
        restarts: 1,
        ..NO_FAULTS
    };
    let rules = Rules::new(2, 1, 1, budget);
    assert!(explore(rules.clone()).is_empty());
    let found = explore(Rules { fixes, ..rules });
    assert!(found.contains_key(EVERY_WAIT_ENDURES), "{found:?}");
}

/// Whoever waits in the server's queue is granted the key before the guard can come: after `pg_terminate_backend`, and
/// in the last moment of a server.
#[test]
fn a_waiter_that_wants_no_receipt_overlaps() {
    let fixes = Fixes {
        waiter_wants_receipt: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            terminations: 1,
            ..NO_FAULTS
        },
    );
    assert_overlap(
        fixes,
        Budget {
            restarts: 1,
            ..NO_FAULTS
        },
    );
}

/// A waiter that gives its loser time is of no use if that one does not claim the key.
#[test]
fn a_guard_that_does_not_claim_its_key_overlaps() {
    let fixes = Fixes {
        guard_claims: false,
        ..Fixes::ALL
    };
    assert_overlap(
        fixes,
        Budget {
            terminations: 1,
            ..NO_FAULTS
        },
    );
}

/// A waiter has to wait as long as the server would: the old job may live until H + D + G, and a loop that is late adds
/// to that.
#[test]
fn a_waiter_without_a_margin_overlaps() {
    let budget = Budget {
        total: 3,
        restarts: 1,
        cuts: 1,
        loop_delays: 1,
        ..NO_FAULTS
    };
    let rules = Rules {
        // The cut keeps the guard away as well.
        longest_restart: 0,
        ..Rules::new(2, 1, 1, budget)
    };
    assert!(explore(rules.clone()).is_empty());
    let old_job_limit = rules.timing.job_limit;
    let found = explore(Rules { old_job_limit, ..rules });
    assert!(found.contains_key(NEVER_TWICE), "{found:?}");
}
