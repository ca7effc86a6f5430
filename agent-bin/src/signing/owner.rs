//! What the owner of a key does: `elklet keygen`, `elklet sign`, and `elklet verify`, which says what a host would make of a signature.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use elklet_core::command::{AGENT_NAME, Command, Sha256, Signature, Statement};
use elklet_proto::grpc;
use prost::Message;
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair};
use zeroize::Zeroizing;

use super::{PublicKey, Signers, detail_hash};
use crate::clock;
use crate::failure::Failure;
use crate::files::{FileError, read_bounded};
use crate::pem;
use crate::plugin;

/// What stands before the 32 bytes of an ed25519 key in PKCS#8 (RFC 8410, section 7). OpenSSL writes the same.
const PKCS8: [u8; 16] = [0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];

const LABEL: &str = "PRIVATE KEY";

/// The largest file of a key, in bytes. One with text around it has a tenth of it.
const MAX_KEY_BYTES: u64 = 64 << 10;

/// What is to be signed, besides the hashes.
#[derive(Debug)]
pub(crate) struct Order {
    /// The file of the key.
    pub(crate) key: PathBuf,
    /// The name of the plugin, or [`AGENT_NAME`].
    pub(crate) name: String,
    pub(crate) version: String,
    /// The plugin's executable, or the agent's package.
    pub(crate) file: PathBuf,
    /// What servers offer, if that is another file.
    pub(crate) download: Option<PathBuf>,
    /// `None` leaves it to the server.
    pub(crate) detail: Option<String>,
    /// In seconds since 1970.
    pub(crate) signed_s: u64,
}

/// An entry as a server has it, with the files that it is about, as far as they are at hand.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(crate) name: String,
    pub(crate) version: String,
    /// The hash of the download, or empty for that of the executable.
    pub(crate) sha256: String,
    pub(crate) signature: String,
    pub(crate) detail: String,
    pub(crate) file: Option<PathBuf>,
    pub(crate) download: Option<PathBuf>,
}

/// Makes a key. Returns the line of the settings by which hosts know it.
///
/// # Errors
/// When the file is there already, or cannot be written.
pub(crate) fn make_key(path: &Path) -> Result<String, Failure> {
    let mut der = Zeroizing::new([0; PKCS8.len() + 32]);
    let (head, seed) = der.split_at_mut(PKCS8.len());
    head.copy_from_slice(&PKCS8);
    let random = SystemRandom::new().fill(seed);
    random.map_err(|_| Failure::System("the system gives no random numbers".to_owned()))?;
    let pair = Ed25519KeyPair::from_pkcs8_maybe_unchecked(&*der)
        .map_err(|error| Failure::System(format!("the new key is of no use: {error}")))?;
    let text = pem::section(LABEL, &*der);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
        let text = FileError::at(path)(error).to_string();
        if path.symlink_metadata().is_ok() { Failure::Settings(text) } else { Failure::System(text) }
    })?;
    file.write_all(&text).and_then(|()| file.sync_all()).map_err(|error| {
        let _ = fs::remove_file(path);
        Failure::System(FileError::at(path)(error).to_string())
    })?;
    Ok(format!("public_key = \"{}\"\n", public(&pair)))
}

/// Signs. Returns the fields of the entry that servers have to have, besides type, addresses and detail.
///
/// # Errors
/// When a file cannot be read, or no host would accept such an entry.
pub(crate) fn sign(order: Order) -> Result<String, Failure> {
    let Order { key, name, version, file, download, detail, signed_s } = order;
    let wrong = |why: &str| Err(Failure::Settings(why.to_owned()));
    if name == AGENT_NAME && (download.is_some() || detail.as_ref().is_none_or(|detail| !detail.is_empty())) {
        return wrong("a version of the agent has one file, its package, and no detail");
    }
    let pair = read_key(&key)?;
    let executable = hash(&file)?;
    let sha256 = download.as_deref().map_or(Ok(executable), hash)?;
    let mut signature = Signature { bytes: Box::new([0; 64]), signed_s, has_open_detail: detail.is_none() };
    let entry = grpc::Config {
        name,
        version,
        sha256: sha256.to_string(),
        signature: format!("{executable}:{signature}"),
        detail: detail.unwrap_or_default(),
        ..grpc::Config::default()
    };
    // The text is made of what an agent makes of the entry, so that both sign and read the same.
    let text = judged(&entry, |statement, signature| {
        signature.and_then(|signature| statement.signed_text(signature, &detail_hash(statement)))
    });
    let Some(text) = text.map_err(Failure::Settings)? else {
        return wrong("the version has control characters");
    };
    signature.bytes.copy_from_slice(pair.sign(text.as_bytes()).as_ref());
    let grpc::Config { name, version, sha256, .. } = entry;
    Ok(format!("name: {name}\nversion: {version}\nsha256: {sha256}\nsignature: {executable}:{signature}\n"))
}

