//! What the agent adds to its parts: how the link, the delivery, the plugins and the end hang together. The simulation (`testing`) tries
//! all of it under faults; these are the cases that a reader should know.

mod reports;

use alloc::boxed::Box;
use alloc::string::ToString;
use alloc::vec;

use super::*;
use crate::delivery::{Kind, feed};
use crate::dispatch::{HELD_BACK_MS, TaskFailure};
use crate::limits::{CAREFUL_GAP_MS, LEDGER_BYTES, REFUSALS, SPOOL_THREAD_RETRY_MS, STREAM_AHEAD};
use crate::link::session::DRAIN_TIMEOUT_MS;
use crate::record::intake::Due;
use crate::record::manifest::Source;

const EMPTY: Level = Level { due: Due::Nothing, records: 0, is_half_full: false, may_drop: true };
const URGENT: Level = Level { due: Due::Now, records: 1, ..EMPTY };

fn agent_with(spool: u64, trial: Option<Trial>) -> Agent<u32> {
    let setup = Setup {
        version: "1".to_string(),
        endpoints: Endpoints { private: 1, ..Endpoints::default() },
        timing: Timing::default(),
        bounds: Bounds { memory: LEDGER_BYTES, spool },
        replay_ms: 0,
        trial,
        seed: 1,
    };
    Agent::new(setup, Millis(0))
}

fn row(records: u64) -> Row {
    Row { source: Source::OTHER, data_type: 59, records, first: 1, last: 2 }
}

fn batch(id: u32) -> Batch<u32> {
    Batch::new(Kind::Bulk, id, 100, 100, Box::new([row(1)])).with_fingerprint(id)
}

fn plugin() -> PluginConfig {
    PluginConfig {
        name: "p".parse().expect("a name"),
        version: "1".to_string(),
        packing: crate::command::Packing::Plain,
        download_sha256: crate::command::Sha256([1; 32]),
        executable_sha256: crate::command::Sha256([1; 32]),
        signature: None,
        urls: Vec::new(),
        detail: String::new(),
    }
}

/// Everything that the agent asks for now, with heartbeats made as message 0.
fn actions(agent: &mut Agent<u32>, level: Level, now: Millis) -> Vec<Action<u32>> {
    agent.handle_timeout(now);
    let mut actions = Vec::new();
    while let Some(action) = agent.poll_action(level, now) {
        assert!(actions.len() < 100, "it never ends: {actions:?}");
        if action == Action::Beat {
            agent.handle_batch(Batch::new(Kind::Heartbeat, 0, 100, 100, Box::default()));
        }
        actions.push(action);
    }
    actions
}

fn send(id: u32) -> Action<u32> {
    Action::Delivery(feed::Action::Send(id))
}

/// The attempt that has come to a stream, whose heartbeat is written.
fn connect(agent: &mut Agent<u32>, now: Millis) -> Attempt {
    let attempt = actions(agent, EMPTY, now).into_iter().find_map(|action| match action {
        Action::Link(session::Action::Connect { attempt, .. }) => Some(attempt),
        _ => None,
    });
    let attempt = attempt.expect("it connects");
    agent.handle_connected(attempt, now);
    agent.handle_opened(attempt, now);
    attempt
}

fn connected(agent: &mut Agent<u32>) -> Attempt {
    agent.handle_start(Vec::new(), Millis(0));
    let attempt = connect(agent, Millis(0));
    assert!(actions(agent, EMPTY, Millis(0)).ends_with(&[Action::Beat, send(0)]), "a heartbeat is the first message");
    agent.handle_written(attempt, Millis(0));
    attempt
}

#[test]
fn a_stream_begins_with_a_heartbeat_and_takes_two_messages_ahead() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    for id in 1..=3 {
        agent.handle_batch(batch(id));
    }
    let sent = actions(&mut agent, EMPTY, Millis(10));
    assert_eq!(sent, [send(1), send(2)]);
    assert_eq!(sent.len(), STREAM_AHEAD);
    agent.handle_written(attempt, Millis(11));
    assert_eq!(actions(&mut agent, EMPTY, Millis(11)), [send(3)]);
}

