//! What a server asks of the agent, parsed once into types that need no further checks.
//!
//! A `Command` is bytes from outside: names become path components, hashes decide what is executed, texts go into logs and
//! answers. The parser refuses what does not pass entry by entry, with a reason that can be sent back. [`AgentTask`] stands in
//! `task`, [`Configuration`] in `configuration`, the small checked texts of both in `checked`, and what a host's owner makes of them in
//! `policy`.

mod checked;
mod configuration;
pub mod oversized;
mod policy;
mod task;

use alloc::borrow::ToOwned;
use alloc::string::{String, ToString};
use core::fmt;

use elklet_proto::grpc::Task;
use prost::Message;

pub use self::checked::{BadDigest, BadName, BadSignature, PluginName, Sha256, Signature};
use self::configuration::Checking;
pub use self::configuration::{
    AgentConfig, AgentEntry, BadPackage, Configuration, Packing, PluginConfig, RefusedConfig, Statement,
};
pub(crate) use self::policy::Rate;
pub use self::policy::{AllowedTask, Forbidden, Policy};
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
    /// When the bytes are no command at all. What is wrong inside a command is part of the result.
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
                // Decode each entry by itself, so that a bad one leaves the others as they are.
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

/// Bytes of a misbehaving server that are no command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotACommand {
    /// Length of these bytes.
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
        packed.signature = format!("{}:{vouched}:12:open", HASH.replace('0', "1"));
        (packed.r#type, packed.detail, packed.download_urls) = ("tar.gz".into(), "d".into(), vec!["http://x/".into()]);
        let wrong = ["", "AAAA:1", "!:1", &vouched, &vouched[2..]].map(str::to_owned).into_iter();
        let tails =
            [":", ":+1", ":-1", ":1s", ":1:shut", ":1:", ":1:open:", ":1:open:open", "::open", ":1000000000000"];
        let wrong = wrong.chain(tails.iter().map(|tail| format!("{vouched}{tail}"))).enumerate();
        let wrong = wrong.map(|(number, text)| grpc::Config {
            signature: format!("{HASH}:{text}"),
            ..config(&format!("wrong{number}"))
        });
        let got = configured([packed.clone()].into_iter().chain(wrong).collect());
        assert_eq!((got.plugins.len(), got.refused.len()), (1, 15));
        assert!(got.refused[0].reason.contains("is not the Base64 of 64 bytes"), "{}", got.refused[0].reason);
        let signature = Signature { bytes: Box::new([7; 64]), signed_s: 12, has_open_detail: true };
        assert_eq!(got.plugins[0].signature.as_ref(), Some(&signature));
        let again = Command::decode(&Configuration::encode(&got.plugins));
        assert_eq!(
            again,
            Ok(Command::Configuration(Configuration { plugins: got.plugins.clone(), ..Configuration::default() }))
        );
        assert_eq!(got.plugins[0].to_entry(), packed);
        let executable = HASH.replace('0', "1");
        let detail = Sha256([0x22; 32]);
        let lines = format!("elklet signature 1\nplugin\nsigned\n1\n{HASH}\n{executable}\n");
        let text = |plugin: &PluginConfig, signature| plugin.statement().signed_text(signature, &detail);
        assert_eq!(text(&got.plugins[0], &signature), Some(format!("{lines}12\nopen\n")));
        let closed = Signature { signed_s: 999_999_999_999, has_open_detail: false, ..signature.clone() };
        assert_eq!(text(&got.plugins[0], &closed), Some(format!("{lines}999999999999\n{detail}\n")));
        // A version that brings lines of its own has no signed text.
        let version = format!("1\n{HASH}");
        assert_eq!(text(&PluginConfig { version, ..got.plugins[0].clone() }, &closed), None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "two million entries are too many for an interpreter")]
    fn of_too_many_entries_the_first_count_and_the_rest_costs_no_memory() {
        let many = configured((0..MAX_PLUGINS + 2).map(|i| config(&format!("p{i}"))).collect());
        assert_eq!((many.plugins.len(), many.plugins[63].name.as_str()), (MAX_PLUGINS, "p63"));
        assert_eq!(many.refused[1].reason, "plugin \"p65\": 64 plugins are configured before it, which is the limit");
        // Two million empty entries would take half a gigabyte if the parser made something of them.
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

    #[test]
    fn a_task_of_the_agent_is_described_for_the_log_and_keeps_its_token() {
        let token = || "t".to_owned();
        let upload = AgentTask::Upload(Upload { token: token(), path: "/a".into(), buf_size: 10 });
        let place = AgentTask::SetMetadata(SetMetadata { token: token(), idc: Some("west".into()), region: None });
        let end = AgentTask::Shutdown { token: token() };
        assert_eq!(upload.to_string(), "upload \"/a\" at 10 bytes/s (token \"t\")");
        assert_eq!(place.to_string(), "set idc to west, region to as it is (token \"t\")");
        assert_eq!(end.to_string(), "end (token \"t\")");
        assert_eq!([upload, place, end].each_ref().map(AgentTask::token), ["t"; 3]);
    }

    #[test]
    fn a_piece_of_an_upload_has_at_least_a_byte() {
        let smallest = AgentTask::Upload(Upload { token: "t".into(), path: "/x".into(), buf_size: 1 });
        assert_eq!(agent_task_of(1050, r#"{"path":"/x","buf_size":1}"#), Ok(smallest));
        let why = agent_task_of(1050, r#"{"path":"/x","buf_size":0}"#).expect_err("nothing would be sent").to_string();
        assert_eq!(why, "buf_size of task 1050 is 0, expected at least 1");
        let why = agent_task_of(7, "").expect_err("there is no such task").to_string();
        assert_eq!(why, "unknown task 7: the agent knows 1050, 1051 and 1060");
    }

    #[test]
    fn bytes_that_are_no_command_say_why() {
        for (bytes, why) in [
            (&[0x10, 1][..], "2 bytes that are no command: a task or an entry is no message"),
            (&[0x1d, 0, 0, 0, 0], "5 bytes that are no command: a task or an entry is no message"),
            (&[0x12, 9], "2 bytes that are no command: it ends inside a field"),
        ] {
            assert_eq!(Command::decode(bytes).expect_err("it is none").to_string(), why);
        }
        assert!(Command::decode(&[0x12, 2, 0x0a, 9]).is_err(), "a task that ends early");
        assert_eq!(Command::decode(&[0x38, 1, 0x45, 0, 0, 0, 0]), Ok(Command::Nothing), "unknown fields may be there");
    }

    #[test]
    fn a_task_for_a_plugin_is_passed_on_with_a_token_of_bounded_length() {
        let task =
            Task { data_type: 6, object_name: "p".into(), data: "d".into(), token: "t".repeat(MAX_TOKEN_BYTES + 1) };
        let command = grpc::Command { task: Some(task.clone()), ..grpc::Command::default() };
        let cut = Task { token: "t".repeat(MAX_TOKEN_BYTES), ..task };
        assert_eq!(Command::decode(&command.encode_to_vec()), Ok(Command::PluginTask(cut)));
    }

    #[test]
    fn what_is_wrong_with_a_tasks_data_is_told_in_part() {
        let data = format!("{{\"path\":\"/x\",\"buf_size\":\"{}\"}}", "9".repeat(2 * MAX_REPORT_CHARS));
        let why = agent_task_of(1050, &data).expect_err("a number was expected").to_string();
        assert!(why.starts_with("data of task 1050 is not as expected: invalid type: string"), "{why}");
        assert_eq!(why.chars().count(), MAX_REPORT_CHARS);
    }

    /// Why the one entry of a configuration is refused, if it is.
    fn refusal(entry: grpc::Config) -> Option<String> {
        configured(vec![entry]).refused.pop().map(|refused| refused.reason)
    }

    #[test]
    fn an_entry_is_accepted_up_to_its_limits() {
        let sized = |name: usize, version: usize, detail: usize, urls: usize| grpc::Config {
            version: "v".repeat(version),
            detail: "d".repeat(detail),
            download_urls: vec!["u".into(); urls],
            ..config(&"n".repeat(name))
        };
        let longest = [MAX_PLUGIN_NAME_BYTES, MAX_VERSION_BYTES, MAX_DETAIL_BYTES, MAX_DOWNLOAD_URLS];
        let [name, version, detail, urls] = longest;
        assert_eq!(refusal(sized(name, version, detail, urls)), None);
        assert_eq!(refusal(sized(1, 0, 0, 0)), None);
        let why = |entry| refusal(entry).expect("it is too long");
        assert!(why(sized(name + 1, 1, 1, 1)).ends_with(&format!("a name of {} bytes, the limit is {name}", name + 1)));
        assert!(
            why(sized(1, version + 1, 1, 1))
                .ends_with(&format!("version of {} bytes, the limit is {version}", version + 1))
        );
        assert!(
            why(sized(1, 1, detail + 1, 1))
                .ends_with(&format!("detail of {} bytes, the limit is {detail}", detail + 1))
        );
        assert!(why(sized(1, 1, 1, urls + 1)).ends_with("it has 17 download addresses, the limit is 16"));
    }

    #[test]
    fn what_no_environment_or_path_can_hold_is_refused() {
        let why = refusal(grpc::Config { detail: "a\0b".into(), ..config("x") });
        assert!(why.is_some_and(|why| why.contains("detail has a zero byte")));
        for name in ["a.b", "a/b", "a b", "\u{e9}"] {
            let why = refusal(config(name)).expect("it is no name");
            assert!(why.ends_with("a name has only letters, digits, _ and -"), "{why}");
        }
        assert_eq!(refusal(config("aZ_0-9")), None);
    }

    #[test]
    fn what_is_quoted_of_a_bad_name_is_short() {
        let why = refusal(config(&"n".repeat(500))).expect("it is too long");
        assert!(why.starts_with(&format!("plugin \"{}\": ", "n".repeat(80))), "{why}");
    }

    #[test]
    fn a_plugin_on_the_disk_can_be_named_by_its_executable_alone() {
        let on_disk = grpc::Config { sha256: String::new(), signature: HASH.into(), ..config("x") };
        let got = configured(vec![on_disk]);
        assert_eq!(got.plugins[0].download_sha256.to_string(), HASH);
        let neither = refusal(grpc::Config { sha256: String::new(), ..config("x") }).expect("it has no hash");
        assert!(neither.contains("signature \"\" is not 64 hexadecimal digits"), "{neither}");
        let wrong = refusal(grpc::Config { signature: "xyz".into(), ..config("x") }).expect("it is none");
        assert!(wrong.contains("signature \"xyz\" is not 64 hexadecimal digits"), "{wrong}");
        let wrong = refusal(grpc::Config { sha256: "xyz".into(), ..config("x") }).expect("it is none");
        assert!(wrong.contains("sha256 \"xyz\" is not 64 hexadecimal digits"), "{wrong}");
    }

    #[test]
    fn an_update_of_the_agent_may_be_signed() {
        let vouched = BASE64.encode([9; 64]);
        let entry =
            |signature: String| grpc::Config { signature, download_urls: vec!["u".into()], ..config(AGENT_NAME) };
        let package = |signature| configured(vec![entry(signature)]).agent.expect("it is there").package;
        let signed = package(format!("{HASH}:{vouched}:5")).expect("it is sound");
        let signature = Signature { bytes: Box::new([9; 64]), signed_s: 5, has_open_detail: false };
        assert_eq!(signed.signature.as_ref(), Some(&signature));
        let detail = Sha256([0x33; 32]);
        let lines = format!("elklet signature 1\nagent\n{AGENT_NAME}\n1\n{HASH}\n{HASH}\n5\n{detail}\n");
        assert_eq!(signed.statement().signed_text(&signature, &detail), Some(lines));
        assert_eq!((signed.statement().detail, &*signed.urls), ("", &["u".to_owned()][..]));
        assert_eq!(package(String::new()).map(|package| package.signature), Ok(None));
        let why = package(format!("{HASH}:x")).expect_err("it is no signature").to_string();
        assert_eq!(why, "agent update: signature \"x\" is not the Base64 of 64 bytes, a colon and seconds since 1970");
    }

    #[test]
    fn an_entry_of_the_agent_that_cannot_be_read_is_refused_as_its() {
        let got = configured(vec![grpc::Config { version: "v".repeat(MAX_VERSION_BYTES + 1), ..config(AGENT_NAME) }]);
        assert_eq!((got.agent, got.refused[0].name.clone()), (None, None));
        assert!(got.refused[0].reason.starts_with("elkeid-agent: version of"), "{}", got.refused[0].reason);
        let twice = configured(vec![config(AGENT_NAME), config(AGENT_NAME)]);
        assert_eq!(twice.refused[0].reason, "elkeid-agent: configured twice, the first counts");
        let plugins = configured(vec![config("x"), config("x")]);
        assert_eq!(plugins.refused[0].reason, "plugin \"x\": configured twice, the first counts");
    }

    #[test]
    fn digests_are_read_in_either_case() {
        let digest: Sha256 = HASH.to_uppercase().parse().expect("it is one");
        assert_eq!(digest.0[..3], [0x00, 0x11, 0x22]);
        assert_eq!((digest.0[10], digest.0[31]), (0xaa, 0xff));
        assert_eq!(digest.to_string(), HASH);
        for wrong in [&HASH[1..], &HASH.replace('a', "g"), &format!("{HASH}0"), &format!("0x{}", &HASH[2..])] {
            assert!(wrong.parse::<Sha256>().is_err(), "{wrong}");
        }
    }
}
