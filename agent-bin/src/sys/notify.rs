//! Tells systemd how the service is, as sd_notify(3) describes: datagrams of `KEY=VALUE` to the socket that `NOTIFY_SOCKET` names.
//!
//! Any service manager that sets the variable is served alike. Without it, nothing is sent.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;

use elklet_core::printable::Printable;
use elklet_core::time::Millis;
use rustix::time::{ClockId, clock_gettime};

/// Shortest time between two signs of life, in milliseconds, whatever the service manager asks for.
const MIN_INTERVAL_MS: u64 = 100;

/// The way to the service manager.
#[derive(Debug, Default)]
pub(crate) struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
    /// Between two signs of life, and when the next is due.
    watchdog: Option<(u64, Millis)>,
}

impl Notifier {
    /// The one that the environment names.
    pub(crate) fn from_environment(now: Millis) -> Self {
        let Some(name) = env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Self::default() };
        let socket = match connect(&name) {
            Ok(socket) => Some(socket),
            Err(error) => {
                log::warn!("NOTIFY_SOCKET={name:?}: {error}; the service manager is told nothing");
                None
            }
        };
        let number = |name| env::var(name).ok().and_then(|value| value.parse::<u64>().ok());
        let is_meant = number("WATCHDOG_PID").is_none_or(|pid| pid == u64::from(process::id()));
        // Twice in the time that it allows, as the manual advises.
        let interval = number("WATCHDOG_USEC").map(|us| (us / 2000).max(MIN_INTERVAL_MS));
        let watchdog = interval.filter(|_| is_meant && socket.is_some()).map(|interval| (interval, now));
        Self { socket, watchdog }
    }

    /// The agent does its work.
    pub(crate) fn ready(&self) {
        self.send("READY=1");
    }

    /// The agent reads its settings again, until it is [ready](Self::ready).
    pub(crate) fn reloading(&self) {
        let now = clock_gettime(ClockId::Monotonic);
        self.send(&format!("RELOADING=1\nMONOTONIC_USEC={}", now.tv_sec * 1_000_000 + now.tv_nsec / 1000));
    }

    /// The agent ends.
    pub(crate) fn stopping(&self) {
        self.send("STOPPING=1");
    }

    /// Shows a line to whoever asks the service manager.
    pub(crate) fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", Printable(line)));
    }

    /// When a sign of life is due.
    pub(crate) fn poll_timeout(&self) -> Option<Millis> {
        self.watchdog.map(|(_, due)| due)
    }

    /// Gives a sign of life when one is due, unless the agent `is_well` no more. The service manager then kills it and starts another.
    pub(crate) fn handle_timeout(&mut self, is_well: impl FnOnce() -> bool, now: Millis) {
        let Some((interval, due)) = &mut self.watchdog else { return };
        if *due <= now {
            *due = now + *interval;
            if is_well() {
                self.send("WATCHDOG=1");
            }
        }
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // A service manager that does not read must not hold up the agent.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

/// The name of a file, or with `@` at its front one of Linux's abstract names.
fn connect(name: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::other("neither an absolute path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}
