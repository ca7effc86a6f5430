//! The example of docs/protocol.md: a plugin that no library and no compiler has had a part in.

use std::process::Command;

use elklet_tests::harness::{Site, is_alive, skipped, wait_until};

/// The file that the page shows.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/examples/plugin.py");

/// The data types of its records and of the task that it knows.
const LOAD: i32 = 9101;
const ECHO: i32 = 9102;
const TASK_RESULT: i32 = 5100;

#[test]
fn a_plugin_in_python_needs_no_library() {
    let python = Command::new("/usr/bin/env").args(["python3", "-c", ""]).output();
    if !python.is_ok_and(|ran| ran.status.success()) {
        return skipped("a_plugin_in_python_needs_no_library", "there is no python3");
    }
    let site = Site::new();
    let setup = site.eager();
    // The detail is the seconds between two records.
    site.center().set_configs(Some(vec![setup.workdir().install("load", EXAMPLE, "0.1")]));
    let agent = setup.start();
    site.wait_records("load", &agent, |records| records.of_type(LOAD).count() >= 3);
    let loads = site.records(&agent, |records| records.values(LOAD, "load_1"));
    assert!(loads.iter().all(|load| load.parse::<f64>().is_ok_and(|load| load >= 0.0)), "{loads:?}");

    // Lengths of one byte and of several, characters of more than one byte, and numbers of up to five.
    let long = "ünïcödé ".repeat(4_000);
    let tasks = [(ECHO, "", "empty"), (ECHO, &*long, "long"), (ECHO + 1, "data", "unknown"), (i32::MAX, "", "largest")];
    for (data_type, data, token) in tasks {
        site.task(&agent, "load", data_type, data, token);
    }
    site.wait_records("answers", &agent, |records| records.of_type(TASK_RESULT).count() == tasks.len());
    site.records(&agent, |records| {
        assert_eq!(records.values(TASK_RESULT, "token"), ["empty", "long", "unknown", "largest"]);
        assert_eq!(records.values(TASK_RESULT, "status"), ["succeed", "succeed", "failed", "failed"]);
        assert_eq!(records.values(TASK_RESULT, "msg"), ["", &long, "unknown task", "unknown task"]);
    });
    let heartbeats = site.fresh_heartbeats(&agent);
    for name in ["frames_invalid", "frames_too_long", "records_without_payload", "records_without_timestamp"] {
        assert_eq!(heartbeats.count(name), 0, "{name}");
    }
    // It ends when the agent closes its pipe.
    let pid: u32 = heartbeats.plugins["load"]["pid"].parse().unwrap();
    site.configure(&agent, &[agent.install("other", crate::PLUGIN, "hello")]);
    agent.wait_for_log(&format!("plugin load (process {pid}) exited with code 0"));
    wait_until("end of the plugin", || !is_alive(pid));
    assert!(agent.log_lines("unexpectedly").is_empty(), "{}", agent.log());
}
