//! The dispatch against examples, and against a naive model under random events.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use super::*;
use crate::command::{Packing, Sha256};

mod commands;
mod model;
mod plugin;
mod policy;
mod versions;

fn config(name: &str, version: u8) -> PluginConfig {
    PluginConfig {
        name: name.parse().expect("a valid name"),
        version: format!("{version}"),
        packing: Packing::Plain,
        download_sha256: Sha256([version; 32]),
        executable_sha256: Sha256([version; 32]),
        signature: None,
        urls: Vec::new(),
        detail: String::new(),
    }
}

fn configure(dispatch: &mut Dispatch, plugins: Vec<PluginConfig>, now: Millis) {
    dispatch.handle_command(Command::Configuration(Configuration { plugins, ..Configuration::default() }), now);
}

/// A shell that carries out every action at once and always succeeds.
fn settle(dispatch: &mut Dispatch, now: Millis) -> Vec<Action> {
    let mut done = Vec::new();
    while let Some(action) = dispatch.poll_action() {
        match &action {
            Action::Plugin(PluginAction::Prepare(id, config)) => dispatch.handle_prepared(&config.name, *id, now),
            Action::Plugin(PluginAction::Stop(name)) => dispatch.handle_exited(name, "exited with code 0", "", now),
            Action::Plugin(PluginAction::Keep(_)) => continue,
            _ => {}
        }
        done.push(action);
    }
    done
}

fn running(dispatch: &Dispatch) -> Vec<PluginConfig> {
    dispatch.plugins().filter_map(|plugin| plugin.running.cloned()).collect()
}
