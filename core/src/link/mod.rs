//! The link to the server: where to connect, when, and when to give a connection up.
//!
//! [`session`] is the state machine that decides all of that. [`backoff`] spreads the attempts of a fleet, [`race`]
//! chooses among a name's addresses, [`proxy`] speaks to a proxy on the way, [`grpc`] frames the messages of a stream,
//! [`x509`] reads the agent's own certificates, and [`pkcs10`] writes the request for one.

pub mod backoff;
pub mod grpc;
pub mod pkcs10;
pub mod proxy;
pub mod race;
pub mod session;
pub mod x509;

/// How an attempt or its stream ended, as far as decisions depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The address could not be reached.
    Unreachable,
    /// Either side refused TLS, or there was no HTTP/2 behind it.
    Tls,
    /// The server sent something that cannot be understood.
    Protocol,
    /// The server ended the call with status OK, after it had read all that the agent sent, to the end.
    Ok,
    /// The server says that a message was too large.
    TooLarge,
    /// The server ended the connection because PINGs came too close.
    TooManyPings,
    /// The server gives a reason that has nothing to do with a batch.
    Refused,
    /// The connection died unanswered.
    Silent,
    /// The stream or the connection ended without a reason, or in order before the agent's side of it did. The server may have ended
    /// over what it was sent.
    Unexplained,
}

/// Counters of attempts and streams since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkCounters {
    /// Attempts that ended without a stream for lack of a TCP connection, by timeout, or by a failed discovery.
    pub connect_failures: u64,
    /// Attempts at which either side refused TLS.
    pub tls_failures: u64,
    /// Streams that were opened.
    pub streams: u64,
    /// Streams that ended because the server sent something that cannot be understood.
    pub protocol_errors: u64,
}

impl LinkCounters {
    pub(crate) fn count(&mut self, end: End) {
        match end {
            End::Unreachable => self.connect_failures += 1,
            End::Tls => self.tls_failures += 1,
            End::Protocol => self.protocol_errors += 1,
            End::Ok | End::TooLarge | End::TooManyPings | End::Refused | End::Silent | End::Unexplained => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_that_are_somebodys_fault_are_counted_by_whose() {
        let mut counters = LinkCounters::default();
        let ends = [
            (End::Unreachable, 5),
            (End::Tls, 4),
            (End::Protocol, 3),
            (End::Ok, 1),
            (End::TooLarge, 1),
            (End::TooManyPings, 1),
            (End::Refused, 1),
            (End::Silent, 1),
            (End::Unexplained, 1),
        ];
        for (end, times) in ends {
            (0..times).for_each(|_| counters.count(end));
        }
        let expected = LinkCounters { connect_failures: 5, tls_failures: 4, streams: 0, protocol_errors: 3 };
        assert_eq!(counters, expected);
    }
}
