//! Signatures: with a public key in the configuration, the agent starts only what the key's owner has signed.

use super::downloads::{plain, program};
use elklet_proto::grpc::Config;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Site, skipped, types, wait_until};
use ring::digest::{SHA256, digest};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// When the tests' signatures were made: 2026-01-31 at noon.
const SIGNED_S: u64 = 1_769_860_800;

/// Returns the text that is signed, as `docs/plugins.md` has it. `detail` is its last line.
fn text(kind: &str, config: &Config, detail: &str) -> String {
    let Config { name, version, sha256, signature, .. } = config;
    format!("elklet signature 1\n{kind}\n{name}\n{version}\n{sha256}\n{signature}\n{SIGNED_S}\n{detail}\n")
}

/// Returns the text of a plugin with its detail.
fn closed(config: &Config) -> String {
    text("plugin", config, &hash(&config.detail))
}

fn hash(detail: &str) -> String {
    digest(&SHA256, detail.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Returns the entry with the signature of `text` by `key`.
fn with(entry: Config, text: &str, key: &Ed25519KeyPair) -> Config {
    let signature = base64(key.sign(text.as_bytes()).as_ref());
    Config { signature: format!("{}:{signature}:{SIGNED_S}", entry.signature), ..entry }
}

/// Returns the key that is made of this seed.
pub(super) fn key_of(seed: u8) -> Ed25519KeyPair {
    Ed25519KeyPair::from_seed_unchecked(&[seed; 32]).unwrap()
}

/// Returns a key as `plugins.public_key` has it.
pub(super) fn public(key: &Ed25519KeyPair) -> String {
    format!("\"{}\"", base64(key.public_key().as_ref()))
}

/// Returns a signed entry of the agent.
pub(super) fn signed_agent(entry: Config, key: &Ed25519KeyPair) -> Config {
    let text = text("agent", &entry, &hash(""));
    with(entry, &text, key)
}

pub(super) fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = (0..3).fold(0, |bits, i| bits << 8 | usize::from(*three.get(i).unwrap_or(&0)));
        let digits = (0..4).map(|i| char::from(DIGITS[bits >> (18 - 6 * i) & 63]));
        text.extend(digits.take(three.len() + 1));
        text.extend(std::iter::repeat_n('=', 3 - three.len()));
    }
    text
}

/// Waits until `audit.log` says that something was refused for this reason.
fn wait_refused(agent: &Agent, what: &str, reason: &str) {
    let file = agent.workdir().path().join("log/audit.log");
    let is_it = |line: &str| {
        let event: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        let result = event["result"].as_str().unwrap_or_default();
        event["kind"] == "refused" && event["what"] == what && result.contains(reason)
    };
    wait_until(&format!("refusal of {what} in the audit"), || {
        fs::read_to_string(&file).is_ok_and(|text| text.lines().any(is_it))
    });
}

