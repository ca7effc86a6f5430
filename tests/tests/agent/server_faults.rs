//! Servers that misbehave, and servers that go and come back: the agent names the fault, counts it, and reconnects in
//! time.

use crate::PLUGIN;
use elklet_proto::grpc::{Command, Task};
use elklet_tests::center::{Fault, Pace, Status};
use elklet_tests::harness::{Agent, AgentRecords, Setup, Site, all_at_once, holds_within, types, wait_until};
use h2::Reason;
use http::StatusCode;
use prost::Message;
use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::time::Duration;

/// Bytes of the longest command that the agent takes.
const LONGEST: usize = 4 << 20;

/// Starts an agent of this site with a plugin that takes tasks and has said hello.
fn with_plugin(site: &Site, servers: usize) -> Agent {
    start_with_plugin(site, (0..servers).fold(site.setup(), |setup, _| setup.server(&site.address())))
}

fn start_with_plugin(site: &Site, setup: Setup) -> Agent {
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    agent
}

/// Expects that the plugin was not restarted, and that its records arrive.
fn assert_works(site: &Site, agent: &Agent, run: &str) {
    site.wait_connected(agent);
    site.tell(agent, "probe", &format!("run={run} n=500"));
    site.wait_records(run, agent, |records| records.run(run).received >= 500);
    site.records(agent, |records| {
        assert!(records.run(run).is_whole(500), "{run}: {:?}", records.run(run));
        assert_eq!(records.of_type(types::HELLO).count(), 1, "the plugin was never started again");
    });
}

#[test]
fn what_is_no_command_is_passed_over() {
    let site = Site::new();
    let agent = with_plugin(&site, 8);
    let inject = |fault| assert!(site.center().inject(agent.id(), fault));
    inject(Fault::message(b"\xff\xff\xff garbage"));
    let line = agent.wait_for_log("the server sent 11 bytes that are no command");
    assert!(line.contains(" WARN ") && line.contains("passed over"), "{line}");
    inject(Fault::compressed_message(b"garbage"));
    agent.wait_for_log("the server sent a compressed message of 7 bytes: ");
    inject(Fault::compressed_message(&snappy(&vec![0; LONGEST + 1])));
    agent.wait_for_log("it decompresses to more than 4194304 bytes; it is passed over");
    // A chunk of a few bytes that says that it has 4 GiB in it.
    let promise = b"\xff\x06\0\0sNaPpY\0\x0a\0\0crc-\xff\xff\xff\xff\x0f\0";
    inject(Fault::compressed_message(promise));
    agent.wait_for_log("the server sent a compressed message of 24 bytes: ");
    assert!(agent.peak_mapped() < 1 << 30, "a promise was given {} bytes of memory", agent.peak_mapped());
    assert_works(&site, &agent, "after");
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("bad_commands"), 4);
    assert_eq!(heartbeats.count("streams"), 2, "the stream went on until this test ended it");
    assert_eq!(heartbeats.count("protocol_errors"), 0);
}

#[test]
fn commands_come_in_any_pieces() {
    let site = Site::new();
    let agent = with_plugin(&site, 8);
    let command = |run: &str| {
        let data = format!("do run={run} n=10");
        let task = Task { data_type: 1, object_name: "probe".into(), data, token: "x".repeat(2000) };
        Command { task: Some(task), ..Command::default() }
    };
    let message = |run: &str| prefixed(&command(run).encode_to_vec());
    let bytes = |bytes: Vec<u8>, frame_len| Fault::Bytes { bytes: bytes.into(), frame_len };
    for fault in [
        Fault::Dribble(command("compressed-bytewise")),
        bytes(message("bytewise"), 1),
        bytes(message("threes"), 3),
        bytes([message("first"), message("second")].concat(), usize::MAX),
        bytes([message("third"), message("fourth")].concat(), message("third").len() + 2),
        Fault::message(&[]),
        Fault::message(&command("last").encode_to_vec()),
    ] {
        assert!(site.center().inject(agent.id(), fault));
    }
    let runs = ["compressed-bytewise", "bytewise", "threes", "first", "second", "third", "fourth", "last"];
    site.wait_records("all runs", &agent, |records| runs.iter().all(|run| records.run(run).is_whole(10)));
    agent.wait_for_log("the server sent a command with nothing in it: nothing changes");
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!((heartbeats.count("bad_commands"), heartbeats.count("protocol_errors")), (0, 0));
    assert_eq!(heartbeats.count("streams"), 2);
}

