//! The agent as a service that tells systemd how it is.

use elklet_tests::harness::{Agent, DEADLINE, Signal, Site};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The service manager's end.
struct Manager {
    socket: UnixDatagram,
    name: String,
}

impl Manager {
    /// Listens at an abstract name, as systemd does for its users' services.
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("elklet-test-{}-{}", process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let socket = UnixDatagram::bind_addr(&address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        Self { socket, name: format!("@{name}") }
    }

    fn start(&self, site: &Site, watchdog: &[(&str, &str)]) -> Agent {
        let setup = site.setup().server(&site.address()).variable("NOTIFY_SOCKET", &self.name);
        watchdog.iter().fold(setup, |setup, (name, value)| setup.variable(name, value)).start()
    }

    fn next(&self) -> String {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].to_vec()).unwrap()
    }
}

#[test]
fn systemd_hears_of_start_connection_reload_and_end() {
    let site = Site::new();
    let manager = Manager::new();
    let mut agent = manager.start(&site, &[]);
    assert_eq!(manager.next(), "READY=1");
    assert_eq!(manager.next(), format!("STATUS=connected to {} (private)", site.address()));
    agent.signal(Signal::HUP);
    let reloading = manager.next();
    let since = reloading.strip_prefix("RELOADING=1\nMONOTONIC_USEC=").unwrap();
    assert!(since.parse::<u64>().unwrap() > 0);
    assert_eq!(manager.next(), "READY=1");
    agent.signal(Signal::TERM);
    assert_eq!(manager.next(), "STOPPING=1");
    assert!(agent.wait_for_exit().success());
}

#[test]
fn an_agent_that_loses_its_server_says_why_in_its_status() {
    let mut site = Site::new();
    let manager = Manager::new();
    let _agent = manager.start(&site, &[]);
    assert_eq!((manager.next(), manager.next().contains("STATUS=connected")), ("READY=1".to_owned(), true));
    site.stop();
    let lost = manager.next();
    assert!(lost.starts_with("STATUS=not connected: "), "{lost}");
}

#[test]
fn the_watchdog_gets_signs_of_life_twice_in_its_time_until_the_agent_is_stopped() {
    let site = Site::new();
    let manager = Manager::new();
    let agent = manager.start(&site, &[("WATCHDOG_USEC", "1000000")]);
    let mut signs = 0;
    while signs < 4 {
        signs += u32::from(manager.next() == "WATCHDOG=1");
    }
    agent.signal(Signal::STOP);
    manager.socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut bytes = [0; 4096];
    // What was on its way.
    while manager.socket.recv(&mut bytes).is_ok() {}
    agent.signal(Signal::CONT);
    manager.socket.set_read_timeout(Some(DEADLINE)).unwrap();
    while manager.next() != "WATCHDOG=1" {}
}

#[test]
fn a_watchdog_of_another_process_gets_none() {
    let site = Site::new();
    let manager = Manager::new();
    let agent = manager.start(&site, &[("WATCHDOG_USEC", "200000"), ("WATCHDOG_PID", "1")]);
    site.wait_connected(&agent);
    // Ten of them would have come.
    std::thread::sleep(Duration::from_secs(1));
    agent.signal(Signal::TERM);
    let mut heard = vec![manager.next()];
    while heard.last().is_some_and(|message| message != "STOPPING=1") {
        heard.push(manager.next());
    }
    assert!(!heard.iter().any(|message| message == "WATCHDOG=1"), "{heard:?}");
}
