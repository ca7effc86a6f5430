//! One plugin whose versions die, fail and stand in for one another.

use alloc::vec;

use super::*;

/// Lets plugin a die so often, each time as soon as it is started, and starts it again.
fn dies(dispatch: &mut Dispatch, times: u32) -> Millis {
    let mut now = Millis(0);
    for _ in 0..times {
        dispatch.handle_exited(&config("a", 1).name, "exited with code 1", "", now);
        now = dispatch.poll_timeout().expect("it is started again");
        dispatch.handle_timeout(now);
        settle(dispatch, now);
    }
    now
}

#[test]
fn the_same_configuration_once_more_forgives_a_plugin_that_runs_again_but_not_a_crash_loop() {
    for (deaths, complaints) in [(2, 0), (3, 1)] {
        let mut dispatch = Dispatch::new("1".into());
        configure(&mut dispatch, vec![config("a", 1)], Millis(0));
        settle(&mut dispatch, Millis(0));
        let now = dies(&mut dispatch, deaths);
        assert_eq!((running(&dispatch).len(), dispatch.state_details(now).len()), (1, 1));
        configure(&mut dispatch, vec![config("a", 1)], now);
        assert_eq!(dispatch.state_details(now).len(), complaints, "{deaths} deaths");
    }
}

#[test]
fn a_version_that_died_once_stands_in_while_its_successor_is_fetched() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_exited(&config("a", 1).name, "exited with code 1", "", Millis(1));
    configure(&mut dispatch, vec![config("a", 2)], Millis(2));
    let prepared = settle(&mut dispatch, Millis(2)).into_iter().filter_map(|action| match action {
        Action::Plugin(PluginAction::Prepare(_, config)) => Some(config),
        _ => None,
    });
    assert_eq!(prepared.collect::<Vec<_>>(), [config("a", 1), config("a", 2)]);
}

#[test]
fn a_plugin_shows_its_phase_and_the_configuration_that_it_runs_by_or_is_to_run_by() {
    let shown = |dispatch: &Dispatch| {
        let plugins = dispatch.plugins().map(|plugin| (plugin.phase, plugin.config.cloned()));
        plugins.collect::<Vec<_>>()
    };
    let prepare = |dispatch: &mut Dispatch| {
        let prepare = core::iter::from_fn(|| dispatch.poll_action()).find_map(|action| match action {
            Action::Plugin(PluginAction::Prepare(id, _)) => Some(id),
            _ => None,
        });
        prepare.expect("it is prepared")
    };
    let name = config("a", 1).name;
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    assert_eq!(shown(&dispatch), [("preparing", Some(config("a", 1)))]);
    let id = prepare(&mut dispatch);
    dispatch.handle_preparation_failed(&name, id, "no such host", Millis(0));
    assert_eq!(shown(&dispatch), [("waiting", Some(config("a", 1)))]);
    dispatch.handle_timeout(Millis(RESTART_BASE_MS));
    settle(&mut dispatch, Millis(RESTART_BASE_MS));
    configure(&mut dispatch, vec![config("a", 2)], Millis(RESTART_BASE_MS));
    assert_eq!(shown(&dispatch), [("running", Some(config("a", 1)))], "the other version is not there yet");
    let id = prepare(&mut dispatch);
    dispatch.handle_prepared(&name, id, Millis(RESTART_BASE_MS));
    assert_eq!(shown(&dispatch), [("stopping", Some(config("a", 2)))]);
}

/// The actions that are asked for now, and the last preparation among them.
fn orders(dispatch: &mut Dispatch) -> (Vec<Action>, Option<(Preparation, PluginConfig)>) {
    let orders: Vec<_> = core::iter::from_fn(|| dispatch.poll_action()).collect();
    let prepare = orders.iter().rev().find_map(|action| match action {
        Action::Plugin(PluginAction::Prepare(id, config)) => Some((*id, config.clone())),
        _ => None,
    });
    (orders, prepare)
}

