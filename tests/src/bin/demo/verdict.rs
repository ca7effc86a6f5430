//! Says whether anything was lost, and how one knows.
//!
//! Nothing in the protocol says how much a plugin has sent. The demo therefore asks the kernel, which counts the bytes
//! that procwatch writes into its pipe. The center counts the bytes of the records that arrive at the other end. A
//! record that is lost in between leaves a difference for good. The kernel forgets its count with the process, so the
//! last look may come before the last write. Just before it asks for the end, however, the demo sees both counts agree.
//! Besides, the demo looks for the start and the end of each process that it has made among the records, and the agent
//! says at its own end whether it knows of a loss. What ends after the demo was asked to end is waited for, but nobody has
//! to report it.

use crate::maker::Account;

/// What the demo knows when all have ended.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Records of the plugin that the center has received.
    pub(crate) records: u64,
    /// Bytes that these records took in the plugin's pipe.
    pub(crate) frame_bytes: u64,
    /// Bytes that the plugin had written there at the last look, by the kernel's count. `None` if the count cannot be
    /// read.
    pub(crate) written: Option<u64>,
    /// True if both counts were the same just before the end.
    pub(crate) agreed: bool,
    /// True if the plugin scans for processes, and therefore misses some.
    pub(crate) scans: bool,
    /// How often the plugin ended when it should not have.
    pub(crate) deaths: u64,
    /// What the plugin said about events that the kernel dropped.
    pub(crate) overrun: Option<String>,
    /// The processes that the demo has made.
    pub(crate) own: Account,
    /// How the agent's process ended, if not as it should.
    pub(crate) agent_failure: Option<String>,
    /// What the agent said at its end: an error if it warned.
    pub(crate) closing_words: Option<Result<String, String>>,
}

impl Facts {
    /// Returns the bytes that the plugin has written and that did not arrive.
    pub(crate) fn missing_bytes(&self) -> u64 {
        self.written.map_or(0, |written| written.saturating_sub(self.frame_bytes))
    }

    /// Returns how many records those may have been.
    pub(crate) fn missing_records(&self) -> u64 {
        match self.missing_bytes() {
            0 => 0,
            missing => (missing * self.records).div_ceil(self.frame_bytes.max(1)).max(1),
        }
    }

    /// Returns why this run does not count as one without loss.
    pub(crate) fn problem(&self) -> Option<String> {
        let Self { own, .. } = self;
        if let Some(failure) = &self.agent_failure {
            return Some(failure.clone());
        }
        if self.deaths > 0 {
            let times = if self.deaths == 1 { "once".to_owned() } else { format!("{} times", self.deaths) };
            return Some(format!("procwatch ended on its own {times}, and was started again"));
        }
        if self.records == 0 {
            return Some("no record of a process arrived".to_owned());
        }
        match &self.closing_words {
            Some(Ok(_)) => {}
            Some(Err(words)) => return Some(format!("the agent says: {words}")),
            None => return Some("the agent did not say how it ended".to_owned()),
        }
        if self.missing_bytes() > 0 {
            let (missing, records) = (self.missing_bytes(), self.missing_records());
            return Some(format!("{missing} bytes of procwatch's did not arrive, about {records} records"));
        }
        if let Some(words) = &self.overrun {
            return Some(words.clone());
        }
        let Account { made, no_execs, no_exits, .. } = own;
        if !self.scans && no_execs + no_exits > 0 {
            return Some(format!(
                "of {made} processes that the demo made, {no_execs} starts and {no_exits} ends were not reported"
            ));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Facts {
        Facts {
            records: 10,
            frame_bytes: 1_000,
            written: Some(1_000),
            agreed: true,
            own: Account { made: 3, execs: 3, exits: 3, ..Account::default() },
            closing_words: Some(Ok("all is well".to_owned())),
            ..Facts::default()
        }
    }

    #[test]
    fn nothing_is_lost_when_all_accounts_agree() {
        assert_eq!(good().problem(), None);
        // The kernel may not count, or the last look may have come before the last write.
        assert_eq!(Facts { written: None, ..good() }.problem(), None);
        assert_eq!(Facts { written: Some(900), ..good() }.problem(), None);
        // A plugin that scans misses short-lived processes.
        let own = Account { made: 3, execs: 1, exits: 0, no_execs: 2, no_exits: 3 };
        assert_eq!(Facts { own, scans: true, ..good() }.problem(), None);
        // What ends after the demo was asked to end may be reported, or not.
        let own = Account { made: 3, execs: 3, exits: 2, ..Account::default() };
        assert_eq!(Facts { own, ..good() }.problem(), None);
    }

    #[test]
    fn every_loss_has_its_reason() {
        let problem = |facts: Facts| facts.problem().expect("something is wrong");
        assert_eq!(
            problem(Facts { written: Some(1_101), ..good() }),
            "101 bytes of procwatch's did not arrive, about 2 records"
        );
        let own = Account { made: 4, execs: 3, exits: 4, no_execs: 1, no_exits: 0 };
        assert!(problem(Facts { own, ..good() }).contains("1 starts and 0 ends"));
        assert!(problem(Facts { closing_words: Some(Err("2 records".to_owned())), ..good() }).ends_with("2 records"));
        assert!(problem(Facts { closing_words: None, ..good() }).contains("did not say"));
        assert!(problem(Facts { records: 0, ..good() }).contains("no record"));
        assert!(problem(Facts { deaths: 1, ..good() }).contains("on its own once"));
        assert_eq!(problem(Facts { overrun: Some("overran".to_owned()), ..good() }), "overran");
        assert_eq!(problem(Facts { agent_failure: Some("it broke".to_owned()), ..good() }), "it broke");
    }
}
