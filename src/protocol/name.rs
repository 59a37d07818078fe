//! The `application_name` of every session that pglock opens: how it is composed, and what others read from it.
//!
//! PostgreSQL shows it to every role, unlike the query, the times and the client address of another role's session.
//! That is why a `pglock run` names its keys, host and process there.
//!
//! PostgreSQL keeps 63 bytes and mangles what is not ASCII, so a long front is cut, and what is not printable ASCII
//! becomes `?`. A long host name loses its middle: Kubernetes puts what differs at its end, EC2 at its front. So do
//! quotes and backslashes, because the name is written into SQL. The random characters and the process ID at the end
//! are never cut: they make the name unique. Host and process ID alone do not: two containers may be called the same
//! and both have process 1. By this name a session is recognized as one that began with us (see
//! [`Server::pooled`](crate::lock::Server::pooled)), so two processes must never share one.

use super::derived_keys::MAX_SLOTS;
use crate::key::Key;
use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;

/// The maximum length of an `application_name` in PostgreSQL, `NAMEDATALEN` - 1.
const MAX_NAME_LEN: usize = 63;

/// What is kept of the user in the name of a `pglock evict`.
const MAX_USER_LEN: usize = 20;

/// What is kept of the host, if there is room for it.
const MAX_HOST_LEN: usize = 32;

/// Stands for what was cut out of the middle of a host name. No host name contains it.
const HOST_ELLIPSIS: &str = "..";

/// Some poolers append this and the client's address (PgBouncer and Odyssey with `application_name_add_host`).
const ADDRESS_SEPARATOR: &str = " - ";

/// What is kept of the front, at the cost of the host: `pglock:`, by which others recognize the name, and a character.
const MIN_FRONT_LEN: usize = RUN_PREFIX.len() + 1;

/// Stands for a character that PostgreSQL or SQL would change.
const UNPRINTABLE: char = '?';

/// Separates the host and the random characters. No host name contains it.
const INSTANCE_SEPARATOR: char = '~';

/// The number of random characters.
const INSTANCE_LEN: usize = 6;

/// The random characters are of these.
const INSTANCE_ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

/// The front of the name of a `pglock run`; its keys follow.
pub(crate) const RUN_PREFIX: &str = "pglock:";

/// The front of the name of a `pglock evict`; user, host and process follow.
const EVICT_PREFIX: &str = "pglock evict ";

/// Returns the name of a session that holds or waits for these keys. A name that the user configured takes the place of
/// the keys; slots, host and process ID still follow it.
pub(crate) fn for_run(configured: Option<&str>, keys: &[Key], slots: Option<u16>) -> String {
    let keys: Vec<&str> = keys.iter().map(Key::given).collect();
    let front = format!("{RUN_PREFIX}{}", keys.join(","));
    of_this_instance(configured.unwrap_or(&front), slots)
}

/// Returns the name of a `pglock list`.
pub(crate) fn for_list() -> String {
    of_this_process("pglock list")
}

/// Returns the name of a `pglock init`.
pub(crate) fn for_init() -> String {
    of_this_process("pglock init")
}

/// Returns the name of a `pglock history`.
pub(crate) fn for_history() -> String {
    of_this_process("pglock history")
}

/// Returns the name of a `pglock check`, with the number of its key if it is given. A name that the user configured
/// replaces both.
pub(crate) fn for_check(configured: Option<&str>, random: Option<u64>) -> String {
    let random = random.map_or_else(String::new, |random| format!(" {random:016x}"));
    of_this_instance(configured.unwrap_or(&format!("pglock check{random}")), None)
}

/// Returns the name of a `pglock evict`, from which the evicted pglock learns who evicted it. See [`evictor`].
pub(crate) fn for_evict() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    compose_evictor(user.map(|user| user.name).as_deref(), &host(), std::process::id())
}

/// Returns user, host and process ID, if this is the name of a `pglock evict`.
pub(crate) fn evictor(application_name: &str) -> Option<&str> {
    without_address(application_name).strip_prefix(EVICT_PREFIX)
}

/// What the `application_name` of a `pglock run` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RunName<'a> {
    /// The keys as they were given, joined by commas, cut if they are long.
    pub keys: &'a str,
    /// The number of slots that it was given.
    pub slots: Option<u16>,
    /// Everything in front of the host: the keys and ` slots=N`, unless that is the end of a key.
    front: &'a str,
    /// The host it runs on.
    pub host: &'a str,
    /// The random characters that tell it from other processes with this host name and process ID; `None` for a version
    /// of pglock that had none.
    pub instance: Option<&'a str>,
    /// Its process ID there.
    pub pid: u32,
}