#[test]
fn a_burst_of_commands_is_taken() {
    const COMMANDS: usize = 3000;
    let site = Site::new();
    let agent = with_plugin(&site, 8);
    let task = Task { data_type: 1, object_name: "probe".into(), data: String::new(), token: String::new() };
    let message = prefixed(&Command { task: Some(task), ..Command::default() }.encode_to_vec());
    let frame_len = message.len();
    let bytes = message.repeat(COMMANDS).into();
    assert!(site.center().inject(agent.id(), Fault::Bytes { bytes, frame_len }));
    site.wait_records("tasks", &agent, |records| {
        records.of_type(types::TASK).count() + records.of_type(5100).count() == COMMANDS
    });
    assert_eq!(site.fresh_heartbeats(&agent).count("streams"), 2, "one DATA frame for each is no reason to hang up");
}

#[test]
fn the_longest_commands_are_taken() {
    let site = Site::new();
    let agent = with_plugin(&site, 8);
    // Text that does not compress, and text that does.
    let noise: String = (0..LONGEST)
        .scan(7_u32, |state, _| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from_digit((*state >> 24) % 36, 36)
        })
        .collect();
    let of_length = |data: &str, length: usize, token: &str| {
        let task = Task { data_type: 1, object_name: "nobody".into(), data: data.to_owned(), token: token.to_owned() };
        let mut command = Command { task: Some(task), ..Command::default() };
        let excess = command.encoded_len() - length;
        if let Some(task) = &mut command.task {
            task.data.truncate(data.len() - excess);
        }
        assert_eq!(command.encoded_len(), length);
        command
    };
    site.command(&agent, of_length(&noise, LONGEST - 1000, "a"));
    site.command(&agent, of_length(&"x".repeat(LONGEST), LONGEST, "b"));
    let plain = of_length(&noise, LONGEST, "c").encode_to_vec();
    assert!(site.center().inject(agent.id(), Fault::message(&plain)));
    site.wait_records("answers", &agent, |records| records.of_type(5100).count() == 3);
    assert_eq!(site.records(&agent, |records| records.values(5100, "token")), ["a", "b", "c"]);
    assert_works(&site, &agent, "between");
    assert_eq!(site.fresh_heartbeats(&agent).count("bad_commands"), 0);

    // The agent refuses longer commands, but it answers their tasks: plain, compressed, and compressed to less than the
    // limit.
    let plain = of_length(&noise.repeat(2), LONGEST + 1, "d").encode_to_vec();
    assert!(site.center().inject(agent.id(), Fault::message(&plain)));
    site.command(&agent, of_length(&noise.repeat(2), 2 * LONGEST, "e"));
    site.command(&agent, of_length(&"x".repeat(2 * LONGEST), 2 * LONGEST, "f"));
    let answered = |records: &AgentRecords| -> BTreeSet<String> {
        records.values(5100, "token").into_iter().filter(|token| token.as_str() > "c").collect()
    };
    site.wait_records("answers", &agent, |records| answered(records).len() == 3);
    let line = agent.wait_for_log("a message of 4194305 bytes, the limit is 4194304; it is passed over");
    assert!(line.contains(" WARN "), "{line}");
    assert_works(&site, &agent, "after");
    assert_eq!(site.fresh_heartbeats(&agent).count("bad_commands"), 3);
}

/// When a fault strikes on a stream.
#[derive(Clone, Copy)]
enum When {
    /// Before the first message.
    First,
    /// While it is in use.
    Later,
}