#[test]
fn a_heartbeat_that_is_due_waits_for_room_and_sets_no_timer_for_it() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_batch(batch(1));
    agent.handle_batch(batch(2));
    assert_eq!(actions(&mut agent, EMPTY, Millis(1)), [send(1), send(2)]);
    let mut now = Millis(1);
    while now < Millis(HEARTBEAT_INTERVAL_MS + 1) {
        now = agent.poll_timeout(EMPTY, now).expect("keepalives are due").min(Millis(HEARTBEAT_INTERVAL_MS + 1));
        let asked = actions(&mut agent, EMPTY, now);
        assert!(!asked.contains(&Action::Beat));
        if asked.contains(&Action::Link(session::Action::Ping)) {
            agent.handle_pong(attempt, now);
        }
    }
    assert!(agent.poll_timeout(EMPTY, now).is_some_and(|due| due > now), "what waits for room wakes nobody");
    agent.handle_written(attempt, now);
    assert!(actions(&mut agent, EMPTY, now).starts_with(&[Action::Beat, send(0)]));
}

#[test]
fn a_broken_stream_gives_back_what_was_not_confirmed_and_the_next_begins_with_it() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_batch(batch(1));
    assert_eq!(actions(&mut agent, EMPTY, Millis(10)), [send(1)]);
    agent.handle_ended(attempt, End::Silent, Millis(6_000));
    assert_eq!(agent.delivery_counters().again, 1);
    agent.handle_pong(attempt, Millis(6_001));
    agent.handle_written(attempt, Millis(6_001));
    let back = agent.session().waits_until().expect("it waits for its turn");
    connect(&mut agent, back);
    assert!(actions(&mut agent, EMPTY, back).ends_with(&[Action::Beat, send(0), send(1)]));
    assert_eq!(agent.link_counters().streams, 2);
}

#[test]
fn only_what_came_to_no_stream_counts_as_a_failure_to_connect() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    let silent = agent.poll_timeout(EMPTY, Millis(0)).expect("a keepalive");
    assert!(actions(&mut agent, EMPTY, silent).contains(&Action::Link(session::Action::Ping)));
    let given_up = agent.poll_timeout(EMPTY, silent).expect("an answer is due");
    actions(&mut agent, EMPTY, given_up);
    assert!(!agent.is_streaming());
    assert_eq!(agent.link_counters().connect_failures, 0);
    let begun = agent.session().waits_until().expect("it waits for its turn");
    actions(&mut agent, EMPTY, begun);
    actions(&mut agent, EMPTY, begun + session::CONNECT_TIMEOUT_MS);
    assert_eq!(agent.link_counters().connect_failures, 1);
}

#[test]
fn records_that_others_overtake_are_told() {
    let mut agent = agent_with(0, None);
    let mut attempt = connected(&mut agent);
    agent.handle_batch(batch(1));
    let mut now = Millis(0);
    let mut complaints = Vec::new();
    for _ in 0..=REFUSALS {
        let mut asked = actions(&mut agent, EMPTY, now);
        agent.handle_written(attempt, now);
        // The third stream is a careful one, which leaves a gap before the batch.
        now = now + CAREFUL_GAP_MS;
        asked.extend(actions(&mut agent, EMPTY, now));
        assert!(asked.contains(&send(1)), "{asked:?}");
        agent.handle_ended(attempt, End::Unexplained, now);
        let told = actions(&mut agent, EMPTY, now);
        complaints.push(told.iter().filter(|action| matches!(action, Action::Complain(_))).count());
        now = agent.session().waits_until().expect("it waits for its turn");
        attempt = connect(&mut agent, now);
    }
    assert_eq!(complaints, [0, 0, 1], "the first two streams may have ended for any reason");
}

#[test]
fn a_stream_that_is_half_closed_takes_nothing_more_and_still_confirms() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_batch(batch(1));
    assert_eq!(actions(&mut agent, EMPTY, Millis(10)), [send(1)]);
    agent.handle_written(attempt, Millis(10));
    agent.handle_reconfigured(Endpoints { public: 1, ..Endpoints::default() }, Timing::default(), false, Millis(10));
    agent.handle_batch(batch(2));
    assert_eq!(actions(&mut agent, EMPTY, Millis(10)), [Action::Link(session::Action::HalfClose)]);
    // The heartbeat's bytes, the batch's, and as many as the largest message has.
    agent.handle_credit(301, Millis(20));
    assert_eq!(agent.delivery_counters().confirmed, 1);
    agent.handle_ended(attempt, End::Silent, Millis(30));
    agent.handle_credit(1_000, Millis(30));
    assert_eq!((agent.delivery_counters().confirmed, agent.delivery_counters().again), (1, 0));
}

