//! PostgreSQL's wire protocol, as far as an adversary and its referee need it.
//!
//! The referee reads what pglock really received, and decides whether a server has thereby granted a lock. It shares no
//! code with pglock or its client library, and is strict: what it does not understand grants nothing.

/// The code of a TLS request, in place of the protocol version.
const TLS_REQUEST: u32 = 80_877_103;

/// Returns whether an untyped message requests TLS.
pub fn is_tls_request(message: &[u8]) -> bool {
    message.len() == 8 && message[4..] == TLS_REQUEST.to_be_bytes()
}

/// Returns a message of this type.
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (body.len() as u32 + 4).to_be_bytes();
    [&[kind], &length[..], body].concat()
}

/// Returns an error or a notice with these fields, each a letter and a text.
pub fn report(kind: u8, fields: &[(u8, &[u8])]) -> Vec<u8> {
    let fields = fields
        .iter()
        .flat_map(|(letter, text)| [&[*letter], *text, &[0]].concat());
    let mut body: Vec<u8> = fields.collect();
    body.push(0);
    message(kind, &body)
}

/// Returns the names of the columns of a row description.
pub fn columns(message: &[u8]) -> Option<Vec<Vec<u8>>> {
    let (count, mut rest) = counted(message, b'T')?;
    let mut names = Vec::new();
    for _ in 0..count {
        let end = rest.iter().position(|byte| *byte == 0)?;
        names.push(rest[..end].to_vec());
        // Table, column, type, its size and modifier, and the format follow the name.
        rest = rest.get(end + 1 + 18..)?;
    }
    rest.is_empty().then_some(names)
}

/// Returns the values of a row.
pub fn values(message: &[u8]) -> Option<Vec<Option<Vec<u8>>>> {
    let (count, mut rest) = counted(message, b'D')?;
    let mut values = Vec::new();
    for _ in 0..count {
        let length = i32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
        rest = &rest[4..];
        values.push(match usize::try_from(length) {
            Ok(length) => {
                let value = rest.get(..length)?.to_vec();
                rest = &rest[length..];
                Some(value)
            }
            Err(_) => None,
        });
    }
    rest.is_empty().then_some(values)
}

/// Returns a row of these values.
pub fn row(values: &[Option<Vec<u8>>]) -> Vec<u8> {
    let mut body = (values.len() as u16).to_be_bytes().to_vec();
    for value in values {
        match value {
            Some(value) => {
                body.extend((value.len() as u32).to_be_bytes());
                body.extend(value);
            }
            None => body.extend((-1i32).to_be_bytes()),
        }
    }
    message(b'D', &body)
}

/// Returns the description of rows with these text columns.
pub fn description(names: &[Vec<u8>]) -> Vec<u8> {
    let mut body = (names.len() as u16).to_be_bytes().to_vec();
    for name in names {
        body.extend(name);
        body.push(0);
        body.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 25, 255, 255, 255, 255, 255, 255, 0, 0]);
    }
    message(b'T', &body)
}

/// Returns the count at the start of a message of this type, and what follows it.
fn counted(message: &[u8], kind: u8) -> Option<(u16, &[u8])> {
    if *message.first()? != kind {
        return None;
    }
    let body = message.get(5..)?;
    let count = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
    Some((count, &body[2..]))
}

/// A complete reply: the rows of the query, each with its columns, and whether there was an error.
struct Reply {
    rows: Vec<Vec<Cell>>,
    has_failed: bool,
}

/// The name of a column, and its value.
type Cell = (Vec<u8>, Option<Vec<u8>>);

impl Reply {
    /// Returns the values in this column, NULL left out, in the order of the rows. As in SQL, the case of its name does
    /// not matter.
    fn values<'a>(&'a self, column: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.rows.iter().filter_map(move |row| {
            let cell = row
                .iter()
                .find(|(name, _)| name.eq_ignore_ascii_case(column.as_bytes()));
            cell?.1.as_deref()
        })
    }

    fn is_true(&self, column: &str) -> bool {
        self.values(column).any(|value| value == b"t")
    }
}

