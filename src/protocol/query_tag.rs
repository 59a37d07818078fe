//! The comment in front of every query of a `pglock run`, which the server shows in `pg_stat_activity.query`.
//!
//! It tells `pglock list` and database administrators what the job's program is, how long the lock has been held, that
//! a session between two tries is still waiting, and the user's note. The server itself records none of this. Only the
//! program is named, never its arguments, which may contain secrets.

use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};
use std::ffi::OsStr;
use std::sync::OnceLock;
use std::time::Duration;

/// The beginning of every tag.
pub(crate) const QUERY_TAG_PREFIX: &str = "/* pglock ";

/// The maximum length of the program's name. The server keeps 1024 bytes of a query by default.
const MAX_PROGRAM_LEN: usize = 100;

/// The maximum length of a note, in bytes.
pub(crate) const MAX_NOTE_LEN: usize = 200;

/// An upper bound on the length of a tag: a byte of a note takes up to three.
pub(crate) const MAX_QUERY_TAG_LEN: usize = 200 + NOTE_SEPARATOR.len() + 3 * MAX_NOTE_LEN;

/// Separates the program and the note.
const NOTE_SEPARATOR: &str = " note ";

/// What a note must not contain as it is, besides what is not ASCII: it would end the comment or be changed on the way.
const ENCODED_IN_NOTE: &AsciiSet = &CONTROLS.add(b'%').add(b'*').add(b'\'').add(b'"').add(b'\\');

/// The end of every tag: the job's program, and the note if there is one.
static JOB: OnceLock<String> = OnceLock::new();

/// Sets the job's program and the user's note, once, before the first query. Without it queries have no tag.
pub(crate) fn set_job(program: &OsStr, note: Option<&str>) {
    // A second call would be a bug, and has no effect.
    let _ = JOB.set(job_text(&program.to_string_lossy(), note));
}

/// What a tag says besides the job's program and the note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum QueryTag {
    /// Nothing.
    ProgramOnly,
    /// The session waits in the server's queue for this long, and then queues again.
    Queueing(Duration),
    /// The session waits, and tries again within this time; or it has given up, if that is zero.
    Polling(Duration),
    /// The session has held the lock for this long.
    Holding {
        /// Since it was acquired.
        held_for: Duration,
        /// How long the job may live on after the server last heard from the session.
        job_limit: Duration,
    },
    /// The session lost the lock, and holds it again only until its job is dead.
    Guarding {
        /// How long the job may live on.
        job_limit: Duration,
    },
}

impl QueryTag {
    /// Returns the tag of a query that is sent between two tries, `pause` apart. One that holds nothing then, because
    /// it tries in transactions, says that it polls.
    pub(crate) fn between_tries(in_transaction: bool, pause: Duration) -> QueryTag {
        if in_transaction {
            QueryTag::Polling(pause)
        } else {
            QueryTag::ProgramOnly
        }
    }

    /// Returns the query with the tag in front, or as it is if there is no job.
    pub(crate) fn prepend_to(self, sql: &str) -> String {
        match JOB.get() {
            Some(job) => format!("{}{sql}", self.comment(job)),
            None => sql.to_owned(),
        }
    }

    fn comment(self, job: &str) -> String {
        let state = match self {
            QueryTag::ProgramOnly => String::new(),
            QueryTag::Queueing(slice) => format!("waits {:.3} ", slice.as_secs_f64()),
            QueryTag::Polling(pause) => format!("asks {:.3} ", pause.as_secs_f64()),
            QueryTag::Holding { held_for, job_limit } => {
                format!(
                    "holds {:.3} limit {:.3} ",
                    held_for.as_secs_f64(),
                    job_limit.as_secs_f64()
                )
            }
            QueryTag::Guarding { job_limit } => format!("guards limit {:.3} ", job_limit.as_secs_f64()),
        };
        format!("{QUERY_TAG_PREFIX}{state}job {job} */ ")
    }
}

/// What [`QueryTagInfo::parse`] reads from a tag.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct QueryTagInfo<'a> {
    /// For how many seconds the lock had been held when the query was sent.
    pub held_seconds: Option<f64>,
    /// For how many seconds the job may live on after this query.
    pub job_limit_seconds: Option<f64>,
    /// Within how many seconds the session tries again, if it waits so.
    pub polling_seconds: Option<f64>,
    /// Whether the session waits in the server's queue.
    pub is_queueing: bool,
    /// Whether the session holds the lock only until its job is dead.
    pub is_guard: bool,
    /// The job's program.
    pub program: Option<&'a str>,
    /// The user's note.
    pub note: Option<String>,
}

