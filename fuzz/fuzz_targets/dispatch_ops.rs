//! Sequences of events on the dispatch, under a clock of their own: configurations, tasks, preparations and starts that
//! fail, processes that die, results that come too late, orders that are carried out late, an owner who changes what is allowed, a
//! shutdown. No order ever makes no sense, nothing runs that is not allowed, and in the end, with everything succeeding, what is allowed
//! of the newest configuration is what runs.
#![no_main]

use std::collections::BTreeMap;

use arbitrary::Arbitrary;
use elklet_core::command::{
    AgentConfig, AgentEntry, AgentTask, AllowedTask, BadTask, Command, Configuration, Packing, PluginConfig,
    PluginName, Policy, RefusedConfig, RefusedTask, SetMetadata, Sha256,
};
use elklet_fuzz::shell::Shell;
use elklet_proto::grpc::Task;
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Event {
    Configure { plugins: Vec<(Name, Version)>, refused: Vec<Name>, agent: Option<Version> },
    PluginTask { name: Name, token: u8 },
    AgentTask { token: u8, known: bool },
    Prepared { which: u8 },
    NotPrepared { which: u8 },
    BreakNextSpawn,
    Exited { which: u8 },
    Wait { ms: u32 },
    TooLate { which: u8, well: bool },
    Allow { plugins: Option<Vec<Name>>, only: Option<Version>, tasks: Option<Vec<Name>>, per_minute: u8 },
    ShutDown,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Name {
    A,
    B,
    C,
    D,
}

#[derive(Arbitrary, Debug, Clone, Copy)]
enum Version {
    One,
    Two,
    TwoDetailed,
}

fuzz_target!(|events: Vec<(Event, bool)>| {
    let mut shell = Shell::default();
    for (event, obeys) in events {
        match event {
            Event::Configure { plugins, refused, agent } => shell.command(configuration(&plugins, &refused, agent)),
            Event::PluginTask { name, token } => shell.command(Command::PluginTask(Task {
                data_type: 1,
                object_name: name.plugin().to_string(),
                data: String::new(),
                token: token.to_string(),
            })),
            Event::AgentTask { token, known } => {
                let token = token.to_string();
                shell.command(if known {
                    Command::AgentTask(AgentTask::SetMetadata(SetMetadata { token, idc: None, region: None }))
                } else {
                    Command::RefusedTask(RefusedTask { token, reason: BadTask::Unknown(4242) })
                });
            }
            Event::Prepared { which } => drop(shell.end_preparation(which, true)),
            Event::NotPrepared { which } => drop(shell.end_preparation(which, false)),
            Event::BreakNextSpawn => shell.break_next_spawn(),
            Event::Exited { which } => drop(shell.end_process(which)),
            Event::Wait { ms } => shell.wait(u64::from(ms % 400_000)),
            Event::TooLate { which, well } => shell.end_forgotten(which, well),
            Event::Allow { plugins, only, tasks, per_minute } => shell.allow(Policy {
                plugins: plugins.map(|names| names.into_iter().map(Name::plugin).collect()),
                executables: only.map(|version| vec![Sha256([version.number(); 32])]),
                tasks: tasks.map(|names| {
                    let task = |name: Name| AllowedTask { object_name: name.plugin().to_string(), data_type: None };
                    names.into_iter().map(task).collect()
                }),
                tasks_per_minute: per_minute.into(),
            }),
            Event::ShutDown => shell.shut_down(),
        }
        if obeys {
            shell.obey();
        }
    }
    shell.settle();
});

fn configuration(plugins: &[(Name, Version)], refused: &[Name], agent: Option<Version>) -> Command {
    // Parsing has made each name come once, as here.
    let plugins: BTreeMap<_, _> = plugins.iter().map(|&(name, version)| (name.plugin(), version)).collect();
    Command::Configuration(Configuration {
        agent: agent.map(|version| AgentEntry {
            version: version.number().to_string(),
            package: Ok(AgentConfig {
                version: version.number().to_string(),
                sha256: Sha256([0; 32]),
                signature: None,
                urls: Vec::new(),
            }),
        }),
        plugins: plugins
            .into_iter()
            .map(|(name, version)| PluginConfig {
                name,
                version: version.number().to_string(),
                packing: Packing::Plain,
                download_sha256: Sha256([version.number(); 32]),
                executable_sha256: Sha256([version.number(); 32]),
                signature: None,
                urls: Vec::new(),
                detail: if matches!(version, Version::TwoDetailed) { "detail" } else { "" }.to_owned(),
            })
            .collect(),
        refused: refused
            .iter()
            .map(|name| RefusedConfig { name: Some(name.plugin()), reason: "not today".to_owned() })
            .collect(),
    })
}

impl Name {
    fn plugin(self) -> PluginName {
        let name = match self {
            Self::A => "a",
            Self::B => "b",
            Self::C => "c",
            Self::D => "d",
        };
        name.parse().expect("a letter is a name")
    }
}

impl Version {
    fn number(self) -> u8 {
        match self {
            Self::One => 1,
            Self::Two | Self::TwoDetailed => 2,
        }
    }
}
