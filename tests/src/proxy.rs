//! Proxies to go through: HTTP `CONNECT` and SOCKS5, with or without a password, and proxies that fail in one way each.
//!
//! A [`Proxy`] notes every target that it was asked for, word for word, and connects to what [`Options::leads_to`]
//! says. Names that nobody else can resolve are therefore valid targets too.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A proxy's protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `CONNECT` of HTTP/1.1.
    Http,
    /// SOCKS version 5.
    Socks5,
}

/// How a proxy behaves.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The user and the password that it requires. Without them anybody may use it.
    pub login: Option<(String, String)>,
    /// Where targets really are, by `HOST:PORT` as clients ask for them. Others are where they say.
    pub leads_to: HashMap<String, SocketAddr>,
    /// What it answers to every client before it hangs up, instead of doing its work. An empty answer means that it
    /// keeps silent and holds the connection.
    pub instead: Option<Vec<u8>>,
}

/// A running proxy on a free port of the loopback interface. Dropping it closes it and all connections through it.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    kind: Kind,
    options: Options,
    targets: Mutex<Vec<String>>,
    /// Both ends of every open connection, to be closed at the end.
    streams: Mutex<Vec<TcpStream>>,
    done: AtomicBool,
}

impl Proxy {
    /// Starts a proxy that serves everybody.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn start(kind: Kind) -> Self {
        Self::with(kind, Options::default())
    }

    /// Starts a proxy with these options.
    ///
    /// # Panics
    /// When there is no free port.
    #[must_use]
    pub fn with(kind: Kind, options: Options) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        listener.set_nonblocking(true).expect("a socket can be");
        let shared = Arc::new(Shared {
            kind,
            options,
            targets: Mutex::default(),
            streams: Mutex::default(),
            done: AtomicBool::new(false),
        });
        let accepting = Arc::clone(&shared);
        let thread = thread::spawn(move || {
            while !accepting.done.load(Ordering::Relaxed) {
                match listener.accept() {
                    Ok((client, _)) => {
                        let shared = Arc::clone(&accepting);
                        thread::spawn(move || shared.serve_and_hang_up(&client));
                    }
                    Err(_) => thread::sleep(Duration::from_millis(5)),
                }
            }
        });
        Self { address, shared, thread: Some(thread) }
    }

    /// Returns its address, as `HOST:PORT`.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Returns the URL that configures it for a client. `login` goes before the `@`.
    #[must_use]
    pub fn url(&self, login: &str) -> String {
        let scheme = match self.shared.kind {
            Kind::Http => "http",
            Kind::Socks5 => "socks5",
        };
        let at = if login.is_empty() { "" } else { "@" };
        format!("{scheme}://{login}{at}{}", self.address)
    }

    /// Returns every target that it was asked for and connected to, as `HOST:PORT`, oldest first.
    #[must_use]
    pub fn targets(&self) -> Vec<String> {
        self.shared.targets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.done.store(true, Ordering::Relaxed);
        for stream in self.shared.streams.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            // It may have ended already.
            _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(thread) = self.thread.take() {
            _ = thread.join();
        }
    }
}

