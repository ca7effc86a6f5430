//! An agent with the settings of one column, the server that attacks it, and what both need.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use elklet_core::link::x509;
use elklet_proto::grpc::{Command as ToAgent, Config, Task};
use elklet_tests::binaries::Binaries;
use elklet_tests::files::Files;
use elklet_tests::harness::{Agent, DEADLINE, Setup, Site, holds_within, types, wait_until, whole_lines};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tempfile::TempDir;

use crate::downloads::sha256;
use crate::tables;

/// The most bytes of memory that the agent may ever have had, whatever the server does.
const MOST_MEMORY: u64 = 48 << 20;

/// The password of the host's proxy, which no server needs to know.
const PASSWORD: &str = "correct-horse-battery";

/// How the tokens of tasks begin that show only that the agent still answers.
const BARRIER: &str = "barrier-";

/// Which settings the agent has.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Column {
    Default,
    Strict,
}

pub(super) struct Stage {
    pub(super) site: Site,
    pub(super) agent: Agent,
    pub(super) files: Files,
    /// A directory outside the agent's own, with `shadow` in it, which only the agent's user can read.
    pub(super) ground: TempDir,
    signer: Signer,
    /// Numbers that have been given to attempts.
    numbers: u32,
    /// False once the agent has ended because it was told to.
    pub(super) is_alive: bool,
}

impl Stage {
    pub(super) fn new(column: Column) -> Self {
        let site = Site::with(|options| options.upload_dir = Some(options.certs.join("uploads")));
        let ground = tempfile::tempdir().unwrap();
        fs::write(ground.path().join("shadow"), "root:$6$salt$hash:20000:0:99999:7:::\n").unwrap();
        let signer = Signer::new();
        // The agent may replace its own program.
        let mut setup = site.eager();
        let program = program_of(setup.workdir().path());
        fs::create_dir(program.parent().unwrap()).unwrap();
        // Another process copies it, so that no other test's process has it open for writing.
        assert!(Command::new("cp").arg(&Binaries::for_tests().elklet).arg(&program).status().unwrap().success());
        setup = setup.program(&program);
        setup = setup.setting("proxy", &format!("url = \"http://host:{PASSWORD}@127.0.0.1:9\""));
        setup = setup.setting("proxy", "no_proxy = [\"127.0.0.0/8\"]").setting("update", "hold_s = 1");
        if column == Column::Strict {
            setup = stricter(setup, &site, &signer);
        }
        let agent = setup.start();
        site.wait_connected(&agent);
        Self { site, agent, files: Files::start(), ground, signer, numbers: 0, is_alive: true }
    }

    /// Returns a word that nothing else has been called by.
    pub(super) fn unique(&mut self, stem: &str) -> String {
        self.numbers += 1;
        format!("{stem}-{}", self.numbers)
    }

    /// Signs an entry by the key that the stricter settings name.
    pub(super) fn signed(&self, entry: Config) -> Config {
        let signature = self.signer.sign(&entry);
        Config { signature, ..entry }
    }

    /// Sends a configuration. Returns true if `happened` comes to hold, and false if the agent's log says before that this `name` was
    /// refused.
    pub(super) fn configure(&self, entries: &[Config], name: &str, happened: impl FnMut(&Self) -> bool) -> bool {
        let before = self.refusals(name);
        self.site.configure(&self.agent, entries);
        self.decide(name, happened, |stage| stage.refusals(name) > before)
    }

    /// Returns how often the agent has said that something of this name was refused.
    pub(super) fn refusals(&self, name: &str) -> usize {
        let lines = self.agent.log_lines(name);
        lines.iter().filter(|line| line.contains(" WARN ") && line.contains("plugin ")).count()
    }

    /// Waits until the one or the other holds. Returns true if it is the first.
    pub(super) fn decide(
        &self,
        what: &str,
        mut happened: impl FnMut(&Self) -> bool,
        mut refused: impl FnMut(&Self) -> bool,
    ) -> bool {
        let mut outcome = None;
        wait_until(&format!("outcome of {what}"), || {
            outcome = if happened(self) {
                Some(true)
            } else if refused(self) {
                Some(false)
            } else {
                None
            };
            outcome.is_some()
        });
        outcome.unwrap()
    }

    /// Returns true once a scripted plugin has written a record of this run.
    pub(super) fn has_run(&self, run: &str) -> bool {
        self.site.records(&self.agent, |records| records.run(run).received > 0)
    }

    /// Gives the agent a task of its own. Returns true if `happened` comes to hold, and false if the task fails first.
    pub(super) fn agent_task(
        &self,
        data_type: i32,
        data: &str,
        token: &str,
        happened: impl FnMut(&Self) -> bool,
    ) -> bool {
        self.site.task(&self.agent, "elkeid-agent", data_type, data, token);
        self.decide(token, happened, |stage| stage.has_failed(token))
    }

    /// Returns true once the agent has answered that the task with this token failed.
    pub(super) fn has_failed(&self, token: &str) -> bool {
        self.site.records(&self.agent, |records| {
            records.of_type(5100).any(|fields| fields["token"] == token && fields["status"] == "failed")
        })
    }

