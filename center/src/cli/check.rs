//! `elklet-center check`: whether the settings make sense, before the service is told to read them.

use super::Failure;
use crate::http::configs_from_file;
use crate::settings::Settings;
use lexopt::prelude::*;
use std::path::PathBuf;

const HELP: &str = "\
elklet-center check: read the settings, and say what is wrong with them

usage: elklet-center check [OPTIONS]

  --config FILE    the settings (default /etc/elklet/center.toml)

The exit code is 0 if nothing is wrong, and else 2, with which a center that is started ends as well.
";

pub(super) fn help() -> String {
    HELP.to_owned()
}

pub(super) fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let mut file = None;
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                print!("{}", help());
                return Ok(());
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
    println!("nothing is wrong with the settings");
    Ok(())
}
