//! From nothing to an agent whose records arrive: a center without certificates, a token, and a host that is enrolled with it.

mod hostile;

use crate::chromium::{self, Browser};
use crate::program::Program;
use crate::support::client::{Client, TRANSFER, UPLOAD};
use crate::support::http;
use crate::{batch, record};
use elklet_proto::enrollment::EnrollRequest;
use elklet_proto::grpc::{FileUploadRequest, FileUploadResponse};
use elklet_tests::binaries::{Binaries, center_for_tests};
use elklet_tests::harness::{skipped, wait_until};
use prost::Message;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tempfile::TempDir;

const ENROLL: &str = "/elklet.Enrollment/Enroll";

/// A center that was given no certificates.
struct Site {
    dir: TempDir,
    program: Program,
}

impl Site {
    fn new() -> Self {
        Self::with("")
    }

    /// With more settings than where things lie.
    fn with(settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // A restart is to find its port free, whatever else runs on this machine.
        let off = "http = \"127.0.0.1:0\"\ndownloads = \"off\"";
        let settings = format!("{off}\ndata = {:?}\n{settings}", data.display().to_string());
        fs::write(dir.path().join("center.toml"), settings).unwrap();
        let program = Program::start(dir.path());
        Self { dir, program }
    }

    fn data(&self, name: &str) -> PathBuf {
        self.dir.path().join("data").join(name)
    }

    /// Runs a command of the center that has to succeed, and returns what it printed.
    fn command(&self, words: &[&str]) -> String {
        let output = self.try_command(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_command(&self, words: &[&str]) -> Output {
        Command::new(center_for_tests()).args(words).arg("--data").arg(self.data("")).output().unwrap()
    }

    /// The words after `elklet` of the line that enrols a host.
    fn line(&self, words: &[&str]) -> Vec<String> {
        let line = self.command(&[&["token"], words].concat());
        let line = line.trim_end().strip_prefix("elklet ").unwrap_or_else(|| panic!("{line}"));
        line.split(' ').map(str::to_owned).collect()
    }

    fn total(&self, name: &str) -> u64 {
        let metrics = http::get(self.program.http, "/metrics").body;
        let value = metrics.lines().find_map(|line| line.strip_prefix(&format!("center_{name} ")));
        value.unwrap_or_else(|| panic!("{name}: {metrics}")).parse().unwrap()
    }

    fn host(&self, id: &str) -> Value {
        self.program.get(&format!("/api/v1/hosts/{id}"))
    }
}

/// A host with everything in one directory.
struct Host {
    dir: TempDir,
    id: &'static str,
}

impl Host {
    fn new(id: &'static str) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), id }
    }

    fn certs(&self) -> PathBuf {
        self.dir.path().join("certs")
    }

    fn elklet(&self, words: &[String]) -> Command {
        let mut command = Command::new(&Binaries::for_tests().elklet);
        command.args(words).arg("--workdir").arg(self.dir.path()).env("SPECIFIED_AGENT_ID", self.id);
        command
    }

    fn run(&self, words: &[String]) -> Output {
        self.elklet(words).output().unwrap()
    }

    fn enrolled(&self, line: &[String]) {
        let output = self.run(line);
        assert!(output.status.success(), "{output:?}");
    }

    /// Runs a line that has to fail, and returns why it does.
    fn refused(&self, line: &[String]) -> (Option<i32>, String) {
        let before = self.files();
        let output = self.run(line);
        assert!(!output.status.success(), "{output:?}");
        assert_eq!(self.files(), before, "what was there stays, and nothing is added");
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    }

    /// The settings and everything beside the certificates, by name.
    fn files(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let settings = self.dir.path().join("elklet.toml");
        let certs = fs::read_dir(self.certs()).into_iter().flatten().map(|entry| entry.unwrap().path());
        certs.chain([settings]).filter_map(|path| Some((path.clone(), fs::read(&path).ok()?))).collect()
    }

    fn start(&self) -> Agent {
        let mut command = self.elklet(&["run".to_owned()]);
        Agent(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log/elklet.log")).unwrap_or_default()
    }
}

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        // It may have ended already.
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display())).permissions().mode() & 0o777
}

