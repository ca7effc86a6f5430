//! `elklet doctor`: checks every hop from this host's configuration to a server that accepts this agent, and says which
//! one fails and what to do about it.
//!
//! It connects with the agent's own code, and opens a Transfer stream under the agent's id that carries no record.
//! While the agent itself runs, it sends nothing on that stream, because the id belongs to the agent.

mod hops;
mod permissions;
mod running;
mod visit;

use std::io::{self, Write};

use bytes::Bytes;
use elklet_core::printable::{Printable, PrintableJson};
use elklet_core::record::envelope::{Envelope, Sender};
use rustix::fs::{Access, access, statvfs};
use rustix::process::geteuid;
use serde::Serialize;

use self::hops::{HOPS, Hop, judge};
use self::running::Running;
use crate::clock;
use crate::config::{Address, Environment, Flags, Layout, Scheme, Settings};
use crate::host::{HostRoot, find_id, hostname};
use crate::net::{Certificates, Compressor, Tls, discover};
use crate::plugin;
use crate::sys::blocking::blocking;
use crate::sys::waiting::block_on;
use crate::version;

/// Bytes that should be free on the work directory's file system. The log takes 11 MB with its old files.
const LEAST_FREE_BYTES: u64 = 16 << 20;

const REFUSED: &str = "a server refuses it: for a certificate, enrol the host again with a new token (elklet enroll --force); for a \
    conflict, look for another host with this id";

