//! `docs/` is a book that stays true: its index is whole, its links lead somewhere, its example is the file that runs, and its tables are
//! those of the programs.
#![allow(clippy::unwrap_used, reason = "the lint spares test functions, but not what they share")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use elklet_agent::commands;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{own_address, skipped, wait_until};
use rustix::process::{Pid, Signal, kill_process_group};

/// The settings' file with every key, which `agent-bin` holds to what it reads.
const EXAMPLE: &str = include_str!("../../agent-bin/elklet.example.toml");

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn page(name: &str) -> String {
    fs::read_to_string(root().join("docs").join(name)).unwrap()
}

/// Returns all pages below a directory, but for what programs have made and what is not the project's.
fn pages(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && (!name.starts_with('.') || name == ".github") {
                pages(&path, found);
            }
        } else if name.ends_with(".md") {
            found.push(path);
        }
    }
}

/// Returns a page's lines that are no code.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_code = false;
    text.lines().filter(move |line| {
        let is_fence = line.trim_start().starts_with("```");
        is_code ^= is_fence;
        !is_code && !is_fence && !line.starts_with("    ")
    })
}

/// Returns the text without what stands in backquotes.
fn without_code(line: &str) -> String {
    line.split('`').step_by(2).collect::<Vec<_>>().join("")
}

/// Returns the anchors of a page's headings, as GitHub makes them.
fn anchors(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for heading in prose(text).filter(|line| line.starts_with('#')) {
        let heading = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = heading.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        let anchor: String = kept.map(|c| if c == ' ' { '-' } else { c }).collect();
        let again = (1..).map(|n| format!("{anchor}-{n}"));
        let free = std::iter::once(anchor.clone()).chain(again).find(|anchor| !found.contains(anchor));
        found.extend(free);
    }
    found
}

/// Returns the targets of a page's links and images.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for line in prose(text).map(without_code) {
        for behind in line.split("](").skip(1) {
            found.extend(behind.split(')').next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn every_link_between_files_leads_somewhere() {
    let mut all = Vec::new();
    pages(&root(), &mut all);
    assert!(all.len() > 30, "{all:?}");
    let (mut dead, mut followed) = (Vec::new(), 0);
    for path in &all {
        for link in links(&fs::read_to_string(path).unwrap()) {
            // Whether the network has a page is not for a test to know.
            if link.contains("://") {
                continue;
            }
            followed += 1;
            let (file, anchor) = link.split_once('#').map_or((&*link, None), |(file, anchor)| (file, Some(anchor)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let leads = match anchor {
                None => target.exists(),
                Some(anchor) => fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor)),
            };
            if !leads {
                dead.push(format!("{}: {link}", path.strip_prefix(root()).unwrap().display()));
            }
        }
    }
    assert!(dead.is_empty(), "dead links:\n{}", dead.join("\n"));
    assert!(followed > 100, "only {followed} links were found");
}

#[test]
fn the_index_has_every_page() {
    let index = page("README.md");
    let directory = root().join("docs");
    let named: BTreeSet<_> = links(&index).iter().filter_map(|link| directory.join(link).canonicalize().ok()).collect();
    let mut all = Vec::new();
    pages(&directory, &mut all);
    let missing: Vec<_> =
        all.iter().map(|path| path.canonicalize().unwrap()).filter(|path| !named.contains(path)).collect();
    assert_eq!(missing, [directory.join("README.md").canonicalize().unwrap()], "the index names every page but itself");
}

#[test]
fn the_protocols_page_shows_the_plugin_that_runs() {
    let page = page("protocol.md");
    let shown = page.split_once("```python\n").and_then(|(_, behind)| behind.split_once("```\n")).unwrap().0;
    assert_eq!(shown, fs::read_to_string(root().join("docs/examples/plugin.py")).unwrap());
}

/// Returns a section's rows by their first cell. Cells have no backquotes around them.
fn rows(page: &str, heading: &str) -> BTreeMap<String, Vec<String>> {
    let section = page.split("\n## ").find(|section| section.lines().next() == Some(heading));
    let section = section.unwrap_or_else(|| panic!("no section {heading:?}"));
    let cells = |row: &str| -> Vec<String> {
        row.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|cells| (cells[0].clone(), cells)).collect()
}

/// Returns the keys of the example by section, each with its default as it stands there.
fn keys() -> BTreeMap<String, BTreeMap<String, String>> {
    let mut keys = BTreeMap::<_, BTreeMap<_, _>>::new();
    let mut section = "Places and the host".to_owned();
    for line in EXAMPLE.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            section = line.to_owned();
        } else if let Some((key, value)) = line.split_once(" = ")
            && key.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        {
            keys.entry(section.clone()).or_default().insert(key.to_owned(), value.to_owned());
        }
    }
    keys
}

