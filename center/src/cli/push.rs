//! `elklet-center push`: brings a plugin to hosts, and waits until they run it.

use super::client::Client;
use super::out::{note, print, tell_or, write};
use super::text::{encoded, field, printable, printable_json};
use super::{Failure, Where};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::path::Path;
use std::time::Duration;

const HELP: &str = "\
elklet-center push: bring a plugin to hosts, a few first, and wait until they run it

usage: elklet-center push FILE --name NAME --version V [OPTIONS]

FILE is a program or a tar.gz here, or the name or the SHA-256 of a file that the center has.

  --name NAME      the plugin's name: letters, digits, - and _
  --version V      the version that it says it has, another than now
  --group G        for the hosts of a group; without, for all that no group's list of plugins is for
  --canary N       so many hosts get it first; 0: all at once (1)
  --wait TIME      all get it once these have run it for so long; 0: when somebody promotes it (10m)
  --type TYPE      tar.gz, or empty for a program (what FILE is)
  --detail TEXT    what the plugin is told in its environment
  --signature S    for agents with plugins.public_key
  --detach         leave once the rollout has begun, and print its number
  --json           print the rollout at its end, as GET /api/v1/rollouts/ID has it
";

const HELP_END: &str = "
A rollout goes on without this command. Exit codes: 0 every connected host runs it, 1 it did not begin, 3 it was aborted or has failed.
";

/// How often the rollout is looked at.
const POLL: Duration = Duration::from_millis(500);

/// What a file in gzip's format begins with.
const GZIP: [u8; 2] = [0x1f, 0x8b];

const CANARY: u64 = 1;
const WAIT: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
struct Push {
    file: String,
    name: String,
    version: String,
    group: Option<String>,
    canary: u64,
    wait: Duration,
    kind: Option<String>,
    detail: String,
    signature: String,
    detach: bool,
    as_json: bool,
}

pub(super) fn help() -> String {
    format!("{HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let Some((push, at)) = parse(parser)? else {
        return print(&help());
    };
    let center = at.center()?;
    let (sha256, kind) = file(&center, &push)?;
    let plugin = json!({
        "name": push.name,
        "version": push.version,
        "type": kind,
        "detail": push.detail,
        "signature": push.signature,
        "file": sha256,
    });
    let order = json!({ "group": push.group, "plugin": plugin, "canary": push.canary, "wait_s": push.wait.as_secs() });
    let rollout = center.ask("POST", "/rollouts", &order)?;
    let Some(id) = rollout["id"].as_i64() else {
        return Err(Failure::Work("the center answered without a rollout".into()));
    };
    if push.detach {
        return tell_or(&format!("{id}\n"), &format!("rollout {id} has begun"));
    }
    let ended = watch(&center, id, rollout)?;
    if push.as_json {
        let printed = write(&format!("{}\n", printable_json(&ended.to_string())));
        outcome(&ended)?;
        return Ok(printed?);
    }
    outcome(&ended)
}

/// Returns `None` when help is wanted.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(Push, Where)>, Failure> {
    let mut push = Push { canary: CANARY, wait: WAIT, ..Push::default() };
    let mut at = Where::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("name") => push.name = parser.value()?.string()?,
            Long("version") => push.version = parser.value()?.string()?,
            Long("group") => push.group = Some(parser.value()?.string()?),
            Long("canary") => push.canary = parser.value()?.parse()?,
            Long("wait") => {
                push.wait = parser.value()?.parse_with(|text| {
                    let seconds = text.parse().map(Duration::from_secs);
                    seconds.or_else(|_| humantime::parse_duration(text))
                })?;
            }
            Long("type") => push.kind = Some(parser.value()?.string()?),
            Long("detail") => push.detail = parser.value()?.string()?,
            Long("signature") => push.signature = parser.value()?.string()?,
            Long("detach") => push.detach = true,
            Long("json") => push.as_json = true,
            Long(flag) => at.must_take(flag.to_owned(), &mut parser)?,
            Value(file) if push.file.is_empty() => push.file = file.string()?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    for (missing, what) in [(&push.file, "the file"), (&push.name, "--name"), (&push.version, "--version")]
        .map(|(text, what)| (text.is_empty(), what))
    {
        if missing {
            return Err(Failure::Words(format!("{what} is missing")));
        }
    }
    Ok(Some((push, at)))
}

/// Uploads the file if it is here, and returns its SHA-256 and what kind of plugin it is.
fn file(center: &Client, push: &Push) -> Result<(String, String), Failure> {
    let path = Path::new(&push.file);
    if !path.is_file() {
        let files = center.get("/files")?;
        let (sha256, name) = known(&files, &push.file).map_err(Failure::Words)?;
        return Ok((sha256, push.kind.clone().unwrap_or_else(|| kind_of(&name, false))));
    }
    let at = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
    let mut start = Vec::new();
    File::open(path).and_then(|file| file.take(2).read_to_end(&mut start)).map_err(at)?;
    let opened = File::open(path).map_err(at)?;
    let len = opened.metadata().map_err(at)?.len();
    let name = path.file_name().map_or_else(|| push.name.clone(), |name| name.to_string_lossy().into_owned());
    let answer = center.upload(&format!("/files?name={}", encoded(&name)), opened, len)?;
    let Some(sha256) = answer["sha256"].as_str() else {
        return Err(Failure::Work("the center took the file and did not say its SHA-256".into()));
    };
    let kind = push.kind.clone().unwrap_or_else(|| kind_of(&name, start == GZIP));
    Ok((sha256.to_owned(), kind))
}