fn replaced(line: &[String], flag: &str, value: &str) -> Vec<String> {
    let at = line.iter().position(|word| word == flag).unwrap() + 1;
    let mut line = line.to_vec();
    line[at] = value.to_owned();
    line
}

#[test]
fn two_commands_bring_a_host_from_nothing_to_an_agent_whose_records_arrive() {
    let site = Site::new();
    let said = &site.program.said;
    assert!(said.contains("its own authority") && said.contains("with the pin"), "{said}");
    assert_eq!((mode(&site.data("authority")), mode(&site.data("authority/ca.key"))), (0o700, 0o600));
    let line = site.line(&["--group", "edge"]);
    assert!(said.contains(line.last().unwrap()), "{said}: {line:?}");

    let host = Host::new("newcomer 1");
    let output = host.run(&line);
    let shown = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    assert!(shown.contains("agent newcomer 1 is enrolled") && shown.contains("is open"), "{shown}");
    assert_eq!((mode(&host.certs()), mode(&host.certs().join("client.key"))), (0o700, 0o600));
    let names: Vec<_> = host.files().into_keys().map(|path| path.file_name().unwrap().to_owned()).collect();
    assert_eq!(names, ["ca.crt", "client.crt", "client.key", "elklet.toml"]);

    let _agent = host.start();
    wait_until("records of the newcomer", || {
        site.program.get("/api/v1/records?type=1000")["records"][0]["agent_id"] == "newcomer 1"
    });
    assert_eq!(site.host("newcomer%201")["group"], "edge");
    let audit = site.program.get("/api/v1/audit")["entries"].to_string();
    assert!(audit.contains("\"action\":\"token.new\"") && audit.contains("\"who\":\"token 1\""), "{audit}");
    assert_eq!(site.total("enrolled_total"), 1);

    let (code, why) = host.refused(&line);
    assert!(code == Some(2) && why.contains("ca.crt is there already"), "{why}");
    let other = Host::new("newcomer 2");
    let (code, why) = other.refused(&line);
    assert!(code == Some(1) && why.contains("the token was for 1 hosts"), "{why}");

    // A restart makes no other authority.
    let Site { dir, program } = site;
    drop(program);
    let again = Program::start(dir.path());
    assert_eq!(again.said, "");
    let certificates = again.get("/api/v1/certificates")["certificates"].clone();
    assert_eq!((&certificates[0]["agent_id"], &certificates[0]["token"]), (&json!("newcomer 1"), &json!(1)));
}

/// Passes connections on to the center, and breaks each one in which the answer comes that makes `is_answer` true for the first time.
/// Also returns whether it has.
fn breaks_once(
    center: SocketAddr,
    is_answer: impl Fn() -> bool + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicBool>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let has_broken = Arc::new(AtomicBool::new(false));
    let broken = Arc::clone(&has_broken);
    std::thread::spawn(move || {
        for down in listener.incoming() {
            let (Ok(mut down), Ok(mut up)) = (down, TcpStream::connect(center)) else { return };
            let (mut from, mut to) = (down.try_clone().unwrap(), up.try_clone().unwrap());
            std::thread::spawn(move || {
                _ = std::io::copy(&mut from, &mut to);
                _ = to.shutdown(Shutdown::Write);
            });
            let mut piece = [0; 4096];
            while let Ok(read @ 1..) = up.read(&mut piece) {
                if !broken.load(Ordering::Relaxed) && is_answer() {
                    broken.store(true, Ordering::Relaxed);
                    break;
                }
                if down.write_all(&piece[..read]).is_err() {
                    break;
                }
            }
            _ = (down.shutdown(Shutdown::Both), up.shutdown(Shutdown::Both));
        }
    });
    (address, has_broken)
}

#[test]
fn an_answer_that_was_lost_is_given_again_and_the_token_is_used_once() {
    let site = Site::new();
    let mut line = site.line(&[]);
    let http = site.program.http;
    let enrolled = move || http::get(http, "/metrics").body.contains("center_enrolled_total 1\n");
    let (relay, has_broken) = breaks_once(site.program.grpc, enrolled);
    line[1] = relay.to_string();
    let host = Host::new("a");
    host.enrolled(&line);
    assert!(has_broken.load(Ordering::Relaxed), "no answer was lost");
    assert_eq!((site.total("enrolled_total"), site.total("refused_enrolments_total")), (1, 0));
    let token = &site.program.get("/api/v1/tokens")[0];
    assert_eq!((&token["used"], &token["usable"]), (&json!(1), &json!(false)), "{token}");
    let _agent = host.start();
    wait_until("host", || site.host("a")["connected"] == true);
}