#[test]
fn a_stream_that_ends_badly_is_followed_by_another() {
    let status = |code, message: &str| Fault::Status(Status::new(code, message));
    let bytes = |bytes: &'static [u8]| Fault::Bytes { bytes: bytes.into(), frame_len: usize::MAX };
    use When::{First, Later};
    let cases = [
        ("flag", (Later, vec![bytes(&[7, 0, 0, 0, 0])], "the server sent a message with the flag byte 0x07", 1)),
        (
            "length",
            (Later, vec![Fault::prefix((16 << 20) + 1)], "a message of 16777217 bytes, the limit is 4194304", 1),
        ),
        ("longest length", (First, vec![Fault::prefix(u32::MAX)], "a message of 4294967295 bytes", 1)),
        ("half", (Later, vec![Fault::prefix(100), status(0, "")], "the server sent a message that ends early", 1)),
        ("end", (Later, vec![status(0, "")], "the server ended the stream", 0)),
        ("end at once", (First, vec![status(0, "")], "the server ended the stream", 0)),
        (
            "status",
            (Later, vec![status(13, "so%it\nis")], "the server ended the stream with gRPC status 13 (so%it is)", 0),
        ),
        ("conflict", (First, vec![status(2, "agentID conflict")], "gRPC status 2 (agentID conflict)", 0)),
        ("503", (First, vec![Fault::HttpStatus(StatusCode::SERVICE_UNAVAILABLE)], "HTTP status 503", 0)),
        ("reset", (Later, vec![Fault::Reset(Reason::INTERNAL_ERROR)], "the connection broke: ", 0)),
        ("refused", (First, vec![Fault::Reset(Reason::REFUSED_STREAM)], "the connection broke: ", 0)),
        ("goaway", (Later, vec![Fault::GoAway(Reason::ENHANCE_YOUR_CALM)], "the connection broke: ", 0)),
        ("close", (Later, vec![Fault::Close], "the connection broke: ", 0)),
    ];
    all_at_once(&cases, |name, (when, faults, says, protocol_errors)| {
        let site = Site::new();
        let agent = match when {
            Later => {
                let agent = with_plugin(&site, 1);
                for fault in faults {
                    assert!(site.center().inject(agent.id(), fault.clone()), "{name}");
                }
                agent
            }
            First => {
                faults.iter().for_each(|fault| site.center().on_next_stream(fault.clone()));
                with_plugin(&site, 1)
            }
        };
        let line = agent.wait_for_log(says);
        assert!(line.contains(" WARN ") && line.contains(&site.address()), "{name}: {line}");
        agent.wait_for_log("the next attempt is in ");
        wait_until("second stream", || agent.log_lines("connected to ").len() == 2);
        assert_works(&site, &agent, "after");
        assert_eq!(agent.log_lines("the next attempt is in ").len(), 1, "{name}");
        let heartbeats = site.heartbeats(&agent);
        assert_eq!(heartbeats.count("streams"), 2, "{name}");
        assert_eq!(heartbeats.count("protocol_errors"), *protocol_errors, "{name}");
        assert_eq!(heartbeats.count("connect_failures") + heartbeats.count("tls_failures"), 0, "{name}");
    });
}

#[test]
fn a_polite_goaway_lets_the_stream_go_on() {
    let site = Site::new();
    let agent = with_plugin(&site, 1);
    assert!(site.center().inject(agent.id(), Fault::GoAway(Reason::NO_ERROR)));
    assert_works(&site, &agent, "after");
    assert_eq!(site.center().read(|state| state.agent(agent.id()).streams), 1);
}

#[test]
fn a_taken_id_and_a_full_server_are_waited_for() {
    let cases = [("agentID conflict", 1500), ("out of max connection limit", 1)];
    all_at_once(&cases, |says, limit| {
        let site = Site::with(|options| options.conn_limit = *limit);
        let first = with_plugin(&site, 1);
        let setup = site.setup().server(&site.address());
        let mut second = if *limit == 1 { setup } else { setup.variable("SPECIFIED_AGENT_ID", first.id()) }.start();
        if *limit > 1 {
            second.set_id(first.id());
        }
        let line = second.wait_for_log(says);
        assert!(line.contains("the server ended the stream with gRPC status 2 ("), "{line}");
        assert!(site.center().read(|state| state.totals.conflicts + state.totals.out_of_tokens) >= 1);
        assert_works(&site, &first, "undisturbed");
        let streams = site.center().read(|state| state.agent(second.id()).streams);
        drop(first);
        site.wait("second agent", |state| state.agent(second.id()).streams > streams);
        site.wait_connected(&second);
        assert!(site.heartbeats(&second).count("streams") >= 2);
    });
}

#[test]
fn a_server_that_never_answers_is_given_up() {
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let site = Site::new();
    // The kernel accepts the connections, and nobody ever says anything on them. Only the agent's own limits help: 15 s
    // for TLS, and 10 s for service discovery.
    let cases = [
        ("TCP and TLS", site.setup().server(&address).server(&site.address()).start()),
        ("service discovery", site.setup().argument("--discovery").argument(&address).server(&site.address()).start()),
    ];
    all_at_once(&cases, |what, agent| {
        site.wait_connected(agent);
        let lines = agent.log_lines(&address);
        assert!(lines.iter().any(|line| line.contains(" WARN ")), "{what}: {}", agent.log());
        let heartbeats = site.heartbeats(agent);
        assert_eq!(heartbeats.count("connect_failures"), 1, "{what}");
        assert_eq!(heartbeats.agent["net_mode"], "private");
    });
    let [(_, tls), (_, discovery)] = &cases;
    tls.wait_for_log(&format!("{address}: no answer in time: TCP and TLS"));
    let all = discovery.log_lines(" WARN ");
    assert_eq!(all.len(), 1, "one line says what happened: {all:?}");
}

