//! Connections that have died without their peers' knowledge ("half-open", RFC 9293, section 3.5.1). This module tells the peers.
//!
//! While AgentCenter believes in an earlier connection, it refuses the agent (`agentID conflict`). Its own keepalive ends
//! that connection only after ten minutes. The agent therefore connects once more from the old connection's port. The peer's
//! TCP takes the SYN for part of the old connection and answers with an acknowledgement (RFC 5961, section 4). This host
//! knows of no such connection and answers with a reset, and the peer drops its end. A second later the repeated SYN opens a
//! connection, which shows that it worked. The agent closes that one with a reset at once, so that the port is free.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use elklet_core::limits::{MAX_HALF_OPEN, MAX_TELLINGS};
use tokio::net::TcpSocket;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::dial::Ends;

/// Time limit for telling a peer. The SYN may be repeated twice, after one and after three seconds.
const TELLING: Duration = Duration::from_millis(3_500);

/// A connection, and how often telling its peer has failed.
#[derive(Debug, Clone, Copy)]
struct Entry {
    ends: Ends,
    failed: u32,
}

/// The half-open connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct HalfOpen(Arc<Mutex<Vec<Entry>>>);

impl HalfOpen {
    /// Remembers a connection that has died without its peer's knowledge.
    pub(crate) fn add(&self, ends: Ends) {
        self.insert(Entry { ends, failed: 0 });
    }

    fn insert(&self, entry: Entry) {
        let mut entries = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        entries.retain(|known| known.ends != entry.ends);
        if entries.len() == MAX_HALF_OPEN {
            entries.remove(0);
        }
        entries.push(entry);
    }

    /// Begins to tell every peer that its connection is gone. Peers that cannot be told now get another attempt next time.
    pub(crate) fn tell(&self) -> Telling {
        let entries = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let tell = |entry: Entry| {
            let known = self.clone();
            let task = tokio::spawn(async move {
                if !timeout(TELLING, tell(entry.ends)).await.is_ok_and(|told| told.is_ok()) {
                    known.failed(entry);
                }
            });
            (entry.ends.peer, task)
        };
        Telling(entries.into_iter().map(tell).collect())
    }

    fn failed(&self, entry: Entry) {
        let failed = entry.failed + 1;
        if failed < MAX_TELLINGS {
            self.insert(Entry { failed, ..entry });
        }
    }
}

/// Peers that are being told. Dropping this does not stop it.
#[derive(Debug)]
pub(crate) struct Telling(Vec<(SocketAddr, JoinHandle<()>)>);

impl Telling {
    /// Waits until `peer` has been told of all its dead connections, or telling it has failed.
    pub(super) async fn wait_for(self, peer: SocketAddr) {
        for (_, task) in self.0.into_iter().filter(|(told, _)| *told == peer) {
            // The task does not panic, and nobody aborts it.
            let _ = task.await;
        }
    }
}

async fn tell(ends: Ends) -> std::io::Result<()> {
    let socket = if ends.local.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.set_zero_linger()?;
    socket.bind(ends.local)?;
    socket.connect(ends.peer).await.map(drop)
}

#[cfg(test)]
mod tests {
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    fn ends(port: u16) -> Ends {
        Ends { local: ([127, 0, 0, 1], port).into(), peer: ([127, 0, 0, 1], 1).into() }
    }

    fn ports(half_open: &HalfOpen) -> Vec<u16> {
        half_open.0.lock().expect("nobody panics").iter().map(|entry| entry.ends.local.port()).collect()
    }

    #[test]
    fn the_latest_are_kept_each_once_and_those_that_cannot_be_told_are_given_up_in_the_end() {
        let half_open = HalfOpen::default();
        (1..=20).chain([15]).for_each(|port| half_open.add(ends(port)));
        assert_eq!(ports(&half_open), [13, 14, 16, 17, 18, 19, 20, 15]);
        half_open.failed(Entry { ends: ends(14), failed: MAX_TELLINGS - 2 });
        assert_eq!(ports(&half_open).last(), Some(&14));
        half_open.0.lock().expect("nobody panics").pop();
        half_open.failed(Entry { ends: ends(14), failed: MAX_TELLINGS - 1 });
        assert!(!ports(&half_open).contains(&14));
    }

    #[tokio::test]
    async fn a_peer_is_told_from_the_old_port_and_one_that_cannot_be_is_told_later() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let peer = listener.local_addr().expect("it is bound");
        let stream = TcpStream::connect(peer).await.expect("it listens");
        let ends = Ends::of(&stream).expect("it is connected");
        let (_believed, from) = listener.accept().await.expect("a connection");
        assert_eq!(from, ends.local);

        let half_open = HalfOpen::default();
        half_open.add(ends);
        // The connection is alive, so its port is taken.
        half_open.tell().wait_for(peer).await;
        assert_eq!(ports(&half_open), [ends.local.port()]);

        stream.set_zero_linger().expect("it is connected");
        drop(stream);
        half_open.tell().wait_for(peer).await;
        assert!(ports(&half_open).is_empty());
        let (_, from) = listener.accept().await.expect("another connection");
        assert_eq!(from, ends.local);
    }
}
