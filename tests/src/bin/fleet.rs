//! A fleet of simulated agents in one process, to load a center: each has a connection of its own over mutual TLS, and sends batches of
//! the benchmark's records through flow control, as real agents do.
#![forbid(unsafe_code)]
// What it measured goes to standard output: that is what the program was asked for.
#![allow(clippy::print_stdout)]

use bytes::{BufMut, Bytes, BytesMut};
use elklet_proto::grpc::{EncodedRecord, PackagedData, Payload};
use elklet_tests::load::{Size, Templates};
use elklet_tests::pki::{SERVER_NAME, Set};
use h2::SendStream;
use http::Request;
use lexopt::prelude::*;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use std::error::Error;
use std::future::poll_fn;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

const HELP: &str = "\
fleet: agents in one process, to load a center

usage: fleet --center PROGRAM [OPTIONS]

  --center PROGRAM   the program elklet-center, which is started with a directory of its own
  --agents N         simulated agents (default 1000)
  --rate N           records a second, of all agents together (default 10000)
  --seconds N        for how long they send (default 30)
  --dir DIR          where the center's data is (default: a temporary directory)
  --config FILE      the center's settings, which may pass records on; it is then told how far that is
";

/// TLS handshakes at a time, as a fleet that spreads its reconnections has them.
const CONNECTING: usize = 64;

/// A batch leaves every so often.
const INTERVAL: Duration = Duration::from_secs(1);

fn main() -> Result<(), Box<dyn Error>> {
    let mut parser = lexopt::Parser::from_env();
    let (mut center, mut dir, mut config) = (None, None, None);
    let (mut agents, mut rate, mut seconds) = (1000_usize, 10_000_u64, 30);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") => {
                print!("{HELP}");
                return Ok(());
            }
            Long("center") => center = Some(PathBuf::from(parser.value()?)),
            Long("agents") => agents = parser.value()?.parse()?,
            Long("rate") => rate = parser.value()?.parse()?,
            Long("seconds") => seconds = parser.value()?.parse()?,
            Long("config") => config = Some(PathBuf::from(parser.value()?)),
            Long("dir") => dir = Some(PathBuf::from(parser.value()?)),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let temporary = tempfile::tempdir()?;
    let dir = dir.unwrap_or_else(|| temporary.path().to_owned());
    let certs = temporary.path().join("certs");
    Set::new().write(&certs)?;
    let center = Center::start(&center.ok_or("--center PROGRAM is missing")?, &certs, &dir, config.as_deref())?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&center, &certs, agents, rate, Duration::from_secs(seconds)))
}