#[test]
fn the_page_on_settings_has_every_key_with_its_default() {
    let page = page("configure.md");
    let keys = keys();
    assert!(keys.len() >= 10 && keys.values().map(BTreeMap::len).sum::<usize>() > 45, "{keys:?}");
    for (section, keys) in keys {
        let rows = rows(&page, &section);
        assert_eq!(rows.keys().collect::<Vec<_>>(), keys.keys().collect::<Vec<_>>(), "{section}");
        for (key, default) in keys {
            // Here the example shows what somebody may want to set.
            if key != "workdir" {
                assert_eq!(rows[&key][1].trim_matches('"'), default.trim_matches('"'), "{section} {key}");
            }
        }
    }
}

#[test]
fn the_bounds_on_that_page_are_those_of_the_program() {
    let page = page("configure.md");
    let mut tried = 0;
    for (section, keys) in keys() {
        let rows = rows(&page, &section);
        for key in keys.keys() {
            let words: Vec<_> = rows[key][2].split([' ', ',']).collect();
            let Some(at) = words.iter().position(|word| *word == "to") else { continue };
            let [least, most] = [words[at - 1], words[at + 1]].map(|word| word.parse::<i64>().unwrap());
            for (value, is_good) in [(least - 1, false), (least, true), (most, true), (most + 1, false)] {
                let said = check(&format!("{section}\n{key} = {value}\n"));
                // What else is wrong, such as that there is no certificate, is told after the file.
                assert_eq!(!said.contains(&format!(".{key}: ")), is_good, "{section} {key} = {value}: {said}");
                tried += 1;
            }
        }
    }
    assert_eq!(tried, 4 * 20);
}

#[test]
fn the_pages_have_every_command_every_variable_and_every_place() {
    let unquoted = |text: &str| text.replace('`', "");
    let shown: BTreeSet<_> = rows(&page("operations.md"), "The commands")
        .into_values()
        .map(|cells| (cells[0].clone(), unquoted(&cells[1])))
        .collect();
    let known = commands::ELKLET.commands.iter();
    let known: BTreeSet<_> = known.map(|command| (command.name.to_owned(), unquoted(command.summary))).collect();
    assert_eq!(shown, known);

    let page = page("configure.md");
    let words =
        |text: &str| -> BTreeSet<String> { text.split(", ").map(|word| word.trim_matches('`').to_owned()).collect() };
    let variables: BTreeSet<_> = rows(&page, "Environment").keys().flat_map(|names| words(names)).collect();
    let known: BTreeSet<_> = commands::ENVIRONMENT.entries.iter().flat_map(|(names, _)| words(names)).collect();
    // A service manager sets these; nobody else has to know them.
    let managers = BTreeSet::from(["NOTIFY_SOCKET", "WATCHDOG_PID", "WATCHDOG_USEC"].map(str::to_owned));
    assert_eq!(variables, &known | &managers);

    let places = page.split_once("\n## Where things lie\n").unwrap().1.split("\n## ").next().unwrap();
    for [what, native, within, key] in commands::PLACES {
        let name = within.trim_start_matches("DIR").trim_start_matches('/');
        assert!(places.contains(native) && places.contains(name), "{what}: {native}, {name}");
        let key = key.split(' ').next_back().unwrap();
        assert!(key == "FILE" || page.contains(&format!("| `{key}` | `{native}` |")), "{what}: {key}");
    }
}

/// Has the program check settings, and returns what it says.
fn check(settings: &str) -> String {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("elklet.toml");
    fs::write(&file, settings).unwrap();
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.arg("check").arg("--workdir").arg(directory.path()).output().unwrap();
    String::from_utf8(output.stderr).unwrap()
}

/// Returns the messages of a `.proto` file, each as its fields' number, name and type.
fn messages(file: &str) -> BTreeMap<String, BTreeSet<(String, String, String)>> {
    let text = fs::read_to_string(root().join("proto/proto").join(file)).unwrap();
    let mut messages = BTreeMap::<_, BTreeSet<_>>::new();
    let mut message = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix("message ") {
            message = name.split(' ').next().map(str::to_owned);
        } else if let Some(message) = &message
            && let Some((left, number)) = line.strip_suffix(';').and_then(|line| line.split_once(" = "))
            && let Some((kind, name)) = left.rsplit_once(' ')
        {
            messages.entry(message.clone()).or_default().insert((number.to_owned(), name.to_owned(), kind.to_owned()));
        }
    }
    messages
}

