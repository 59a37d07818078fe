//! The check of the fencing tokens, and of the store that they guard.

use super::Check;
use std::collections::BTreeMap;

impl Check<'_> {
    /// P18: a pglock that started after a token was seen has a newer one, whatever the key.
    pub fn tokens(&mut self) {
        let mut seen: Vec<(u128, &str, usize)> = Vec::new();
        let mut given: Vec<(u128, &str, usize)> = Vec::new();
        for stay in &self.history.stays {
            let Some(run) = self.run(stay.run) else {
                continue;
            };
            match &stay.token {
                Some(token) => {
                    seen.push((stay.entered, token, stay.run));
                    given.push((run.began, token, stay.run));
                }
                None if run.request.token => self.violation(format!("run {} has no token", stay.run)),
                None => {}
            }
        }
        seen.sort();
        given.sort();
        let mut before = seen.iter().peekable();
        let mut newest = ("", 0);
        for (began, token, run) in given {
            while let Some((_, earlier, by)) = before.next_if(|(entered, ..)| *entered < began) {
                newest = newest.max((*earlier, *by));
            }
            if token <= newest.0 {
                self.violation(format!(
                    "run {run} has token {token}, and run {} before it had {}",
                    newest.1, newest.0
                ));
            }
        }
    }

    /// P18: once a newer token has written to the store, an older one cannot.
    pub fn store(&mut self) {
        let mut writes: BTreeMap<&str, Vec<(u128, &str, bool, usize)>> = BTreeMap::new();
        for stay in &self.history.stays {
            let token = stay.token.as_deref().unwrap_or_default();
            for write in &stay.writes {
                let writes_of_key = writes.entry(&write.key).or_default();
                writes_of_key.push((write.at, token, write.accepted, stay.run));
            }
        }
        for (key, mut writes) in writes {
            writes.sort();
            let mut newest = ("", 0);
            for (_, token, is_accepted, run) in writes {
                let is_stale = token < newest.0;
                if is_accepted == is_stale {
                    let word = if is_accepted { "wrote" } else { "was refused" };
                    self.violation(format!(
                        "{key}: run {run} {word} with {token}, where run {} had written with {}",
                        newest.1, newest.0
                    ));
                }
                self.verdict.accepted += usize::from(is_accepted);
                self.verdict.refused += usize::from(!is_accepted);
                if is_accepted {
                    newest = newest.max((token, run));
                }
            }
        }
    }
}
