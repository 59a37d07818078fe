//! What a pglock is started with: its options, its road to the server, and its job.

use super::dice::Dice;

/// The keys of the brief workers. More workers contend for more of them.
const KEYS: [&str; 16] = [
    "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p",
];
/// The keys of the patient workers, of which there are more.
pub const LONG_KEYS: [&str; 2] = ["long", "longer"];
/// The key with slots, and their number.
const SLOTS: (&str, u16) = ("slots", 3);
/// The keys that are to succeed once per interval, in seconds. Every run of them asks for it.
const ONCE_PER: [(&str, u64); 4] = [("hourly", 2), ("daily", 2), ("nightly", 3), ("weekly", 3)];

/// How a pglock reaches the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Road {
    #[default]
    Direct,
    /// Through PgBouncer.
    Pooler,
    /// Through a relay that treats messages as PgDog does, and PgBouncer.
    PgDog,
    /// Through HAProxy.
    Proxy,
    /// Through a pooler that lends the session that its first client has opened.
    Forwarder,
}

impl Road {
    /// Returns whether it begins with a Unix socket, on which no cable has an effect.
    pub fn is_local(self) -> bool {
        matches!(self, Road::PgDog | Road::Forwarder)
    }
}

/// The options of a pglock and of its job.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// Milliseconds before it is made.
    pub pause: u64,
    pub keys: Vec<&'static str>,
    pub shared: bool,
    pub slots: Option<u16>,
    pub fair: bool,
    pub token: bool,
    /// The run is recorded.
    pub record: bool,
    /// Seconds, of a run that is recorded.
    pub once_per: Option<u64>,
    pub road: Road,
    /// Seconds; `None` for `--no-wait`.
    pub wait: Option<u64>,
    /// Milliseconds.
    pub life: u64,
    pub min_hold: u64,
    /// The job's own exit status.
    pub status: i32,
    pub stubborn: bool,
    /// The number of the host that it runs on.
    pub host: usize,
}

impl Request {
    /// Returns whether it has a session of its own, and not one of a pool.
    pub fn has_session(&self) -> bool {
        matches!(self.road, Road::Direct | Road::Proxy)
    }

    /// Returns whether it goes through PgBouncer.
    pub fn is_pooled(&self) -> bool {
        matches!(self.road, Road::Pooler | Road::PgDog)
    }

    /// Returns whether it goes through the pooler that lends its first client's session.
    pub fn is_forwarded(&self) -> bool {
        self.road == Road::Forwarder
    }
}

/// Draws a request for a short time, of one of so many workers.
pub fn brief(dice: &mut Dice, host: usize, workers: usize) -> Request {
    let keys = &KEYS[..(workers / 2).clamp(8, KEYS.len())];
    let mut request = Request {
        keys: vec![dice.one_of(keys)],
        token: dice.percent(80),
        record: dice.percent(10),
        road: road(dice, [22, 12, 14, 10]),
        wait: dice.percent(85).then(|| dice.number(1, 8)),
        life: dice.number(0, 12),
        status: dice.one_of(&[0, 0, 3]),
        stubborn: dice.percent(10),
        host,
        ..Request::default()
    };
    if dice.percent(2) {
        request.life = dice.number(100, 800);
    }
    if dice.percent(5) {
        request.min_hold = dice.number(10, 100);
    }
    match dice.number(0, 100) {
        0..20 => request.shared = true,
        20..35 => {
            request.keys = vec![SLOTS.0];
            request.slots = Some(SLOTS.1);
        }
        35..50 if request.wait.is_some() && request.has_session() => request.fair = true,
        50..60 => request.keys.push(dice.one_of(keys)),
        // The key itself is slot 0.
        60..62 => request.keys = vec![SLOTS.0],
        // Newcomers, which do not know who held the lock before: the loser of a session must come before them, and a
        // session that is lent must not let them in.
        drawn @ 62.. if drawn < 72 || request.is_forwarded() => {
            request.keys = vec![dice.one_of(&LONG_KEYS)];
            request.wait = None;
        }
        72..84 => once_per(dice, &mut request),
        _ => {}
    }
    if request.is_forwarded() {
        // It waits for all others there.
        request.wait = request.wait.map(|_| 1);
    }
    without_second_session_if_forwarded(&mut request);
    request.keys.sort_unstable();
    request.keys.dedup();
    request
}

/// Makes it a request for a key that is to succeed once per interval, with a job that takes long enough for something
/// to happen to it.
fn once_per(dice: &mut Dice, request: &mut Request) {
    let (key, interval) = dice.one_of(&ONCE_PER);
    request.keys = vec![key];
    request.record = true;
    request.once_per = Some(interval);
    request.life = dice.number(0, 500);
    request.wait = request.wait.filter(|_| dice.percent(50));
}

/// Draws a request for seconds. Most want the same key, and many hold it for longer than a server waits for a silent
/// client. They wait longer the more of them there are: `crowd` times as long.
pub fn patient(dice: &mut Dice, host: usize, longest: u64, crowd: u64) -> Request {
    let life = if dice.percent(60) {
        dice.number(longest * 2 / 3, longest)
    } else {
        dice.number(100, longest / 3)
    };
    let mut request = Request {
        keys: vec![LONG_KEYS[usize::from(dice.percent(25))]],
        token: true,
        record: dice.percent(30),
        road: road(dice, [20, 12, 14, 35]),
        wait: Some(dice.number(longest / 1500, longest / 600) * crowd),
        fair: dice.percent(80),
        life,
        status: dice.one_of(&[0, 3]),
        stubborn: dice.percent(40),
        shared: dice.percent(10),
        host,
        ..Request::default()
    };
    request.fair &= request.has_session();
    without_second_session_if_forwarded(&mut request);
    request
}

/// Draws a request of a contested plan, for one of the long keys or both, over a connection of its own: either it waits
/// for as long as it takes, for a job that only KILL ends, or it is a newcomer that looks in now and then, and knows
/// nothing of the holder.
pub fn contested(dice: &mut Dice, host: usize, waits: bool) -> Request {
    let mut request = Request {
        keys: vec![dice.one_of(&LONG_KEYS)],
        token: true,
        stubborn: waits,
        host,
        ..Request::default()
    };
    if waits {
        request.wait = Some(60);
        request.life = dice.number(1500, 5000);
    } else {
        request.pause = dice.number(200, 2000);
        request.life = dice.number(0, 12);
    }
    if waits && dice.percent(50) {
        request.keys = LONG_KEYS.to_vec();
    }
    request
}

/// Draws a road: PgBouncer, PgDog, HAProxy and the forwarding pooler with these chances.
fn road(dice: &mut Dice, chances: [u64; 4]) -> Road {
    let mut drawn = dice.number(0, 100);
    for (road, chance) in [Road::Pooler, Road::PgDog, Road::Proxy, Road::Forwarder]
        .into_iter()
        .zip(chances)
    {
        if drawn < chance {
            return road;
        }
        drawn -= chance;
    }
    Road::Direct
}

/// A token and a record take a second session while the transaction of the lock is open, and the forwarding pooler has
/// only one.
fn without_second_session_if_forwarded(request: &mut Request) {
    request.token &= !request.is_forwarded();
    request.record &= !request.is_forwarded();
}
