//! The `application_name` of every session that pglock opens: how it is composed, and what others read from it.
//!
//! PostgreSQL shows it to every role, unlike the query, the times and the client address of another role's session.
//! That is why a `pglock run` names its keys, host and process there.
//!
//! PostgreSQL keeps 63 bytes and mangles what is not ASCII, so a long front is cut, and what is not printable ASCII
//! becomes `?`. So do quotes and backslashes, because the name is written into SQL. Host and process ID at the end are
//! never cut: they make the name unique.

use super::derived_keys::MAX_SLOTS;
use crate::key::Key;

/// `NAMEDATALEN` - 1: what PostgreSQL keeps of an `application_name`.
const MAX_NAME_LEN: usize = 63;

/// What is kept of the host.
const MAX_HOST_LEN: usize = 32;

/// The front of the name of a `pglock run`; its keys follow.
const RUN_PREFIX: &str = "pglock:";

/// The front of the name of a `pglock evict`; user, host and process follow.
const EVICT_PREFIX: &str = "pglock evict ";

/// Returns the name of a session that holds or waits for these keys. A name that the user configured takes the place of
/// the keys; slots, host and process ID follow it all the same.
pub(crate) fn for_run(configured: Option<&str>, keys: &[Key], slots: Option<u16>) -> String {
    let keys: Vec<&str> = keys.iter().map(Key::given).collect();
    let front = format!("{RUN_PREFIX}{}", keys.join(","));
    of_this_process(configured.unwrap_or(&front), slots)
}

/// Returns the name of a `pglock list`.
pub(crate) fn for_list() -> String {
    of_this_process("pglock list", None)
}

/// Returns the name of a `pglock check`, with the number of its key if it is given. A name that the user configured
/// replaces both.
pub(crate) fn for_check(configured: Option<&str>, random: Option<u64>) -> String {
    let random = random.map_or_else(String::new, |random| format!(" {random:016x}"));
    of_this_process(configured.unwrap_or(&format!("pglock check{random}")), None)
}

/// Returns the name of a `pglock evict`: the evicted reads from it which user on which host did it. See [`evictor`].
pub(crate) fn for_evict() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    let user = user.map_or_else(String::new, |user| format!("{}@", user.name));
    format!("{EVICT_PREFIX}{user}{}:{}", host(), std::process::id())
}

/// Returns user, host and process of a `pglock evict`, if the name is one's.
pub(crate) fn evictor(application_name: &str) -> Option<&str> {
    application_name.strip_prefix(EVICT_PREFIX)
}

/// What the `application_name` of a `pglock run` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunName<'a> {
    /// The keys as they were given, joined by commas, cut if they are long.
    pub keys: &'a str,
    /// The number of slots that it was given.
    pub slots: Option<u16>,
    /// The host it runs on.
    pub host: &'a str,
    /// Its process ID there.
    pub pid: u32,
}

impl<'a> RunName<'a> {
    /// Parses a name; `None` if it is not that of a `pglock run`. Any client can choose such a name, so nothing in it
    /// can be relied upon.
    pub(crate) fn parse(application_name: &'a str) -> Option<RunName<'a>> {
        let (front, tail) = application_name.strip_prefix(RUN_PREFIX)?.rsplit_once(' ')?;
        let (host, pid) = tail.rsplit_once(':')?;
        let is_possible = |slots: &u16| (1..=MAX_SLOTS).contains(slots);
        let (keys, slots) = match front.rsplit_once(" slots=") {
            Some((keys, count)) => (keys, count.parse().ok().filter(is_possible)),
            None => (front, None),
        };
        Some(RunName {
            keys,
            slots,
            host,
            pid: pid.parse().ok()?,
        })
    }
}

fn of_this_process(front: &str, slots: Option<u16>) -> String {
    compose(front, slots, &host(), std::process::id())
}

fn host() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    host.to_string_lossy().into_owned()
}

fn compose(front: &str, slots: Option<u16>, host: &str, pid: u32) -> String {
    let slots = slots.map_or_else(String::new, |count| format!(" slots={count}"));
    let tail = format!("{slots} {}:{pid}", plain_ascii(host, MAX_HOST_LEN).replace(' ', "?"));
    format!("{}{tail}", plain_ascii(front, MAX_NAME_LEN - tail.len()))
}

