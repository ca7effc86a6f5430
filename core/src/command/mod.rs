//! What a server asks of the agent, parsed once into types that need no further checks.
//!
//! A `Command` is bytes from outside: names become path components, hashes decide what is executed, texts go into logs and
//! answers. What does not pass is refused entry by entry, with a reason that can be sent back.

pub mod oversized;

use alloc::borrow::{Cow, ToOwned};
use alloc::boxed::Box;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;
use core::str::FromStr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use elklet_proto::grpc::{self, Task};
use prost::Message;
use serde::Deserialize;

use crate::limits::{
    MAX_DETAIL_BYTES, MAX_DOWNLOAD_URLS, MAX_PLUGIN_NAME_BYTES, MAX_PLUGINS, MAX_REFUSED_ENTRIES, MAX_REPORT_CHARS,
    MAX_TOKEN_BYTES, MAX_VERSION_BYTES,
};
use crate::record::wire::{Value, take_field};

/// The name under which the server addresses the agent itself, and its product name in every batch.
pub const AGENT_NAME: &str = "elkeid-agent";

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Nothing. The reference takes this for "stop and delete every plugin"; Elklet changes nothing.
    Nothing,
    /// Something to do once, by a plugin.
    PluginTask(Task),
    /// Something to do once, by the agent.
    AgentTask {
        /// Comes back in the answer.
        token: String,
        /// What to do, or why that is not possible.
        task: Result<AgentTask, String>,
    },
    /// Everything that should be running.
    Configuration(Configuration),
}

/// What the agent itself can be asked to do once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentTask {
    /// Data type 1050: send a file to the server.
    Upload {
        /// The file.
        path: String,
        /// Bytes of one piece; one piece is sent each second.
        buf_size: u64,
    },
    /// Data type 1051: remember where this host is.
    SetMetadata {
        /// The data centre, if it is to change.
        idc: Option<String>,
        /// The region, if it is to change.
        region: Option<String>,
    },
    /// Data type 1060: end.
    Shutdown,
}

/// The whole list of what should be running.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Configuration {
    /// The version that the agent should have, if the list names the agent.
    pub agent: Option<AgentEntry>,
    /// The plugins that should be running; each name once.
    pub plugins: Vec<PluginConfig>,
    /// Entries that cannot be carried out. A plugin that one of them names is neither started nor stopped.
    pub refused: Vec<RefusedConfig>,
}

/// The agent's own entry: nothing but the version counts as long as that is the one that runs.
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
    /// Who vouches for it, if somebody does.
    pub signature: Option<Signature>,
    /// Where the package is to be had, tried in order.
    pub urls: Vec<String>,
}

/// A plugin's entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluginConfig {
    /// Its name, which is also that of its directory and of the executable in it.
    pub name: PluginName,
    /// Its version; compared for equality only.
    pub version: String,
    /// How the download is packed.
    pub packing: Packing,
    /// SHA-256 of the download.
    pub download_sha256: Sha256,
    /// SHA-256 of the executable.
    pub executable_sha256: Sha256,
    /// Who vouches for all of the above, if somebody does.
    pub signature: Option<Signature>,
    /// Where the download is to be had, tried in order.
    pub urls: Vec<String>,
    /// Goes into the plugin's environment as DETAIL; empty means that the plugin gets no DETAIL.
    pub detail: String,
}

/// How a download is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// A gzipped tar archive that holds the executable, by the plugin's name.
    TarGz,
    /// The executable itself; every type that is not `tar.gz` means this, as it does to the reference.
    Plain,
}

/// An entry of a configuration that cannot be carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedConfig {
    /// The plugin that it names, where that is a possible name.
    pub name: Option<PluginName>,
    /// What is wrong with it, name included.
    pub reason: String,
}

impl fmt::Display for AgentTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upload { path, buf_size } => write!(f, "upload {path:?} at {buf_size} bytes/s"),
            Self::SetMetadata { idc, region } => {
                let or_as_it_is = |name: &Option<String>| name.clone().unwrap_or_else(|| "as it is".to_owned());
                write!(f, "set idc to {}, region to {}", or_as_it_is(idc), or_as_it_is(region))
            }
            Self::Shutdown => f.write_str("end"),
        }
    }
}

