//! A user of the host who has no rights: he comes as far as the table in docs/security.md says, beside an agent that is root.
//!
//! The agent runs on a host of its own, as far as files go: `/etc`, `/var/lib`, `/var/log`, `/run` and `/tmp` are empty when `elklet init` sets it
//! up. `local-user` runs there as user 65534.

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, Stdio};

use elklet_tests::binaries::Binaries;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Setup, Signal, Site, skipped, types, wait_until};

use crate::downloads::{plain, program};
use crate::tables::{self, Outcomes};

const LOCAL_USER: &str = env!("CARGO_BIN_EXE_local-user");

/// What the columns of the table are: the layout of a package, and one directory for everything as Elkeid's own agent has it.
const COLUMNS: [&str; 2] = ["package", "one directory"];

/// A host of its own, as far as files go. Whoever enters it later finds the same files.
struct Host(Child);

impl Drop for Host {
    fn drop(&mut self) {
        // They are no processes any more if the test has gone well.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

impl Host {
    fn new(site: &Site) -> Self {
        let script =
            "for place in /etc /var/lib /var/log /run; do mount -t tmpfs -o mode=755 tmpfs $place || exit 9; done
            cp -r \"$1\" /run/certs && cp \"$2\" /run/local-user && chmod 755 /run/local-user
            mkdir -m 755 /var/lib/one && mkdir /var/lib/home && chown 65534 /var/lib/home
            mount -t tmpfs -o mode=1777,size=1m tmpfs /tmp && echo ready && exec sleep 600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-e", "-c", script, "sh"]).arg(site.certs()).arg(LOCAL_USER);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        wait_for_line(&mut child, "ready");
        Self(child)
    }

    /// Returns the words that run a program there as root.
    fn words(&self) -> [String; 3] {
        ["nsenter".to_owned(), format!("--target={}", self.0.id()), "--mount".to_owned()]
    }

    fn root(&self, words: &[&str]) {
        let [enter, target, mount] = self.words();
        let output = Command::new(enter).args([target, mount]).args(words).output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    }

    fn user(&self, words: &[&str]) -> Command {
        let [enter, target, mount] = self.words();
        let mut command = Command::new(enter);
        command.args([
            &target,
            &mount,
            "setpriv",
            "--reuid=65534",
            "--regid=65534",
            "--clear-groups",
            "/run/local-user",
        ]);
        command.args(words);
        command
    }
}

fn wait_for_line(child: &mut Child, expected: &str) {
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), expected);
}

/// Starts the agent there. It could leave a core, if it left any.
fn start(setup: Setup, host: &Host, words: &[&str]) -> Agent {
    let [enter, target, mount] = host.words();
    setup
        .only(&[&["run"], words].concat())
        .started_by(&["prlimit", "--core=unlimited", &enter, &target, &mount])
        .start()
}

/// Tries everything beside an agent that is started with these words, and returns what came of it.
fn attack(words: &[&str], places: &[(&str, &str)]) -> Vec<(String, String)> {
    let (site, files) = (Site::new(), Files::start());
    let host = Host::new(&site);
    let elklet = Binaries::for_tests().elklet.display().to_string();
    host.root(&[&[&*elklet, "init", "--server", &site.address(), "--certs", "/run/certs"], words].concat());
    let file = places.iter().find(|(name, _)| *name == "file").unwrap().1;
    let proxy = "[proxy]\\nurl = \"http://host:correct-horse@127.0.0.1:9\"\\nno_proxy = [\"*\"]\\n";
    host.root(&["sh", "-c", &format!("printf '{proxy}' >> {file}")]);
    let plugin =
        |name: &str| plain(name, &program(), &[files.serve(name, program(), How::Right)], "hello stderr=words");
    site.center().set_configs(Some(vec![plugin("probe")]));
    let agent = start(site.setup(), &host, words);
    let hellos = |agent: &Agent| site.records(agent, |records| records.values(types::HELLO, "pid"));
    wait_until("plugin", || hellos(&agent).len() == 1);

    let pids = [format!("agent={}", agent.pid()), format!("plugin={}", hellos(&agent)[0])];
    let places = places.iter().map(|(name, path)| format!("{name}={path}"));
    let arguments: Vec<_> =
        ["try".to_owned(), "home=/var/lib/home".to_owned()].into_iter().chain(places).chain(pids).collect();
    let output = host.user(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout).unwrap();
    let mut found: Vec<_> = said
        .lines()
        .map(|line| {
            let mut words = line.splitn(3, ' ').map(str::to_owned);
            let (name, outcome, why) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
            (name, if outcome == "odd" { why } else { outcome })
        })
        .collect();
    let mut add =
        |name: &str, is_done: bool| found.push((name.to_owned(), if is_done { "yes" } else { "no" }.to_owned()));

    // A full /tmp keeps the agent from nothing.
    let mut full = host.user(&["fill", "/tmp"]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut full, "done");
    site.configure(&agent, &[plugin("probe"), plugin("another")]);
    wait_until("plugin", || hellos(&agent).len() == 2);
    add("starve-by-tmp", false);
    full.kill().unwrap();
    full.wait().unwrap();

    // A crash leaves nothing to read.
    let mut agent = agent;
    agent.signal(Signal::ABORT);
    add("read-core", agent.wait_for_exit().core_dumped());

    // Whoever was there first does not keep the agent from starting.
    let workdir = arguments.iter().find_map(|word| word.strip_prefix("workdir=")).unwrap();
    let mut holder = host.user(&["hold", workdir]).stdout(Stdio::piped()).spawn().unwrap();
    wait_for_line(&mut holder, "done");
    let streams = site.center().read(|state| state.agent(agent.id()).streams);
    let mut agent = start(agent.kill(), &host, words);
    let mut is_kept = false;
    wait_until("start, or its failure", || {
        is_kept = !agent.is_running();
        is_kept || site.center().read(|state| state.agent(agent.id()).streams > streams)
    });
    add("keep-from-starting", is_kept);
    holder.kill().unwrap();
    holder.wait().unwrap();
    found
}

#[test]
fn a_local_user_comes_nowhere_near_the_agent() {
    let name = "a_local_user_comes_nowhere_near_the_agent";
    if !Command::new("unshare")
        .args(["--mount", "setpriv", "--reuid=65534", "true"])
        .status()
        .is_ok_and(|s| s.success())
    {
        return skipped(name, "a mount namespace and another user take root, unshare and setpriv");
    }
    let columns = [
        attack(
            &[],
            &[
                ("file", "/etc/elklet/elklet.toml"),
                ("certs", "/etc/elklet/certs"),
                ("workdir", "/var/lib/elklet"),
                ("log", "/var/log/elklet"),
                ("socket", "/run/elklet/elklet.sock"),
            ],
        ),
        attack(
            &["--workdir", "/var/lib/one"],
            &[
                ("file", "/var/lib/one/elklet.toml"),
                ("certs", "/var/lib/one/certs"),
                ("workdir", "/var/lib/one"),
                ("log", "/var/lib/one/log"),
                ("socket", "/var/lib/one/elklet.sock"),
            ],
        ),
    ];
    let mut outcomes = Outcomes::new();
    for (attempt, outcome) in columns.into_iter().flatten() {
        outcomes.entry(attempt).or_default().push(outcome);
    }
    tables::compare("What a local user can do", &COLUMNS, &outcomes);
}
