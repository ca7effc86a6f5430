//! `elklet-center token`: what lets hosts in. `elklet-center revoke`: what keeps them out.

use super::client::Client;
use super::out::{print, tell, tell_or};
use super::text::{encoded, printable};
use super::{Failure, Where, hosts};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;
use std::time::{Duration, UNIX_EPOCH};

const HELP: &str = "\
elklet-center token: let hosts in that have no certificate yet

usage: elklet-center token [--uses N] [--ttl TIME] [--group NAME] [OPTIONS]
       elklet-center token list [OPTIONS]
       elklet-center token revoke NUMBER [OPTIONS]

Prints the line to run on the host, which has the token. It is shown only this once.

  --uses N         how many hosts it lets in (1)
  --ttl TIME       for how long, as in 30m or 7d, at most 30 days (1h)
  --group NAME     the group that these hosts come into
";

const REVOKE_HELP: &str = "\
elklet-center revoke: revoke the certificates of an agent

usage: elklet-center revoke HOST [OPTIONS]

HOST is the id of an agent, the beginning of one, or a host's name. An agent that has not connected yet is known by its certificate. The
agent's stream ends at once, and the center refuses it until it is enrolled with another token.

";

const HELP_END: &str = "
The center has to run.
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    New { uses: Option<u32>, ttl: Option<Duration>, group: Option<String> },
    List,
    Revoke(i64),
}

pub(super) fn help() -> String {
    format!("{HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn revoke_help() -> String {
    format!("{REVOKE_HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let Some((command, at)) = parse(parser)? else {
        return print(&help());
    };
    let center = at.center()?;
    match command {
        Command::New { uses, ttl, group } => {
            let wanted = json!({ "uses": uses, "ttl_s": ttl.map(|ttl| ttl.as_secs()), "group": group });
            let made = center.ask("POST", "/tokens", &wanted)?;
            let line = made["command"].as_str();
            let line = line.ok_or_else(|| Failure::Work("the center answered without a command".into()))?;
            let id = &made["id"];
            let unseen =
                format!("token {id} was made, and nobody has seen it; elklet-center token revoke {id} ends it");
            tell_or(&format!("{line}\n"), &unseen)
        }
        Command::List => {
            let tokens = center.ask("GET", "/tokens", &Json::Null)?;
            tokens.as_array().into_iter().flatten().try_for_each(|token| print(&format!("{}\n", line(token))))
        }
        Command::Revoke(id) => {
            center.ask("DELETE", &format!("/tokens/{id}"), &Json::Null)?;
            tell(&format!("token {id} lets no host in any more"))
        }
    }
}

/// `elklet-center revoke`.
pub(super) fn revoke(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut at, mut agent) = (Where::default(), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                return print(&revoke_help());
            }
            Long(flag) => {
                let flag = flag.to_owned();
                if !at.take(&flag, &mut parser)? {
                    return Err(Failure::Words(format!("there is no flag --{flag}")));
                }
            }
            Value(id) if agent.is_none() => agent = Some(id.string()?),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let meant = agent.ok_or_else(|| Failure::Words("the agent's id or the host's name is missing".to_owned()))?;
    let center = at.center()?;
    let agent = find(&center, &meant)?;
    let answer = center.ask("POST", &format!("/certificates/{}/revoke", encoded(&agent)), &Json::Null)?;
    let count = answer["revoked"].as_array().map_or(0, Vec::len);
    let agent = printable(&agent);
    tell(&format!("agent {agent} is kept out, certificates revoked: {count}"))
}

/// Certificates that are asked for at a time.
const PAGE: usize = 1_000;

/// Finds the agent whose certificates somebody means, by its id, the beginning of one, or its host's name. Whoever has a certificate need
/// not have been here yet, and may be forgotten.
///
/// # Errors
/// There is none, there are several, or the center cannot be asked.
fn find(center: &Client, meant: &str) -> Result<String, Failure> {
    let hosts = hosts::all(center, &format!("&q={}", encoded(meant)))?;
    let hosts = hosts::by_id_and_name(&hosts);
    let of_this_id = center.get(&format!("/certificates?limit=1&agent_id={}", encoded(meant)))?;
    if hosts.iter().any(|host| host.0 == meant) || of_this_id["certificates"][0].is_object() {
        return Ok(meant.to_owned());
    }
    let (mut certified, mut before) = (BTreeSet::new(), String::new());
    loop {
        let page = center.get(&format!("/certificates?limit={PAGE}{before}"))?;
        let page = page["certificates"].as_array().map(Vec::as_slice).unwrap_or_default();
        let good = page.iter().filter(|certificate| certificate["revoked_ms"].is_null());
        certified.extend(good.filter_map(|certificate| certificate["agent_id"].as_str().map(str::to_owned)));
        match page.last() {
            Some(last) if page.len() == PAGE => before = format!("&before={}", last["id"]),
            _ => break,
        }
    }
    choose(&hosts, &certified, meant).map_err(Failure::Words)
}