/// Returns the complete replies, up to what cannot be understood. In a message of pglock, SHOW precedes the query, or
/// SHOW, BEGIN and set_config, whose rows say nothing about a lock.
fn replies(mut bytes: &[u8]) -> Vec<Reply> {
    let (mut replies, mut names, mut rows, mut has_failed) = (Vec::new(), Vec::new(), Vec::new(), false);
    let (mut completed, mut preceding) = (0, 1);
    while bytes.len() >= 5 {
        let length = u32::from_be_bytes(bytes[1..5].try_into().unwrap()) as usize;
        if length < 4 || bytes.len() <= length {
            break;
        }
        let (message, rest) = bytes.split_at(length + 1);
        bytes = rest;
        match message[0] {
            b'T' => names = columns(message).unwrap_or_default(),
            b'D' => {
                let Some(values) = values(message).filter(|values| values.len() == names.len()) else {
                    break;
                };
                rows.push((completed, names.iter().cloned().zip(values).collect()));
            }
            // A statement is complete, or was empty.
            b'C' | b'I' => {
                completed += 1;
                if completed == 2 && message.ends_with(b"BEGIN\0") {
                    preceding = 3;
                }
            }
            b'E' => has_failed = true,
            b'Z' => {
                rows.retain(|(statement, _)| *statement >= preceding);
                let rows = rows.drain(..).map(|(_, cells)| cells).collect();
                replies.push(Reply { rows, has_failed });
                (completed, preceding, has_failed) = (0, 1, false);
                names.clear();
            }
            _ => {}
        }
    }
    replies
}

/// Returns whether a server that sends this has granted a lock: one complete reply without an error has its row found,
/// and does not deny it, by a number that is a slot or a count of keys. The first one counts.
pub fn grants(bytes: &[u8]) -> bool {
    let grants = |reply: &Reply| {
        let taken = reply.values("got").next();
        let is_number = |taken: &[u8]| taken.iter().all(u8::is_ascii_digit);
        taken.is_none_or(is_number) && reply.is_true("proven") && !reply.has_failed
    };
    replies(bytes).iter().any(grants)
}

/// Returns whether a server that sends this has recorded a run under the lock: one complete reply without an error has
/// the number of a row for each key.
pub fn records(bytes: &[u8], keys: usize) -> bool {
    let is_number = |value: &&[u8]| std::str::from_utf8(value).is_ok_and(|text| text.parse::<i64>().is_ok());
    let records = |reply: &Reply| {
        let rows = reply.values("run").filter(is_number).count();
        rows == keys && reply.is_true("held") && !reply.has_failed
    };
    replies(bytes).iter().any(records)
}

