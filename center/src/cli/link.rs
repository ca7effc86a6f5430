//! `elklet-center link`: a link that opens the page without a password.

use super::out::{print, tell_or};
use super::{Failure, Where};
use lexopt::prelude::*;
use serde_json::Value as Json;

const HELP: &str = "\
elklet-center link: print a link that opens the page once within 10 minutes, as an admin and without a password

usage: elklet-center link [OPTIONS]

";

pub(super) fn help() -> String {
    format!("{HELP}{}", Where::HELP)
}

pub(super) fn run(mut parser: lexopt::Parser) -> Result<(), Failure> {
    let mut at = Where::default();
    while let Some(argument) = parser.next()? {
        match argument {
            Long("help") | Short('h') => {
                return print(&help());
            }
            Long(flag) => {
                let flag = flag.to_owned();
                if !at.take(&flag, &mut parser)? {
                    return Err(Failure::Words(format!("there is no flag --{flag}")));
                }
            }
            _ => return Err(argument.unexpected().into()),
        }
    }
    let answer = at.center()?.ask("POST", "/links", &Json::Null)?;
    let link = answer["link"].as_str().ok_or_else(|| Failure::Work("the center answered without a link".into()))?;
    tell_or(&format!("{link}\n"), "a link was made that nobody has seen; it ends by itself within 10 minutes")
}
