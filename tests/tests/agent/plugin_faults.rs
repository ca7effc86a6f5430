//! Plugins that misbehave: the agent names each mistake in the log and counts it, and it harms nobody else.

use crate::PLUGIN;
use elklet_proto::grpc::Payload;
use elklet_tests::harness::{Agent, Heartbeats, Signal, Site, types, wait_until};
use prost::Message;
use std::collections::BTreeSet;
use std::fs;

#[test]
fn complaints_without_end_fill_no_disk_and_hold_nobody_up() {
    let site = Site::new();
    let setup = site.eager();
    let script = "stderr=first complain=30 hello deaf=go stderr=last abort";
    site.center().set_configs(Some(vec![setup.workdir().install("loud", PLUGIN, script)]));
    let agent = setup.start();
    site.wait_records("plugin behind its complaints", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let directory = agent.workdir().plugin_dir("loud");
    let bytes = |name: &str| fs::metadata(directory.join(name)).map_or(0, |metadata| metadata.len());
    wait_until("complaints on the disk", || bytes("loud.stderr") > 0);
    let kept = bytes("loud.stderr") + bytes("loud.stderr.1");
    assert!(kept <= 2 << 20, "{kept} bytes");
    assert!(fs::read_to_string(directory.join("loud.stderr")).unwrap().starts_with("first\n"));
    let heartbeats = site.fresh_heartbeats(&agent);
    let left_out = heartbeats.count("stderr_bytes_left_out");
    assert!((20 << 20..30 << 20).contains(&left_out), "{left_out}");
    assert_eq!(heartbeats.plugin_count("loud", "stderr_bytes_left_out"), left_out);

    fs::write(directory.join("go"), "").unwrap();
    let line = agent.wait_for_log("plugin loud was killed by signal 6 unexpectedly");
    assert!(line.contains("; its last words: ") && line.ends_with(" | last"), "{line}");
    let detail = &site.fresh_heartbeats(&agent).agent["state_detail"];
    assert!(detail.contains("its last words: ") && detail.contains(" | last"), "{detail}");
}

#[test]
fn a_plugin_whose_complaints_cannot_be_kept_starts_and_the_log_has_them() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install(
        "probe",
        PLUGIN,
        "hello stderr=\u{1b}[2Jwords complain=1",
    )]));
    for name in ["probe.stderr", "probe.stderr.1"] {
        // The agent can neither write the file nor rotate it, because both names are directories with something in
        // them.
        fs::create_dir_all(setup.workdir().plugin_dir("probe").join(name).join("full")).unwrap();
    }
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let line = agent.wait_for_log("its standard error goes to the log");
    assert!(line.contains(" WARN ") && line.contains("probe.stderr"), "{line}");
    agent.wait_for_log("plugin probe says: \u{fffd}[2Jwords");
    wait_until("count of the rest", || site.fresh_heartbeats(&agent).count("stderr_bytes_left_out") > 500_000);
    assert!(agent.log_lines("this cannot be done").len() < 200, "{}", agent.log());
}

#[test]
fn a_crash_loop_ends_when_its_successor_comes() {
    let site = Site::new();
    let setup = site.eager();
    let mut config = setup.workdir().install("probe", PLUGIN, "run=first hello exit=3");
    site.center().set_configs(Some(vec![config.clone()]));
    let agent = setup.start();
    agent.wait_for_log("3 times in a row: it crashes in a loop");
    let deaths = agent.log_lines("plugin probe exited with code 3 unexpectedly").len();
    (config.version, config.detail) = ("2.0".into(), "run=second n=1".into());
    site.center().set_configs(Some(vec![config.clone()]));
    site.configure(&agent, &[config]);
    site.wait_records("successor", &agent, |records| records.run("second").received == 1);
    assert_eq!(agent.log_lines("plugin probe version 1.0 started").len(), deaths, "{}", agent.log());
    assert_eq!(site.fresh_heartbeats(&agent).agent["state"], "running");
}

