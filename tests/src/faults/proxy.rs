//! A TCP proxy that delays, throttles, stops, cuts, resets and corrupts what goes through it.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::connect_unspec;

/// Bytes per read, and the most chunks on their way. Together they are some megabytes, so that a delay alone hardly
/// throttles.
const CHUNK: usize = 16 << 10;
const CHUNKS_ON_THEIR_WAY: usize = 256;

/// How long a proxy tries to reach its server before it gives the agent up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A proxy to one server. Its settings hold for open connections as well. Dropping it ends all connections.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    delay: Duration,
    bytes_per_s: Option<u32>,
    is_stopped: bool,
    /// Set to corrupt the next bytes to the server.
    corrupts: bool,
    is_over: bool,
    /// Both ends of each connection.
    connections: Vec<[TcpStream; 2]>,
    accepted: u64,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Proxy {
    /// Starts a proxy to this server, on a free port of the loopback interface.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    pub fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let shared = Arc::<Shared>::default();
        let accepting = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, server, &accepting));
        Self { address, shared }
    }

    /// Returns the address that agents connect to, as `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns the number of connections that it has accepted so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.lock().accepted
    }

    /// Delays everything by this much, in both directions.
    pub fn delay(&self, delay: Duration) {
        self.shared.lock().delay = delay;
    }

    /// Limits each direction of each connection to this many bytes a second. `None` lifts the limit.
    pub fn throttle(&self, bytes_per_s: Option<u32>) {
        self.shared.lock().bytes_per_s = bytes_per_s;
    }

    /// Lets nothing through. Connections stay open, and their buffers fill.
    pub fn stop(&self) {
        self.shared.lock().is_stopped = true;
    }

    /// Lets things through again.
    pub fn go_on(&self) {
        self.shared.lock().is_stopped = false;
        self.shared.changed.notify_all();
    }

    /// Changes one byte of the next chunk to the server.
    pub fn corrupt(&self) {
        self.shared.lock().corrupts = true;
    }

    /// Closes every connection in order, as a proxy does when it is shut down.
    pub fn cut(&self) {
        for end in self.take_connections() {
            // The other side may have closed it already, here and below.
            _ = end.shutdown(Shutdown::Both);
        }
    }

    /// Resets every connection.
    pub fn reset(&self) {
        for end in self.take_connections() {
            // Dissolving the association of a connected socket sends RST. It is the only way to do so at once while other
            // threads hold the socket.
            _ = connect_unspec(&end);
        }
    }

    fn take_connections(&self) -> Vec<TcpStream> {
        self.shared.lock().connections.drain(..).flatten().collect()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.go_on();
        self.cut();
        // The accepting thread blocks. One more connection wakes it, so that it sees the flag.
        _ = TcpStream::connect(self.address);
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Shared>) {
    for agent in listener.incoming().flatten() {
        if shared.lock().is_over {
            return;
        }
        // If the server is not there, the agent sees its connection close at once.
        let Ok(server) = TcpStream::connect_timeout(&server, CONNECT_TIMEOUT) else { continue };
        let clone = |stream: &TcpStream| stream.try_clone().expect("there are descriptors");
        {
            let mut state = shared.lock();
            state.accepted += 1;
            state.connections.push([clone(&agent), clone(&server)]);
        }
        for (from, to, is_upward) in [(clone(&agent), clone(&server), true), (server, agent, false)] {
            let (sender, receiver) = mpsc::sync_channel(CHUNKS_ON_THEIR_WAY);
            let (reading, writing) = (Arc::clone(shared), Arc::clone(shared));
            thread::spawn(move || read(from, &sender, is_upward, &reading));
            thread::spawn(move || write(to, &receiver, &writing));
        }
    }
}

type Chunk = (Instant, Vec<u8>);

fn read(mut from: TcpStream, chunks: &SyncSender<Chunk>, is_upward: bool, shared: &Shared) {
    let mut buffer = vec![0; CHUNK];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut chunk = buffer[..length].to_vec();
        let due = {
            let mut state = shared.lock();
            if is_upward && std::mem::take(&mut state.corrupts) {
                chunk[length / 2] ^= 0x10;
            }
            Instant::now() + state.delay
        };
        if chunks.send((due, chunk)).is_err() {
            return;
        }
    }
}

fn write(mut to: TcpStream, chunks: &Receiver<Chunk>, shared: &Shared) {
    while let Ok((due, chunk)) = chunks.recv() {
        thread::sleep(due.saturating_duration_since(Instant::now()));
        let state = shared.lock();
        let state = shared.changed.wait_while(state, |state| state.is_stopped && !state.is_over);
        let bytes_per_s = state.unwrap_or_else(PoisonError::into_inner).bytes_per_s;
        if let Some(bytes_per_s) = bytes_per_s {
            thread::sleep(Duration::from_secs_f64(chunk.len() as f64 / f64::from(bytes_per_s)));
        }
        if to.write_all(&chunk).is_err() {
            return;
        }
    }
    // When one side has sent its last byte, the other side gets all of it and then the end.
    _ = to.shutdown(Shutdown::Write);
}