/// Returns the first characters of a text, with `?` for those that PostgreSQL or SQL would change.
fn plain_ascii(text: &str, max_len: usize) -> String {
    let is_kept = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '\'' | '"' | '\\');
    let plain = text.chars().map(|c| if is_kept(c) { c } else { '?' });
    plain.take(max_len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::document;
    use proptest::prelude::*;

    /// The golden vectors: never change one.
    #[test]
    fn a_name_is_63_bytes_of_ascii_with_host_and_pid_whole() {
        assert_eq!(compose("pglock:backup", None, "web1", 77), "pglock:backup web1:77");
        assert_eq!(
            compose("pglock:backup", Some(3), "web1", 77),
            "pglock:backup slots=3 web1:77"
        );
        assert_eq!(
            compose("pglock:schl\u{fc}ssel 'x'\n", None, "web1", 77),
            "pglock:schl?ssel ?x?? web1:77"
        );
        let long = compose(&"k".repeat(100), None, &"h".repeat(64), u32::MAX);
        assert_eq!(long.len(), 63);
        assert!(long.ends_with(&format!(" {}:4294967295", "h".repeat(32))), "{long}");
    }

    #[test]
    fn the_documented_examples_are_true() {
        let rows = document::rows("### Examples of application_name");
        assert_eq!(rows.len(), 5);
        for row in rows {
            let [keys, slots, host, pid, expected] = &row[..] else {
                panic!("{row:?}");
            };
            let slots = (!slots.is_empty()).then(|| slots.parse().expect("a number"));
            let pid = pid.parse().expect("a number");
            let name = compose(&format!("{RUN_PREFIX}{keys}"), slots, host, pid);
            assert_eq!(&name, expected);
            let run = RunName::parse(expected).expect("the name of a run");
            assert_eq!((run.slots, run.host, run.pid), (slots, host.as_str(), pid));
        }
    }

    #[test]
    fn each_command_names_its_sessions() {
        let key = |given| Key::parse(given).expect("a key");
        let tail = format!(
            " {}:{}",
            compose("", None, &host(), 0).trim().trim_end_matches(":0"),
            std::process::id()
        );
        let keys = [key("a b"), key("42")];
        assert_eq!(for_run(None, &keys, None), format!("pglock:a b,42{tail}"));
        assert_eq!(
            for_run(Some("nightly"), &keys, Some(3)),
            format!("nightly slots=3{tail}")
        );
        assert_eq!(for_list(), format!("pglock list{tail}"));
        assert_eq!(for_check(None, None), format!("pglock check{tail}"));
        assert_eq!(
            for_check(None, Some(255)),
            format!("pglock check 00000000000000ff{tail}")
        );
        assert_eq!(for_check(Some("mine"), Some(255)), format!("mine{tail}"));
    }

    #[test]
    fn the_evictor_is_read_from_its_name() {
        assert!(for_evict().starts_with("pglock evict "));
        assert_eq!(evictor("pglock evict ann@web1:77"), Some("ann@web1:77"));
        assert_eq!(evictor("pglock evicted web1:77"), None);
        assert_eq!(RunName::parse(&for_evict()), None);
    }

    #[test]
    fn keys_slots_host_and_pid_are_read_from_a_name() {
        let run = |keys, slots, host, pid| Some(RunName { keys, slots, host, pid });
        assert_eq!(RunName::parse("pglock:a b web1:77"), run("a b", None, "web1", 77));
        assert_eq!(
            RunName::parse("pglock:a,b slots=3 ::1:7"),
            run("a,b", Some(3), "::1", 7)
        );
        assert_eq!(RunName::parse("pglock list web1:77"), None);
        assert_eq!(RunName::parse("pglock:half"), None);
        assert_eq!(RunName::parse("psql"), None);
    }

    proptest! {
        /// Whatever the key and the host are called, others read from the name who it is.
        #[test]
        fn a_name_reads_back(
            key in "\\PC{0,70}", host in "[a-z0-9.-]{1,40}", slots in prop::option::of(1..=MAX_SLOTS), pid: u32,
        ) {
            let name = compose(&format!("{RUN_PREFIX}{key}"), slots, &host, pid);
            prop_assert!(name.len() <= 63 && name.bytes().all(|b| (b' '..=b'~').contains(&b)), "{name:?}");
            prop_assert!(!name.contains(['\'', '"', '\\']), "{name:?}");
            let run = RunName::parse(&name).expect("the name of a run");
            prop_assert_eq!((run.host, run.pid), (&host[..host.len().min(32)], pid));
            if !key.contains("slots=") {
                prop_assert_eq!(run.slots, slots);
            }
        }

        /// Any client can call itself anything.
        #[test]
        fn no_name_panics(name in "(pglock:)?\\PC{0,40}( slots=[0-9]{0,6})?( \\PC{0,10}:[0-9]{0,11})?") {
            if let Some(run) = RunName::parse(&name) {
                prop_assert!(run.slots.is_none_or(|slots| (1..=MAX_SLOTS).contains(&slots)));
            }
            let _ = evictor(&name);
        }
    }
}