#[test]
fn tasks_that_a_plugin_had_not_read_when_it_ended_are_answered() {
    let site = Site::new();
    let setup = site.eager();
    // They read nothing. One dies by itself, the other is asked to end and then killed.
    let dies = setup.workdir().install("dies", PLUGIN, "hello deaf=die abort");
    let stays = setup.workdir().install("stays", PLUGIN, "hello deaf");
    site.center().set_configs(Some(vec![dies.clone(), stays]));
    let agent = setup.start();
    site.wait_records("plugins", &agent, |records| records.of_type(types::HELLO).count() == 2);
    for token in ["a", "b"] {
        site.task(&agent, "dies", 1, "", &format!("dies-{token}"));
        site.task(&agent, "stays", 1, "", &format!("stays-{token}"));
    }
    // These are more than the pipe holds, so the last one waits in the agent.
    site.task(&agent, "dies", 1, &"x".repeat(100_000), "dies-c");
    wait_until("tasks in the pipes", || {
        let heartbeats = site.fresh_heartbeats(&agent);
        heartbeats.plugins.values().all(|plugin| plugin["rx_tps"] != "0.00000000")
    });
    fs::write(agent.workdir().plugin_dir("dies").join("die"), "").unwrap();
    let answered = |plugin: &'static str, count: usize| {
        site.wait_records("answers", &agent, |records| {
            let tokens = records.values(5100, "token");
            tokens.iter().filter(|token| token.starts_with(plugin)).collect::<BTreeSet<_>>().len() == count
        });
    };
    answered("dies", 3);
    site.configure(&agent, &[dies]);
    answered("stays", 2);
    let line = agent.wait_for_log("the plugin ended before it read the task");
    assert!(line.contains("(token \"dies-a\")"), "{line}");
}

/// Bytes of the longest record that the agent takes: 4 MiB, and 4 KiB around them.
const LONGEST: usize = (4 << 20) + (4 << 10);

/// The counters of a plugin's mistakes, in its heartbeat and, summed up, in the agent's.
const COUNTERS: [&str; 8] = [
    "frames_too_long",
    "frames_invalid",
    "frames_truncated",
    "records_refused_type",
    "records_refused_payload",
    "frame_bytes_skipped",
    "records_without_payload",
    "records_without_timestamp",
];

