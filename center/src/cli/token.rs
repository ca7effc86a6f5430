//! `elklet-center token`: what lets hosts in. `elklet-center revoke`: what keeps them out.

use super::{Failure, Where};
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
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

usage: elklet-center revoke AGENT-ID [OPTIONS]

Its stream ends at once, and the center refuses it until it is enrolled with another token.

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
        print!("{}", help());
        return Ok(());
    };
    let center = at.center()?;
    match command {
        Command::New { uses, ttl, group } => {
            let wanted = json!({ "uses": uses, "ttl_s": ttl.map(|ttl| ttl.as_secs()), "group": group });
            let made = center.ask("POST", "/tokens", &wanted)?;
            let line = made["command"].as_str();
            println!("{}", line.ok_or_else(|| Failure::Work("the center answered without a command".into()))?);
        }
        Command::List => {
            let tokens = center.ask("GET", "/tokens", &Json::Null)?;
            tokens.as_array().into_iter().flatten().for_each(|token| println!("{}", line(token)));
        }
        Command::Revoke(id) => {
            center.ask("DELETE", &format!("/tokens/{id}"), &Json::Null)?;
            println!("token {id} lets no host in any more");
        }
    }
    Ok(())
}

/// `elklet-center revoke`.
pub(super) fn revoke(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut at, mut agent) = (Where::default(), None);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                print!("{}", revoke_help());
                return Ok(());
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
    let agent = agent.ok_or_else(|| Failure::Words("the id of an agent is missing".to_owned()))?;
    let answer = at.center()?.ask("POST", &format!("/certificates/{}/revoke", encoded(&agent)), &Json::Null)?;
    let count = answer["revoked"].as_array().map_or(0, Vec::len);
    println!("agent {agent} is kept out, certificates revoked: {count}");
    Ok(())
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

/// Percent-encodes an id for a path.
fn encoded(id: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    id.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
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
    fn a_token_is_a_line_and_an_id_a_part_of_a_path() {
        let token = json!({ "id": 1, "uses": 2, "used": 1, "group": "edge", "created_by": "ann", "expires_ms": 0, "usable": false });
        assert_eq!(
            line(&token),
            "1      1 of 2 uses  until 1970-01-01T00:00:00Z  by ann  group edge  lets no host in any more"
        );
        assert_eq!(encoded("gateway 1/é"), "gateway%201%2F%C3%A9");
    }
}
