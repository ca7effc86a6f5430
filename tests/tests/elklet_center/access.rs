//! Who may do what on the HTTP port: each refusal beside what is not refused.

use crate::browser::{Asker, Reply};
use crate::program::{Program, site};
use crate::support::client::{Client, TRANSFER};
use crate::{batch, record};
use elklet_tests::binaries::center_for_tests;
use elklet_tests::harness::wait_until;
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::{Value, json};
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};

const PASSWORD: &str = "correct horse battery";

/// Runs a command of the program for the center whose data lies in `dir`.
pub(crate) fn run(dir: &Path, words: &[&str], input: &str) -> Output {
    let mut child = Command::new(center_for_tests())
        .args(words)
        .arg("--data")
        .arg(dir.join("data"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that needs no input may have ended.
    _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs a command that has to succeed, and returns what it printed.
pub(crate) fn done(dir: &Path, words: &[&str], input: &str) -> String {
    let output = run(dir, words, input);
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a command that has to fail, and returns why it did.
pub(crate) fn failed(dir: &Path, words: &[&str], input: &str) -> String {
    let output = run(dir, words, input);
    assert!(!output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8(output.stderr).unwrap()
}

fn add(dir: &Path, name: &str, role: &str) {
    done(dir, &["user", "add", name, "--role", role], &format!("{PASSWORD}\n"));
}

fn sign_in(page: &Asker, user: &str, password: &str) -> Reply {
    page.send("POST", "/api/v1/session", &json!({ "user": user, "password": password }).to_string())
}

fn signed_in(page: &Asker, user: &str) -> Asker {
    page.signed_in(&sign_in(page, user, PASSWORD))
}

fn token(dir: &Path) -> String {
    fs::read_to_string(dir.join("data/local-token")).unwrap().trim().to_owned()
}

fn plugins(asker: &Asker) -> Reply {
    asker.send("PUT", "/api/v1/plugins", r#"{"plugins":[]}"#)
}

/// Returns the newest entries of the trail as `who action object: outcome`.
fn trail(asker: &Asker) -> Vec<String> {
    let entries = asker.get("/api/v1/audit").json();
    let text = |entry: &Value, name: &str| entry[name].as_str().unwrap().to_owned();
    let line = |entry: &Value| {
        let [who, action, object, outcome] = ["who", "action", "object", "outcome"].map(|name| text(entry, name));
        assert!(text(entry, "origin").starts_with("127.0.0.1:") && entry["at_ms"].is_u64(), "{entry}");
        format!("{who} {action} {object}: {outcome}")
    };
    entries["entries"].as_array().unwrap().iter().map(line).collect()
}

#[test]
fn without_users_a_command_with_the_hosts_key_may_all_and_others_look_until_they_open_a_link() {
    let dir = site();
    let program = Program::start(dir.path());
    let (anyone, page) = (Asker::command(program.http), Asker::page(program.http));
    assert_eq!(anyone.get("/api/v1/session").json()["role"], "view", "whoever is on this host reaches the port");
    assert_eq!(anyone.get("/api/v1/hosts").status, 200);
    assert!(plugins(&anyone).error().contains("has the key in the file local-token"));
    assert_eq!(
        anyone.send("POST", "/api/v1/users", r#"{"name":"eve","password":"0123456789","role":"admin"}"#).status,
        403
    );
    assert_eq!(anyone.send("POST", "/api/v1/files?name=x", "#!/bin/sh").status, 403);
    assert_eq!(anyone.send("POST", "/command/", r#"{"agent_id":"a","command":{}}"#).status, 403);
    assert_eq!(anyone.get("/api/v1/uploads/1/file").status, 403, "it may be any file of a host");

    let command = anyone.with("authorization", &format!("Bearer {}", token(dir.path())));
    assert_eq!(command.get("/api/v1/session").json()["role"], "admin");
    assert_eq!(command.get("/api/v1/uploads/1/file").status, 404);
    assert_eq!(plugins(&command).status, 200);
    let told = page.get("/api/v1/session").json();
    assert_eq!((&told["user"], &told["role"], &told["users"]), (&json!("local"), &json!("view"), &json!(false)));
    assert_eq!(page.get("/api/v1/hosts").status, 200);
    assert!(plugins(&page).error().starts_with("this takes the role operate"));
    assert_eq!(page.get("/api/v1/audit").status, 403);
    assert_eq!(page.send("POST", "/command/", r#"{"agent_id":"a","command":{}}"#).status, 403);
    assert_eq!(page.send("POST", "/conn/reset", r#"{"type":"random","count":1}"#).status, 403);
    assert_eq!(page.send("POST", "/api/v1/links", "").status, 403);
    assert_eq!(anyone.with("x-forwarded-for", "10.0.0.1").get("/api/v1/hosts").status, 401, "from elsewhere");

    let link = done(dir.path(), &["link"], "");
    let key = link.trim().strip_prefix(&format!("http://{}/#key=", program.http)).expect("an address with a key");
    let open = |key: &str| page.send("POST", "/api/v1/session", &json!({ "link": key }).to_string());
    assert_eq!(open("another").status, 401);
    let opened = open(key);
    let linked = page.signed_in(&opened);
    let cookie = opened.header("set-cookie").unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Secure"), "{cookie}");
    assert_eq!(opened.json()["role"], "admin");
    assert_eq!(open(key).status, 401, "it opens once");
    assert_eq!(plugins(&linked).status, 200);
    assert_eq!(linked.send("POST", "/api/v1/links", "").status, 403, "nobody could tell who opens it");

    let told = linked.get("/api/v1/session").json();
    assert_eq!((&told["user"], &told["csrf"]), (&json!("link"), &opened.json()["csrf"]));
    assert_eq!(plugins(&linked.without("x-csrf-token")).status, 403);
    assert_eq!(plugins(&linked.with("x-csrf-token", "another")).status, 403);
    assert_eq!(plugins(&linked.with("origin", "http://evil.example")).status, 403);
    assert_eq!(plugins(&linked.with("origin", "null")).status, 403);
    assert_eq!(plugins(&linked.with("origin", "http://127.0.0.1:1")).status, 403, "another port is another page");
    for site in ["cross-site", "same-site"] {
        assert_eq!(linked.with("sec-fetch-site", site).get("/api/v1/hosts").status, 403);
        assert_eq!(linked.with("sec-fetch-site", site).get("/api/v1/stream").status, 403);
    }
    let rebound = |host: &str| command.with("host", host).get("/api/v1/hosts").status;
    assert_eq!((rebound("evil.example"), rebound("localhost:1"), rebound("[::1]:1")), (403, 200, 200));

    let trail = trail(&linked);
    assert_eq!(trail[0], "link plugins.set all: ok");
    for line in
        ["link login link: ok", "nobody login link: no such link", "local link.new : ok", "local plugins.set all: ok"]
    {
        assert!(trail.iter().any(|entry| entry == line), "{line}: {trail:?}");
    }
}

#[test]
fn with_users_everybody_has_to_say_who_they_are_and_may_what_their_role_says() {
    let dir = site();
    let program = Program::start(dir.path());
    let (command, page) = (Asker::command(program.http), Asker::page(program.http));
    let first = failed(dir.path(), &["user", "add", "vera", "--role", "view"], &format!("{PASSWORD}\n"));
    assert!(first.contains("the first user has to be an admin"), "{first}");
    let short = failed(dir.path(), &["user", "add", "ann", "--role", "admin"], "short\n");
    assert!(short.contains("a password of 5 characters, expected 10 or more"), "{short}");
    for (name, role) in [("ann", "admin"), ("oscar", "operate"), ("vera", "view")] {
        add(dir.path(), name, role);
    }
    let list = done(dir.path(), &["user", "list"], "");
    assert!(list.lines().count() == 3 && list.contains("oscar") && list.contains("never signed in"), "{list}");

    for path in ["/api/v1/hosts", "/api/v1/records", "/api/v1/stream", "/api/v1/nothing", "/conn/list"] {
        assert_eq!((command.get(path).status, page.get(path).status), (401, 401), "{path}");
    }
    for path in ["/ping", "/healthz", "/readyz", "/metrics", "/registry/detail?name=x", "/", "/app.js"] {
        assert_eq!(command.get(path).status, 200, "{path}");
    }
    let nobody = page.get("/api/v1/session").json();
    assert_eq!((&nobody["user"], &nobody["role"], &nobody["users"]), (&Value::Null, &Value::Null, &json!(true)));
    let local = command.with("authorization", &format!("Bearer {}", token(dir.path())));
    assert_eq!(local.get("/conn/list").status, 200);
    assert_eq!(command.with("authorization", "Bearer 00").get("/conn/list").status, 401);
    let mode = fs::metadata(dir.path().join("data/local-token")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    assert_eq!(sign_in(&page, "ann", "correct horse batterz").status, 401);
    assert_eq!(sign_in(&page, "nobody", PASSWORD).status, 401);
    assert_eq!(sign_in(&page.with("origin", "http://evil.example"), "ann", PASSWORD).status, 403);
    let [ann, oscar, vera] = ["ann", "oscar", "vera"].map(|name| signed_in(&page, name));
    let status = |asker: &Asker, method: &str, path: &str, body: &str| asker.send(method, path, body).status;
    let of =
        |method: &str, path: &str, body: &str| [&vera, &oscar, &ann].map(|asker| status(asker, method, path, body));
    assert_eq!(of("GET", "/api/v1/hosts", ""), [200, 200, 200]);
    assert_eq!(of("GET", "/conn/count", ""), [200, 200, 200]);
    assert_eq!(of("PUT", "/api/v1/plugins", r#"{"plugins":[]}"#), [403, 200, 200]);
    assert_eq!(of("POST", "/api/v1/tasks", r#"{"agent_id":"x","task":{}}"#), [403, 409, 409]);
    assert_eq!(of("POST", "/command/", r#"{"agent_id":"x","command":{}}"#), [403, 200, 200]);
    assert_eq!(of("GET", "/api/v1/users", ""), [403, 403, 200]);
    assert_eq!(of("GET", "/api/v1/audit", ""), [403, 403, 200]);
    assert_eq!(of("DELETE", "/api/v1/users/nemo", ""), [403, 403, 404]);

    let user = |name: &str, role: &str| json!({ "name": name, "password": PASSWORD, "role": role }).to_string();
    assert_eq!(status(&ann, "POST", "/api/v1/users", &user("bob", "view")), 201);
    assert_eq!(status(&ann, "POST", "/api/v1/users", &user("bob", "view")), 409);
    assert_eq!(status(&ann, "POST", "/api/v1/users", &user("local", "view")), 400);
    assert_eq!(status(&ann, "POST", "/api/v1/users", &user("eve", "root")), 400);
    assert_eq!(status(&ann, "PUT", "/api/v1/users/ann", r#"{"role":"view"}"#), 409, "the last admin");
    assert_eq!(status(&ann, "DELETE", "/api/v1/users/ann", ""), 409, "the last admin");

    // What somebody may do changes at once, and so does who may do anything.
    assert_eq!(status(&ann, "PUT", "/api/v1/users/vera", r#"{"role":"operate"}"#), 200);
    assert_eq!(plugins(&vera).status, 200);
    assert_eq!(status(&ann, "PUT", "/api/v1/users/vera", r#"{"password":"another horse"}"#), 200);
    assert_eq!(plugins(&vera).status, 401);
    assert_eq!(done(dir.path(), &["user", "remove", "oscar"], ""), "oscar may no longer sign in\n");
    assert_eq!((plugins(&oscar).status, sign_in(&page, "oscar", PASSWORD).status), (401, 401));

    let trail = trail(&ann);
    for line in [
        "local user.add ann: ok",
        "nobody login ann: wrong name or password",
        "nobody login nobody: wrong name or password",
        "vera login vera: ok",
        "oscar plugins.set all: ok",
        "oscar task x: agent x is not connected",
        "ann command x: agent x is not connected",
        "ann user.change vera: ok",
        "local user.remove oscar: ok",
    ] {
        assert!(trail.iter().any(|entry| entry == line), "{line}: {trail:?}");
    }
    let page_of_two = ann.get("/api/v1/audit?limit=2").json();
    let next = ann.get(&format!("/api/v1/audit?limit=2&before={}", page_of_two["next"])).json();
    assert_eq!(next["entries"][0]["id"].as_i64().unwrap() + 1, page_of_two["entries"][1]["id"].as_i64().unwrap());
}

#[test]
fn a_session_outlives_the_center_and_ends_when_its_user_says_so() {
    let dir = site();
    let program = Program::start(dir.path());
    add(dir.path(), "ann", "admin");
    let page = Asker::page(program.http);
    let (ann, other) = (signed_in(&page, "ann"), signed_in(&page, "ann"));
    drop(program);
    assert!(failed(dir.path(), &["user", "list"], "").contains("no center runs at http://127.0.0.1:"));
    // It comes back on another port, under which its cookie has another name.
    let program = Program::start(dir.path());
    let moved = |asker: &Asker| {
        let cookie = asker.headers.iter().find(|(name, _)| name == "cookie").unwrap().1.split_once('=').unwrap().1;
        let page = Asker::page(program.http).with("cookie", &format!("elklet-center-{}={cookie}", program.http.port()));
        let csrf = asker.headers.iter().find(|(name, _)| name == "x-csrf-token").unwrap().1.clone();
        page.with("x-csrf-token", &csrf)
    };
    let (ann, other) = (moved(&ann), moved(&other));
    assert_eq!((plugins(&ann).status, plugins(&other).status), (200, 200));

    let change = |asker: &Asker, old: &str, new: &str| {
        asker.send("PUT", "/api/v1/session/password", &json!({ "old": old, "new": new }).to_string()).status
    };
    assert_eq!(change(&ann, "wrong", "another horse"), 403);
    assert_eq!(change(&ann, PASSWORD, "short"), 400);
    assert_eq!(change(&ann, PASSWORD, "another horse"), 200);
    assert_eq!((plugins(&ann).status, plugins(&other).status), (200, 401), "one's other sessions end");
    let page = Asker::page(program.http);
    assert_eq!(sign_in(&page, "ann", PASSWORD).status, 401);
    assert_eq!(sign_in(&page, "ann", "another horse").status, 200);

    assert_eq!(ann.without("x-csrf-token").send("DELETE", "/api/v1/session", "").status, 403);
    let left = ann.send("DELETE", "/api/v1/session", "");
    assert!(left.status == 200 && left.header("set-cookie").unwrap().contains("; Max-Age=0"));
    assert_eq!(plugins(&ann).status, 401);
}

#[test]
fn whoever_guesses_is_made_to_wait() {
    let dir = site();
    let program = Program::start(dir.path());
    add(dir.path(), "ann", "admin");
    let page = Asker::page(program.http);
    let signed_in = sign_in(&page, "ann", PASSWORD);
    let remembered = signed_in.headers("set-cookie").find(|cookie| cookie.contains("-browser=")).unwrap();
    for part in ["; HttpOnly", "; SameSite=Strict", "; Path=/", "; Max-Age=31536000"] {
        assert!(remembered.contains(part), "{remembered}");
    }
    // The session has ended since. What the browser is known by has not.
    let known = page.with("cookie", remembered.split(';').next().unwrap());
    assert_eq!(known.get("/api/v1/users").status, 401, "it lets nobody in");
    let mut wrong = 0;
    let refused = loop {
        let reply = sign_in(&page, "ann", "wrong password");
        if reply.status != 401 {
            break reply;
        }
        wrong += 1;
    };
    // A slow machine may win a try back meanwhile.
    assert!((10..15).contains(&wrong), "{wrong}");
    assert_eq!(refused.status, 429);
    let wait: u32 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    assert_eq!(sign_in(&page, "ann", PASSWORD).status, 429, "the right one as well");
    let forged = page.with("cookie", &remembered.split(';').next().unwrap().replace("-browser=", "-browser=0"));
    assert_eq!(sign_in(&forged, "ann", PASSWORD).status, 429);
    assert_eq!(sign_in(&known, "bob", PASSWORD).status, 429, "it is the browser of one user");
    let again = sign_in(&known, "ann", PASSWORD);
    assert_eq!(again.status, 200, "whoever guesses does not keep ann's own browser waiting");
    let local = Asker::command(program.http).with("authorization", &format!("Bearer {}", token(dir.path())));
    let metrics = local.text("/metrics");
    for line in [
        format!("center_wrong_sign_ins_total {wrong}\n"),
        "center_hasty_sign_ins_total 4\n".to_owned(),
        "center_http_answers_total{status=\"429\"} 4\n".to_owned(),
    ] {
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
    let trail = trail(&local);
    let told = trail.iter().filter(|line| line.contains("too many attempts")).count();
    assert_eq!(told, 1, "a flood of tries is no flood of entries: {trail:?}");

    // A browser that was stolen guesses no faster than anybody else, and another password makes it a stranger's.
    let guesses = (0..30).take_while(|_| sign_in(&known, "ann", "wrong password").status == 401).count();
    assert!(guesses < 15, "{guesses}");
    let change = json!({ "password": "another horse battery" }).to_string();
    assert_eq!(local.send("PUT", "/api/v1/users/ann", &change).status, 200);
    let ann = page.with("cookie", again.headers("set-cookie").nth(1).unwrap().split(';').next().unwrap());
    assert_eq!(sign_in(&ann, "ann", "another horse battery").status, 429);
}

#[test]
fn a_command_speaks_tls_with_this_very_center() {
    let dir = site();
    let settings = dir.path().join("center.toml");
    fs::write(&settings, format!("http_tls = true\n{}", fs::read_to_string(&settings).unwrap())).unwrap();
    let _program = Program::start(dir.path());
    add(dir.path(), "ann", "admin");
    let by_settings = Command::new(center_for_tests()).args(["link", "--config"]).arg(&settings).output().unwrap();
    assert!(by_settings.stdout.starts_with(b"https://127.0.0.1:"), "{by_settings:?}");
    let address = dir.path().join("data/local-address");
    let written = fs::read_to_string(&address).unwrap();
    let (url, fingerprint) = written.trim().split_once(' ').unwrap();
    fs::write(&address, format!("{url} {}", fingerprint.chars().rev().collect::<String>())).unwrap();
    assert!(failed(dir.path(), &["user", "list"], "").contains("not the certificate"));
}

#[test]
fn a_password_is_asked_for_on_the_terminal_and_not_shown() {
    let dir = site();
    let program = Program::start(dir.path());
    let ask = |answers: [&str; 2]| {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap().into_string().unwrap();
        let end = fs::File::options().read(true).write(true).open(name).unwrap();
        let mut child = Command::new(center_for_tests())
            .args(["user", "add", "ann", "--role", "admin", "--data"])
            .arg(dir.path().join("data"))
            .stdin(end.try_clone().unwrap())
            .stderr(end)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let (mut terminal, mut shown) = (fs::File::from(terminal), String::new());
        for (question, answer) in ["New password of ann: ", "The same again: "].into_iter().zip(answers) {
            while !shown.ends_with(question) {
                let mut some = [0; 256];
                let len = terminal.read(&mut some).unwrap();
                shown.push_str(std::str::from_utf8(&some[..len]).unwrap());
            }
            terminal.write_all(format!("{answer}\n").as_bytes()).unwrap();
        }
        let status = child.wait().unwrap();
        // The terminal ends with an error, once nobody has its other end.
        let mut rest = Vec::new();
        _ = terminal.read_to_end(&mut rest);
        (status.success(), format!("{shown}{}", String::from_utf8(rest).unwrap()))
    };
    let (done, shown) = ask([PASSWORD, "something else"]);
    assert!(!done && shown.contains("the two passwords differ"), "{shown}");
    let (done, shown) = ask([PASSWORD, PASSWORD]);
    assert!(done && !shown.contains(PASSWORD) && !shown.contains("horse"), "{shown}");
    assert_eq!(sign_in(&Asker::page(program.http), "ann", PASSWORD).status, 200);
}

#[test]
fn a_stream_tells_what_happens_until_the_session_ends() {
    let dir = site();
    let program = Program::start(dir.path());
    add(dir.path(), "ann", "admin");
    let ann = signed_in(&Asker::page(program.http), "ann");
    let mut all = ann.events("");
    let mut some = ann.events("?records=1&type=59&host=a");
    assert_eq!(all.next("totals", |_| true)["storing"], true);
    for query in ["?records=2", "?type=x", "?hots=a"] {
        assert_eq!(ann.get(&format!("/api/v1/stream{query}")).status, 400, "{query}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let mut connected = runtime.block_on(async {
        let mut client = Client::connect(program.grpc, &dir.path().join("certs")).await.unwrap();
        let mut call = client.call(TRANSFER, Some("snappy")).await;
        let exec = |n: usize| record(59, &[("argv", &format!("line\n{n}"))]);
        let mut records: Vec<_> = (0..70).map(exec).collect();
        records.push(record(60, &[]));
        call.send(&batch("a", records)).await;
        (client, call)
    });
    let records = some.next("records", |_| true);
    let shown = records["records"].as_array().unwrap();
    assert_eq!((&records["seen"], shown.len()), (&json!(70), 50), "the newest, and how many there were");
    let found = ann.get("/api/v1/records?type=59&limit=50").json();
    assert_eq!(found["records"], records["records"], "as a search finds them");
    assert_eq!(some.next("host", |host| host["records"] == 71)["id"], "a");
    let came = all.next("hosts", |_| true);
    assert_eq!(
        (&came["hosts"][0]["id"], &came["hosts"][0]["connected"], &came["more"]),
        (&json!("a"), &json!(true), &json!(false))
    );
    all.next("totals", |totals| totals["records"] == 71 && totals["connected"] == 1);

    let task = json!({ "agent_id": "a", "task": { "data_type": 7, "name": "x", "token": "t1" } }).to_string();
    assert_eq!(ann.send("POST", "/api/v1/tasks", &task).status, 201);
    assert_eq!(all.next("tasks", |_| true)["tasks"][0]["token"], "t1");
    runtime.block_on(async {
        let answer = record(5100, &[("token", "t1"), ("status", "succeed")]);
        connected.1.send(&batch("a", vec![answer])).await;
    });
    all.next("tasks", |changed| changed["tasks"][0]["answers"][0]["status"] == "succeed");
    drop(connected);
    all.next("hosts", |hosts| hosts["hosts"][0]["connected"] == false);

    // There are as many streams as there may be, until one ends.
    let mut open: Vec<_> = (0..62).map(|_| ann.events("")).collect();
    assert_eq!(ann.get("/api/v1/stream").status, 503);
    open.pop();
    wait_until("room for a stream", || ann.opens("/api/v1/stream"));
    assert_eq!(ann.send("DELETE", "/api/v1/session", "").status, 200);
    all.end();
    some.end();
}
