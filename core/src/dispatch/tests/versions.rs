//! One version of a plugin follows another.

use alloc::vec;
use alloc::vec::Vec;

use super::super::*;
use super::{config, configure, running, settle};

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