impl<'a> QueryTagInfo<'a> {
    /// Parses the tag of a query; `None` if it has none. The server may have cut the query, and any client can send a
    /// comment that looks like a tag, so each part is optional.
    pub(crate) fn parse(query: &'a str) -> Option<QueryTagInfo<'a>> {
        let text = query.strip_prefix(QUERY_TAG_PREFIX)?;
        let job = text
            .split_once(" */")
            .and_then(|(text, _)| Some(text.split_once("job ")?.1));
        let (program, note) = match job.and_then(|job| job.split_once(NOTE_SEPARATOR)) {
            Some((program, note)) => (Some(program), decode_note(note)),
            None => (job, None),
        };
        let holding = text.strip_prefix("holds ");
        let after_state = match holding {
            Some(text) => text.split_once(' ').map(|(_, rest)| rest),
            None => text.strip_prefix("guards "),
        };
        Some(QueryTagInfo {
            held_seconds: holding.and_then(leading_seconds),
            job_limit_seconds: after_state
                .and_then(|text| text.strip_prefix("limit "))
                .and_then(leading_seconds),
            polling_seconds: text.strip_prefix("asks ").and_then(leading_seconds),
            is_queueing: text.starts_with("waits "),
            is_guard: text.starts_with("guards "),
            program,
            note,
        })
    }
}

/// Parses the number of seconds at the beginning of a text, up to a space.
fn leading_seconds(text: &str) -> Option<f64> {
    let (seconds, _) = text.split_once(' ')?;
    seconds.parse().ok().filter(|seconds: &f64| seconds.is_finite())
}

/// Returns what a tag says of a job.
fn job_text(program: &str, note: Option<&str>) -> String {
    // What follows the separator is the note.
    let mut program = comment_safe(program).replace(NOTE_SEPARATOR, " note?");
    if program.ends_with(NOTE_SEPARATOR.trim_end()) {
        program.push('?');
    }
    match note {
        Some(note) => format!(
            "{program}{NOTE_SEPARATOR}{}",
            utf8_percent_encode(note, ENCODED_IN_NOTE)
        ),
        None => program,
    }
}

/// Returns the note that a tag contains; `None` if it is none that pglock would send.
fn decode_note(encoded: &str) -> Option<String> {
    let note = percent_decode_str(encoded).decode_utf8().ok()?;
    let is_valid = note.len() <= MAX_NOTE_LEN && !note.chars().any(char::is_control);
    is_valid.then(|| note.into_owned())
}

/// Returns the first characters of a program's name, with `?` for those that could end the comment, begin another, or
/// be changed on the way.
fn comment_safe(program: &str) -> String {
    let is_kept = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '*' | '\'' | '"' | '\\');
    let plain = program.chars().map(|c| if is_kept(c) { c } else { '?' });
    plain.take(MAX_PROGRAM_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::document;
    use proptest::prelude::*;

    /// The golden vectors: never change one.
    #[test]
    fn a_tag_names_the_program_and_stays_a_comment() {
        let program = comment_safe("./b\u{e4}ckup */ DROP 'x'\n");
        assert_eq!(program, "./b?ckup ?/ DROP ?x??");
        let comment = QueryTag::ProgramOnly.comment(&program);
        assert_eq!(comment, format!("/* pglock job {program} */ "));
        let queueing = QueryTag::Queueing(Duration::from_millis(900)).comment("sh");
        assert_eq!(queueing, "/* pglock waits 0.900 job sh */ ");
        let polling = QueryTag::Polling(Duration::from_secs(4)).comment("sh");
        assert_eq!(polling, "/* pglock asks 4.000 job sh */ ");
        let holding = QueryTag::Holding {
            held_for: Duration::from_secs(125),
            job_limit: Duration::from_secs(20),
        };
        assert_eq!(holding.comment("sh"), "/* pglock holds 125.000 limit 20.000 job sh */ ");
        let guarding = QueryTag::Guarding {
            job_limit: Duration::from_secs(20),
        };
        assert_eq!(guarding.comment("sh"), "/* pglock guards limit 20.000 job sh */ ");
        assert_eq!(comment_safe(&"x".repeat(500)).len(), MAX_PROGRAM_LEN);
        let noted = job_text("sh", Some("until 14:00 */ 100% 'gr\u{fc}n'"));
        assert_eq!(noted, "sh note until 14:00 %2A/ 100%25 %27gr%C3%BCn%27");
        assert_eq!(job_text("./a note b", None), "./a note?b");
        assert_eq!(job_text("./a note", Some("b")), "./a note? note b");
    }

    #[test]
    fn the_documented_examples_are_true() {
        let tags = [
            QueryTag::ProgramOnly,
            QueryTag::Queueing(Duration::from_millis(900)),
            QueryTag::Polling(Duration::from_secs(4)),
            QueryTag::Holding {
                held_for: Duration::from_secs(125),
                job_limit: Duration::from_secs(20),
            },
            QueryTag::Guarding {
                job_limit: Duration::from_secs(20),
            },
            QueryTag::ProgramOnly,
        ];
        let rows = document::rows("### Examples of query tags");
        assert_eq!(rows.len(), tags.len());
        for (tag, row) in tags.into_iter().zip(rows) {
            let [_, program, note, expected] = &row[..] else {
                panic!("{row:?}");
            };
            let note = (!note.is_empty()).then_some(note.as_str());
            assert_eq!(&tag.comment(&job_text(program, note)), expected);
        }
    }

    #[test]
    fn a_cut_or_imitated_tag_says_little() {
        assert_eq!(QueryTagInfo::parse("SELECT 1 /* pglock job x */"), None);
        let nothing = QueryTagInfo {
            held_seconds: None,
            job_limit_seconds: None,
            polling_seconds: None,
            is_queueing: false,
            is_guard: false,
            program: None,
            note: None,
        };
        for tag in [
            "/* pglock ",
            "/* pglock holds 1.2.3 seconds",
            "/* pglock holds inf ",
            "/* pglock job x note y",
        ] {
            assert_eq!(QueryTagInfo::parse(tag), Some(nothing.clone()), "{tag}");
        }
        let escape = QueryTagInfo {
            program: Some("x"),
            ..nothing.clone()
        };
        assert_eq!(QueryTagInfo::parse("/* pglock job x note %1B[2J */"), Some(escape));
        // Cut by the server.
        let polling = QueryTagInfo {
            polling_seconds: Some(4.0),
            ..nothing
        };
        assert_eq!(QueryTagInfo::parse("/* pglock asks 4.000 job backu"), Some(polling));
    }

    /// Any client can send anything; the input is a query, and a job and its note, which read back.
    #[test]
    fn fuzz_query_tag() {
        let examples = [
            "/* pglock holds 125.000 limit 20.000 job sh note until 14:00 %2A/ 100%25 %27gr%C3%BCn%27 */ SELECT 1",
            "/* pglock guards limit 20.000 job sh */ ",
            "/* pglock asks 4.000 job backu",
            "/* pglock waits 0.900 job x note %1B[2J */",
            "./b\u{e4}ckup */ note 'x'\0until 14:00, */ 100% gr\u{fc}n",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = String::from_utf8_lossy(input);
            if let Some(info) = QueryTagInfo::parse(&text) {
                let seconds = [info.held_seconds, info.job_limit_seconds, info.polling_seconds];
                assert!(seconds.iter().flatten().all(|seconds| seconds.is_finite()));
                assert!(info.note.is_none_or(|note| !note.contains(char::is_control)));
            }
            let (program, note) = text.split_once('\0').unwrap_or((&text, ""));
            let note = Some(note).filter(|note| {
                !note.is_empty() && decode_note(&utf8_percent_encode(note, ENCODED_IN_NOTE).to_string()).is_some()
            });
            let comment = QueryTag::ProgramOnly.comment(&job_text(program, note));
            assert!(comment.is_ascii() && comment.matches("*/").count() == 1 && !comment.contains(['\'', '"', '\\']));
            let info = QueryTagInfo::parse(&comment).expect("a tag");
            assert_eq!(
                (info.program, info.note.as_deref()),
                (Some(&*job_text(program, None)), note)
            );
        });
    }