#[test]
fn a_wrong_pin_keeps_the_token_on_the_host() {
    let site = Site::new();
    let line = site.line(&[]);
    let host = Host::new("a");
    let (code, why) = host.refused(&replaced(&line, "--ca-pin", &"0".repeat(64)));
    assert!(code == Some(1) && why.contains("which is not the pin"), "{why}");
    let (code, why) = host.refused(&replaced(&line, "--ca-pin", "abc"));
    assert!(code == Some(2) && why.contains("--ca-pin"), "{why}");
    assert_eq!((site.total("refused_enrolments_total"), site.total("enrolled_total")), (0, 0));
    assert_eq!(site.program.get("/api/v1/tokens")[0]["used"], 0);
    assert_eq!(fs::read_dir(host.dir.path()).unwrap().count(), 0, "no directory is left");
    host.enrolled(&line);
}

#[test]
fn a_full_disk_does_not_use_the_token_up_and_nothing_is_left_on_it() {
    let test = "a_full_disk_does_not_use_the_token_up_and_nothing_is_left_on_it";
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        return skipped(test, "mounting takes root");
    }
    let site = Site::new();
    let line = site.line(&[]);
    let host = Host::new("a");
    // A file without a byte in it still finds a place on a full disk, and so does one of a page where a page is free.
    for free in ["0", "4"] {
        let script = "mount -t tmpfs -o size=256k,mode=700 none \"$0\" && head -c $(((256 - $1) << 10)) /dev/zero > \"$0/ballast\" \
            && shift && { \"$@\"; code=$?; ls -A \"$0\"; exit $code; }";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", script]).arg(host.dir.path()).arg(free);
        command.arg(&Binaries::for_tests().elklet).args(&line).arg("--workdir").arg(host.dir.path());
        let output = command.env("SPECIFIED_AGENT_ID", host.id).output().unwrap();
        let why = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{why}");
        assert!(why.contains("the token was not used: No space left on device"), "{why}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "ballast\n");
    }
    assert_eq!(site.program.get("/api/v1/tokens")[0]["used"], 0);
    host.enrolled(&line);
}

#[test]
fn a_file_of_settings_that_is_named_without_a_directory_is_written_where_the_command_runs() {
    let site = Site::new();
    let host = Host::new("a");
    let mut command = host.elklet(&site.line(&[]));
    let output = command.args(["--config", "named.toml"]).current_dir(host.dir.path()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(host.dir.path().join("named.toml").exists() && host.certs().join("client.key").exists());
}

#[test]
fn a_token_that_is_wrong_expired_or_revoked_lets_nobody_in() {
    let site = Site::new();
    let (host, line) = (Host::new("a"), site.line(&[]));
    let (_, why) = host.refused(&replaced(&line, "--token", "wrong"));
    assert!(why.contains("the center knows no such token"), "{why}");
    assert_eq!(site.total("refused_enrolments_total"), 1);

    let short = site.line(&["--ttl", "1s"]);
    wait_until("end of the token", || site.program.get("/api/v1/tokens")[0]["usable"] == false);
    assert!(host.refused(&short).1.contains("the token's time is over"));
    site.command(&["token", "revoke", "1"]);
    assert!(host.refused(&line).1.contains("the token was revoked"));
    assert!(site.command(&["token", "list"]).contains("lets no host in any more"));
    let audit = site.program.get("/api/v1/audit")["entries"].to_string();
    assert!(audit.contains("the center knows no such token") && audit.contains("token.revoke"), "{audit}");
    for (words, told) in [
        (&["token", "--uses", "0"][..], "uses is 0"),
        (&["token", "--ttl", "99d"], "ttl_s is"),
        (&["token", "--group", ""], "a name of 0 bytes"),
        (&["token", "revoke", "99"], "there is no token 99"),
    ] {
        let output = site.try_command(words);
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && said.contains(told), "{words:?}: {said}");
    }
}

