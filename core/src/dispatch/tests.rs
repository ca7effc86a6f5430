//! The dispatch against examples, and against a naive model under random events.

mod plugin;

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::slice;

use proptest::prelude::*;

use super::*;
use crate::command::{AgentEntry, BadPackage, BadTask, Packing, RefusedConfig, Sha256, Signature};
use crate::limits::MAX_PLUGINS;

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

fn task(name: &str) -> Command {
    Command::PluginTask(Task { data_type: 9, object_name: name.into(), data: String::new(), token: "t".into() })
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

#[test]
fn a_plugin_that_does_not_end_is_killed_once() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_shutdown(Millis(5));
    let a = config("a", 1).name;
    assert_eq!(dispatch.poll_action(), Some(PluginAction::Stop(a.clone()).into()));
    assert_eq!(dispatch.poll_timeout(), Some(Millis(5 + STOP_TIMEOUT_MS)));
    dispatch.handle_timeout(Millis(4 + STOP_TIMEOUT_MS));
    assert_eq!(dispatch.poll_action(), None);
    dispatch.handle_timeout(Millis(5 + STOP_TIMEOUT_MS));
    assert_eq!(dispatch.poll_action(), Some(PluginAction::Kill(a.clone()).into()));
    assert_eq!((dispatch.poll_timeout(), dispatch.is_quiet()), (None, false));
    dispatch.handle_exited(&a, "was killed", "", Millis(6 + STOP_TIMEOUT_MS));
    assert!(dispatch.is_quiet() && dispatch.poll_action().is_none());
}

#[test]
fn a_configured_plugin_is_prepared_then_started_and_an_unnamed_one_stopped_and_removed() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    assert_eq!(running(&dispatch), [config("a", 1), config("b", 1)]);

    configure(&mut dispatch, vec![config("b", 1)], Millis(1));
    let a: PluginName = "a".parse().expect("valid");
    assert_eq!(
        settle(&mut dispatch, Millis(1)),
        [Action::Plugin(PluginAction::Stop(a.clone())), Action::Plugin(PluginAction::Remove(a))]
    );
}

#[test]
fn a_new_version_is_prepared_while_the_old_one_runs_and_a_failed_one_leaves_it_running() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    assert_eq!(dispatch.poll_action(), Some(Action::Plugin(PluginAction::Keep(vec![config("a", 2)]))));
    let Some(Action::Plugin(PluginAction::Prepare(id, wanted))) = dispatch.poll_action() else {
        panic!("a new version is prepared first")
    };
    assert_eq!(dispatch.poll_action(), None);
    dispatch.handle_preparation_failed(&wanted.name, id, "no such file", Millis(2));
    let complaint = "plugin a cannot be started: no such file; version 1 runs on";
    assert_eq!(dispatch.poll_action(), Some(Action::Complain(complaint.into())));
    assert_eq!((running(&dispatch), dispatch.state_details(Millis(2))), (vec![config("a", 1)], vec![complaint]));

    // It is tried again after a while, and this time it works.
    let due = dispatch.poll_timeout().expect("it is tried again");
    assert_eq!(due, Millis(2 + RESTART_BASE_MS));
    dispatch.handle_timeout(due);
    let steps = settle(&mut dispatch, due);
    assert!(
        matches!(
            &steps[..],
            [
                Action::Plugin(PluginAction::Prepare(..)),
                Action::Plugin(PluginAction::Stop(_)),
                Action::Plugin(PluginAction::Spawn(..))
            ]
        ),
        "{steps:?}"
    );
    assert_eq!((running(&dispatch), dispatch.state_details(due)), (vec![config("a", 2)], vec![]));
}

#[test]
fn a_new_version_that_cannot_be_started_leaves_the_old_one_standing_in() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    settle(&mut dispatch, Millis(1));
    dispatch.handle_spawn_failed(&name, "exec format error", Millis(1));
    let complaint = "plugin a cannot be started: exec format error; version 1 is started again";
    let steps = settle(&mut dispatch, Millis(1));
    assert!(
        matches!(&steps[..], [Action::Plugin(PluginAction::Prepare(..)), Action::Complain(_), Action::Plugin(PluginAction::Spawn(_, old))] if *old == config("a", 1)),
        "{steps:?}"
    );
    assert_eq!((running(&dispatch), dispatch.state_details(Millis(1))), (vec![config("a", 1)], vec![complaint]));
    // The same once more changes nothing.
    configure(&mut dispatch, vec![config("a", 2)], Millis(2));
    assert_eq!((settle(&mut dispatch, Millis(2)), dispatch.state_details(Millis(2))), (vec![], vec![complaint]));

    let due = dispatch.poll_timeout().expect("it is tried again");
    assert_eq!(due, Millis(1 + STAND_IN_MS));
    dispatch.handle_timeout(due);
    settle(&mut dispatch, due);
    assert_eq!((running(&dispatch), dispatch.poll_timeout()), (vec![config("a", 2)], None));
}