#[test]
fn the_end_waits_for_plugins_then_flushes_then_closes_then_saves() {
    let mut agent = agent_with(1 << 24, None);
    let attempt = connected(&mut agent);
    agent.handle_spool(Done::Opened(Vec::new()), Millis(0));
    assert_eq!(agent.handle_terminate(Millis(100)), Termination::InOrder);
    assert!(agent.is_ending() && agent.is_streaming());
    // No plugin runs: the counters as they are in the end leave, with what the intake still holds.
    let flushed = actions(&mut agent, EMPTY, Millis(100));
    assert!(flushed.starts_with(&[Action::Beat, send(0)]), "{flushed:?}");
    agent.handle_written(attempt, Millis(101));
    assert_eq!(actions(&mut agent, EMPTY, Millis(101)), [Action::Link(session::Action::HalfClose)]);
    agent.handle_ended(attempt, End::Ok, Millis(200));
    let end = actions(&mut agent, EMPTY, Millis(200));
    assert_eq!(end.last(), Some(&Action::Exit(After::Exit)), "{end:?}");
    assert_eq!(actions(&mut agent, EMPTY, Millis(201)), [], "nothing follows the end");
}

#[test]
fn a_server_that_does_not_end_the_stream_delays_the_end_by_ten_seconds() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    let _ = agent.handle_terminate(Millis(100));
    actions(&mut agent, EMPTY, Millis(100));
    agent.handle_written(attempt, Millis(100));
    actions(&mut agent, EMPTY, Millis(100));
    let due = Millis(100 + DRAIN_TIMEOUT_MS);
    assert_eq!(agent.poll_timeout(EMPTY, Millis(100)), Some(due));
    assert!(actions(&mut agent, EMPTY, due).contains(&Action::Exit(After::Exit)));
}

#[test]
fn who_asks_twice_for_the_end_has_it_at_once() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    assert_eq!(agent.handle_terminate(Millis(1)), Termination::InOrder);
    assert_eq!(agent.handle_terminate(Millis(2)), Termination::AtOnce);
    assert_eq!(actions(&mut agent, URGENT, Millis(2)), [Action::Exit(After::Exit)]);
}

#[test]
fn a_signal_takes_an_update_back_and_the_next_one_ends_at_once() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    agent.handle_updated(Ok(()), Millis(1));
    assert!(agent.is_ending());
    assert_eq!(agent.handle_terminate(Millis(2)), Termination::InOrder);
    assert_eq!(agent.handle_terminate(Millis(3)), Termination::AtOnce);
    assert_eq!(actions(&mut agent, EMPTY, Millis(3)), [Action::Exit(After::Exit)]);
}

#[test]
fn an_update_in_place_is_what_the_agent_becomes() {
    let mut agent = agent_with(0, None);
    agent.handle_start(Vec::new(), Millis(0));
    agent.handle_updated(Ok(()), Millis(1));
    assert!(actions(&mut agent, EMPTY, Millis(1)).contains(&Action::Exit(After::BecomeUpdate)));
}

#[test]
fn a_version_on_trial_stays_once_it_has_held_a_stream_and_goes_if_it_does_not() {
    let mut agent = agent_with(0, Some(Trial::new(Millis(0), 5_000, 60_000)));
    connected(&mut agent);
    assert!(!actions(&mut agent, EMPTY, Millis(4_999)).contains(&Action::Update(UpdateAction::Commit)));
    assert!(actions(&mut agent, EMPTY, Millis(5_000)).contains(&Action::Update(UpdateAction::Commit)));

    let mut agent = agent_with(0, Some(Trial::new(Millis(0), 5_000, 60_000)));
    agent.handle_start(Vec::new(), Millis(0));
    let end = actions(&mut agent, EMPTY, Millis(60_000));
    assert!(end.contains(&Action::Update(UpdateAction::Reject)), "{end:?}");
    assert!(end.ends_with(&[Action::Exit(After::PutBack)]), "{end:?}");
}

