//! What a configuration, a task and the end come to.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::slice;

use super::super::*;
use super::{config, configure, running, settle};
use crate::command::{AgentEntry, BadPackage, BadTask, RefusedConfig, Sha256, Signature};
use crate::limits::MAX_PLUGINS;

fn task(name: &str) -> Command {
    Command::PluginTask(Task { data_type: 9, object_name: name.into(), data: String::new(), token: "t".into() })
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

/// As many plugins as a configuration can name.
fn many(prefix: &str) -> Vec<PluginConfig> {
    (0..MAX_PLUGINS).map(|number| config(&format!("{prefix}-{number}"), 1)).collect()
}

/// Lets the plugins of three configurations follow each other, so that those of the third wait for the first two to end. Returns whose
/// processes are told to.
fn crowded(dispatch: &mut Dispatch) -> Vec<PluginName> {
    let mut stopping = Vec::new();
    for prefix in ["a", "b", "c"] {
        configure(dispatch, many(prefix), Millis(0));
        while let Some(action) = dispatch.poll_action() {
            match action {
                Action::Plugin(PluginAction::Prepare(id, config)) => {
                    dispatch.handle_prepared(&config.name, id, Millis(0))
                }
                Action::Plugin(PluginAction::Stop(name)) => stopping.push(name),
                _ => {}
            }
        }
    }
    stopping
}

fn end_all(dispatch: &mut Dispatch, stopping: Vec<PluginName>) {
    for name in stopping {
        dispatch.handle_exited(&name, "exited with code 0", "", Millis(1));
        settle(dispatch, Millis(1));
    }
}

#[test]
fn plugins_for_which_others_have_to_end_first_wait_for_that() {
    let mut dispatch = Dispatch::new("1".into());
    let stopping = crowded(&mut dispatch);
    // Those of b run while those of a end: there is room for no more.
    assert_eq!((stopping.len(), dispatch.plugins().count()), (2 * MAX_PLUGINS, 2 * MAX_PLUGINS));
    end_all(&mut dispatch, stopping);
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
fn of_those_that_wait_for_others_to_end_the_policy_takes_those_that_it_forbids() {
    let mut dispatch = Dispatch::new("1".into());
    let stopping = crowded(&mut dispatch);
    let allowed = many("c").swap_remove(1);
    dispatch.handle_policy(Policy { plugins: Some(vec![allowed.name.clone()]), ..Policy::default() }, Millis(1));
    end_all(&mut dispatch, stopping);
    assert_eq!(running(&dispatch), [allowed]);
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
    assert_eq!(settle(&mut dispatch, Millis(1)), [Action::Refuse("bad hash".into())]);
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