#[test]
fn an_old_version_that_dies_before_its_successor_is_ready_is_started_again() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    dispatch.handle_exited(&name, "was killed by signal 9", "", Millis(2));
    let orders: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    let [
        Action::Plugin(PluginAction::Keep(_)),
        Action::Plugin(PluginAction::Prepare(download, _)),
        Action::Complain(_),
    ] = &orders[..]
    else {
        panic!("{orders:?}")
    };

    // Its wait is over, and the download is still under way.
    let due = dispatch.poll_timeout().expect("it is started again");
    assert_eq!(due, Millis(2 + RESTART_BASE_MS));
    dispatch.handle_timeout(due);
    assert_eq!(dispatch.poll_action(), Some(Action::Plugin(PluginAction::Forget(*download))));
    let Some(Action::Plugin(PluginAction::Prepare(old, prepared))) = dispatch.poll_action() else {
        panic!("the old one is verified")
    };
    assert_eq!(prepared, config("a", 1));
    dispatch.handle_prepared(&name, old, due);
    assert_eq!(dispatch.poll_action(), Some(Action::Plugin(PluginAction::Spawn(old, config("a", 1)))));
    let Some(Action::Plugin(PluginAction::Prepare(download, wanted))) = dispatch.poll_action() else {
        panic!("the new one is next")
    };
    assert_eq!(wanted, config("a", 2));

    // Where the new one cannot be had, the old one is started again as well.
    dispatch.handle_preparation_failed(&name, download, "no such host", due);
    dispatch.handle_exited(&name, "was killed by signal 9", "", due + 1);
    let due = dispatch.poll_timeout().expect("it is started again");
    while dispatch.poll_action().is_some() {}
    dispatch.handle_timeout(due);
    let Some(Action::Plugin(PluginAction::Prepare(old, prepared))) = dispatch.poll_action() else {
        panic!("the old one is verified")
    };
    assert_eq!(prepared, config("a", 1));
    // If it is not there any more, it is the new one's turn at once.
    dispatch.handle_preparation_failed(&name, old, "no such file", due);
    settle(&mut dispatch, due);
    assert_eq!(running(&dispatch), [config("a", 2)]);
}

#[test]
fn what_is_to_run_is_kept_whenever_it_changes_and_started_without_a_server() {
    let mut dispatch = Dispatch::new("1".into());
    let kept = |dispatch: &mut Dispatch, plugins, refused| {
        let configuration = Configuration { plugins, refused, ..Configuration::default() };
        dispatch.handle_command(Command::Configuration(configuration), Millis(0));
        let mut kept = Vec::new();
        while let Some(action) = dispatch.poll_action() {
            match action {
                Action::Plugin(PluginAction::Keep(list)) => kept.push(list),
                Action::Plugin(PluginAction::Prepare(id, config)) => {
                    dispatch.handle_prepared(&config.name, id, Millis(0))
                }
                _ => {}
            }
        }
        kept
    };
    let both = vec![config("a", 1), config("b", 1)];
    assert_eq!(kept(&mut dispatch, both.clone(), vec![]), slice::from_ref(&both));
    assert!(kept(&mut dispatch, both.clone(), vec![]).is_empty(), "the same is kept already");
    // What an entry that is refused would have changed stays as it was.
    let refused = vec![RefusedConfig { name: Some(config("b", 1).name), reason: "bad hash".into() }];
    assert_eq!(kept(&mut dispatch, vec![config("a", 2)], refused), [vec![config("a", 2), config("b", 1)]]);
    assert_eq!(kept(&mut dispatch, vec![config("a", 2)], vec![]), [vec![config("a", 2)]]);

    let mut next = Dispatch::new("1".into());
    next.handle_kept(both.clone(), Millis(0));
    settle(&mut next, Millis(0));
    assert_eq!(running(&next), both);
    assert!(kept(&mut next, both.clone(), vec![]).is_empty());
}