#[test]
fn uploads_take_turns_on_a_stream_and_all_are_answered() {
    let mut agent = agent_with(0, None);
    let upload = |token: usize| Upload { token: token.to_string(), path: "/x".to_string(), buf_size: 1 };
    let task = |token| Command::AgentTask(AgentTask::Upload(upload(token)));
    connected(&mut agent);
    (0..MAX_UPLOADS_WAITING + 2).for_each(|token| agent.handle_command(task(token), 10, Millis(1)));
    let asked = actions(&mut agent, EMPTY, Millis(1));
    let begun = asked.iter().filter(|action| matches!(action, Action::Task(_))).count();
    let refused = |actions: &[Action<u32>]| actions.iter().filter(|action| matches!(action, Action::Answer(_))).count();
    // The queue is full before the first one begins.
    assert_eq!((begun, refused(&asked)), (1, 2), "{asked:?}");
    agent.handle_uploaded(Err("it is gone".to_string()));
    let next = actions(&mut agent, EMPTY, Millis(2));
    assert!(next.contains(&Action::Task(AgentTask::Upload(upload(1)))) && refused(&next) == 1, "{next:?}");
    let _ = agent.handle_terminate(Millis(3));
    let end = actions(&mut agent, EMPTY, Millis(3));
    assert!(end.contains(&Action::AbortUpload), "{end:?}");
    assert_eq!(refused(&end), MAX_UPLOADS_WAITING - 1, "one is aborted, the rest waited");
    assert_eq!(agent.counters().refused_tasks, (MAX_UPLOADS_WAITING + 2) as u64);
}

#[test]
fn a_bad_command_is_counted_and_its_task_answered() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    agent.handle_bad_command(7, Some("t".to_string()), "a message of 7 bytes that is no command");
    agent.handle_bad_command(5, None, "nonsense");
    let answers = actions(&mut agent, EMPTY, Millis(1));
    assert!(matches!(&answers[..], [Action::Answer(failure)] if failure.token == "t"), "{answers:?}");
    let Counters { bad_commands, received_bytes, refused_tasks, .. } = agent.counters();
    assert_eq!((bad_commands, received_bytes, refused_tasks), (2, 12, 1));
}

#[test]
fn an_operation_without_a_thread_is_tried_again_and_at_the_end_done_at_once() {
    let mut agent = agent_with(1 << 24, None);
    let open = |at_once| Action::Delivery(feed::Action::Spool { op: Op::Open, at_once });
    assert_eq!(actions(&mut agent, EMPTY, Millis(0)), [open(false)]);
    agent.handle_no_thread(Op::Open, Millis(0));
    assert_eq!(actions(&mut agent, EMPTY, Millis(1)), []);
    assert_eq!(agent.poll_timeout(EMPTY, Millis(1)), Some(Millis(SPOOL_THREAD_RETRY_MS)));
    assert_eq!(actions(&mut agent, EMPTY, Millis(SPOOL_THREAD_RETRY_MS)), [open(false)]);
    agent.handle_no_thread(Op::Open, Millis(SPOOL_THREAD_RETRY_MS));
    let _ = agent.handle_terminate(Millis(SPOOL_THREAD_RETRY_MS + 1));
    assert!(actions(&mut agent, EMPTY, Millis(SPOOL_THREAD_RETRY_MS + 1)).contains(&open(true)));
}

#[test]
fn plugins_wait_while_memory_is_full_and_there_is_neither_stream_nor_disk() {
    let mut agent = agent_with(0, None);
    let full = Level { due: Due::Now, records: 1, is_half_full: true, may_drop: false };
    let mut id = 0;
    while agent.unconfirmed(EMPTY).memory_bytes < LEDGER_BYTES {
        agent.handle_batch(Batch::new(Kind::Bulk, id, 1 << 18, 1 << 18, Box::new([row(1)])));
        id += 1;
    }
    let asked = actions(&mut agent, full, Millis(500));
    assert_eq!(asked, [Action::Delivery(feed::Action::Hold(true))], "nobody may drop anything");
    assert_eq!(agent.losses().sum(), 0);
}