/// Returns whether a complete reply has a value in this column.
pub fn says(bytes: &[u8], column: &str) -> bool {
    replies(bytes).iter().any(|reply| reply.values(column).next().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(got: &str, proven: Option<&str>) -> Vec<Vec<u8>> {
        let text = |text: &str| text.as_bytes().to_vec();
        vec![
            [message(b'C', b"SHOW\0"), description(&[text("got"), text("proven")])].concat(),
            row(&[Some(text(got)), proven.map(text)]),
            message(b'C', b"SELECT 1\0"),
            message(b'Z', b"I"),
        ]
    }

    /// The referee itself must not be deceived.
    #[test]
    fn a_grant_is_a_complete_reply() {
        let (good, shown) = (reply("1", Some("t")), message(b'C', b"SHOW\0"));
        assert!(grants(&good.concat()));
        for short in 0..good.concat().len() {
            assert!(!grants(&good.concat()[..short]), "{short} bytes");
        }
        let other_case = [shown.clone(), description(&[b"GOT".to_vec(), b"pRoven".to_vec()])].concat();
        assert!(grants(&[&[other_case], &good[1..]].concat().concat()));
        assert!(!grants(&reply("-1", Some("t")).concat()));
        assert!(!grants(&reply("1", None).concat()));
        let error = report(b'E', &[(b'S', b"ERROR"), (b'C', b"57P01"), (b'M', b"x")]);
        let failed = [&good[0], &good[1], &error, &good[3]].map(Vec::as_slice);
        assert!(!grants(&failed.concat()));
        // A row without its description, or with that of another reply.
        assert!(!grants(&good[1..].concat()));
        let later = [&good[0], &good[3], &good[1], &good[3]].map(Vec::as_slice);
        assert!(!grants(&later.concat()));
        // The first row that states what was acquired counts; the proof may be in another.
        let (no, unproven) = (reply("-1", None), reply("1", None));
        let rows = |one: &[u8], other: &[u8]| [&good[0], one, other, &good[3]].concat();
        assert!(grants(&rows(&unproven[1], &good[1])));
        assert!(grants(&rows(&good[1], &no[1])));
        assert!(!grants(&rows(&no[1], &good[1])));
    }

    #[test]
    fn the_statements_before_a_query_grant_nothing_and_deny_nothing() {
        let named = |name: &str, value: &str| {
            let rows = [description(&[name.into()]), row(&[Some(value.into())])];
            [rows.concat(), message(b'C', b"SELECT 1\0")].concat()
        };
        let query = reply("1", Some("t"))[..3]
            .concat()
            .split_off(message(b'C', b"SHOW\0").len());
        let in_open = |shown: Vec<u8>| [shown, query.clone(), message(b'Z', b"T")].concat();
        let in_own = |set: Vec<u8>| {
            let begun = [
                named("transaction_isolation", "read committed"),
                message(b'C', b"BEGIN\0"),
            ];
            [begun.concat(), set, query.clone(), message(b'Z', b"I")].concat()
        };
        assert!(grants(&in_open(named("got", "-1"))) && grants(&in_own(named("got", "pg_catalog, pg_temp"))));
        assert!(grants(&in_own(named("set_config", "pg_catalog, pg_temp"))));
        // The row of the query comes too early.
        assert!(!grants(&in_open(Vec::new())) && !grants(&in_own(Vec::new())));
    }

    #[test]
    fn a_record_has_a_row_for_each_key_and_the_lock() {
        let text = |text: &str| text.as_bytes().to_vec();
        let reply = |held: &str, runs: &[&str]| {
            let runs = runs.iter().flat_map(|run| row(&[Some(text(run))]));
            let runs = [description(&[text("run")]), runs.collect()].concat();
            let held = [description(&[text("held")]), row(&[Some(text(held))])].concat();
            [message(b'C', b"SHOW\0"), runs, held, message(b'Z', b"I")].concat()
        };
        assert!(records(&reply("t", &["7"]), 1) && records(&reply("t", &["7", "8"]), 2));
        for denied in [
            reply("f", &["7"]),
            reply("t", &[]),
            reply("t", &["x"]),
            reply("t", &["7", "8"]),
        ] {
            assert!(!records(&denied, 1), "{denied:?}");
        }
        let good = reply("t", &["7"]);
        assert!(!records(&good[..good.len() - 1], 1));
        assert!(!records(&[report(b'E', &[(b'C', b"57P01")]), good.clone()].concat(), 1));
        assert!(says(&good, "RUN") && !says(&good, "age") && !says(&good[..good.len() - 1], "run"));
    }

    #[test]
    fn rows_read_back() {
        let some = [Some(b"a".to_vec()), None, Some(Vec::new())];
        assert_eq!(values(&row(&some)).unwrap(), some);
        let names = [b"a".to_vec(), b"b".to_vec()];
        assert_eq!(columns(&description(&names)).unwrap(), names);
        assert_eq!(values(&message(b'D', &[0, 1, 0, 0, 0, 9, b'x'])), None);
    }
}
