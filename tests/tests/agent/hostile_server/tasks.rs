//! Tasks, for plugins and for the agent, and commands that are too long.

use std::fs;

use elklet_proto::grpc::{Command, Config, Task};
use elklet_tests::files::How;

use super::Attempt;
use super::stage::Stage;
use crate::downloads::{plain, program};

pub(super) const ATTEMPTS: &[Attempt] = &[
    ("give-task", |stage| {
        // Two plugins that the key's owner has signed and the host names. The host lets only one of them have tasks.
        let entries = ["baseline", "collector"].map(|name| {
            let url = stage.files.serve(name, program(), How::Right);
            let entry = plain(name, &program(), &[url], &format!("run={name} n=1"));
            stage.signed(entry)
        });
        let runs = |stage: &Stage| ["baseline", "collector"].iter().all(|run| stage.has_run(run));
        assert!(stage.configure(&entries, "cannot be started", runs), "{}", stage.agent.log());
        task(stage, "baseline", "give-task", "")
    }),
    ("give-other-task", |stage| task(stage, "collector", "give-other-task", "")),
    ("long-command", |stage| task(stage, "baseline", "long-command", &"x".repeat(10 << 20))),
    ("many-tasks", |stage| {
        // Of 60 tasks a minute, there may be twice as many in one that lies across two that are counted.
        const MOST: usize = 120;
        const TASKS: usize = 150;
        let commands = (0..TASKS).map(|i| command("baseline", &format!("many-{i}"), ""));
        let sent: Vec<_> = commands.map(|command| stage.site.center().command(stage.agent.id(), command)).collect();
        sent.into_iter().for_each(|sent| sent.wait().unwrap());
        let count = |has: fn(&Stage, &str) -> bool| {
            move |stage: &Stage| (0..TASKS).filter(|i| has(stage, &format!("many-{i}"))).count()
        };
        let (taken, failed) = (count(Stage::has_taken), count(Stage::has_failed));
        stage.decide("all tasks", |stage| taken(stage) > MOST, |stage| failed(stage) >= TASKS - MOST)
    }),
    ("set-place", |stage| {
        let file = stage.agent.workdir().path().join("specified_env");
        stage.agent_task(1051, r#"{"idc": "elsewhere"}"#, "set-place", |_| {
            fs::read_to_string(&file).is_ok_and(|text| text.contains("elsewhere"))
        })
    }),
    ("set-line", |stage| {
        let file = stage.agent.workdir().path().join("specified_env");
        stage.agent_task(1051, r#"{"idc": "x\nspecified_agent_id = forged"}"#, "set-line", |_| {
            fs::read_to_string(&file).is_ok_and(|text| text.contains("forged"))
        })
    }),
    ("write-on-terminals", |stage| {
        let object = "\u{1b}]0;title\u{7}\r\n2026-11-27 forged line\u{202e}";
        stage.site.task(&stage.agent, object, 1, object, &format!("token {object}"));
        let entry = Config { name: object.into(), version: object.into(), detail: object.into(), ..Config::default() };
        stage.configure(&[entry], "forged line", |_| false);
        stage.agent.wait_for_log("(token ");
        let written = stage.written();
        let is_odd = |c: char| c != '\n' && elklet_core::printable::is_unprintable(c);
        written.contains(is_odd) || written.lines().any(|line| line.starts_with("2026-11-27 forged"))
    }),
    ("end-agent", |stage| {
        stage.site.task(&stage.agent, "elkeid-agent", 1060, "", "end-agent");
        let mut has_ended = false;
        elklet_tests::harness::wait_until("outcome of end-agent", || {
            has_ended = !stage.agent.is_running();
            has_ended || stage.has_failed("end-agent")
        });
        stage.is_alive = !has_ended;
        has_ended
    }),
];

fn command(plugin: &str, token: &str, data: &str) -> Command {
    let task = Task { data_type: 1, object_name: plugin.into(), data: data.into(), token: token.into() };
    Command { task: Some(task), ..Command::default() }
}

/// Returns true if the plugin gets the task.
fn task(stage: &Stage, plugin: &str, token: &str, data: &str) -> bool {
    stage.site.command(&stage.agent, command(plugin, token, data));
    stage.decide(token, |stage| stage.has_taken(token), |stage| stage.has_failed(token))
}
