//! `elklet keygen`, `sign` and `verify`: what an owner of plugins does with a signing key, and what an agent then says to it.
//!
//! The texts that are signed and the keys that count are those of `signing`, by which a running agent judges.

use std::fmt;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use elklet_core::command::{AGENT_NAME, AgentConfig, Command, Packing, PluginConfig, Sha256, Signature, Statement};
use elklet_core::printable::PrintableJson;
use elklet_proto::grpc;
use prost::Message;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::Ed25519KeyPair;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::cli::Words;
use crate::clock;
use crate::config::{Flags, Settings};
use crate::failure::Failure;
use crate::files::{FileError, read_bounded};
use crate::pem;
use crate::plugin::sha256_of;
use crate::signing::{PublicKey, SignedAfter, Signers, signed_text};

/// What stands before the 32 bytes of an ed25519 key in PKCS#8 (RFC 8410, section 7). OpenSSL writes the same.
const PKCS8_HEAD: [u8; 16] =
    [0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];

/// Most bytes of a file with a key. What others write around a key has room in it.
const MAX_KEY_BYTES: u64 = 16 << 10;

/// Most bytes of a file with an entry. The longest detail needs 720 KiB if each of its bytes is escaped.
const MAX_ENTRY_BYTES: u64 = 1 << 20;

/// What a file in gzip's format begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

fn settings(error: impl fmt::Display) -> Failure {
    Failure::Settings(error.to_string())
}

fn system(error: impl fmt::Display) -> Failure {
    Failure::System(error.to_string())
}

/// Makes a key in a new file, or with `--show` reads the one that is there. Returns the line for the agents' settings.
///
/// # Errors
/// When there is a file already, or none with a key for `--show`, or it cannot be written.
pub(crate) fn keygen(words: &Words) -> Result<String, Failure> {
    let path = path_of(words, "FILE", "FILE")?;
    let key = if words.has("show") { read_key(&path)? } else { make_key(&path)? };
    Ok(format!("public_key = \"{}\"\n", PublicKey::of(&key)))
}

fn make_key(path: &Path) -> Result<Ed25519KeyPair, Failure> {
    let no_key = |_| system("no key can be made: the system gives no random numbers");
    let mut der = Zeroizing::new([0; PKCS8_HEAD.len() + 32]);
    let (head, seed) = der.split_at_mut(PKCS8_HEAD.len());
    head.copy_from_slice(&PKCS8_HEAD);
    SystemRandom::new().fill(seed).map_err(no_key)?;
    let key = Ed25519KeyPair::from_seed_unchecked(seed).map_err(system)?;
    let section = pem::section("PRIVATE KEY", &*der);
    // A key that is replaced is lost, and with it whatever it has signed.
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let error = FileError::because(path, "a new key needs a new file")(error);
        if path.symlink_metadata().is_ok() { settings(error) } else { system(error) }
    })?;
    let mut write = || -> io::Result<()> {
        file.set_permissions(Permissions::from_mode(0o600))?;
        file.write_all(&section)?;
        file.sync_all()
    };
    match write() {
        Ok(()) => Ok(key),
        Err(error) => {
            let _ = fs::remove_file(path);
            Err(system(FileError::at(path)(error)))
        }
    }
}

fn read_key(path: &Path) -> Result<Ed25519KeyPair, Failure> {
    let of_no_use = |why: &str| settings(format!("{} {why}", path.display()));
    let text = Zeroizing::new(read_bounded(path, MAX_KEY_BYTES).map_err(FileError::at(path)).map_err(settings)?);
    for section in pem::sections(&text).map_err(of_no_use)? {
        let der = section.der.map(Zeroizing::new);
        if section.is_encrypted || section.label == "ENCRYPTED PRIVATE KEY" {
            return Err(of_no_use("has a passphrase; openssl pkey -in FILE prints the key without"));
        }
        if let Some(key) = der.and_then(|der| Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).ok()) {
            return Ok(key);
        }
    }
    Err(of_no_use("has no ed25519 key in PKCS#8 (PEM), which elklet keygen makes"))
}

