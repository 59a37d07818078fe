//! What the relay does to a message of the server.
//!
//! A real message goes in; the steps that come out replace it.

use super::random::Random;
use super::wire::{self, columns, description, message, report, row, values};
use std::time::Duration;

/// A step on the connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Sends these bytes.
    Send(Vec<u8>),
    /// Sends these after the next message.
    Later(Vec<u8>),
    /// Sends nothing for this time.
    Pause(Duration),
    /// Closes the connection.
    Close,
    /// Keeps the connection open, and sends nothing more.
    Stall,
    /// Sends everything byte by byte from now on.
    Dribble,
    /// Sends this again and again, until pglock hangs up.
    Endless(Endless),
}

/// What is sent without end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endless {
    Notices,
    Parameters,
    Notifications,
    Rows,
    Completions,
    /// A single message that never ends.
    OneMessage,
    Zeros,
}

impl Endless {
    pub const ALL: [Endless; 7] = [
        Endless::Notices,
        Endless::Parameters,
        Endless::Notifications,
        Endless::Rows,
        Endless::Completions,
        Endless::OneMessage,
        Endless::Zeros,
    ];

    /// Returns chunk number `n`, some kilobytes.
    pub fn chunk(self, n: u64) -> Vec<u8> {
        let many =
            |message: &dyn Fn(u64) -> Vec<u8>| -> Vec<u8> { (0..500).flat_map(|m| message(n * 500 + m)).collect() };
        match self {
            Endless::Notices => many(&|_| message(b'N', b"SN\0C00000\0Mx\0\0")),
            Endless::Parameters => many(&|n| message(b'S', format!("p{n}\0v\0").as_bytes())),
            Endless::Notifications => many(&|_| message(b'A', b"\0\0\0\0c\0p\0")),
            Endless::Rows if n == 0 => message(b'T', &[0, 0]),
            Endless::Rows => many(&|_| message(b'D', &[0, 0])),
            Endless::Completions => many(&|_| message(b'C', b"SELECT 1\0")),
            Endless::OneMessage if n == 0 => vec![b'D', 0x7f, 0xff, 0xff, 0xff, 0, 1],
            Endless::OneMessage => vec![b'x'; 16_384],
            Endless::Zeros => vec![0; 16_384],
        }
    }
}

/// The kinds of mutation, as a summary shows them.
pub const KINDS: [&str; 17] = [
    "bits flipped",
    "cut short, then closed",
    "cut short",
    "wrong length",
    "another type",
    "repeated",
    "dropped",
    "in another order",
    "garbage around it",
    "an unexpected message in front",
    "closed",
    "delayed",
    "no more",
    "byte by byte",
    "without end",
    "another value",
    "an earlier one again",
];

/// A mutation of one message.
#[derive(Clone, Debug)]
pub struct Mutation {
    /// The index in [`KINDS`].
    pub kind: usize,
    pub random: Random,
}

impl Mutation {
    /// Closes the connection in place of the message.
    pub const CLOSE: Mutation = Mutation {
        kind: 10,
        random: Random::ZERO,
    };

    pub fn draw(random: &mut Random) -> Mutation {
        Mutation {
            // Other values, which test pglock more than its client library, are more frequent.
            kind: match random.below(4) {
                0 => 15,
                _ => random.below(KINDS.len()),
            },
            random: Random::from_seed(random.number()),
        }
    }

    /// Returns the steps in place of this message; `history` is what was sent before it.
    pub fn steps(&self, original: &[u8], history: &[Vec<u8>]) -> Vec<Step> {
        let random = &mut self.random.clone();
        let send = |bytes: Vec<u8>| vec![Step::Send(bytes)];
        match self.kind {
            0 => send(flipped(original, random)),
            1 | 2 => {
                let cut = original[..random.below(original.len())].to_vec();
                match self.kind {
                    1 => vec![Step::Send(cut), Step::Close],
                    _ => send(cut),
                }
            }
            3 => send(with_length(original, random)),
            4 => {
                let mut changed = original.to_vec();
                changed[0] = match random.below(2) {
                    0 => random.byte(),
                    _ => random.one_of(b"123ACDEGHIKNRSTWZcdnst"),
                };
                send(changed)
            }
            5 => send(original.repeat(2 + random.below(3))),
            6 => Vec::new(),
            7 => vec![Step::Later(original.to_vec())],
            8 => {
                let (before, after) = (random.below(40), random.below(40));
                send([&random.bytes(before), original, &random.bytes(after)[..]].concat())
            }
            9 => send([unexpected_message(random), original.to_vec()].concat()),
            10 => vec![Step::Close],
            11 => {
                let pause = random.one_of(&[20, 150, 500, 900]);
                vec![Step::Pause(Duration::from_millis(pause)), Step::Send(original.to_vec())]
            }
            12 => vec![Step::Stall],
            13 => vec![Step::Dribble, Step::Send(original.to_vec())],
            14 => {
                vec![Step::Endless(random.one_of(&Endless::ALL))]
            }
            15 => send(revalued(original, random)),
            _ if history.is_empty() => send(original.to_vec()),
            _ => {
                let earlier = &history[random.below(history.len())];
                let instead = random.below(2) == 0;
                let kept: &[u8] = if instead { &[] } else { original };
                send([earlier, kept].concat())
            }
        }
    }

