//! Plugins that are downloaded: where they come from, what the agent refuses, and what runs meanwhile.

use crate::PLUGIN;
use elklet_proto::grpc::Config;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Site, holds_within, is_alive, types, wait_until};
use elklet_tests::pki::{Ca, Set, Validity};
use flate2::Compression;
use flate2::write::GzEncoder;
use ring::digest::{SHA256, digest};
use std::fs;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use tar::{Builder, EntryType, Header};

pub(crate) fn sha256(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(crate) fn program() -> Vec<u8> {
    fs::read(PLUGIN).unwrap()
}

/// Returns the entry of a plugin that is this plain executable, at these URLs.
pub(crate) fn plain(name: &str, body: &[u8], urls: &[String], detail: &str) -> Config {
    let sha256 = sha256(body);
    Config {
        name: name.into(),
        r#type: "exec".into(),
        version: "1.0".into(),
        sha256: sha256.clone(),
        signature: sha256,
        download_urls: urls.to_vec(),
        detail: detail.into(),
    }
}

/// Returns the entry of a plugin that comes in an archive.
pub(crate) fn packed(name: &str, archive: &[u8], urls: &[String], detail: &str) -> Config {
    let signature = sha256(&program());
    Config { r#type: "tar.gz".into(), sha256: sha256(archive), signature, ..plain(name, b"", urls, detail) }
}

/// An entry's name, kind and contents, and its claimed size if that is not the contents'.
pub(crate) type Entry<'a> = (&'a str, EntryType, &'a [u8], Option<u64>);

/// Makes a gzipped tar of entries, however wrong they are.
pub(crate) fn archive(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar = Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
    for (name, kind, contents, size) in entries {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..4].copy_from_slice(b"/etc");
        header.set_entry_type(*kind);
        header.set_size(size.unwrap_or(contents.len() as u64));
        header.set_mode(0o755);
        header.set_cksum();
        tar.append(&header, *contents).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn detail_of(site: &Site, agent: &Agent, plugin: &str) -> String {
    let heartbeats = site.fresh_heartbeats(agent);
    let details: Vec<String> = serde_json::from_str(&heartbeats.agent["state_detail"]).unwrap();
    let found = details.iter().find(|detail| detail.starts_with(&format!("plugin {plugin} ")));
    found.unwrap_or_else(|| panic!("nothing of {plugin}: {details:?}")).clone()
}

fn hellos(site: &Site, agent: &Agent) -> Vec<u32> {
    site.records(agent, |records| records.values(types::HELLO, "pid").iter().map(|pid| pid.parse().unwrap()).collect())
}

pub(crate) fn wait_hellos(site: &Site, agent: &Agent, count: usize) {
    site.wait_records("greetings", agent, |records| records.of_type(types::HELLO).count() == count);
}

/// Returns the temporary files beside plugins and in tmp.
fn staged(agent: &Agent) -> Vec<String> {
    let names = |directory: &str| {
        let listed = fs::read_dir(agent.workdir().path().join(directory)).into_iter().flatten().flatten();
        listed.map(|entry| entry.file_name().into_string().unwrap())
    };
    names("tmp").chain(names("plugin").filter(|name| name.starts_with('.'))).collect()
}

/// Waits until downloads have left nothing behind.
pub(crate) fn wait_tidy(agent: &Agent) {
    wait_until("end of all stages", || staged(agent).is_empty());
}

#[test]
fn plugins_are_downloaded_plain_and_packed_and_then_need_no_server() {
    let site = Site::new();
    let files = Files::start();
    let plain_url = files.serve("plain", program(), How::Right);
    let packed_body = archive(&[
        ("./", EntryType::Directory, b"", None),
        ("./packed", EntryType::Regular, &program(), None),
        ("./data/rules.txt", EntryType::Regular, b"rules", None),
        // The entries name a directory, as in an archive of one that an agent has unpacked.
        ("./.elklet-archive", EntryType::Regular, b"of another archive", None),
    ]);
    let packed_url = files.serve("packed", packed_body.clone(), How::Right);
    let configs = vec![
        // The first URL has nothing, the second leads to nothing, and the third has the file.
        plain("plain", &program(), &[files.url("nothing"), "http://127.0.0.1:1/x".into(), plain_url], "hello"),
        packed("packed", &packed_body, &[files.serve("moved", "", How::Redirect(packed_url))], "hello"),
    ];
    site.center().set_configs(Some(configs));
    let agent = site.eager().start();
    wait_hellos(&site, &agent, 2);
    let rules = agent.workdir().plugin_dir("packed").join("data/rules.txt");
    assert_eq!(fs::read(rules).unwrap(), b"rules");
    wait_tidy(&agent);
    // The agent does not fetch again what is there and right.
    let agent = agent.into_setup().start();
    wait_hellos(&site, &agent, 4);
    assert_eq!((files.requests("plain"), files.requests("packed")), (1, 1));
}

#[test]
fn a_download_that_breaks_off_goes_on_at_the_next_address() {
    let site = Site::new();
    let files = Files::start();
    let cut = files.serve("cut", program(), How::Cut(100_000));
    let whole = files.serve("whole", program(), How::Right);
    site.center().set_configs(Some(vec![plain("probe", &program(), &[cut, whole], "hello")]));
    let agent = site.eager().start();
    wait_hellos(&site, &agent, 1);
    let line = agent.wait_for_log("the download goes on at byte 100000 from ");
    assert!(line.contains("/whole"), "{line}");
}

#[test]
fn a_server_that_falls_silent_is_left_for_the_next() {
    let site = Site::new();
    let files = Files::start();
    let silent = files.serve("silent", program(), How::Stall(5_000));
    let whole = files.serve("whole", program(), How::Right);
    site.center().set_configs(Some(vec![plain("probe", &program(), &[silent, whole], "hello")]));
    let agent = site.eager().start();
    wait_until("request", || files.requests("silent") == 1);
    // The agent waits for half a minute before it tries again.
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
}

#[test]
fn https_is_trusted_by_the_deployments_authority_and_by_the_systems() {
    let site = Site::new();
    let (own, other) = (Set::new(), Set::new());
    let directory = tempfile::tempdir().unwrap();
    own.write(&directory.path().join("own")).unwrap();
    other.write(&directory.path().join("other")).unwrap();
    let mut trusted = fs::File::options().append(true).open(site.certs().join("ca.crt")).unwrap();
    trusted.write_all(&fs::read(directory.path().join("own/ca.crt")).unwrap()).unwrap();

    let serve = |ca: &Ca, name: &str| {
        let files = Files::start_tls(&ca.issue(name, Validity::Current), "localhost");
        files.serve("probe", program(), How::Right)
    };
    let unknown = Ca::new("stranger");
    let configs = vec![
        plain("own", &program(), &[serve(&own.ca, "localhost")], "hello"),
        plain("system", &program(), &[serve(&other.ca, "localhost")], "hello"),
        plain("stranger", &program(), &[serve(&unknown, "localhost")], "hello"),
        plain("misnamed", &program(), &[serve(&own.ca, "example.org")], "hello"),
    ];
    site.center().set_configs(Some(configs));
    let system = directory.path().join("other/ca.crt");
    let agent = site.eager().variable("SSL_CERT_FILE", system.to_str().unwrap()).start();
    wait_hellos(&site, &agent, 2);
    for (name, why) in [("stranger", "UnknownIssuer"), ("misnamed", "not valid for name")] {
        let line = agent.wait_for_log(&format!("plugin {name} cannot be started: https://localhost:"));
        assert!(line.contains(why), "{line}");
    }
    let running = site.fresh_heartbeats(&agent).plugins;
    assert_eq!(running.keys().collect::<Vec<_>>(), ["own", "system"]);
}

#[test]
fn what_is_wrong_with_a_download_is_said_and_nothing_of_it_is_left() {
    use EntryType::{Char, Directory, Link, Regular, Symlink};
    let site = Site::new();
    let files = Files::start();
    let exe = program();
    let serve = |name: &str, body: &[u8], how| vec![files.serve(name, body, how)];
    let mut expected = vec![
        (plain("missing", &exe, &serve("missing", &exe, How::Status(404)), ""), "status 404"),
        (plain("broken", &exe, &serve("broken", &exe, How::Status(500)), ""), "status 500"),
        (plain("round", &exe, &serve("round", &exe, How::Redirect(files.url("round"))), ""), "redirect"),
        (plain("cut", &exe, &serve("cut", &exe, How::Cut(1000)), ""), ""),
        (plain("short", &exe, &serve("short", &exe, How::Claiming(1000)), ""), "its 1000 bytes have the SHA-256"),
        (plain("long", &exe, &serve("long", &exe, How::Claiming(600 << 20)), ""), "longer than 536870912 bytes"),
        (plain("wrong", b"other", &serve("wrong", &exe, How::Right), ""), "have the SHA-256"),
        (plain("ftp", &exe, &["ftp://127.0.0.1/ftp".to_owned()], ""), "is no http or https address"),
        (plain("nowhere", &exe, &[], ""), "cannot be opened"),
    ];
    // The download has the configured hash, but the executable in it does not.
    let mut other = plain("other", &exe, &serve("other", &exe, How::Right), "");
    other.signature = sha256(b"another");
    expected.push((other, "is not what was configured"));

    let archives: [(&str, &[Entry<'_>], &str); 10] = [
        ("parent", &[("parent", Regular, &exe, None), ("../../escaped", Regular, b"x", None)], "leads out"),
        ("absolute", &[("absolute", Regular, &exe, None), ("/tmp/elklet-escaped", Regular, b"x", None)], "absolute"),
        ("symlink", &[("symlink", Regular, &exe, None), ("etc", Symlink, b"", None)], "a symbolic link"),
        ("hardlink", &[("hardlink", Regular, &exe, None), ("etc", Link, b"", None)], "a hard link"),
        ("device", &[("device", Regular, &exe, None), ("null", Char, b"", None)], "a device"),
        ("twice", &[("twice", Regular, b"x", None), ("twice", Regular, &exe, None)], "exists"),
        ("empty", &[("other", Regular, &exe, None)], "cannot be opened"),
        ("directory", &[("directory", Directory, b"", None)], "no regular file"),
        ("bomb", &[("bomb", Regular, &exe, None), ("big", Regular, b"", Some(2 << 30))], "more than 1073741824 bytes"),
        ("early", &[("early", Regular, &exe, Some(100 << 20))], "early"),
    ];
    for (name, entries, why) in archives {
        let body = archive(entries);
        expected.push((packed(name, &body, &serve(name, &body, How::Right), ""), why));
    }
    let many: Vec<_> = (0..10_001).map(|_| ("a/", Directory, &b""[..], None)).collect();
    let many = archive(&many);
    expected.push((packed("many", &many, &serve("many", &many, How::Right), ""), "more than 10000 entries"));
    // These paths are longer than a header holds, and no entry names their directories.
    let deep = format!("{}f\0", "a/".repeat(1_900));
    let long = [("L", EntryType::GNULongName, deep.as_bytes(), None), ("x", Regular, &exe[..], None)];
    let deep = archive(&long);
    expected.push((packed("deep", &deep, &serve("deep", &deep, How::Right), ""), "is deeper than 64 levels"));
    let paths: Vec<_> = (0..300).map(|top| format!("{top}/{}f", "d/".repeat(40))).collect();
    let implied: Vec<_> = paths.iter().map(|path| (path.as_str(), Regular, &b""[..], None)).collect();
    let implied = archive(&implied);
    let served = serve("implied", &implied, How::Right);
    expected.push((packed("implied", &implied, &served, ""), "more than 10000 files and directories"));
    let nonsense = b"no archive at all";
    let served = serve("nonsense", nonsense, How::Right);
    expected.push((packed("nonsense", nonsense, &served, ""), "the archive is broken"));

    site.center().set_configs(Some(expected.iter().map(|(config, _)| config.clone()).collect()));
    let agent = site.eager().start();
    for (Config { name, .. }, why) in &expected {
        let line = agent.wait_for_log(&format!("plugin {name} cannot be started: "));
        assert!(line.contains(" WARN ") && line.contains(why), "{name}: {line}, expected {why}");
    }
    // The heartbeat says so for as long as that lasts.
    for (name, why) in [("missing", "status 404"), ("symlink", "a symbolic link"), ("wrong", "have the SHA-256")] {
        assert!(detail_of(&site, &agent, name).contains(why));
    }
    assert!(site.heartbeats(&agent).plugins.is_empty() && agent.workdir().processes().is_empty());
    for (Config { name, .. }, _) in &expected {
        assert!(!agent.workdir().plugin_dir(name).exists(), "{name}");
    }
    site.configure(&agent, &[plain("last", &exe, &serve("last", &exe, How::Right), "hello")]);
    wait_hellos(&site, &agent, 1);
    wait_tidy(&agent);
    assert!(!Path::new("/tmp/elklet-escaped").exists() && !agent.workdir().path().join("escaped").exists());
}

#[test]
fn a_newer_configuration_does_not_wait_for_a_slow_download() {
    let site = Site::new();
    let files = Files::start();
    let slow: Vec<_> = (0..12)
        .map(|i| {
            let url = files.serve(&format!("slow{i}"), program(), How::Slow(100));
            plain(&format!("slow{i}"), &program(), &[url], "hello")
        })
        .collect();
    let agent = site.agent();
    site.configure(&agent, &slow);
    let open = || (0..12).map(|i| files.open(&format!("slow{i}"))).sum::<usize>();
    wait_until("as many downloads as there may be", || open() == 8);
    assert!(!holds_within(Duration::from_millis(500), || open() > 8), "the others wait");

    let url = files.serve("quick", program(), How::Right);
    site.configure(&agent, &[plain("quick", &program(), &[url], "hello")]);
    wait_hellos(&site, &agent, 1);
    wait_until("end of the slow ones", || open() == 0);
    wait_tidy(&agent);
    assert!(agent.log_lines("cannot be started").is_empty(), "what is not wanted any more did not fail");
}

#[test]
fn a_flood_of_configurations_costs_no_threads() {
    let site = Site::new();
    let files = Files::start();
    let agent = site.agent();
    let slow = plain("slow", &program(), &[files.serve("slow", program(), How::Slow(100))], "");
    for round in 0..100 {
        let entry = |i| Config { name: format!("slow{i}"), version: round.to_string(), ..slow.clone() };
        let configs: Vec<_> = (0..16).map(entry).collect();
        site.configure(&agent, &configs);
    }
    let threads = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap().count();
    assert!(threads <= 3 + 8 + 8, "{threads} threads");
    let url = files.serve("quick", program(), How::Right);
    site.configure(&agent, &[plain("quick", &program(), &[url], "hello")]);
    wait_hellos(&site, &agent, 1);
}

#[test]
fn a_plugin_runs_on_while_its_new_version_fails() {
    let site = Site::new();
    let files = Files::start();
    let exe = program();
    let good = archive(&[("probe", EntryType::Regular, &exe, None), ("old.txt", EntryType::Regular, b"old", None)]);
    let first = packed("probe", &good, &[files.serve("good", good.clone(), How::Right)], "hello run=first n=5");
    let agent = site.agent();
    site.configure(&agent, std::slice::from_ref(&first));
    wait_hellos(&site, &agent, 1);
    let pid = hellos(&site, &agent)[0];

    let link = archive(&[("probe", EntryType::Regular, &exe, None), ("l", EntryType::Symlink, b"", None)]);
    let failing = [
        (Config { version: "2".into(), ..packed("probe", b"x", &[files.url("nothing")], "") }, "status 404"),
        (Config { version: "3".into(), ..packed("probe", b"x", &[files.url("good")], "") }, "have the SHA-256"),
        (
            Config {
                version: "4".into(),
                ..packed("probe", &link, &[files.serve("link", link.clone(), How::Right)], "")
            },
            "link",
        ),
    ];
    for (config, why) in failing {
        site.configure(&agent, std::slice::from_ref(&config));
        wait_until("failure", || agent.log_lines("cannot be started").iter().any(|line| line.contains(why)));
        assert!(is_alive(pid), "{why}");
        assert!(detail_of(&site, &agent, "probe").ends_with("; version 1.0 runs on"));
        assert_eq!(site.heartbeats(&agent).plugins["probe"]["pversion"], "1.0");
    }

    // This version can be fetched and verified, but not executed. The agent puts the old one back and starts it again.
    let nonsense = b"neither script nor program";
    let unfit = archive(&[("probe", EntryType::Regular, nonsense, None)]);
    let before = files.requests("good");
    let mut config = packed("probe", &unfit, &[files.serve("unfit", unfit.clone(), How::Right)], "");
    (config.version, config.signature) = ("5".into(), sha256(nonsense));
    site.configure(&agent, &[config]);
    let line = agent.wait_for_log("; version 1.0 is started again");
    assert!(line.contains("plugin probe cannot be started: Exec format error"), "{line}");
    wait_hellos(&site, &agent, 2);
    assert_eq!(fs::read(agent.workdir().plugin_dir("probe").join("old.txt")).unwrap(), b"old");
    assert_eq!(site.fresh_heartbeats(&agent).plugins["probe"]["pversion"], "1.0");
    assert_eq!(files.requests("good"), before, "the old one needed no download");

    // A good version replaces the whole directory.
    let new = archive(&[("probe", EntryType::Regular, &exe, None), ("new.txt", EntryType::Regular, b"new", None)]);
    let mut config = packed("probe", &new, &[files.serve("new", new.clone(), How::Right)], "hello");
    config.version = "6".into();
    site.configure(&agent, &[config]);
    wait_hellos(&site, &agent, 3);
    let directory = agent.workdir().plugin_dir("probe");
    assert!(directory.join("new.txt").exists() && !directory.join("old.txt").exists());
    wait_tidy(&agent);
}

#[test]
fn an_upgrade_under_load_loses_no_record_of_either_version() {
    const RATE: u64 = 5_000;
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let agent = site.agent();
    let old = plain(
        "probe",
        &program(),
        std::slice::from_ref(&url),
        &format!("run=old size=800 rate={RATE} last=2000 endless"),
    );
    site.configure(&agent, &[old]);
    site.wait_records("old records", &agent, |records| records.run("old").received >= 2 * RATE);
    // The same program with some more bytes is a different executable.
    let newer = [program(), b"newer".to_vec()].concat();
    let url = files.serve("newer", newer.clone(), How::Right);
    let mut new = plain("probe", &newer, &[url], &format!("hello run=new size=800 rate={RATE} n=20000"));
    new.version = "2.0".into();
    site.configure(&agent, &[new]);
    site.wait_records("new records", &agent, |records| records.run("new").received >= 20_000);
    site.records(&agent, |records| {
        let sent: Vec<u64> = records.values(types::GOODBYE, "sent").iter().map(|sent| sent.parse().unwrap()).collect();
        assert_eq!(sent.len(), 1, "the old one has said goodbye");
        assert!(records.run("old").is_whole(sent[0]), "{sent:?} sent: {:?}", records.run("old"));
        assert!(records.run("new").is_whole(20_000), "{:?}", records.run("new"));
    });
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((heartbeats.agent["state"].as_str(), heartbeats.count("frames_truncated")), ("running", 0));
}

#[test]
fn a_plugin_that_is_removed_while_it_is_fetched_leaves_nothing() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("slow", program(), How::Slow(1000));
    let agent = site.agent();
    let stays = agent.install("stays", PLUGIN, "hello");
    site.configure(&agent, &[stays.clone(), plain("slow", &program(), &[url], "")]);
    wait_until("download", || files.open("slow") == 1);
    site.configure(&agent, &[stays]);
    wait_until("end of the download", || files.open("slow") == 0);
    wait_tidy(&agent);
    assert!(!agent.workdir().plugin_dir("slow").exists());
    // An agent that ends does not wait for a download either, which would take hours.
    let url = files.serve("slower", program(), How::Slow(10));
    site.configure(&agent, &[plain("slower", &program(), &[url], "")]);
    wait_until("download", || files.open("slower") == 1);
    let setup = agent.into_setup();
    assert!(!setup.workdir().path().join("tmp").exists());
}

#[test]
fn a_plugin_in_its_place_does_not_wait_for_slow_downloads() {
    let site = Site::new();
    let files = Files::start();
    let setup = site.eager();
    let slow = (0..12).map(|i| {
        let url = files.serve(&format!("slow{i}"), program(), How::Slow(10));
        plain(&format!("slow{i}"), &program(), &[url], "")
    });
    let here = setup.workdir().install("zhere", PLUGIN, "hello");
    site.center().set_configs(Some(slow.chain([here]).collect()));
    let agent = setup.start();
    wait_hellos(&site, &agent, 1);
    // Downloads are bounded as before.
    let requests = || (0..12).filter(|i| files.requests(&format!("slow{i}")) > 0).count();
    wait_until("eight downloads", || requests() == 8);
    assert_eq!(staged(&agent).len(), 8);
}