#[test]
fn only_what_the_keys_owner_has_signed_is_started() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let (owner, stranger) = (key_of(7), key_of(8));
    let entry = |name: &str| plain(name, &program(), std::slice::from_ref(&url), "hello");
    let good = entry("good");
    let of_another = Config { version: "0.9".into(), ..entry("replayed") };
    let lines = Config { version: format!("1.0\n{}", good.sha256), ..entry("lines") };
    let moved = with(entry("moved"), &closed(&entry("moved")), &owner);
    let configs = vec![
        with(good.clone(), &closed(&good), &owner),
        entry("unsigned"),
        with(entry("forged"), &closed(&entry("forged")), &stranger),
        // The signature is valid, but for another plugin, another version, another detail, another time, or for an agent.
        with(entry("swapped"), &closed(&good), &owner),
        with(entry("replayed"), &closed(&of_another), &owner),
        with(entry("steered"), &text("plugin", &entry("steered"), &hash("hello deaf")), &owner),
        Config { signature: moved.signature.replace(&SIGNED_S.to_string(), "1769860801"), ..moved },
        with(entry("agent"), &text("agent", &entry("agent"), &hash("hello")), &owner),
        // What is open, only its signer can say.
        opened(with(entry("opened"), &closed(&entry("opened")), &owner)),
        with(entry("closed"), &text("plugin", &entry("closed"), "open"), &owner),
        with(lines.clone(), &closed(&lines), &owner),
        Config { signature: format!("{}:AAAA:1", entry("short").signature), ..entry("short") },
    ];
    site.center().set_configs(Some(configs));
    let agent = site.eager().setting("plugins", &format!("public_key = {}", public(&owner))).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent.wait_for_log("plugin unsigned cannot be started: it is not signed, and plugins.public_key demands it");
    for name in ["forged", "swapped", "replayed", "steered", "moved", "agent", "opened", "closed"] {
        agent.wait_for_log(&format!("plugin {name} cannot be started: its signature is not one of plugins.public_key"));
    }
    agent.wait_for_log("plugin lines cannot be started: its version has control characters");
    agent.wait_for_log("plugin \"short\": signature \"AAAA:1\" is not the Base64 of 64 bytes");
    for (name, reason) in [
        ("unsigned", "it is not signed, and plugins.public_key demands it"),
        ("forged", "its signature is not one of plugins.public_key"),
        ("lines", "its version has control characters"),
    ] {
        wait_refused(&agent, &format!("plugin {name}"), reason);
    }
    wait_refused(&agent, "entry", "plugin \"short\": signature \"AAAA:1\" is not");
    assert_eq!(site.fresh_heartbeats(&agent).plugins.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(files.requests("probe"), 1, "what is not signed is not even fetched");

    // At the next start the agent checks what it kept against the key again.
    let setup = agent.into_setup();
    let settings = format!("[plugins]\npublic_key = {}\n", public(&stranger));
    fs::write(setup.workdir().path().join("elklet.toml"), settings).unwrap();
    let agent = setup.start();
    agent.wait_for_log("plugin good cannot be started: its signature is not one of plugins.public_key");
}

/// Says that the server may choose the detail, whatever was signed.
fn opened(entry: Config) -> Config {
    Config { signature: format!("{}:open", entry.signature), ..entry }
}

#[test]
fn a_server_changes_the_detail_only_where_its_signer_has_left_it_open() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let owner = key_of(7);
    let entry = |name: &str| plain(name, &program(), std::slice::from_ref(&url), "hello");
    let fixed = with(entry("fixed"), &closed(&entry("fixed")), &owner);
    let free = opened(with(entry("free"), &text("plugin", &entry("free"), "open"), &owner));
    let agent = site.eager().setting("plugins", &format!("public_key = {}", public(&owner))).start();
    site.wait_connected(&agent);
    let hellos = |count| {
        site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == count);
    };
    site.configure(&agent, &[fixed.clone(), free.clone()]);
    hellos(2);
    let steered = |entry: Config| Config { detail: "hello deaf".into(), ..entry };
    site.configure(&agent, &[steered(fixed), steered(free)]);
    let refusal = "plugin fixed cannot be started: its signature is not one of plugins.public_key over its name, version, hashes, detail";
    let line = agent.wait_for_log(refusal);
    assert!(line.ends_with("version 1.0 runs on"), "{line}");
    hellos(3);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.plugins.keys().collect::<Vec<_>>(), ["fixed", "free"]);
    assert!(heartbeats.agent["state_detail"].contains("its signature is not one of plugins.public_key"));
}

