//! What the shell reports to the agent: what is counted of it, and what it changes.

use super::*;
use crate::delivery::spool::Found;
use crate::limits::{CONFIRM_GRACE_MS, PING_INTERVAL_MS};
use crate::link::session::CONNECT_TIMEOUT_MS;

fn with_endpoints(endpoints: Endpoints) -> Agent<u32> {
    let setup = Setup {
        version: "1".to_string(),
        endpoints,
        timing: Timing::default(),
        bounds: Bounds { memory: LEDGER_BYTES, spool: 0 },
        replay_ms: 0,
        trial: None,
        seed: 1,
    };
    Agent::new(setup, Millis(0))
}

fn upload(token: &str) -> Command {
    let upload = Upload { token: token.to_string(), path: "/x".to_string(), buf_size: 1 };
    Command::AgentTask(AgentTask::Upload(upload))
}

fn exit_of(actions: &[Action<u32>]) -> Option<After> {
    actions.iter().find_map(|action| if let Action::Exit(after) = action { Some(*after) } else { None })
}

#[test]
fn what_discovery_names_is_connected_to_and_credit_confirms() {
    let mut agent = with_endpoints(Endpoints { discovery: 1, ..Endpoints::default() });
    agent.handle_start(Vec::new(), Millis(0));
    let asked = actions(&mut agent, EMPTY, Millis(0));
    let [Action::Link(session::Action::Resolve { attempt, .. })] = asked[..] else { panic!("{asked:?}") };
    agent.handle_resolved(attempt, 1, Millis(0));
    let attempt = connect(&mut agent, Millis(0));
    actions(&mut agent, EMPTY, Millis(0));
    agent.handle_written(attempt, Millis(0));
    agent.handle_batch(batch(1));
    assert_eq!(actions(&mut agent, EMPTY, Millis(0)), [send(1)]);
    agent.handle_written(attempt, Millis(0));
    // The heartbeat's bytes, the batch's, and as many as the largest message has.
    agent.handle_credit(300, Millis(0));
    assert_eq!(agent.delivery_counters().confirmed, 0);
    agent.handle_credit(301, Millis(0));
    assert_eq!(agent.delivery_counters().confirmed, 1);
}

#[test]
fn an_attempt_that_comes_to_nothing_is_counted_once_and_followed_by_another() {
    let mut agent = with_endpoints(Endpoints { discovery: 1, ..Endpoints::default() });
    agent.handle_start(Vec::new(), Millis(0));
    let asked = actions(&mut agent, EMPTY, Millis(0));
    let [Action::Link(session::Action::Resolve { attempt, .. })] = asked[..] else { panic!("{asked:?}") };
    agent.handle_not_resolved(attempt, Millis(1));
    agent.handle_not_resolved(attempt, Millis(2));
    assert_eq!(agent.link_counters().connect_failures, 1);
    let back = agent.session().waits_until().expect("it waits for its turn");
    let asked = actions(&mut agent, EMPTY, back);
    assert!(matches!(asked.last(), Some(Action::Link(session::Action::Resolve { .. }))), "{asked:?}");

    let mut agent = agent_with(0, None);
    agent.handle_start(Vec::new(), Millis(0));
    actions(&mut agent, EMPTY, Millis(0));
    actions(&mut agent, EMPTY, Millis(CONNECT_TIMEOUT_MS));
    assert_eq!(agent.link_counters().connect_failures, 1, "nobody answered");
}

#[test]
fn a_stream_that_is_reported_twice_is_one_stream() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_opened(attempt, Millis(1));
    assert_eq!((actions(&mut agent, EMPTY, Millis(1)), agent.link_counters().streams), (vec![], 1));
}

#[test]
fn commands_and_their_bytes_are_counted() {
    let mut agent = agent_with(0, None);
    agent.handle_command(Command::Nothing, 5, Millis(0));
    agent.handle_command(Command::Nothing, 7, Millis(0));
    assert_eq!((agent.counters().commands, agent.counters().received_bytes), (2, 12));
}

#[test]
fn what_plugins_wrote_in_vain_is_counted_as_lost() {
    let mut agent = agent_with(0, None);
    agent.handle_lost_frames(Cause::FrameInvalid, row(3));
    assert_eq!(agent.losses().total(Cause::FrameInvalid), 3);
}

