//! A schedule: how the world is made, and what happens to it when.

use alloc::vec::Vec;

use super::generate;
use super::random::{Bytes, Random};
use crate::time::Millis;

/// How the world is made and what happens in it. The same schedule always comes to the same end.
#[derive(Debug, Clone)]
pub struct Schedule {
    /// Decides what the schedule leaves open, such as how long each message is worked on.
    pub(super) seed: u64,
    pub(super) setup: Setup,
    /// In the order of their times.
    pub(super) events: Vec<Timed>,
    /// From then on everything is good.
    pub(super) calm_at: Millis,
}

/// An event, when it happens, and which one of the seed's events it is.
#[derive(Debug, Clone)]
pub(super) struct Timed {
    pub(super) at: Millis,
    pub(super) event: Event,
    pub(super) index: usize,
}

impl Schedule {
    /// The schedule that a seed makes.
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        generate::schedule(&mut Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5eed), seed, generate::by_theme)
    }

    /// The schedule that bytes make, whatever they are.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Self {
        generate::schedule(&mut Bytes(bytes), bytes.len() as u64, generate::by_bytes)
    }

    /// Events in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.events.len()
    }

    /// Whether nothing happens in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.events.is_empty()
    }

    /// The seed's schedule with these of its events only, each at its time in milliseconds.
    #[must_use]
    pub fn only(mut self, kept: &[(usize, u64)]) -> Self {
        self.events.retain_mut(|timed| match kept.iter().find(|(index, _)| *index == timed.index) {
            Some((_, at)) => {
                timed.at = Millis(*at);
                true
            }
            None => false,
        });
        self.settle();
        self
    }

    /// What [`Schedule::only`] takes to make this schedule again.
    #[must_use]
    pub fn kept(&self) -> Vec<(usize, u64)> {
        self.events.iter().map(|timed| (timed.index, timed.at.0)).collect()
    }

    /// Puts events in order, and the calm behind them.
    pub(super) fn settle(&mut self) {
        self.events.sort_by_key(|timed| (timed.at, timed.index));
        let end = self.events.iter().map(|timed| timed.at + timed.event.lasts_ms() + 1_000).max();
        self.calm_at = end.unwrap_or_default().max(Millis(10_000));
    }
}

/// How the world is made.
#[derive(Debug, Clone)]
pub(super) struct Setup {
    pub(super) servers: Vec<ServerSetup>,
    pub(super) plugins: Vec<PluginSetup>,
    /// Discovery hosts.
    pub(super) discovery: usize,
    /// Bytes that each byte of a message pretends to be.
    pub(super) scale: usize,
    /// Bytes of the bulk arena; the urgent one has half of them.
    pub(super) arena: usize,
    /// Pretended bytes.
    pub(super) memory: usize,
    pub(super) spool: u64,
    pub(super) replay_ms: u64,
    /// Servers that are killed lose what they took last. It takes memory enough for the agent to keep that.
    pub(super) forgets: bool,
    pub(super) spread_ms: u64,
    pub(super) keepalive_ms: u64,
    /// The agent begins as a version on trial.
    pub(super) is_on_trial: bool,
    /// Seconds that are left of the agent's certificate, if a center has given it one.
    pub(super) certificate_s: Option<i64>,
}

/// How a server is addressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    Discovered,
    Private,
    Public,
}

#[derive(Debug, Clone)]
pub(super) struct ServerSetup {
    pub(super) way: Way,
    /// Bytes that a stream's window has.
    pub(super) window: u64,
    /// Milliseconds from the agent to it, and back.
    pub(super) delay_ms: u64,
    /// Milliseconds that its application works on a message at most.
    pub(super) work_ms: u64,
    /// It grants a message's length as soon as its application wants to read it, although the window would do.
    pub(super) grants_ahead: bool,
    /// It returns credit in portions of a quarter of its window.
    pub(super) is_lazy: bool,
    /// Milliseconds after which it notices that a connection is dead.
    pub(super) notices_ms: u64,
    /// A balancer in front of it ends connections on which nothing has passed for so many milliseconds.
    pub(super) idle_ms: Option<u64>,
    /// The balancer ends connections that are so old.
    pub(super) age_ms: Option<u64>,
    /// The balancer says nothing when it ends one.
    pub(super) is_silent: bool,
}

#[derive(Debug, Clone)]
pub(super) struct PluginSetup {
    /// Milliseconds between two writes, and records of each.
    pub(super) every_ms: u64,
    pub(super) records: u64,
    /// Bytes beside the record's name.
    pub(super) padding: usize,
    pub(super) urgent_percent: u64,
    pub(super) may_drop: bool,
    pub(super) prepare_ms: u64,
    /// Milliseconds that it takes to end when it is asked to.
    pub(super) stop_ms: u64,
    /// Milliseconds after which it reads a task.
    pub(super) reads_ms: u64,
}

/// The directions in which a path is silent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Silent {
    Both,
    ToServer,
    ToAgent,
}

/// How a server ends a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StreamEnd {
    /// With status OK, as AgentCenter does for whatever reason.
    InOrder,
    /// Without a word.
    Broken,
    /// For PINGs that come too close, as it finds.
    TooManyPings,
}

/// Why nobody can connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoDial {
    Refused,
    Tls,
}

/// What a server does with a message that is too large for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TooLarge {
    Says,
    EndsInOrder,
    Breaks,
}

/// What is wrong with the spool's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DiskFault {
    Full,
    ReadOnly,
    Slow(u64),
    NoThread,
}