#[test]
fn plugins_for_which_others_have_to_end_first_wait_for_that() {
    let mut dispatch = Dispatch::new("1".into());
    let many = |version: &str| (0..MAX_PLUGINS).map(|i| config(&format!("{version}-{i}"), 1)).collect::<Vec<_>>();
    let start = |dispatch: &mut Dispatch, plugins| {
        configure(dispatch, plugins, Millis(0));
        let mut stopping = Vec::new();
        while let Some(action) = dispatch.poll_action() {
            match action {
                Action::Plugin(PluginAction::Prepare(id, config)) => {
                    dispatch.handle_prepared(&config.name, id, Millis(0))
                }
                Action::Plugin(PluginAction::Stop(name)) => stopping.push(name),
                _ => {}
            }
        }
        stopping
    };
    assert!(start(&mut dispatch, many("a")).is_empty());
    let mut stopping = start(&mut dispatch, many("b"));
    // Those of b run while those of a end: there is room for no more.
    stopping.extend(start(&mut dispatch, many("c")));
    assert_eq!((stopping.len(), dispatch.plugins().count()), (2 * MAX_PLUGINS, 2 * MAX_PLUGINS));
    for name in stopping {
        dispatch.handle_exited(&name, "exited with code 0", "", Millis(1));
        settle(&mut dispatch, Millis(1));
    }
    let mut expected = many("c");
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(running(&dispatch), expected);
    assert!(dispatch.state_details(Millis(1)).is_empty());

    // Those that have no process are forgotten at once.
    configure(&mut dispatch, many("d"), Millis(2));
    configure(&mut dispatch, many("e"), Millis(2));
    assert_eq!(dispatch.plugins().count(), 2 * MAX_PLUGINS);
}

#[test]
fn the_newest_configuration_does_not_wait_for_the_one_before() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("slow", 1)], Millis(0));
    assert!(matches!(dispatch.poll_action(), Some(Action::Plugin(PluginAction::Keep(_)))));
    let Some(Action::Plugin(PluginAction::Prepare(slow, _))) = dispatch.poll_action() else { panic!("it is prepared") };
    configure(&mut dispatch, vec![config("quick", 1)], Millis(1));
    let steps = settle(&mut dispatch, Millis(1));
    assert!(steps.contains(&Action::Plugin(PluginAction::Forget(slow))), "{steps:?}");
    assert_eq!(running(&dispatch), [config("quick", 1)]);

    // What the forgotten preparation still reports changes nothing.
    dispatch.handle_prepared(&config("slow", 1).name, slow, Millis(2));
    assert_eq!(dispatch.poll_action(), None);
}

#[test]
fn a_new_hash_or_detail_takes_effect_under_the_same_version() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let changed = PluginConfig { detail: "new".into(), ..config("a", 1) };
    configure(&mut dispatch, vec![changed.clone()], Millis(1));
    settle(&mut dispatch, Millis(1));
    assert_eq!(running(&dispatch), [changed]);
}

#[test]
fn a_plugin_that_dies_is_started_again_after_doubling_waits_and_a_long_life_is_forgiven() {
    let mut dispatch = Dispatch::new("1".into());
    let a = config("a", 1).name;
    let mut now = Millis(0);
    configure(&mut dispatch, vec![config("a", 1)], now);
    settle(&mut dispatch, now);
    for (before, wait) in [1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 60_000, 60_000].into_iter().enumerate() {
        dispatch.handle_exited(&a, "was killed by signal 9", "", now);
        let mut obituary = "plugin a was killed by signal 9 unexpectedly".to_owned();
        if before >= 2 {
            obituary.push_str(&format!(", {} times in a row: it crashes in a loop", before + 1));
        }
        assert_eq!(dispatch.state_details(now), [obituary.as_str()]);
        assert_eq!(settle(&mut dispatch, now), [Action::Complain(obituary)]);
        assert_eq!(dispatch.poll_timeout(), Some(now + wait));
        now = now + wait;
        dispatch.handle_timeout(now);
        assert_eq!(settle(&mut dispatch, now).len(), 2, "prepared and spawned");
    }
    // The same configuration forgives no loop, a long life does.
    configure(&mut dispatch, vec![config("a", 1)], now);
    assert_eq!(dispatch.state_details(now).len(), 1);
    now = now + RESTART_FORGIVEN_MS;
    assert_eq!(dispatch.state_details(now).len(), 0);
    dispatch.handle_exited(&a, "exited with code 0", "", now);
    settle(&mut dispatch, now);
    assert_eq!(dispatch.poll_timeout(), Some(now + RESTART_BASE_MS));
    assert_eq!(dispatch.plugins().map(|p| p.restarts).collect::<Vec<_>>(), [9]);
    assert_eq!(dispatch.state_details(now), ["plugin a exited with code 0 unexpectedly"]);
}

