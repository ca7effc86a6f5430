//! The reference's `elkeidctl`: `elklet ctl`, or the program called by the name `elkeidctl`.
//!
//! It specifies this host by itself, and leaves services to the service manager: systemd, or the service's script in
//! `/etc/init.d`. The reference's own start the agent themselves where there is no systemd; here the script does.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use lexopt::prelude::*;

use crate::config::{Flags, Layout};
use crate::specified::{self, Key, Specified};

pub(crate) const HELP: &str = "Usage:
  elkeidctl [--workdir DIR] set [--id ID] [--idc IDC] [--region REGION] [--service_type systemd|sysvinit]
  elkeidctl [--workdir DIR] unset [--id] [--idc] [--region] [--service_type]
  elkeidctl start|stop|restart|status|enable|disable|check|service-reload|cleanup

set and unset write specified_env in the work directory: /etc/elkeid for elkeidctl, and for `elklet ctl`, which takes
--config FILE too, that of every command. The agent reads the file at its start and on SIGHUP.

The others hand over to systemd, or to the service's script in /etc/init.d where there is none; service_type says which if
it is set. The service is elkeid-agent for elkeidctl, and elklet for `elklet ctl`. check, which cron calls, starts an agent
that has died, and service-reload has systemd read its units again. Where nothing is to be done for one of them, and for
cleanup, which removes control groups that this agent does not make, they do nothing.
";

/// The commands that are the service manager's.
const SERVICE: [&str; 9] =
    ["start", "stop", "restart", "status", "enable", "disable", "check", "service-reload", "cleanup"];

/// A program's service: elkeidctl's, or that of `elklet ctl`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Service {
    pub(crate) name: &'static str,
}

/// What a command comes to.
#[derive(Debug)]
enum Outcome {
    /// It is done, and this is to be printed.
    Text(&'static str),
    /// The service manager does it.
    HandOver(Vec<String>),
}

/// Carries out the command in `words`, of which `flags` are those that nobody has to give. Returns the text for standard output. If the
/// service manager is to do it, this process becomes its tool.
///
/// # Errors
/// Returns what is wrong with the words, or what could not be done.
pub(crate) fn run(
    words: impl IntoIterator<Item = OsString>,
    flags: Flags,
    service: Service,
) -> Result<&'static str, lexopt::Error> {
    match parse(&mut lexopt::Parser::from_args(words), flags, service)? {
        Outcome::Text(text) => Ok(text),
        Outcome::HandOver(words) => {
            let error = Command::new(&words[0]).args(&words[1..]).exec();
            Err(format!("{}: {error}", words.join(" ")).into())
        }
    }
}

fn parse(parser: &mut lexopt::Parser, mut flags: Flags, service: Service) -> Result<Outcome, lexopt::Error> {
    let mut sets = None;
    let mut changes: Vec<(Key, Option<String>)> = Vec::new();
    while let Some(argument) = parser.next()? {
        let key = match argument {
            Long(name) => Key::ALL.into_iter().find(|key| key.word() == name),
            _ => None,
        };
        match argument {
            Short('h') | Long("help") => return Ok(Outcome::Text(HELP)),
            Long("workdir") => flags.workdir = Some(parser.value()?.into()),
            Long("config") => flags.config = Some(parser.value()?.into()),
            Value(word) if sets.is_none() => match word.to_str() {
                Some("set") => sets = Some(true),
                Some("unset") => sets = Some(false),
                Some(word) if SERVICE.contains(&word) => {
                    let word = word.to_owned();
                    return match parser.next()? {
                        None => hand_over(&word, &flags, service),
                        Some(other) => Err(other.unexpected()),
                    };
                }
                _ => {
                    return Err(format!("unknown command {word:?}, expected set, unset, {}", SERVICE.join(", ")).into());
                }
            },
            other => match (key, sets) {
                (Some(key), Some(true)) => changes.push((key, Some(parser.value()?.string()?))),
                (Some(key), Some(false)) => changes.push((key, None)),
                _ => return Err(other.unexpected()),
            },
        }
    }
    if sets.is_none() || changes.is_empty() {
        return Err("nothing to do, expected set or unset, and what (elkeidctl --help tells more)".into());
    }
    let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_deref())).collect();
    let workdir = Layout::find(&flags).map_err(|why| why.to_string())?.workdir;
    specified::change(&workdir, &changes).map_err(|why| why.to_string())?;
    Ok(Outcome::Text(""))
}