#[test]
fn what_is_still_reported_of_a_preparation_that_was_given_up_is_ignored() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    let (_, given_up) = orders(&mut dispatch);
    let (given_up, _) = given_up.expect("it is prepared");
    configure(&mut dispatch, vec![config("a", 2)], Millis(0));
    let (_, next) = orders(&mut dispatch);
    dispatch.handle_preparation_failed(&config("a", 1).name, given_up, "no such host", Millis(1));
    dispatch.handle_prepared(&config("a", 1).name, given_up, Millis(1));
    assert_eq!((orders(&mut dispatch).0, dispatch.state_details(Millis(1))), (vec![], vec![]));
    dispatch.handle_prepared(&config("a", 1).name, next.expect("it is prepared").0, Millis(1));
    assert_eq!(running(&dispatch), [config("a", 2)]);
}

/// The complaints among these.
fn complaints(actions: Vec<Action>) -> Vec<String> {
    let complaints = actions.into_iter().filter_map(|action| match action {
        Action::Complain(what) => Some(what),
        _ => None,
    });
    complaints.collect()
}

#[test]
fn a_plugin_that_is_held_back_is_looked_at_once_a_minute_told_once_and_started_when_it_may() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    let shown = |dispatch: &Dispatch| {
        let plugin = dispatch.plugins().next().expect("it is configured");
        (plugin.phase, plugin.retry_at, plugin.restarts)
    };
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_exited(&name, "was killed by signal 9 (it is full)", "", Millis(1));
    let mut now = Millis(1 + RESTART_BASE_MS);
    let mut told = Vec::new();
    for _ in 0..5 {
        dispatch.handle_timeout(now);
        let (actions, prepare) = orders(&mut dispatch);
        told.extend(complaints(actions));
        assert_eq!(shown(&dispatch), ("preparing", None, 1));
        dispatch.handle_held_back(&name, prepare.expect("it is looked at").0, "it is full", now);
        let (actions, prepare) = orders(&mut dispatch);
        told.extend(complaints(actions));
        assert_eq!(prepare, None);
        // It is no failure, so the next look does not come later each time.
        assert_eq!(shown(&dispatch), ("held back", Some(now + HELD_BACK_MS), 1));
        assert_eq!(dispatch.state_details(now), ["plugin a cannot be started: it is full"]);
        now = now + HELD_BACK_MS;
    }
    let died = "plugin a was killed by signal 9 (it is full) unexpectedly";
    assert_eq!(told, [died, "plugin a cannot be started: it is full"]);

    // The same configuration changes nothing, and another one is tried at once, and told.
    configure(&mut dispatch, vec![config("a", 1)], Millis(now.0 - 1));
    assert_eq!((orders(&mut dispatch).1, dispatch.poll_timeout()), (None, Some(now)));
    configure(&mut dispatch, vec![config("a", 2)], Millis(now.0 - 1));
    let (id, stand_in) = orders(&mut dispatch).1.expect("it is prepared");
    assert_eq!(stand_in, config("a", 2));
    dispatch.handle_held_back(&name, id, "it is full", now);
    assert_eq!(complaints(orders(&mut dispatch).0).len(), 1);

    // There is room again.
    now = now + HELD_BACK_MS;
    dispatch.handle_timeout(now);
    settle(&mut dispatch, now);
    assert_eq!((running(&dispatch), dispatch.poll_timeout()), (vec![config("a", 2)], None));
    assert!(dispatch.state_details(now).is_empty());
}