impl<'a> RunName<'a> {
    /// Parses a name; `None` if it is not that of a `pglock run`. Any client can choose such a name, so nothing in it
    /// can be relied upon.
    pub(crate) fn parse(application_name: &'a str) -> Option<RunName<'a>> {
        let name = without_address(application_name);
        let (front, tail) = name.strip_prefix(RUN_PREFIX)?.rsplit_once(' ')?;
        let (host, instance, pid) = split_process(tail)?;
        let is_possible = |slots: &u16| (1..=MAX_SLOTS).contains(slots);
        let with_slots = front.rsplit_once(" slots=");
        let with_slots = with_slots.and_then(|(keys, count)| Some((keys, count.parse().ok().filter(is_possible)?)));
        let (keys, slots) = with_slots.map_or((front, None), |(keys, slots)| (keys, Some(slots)));
        Some(RunName {
            keys,
            slots,
            front,
            host,
            instance,
            pid,
        })
    }

    /// Returns what its keys may be, joined by commas: a key can end in what looks like a number of slots.
    pub(crate) fn key_lists(self) -> impl Iterator<Item = &'a str> {
        std::iter::once(self.keys).chain(self.slots.map(|_| self.front))
    }

    /// Returns whether its keys are as they were given. They may have been cut, and a question mark stands for each
    /// character that a name cannot show.
    pub(crate) fn shows_keys_as_given(self, application_name: &str) -> bool {
        !is_cut(application_name) && !self.keys.contains(UNPRINTABLE)
    }
}

/// Returns what tells this process from all others in the names of its sessions: `INSTANCE:PID`.
pub(crate) fn instance_id() -> String {
    format!("{}:{}", instance(), std::process::id())
}

/// Returns whether a session belongs to the process with this [`instance_id`].
pub(crate) fn is_of_instance(application_name: &str, instance_id: &str) -> bool {
    let name = without_address(application_name).rsplit_once(INSTANCE_SEPARATOR);
    name.is_some_and(|(_, tail)| tail == instance_id)
}

/// Returns whether a name ends as those of all sessions that are recognized by their names, ` HOST~INSTANCE:PID`: one
/// that the user configured takes the place of what is in front of it.
pub(crate) fn is_of_any_instance(application_name: &str) -> bool {
    let tail = without_address(application_name).rsplit_once(' ');
    tail.and_then(|(_, tail)| split_process(tail))
        .is_some_and(|(_, instance, _)| instance.is_some())
}

/// Splits what follows the last space of a name into the host, the random characters if there are any, and the process
/// ID; `None` if it is something else.
fn split_process(tail: &str) -> Option<(&str, Option<&str>, u32)> {
    let (host, pid) = tail.rsplit_once(':')?;
    let (host, instance) = match host.rsplit_once(INSTANCE_SEPARATOR) {
        Some((host, instance)) if is_instance(instance) => (host, Some(instance)),
        _ => (host, None),
    };
    Some((host, instance, pid.parse().ok()?))
}

/// Returns the name without the address that a pooler appended, of which PostgreSQL may have cut off the end.
fn without_address(application_name: &str) -> &str {
    let mut ends = application_name.match_indices(':').filter_map(|(colon, _)| {
        let digits = application_name[colon + 1..].bytes().take_while(u8::is_ascii_digit);
        let end = colon + 1 + digits.count();
        let (name, rest) = application_name.split_at(end);
        let is_address =
            rest.starts_with(ADDRESS_SEPARATOR) && !rest[ADDRESS_SEPARATOR.len()..].contains([' ', INSTANCE_SEPARATOR]);
        let is_cut_address = is_cut(application_name) && ADDRESS_SEPARATOR.starts_with(rest);
        let is_process = name.as_bytes()[colon..].len() > 1 && name[..colon].contains(' ');
        (is_process && (is_address || is_cut_address)).then_some(name)
    });
    ends.next().unwrap_or(application_name)
}

/// Returns whether the front of a name may have been cut.
pub(crate) fn is_cut(application_name: &str) -> bool {
    application_name.len() >= MAX_NAME_LEN
}

/// Returns the name of a session that is recognized by its name.
fn of_this_instance(front: &str, slots: Option<u16>) -> String {
    compose(front, slots, &host(), Some(instance()), std::process::id())
}

/// Returns the random characters of this process.
fn instance() -> &'static str {
    static INSTANCE: OnceLock<String> = OnceLock::new();
    INSTANCE.get_or_init(random_instance)
}

fn of_this_process(front: &str) -> String {
    compose(front, None, &host(), None, std::process::id())
}