/// The result of one check.
#[derive(Debug, Serialize)]
struct Finding {
    /// The server, or `None` for a check of this host itself.
    server: Option<String>,
    hop: &'static str,
    verdict: Verdict,
    detail: String,
    /// What to do about it.
    advice: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Verdict {
    #[serde(rename = "ok")]
    Ok,
    /// It does no harm yet.
    #[serde(rename = "warning")]
    Warning,
    #[serde(rename = "FAILED")]
    Failed,
    #[serde(rename = "skipped")]
    Skipped,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// All findings.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// The first server at which no hop failed.
    server: Option<String>,
    findings: Vec<Finding>,
    /// True to print each finding as it is made.
    #[serde(skip)]
    as_text: bool,
}

/// Prints the findings, as JSON on request. Returns true when an agent can work here.
///
/// # Errors
/// When the runtime cannot be started or standard output is closed.
pub(crate) fn run(flags: &Flags, json: bool) -> io::Result<bool> {
    let mut report = Report { as_text: !json, ..Report::default() };
    block_on(examine(flags, &mut report))??;
    let failed_here = report.findings.iter().any(|found| found.server.is_none() && found.verdict == Verdict::Failed);
    let mut out = io::stdout();
    let warnings = report.findings.iter().filter(|found| found.verdict == Verdict::Warning).count();
    let warnings = match warnings {
        0 => String::new(),
        1 => "; there is a warning above".to_owned(),
        n => format!("; there are {n} warnings above"),
    };
    match &report.server {
        _ if json => writeln!(out, "{}", PrintableJson(serde_json::to_string(&report).unwrap_or_default()))?,
        Some(server) => writeln!(out, "\nthe way to {} is open{warnings}", Printable(server))?,
        None => writeln!(out, "\nno way to a server is open")?,
    }
    Ok(report.server.is_some() && !failed_here)
}

async fn examine(flags: &Flags, report: &mut Report) -> io::Result<()> {
    let settings = match Settings::load(flags, &Environment::current()) {
        Ok(settings) => settings,
        Err(error) => return report.failed(None, "configuration", error.to_string(), "mend the place that is named"),
    };
    let server = &settings.server;
    let (servers, hosts) = (server.private.len() + server.public.len(), server.discovery.len());
    let found = format!("servers: {servers}, service discovery hosts: {hosts}");
    if settings.warnings.is_empty() {
        report.ok(None, "configuration", found)?;
    } else {
        let advice = "what is not understood is passed over: mend it, or take it away";
        report.warned(None, "configuration", settings.warnings.join("; "), advice)?;
    }
    work_directory(&settings.layout, report)?;
    let id = match find_id(&HostRoot::live(), &settings.layout.workdir, settings.agent_id.as_deref()) {
        Ok((id, source)) => {
            report.ok(None, "agent id", format!("{id} ({source})"))?;
            id
        }
        Err(error) => return report.failed(None, "agent id", error.to_string(), "set another SPECIFIED_AGENT_ID"),
    };
    let running = Running::find(&settings.layout);
    match running.describe(&settings.layout.certs) {
        (detail, Verdict::Failed) => report.failed(None, "agent", detail, REFUSED)?,
        (detail, Verdict::Warning) => {
            report.warned(None, "agent", detail, "`elklet status` as the agent's user says more")?;
        }
        (detail, _) => report.ok(None, "agent", detail)?,
    }
    sections(&settings, &running, report)?;
    permissions(&settings, report)?;
    let tls = certificates(&settings, report)?;
    let first = (!running.is_there()).then(|| first_message(id));
    let doctor = Doctor { tls, first, running, settings: &settings };
    for host in &settings.server.discovery {
        for address in doctor.discover(host, report).await? {
            doctor.visit(&address, "by discovery", report).await?;
        }
    }
    for (mode, addresses) in [("private", &settings.server.private), ("public", &settings.server.public)] {
        for address in addresses {
            doctor.visit(address, mode, report).await?;
        }
    }
    Ok(())
}

fn work_directory(layout: &Layout, report: &mut Report) -> io::Result<()> {
    let workdir = &layout.workdir;
    let shown = workdir.display();
    if layout.is_to_be_made() {
        return report.ok(None, "work directory", format!("{shown}, which the agent makes when it starts"));
    }
    let space = access(workdir, Access::WRITE_OK | Access::EXEC_OK).and_then(|()| statvfs(workdir));
    match space.map(|space| space.f_bavail.saturating_mul(space.f_frsize)) {
        Err(error) => {
            let advice = "the agent has to write there: mend owner, mode or mount, or run it as another user";
            report.failed(None, "work directory", format!("{shown}: {error}"), advice)
        }
        Ok(free) if free < LEAST_FREE_BYTES => {
            let detail = format!("{shown}: {free} bytes free, expected {LEAST_FREE_BYTES} at least");
            report.failed(None, "work directory", detail, "make room on its file system")
        }
        Ok(free) => report.ok(None, "work directory", format!("{shown}, {} MiB free", free >> 20)),
    }
}

/// Warns of each `[plugin.NAME]` that belongs to none of the plugins that the agent has, or had when it last ran.
fn sections(settings: &Settings, running: &Running, report: &mut Report) -> io::Result<()> {
    let kept = || plugin::read_kept(&settings.layout.workdir).unwrap_or_default();
    let names = || kept().iter().map(|plugin| plugin.name.to_string()).collect();
    let plugins: Vec<String> = running.plugins().unwrap_or_else(names);
    if plugins.is_empty() {
        // Without a plugin there is nothing to compare with.
        return Ok(());
    }
    let names: Vec<_> = plugins.iter().map(String::as_str).collect();
    for (section, meant) in settings.unknown_sections(&names) {
        let detail = format!("[plugin.{section}] in the file: no plugin has this name");
        let known = format!("the agent has {}", names.join(", "));
        let advice = meant.map_or(known, |meant| format!("did you mean [plugin.{meant}]?"));
        report.warned(None, "plugins", detail, &advice)?;
    }
    Ok(())
}

/// Warns of files that others on this host could read or change.
fn permissions(settings: &Settings, report: &mut Report) -> io::Result<()> {
    let findings = permissions::examine(settings);
    if findings.is_empty() {
        return report.ok(None, "permissions", "nobody else can read the key or change the agent's files".to_owned());
    }
    let advice =
        "take the rights away (chmod go-w, and 600 for keys and passwords), and let root or the agent's user own it";
    findings.into_iter().try_for_each(|what| report.warned(None, "permissions", what, advice))
}

/// Checks the certificates. Returns `None` if the files are useless.
fn certificates(settings: &Settings, report: &mut Report) -> io::Result<Option<Tls>> {
    let hop = "certificates";
    let certificates = match Certificates::load(settings.layout.certs.clone(), &settings.server) {
        Ok(certificates) => certificates,
        Err(error) => {
            let advice = "--certs or `certs` in the file names the directory; put the deployment's files there";
            report.failed(None, hop, settings.blame_certificates(error), advice)?;
            return Ok(None);
        }
    };
    let own = ["client.crt", "client.key"].map(|name| settings.layout.certs.join(name));
    if own.iter().all(|path| !path.exists()) {
        let [certificate, key] = own.map(|path| path.display().to_string());
        let detail = format!("no client certificate: neither {certificate} nor {key} exists");
        let advice = "AgentCenter refuses agents without one: put the deployment's client.crt and client.key there";
        report.failed(None, hop, detail, advice)?;
        return Ok(Some(certificates.tls().clone()));
    }
    let now = clock::unix_seconds();
    let warnings = certificates.warnings(now).join("; ");
    if certificates.days_left(now).into_iter().flatten().any(|days| days < 0) {
        let clock = clock::date(clock::unix_seconds());
        let advice = format!("this host's clock says {clock}: set it if that is wrong, else renew the certificate");
        report.failed(None, hop, warnings, &advice)?;
    } else if warnings.is_empty() {
        let mut detail = certificates.directory().display().to_string();
        let named = ["client.crt", "ca.crt"].into_iter().zip(certificates.ends()).zip(certificates.days_left(now));
        for ((name, end), days) in named {
            if let (Some(end), Some(days)) = (end, days) {
                detail += &format!(", {name} for {days} days (until {})", clock::date(end));
            }
        }
        report.ok(None, hop, detail)?;
    } else {
        report.warned(None, hop, warnings, "renew it before that day: the agent reads new files by itself")?;
    }
    Ok(Some(certificates.tls().clone()))
}

/// A message that says who this is and carries no record.
fn first_message(agent_id: String) -> Bytes {
    let envelope = Envelope::new(Sender {
        agent_id,
        hostname: hostname(),
        version: version().to_owned(),
        product: elklet_core::command::AGENT_NAME.to_owned(),
        ..Sender::default()
    });
    Compressor::new().message(&[envelope.bytes()]).into()
}

struct Doctor<'a> {
    /// `None` if the certificates are useless.
    tls: Option<Tls>,
    /// The message to send, or `None` while the agent itself runs.
    first: Option<Bytes>,
    running: Running,
    settings: &'a Settings,
}

