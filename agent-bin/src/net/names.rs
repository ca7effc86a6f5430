//! Looks up the addresses of names. Only this module asks the system's resolver.
//!
//! The agent asks for IPv6 and IPv4 addresses separately, each on a thread of its own. If it asked for both at once,
//! musl's resolver would fail as a whole when one of the two questions gets an error, and every resolver would wait for
//! the slower answer.

use std::ffi::{CStr, CString};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use elklet_core::limits::MAX_LOOKUPS;
use elklet_core::link::race::Family;
use tokio::sync::mpsc;

use crate::sys::blocking;

/// Stack of a thread that asks. Resolvers keep at most a few answers of 64 KiB on it.
const STACK_BYTES: usize = 512 << 10;

/// Number of questions under way.
static ASKED: AtomicUsize = AtomicUsize::new(0);

/// A family with its addresses, or with why there are none.
type Answer = (Family, io::Result<Vec<SocketAddr>>);

/// Two questions for the addresses of one name.
#[derive(Debug)]
pub(super) struct Lookup {
    answers: mpsc::UnboundedReceiver<Answer>,
}

impl Lookup {
    /// Asks for `host`, which may also be an address, even one with a scope (`fe80::1%eth0`). Does not block.
    pub(super) fn start(host: &str, port: u16) -> Self {
        let (sender, answers) = mpsc::unbounded_channel();
        let lookup = Self { answers };
        let Ok(name) = CString::new(host) else {
            return lookup;
        };
        if let Ok(addresses) = getaddrinfo(&name, port, libc::AF_UNSPEC, libc::AI_NUMERICHOST) {
            let (v6, v4) = addresses.into_iter().partition(SocketAddr::is_ipv6);
            for answer in [(Family::V6, Ok(v6)), (Family::V4, Ok(v4))] {
                // The receiver still exists here.
                let _ = sender.send(answer);
            }
            return lookup;
        }
        for (family, number) in [(Family::V6, libc::AF_INET6), (Family::V4, libc::AF_INET)] {
            let name = name.clone();
            let asked = ask(sender.clone(), family, move || getaddrinfo(&name, port, number, 0));
            if let Err(error) = asked {
                let _ = sender.send((family, Err(error)));
            }
        }
        lookup
    }

    /// Returns the next of at most two answers.
    pub(super) async fn next(&mut self) -> Option<Answer> {
        self.answers.recv().await
    }
}

