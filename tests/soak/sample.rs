//! What the pglocks use, and whether it grew.

use super::crowd::{Crowd, Role};
use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::time::Duration;

/// By how much the median of the private memory of a role may grow from the second cycle to the last, and that of a
/// single pglock.
const MEDIAN_GROWTH_KB: i64 = 128;
const GROWTH_KB: i64 = 256;

/// What a pglock uses.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    role: Role,
    /// The cycle in which it was started.
    since: u32,
    memory_kb: i64,
    descriptors: i64,
    threads: i64,
}

/// What each pglock uses at one time, by its process ID.
pub struct Sample {
    uses: BTreeMap<u32, Use>,
    connections: usize,
}

/// A cycle, from one restart of the server to the next.
pub struct Cycle {
    pub number: u32,
    pub restart: &'static str,
    pub settling: Duration,
    pub settled: Sample,
    pub end: Sample,
}

/// What has grown by how much, and what of it by too much.
#[derive(Default)]
pub struct Growth {
    pub lines: Vec<String>,
    pub excesses: Vec<String>,
}

impl Sample {
    pub fn take(crowd: &mut Crowd) -> Sample {
        let uses = crowd.members().iter().map(|member| {
            let pid = member.pid();
            (pid, Use::read(pid, member.role, member.since))
        });
        Sample {
            uses: uses.collect(),
            connections: crowd.connections(),
        }
    }

    /// Returns these numbers of the pglocks with a role, in ascending order.
    fn numbers(&self, role: Option<Role>, number: fn(&Use) -> i64) -> Vec<i64> {
        let uses = self
            .uses
            .values()
            .filter(|used| role.is_none_or(|role| used.role == role));
        let mut numbers: Vec<i64> = uses.map(number).collect();
        numbers.sort_unstable();
        numbers
    }
}

impl Use {
    fn read(pid: u32, role: Role, since: u32) -> Use {
        let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
        let sum = |text: &str, name: &str| -> i64 {
            let lines = text.lines().filter(|line| line.starts_with(name));
            lines
                .map(|line| line.split_whitespace().nth(1).unwrap().parse::<i64>().unwrap())
                .sum()
        };
        Use {
            role,
            since,
            memory_kb: sum(&read("smaps_rollup"), "Private_"),
            descriptors: fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as i64,
            threads: sum(&read("status"), "Threads:"),
        }
    }
}

fn median(sorted: &[i64]) -> i64 {
    sorted[sorted.len() / 2]
}

/// Returns the median and the greatest.
fn range(sorted: &[i64]) -> String {
    format!("{}, {}", median(sorted), sorted[sorted.len() - 1])
}

/// The heading of a table of cycles.
pub const HEADER: &str = "\
    | cycle | restart | settled after | private memory: sum | of a holder: median, most | of a waiter | of a veteran \
    | descriptors: sum, of one: median, most | threads | connections |\n\
    |---|---|---|---|---|---|---|---|---|---|";

/// The row of a cycle: what was used at its end.
impl fmt::Display for Cycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sample = &self.end;
        let sum: i64 = sample.numbers(None, |used| used.memory_kb).iter().sum();
        let memory = |role| range(&sample.numbers(Some(role), |used| used.memory_kb));
        let descriptors = sample.numbers(None, |used| used.descriptors);
        let threads = sample.numbers(None, |used| used.threads);
        write!(
            f,
            "| {} | {} | {:.0} s | {sum} kB | {} kB | {} kB | {} kB | {}, {} | {}, {} | {} |",
            self.number,
            self.restart,
            self.settling.as_secs_f64(),
            memory(Role::Holder),
            memory(Role::Waiter),
            memory(Role::Veteran),
            descriptors.iter().sum::<i64>(),
            range(&descriptors),
            threads.iter().sum::<i64>(),
            range(&threads),
            sample.connections
        )
    }
}

