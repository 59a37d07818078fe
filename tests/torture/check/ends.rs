//! The check of how each pglock ended: its exit status and its message fit what happened to it, and its job had ended
//! before.

use super::{Check, POOLER_RETRY_NS, SECOND_NS, disturbs, ends_sessions, evicts, restarts, silences};
use crate::history::{End, Fault, Run, Stay};
use crate::plan::Kind;
use std::time::Duration;

/// How late a wait may time out if nothing happened to it, on a busy machine.
const LATE_LIMIT_MS: u128 = 5000;

impl Check<'_> {
    /// Checks that the end and the message of each pglock fit what happened to it.
    pub fn ends(&mut self) {
        for (&number, run) in &self.history.runs {
            let stay = self.stays.get(&number).copied();
            let (unrecorded, text) = unrecorded_line(run.stderr.trim_end());
            let (retried, line) = last_line(text);
            let ending = Ending {
                check: self,
                number,
                run,
                stay,
                line,
            };
            let is_retry_right = retried.map_or(Ok(()), |_| ending.has_retried());
            let is_record_right = || unrecorded.map_or(Ok(()), |_| ending.has_failed_to_record());
            if let Err(why) = is_retry_right
                .and_then(|()| is_record_right())
                .and_then(|()| ending.is_right())
                .and_then(|()| ending.is_after_the_job())
            {
                let near: Vec<_> = self.faults.between(run.began, run.ended).collect();
                self.violation(format!(
                    "run {number}: {why}\n  {run:?}\n  {stay:?}\n  faults: {near:?}"
                ));
            }
        }
    }
}

/// Returns the line that says that the wait goes on without a server, if there is one, and the rest.
fn last_line(text: &str) -> (Option<&str>, &str) {
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    let is_retry = first.starts_with("pglock: ")
        && (first.contains("lost the connection while waiting for key") && first.ends_with("; reconnecting")
            || first.contains("; retrying until the wait for key") && first.ends_with(" is over"));
    if is_retry { (Some(first), rest) } else { (None, text) }
}

/// Returns the line that says that the end of the run is not recorded, if there is one at either end, and the rest.
fn unrecorded_line(text: &str) -> (Option<&str>, &str) {
    let is_it = |line: &str| line.starts_with("pglock: could not record how the run on ");
    let (first, rest) = text.split_once('\n').unwrap_or((text, ""));
    if is_it(first) {
        return (Some(first), rest);
    }
    match text.rsplit_once('\n') {
        Some((rest, last)) if is_it(last) => (Some(last), rest),
        _ => (None, text),
    }
}

/// The end of a run, to be judged.
struct Ending<'a> {
    check: &'a Check<'a>,
    number: usize,
    run: &'a Run,
    stay: Option<&'a Stay>,
    line: &'a str,
}