#[test]
fn a_slow_server_holds_back_the_plugin_and_nothing_is_lost() {
    const RECORDS: u64 = 120_000;
    const MOST: u64 = 48 << 20;
    let site = Site::new();
    let setup = site.setup().server(&site.address()).setting("spool", "mib = 0");
    let agent = start_with_plugin(&site, setup);
    let idle = agent.rss();
    site.center().set_pace(Pace::Stopped);
    site.tell(&agent, "probe", &format!("run=dammed size=400 n={RECORDS}"));
    // The plugin cannot write any more, because everything between it and the server is full.
    let pid = site.records(&agent, |records| records.values(types::HELLO, "pid").remove(0));
    let written = || fs::read_to_string(format!("/proc/{pid}/io")).unwrap().lines().nth(1).unwrap().to_owned();
    let at_rest = written();
    wait_until("plugin that is held back", || {
        let before = written();
        before != at_rest && !holds_within(Duration::from_millis(500), || written() != before)
    });
    let rss = agent.rss();
    assert!(rss < MOST, "{} KiB are resident, {} were when it was idle", rss >> 10, idle >> 10);
    assert!(written().rsplit_once(' ').unwrap().1.parse::<u64>().unwrap() < RECORDS * 400 / 2, "{}", written());

    site.center().set_pace(Pace::Full);
    site.wait_records("dammed records", &agent, |records| records.run("dammed").received >= RECORDS);
    site.records(&agent, |records| {
        assert!(records.run("dammed").is_whole(RECORDS), "{:?}", records.run("dammed"));
    });
    assert!(agent.rss() < MOST, "{} KiB are resident", agent.rss() >> 10);
    assert_eq!(site.center().read(|state| state.agent(agent.id()).streams), 1, "slow is not dead");
}

#[test]
fn the_agent_outlives_its_server() {
    let mut site = Site::new();
    let setup = site.setup().server(&site.address());
    let probe = setup.workdir().install("probe", PLUGIN, "hello");
    let alone = setup.workdir().install("alone", PLUGIN, "run=before n=500 deaf=go run=alone n=500");
    site.center().set_configs(Some(vec![probe, alone]));
    let agent = setup.start();
    site.wait_records("records before", &agent, |records| records.run("before").received == 500);
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);

    let options = site.stop();
    agent.wait_for_log("the connection broke: ");
    let line = agent.wait_for_log("no TCP connection: ");
    assert!(line.contains(&options.listen.to_string()) && line.contains("refused"), "{line}");
    // Records that are written meanwhile wait in the agent.
    fs::write(agent.workdir().plugin_dir("alone").join("go"), "").unwrap();
    site.start(options);
    assert_works(&site, &agent, "after");
    site.wait_records("records from between", &agent, |records| records.run("alone").received >= 500);
    site.records(&agent, |records| {
        assert!(records.run("before").is_whole(500) && records.run("alone").is_whole(500), "{:?}", records.series);
    });
    let heartbeats = site.heartbeats(&agent);
    assert!(heartbeats.count("connect_failures") >= 1);
    assert_eq!(heartbeats.count("streams"), 2);
    assert!(agent.log_lines("exited").is_empty(), "no plugin has noticed");
}

#[test]
fn breaks_under_load_lose_nothing() {
    let mut site = Site::new();
    // The address is configured several times, so the agent tries it again at once.
    let setup = site.eager();
    let configs = [("flood", "run=flood size=200 last=50 endless"), ("paced", "run=paced rate=1000 last=50 endless")]
        .map(|(name, script)| setup.workdir().install(name, PLUGIN, script));
    site.center().set_configs(Some(configs.to_vec()));
    let agent = setup.start();
    let mut seen = 0;
    let mut wait_for_more = |site: &Site| {
        site.wait_records("records", &agent, |records| {
            records.run("flood").received > seen + 10_000 && records.run("paced").received > 100
        });
        seen = site.records(&agent, |records| records.run("flood").received);
    };
    for fault in [Fault::Close, Fault::Reset(Reason::INTERNAL_ERROR), Fault::GoAway(Reason::ENHANCE_YOUR_CALM)] {
        wait_for_more(&site);
        let streams = site.center().read(|state| state.agent(agent.id()).streams);
        assert!(site.center().inject(agent.id(), fault));
        site.wait("next stream", |state| state.agent(agent.id()).streams > streams);
    }
    wait_for_more(&site);
    let options = site.stop();
    agent.wait_for_log("no TCP connection: ");
    site.start(options);
    wait_for_more(&site);
    // One takes the place of both.
    site.configure(&agent, &[agent.install("other", PLUGIN, "")]);
    site.wait_records("goodbyes", &agent, |records| records.of_type(types::GOODBYE).count() == 2);
    site.records(&agent, |records| {
        for goodbye in records.of_type(types::GOODBYE) {
            let (run, sent) = (&goodbye["run"], goodbye["sent"].parse().unwrap());
            assert!(records.run(run).is_whole(sent), "{sent} of {run} were sent: {:?}", records.run(run));
        }
    });
}

fn prefixed(message: &[u8]) -> Vec<u8> {
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), message].concat()
}

fn snappy(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = snap::write::FrameEncoder::new(Vec::new());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.into_inner().unwrap()
}