async fn run(center: &Center, certs: &Path, agents: usize, rate: u64, length: Duration) -> Result<(), Box<dyn Error>> {
    let tls = TlsConnector::from(Arc::new(client_config(certs)?));
    let fleet = Arc::new(Fleet {
        connected: AtomicU64::new(0),
        failed: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        sending: AtomicBool::new(false),
        done: AtomicBool::new(false),
        handshakes: Semaphore::new(CONNECTING),
        records: records(),
    });
    let each = rate as f64 * INTERVAL.as_secs_f64() / agents as f64;
    println!("idle: {}", center.figures());
    let start = Instant::now();
    for n in 0..agents {
        let (tls, fleet, address) = (tls.clone(), Arc::clone(&fleet), center.grpc);
        tokio::spawn(async move {
            if let Err(error) = agent(n, address, tls, &fleet, each).await
                && !fleet.done.load(Relaxed)
                && fleet.failed.fetch_add(1, Relaxed) == 0
            {
                eprintln!("fleet: the first agent that failed: {error}");
            }
        });
    }
    let all = agents as u64;
    while fleet.connected.load(Relaxed) + fleet.failed.load(Relaxed) < all {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!(
        "{} of {agents} connected in {:.1} s; {}",
        fleet.connected.load(Relaxed),
        start.elapsed().as_secs_f64(),
        center.figures()
    );
    let (before, cpu, start) = (center.counted(), center.cpu_seconds(), Instant::now());
    fleet.sending.store(true, Relaxed);
    while start.elapsed() < length {
        tokio::time::sleep(Duration::from_secs(5)).await;
        println!(
            "{:>3.0} s: sent {}, stored {}; {}{}",
            start.elapsed().as_secs_f64(),
            fleet.sent.load(Relaxed),
            center.counted() - before,
            center.figures(),
            center.outputs()
        );
    }
    fleet.sending.store(false, Relaxed);
    let (elapsed, stored) = (start.elapsed().as_secs_f64(), center.counted() - before);
    println!(
        "{:.0} records/s stored over {elapsed:.1} s, {:.2} cores of the center, {} agents failed; {}",
        stored as f64 / elapsed,
        (center.cpu_seconds() - cpu) / elapsed,
        fleet.failed.load(Relaxed),
        center.figures()
    );
    let end = Instant::now();
    while center.counted() - before < fleet.sent.load(Relaxed) && end.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    let (sent, stored) = (fleet.sent.load(Relaxed), center.counted() - before);
    println!("sent {sent}, stored {stored} after {:.1} s more", end.elapsed().as_secs_f64());
    while center.behind().any(|(_, lag)| lag != "0") && end.elapsed() < Duration::from_secs(60) {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    println!("after {:.1} s more{}", end.elapsed().as_secs_f64(), center.outputs());
    fleet.done.store(true, Relaxed);
    Ok(())
}

struct Fleet {
    connected: AtomicU64,
    failed: AtomicU64,
    sent: AtomicU64,
    sending: AtomicBool,
    done: AtomicBool,
    handshakes: Semaphore,
    records: Vec<EncodedRecord>,
}

/// Lives until the program ends.
async fn agent(
    n: usize,
    address: SocketAddr,
    tls: TlsConnector,
    fleet: &Fleet,
    each: f64,
) -> Result<(), Box<dyn Error + Send + Sync>> {
    let handshake = fleet.handshakes.acquire().await?;
    let tcp = TcpStream::connect(address).await?;
    tcp.set_nodelay(true)?;
    let tls = tls.connect(ServerName::try_from(SERVER_NAME)?.to_owned(), tcp).await?;
    let (requests, connection) = h2::client::handshake(tls).await?;
    let driver = tokio::spawn(connection);
    let mut requests = requests.ready().await?;
    let request = Request::post("https://elkeid.com/grpc.Transfer/Transfer")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-encoding", "snappy")
        .body(())?;
    let (_response, mut stream) = requests.send_request(request, false)?;
    let heartbeat = Payload { fields: [("cpu".to_owned(), "0.5".to_owned())].into() };
    let heartbeat = EncodedRecord { data_type: 1000, timestamp: 0, data: heartbeat.encode_to_vec() };
    send(&mut stream, message(n, vec![heartbeat])).await?;
    drop(handshake);
    fleet.connected.fetch_add(1, Relaxed);
    // Agents are spread over the interval.
    tokio::time::sleep(INTERVAL.mul_f64((n % 1000) as f64 / 1000.0)).await;
    let mut timer = tokio::time::interval(INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut owed, mut next) = (0.0, n);
    while !driver.is_finished() {
        timer.tick().await;
        if !fleet.sending.load(Relaxed) {
            continue;
        }
        owed += each;
        let mut batch = Vec::new();
        while owed >= 1.0 {
            owed -= 1.0;
            next += 1;
            batch.push(fleet.records[next % fleet.records.len()].clone());
        }
        if !batch.is_empty() {
            let count = batch.len() as u64;
            send(&mut stream, message(n, batch)).await?;
            fleet.sent.fetch_add(count, Relaxed);
        }
    }
    Err("the connection ended".into())
}

fn message(n: usize, records: Vec<EncodedRecord>) -> Bytes {
    let data = PackagedData {
        records,
        agent_id: format!("fleet-{n:05}"),
        hostname: format!("host-{n:05}"),
        version: "1.7.0.24".to_owned(),
        product: "elkeid-agent".to_owned(),
        intranet_ipv4: vec!["10.0.0.1".to_owned()],
        ..Default::default()
    };
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    encoder.write_all(&data.encode_to_vec()).expect("writing to memory does not fail");
    let body = encoder.into_inner().expect("writing to memory does not fail");
    let mut message = BytesMut::with_capacity(5 + body.len());
    message.put_u8(1);
    message.put_u32(u32::try_from(body.len()).expect("a short message"));
    message.put_slice(&body);
    message.freeze()
}

/// Returns once flow control has taken the last byte.
async fn send(stream: &mut SendStream<Bytes>, mut bytes: Bytes) -> Result<(), h2::Error> {
    while !bytes.is_empty() {
        stream.reserve_capacity(bytes.len());
        if stream.capacity() == 0 {
            match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(granted) => _ = granted?,
                None => return Err(h2::Reason::STREAM_CLOSED.into()),
            }
        }
        let granted = stream.capacity().min(bytes.len());
        if granted > 0 {
            stream.send_data(bytes.split_to(granted), false)?;
        }
    }
    Ok(())
}

/// The benchmark's small records, as they stand in a message.
fn records() -> Vec<EncodedRecord> {
    let templates = Templates::new(Size::Small);
    (0..512)
        .map(|seq| {
            let mut frame = Vec::new();
            templates.append(seq, 0, &mut frame);
            EncodedRecord::decode(&frame[4..]).expect("a frame is a length and a record")
        })
        .collect()
}

fn client_config(certs: &Path) -> Result<ClientConfig, Box<dyn Error>> {
    let read = |name: &str| CertificateDer::pem_file_iter(certs.join(name))?.collect::<Result<Vec<_>, _>>();
    let mut roots = RootCertStore::empty();
    for certificate in read("ca.crt")? {
        roots.add(certificate)?;
    }
    let key = PrivateKeyDer::from_pem_file(certs.join("client.key"))?;
    let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_client_auth_cert(read("client.crt")?, key)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // Agents are different hosts, so that none has another's session.
    config.resumption = rustls::client::Resumption::disabled();
    Ok(config)
}

/// The center under load.
struct Center {
    child: Child,
    grpc: SocketAddr,
    http: SocketAddr,
}

impl Center {
    fn start(program: &Path, certs: &Path, dir: &Path, config: Option<&Path>) -> Result<Self, Box<dyn Error>> {
        let mut child = Command::new(program)
            .args(["serve", "--quiet", "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--conn-limit", "20000"])
            .arg("--certs")
            .arg(certs)
            .arg("--data")
            .arg(dir)
            .args(config.iter().flat_map(|config| [Path::new("--config"), config]))
            .stderr(Stdio::piped())
            .spawn()?;
        let mut errors = BufReader::new(child.stderr.take().ok_or("it has a pipe")?);
        let mut line = String::new();
        errors.read_line(&mut line)?;
        let at = |port: &str| line.split_whitespace().find_map(|word| word.strip_prefix(port)?.parse().ok());
        let (Some(grpc), Some(http)) = (at("grpc="), at("http=")) else {
            return Err(format!("the center says {line:?}").into());
        };
        std::thread::Builder::new()
            .spawn(move || errors.lines().map_while(Result::ok).for_each(|line| eprintln!("{line}")))?;
        Ok(Self { child, grpc, http })
    }

    /// Returns how many records it has stored.
    fn counted(&self) -> u64 {
        let metrics = self.metrics().unwrap_or_default();
        let of = metrics.lines().filter_map(|line| line.strip_prefix("center_records_total{data_type=\"59\"} "));
        of.filter_map(|count| count.parse::<u64>().ok()).sum()
    }

    /// Returns the outputs that records are passed on to, each with how many it lags behind.
    fn behind(&self) -> impl Iterator<Item = (String, String)> + use<> {
        let metrics = self.metrics().unwrap_or_default();
        let of = |line: &str| {
            let (name, lag) = line.strip_prefix("center_forward_lag_records{output=\"")?.split_once("\"} ")?;
            Some((name.to_owned(), lag.to_owned()))
        };
        metrics.lines().filter_map(of).collect::<Vec<_>>().into_iter()
    }

    fn outputs(&self) -> String {
        self.behind().map(|(name, lag)| format!("; {name} lags {lag} records behind")).collect()
    }

    fn metrics(&self) -> std::io::Result<String> {
        let mut tcp = std::net::TcpStream::connect(self.http)?;
        tcp.write_all(b"GET /metrics HTTP/1.0\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        tcp.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Returns its memory, as the kernel counts it.
    fn figures(&self) -> String {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() / 1024
        };
        format!("center's RSS {} MiB, at most {} MiB", of("VmRSS:"), of("VmHWM:"))
    }

    /// Returns how long it has had a processor, in user and kernel mode.
    fn cpu_seconds(&self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap_or_default();
        let fields: Vec<&str> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
        (ticks(11) + ticks(12)) / rustix::param::clock_ticks_per_second() as f64
    }
}

impl Drop for Center {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.child.kill();
        _ = self.child.wait();
    }
}