#[test]
fn a_client_without_a_certificate_reaches_nothing_but_enrolment() {
    let site = Site::new();
    let authority = site.data("authority");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect_anonymously(site.program.grpc, &authority).await.unwrap();
        for path in [TRANSFER, "/grpc.FileExt/Upload", "/nothing"] {
            let mut call = client.call(path, None).await;
            assert_eq!(call.status().await, (16, "this call takes a client certificate".to_owned()), "{path}");
        }
        let mut call = client.call(ENROLL, None).await;
        call.send(&EnrollRequest { agent_id: "a".to_owned(), ..EnrollRequest::default() }).await;
        assert_eq!(call.status().await.0, 16, "neither token nor certificate");
        let mut call = client.call(ENROLL, None).await;
        call.send(&EnrollRequest { token: "x".repeat(5000), ..EnrollRequest::default() }).await;
        let (code, why) = call.status().await;
        assert!(code == 3 && why.contains("the limit is 4096"), "{why}");
    });
    assert_eq!(site.total("refused_anonymous_total"), 3);
    assert_eq!(site.total("known_agents"), 0);
}

#[test]
fn a_center_without_the_key_of_its_authority_says_so_and_lets_no_stranger_in() {
    let dir = crate::program::site();
    let program = Program::start(dir.path());
    let site = Site { dir, program };
    let output = site.try_command(&["token"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("cannot enrol hosts") && said.contains("ca.key"), "{said}");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let certs = site.dir.path().join("certs");
        assert!(Client::connect_anonymously(site.program.grpc, &certs).await.is_err());
        let mut client = Client::connect(site.program.grpc, &certs).await.unwrap();
        let mut call = client.call(ENROLL, None).await;
        assert_eq!(call.status().await.0, 12);
        let mut call = client.call(TRANSFER, None).await;
        call.send(&batch("anybody", vec![record(59, &[])])).await;
        wait_until("record", || site.host("anybody")["records"] == 1);
    });
}

