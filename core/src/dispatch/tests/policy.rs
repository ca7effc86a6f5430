//! What a host's owner does not allow.

use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;

use elklet_proto::data_type::SET_METADATA;
use elklet_proto::grpc::Task;

use super::super::*;
use super::{config, configure, running, settle};
use crate::command::{AllowedTask, SetMetadata, Sha256};

fn names(names: &[&str]) -> Option<Vec<PluginName>> {
    Some(names.iter().map(|name| name.parse().expect("valid")).collect())
}

/// The plugins that the actions forbid, each with why.
fn forbidden(actions: &[Action]) -> Vec<(&str, Forbidden)> {
    let forbidden = actions.iter().filter_map(|action| match action {
        Action::Forbid(plugin, why) => Some((plugin.as_str(), *why)),
        _ => None,
    });
    forbidden.collect()
}

#[test]
fn a_plugin_that_the_owner_does_not_allow_is_not_started_and_others_are() {
    let mut dispatch = Dispatch::new("1".into());
    dispatch.handle_policy(Policy { plugins: names(&["a"]), ..Policy::default() }, Millis(0));
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    let done = settle(&mut dispatch, Millis(0));
    assert_eq!(forbidden(&done), [("b", Forbidden::Plugin)]);
    assert_eq!(running(&dispatch), [config("a", 1)]);
    let told = "plugin b: this host's owner does not allow it: policy.plugins does not have it";
    assert_eq!(dispatch.state_details(Millis(0)), [told], "the server learns of it");
}

#[test]
fn an_executable_is_allowed_by_its_hash() {
    let mut dispatch = Dispatch::new("1".into());
    let policy = Policy { executables: Some(vec![Sha256([1; 32])]), ..Policy::default() };
    dispatch.handle_policy(policy, Millis(0));
    configure(&mut dispatch, vec![config("a", 1), config("b", 2)], Millis(0));
    let done = settle(&mut dispatch, Millis(0));
    assert_eq!(forbidden(&done), [("b", Forbidden::Executable)]);
    assert_eq!(running(&dispatch), [config("a", 1)]);
    // Another version of what runs is no better than a new plugin. What runs is not wanted any more either.
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    assert_eq!(forbidden(&settle(&mut dispatch, Millis(1))).len(), 1);
    assert_eq!(running(&dispatch), []);
}

#[test]
fn a_new_policy_ends_what_it_forbids_and_keeps_the_rest() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_policy(Policy { plugins: names(&["a", "b"]), ..Policy::default() }, Millis(1));
    assert_eq!(dispatch.poll_action(), None, "it forbids nothing that is there");
    dispatch.handle_policy(Policy { plugins: names(&["b"]), ..Policy::default() }, Millis(1));
    let kept = PluginAction::Keep(vec![config("b", 1)]).into();
    assert_eq!(dispatch.poll_action(), Some(kept));
    let done = settle(&mut dispatch, Millis(1));
    let a = config("a", 1).name;
    assert_eq!(done[1..], [PluginAction::Stop(a.clone()).into(), PluginAction::Remove(a).into()]);
    assert_eq!(running(&dispatch), [config("b", 1)]);
}

#[test]
fn a_version_that_is_forbidden_neither_runs_on_nor_stands_in() {
    let only_the_second = || Policy { executables: Some(vec![Sha256([2; 32])]), ..Policy::default() };
    // The first version runs until the second one has been fetched.
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    let begun: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    let Some(Action::Plugin(PluginAction::Prepare(id, _))) = begun.last() else { panic!("{begun:?}") };
    dispatch.handle_policy(only_the_second(), Millis(2));
    let name = config("a", 1).name;
    let actions: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    assert_eq!(
        actions,
        [Action::Forbid(name.clone(), Forbidden::Executable), PluginAction::Stop(name.clone()).into()],
        "it ends at once"
    );
    dispatch.handle_exited(&name, "", "", Millis(3));
    assert_eq!(dispatch.poll_action(), None, "it does not stand in for the second");
    dispatch.handle_prepared(&name, *id, Millis(4));
    settle(&mut dispatch, Millis(4));
    assert_eq!(running(&dispatch), [config("a", 2)]);

    // The first version is still about to end when the second is named.
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_policy(only_the_second(), Millis(1));
    configure(&mut dispatch, vec![config("a", 2)], Millis(2));
    dispatch.handle_exited(&name, "", "", Millis(3));
    let done = settle(&mut dispatch, Millis(3));
    let prepared = done.iter().filter_map(|action| match action {
        Action::Plugin(PluginAction::Prepare(_, config)) => Some(config),
        _ => None,
    });
    assert_eq!(prepared.collect::<Vec<_>>(), [&config("a", 2)]);

    // The second version could not be started, and the first has been prepared in its place.
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    settle(&mut dispatch, Millis(1));
    dispatch.handle_spawn_failed(&name, "out of memory", Millis(2));
    let begun: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    let [Action::Plugin(PluginAction::Prepare(first, _)), Action::Complain(_)] = &begun[..] else {
        panic!("{begun:?}")
    };
    dispatch.handle_policy(only_the_second(), Millis(3));
    let actions: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    let [Action::Plugin(PluginAction::Forget(given_up)), Action::Plugin(PluginAction::Prepare(id, next))] =
        &actions[..]
    else {
        panic!("{actions:?}")
    };
    assert_eq!((given_up, next), (first, &config("a", 2)));
    dispatch.handle_prepared(&name, *id, Millis(3));
    settle(&mut dispatch, Millis(3));
    assert_eq!(running(&dispatch), [config("a", 2)]);
}