/// Asks on a thread that nobody waits for, because a resolver that gets no answer may take minutes.
fn ask(
    to: mpsc::UnboundedSender<Answer>,
    family: Family,
    question: impl FnOnce() -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<()> {
    let asked = Asked::count()?;
    let started = thread::Builder::new().name("lookup".to_owned()).stack_size(STACK_BYTES).spawn(move || {
        let _asked = asked;
        // The caller may be gone.
        let _ = to.send((family, question()));
    });
    started.map(drop).map_err(|error| {
        blocking::count_refused();
        io::Error::new(error.kind(), format!("no thread can be started: {error}"))
    })
}

/// Counts one question under way for as long as it lives.
struct Asked;

impl Asked {
    fn count() -> io::Result<Self> {
        let before = ASKED.fetch_add(1, Ordering::Relaxed);
        let asked = Self;
        if before >= MAX_LOOKUPS {
            return Err(io::Error::other(format!(
                "{before} lookups wait for their answers, the limit is {MAX_LOOKUPS}"
            )));
        }
        Ok(asked)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        ASKED.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Returns the addresses of `name`, with `port`, in the C library's order.
fn getaddrinfo(name: &CStr, port: u16, family: libc::c_int, flags: libc::c_int) -> io::Result<Vec<SocketAddr>> {
    let hints = libc::addrinfo {
        ai_flags: flags,
        ai_family: family,
        ai_socktype: libc::SOCK_STREAM,
        ai_protocol: 0,
        ai_addrlen: 0,
        ai_addr: ptr::null_mut(),
        ai_canonname: ptr::null_mut(),
        ai_next: ptr::null_mut(),
    };
    let mut list = ptr::null_mut();
    // SAFETY: the name ends with NUL, no service is asked for, and `hints` and `list` outlive the call.
    let code = unsafe { libc::getaddrinfo(name.as_ptr(), ptr::null(), &raw const hints, &raw mut list) };
    if code != 0 {
        return Err(error_of(code));
    }
    let mut addresses = Vec::new();
    let mut next = list;
    // SAFETY: a successful call has made a list of valid entries that ends with null, and nothing has freed it yet.
    while let Some(entry) = unsafe { next.as_ref() } {
        // SAFETY: the entry comes from `getaddrinfo`.
        addresses.extend(unsafe { address_of(entry, port) });
        next = entry.ai_next;
    }
    // SAFETY: the list comes from `getaddrinfo`, and what was read of it was copied.
    unsafe { libc::freeaddrinfo(list) };
    Ok(addresses)
}

/// Returns the address in an entry, unless it is of another kind.
///
/// # Safety
/// `ai_addr` points to a socket address of the kind that `ai_family` says, as `getaddrinfo` promises.
unsafe fn address_of(entry: &libc::addrinfo, port: u16) -> Option<SocketAddr> {
    match entry.ai_family {
        libc::AF_INET => {
            // SAFETY: by the caller's promise; the copy needs no alignment.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in>().read_unaligned() };
            let ip = Ipv4Addr::from(address.sin_addr.s_addr.to_ne_bytes());
            Some(SocketAddrV4::new(ip, port).into())
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let address = unsafe { entry.ai_addr.cast::<libc::sockaddr_in6>().read_unaligned() };
            let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
            Some(SocketAddrV6::new(ip, port, address.sin6_flowinfo, address.sin6_scope_id).into())
        }
        _ => None,
    }
}

fn error_of(code: libc::c_int) -> io::Error {
    if code == libc::EAI_SYSTEM {
        return io::Error::last_os_error();
    }
    // SAFETY: the C library returns a string constant for every number.
    let text = unsafe { CStr::from_ptr(libc::gai_strerror(code)) };
    io::Error::other(text.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::sync::Mutex;

    use super::*;

    /// Lookups are bounded in the whole process, so that a test that takes all of them would fail another.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

    async fn all(host: &str) -> Vec<SocketAddr> {
        let mut lookup = Lookup::start(host, 6751);
        let mut found = Vec::new();
        while let Some((_, answer)) = lookup.next().await {
            found.extend(answer.unwrap_or_default());
        }
        found
    }

    #[tokio::test]
    async fn addresses_need_no_resolver_and_names_of_the_hosts_file_are_found() {
        let _guard = ONE_AT_A_TIME.lock().await;
        for (host, expected) in [("10.0.0.1", "10.0.0.1:6751"), ("fd00::1", "[fd00::1]:6751")] {
            assert_eq!(all(host).await, [expected.parse::<SocketAddr>().expect("an address")]);
        }
        let scoped = all("fe80::1%lo").await;
        assert!(matches!(&scoped[..], [SocketAddr::V6(address)] if address.scope_id() > 0), "{scoped:?}");
        let local = all("localhost").await;
        assert!(!local.is_empty() && local.iter().all(|address| address.ip().is_loopback()), "{local:?}");
        assert!(all("a\0b").await.is_empty());
    }

    #[tokio::test]
    async fn lookups_without_an_answer_do_not_pile_up() {
        let _guard = ONE_AT_A_TIME.lock().await;
        let (sender, mut answers) = mpsc::unbounded_channel();
        let (hold, held) = std::sync::mpsc::channel::<()>();
        let held = std::sync::Arc::new(std::sync::Mutex::new(held));
        let silent = || {
            let held = std::sync::Arc::clone(&held);
            move || {
                let _ = held.lock().map(|held| held.recv());
                Ok(Vec::new())
            }
        };
        // Tests elsewhere may be asking as well.
        let started = (0..=MAX_LOOKUPS).filter(|_| ask(sender.clone(), Family::V4, silent()).is_ok()).count();
        assert!(started > 0 && started <= MAX_LOOKUPS, "{started} lookups were started");
        let refused = ask(sender.clone(), Family::V4, silent()).expect_err("it is one too many");
        assert!(refused.to_string().contains("the limit is"), "{refused}");
        drop(hold);
        for _ in 0..started {
            assert!(answers.recv().await.is_some());
        }
    }
}
