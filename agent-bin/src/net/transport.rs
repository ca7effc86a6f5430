//! A TCP connection for the HTTP client.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use ureq::Error;
use ureq::config::Config;
use ureq::unversioned::transport::{Buffers, LazyBuffers, NextTimeout, Transport};

/// A connection and its buffers. The client shares the connection, so that another thread can shut it down.
#[derive(Debug)]
pub(super) struct TcpTransport {
    stream: Arc<TcpStream>,
    buffers: LazyBuffers,
}

impl TcpTransport {
    pub(super) fn new(stream: Arc<TcpStream>, config: &Config) -> Self {
        Self { stream, buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()) }
    }
}

impl Transport for TcpTransport {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let timeout = timeout.for_write();
        let result = self.stream.set_write_timeout(limit(timeout)?).and_then(|()| {
            // `write_all` goes on after a signal by itself.
            (&*self.stream).write_all(&self.buffers.output()[..amount])
        });
        result.map_err(|error| failure(error, timeout))
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let timeout = timeout.for_read();
        let read = self.stream.set_read_timeout(limit(timeout)?).and_then(|()| {
            loop {
                match (&*self.stream).read(self.buffers.input_append_buf()) {
                    // Go on after a signal such as SIGHUP. That costs at most another time limit.
                    Err(error) if error.kind() == ErrorKind::Interrupted => {}
                    result => break result,
                }
            }
        });
        let amount = read.map_err(|error| failure(error, timeout))?;
        self.buffers.input_appended(amount);
        Ok(amount > 0)
    }

    fn is_open(&mut self) -> bool {
        // The agent's clients keep no connection for another request.
        false
    }
}

/// Turns a timeout into one for the socket, which accepts none of zero.
fn limit(timeout: NextTimeout) -> Result<Option<Duration>, Error> {
    if timeout.after.is_zero() {
        return Err(Error::Timeout(timeout.reason));
    }
    Ok(timeout.not_zero().map(|limit| *limit))
}

fn failure(error: io::Error, timeout: NextTimeout) -> Error {
    match error.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Timeout(timeout.reason),
        _ => Error::Io(error),
    }
}