fn hand_over(word: &str, flags: &Flags, service: Service) -> Result<Outcome, lexopt::Error> {
    let workdir = Layout::find(flags).map_err(|why| why.to_string())?.workdir;
    let specified = Specified::read(&workdir).map_err(|why| why.to_string())?;
    let has_systemd = match specified.value(Key::ServiceType) {
        Some(service_type) => service_type == "systemd",
        None => Path::new("/run/systemd/system").is_dir(),
    };
    let words = if has_systemd {
        let unit = workdir.join(format!("{}.service", service.name));
        systemd(word, service.name, unit.exists().then(|| unit.display().to_string()))
    } else {
        sysvinit(word, service.name, Path::new("/usr/sbin/update-rc.d").exists())
    };
    match words {
        // A tool that was not there would leave the reason to guesses.
        Some(words) if words[0].starts_with('/') && !Path::new(&words[0]).exists() => {
            let error = io::Error::from(io::ErrorKind::NotFound);
            Err(format!("{}: {error}; without systemd, it is what starts and stops the service", words[0]).into())
        }
        Some(words) => Ok(Outcome::HandOver(words)),
        None => Ok(Outcome::Text("")),
    }
}

/// The command of systemd. A unit that lies outside its directories is enabled by its path, which links it into them.
fn systemd(word: &str, service: &str, unit: Option<String>) -> Option<Vec<String>> {
    let words = match word {
        "check" | "cleanup" => return None,
        "service-reload" => vec!["daemon-reload".to_owned()],
        "enable" => vec![word.to_owned(), unit.unwrap_or_else(|| service.to_owned())],
        _ => vec![word.to_owned(), service.to_owned()],
    };
    Some([vec!["systemctl".to_owned()], words].concat())
}

/// The command of the service's script, or of what puts it into runlevels. cron reads its directory by itself.
fn sysvinit(word: &str, service: &str, has_update_rc: bool) -> Option<Vec<String>> {
    let words = match (word, has_update_rc) {
        ("service-reload" | "cleanup", _) => return None,
        ("enable", true) => ["update-rc.d", service, "defaults"].to_vec(),
        ("disable", true) => ["update-rc.d", "-f", service, "remove"].to_vec(),
        ("enable", false) => ["chkconfig", "--add", service].to_vec(),
        ("disable", false) => ["chkconfig", "--del", service].to_vec(),
        _ => return Some(vec![format!("/etc/init.d/{service}"), word.to_owned()]),
    };
    Some(words.into_iter().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_goes_to_the_service_manager_or_has_nothing_to_do() {
        let unit = || Some("/etc/elkeid/elkeid-agent.service".to_owned());
        for (word, by_systemd, by_script) in [
            ("start", "systemctl start elkeid-agent", "/etc/init.d/elkeid-agent start"),
            ("stop", "systemctl stop elkeid-agent", "/etc/init.d/elkeid-agent stop"),
            ("restart", "systemctl restart elkeid-agent", "/etc/init.d/elkeid-agent restart"),
            ("status", "systemctl status elkeid-agent", "/etc/init.d/elkeid-agent status"),
            ("enable", "systemctl enable /etc/elkeid/elkeid-agent.service", "update-rc.d elkeid-agent defaults"),
            ("disable", "systemctl disable elkeid-agent", "update-rc.d -f elkeid-agent remove"),
            ("check", "", "/etc/init.d/elkeid-agent check"),
            ("service-reload", "systemctl daemon-reload", ""),
            ("cleanup", "", ""),
        ] {
            assert!(SERVICE.contains(&word));
            let text = |words: Option<Vec<String>>| words.unwrap_or_default().join(" ");
            assert_eq!(text(systemd(word, "elkeid-agent", unit())), by_systemd);
            assert_eq!(text(sysvinit(word, "elkeid-agent", true)), by_script);
        }
        assert_eq!(systemd("enable", "elklet", None).expect("a command").join(" "), "systemctl enable elklet");
        assert_eq!(sysvinit("enable", "elklet", false).expect("a command").join(" "), "chkconfig --add elklet");
    }
}