/// Returns the name of this host.
pub(crate) fn host() -> String {
    let host = nix::unistd::gethostname().unwrap_or_default();
    host.to_string_lossy().into_owned()
}

/// Returns random characters. Their seed is the operating system's: a clock would be the same in two virtual machines
/// that were resumed from one image.
fn random_instance() -> String {
    let mut random = fastrand::Rng::with_seed(RandomState::new().hash_one(std::process::id()));
    let random_char = |_| char::from(INSTANCE_ALPHABET[random.usize(..INSTANCE_ALPHABET.len())]);
    (0..INSTANCE_LEN).map(random_char).collect()
}

fn is_instance(text: &str) -> bool {
    text.len() == INSTANCE_LEN && text.bytes().all(|byte| INSTANCE_ALPHABET.contains(&byte))
}

fn compose(front: &str, slots: Option<u16>, host: &str, instance: Option<&str>, pid: u32) -> String {
    let slots = slots.map_or_else(String::new, |count| format!(" slots={count}"));
    let instance = instance.map_or_else(String::new, |instance| format!("{INSTANCE_SEPARATOR}{instance}"));
    let end = format!("{instance}:{pid}");
    let host_room = MAX_NAME_LEN - MIN_FRONT_LEN - slots.len() - " ".len() - end.len();
    let host = plain_ascii(host, usize::MAX).replace(' ', "?");
    let host = without_middle(&host, MAX_HOST_LEN.min(host_room));
    let tail = format!("{slots} {host}{end}");
    format!("{}{tail}", plain_ascii(front, MAX_NAME_LEN - tail.len()))
}

fn compose_evictor(user: Option<&str>, host: &str, pid: u32) -> String {
    let plain = |text: &str| plain_ascii(text, usize::MAX).replace(' ', "?");
    let user = user.map_or_else(String::new, |user| {
        format!("{}@", without_middle(&plain(user), MAX_USER_LEN))
    });
    let end = format!(":{pid}");
    let host_room = MAX_NAME_LEN - EVICT_PREFIX.len() - user.len() - end.len();
    format!("{EVICT_PREFIX}{user}{}{end}", without_middle(&plain(host), host_room))
}

/// Returns an ASCII text, of which the middle is left out if it is longer than `max_len`.
fn without_middle(text: &str, max_len: usize) -> String {
    if text.len() <= max_len {
        return text.to_owned();
    }
    let kept_len = max_len - HOST_ELLIPSIS.len();
    let start = &text[..kept_len / 2];
    let end = &text[text.len() - (kept_len - start.len())..];
    format!("{start}{HOST_ELLIPSIS}{end}")
}

