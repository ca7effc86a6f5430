//! What a server asks of the agent, parsed once into types that need no further checks.
//!
//! A `Command` is bytes from outside: names become path components, hashes decide what is executed, texts go into logs and
//! answers. The parser refuses what does not pass entry by entry, with a reason that can be sent back. [`AgentTask`] stands in
//! `task`, [`Configuration`] in `configuration`, and the small checked texts of both in `checked`.

mod checked;
mod configuration;
pub mod oversized;
mod task;

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use core::fmt;

use elklet_proto::grpc::Task;
use prost::Message;

pub use self::checked::{BadDigest, BadName, BadSignature, PluginName, Sha256, Signature};
use self::configuration::Checking;
pub use self::configuration::{
    AgentConfig, AgentEntry, BadPackage, Configuration, Packing, PluginConfig, RefusedConfig,
};
pub use self::task::{AgentTask, BadTask, RefusedTask, SetMetadata, Upload};
use crate::limits::MAX_TOKEN_BYTES;
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
    AgentTask(AgentTask),
    /// A task for the agent that it cannot do.
    RefusedTask(RefusedTask),
    /// Everything that should be running.
    Configuration(Configuration),
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
                    AgentTask::parse(task).map_or_else(Self::RefusedTask, Self::AgentTask)
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
    use alloc::boxed::Box;
    use alloc::vec::Vec;
    use alloc::{format, vec};

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD as BASE64;
    use proptest::prelude::*;

    use elklet_proto::grpc;

    use super::*;
    use crate::limits::*;

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

    fn agent_task_of(data_type: i32, data: &str) -> Result<AgentTask, BadTask> {
        let task = Task { data_type, object_name: AGENT_NAME.into(), data: data.into(), token: "t".into() };
        match Command::decode(&grpc::Command { task: Some(task), ..grpc::Command::default() }.encode_to_vec()) {
            Ok(Command::AgentTask(task)) => Ok(task),
            Ok(Command::RefusedTask(RefusedTask { token, reason })) if token == "t" => Err(reason),
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
        assert_eq!(agent_task_of(1060, ""), Ok(AgentTask::Shutdown { token: "t".into() }));
        let upload = AgentTask::Upload(Upload { token: "t".into(), path: "/etc/hosts".into(), buf_size: 10 });
        assert_eq!(agent_task_of(1050, r#"{"path":"/etc/hosts","buf_size":10}"#), Ok(upload));
        let region = AgentTask::SetMetadata(SetMetadata { token: "t".into(), idc: None, region: Some("eu".into()) });
        assert_eq!(agent_task_of(1051, r#"{"region":"eu"}"#), Ok(region));
        for (data_type, data, why) in [
            (1051, "{not json", "1051"),
            (1050, r#"{"path":"/x","buf_size":0}"#, "buf_size"),
            (4242, "{}", "unknown task 4242"),
        ] {
            assert!(agent_task_of(data_type, data).is_err_and(|bad| bad.to_string().contains(why)), "{data_type}");
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
        let why = agent.package.expect_err("it has no hash").to_string();
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
