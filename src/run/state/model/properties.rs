//! What must hold in every world.

use super::rules::Rules;
use super::steps::Step;
use super::world::{Client, Exception, Job, World};
use crate::run::state::Phase;
use stateright::{Model, Property};

/// No two jobs are alive at once, but for an exception that was recorded when it happened.
pub(super) const NEVER_TWICE: &str = "never two jobs at once";
/// No job is started for which no lock was granted.
pub(super) const NO_JOB_WITHOUT_LOCK: &str = "no job without a lock";
/// A run that has lost its lock, is to give it up, or whose job is dead, ends within its time.
pub(super) const EVERY_RUN_ENDS: &str = "every run ends";
/// A waiter acquires a key that stays free.
pub(super) const NO_WAITER_FORGOTTEN: &str = "no waiter is forgotten";
/// The wait of a client that the server has answered once ends only with an answer about the lock.
pub(super) const EVERY_WAIT_ENDURES: &str = "every wait endures";
/// Nothing runs round and round in no time.
pub(super) const NO_BUSY_LOOP: &str = "no busy loop";

/// How long a waiter may take to acquire a free key: the slice in the queue, and the time that a newcomer waits.
const WAITER_LIMIT: i8 = 2;
/// How much longer than its job may run a run may take to end: the release of a lock takes H at most, and waiting for
/// what is left of a job 2 ticks.
const END_LIMIT: i8 = 3;

impl World {
    fn runs_two_jobs(&self) -> bool {
        let unexcused = |client: &&Client| client.job == Job::Running && !client.is_excepted();
        self.clients.iter().filter(unexcused).count() > 1
    }
}

impl Client {
    fn is_excepted(&self) -> bool {
        match self.record.exception {
            Some(Exception::Vanished) => self.record.vanished_for > 0,
            exception => exception.is_some(),
        }
    }

    pub(super) fn is_waiting(&self) -> bool {
        matches!(self.state.phase, Phase::Acquiring { .. })
    }
}

impl Model for Rules {
    type State = World;
    type Action = Step;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self)]
    }

    fn actions(&self, world: &World, steps: &mut Vec<Step>) {
        world.push_steps(self, steps);
    }

    fn next_state(&self, world: &World, step: Step) -> Option<World> {
        Some(world.after(self, step))
    }

    fn properties(&self) -> Vec<Property<Rules>> {
        vec![
            Property::always(NEVER_TWICE, |_, world: &World| !world.runs_two_jobs()),
            Property::always(NO_JOB_WITHOUT_LOCK, |_, world: &World| !world.has_ungranted_job),
            Property::always(EVERY_RUN_ENDS, |rules: &Rules, world: &World| {
                let limit = rules.timing.job_limit + rules.timing.heartbeat + END_LIMIT;
                let mut clients = world.clients.iter();
                clients.all(|client| client.is_waiting() || client.record.overdue <= limit)
            }),
            Property::always(NO_WAITER_FORGOTTEN, |_, world: &World| {
                let mut clients = world.clients.iter();
                clients.all(|client| !client.is_waiting() || client.record.overdue <= WAITER_LIMIT)
            }),
            Property::always(EVERY_WAIT_ENDURES, |_, world: &World| !world.has_failed_wait),
            Property::always(NO_BUSY_LOOP, |_, world: &World| !world.is_spinning),
        ]
    }
}
