//! The dispatch against a naive shell, under random events.

use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::super::*;
use super::{config, configure, running};

#[derive(Debug, Clone)]
enum Event {
    Configure(Vec<(u8, u8)>),
    /// The shell answers one of its open orders, well or badly.
    Answer {
        which: usize,
        well: bool,
    },
    Die(usize),
    Wait(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        2 => prop::collection::btree_map(0..4u8, 0..3u8, 0..4).prop_map(|m| Event::Configure(m.into_iter().collect())),
        6 => (any::<usize>(), prop::bool::weighted(0.8)).prop_map(|(which, well)| Event::Answer { which, well }),
        1 => any::<usize>().prop_map(Event::Die),
        1 => (0..100_000u64).prop_map(Event::Wait),
    ]
}

/// The naive shell: what is being prepared, what runs, what is being stopped. It fails on any order that makes no sense.
#[derive(Default)]
struct Shell {
    preparing: BTreeMap<Preparation, PluginConfig>,
    ready: BTreeMap<Preparation, PluginConfig>,
    running: BTreeMap<PluginName, PluginConfig>,
    stopping: BTreeSet<PluginName>,
    directories: BTreeSet<PluginName>,
    /// What ran last of each, unless it could not be prepared again since, or kept dying until another one was wanted.
    ran: BTreeMap<PluginName, PluginConfig>,
    /// How often each has died since another version of it was wanted.
    deaths: BTreeMap<PluginName, u32>,
}

impl Shell {
    fn obey(&mut self, dispatch: &mut Dispatch) {
        while let Some(action) = dispatch.poll_action() {
            match action {
                Action::Plugin(PluginAction::Prepare(id, config)) => {
                    self.directories.insert(config.name.clone());
                    assert!(self.preparing.insert(id, config).is_none(), "a preparation has its own number");
                }
                Action::Plugin(PluginAction::Forget(id)) => {
                    assert!(
                        self.preparing.remove(&id).or(self.ready.remove(&id)).is_some(),
                        "it was not forgotten before"
                    );
                }
                Action::Plugin(PluginAction::Spawn(id, config)) => {
                    assert_eq!(self.ready.remove(&id).as_ref(), Some(&config), "what is started was prepared");
                    assert!(!self.stopping.contains(&config.name), "the old process has ended");
                    self.ran.insert(config.name.clone(), config.clone());
                    assert!(self.running.insert(config.name.clone(), config).is_none(), "one process a plugin");
                }
                Action::Plugin(PluginAction::Stop(name)) => {
                    assert!(self.running.remove(&name).is_some(), "only what runs is stopped");
                    self.stopping.insert(name);
                }
                Action::Plugin(PluginAction::Kill(name)) => {
                    assert!(self.stopping.contains(&name), "only what does not end is killed");
                }
                Action::Plugin(PluginAction::Remove(name)) => {
                    assert!(!self.running.contains_key(&name) && !self.stopping.contains(&name), "nothing runs there");
                    assert!(!self.preparing.values().any(|config| config.name == name), "nothing is prepared there");
                    self.directories.remove(&name);
                    self.ran.remove(&name);
                }
                Action::Complain(_)
                | Action::Refuse(_)
                | Action::Forbid(..)
                | Action::Plugin(PluginAction::Keep(_)) => {}
                other => panic!("nobody asked for {other:?}"),
            }
        }
    }

    /// These are wanted now. A version that died twice is no stand-in for its successor.
    fn want(&mut self, wanted: &[PluginConfig], before: &[PluginConfig]) {
        for config in wanted.iter().filter(|config| !before.contains(config)) {
            let deaths = self.deaths.remove(&config.name).unwrap_or(0);
            if deaths >= 2 && !self.running.contains_key(&config.name) {
                self.ran.remove(&config.name);
            }
        }
    }

