//! Signatures: with a public key in the configuration, the agent starts only what the key's owner has signed.

use super::downloads::{plain, program};
use elklet_proto::grpc::Config;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Site, skipped, types, wait_until};
use ring::signature::{Ed25519KeyPair, KeyPair};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

/// Returns the text that is signed, as `docs/plugins.md` has it.
fn text(config: &Config) -> String {
    let Config { name, version, sha256, signature, .. } = config;
    format!("elklet plugin\n{name}\n{version}\n{sha256}\n{signature}\n")
}

fn base64(bytes: &[u8]) -> String {
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

#[test]
fn only_what_the_keys_owner_has_signed_is_started() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let owner = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let stranger = Ed25519KeyPair::from_seed_unchecked(&[8; 32]).unwrap();
    let entry = |name: &str| plain(name, &program(), std::slice::from_ref(&url), "hello");
    let signed = |entry: Config, text: &str, key: &Ed25519KeyPair| {
        let signature = base64(key.sign(text.as_bytes()).as_ref());
        Config { signature: format!("{}:{signature}", entry.signature), ..entry }
    };
    let good = entry("good");
    let of_another = Config { version: "0.9".into(), ..entry("replayed") };
    let configs = vec![
        signed(good.clone(), &text(&good), &owner),
        entry("unsigned"),
        signed(entry("forged"), &text(&entry("forged")), &stranger),
        // The signature is valid, but for another plugin or another version.
        signed(entry("swapped"), &text(&good), &owner),
        signed(entry("replayed"), &text(&of_another), &owner),
        Config { signature: format!("{}:AAAA", entry("short").signature), ..entry("short") },
    ];
    site.center().set_configs(Some(configs));
    let key = base64(owner.public_key().as_ref());
    let agent = site.eager().setting("plugins", &format!("public_key = \"{key}\"")).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent.wait_for_log("plugin unsigned cannot be started: it is not signed, and plugins.public_key demands it");
    for name in ["forged", "swapped", "replayed"] {
        agent.wait_for_log(&format!("plugin {name} cannot be started: its signature is not one of plugins.public_key"));
    }
    agent.wait_for_log("plugin \"short\": signature \"AAAA\" is not the Base64 of 64 bytes");
    assert_eq!(site.fresh_heartbeats(&agent).plugins.keys().collect::<Vec<_>>(), ["good"]);
    assert_eq!(files.requests("probe"), 1, "what is not signed is not even fetched");

    // At the next start the agent checks what it kept against the key again.
    let other = base64(stranger.public_key().as_ref());
    let setup = agent.into_setup();
    fs::write(setup.workdir().path().join("elklet.toml"), format!("[plugins]\npublic_key = \"{other}\"\n")).unwrap();
    let agent = setup.start();
    agent.wait_for_log("plugin good cannot be started: its signature is not one of plugins.public_key");
}

#[test]
fn a_signed_plugin_does_not_go_back_unless_the_host_allows_it() {
    let site = Site::new();
    let files = Files::start();
    let url = files.serve("probe", program(), How::Right);
    let owner = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).unwrap();
    let signed = |version: &str| {
        let entry =
            Config { version: version.into(), ..plain("probe", &program(), std::slice::from_ref(&url), "hello") };
        let signature = base64(owner.sign(text(&entry).as_bytes()).as_ref());
        Config { signature: format!("{}:{signature}", entry.signature), ..entry }
    };
    let running = |agent: &Agent| site.fresh_heartbeats(agent).plugins["probe"]["pversion"].clone();
    let hellos = |agent: &Agent, count| {
        site.wait_records("greeting", agent, |records| records.of_type(types::HELLO).count() == count);
    };
    let key = format!("public_key = \"{}\"", base64(owner.public_key().as_ref()));
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
    let entry = plain("probe", &program(), &[], "");
    let run = Command::new("sh")
        .args(["-e", "-c", &script])
        .current_dir(directory.path())
        .env("NAME", &entry.name)
        .env("VERSION", &entry.version)
        .env("DOWNLOAD_SHA256", &entry.sha256)
        .env("EXECUTABLE_SHA256", &entry.signature)
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
    let entry = Config { signature: value("signature: "), download_urls: vec![url], detail: "hello".into(), ..entry };
    site.center().set_configs(Some(vec![entry]));
    let agent = site.eager().setting("plugins", &value("elklet.toml: ")).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
}