#[test]
fn keys_change_without_a_gap_and_older_signatures_are_cut_off() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let (old, new) = (key_of(7), key_of(8));
    let entry = |name: &str, key: &Ed25519KeyPair| {
        let entry = plain(name, &program(), std::slice::from_ref(&url), "hello");
        let text = closed(&entry);
        with(entry, &text, key)
    };
    site.center().set_configs(Some(vec![entry("a", &old), entry("b", &new), entry("c", &key_of(9))]));
    let both = format!("public_key = [{}, {}]", public(&old), public(&new));
    // The time itself still counts.
    let agent = site.eager().setting("plugins", &format!("{both}\nsigned_after = \"2026-01-31T12:00:00Z\"")).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 2);
    agent.wait_for_log("plugin c cannot be started: its signature is not one of plugins.public_key");

    let settings = agent.workdir().path().join("elklet.toml");
    let restart = |agent: Agent, text: &str| {
        let setup = agent.into_setup();
        fs::write(&settings, format!("[plugins]\n{text}\n")).unwrap();
        setup.start()
    };
    let agent = restart(agent, &format!("public_key = [{}]", public(&new)));
    agent.wait_for_log("plugin a cannot be started: its signature is not one of plugins.public_key");
    site.wait_connected(&agent);
    wait_until("b", || site.fresh_heartbeats(&agent).plugins.keys().eq(["b"]));

    let agent = restart(agent, &format!("{both}\nsigned_after = \"2026-02-01\""));
    let old = "it was signed at 2026-01-31T12:00:00Z, and plugins.signed_after is 2026-02-01T00:00:00Z";
    for name in ["a", "b"] {
        agent.wait_for_log(&format!("plugin {name} cannot be started: {old}"));
        wait_refused(&agent, &format!("plugin {name}"), old);
    }
    site.wait_connected(&agent);
    wait_until("refusal", || site.fresh_heartbeats(&agent).agent["state_detail"].contains(old));
}

/// Returns the signed entry of one version of a plugin that greets.
fn signed_version(version: &str, url: &str, owner: &Ed25519KeyPair) -> Config {
    let entry = Config { version: version.into(), ..plain("probe", &program(), &[url.to_owned()], "hello") };
    let text = closed(&entry);
    with(entry, &text, owner)
}

/// Waits until plugins of this agent have started so often.
fn wait_greetings(site: &Site, agent: &Agent, count: usize) {
    site.wait_records("greeting", agent, |records| records.of_type(types::HELLO).count() == count);
}

#[test]
fn a_signed_plugin_does_not_go_back_unless_the_host_allows_it() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let owner = key_of(7);
    let signed = |version: &str| signed_version(version, &url, &owner);
    let running = |agent: &Agent| site.fresh_heartbeats(agent).plugins["probe"]["pversion"].clone();
    let hellos = |agent: &Agent, count| wait_greetings(&site, agent, count);
    let key = format!("public_key = {}", public(&owner));
    let agent = site.eager().setting("plugins", &key).start();
    site.wait_connected(&agent);
    site.configure(&agent, &[signed("1.9")]);
    hellos(&agent, 1);
    site.configure(&agent, &[signed("1.10")]);
    hellos(&agent, 2);
    let refusal = "version 1.9 is earlier than 1.10, which has run here, and plugins.allow_downgrade is off";
    site.configure(&agent, &[signed("1.9")]);
    let line = agent.wait_for_log(&format!("plugin probe cannot be started: {refusal}"));
    assert!(line.ends_with("version 1.10 runs on"), "{line}");
    assert_eq!(running(&agent), "1.10");
    wait_refused(&agent, "plugin probe", refusal);
    // Neither removing it from the configuration nor a restart helps.
    site.configure(&agent, &[plain("another", b"", &[], "")]);
    agent.wait_for_log("plugin probe is removed");
    let kept = agent.workdir().path().join("plugins.newest");
    wait_until("the version on the disk", || fs::read_to_string(&kept).is_ok_and(|text| text.contains("1.10")));
    let agent = agent.into_setup().start();
    site.wait_connected(&agent);
    let told = agent.log_lines(refusal).len();
    site.configure(&agent, &[signed("1.9")]);
    wait_until("refusal", || agent.log_lines(refusal).len() > told);
    let agent = agent.into_setup().setting("plugins", "allow_downgrade = true").start();
    site.wait_connected(&agent);
    site.configure(&agent, &[signed("1.9")]);
    hellos(&agent, 3);
    assert_eq!(running(&agent), "1.9");
}