/// Signs a plugin's file, or a package of the agent. Returns the entry's field `signature`, or all of the entry as JSON.
///
/// # Errors
/// When an option is missing or does not fit the file, or a file cannot be read.
pub(crate) fn sign(words: &Words) -> Result<String, Failure> {
    let file = path_of(words, "FILE", "FILE")?;
    let (key, name, version) = (path_of(words, "key", "--key")?, needed(words, "name")?, needed(words, "version")?);
    let is_agent = name == AGENT_NAME;
    let (detail, has_open_detail) = (text_of(words, "detail")?, words.has("open"));
    if detail.is_some() && has_open_detail {
        return Err(settings("--detail and --open exclude each other"));
    }
    if is_agent && (detail.is_some() || has_open_detail) {
        return Err(settings("--detail and --open are for plugins: the agent's own versions have no detail"));
    }
    let signed_s = match text_of(words, "signed")? {
        Some(time) => time.parse::<SignedAfter>().map_err(settings)?.0,
        None => clock::unix_seconds().cast_unsigned(),
    };
    let key = read_key(&key)?;
    let sha256 = hash(&file)?.to_string();
    let is_packed = !is_agent && read_bounded(&file, 2).is_ok_and(|start| start == GZIP);
    let executable = match (words.path_of("executable"), is_packed) {
        (Some(program), true) => hash(&program)?.to_string(),
        (None, false) => sha256.clone(),
        (None, true) => {
            return Err(settings(format!(
                "{} is a tar.gz, and agents check the program in it too; --executable names that program",
                file.display()
            )));
        }
        (Some(_), false) => {
            let file = file.display();
            return Err(settings(format!("--executable is for a plugin's tar.gz, and {file} is none")));
        }
    };
    let kind = match (is_agent, is_packed) {
        (true, _) => "",
        (false, true) => "tar.gz",
        (false, false) => "exec",
    };
    let mut entry = grpc::Config {
        name,
        r#type: kind.to_owned(),
        version,
        sha256,
        signature: executable,
        detail: detail.unwrap_or_default(),
        ..grpc::Config::default()
    };
    let vouched = Vouched::read(entry.clone()).map_err(settings)?;
    let mut signature = Signature { bytes: Box::new([0; 64]), signed_s, has_open_detail };
    let text = signed_text(&vouched.statement(), &signature).map_err(settings)?;
    signature.bytes.copy_from_slice(key.sign(text.as_bytes()).as_ref());
    entry.signature = format!("{}:{signature}", entry.signature);
    Ok(if words.has("json") { json(&entry) } else { format!("{}\n", entry.signature) })
}

/// Judges an entry as the agent with these keys does. Returns what it is.
///
/// # Errors
/// Why the agent refuses it, or why that cannot be said.
pub(crate) fn verify(words: &Words, flags: &Flags) -> Result<String, Failure> {
    let path = path_of(words, "ENTRY", "ENTRY")?;
    let signers = signers(words, flags)?;
    let entry = read_entry(&path)?;
    let what = format!("{} {}", entry.name, entry.version);
    let refused = |why: &dyn fmt::Display| system(format!("{what} is refused: {why}"));
    let vouched = Vouched::read(entry).map_err(|why| system(format!("{} is refused: {why}", path.display())))?;
    signers.verify(&vouched.statement(), vouched.signature()).map_err(|why| refused(&why))?;
    for (flag, expected) in vouched.hashes() {
        let Some(path) = words.path_of(flag) else { continue };
        let found = hash(&path)?;
        if found != *expected {
            let path = path.display();
            return Err(refused(&format!("{path} has the SHA-256 {found}, and the entry says {expected}")));
        }
    }
    let (signed_s, is_open) = vouched.signature().map_or((0, false), |by| (by.signed_s, by.has_open_detail));
    let open = if is_open { ", and leaves its detail to the server" } else { "" };
    Ok(format!("{what} is accepted: a key's owner signed it at {}{open}\n", clock::date(signed_s.cast_signed())))
}

/// Whose signatures count: the owners of the keys that were named, or of those in this agent's settings.
fn signers(words: &Words, flags: &Flags) -> Result<Signers, Failure> {
    let parse = |key: &String| key.parse::<PublicKey>().map_err(|error| settings(format!("--public-key: {error}")));
    let mut signers = match &words.texts("public-key").map_err(settings)?[..] {
        [] => Settings::signers(flags).map_err(settings)?.ok_or_else(|| {
            settings("the settings have no plugins.public_key, so that the agent asks for no signature; --public-key names a key")
        })?,
        [first, rest @ ..] if rest.len() < 2 => Signers {
            first: parse(first)?,
            second: rest.first().map(parse).transpose()?,
            signed_after: SignedAfter::default(),
        },
        _ => return Err(settings("--public-key: more than two keys, and an agent has two at most")),
    };
    if let Some(time) = text_of(words, "signed-after")? {
        signers.signed_after = time.parse().map_err(|error| settings(format!("--signed-after: {error}")))?;
    }
    Ok(signers)
}

