//! A team works with the page: a real browser, the real center, real agents and a real plugin.

use crate::chromium::{self, Browser};
use crate::plugins::Ended;
use crate::program::{Program, site};
use crate::support::http;
use elklet_tests::binaries::{Binaries, center_for_tests};
use elklet_tests::harness::{Agent, Setup, skipped, wait_until};
use serde_json::json;
use std::cell::RefCell;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

const PASSWORD: &str = "correct horse battery";

/// Pictures of the page, for people.
fn pictures() -> PathBuf {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "../target".into(), PathBuf::from);
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(target).join("page");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Starts an agent of this id, with the address of the center's own.
fn agent(dir: &Path, center: &Program, id: &str) -> Agent {
    let setup = Setup::new(&dir.join("certs")).server(&center.grpc.to_string());
    setup.variable("SPECIFIED_AGENT_ID", id).start()
}

/// A procwatch of a version of its own. The version is the configuration's; the bytes after the program's end are nobody's.
fn plugin(dir: &Path, version: &str) -> PathBuf {
    let mut bytes = fs::read(&Binaries::for_tests().procwatch).unwrap();
    bytes.extend_from_slice(version.as_bytes());
    let path = dir.join(format!("procwatch-{version}"));
    fs::write(&path, bytes).unwrap();
    path
}

