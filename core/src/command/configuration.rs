//! The whole list of what should be running, checked entry by entry.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

use elklet_proto::grpc;
use prost::{DecodeError, Message};

use super::AGENT_NAME;
use super::checked::{BadDigest, BadName, BadSignature, PluginName, Sha256, Signature, shortened};
use crate::limits::{MAX_DETAIL_BYTES, MAX_DOWNLOAD_URLS, MAX_PLUGINS, MAX_REFUSED_ENTRIES, MAX_VERSION_BYTES};
use crate::record::wire::{Malformed, Value, take_field};

/// The whole list of what should be running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// The version that the agent should have, if the list names the agent.
    pub agent: Option<AgentEntry>,
    /// The plugins that should be running. Each name is unique.
    pub plugins: Vec<PluginConfig>,
    /// Entries that cannot be carried out. A plugin that one of them names is neither started nor stopped.
    pub refused: Vec<RefusedConfig>,
}

/// The agent's own entry. Only its version counts while that version runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentEntry {
    /// The version that the agent should have.
    pub version: String,
    /// How it becomes that, or why it cannot.
    pub package: Result<AgentConfig, BadPackage>,
}

/// Another version of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentConfig {
    /// The version that the agent should have.
    pub version: String,
    /// SHA-256 of the package.
    pub sha256: Sha256,
    /// The signature, if there is one.
    pub signature: Option<Signature>,
    /// Addresses of the package, tried in order.
    pub urls: Vec<String>,
}

/// A plugin's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Its name, which is also that of its directory and of the executable in it.
    pub name: PluginName,
    /// Its version, compared for equality only.
    pub version: String,
    /// How the download is packed.
    pub packing: Packing,
    /// SHA-256 of the download.
    pub download_sha256: Sha256,
    /// SHA-256 of the executable.
    pub executable_sha256: Sha256,
    /// A signature over all of this but the addresses, if there is one.
    pub signature: Option<Signature>,
    /// Addresses of the download, tried in order.
    pub urls: Vec<String>,
    /// The plugin's DETAIL in its environment. If it is empty, the plugin gets none.
    pub detail: String,
}

/// How a download is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// A gzipped tar archive with the executable, under the plugin's name.
    TarGz,
    /// The executable itself. As with the reference, every type but `tar.gz` means this.
    Plain,
}

/// An entry of a configuration that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedConfig {
    /// The plugin that it names, if that is a valid name.
    pub name: Option<PluginName>,
    /// What is wrong with it, name included: the text of a report.
    pub reason: String,
}

/// What is wrong with an entry; the server's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
enum BadEntry {
    Malformed(Malformed),
    NoConfig(DecodeError),
    Name(BadName),
    Sha256(BadDigest),
    /// The executable's hash, which stands in the field `signature`.
    Executable(BadDigest),
    Signature(BadSignature),
    /// Bytes of its version.
    LongVersion(usize),
    /// Bytes of its detail.
    LongDetail(usize),
    ZeroInDetail,
    /// Its number of download addresses.
    ManyAddresses(usize),
    /// Another entry has the same name.
    Again,
    /// [`MAX_PLUGINS`] precede it.
    OverTheLimit,
}

impl fmt::Display for BadEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => why.fmt(f),
            Self::NoConfig(why) => why.fmt(f),
            Self::Name(why) => why.fmt(f),
            Self::Sha256(why) => write!(f, "sha256 {why}"),
            Self::Executable(why) => write!(f, "signature {why}"),
            Self::Signature(why) => why.fmt(f),
            Self::LongVersion(bytes) => write!(f, "version of {bytes} bytes, the limit is {MAX_VERSION_BYTES}"),
            Self::LongDetail(bytes) => write!(f, "detail of {bytes} bytes, the limit is {MAX_DETAIL_BYTES}"),
            Self::ZeroInDetail => f.write_str("detail has a zero byte, which no environment variable can hold"),
            Self::ManyAddresses(urls) => {
                write!(f, "it has {urls} download addresses, the limit is {MAX_DOWNLOAD_URLS}")
            }
            Self::Again => f.write_str("configured twice, the first counts"),
            Self::OverTheLimit => write!(f, "{MAX_PLUGINS} plugins are configured before it, which is the limit"),
        }
    }
}

/// Why a server that names another version of the agent has not said how the agent is to become that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadPackage {
    /// The package has no hash.
    Sha256 {
        /// The beginning of the version.
        version: String,
        /// What stands there in place of the hash.
        why: BadDigest,
    },
    /// What is to vouch for it is no signature.
    Signature(BadSignature),
}

