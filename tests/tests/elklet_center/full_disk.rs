//! A center whose disk another program has filled: it takes no records, says so everywhere, and goes on when there is room.

use crate::program::{Program, site};
use crate::support::http;
use elklet_proto::grpc::Config;
use elklet_tests::binaries::center_for_tests;
use elklet_tests::harness::{Setup, own_address, skipped, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const PLUGIN: &str = env!("CARGO_BIN_EXE_scripted-plugin");

/// More records than the plugin sends until it is told to end.
const MANY: u64 = 1_000_000;

/// Writes a file for as long as there is room. Returns the bytes that this took when the disk is full.
fn fill(path: &Path) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let before = file.metadata().unwrap().len();
    let chunk = vec![7; 64 << 10];
    while file.write_all(&chunk).is_ok() {}
    file.metadata().unwrap().len() - before
}

/// Runs a command of the center with its data.
fn run(data: &Path, words: &[&str]) -> Output {
    Command::new(center_for_tests()).args(words).arg("--data").arg(data).output().unwrap()
}

/// Starts a center with a disk of 64 MiB, of which the reserve takes 16. Returns the directory of its data as well, as others see what was
/// mounted for the center alone.
fn on_a_disk_of_its_own(test: &str, dir: &Path) -> Option<(Program, PathBuf)> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        skipped(test, "mounting takes root");
        return None;
    }
    let mount = "mkdir -p \"$0\" && mount -t tmpfs -o size=64m,mode=700 none \"$0\" && exec \"$@\"";
    let data = dir.join("data").display().to_string();
    let program = Program::start_by(&["unshare", "--mount", "--", "sh", "-c", mount, &data], dir, own_address());
    let data = Path::new(&format!("/proc/{}/root", program.child.id())).join(&data[1..]);
    http::know(program.http, &data);
    Some((program, data))
}

#[test]
fn what_others_have_filled_is_given_up_for_commands_on_a_quiet_center() {
    let test = "what_others_have_filled_is_given_up_for_commands_on_a_quiet_center";
    let dir = site();
    let Some((program, data)) = on_a_disk_of_its_own(test, dir.path()) else { return };
    let reserve = data.join("reserve");
    wait_until("the reserve", || fs::metadata(&reserve).is_ok_and(|file| file.len() == 16 << 20));
    fill(&data.join("ballast"));
    // A list of plugins as long as it may be takes more than what is left of a page.
    let detail = "x".repeat(200_000);
    let wanted =
        json!({ "plugins": [{ "name": "p", "version": "1", "sha256": "00", "download_url": [], "detail": detail }] });
    let put = http::request(program.http, "PUT", "/api/v1/plugins", &[], wanted.to_string());
    assert_eq!(put.status, 200, "{}", put.body);
    assert!(!reserve.exists());
    fs::remove_file(data.join("ballast")).unwrap();
    drop(program);
}

#[test]
fn a_full_disk_takes_no_records_says_so_and_loses_none() {
    let test = "a_full_disk_takes_no_records_says_so_and_loses_none";
    let dir = site();
    let Some((program, data)) = on_a_disk_of_its_own(test, dir.path()) else { return };

    let agent = Setup::new(&dir.path().join("certs")).server(&program.grpc.to_string()).start();
    let path = format!("/api/v1/hosts/{}", agent.id());
    wait_until("heartbeat", || program.get(&path)["hostname"].is_string());
    let put = |plugin: Config| {
        let desired = json!({ "plugins": [{
            "name": plugin.name, "type": plugin.r#type, "version": plugin.version, "sha256": plugin.sha256,
            "signature": plugin.signature, "download_url": [], "detail": plugin.detail,
        }] });
        let put = http::request(program.http, "PUT", "/api/v1/plugins", &[], desired.to_string());
        assert_eq!(put.status, 200, "{}", put.body);
    };
    // It sends for as long as this test takes, and says at its end how many there were.
    put(agent.install("load", PLUGIN, "run=all rate=2000 endless"));
    let stored = || {
        let counts = &program.get(&path)["counts"];
        let of_type = counts.as_array().unwrap().iter().find(|of| of["data_type"] == 7000);
        of_type.map_or(0, |of| of["records"].as_u64().unwrap())
    };
    wait_until("first records", || stored() > 4_000);
    let ready = || http::get(program.http, "/readyz");
    assert_eq!(ready().status, 200);

    let ballast = data.join("ballast");
    let reserve = data.join("reserve");
    let says_so = |text: &str| text.contains("no records are stored: ") && text.contains("the disk is full");
    // The center may find a little room at any moment, as when it gives up its reserve or merges what it has. That is taken as well, until
    // all say at once that there is none.
    wait_until("a disk that is full for all", || {
        if fill(&ballast) > 0 || reserve.exists() {
            return false;
        }
        let ready = ready();
        let status = run(&data, &["status", "--json"]);
        let warnings = serde_json::from_slice::<Value>(&status.stdout).unwrap()["warnings"].to_string();
        let metrics = http::get(program.http, "/metrics").body;
        (ready.status == 503 && says_so(&ready.body))
            && (status.status.code() == Some(3) && says_so(&warnings))
            && metrics.lines().any(|line| line == "center_store_failing 1")
    });
    assert_eq!(program.get(&path)["connected"], true, "agents stay, and keep what they have");

    fs::remove_file(&ballast).unwrap();
    wait_until("a center that is well", || ready().status == 200);
    // Another one takes its place.
    put(agent.install("other", PLUGIN, ""));
    let goodbye = || program.get("/api/v1/records?type=7004")["records"][0]["fields"]["sent"].clone();
    wait_until("the plugin's last record", || goodbye().is_string());
    let sent: u64 = goodbye().as_str().unwrap().parse().unwrap();
    wait_until("all records", || stored() >= sent);
    let found = http::get(program.http, &format!("/api/v1/records.ndjson?type=7000&order=oldest&limit={MANY}"));
    let numbers: BTreeSet<u64> = found
        .body
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["fields"]["seq"].as_str().unwrap().parse().unwrap())
        .collect();
    assert_eq!((numbers.len() as u64, numbers.last()), (sent, Some(&(sent - 1))), "none is missing");
    assert_eq!(run(&data, &["status"]).status.code(), Some(0));
}
