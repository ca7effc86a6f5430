//! `elklet keygen`, `sign` and `verify`: what they make is what agents take, and what they refuse agents refuse.

use super::downloads::{archive, packed, plain, program, wait_hellos};
use super::signatures::{key_of, public};
use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Site, skipped};
use serde_json::{Value, json};
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use tar::EntryType;
use tempfile::TempDir;

/// A directory where somebody signs.
struct Desk(TempDir);

impl Desk {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn put(&self, name: &str, content: impl AsRef<[u8]>) {
        fs::write(self.path(name), content).unwrap();
    }

    /// Puts the key there that is made of this seed.
    fn put_key(&self, name: &str, seed: u8) {
        let hex: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
        let text = super::signatures::base64(&[&hex[..], &[seed; 32]].concat());
        self.put(name, format!("-----BEGIN PRIVATE KEY-----\n{text}\n-----END PRIVATE KEY-----\n"));
    }

    fn run(&self, words: &[&str]) -> Output {
        let mut command = Command::new(&Binaries::for_tests().elklet);
        command.args(words).current_dir(self.0.path()).stdin(Stdio::null()).output().unwrap()
    }

    /// Runs a command that succeeds, and returns what it prints.
    fn said(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {}", told(&output));
        assert!(output.stderr.is_empty(), "{words:?}: {}", told(&output));
        String::from_utf8(output.stdout).unwrap().trim_end().to_owned()
    }

    /// Runs a command that fails with this code and one line that has this in it.
    fn fails(&self, code: i32, words: &[&str], says: &str) {
        let output = self.run(words);
        let told = told(&output);
        assert_eq!(output.status.code(), Some(code), "{words:?}: {told}");
        assert!(told.contains(says) && told.lines().count() == 1, "{words:?} does not say {says:?}: {told}");
        assert!(output.stdout.is_empty(), "{words:?}");
    }