#[test]
fn the_protocols_page_has_every_field_of_every_message() {
    let page = page("protocol.md");
    let mut all = 0;
    for file in ["bridge.proto", "transfer.proto", "file_ext.proto"] {
        for (message, fields) in messages(file) {
            let behind = page.split_once(&format!("\n#### {message}\n")).unwrap_or_else(|| panic!("no {message}")).1;
            let table =
                behind.lines().skip_while(|line| !line.starts_with('|')).take_while(|line| line.starts_with('|'));
            let cell = |text: &str| text.trim().trim_matches('`').to_owned();
            let shown: BTreeSet<_> = table
                .skip(2)
                .map(|line| line.split('|').map(cell).collect::<Vec<_>>())
                .map(|cells| (cells[1].clone(), cells[2].clone(), cells[3].clone()))
                .collect();
            assert_eq!(shown, fields, "{message}");
            all += fields.len();
        }
    }
    assert_eq!(all, 33);
}

/// A script that runs, with what it has said in a file.
struct Running {
    child: Child,
    said: PathBuf,
}

impl Running {
    fn start(directory: &Path, name: &str, script: &str) -> Self {
        let said = directory.join(name);
        let file = File::create(&said).unwrap();
        let mut command = Command::new("bash");
        command.args(["-euc", script]).current_dir(directory).process_group(0).stdin(Stdio::null());
        // Whatever proxy this host has, it does not lead to loopback.
        command.env("NO_PROXY", "*").env("no_proxy", "*");
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, said }
    }

    /// Waits until it has said this.
    fn wait_for(&mut self, text: &str) {
        wait_until(&format!("{text:?} in {}", self.said.display()), || self.said().contains(text));
    }

    fn said(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.said).unwrap()).into_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let group = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        let _ = kill_process_group(group, Signal::KILL);
        let _ = self.child.wait();
    }
}

/// Types what the page says, with these programs in the place of those that cargo would build, and an address that no other test has.
#[test]
fn the_five_minutes_go_as_the_page_says() {
    const NAME: &str = "the_five_minutes_go_as_the_page_says";
    for tool in ["bash", "curl", "python3"] {
        if !Command::new(tool).arg("--version").output().is_ok_and(|ran| ran.status.success()) {
            return skipped(NAME, &format!("there is no {tool}"));
        }
    }
    let ip = own_address().ip().to_string();
    let center = format!("exec {} --listen {ip}:6751 --http {ip}:6752", env!("CARGO_BIN_EXE_center"));
    let elklet = Binaries::for_tests().elklet.display().to_string();
    let page = page("five-minutes.md");
    // Blocks of code, each with what stands above it.
    let mut blocks = Vec::new();
    for part in page.split("\n\n").filter(|part| part.starts_with("    ")) {
        let lines: Vec<_> = part.lines().map(|line| &line[4..]).collect();
        let script = lines.join("\n").replace("cargo run -q -p elklet-tests --bin center --", &center);
        let script = script.replace("cargo build -q -p elklet\n", "").replace("target/debug/elklet", &elklet);
        blocks.push(script.replace("127.0.0.1", &ip));
    }
    let block = |has: &str| blocks.iter().find(|block| block.contains(has)).unwrap_or_else(|| panic!("no {has}"));

    let directory = tempfile::tempdir().unwrap();
    symlink(root().join("docs"), directory.path().join("docs")).unwrap();
    let start = |name: &str, has: &str| Running::start(directory.path(), name, block(has));
    let finish = |name: &str, has: &str| {
        let mut running = start(name, has);
        let status = running.child.wait().unwrap();
        assert!(status.success(), "{has}: {status}: {}", running.said());
    };
    let mut first = start("first", "--make-certs");
    first.wait_for("listening grpc=");
    let mut agent = start("agent", " run --workdir");
    agent.wait_for(&format!("connected to {ip}:6751 (private)"));
    first.wait_for("\"data_type\":1000");
    finish("looks", " status ");
    drop(first);

    let mut files = start("files", "http.server");
    wait_until("file server", || std::net::TcpStream::connect((&*ip, 8000)).is_ok());
    let mut second = start("second", "--config try/plugins.json");
    second.wait_for("\"data_type\":9101");
    finish("task", "/command/");
    second.wait_for("\"fields\":{\"msg\":\"hello\",\"status\":\"succeed\",\"token\":\"t1\"}");
    for running in [&mut agent, &mut files, &mut second] {
        assert!(running.child.try_wait().unwrap().is_none(), "{}", running.said());
    }
}