#[test]
fn an_update_that_is_held_back_leaves_the_version_that_runs() {
    let mut dispatch = Dispatch::new("1".into());
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(1));
    let (id, _) = orders(&mut dispatch).1.expect("it is prepared");
    dispatch.handle_held_back(&config("a", 1).name, id, "it is full", Millis(1));
    assert_eq!(complaints(orders(&mut dispatch).0), ["plugin a cannot be started: it is full; version 1 runs on"]);
    assert_eq!((running(&dispatch), dispatch.poll_timeout()), (vec![config("a", 1)], Some(Millis(1 + HELD_BACK_MS))));
    // Nobody wants it any more.
    configure(&mut dispatch, vec![], Millis(2));
    settle(&mut dispatch, Millis(2));
    assert_eq!((dispatch.plugins().count(), dispatch.poll_timeout()), (0, None));
}

#[test]
fn when_neither_a_version_nor_its_stand_in_can_be_started_both_wait() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_spawn_failed(&name, "exec format error", Millis(1));
    let (id, stand_in) = orders(&mut dispatch).1.expect("it is verified");
    assert_eq!(stand_in, config("a", 1));
    dispatch.handle_preparation_failed(&name, id, "no such file", Millis(1));
    assert!(orders(&mut dispatch).1.is_none());
    assert_eq!(dispatch.poll_timeout(), Some(Millis(1 + RESTART_BASE_MS)));
    dispatch.handle_timeout(Millis(1 + RESTART_BASE_MS));
    assert_eq!(orders(&mut dispatch).1.expect("it is tried again").1, config("a", 2));
}

#[test]
fn the_download_of_a_successor_is_not_begun_anew_for_a_version_that_crashes_in_a_loop() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(0));
    let (_, mut download) = orders(&mut dispatch);
    let die = |dispatch: &mut Dispatch| {
        dispatch.handle_exited(&name, "exited with code 1", "", dispatch.poll_timeout().unwrap_or_default());
        let due = dispatch.poll_timeout().expect("it is started again");
        dispatch.handle_timeout(due);
        (orders(dispatch).1, due)
    };
    for _ in 0..2 {
        let (old, due) = die(&mut dispatch);
        let (id, old) = old.expect("it is verified");
        assert_eq!(old, config("a", 1));
        dispatch.handle_prepared(&old.name, id, due);
        (_, download) = orders(&mut dispatch);
    }
    let (none, due) = die(&mut dispatch);
    assert_eq!(none, None, "it has crashed three times");
    let (id, next) = download.expect("it is fetched");
    dispatch.handle_prepared(&next.name, id, due);
    assert_eq!(running(&dispatch), [config("a", 2)]);
}

#[test]
fn a_version_that_died_and_cannot_be_had_again_is_tried_after_a_longer_wait() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    dispatch.handle_exited(&name, "exited with code 1", "", Millis(0));
    let due = Millis(RESTART_BASE_MS);
    dispatch.handle_timeout(due);
    let (id, _) = orders(&mut dispatch).1.expect("it is verified");
    dispatch.handle_preparation_failed(&name, id, "no such file", due);
    assert_eq!(orders(&mut dispatch).1, None);
    assert_eq!(dispatch.poll_timeout(), Some(due + 2 * RESTART_BASE_MS));
}

#[test]
fn a_version_that_is_ready_gives_way_to_a_newer_one_while_the_old_one_ends() {
    let mut dispatch = Dispatch::new("1".into());
    let name = config("a", 1).name;
    configure(&mut dispatch, vec![config("a", 1)], Millis(0));
    settle(&mut dispatch, Millis(0));
    configure(&mut dispatch, vec![config("a", 2)], Millis(0));
    let (ready, _) = orders(&mut dispatch).1.expect("it is fetched");
    dispatch.handle_prepared(&name, ready, Millis(0));
    assert_eq!(orders(&mut dispatch).0, [PluginAction::Stop(name).into()]);
    configure(&mut dispatch, vec![config("a", 3)], Millis(0));
    let (asked, next) = orders(&mut dispatch);
    assert!(asked.contains(&PluginAction::Forget(ready).into()), "{asked:?}");
    assert_eq!(next.expect("it is fetched").1, config("a", 3));
}
