//! `cargo demo` as a newcomer runs it, except for the terminal and for release builds.

use elklet_tests::binaries::Binaries;
use rustix::process::{Pid, Signal, kill_process};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, Stdio};

#[test]
fn the_demo_shows_what_it_executes_and_loses_nothing() {
    let Binaries { elklet, procwatch } = Binaries::for_tests();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--seconds", "10", "--lines"])
        .env("ELKLET_BIN", elklet)
        .env("PROCWATCH_BIN", procwatch)
        .env_remove("COLUMNS")
        .output()
        .expect("it is an executable");
    let [shown, complaint] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes));
    assert_eq!(output.status.code(), Some(0), "{shown}\n{complaint}");
    assert_eq!(complaint, "");
    assert!(!shown.contains('\x1b'), "escape sequences are for terminals:\n{shown}");

    // The first process that the demo makes runs long enough for a procwatch that has to scan.
    let made = |line: &&str| line.contains(" exec ") && line.contains("* /") && line.ends_with(" sleep 1.5");
    assert!(shown.lines().find(made).is_some(), "{shown}");
    let result = shown.lines().find(|line| line.starts_with("sent ")).unwrap_or_else(|| panic!("no result:\n{shown}"));
    assert!(result.contains(", lost 0 "), "{result}");

    let directory = shown.lines().find_map(|line| line.strip_prefix("  directory  ")?.split(',').next());
    let directory = directory.unwrap_or_else(|| panic!("no directory:\n{shown}"));
    assert!(!std::path::Path::new(directory).exists(), "{directory} is left behind");
}

#[test]
fn a_demo_that_is_stopped_waits_for_what_is_on_its_way() {
    let Binaries { elklet, procwatch } = Binaries::for_tests();
    for signal in [Signal::INT, Signal::TERM] {
        let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
            .arg("--lines")
            .env("ELKLET_BIN", elklet)
            .env("PROCWATCH_BIN", procwatch)
            .env_remove("COLUMNS")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it is an executable");
        let mut lines = BufReader::new(demo.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
        // Three processes start in a second. The last one before the signal has just been made, therefore.
        let mut shown: Vec<String> = Vec::new();
        while !shown.last().is_some_and(|line| line.contains(" exec ") && line.ends_with(" sleep 1.5")) {
            shown.push(lines.next().unwrap_or_else(|| panic!("no process was shown:\n{}", shown.join("\n"))));
        }
        kill_process(Pid::from_child(&demo), signal).expect("it runs");
        shown.extend(lines);
        let mut complaint = String::new();
        demo.stderr.take().expect("a pipe").read_to_string(&mut complaint).expect("text");
        let shown = shown.join("\n");
        assert_eq!(demo.wait().expect("a child").code(), Some(0), "{signal:?}: {shown}\n{complaint}");
        assert_eq!(complaint, "");
        assert!(shown.contains(", lost 0 "), "{shown}");
    }
}

#[test]
fn the_demo_prints_a_calm_summary_and_serves_a_page() {
    let Binaries { elklet, procwatch } = Binaries::for_tests();
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--filter", "sleep"])
        .env("ELKLET_BIN", elklet)
        .env("PROCWATCH_BIN", procwatch)
        .env_remove("COLUMNS")
        .stdout(Stdio::piped())
        .spawn()
        .expect("it is an executable");
    let mut lines = BufReader::new(demo.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let link = lines.by_ref().find(|line| line.starts_with("  http://")).expect("a link");
    let mut shown = Vec::new();
    while !shown.iter().any(|line: &String| line.ends_with("sleep 1.5 *")) {
        shown.push(lines.next().unwrap_or_else(|| panic!("no process was shown:\n{}", shown.join("\n"))));
    }
    let address = link.trim().strip_prefix("http://").and_then(|rest| rest.split('/').next()).expect("an address");
    let mut page = TcpStream::connect(address).expect("the page is there");
    page.write_all(b"GET / HTTP/1.0\r\nhost: 127.0.0.1\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    page.read_to_string(&mut answer).expect("text");
    assert!(answer.contains("<title>Elklet center</title>"), "{answer}");
    kill_process(Pid::from_child(&demo), Signal::TERM).expect("it runs");
    shown.extend(lines);
    assert_eq!(demo.wait().expect("a child").code(), Some(0), "{}", shown.join("\n"));
    assert!(shown.contains(&"started most with \"sleep\"".to_owned()), "{}", shown.join("\n"));
    assert!(!shown.iter().any(|line| line.contains(" wc -w")), "it is filtered: {}", shown.join("\n"));
    let wide = shown.iter().find(|line| line.chars().count() > 80);
    assert_eq!(wide, None, "lines fit into a usual terminal");
}

#[test]
fn a_demo_without_an_agent_says_so_in_one_line() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .env("ELKLET_BIN", "/nonexistent/elklet")
        .env("PROCWATCH_BIN", "/bin/true")
        .output()
        .expect("it is an executable");
    assert_eq!(output.status.code(), Some(1));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(complaint.starts_with("demo: ") && complaint.contains("/nonexistent/elklet"), "{complaint}");
    assert_eq!(complaint.lines().count(), 1, "{complaint}");
}
