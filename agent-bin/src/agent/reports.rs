//! What the agent tells the server of its own failures: tasks that failed (5100), warnings and errors (1010).

use elklet_core::dispatch::Report;

use super::Agent;
use super::ending::Ending;
use crate::{clock, logging, reports};

/// The answer to a task that failed.
const TASK_FAILED: i32 = 5100;

/// A warning or an error of the agent.
const AGENT_ERROR: i32 = 1010;

impl Agent {
    /// Answers a task that failed.
    pub(super) fn report(&mut self, Report { token, message }: &Report) {
        log::warn!(target: reports::TOLD_OTHERWISE, "a task failed: {message} (token {token:?})");
        logging::audit(&logging::Event { token, ..logging::Event::new(logging::Kind::Refused, "task", message) });
        self.net.refused_tasks += 1;
        let fields = [("token", &**token), ("status", "failed"), ("msg", message)];
        self.delivery.push_own(TASK_FAILED, clock::unix_seconds(), fields.into_iter());
    }

    /// Hands over what was logged as a warning or an error: not before somebody can take it, so that a long time without a
    /// server fills no buffer.
    pub(super) fn report_errors(&mut self) {
        if self.session.streaming_to().is_none() && !matches!(self.ending, Ending::Flush { .. }) {
            return;
        }
        while let Some(report) = reports::take() {
            let suppressed = report.suppressed.to_string();
            let fields = [
                ("level", report.level),
                ("source", &report.source),
                ("msg", &report.text),
                ("suppressed", &suppressed),
            ];
            let told = if report.suppressed == 0 { &fields[..3] } else { &fields };
            self.delivery.push_own(AGENT_ERROR, report.timestamp, told.iter().copied());
        }
    }
}