    /// Returns the steps in place of bytes that cannot be understood, as those under TLS.
    pub fn steps_of_bytes(&self, original: &[u8]) -> Vec<Step> {
        let kind = match self.kind {
            // These need a message.
            3 | 4 | 7 | 9 | 15 | 16 => 0,
            kind => kind,
        };
        Mutation {
            kind,
            random: self.random.clone(),
        }
        .steps(original, &[])
    }
}

fn flipped(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    for _ in 0..1 + random.below(3) {
        let at = random.below(bytes.len());
        bytes[at] ^= 1 << random.below(8);
    }
    bytes
}

fn with_length(original: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = original.to_vec();
    if bytes.len() < 5 {
        return bytes;
    }
    let real = bytes.len() as u32 - 1;
    let lengths = [
        0,
        3,
        4,
        5,
        real - 1,
        real + 1,
        real + 100,
        1 << 20,
        0x7fff_ffff,
        0x8000_0000,
        u32::MAX,
        random.number() as u32,
    ];
    bytes[1..5].copy_from_slice(&random.one_of(&lengths).to_be_bytes());
    bytes
}

const VALUES: [&[u8]; 29] = [
    b"",
    b"t",
    b"f",
    b"0",
    b"1",
    b"2",
    b"-1",
    b"7",
    b"99",
    b"65535",
    b"4294967295",
    b"99999999999999999999",
    b"-9223372036854775808",
    b"1e308",
    b"-1e300",
    b"1e15",
    b"300000000000",
    b"NaN",
    b"inf",
    b"-inf",
    b"got",
    b"cancelled",
    b"\xff\xfe",
    b"\x1b]0;owned\x07\x1b[2J\r\npglock: a lie\n",
    b"pglock:a,b,c,d,e,f,g,h slots=65535 h:1",
    b"/* pglock holds 1.2.3 job x */",
    b"/* pglock guards limit -1e300 job x note %1B%5B2J%0Apglock: a lie */",
    b"Runs recorded by pglock: version 99, kept for 18446744073709551615 s",
    b"running",
];

/// Replaces a value of a row, the name of a column, or a field of an error.
fn revalued(original: &[u8], random: &mut Random) -> Vec<u8> {
    let long = vec![b'9'; 100_000];
    let value: Option<Vec<u8>> = match random.below(12) {
        0 => None,
        1 => Some(long),
        _ => Some(random.one_of(&VALUES).to_vec()),
    };
    match original[0] {
        b'D' => {
            let Some(mut found) = values(original).filter(|found| !found.is_empty()) else {
                return original.to_vec();
            };
            let at = random.below(found.len());
            found[at] = value;
            row(&found)
        }
        b'T' => {
            let Some(mut names) = columns(original).filter(|names| !names.is_empty()) else {
                return original.to_vec();
            };
            let (one, two) = (random.below(names.len()), random.below(names.len()));
            match random.below(3) {
                0 => names.swap(one, two),
                1 => names[one] = names[two].clone(),
                _ => names[one] = value.unwrap_or_default().into_iter().filter(|b| *b != 0).collect(),
            }
            description(&names)
        }
        b'Z' => message(b'Z', &[random.one_of(b"ITE\0x")]),
        b'R' => {
            let kind = random.one_of(&[0u32, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, u32::MAX]);
            let more = random.below(20);
            message(b'R', &[&kind.to_be_bytes()[..], &random.bytes(more)].concat())
        }
        _ => error(random),
    }
}

/// Returns an error with odd fields.
fn error(random: &mut Random) -> Vec<u8> {
    let codes: [&[u8]; 12] = [
        b"",
        b"4",
        b"42",
        b"\xc3\xa9",
        b"4\xc3\xa9",
        b"42501",
        b"57P01",
        b"57P03",
        b"28P01",
        b"3D000",
        b"0A000",
        b"08P01",
    ];
    let code = random.one_of(&codes);
    let text = random.one_of(&VALUES);
    let mut fields: Vec<(u8, &[u8])> = vec![(b'S', b"FATAL"), (b'C', code), (b'M', text)];
    match random.below(6) {
        0 => drop(fields.remove(random.below(3))),
        1 => fields.push((b'P', text)),
        2 => fields.push((random.byte().max(1), text)),
        _ => {}
    }
    report(b'E', &fields)
}

/// Returns a well-formed message that does not belong there.
fn unexpected_message(random: &mut Random) -> Vec<u8> {
    match random.below(18) {
        0 => report(b'N', &[(b'S', b"N"), (b'C', b"00000"), (b'M', random.one_of(&VALUES))]),
        1 => report(b'N', &[]),
        2 => message(b'S', b"server_version\0nonsense\0"),
        3 => message(b'S', b"no end"),
        4 => message(b'A', b"\0\0\0\0c\0p\0"),
        5 => message(b'G', &[0, 0, 0]),
        6 => message(b'H', &[0, 0, 0]),
        7 => message(b'Z', b"I"),
        8 => message(b'D', &[0, 1, 0, 0, 0, 1, b't']),
        9 => wire::description(&[b"got".to_vec(), b"proven".to_vec()]),
        10 => message(
            b'C',
            random.one_of(&[&b"SELECT 99999999999999999999\0"[..], b"\0", b"x"]),
        ),
        11 => message(b'I', b""),
        12 => message(b'R', &random.one_of(&[0u32, 3, 5, 7, 10, 11, 12]).to_be_bytes()),
        13 => message(b'K', &random.bytes(8)),
        14 => message(b'v', &[0, 3, 0, 0, 0, 0, 0, 0]),
        15 => message(b'c', b""),
        16 => message(b'd', b"data"),
        _ => error(random),
    }
}
