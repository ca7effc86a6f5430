//! Programs: what the server can have run, and from where it can have it fetched.

use std::fs;
use std::path::Path;

use elklet_proto::grpc::Config;
use elklet_tests::files::How;
use elklet_tests::harness::is_alive;
use tar::EntryType::{Char, Link, Regular, Symlink};

use super::Attempt;
use super::stage::Stage;
use crate::downloads::{Entry, archive, packed, plain, program, sha256};

pub(super) const ATTEMPTS: &[Attempt] = &[
    ("run-signed", |stage| {
        let entry = scripted(stage, "baseline", "run-signed");
        let entry = stage.signed(entry);
        run(stage, entry, "run-signed")
    }),
    ("stop-plugins", |stage| {
        let pid = stage.agent.workdir().processes()[0];
        let entry = scripted(stage, "other", "unused");
        stage.site.configure(&stage.agent, &[entry]);
        stage.decide("end of the plugin", |_| !is_alive(pid), |_| false)
    }),
    ("run-unsigned", |stage| {
        let entry = scripted(stage, "collector", "run-unsigned");
        run(stage, entry, "run-unsigned")
    }),
    ("delete-all", |stage| {
        // This one is wanted. What the attempts before have left may go at any moment.
        let entry = scripted(stage, "baseline", "delete-all");
        let entry = stage.signed(entry);
        assert!(run(stage, entry, "delete-all"), "{}", stage.agent.log());
        // A command without a task and without a configuration, which Elkeid's own agent takes for an empty one.
        stage.site.configure(&stage.agent, &[]);
        let said = "the server sent a command with nothing in it";
        stage.agent.wait_for_log(said);
        !stage.agent.workdir().plugin_dir("baseline").exists()
    }),
    ("run-unnamed", |stage| {
        let entry = scripted(stage, "unnamed", "run-unnamed");
        let entry = stage.signed(entry);
        run(stage, entry, "run-unnamed")
    }),
    ("run-path", |stage| run_named(stage, "../path")),
    ("run-hidden", |stage| run_named(stage, ".hidden")),
    ("run-odd-name", |stage| run_named(stage, "odd\u{1b}[2J\nname")),
    ("run-nameless", |stage| {
        let run = "nameless";
        let entry = scripted(stage, "", run);
        stage.configure(&[entry], "a plugin without a name", |stage| stage.has_run(run))
    }),
    ("run-long-name", |stage| run_named(stage, &"long".repeat(17))),
    ("run-as-agent", |stage| {
        // The agent's own entry in the version that runs, and behind it one whose outcome is known.
        let own = Config { version: env!("CARGO_PKG_VERSION").into(), ..scripted(stage, "elkeid-agent", "as-agent") };
        let url = own.download_urls[0].clone();
        let next = scripted(stage, "behind", "behind");
        stage.configure(&[own, next], "behind", |stage| stage.has_run("behind"));
        let path = url.rsplit_once('/').unwrap().1;
        stage.has_run("as-agent") || stage.files.requests(path) > 0
    }),
    ("run-unverified", |stage| {
        let entry = scripted(stage, "unverified", "unverified");
        let other = sha256(b"another file");
        run(stage, Config { sha256: other.clone(), signature: other, ..entry }, "unverified")
    }),
    ("run-twice", |stage| {
        let entries: Vec<_> = (0..64).map(|i| scripted(stage, "twice", &format!("twice-{i}"))).collect();
        let has_run = |stage: &Stage| (0..64).filter(|i| stage.has_run(&format!("twice-{i}"))).count();
        // Without a signature none of them runs, and the agent says that of the first.
        stage.configure(&entries, "plugin twice", |stage| has_run(stage) > 0);
        assert!(stage.refusals("configured twice") > 0);
        has_run(stage) > 1
    }),
    ("run-thousands", |stage| {
        let script = b"#!/bin/sh\nexec cat <&3\n";
        let url = stage.files.serve("thousands", script, How::Right);
        let entry = |i| plain(&format!("many{i}"), script, std::slice::from_ref(&url), "");
        let entries: Vec<_> = (0..5_000).map(entry).collect();
        // Plugins of the attempt before may still be about to end.
        let is_one = |pid: &u32| {
            let cwd = fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
            cwd.file_name().is_some_and(|name| name.to_string_lossy().starts_with("many"))
        };
        let running = move |stage: &Stage| stage.agent.workdir().processes().iter().filter(|pid| is_one(pid)).count();
        stage.configure(&entries, "many63", |stage| running(stage) >= 64);
        let more = running(stage) > 64;
        stage.site.configure(&stage.agent, &[Config { version: "2".into(), ..entry(0) }]);
        stage.decide("end of the others", |stage| running(stage) <= 1, |_| false);
        more
    }),
    ("long-detail", |stage| {
        let detail = format!("run=long-detail n=1 stderr={}", "x".repeat(3 << 20));
        let entry = Config { detail, ..scripted(stage, "longdetail", "") };
        run(stage, entry, "long-detail")
    }),
    ("fetch-from-disk", |stage| {
        let body = fs::read("/etc/passwd").unwrap();
        fetched(stage, plain("disk", &body, &["file:///etc/passwd".to_owned()], ""))
    }),
    ("redirect-to-disk", |stage| {
        let body = fs::read("/etc/passwd").unwrap();
        let url = stage.files.serve("to-disk", "", How::Redirect("file:///etc/passwd".into()));
        fetched(stage, plain("redirected", &body, &[url], ""))
    }),
    ("fetch-from-anywhere", |stage| {
        let url = stage.files.serve("latest/meta-data", METADATA, How::Right);
        let entry = plain("metadata", b"the server does not know it", &[url], "");
        let asked = |stage: &Stage| stage.files.requests("latest/meta-data") > 0;
        stage.configure(&[entry], "plugin metadata", |_| false);
        asked(stage)
    }),
    ("hear-what-was-fetched", |stage| {
        // The agent has sent its reports before its answer to this task.
        assert_eq!(stage.harm("hear-what-was-fetched"), None);
        stage.has_told("SecretAccessKey")
    }),
    ("redirect-for-ever", |stage| {
        let round = stage.files.url("round");
        let url = stage.files.serve("round", "", How::Redirect(round));
        stage.configure(&[plain("round", b"x", &[url], "")], "plugin round", |stage| stage.files.requests("round") > 6)
    }),
];

