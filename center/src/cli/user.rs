//! `elklet-center user`: who may sign in.

use super::out::{print, tell};
use super::{Failure, Where, terminal};
use crate::http::Role;
use lexopt::prelude::*;
use serde_json::{Value as Json, json};
use std::time::Duration;

const HELP: &str = "\
elklet-center user: add, list and remove those who may sign in

usage: elklet-center user add NAME --role ROLE [OPTIONS]
       elklet-center user password NAME [OPTIONS]
       elklet-center user role NAME ROLE [OPTIONS]
       elklet-center user list [OPTIONS]
       elklet-center user remove NAME [OPTIONS]

  --role ROLE      what they may do: view (look), operate (give tasks, say what agents run), admin (decide who may do what).
                   The first user has to be an admin
";

const HELP_END: &str = "
It asks for the password on the terminal, or reads a line of standard input if that is none. The center has to run.
";

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
enum Command {
    Add { name: String, role: Role },
    Password { name: String },
    Role { name: String, role: Role },
    List,
    Remove { name: String },
}

pub(super) fn help() -> String {
    format!("{HELP}{}{HELP_END}", Where::HELP)
}

pub(super) fn run(parser: lexopt::Parser) -> Result<(), Failure> {
    let Some((command, at)) = parse(parser)? else {
        return print(&help());
    };
    let center = at.center()?;
    match command {
        Command::Add { name, role } => {
            let password = terminal::new_password(&name)?;
            let user = json!({ "name": name, "role": role.to_string(), "password": password });
            center.ask("POST", "/users", &user)?;
            tell(&format!("{name} may sign in, with the role {role}"))
        }
        Command::Password { name } => {
            let password = terminal::new_password(&name)?;
            center.ask("PUT", &format!("/users/{name}"), &json!({ "password": password }))?;
            tell(&format!("{name} has a new password, and no session"))
        }
        Command::Role { name, role } => {
            center.ask("PUT", &format!("/users/{name}"), &json!({ "role": role.to_string() }))?;
            tell(&format!("{name} has the role {role}"))
        }
        Command::List => {
            let users = center.ask("GET", "/users", &Json::Null)?;
            users.as_array().into_iter().flatten().try_for_each(|user| print(&format!("{}\n", line(user))))
        }
        Command::Remove { name } => {
            center.ask("DELETE", &format!("/users/{name}"), &Json::Null)?;
            tell(&format!("{name} may no longer sign in"))
        }
    }
}

/// Returns `None` when help is wanted.
fn parse(mut parser: lexopt::Parser) -> Result<Option<(Command, Where)>, Failure> {
    let (mut at, mut role, mut words) = (Where::default(), None, Vec::new());
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => return Ok(None),
            Long("role") => role = Some(parser.value()?.parse_with(str::parse::<Role>)?),
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
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let command = match (&words[..], role) {
        (["add", name], Some(role)) => Command::Add { name: named(name)?, role },
        (["add", _], None) => return Err(Failure::Words("--role is missing: view, operate or admin".to_owned())),
        (["password", name], None) => Command::Password { name: named(name)? },
        (["role", name, role], None) => {
            Command::Role { name: named(name)?, role: role.parse().map_err(Failure::Words)? }
        }
        (["list"], None) => Command::List,
        (["remove", name], None) => Command::Remove { name: named(name)? },
        _ => {
            let words = words.join(" ");
            return Err(Failure::Words(format!("user {words:?}, expected add, password, role, list or remove")));
        }
    };
    Ok(Some((command, at)))
}

/// Returns a name that can stand in a path.
fn named(name: &str) -> Result<String, Failure> {
    if name.is_empty()
        || name.contains(['/', '?', '#', '%'])
        || name.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Err(Failure::Words(format!("{name:?} is no user's name")));
    }
    Ok(name.to_owned())
}

fn line(user: &Json) -> String {
    let text = |name: &str| user[name].as_str().unwrap_or_default().to_owned();
    let signed_in = user["last_login_ms"].as_u64().map_or_else(
        || "never signed in".to_owned(),
        |ms| {
            format!(
                "signed in {}",
                humantime::format_rfc3339_seconds(std::time::UNIX_EPOCH + Duration::from_millis(ms))
            )
        },
    );
    format!("{:<24} {:<8} {signed_in}", text("name"), text("role"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(words: &[&str]) -> Result<Option<Command>, String> {
        match parse(lexopt::Parser::from_args(words)) {
            Ok(parsed) => Ok(parsed.map(|(command, _)| command)),
            Err(Failure::Words(error)) => Err(error),
            Err(failure) => panic!("{failure:?}"),
        }
    }

    #[test]
    fn words_say_what_is_to_be_done() {
        let name = || "ann".to_owned();
        let add = Command::Add { name: name(), role: Role::View };
        assert_eq!(parsed(&["add", "ann", "--role", "view"]), Ok(Some(add)));
        let role = Command::Role { name: name(), role: Role::Admin };
        assert_eq!(parsed(&["role", "ann", "admin", "--data", "/tmp"]), Ok(Some(role)));
        assert_eq!(parsed(&["remove", "ann"]), Ok(Some(Command::Remove { name: name() })));
        assert_eq!(parsed(&["password", "ann"]), Ok(Some(Command::Password { name: name() })));
        assert_eq!(parsed(&["list", "--help"]), Ok(None));
    }

    #[test]
    fn a_mistake_is_told() {
        for (words, told) in [
            (&["add", "ann"][..], "--role is missing"),
            (&["add", "ann", "--role", "root"], "\"root\", expected view"),
            (&["add", "a/b", "--role", "view"], "\"a/b\" is no user's name"),
            (&["list", "--role", "view"], "expected add"),
            (&["dance"], "user \"dance\""),
            (&[], "expected add"),
            (&["list", "--frobnicate"], "--frobnicate"),
        ] {
            let error = parsed(words).unwrap_err();
            assert!(error.contains(told), "{words:?}: {error}");
        }
    }

    #[test]
    fn a_user_is_a_line() {
        let never = json!({ "name": "ann", "role": "view", "last_login_ms": null });
        assert_eq!(line(&never), "ann                      view     never signed in");
        let once = json!({ "name": "ann", "role": "view", "last_login_ms": 1_700_000_000_000_u64 });
        assert!(line(&once).ends_with("signed in 2023-11-14T22:13:20Z"));
    }
}
