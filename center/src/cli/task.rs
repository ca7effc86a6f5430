//! `elklet-center task`: has agents do something once, and prints what they answer.

use super::client::Client;
use super::out::{note, print, tell_or, write};
use super::text::{encoded, field, printable, printable_json};
use super::{Failure, Where, hosts};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

const HELP: &str = "\
elklet-center task: have agents do something once, and print what they answer

usage: elklet-center task HOST WHAT [DATA] [OPTIONS]
       elklet-center task --group G WHAT [DATA] [OPTIONS]

HOST is an id, the beginning of one, or a host's name. WHAT is one of these, or PLUGIN:TYPE with the number of a plugin's task:

";

const HELP_END: &str = "
  --group G        each connected host of a group
  --wait           wait for the answers, a minute at most
  --timeout TIME   how long that is; with it, --wait need not be said
  --json           a JSON object a line, as GET /api/v1/tasks has them
";

const HELP_CODES: &str = "
Without --wait it prints each host with the token of its task. Exit codes: 0 the tasks were given and, with --wait, all have answered
that they are done; 1 they were not given; 3 some have failed or have not answered in time.
";

/// Tasks that have names: the name, the plugin, the type, and what DATA is.
const TASKS: &[(&str, &str, i32, &str)] = &[
    (
        "upload",
        "elkeid-agent",
        1050,
        "send a file: {\"path\":\"/var/log/syslog\"}; \"buf_size\" (102400) is its bytes a second",
    ),
    ("metadata", "elkeid-agent", 1051, "say where the host is: {\"idc\":\"dc-1\",\"region\":\"eu\"}"),
    ("shutdown", "elkeid-agent", 1060, "end the agent, which its service manager starts again"),
    ("processes", "collector", 5050, "collect processes"),
    ("ports", "collector", 5051, "collect ports"),
    ("users", "collector", 5052, "collect users"),
    ("cron", "collector", 5053, "collect cron jobs"),
    ("services", "collector", 5054, "collect services"),
    ("software", "collector", 5055, "collect software"),
    ("containers", "collector", 5056, "collect containers"),
    ("integrity", "collector", 5057, "check the files of packages"),
    ("volumes", "collector", 5058, "collect volumes"),
    ("interfaces", "collector", 5059, "collect network interfaces"),
    ("applications", "collector", 5060, "collect applications"),
    ("modules", "collector", 5062, "collect kernel modules"),
    ("scan-path", "scanner", 6053, "scan a path: {\"exe\":\"/usr/bin\"}"),
    ("scan-disk", "scanner", 6057, "scan the disk: {\"mode\":\"quick\"}"),
    ("baseline", "baseline", 8000, "check the baseline: its rules as JSON"),
];

/// The task whose DATA need not say how fast: agents demand it. The page says the same.
const UPLOAD: &str = "upload";
const UPLOAD_BYTES_A_SECOND: u64 = 102_400;

/// How long answers are waited for, and how often they are asked for.
const TIMEOUT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(300);

#[derive(Debug, Default)]
struct Given {
    words: Vec<String>,
    group: Option<String>,
    wait: Option<Duration>,
    as_json: bool,
}

pub(super) fn help() -> String {
    let mut help = HELP.to_owned();
    for (name, plugin, data_type, about) in TASKS {
        help += &format!("  {name:<15}{:<20} {about}\n", format!("{plugin}:{data_type}"));
    }
    help + HELP_END + Where::HELP + HELP_CODES
}

pub(super) fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let Some((given, at)) = parse(parser)? else {
        return print(&help());
    };
    let mut words = given.words.iter().map(String::as_str);
    let host = if given.group.is_none() { words.next() } else { None };
    let expected = || Failure::Words("expected HOST WHAT [DATA], or --group G WHAT [DATA]".to_owned());
    let word = words.next().ok_or_else(expected)?;
    let (plugin, data_type) = what(word).map_err(Failure::Words)?;
    let data = data(word, words.next().unwrap_or("{}"));
    if words.next().is_some() {
        return Err(expected());
    }
    let center = at.center()?;
    let mut order = json!({ "task": { "data_type": data_type, "name": plugin, "data": data } });
    let mut tokens = BTreeMap::new();
    match (host, &given.group) {
        (Some(host), _) => {
            let id = hosts::must_find(&center, host)?;
            order["agent_id"] = json!(id);
            let answer = center.ask("POST", "/tasks", &order)?;
            tokens.insert(id, answer["token"].as_str().unwrap_or_default().to_owned());
        }
        (None, group) => {
            order["group"] = json!(group);
            let answer = center.ask("POST", "/tasks", &order)?;
            for (id, token) in answer["tokens"].as_object().into_iter().flatten() {
                tokens.insert(id.clone(), token.as_str().unwrap_or_default().to_owned());
            }
        }
    }
    match given.wait {
        None => {
            let lines: String =
                tokens.iter().map(|(id, token)| format!("{} {}\n", printable(id), printable(token))).collect();
            tell_or(&lines, &format!("{} tasks were given", tokens.len()))
        }
        Some(timeout) => wait(&center, tokens, timeout, given.as_json),
    }
}

/// Returns `None` when help is wanted.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(Given, Where)>, Failure> {
    let (mut given, mut at) = (Given::default(), Where::default());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("group") => given.group = Some(parser.value()?.string()?),
            Long("wait") => given.wait = given.wait.or(Some(TIMEOUT)),
            Long("timeout") => given.wait = Some(parser.value()?.parse_with(humantime::parse_duration)?),
            Long("json") => given.as_json = true,
            Long(flag) => at.must_take(flag.to_owned(), &mut parser)?,
            Value(word) => given.words.push(word.string()?),
            Short(_) => return Err(argument.unexpected().into()),
        }
    }
    Ok(Some((given, at)))
}