#[test]
fn losses_are_told_on_a_stream_and_once_at_the_end_without_one() {
    let told = |actions: Vec<Action<u32>>| {
        actions.iter().filter(|action| matches!(action, Action::Delivery(feed::Action::Tell(_)))).count()
    };
    let mut agent = agent_with(0, None);
    agent.handle_own_lost(row(2));
    assert_eq!(told(actions(&mut agent, EMPTY, Millis(1))), 0, "there is nobody to tell");
    agent.handle_start(Vec::new(), Millis(1));
    connect(&mut agent, Millis(1));
    assert_eq!(told(actions(&mut agent, EMPTY, Millis(1))), 1);
    agent.handle_own_lost(row(3));
    assert_eq!(told(actions(&mut agent, EMPTY, Millis(2))), 0, "those of some seconds are told together");
    let _ = agent.handle_terminate(Millis(3));
    assert_eq!(told(actions(&mut agent, EMPTY, Millis(3))), 1, "at the end there is no later");
    assert_eq!(agent.losses().total(Cause::OwnNoRoom), 5);
}

#[test]
fn plugins_pipes_are_read_to_their_ends_before_the_flush() {
    let kept = vec![plugin()];
    let name = kept[0].name.clone();
    let mut agent = agent_with(0, None);
    agent.handle_start(kept, Millis(0));
    let id = actions(&mut agent, EMPTY, Millis(0)).into_iter().find_map(|action| match action {
        Action::Plugin(PluginAction::Prepare(id, _)) => Some(id),
        _ => None,
    });
    agent.handle_prepared(&name, id.expect("it is prepared"), Millis(1));
    assert!(matches!(actions(&mut agent, EMPTY, Millis(1))[..], [Action::Plugin(PluginAction::Spawn(..))]));
    let _ = agent.handle_terminate(Millis(2));
    assert_eq!(actions(&mut agent, EMPTY, Millis(2)), [Action::Plugin(PluginAction::Stop(name.clone()))]);
    agent.handle_exited(&name, "exited", "", Millis(3));
    assert_eq!(actions(&mut agent, EMPTY, Millis(3)), [], "its last records may be in the pipes");
    agent.handle_pipes_closed();
    assert!(actions(&mut agent, EMPTY, Millis(4)).contains(&Action::Exit(After::Exit)));
}

#[test]
fn an_upload_that_is_asked_for_while_the_agent_ends_is_answered() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    let _ = agent.handle_terminate(Millis(1));
    let upload = Upload { token: "late".to_string(), path: "/x".to_string(), buf_size: 1 };
    agent.handle_command(Command::AgentTask(AgentTask::Upload(upload)), 1, Millis(1));
    let asked = actions(&mut agent, EMPTY, Millis(1));
    assert!(
        asked.iter().any(|action| matches!(action, Action::Answer(failure) if failure.token == "late")),
        "{asked:?}"
    );
}

#[test]
fn what_is_lost_in_the_last_step_is_told_in_the_same_pass() {
    let mut agent = agent_with(0, None);
    agent.handle_start(Vec::new(), Millis(0));
    agent.handle_batch(batch(1));
    let mut now = Millis(0);
    // The server says of a single record that it is too large, twice.
    for _ in 0..2 {
        let attempt = connect(&mut agent, now);
        let _ = actions(&mut agent, EMPTY, now);
        agent.handle_ended(attempt, End::TooLarge, now);
        now = now + 10_000;
    }
    connect(&mut agent, now);
    let _ = actions(&mut agent, EMPTY, now);
    assert_eq!((agent.losses().total(Cause::Refused), agent.losses().poll_timeout()), (1, None), "it is told");
    assert!(agent.poll_timeout(EMPTY, now).is_some_and(|due| due > now), "it does not wake up at once");
}

#[test]
fn what_others_see_follows_the_stream_and_the_end() {
    let mut agent = agent_with(0, None);
    assert!(!agent.is_ending() && !agent.takes_reports() && agent.streaming_to().is_none());
    let attempt = connected(&mut agent);
    assert!(agent.takes_reports() && agent.streaming_to().is_some());
    assert_eq!(agent.wanted_credit(), None, "there is room");
    for id in 1..=8 {
        agent.handle_batch(Batch::new(Kind::Bulk, id, LEDGER_BYTES / 8, 1, Box::new([row(1)])));
        actions(&mut agent, EMPTY, Millis(1));
        agent.handle_written(attempt, Millis(1));
    }
    assert_eq!(actions(&mut agent, URGENT, Millis(1)), [], "memory is full of what is not confirmed");
    assert!(agent.wanted_credit().is_some_and(|credit| credit > (LEDGER_BYTES / 8) as u64));
    assert_eq!(agent.unconfirmed(URGENT).memory_records, 9, "eight in memory, and one in the intake");
    let _ = agent.handle_terminate(Millis(2));
    assert!(agent.is_ending());
}