/// What a server asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Request {
    /// A task for a plugin.
    Plugin(usize),
    /// A task for a plugin that nobody knows.
    Unknown,
    /// A file, and the milliseconds that sending it takes; the last tells whether that works.
    Upload(u64, bool),
    /// Another data centre, and whether it can be remembered.
    Metadata(bool),
    /// Bytes that are no command, with a token.
    Nonsense,
    /// The end of the agent.
    Shutdown,
}

/// What becomes of an update of the agent that a server asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Update {
    /// It cannot be fetched.
    Fails,
    /// It is brought in place.
    Works,
    /// It is brought in place and cannot reach any server.
    Deaf,
}

/// What the authority does that is asked for a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Authority {
    Refuses,
    Silent,
    /// It answers after so many milliseconds.
    Late(u64),
    /// Its server does not know the call.
    Unknown,
}

/// What the host's owner lets servers have done. A bit stands for a plugin, or for a kind of the agent's own tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) plugins: u8,
    /// Only executables of odd versions, or of even ones, may run.
    pub(super) odd_versions: Option<bool>,
    /// The plugins that may be given tasks.
    pub(super) tasks: u8,
    /// The agent's own tasks that may be given: files, metadata, the end.
    pub(super) own_tasks: u8,
    /// How many tasks a minute; 0 for any number.
    pub(super) tasks_per_minute: u32,
}

impl Rules {
    /// Everything may be done.
    pub(super) const ANYTHING: Self =
        Self { plugins: u8::MAX, odd_versions: None, tasks: u8::MAX, own_tasks: u8::MAX, tasks_per_minute: 0 };
}

/// Something that happens. Times are in milliseconds; a server or plugin is an index into the setup's.
#[derive(Debug, Clone)]
pub(super) enum Event {
    Silence { server: Option<usize>, silent: Silent, ms: u64 },
    Slow { server: usize, delay_ms: u64, bytes_per_ms: u64, ms: u64 },
    Reset,
    NoDials { server: Option<usize>, why: NoDial, ms: u64 },
    NoDiscovery { ms: u64 },
    ServerKilled { server: usize, away_ms: u64 },
    HostDies { server: usize, away_ms: u64 },
    ServerStops { server: usize, ms: u64 },
    AppStops { server: usize, ms: u64 },
    AppSlow { server: usize, work_ms: u64, ms: u64 },
    StreamEnds { server: usize, how: StreamEnd },
    Poison { plugin: usize, ms: u64 },
    DiesOfNext { times: u64, ms: u64 },
    Limit { bytes: u64, how: TooLarge, ms: u64 },
    Disk { fault: DiskFault, ms: u64 },
    Vanish,
    Spoil { which: usize },
    Jam { which: usize },
    Burst { plugin: usize, records: u64, urgent: bool },
    Long { plugin: usize },
    Crash { plugin: usize },
    CrashLoop { plugin: usize, lives_ms: u64, ms: u64 },
    NoSpawns { ms: u64 },
    NoPreparations { ms: u64 },
    SlowDownloads { ms: u64 },
    Stubborn { ms: u64 },
    Upgrade { plugin: usize },
    Remove { plugin: usize, ms: u64 },
    Ask { request: Request },
    Terminate { again_ms: Option<u64>, down_ms: u64 },
    Kill { down_ms: u64 },
    Reload { without: usize, spool: u64 },
    Suspend { ms: u64 },
    Update { update: Update },
    Authority { authority: Authority, ms: u64 },
    Clock { ahead_s: i64 },
    Policy { rules: Rules, ms: Option<u64> },
}

impl Event {
    /// Whether it happens on the agent's host.
    pub(super) fn is_on_the_host(&self) -> bool {
        matches!(
            self,
            Self::Disk { .. }
                | Self::Vanish
                | Self::Spoil { .. }
                | Self::Jam { .. }
                | Self::Burst { .. }
                | Self::Long { .. }
                | Self::Crash { .. }
                | Self::CrashLoop { .. }
                | Self::Terminate { .. }
                | Self::Kill { .. }
                | Self::Reload { .. }
                | Self::Clock { .. }
                | Self::Policy { .. }
        )
    }

    /// Milliseconds for which it lasts.
    pub(super) fn lasts_ms(&self) -> u64 {
        match *self {
            Self::Silence { ms, .. }
            | Self::Slow { ms, .. }
            | Self::NoDials { ms, .. }
            | Self::NoDiscovery { ms }
            | Self::ServerStops { ms, .. }
            | Self::AppStops { ms, .. }
            | Self::AppSlow { ms, .. }
            | Self::Poison { ms, .. }
            | Self::DiesOfNext { ms, .. }
            | Self::Limit { ms, .. }
            | Self::Disk { ms, .. }
            | Self::CrashLoop { ms, .. }
            | Self::NoSpawns { ms }
            | Self::NoPreparations { ms }
            | Self::SlowDownloads { ms }
            | Self::Stubborn { ms }
            | Self::Remove { ms, .. }
            | Self::Authority { ms, .. }
            | Self::Suspend { ms } => ms,
            Self::Policy { ms, .. } => ms.unwrap_or(0),
            Self::ServerKilled { away_ms, .. } | Self::HostDies { away_ms, .. } => away_ms,
            Self::Terminate { down_ms, .. } | Self::Kill { down_ms } => down_ms,
            _ => 0,
        }
    }
}