impl Command {
    /// Parses a command, already decompressed.
    ///
    /// # Errors
    /// When the bytes are no command at all; what is wrong inside one is part of the result.
    pub fn decode(bytes: &[u8]) -> Result<Self, NotACommand> {
        const TASK: u32 = 2;
        const CONFIGS: u32 = 3;
        let refuse = |why| NotACommand { length: bytes.len(), why };
        let (mut task, mut configuration) = (None::<Task>, None::<Checking>);
        let mut rest = bytes;
        while !rest.is_empty() {
            match take_field(&mut rest).map_err(|why| refuse(why.to_string()))? {
                (TASK, Value::Bytes(bytes)) => {
                    task.get_or_insert_default().merge(bytes).map_err(|error| refuse(error.to_string()))?;
                }
                // An entry is decoded by itself: one that cannot be leaves the others as they are.
                (CONFIGS, Value::Bytes(entry)) => configuration.get_or_insert_default().add(entry),
                (TASK | CONFIGS, _) => return Err(refuse("a task or an entry is no message".to_owned())),
                _ => {}
            }
        }
        Ok(match (task, configuration) {
            (Some(mut task), _) => {
                truncate(&mut task.token, MAX_TOKEN_BYTES);
                if task.object_name == AGENT_NAME {
                    Self::AgentTask { task: agent_task(task.data_type, &task.data), token: task.token }
                } else {
                    Self::PluginTask(task)
                }
            }
            (None, Some(checking)) => Self::Configuration(checking.finish()),
            (None, None) => Self::Nothing,
        })
    }
}

/// Bytes that are no command: the server misbehaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotACommand {
    /// Bytes that were to be one.
    pub length: usize,
    why: String,
}

impl fmt::Display for NotACommand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes that are no command: {}", self.length, self.why)
    }
}

impl core::error::Error for NotACommand {}

fn agent_task(data_type: i32, data: &str) -> Result<AgentTask, String> {
    #[derive(Deserialize)]
    struct Upload {
        path: String,
        buf_size: u64,
    }
    #[derive(Deserialize)]
    struct Metadata {
        idc: Option<String>,
        region: Option<String>,
    }
    fn json<'a, T: Deserialize<'a>>(data_type: i32, data: &'a str) -> Result<T, String> {
        serde_json::from_str(data).map_err(|error| {
            let why = format!("data of task {data_type} is not as expected: {error}");
            // What is wrong is quoted, and may be long.
            why.chars().take(MAX_REPORT_CHARS).collect()
        })
    }

    match data_type {
        1050 => {
            let Upload { path, buf_size } = json(data_type, data)?;
            match buf_size {
                0 => Err("buf_size of task 1050 is 0, expected at least 1".to_owned()),
                _ => Ok(AgentTask::Upload { path, buf_size }),
            }
        }
        1051 => {
            let Metadata { idc, region } = json(data_type, data)?;
            Ok(AgentTask::SetMetadata { idc, region })
        }
        1060 => Ok(AgentTask::Shutdown),
        _ => Err(format!("unknown task {data_type}: the agent knows 1050, 1051 and 1060")),
    }
}

impl Configuration {
    /// The bytes of a command that asks for these plugins.
    #[must_use]
    pub fn encode(plugins: &[PluginConfig]) -> Vec<u8> {
        let configs = plugins.iter().map(PluginConfig::to_entry).collect();
        grpc::Command { configs, ..grpc::Command::default() }.encode_to_vec()
    }
}

/// A configuration whose entries are checked one by one, as they come off the message: a few bytes can announce many, and
/// nothing is made of those beyond the limits.
#[derive(Debug, Default)]
struct Checking {
    checked: Configuration,
    /// Entries that are refused without a word of their own.
    passed_over: usize,
}

