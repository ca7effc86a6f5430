//! Programs whose threads end in an unusual order. This is such a program as well: it starts itself again with a part to
//! play in its environment, so that its first thread is one that a test may end. Hence it has no harness.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "it is a test")]

mod harness;

use harness::*;
use std::env;
use std::io::{Read, stdin};
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::thread;

const TESTS: [(&str, fn()); 5] = [
    ("a_process_outlives_its_first_thread", a_process_outlives_its_first_thread),
    ("a_process_without_first_thread_is_met_running", a_process_without_first_thread_is_met_running),
    ("an_exec_of_another_thread_is_no_end", an_exec_of_another_thread_is_no_end),
    ("threads_that_end_together_are_one_end", threads_that_end_together_are_one_end),
    ("scanning_shows_no_end_of_a_first_thread", scanning_shows_no_end_of_a_first_thread),
];

/// The environment's variable with the part to play.
const PART: &str = "PROCWATCH_TEST_PART";
const FIRST_THREAD_ENDS: &str = "first-thread-ends";
const OTHER_THREAD_EXECUTES: &str = "other-thread-executes";
const ALL_END: &str = "all-end";

fn main() {
    if let Ok(part) = env::var(PART) {
        play(&part);
    }
    let wanted: Vec<String> = env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    for (name, test) in TESTS {
        if wanted.is_empty() || wanted.iter().any(|wanted| name.contains(wanted.as_str())) {
            test();
            println!("test {name} ... ok");
        }
    }
}

fn play(part: &str) -> ! {
    match part {
        FIRST_THREAD_ENDS => {
            for _ in 0..4 {
                thread::spawn(|| {});
            }
            thread::spawn(wait_for_end_of_input);
            end_this_thread()
        }
        OTHER_THREAD_EXECUTES => {
            let executing = thread::spawn(|| Command::new("/bin/cat").arg("executed").arg("-").exec());
            panic!("{:?}", executing.join());
        }
        ALL_END => {
            for _ in 0..16 {
                thread::spawn(thread::park);
            }
            wait_for_end_of_input();
            process::exit(0)
        }
        _ => panic!("there is no part `{part}`"),
    }
}

fn wait_for_end_of_input() {
    let _ = stdin().read_to_end(&mut Vec::new());
}

/// As `pthread_exit`, but without anything that a library may want to do then.
fn end_this_thread() -> ! {
    // SAFETY: the call ends the thread and touches no memory; the first thread's stack stays mapped, and nothing waits for it.
    unsafe { libc::syscall(libc::SYS_exit, 0) };
    unreachable!("the thread has ended")
}

fn start(part: &str) -> Held {
    Held::start(Command::new(env::current_exe().unwrap()).env(PART, part))
}

/// Until the process's first thread has ended and one other is left; the kernel counts both.
fn wait_until_leaderless(held: &Held) {
    let file = format!("/proc/{}/status", held.pid());
    wait_until("a process without first thread", || {
        let status = std::fs::read_to_string(&file).unwrap();
        status.contains("State:\tZ") && status.contains("Threads:\t2\n")
    });
}

/// Lets `procwatch` see the whole life of another process and asserts that no end of `pid` came before.
fn assert_no_exit_so_far(procwatch: &Procwatch, pid: &str) {
    let other = run("/bin/true", &[]).to_string();
    procwatch.wait_for("exit of another process", |kind, fields| {
        assert!(kind != EXIT || fields["pid"] != pid, "its end is told while it runs");
        kind == EXIT && fields["pid"] == other
    });
}

fn wait_for(procwatch: &Procwatch, kind: i32, pid: &str) -> Fields {
    procwatch.wait_for(if kind == EXEC { "exec" } else { "exit" }, |is, fields| is == kind && fields["pid"] == pid)
}

fn a_process_outlives_its_first_thread() {
    if skipped_without_root("a_process_outlives_its_first_thread") {
        return;
    }
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let held = start(FIRST_THREAD_ENDS);
    let pid = held.pid();
    let exec = wait_for(&procwatch, EXEC, &pid);
    wait_until_leaderless(&held);
    assert_no_exit_so_far(&procwatch, &pid);
    drop(held);
    let exit = wait_for(&procwatch, EXIT, &pid);
    assert_eq!((&exit["argv"], &exit["exe"]), (&exec["argv"], &exec["exe"]));
    assert_eq!(exit["ppid"], process::id().to_string());
    assert_no_exit_so_far(&procwatch, &pid);
}

fn a_process_without_first_thread_is_met_running() {
    if skipped_without_root("a_process_without_first_thread_is_met_running") {
        return;
    }
    let held = start(FIRST_THREAD_ENDS);
    let pid = held.pid();
    wait_until_leaderless(&held);
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    assert_no_exit_so_far(&procwatch, &pid);
    drop(held);
    wait_for(&procwatch, EXIT, &pid);
}

fn an_exec_of_another_thread_is_no_end() {
    if skipped_without_root("an_exec_of_another_thread_is_no_end") {
        return;
    }
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    let held = start(OTHER_THREAD_EXECUTES);
    let pid = held.pid();
    let executed = procwatch.wait_for("exec of cat", |kind, fields| {
        assert!(kind != EXIT || fields["pid"] != pid, "the exec is told as an end");
        kind == EXEC && fields["pid"] == pid && fields["comm"] == "cat"
    });
    assert_eq!(executed["argv"], "/bin/cat executed -");
    assert_eq!((&executed["tgid"], &executed["ppid"]), (&pid, &process::id().to_string()));
    assert_no_exit_so_far(&procwatch, &pid);
    drop(held);
    assert_eq!(wait_for(&procwatch, EXIT, &pid)["argv"], executed["argv"]);
}

fn threads_that_end_together_are_one_end() {
    if skipped_without_root("threads_that_end_together_are_one_end") {
        return;
    }
    let procwatch = Procwatch::start("mode=connector");
    procwatch.wait_until_ready();
    for _ in 0..20 {
        let held = start(ALL_END);
        let pid = held.pid();
        wait_for(&procwatch, EXEC, &pid);
        drop(held);
        wait_for(&procwatch, EXIT, &pid);
        assert_no_exit_so_far(&procwatch, &pid);
    }
}

fn scanning_shows_no_end_of_a_first_thread() {
    let procwatch = Procwatch::start("mode=scan");
    procwatch.wait_until_scanning();
    let held = start(FIRST_THREAD_ENDS);
    let pid = held.pid();
    wait_for(&procwatch, EXEC, &pid);
    wait_until_leaderless(&held);
    // Two rounds: the second one has seen the process as it is now.
    for _ in 0..2 {
        let other = Held::start(&mut Command::new("/bin/cat"));
        let other_pid = other.pid();
        procwatch.wait_for("exec of another process", |kind, fields| {
            assert!(fields["pid"] != pid, "its end or an exec is told while it runs");
            kind == EXEC && fields["pid"] == other_pid
        });
    }
    drop(held);
    wait_for(&procwatch, EXIT, &pid);
}