    /// Signs a plugin, and returns the server's field.
    fn sign(&self, file: &str, name: &str, more: &[&str]) -> String {
        self.said(&[&["sign", file, "--key", "key", "--name", name, "--version", "1.0"], more].concat())
    }
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Returns the case's texts.
fn texts(list: &Value) -> Vec<&str> {
    list.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

#[test]
fn verify_says_of_every_published_vector_what_agents_say() {
    let desk = Desk::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("vectors/signatures.json");
    let all: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    let vectors = all["vectors"].as_array().unwrap();
    assert!(vectors.len() > 60, "{} vectors", vectors.len());
    for vector in vectors {
        desk.put("entry.json", vector["entry"].to_string());
        let mut words = vec!["verify", "entry.json", "--signed-after", vector["signed_after"].as_str().unwrap()];
        words.extend(texts(&vector["public_key"]).iter().flat_map(|key| ["--public-key", key]));
        let says = match vector["refused"].as_str() {
            None => {
                let said = desk.said(&words);
                assert!(said.contains(" is accepted: "), "{}: {said}", vector["case"]);
                assert_eq!(
                    said.contains("leaves its detail"),
                    vector["signed_text"].as_str().unwrap().ends_with("open\n")
                );
                continue;
            }
            Some("malformed") => "is not the Base64 of 64 bytes",
            Some("unsigned") => "it is not signed",
            Some("lines") => "its version has control characters",
            Some("forged") => "its signature is not one of plugins.public_key",
            Some("old") => "it was signed at",
            Some(other) => panic!("{other}"),
        };
        desk.fails(1, &words, says);
    }
}

#[test]
fn what_the_command_signs_an_agent_starts_and_another_byte_it_refuses() {
    let desk = Desk::new();
    let line = desk.said(&["keygen", "key"]);
    let (site, files) = (Site::new(), Files::start());
    let packet = archive(&[("packed", EntryType::Regular, &program(), None)]);
    let other = [program(), b"x".to_vec()].concat();
    for (name, content) in [("plain", &program()), ("packed.tgz", &packet), ("other", &other)] {
        desk.put(name, content);
    }
    let url = |name: &str, content: &[u8]| [files.serve(name, content, How::Right)];
    let with = |signature: String, entry: Config| Config { signature, ..entry };
    let fixed = desk.sign("plain", "fixed", &["--detail", "hello"]);
    let plain_url = url("plain", &program());
    let entry = |name: &str| plain(name, &program(), &plain_url, "hello");
    let configs = vec![
        with(fixed.clone(), entry("fixed")),
        with(desk.sign("plain", "free", &["--open"]), entry("free")),
        with(
            desk.sign("packed.tgz", "packed", &["--executable", "plain", "--detail", "hello"]),
            packed("packed", &packet, &url("packed.tgz", &packet), "hello"),
        ),
        // The server changes one byte and says so, or does not say so.
        Config {
            signature: fixed.replacen(&entry("").sha256, &plain("", &other, &[], "").sha256, 1),
            ..plain("fixed2", &other, &url("other", &other), "hello")
        },
        with(desk.sign("plain", "swapped", &["--detail", "hello"]), {
            plain("swapped", &program(), &url("swapped", &other), "hello")
        }),
        with(desk.sign("plain", "steered", &["--detail", "hello deaf"]), entry("steered")),
    ];
    site.center().set_configs(Some(configs));
    let agent = site.eager().setting("plugins", &line).start();
    wait_hellos(&site, &agent, 3);
    for name in ["fixed2", "steered"] {
        agent.wait_for_log(&format!("plugin {name} cannot be started: its signature is not one of plugins.public_key"));
    }
    agent.wait_for_log("plugin swapped cannot be started: ");
    assert_eq!(site.fresh_heartbeats(&agent).plugins.keys().collect::<Vec<_>>(), ["fixed", "free", "packed"]);

    // The command judges by this agent's settings, and by the files.
    let workdir = agent.workdir().path().display().to_string();
    let judge = |name: &str, file: &str, more: &[&str]| {
        let entry = desk.sign(file, name, &[&["--json"], more].concat());
        assert!(!entry.contains('\n'));
        desk.put(&format!("{name}.json"), entry);
        desk.said(&["verify", &format!("{name}.json"), "--workdir", &workdir, "--file", file])
    };
    let judged = judge("plain", "plain", &["--signed", "2026-01-31", "--detail", "\u{202e}\u{1}\u{10ffff}é\"\\"]);
    assert_eq!(judged, "plain 1.0 is accepted: a key's owner signed it at 2026-01-31T00:00:00Z");
    judge("packed", "packed.tgz", &["--executable", "plain", "--open"]);
    judge("elkeid-agent", "other", &[]);
    for (entry, more, says) in [
        ("plain.json", ["--file", "other"], "other has the SHA-256 "),
        ("packed.json", ["--executable", "other"], "other has the SHA-256 "),
        ("elkeid-agent.json", ["--file", "plain"], "plain has the SHA-256 "),
        ("plain.json", ["--signed-after", "2026-02-01"], "it was signed at 2026-01-31T00:00:00Z, and"),
        ("plain.json", ["--public-key", public(&key_of(8)).trim_matches('"')], "its signature is not one of"),
    ] {
        desk.fails(1, &[&["verify", entry, "--workdir", &workdir][..], &more].concat(), says);
    }
}

#[test]
fn a_key_is_its_owners_alone_and_never_replaced() {
    let desk = Desk::new();
    let line = desk.said(&["keygen", "key"]);
    let key = fs::read_to_string(desk.path("key")).unwrap();
    assert_eq!(fs::metadata(desk.path("key")).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(
        key.starts_with("-----BEGIN PRIVATE KEY-----\n") && key.lines().count() == 3,
        "{} lines",
        key.lines().count()
    );
    desk.fails(2, &["keygen", "key"], "key: a new key needs a new file: File exists");
    symlink("nowhere", desk.path("link")).unwrap();
    desk.fails(2, &["keygen", "link"], "link: a new key needs a new file");
    desk.fails(1, &["keygen", "no/such"], "no/such: a new key needs a new file: No such file");
    assert_eq!((fs::read_to_string(desk.path("key")).unwrap(), desk.path("nowhere").exists()), (key, false));
    assert_eq!(desk.said(&["keygen", "--show", "key"]), line);
    assert_ne!(desk.said(&["keygen", "key2"]), line);
    desk.put_key("key7", 7);
    assert_eq!(desk.said(&["keygen", "key7", "--show"]), format!("public_key = {}", public(&key_of(7))));
}

#[test]
fn what_cannot_be_signed_or_judged_is_said_with_its_reason() {
    let desk = Desk::new();
    desk.said(&["keygen", "key"]);
    desk.put("plain", program());
    desk.put("packed", archive(&[("a", EntryType::Regular, b"", None)]));
    desk.put("empty", "");
    let pipe = desk.path("pipe");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    fs::File::create(desk.path("huge")).unwrap().set_len((512 << 20) + 1).unwrap();
    desk.put("certificate", "-----BEGIN CERTIFICATE-----\nAQID\n-----END CERTIFICATE-----\n");
    let sign = |words: &[&str], says: &str| {
        let given = |flag: &str| words.contains(&flag);
        let mut all = [&["sign"], words].concat();
        for (flag, value) in [("--key", "key"), ("--name", "a"), ("--version", "1")] {
            if !given(flag) {
                all.extend([flag, value]);
            }
        }
        desk.fails(2, &all, says);
    };
    sign(&["nowhere"], "nowhere: No such file");
    sign(&["pipe"], "pipe: it is no regular file");
    sign(&["."], ".: it is no regular file");
    sign(&["huge"], "huge: it has more than 536870912 bytes");
    sign(&["packed"], "packed is a tar.gz, and agents check the program in it too; --executable");
    sign(&["plain", "--executable", "plain"], "--executable is for a plugin's tar.gz, and plain is none");
    sign(&["plain", "--name", "a b"], "a name has only letters, digits, _ and -");
    sign(&["plain", "--name", ""], "a plugin without a name");
    sign(&["plain", "--version", "1\n2"], "its version has control characters");
    sign(&["plain", "--version", &"1".repeat(200)], "version");
    sign(&["plain", "--detail", &"x".repeat(125_000)], "detail");
    sign(&["plain", "--detail", "x", "--open"], "--detail and --open exclude each other");
    sign(&["plain", "--name", "elkeid-agent", "--open"], "the agent's own versions have no detail");
    sign(&["plain", "--signed", "soon"], "\"soon\" is no time, expected a date");
    sign(&["plain", "--key", "nowhere"], "nowhere: No such file");
    sign(&["plain", "--key", "empty"], "empty is empty");
    sign(&["plain", "--key", "certificate"], "certificate has no ed25519 key in PKCS#8");
    sign(&["plain", "--key", "plain"], "plain has no ed25519 key in PKCS#8");
    desk.fails(2, &["sign", "plain", "--name", "a", "--version", "1"], "--key is missing");
    desk.fails(2, &["sign", "plain", "--key", "key", "--version", "1"], "--name is missing");
    desk.fails(2, &["sign", "plain", "--key", "key", "--name", "a"], "--version is missing");
    desk.fails(2, &["sign"], "sign what? expected FILE");
    assert!(desk.said(&["--version"]).starts_with("elklet "), "the program's version is another option");

    let line = public(&key_of(7));
    let key = ["--public-key", line.trim_matches('"')];
    let verify = |entry: &str, more: &[&str], says: &str| {
        desk.put("entry", entry);
        desk.fails(2, &[&["verify", "entry"], more].concat(), says);
    };
    verify("", &key, "entry: EOF while parsing");
    verify("[]", &key, "entry: no JSON object, expected one entry");
    verify("{\"name\": 1}", &key, "entry: name is no text");
    verify(&"[".repeat(100_000), &key, "entry: recursion limit exceeded");
    verify(&format!("{{\"name\": \"{}\"}}", "x".repeat(1 << 20)), &key, "an entry of more than 1048576 bytes");
    verify("{}", &["--workdir", "."], "the settings have no plugins.public_key");
    verify("{}", &["--public-key", "AAAA"], "--public-key: \"AAAA\" is not the Base64 of an ed25519 key's 32 bytes");
    verify("{}", &[&key[..], &key, &key].concat(), "--public-key: more than two keys");
    verify("{}", &[&key[..], &["--signed-after", "x"]].concat(), "--signed-after: \"x\" is no time");
    desk.fails(1, &[&["verify", "entry"][..], &key].concat(), "entry is refused: plugin \"\": a plugin without a name");
    desk.put("entry", json!({ "name": "elkeid-agent", "version": "1", "sha256": "x" }).to_string());
    desk.fails(1, &[&["verify", "entry"][..], &key].concat(), "\"x\" is not 64 hexadecimal digits");
}

/// Returns the commands of `docs/plugins.md` between two marks, of which it may have several pairs.
fn commands(mark: &str, pair: usize) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/plugins.md")).unwrap();
    let block = page.split(mark).nth(2 * pair + 1).expect("the commands");
    block.lines().filter_map(|line| line.strip_prefix("    ")).flat_map(|line| [line, "\n"]).collect()
}

#[test]
fn the_commands_of_the_page_sign_what_an_agent_takes() {
    let desk = Desk::new();
    desk.put("probe", program());
    // The program may have another name, as `elklet-x86_64` has, which is shipped.
    let bin = tempfile::tempdir().unwrap();
    symlink(fs::canonicalize(&Binaries::for_tests().elklet).unwrap(), bin.path().join("elklet")).unwrap();
    let run = |pair, key: &str| {
        let script = commands("<!-- signing by elklet -->", pair);
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", &script]).current_dir(desk.0.path()).env("KEY", key);
        let path = std::env::var("PATH").unwrap_or_default();
        let run = shell.env("PATH", format!("{}:{path}", bin.path().display())).output().unwrap();
        assert!(run.status.success(), "{script}{}", told(&run));
        String::from_utf8(run.stdout).unwrap()
    };
    let printed = run(0, "");
    let Some((key, signature)) = printed.trim_end().split_once('\n') else { panic!("{printed}") };
    let accepted = run(1, key.split('"').nth(1).unwrap());
    assert!(accepted.starts_with("probe 1.0 is accepted: a key's owner signed it at 2"), "{accepted}");
    let (site, files) = (Site::new(), Files::start());
    let url = files.serve("probe", program(), How::Right);
    let entry = Config { signature: signature.into(), ..plain("probe", &program(), &[url], "hello") };
    site.center().set_configs(Some(vec![entry]));
    let agent = site.eager().setting("plugins", key).start();
    wait_hellos(&site, &agent, 1);
}

#[test]
fn keys_of_openssl_and_of_elklet_sign_alike_in_either_program() {
    let has_openssl = Command::new("openssl").arg("version").stdout(Stdio::null()).status();
    if !has_openssl.is_ok_and(|status| status.success()) {
        return skipped("keys_of_openssl_and_of_elklet_sign_alike_in_either_program", "there is no openssl");
    }
    let recipe = commands("<!-- signing -->", 0);
    let entry = plain("probe", &program(), &[], "hello");
    // The same time in both, because a signature then has the same bytes.
    let signed_s = 1_769_860_800;
    let by_openssl = |desk: &Desk, makes_a_key: bool| {
        let lines = recipe.lines().filter(|line| makes_a_key || !line.contains("genpkey"));
        let script: String = lines.flat_map(|line| [line, "\n"]).collect();
        let script = script.replace("$(date +%s)", &format!("{signed_s}"));
        assert_eq!(script.matches("1769860800").count(), 1, "{script}");
        let values = [
            ("NAME", &entry.name),
            ("VERSION", &entry.version),
            ("DOWNLOAD_SHA256", &entry.sha256),
            ("EXECUTABLE_SHA256", &entry.signature),
            ("DETAIL", &entry.detail),
        ];
        let run = Command::new("sh").args(["-e", "-c", &script]).current_dir(desk.0.path()).envs(values).output();
        let run = run.unwrap();
        assert!(run.status.success(), "{script}{}", told(&run));
        String::from_utf8(run.stdout).unwrap()
    };
    for makes_by_openssl in [true, false] {
        let desk = Desk::new();
        desk.put("probe", program());
        if !makes_by_openssl {
            desk.said(&["keygen", "plugins.key"]);
        }
        let theirs = by_openssl(&desk, makes_by_openssl);
        let line = desk.said(&["keygen", "--show", "plugins.key"]);
        let words =
            ["sign", "probe", "--key", "plugins.key", "--name", "probe", "--version", "1.0", "--detail", "hello"];
        let ours = desk.said(&[&words[..], &["--signed", "2026-01-31T12:00:00Z"]].concat());
        assert_eq!(theirs, format!("elklet.toml: {line}\nsignature: {ours}\n"), "by openssl: {makes_by_openssl}");
    }
    let desk = Desk::new();
    desk.put("probe", program());
    let locked = ["genpkey", "-algorithm", "ed25519", "-aes-256-cbc", "-pass", "pass:x", "-out", "locked"];
    let other = ["genpkey", "-algorithm", "x25519", "-out", "other"];
    for words in [&locked[..], &other] {
        assert!(Command::new("openssl").args(words).current_dir(desk.0.path()).status().unwrap().success());
    }
    desk.fails(2, &["keygen", "--show", "locked"], "locked has a passphrase; openssl pkey -in FILE");
    desk.fails(2, &["keygen", "--show", "other"], "other has no ed25519 key in PKCS#8");
}