impl fmt::Display for BadPackage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256 { version, why } => write!(f, "agent update to {version:?}: sha256 {why}"),
            Self::Signature(why) => write!(f, "agent update: {why}"),
        }
    }
}

impl core::error::Error for BadPackage {}

impl Configuration {
    /// Encodes a command that asks for these plugins.
    #[must_use]
    pub fn encode(plugins: &[PluginConfig]) -> Vec<u8> {
        let configs = plugins.iter().map(PluginConfig::to_entry).collect();
        grpc::Command { configs, ..grpc::Command::default() }.encode_to_vec()
    }
}

/// A configuration in the making. Its entries are checked one by one as they come off the message, because a few bytes
/// can announce many. Nothing is kept of those beyond the limits.
#[derive(Debug, Default)]
pub(super) struct Checking {
    checked: Configuration,
    /// Number of refused entries that are not listed.
    passed_over: usize,
}

impl Checking {
    pub(super) fn add(&mut self, entry: &[u8]) {
        let name = entry_name(entry);
        let known = name.parse::<PluginName>();
        let decoded = decode_entry(entry);
        if name == AGENT_NAME {
            return match decoded.and_then(AgentEntry::check) {
                Ok(_) if self.checked.agent.is_some() => {
                    self.refuse(None, || format!("{AGENT_NAME}: {}", BadEntry::Again));
                }
                Ok(agent) => self.checked.agent = Some(agent),
                Err(bad) => self.refuse(None, || format!("{AGENT_NAME}: {bad}")),
            };
        }
        let checked = match &known {
            Ok(name) => decoded.and_then(|entry| PluginConfig::check(name.clone(), entry)),
            Err(bad) => Err(BadEntry::Name(*bad)),
        };
        let bad = match checked {
            Ok(plugin) if self.checked.plugins.iter().any(|other| other.name == plugin.name) => BadEntry::Again,
            Ok(_) if self.checked.plugins.len() == MAX_PLUGINS => BadEntry::OverTheLimit,
            Ok(plugin) => return self.checked.plugins.push(plugin),
            Err(bad) => bad,
        };
        self.refuse(known.ok(), || format!("plugin {:?}: {bad}", shortened(&name)));
    }

    fn refuse(&mut self, name: Option<PluginName>, reason: impl FnOnce() -> String) {
        if self.checked.refused.len() < MAX_REFUSED_ENTRIES {
            self.checked.refused.push(RefusedConfig { name, reason: reason() });
        } else {
            self.passed_over += 1;
        }
    }

    pub(super) fn finish(mut self) -> Configuration {
        if self.passed_over > 0 {
            let reason = format!("{} more entries of the configuration are refused as well", self.passed_over);
            self.checked.refused.push(RefusedConfig { name: None, reason });
        }
        self.checked
    }
}

/// The name of an entry, whatever else is wrong with it.
fn entry_name(mut entry: &[u8]) -> Cow<'_, str> {
    const NAME: u32 = 1;
    let mut name = Cow::Borrowed("");
    while let Ok((field, value)) = take_field(&mut entry) {
        if let (NAME, Value::Bytes(bytes)) = (field, value) {
            name = String::from_utf8_lossy(bytes);
        }
    }
    name
}

/// Decodes an entry, unless it has so many addresses that decoding would waste memory.
fn decode_entry(entry: &[u8]) -> Result<grpc::Config, BadEntry> {
    const DOWNLOAD_URLS: u32 = 6;
    let mut rest = entry;
    let mut urls = 0;
    while !rest.is_empty() {
        let (field, _) = take_field(&mut rest).map_err(BadEntry::Malformed)?;
        urls += usize::from(field == DOWNLOAD_URLS);
    }
    if urls > MAX_DOWNLOAD_URLS {
        return Err(BadEntry::ManyAddresses(urls));
    }
    grpc::Config::decode(entry).map_err(BadEntry::NoConfig)
}

impl AgentEntry {
    fn check(entry: grpc::Config) -> Result<Self, BadEntry> {
        let version = checked_version(entry.version.clone())?;
        Ok(Self { version, package: AgentConfig::check(entry) })
    }
}

impl AgentConfig {
    /// Checks all but the version, which is checked already.
    fn check(entry: grpc::Config) -> Result<Self, BadPackage> {
        let no_hash = |why| BadPackage::Sha256 { version: shortened(&entry.version), why };
        let sha256 = entry.sha256.parse().map_err(no_hash)?;
        // As with plugins, the signature follows what the reference has there.
        let signature = match entry.signature.split_once(':') {
            Some((_, signature)) => Some(signature.parse().map_err(BadPackage::Signature)?),
            None => None,
        };
        Ok(Self { version: entry.version, sha256, signature, urls: entry.download_urls })
    }

