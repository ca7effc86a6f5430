//! The world's clock: what is going to happen, in order.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::string::String;

use crate::agent::Lifetime;
use crate::command::PluginName;
use crate::delivery::spool::Done;
use crate::dispatch::Preparation;
use crate::link::End;
use crate::link::session::Attempt;
use crate::testing::message::Message;
use crate::time::Millis;

/// Something that happens at a moment. What concerns the agent's process names its life, so that it comes to nothing in another one.
#[derive(Debug, Clone)]
pub(super) enum Happening {
    /// An event of the schedule, by its place there.
    Event(usize),
    /// Everything is good from now on.
    Calm,
    /// A fault may be over.
    Lapse,
    AgentStarts,
    /// The agent is asked to end once more.
    TerminateAgain {
        life: u32,
    },
    Resolved {
        life: u32,
        attempt: Attempt,
        works: bool,
    },
    /// The first packet of a connection arrives, or is lost for the so manieth time.
    Syn {
        connection: usize,
        lost: u32,
    },
    Opened {
        connection: usize,
    },
    Written {
        connection: usize,
    },
    Arrive {
        connection: usize,
        packet: Packet,
    },
    /// Packets that were held up go on.
    Release {
        connection: usize,
        to_server: bool,
    },
    /// The agent's host has waited long enough for an acknowledgement.
    GiveUp {
        connection: usize,
    },
    AppDone {
        connection: usize,
    },
    ServerNotices {
        connection: usize,
    },
    /// The balancer looks at a connection.
    Balance {
        connection: usize,
    },
    DiskDone {
        life: u32,
        done: Box<Done<Message>>,
    },
    Prepared {
        life: u32,
        name: PluginName,
        id: Preparation,
        works: bool,
    },
    PluginWrites {
        process: u32,
    },
    PluginExits {
        process: u32,
        asked: bool,
    },
    PipesClosed {
        process: u32,
    },
    /// Processes whose records found no room try again.
    Resume {
        life: u32,
    },
    TaskRead {
        process: u32,
        token: String,
    },
    Uploaded {
        life: u32,
        upload: u32,
        works: bool,
    },
    Updated {
        life: u32,
        update: u32,
        works: bool,
    },
    /// The authority has an answer to a request for a certificate.
    Certified {
        connection: usize,
        request: u32,
        answer: Answer,
    },
    /// The agent does not wait for the answer any longer.
    NotCertified {
        life: u32,
        request: u32,
    },
    /// A certificate is written, or could not be.
    Installed {
        life: u32,
        written: Result<Lifetime, &'static str>,
    },
    /// The owner allows everything again.
    Allow,
    /// The server asks for a plugin again that it had removed.
    Restore {
        plugin: usize,
    },
}

impl Happening {
    /// Whether it waits while the agent's host is suspended.
    pub(super) fn is_of_the_host(&self) -> bool {
        match self {
            Self::Arrive { packet, .. } => !packet.is_to_server(),
            Self::Release { to_server, .. } => !to_server,
            Self::Event(_)
            | Self::Calm
            | Self::Lapse
            | Self::Syn { .. }
            | Self::AppDone { .. }
            | Self::ServerNotices { .. }
            | Self::Balance { .. }
            | Self::Certified { .. }
            | Self::Restore { .. } => false,
            _ => true,
        }
    }
}

/// What travels between the agent's host and a server.
#[derive(Debug, Clone)]
pub(super) enum Packet {
    /// Some bytes of a message: how long it is if it begins with them, and the message if it ends with them.
    Data {
        bytes: u64,
        begins: Option<u64>,
        whole: Option<Message>,
    },
    Ping,
    /// A request for a certificate, beside the stream.
    Certify(u32),
    HalfClose,
    /// The agent's host knows no such connection any more.
    Reset,
    /// TCP and TLS are up.
    Accepted,
    /// Credit since the stream began.
    Credit(u64),
    Pong,
    Command(Rc<[u8]>),
    /// The answer to a request for a certificate.
    Certified(u32, Answer),
    /// The connection is over.
    End {
        end: End,
        how: Manner,
    },
}

/// What the authority answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Given(Lifetime),
    Refused,
    /// The server does not know the call.
    Unknown,
}

/// How the end of a connection is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner {
    /// By a reset, which is sent once, and is lost if the path is silent then.
    Once,
    /// In the stream, where it is sent again until it arrives.
    Again,
    /// So that it arrives whatever happens to the path meanwhile.
    Surely,
}

impl Packet {
    pub(super) fn is_to_server(&self) -> bool {
        matches!(self, Self::Data { .. } | Self::Ping | Self::Certify(_) | Self::HalfClose | Self::Reset)
    }
}

/// The queue of what is going to happen.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    pub(super) now: Millis,
    queue: BTreeMap<(Millis, u64), Happening>,
    next: u64,
}

impl Agenda {
    pub(super) fn at(&mut self, moment: Millis, what: Happening) {
        self.next += 1;
        self.queue.insert((moment.max(self.now), self.next), what);
    }

    pub(super) fn after(&mut self, ms: u64, what: Happening) {
        self.at(self.now + ms, what);
    }

    /// When the next thing happens.
    pub(super) fn next_at(&self) -> Option<Millis> {
        self.queue.first_key_value().map(|((moment, _), _)| *moment)
    }

    /// What happens next, if it happens now. While the host is suspended, what concerns it is put off until `thaw`.
    pub(super) fn pop(&mut self, thaw: Millis) -> Option<Happening> {
        loop {
            let entry = self.queue.first_entry()?;
            let (moment, order) = *entry.key();
            if moment > self.now {
                return None;
            }
            let what = entry.remove();
            if thaw <= self.now || !what.is_of_the_host() {
                return Some(what);
            }
            self.queue.insert((thaw, order), what);
        }
    }
}
