//! `elklet-center hosts`: who is there, and how a command finds the host that somebody means.

use super::client::Client;
use super::out::{note, print};
use super::text::{count, cut, encoded, field, printable, printable_json, span, table, width};
use super::{Failure, Where};
use crate::clock::now_ms;
use lexopt::prelude::*;
use serde_json::Value as Json;
use std::collections::BTreeSet;
use std::io;

const HELP: &str = "\
elklet-center hosts: list hosts, also those that are gone

usage: elklet-center hosts [OPTIONS]

  --group NAME     only those of a group
  --gone           only those that are not connected
  --json           a JSON object a line, as GET /api/v1/hosts has them
";

/// Hosts that are asked for at a time, and characters of names and groups that are shown.
const PAGE: usize = 1_000;
const NAME: usize = 24;

pub(super) fn help() -> String {
    format!("{HELP}{}", Where::HELP)
}

pub(super) fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let (mut at, mut query, mut as_json) = (Where::default(), String::new(), false);
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                return print(&help());
            }
            Long("group") => query += &format!("&group={}", encoded(&parser.value()?.string()?)),
            Long("gone") => query += "&connected=false",
            Long("json") => as_json = true,
            Long(flag) => at.must_take(flag.to_owned(), &mut parser)?,
            _ => return Err(argument.unexpected().into()),
        }
    }
    let center = at.center()?;
    let hosts = all(&center, &query)?;
    if as_json {
        return hosts.iter().try_for_each(|host| print(&format!("{}\n", printable_json(&host.to_string()))));
    }
    if hosts.is_empty() {
        note("elklet-center: no such host is known\n");
        return Ok(());
    }
    let now = u64::try_from(now_ms() / 1000).unwrap_or_default();
    let rows: Vec<Vec<String>> = hosts.iter().map(|host| row(host, now)).collect();
    print(&table(&["HOST", "ID", "GROUP", "AGENT", "STATE", "RECORDS"], &rows, width()))
}

fn row(host: &Json, now: u64) -> Vec<String> {
    let since = |name: &str| span(now.saturating_sub(host[name].as_u64().unwrap_or(now)));
    let state = if host["connected"] == true {
        format!("up {}", since("connected_since"))
    } else {
        format!("gone {}", since("last_seen"))
    };
    vec![
        cut(&field(host, "hostname"), NAME),
        short(&field(host, "id")),
        cut(&field(host, "group"), NAME),
        cut(&field(host, "version"), NAME),
        state,
        count(host["records"].as_u64().unwrap_or_default()),
    ]
}

/// Returns as much of an id as people compare. Commands take that much.
pub(super) fn short(id: &str) -> String {
    if id.len() == 36 && id.matches('-').count() == 4 { id[..8].to_owned() } else { cut(id, NAME) }
}

/// Returns all hosts that a query wants, which begins with `&` if it is not empty.
pub(super) fn all(center: &Client, query: &str) -> io::Result<Vec<Json>> {
    let (mut hosts, mut after) = (Vec::new(), String::new());
    loop {
        let mut page = center.get(&format!("/hosts?limit={PAGE}{query}{after}"))?;
        if let Json::Array(more) = page["hosts"].take() {
            hosts.extend(more);
        }
        match page["next"].as_str() {
            Some(next) => after = format!("&after={}", encoded(next)),
            None => return Ok(hosts),
        }
    }
}

/// Finds the host that somebody means by an id, the beginning of one, or a host's name, and returns its id. `None` if there is none.
///
/// # Errors
/// There are several, or the center cannot be asked.
pub(super) fn find(center: &Client, meant: &str) -> Result<Option<String>, Failure> {
    let hosts = all(center, &format!("&q={}", encoded(meant)))?;
    choose(&by_id_and_name(&hosts), meant).map_err(Failure::Words)
}

/// Returns what a search for records takes for a host that somebody means: its id or its name. Records outlive their hosts, so that one
/// that is not known may still have some.
///
/// # Errors
/// As [`find`].
pub(super) fn for_records(center: &Client, meant: &str) -> Result<String, Failure> {
    let hosts = all(center, &format!("&q={}", encoded(meant)))?;
    // A search takes both, and finds what all hosts of a name have sent.
    if hosts.iter().any(|host| host["id"] == meant || host["hostname"] == meant) {
        return Ok(meant.to_owned());
    }
    let found = find(center, meant)?;
    if found.is_none() {
        note(&format!("elklet-center: no host {meant:?} is known; looking for records of one that was\n"));
    }
    Ok(found.unwrap_or_else(|| meant.to_owned()))
}

/// Returns the id that is meant among hosts by id and name: one that is the same, else that of the name, else the one that begins so.
fn choose(hosts: &[(&str, &str)], meant: &str) -> Result<Option<String>, String> {
    if meant.is_empty() {
        // Every id begins so.
        return Ok(None);
    }
    let same_id: Vec<&str> = hosts.iter().map(|host| host.0).filter(|id| *id == meant).collect();
    let same_name = hosts.iter().filter(|host| host.1 == meant).map(|host| host.0).collect();
    let begins_so = hosts.iter().map(|host| host.0).filter(|id| id.starts_with(meant)).collect();
    for found in [same_id, same_name, begins_so] {
        match found[..] {
            [] => {}
            [id] => return Ok(Some(id.to_owned())),
            _ => return Err(several(meant, &found)),
        }
    }
    Ok(None)
}

