//! Shrinking a failing plan: less time, fewer faults and fewer workers, for as long as it still fails.
//!
//! What a plan causes also depends on timing, so each smaller one gets several tries; if it passes all of them, what
//! was left out counts as needed. So the result may be larger than necessary. It fails, but not every time.

use super::plan::Plan;

/// How often a smaller plan is tried before it counts as passing.
const TRIES: usize = 3;

/// Returns the smallest failing plan that it finds.
pub fn shrink(plan: Plan, mut fails: impl FnMut(&Plan) -> bool) -> Plan {
    let mut fails = |plan: &Plan| (0..TRIES).any(|_| fails(plan));
    let mut smallest = plan;
    loop {
        let smaller = candidates(&smallest).into_iter().find(|plan| fails(plan));
        match smaller {
            Some(plan) => smallest = plan,
            None => return smallest,
        }
    }
}

/// Returns the plans that are one step smaller, the largest step first.
fn candidates(plan: &Plan) -> Vec<Plan> {
    let mut found = Vec::new();
    let mut add = |change: &dyn Fn(&mut Plan)| {
        let mut smaller = plan.clone();
        change(&mut smaller);
        found.extend((smaller != *plan).then_some(smaller));
    };
    add(&|plan| plan.seconds = (plan.seconds / 4).max(10).min(plan.seconds));
    let half = plan.kinds.len() / 2;
    if half > 0 {
        add(&|plan| drop(plan.kinds.drain(..half)));
        add(&|plan| plan.kinds.truncate(half));
    }
    for index in 0..plan.kinds.len() {
        add(&|plan| {
            plan.kinds.remove(index);
        });
    }
    add(&|plan| plan.workers = (plan.workers / 2).max(2).min(plan.workers));
    add(&|plan| plan.nemeses = (plan.nemeses / 2).max(1).min(plan.nemeses));
    add(&|plan| plan.seconds = (plan.seconds / 2).max(5).min(plan.seconds));
    found
}

#[cfg(test)]
mod tests {
    use super::super::plan::Kind;
    use super::*;

    #[test]
    fn what_is_not_needed_is_left_out() {
        let needs = |plan: &Plan| {
            let has = |kind| plan.kinds.contains(&kind);
            has(Kind::Cut) && has(Kind::KillPglock) && plan.workers >= 3 && plan.seconds >= 8
        };
        let small = shrink(Plan::new(5, 600), needs);
        assert_eq!(small.kinds, [Kind::KillPglock, Kind::Cut]);
        assert_eq!((small.seed, small.nemeses), (5, 1));
        assert!(small.workers < 6 && small.seconds < 16, "{small:?}");
    }

    #[test]
    fn what_fails_only_sometimes_is_tried_again() {
        let mut count = 0;
        let every_third = |plan: &Plan| {
            count += 1;
            count % 3 == 0 && plan.kinds.contains(&Kind::Evict)
        };
        assert_eq!(shrink(Plan::new(5, 60), every_third).kinds, [Kind::Evict]);
    }

    #[test]
    fn what_needs_no_fault_has_none() {
        assert!(shrink(Plan::new(5, 60), |_| true).kinds.is_empty());
    }
}
