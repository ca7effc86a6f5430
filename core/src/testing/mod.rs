//! A simulation of the whole agent: the real [`Agent`](crate::agent::Agent) and the real [`Intake`](crate::record::intake::Intake) among
//! models of everything around them.
//!
//! A seed makes a [`Schedule`]: how the world is made, and which faults it has when. [`run`] goes through it with a clock that costs no
//! time and looks at every step whether what must hold does. A schedule that fails is made [smaller](shrink), and told as a
//! [story](tell). `docs/simulation.md` says what is modelled and what is held.
//!
//! Nothing of this is in the agent's binary. The package's own tests include it, and whoever asks for the feature `testing`.

mod account;
mod generate;
mod message;
mod random;
mod schedule;
mod shrink;
mod story;
#[cfg(test)]
mod tests;
mod world;

use alloc::string::String;
use alloc::vec::Vec;
use core::fmt;

pub use self::schedule::Schedule;
pub use self::shrink::shrink;
use self::world::World;
use crate::time::Millis;

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What should hold.
    pub rule: &'static str,
    /// When it did not.
    pub at: Millis,
    /// What was there instead.
    pub what: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "at {} ms it does not hold that {}: {}", self.at.0, self.rule, self.what)
    }
}

/// What has come of a schedule, in figures.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Milliseconds that have passed in the simulation.
    pub ms: u64,
    /// Times that the agent was looked after.
    pub passes: u64,
    /// Records that the intake has taken.
    pub records: u64,
    /// Records that servers had already when they came.
    pub doubles: u64,
    /// Records that a killed agent or server took with it.
    pub excused: u64,
    /// Records that the agent has told to be lost.
    pub lost: u64,
    /// Streams that the agent has had.
    pub streams: u64,
    /// Processes of the agent.
    pub lives: u64,
    /// Tasks that have reached it.
    pub tasks: u64,
}

impl Outcome {
    /// Adds another schedule's figures.
    pub fn add(&mut self, other: &Self) {
        self.ms += other.ms;
        self.passes += other.passes;
        self.records += other.records;
        self.doubles += other.doubles;
        self.excused += other.excused;
        self.lost += other.lost;
        self.streams += other.streams;
        self.lives += other.lives;
        self.tasks += other.tasks;
    }
}

/// Goes through a schedule.
///
/// # Errors
/// The first thing that does not hold.
pub fn run(schedule: &Schedule) -> Result<Outcome, Failure> {
    World::new(schedule, false).run(schedule.calm_at).0
}

/// Goes through a schedule and tells what happens in it, a line for each thing.
#[must_use]
pub fn tell(schedule: &Schedule) -> Vec<String> {
    World::new(schedule, true).run(schedule.calm_at).1
}
