//! What `pglock check` found out, as lines for people and as JSON for programs.

use crate::lock::Scope;
use serde::Serialize;
use std::fmt;

/// How good or bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// Nothing needs to be done.
    Ok,
    /// `run` works, but not as well as it could.
    Warning,
    /// `run` would refuse to run.
    Refusal,
}

/// One thing that was found out. The fields are those of the JSON, in its order.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    fact: String,
    level: Level,
    remedy: Option<String>,
    subject: &'static str,
}

impl Finding {
    /// Makes a finding that needs no action.
    pub(super) fn ok(subject: &'static str, fact: impl Into<String>) -> Finding {
        Finding {
            fact: fact.into(),
            level: Level::Ok,
            remedy: None,
            subject,
        }
    }

    /// Makes a finding of something that could be better.
    pub(super) fn warning(subject: &'static str, fact: impl Into<String>) -> Finding {
        Finding {
            level: Level::Warning,
            ..Finding::ok(subject, fact)
        }
    }

    /// Makes a finding that `run` would refuse to run.
    pub(super) fn refusal(subject: &'static str, fact: impl Into<String>) -> Finding {
        Finding {
            level: Level::Refusal,
            ..Finding::ok(subject, fact)
        }
    }

    /// Adds what to do about it.
    pub(super) fn with_remedy(self, remedy: impl Into<String>) -> Finding {
        Finding {
            remedy: Some(remedy.into()),
            ..self
        }
    }
}

/// All findings. The JSON is a stable interface but for the texts of `fact` and `remedy`: see `docs/protocol.md`. Its
/// fields are in alphabetical order, so that the output of two versions can be compared.
#[derive(Debug, Serialize)]
pub(super) struct CheckReport {
    findings: Vec<Finding>,
    fit: bool,
    scope: Option<&'static str>,
}

impl CheckReport {
    /// Makes a report of these findings and of the scope that `run` would use, if there is one.
    pub(super) fn new(findings: Vec<Finding>, scope: Option<Scope>) -> CheckReport {
        CheckReport {
            fit: findings.iter().all(|finding| finding.level != Level::Refusal),
            findings,
            scope: scope.map(Scope::name),
        }
    }

    /// Returns whether `run` would run.
    pub(super) fn is_fit(&self) -> bool {
        self.fit
    }

    /// Returns the report as a JSON object.
    ///
    /// # Errors
    /// None: strings, booleans and nulls can always be serialized.
    pub(super) fn to_json(&self) -> Result<String, serde_json::Error> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Ok => "ok",
            Level::Warning => "warning",
            Level::Refusal => "refusal",
        }
    }
}

/// A line for each finding, without the control characters that a server may have put into it.
impl fmt::Display for CheckReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in &self.findings {
            let mut line = format!("{:<8} {}: {}", finding.level.name(), finding.subject, finding.fact);
            if let Some(remedy) = &finding.remedy {
                line += "; ";
                line += remedy;
            }
            writeln!(f, "{}", line.replace(char::is_control, " "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::document;
    use serde_json::json;

    fn report() -> CheckReport {
        let findings = vec![
            Finding::ok("recovery", "a primary"),
            Finding::warning("TLS", "none").with_remedy("sslmode=require encrypts"),
            Finding::refusal("lock", "\"quoted\"\n\u{1}\u{9375}/"),
        ];
        CheckReport::new(findings, Some(Scope::Session))
    }

    #[test]
    fn the_documented_json_is_true() {
        let findings = vec![
            Finding::ok("recovery", "a primary"),
            Finding::warning("TLS", "none")
                .with_remedy("sslmode=require encrypts, sslmode=verify-full also authenticates the server"),
        ];
        let json = CheckReport::new(findings, Some(Scope::Session))
            .to_json()
            .expect("no error");
        assert_eq!(json, document::code_block("### Example of pglock check --json"));
        let rows = document::rows("## pglock check --json");
        let documented: Vec<&str> = rows.iter().map(|row| row[0].as_str()).collect();
        assert_eq!(
            documented,
            ["findings", "fit", "scope", "fact", "level", "remedy", "subject"]
        );
    }

    #[test]
    fn the_report_is_a_line_for_each_finding() {
        let expected = "ok       recovery: a primary\n\
                        warning  TLS: none; sslmode=require encrypts\n\
                        refusal  lock: \"quoted\"  \u{9375}/\n";
        assert_eq!(report().to_string(), expected);
    }

    /// What earlier versions printed: a `Value`, whose keys are in alphabetical order.
    #[test]
    fn the_json_is_what_it_always_was() {
        let before = json!({
            "fit": false,
            "scope": "session",
            "findings": [
                {"level": "ok", "subject": "recovery", "fact": "a primary", "remedy": null},
                {"level": "warning", "subject": "TLS", "fact": "none", "remedy": "sslmode=require encrypts"},
                {"level": "refusal", "subject": "lock", "fact": "\"quoted\"\n\u{1}\u{9375}/", "remedy": null},
            ],
        });
        assert_eq!(report().to_json().expect("no error"), format!("{before:#}\n"));
        let fit = CheckReport::new(Vec::new(), None);
        let before = json!({"fit": true, "scope": null, "findings": []});
        assert_eq!(fit.to_json().expect("no error"), format!("{before:#}\n"));
        assert!(fit.is_fit() && !report().is_fit());
    }
}