impl Doctor<'_> {
    /// Asks a service discovery host.
    async fn discover(&self, host: &Address, report: &mut Report) -> io::Result<Vec<Address>> {
        let (asked, proxies) = (host.clone(), self.settings.proxies.clone());
        let answer = match blocking(move || discover(&asked, &proxies)).await {
            Ok(answer) => answer.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let server = Some(format!("{host} (discovery)"));
        match answer {
            Ok(addresses) if addresses.is_empty() => {
                let advice =
                    "AgentCenter registers itself there as hids_svr_grpc: does one run, and does it know this host?";
                report.failed(server, "discovery", "it names no AgentCenter".to_owned(), advice)?;
                Ok(addresses)
            }
            Ok(addresses) => {
                let named = addresses.iter().map(Address::to_string).collect::<Vec<_>>().join(", ");
                report.ok(server, "discovery", format!("it names {named}"))?;
                Ok(addresses)
            }
            Err(error) => {
                let advice = "is the address right, the service up, a firewall or proxy in between?";
                report.failed(server, "discovery", error, advice)?;
                Ok(Vec::new())
            }
        }
    }

    /// Goes as far as possible towards an AgentCenter.
    async fn visit(&self, address: &Address, mode: &str, report: &mut Report) -> io::Result<()> {
        let server = format!("{address} ({mode})");
        let proxies = &self.settings.proxies;
        let proxy = proxies.for_target(Scheme::Https, &address.host, address.port);
        let proxy = proxy.map(|proxy| proxy.address.to_string());
        let Some(tls) = &self.tls else {
            return HOPS.iter().try_for_each(|hop| {
                report.skipped(Some(server.clone()), hop.name(), "there are no certificates to go with".to_owned())
            });
        };
        let (reached, outcome) = visit::visit(tls, proxies, address, self.first.as_ref()).await;
        let failure = judge(reached, &outcome, self.first.is_some());
        for hop in HOPS {
            let server = Some(server.clone());
            match &failure {
                Some(failure) if failure.hop == hop => {
                    report.failed(server, hop.name(), failure.what.clone(), &failure.advice)?;
                }
                Some(failure) if failure.hop < hop => report.skipped(server, hop.name(), String::new())?,
                _ if hop == Hop::AgentCenter && self.running.connected_to() == Some(&address.to_string()) => {
                    report.ok(server, hop.name(), "the running agent is connected to it by this id".to_owned())?;
                }
                _ => match hop.passed_over(address, proxy.as_deref(), self.first.is_some()) {
                    Some(why) => report.skipped(server, hop.name(), why)?,
                    None => report.ok(server, hop.name(), hop.detail(proxy.as_deref()))?,
                },
            }
        }
        if failure.is_none() {
            report.server.get_or_insert(server);
        }
        Ok(())
    }
}