    fn answer(&mut self, dispatch: &mut Dispatch, which: usize, well: bool, now: Millis) {
        let open = self.preparing.len() + self.stopping.len();
        let Some(which) = which.checked_rem(open) else { return };
        if let Some((&id, config)) = self.preparing.iter().nth(which) {
            let config = config.clone();
            self.preparing.remove(&id);
            if well {
                dispatch.handle_prepared(&config.name, id, now);
                self.ready.insert(id, config);
            } else {
                if self.ran.get(&config.name) == Some(&config) {
                    self.ran.remove(&config.name);
                }
                match now.0 % 2 {
                    0 => dispatch.handle_preparation_failed(&config.name, id, "it was not to be", now),
                    _ => dispatch.handle_held_back(&config.name, id, "it may not be yet", now),
                }
            }
        } else if let Some(name) = self.stopping.iter().nth(which - self.preparing.len()).cloned() {
            self.stopping.remove(&name);
            dispatch.handle_exited(&name, "exited with code 0", "", now);
        }
        self.obey(dispatch);
    }
}

proptest! {
    #[test]
    fn whatever_happens_the_newest_configuration_is_what_runs_in_the_end(events in prop::collection::vec(event(), 0..60)) {
        let mut dispatch = Dispatch::new("1".into());
        let mut shell = Shell::default();
        let mut wanted = Vec::<PluginConfig>::new();
        let mut now = Millis(0);
        for event in events {
            match event {
                Event::Configure(plugins) => {
                    let before = wanted;
                    wanted = plugins.into_iter().map(|(name, version)| config(&format!("p{name}"), version)).collect::<Vec<_>>();
                    shell.want(&wanted, &before);
                    configure(&mut dispatch, wanted.clone(), now);
                }
                Event::Answer { which, well } => shell.answer(&mut dispatch, which, well, now),
                Event::Die(which) => {
                    if let Some(name) = which.checked_rem(shell.running.len()).and_then(|n| shell.running.keys().nth(n)).cloned() {
                        shell.running.remove(&name);
                        *shell.deaths.entry(name.clone()).or_default() += 1;
                        dispatch.handle_exited(&name, "exited with code 1", "", now);
                    }
                }
                Event::Wait(time) => {
                    now = now + time;
                    dispatch.handle_timeout(now);
                }
            }
            shell.obey(&mut dispatch);
        }
        // While nothing can be downloaded, what has run before runs, one version or another.
        for _ in 0..60 {
            while let Some(config) = shell.preparing.values().next().cloned() {
                let is_there = shell.ran.get(&config.name) == Some(&config);
                shell.answer(&mut dispatch, 0, is_there, now);
            }
            while !shell.stopping.is_empty() {
                let which = shell.preparing.len();
                shell.answer(&mut dispatch, which, true, now);
            }
            if let Some(due) = dispatch.poll_timeout().filter(|due| *due <= now + RESTART_CAP_MS) {
                now = now.max(due);
                dispatch.handle_timeout(now);
                shell.obey(&mut dispatch);
            }
        }
        for config in &wanted {
            prop_assert!(!shell.ran.contains_key(&config.name) || shell.running.contains_key(&config.name) || shell.preparing.values().any(|order| order.name == config.name));
        }
        // From here on nothing fails, so that after a while there is nothing left to do.
        for _ in 0..60 {
            while !shell.preparing.is_empty() || !shell.stopping.is_empty() {
                shell.answer(&mut dispatch, 0, true, now);
            }
            if let Some(due) = dispatch.poll_timeout() {
                now = now.max(due);
                dispatch.handle_timeout(now);
                shell.obey(&mut dispatch);
            }
        }
        prop_assert_eq!(dispatch.poll_timeout(), None);
        prop_assert_eq!(shell.running.into_values().collect::<Vec<_>>(), running(&dispatch));
        prop_assert_eq!(running(&dispatch), wanted.clone());
        prop_assert!(shell.ready.is_empty());
        let directories: Vec<_> = wanted.into_iter().map(|config| config.name).collect();
        prop_assert_eq!(shell.directories.into_iter().collect::<Vec<_>>(), directories);
    }
}
