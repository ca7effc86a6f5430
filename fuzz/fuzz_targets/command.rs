//! What a server sends, from bytes to orders: whatever decodes as commands leads the dispatch to orders that make sense
//! (one process a plugin, nothing started that was not prepared, names that are safe in a path, every task answered once
//! and within bounds), and when all goes well the newest configuration is what runs. An entry that is well-formed is not
//! refused, and a hash reads back.
#![no_main]

use arbitrary::Arbitrary;
use elklet_core::command::{AGENT_NAME, Command, Sha256};
use elklet_core::limits::{MAX_DETAIL_BYTES, MAX_DOWNLOAD_URLS, MAX_PLUGINS, MAX_TOKEN_BYTES, MAX_VERSION_BYTES};
use elklet_fuzz::heap;
use elklet_fuzz::shell::Shell;
use elklet_proto::grpc;
use libfuzzer_sys::fuzz_target;
use prost::Message;

/// Bytes that decoding holds at most: what is copied of the message and quoted from it, and the entries that it may have.
fn most_held(message: usize) -> usize {
    (128 << 10) + 8 * message
}

#[derive(Arbitrary, Debug)]
struct Step<'a> {
    message: Wire<'a>,
    /// What the shell does before the next message: ends preparations and processes, or lets time pass.
    then: [Then; 2],
}

#[derive(Arbitrary, Debug)]
enum Then {
    Nothing,
    Prepared(u8, bool),
    Exited(u8),
    Wait(u16),
}

#[derive(Arbitrary, Debug)]
enum Wire<'a> {
    Bytes(&'a [u8]),
    Task { object: Name<'a>, data_type: DataType, data: Data<'a>, token: Text<'a> },
    Configs { configs: Vec<Config<'a>>, task: bool },
}

#[derive(Arbitrary, Debug)]
enum DataType {
    Upload,
    Metadata,
    Shutdown,
    Other(i32),
}

#[derive(Arbitrary, Debug)]
enum Data<'a> {
    Text(Text<'a>),
    Upload { path: &'a str, buf_size: u64 },
    Metadata { idc: Option<u8>, region: Option<u8> },
}

#[derive(Arbitrary, Debug)]
enum Name<'a> {
    Agent,
    Plain(u8),
    Text(&'a str),
}

#[derive(Arbitrary, Debug)]
enum Hash<'a> {
    Good(u8),
    None,
    Text(&'a str),
}

/// A text that may be longer than any limit.
#[derive(Arbitrary, Debug)]
struct Text<'a> {
    text: &'a str,
    times: u16,
}

#[derive(Arbitrary, Debug)]
struct Config<'a> {
    name: Name<'a>,
    packed: bool,
    version: Text<'a>,
    sha256: Hash<'a>,
    signature: Hash<'a>,
    urls: u8,
    detail: Text<'a>,
}

fuzz_target!(|steps: Vec<Step<'_>>| {
    let mut shell = Shell::default();
    for Step { message, then } in steps {
        let bytes = encode(&message);
        let (decoded, peak) = heap::peak(|| Command::decode(&bytes));
        assert!(peak <= most_held(bytes.len()), "{peak} bytes were held for {}", bytes.len());
        if let Ok(command) = decoded {
            check(&command, &message);
            shell.command(command);
            shell.obey();
        }
        for then in then {
            match then {
                Then::Nothing => {}
                Then::Prepared(which, well) => drop(shell.end_preparation(which, well)),
                Then::Exited(which) => drop(shell.end_process(which)),
                Then::Wait(ms) => shell.wait(u64::from(ms)),
            }
            shell.obey();
        }
    }
    shell.settle();
});

