//! `elklet-center check`: whether the settings make sense, before the service is told to read them.

use super::Failure;
use super::out::{print, tell};
use crate::authority::files;
use crate::forward;
use crate::http::configs_from_file;
use crate::settings::Settings;
use lexopt::prelude::*;
use std::path::PathBuf;

const HELP: &str = "\
elklet-center check: read the settings, and say what is wrong with them

usage: elklet-center check [OPTIONS]

  --config FILE    the settings (default /etc/elklet/center.toml)

It also looks at what the settings name: the certificates, if the center is not to make its own, the list of plugins, the directories, and
what outputs need. It starts nothing and changes nothing. Run it as root or as the user that the center runs as: others cannot read
the keys.

The exit code is 0 if nothing is wrong, and else 2.
";

pub(super) fn help() -> String {
    HELP.to_owned()
}

pub(super) fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let mut file = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                return print(&help());
            }
            Long("config") => file = Some(PathBuf::from(parser.value()?)),
            _ => return Err(argument.unexpected().into()),
        }
    }
    let settings = Settings::read(file.as_deref())?;
    settings.check()?;
    if let Some(plugins) = &settings.plugins {
        configs_from_file(plugins).map_err(|error| Failure::Words(error.to_string()))?;
    }
    for (key, dir) in [("data", &settings.data), ("upload_dir", &settings.upload_dir)] {
        if dir.exists() && !dir.is_dir() {
            return Err(Failure::Words(format!("{key}: {} is no directory", dir.display())));
        }
    }
    if let Some(certs) = settings.certs() {
        files::check(&certs, settings.certificate_lifetime)
            .map_err(|wrong| Failure::Words(format!("certs: {wrong}")))?;
    }
    forward::check(&settings.forward, &settings.data).map_err(Failure::Words)?;
    tell("nothing is wrong with the settings")
}