/// The advice when the system refuses something to this user.
fn forbidden() -> String {
    let user = geteuid().as_raw();
    format!(
        "user {user} may not do this: run elklet as root, or let this user own it (chown {user}, with each directory above)"
    )
}

impl Report {
    fn ok(&mut self, server: Option<String>, hop: &'static str, detail: String) -> io::Result<()> {
        self.add(Finding { server, hop, verdict: Verdict::Ok, detail, advice: None })
    }

    fn skipped(&mut self, server: Option<String>, hop: &'static str, detail: String) -> io::Result<()> {
        self.add(Finding { server, hop, verdict: Verdict::Skipped, detail, advice: None })
    }

    fn warned(&mut self, server: Option<String>, hop: &'static str, detail: String, advice: &str) -> io::Result<()> {
        let advice = Some(advice.to_owned());
        self.add(Finding { server, hop, verdict: Verdict::Warning, detail, advice })
    }

    fn failed(&mut self, server: Option<String>, hop: &'static str, detail: String, advice: &str) -> io::Result<()> {
        // It does not help a user who may not read a file to hear where the file should be.
        let is_forbidden = detail.contains("(os error 13)") || detail.contains("(os error 1)");
        let advice = Some(if is_forbidden { forbidden() } else { advice.to_owned() });
        self.add(Finding { server, hop, verdict: Verdict::Failed, detail, advice })
    }

    fn add(&mut self, found: Finding) -> io::Result<()> {
        if self.as_text {
            let mut out = io::stdout().lock();
            let before = self.findings.last().and_then(|before| before.server.as_ref());
            if let Some(server) = found.server.as_ref().filter(|server| before != Some(server)) {
                writeln!(out, "\n{}", Printable(server))?;
            }
            let line = format!("  {:<15} {:<8} {}", found.hop, found.verdict.word(), found.detail);
            writeln!(out, "{}", Printable(line.trim_end()))?;
            if let Some(advice) = &found.advice {
                writeln!(out, "{}", Printable(format_args!("  {:<24} -> {advice}", "")))?;
            }
        }
        self.findings.push(found);
        Ok(())
    }
}
