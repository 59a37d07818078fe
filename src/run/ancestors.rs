//! The pglocks in whose jobs this one runs. It cannot wait for a lock that one of them holds until its job exits.
//!
//! Each pglock adds itself to a variable in the environment of its job. The variable only helps to recognize a holder
//! that the server shows: if it is stale, it matches no session.

use crate::inspect::backend::Backend;
use crate::protocol::name;
use std::collections::VecDeque;

/// The variable: each ancestor's [`name::instance_id`], with commas between them.
pub(crate) const VARIABLE: &str = "PGLOCK_ANCESTORS";

/// The most ancestors that are passed on, so that jobs that start themselves cannot fill the environment.
const MAX_ANCESTORS: usize = 100;

/// Returns the value of [`VARIABLE`] for the job of this pglock.
pub(crate) fn of_job() -> String {
    let mut ancestors = VecDeque::from(of_this_process());
    ancestors.push_back(name::instance_id());
    while ancestors.len() > MAX_ANCESTORS {
        ancestors.pop_front();
    }
    Vec::from(ancestors).join(",")
}

/// Returns the ancestors of this pglock, the outermost first.
pub(crate) fn of_this_process() -> Vec<String> {
    let value = std::env::var(VARIABLE).unwrap_or_default();
    let ancestors = value.split(',').filter(|ancestor| !ancestor.is_empty());
    ancestors.map(str::to_owned).collect()
}

/// Returns whether one of these ancestors holds the lock that this session holds.
pub(crate) fn is_one_of(holder: &Backend, ancestors: &[String]) -> bool {
    // A lock that was left behind in a pool's session is not that of the client that the session is named after.
    if holder.is_own || holder.is_rolled_back {
        return false;
    }
    ancestors
        .iter()
        .any(|ancestor| name::is_of_instance(&holder.application_name, ancestor))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ancestor_is_recognized_whatever_its_session_is_called() {
        let ancestors = ["k3x9qa:77".to_owned()];
        let is_ancestor = |name| is_one_of(&Backend::named(name), &ancestors);
        assert!(is_ancestor("pglock:backup web1~k3x9qa:77") && is_ancestor("nightly slots=3 web1~k3x9qa:77"));
        for other in [
            "pglock:backup web1~k3x9qa:78",
            "pglock:backup web1~k3x9qb:77",
            "pglock:a web1:77",
            "psql",
            "",
        ] {
            assert!(!is_ancestor(other), "{other}");
        }
        let rolled_back = Backend {
            is_rolled_back: true,
            ..Backend::named("pglock:backup web1~k3x9qa:77")
        };
        assert!(!is_one_of(&rolled_back, &ancestors));
    }
}