#[test]
fn a_plugin_of_the_kept_list_does_not_go_back_although_the_file_of_versions_is_lost() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let owner = key_of(7);
    let signed = |version: &str| signed_version(version, &url, &owner);
    let hellos = |agent: &Agent, count| wait_greetings(&site, agent, count);
    let mut agent = site.eager().setting("plugins", &format!("public_key = {}", public(&owner))).start();
    site.wait_connected(&agent);
    site.configure(&agent, &[signed("1.10")]);
    hellos(&agent, 1);
    let refusal = "version 1.9 is earlier than 1.10, which has run here";
    let file = agent.workdir().path().join("plugins.newest");
    let damages: [(&str, Option<&[u8]>); 4] = [
        ("deleted", None),
        ("empty", Some(b"")),
        ("cut", Some(b"{\"probe\": \"1.1")),
        ("not of texts", Some(b"{\"probe\": 1}")),
    ];
    for (round, (damage, content)) in damages.into_iter().enumerate() {
        wait_until("the version on the disk", || fs::read_to_string(&file).is_ok_and(|text| text.contains("1.10")));
        let setup = agent.into_setup();
        match content {
            None => fs::remove_file(&file).unwrap(),
            Some(content) => fs::write(&file, content).unwrap(),
        }
        agent = setup.start();
        // The plugin that was kept starts, and so its version is known again, before a server can name another one.
        hellos(&agent, 2 + round);
        site.wait_connected(&agent);
        let unread = agent.log_lines("which versions have run here is not known any more").len();
        assert_eq!(unread, round, "{damage}: {}", agent.log());
        let told = agent.log_lines(refusal).len();
        site.configure(&agent, &[signed("1.9")]);
        wait_until("refusal", || agent.log_lines(refusal).len() > told);
        wait_refused(&agent, "plugin probe", refusal);
        assert_eq!(site.fresh_heartbeats(&agent).plugins["probe"]["pversion"], "1.10", "{damage}");
        // What runs is asked for again, so that the next round begins with it. Until the refused list has been kept, the one that is
        // there may be the one before.
        let kept = agent.workdir().path().join("plugins.kept");
        let keeps = |version: &str| {
            let has_it = |list: Vec<u8>| list.windows(version.len()).any(|bytes| bytes == version.as_bytes());
            fs::read(&kept).is_ok_and(has_it)
        };
        wait_until("the refused list on the disk", || keeps("1.9"));
        site.configure(&agent, &[signed("1.10")]);
        wait_until("the list on the disk", || keeps("1.10"));
    }
}

#[test]
fn openssl_makes_signatures_as_the_page_says() {
    if !Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skipped("openssl_makes_signatures_as_the_page_says", "there is no openssl");
    }
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
    let commands = page
        .split("<!-- signing -->")
        .nth(1)
        .expect("the commands")
        .lines()
        .filter_map(|line| line.strip_prefix("    "));
    let script: String = commands.map(|line| format!("{line}\n")).collect();
    let directory = tempfile::tempdir().unwrap();
    let entry = plain("probe", &program(), &[], "hello");
    let run = Command::new("sh")
        .args(["-e", "-c", &script])
        .current_dir(directory.path())
        .env("NAME", &entry.name)
        .env("VERSION", &entry.version)
        .env("DOWNLOAD_SHA256", &entry.sha256)
        .env("EXECUTABLE_SHA256", &entry.signature)
        .env("DETAIL", &entry.detail)
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    assert!(run.status.success(), "{script}");
    let printed = String::from_utf8(run.stdout).unwrap();
    let value = |key: &str| {
        let line =
            printed.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {printed}"));
        line.trim().to_owned()
    };
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let entry = Config { signature: value("signature: "), download_urls: vec![url], ..entry };
    site.center().set_configs(Some(vec![entry]));
    let agent = site.eager().setting("plugins", &value("elklet.toml: ")).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
}
