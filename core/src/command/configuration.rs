//! The whole list of what should be running, checked entry by entry.

use alloc::borrow::{Cow, ToOwned};
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use elklet_proto::grpc;
use prost::Message;

use super::AGENT_NAME;
use super::checked::{PluginName, Sha256, Signature, shortened};
use crate::limits::{MAX_DETAIL_BYTES, MAX_DOWNLOAD_URLS, MAX_PLUGINS, MAX_REFUSED_ENTRIES, MAX_VERSION_BYTES};
use crate::record::wire::{Value, take_field};

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
    pub package: Result<AgentConfig, String>,
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
    /// A signature over all of the above, if there is one.
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
    /// What is wrong with it, name included.
    pub reason: String,
}

impl Configuration {
    /// Encodes a command that asks for these plugins.
    #[must_use]
    pub fn encode(plugins: &[PluginConfig]) -> Vec<u8> {
        let configs = plugins.iter().map(PluginConfig::to_entry).collect();
        grpc::Command { configs, ..grpc::Command::default() }.encode_to_vec()
    }
}

/// A configuration in the making. Its entries are checked one by one as they come off the message, because a few bytes
/// can announce many. Nothing is made of those beyond the limits.
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
                    self.refuse(None, || format!("{AGENT_NAME}: configured twice, the first counts"));
                }
                Ok(agent) => self.checked.agent = Some(agent),
                Err(reason) => self.refuse(None, || format!("{AGENT_NAME}: {reason}")),
            };
        }
        let checked = known.clone().and_then(|_| decoded.and_then(PluginConfig::check));
        let reason = match checked {
            Ok(plugin) if self.checked.plugins.iter().any(|other| other.name == plugin.name) => {
                "configured twice, the first counts".to_owned()
            }
            Ok(_) if self.checked.plugins.len() == MAX_PLUGINS => {
                format!("{MAX_PLUGINS} plugins are configured before it, which is the limit")
            }
            Ok(plugin) => return self.checked.plugins.push(plugin),
            Err(reason) => reason,
        };
        self.refuse(known.ok(), || format!("plugin {:?}: {reason}", shortened(&name)));
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
fn decode_entry(entry: &[u8]) -> Result<grpc::Config, String> {
    const DOWNLOAD_URLS: u32 = 6;
    let mut rest = entry;
    let mut urls = 0;
    while !rest.is_empty() {
        let (field, _) = take_field(&mut rest).map_err(|why| why.to_string())?;
        urls += usize::from(field == DOWNLOAD_URLS);
    }
    if urls > MAX_DOWNLOAD_URLS {
        return Err(format!("it has {urls} download addresses, the limit is {MAX_DOWNLOAD_URLS}"));
    }
    grpc::Config::decode(entry).map_err(|error| error.to_string())
}

impl AgentEntry {
    fn check(entry: grpc::Config) -> Result<Self, String> {
        let version = checked_version(entry.version.clone())?;
        Ok(Self { version, package: AgentConfig::check(entry) })
    }
}

impl AgentConfig {
    fn check(entry: grpc::Config) -> Result<Self, String> {
        let sha256 = entry
            .sha256
            .parse()
            .map_err(|why| format!("agent update to {:?}: sha256 {why}", shortened(&entry.version)))?;
        // As with plugins, the signature follows what the reference has there.
        let signature = match entry.signature.split_once(':') {
            Some((_, signature)) => Some(signature.parse().map_err(|why| format!("agent update: {why}"))?),
            None => None,
        };
        Ok(Self { version: checked_version(entry.version)?, sha256, signature, urls: entry.download_urls })
    }

    /// The text that a signature of this version covers.
    ///
    /// ```text
    /// elklet agent
    /// VERSION
    /// SHA-256 of the download in lower-case hexadecimal
    /// ```
    #[must_use]
    pub fn signed_text(&self) -> String {
        format!("elklet agent\n{}\n{}\n", self.version, self.sha256)
    }
}

impl PluginConfig {
    fn check(entry: grpc::Config) -> Result<Self, String> {
        let name = entry.name.parse()?;
        // The reference's field has only the executable's hash.
        let (executable, signature) = match entry.signature.split_once(':') {
            Some((executable, signature)) => (executable, Some(signature.parse()?)),
            None => (&*entry.signature, None),
        };
        let download_sha256 = match &*entry.sha256 {
            // An entry can name a plugin that is already on the disk by its executable's hash alone.
            "" => executable.parse().map_err(|why| format!("signature {why}"))?,
            given => given.parse().map_err(|why| format!("sha256 {why}"))?,
        };
        let executable_sha256 = match executable {
            "" => download_sha256,
            given => given.parse().map_err(|why| format!("signature {why}"))?,
        };
        let detail = entry.detail;
        if detail.len() > MAX_DETAIL_BYTES {
            return Err(format!("detail of {} bytes, the limit is {MAX_DETAIL_BYTES}", detail.len()));
        }
        if detail.contains('\0') {
            return Err("detail has a zero byte, which no environment variable can hold".to_owned());
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
            signature.push(':');
            signature.push_str(&BASE64.encode(*vouched.0));
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

    /// What a signature of this plugin signs: lines for its name, its version, and both its hashes.
    ///
    /// ```text
    /// elklet plugin
    /// NAME
    /// VERSION
    /// SHA-256 of the download in lower-case hexadecimal
    /// SHA-256 of the executable, likewise
    /// ```
    #[must_use]
    pub fn signed_text(&self) -> String {
        let Self { name, version, download_sha256, executable_sha256, .. } = self;
        format!("elklet plugin\n{name}\n{version}\n{download_sha256}\n{executable_sha256}\n")
    }
}

fn checked_version(version: String) -> Result<String, String> {
    match version.len() {
        0..=MAX_VERSION_BYTES => Ok(version),
        long => Err(format!("version of {long} bytes, the limit is {MAX_VERSION_BYTES}")),
    }
}
