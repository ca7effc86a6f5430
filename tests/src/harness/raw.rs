//! A server that understands nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A server that gives every client the same answer once it has sent something, and hangs up.
#[derive(Debug)]
pub struct RawServer {
    address: SocketAddr,
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl RawServer {
    /// Starts one on a free port of the loopback interface.
    ///
    /// # Panics
    /// When no port is free.
    #[must_use]
    pub fn start(answer: &[u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket can be");
        let done = Arc::new(AtomicBool::new(false));
        let (answer, is_done) = (answer.to_vec(), Arc::clone(&done));
        let thread = thread::spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                let Ok((mut tcp, _)) = listener.accept() else {
                    thread::sleep(Duration::from_millis(5));
                    continue;
                };
                // This reads what the client says. If it did not, a reset could destroy the answer. The client may
                // leave before it.
                _ = tcp.set_nonblocking(false);
                _ = tcp.read(&mut [0; 4096]);
                _ = tcp.write_all(&answer);
            }
        });
        Self { address, done, thread: Some(thread) }
    }

    /// Returns its address, as `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}
