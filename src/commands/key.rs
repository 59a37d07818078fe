//! `pglock key`: which number a key stands for, or which SQL computes it. No server is asked.
//!
//! A script that reads one number gets it or a failure. The table of all schemes is for people, and says in words what
//! cannot be known here.

use crate::cli::{KeyFormat, KeyQuery};
use crate::key::hash::{Subject, TABLE};
use crate::key::{Key, KeyId, Number};
use crate::outcome::{ExitCode, Failure, Outcome};
use crate::ui::stdout;

/// Prints the numbers of the keys.
///
/// # Errors
/// As for [`lines`], or standard output cannot be written.
pub fn run(query: &KeyQuery) -> Result<Outcome, Failure> {
    stdout::print(&lines(query)?).map(|_| Outcome::Success)
}

/// The answer, as lines.
///
/// # Errors
/// A number is asked for that only a server can tell, or a database is given that does not matter.
fn lines(question: &KeyQuery) -> Result<String, Failure> {
    match question {
        KeyQuery::Keys { keys, answer } => {
            let lines = keys.iter().map(|key| line(key, answer));
            lines.map(|line| Ok(line? + "\n")).collect()
        }
        KeyQuery::AllSchemes { name, answer } => Ok(table(name, answer)),
    }
}

fn line(key: &Key, answer: &KeyFormat) -> Result<String, Failure> {
    let KeyFormat::Number { database } = answer else {
        return Ok(key.sql());
    };
    let unknown = |words: String| Err(Failure::say(ExitCode::Usage, words));
    match (key.number(), database) {
        (Number::Known(id), None) => Ok(id.to_string()),
        (Number::Known(_), Some(_)) => unknown(format!(
            "--dbname is without use: key {key} does not depend on the database"
        )),
        (Number::Computed(_), _) => match id_in(key, database.as_deref()) {
            Some(id) => Ok(id.to_string()),
            None => unknown(format!(
                "the number of key {key} cannot be known here: it is {}",
                who_knows(key)
            )),
        },
    }
}

fn table(name: &Key, answer: &KeyFormat) -> String {
    let width = TABLE.iter().map(|row| row.name.len()).max().unwrap_or_default();
    let lines = TABLE.iter().map(|row| {
        let key = match row.subject {
            Subject::Name => name.clone().hashed_by(row.scheme),
            Subject::Database | Subject::Nothing => Key::of_tool(row.scheme),
        };
        let said = match answer {
            KeyFormat::Sql => key.sql(),
            KeyFormat::Number { database } => match id_in(&key, database.as_deref()) {
                Some(id) => id.to_string(),
                None => who_knows(&key),
            },
        };
        format!("{:<width$}  {said}\n", row.name)
    });
    lines.collect()
}

fn id_in(key: &Key, database: Option<&str>) -> Option<KeyId> {
    match (key.number(), database) {
        (Number::Known(id), _) => Some(id),
        (Number::Computed(_), Some(database)) => key.id_in(database),
        (Number::Computed(_), None) => None,
    }
}

/// Where the number is to be had that is not known here.
fn who_knows(key: &Key) -> String {
    match key.name() {
        Some(_) => format!("computed by the server: {}", key.sql()),
        None => "made of the name of the database: give --dbname NAME".into(),
    }
}