impl Ending<'_> {
    fn is_right(&self) -> Result<(), String> {
        if self.line.lines().count() > 1 {
            return Err("it said more than one line".into());
        }
        let has_left = self.stay.is_some_and(|stay| stay.left);
        match self.run.end {
            End::Hung => Err("it had to end, and did not".into()),
            End::Code(code) if has_left && code == self.run.request.status => {
                self.has_line("")?;
                self.has_kept_its_lock()
            }
            End::Code(74) => self.is_a_loss(),
            End::Code(75) if self.stay.is_none() => self.is_a_conflict(),
            End::Code(69) if self.stay.is_none() => self.is_a_failure(),
            End::Signal(9) => self.was_hit("nobody killed it", |kind| {
                matches!(kind, Kind::KillPglock | Kind::KillJob)
            }),
            End::Signal(15) => self.was_hit("nobody ended it", |kind| {
                matches!(kind, Kind::TermPglock | Kind::TermJob)
            }),
            _ => Err("unexpected exit".into()),
        }
    }

    /// A job that succeeds has had its lock to the end: no session outlives a crash of the server. Only a pglock that
    /// could not be notified may not know.
    fn has_kept_its_lock(&self) -> Result<(), String> {
        let Some(stay) = self.stay else {
            return Ok(());
        };
        let is_late = |fault: &Fault| {
            let echo = if self.run.request.is_pooled() {
                POOLER_RETRY_NS
            } else {
                0
            };
            restarts(fault.kind) && fault.began > stay.entered && fault.ended + echo < stay.last
        };
        let faults = &self.check.faults;
        let crash = faults.find(self.number, self.run, stay.entered, stay.last, is_late);
        match crash {
            Some(crash) if self.was_hit("", silences).is_err() => Err(format!(
                "its lock was lost by a {:?}, and it did not notice",
                crash.kind
            )),
            _ => Ok(()),
        }
    }

    /// The end of a recorded run is not in the table.
    fn has_failed_to_record(&self) -> Result<(), String> {
        if !self.run.request.record {
            return Err("it was not to record anything".into());
        }
        self.was_hit("it had no reason not to record its end", disturbs)
    }

    /// A wait went on without a server.
    fn has_retried(&self) -> Result<(), String> {
        if self.run.request.wait.is_none() {
            return Err("it went on waiting, and was not to wait".into());
        }
        self.was_hit("it had no reason to connect again", disturbs)
    }

    /// The lock was not acquired. A wait ends so only when its time is up, or by an eviction.
    fn is_a_failure(&self) -> Result<(), String> {
        self.has_line("pglock: ")?;
        self.was_hit("the server was there", disturbs)?;
        let Some(seconds) = self.run.request.wait else {
            return Ok(());
        };
        match self.line {
            line if line.contains("evicted ") => self.was_hit("nobody evicted it", evicts),
            _ if self.run.ended - self.run.began >= u128::from(seconds) * SECOND_NS => Ok(()),
            // Documented: it holds the lock, and needs another session for the token or the record.
            line if line.contains("no session of the pool was free") => {
                self.was_hit("the pool had sessions", |kind| silences(kind) || ends_sessions(kind))
            }
            line if line.contains("stopped responding") => self.was_hit("nobody was silent", |kind| {
                silences(kind) || self.run.request.is_pooled() && ends_sessions(kind)
            }),
            _ => Err("the wait ended before its time was up".into()),
        }
    }

    /// The lock was lost, for the reason in the message.
    fn is_a_loss(&self) -> Result<(), String> {
        self.has_line("pglock: lost the lock on key")?;
        if self.line.contains(": evicted by ") {
            self.was_hit("nobody asked for it", |kind| kind == Kind::Evict)?;
        }
        if self.line.contains("(evicted by ") {
            self.was_hit("nobody evicted it", evicts)?;
        }
        // Nothing here releases a lock behind pglock's back, but the forwarding pooler replaces a session that ended.
        if self.line.contains("the session no longer holds it")
            || self.line.contains("instead of the one that holds it")
        {
            if !self.run.request.is_forwarded() {
                return Err("its session had lost the lock".into());
            }
            return self.was_hit("its session had lost the lock", ends_sessions);
        }
        let is_pooled = self.run.request.is_pooled();
        match self.line {
            line if line.contains("did not respond within") => {
                if is_pooled {
                    // A pooler can be silent because its server is gone.
                    self.was_hit("nobody was silent", |kind| silences(kind) || ends_sessions(kind))
                } else {
                    self.was_hit("nobody was silent", silences)
                }
            }
            line if line.contains("administrator command") => self.was_hit("nobody ended the session", ends_sessions),
            _ => self.was_hit("nothing happened to the session", |kind| {
                ends_sessions(kind) || silences(kind)
            }),
        }
    }

    /// Another client held the lock, and the wait lasted as long as requested.
    fn is_a_conflict(&self) -> Result<(), String> {
        self.has_line("pglock: ")?;
        if self.run.was_not_due() {
            return self.is_not_due();
        }
        let Some(seconds) = self.run.request.wait else {
            return self.has_line("; not waiting");
        };
        let waited = humantime::format_duration(Duration::from_secs(seconds));
        self.has_line(&format!("; gave up after {waited}"))?;
        let took = (self.run.ended - self.run.began) / 1_000_000;
        let is_late = took > u128::from(seconds) * 1000 + LATE_LIMIT_MS && self.was_hit("", |_| true).is_err();
        if took < u128::from(seconds) * 1000 || is_late {
            Err(format!("it gave up after {took} ms"))
        } else {
            Ok(())
        }
    }

    /// P102: a job of the key succeeded that started within the interval.
    fn is_not_due(&self) -> Result<(), String> {
        let Some(interval) = self.run.request.once_per else {
            return Err("it was not to look for a success".into());
        };
        self.has_line(&format!("; not again within {interval}s"))?;
        let from = self.run.began.saturating_sub(u128::from(interval) * SECOND_NS);
        let is_of_key = |stay: &Stay| {
            let other = self.check.run(stay.run);
            other.is_some_and(|other| other.request.keys == self.run.request.keys)
        };
        let is_it =
            |stay: &Stay| (from..self.run.ended).contains(&stay.entered) && stay.status == Some(0) && is_of_key(stay);
        if self.check.history.stays.iter().any(is_it) {
            return Ok(());
        }
        Err("no job of the key had succeeded within the interval".into())
    }

    /// Nothing of the job lives when its pglock has ended, unless pglock was killed.
    fn is_after_the_job(&self) -> Result<(), String> {
        let outlived = self.stay.map_or(0, |stay| stay.last.saturating_sub(self.run.ended));
        match (outlived, self.run.end) {
            (0, _) | (_, End::Hung) => Ok(()),
            (_, End::Signal(9)) => self.was_hit("the job lived on", |kind| kind == Kind::KillPglock),
            _ => Err(format!("the job lived on for {} ms", outlived / 1_000_000)),
        }
    }

    /// The message contains this text; the empty text means that there is none.
    fn has_line(&self, text: &str) -> Result<(), String> {
        if self.line.contains(text) && text.is_empty() == self.line.is_empty() {
            Ok(())
        } else {
            Err(format!("it does not say {text:?}"))
        }
    }

    fn was_hit(&self, otherwise: &str, is: impl Fn(Kind) -> bool) -> Result<(), String> {
        // A session that is lent to another client is like one whose backend is stopped.
        let is_like_lent = is(Kind::StopBackend);
        let is = |fault: &Fault| is(fault.kind);
        let (from, until) = (self.run.began, self.run.ended);
        let found = self.check.faults.find(self.number, self.run, from, until, is);
        let was_lent = || self.check.was_lent_to_others(self.number, self.run);
        if found.is_some() || is_like_lent && was_lent() {
            Ok(())
        } else {
            Err(otherwise.to_owned())
        }
    }
}
