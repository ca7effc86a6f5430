//! The agent on Linux 3.10, and in containers of its time: `old-kernel` has whatever came later answered by ENOSYS or by EPERM.

use crate::PLUGIN;
use crate::downloads::{archive, packed, plain, program};
use crate::status::printed;
use elklet_proto::grpc::Config;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, Setup, Signal, Site, skipped, types, wait_until};
use elklet_tests::old_kernel::FIRST_LATER_CALL;
use std::collections::BTreeSet;
use std::fs;
use tar::EntryType;

const OLD_KERNEL: &str = env!("CARGO_BIN_EXE_old-kernel");

#[test]
fn an_agent_works_without_the_calls_that_its_kernel_does_not_have() {
    works("an_agent_works_without_the_calls_that_its_kernel_does_not_have", "enosys");
}

#[test]
fn an_agent_works_without_the_calls_that_an_old_container_refuses() {
    works("an_agent_works_without_the_calls_that_an_old_container_refuses", "eperm");
}

/// Downloads a program in an archive and a script, upgrades both under load, gives them tasks, and ends.
fn works(test: &str, answer: &str) {
    if FIRST_LATER_CALL.is_none() {
        return skipped(test, "nobody has told it the system calls of this architecture");
    }
    let site = Site::new();
    let files = Files::start();
    // A script's interpreter opens the script once more, after it was executed.
    let script = |number: u32| format!("#!/bin/sh\n# {number}\nexec '{PLUGIN}'\n").into_bytes();
    let version = |number: u32| {
        let name = |plugin: &str| format!("{plugin}-{number}");
        let body = archive(&[
            ("probe", EntryType::Regular, &program(), None),
            (&name("file"), EntryType::Regular, b"of this version", None),
        ]);
        let run = |plugin: &str| format!("hello run={} size=300 rate=2000 last=500 endless", name(plugin));
        let entry = |entry: Config| Config { version: number.to_string(), ..entry };
        [
            entry(packed("probe", &body, &[files.serve(&name("probe"), body.clone(), How::Right)], &run("probe"))),
            entry(plain(
                "script",
                &script(number),
                &[files.serve(&name("script"), script(number), How::Right)],
                &run("script"),
            )),
        ]
    };
    site.center().set_configs(Some(version(1).to_vec()));
    let mut agent = limited(&site).started_by(&[OLD_KERNEL, answer]).start();
    site.wait_records("records of the first versions", &agent, |records| {
        ["probe-1", "script-1"].iter().all(|run| records.run(run).received > 1000)
    });
    let processes: Vec<u32> = [agent.pid()].into_iter().chain(agent.workdir().processes()).collect();
    assert!(processes.len() >= 3, "{processes:?}");
    for pid in processes {
        assert_eq!(status_of(pid, "Seccomp:"), "2", "process {pid} is filtered");
    }

    // The filter of its own threads came with Linux 3.17.
    let status = printed(agent.workdir().path(), &[], 0);
    assert!(status.contains("limits      system calls not applied: "), "{status}");

    site.configure(&agent, &version(2));
    site.wait_records("records of the second versions", &agent, |records| {
        ["probe-2", "script-2"].iter().all(|run| records.run(run).received > 1000)
    });
    let directory = agent.workdir().plugin_dir("probe");
    assert!(directory.join("file-2").exists() && !directory.join("file-1").exists(), "the directory was exchanged");

    agent.signal(Signal::TERM);
    let status = agent.wait_for_exit();
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(agent.workdir().processes(), [0; 0]);
    site.wait("end of the stream", |state| state.connected().next().is_none());
    site.records(&agent, |records| {
        let goodbyes: Vec<_> = records.of_type(types::GOODBYE).collect();
        assert_eq!(goodbyes.len(), 4, "{goodbyes:?}");
        for goodbye in goodbyes {
            let series = records.run(&goodbye["run"]);
            assert!(series.is_whole(goodbye["sent"].parse().unwrap()), "{goodbye:?}: {series:?}");
        }
    });
    let complaints: Vec<_> = agent.log().lines().filter(|line| line.contains(" ERROR ")).map(str::to_owned).collect();
    assert_eq!(complaints, [""; 0]);

    // Limits are those that the host's real kernel can enforce, by the same means.
    let plain = limited(&site);
    let probe = plain.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![probe]));
    let plain = plain.start();
    assert_eq!(limits(&agent), limits(&plain));
}

fn limited(site: &Site) -> Setup {
    site.eager().setting("plugin.probe", "open_files = 64\nprocesses = 60\nmemory_mib = 96\ncpu_percent = 80")
}

/// Returns what the agent says of a plugin's four limits.
fn limits(agent: &Agent) -> BTreeSet<String> {
    let said = || -> BTreeSet<String> {
        let lines = agent.log_lines("plugin probe: ").into_iter();
        let limits = ["open files", "processes", "MiB", "%"];
        let text = lines.filter_map(|line| line.split_once("plugin probe: ").map(|(_, text)| text.to_owned()));
        text.filter(|text| limits.iter().any(|limit| text.contains(limit))).collect()
    };
    wait_until("word of four limits", || said().len() == 4);
    said()
}

fn status_of(pid: u32, field: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find_map(|line| line.strip_prefix(field)).unwrap().trim().to_owned()
}