/// What a cloud's metadata service would answer.
const METADATA: &str = "{\"SecretAccessKey\": \"wJalrXUtnFEMI\"}";

pub(super) const ARCHIVES: &[Attempt] = &[
    ("unpack-beside", |stage| {
        let escaped = stage.agent.workdir().path().join("plugin/escaped");
        unpacked(stage, "beside", &[("../escaped", Regular, b"x", None)], &escaped)
    }),
    ("unpack-anywhere", |stage| {
        let escaped = stage.ground.path().join("escaped");
        unpacked(stage, "anywhere", &[(escaped.to_str().unwrap(), Regular, b"x", None)], &escaped)
    }),
    ("unpack-link", |stage| {
        let link = stage.agent.workdir().plugin_dir("link").join("etc");
        unpacked(stage, "link", &[("etc", Symlink, b"", None)], &link)
    }),
    ("unpack-hard-link", |stage| {
        let link = stage.agent.workdir().plugin_dir("hard").join("etc");
        unpacked(stage, "hard", &[("etc", Link, b"", None)], &link)
    }),
    ("unpack-device", |stage| {
        let device = stage.agent.workdir().plugin_dir("device").join("null");
        unpacked(stage, "device", &[("null", Char, b"", None)], &device)
    }),
    ("unpack-bomb", |stage| {
        let bomb = stage.agent.workdir().plugin_dir("bomb").join("big");
        unpacked(stage, "bomb", &[("big", Regular, b"", Some(2 << 30))], &bomb)
    }),
];

/// Returns the entry of a plugin that is offered for download and writes one record of this run.
fn scripted(stage: &mut Stage, name: &str, run: &str) -> Config {
    let path = stage.unique("program");
    let url = stage.files.serve(&path, program(), How::Right);
    plain(name, &program(), &[url], &format!("run={run} n=1"))
}

/// Returns true if the agent runs the plugin.
fn run(stage: &Stage, entry: Config, run: &str) -> bool {
    let name = format!("plugin {}", entry.name);
    let refused =
        if entry.name.is_empty() || entry.detail.len() > 1 << 20 { format!("{:?}", entry.name) } else { name };
    stage.configure(&[entry], &refused, |stage| stage.has_run(run))
}

/// Returns true if the agent runs a plugin of this name, which is none.
fn run_named(stage: &mut Stage, name: &str) -> bool {
    let run = stage.unique("named");
    let entry = scripted(stage, name, &run);
    stage.configure(&[entry], &format!("plugin {name:?}"), |stage| stage.has_run(&run))
}

/// Returns true if the agent takes this file for a plugin's.
fn fetched(stage: &Stage, entry: Config) -> bool {
    let (name, file) = (entry.name.clone(), stage.agent.workdir().plugin_dir(&entry.name).join(&entry.name));
    stage.configure(&[entry], &format!("plugin {name}"), |_| file.exists())
}

/// Returns true if what is at this path after the agent has unpacked an archive of a program and this.
fn unpacked(stage: &Stage, name: &str, more: &[Entry<'_>], there: &Path) -> bool {
    let exe = program();
    let entries = [&[(name, Regular, &exe[..], None)], more].concat();
    let body = archive(&entries);
    let url = stage.files.serve(name, body.clone(), How::Right);
    stage.configure(&[packed(name, &body, &[url], "run=unpacked n=1")], &format!("plugin {name}"), |_| {
        there.symlink_metadata().is_ok()
    })
}