#[test]
fn the_last_words_of_a_plugin_are_told_with_its_death() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let words = format!("{} out of memory", "x".repeat(1000));
    dispatch.handle_exited(&config("a", 1).name, "exited with code 1", &words, Millis(1));
    let told = dispatch.state_details(Millis(1))[0];
    assert!(told.starts_with("plugin a exited with code 1 unexpectedly; its last words: xxx"), "{told}");
    assert!(told.ends_with("x out of memory") && told.len() < 400, "{told}");
}

#[test]
fn a_command_with_nothing_in_it_changes_nothing() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_command(Command::Nothing, Millis(1));
    assert_eq!(dispatch.poll_action(), None);
    assert_eq!(running(&dispatch), [config("a", 1)]);
}

#[test]
fn tasks_reach_running_plugins_and_all_others_are_answered() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    dispatch.handle_command(task("a"), Millis(0));
    let steps = settle(&mut dispatch, Millis(0));
    assert!(steps.contains(&Action::Answer(TaskFailure::new("t".into(), "plugin a is not running"))), "{steps:?}");

    dispatch.handle_command(task("a"), Millis(1));
    assert!(matches!(dispatch.poll_action(), Some(Action::Plugin(PluginAction::ForwardTask(..)))));
    for name in ["b", "../a", ""] {
        dispatch.handle_command(task(name), Millis(1));
        assert!(matches!(dispatch.poll_action(), Some(Action::Answer(report)) if report.token == "t"), "{name}");
    }
    let bad = BadTask::Unknown(4242);
    let unknown = Command::RefusedTask(RefusedTask { token: "u".into(), reason: bad.clone() });
    dispatch.handle_command(unknown, Millis(1));
    assert_eq!(dispatch.poll_action(), Some(Action::Answer(TaskFailure::new("u".into(), &bad.to_string()))));
}

#[test]
fn an_entry_that_is_refused_leaves_its_plugin_as_it_is() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let refused = vec![RefusedConfig { name: Some(config("a", 1).name), reason: "bad hash".into() }];
    dispatch.handle_command(Command::Configuration(Configuration { refused, ..Configuration::default() }), Millis(1));
    assert_eq!(settle(&mut dispatch, Millis(1)), [Action::Complain("bad hash".into())]);
    assert_eq!((running(&dispatch), dispatch.state_details(Millis(1)).len()), (vec![config("a", 1)], 1));
}

#[test]
fn another_version_of_the_agent_is_an_update_and_the_own_one_is_not() {
    let mut dispatch = Dispatch::new("1".into());
    for (version, updates) in [("1", 0), ("2", 1)] {
        let package =
            AgentConfig { version: version.into(), sha256: Sha256([0; 32]), signature: None, urls: Vec::new() };
        let agent = Some(AgentEntry { version: version.into(), package: Ok(package) });
        let configuration = Configuration { agent, ..Configuration::default() };
        dispatch.handle_command(Command::Configuration(configuration), Millis(0));
        let steps = settle(&mut dispatch, Millis(0));
        assert_eq!(steps.iter().filter(|step| matches!(step, Action::UpdateAgent(_))).count(), updates);
    }
}

#[test]
fn only_another_version_of_the_agent_has_to_say_how_to_become_it() {
    let mut dispatch = Dispatch::new("1".into());
    let bad = BadPackage::Signature("none".parse::<Signature>().expect_err("it is none"));
    let complaint = bad.to_string();
    for (version, complaints) in [("1", vec![]), ("2", vec![&*complaint])] {
        let agent = Some(AgentEntry { version: version.into(), package: Err(bad.clone()) });
        let configuration = Configuration { agent, ..Configuration::default() };
        dispatch.handle_command(Command::Configuration(configuration), Millis(0));
        assert!(!settle(&mut dispatch, Millis(0)).iter().any(|step| matches!(step, Action::UpdateAgent(_))));
        assert_eq!(dispatch.state_details(Millis(0)), complaints);
    }
}