/// A plugin, what it does, what the log says about it, its counters then, and how many numbered records arrive.
struct Case {
    name: &'static str,
    script: String,
    says: &'static str,
    counts: Vec<(&'static str, u64)>,
    records: u64,
}

fn case(
    name: &'static str,
    script: impl Into<String>,
    says: &'static str,
    counts: &[(&'static str, u64)],
    records: u64,
) -> Case {
    Case { name, script: script.into(), says, counts: counts.to_vec(), records }
}

#[test]
fn mistakes_are_named_and_counted_and_the_framing_is_kept() {
    // A plugin must not send the agent's heartbeat, nor a number that becomes its data type when cut to 32 bits.
    let [forged, cut] = [1000, 1000 | 1 << 32].map(|data_type| format!("08{}1007", hex(&varint(data_type))));
    let forged_bytes = (forged.len() + cut.len()) as u64;
    // A task's answer without a payload.
    let bare = format!("08{}1007", hex(&varint(5100)));
    let bare_bytes = 2 * bare.len() as u64 + 6;
    let cases = [
        case("good", "n=20", "", &[], 20),
        case("bytewise", "chunk=1 n=40", "", &[], 40),
        case(
            "garbage",
            format!("raw={} n=100", hex(b"GET / HTTP/1.1\r\n\r\n")),
            "a frame of 542393671 bytes, the limit is 4198400",
            &[("frames_too_long", 1), ("frame_bytes_skipped", 542_393_671)],
            0,
        ),
        case(
            "huge",
            "raw=ffffffff n=100",
            "a frame of 4294967295 bytes, the limit is 4198400; it is skipped",
            &[("frames_too_long", 1), ("frame_bytes_skipped", u64::from(u32::MAX))],
            0,
        ),
        case(
            "overlong",
            format!("n=5 raw={} zeros={} n=5", hex(&length(LONGEST + 1)), LONGEST + 1),
            "a frame of 4198401 bytes, the limit is 4198400; it is skipped",
            &[("frames_too_long", 1), ("frame_bytes_skipped", LONGEST as u64 + 1)],
            10,
        ),
        case(
            "malformed",
            "n=5 frame=ffffff n=5",
            "a frame of 3 bytes that is no record",
            &[("frames_invalid", 1), ("frame_bytes_skipped", 3)],
            10,
        ),
        case(
            "varint",
            format!("n=5 frame=08{} n=5", "ff".repeat(11)),
            "a frame of 12 bytes that is no record",
            &[("frames_invalid", 1), ("frame_bytes_skipped", 12)],
            10,
        ),
        case(
            "mistyped",
            "n=5 frame=0a0178 n=5",
            "a frame of 3 bytes that is no record: its field 1 has the wrong type; it is skipped",
            &[("frames_invalid", 1), ("frame_bytes_skipped", 3)],
            10,
        ),
        case(
            "twice",
            "n=5 frame=08010802 n=5",
            "a frame of 4 bytes that is no record: it has a field twice; it is skipped",
            &[("frames_invalid", 1), ("frame_bytes_skipped", 4)],
            10,
        ),
        case(
            "often",
            format!("n=5 {} n=5", "frame=ff ".repeat(1000)),
            "a frame of 1 bytes that is no record",
            &[("frames_invalid", 1000), ("frame_bytes_skipped", 1000)],
            10,
        ),
        case(
            "without-payload",
            format!("n=5 frame=08{}1007 n=5", hex(&varint(7101))),
            "a record without a payload; such records are passed on and counted",
            &[("records_without_payload", 1)],
            10,
        ),
        case(
            "without-time",
            format!("n=5 frame=08{}1a{} n=5", hex(&varint(7102)), hex(&delimited(&payload()))),
            "a record with timestamp 0; such records are passed on and counted",
            &[("records_without_timestamp", 1)],
            10,
        ),
        case(
            "forger",
            format!("n=5 frame={forged} frame={cut} urgent frame={forged} frame={cut} bulk n=5"),
            "a record of data type 1000, which only the agent sends; it is skipped",
            &[("records_refused_type", 4), ("frame_bytes_skipped", forged_bytes)],
            10,
        ),
        case(
            "poisoner",
            format!("n=5 frame={bare} frame={bare}1a00 urgent frame={bare} frame={bare}1a021001 bulk n=5"),
            "a record of data type 5100 whose payload has no fields, expected at least one; it is skipped",
            &[("records_refused_payload", 4), ("frame_bytes_skipped", bare_bytes)],
            10,
        ),
        case(
            "empty",
            "n=5 frame= n=5",
            "a record without",
            &[("records_without_timestamp", 1), ("records_without_payload", 1)],
            10,
        ),
        case(
            "closed",
            "n=5 raw=0102 close n=5",
            "2 bytes of a frame's length, then its end",
            &[("frames_truncated", 1), ("frame_bytes_skipped", 2)],
            5,
        ),
        case(
            "urgent",
            "urgent n=5 raw=ffffffff bulk n=5",
            "a frame of 4294967295 bytes",
            &[("frames_too_long", 1), ("frame_bytes_skipped", u64::from(u32::MAX))],
            10,
        ),
    ];
    let site = Site::new();
    let setup = site.eager();
    let install =
        |case: &Case| setup.workdir().install(case.name, PLUGIN, &format!("run={} {} hello", case.name, case.script));
    site.center().set_configs(Some(cases.iter().map(install).collect()));
    let agent = setup.start();
    for case in cases.iter().filter(|case| !case.says.is_empty()) {
        let line = agent.wait_for_log(&format!("plugin {} sent {}", case.name, case.says));
        assert!(line.contains(" WARN "), "{line}");
    }
    site.wait_records("records", &agent, |records| {
        cases.iter().all(|case| records.run(case.name).received >= case.records)
    });
    site.records(&agent, |records| {
        for case in &cases {
            let series = records.run(case.name);
            assert!(series.is_whole(case.records), "{}: {series:?}", case.name);
        }
    });
    wait_until("silence about repetitions", || agent.log_lines("plugin often sent").len() == 1);

    let heartbeats = site.fresh_heartbeats(&agent);
    for case in &cases {
        for counter in COUNTERS {
            let expected = case.counts.iter().find(|(name, _)| *name == counter).map_or(0, |(_, count)| *count);
            assert_eq!(heartbeats.plugin_count(case.name, counter), expected, "{counter} of {}", case.name);
        }
    }
    for counter in COUNTERS {
        let all = cases.iter().flat_map(|case| &case.counts).filter(|(name, _)| *name == counter);
        assert_eq!(heartbeats.count(counter), all.map(|(_, count)| count).sum::<u64>(), "{counter}");
    }
    assert_eq!(heartbeats.agent["state"], "running", "nobody has died of it");
    assert_eq!(agent.workdir().processes().len(), cases.len());
}

#[test]
fn unusual_records_arrive_as_they_are() {
    let time = [0x10, 5];
    let data = [&[0x1a][..], &delimited(&payload())].concat();
    let data_type = |number| [&[0x08][..], &varint(number)].concat();
    // The longest record: type, time, and zeros behind a tag and a length of four bytes.
    let head = [&data_type(7203)[..], &time, &[0x1a]].concat();
    let zeros = LONGEST - head.len() - 4;
    let longest = [&length(LONGEST)[..], &head, &varint(zeros as u64)].concat();
    let script = [
        format!("frame={}", hex(&[&data[..], &time, &data_type(7201)].concat())),
        // Unknown fields: 15 as a varint, 99 as bytes, 4 as 64 bits.
        format!("frame={}7807{}21{}9a060161{}", hex(&data_type(7202)), hex(&time), "00".repeat(8), hex(&data)),
        format!("raw={} zeros={zeros}", hex(&longest)),
        // -1, as protobuf writes a negative int32.
        format!("frame=08{}01{}", "ff".repeat(9), hex(&[&time[..], &data].concat())),
        format!("frame=08{}1a00", hex(&varint(7205))),
    ];
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("odd", PLUGIN, &script.join(" "))]));
    let agent = setup.start();
    site.wait_records("last record", &agent, |records| {
        records.others.iter().any(|taken| taken.record.data_type == 7205)
    });
    let records = site.records(&agent, |records| {
        let others = records.others.iter().map(|taken| taken.record.clone());
        others.filter(|record| ![1000, 1010].contains(&record.data_type)).collect::<Vec<_>>()
    });
    let types: Vec<i32> = records.iter().map(|record| record.data_type).collect();
    assert_eq!(types, [7201, 7202, 7203, -1, 7205]);
    for record in records.iter().filter(|record| ![7203, 7205].contains(&record.data_type)) {
        assert_eq!((record.timestamp, &record.data[..]), (5, &payload()[..]), "{}", record.data_type);
        assert_eq!(record.fields().unwrap()["key"], "value");
    }
    assert!(records[2].data.len() == zeros && records[2].data.iter().all(|byte| *byte == 0));
    assert_eq!((records[4].timestamp, records[4].data.len()), (0, 0));
    assert_eq!(site.fresh_heartbeats(&agent).plugin_count("odd", "frames_invalid"), 0);
}

