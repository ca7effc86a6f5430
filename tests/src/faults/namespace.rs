//! A network namespace whose loopback interface can silently drop packets.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::process::{Child, Command, Stdio};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// A network namespace, for as long as this lives.
#[derive(Debug)]
pub struct Namespace {
    /// A process that does nothing but keep the namespace alive.
    holder: Child,
}

impl Namespace {
    /// Creates a namespace with only a loopback interface.
    ///
    /// # Errors
    /// Why it cannot be created here: that needs root, `ip` and `nft`.
    pub fn new() -> Result<Self, String> {
        let hold = "ip link set lo up && nft list ruleset && echo ready && exec cat";
        let mut command = Command::new("unshare");
        command
            .args(["--net", "--", "sh", "-c", hold])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut holder = command.spawn().map_err(|error| format!("unshare: {error}"))?;
        let mut line = String::new();
        let stdout = holder.stdout.take().expect("it is a pipe");
        let read = BufReader::new(stdout).read_line(&mut line);
        let namespace = Self { holder };
        match read {
            Ok(_) if line == "ready\n" => Ok(namespace),
            _ => Err("a network namespace with nftables takes root, ip and nft".to_owned()),
        }
    }

    /// Returns the words to put before a command, so that it runs in the namespace.
    #[must_use]
    pub fn prefix(&self) -> [String; 3] {
        ["nsenter".to_owned(), format!("--net=/proc/{}/ns/net", self.holder.id()), "--".to_owned()]
    }

    /// Drops every packet from and to this port from now on.
    ///
    /// # Panics
    /// When nftables refuses.
    pub fn silence(&self, address: SocketAddr) {
        let port = address.port();
        self.drop_packets(&format!("tcp dport {port} drop; tcp sport {port} drop"));
    }

    /// Drops packets to this port that are longer than this many bytes, as a path does whose MTU is smaller than its
    /// ends believe.
    ///
    /// # Panics
    /// When nftables refuses.
    pub fn drop_long(&self, address: SocketAddr, bytes: usize) {
        self.drop_packets(&format!("tcp dport {} meta length > {bytes} drop", address.port()));
    }

    /// Drops packets by these rules, which replace any others.
    ///
    /// # Panics
    /// When nftables refuses.
    pub fn drop_packets(&self, rules: &str) {
        let chain = format!("chain lost {{ type filter hook input priority 0; {rules}; }}");
        self.nft(&format!("table inet faults {{}}; delete table inet faults; table inet faults {{ {chain}; }}\n"));
    }

    /// Runs `work` on a thread in the namespace. Sockets that it opens stay in the namespace.
    ///
    /// # Panics
    /// When the thread cannot enter, or panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/proc/{}/ns/net", self.holder.id());
        let space = File::open(path).expect("the holder lives");
        let work = move || {
            let kind = LinkNameSpaceType::Network;
            move_into_link_name_space(space.as_fd(), Some(kind)).expect("whoever makes a namespace may enter it");
            work()
        };
        thread::scope(|scope| scope.spawn(work).join()).expect("it does not panic")
    }

    /// Lets packets through again.
    ///
    /// # Panics
    /// When no packets were being dropped.
    pub fn restore(&self) {
        self.nft("delete table inet faults");
    }

    fn nft(&self, rules: &str) {
        let [enter, space, end] = self.prefix();
        let mut command = Command::new(enter);
        command.args([&space, &end, "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut nft = command.spawn().expect("it was there before");
        nft.stdin.take().expect("it is a pipe").write_all(rules.as_bytes()).expect("nft reads its rules");
        assert!(nft.wait().is_ok_and(|status| status.success()), "nft takes {rules}");
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.holder.kill();
        _ = self.holder.wait();
    }
}
