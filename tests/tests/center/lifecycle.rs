//! The center itself: that it can be restarted, what it writes, what it logs, and its program.

use crate::support::client::{Client, UPLOAD};
use crate::support::http;
use crate::{Site, batch, config};
use elklet_proto::grpc::{EncodedRecord, FileUploadRequest};
use elklet_tests::center::{Center, RecordsTo};
use elklet_tests::harness::{own_address, wait_until};
use std::io::ErrorKind;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

#[tokio::test]
async fn a_center_comes_back_where_it_was() {
    // It has an address of its own, so that nobody else is given its port meanwhile.
    let site = Site::with(|options| (options.listen, options.http) = (own_address(), own_address()));
    site.center.set_configs(Some(vec![config("driver")]));
    let (client, mut call) = site.agent("a").await;
    let Site { center, dir } = site;
    let address = center.grpc_addr();
    let options = center.stop();
    assert!(call.try_status().await.is_err());
    assert!(client.ended().await.is_err());
    let mut started = None;
    wait_until("address to listen on", || {
        // Another test may just be starting a process, which may still hold the sockets of the center that was stopped.
        let result = Center::start(options.clone());
        let taken = result.as_ref().is_err_and(|error| error.kind() == ErrorKind::AddrInUse);
        started = Some(result);
        !taken
    });
    let site = Site { center: started.unwrap().unwrap(), dir };
    assert_eq!(site.center.grpc_addr(), address);
    let (_client, mut call) = site.agent("a").await;
    call.send(&batch("a", &[1000])).await;
    assert_eq!(call.command().await.configs, [config("driver")]);
}

#[tokio::test]
async fn records_are_written_as_lines() {
    let out = tempfile::tempdir().unwrap();
    let path = out.path().join("records");
    let site = Site::with(|options| {
        options.records = Some(RecordsTo::File(path.clone()));
        options.upload_dir = Some(out.path().to_owned());
    });
    let seen = Arc::new(std::sync::Mutex::new(0));
    site.center.observe({
        let seen = Arc::clone(&seen);
        move |batch| *seen.lock().unwrap() += batch.data.records.len()
    });
    let (mut client, mut call) = site.agent("a").await;
    let mut odd = batch("a", &[60]);
    odd.records.push(EncodedRecord { data_type: 7, timestamp: 0, data: vec![0xff; 3] });
    call.send(&odd).await;
    let mut upload = client.call(UPLOAD, None).await;
    upload.send(&FileUploadRequest { token: "t".into(), data: vec![] }).await;
    upload.finish();
    upload.status().await;
    site.until("all", |state| state.records("a", 7) == 1 && state.uploads.len() == 1).await;
    site.center.stop();
    assert_eq!(*seen.lock().unwrap(), 3);
    let lines = lines(&path);
    let of = |data_type: i32| lines.iter().find(|line| line["data_type"] == data_type).unwrap();
    assert_eq!(lines.len(), 4);
    assert_eq!((&of(59)["agent_id"], &of(59)["hostname"]), (&"a".into(), &"host".into()));
    assert_eq!((&of(60)["timestamp"], &of(60)["fields"]["n"]), (&1_700_000_000.into(), &"1".into()));
    assert!(of(60)["svr_time"].is_u64());
    assert_eq!((&of(7)["raw_len"], of(7)["error"].is_string()), (&3.into(), true));
    assert_eq!((&of(5100)["fields"]["token"], &of(5100)["fields"]["status"]), (&"t".into(), &"succeed".into()));
}

fn lines(path: &Path) -> Vec<serde_json::Value> {
    std::fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[tokio::test]
async fn a_wait_that_fails_says_what_there_was() {
    let site = Site::new();
    let (_client, _call) = site.agent("a").await;
    let waited = site.center.wait_until("miracle", std::time::Duration::ZERO, |_| false).await;
    let text = waited.unwrap_err().to_string();
    assert!(text.contains("no miracle within 0 ms") && text.contains("agent \"a\": connected true"), "{text}");
}

#[test]
fn the_binary_makes_certificates_serves_and_ends_on_sigterm() {
    use std::io::BufRead;
    let dir = tempfile::tempdir().unwrap();
    let certs = dir.path().join("certs");
    let mut center = std::process::Command::new(env!("CARGO_BIN_EXE_center"))
        .args(["--listen", "127.0.0.1:0", "--http", "localhost:0", "--quiet", "--make-certs", "--certs"])
        .arg(&certs)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(center.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let rest = line.trim_end().strip_prefix("listening grpc=").unwrap_or_else(|| panic!("{line}"));
    let (grpc, http) = rest.split_once(" http=").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(Client::connect(grpc.parse().unwrap(), &certs)).unwrap();
    assert_eq!(http::get(http.parse().unwrap(), "/conn/count").json()["data"], 0);
    let killed = std::process::Command::new("sh").arg("-c").arg(format!("kill {}", center.id())).status().unwrap();
    assert!(killed.success());
    assert!(center.wait().unwrap().success());
}

#[test]
fn the_binary_says_what_is_wrong_with_its_flags() {
    let run =
        |arguments: &[&str]| std::process::Command::new(env!("CARGO_BIN_EXE_center")).args(arguments).output().unwrap();
    for (arguments, message) in [
        (&["--listen", "0.0.0.0:1", "--certs", "."][..], "--listen 0.0.0.0:1 is not a loopback address"),
        (&[], "--certs DIR is missing"),
        (&["--certs", ".", "--conn-limit", "many"], "many"),
        (&["--frobnicate"], "--frobnicate"),
    ] {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(message), "{said}");
    }
    let help = run(&["--help"]);
    assert!(help.status.success() && String::from_utf8(help.stdout).unwrap().contains("curl"));
}
