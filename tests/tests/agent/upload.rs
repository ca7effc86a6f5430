//! Files for the server (task 1050): they arrive whole, at the rate that was asked for and by the host's rules, and
//! every failure is answered.

use elklet_tests::center::{Fault, Status, Upload, UploadFault};
use elklet_tests::harness::{Agent, Setup, Signal, Site, wait_until};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// The most bytes of a file that the agent sends in a second.
const MOST_PER_SECOND: usize = 500 << 10;

/// Starts a site that takes uploads. Returns it and the directory where they arrive.
fn site() -> (Site, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let uploads = dir.path().join("uploads");
    (Site::with(|options| options.upload_dir = Some(uploads)), dir)
}

/// Writes a file of this many bytes, which do not compress to nothing, into the agent's directory.
fn file(agent: &Agent, name: &str, bytes: usize) -> PathBuf {
    let path = agent.workdir().path().join(name);
    fs::write(&path, content(bytes)).unwrap();
    path
}

fn content(bytes: usize) -> Vec<u8> {
    let mut state = 1u32;
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

fn ask(site: &Site, agent: &Agent, path: &Path, buf_size: usize, token: &str) {
    let data = serde_json::json!({ "path": path, "buf_size": buf_size }).to_string();
    site.task(agent, "elkeid-agent", 1050, &data, token);
}

/// Waits for an upload with this token, and returns it.
fn uploaded(site: &Site, token: &str) -> Upload {
    let find = |uploads: &[Upload]| uploads.iter().find(|upload| upload.token == token).cloned();
    site.wait("upload", |state| find(&state.uploads).is_some());
    site.center().read(|state| find(&state.uploads)).unwrap()
}

/// Waits for the failure with this token, and returns its reason.
fn refusal(site: &Site, agent: &Agent, token: &str) -> String {
    let find = || {
        let mut answers = site.records(agent, |records| records.of_type(5100).collect::<Vec<_>>());
        answers.retain(|fields| fields["token"] == token);
        answers
    };
    wait_until("answer", || !find().is_empty());
    let mut answers = find();
    assert_eq!((answers.len(), &*answers[0]["status"]), (1, "failed"), "{answers:?}");
    answers.swap_remove(0)["msg"].clone()
}

#[test]
fn files_arrive_whole_beside_the_stream() {
    let (site, _dir) = site();
    let agent = site.agent();
    for (name, bytes) in [("empty", 0), ("one", 1), ("some", 100_000), ("more", 400_000)] {
        let path = file(&agent, name, bytes);
        ask(&site, &agent, &path, 500_000, name);
        let upload = uploaded(&site, name);
        assert_eq!((upload.len, &upload.error), (bytes as u64, &None), "{name}");
        assert!(fs::read(&upload.path).unwrap() == content(bytes), "{name}");
        agent.wait_for_log(&format!("{bytes} bytes (token {name:?})"));
    }
    // Files in /proc report no size.
    ask(&site, &agent, Path::new("/proc/version"), 1000, "version");
    assert_eq!(fs::read(uploaded(&site, "version").path).unwrap(), fs::read("/proc/version").unwrap());
    site.center().read(|state| {
        assert_eq!(state.agent(agent.id()).streams, 1, "the stream is not concerned");
        assert_eq!(state.totals.connections, 6, "each had a connection of its own");
    });
    assert_eq!(site.records(&agent, |records| records.of_type(5100).count()), 0, "the server itself tells of success");
}

#[test]
fn a_file_takes_its_time() {
    let (site, _dir) = site();
    let agent = site.agent();
    let all = Instant::now();
    _ = site.fresh_heartbeats(&agent);
    // This takes 2.5 seconds at this rate, of which the first second's share leaves at once.
    let path = file(&agent, "slow", 25_000);
    let begun = Instant::now();
    ask(&site, &agent, &path, 10_000, "slow");
    assert_eq!(uploaded(&site, "slow").len, 25_000);
    assert!(begun.elapsed() >= Duration::from_millis(1_900), "{:?}", begun.elapsed());
    // The agent sends no faster than this, however much was asked for.
    let path = file(&agent, "large", 2 * MOST_PER_SECOND);
    let begun = Instant::now();
    ask(&site, &agent, &path, 100 * MOST_PER_SECOND, "large");
    assert_eq!(uploaded(&site, "large").len, 2 * MOST_PER_SECOND as u64);
    assert!(begun.elapsed() >= Duration::from_millis(900), "{:?}", begun.elapsed());
    let rate: f64 = site.fresh_heartbeats(&agent).agent["tx_speed"].parse().unwrap();
    let sent = rate * all.elapsed().as_secs_f64();
    assert!(sent > 1_000_000.0, "{sent} bytes, those of the files among them");
}

#[test]
fn what_cannot_be_uploaded_is_answered() {
    let (site, _dir) = site();
    let agent = site.agent();
    let directory = agent.workdir().path();
    let sparse = directory.join("sparse");
    fs::File::create(&sparse).unwrap().set_len(600 * MOST_PER_SECOND as u64 + 1).unwrap();
    assert!(std::process::Command::new("mkfifo").arg(directory.join("fifo")).status().unwrap().success());
    let cases = [
        (directory.join("none"), 1000, "No such file or directory"),
        (directory.to_owned(), 1000, "a directory, expected a regular file"),
        (directory.join("fifo"), 1000, "a named pipe, expected a regular file"),
        (PathBuf::from("/dev/null"), 1000, "a device, expected a regular file"),
        (PathBuf::from("etc/passwd"), 1000, "not an absolute path"),
        (site.certs().join("client.key"), 10_000, "client.key never leaves this host"),
        (PathBuf::from("/proc/self/environ"), 10_000, "environ never leaves this host"),
        (PathBuf::from("/proc/1/mem"), 10_000, "mem never leaves this host"),
        (file(&agent, "long", 6001), 10, "size limit exceeded: (6001/6000)"),
        // `buf_size` alone would allow it, but at the rate of the agent it would not arrive in time.
        (sparse, 10 * MOST_PER_SECOND, "size limit exceeded: (307200001/307200000)"),
    ];
    for (number, (path, buf_size, _)) in cases.iter().enumerate() {
        ask(&site, &agent, path, *buf_size, &number.to_string());
    }
    for (number, (path, _, reason)) in cases.iter().enumerate() {
        let msg = refusal(&site, &agent, &number.to_string());
        assert!(msg.starts_with(&format!("upload of {}: ", path.display())) && msg.contains(reason), "{msg}");
    }
    site.center().read(|state| assert!(state.uploads.is_empty() && state.totals.connections == 1));
    // The agent goes on.
    ask(&site, &agent, &file(&agent, "good", 10), 1000, "good");
    assert_eq!(uploaded(&site, "good").len, 10);
    assert_eq!(site.fresh_heartbeats(&agent).count("refused_tasks"), cases.len() as u64);
}

fn with_file(setup: Setup, text: &str) -> Setup {
    fs::write(setup.workdir().path().join("elklet.toml"), text).unwrap();
    setup
}

#[test]
fn the_hosts_rules_are_kept() {
    let (site, dir) = site();
    let allowed = dir.path().join("allowed");
    fs::create_dir(&allowed).unwrap();
    fs::write(allowed.join("file"), "public").unwrap();
    fs::write(dir.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret"), allowed.join("link")).unwrap();
    let setup = with_file(site.eager(), &format!("[upload]\nallow = [{allowed:?}]\n"));
    let agent = setup.start();
    site.wait_connected(&agent);
    ask(&site, &agent, &allowed.join("file"), 1000, "good");
    assert_eq!(uploaded(&site, "good").len, 6);
    for (token, path) in [("link", "allowed/link"), ("parent", "allowed/../secret"), ("other", "secret")] {
        ask(&site, &agent, &dir.path().join(path), 1000, token);
        let msg = refusal(&site, &agent, token);
        assert!(msg.contains("secret is in no directory of upload.allow"), "{msg}");
    }
    let setup = with_file(site.eager(), "[upload]\nallow = []\n");
    let agent = setup.start();
    site.wait_connected(&agent);
    ask(&site, &agent, Path::new("/proc/version"), 1000, "nothing");
    assert!(refusal(&site, &agent, "nothing").contains("is in no directory of upload.allow"));
    site.center().read(|state| assert_eq!(state.uploads.len(), 1));
}

#[test]
fn a_server_that_fails_is_answered() {
    let (site, _dir) = site();
    let agent = site.agent();
    let path = file(&agent, "file", 300_000);
    for (token, fault, reason) in [
        (
            "old",
            UploadFault::Status(Status::new(12, "unknown service grpc.FileExt")),
            "gRPC status 12 (unknown service",
        ),
        ("reset", UploadFault::Reset { after: 100_000 }, "the connection broke: "),
        ("failed", UploadFault::Failed, "status FAILED"),
    ] {
        site.center().on_next_upload(fault);
        ask(&site, &agent, &path, 100_000, token);
        let msg = refusal(&site, &agent, token);
        assert!(msg.contains("file: ") && msg.contains(reason), "{msg}");
    }
    site.center().read(|state| assert_eq!(state.agent(agent.id()).streams, 1, "the stream is not concerned"));
}

#[test]
fn a_file_that_becomes_shorter_is_answered() {
    let (site, dir) = site();
    let agent = site.agent();
    let path = file(&agent, "shrinking", 100_000);
    ask(&site, &agent, &path, 1_000, "t");
    // The center names the file once it is whole.
    let begun =
        |file: io::Result<fs::DirEntry>| file.is_ok_and(|file| file.metadata().is_ok_and(|meta| meta.len() > 0));
    let arrived = || fs::read_dir(dir.path().join("uploads")).is_ok_and(|mut files| files.any(begun));
    wait_until("first piece", arrived);
    fs::write(&path, "").unwrap();
    let msg = refusal(&site, &agent, "t");
    assert!(msg.contains("it has become shorter: ") && msg.ends_with(" bytes are missing"), "{msg}");
    // The server does not keep half of it.
    assert!(uploaded(&site, "t").error.is_some());
    assert_eq!(fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
}

#[test]
fn a_server_that_takes_nothing_is_answered_and_its_stream_goes_on() {
    let (site, _dir) = site();
    let agent = site.agent();
    let path = file(&agent, "file", 1_000_000);
    site.center().on_next_upload(UploadFault::Stall { after: 1 });
    ask(&site, &agent, &path, 500_000, "stalled");
    // Another upload waits for it, and is sent after it.
    ask(&site, &agent, &file(&agent, "next", 5), 1000, "next");
    // Meanwhile the stream ends and comes back, which does not affect either.
    site.wait("upload's connection", |state| state.totals.connections == 2);
    assert!(site.center().inject(agent.id(), Fault::Status(Status::ok())));
    site.wait("next stream", |state| state.agent(agent.id()).streams == 2);
    let msg = refusal(&site, &agent, "stalled");
    assert!(msg.contains("the server has done nothing for 30 s"), "{msg}");
    assert_eq!(uploaded(&site, "next").len, 5);
}

#[test]
fn uploads_beyond_the_queue_and_the_agents_end_are_answered() {
    let (site, _dir) = site();
    let mut agent = site.agent();
    let path = file(&agent, "file", 300_000);
    let tokens: Vec<String> = (0..20).map(|number| format!("token-{number}")).collect();
    // One is under way, 16 wait.
    for token in &tokens {
        ask(&site, &agent, &path, 1000, token);
    }
    for token in &tokens[17..] {
        assert!(refusal(&site, &agent, token).starts_with("16 uploads wait already: "));
    }
    agent.signal(Signal::TERM);
    assert_eq!(agent.wait_for_exit().code(), Some(0));
    for token in &tokens[..17] {
        assert_eq!(refusal(&site, &agent, token), "the agent ends before the file is uploaded");
    }
}