#[test]
fn what_a_death_leaves_of_a_frame_is_named_and_counted() {
    let site = Site::new();
    let setup = site.eager();
    let configs = [
        ("half", format!("deaf=go n=3 raw={} zeros=10 exit=1", hex(&length(100)))),
        ("two", "deaf=go n=3 raw=0102 abort".to_owned()),
        // Its child holds the pipe open.
        ("orphaned", "deaf=go n=3 child raw=010203 abort".to_owned()),
    ]
    .map(|(name, script)| setup.workdir().install(name, PLUGIN, &format!("run={name} {script}")));
    site.center().set_configs(Some(configs.to_vec()));
    let agent = setup.start();
    for config in &configs {
        agent.wait_for_log(&format!("plugin {} version", config.name));
        // It removes the file, so in its next life it waits.
        fs::write(agent.workdir().plugin_dir(&config.name).join("go"), "").unwrap();
        let ends = if config.name == "half" { "exited with code 1" } else { "was killed by signal 6" };
        agent.wait_for_log(&format!("plugin {} {ends} unexpectedly", config.name));
    }
    agent.wait_for_log("plugin half sent 10 bytes of a frame of 100, then its end; it is skipped");
    agent.wait_for_log("plugin two sent 2 bytes of a frame's length, then its end; it is skipped");
    agent.wait_for_log("plugin orphaned sent 3 bytes of a frame's length, then its end; it is skipped");
    let names = ["half", "two", "orphaned"];
    site.wait_records("records", &agent, |records| names.iter().all(|name| records.run(name).received == 3));
    wait_until("second life of all", || agent.log_lines("started as process").len() == 6);
    wait_until("end of the child", || agent.workdir().processes().len() == 3);
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("frames_truncated"), 3);
    assert_eq!(heartbeats.count("frame_bytes_skipped"), 15);
    assert_eq!(heartbeats.count("records"), 10);
}