/// Returns the first characters of a text, with [`UNPRINTABLE`] for those that PostgreSQL or SQL would change.
fn plain_ascii(text: &str, max_len: usize) -> String {
    let is_kept = |c: char| (c == ' ' || c.is_ascii_graphic()) && !matches!(c, '\'' | '"' | '\\');
    let plain = text.chars().map(|c| if is_kept(c) { c } else { UNPRINTABLE });
    plain.take(max_len).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::document;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    /// The golden vectors: never change one.
    #[test]
    fn a_name_is_63_bytes_of_ascii_with_the_random_part_and_the_pid_whole() {
        let of_run = |front, slots| compose(front, slots, "web1", Some("k3x9qa"), 77);
        assert_eq!(of_run("pglock:backup", None), "pglock:backup web1~k3x9qa:77");
        assert_eq!(of_run("pglock:backup", Some(3)), "pglock:backup slots=3 web1~k3x9qa:77");
        assert_eq!(
            of_run("pglock:schl\u{fc}ssel 'x'\n", None),
            "pglock:schl?ssel ?x?? web1~k3x9qa:77"
        );
        assert_eq!(compose("pglock list", None, "web1", None, 77), "pglock list web1:77");
        let host = "billing-reports-nightly-28391340-1";
        let of_host = |slots| compose(&"k".repeat(100), slots, host, Some("k3x9qa"), u32::MAX);
        let long = of_host(None);
        assert_eq!(long.len(), 63);
        assert!(
            long.ends_with(" billing-reports..htly-28391340-1~k3x9qa:4294967295"),
            "{long}"
        );
        let longest = of_host(Some(1000));
        let expected = format!(
            "{} slots=1000 billing-rep..y-28391340-1~k3x9qa:4294967295",
            "k".repeat(8)
        );
        assert_eq!(longest, expected);
    }

    #[test]
    fn the_documented_examples_are_true() {
        let rows = document::rows("### Examples of application_name");
        assert_eq!(rows.len(), 7);
        for row in rows {
            let [keys, slots, host, instance, pid, expected] = &row[..] else {
                panic!("{row:?}");
            };
            let slots = (!slots.is_empty()).then(|| slots.parse().expect("a number"));
            let instance = (!instance.is_empty()).then_some(instance.as_str());
            let pid = pid.parse().expect("a number");
            let name = compose(&format!("{RUN_PREFIX}{keys}"), slots, host, instance, pid);
            assert_eq!(&name, expected);
            let run = RunName::parse(expected).expect("the name of a run");
            assert_eq!(
                (run.slots, run.host, run.instance, run.pid),
                (slots, without_middle(host, MAX_HOST_LEN).as_str(), instance, pid)
            );
        }
    }

    #[test]
    fn each_command_names_its_sessions() {
        let key = |given| Key::parse(given).expect("a key");
        let (host, pid) = (host(), std::process::id());
        // All sessions of a process have the same random part.
        let named = for_run(None, &[key("a")], None);
        let instance = RunName::parse(&named)
            .and_then(|run| run.instance)
            .expect("a random part");
        let is_named = |name: String, front: &str| {
            assert_eq!(name, compose(front, None, &host, Some(instance), pid));
        };
        is_named(for_run(None, &[key("a b"), key("42")], None), "pglock:a b,42");
        is_named(for_run(Some("nightly"), &[key("a")], Some(3)), "nightly slots=3");
        is_named(for_check(None, None), "pglock check");
        is_named(for_check(None, Some(255)), "pglock check 00000000000000ff");
        is_named(for_check(Some("mine"), Some(255)), "mine");
        assert_eq!(for_list(), compose("pglock list", None, &host, None, pid));
        assert!(is_of_any_instance(&for_run(Some("nightly"), &[key("a")], Some(3))));
        assert!(
            ["psql", "nightly web1:77", &for_list()]
                .iter()
                .all(|name| !is_of_any_instance(name))
        );
    }

    /// By it, pglock tells its own session from that of another process with its host name and process ID.
    #[test]
    fn the_random_part_differs_each_time() {
        let instances: BTreeSet<String> = (0..1000).map(|_| random_instance()).collect();
        assert!(instances.len() > 990 && instances.iter().all(|instance| is_instance(instance)));
    }

    #[test]
    fn the_evictor_is_read_from_its_name() {
        assert!(for_evict().starts_with("pglock evict "));
        assert_eq!(evictor("pglock evict ann@web1:77"), Some("ann@web1:77"));
        assert_eq!(
            evictor("pglock evict ann@web1:77 - 10.0.0.1:57760"),
            Some("ann@web1:77")
        );
        assert_eq!(evictor("pglock evicted web1:77"), None);
        assert_eq!(RunName::parse(&for_evict()), None);
        // By the whole name, pglock recognizes its own session.
        let long = compose_evictor(
            Some("bjørn"),
            "ip-172-31-255-255.eu-central-1.compute.internal",
            u32::MAX,
        );
        let expected = "bj?rn@ip-172-31-255-2..compute.internal:4294967295";
        assert_eq!((evictor(&long), long.len()), (Some(expected), MAX_NAME_LEN));
        let longest = compose_evictor(Some(&"u".repeat(32)), &"h".repeat(64), u32::MAX);
        assert_eq!(longest.len(), MAX_NAME_LEN);
    }

    #[test]
    fn keys_slots_host_and_pid_are_read_from_a_name() {
        let run = |keys, slots, host, instance, pid| Some((keys, slots, host, instance, pid));
        let parts = |run: RunName<'static>| (run.keys, run.slots, run.host, run.instance, run.pid);
        for (name, expected) in [
            (
                "pglock:a b web1~k3x9qa:77",
                run("a b", None, "web1", Some("k3x9qa"), 77),
            ),
            (
                "pglock:a,b slots=3 ::1~000000:7",
                run("a,b", Some(3), "::1", Some("000000"), 7),
            ),
            // A key that ends like a number of slots.
            ("pglock:a slots=0 web1:77", run("a slots=0", None, "web1", None, 77)),
            (
                "pglock:a slots=3 slots=2 web1:77",
                run("a slots=3", Some(2), "web1", None, 77),
            ),
            // Of a version that had no random part, and of none.
            ("pglock:a b web1:77", run("a b", None, "web1", None, 77)),
            ("pglock:a web1~K3X9QA:77", run("a", None, "web1~K3X9QA", None, 77)),
            ("pglock:a web1~k3x9q:77", run("a", None, "web1~k3x9q", None, 77)),
            // A key that ends like an address.
            (
                "pglock:a b:7 - web1~k3x9qa:77",
                run("a b:7 -", None, "web1", Some("k3x9qa"), 77),
            ),
            // A pooler has appended the client's address, and PostgreSQL may have cut it off.
            (
                "pglock:a slots=3 web1~k3x9qa:77 - 127.0.0.1:57760",
                run("a", Some(3), "web1", Some("k3x9qa"), 77),
            ),
            (
                "pglock:a - b web1~k3x9qa:77 - [::1]:57760",
                run("a - b", None, "web1", Some("k3x9qa"), 77),
            ),
            (
                "pglock:a web1~k3x9qa:77 - unix:6432",
                run("a", None, "web1", Some("k3x9qa"), 77),
            ),
            (
                "pglock:a-key-that-is-long billing-reports..28391340-1~k3x9q:1 -",
                run("a-key-that-is-long", None, "billing-reports..28391340-1~k3x9q", None, 1),
            ),
            ("pglock:a b web1:77 - 10.0.0.1:5", run("a b", None, "web1", None, 77)),
            ("pglock list web1:77", None),
            ("pglock:half", None),
            ("psql", None),
        ] {
            assert_eq!(RunName::parse(name).map(parts), expected, "{name}");
        }
    }

    /// Any client can call itself anything; a key and a host can be called anything too.
    #[test]
    fn fuzz_application_name() {
        let examples = [
            "pglock:a b slots=3 web1~k3x9qa:77 - 127.0.0.1:57760",
            "pglock:a - b web1~k3x9qa:77 - [::1]:57760",
            "pglock:a-key-that-is-long billing-reports..28391340-1~k3x9q:1 -",
            "pglock evict ann@web1:77 - 10.0.0.1:57760",
            "nightly slots=1000\0billing-reports-nightly-28391340-1",
        ];
        crate::fuzz::fuzz(&examples, |input| {
            let text = String::from_utf8_lossy(input);
            if let Some(run) = RunName::parse(&text) {
                assert!(run.slots.is_none_or(|slots| (1..=MAX_SLOTS).contains(&slots)));
                assert!(text.contains(run.keys) && text.contains(run.host));
            }
            assert!(evictor(&text).is_none_or(|evictor| text.contains(evictor)));
            let (key, host) = text.split_once('\0').unwrap_or((&text, "web1"));
            let name = compose(&format!("{RUN_PREFIX}{key}"), None, host, Some("k3x9qa"), 77);
            assert!(name.len() <= MAX_NAME_LEN && name.bytes().all(|byte| (b' '..=b'~').contains(&byte)));
            let run = RunName::parse(&name).expect("the name of a run");
            assert_eq!((run.instance, run.pid), (Some("k3x9qa"), 77));
        });
    }

    proptest! {
        /// Whatever the key and the host are called, others read from the name who it is.
        #[test]
        fn a_name_reads_back(
            key in "\\PC{0,70}", host in "[a-z0-9-]{1,40}", slots in prop::option::of(1..=MAX_SLOTS),
            instance in "[a-z0-9]{6}", pid: u32, address in "(127[.]0[.]0[.]1|\\[::1\\]|unix):[0-9]{1,5}",
        ) {
            let name = compose(&format!("{RUN_PREFIX}{key}"), slots, &host, Some(&instance), pid);
            prop_assert!(name.len() <= 63 && name.bytes().all(|b| (b' '..=b'~').contains(&b)), "{name:?}");
            prop_assert!(!name.contains(['\'', '"', '\\']), "{name:?}");
            let run = RunName::parse(&name).expect("the name of a run");
            prop_assert_eq!((run.instance, run.pid), (Some(instance.as_str()), pid));
            let (start, end) = run.host.split_once(HOST_ELLIPSIS).unwrap_or((run.host, ""));
            prop_assert!(host.starts_with(start) && host.ends_with(end) && run.host.len() >= host.len().min(25), "{name:?}");
            // What a pooler appends changes nothing, wherever PostgreSQL cuts it off.
            let extended = format!("{name} - {address}");
            prop_assert_eq!(RunName::parse(&extended[..extended.len().min(MAX_NAME_LEN.max(name.len()))]), Some(run));
            if !key.contains("slots=") {
                prop_assert_eq!(run.slots, slots);
            }
        }

        /// Any client can call itself anything.
        #[test]
        fn no_name_panics(name in "(pglock:)?\\PC{0,40}( slots=[0-9]{0,6})?( \\PC{0,10}(~[a-z0-9]{5,7})?:[0-9]{0,11})?") {
            if let Some(run) = RunName::parse(&name) {
                prop_assert!(run.slots.is_none_or(|slots| (1..=MAX_SLOTS).contains(&slots)));
            }
            let _ = evictor(&name);
        }
    }
}
