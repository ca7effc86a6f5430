//! One attempt to reach a server, made as the agent makes it. It ends in order as soon as the stream is open.

use bytes::Bytes;
use elklet_core::link::session::{Action, Endpoints, Session, Timing};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::clock::Clock;
use crate::config::{Address, Proxies};
use crate::net::{Connector, End, Event, HalfOpen, Tls, Transfer};

/// How far an attempt has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    Nothing,
    /// The server's port, directly or through a proxy.
    Port,
    /// The end of the TLS handshake. The client does not know yet whether the server accepts it.
    Tls,
    /// HTTP/2, with the call under way.
    Call,
}

/// How an attempt ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// One side has ended it.
    Ended(End),
    /// An answer did not come within the agent's time limit.
    Late,
}

/// Connects to `address`, opens a stream, sends `first` on it if there is such a message, and ends the stream.
pub(super) async fn visit(
    tls: &Tls,
    proxies: &Proxies,
    address: &Address,
    first: Option<&Bytes>,
) -> (Reached, Outcome) {
    let clock = Clock::start();
    let (sender, mut events) = mpsc::channel(4);
    let connector =
        Connector { tls: tls.clone(), proxies: proxies.clone(), half_open: HalfOpen::default(), events: sender };
    let mut session = Session::new(Endpoints { private: 1, ..Endpoints::default() }, Timing::default(), 0);
    session.handle_start(clock.now());
    let mut transfer = None;
    let mut reached = Reached::Nothing;
    loop {
        while let Some(action) = session.poll_action() {
            match action {
                Action::Connect { attempt, .. } => {
                    transfer = Some(Transfer::start(&connector, attempt, address.clone()));
                }
                Action::Open { .. } => transfer.iter().for_each(Transfer::open),
                Action::HalfClose => transfer.iter_mut().for_each(Transfer::half_close),
                Action::Abandon { .. } => return (reached, Outcome::Late),
                Action::Resolve { .. } | Action::Ping => {}
            }
        }
        let deadline = Instant::from_std(clock.instant(session.poll_timeout().unwrap_or(clock.now())));
        let event = tokio::select! {
            event = events.recv() => event,
            () = sleep_until(deadline) => None,
        };
        match event {
            Some(Event::Dialled) => reached = Reached::Port,
            Some(Event::Connected(attempt, _)) => {
                reached = Reached::Tls;
                session.handle_connected(attempt, clock.now());
            }
            Some(Event::Opened(attempt)) => {
                reached = Reached::Call;
                session.handle_opened(attempt, clock.now());
                if let (Some(transfer), Some(first)) = (&transfer, first) {
                    let _ = transfer.send(first.clone());
                }
                session.handle_shutdown(clock.now());
            }
            Some(Event::Ended(_, end)) => return (reached, Outcome::Ended(end)),
            // The doctor does not carry out commands.
            Some(_) => {}
            None => session.handle_timeout(clock.now()),
        }
    }
}