#[test]
fn an_update_that_fails_or_is_refused_shows_in_the_state() {
    let mut agent = agent_with(0, None);
    agent.handle_update_refused("updates are off".to_string());
    assert_eq!(agent.state_details(Millis(0)), ["updates are off"]);
    agent.handle_updated(Err("no room".to_string()), Millis(0));
    assert_eq!(agent.state_details(Millis(0)), ["updates are off", "no room"]);
    assert!(!agent.is_ending());
}

#[test]
fn the_last_word_on_what_the_agent_becomes_is_that_of_who_ends_it() {
    let mut agent = agent_with(0, None);
    let _ = agent.handle_terminate(Millis(0));
    agent.handle_updated(Ok(()), Millis(0));
    assert_eq!(exit_of(&actions(&mut agent, EMPTY, Millis(0))), Some(After::Exit), "it was ending already");

    let mut agent = agent_with(0, None);
    agent.handle_updated(Ok(()), Millis(0));
    agent.handle_shutdown(Millis(0));
    assert_eq!(exit_of(&actions(&mut agent, EMPTY, Millis(0))), Some(After::Exit), "the server wants it to end");
    let mut agent = agent_with(0, None);
    agent.handle_shutdown(Millis(0));
    assert!(agent.is_ending());
}

#[test]
fn a_new_limit_of_the_spool_counts_for_what_lies_there() {
    let mut agent = agent_with(1 << 24, None);
    actions(&mut agent, EMPTY, Millis(0));
    let found = Found { number: 0, mark: 24, end: 2_000, first_record: 0, end_record: 5 };
    agent.handle_spool(Done::Opened(vec![found]), Millis(0));
    assert_eq!(actions(&mut agent, EMPTY, Millis(0)), []);
    agent.set_spool_bytes(1_000);
    let asked = actions(&mut agent, EMPTY, Millis(0));
    assert!(matches!(asked[..], [Action::Delivery(feed::Action::Spool { op: Op::Drop(_), .. })]), "{asked:?}");
}

/// Announces the stream's end, because the servers are others now.
fn half_close(agent: &mut Agent<u32>, private: usize, now: Millis) {
    let endpoints = Endpoints { private, ..Endpoints::default() };
    agent.handle_reconfigured(endpoints, Timing::default(), false, now);
    assert_eq!(actions(agent, EMPTY, now), [Action::Link(session::Action::HalfClose)]);
}

#[test]
fn a_stream_that_ends_in_order_after_the_agent_has_announced_it_has_taken_everything() {
    for (is_announced, end, confirmed) in [(true, End::Ok, 1), (true, End::Unexplained, 0), (false, End::Ok, 0)] {
        let mut agent = agent_with(0, None);
        let attempt = connected(&mut agent);
        agent.handle_batch(batch(1));
        assert_eq!(actions(&mut agent, EMPTY, Millis(1)), [send(1)]);
        agent.handle_written(attempt, Millis(1));
        if is_announced {
            half_close(&mut agent, 2, Millis(2));
        }
        agent.handle_ended(attempt, end, Millis(3));
        assert_eq!(agent.delivery_counters().confirmed, confirmed, "{end:?}");
        assert_eq!(agent.unconfirmed(EMPTY).memory_records, 1 - confirmed);
    }
}

#[test]
fn no_record_is_to_blame_for_the_end_of_a_stream_that_the_agent_had_announced() {
    let mut agent = agent_with(0, None);
    agent.handle_start(Vec::new(), Millis(0));
    agent.handle_batch(batch(1));
    let mut now = Millis(0);
    for stream in 0..4 {
        let attempt = connect(&mut agent, now);
        assert!(actions(&mut agent, EMPTY, now).ends_with(&[send(0), send(1)]));
        half_close(&mut agent, 2 + stream % 2, now);
        agent.handle_ended(attempt, End::TooLarge, now);
        now = now + 10_000;
    }
    assert_eq!((agent.losses().sum(), agent.unconfirmed(EMPTY).memory_records), (0, 1));
}

