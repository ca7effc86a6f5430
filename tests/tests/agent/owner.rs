//! `elklet keygen`, `elklet sign` and `elklet verify`: what the owner of a key does, agents run, and OpenSSL agrees with.

use super::downloads::{plain, program, sha256};
use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Site, skipped, types};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// Runs the program in a directory without an agent's settings.
fn elklet(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    command.current_dir(directory).args(arguments).stdin(Stdio::null()).output().unwrap()
}

/// Runs it and returns what it prints, which has to succeed.
fn printed(directory: &Path, arguments: &[&str]) -> String {
    let output = elklet(directory, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs it, expects this exit code, and returns the one line that it says.
fn refused(directory: &Path, code: i32, arguments: &[&str]) -> String {
    let output = elklet(directory, arguments);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
    assert!(said.lines().count() == 1 && output.stdout.is_empty(), "{arguments:?}: {said}");
    said
}

/// What follows a key in the lines that were printed.
fn value<'a>(printed: &'a str, key: &str) -> &'a str {
    printed.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_else(|| panic!("{key}: {printed}")).trim()
}

/// The key in `public_key = "..."`.
fn key_in(line: &str) -> String {
    line.split('"').nth(1).unwrap().to_owned()
}

/// The words of docs/plugins.md between two marks, as a script.
fn script(mark: &str) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
    let block = page.split(mark).nth(1).expect("the commands");
    block.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn what_the_page_has_signed_runs_and_a_changed_byte_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::create_dir(at.join("bin")).unwrap();
    std::os::unix::fs::symlink(&Binaries::for_tests().elklet, at.join("bin/elklet")).unwrap();
    fs::write(at.join("probe"), program()).unwrap();
    let script = script("<!-- elklet sign -->");
    let path = format!("{}:{}", at.join("bin").display(), std::env::var("PATH").unwrap());
    let run = Command::new("sh").args(["-e", "-c", &script]).current_dir(at).env("PATH", path).output().unwrap();
    assert!(run.status.success(), "{script}{}", String::from_utf8_lossy(&run.stderr));
    let said = String::from_utf8(run.stdout).unwrap();
    assert_eq!(fs::metadata(at.join("plugins.key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(said.lines().last().is_some_and(|line| line.starts_with("accepted: probe 1.0, signed at 20")), "{said}");

    let (site, files) = (Site::new(), Files::start());
    let mut changed = program();
    *changed.last_mut().unwrap() ^= 1;
    let [url, other] =
        [("probe", program()), ("changed", changed.clone())].map(|(name, body)| files.serve(name, body, How::Right));
    let signed = Config {
        version: "1.0".into(),
        signature: value(&said, "signature: ").into(),
        ..plain("probe", &program(), &[url], "hello")
    };
    let as_if = Config {
        signature: signed.signature.replace(&sha256(&program()), &sha256(&changed)),
        version: "1.0".into(),
        ..plain("changed", &changed, &[other], "hello")
    };
    site.center().set_configs(Some(vec![signed, as_if]));
    let agent = site.eager().setting("plugins", value(&said, "elklet.toml: ")).start();
    site.wait_records("greeting", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent.wait_for_log("plugin changed cannot be started: its signature is not one of plugins.public_key");
}

#[test]
fn a_host_says_of_the_published_vectors_what_they_say() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/signatures.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let vectors = file["vectors"].as_array().unwrap();
    for vector in vectors {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let entry = &vector["entry"];
        let mut words = vec!["verify".to_owned(), text(&entry["signature"])];
        for (flag, value) in [
            ("--plugin", &entry["name"]),
            ("--plugin-version", &entry["version"]),
            ("--sha256", &entry["sha256"]),
            ("--detail", &entry["detail"]),
            ("--signed-after", &vector["signed_after"]),
        ] {
            words.push(format!("{flag}={}", text(value)));
        }
        words.extend(vector["public_key"].as_array().unwrap().iter().map(|key| format!("--public-key={}", text(key))));
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match vector["refused"].as_str() {
            None => drop(printed(directory.path(), &words)),
            Some(reason) => {
                let says = match reason {
                    "malformed" => "is not the Base64 of 64 bytes",
                    "unsigned" => "it is not signed",
                    "lines" => "control characters",
                    "forged" => "its signature is not one of",
                    "old" => "it was signed at",
                    other => panic!("{other}"),
                };
                let said = refused(directory.path(), 1, &words);
                assert!(said.starts_with("elklet: refused: ") && said.contains(says), "{}: {said}", vector["case"]);
            }
        }
    }
    assert!(vectors.len() > 60);
}

#[test]
fn elklet_signs_as_others_do() {
    // The same text and the same key give the same signature, whoever makes it.
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/signatures.json");
    let file: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    let seed: Vec<u8> = (0..64)
        .step_by(2)
        .map(|at| u8::from_str_radix(&file["seeds"]["owner"].as_str().unwrap()[at..at + 2], 16).unwrap())
        .collect();
    let key = ring::signature::Ed25519KeyPair::from_seed_unchecked(&seed).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    // PKCS#8 of version 1, as RFC 8410 has it.
    let der = [&b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20"[..], &seed].concat();
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", super::signatures::base64(&der));
    fs::write(at.join("key"), pem).unwrap();
    fs::write(at.join("probe"), "executable").unwrap();
    fs::write(at.join("probe.tar.gz"), "archive").unwrap();
    let hash = |text: &str| sha256(text.as_bytes());
    for (more, kind, version, download, detail) in [
        (&["--detail", "hello"][..], "plugin", "1.0", "executable", hash("hello")),
        (&["--download", "probe.tar.gz"], "plugin", "1.0", "archive", hash("")),
        (&["--open"], "plugin", "ä", "executable", "open".to_owned()),
        (&[], "agent", "2.0", "executable", hash("")),
    ] {
        let name = if kind == "agent" { "elkeid-agent" } else { "probe" };
        let words = ["sign", "probe", "--key", "key", "--plugin", name, "--plugin-version", version];
        let said = printed(at, &[&words, more, &["--signed", "2026-01-31T12:00:00Z"]].concat());
        let (executable, download) = (hash("executable"), hash(download));
        let text =
            format!("elklet signature 1\n{kind}\n{name}\n{version}\n{download}\n{executable}\n1769860800\n{detail}\n");
        let signature = super::signatures::base64(key.sign(text.as_bytes()).as_ref());
        let open = if detail == "open" { ":open" } else { "" };
        assert_eq!(value(&said, "signature: "), format!("{executable}:{signature}:1769860800{open}"), "{more:?}");
        assert_eq!((value(&said, "sha256: "), value(&said, "name: ")), (&*download, name));
    }
}

#[test]
fn openssl_and_elklet_read_each_others_keys() {
    let name = "openssl_and_elklet_read_each_others_keys";
    if !Command::new("openssl").arg("version").stdout(Stdio::null()).status().is_ok_and(|status| status.success()) {
        return skipped(name, "there is no openssl");
    }
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    fs::write(at.join("probe"), "executable").unwrap();
    let of = ["--plugin", "probe", "--plugin-version", "1.0"];
    let openssl = |script: &str| {
        let hash = sha256(b"executable");
        let variables = [("NAME", "probe"), ("VERSION", "1.0"), ("DETAIL", "")];
        let hashes = [("DOWNLOAD_SHA256", &hash), ("EXECUTABLE_SHA256", &hash)];
        let mut command = Command::new("sh");
        let run = command.args(["-e", "-c", script]).current_dir(at).envs(variables).envs(hashes).output().unwrap();
        assert!(run.status.success(), "{script}{}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8(run.stdout).unwrap()
    };
    // A key of OpenSSL's.
    let theirs = openssl(&script("<!-- signing -->"));
    let key = key_in(value(&theirs, "elklet.toml: "));
    let ours = printed(at, &[&["sign", "probe", "--key", "plugins.key"], &of[..]].concat());
    for signature in [value(&theirs, "signature: "), value(&ours, "signature: ")] {
        printed(at, &[&["verify", signature, "--public-key", &key, "--file", "probe"], &of[..]].concat());
    }
    // A key of Elklet's, which OpenSSL reads and signs with.
    fs::remove_file(at.join("plugins.key")).unwrap();
    let made = key_in(&printed(at, &["keygen", "plugins.key"]));
    let without_genpkey: String = script("<!-- signing -->")
        .lines()
        .filter(|line| !line.contains("genpkey"))
        .flat_map(|line| [line, "\n"])
        .collect();
    let theirs = openssl(&without_genpkey);
    assert_eq!(key_in(value(&theirs, "elklet.toml: ")), made);
    let signature = value(&theirs, "signature: ");
    printed(at, &[&["verify", signature, "--public-key", &made, "--file", "probe"], &of[..]].concat());
    // The other one does not count for it.
    refused(at, 1, &[&["verify", signature, "--public-key", &key], &of[..]].concat());
}

#[test]
fn what_is_of_no_use_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let key = key_in(&printed(at, &["keygen", "key"]));
    let before = fs::read(at.join("key")).unwrap();
    fs::write(at.join("probe"), "executable").unwrap();
    fs::write(at.join("other"), "changed").unwrap();
    fs::write(at.join("no-key"), "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n").unwrap();
    let of = ["--plugin", "probe", "--plugin-version", "1.0"];
    let sign = |key: &'static str, more: &[&'static str]| [&["sign", "probe", "--key", key][..], more].concat();
    for (words, says) in [
        (vec!["keygen", "key"], "key: File exists"),
        (vec!["keygen"], "keygen what? expected FILE"),
        (sign("key", &["--plugin", "probe"]), "--plugin-version is missing"),
        (sign("missing", &of), "missing: No such file"),
        (sign("no-key", &of), "no-key: it has no such key, expected an ed25519 key"),
        (sign("probe", &of), "expected an ed25519 key"),
        (sign("key", &["--plugin", "../x", "--plugin-version", "1.0"]), "plugin \"../x\""),
        (sign("key", &["--plugin", "probe", "--plugin-version", "1\n0"]), "the version has control characters"),
        (sign("key", &["--plugin", "probe", "--plugin-version", "1", "--signed", "soon"]), "\"soon\" is no time"),
        (sign("key", &["--plugin", "elkeid-agent", "--plugin-version", "1", "--open"]), "a version of the agent has"),
        (sign("key", &["--plugin", "probe", "--plugin-version", "1", "--open", "--detail", "x"]), "exclude each other"),
        (
            vec!["verify", "x", "--plugin", "probe", "--plugin-version", "1", "--workdir", "."],
            "without settings, --public-key",
        ),
        (vec!["verify", "x", "--plugin", "probe", "--plugin-version", "1", "--public-key", "x"], "is not the Base64"),
    ] {
        let said = refused(at, 2, &words);
        assert!(said.contains(says), "{words:?}: {said}");
    }
    assert_eq!(fs::read(at.join("key")).unwrap(), before);

    let said = printed(at, &sign("key", &of));
    let signature = value(&said, "signature: ");
    let verify = |more: &[&str]| [&["verify", signature, "--public-key", &key], &of[..], more].concat().join("\n");
    for (words, says) in [
        (verify(&["--file", "other"]), "other has another SHA-256 than the signature says"),
        (verify(&["--download", "other"]), "its signature is not one of"),
        (verify(&["--sha256", &sha256(b"executable"), "--download", "other"]), "another SHA-256 than the entry says"),
        (verify(&["--detail", "x"]), "its signature is not one of"),
        (verify(&["--signed-after", "2999-01-01"]), "plugins.signed_after is 2999-01-01"),
    ] {
        let words: Vec<&str> = words.split('\n').collect();
        let said = refused(at, 1, &words);
        assert!(said.contains(says), "{words:?}: {said}");
    }
    printed(at, &verify(&["--file", "probe", "--download", "probe"]).split('\n').collect::<Vec<_>>());
}

#[test]
fn a_hosts_own_settings_say_whose_signatures_count() {
    let directory = tempfile::tempdir().unwrap();
    let at = directory.path();
    let line = printed(at, &["keygen", "key"]);
    fs::write(at.join("probe"), "executable").unwrap();
    let of = ["--plugin", "probe", "--plugin-version", "1.0"];
    let said = printed(at, &[&["sign", "probe", "--key", "key", "--signed", "2026-01-31"], &of[..]].concat());
    let words = [&["verify", value(&said, "signature: "), "--workdir", "."], &of[..]].concat();
    let settings = |plugins: &str| {
        fs::write(at.join("elklet.toml"), format!("[server]\nprivate = [\"127.0.0.1:1\"]\n[plugins]\n{plugins}"))
            .unwrap();
    };
    settings(&line);
    assert_eq!(printed(at, &words), "accepted: probe 1.0, signed at 2026-01-31T00:00:00Z\n");
    settings(&format!("{line}signed_after = \"2026-02-01\""));
    assert!(refused(at, 1, &words).contains("plugins.signed_after is 2026-02-01T00:00:00Z"));
    settings("");
    assert!(refused(at, 2, &words).contains("names no plugins.public_key"));
}