fn check(command: &Command, message: &Wire<'_>) {
    match command {
        Command::Nothing => {}
        Command::PluginTask(task) => {
            assert_ne!(task.object_name, AGENT_NAME);
            assert!(task.token.len() <= MAX_TOKEN_BYTES);
        }
        Command::AgentTask(task) => assert!(task.token().len() <= MAX_TOKEN_BYTES),
        Command::RefusedTask(task) => assert!(task.token.len() <= MAX_TOKEN_BYTES),
        Command::Configuration(configuration) => {
            let names: Vec<_> = configuration.plugins.iter().map(|plugin| &plugin.name).collect();
            assert!(names.len() <= MAX_PLUGINS);
            assert!((1..names.len()).all(|i| !names[..i].contains(&names[i])), "each name once");
            for plugin in &configuration.plugins {
                assert!(plugin.version.len() <= MAX_VERSION_BYTES && plugin.urls.len() <= MAX_DOWNLOAD_URLS);
                assert!(plugin.detail.len() <= MAX_DETAIL_BYTES, "it fits an environment variable");
                assert!(!plugin.detail.contains('\0'), "it can be an environment variable");
                let Sha256(digest) = plugin.executable_sha256;
                let hex = plugin.executable_sha256.to_string();
                assert_eq!((hex.len(), hex.parse()), (64, Ok(Sha256(digest))));
            }
            if let Wire::Configs { configs, .. } = message
                && configs.len() <= MAX_PLUGINS
            {
                for config in configs.iter().filter(|config| is_plain(config)) {
                    let Name::Plain(number) = config.name else { continue };
                    assert!(names.iter().any(|name| name.as_str() == plain_name(number)), "{config:?} is refused");
                }
            }
        }
    }
}

/// Whether there is nothing about an entry that could be refused.
fn is_plain(config: &Config<'_>) -> bool {
    matches!(
        (&config.sha256, &config.signature),
        (Hash::Good(_), Hash::Good(_) | Hash::None) | (Hash::None, Hash::Good(_))
    ) && config.version.string().len() <= MAX_VERSION_BYTES
        && usize::from(config.urls) <= MAX_DOWNLOAD_URLS
        && config.detail.string().len() <= MAX_DETAIL_BYTES
        && !config.detail.text.contains('\0')
}

fn encode(message: &Wire<'_>) -> Vec<u8> {
    let mut command = grpc::Command::default();
    match message {
        Wire::Bytes(bytes) => return bytes.to_vec(),
        Wire::Task { object, data_type, data, token } => {
            command.task = Some(grpc::Task {
                data_type: match data_type {
                    DataType::Upload => 1050,
                    DataType::Metadata => 1051,
                    DataType::Shutdown => 1060,
                    DataType::Other(number) => *number,
                },
                object_name: object.text(),
                data: match data {
                    Data::Text(text) => text.string(),
                    Data::Upload { path, buf_size } => format!(r#"{{"path":{path:?},"buf_size":{buf_size}}}"#),
                    Data::Metadata { idc, region } => {
                        let json = |part: &Option<u8>| part.map_or("null".to_owned(), |part| format!("\"{part}\""));
                        format!(r#"{{"idc":{},"region":{}}}"#, json(idc), json(region))
                    }
                },
                token: token.string(),
            });
        }
        Wire::Configs { configs, task } => {
            command.task = task.then(grpc::Task::default);
            command.configs = configs.iter().map(Config::wire).collect();
        }
    }
    command.encode_to_vec()
}

impl Name<'_> {
    fn text(&self) -> String {
        match self {
            Self::Agent => AGENT_NAME.to_owned(),
            Self::Plain(number) => plain_name(*number),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

fn plain_name(number: u8) -> String {
    format!("plugin_{}", number % 100)
}

impl Hash<'_> {
    fn text(&self) -> String {
        match self {
            Self::Good(byte) => format!("{byte:02x}").repeat(32),
            Self::None => String::new(),
            Self::Text(text) => (*text).to_owned(),
        }
    }
}

impl Text<'_> {
    fn string(&self) -> String {
        let most = (MAX_DETAIL_BYTES + 2).div_ceil(self.text.len().max(1));
        self.text.repeat(usize::from(self.times).min(most))
    }
}

impl Config<'_> {
    fn wire(&self) -> grpc::Config {
        grpc::Config {
            name: self.name.text(),
            r#type: if self.packed { "tar.gz" } else { "" }.to_owned(),
            version: self.version.string(),
            sha256: self.sha256.text(),
            signature: self.signature.text(),
            download_urls: vec![String::new(); usize::from(self.urls)],
            detail: self.detail.string(),
        }
    }
}