fn kind_of(name: &str, is_gzip: bool) -> String {
    if is_gzip || name.ends_with(".tar.gz") || name.ends_with(".tgz") { "tar.gz".to_owned() } else { String::new() }
}

/// Returns the SHA-256 and the name of the file of the center that is meant: the newest of that name.
fn known(files: &Json, meant: &str) -> Result<(String, String), String> {
    let same = |file: &&Json| file["sha256"] == meant || file["name"] == meant;
    let newest = files.as_array().into_iter().flatten().filter(same).max_by_key(|file| file["uploaded_ms"].as_i64());
    let newest = newest.and_then(|file| Some((file["sha256"].as_str()?.to_owned(), file["name"].as_str()?.to_owned())));
    newest.ok_or_else(|| format!("{meant:?} is no file here, nor the name or the SHA-256 of one of the center's"))
}

/// Tells how the rollout goes on until it has ended, and returns it.
fn watch(center: &Client, id: i64, mut rollout: Json) -> Result<Json, Failure> {
    let mut told = String::new();
    let redraws = io::stderr().is_terminal();
    loop {
        let line = progress(&rollout);
        if line != told {
            if redraws {
                note(&format!("\r\u{1b}[K{line}"));
            } else {
                note(&format!("{line}\n"));
            }
            told = line;
        }
        if !["canary", "rolling"].iter().any(|state| rollout["state"] == *state) {
            if redraws {
                note("\n");
            }
            return Ok(rollout);
        }
        std::thread::sleep(POLL);
        rollout = center.get(&format!("/rollouts/{id}"))?;
    }
}

fn progress(rollout: &Json) -> String {
    let hosts = || rollout["hosts"].as_array().into_iter().flatten();
    let are = |state: &str| hosts().filter(|host| host["state"] == state).count();
    let group = rollout["group"].as_str().map_or_else(|| "everybody".to_owned(), printable);
    let wrong = match are("wrong") {
        0 => String::new(),
        wrong => format!(", {wrong} wrong"),
    };
    format!(
        "rollout {}: {} {} for {group}: {}, {} of {} hosts run it{wrong}",
        rollout["id"],
        field(&rollout["plugin"], "name"),
        field(&rollout["plugin"], "version"),
        field(rollout, "state"),
        are("running"),
        hosts().count()
    )
}

fn outcome(rollout: &Json) -> Result<(), Failure> {
    for host in rollout["hosts"].as_array().into_iter().flatten().filter(|host| host["state"] == "wrong") {
        note(&format!("  {}: {}\n", field(host, "id"), field(host, "error")));
    }
    if rollout["state"] == "done" {
        return Ok(());
    }
    let reason = match field(rollout, "reason") {
        reason if reason.is_empty() => String::new(),
        reason => format!(": {reason}"),
    };
    Err(Failure::Outcome(format!("rollout {} is {}{reason}", rollout["id"], field(rollout, "state"))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pushed_and_to_whom() {
        let parsed = |words: &[&str]| match parse(lexopt::Parser::from_args(words)) {
            Ok(Some((push, _))) => Ok(push),
            Err(Failure::Words(error)) => Err(error),
            other => panic!("{other:?}"),
        };
        let push = parsed(&["probe", "--name", "p", "--version", "1", "--group", "edge", "--wait", "5m"]).unwrap();
        assert_eq!((push.group.as_deref(), push.canary, push.wait), (Some("edge"), 1, Duration::from_secs(300)));
        assert_eq!(parsed(&["--name", "p", "--version", "1"]).unwrap_err(), "the file is missing");
        assert_eq!(parsed(&["probe", "--version", "1"]).unwrap_err(), "--name is missing");
        let wrong = parsed(&["probe", "--name", "p", "--version", "1", "--wait", "soon"]).unwrap_err();
        assert!(wrong.contains("soon"), "{wrong}");
        assert!(parsed(&["a", "b", "--name", "p", "--version", "1"]).is_err());
    }

    #[test]
    fn a_file_of_the_center_is_meant_by_its_name_or_its_hash() {
        let file = |sha256: &str, at: i64| json!({ "sha256": sha256, "name": "probe.tgz", "uploaded_ms": at });
        let files = json!([file("aa", 1), file("bb", 2)]);
        assert_eq!(known(&files, "probe.tgz"), Ok(("bb".into(), "probe.tgz".into())));
        assert_eq!(known(&files, "aa"), Ok(("aa".into(), "probe.tgz".into())));
        assert!(known(&files, "cc").unwrap_err().contains("\"cc\" is no file here"));
        assert_eq!(
            (kind_of("a.tgz", false), kind_of("a", true), kind_of("a", false)),
            ("tar.gz".into(), "tar.gz".into(), String::new())
        );
    }

    #[test]
    fn the_end_decides() {
        let rollout = |state: &str| {
            json!({
                "id": 3, "group": "edge", "plugin": { "name": "p", "version": "2" }, "state": state, "reason": "canary a: died\u{1b}",
                "hosts": [{ "id": "a", "state": "wrong", "error": "died" }, { "id": "b", "state": "running" }],
            })
        };
        assert_eq!(progress(&rollout("rolling")), "rollout 3: p 2 for edge: rolling, 1 of 2 hosts run it, 1 wrong");
        assert!(outcome(&rollout("done")).is_ok());
        let Err(Failure::Outcome(error)) = outcome(&rollout("aborted")) else { panic!("it was aborted") };
        assert_eq!(error, "rollout 3 is aborted: canary a: died\\u{1b}");
    }
}
