//! Taking over the descriptors that a process is started with. This program starts itself again as a plugin, with the
//! descriptors arranged by a shell.

use prost::Message;
use std::path::Path;
use std::process::{Command, ExitCode, Output};
use std::{env, fs};

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("as-a-plugin") {
        return plugin();
    }
    let tests: [(&str, fn()); 3] = [
        ("started_by_hand_it_says_what_is_missing", started_by_hand_it_says_what_is_missing),
        ("it_takes_over_all_three_pipes", it_takes_over_all_three_pipes),
        ("a_missing_high_priority_pipe_is_told", a_missing_high_priority_pipe_is_told),
    ];
    for (name, test) in tests {
        test();
        eprintln!("test {name} ... ok");
    }
    ExitCode::SUCCESS
}

fn started_by_hand_it_says_what_is_missing() {
    let by_hand =
        |fd| format!("file descriptor {fd} is not open: this program is a plugin and is started by an agent\n");
    assert_eq!(error_of(&start("", "3<&- 4>&-")), by_hand(3));
    assert_eq!(error_of(&start("", "3</dev/null 4>&-")), by_hand(4));
    assert!(error_of(&start("", "3</dev/null 4</dev/null")).starts_with("file descriptor 4 cannot be written"));
    assert!(error_of(&start("", "3>/dev/null 4>/dev/null")).starts_with("file descriptor 3 cannot be read"));
}

fn it_takes_over_all_three_pipes() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name).display().to_string();
    // Two tasks of no bytes.
    fs::write(path("tasks"), [0; 8]).expect("the tasks");
    let redirections = format!("3<'{}' 4>'{}' 5>'{}'", path("tasks"), path("records"), path("urgent"));
    let output = start("1", &redirections);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(data_types(path("records").as_ref()), [1, 1]);
    assert_eq!(data_types(path("urgent").as_ref()), [2]);

    // Without the variable, descriptor 5 is nothing to the plugin.
    assert!(start("", &redirections).status.success());
    assert_eq!(data_types(path("records").as_ref()), [1, 1, 2]);
}

fn a_missing_high_priority_pipe_is_told() {
    let error = error_of(&start("1", "3</dev/null 4>/dev/null 5>&-"));
    assert!(error.starts_with("file descriptor 5 is not open"), "{error}");
}

/// A record of type 1 for each task, and an urgent one of type 2 at the end.
fn plugin() -> ExitCode {
    let (client, mut tasks) = match elklet_plugin::connect() {
        Ok(connection) => connection,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    assert!(matches!(elklet_plugin::connect(), Err(elklet_plugin::ConnectError::AlreadyConnected)));
    assert_eq!(elklet_plugin::detail().as_deref(), Some("a=b c"));
    while tasks.receive().expect("tasks").is_some() {
        client.send(1, &[]).expect("a record");
    }
    client.high_priority().send(2, &[]).expect("an urgent record");
    ExitCode::SUCCESS
}

fn start(high_priority: &str, redirections: &str) -> Output {
    Command::new("sh")
        .args(["-c", &format!("exec \"$0\" as-a-plugin {redirections}")])
        .arg(env::current_exe().expect("this program"))
        .env("ELKEID_PLUGIN_HIGH_PRIORITY_PIPE", high_priority)
        .env("DETAIL", "a=b c")
        .output()
        .expect("a shell")
}

fn error_of(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn data_types(file: &Path) -> Vec<i32> {
    let bytes = fs::read(file).expect("the records");
    let mut rest = bytes.as_slice();
    let mut seen = Vec::new();
    while let Some((prefix, after)) = rest.split_first_chunk() {
        let (body, next) = after.split_at(u32::from_le_bytes(*prefix) as usize);
        seen.push(elklet_plugin::Record::decode(body).expect("a record").data_type);
        rest = next;
    }
    seen
}