fn command(dir: &Path, words: &[&str]) -> String {
    let output = Command::new(center_for_tests()).args(words).arg("--data").arg(dir.join("data")).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Keeps pictures of a place in both sizes and themes, and sees that nothing is wider than the window.
fn pictures_of(browser: &mut Browser, name: &str) {
    for width in [1280, 400] {
        for theme in ["light", "dark"] {
            browser.looks(width, theme);
            browser.wait("the theme", &format!("document.documentElement.dataset.theme === {}", json!(theme)));
            let wide = browser.run("document.documentElement.scrollWidth - window.innerWidth");
            assert!(wide.as_i64() <= Some(0), "{name} at {width}: {wide} pixels too wide");
            browser.picture(&pictures().join(format!("{name}-{width}-{theme}.png")));
        }
    }
    browser.looks(1280, "light");
}

/// Waits until the page says something that heartbeats tell. They are a minute apart, and each stream begins with one.
fn sees_soon(browser: &mut Browser, center: &Program, text: &str) {
    holds_soon(browser, center, text, &format!("document.body.innerText.includes({})", json!(text)));
}

fn holds_soon(browser: &mut Browser, center: &Program, what: &str, script: &str) {
    let ended = RefCell::new(Ended::default());
    browser.wait_and(what, script, || {
        if ended.borrow().are_replaced(center) {
            *ended.borrow_mut() = Ended::now(center);
        }
    });
    wait_until("the streams after those that were ended", || ended.borrow().are_replaced(center));
}

/// Waits until both agents are connected.
fn both_are_there(center: &Program) {
    wait_until("both agents", || http::get(center.http, "/conn/count").json()["data"] == 2);
}

/// Pushes a version of the plugin by the dialog.
fn push(browser: &mut Browser, file: &Path, version: &str, canary: &str) {
    browser.go("#/plugins");
    browser.click("Push a plugin");
    browser.give_file("File", file);
    browser.write("Name", "procwatch");
    browser.write("Version", version);
    browser.choose("For", "group gateways");
    browser.write("Canary hosts first", canary);
    browser.click("Roll out");
    browser.wait("the rollout", &format!("document.body.innerText.includes('procwatch {version}')"));
}

/// Looks at each place as somebody with the role `view`: what they can press changes nothing, and the center answers each link.
fn offers_nothing_that_is_refused(browser: &mut Browser) {
    let buttons = [
        "◐",
        "Sign out",
        "Change password",
        "Stored",
        "Live",
        "Search",
        "More",
        "Stop",
        "find",
        "1 h",
        "6 h",
        "24 h",
        "7 days",
    ];
    for (place, shows) in [
        ("#/hosts", "connected"),
        ("#/hosts/gateway-1", "What happened"),
        ("#/events", "NDJSON"),
        ("#/plugins", "What runs where"),
        ("#/tasks", "Fetch a file"),
        ("#/settings", "You"),
    ] {
        browser.go(place);
        browser.sees(shows);
        let offered = browser.run("[...document.querySelectorAll('button')].map((button) => button.innerText)");
        for text in offered.as_array().unwrap() {
            assert!(buttons.contains(&text.as_str().unwrap()), "{place} offers {text}");
        }
        let refused = browser.run(
            "Promise.all([...document.querySelectorAll('a[href^=\"/api/\"]')].map((link) => fetch(link.href).then((answer) => \
             answer.ok ? '' : `${answer.status} ${link.href}`))).then((all) => all.filter(Boolean))",
        );
        assert_eq!(refused, json!([]), "{place}");
    }
    browser.go("#/audit");
    browser.sees("There is nothing here for you.");
}

#[test]
fn a_team_works_with_the_page() {
    let Some(program) = chromium::program() else {
        return skipped("a_team_works_with_the_page", "there is no Chromium");
    };
    let dir = site();
    let mut settings = fs::OpenOptions::new().append(true).open(dir.path().join("center.toml")).unwrap();
    let path = dir.path().join("passed-on.ndjson");
    writeln!(settings, "[[forward]]\nname = \"disk\"\nkind = \"file\"\npath = {path:?}").unwrap();
    let center = Program::start(dir.path());
    let gateway = agent(dir.path(), &center, "gateway-1");
    let other = agent(dir.path(), &center, "gateway-2");
    let mut browser = Browser::start(&program);
    browser.looks(1280, "light");

    // It needs no password: the link is the host's own.
    browser.open(command(dir.path(), &["link"]).trim());
    browser.sees("gateway-1");
    browser.sees("connected");
    both_are_there(&center);
    for id in ["gateway-1", "gateway-2"] {
        browser.go(&format!("#/hosts/{id}"));
        browser.click("Group");
        browser.write("Group", "gateways");
        browser.click("OK");
        browser.wait("the group", "document.querySelector('.headline').innerText.includes('gateways')");
    }

    // A plugin is pushed to one host, then to the other, and its events show.
    push(&mut browser, &plugin(dir.path(), "1.0.0"), "1.0.0", "1");
    sees_soon(&mut browser, &center, "1 of 2 hosts run it");
    pictures_of(&mut browser, "plugins");
    both_are_there(&center);
    browser.click("Promote to all");
    sees_soon(&mut browser, &center, "2 of 2 hosts run it");
    browser.go("#/events?live=1&type=59");
    browser.sees("exec");
    browser.click_on("an event", "document.querySelector('tr.opens')");
    browser.sees("Process tree");
    pictures_of(&mut browser, "events");
    browser.go("#/hosts/gateway-1");
    sees_soon(&mut browser, &center, "procwatch");
    pictures_of(&mut browser, "host");

    // It is upgraded, and rolled back.
    both_are_there(&center);
    push(&mut browser, &plugin(dir.path(), "1.1.0"), "1.1.0", "0");
    let rollout = "document.querySelector('.body .stack').innerText";
    let done = format!("{rollout}.includes('procwatch 1.1.0') && {rollout}.includes('done')");
    holds_soon(&mut browser, &center, "the end of the upgrade", &done);
    browser.click("Versions");
    browser.click("Put back");
    browser.wait(
        "the version before",
        "[...document.querySelectorAll('td[data-name=Version]')].some((cell) => cell.innerText === '1.0.0')",
    );

    // A file is fetched.
    let file = dir.path().join("a file");
    fs::write(&file, "what the team wanted to see").unwrap();
    both_are_there(&center);
    browser.go("#/tasks?agent_id=gateway-1");
    browser.choose("To", "gateway-1");
    browser.choose("Task", "Fetch a file");
    browser.write("Path on the host", file.to_str().unwrap());
    browser.click("Send");
    browser.sees("the file (27 B)");
    let got = browser.run("fetch(document.querySelector('a[download]').href).then((answer) => answer.text())");
    assert_eq!(got, "what the team wanted to see");
    pictures_of(&mut browser, "tasks");

    // A host stops.
    drop(other);
    browser.go("#/hosts");
    browser.wait(
        "a host that is gone",
        "[...document.querySelectorAll('tr.opens')].some((row) => row.innerText.includes('gone'))",
    );
    pictures_of(&mut browser, "hosts");

    // Somebody may look, and not command.
    browser.go("#/settings");
    browser.wait("the output", "[...document.querySelectorAll('td')].some((cell) => cell.innerText === 'disk (file)')");
    for (name, role) in [("ann", "admin"), ("bob", "view")] {
        browser.click("Add a user");
        browser.write("Name", name);
        browser.write("Password", PASSWORD);
        browser.choose("Role", role);
        browser.click("Add");
        browser.wait(
            "the user",
            &format!("[...document.querySelectorAll('td')].some((cell) => cell.innerText === '{name}')"),
        );
    }
    pictures_of(&mut browser, "settings");
    browser.go("#/audit");
    browser.sees("gateway-1");
    pictures_of(&mut browser, "audit");
    assert_eq!(browser.complaints(), Vec::<String>::new(), "the page makes no mistake");

    browser.click("Sign out");
    browser.write("User", "bob");
    browser.write("Password", "wrong");
    browser.click("Sign in");
    browser.wait("a refusal", "document.querySelector('.toast.bad')");
    pictures_of(&mut browser, "sign-in");
    browser.write("Password", PASSWORD);
    browser.click("Sign in");
    browser.sees("bob (view)");
    browser.go("#/tasks");
    browser.sees("Fetch a file");
    browser.sees("the file (27 B), which takes the role operate");
    offers_nothing_that_is_refused(&mut browser);
    let status = browser.run(
        "fetch('/api/v1/tasks', { method: 'POST', body: '{}', headers: { 'X-CSRF-Token': 'x' } }).then((answer) => answer.status)",
    );
    assert_eq!(status, 403);
    drop(gateway);
}