#[test]
fn tasks_beyond_the_queues_bytes_are_answered() {
    const TASK: usize = 500_000;
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("deaf", PLUGIN, "hello deaf=go")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let data = "x".repeat(TASK);
    // At most 2 MiB of tasks wait for a plugin, which is four of these.
    let tokens: Vec<String> = (0..7).map(|i| format!("token-{i}")).collect();
    for token in &tokens {
        site.task(&agent, "deaf", 1, &data, token);
    }
    site.wait_records("refusals", &agent, |records| records.of_type(5100).count() == 3);
    site.records(&agent, |records| {
        assert_eq!(records.values(5100, "token"), tokens[4..]);
        assert_eq!(records.values(5100, "status"), ["failed"; 3]);
        let reasons = records.values(5100, "msg");
        assert_eq!(reasons, ["the plugin does not take its tasks, and its queue is full"; 3]);
    });
    for token in &tokens[4..] {
        agent.wait_for_log(&format!("its queue is full (token {token:?})"));
    }
    fs::write(agent.workdir().plugin_dir("deaf").join("go"), "").unwrap();
    site.wait_records("tasks", &agent, |records| records.of_type(types::TASK).count() == 4);
    site.records(&agent, |records| {
        assert_eq!(records.values(types::TASK, "token"), tokens[..4]);
        assert_eq!(records.values(types::TASK, "bytes"), vec![TASK.to_string(); 4]);
    });
    assert_eq!(site.fresh_heartbeats(&agent).count("refused_tasks"), 3);
}

#[test]
fn tasks_beyond_the_queues_length_are_answered() {
    const TASKS: usize = 1700;
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("deaf", PLUGIN, "hello deaf=go")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    // The pipe holds 64 KiB and the queue 1,024 tasks, which is about 1,400 of these together.
    let data = "x".repeat(150);
    for token in 0..TASKS {
        site.task(&agent, "deaf", 1, &data, &token.to_string());
    }
    site.wait_records("refusals", &agent, |records| records.of_type(5100).count() >= 100);
    fs::write(agent.workdir().plugin_dir("deaf").join("go"), "").unwrap();
    site.wait_records("answer to every task", &agent, |records| {
        records.of_type(5100).count() + records.of_type(types::TASK).count() >= TASKS
    });
    let (refused, taken) =
        site.records(&agent, |records| (records.values(5100, "token"), records.values(types::TASK, "token")));
    assert!(taken.len() >= 1024 && refused.len() >= 100, "{} taken, {} refused", taken.len(), refused.len());
    let all: BTreeSet<&String> = refused.iter().chain(&taken).collect();
    assert_eq!((all.len(), refused.len() + taken.len()), (TASKS, TASKS), "each is answered once");
    let heartbeats = site.fresh_heartbeats(&agent);
    assert_eq!(heartbeats.count("refused_tasks"), refused.len() as u64);
    assert_eq!(heartbeats.count("own_records_lost"), 0);
    assert!(agent.log().len() < 1 << 20, "the log does not grow without bound: {} bytes", agent.log().len());
}