/// Checks an entry as a host with these signers does, except for what has run there before. Returns what it vouches for.
///
/// # Errors
/// Why the host refuses it; or a file cannot be read, or is not the one that was signed.
pub(crate) fn verify(claim: Claim, signers: &Signers) -> Result<String, Failure> {
    let Claim { name, version, mut sha256, signature, detail, file, download } = claim;
    let refused = |why: &dyn std::fmt::Display| Failure::System(format!("refused: {why}"));
    let executable = signature.split_once(':').map_or(&*signature, |(executable, _)| executable).to_owned();
    let offered = download.as_deref().map(hash).transpose()?.map(|hash| hash.to_string());
    if sha256.is_empty() {
        sha256 = offered.clone().unwrap_or_else(|| executable.clone());
    }
    let has_hash = |expected: &str, hash: &str| expected.eq_ignore_ascii_case(hash);
    if offered.is_some_and(|offered| !has_hash(&sha256, &offered)) {
        return Err(refused(&"the download has another SHA-256 than the entry says"));
    }
    if let Some(file) = &file
        && !has_hash(&executable, &hash(file)?.to_string())
    {
        return Err(refused(&format!("{} has another SHA-256 than the signature says", file.display())));
    }
    let entry = grpc::Config { name, version, sha256, signature, detail, ..grpc::Config::default() };
    let vouched = judged(&entry, |statement, signature| {
        signers.verify(statement, signature).map(|()| signature.map_or(0, |signature| signature.signed_s))
    });
    let signed_s = vouched.map_err(|why| refused(&why))?.map_err(|why| refused(&why))?;
    let grpc::Config { name, version, .. } = entry;
    Ok(format!("accepted: {name} {version}, signed at {}\n", clock::date(signed_s.cast_signed())))
}

/// Calls a function with what an agent makes of an entry.
///
/// # Errors
/// What is wrong with the entry, if it comes no further.
pub(super) fn judged<T>(
    entry: &grpc::Config,
    judge: impl FnOnce(&Statement<'_>, Option<&Signature>) -> T,
) -> Result<T, String> {
    let command = grpc::Command { configs: vec![entry.clone()], ..grpc::Command::default() };
    let configuration = match Command::decode(&command.encode_to_vec()) {
        Ok(Command::Configuration(configuration)) => configuration,
        Ok(_) => return Err("it is no entry".to_owned()),
        Err(error) => return Err(error.to_string()),
    };
    if let Some(refused) = configuration.refused.first() {
        return Err(refused.reason.clone());
    }
    match (&configuration.agent, configuration.plugins.first()) {
        (Some(agent), _) => match &agent.package {
            Ok(package) => Ok(judge(&package.statement(), package.signature.as_ref())),
            Err(bad) => Err(bad.to_string()),
        },
        (None, Some(plugin)) => Ok(judge(&plugin.statement(), plugin.signature.as_ref())),
        (None, None) => Err("it is no entry".to_owned()),
    }
}

fn public(pair: &Ed25519KeyPair) -> PublicKey {
    let mut key = [0; 32];
    key.copy_from_slice(pair.public_key().as_ref());
    PublicKey(key)
}

fn read_key(path: &Path) -> Result<Ed25519KeyPair, Failure> {
    let wrong = |why: &str| {
        let expected = "expected an ed25519 key as PKCS#8 in PEM, without a password, as `elklet keygen` makes it";
        Failure::Settings(format!("{}: {why}, {expected}", path.display()))
    };
    let text = read_bounded(path, MAX_KEY_BYTES).map(Zeroizing::new).map_err(|error| unreadable(path, error))?;
    let sections = pem::sections(&text).map_err(wrong)?;
    let der = sections.into_iter().find(|section| section.label == LABEL).and_then(|section| section.der);
    let der = Zeroizing::new(der.ok_or_else(|| wrong("it has no such key"))?);
    Ed25519KeyPair::from_pkcs8_maybe_unchecked(&der).map_err(|error| wrong(&error.to_string()))
}

fn hash(path: &Path) -> Result<Sha256, Failure> {
    plugin::sha256_of(path).map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: io::Error) -> Failure {
    Failure::Settings(FileError::at(path)(error).to_string())
}