#[test]
fn a_server_that_finds_pings_too_frequent_gets_fewer_for_records_and_to_keep_the_stream() {
    let pings =
        |agent: &mut Agent<u32>, now| actions(agent, EMPTY, Millis(now)).contains(&Action::Link(session::Action::Ping));
    let mut agent = agent_with(0, None);
    let first = connected(&mut agent);
    agent.handle_ended(first, End::TooManyPings, Millis(0));
    let back = agent.session().waits_until().expect("it waits for its turn");
    let attempt = connect(&mut agent, back);
    actions(&mut agent, EMPTY, back);
    agent.handle_written(attempt, back);
    for message in [1, 2] {
        agent.handle_batch(batch(message));
    }
    assert!(actions(&mut agent, EMPTY, back).ends_with(&[send(1), send(2)]));
    agent.handle_written(attempt, back);
    let asked = back.0 + CONFIRM_GRACE_MS;
    assert!(pings(&mut agent, asked), "the first was written a while ago");
    // The second is written after that, so that a further PING is wanted.
    agent.handle_written(attempt, Millis(asked + 1));
    agent.handle_pong(attempt, Millis(asked + 1));
    assert!(!pings(&mut agent, asked + 2 * PING_INTERVAL_MS - 1));
    assert!(pings(&mut agent, asked + 2 * PING_INTERVAL_MS));
}

#[test]
fn an_upload_begins_only_while_there_is_a_stream() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    ["a", "b"].into_iter().for_each(|token| agent.handle_command(upload(token), 1, Millis(0)));
    assert!(matches!(actions(&mut agent, EMPTY, Millis(0))[..], [Action::Task(AgentTask::Upload(_))]));
    agent.handle_ended(attempt, End::Silent, Millis(1));
    agent.handle_uploaded(Ok(()));
    assert!(!actions(&mut agent, EMPTY, Millis(1)).iter().any(|action| matches!(action, Action::Task(_))));
    let back = agent.session().waits_until().expect("it waits for its turn");
    connect(&mut agent, back);
    let asked = actions(&mut agent, EMPTY, back);
    let next = |action: &Action<u32>| matches!(action, Action::Task(AgentTask::Upload(next)) if next.token == "b");
    assert!(asked.iter().any(next), "{asked:?}");
}

#[test]
fn a_plugin_that_cannot_be_had_or_started_is_complained_of_and_does_not_hold_up_the_end() {
    let plugin = plugin();
    let name = plugin.name.clone();
    let mut agent = agent_with(0, None);
    agent.handle_start(vec![plugin], Millis(0));
    let mut now = Millis(0);
    let mut prepare = |agent: &mut Agent<u32>| {
        let asked = actions(agent, EMPTY, now);
        let id = asked.iter().find_map(|action| match action {
            Action::Plugin(PluginAction::Prepare(id, _)) => Some(*id),
            _ => None,
        });
        now = now + 10_000;
        id.expect("it is prepared")
    };
    let complaints = |agent: &mut Agent<u32>, now| {
        actions(agent, EMPTY, now).iter().filter(|action| matches!(action, Action::Complain(_))).count()
    };
    let id = prepare(&mut agent);
    agent.handle_preparation_failed(&name, id, "no such host", Millis(1));
    assert_eq!(complaints(&mut agent, Millis(1)), 1);
    let id = prepare(&mut agent);
    agent.handle_prepared(&name, id, Millis(10_000));
    assert!(matches!(actions(&mut agent, EMPTY, Millis(10_000))[..], [Action::Plugin(PluginAction::Spawn(..))]));
    agent.handle_spawn_failed(&name, "exec format error", Millis(10_000));
    assert_eq!(complaints(&mut agent, Millis(10_000)), 1);
    let _ = agent.handle_terminate(Millis(10_001));
    assert_eq!(
        exit_of(&actions(&mut agent, EMPTY, Millis(10_001))),
        Some(After::Exit),
        "there are no pipes to be read"
    );
}

#[test]
fn what_a_cut_batch_may_not_hold_is_counted_as_lost() {
    let mut agent = agent_with(0, None);
    agent.handle_batch(batch(1));
    agent.handle_cut(Vec::new(), &[row(1)]);
    assert_eq!((agent.losses().total(Cause::NoFields), agent.unconfirmed(EMPTY).memory_records), (1, 0));
}

#[test]
fn a_trial_wakes_the_agent_until_it_ends() {
    let mut agent = agent_with(0, Some(Trial::new(Millis(0), 5_000, 60_000)));
    assert_eq!(agent.poll_timeout(EMPTY, Millis(0)), Some(Millis(60_000)));
    let _ = agent.handle_terminate(Millis(59_000));
    assert!(agent.poll_timeout(EMPTY, Millis(59_000)).is_none_or(|due| due > Millis(60_000)));
}