    /// Returns true once a plugin has taken the task with this token.
    pub(super) fn has_taken(&self, token: &str) -> bool {
        self.site.records(&self.agent, |records| records.of_type(types::TASK).any(|fields| fields["token"] == token))
    }

    /// Returns what is wrong with the agent: it has to live, to have never been large, and to answer on a stream.
    pub(super) fn harm(&mut self, attempt: &str) -> Option<String> {
        if !self.is_alive {
            return None;
        }
        if !self.agent.is_running() {
            return Some("the agent has ended".to_owned());
        }
        let peak = self.agent.peak_rss();
        if peak > MOST_MEMORY {
            return Some(format!("{} KiB were resident", peak >> 10));
        }
        let mut tries = 0;
        let mut answers = || {
            tries += 1;
            let token = format!("{BARRIER}{attempt}-{tries}");
            let task = Task { data_type: 1, object_name: "nobody".into(), data: String::new(), token: token.clone() };
            let command = ToAgent { task: Some(task), ..ToAgent::default() };
            // The stream may just have ended, and the command may be lost with it.
            let sent = self.site.center().command(self.agent.id(), command).wait().is_ok();
            sent && holds_within(DEADLINE / 30, || self.has_failed(&token))
        };
        (!holds_within(DEADLINE, &mut answers)).then(|| "the agent answers no more".to_owned())
    }

    /// Returns true if a text of the host's secrets stands in the agent's log or audit, or in what it has sent.
    pub(super) fn has_told(&self, secret: &str) -> bool {
        let sent = self.site.records(&self.agent, |records| {
            let all = records.others.iter();
            all.filter_map(|taken| taken.record.fields().ok()).any(|fields| fields.values().any(|v| v.contains(secret)))
        });
        sent || self.written().contains(secret)
    }

    /// Returns the lines of the audit about what was refused, but for the tasks of [`Stage::harm`].
    pub(super) fn audited_refusals(&self) -> Vec<String> {
        let audit = whole_lines(&self.agent.workdir().path().join("log/audit.log"));
        let refusals = audit.lines().filter(|line| line.contains("\"refused\"") && !line.contains(BARRIER));
        refusals.map(str::to_owned).collect()
    }

    /// Returns all that the agent has written for people.
    pub(super) fn written(&self) -> String {
        let audit = fs::read_to_string(self.agent.workdir().path().join("log/audit.log")).unwrap_or_default();
        [self.agent.log(), audit, self.agent.stderr()].concat()
    }

    pub(super) fn password(&self) -> &'static str {
        PASSWORD
    }

    /// Returns the path of the agent's program.
    pub(super) fn program(&self) -> PathBuf {
        program_of(self.agent.workdir().path())
    }
}

fn program_of(workdir: &Path) -> PathBuf {
    workdir.join("bin/elklet")
}

/// Adds the settings that the page recommends for a stricter host, with this site's keys in them.
fn stricter(mut setup: Setup, site: &Site, signer: &Signer) -> Setup {
    let page = tables::page();
    let section = page.split("\n## ").find(|section| section.starts_with("A stricter host\n")).unwrap();
    let certificate = CertificateDer::from_pem_file(site.certs().join("server.crt")).unwrap();
    let pin = sha256(x509::public_key_info(&certificate).unwrap());
    let mut at = String::new();
    let mut lines = 0;
    for line in section.lines().filter_map(|line| line.strip_prefix("    ")) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            at = name.to_owned();
        } else if !line.is_empty() {
            let line =
                line.replace("[\"...\"]", &format!("[{pin:?}]")).replace("public_key = \"...\"", &signer.public_key);
            setup = setup.setting(&at, &line);
            lines += 1;
        }
    }
    assert!(lines >= 10, "the page has these settings");
    setup
}

/// Signs plugins by the commands of docs/plugins.md.
struct Signer {
    directory: TempDir,
    /// The line for the settings.
    public_key: String,
}

impl Signer {
    fn new() -> Self {
        let mut signer = Self { directory: tempfile::tempdir().unwrap(), public_key: String::new() };
        signer.public_key = value(&signer.run(&Config::default(), true), "elklet.toml: ");
        signer
    }

    /// Returns the entry's field `signature`.
    fn sign(&self, entry: &Config) -> String {
        value(&self.run(entry, false), "signature: ")
    }

    fn run(&self, entry: &Config, makes_a_key: bool) -> String {
        let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
        let block = page.split("<!-- signing -->").nth(1).unwrap();
        let lines = block.lines().filter_map(|line| line.strip_prefix("    "));
        let script: String =
            lines.filter(|line| makes_a_key || !line.contains("genpkey")).flat_map(|line| [line, "\n"]).collect();
        let mut command = Command::new("sh");
        command.args(["-e", "-c", &script]).current_dir(self.directory.path());
        let Config { name, version, sha256, signature, detail, .. } = entry;
        let variables = [
            ("NAME", name),
            ("VERSION", version),
            ("DOWNLOAD_SHA256", sha256),
            ("EXECUTABLE_SHA256", signature),
            ("DETAIL", detail),
        ];
        let output = command.envs(variables).output().unwrap();
        assert!(output.status.success(), "{script}{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }
}

fn value(printed: &str, key: &str) -> String {
    let line = printed.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {printed}"));
    line.trim().to_owned()
}