    /// What a signature vouches for: both hashes are the package's, and the agent has no detail.
    #[must_use]
    pub fn statement(&self) -> Statement<'_> {
        let Self { version, sha256, .. } = self;
        Statement { kind: "agent", name: AGENT_NAME, version, download: sha256, executable: sha256, detail: "" }
    }
}

impl PluginConfig {
    fn check(name: PluginName, entry: grpc::Config) -> Result<Self, BadEntry> {
        // The reference's field has only the executable's hash.
        let (executable, signature) = match entry.signature.split_once(':') {
            Some((executable, signature)) => (executable, Some(signature.parse().map_err(BadEntry::Signature)?)),
            None => (&*entry.signature, None),
        };
        let download_sha256 = match &*entry.sha256 {
            // An entry can name a plugin that is already on the disk by its executable's hash alone.
            "" => executable.parse().map_err(BadEntry::Executable)?,
            given => given.parse().map_err(BadEntry::Sha256)?,
        };
        let executable_sha256 = match executable {
            "" => download_sha256,
            given => given.parse().map_err(BadEntry::Executable)?,
        };
        let detail = entry.detail;
        if detail.len() > MAX_DETAIL_BYTES {
            return Err(BadEntry::LongDetail(detail.len()));
        }
        if detail.contains('\0') {
            return Err(BadEntry::ZeroInDetail);
        }
        Ok(Self {
            name,
            version: checked_version(entry.version)?,
            packing: if entry.r#type == "tar.gz" { Packing::TarGz } else { Packing::Plain },
            download_sha256,
            executable_sha256,
            signature,
            urls: entry.download_urls,
            detail,
        })
    }

    /// The entry that parses to this.
    pub(super) fn to_entry(&self) -> grpc::Config {
        let packing = match self.packing {
            Packing::TarGz => "tar.gz",
            Packing::Plain => "exec",
        };
        let mut signature = self.executable_sha256.to_string();
        if let Some(vouched) = &self.signature {
            signature = format!("{signature}:{vouched}");
        }
        grpc::Config {
            name: self.name.to_string(),
            r#type: packing.to_owned(),
            version: self.version.clone(),
            sha256: self.download_sha256.to_string(),
            signature,
            download_urls: self.urls.clone(),
            detail: self.detail.clone(),
        }
    }

    /// What a signature vouches for.
    #[must_use]
    pub fn statement(&self) -> Statement<'_> {
        let Self { name, version, download_sha256: download, executable_sha256: executable, detail, .. } = self;
        Statement { kind: "plugin", name: name.as_str(), version, download, executable, detail }
    }
}

/// What an entry says that a signature has to vouch for.
#[derive(Debug, Clone, Copy)]
pub struct Statement<'a> {
    kind: &'static str,
    name: &'a str,
    version: &'a str,
    download: &'a Sha256,
    executable: &'a Sha256,
    /// The detail, which may be long. The signed text has its hash.
    pub detail: &'a str,
}

impl Statement<'_> {
    /// The text that `signature` signs. `detail` is the SHA-256 of the detail. Returns `None` if the version contains control
    /// characters: a line break in it could pass for the end of its line.
    ///
    /// ```text
    /// elklet signature 1
    /// plugin, or agent for a version of the agent
    /// NAME
    /// VERSION
    /// SHA-256 of the download in lower-case hexadecimal
    /// SHA-256 of the executable, likewise
    /// when it was signed, in seconds since 1970
    /// SHA-256 of the detail, or open if the signature leaves the detail to the server
    /// ```
    #[must_use]
    pub fn signed_text(&self, signature: &Signature, detail: &Sha256) -> Option<String> {
        let Self { kind, name, version, download, executable, .. } = self;
        if version.contains(char::is_control) {
            return None;
        }
        let signed = signature.signed_s;
        let mut text = format!("elklet signature 1\n{kind}\n{name}\n{version}\n{download}\n{executable}\n{signed}\n");
        text += &if signature.has_open_detail { "open\n".to_owned() } else { format!("{detail}\n") };
        Some(text)
    }
}

fn checked_version(version: String) -> Result<String, BadEntry> {
    match version.len() {
        0..=MAX_VERSION_BYTES => Ok(version),
        long => Err(BadEntry::LongVersion(long)),
    }
}
