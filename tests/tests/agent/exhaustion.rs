//! A host that has no thread and no process to spare. Nothing ends, the agent reports what it cannot do, and does it
//! later.

use crate::PLUGIN;
use crate::downloads::{plain, program};
use elklet_tests::binaries::Binaries;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Setup, Signal, Site, skipped, types, wait_until};
use rustix::process::{Pid, getuid, kill_process};
use std::fs;
use std::path::Path;
use std::process::Command;

/// A user who runs nothing else on this host.
fn uid() -> String {
    (50_000 + std::process::id() % 10_000).to_string()
}

/// Runs the agent as another user, because the limit on processes does not bind root.
fn as_somebody(setup: Setup, certs: &Path) -> Setup {
    let uid = uid();
    let program = setup.workdir().path().join("elklet");
    let cp = Command::new("cp").arg(&Binaries::for_tests().elklet).arg(&program).status();
    assert!(cp.is_ok_and(|status| status.success()), "the program can be copied to where that user may execute it");
    let mut chown = Command::new("chown");
    chown.arg("-R").arg(format!("{uid}:{uid}")).args([setup.workdir().path(), certs]);
    assert!(chown.status().is_ok_and(|status| status.success()), "root may give files away");
    setup.program(&program).started_by(&["setpriv", "--reuid", &uid, "--regid", &uid, "--clear-groups"])
}

/// Allows or forbids the agent to start threads and processes from now on. Its own user sets the limit, because that
/// takes no privilege that a container's root may lack.
fn may_start(agent: &Agent, may: bool) {
    let (uid, pid) = (uid(), agent.pid().to_string());
    let limit = if may { "--nproc=500:" } else { "--nproc=1:" };
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &uid, "--regid", &uid, "--clear-groups", "prlimit", "--pid", &pid, limit]);
    assert!(command.status().is_ok_and(|status| status.success()), "a user may limit his processes");
}

fn starts_refused(agent: &Agent) -> u64 {
    let elklet = &Binaries::for_tests().elklet;
    let output =
        Command::new(elklet).args(["status", "--json", "--workdir"]).arg(agent.workdir().path()).output().unwrap();
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    status["counters"]["starts_refused"].as_u64().unwrap_or_else(|| panic!("no such counter: {status}"))
}

#[test]
fn an_agent_that_can_start_neither_threads_nor_processes_lives_and_catches_up() {
    let name = "an_agent_that_can_start_neither_threads_nor_processes_lives_and_catches_up";
    if !getuid().is_root() {
        return skipped(name, "to run the agent as another user takes root");
    }
    let uploads = tempfile::tempdir().unwrap();
    let mut site = Site::with(|options| options.upload_dir = Some(uploads.path().to_owned()));
    let discovery = site.center().http_addr().to_string();
    let setup = site.setup().argument("--discovery").argument(&discovery).server(&site.address());
    let sender = setup.workdir().install("sender", PLUGIN, "hello run=all rate=4000 size=600 n=40000");
    let victim = setup.workdir().install("victim", PLUGIN, "hello");
    site.center().set_configs(Some(vec![sender.clone(), victim.clone()]));
    let mut agent = as_somebody(setup, site.certs()).start();
    site.wait_records("plugins", &agent, |records| records.of_type(types::HELLO).count() == 2);
    let pid = site.records(&agent, |records| {
        let hello = records.of_type(types::HELLO).find(|hello| hello["cwd"].ends_with("/plugin/victim")).unwrap();
        Pid::from_raw(hello["pid"].parse().unwrap()).unwrap()
    });

    may_start(&agent, false);
    let options = site.stop();
    // Service discovery needs a thread, and so does the spool, which has to take records while there is no server.
    let line = agent.wait_for_log("service discovery failed: ");
    assert!(line.contains("no thread can be started: "), "{line}");
    agent.wait_for_log("no thread can be started: Resource temporarily unavailable");
    let before = starts_refused(&agent);
    wait_until("more attempts", || starts_refused(&agent) >= before + 3);
    kill_process(pid, Signal::KILL).unwrap();
    agent.wait_for_log("plugin victim cannot be started: no thread can be started: ");

    // A connection to a server needs no thread.
    site.start(options);
    let files = Files::start();
    let body = program();
    let url = files.serve("late", body.clone(), How::Right);
    let late = plain("late", &body, &[url], "hello");
    site.center().set_configs(Some(vec![sender, victim, late]));
    site.wait_connected(&agent);
    agent.wait_for_log("plugin late cannot be started: no thread can be started: ");
    let path = agent.workdir().path().join("file");
    fs::write(&path, "content").unwrap();
    let data = serde_json::json!({ "path": path, "buf_size": 1000 }).to_string();
    site.task(&agent, "elkeid-agent", 1050, &data, "refused");
    site.wait_records("answer", &agent, |records| {
        records
            .of_type(5100)
            .any(|answer| answer["token"] == "refused" && answer["msg"].contains("no thread can be started"))
    });
    assert!(agent.is_running());

    may_start(&agent, true);
    agent.wait_for_log("threads can be started again");
    site.wait_records("plugins that were late", &agent, |records| {
        let late = records.of_type(types::HELLO).filter(|hello| hello["cwd"].ends_with("/plugin/late")).count();
        let victims = records.of_type(types::HELLO).filter(|hello| hello["cwd"].ends_with("/plugin/victim")).count();
        (late, victims) == (1, 2)
    });
    site.task(&agent, "elkeid-agent", 1050, &data, "taken");
    site.wait("upload", |state| state.uploads.iter().any(|upload| upload.token == "taken" && upload.error.is_none()));
    site.wait_records("all records", &agent, |records| records.run("all").is_whole(40_000));
    assert_eq!(site.fresh_heartbeats(&agent).count("records_lost"), 0);
    // An idle agent has the three threads that it always has.
    let threads = || fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
    wait_until("end of the other threads", || threads() == 3);
    _ = agent.into_setup();
}