#[test]
fn uploads_that_a_new_policy_forbids_are_given_up_and_answered() {
    let mut agent = agent_with(0, None);
    connected(&mut agent);
    for token in ["runs", "waits"] {
        let upload = Upload { token: token.to_string(), path: "/x".to_string(), buf_size: 1 };
        agent.handle_command(Command::AgentTask(AgentTask::Upload(upload)), 1, Millis(1));
    }
    let begun = actions(&mut agent, EMPTY, Millis(1));
    let is_upload = |action: &Action<u32>| matches!(action, Action::Task(AgentTask::Upload(_)));
    assert_eq!(begun.iter().filter(|action| is_upload(action)).count(), 1);
    agent.handle_policy(Policy { tasks: Some(Vec::new()), ..Policy::default() }, Millis(2));
    let next = actions(&mut agent, EMPTY, Millis(2));
    let why = "this host's owner does not allow it: policy.tasks does not have it";
    let answer = |token: &str| Action::Answer(TaskFailure::new(token.to_string(), why));
    assert_eq!(next, [Action::AbortUpload, answer("runs"), answer("waits")]);
    agent.handle_uploaded(Err("it was given up".to_string()));
    assert!(!actions(&mut agent, EMPTY, Millis(3)).iter().any(is_upload));
}

#[test]
fn a_certificate_is_renewed_on_a_stream_and_not_while_the_agent_ends() {
    let mut agent = agent_with(0, None);
    let lifetime = Some(Lifetime { from: 0, until: 300 });
    agent.handle_certificate(lifetime, 290, Millis(0));
    agent.handle_start(Vec::new(), Millis(0));
    assert!(!actions(&mut agent, EMPTY, Millis(0)).contains(&Action::Renew), "there is nobody to ask");
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_certificate(lifetime, 100, Millis(0));
    let due = agent.poll_timeout(EMPTY, Millis(0)).expect("keepalives are due");
    assert!(due < Millis(100_000) && !actions(&mut agent, EMPTY, due).contains(&Action::Renew));
    agent.handle_certificate(lifetime, 290, Millis(1));
    assert_eq!(actions(&mut agent, EMPTY, Millis(1)), [Action::Renew]);
    agent.handle_renewed(Renewed::Failed, Millis(2));
    assert!(actions(&mut agent, EMPTY, Millis(12_000)).contains(&Action::Renew));
    agent.handle_ended(attempt, End::Silent, Millis(12_001));
    agent.handle_terminate(Millis(40_000));
    assert!(!actions(&mut agent, EMPTY, Millis(40_000)).contains(&Action::Renew));
}

#[test]
fn a_certificate_that_has_come_is_not_asked_for_again_while_it_is_being_kept() {
    let mut agent = agent_with(0, None);
    let attempt = connected(&mut agent);
    agent.handle_certificate(Some(Lifetime { from: 0, until: 300 }), 290, Millis(1));
    assert_eq!(actions(&mut agent, EMPTY, Millis(1)), [Action::Renew]);
    agent.handle_certificate_given();
    agent.handle_ended(attempt, End::Silent, Millis(2));
    connect(&mut agent, Millis(30_000));
    assert!(!actions(&mut agent, EMPTY, Millis(30_000)).contains(&Action::Renew));
    agent.handle_renewed(Renewed::Failed, Millis(30_001));
    assert!(actions(&mut agent, EMPTY, Millis(30_001)).contains(&Action::Renew));
}

#[test]
fn a_plugin_that_is_held_back_is_looked_at_again() {
    let mut agent = agent_with(0, None);
    agent.handle_start(vec![plugin()], Millis(0));
    let prepared = |actions: Vec<Action<u32>>| {
        actions.into_iter().find_map(|action| match action {
            Action::Plugin(PluginAction::Prepare(id, _)) => Some(id),
            _ => None,
        })
    };
    let id = prepared(actions(&mut agent, EMPTY, Millis(0))).expect("it is prepared");
    agent.handle_held_back(&plugin().name, id, "it is full", Millis(1));
    assert_eq!(prepared(actions(&mut agent, EMPTY, Millis(1))), None);
    assert!(prepared(actions(&mut agent, EMPTY, Millis(1) + HELD_BACK_MS)).is_some());
}