/// Reads an entry as servers have it, in JSON. It may have more fields.
fn read_entry(path: &Path) -> Result<grpc::Config, Failure> {
    let wrong = |why: &dyn fmt::Display| settings(format!("{}: {why}", path.display()));
    let bytes = read_bounded(path, MAX_ENTRY_BYTES + 1).map_err(|error| wrong(&error))?;
    if bytes.len() as u64 > MAX_ENTRY_BYTES {
        return Err(wrong(&format!("an entry of more than {MAX_ENTRY_BYTES} bytes")));
    }
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| wrong(&error))?;
    let Value::Object(fields) = value else { return Err(wrong(&"no JSON object, expected one entry")) };
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(String::new()),
        Some(Value::String(text)) => Ok(text.clone()),
        Some(_) => Err(wrong(&format!("{name} is no text"))),
    };
    Ok(grpc::Config {
        name: text("name")?,
        r#type: text("type")?,
        version: text("version")?,
        sha256: text("sha256")?,
        signature: text("signature")?,
        detail: text("detail")?,
        ..grpc::Config::default()
    })
}

fn json(entry: &grpc::Config) -> String {
    let grpc::Config { name, r#type, version, sha256, signature, detail, .. } = entry;
    let entry = serde_json::json!({
        "name": name, "type": r#type, "version": version, "sha256": sha256, "signature": signature, "detail": detail,
    });
    format!("{}\n", PrintableJson(entry))
}

/// What is signed: an entry that the agent understands.
enum Vouched {
    Plugin(PluginConfig),
    Agent(AgentConfig),
}

impl Vouched {
    /// Reads an entry on the way that it takes from a server.
    fn read(entry: grpc::Config) -> Result<Self, String> {
        let command = grpc::Command { configs: vec![entry], ..grpc::Command::default() };
        match Command::decode(&command.encode_to_vec()) {
            Ok(Command::Configuration(mut found)) => match (found.agent, found.plugins.pop()) {
                (Some(agent), _) => agent.package.map(Self::Agent).map_err(|why| why.to_string()),
                (None, Some(plugin)) => Ok(Self::Plugin(plugin)),
                (None, None) => Err(found.refused.pop().map(|refused| refused.reason).unwrap_or_default()),
            },
            Ok(_) => Err("it is no entry".to_owned()),
            Err(why) => Err(why.to_string()),
        }
    }

    fn statement(&self) -> Statement<'_> {
        match self {
            Self::Plugin(plugin) => plugin.statement(),
            Self::Agent(agent) => agent.statement(),
        }
    }

    fn signature(&self) -> Option<&Signature> {
        match self {
            Self::Plugin(plugin) => plugin.signature.as_ref(),
            Self::Agent(agent) => agent.signature.as_ref(),
        }
    }

    /// The option that names a file, and the hash that this has to have.
    fn hashes(&self) -> Vec<(&'static str, &Sha256)> {
        match self {
            Self::Plugin(PluginConfig { packing, download_sha256, executable_sha256, .. }) => {
                let mut hashes = vec![("file", download_sha256), ("executable", executable_sha256)];
                // The download is the program.
                hashes.extend((*packing == Packing::Plain).then_some(("file", executable_sha256)));
                hashes
            }
            Self::Agent(AgentConfig { sha256, .. }) => vec![("file", sha256)],
        }
    }
}

fn hash(path: &Path) -> Result<Sha256, Failure> {
    sha256_of(path).map_err(FileError::at(path)).map_err(settings)
}

fn path_of(words: &Words, name: &str, shown: &str) -> Result<PathBuf, Failure> {
    words.path_of(name).ok_or_else(|| settings(format!("{shown} is missing")))
}

fn text_of(words: &Words, name: &str) -> Result<Option<String>, Failure> {
    Ok(words.texts(name).map_err(settings)?.pop())
}

fn needed(words: &Words, name: &str) -> Result<String, Failure> {
    text_of(words, name)?.ok_or_else(|| settings(format!("--{name} is missing")))
}