#[test]
fn tasks_of_a_plugin_that_dies_are_answered() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("deaf", PLUGIN, "hello deaf")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let data = "x".repeat(500_000);
    for token in ["a", "b", "c"] {
        site.task(&agent, "deaf", 1, &data, token);
    }
    // It cannot be started again, so nobody takes a task.
    fs::remove_dir_all(agent.workdir().plugin_dir("deaf")).unwrap();
    let line = agent.wait_for_log("started as process ");
    let pid = line.rsplit_once(' ').unwrap().1.parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    agent.wait_for_log("plugin deaf was killed by signal 9 unexpectedly");
    site.wait_records("refusals", &agent, |records| records.of_type(5100).count() == 3);
    // When the process ends, tasks that have reached the pump and tasks that have not are answered in different places.
    let mut tokens = site.records(&agent, |records| records.values(5100, "token"));
    tokens.sort_unstable();
    assert_eq!(tokens, ["a", "b", "c"]);
    site.task(&agent, "deaf", 1, "", "d");
    site.wait_records("refusal", &agent, |records| records.of_type(5100).count() == 4);
    let msg = site.records(&agent, |records| records.values(5100, "msg").pop().unwrap());
    assert_eq!(msg, "plugin deaf is not running");
    assert_eq!(site.fresh_heartbeats(&agent).count("refused_tasks"), 4);
}

#[test]
fn tasks_that_nobody_can_do_are_answered() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello")]));
    let agent = setup.start();
    site.wait_records("plugin", &agent, |records| records.of_type(types::HELLO).count() == 1);
    let long_token = "t".repeat(5000);
    let too_long = "x".repeat(1 << 20);
    let tasks = [
        ("nobody", 5, "", "a", "no plugin nobody is configured"),
        ("../probe", 5, "", "b", "no plugin can have this name"),
        ("", 5, "", "c", "no plugin can have this name"),
        ("elkeid-agent", 1099, "", "d", "unknown task 1099: the agent knows"),
        ("elkeid-agent", 1051, "{\"idc\": 3}", "e", "data of task 1051 is not as expected"),
        ("elkeid-agent", 1051, "idc", "f", "data of task 1051 is not as expected"),
        ("elkeid-agent", 1050, "{\"path\":\"/x\",\"buf_size\":0}", "g", "buf_size of task 1050 is 0"),
        ("probe", 1, &too_long, "h", "the limit is 1048576"),
        ("nobody", 5, "", &long_token, "no plugin nobody is configured"),
    ];
    for (name, data_type, data, token, _) in tasks {
        site.task(&agent, name, data_type, data, token);
    }
    site.wait_records("answers", &agent, |records| records.of_type(5100).count() == tasks.len());
    let answers: Vec<_> = site.records(&agent, |records| records.of_type(5100).collect());
    for ((_, _, _, token, reason), answer) in tasks.iter().zip(&answers) {
        assert_eq!(answer["token"], token[..token.len().min(1024)]);
        assert_eq!(answer["status"], "failed");
        assert!(answer["msg"].contains(reason), "{:?} does not say {reason:?}", answer["msg"]);
        let line = agent.wait_for_log(&format!("(token {:?})", answer["token"]));
        assert!(line.contains("a task failed: ") && line.contains(reason), "{line}");
    }
    // The plugin still receives its tasks.
    site.task(&agent, "probe", 1, "", "last");
    site.wait_records("task", &agent, |records| records.values(types::TASK, "token") == ["last"]);
    assert_refused(&site.fresh_heartbeats(&agent), tasks.len(), &agent);
}

fn assert_refused(heartbeats: &Heartbeats, count: usize, agent: &Agent) {
    assert_eq!(heartbeats.count("refused_tasks"), count as u64);
    assert_eq!(heartbeats.agent["state"], "running", "{}", agent.log());
}

/// Returns a payload of one field.
fn payload() -> Vec<u8> {
    let fields = [("key".to_owned(), "value".to_owned())].into();
    Payload { fields }.encode_to_vec()
}

fn delimited(bytes: &[u8]) -> Vec<u8> {
    [&varint(bytes.len() as u64)[..], bytes].concat()
}

fn varint(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::encode_varint(value, &mut bytes);
    bytes
}

/// Returns a frame's length prefix.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap().to_le_bytes()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