/// Returns the ids of all hosts, by id and name, that somebody may mean who wants something done. Unlike where somebody only looks, a host's
/// name is no closer than the beginning of another's id: a host says its name itself.
pub(super) fn may_be_meant<'a>(hosts: &[(&'a str, &str)], meant: &str) -> BTreeSet<&'a str> {
    let meant_so = |(id, name): &&(&str, &str)| !meant.is_empty() && (*name == meant || id.starts_with(meant));
    hosts.iter().filter(meant_so).map(|host| host.0).collect()
}

/// Finds the one host that is to do something, by its id, the beginning of one, or its name.
///
/// # Errors
/// There is none, there are several, or the center cannot be asked.
pub(super) fn must_find(center: &Client, meant: &str) -> Result<String, Failure> {
    let hosts = all(center, &format!("&q={}", encoded(meant)))?;
    choose_one(&by_id_and_name(&hosts), meant).map_err(Failure::Words)
}

fn choose_one(hosts: &[(&str, &str)], meant: &str) -> Result<String, String> {
    if hosts.iter().any(|host| host.0 == meant && !meant.is_empty()) {
        return Ok(meant.to_owned());
    }
    let found: Vec<&str> = may_be_meant(hosts, meant).into_iter().collect();
    match found[..] {
        [id] => Ok(id.to_owned()),
        [] => Err(format!("no host {meant:?} is known, expected an id, the beginning of one, or a host's name")),
        _ => Err(several(meant, &found)),
    }
}

fn several(meant: &str, found: &[&str]) -> String {
    let ids: Vec<String> = found.iter().take(5).map(|id| printable(id)).collect();
    format!("{meant:?} is {} hosts ({}); say more of the id", found.len(), ids.join(", "))
}

/// Returns the hosts of an answer by id and name.
pub(super) fn by_id_and_name(hosts: &[Json]) -> Vec<(&str, &str)> {
    hosts
        .iter()
        .filter_map(|host| Some((host["id"].as_str()?, host["hostname"].as_str().unwrap_or_default())))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_host_is_meant_by_its_id_its_name_or_the_beginning_of_its_id() {
        let hosts = [("aab1", "gw1"), ("aab2", "gw2"), ("gw2", "aab1x"), ("c", "web"), ("d", "web")];
        let chosen = |meant: &str| choose(&hosts, meant);
        assert_eq!(chosen("aab1"), Ok(Some("aab1".into())));
        assert_eq!(chosen("gw1"), Ok(Some("aab1".into())));
        assert_eq!(chosen("gw2"), Ok(Some("gw2".into())), "an id is closer than a name");
        assert_eq!(chosen("gw"), Ok(Some("gw2".into())));
        assert_eq!(chosen("nobody"), Ok(None));
        assert_eq!(choose(&hosts[..1], ""), Ok(None), "a variable of a script that is not set means nobody");
        assert!(chosen("aab").unwrap_err().contains("2 hosts (aab1, aab2)"));
        assert!(chosen("web").unwrap_err().contains("2 hosts (c, d)"));
    }

    #[test]
    fn who_is_to_do_something_is_one_host_and_no_guess() {
        let hosts = [("0f3a7c11-8be8", "gw1"), ("aab2", "0f3a7c11"), ("c", "web"), ("d", "web"), ("gw1x", "c")];
        let chosen = |meant: &str| choose_one(&hosts, meant);
        assert_eq!(chosen("0f3a7c11-"), Ok("0f3a7c11-8be8".into()));
        assert_eq!(chosen("aab"), Ok("aab2".into()));
        assert_eq!(chosen("c"), Ok("c".into()), "an id is closer than a name");
        for (ambiguous, ids) in [("0f3a7c11", "0f3a7c11-8be8, aab2"), ("gw1", "0f3a7c11-8be8, gw1x"), ("web", "c, d")] {
            assert!(chosen(ambiguous).unwrap_err().contains(&format!("2 hosts ({ids})")), "{ambiguous}");
        }
        assert!(chosen("nobody").unwrap_err().contains("no host \"nobody\" is known"));
        assert!(choose_one(&hosts[..1], "").is_err(), "a variable of a script that is not set means nobody");
    }

    #[test]
    fn a_host_is_a_row() {
        let host = json!({
            "id": "0f3a7c11-8be8-5b0a-9a6e-000000000001", "hostname": "gw\u{1b}1", "group": null, "version": "1.0", "connected": true,
            "connected_since": 40, "records": 1000,
        });
        assert_eq!(row(&host, 100), ["gw\\u{1b}1", "0f3a7c11", "", "1.0", "up 1m", "1,000"]);
        let gone = json!({ "id": "a", "connected": false, "last_seen": 100 });
        assert_eq!(row(&gone, 7300)[4], "gone 2h");
    }
}
