//! A server's trailers after the agent's half-close: what they confirm, and what they do not.
//!
//! HTTP/2 libraries do not let a server act as if the half-close were still on its way. This server therefore writes its frames itself.

use elklet_core::link::grpc;
use elklet_proto::grpc::{Command, Task};
use elklet_tests::harness::{DEADLINE, Signal, Site, all_at_once, own_address};
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;

/// The flags of DATA and HEADERS, and the one of SETTINGS and PING.
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const ACK: u8 = 1;

/// What the server does once the agent has half-closed the stream.
#[derive(Clone, Copy, PartialEq)]
enum Manner {
    /// It has read the half-close, and sends trailers.
    Trailers,
    /// As before, and it closes the connection.
    TrailersAndClose,
    /// It ends the call before the half-close arrives: a reset goes behind the trailers, in one piece.
    TrailersAndReset,
    /// As before, but the reset comes late: just before the answer to the next PING.
    TrailersAndLateReset,
}

#[test]
fn trailers_confirm_everything_unless_they_crossed_the_agents_half_close() {
    let cases = [
        ("trailers", (Manner::Trailers, "the server has taken all ")),
        ("close", (Manner::TrailersAndClose, "the server has taken all ")),
        ("reset", (Manner::TrailersAndReset, "1 records wait on the disk")),
        ("late reset", (Manner::TrailersAndLateReset, "1 records wait on the disk")),
    ];
    all_at_once(&cases, |name, (manner, says)| {
        let site = Site::new();
        let (address, answered) = serve(site.certs(), *manner);
        let mut agent = site.setup().server(&address.to_string()).start();
        answered.recv_timeout(DEADLINE).unwrap_or_else(|_| panic!("{name}: no answer to the task:\n{}", agent.log()));
        agent.signal(Signal::TERM);
        assert_eq!(agent.wait_for_exit().code(), Some(0), "{name}");
        let line = agent.wait_for_log("the agent ends; ");
        assert!(line.contains(says), "{name}: {line}");
    });
}

/// Serves one connection. It is told when the agent has sent a record that it keeps until that is confirmed.
fn serve(certs: &Path, manner: Manner) -> (SocketAddr, mpsc::Receiver<()>) {
    let chain = CertificateDer::pem_file_iter(certs.join("server.crt")).unwrap().collect::<Result<_, _>>().unwrap();
    let key = PrivateKeyDer::from_pem_file(certs.join("server.key")).unwrap();
    let mut config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind(own_address()).unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let (tcp, _) = listener.accept().unwrap();
        let tls = StreamOwned::new(ServerConnection::new(Arc::new(config)).unwrap(), tcp);
        // The agent ends the connection in the end.
        let _ = Peer { tls, manner, messages: 0, is_over: false }.run(&sender);
    });
    (address, receiver)
}

struct Peer {
    tls: StreamOwned<ServerConnection, TcpStream>,
    manner: Manner,
    /// DATA frames with something in them.
    messages: usize,
    is_over: bool,
}

impl Peer {
    fn run(mut self, answered: &mpsc::Sender<()>) -> io::Result<()> {
        self.tls.read_exact(&mut [0; b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".len()])?;
        self.send(&[frame(SETTINGS, 0, 0, &[])])?;
        loop {
            let mut head = [0; 9];
            self.tls.read_exact(&mut head)?;
            let [l1, l2, l3, kind, flags, ..] = head;
            let mut payload = vec![0; u32::from_be_bytes([0, l1, l2, l3]) as usize];
            self.tls.read_exact(&mut payload)?;
            match kind {
                SETTINGS if flags & ACK == 0 => self.send(&[frame(SETTINGS, ACK, 0, &[])])?,
                PING if flags & ACK == 0 => self.handle_ping(&payload)?,
                DATA => {
                    self.messages += usize::from(!payload.is_empty());
                    match self.messages {
                        1 => self.send(&[response(), task()])?,
                        2 => _ = answered.send(()),
                        _ => {}
                    }
                    if flags & END_STREAM != 0 {
                        self.handle_half_close()?;
                    }
                }
                _ => {}
            }
        }
    }

    fn handle_half_close(&mut self) -> io::Result<()> {
        self.is_over = true;
        match self.manner {
            Manner::Trailers | Manner::TrailersAndLateReset => self.send(&[trailers()]),
            Manner::TrailersAndReset => self.send(&[trailers(), reset()]),
            Manner::TrailersAndClose => {
                self.send(&[trailers()])?;
                self.tls.conn.send_close_notify();
                self.send(&[])?;
                self.tls.sock.shutdown(std::net::Shutdown::Write)
            }
        }
    }

    fn handle_ping(&mut self, payload: &[u8]) -> io::Result<()> {
        let pong = frame(PING, ACK, 0, payload);
        match self.manner {
            Manner::TrailersAndLateReset if self.is_over => self.send(&[reset(), pong]),
            _ => self.send(&[pong]),
        }
    }

    fn send(&mut self, frames: &[Vec<u8>]) -> io::Result<()> {
        self.tls.write_all(&frames.concat())?;
        self.tls.flush()
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// `:status 200` and `content-type: application/grpc` by their numbers in HPACK's static table (RFC 7541, appendix A).
fn response() -> Vec<u8> {
    let content_type = b"application/grpc";
    let length = u8::try_from(content_type.len()).unwrap();
    frame(HEADERS, END_HEADERS, 1, &[&[0x88, 0x0f, 0x10, length], &content_type[..]].concat())
}

fn trailers() -> Vec<u8> {
    let name = b"grpc-status";
    let length = u8::try_from(name.len()).unwrap();
    frame(HEADERS, END_HEADERS | END_STREAM, 1, &[&[0, length], &name[..], b"\x010"].concat())
}

/// RST_STREAM with NO_ERROR.
fn reset() -> Vec<u8> {
    frame(RST_STREAM, 0, 1, &[0; 4])
}

/// A task for a plugin that does not run, which the agent answers with a record.
fn task() -> Vec<u8> {
    let task = Task { data_type: 1, object_name: "nobody".into(), data: String::new(), token: "token".into() };
    let command = Command { task: Some(task), ..Command::default() }.encode_to_vec();
    frame(DATA, 0, 1, &[&grpc::prefix(false, command.len())[..], &command].concat())
}