/// Returns the one agent that is meant among hosts by id and name and those that have certificates.
fn choose(hosts: &[(&str, &str)], certified: &BTreeSet<String>, meant: &str) -> Result<String, String> {
    let certified = certified.iter().map(String::as_str).filter(|id| !meant.is_empty() && id.starts_with(meant));
    let found: BTreeSet<&str> = hosts::may_be_meant(hosts, meant).into_iter().chain(certified).collect();
    let mut ids = found.iter();
    match (ids.next(), ids.next()) {
        (Some(id), None) => Ok((*id).to_owned()),
        (None, _) => Err(format!(
            "no host or certificate of {meant:?} is known, expected an id, the beginning of one, or a host's name"
        )),
        _ => {
            let ids: Vec<String> = found.iter().take(5).map(|id| printable(id)).collect();
            Err(format!("{meant:?} is {} agents ({}); say more of the id", found.len(), ids.join(", ")))
        }
    }
}

/// Returns `None` when help is wanted.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(Command, Where)>, Failure> {
    let (mut at, mut words) = (Where::default(), Vec::new());
    let (mut uses, mut ttl, mut group) = (None, None, None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("uses") => uses = Some(parser.value()?.parse()?),
            Long("ttl") => ttl = Some(parser.value()?.parse_with(humantime::parse_duration)?),
            Long("group") => group = Some(parser.value()?.string()?),
            Long(flag) => {
                let flag = flag.to_owned();
                if !at.take(&flag, &mut parser)? {
                    return Err(Failure::Words(format!("there is no flag --{flag}")));
                }
            }
            Value(word) => words.push(word.string()?),
            Short(_) => return Err(argument.unexpected().into()),
        }
    }
    let is_plain = uses.is_none() && ttl.is_none() && group.is_none();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match words[..] {
        [] => Command::New { uses, ttl, group },
        ["list"] if is_plain => Command::List,
        ["revoke", id] if is_plain => {
            Command::Revoke(id.parse().map_err(|_| Failure::Words(format!("{id:?} is no number of a token")))?)
        }
        _ => return Err(Failure::Words(format!("token {:?}, expected nothing, list or revoke", words.join(" ")))),
    };
    Ok(Some((command, at)))
}

fn line(token: &Json) -> String {
    let text = |name: &str| token[name].as_str().unwrap_or_default().to_owned();
    let end = Duration::from_millis(token["expires_ms"].as_u64().unwrap_or_default());
    let state = if token["usable"] == true { "" } else { "  lets no host in any more" };
    let group = token["group"].as_str().map(|group| format!("  group {group}")).unwrap_or_default();
    format!(
        "{:<6} {} of {} uses  until {}  by {}{group}{state}",
        token["id"].to_string(),
        token["used"],
        token["uses"],
        humantime::format_rfc3339_seconds(UNIX_EPOCH + end),
        text("created_by"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Command>, String> {
        match parse(lexopt::Parser::from_args(words)) {
            Ok(parsed) => Ok(parsed.map(|(command, _)| command)),
            Err(Failure::Words(error)) => Err(error),
            Err(other) => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_say_what_is_to_be_done() {
        assert_eq!(parsed(&[]), Ok(Some(Command::New { uses: None, ttl: None, group: None })));
        let all = Command::New { uses: Some(3), ttl: Some(Duration::from_secs(5400)), group: Some("edge".to_owned()) };
        assert_eq!(parsed(&["--uses", "3", "--ttl", "1h 30m", "--group", "edge"]), Ok(Some(all)));
        assert_eq!(parsed(&["list"]), Ok(Some(Command::List)));
        assert_eq!(parsed(&["revoke", "7", "--data", "/d"]), Ok(Some(Command::Revoke(7))));
        assert_eq!(parsed(&["--help"]), Ok(None));
        for wrong in
            [&["revoke"][..], &["revoke", "x"], &["list", "--uses", "1"], &["--uses", "x"], &["--ttl", "7"], &["dance"]]
        {
            assert!(parsed(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn who_is_revoked_is_one_agent_and_no_guess() {
        let hosts = [("aab1", "gw1"), ("aac2", "aab"), ("c", "web"), ("d", "web"), ("gw3", "x")];
        let certified = BTreeSet::from(["aab1".to_owned(), "new1".to_owned(), "gw30".to_owned()]);
        let chosen = |meant: &str| choose(&hosts, &certified, meant);
        assert_eq!(chosen("gw1"), Ok("aab1".to_owned()));
        assert_eq!(chosen("aac"), Ok("aac2".to_owned()));
        assert_eq!(chosen("new"), Ok("new1".to_owned()), "it was enrolled and has not connected");
        assert!(chosen("web").unwrap_err().contains("2 agents (c, d)"));
        assert!(chosen("gw3").unwrap_err().contains("2 agents (gw3, gw30)"));
        assert!(chosen("aab").unwrap_err().contains("2 agents (aab1, aac2)"), "one says it has the other's beginning");
        assert!(chosen("nobody").unwrap_err().contains("no host or certificate of \"nobody\""));
        assert!(choose(&hosts[..1], &BTreeSet::new(), "").is_err(), "everybody begins so");
    }

    #[test]
    fn a_token_is_a_line() {
        let token = json!({ "id": 1, "uses": 2, "used": 1, "group": "edge", "created_by": "ann", "expires_ms": 0, "usable": false });
        assert_eq!(
            line(&token),
            "1      1 of 2 uses  until 1970-01-01T00:00:00Z  by ann  group edge  lets no host in any more"
        );
    }
}