    proptest! {
        /// A tag ends where it should, and has no quotes, whatever the program is called and however long it runs.
        #[test]
        fn a_tag_is_one_comment(
            program in "\\PC{0,120}|[/*' \\\\]{0,20}| note (x note ?)?",
            note in prop::option::of("\\PC{1,50}|[/*' \\\\%]{1,20}|x?( note | job )y?"),
            millis in 0u64..1_000_000_000_000,
        ) {
            let time = Duration::from_millis(millis);
            let tags = [
                QueryTag::ProgramOnly, QueryTag::Queueing(time), QueryTag::Polling(time),
                QueryTag::Holding { held_for: time, job_limit: time }, QueryTag::Guarding { job_limit: time },
            ];
            for tag in tags {
                let comment = tag.comment(&job_text(&program, note.as_deref()));
                let program = job_text(&program, None);
                prop_assert!(comment.starts_with(QUERY_TAG_PREFIX) && comment.ends_with(" */ "));
                prop_assert_eq!(comment.matches("*/").count(), 1);
                prop_assert_eq!(comment.matches("/*").count(), 1);
                prop_assert!(!comment.contains(['\'', '"', '\\']) && comment.is_ascii(), "{comment:?}");
                prop_assert!(comment.len() <= MAX_QUERY_TAG_LEN);
                let query = format!("{comment}SELECT 1 /* pglock asks 1.000 job other */");
                prop_assert_eq!(QueryTagInfo::parse(&query), Some(QueryTagInfo {
                    held_seconds: matches!(tag, QueryTag::Holding { .. }).then(|| time.as_secs_f64()),
                    job_limit_seconds: matches!(tag, QueryTag::Holding { .. } | QueryTag::Guarding { .. })
                        .then(|| time.as_secs_f64()),
                    polling_seconds: matches!(tag, QueryTag::Polling(_)).then(|| time.as_secs_f64()),
                    is_queueing: matches!(tag, QueryTag::Queueing(_)),
                    is_guard: matches!(tag, QueryTag::Guarding { .. }),
                    program: Some(program.as_str()),
                    note: note.clone(),
                }));
            }
        }
    }
}