#[test]
fn a_policy_at_the_end_leaves_files_as_they_are() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_shutdown(Millis(1));
    settle(&mut dispatch, Millis(1));
    dispatch.handle_policy(Policy { plugins: names(&[]), ..Policy::default() }, Millis(2));
    assert_eq!(dispatch.poll_action(), None);
}

#[test]
fn what_was_kept_is_held_to_the_policy_of_this_start() {
    let mut dispatch = Dispatch::new("1".into());
    dispatch.handle_policy(Policy { plugins: names(&["b"]), ..Policy::default() }, Millis(0));
    dispatch.handle_kept(vec![config("a", 1), config("b", 1)], Millis(0));
    assert_eq!(forbidden(&settle(&mut dispatch, Millis(0))).len(), 1);
    assert_eq!(running(&dispatch), [config("b", 1)]);
}

#[test]
fn tasks_that_are_not_allowed_are_answered() {
    let mut dispatch = Dispatch::new("1".into());
    let tasks = vec![
        AllowedTask { object_name: AGENT_NAME.into(), data_type: Some(SET_METADATA) },
        AllowedTask { object_name: "a".into(), data_type: None },
    ];
    dispatch.handle_policy(Policy { tasks: Some(tasks), tasks_per_minute: 2, ..Policy::default() }, Millis(0));
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    let plugin = |name: &str| {
        Command::PluginTask(Task { data_type: 9, object_name: name.into(), data: String::new(), token: "t".into() })
    };
    let metadata = SetMetadata { token: "t".into(), idc: None, region: None };
    let mut answer = |command: Command, now: u64| {
        dispatch.handle_command(command, Millis(now));
        match settle(&mut dispatch, Millis(now)).pop() {
            Some(Action::Answer(TaskFailure { token, message })) if token == "t" => Some(message),
            _ => None,
        }
    };
    let not_it = "this host's owner does not allow it: policy.tasks does not have it";
    assert_eq!(answer(plugin("b"), 0).as_deref(), Some(not_it));
    assert_eq!(answer(Command::AgentTask(AgentTask::Shutdown { token: "t".into() }), 0).as_deref(), Some(not_it));
    assert_eq!(answer(plugin("a"), 0), None);
    assert_eq!(answer(Command::AgentTask(AgentTask::SetMetadata(metadata.clone())), 0), None);
    let too_many = "policy.tasks_per_minute = 2 is used up for this minute";
    assert_eq!(answer(plugin("a"), 59_999).as_deref(), Some(too_many), "those that were refused do not count");
    assert_eq!(answer(plugin("a"), 60_000), None);
}

#[test]
fn what_is_allowed_again_runs_although_the_server_does_not_name_it_again() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1), config("b", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_policy(Policy { plugins: names(&["b"]), ..Policy::default() }, Millis(1));
    settle(&mut dispatch, Millis(1));
    assert_eq!(running(&dispatch), [config("b", 1)]);
    // A list that comes meanwhile is the one that counts.
    configure(&mut dispatch, vec![config("a", 2), config("b", 1)], Millis(2));
    settle(&mut dispatch, Millis(2));
    dispatch.handle_policy(Policy::default(), Millis(3));
    let kept = PluginAction::Keep(vec![config("b", 1), config("a", 2)]).into();
    assert_eq!(dispatch.poll_action(), Some(kept));
    settle(&mut dispatch, Millis(3));
    assert_eq!(running(&dispatch), [config("a", 2), config("b", 1)]);
    // What the server does not want any more stays away.
    dispatch.handle_policy(Policy { plugins: names(&["b"]), ..Policy::default() }, Millis(4));
    configure(&mut dispatch, vec![config("b", 1)], Millis(5));
    dispatch.handle_policy(Policy::default(), Millis(6));
    settle(&mut dispatch, Millis(6));
    assert_eq!(running(&dispatch), [config("b", 1)]);
}