impl Checking {
    fn add(&mut self, entry: &[u8]) {
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

    fn finish(mut self) -> Configuration {
        if self.passed_over > 0 {
            let reason = format!("{} more entries of the configuration are refused as well", self.passed_over);
            self.checked.refused.push(RefusedConfig { name: None, reason });
        }
        self.checked
    }
}

/// The name that an entry has, whatever else is wrong with it.
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

/// Decodes an entry, unless it has so many addresses that this would cost more memory than it is worth.
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
        // As with plugins, it stands behind what the reference has there.
        let signature = match entry.signature.split_once(':') {
            Some((_, signature)) => Some(signature.parse().map_err(|why| format!("agent update: {why}"))?),
            None => None,
        };
        Ok(Self { version: checked_version(entry.version)?, sha256, signature, urls: entry.download_urls })
    }

    /// What a signature of this version signs.
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
        // The reference's field has the executable's hash alone.
        let (executable, signature) = match entry.signature.split_once(':') {
            Some((executable, signature)) => (executable, Some(signature.parse()?)),
            None => (&*entry.signature, None),
        };
        let download_sha256 = match &*entry.sha256 {
            // A plugin that is on the disk already can be named by its executable's hash alone.
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
    fn to_entry(&self) -> grpc::Config {
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

/// A plugin's name: 1 to 64 ASCII letters, digits, `_` and `-`, hence safe as a path component.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PluginName(Box<str>);

impl PluginName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for PluginName {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
        match name.len() {
            0 => Err("a plugin without a name".to_owned()),
            1..=MAX_PLUGIN_NAME_BYTES if name.chars().all(allowed) => Ok(Self(name.into())),
            1..=MAX_PLUGIN_NAME_BYTES => Err("a name has only letters, digits, _ and -".to_owned()),
            long => Err(format!("a name of {long} bytes, the limit is {MAX_PLUGIN_NAME_BYTES}")),
        }
    }
}

impl fmt::Display for PluginName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Sha256(pub [u8; 32]);

impl FromStr for Sha256 {
    type Err = String;

    fn from_str(hex: &str) -> Result<Self, String> {
        let not_hex = || format!("{:?} is not 64 hexadecimal digits", shortened(hex));
        let digits = <&[u8; 64]>::try_from(hex.as_bytes()).map_err(|_| not_hex())?;
        let mut digest = [0; 32];
        for (byte, pair) in digest.iter_mut().zip(digits.chunks_exact(2)) {
            let digit = |d: u8| char::from(d).to_digit(16).and_then(|d| u8::try_from(d).ok());
            *byte = digit(pair[0]).zip(digit(pair[1])).map(|(high, low)| high << 4 | low).ok_or_else(not_hex)?;
        }
        Ok(Self(digest))
    }
}

impl fmt::Display for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An ed25519 signature; written as Base64.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature(pub Box<[u8; 64]>);

impl FromStr for Signature {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = BASE64.decode(text).ok().and_then(|bytes| Box::try_from(bytes).ok());
        let why = || format!("signature {:?} is not the Base64 of 64 bytes", shortened(text));
        bytes.map(Self).ok_or_else(why)
    }
}