/// Returns the plugin and the type of a task.
fn what(word: &str) -> Result<(String, i32), String> {
    if let Some((_, plugin, data_type, _)) = TASKS.iter().find(|(name, ..)| *name == word) {
        return Ok(((*plugin).to_owned(), *data_type));
    }
    let pair = word.rsplit_once(':').and_then(|(plugin, data_type)| Some((plugin, data_type.parse().ok()?)));
    match pair.filter(|(plugin, _)| !plugin.is_empty()) {
        Some((plugin, data_type)) => Ok((plugin.to_owned(), data_type)),
        None => {
            let names: Vec<&str> = TASKS.iter().map(|(name, ..)| *name).collect();
            Err(format!("task {word:?}, expected PLUGIN:TYPE or one of {}", names.join(", ")))
        }
    }
}

/// Returns what an agent is told with a task: what was given, and for an upload how fast it is, if that was not.
fn data(word: &str, given: &str) -> String {
    match serde_json::from_str(given) {
        Ok(Json::Object(mut fields)) if word == UPLOAD && !fields.contains_key("buf_size") => {
            fields.insert("buf_size".to_owned(), json!(UPLOAD_BYTES_A_SECOND));
            Json::Object(fields).to_string()
        }
        // The agent says what is wrong with it.
        _ => given.to_owned(),
    }
}

/// Prints what comes back for each task, as it comes.
fn wait(center: &Client, mut left: BTreeMap<String, String>, timeout: Duration, as_json: bool) -> Result<(), Failure> {
    let deadline = Instant::now() + timeout;
    let (all, mut done) = (left.len(), 0);
    while !left.is_empty() {
        let mut ended = Vec::new();
        for (id, token) in &left {
            let page = center.get(&format!("/tasks?token={}&agent_id={}", encoded(token), encoded(id)))?;
            let task = &page["tasks"][0];
            if let Some(is_done) = verdict(task) {
                done += usize::from(is_done);
                ended.push(id.clone());
                write(&if as_json { format!("{}\n", printable_json(&task.to_string())) } else { told(task) })?;
            }
        }
        ended.iter().for_each(|id| _ = left.remove(id));
        if left.is_empty() || Instant::now() >= deadline {
            break;
        }
        std::thread::sleep(POLL);
    }
    for id in left.keys() {
        note(&format!("elklet-center: {} has not answered for {} s\n", printable(id), timeout.as_secs()));
    }
    if done == all { Ok(()) } else { Err(Failure::Outcome(format!("{done} of {all} hosts have done it"))) }
}

/// Returns whether a task was done, once that is known.
fn verdict(task: &Json) -> Option<bool> {
    match task["state"].as_str() {
        Some("failed") => Some(false),
        Some("answered") => {
            let answers = task["answers"].as_array().into_iter().flatten();
            Some(!answers.into_iter().any(|answer| answer["status"] == "failed"))
        }
        _ => None,
    }
}

fn told(task: &Json) -> String {
    let id = field(task, "agent_id");
    let mut text = String::new();
    for answer in task["answers"].as_array().into_iter().flatten() {
        let fields = answer.as_object().into_iter().flatten().filter(|(name, _)| *name != "token");
        let fields: Vec<String> =
            fields.map(|(name, _)| format!("{}={}", printable(name), field(answer, name))).collect();
        text += &format!("{id} {}\n", fields.join(" "));
    }
    if let Some(error) = task["error"].as_str() {
        text += &format!("{id} failed: {}\n", printable(error));
    }
    if task["upload"].is_object() {
        text += &format!(
            "{id} upload {}: {} bytes of {}\n",
            task["upload"]["id"],
            task["upload"]["len"],
            field(&task["upload"], "path")
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_has_a_name_or_a_plugin_and_a_type() {
        assert_eq!(what("upload"), Ok(("elkeid-agent".into(), 1050)));
        assert_eq!(what("probe:7"), Ok(("probe".into(), 7)));
        for word in ["dance", ":7", "probe:", "7"] {
            assert!(what(word).unwrap_err().contains("expected PLUGIN:TYPE or one of upload"), "{word}");
        }
    }

    #[test]
    fn an_upload_need_not_say_how_fast_it_is() {
        let fields = |text: &str| serde_json::from_str::<Json>(&data("upload", text)).unwrap();
        assert_eq!(fields("{\"path\":\"/x\"}"), json!({ "path": "/x", "buf_size": 102_400 }));
        assert_eq!(fields("{\"path\":\"/x\",\"buf_size\":0}"), json!({ "path": "/x", "buf_size": 0 }));
        assert_eq!((data("upload", "/x"), data("upload", "[1]")), ("/x".to_owned(), "[1]".to_owned()));
        assert_eq!(data("probe:7", "{\"path\": 1}"), "{\"path\": 1}");
    }

    #[test]
    fn a_task_is_done_when_it_says_so() {
        let task = |state: &str, status: &str| json!({ "state": state, "answers": [{ "status": status }] });
        assert_eq!(verdict(&task("sent", "")), None);
        assert_eq!(verdict(&task("answered", "succeed")), Some(true));
        assert_eq!(verdict(&task("answered", "failed")), Some(false));
        assert_eq!(verdict(&task("failed", "")), Some(false));
    }

    #[test]
    fn answers_are_lines_that_steer_nothing() {
        let task = json!({
            "agent_id": "a", "error": null, "upload": null,
            "answers": [{ "token": "t", "status": "succeed", "msg": "\u{1b}[2J" }],
        });
        assert_eq!(told(&task), "a msg=\\u{1b}[2J status=succeed\n");
    }
}