#[test]
fn a_certificate_is_for_one_agent_and_for_nobody_once_it_is_revoked() {
    let site = Site::new();
    let host = Host::new("gateway 1");
    host.enrolled(&site.line(&[]));
    let agent = host.start();
    wait_until("stream", || site.host("gateway%201")["connected"] == true);

    let impostor = Host { id: "gateway 2", ..host };
    drop(agent);
    wait_until("end of the stream", || site.host("gateway%201")["connected"] == false);
    let agent = impostor.start();
    wait_until("refusal", || site.total("refused_id_mismatches_total") > 0);
    wait_until("word of it", || {
        impostor.log().contains("the certificate is for agent gateway 1, and not for gateway 2")
    });
    assert_eq!(http::get(site.program.http, "/api/v1/hosts/gateway%202").status, 404);
    let doctor = |host: &Host| {
        let words = ["doctor", "--server", &site.program.grpc.to_string()].map(str::to_owned);
        let output = host.run(&words);
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    wait_until("the doctor's word of it", || {
        let (code, said) = doctor(&impostor);
        code == Some(1)
            && said.contains("  agent           FAILED   it runs as process ")
            && said.contains("enrol the host again")
    });
    drop(agent);

    let host = Host { id: "gateway 1", ..impostor };
    let _agent = host.start();
    wait_until("stream", || site.host("gateway%201")["connected"] == true);
    let (other, second) = (Host::new("gateway 1"), site.line(&[]));
    let (_, why) = other.refused(&second);
    assert!(why.contains("has a certificate already"), "{why}");
    // To enrol, it connects once. The center then forgets that, and has its certificate alone.
    Host::new("gateway 7").enrolled(&site.line(&[]));
    wait_until("a forgotten host", || {
        _ = http::request(site.program.http, "DELETE", "/api/v1/hosts/gateway%207", &[], "");
        http::get(site.program.http, "/api/v1/hosts/gateway%207").status == 404
    });
    for (words, told) in [
        (&["revoke", "nobody"][..], "no host or certificate of \"nobody\" is known"),
        (&["revoke", ""], "no host or certificate of \"\" is known"),
        (&["revoke", "gateway"], "\"gateway\" is 2 agents (gateway 1, gateway 7)"),
    ] {
        let output = site.try_command(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(2) && said.contains(told), "{words:?}: {said}");
    }
    let said = site.command(&["revoke", "gateway 7"]);
    assert!(said.contains("agent gateway 7 is kept out, certificates revoked: 1"), "{said}");
    // Now there is one.
    let said = site.command(&["revoke", "gate"]);
    assert!(said.contains("agent gateway 1 is kept out, certificates revoked: 1"), "{said}");
    wait_until("end of the stream", || site.host("gateway%201")["connected"] == false);
    wait_until("refusal", || site.total("refused_revoked_total") > 0);
    wait_until("word of it", || host.log().contains("the certificate of this agent is revoked"));
    let (code, said) = doctor(&host);
    assert!(
        code == Some(1) && said.contains("  AgentCenter     FAILED ") && said.contains("enrol the host again"),
        "{said}"
    );
    let audit = site.program.get("/api/v1/audit")["entries"].to_string();
    assert!(audit.contains("certificate.revoke"), "{audit}");
    let again = site.try_command(&["revoke", "gateway 1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("has no certificate"), "{again:?}");
    let name = site.host("gateway%201")["hostname"].as_str().unwrap().to_owned();
    let by_name = site.try_command(&["revoke", &name]);
    assert!(String::from_utf8_lossy(&by_name.stderr).contains("agent \"gateway 1\" has no certificate"), "{by_name:?}");

    // It stays so after a restart, and a new token lets the host in again: the token of before was not used.
    let Site { dir, program } = site;
    let at = program.grpc;
    drop(program);
    let site = Site { program: Program::start_at(dir.path(), at), dir };
    wait_until("refusal", || site.total("refused_revoked_total") > 0);
    let forced = [second, vec!["--force".to_owned()]].concat();
    host.enrolled(&forced);
    wait_until("stream", || site.host("gateway%201")["connected"] == true);
}

#[test]
fn an_agent_renews_its_certificate_with_a_new_key_and_goes_on_with_it() {
    let site = Site::with("certificate_lifetime = \"30s\"\n");
    let host = Host::new("a");
    host.enrolled(&site.line(&[]));
    let read = |name: &str| fs::read(host.certs().join(name)).unwrap();
    let (key, certificate, authority) = (read("client.key"), read("client.crt"), read("ca.crt"));
    let _agent = host.start();
    wait_until("stream", || site.host("a")["connected"] == true);
    wait_until("renewal", || site.total("renewed_certificates_total") > 0);
    wait_until("new files", || read("client.crt") != certificate && !host.certs().join("client.next").exists());
    assert_ne!(read("client.key"), key);
    assert_eq!((read("ca.crt"), mode(&host.certs().join("client.key"))), (authority, 0o600));
    wait_until("stream with the new one", || {
        let host = site.host("a");
        host["streams"].as_u64().unwrap() >= 2 && host["connected"] == true
    });
    // The connection that asks again is one with the new certificate, because the old one's is closed.
    wait_until("another renewal", || site.total("renewed_certificates_total") > 1);
    let issued = site.program.get("/api/v1/certificates?agent_id=a")["certificates"].clone();
    let tokens: Vec<_> = issued.as_array().unwrap().iter().map(|one| one["token"].clone()).collect();
    assert_eq!(tokens.last(), Some(&json!(1)), "{issued}");
    assert!(tokens[..tokens.len() - 1].iter().all(Value::is_null) && tokens.len() >= 3, "{issued}");
    assert!(host.run(&["check".to_owned()]).status.success());
}

#[test]
fn an_agent_that_was_killed_between_two_files_goes_on_with_the_new_pair() {
    let site = Site::new();
    let (host, other) = (Host::new("a"), Host::new("b"));
    let line = site.line(&["--uses", "2"]);
    host.enrolled(&line);
    other.enrolled(&line);
    // The key is new and in its place, and the certificate is not.
    let read = |host: &Host, name: &str| fs::read(host.certs().join(name)).unwrap();
    let (key, certificate) = (read(&host, "client.key"), read(&host, "client.crt"));
    fs::write(host.certs().join("client.next"), [key.clone(), certificate.clone()].concat()).unwrap();
    fs::write(host.certs().join("client.crt"), read(&other, "client.crt")).unwrap();
    assert!(host.run(&["check".to_owned()]).status.success(), "whoever looks sees the new pair");
    assert!(host.certs().join("client.next").exists(), "and changes nothing");
    let _agent = host.start();
    wait_until("stream", || site.host("a")["connected"] == true);
    assert_eq!((read(&host, "client.key"), read(&host, "client.crt")), (key, certificate));
    assert!(!host.certs().join("client.next").exists());
}

#[test]
fn an_id_that_is_refused_is_one_line_of_the_log() {
    let site = Site::new();
    let host = Host::new("a");
    host.enrolled(&site.line(&[]));
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let status = runtime.block_on(async {
        let mut client = Client::connect(site.program.grpc, &host.certs()).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        call.send(&batch("b\nelklet-center: all is well", vec![])).await;
        call.status().await
    });
    // The log has the same words.
    let said = "the certificate is for agent a, and not for b\\nelklet-center: all is well";
    assert_eq!(status, (7, said.to_owned()));
}

#[test]
fn an_agent_sends_no_file_in_anothers_name() {
    let site = Site::new();
    let (host, other) = (Host::new("a"), Host::new("b"));
    let line = site.line(&["--uses", "2"]);
    host.enrolled(&line);
    other.enrolled(&line);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let mut client = Client::connect(site.program.grpc, &host.certs()).await.unwrap();
        let mut call = client.call(TRANSFER, None).await;
        call.send(&batch("a", vec![record(59, &[])])).await;
        wait_until("stream", || site.host("a")["connected"] == true);
        let task = json!({ "agent_id": "a", "task": { "data_type": 1050, "name": "elkeid-agent", "token": "t1" } });
        assert_eq!(http::post(site.program.http, "/api/v1/tasks", &task.to_string()).status, 201);
        for (host, is_taken) in [(&other, false), (&host, true)] {
            let mut client = Client::connect(site.program.grpc, &host.certs()).await.unwrap();
            let mut upload = client.call(UPLOAD, None).await;
            upload.send(&FileUploadRequest { token: "t1".to_owned(), data: b"file".to_vec() }).await;
            upload.finish();
            let answer = upload.message().await.unwrap().expect("an answer");
            let answer = FileUploadResponse::decode(&*answer.body).unwrap();
            assert_eq!(answer.status == 0, is_taken, "{}", host.id);
        }
    });
    assert_eq!(site.total("refused_id_mismatches_total"), 1);
    let answers = site.program.get("/api/v1/tasks?token=t1")["tasks"][0]["answers"].clone();
    assert_eq!(answers.as_array().map(Vec::len), Some(1), "{answers}");
}

#[test]
fn a_host_is_enrolled_and_kept_out_from_the_page() {
    let Some(program) = chromium::program() else {
        return skipped("a_host_is_enrolled_and_kept_out_from_the_page", "there is no Chromium");
    };
    let site = Site::new();
    let mut browser = Browser::start(&program);
    browser.looks(1280, "light");
    browser.open(site.command(&["link"]).trim());
    browser.sees("No agent has come yet.");
    // This leads to the settings, where a button has the same name.
    browser.click("Enrol a host");
    browser.sees("No token lets a host in now.");
    browser.click("Enrol a host");
    browser.write("Group", "edge");
    browser.click("Make a token");
    let line = browser.wait("the line", "document.querySelector('textarea[readonly]')?.value");
    let line = line.as_str().unwrap().strip_prefix("elklet ").unwrap();
    browser.click("Cancel");
    let host = Host::new("a");
    host.enrolled(&line.split(' ').map(str::to_owned).collect::<Vec<_>>());
    let _agent = host.start();
    wait_until("stream", || site.host("a")["connected"] == true);
    browser.go("#/hosts/a");
    browser.sees("token 1");
    browser.click("Revoke");
    browser.sees("Its stream ends at once.");
    browser.click("Revoke");
    browser.sees("revoked");
    wait_until("end of the stream", || site.host("a")["connected"] == false);
    assert_eq!(browser.complaints(), Vec::<String>::new(), "the page makes no mistake");
}