/// Enough of a peer's text to recognise it in a log.
fn shortened(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Cuts `text` to at most `limit` bytes, between two characters.
fn truncate(text: &mut String, limit: usize) {
    let mut end = limit.min(text.len());
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.truncate(end);
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use proptest::prelude::*;

    use super::*;

    const HASH: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

    fn config(name: &str) -> grpc::Config {
        grpc::Config { name: name.into(), version: "1".into(), sha256: HASH.into(), ..grpc::Config::default() }
    }

    fn configured(configs: Vec<grpc::Config>) -> Configuration {
        let command = grpc::Command { configs, ..grpc::Command::default() };
        match Command::decode(&command.encode_to_vec()) {
            Ok(Command::Configuration(configuration)) => configuration,
            other => panic!("{other:?}"),
        }
    }

    fn agent_task_of(data_type: i32, data: &str) -> Result<AgentTask, String> {
        let task = Task { data_type, object_name: AGENT_NAME.into(), data: data.into(), token: "t".into() };
        match Command::decode(&grpc::Command { task: Some(task), ..grpc::Command::default() }.encode_to_vec()) {
            Ok(Command::AgentTask { token, task }) if token == "t" => task,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_command_with_neither_task_nor_configuration_is_nothing() {
        assert_eq!(Command::decode(&[]), Ok(Command::Nothing));
        let only_ctrl = grpc::Command { agent_ctrl: 1, ..grpc::Command::default() };
        assert_eq!(Command::decode(&only_ctrl.encode_to_vec()), Ok(Command::Nothing));
    }

    #[test]
    fn the_agents_tasks_are_read_and_wrong_ones_say_why() {
        assert_eq!(agent_task_of(1060, ""), Ok(AgentTask::Shutdown));
        let upload = AgentTask::Upload { path: "/etc/hosts".into(), buf_size: 10 };
        assert_eq!(agent_task_of(1050, r#"{"path":"/etc/hosts","buf_size":10}"#), Ok(upload));
        let region = AgentTask::SetMetadata { idc: None, region: Some("eu".into()) };
        assert_eq!(agent_task_of(1051, r#"{"region":"eu"}"#), Ok(region));
        for (data_type, data, why) in [
            (1051, "{not json", "1051"),
            (1050, r#"{"path":"/x","buf_size":0}"#, "buf_size"),
            (4242, "{}", "unknown task 4242"),
        ] {
            assert!(agent_task_of(data_type, data).is_err_and(|reason| reason.contains(why)), "{data_type}");
        }
    }

    #[test]
    fn entries_are_refused_one_by_one() {
        let mut bad_hash = config("hash");
        bad_hash.sha256 = "xyz".into();
        let mut long_detail = config("detail");
        long_detail.detail = "d".repeat(MAX_DETAIL_BYTES + 1);
        let got =
            configured(vec![config("good"), config("../evil"), config(""), bad_hash, long_detail, config("good")]);
        assert_eq!(got.plugins.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["good"]);
        let names: Vec<_> = got.refused.iter().map(|r| r.name.as_ref().map(PluginName::as_str)).collect();
        assert_eq!(names, [None, None, Some("hash"), Some("detail"), Some("good")]);
    }

    #[test]
    fn a_signature_stands_for_the_executable_and_else_the_hash_does() {
        let mut signed = config("signed");
        signed.signature = HASH.replace('0', "1");
        signed.r#type = "tar.gz".into();
        let got = configured(vec![config("plain"), signed]);
        assert_eq!(got.plugins[0].executable_sha256, got.plugins[0].download_sha256);
        assert_eq!(format!("{}", got.plugins[1].executable_sha256), HASH.replace('0', "1"));
        assert_eq!((got.plugins[0].packing, got.plugins[1].packing), (Packing::Plain, Packing::TarGz));
    }

    #[test]
    fn an_entry_may_bring_a_signature_and_is_written_as_it_was_read() {
        let vouched = BASE64.encode([7; 64]);
        let mut packed = config("signed");
        packed.signature = format!("{}:{vouched}", HASH.replace('0', "1"));
        (packed.r#type, packed.detail, packed.download_urls) = ("tar.gz".into(), "d".into(), vec!["http://x/".into()]);
        let wrong = ["", "AAAA", "!", &vouched[..87]].map(|text| grpc::Config {
            signature: format!("{HASH}:{text}"),
            ..config(&format!("wrong{}", text.len()))
        });
        let got = configured([packed.clone()].into_iter().chain(wrong).collect());
        assert_eq!((got.plugins.len(), got.refused.len()), (1, 4));
        assert!(got.refused[0].reason.contains("is not the Base64 of 64 bytes"), "{}", got.refused[0].reason);
        assert_eq!(got.plugins[0].signature, Some(Signature(Box::new([7; 64]))));
        let again = Command::decode(&Configuration::encode(&got.plugins));
        assert_eq!(
            again,
            Ok(Command::Configuration(Configuration { plugins: got.plugins.clone(), ..Configuration::default() }))
        );
        assert_eq!(got.plugins[0].to_entry(), packed);
        let executable = HASH.replace('0', "1");
        assert_eq!(got.plugins[0].signed_text(), format!("elklet plugin\nsigned\n1\n{HASH}\n{executable}\n"));
    }

    #[test]
    fn of_too_many_entries_the_first_count_and_the_rest_costs_no_memory() {
        let many = configured((0..MAX_PLUGINS + 2).map(|i| config(&format!("p{i}"))).collect());
        assert_eq!((many.plugins.len(), many.plugins[63].name.as_str()), (MAX_PLUGINS, "p63"));
        assert_eq!(many.refused[1].reason, "plugin \"p65\": 64 plugins are configured before it, which is the limit");
        // Two million empty entries would take half a gigabyte if anything were made of them.
        match Command::decode(&[0x1a, 0].repeat(2 << 20)) {
            Ok(Command::Configuration(Configuration { plugins, refused, .. })) => {
                assert_eq!((plugins.len(), refused.len()), (0, MAX_REFUSED_ENTRIES + 1));
                assert_eq!(refused[0].reason, "plugin \"\": a plugin without a name");
                assert_eq!(refused[128].reason, "2097024 more entries of the configuration are refused as well");
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_entry_that_cannot_be_read_is_refused_by_name_and_leaves_the_others() {
        let many_urls = grpc::Config { download_urls: vec![String::new(); 17], ..config("urls") };
        let mut command =
            grpc::Command { configs: vec![config("first"), many_urls], ..grpc::Command::default() }.encode_to_vec();
        // A version that is no text, and an entry that ends inside a field.
        command.extend([0x1a, 10, 0x0a, 4, b't', b'e', b'x', b't', 0x1a, 2, 0xff, 0xfe]);
        command.extend([0x1a, 7, 0x0a, 3, b'c', b'u', b't', 0x1a, 9]);
        command.extend(grpc::Command { configs: vec![config("last")], ..grpc::Command::default() }.encode_to_vec());
        let Ok(Command::Configuration(got)) = Command::decode(&command) else { panic!("it is one") };
        assert_eq!(got.plugins.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["first", "last"]);
        let refused: Vec<_> =
            got.refused.iter().map(|r| (r.name.as_ref().map(PluginName::as_str), &*r.reason)).collect();
        assert_eq!(refused[0], (Some("urls"), "plugin \"urls\": it has 17 download addresses, the limit is 16"));
        assert_eq!((refused[1].0, refused[2]), (Some("text"), (Some("cut"), "plugin \"cut\": it ends inside a field")));
    }

    #[test]
    fn the_agents_version_is_known_although_nothing_else_of_its_entry_is() {
        let bare = grpc::Config { sha256: String::new(), ..config(AGENT_NAME) };
        let got = configured(vec![bare]);
        let agent = got.agent.expect("it is there");
        assert_eq!((agent.version.as_str(), got.refused.len()), ("1", 0));
        let why = agent.package.expect_err("it has no hash");
        assert!(why.contains("agent update to \"1\": sha256 \"\" is not 64 hexadecimal digits"), "{why}");
    }

    #[test]
    fn the_agents_own_entry_is_apart() {
        let second = grpc::Config { version: "2".into(), ..config(AGENT_NAME) };
        let got = configured(vec![config(AGENT_NAME), config("x"), second]);
        assert_eq!((got.agent.map(|a| a.version), got.plugins.len(), got.refused.len()), (Some("1".into()), 1, 1));
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Command::decode(&bytes);
        }

        #[test]
        fn a_name_is_a_safe_path_component(name in ".{0,70}") {
            if let Ok(name) = name.parse::<PluginName>() {
                prop_assert!(!name.as_str().is_empty() && !name.as_str().contains(['/', '.', '\0']));
            }
        }

        #[test]
        fn a_digest_is_read_as_it_is_written(digest: [u8; 32]) {
            let digest = Sha256(digest);
            prop_assert_eq!(format!("{}", digest).parse(), Ok(digest));
        }

        #[test]
        fn texts_are_cut_between_characters(text in ".{0,50}", limit in 0..60usize) {
            let mut cut = text.clone();
            truncate(&mut cut, limit);
            prop_assert!(cut.len() <= limit && text.starts_with(&cut));
        }
    }
}