/// Returns a table of what the pglocks use at the end, by the number of restarts that they have survived.
pub fn by_age(cycles: &[Cycle]) -> String {
    let last = cycles.last().unwrap();
    let mut groups: BTreeMap<(Role, u32), Vec<Use>> = BTreeMap::new();
    for used in last.end.uses.values() {
        let restarts = last.number - used.since;
        groups.entry((used.role, restarts)).or_default().push(*used);
    }
    let header = "| role | restarts | pglocks | private memory: median, most | descriptors | threads |\n\
                  |---|---|---|---|---|---|";
    let rows = groups.into_iter().map(|((role, restarts), uses)| {
        let numbers = |number: fn(&Use) -> i64| {
            let mut numbers: Vec<i64> = uses.iter().map(number).collect();
            numbers.sort_unstable();
            range(&numbers)
        };
        let (memory, descriptors) = (numbers(|used| used.memory_kb), numbers(|used| used.descriptors));
        let threads = numbers(|used| used.threads);
        let count = uses.len();
        format!("| {role:?} | {restarts} | {count} | {memory} kB | {descriptors} | {threads} |").to_lowercase()
    });
    [header.to_owned()]
        .into_iter()
        .chain(rows)
        .collect::<Vec<_>>()
        .join("\n")
}

/// Compares the ends of the second cycle and the last, and of each cycle its settled crowd with its end.
pub fn growth(cycles: &[Cycle]) -> Growth {
    let (second, last) = (&cycles[1], cycles.last().unwrap());
    let mut growth = Growth::default();
    for role in [Role::Holder, Role::Waiter, Role::Veteran] {
        let name = format!("{role:?}").to_lowercase();
        let numbers = |number| {
            (
                second.end.numbers(Some(role), number),
                last.end.numbers(Some(role), number),
            )
        };
        let (before, after) = numbers(|used| used.memory_kb);
        let grown = median(&after) - median(&before);
        growth.add(
            &format!("median of the private memory of a {name}, in kB"),
            grown,
            MEDIAN_GROWTH_KB,
        );
        for (what, number) in [
            ("descriptors", (|used| used.descriptors) as fn(&Use) -> i64),
            ("threads", |used| used.threads),
        ] {
            let (before, after) = numbers(number);
            growth.add(
                &format!("most {what} of a {name}"),
                after[after.len() - 1] - before[before.len() - 1],
                0,
            );
        }
    }
    let pairs = cycles[1..].iter().map(|cycle| (&cycle.settled, &cycle.end));
    for (before, after) in pairs.chain([(&second.end, &last.end)]) {
        growth.of_each(before, after);
    }
    let connections = last.end.connections as i64 - second.end.connections as i64;
    growth.add("connections", connections, 0);
    growth
}

impl Growth {
    fn add(&mut self, what: &str, grown: i64, limit: i64) {
        let line = format!("{what}: {grown:+} (may grow by {limit})");
        if grown > limit {
            self.excesses.push(line.clone());
        }
        self.lines.push(line);
    }

    /// Compares the use of the pglocks that were there both times, and had the same role.
    fn of_each(&mut self, before: &Sample, after: &Sample) {
        let pairs = before
            .uses
            .iter()
            .filter_map(|(pid, used)| Some((used, after.uses.get(pid)?)));
        let pairs: Vec<_> = pairs.filter(|(before, after)| before.role == after.role).collect();
        let most = |number: fn(&Use) -> i64| pairs.iter().map(|(before, after)| number(after) - number(before)).max();
        let of = format!("of one of {} pglocks", pairs.len());
        self.add(
            &format!("private memory {of}, in kB"),
            most(|used| used.memory_kb).unwrap(),
            GROWTH_KB,
        );
        self.add(&format!("descriptors {of}"), most(|used| used.descriptors).unwrap(), 0);
        self.add(&format!("threads {of}"), most(|used| used.threads).unwrap(), 0);
    }
}
