//! Measuring whole processes: contenders in turn, each round in another order, so that what else the machine does, and
//! what the one before leaves behind, meets all of them alike.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// One who does the work.
pub struct Contender {
    /// Who.
    pub name: &'static str,
    /// How; its standard streams are its own.
    pub command: Box<dyn Fn() -> Command>,
    /// How it has to end.
    pub status: i32,
}

impl Contender {
    /// One that has to succeed.
    pub fn new(name: &'static str, command: impl Fn() -> Command + 'static) -> Contender {
        Contender {
            name,
            command: Box::new(command),
            status: 0,
        }
    }

    /// The same by another name.
    pub fn named(self, name: &'static str) -> Contender {
        Contender { name, ..self }
    }

    /// One that has to end with this status.
    pub fn ending(self, status: i32) -> Contender {
        Contender { status, ..self }
    }

    /// How long it takes, from its start until it has been waited for.
    pub fn time(&self) -> Duration {
        let mut command = (self.command)();
        command.stdin(Stdio::null());
        command.stdout(Stdio::null()).stderr(Stdio::null());
        let began = Instant::now();
        let status = command.status();
        let took = began.elapsed();
        let code = status.as_ref().ok().and_then(|status| status.code());
        assert_eq!(code, Some(self.status), "{}: {command:?}", self.name);
        took
    }
}

/// What was measured of one contender, most often in milliseconds.
#[derive(Clone)]
pub struct Sample {
    /// Who.
    pub name: &'static str,
    /// In the order of the rounds.
    values: Vec<f64>,
    sorted: Vec<f64>,
}

impl Sample {
    /// Of these values.
    pub fn of(name: &'static str, values: Vec<f64>) -> Sample {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        Sample { name, values, sorted }
    }

    /// In proportion to the other one, round by round: what else the machine did meets both.
    pub fn ratios(&self, other: &Sample) -> Sample {
        let ratios = self.values.iter().zip(&other.values).map(|(mine, other)| mine / other);
        Sample::of(self.name, ratios.collect())
    }

    /// The value that this part of all is below.
    pub fn quantile(&self, part: f64) -> f64 {
        let at = part * (self.sorted.len() - 1) as f64;
        let (low, high) = (self.sorted[at.floor() as usize], self.sorted[at.ceil() as usize]);
        low + (high - low) * at.fract()
    }

    /// The median.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// By how much the median can be off by chance, as a part of it: half of what lies between the quartiles, over the
    /// root of the count, twice.
    pub fn noise(&self) -> f64 {
        let spread = self.quantile(0.75) - self.quantile(0.25);
        spread / self.median() / (self.sorted.len() as f64).sqrt()
    }
}

/// Runs them in turn, so many rounds, after one that does not count.
pub fn in_turn(contenders: &[Contender], rounds: usize) -> Vec<Sample> {
    measure_in_turn(contenders, rounds, |contender| milliseconds(contender.time()))
}

/// The same for what takes another measure.
pub fn measure_in_turn(
    contenders: &[Contender],
    rounds: usize,
    mut measure: impl FnMut(&Contender) -> f64,
) -> Vec<Sample> {
    let mut values = vec![Vec::new(); contenders.len()];
    let mut order: Vec<usize> = (0..contenders.len()).collect();
    for round in 0..=rounds {
        // The backend of the one before is still exiting while the next one runs.
        fastrand::shuffle(&mut order);
        for &index in &order {
            let value = measure(&contenders[index]);
            if round > 0 {
                values[index].push(value);
            }
        }
    }
    let samples = contenders.iter().zip(values);
    samples
        .map(|(contender, values)| Sample::of(contender.name, values))
        .collect()
}

pub fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}