#[test]
fn a_version_that_crashes_in_a_loop_is_not_started_once_more_when_its_successor_comes() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let mut now = Millis(0);
    for _ in 0..3 {
        dispatch.handle_exited(&name, "exited with code 1", "", now);
        now = now.max(dispatch.poll_timeout().expect("it is started again"));
        dispatch.handle_timeout(now);
        settle(&mut dispatch, now);
    }
    dispatch.handle_exited(&name, "exited with code 1", "", now);
    assert!(dispatch.state_details(now)[0].contains("crashes in a loop"));
    while dispatch.poll_action().is_some() {}
    configure(&mut dispatch, vec![config("a", 2)], now);
    let steps = settle(&mut dispatch, now);
    assert!(
        matches!(&steps[..], [Action::Plugin(PluginAction::Prepare(_, new)), Action::Plugin(PluginAction::Spawn(..))] if *new == config("a", 2)),
        "{steps:?}"
    );
    assert!(dispatch.state_details(now).is_empty(), "what was wrong was the other version's");
}

#[test]
fn a_successor_is_not_blamed_for_the_version_that_stood_in_for_it() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    let mut download = None;
    while let Some(action) = dispatch.poll_action() {
        if let Action::Plugin(PluginAction::Prepare(id, _)) = action {
            download = Some(id);
        }
    }
    dispatch.handle_exited(&name, "was killed by signal 9", "", Millis(2));
    assert_eq!(dispatch.state_details(Millis(2)).len(), 1);
    dispatch.handle_prepared(&name, download.expect("it is fetched"), Millis(3));
    settle(&mut dispatch, Millis(3));
    assert_eq!((running(&dispatch), dispatch.state_details(Millis(3))), (vec![config("a", 2)], vec![]));
    // Its own first death is its first.
    dispatch.handle_exited(&name, "exited with code 1", "", Millis(4));
    assert_eq!(dispatch.poll_timeout(), Some(Millis(4) + RESTART_BASE_MS));
}

#[test]
fn a_shutdown_stops_every_plugin_and_deletes_none() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_shutdown(Millis(1));
    assert!(!dispatch.is_quiet());
    let steps = settle(&mut dispatch, Millis(1));
    assert!(
        steps.iter().all(|step| matches!(step, Action::Plugin(PluginAction::Stop(_)))) && steps.len() == 2,
        "{steps:?}"
    );
    assert!(dispatch.is_quiet());
    configure(&mut dispatch, vec![config("c", 1)], Millis(2));
    assert!(matches!(settle(&mut dispatch, Millis(2))[..], [Action::Complain(_)]));
}

fn running(dispatch: &Dispatch) -> Vec<PluginConfig> {
    dispatch.plugins().filter_map(|plugin| plugin.running.cloned()).collect()
}

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
    /// What ran last of each, unless it could not be prepared again since.
    ran: BTreeMap<PluginName, PluginConfig>,
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
                Action::Complain(_) | Action::Plugin(PluginAction::Keep(_)) => {}
                other => panic!("nobody asked for {other:?}"),
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
                dispatch.handle_preparation_failed(&config.name, id, "it was not to be", now);
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
        let mut wanted = Vec::new();
        let mut now = Millis(0);
        for event in events {
            match event {
                Event::Configure(plugins) => {
                    wanted = plugins.into_iter().map(|(name, version)| config(&format!("p{name}"), version)).collect();
                    configure(&mut dispatch, wanted.clone(), now);
                }
                Event::Answer { which, well } => shell.answer(&mut dispatch, which, well, now),
                Event::Die(which) => {
                    if let Some(name) = which.checked_rem(shell.running.len()).and_then(|n| shell.running.keys().nth(n)).cloned() {
                        shell.running.remove(&name);
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

#[test]
fn what_the_agent_fails_at_is_complained_of_and_the_last_of_it_stays_in_its_state() {
    let mut dispatch = Dispatch::new("1".into());
    for n in 0..=MAX_STATE_DETAILS {
        dispatch.handle_agent_failed(format!("failure {n}"));
        assert_eq!(dispatch.poll_action(), Some(Action::Complain(format!("failure {n}"))));
    }
    assert_eq!(dispatch.state_details.len(), MAX_STATE_DETAILS);
    let ends = (dispatch.state_details.front(), dispatch.state_details.back());
    let last = format!("failure {MAX_STATE_DETAILS}");
    assert_eq!(ends, (Some(&"failure 1".to_owned()), Some(&last)));
}
