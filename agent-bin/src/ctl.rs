//! The reference's `elkeidctl`: `elklet ctl`, or the program called by the name `elkeidctl`.
//!
//! It specifies this host by itself, and leaves services to the service manager: systemd, or the service's script in
//! `/etc/init.d`. The reference's own start the agent themselves where there is no systemd; here the script does.

use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use crate::cli::Words;
use crate::config::{Flags, Layout};
use crate::specified::{self, Key, Specified};

/// Sets the keys that the words have, or forgets them.
///
/// # Errors
/// Returns what is wrong with the words, or what cannot be done.
pub(crate) fn specify(words: &Words, flags: &Flags, sets: bool) -> Result<(), lexopt::Error> {
    let mut changes: Vec<(Key, Option<String>)> = Vec::new();
    for key in Key::ALL.into_iter().filter(|key| words.has(key.word())) {
        changes.push((key, if sets { words.texts(key.word())?.pop() } else { None }));
    }
    if changes.is_empty() {
        return Err("nothing to do, expected --id, --idc, --region or --service_type".into());
    }
    let changes: Vec<_> = changes.iter().map(|(key, value)| (*key, value.as_deref())).collect();
    let workdir = Layout::find(flags).map_err(|why| why.to_string())?.workdir;
    specified::change(&workdir, &changes).map_err(|why| why.to_string())?;
    Ok(())
}

/// Has the service manager carry out one of its commands on a service: this process becomes its tool. Returns if there is nothing
/// to do.
///
/// # Errors
/// Returns what cannot be done.
pub(crate) fn hand_over(word: &str, service: &str, flags: &Flags) -> Result<(), lexopt::Error> {
    let workdir = Layout::find(flags).map_err(|why| why.to_string())?.workdir;
    let specified = Specified::read(&workdir).map_err(|why| why.to_string())?;
    let has_systemd = match specified.value(Key::ServiceType) {
        Some(service_type) => service_type == "systemd",
        None => Path::new("/run/systemd/system").is_dir(),
    };
    let words = if has_systemd {
        let unit = workdir.join(format!("{}.service", service));
        systemd(word, service, unit.exists().then(|| unit.display().to_string()))
    } else {
        sysvinit(word, service, Path::new("/usr/sbin/update-rc.d").exists())
    };
    match words {
        // A tool that was not there would leave the reason to guesses.
        Some(words) if words[0].starts_with('/') && !Path::new(&words[0]).exists() => {
            let error = io::Error::from(io::ErrorKind::NotFound);
            Err(format!("{}: {error}; without systemd, it is what starts and stops the service", words[0]).into())
        }
        Some(words) => {
            let error = Command::new(&words[0]).args(&words[1..]).exec();
            Err(format!("{}: {error}", words.join(" ")).into())
        }
        None => Ok(()),
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
    use crate::cli::commands::ELKEIDCTL;

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
            assert!(ELKEIDCTL.commands.iter().any(|command| command.name == word));
            let text = |words: Option<Vec<String>>| words.unwrap_or_default().join(" ");
            assert_eq!(text(systemd(word, "elkeid-agent", unit())), by_systemd);
            assert_eq!(text(sysvinit(word, "elkeid-agent", true)), by_script);
        }
        assert_eq!(systemd("enable", "elklet", None).expect("a command").join(" "), "systemctl enable elklet");
        assert_eq!(sysvinit("enable", "elklet", false).expect("a command").join(" "), "chkconfig --add elklet");
    }
}