impl Shared {
    fn serve_and_hang_up(&self, client: &TcpStream) {
        // A client may leave in the middle, or be gone already.
        _ = client.try_clone().and_then(|client| self.serve(client));
        _ = client.shutdown(Shutdown::Both);
    }

    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nonblocking(false)?;
        self.keep(&client)?;
        if let Some(answer) = &self.options.instead {
            if answer.is_empty() {
                // This waits until the client hangs up or the test ends.
                return io::copy(&mut client, &mut io::sink()).map(drop);
            }
            _ = client.read(&mut [0; 4096])?;
            return client.write_all(answer);
        }
        let target = match self.kind {
            Kind::Http => self.hear_connect(&mut client)?,
            Kind::Socks5 => self.hear_socks5(&mut client)?,
        };
        let Some(target) = target else { return Ok(()) };
        self.targets.lock().unwrap_or_else(PoisonError::into_inner).push(target.clone());
        let server = match self.options.leads_to.get(&target) {
            Some(address) => TcpStream::connect(address),
            None => TcpStream::connect(&target),
        };
        let answer: &[u8] = match (self.kind, server.is_ok()) {
            (Kind::Http, true) => b"HTTP/1.1 200 Connection established\r\nVia: 1.1 test\r\n\r\n",
            (Kind::Http, false) => b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
            (Kind::Socks5, true) => &[5, 0, 0, 1, 127, 0, 0, 1, 0, 1],
            (Kind::Socks5, false) => &[5, 5, 0, 1, 0, 0, 0, 0, 0, 0],
        };
        client.write_all(answer)?;
        let Ok(server) = server else { return Ok(()) };
        self.keep(&server)?;
        let (mut upstream, mut downstream) = ((client.try_clone()?, server.try_clone()?), (server, client));
        let up = thread::spawn(move || pass(&mut upstream.0, &mut upstream.1));
        pass(&mut downstream.0, &mut downstream.1);
        _ = up.join();
        Ok(())
    }

    fn keep(&self, stream: &TcpStream) -> io::Result<()> {
        let copy = stream.try_clone()?;
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).push(copy);
        if self.done.load(Ordering::Relaxed) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }

    fn hear_connect(&self, client: &mut TcpStream) -> io::Result<Option<String>> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(byte(client)?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let authorization = head.lines().find_map(|line| line.strip_prefix("Proxy-Authorization: Basic "));
        let login = self.options.login.as_ref().map(|(user, password)| base64(&format!("{user}:{password}")));
        let answer = match head.lines().next().unwrap_or_default().split(' ').collect::<Vec<_>>()[..] {
            _ if login.is_some() && authorization != login.as_deref() => {
                "HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n"
            }
            ["CONNECT", target, "HTTP/1.1"] => return Ok(Some(target.to_owned())),
            _ => "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n",
        };
        client.write_all(answer.as_bytes())?;
        Ok(None)
    }

    fn hear_socks5(&self, client: &mut TcpStream) -> io::Result<Option<String>> {
        let _version = byte(client)?;
        let methods = short(client)?;
        let wanted = if self.options.login.is_some() { 2 } else { 0 };
        if !methods.contains(&wanted) {
            client.write_all(&[5, 0xff])?;
            return Ok(None);
        }
        client.write_all(&[5, wanted])?;
        if let Some((user, password)) = &self.options.login {
            let _version = byte(client)?;
            let given = (short(client)?, short(client)?);
            let is_right = given == (user.as_bytes().to_vec(), password.as_bytes().to_vec());
            client.write_all(&[1, u8::from(!is_right)])?;
            if !is_right {
                return Ok(None);
            }
        }
        let [_version, _connect, _reserved, kind] = bytes(client)?;
        let host = match kind {
            1 => IpAddr::from(Ipv4Addr::from(bytes::<4>(client)?)).to_string(),
            4 => format!("[{}]", Ipv6Addr::from(bytes::<16>(client)?)),
            _ => String::from_utf8_lossy(&short(client)?).into_owned(),
        };
        let port = u16::from_be_bytes(bytes(client)?);
        Ok(Some(format!("{host}:{port}")))
    }
}

fn pass(from: &mut TcpStream, to: &mut TcpStream) {
    // However it ends, this passes the end on to the other side.
    _ = io::copy(from, to);
    _ = to.shutdown(Shutdown::Write);
}

fn bytes<const N: usize>(client: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn byte(client: &mut TcpStream) -> io::Result<u8> {
    bytes::<1>(client).map(|[byte]| byte)
}

/// Reads bytes behind a byte that counts them.
fn short(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; byte(client)?.into()];
    client.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn base64(text: &str) -> String {
    let pem = pem::encode(&pem::Pem::new("X", text.as_bytes()));
    pem.lines().filter(|line| !line.starts_with('-')).collect()
}
