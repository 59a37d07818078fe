//! What a message says of itself: a comment in front, which the server shows in `pg_stat_activity.query`.
//!
//! It tells whoever looks (`pglock list`, or a database administrator) which program the job is, how long the lock has
//! been held, and that a session between two tries still waits. The server keeps none of this by itself. Only the
//! program is named, never its arguments, which could hold a secret.

use std::ffi::OsStr;
use std::sync::OnceLock;
use std::time::Duration;

/// What a comment of ours begins with.
pub const QUERY_TAG_PREFIX: &str = "/* pglock ";

/// The longest name of a program. The server keeps 1024 bytes of a message by default.
const MAX_PROGRAM_LEN: usize = 100;

/// As much of a message as any note takes.
pub const MAX_QUERY_TAG_LEN: usize = 200;

static JOB: OnceLock<String> = OnceLock::new();

/// Names the program of the job, once, before the first message. Without, no message says anything of itself.
pub fn name_job(program: &OsStr) {
    // A second call would be a fault in supervise, and changes nothing.
    let _ = JOB.set(plain(&program.to_string_lossy()));
}

/// What there is to say besides the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueryTag {
    /// Nothing.
    Plain,
    /// We wait in the server's queue for so long, and then come back.
    Waits(Duration),
    /// We wait, and will ask again within this time.
    Asks(Duration),
    /// We have held the lock for this long.
    Holds(Duration),
}

impl QueryTag {
    /// The message with its note.
    pub fn on(self, sql: &str) -> String {
        match JOB.get() {
            Some(job) => format!("{}{sql}", self.comment(job)),
            None => sql.to_owned(),
        }
    }

    fn comment(self, job: &str) -> String {
        let state = match self {
            QueryTag::Plain => String::new(),
            QueryTag::Waits(slice) => format!("waits {:.3} ", slice.as_secs_f64()),
            QueryTag::Asks(rest) => format!("asks {:.3} ", rest.as_secs_f64()),
            QueryTag::Holds(time) => format!("holds {:.3} ", time.as_secs_f64()),
        };
        format!("{QUERY_TAG_PREFIX}{state}job {job} */ ")
    }
}

/// What a note tells whoever looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct QueryTagInfo<'a> {
    /// For how many seconds the lock had been held when the message was sent.
    pub holds: Option<f64>,
    /// It waits, and will ask again.
    pub asks: bool,
    /// The program of the job.
    pub job: Option<&'a str>,
}

/// Reads the note of a message that has one, or of a stranger's that looks like it.
pub fn read(message: &str) -> Option<QueryTagInfo<'_>> {
    let text = message.strip_prefix(QUERY_TAG_PREFIX)?;
    let job = text
        .split_once(" */")
        .and_then(|(text, _)| Some(text.split_once("job ")?.1));
    let holds = text.strip_prefix("holds ").and_then(|text| {
        let (seconds, _) = text.split_once(' ')?;
        seconds.parse().ok().filter(|it: &f64| it.is_finite())
    });
    Some(QueryTagInfo {
        holds,
        asks: text.starts_with("asks "),
        job,
    })
}

/// What cannot end the comment, begin another, or be changed on its way.
fn plain(program: &str) -> String {
    let keep = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '*' | '\'' | '"' | '\\');
    let plain = program.chars().map(|c| if keep(c) { c } else { '?' });
    plain.take(MAX_PROGRAM_LEN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_note_names_the_program_and_stays_a_comment() {
        let job = plain("./b\u{e4}ckup */ DROP 'x'\n");
        assert_eq!(job, "./b?ckup ?/ DROP ?x??");
        assert_eq!(QueryTag::Plain.comment(&job), format!("/* pglock job {job} */ "));
        let waits = QueryTag::Waits(Duration::from_millis(900)).comment("sh");
        assert_eq!(waits, "/* pglock waits 0.900 job sh */ ");
        let holds = QueryTag::Holds(Duration::from_secs(125)).comment("sh");
        assert_eq!(holds, "/* pglock holds 125.000 job sh */ ");
        assert_eq!(plain(&"x".repeat(500)).len(), MAX_PROGRAM_LEN);
    }

    #[test]
    fn what_is_no_note_of_ours_tells_little() {
        assert_eq!(read("SELECT 1 /* pglock job x */"), None);
        let nothing = QueryTagInfo {
            holds: None,
            asks: false,
            job: None,
        };
        assert_eq!(read("/* pglock "), Some(nothing));
        assert_eq!(read("/* pglock holds 1.2.3 for ever"), Some(nothing));
        assert_eq!(read("/* pglock holds inf "), Some(nothing));
        // Cut by the server.
        let asks = QueryTagInfo { asks: true, ..nothing };
        assert_eq!(read("/* pglock asks 4.000 job backu"), Some(asks));
    }

    proptest! {
        /// It ends where it should, and has no quotes, whatever the program is called and however long it takes.
        #[test]
        fn a_note_is_one_comment(program in "\\PC{0,120}|[/*' \\\\]{0,20}", time in 0u64..1_000_000_000_000) {
            let time = Duration::from_millis(time);
            for note in [QueryTag::Plain, QueryTag::Waits(time), QueryTag::Asks(time), QueryTag::Holds(time)] {
                let comment = note.comment(&plain(&program));
                prop_assert!(comment.starts_with(QUERY_TAG_PREFIX) && comment.ends_with(" */ "));
                prop_assert_eq!(comment.matches("*/").count(), 1);
                prop_assert_eq!(comment.matches("/*").count(), 1);
                prop_assert!(!comment.contains(['\'', '"', '\\']) && comment.is_ascii(), "{comment:?}");
                prop_assert!(comment.len() <= MAX_QUERY_TAG_LEN);
                let message = format!("{comment}SELECT 1 /* pglock asks 1.000 job other */");
                let job = plain(&program);
                prop_assert_eq!(read(&message), Some(QueryTagInfo {
                    holds: matches!(note, QueryTag::Holds(_)).then(|| time.as_secs_f64()),
                    asks: matches!(note, QueryTag::Asks(_)),
                    job: Some(job.as_str()),
                }));
            }
        }
    }
}
