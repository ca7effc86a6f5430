//! A plugin that does what it is told, right or wrong.
//!
//! It speaks the plugin pipe's framing by hand, without the SDK, so that it can break every rule of it. Its script is
//! words separated by white space. It takes them from `DETAIL`, or without one from the file `script` in the working
//! directory. A task whose data begins with `do ` brings more words. It carries them out in order:
//!
//! | word | what it does |
//! |---|---|
//! | `run=NAME` | names the series of numbered records that follows; it counts from 0 |
//! | `n=COUNT`, `endless` | sends numbered records: so many, or until the task pipe ends (tasks are lost meanwhile) |
//! | `rate=R`, `size=BYTES` | records a second from here on (0: flat out), and how much padding each has |
//! | `execve` | numbered records have an execve event's fields from here on: about 900 bytes, of which snappy leaves a fourth |
//! | `chunk=BYTES` | bytes of one write at most from here on |
//! | `last=COUNT` | how many numbered records it still sends when the task pipe ends |
//! | `hello` | a record of what the plugin finds around it |
//! | `raw=HEX`, `zeros=COUNT`, `frame=HEX` | these bytes; so many zero bytes; these bytes behind their right length |
//! | `urgent`, `bulk` | writes to descriptor 5 or 4 from here on |
//! | `close` | closes the pipe that it writes to |
//! | `child` | starts a process in its group that sleeps and holds the pipes open, and tells its pid in a record |
//! | `orphan`, `orphan=bare` | leaves a process with a session of its own behind that ignores SIGTERM and has lost its parent, `bare` without an environment, and tells its pid in a record |
//! | `brief=COUNT` | leaves so many processes behind that end by themselves within a second |
//! | `deaf`, `deaf=FILE` | does nothing and reads no tasks, for ever or until FILE exists, which it removes |
//! | `eat=MIB` | takes so much memory and keeps it |
//! | `fill=MIB` | writes a file `filled` of this size into the working directory |
//! | `stderr=TEXT` | a line on standard error |
//! | `complain=MIB` | so many MiB of lines on standard error |
//! | `exit=CODE`, `abort` | ends at once, with a code or by SIGABRT |
//!
//! After the last word it takes tasks and reports each in a record. When the task pipe ends it says goodbye in a last
//! record.
#![allow(unsafe_code, reason = "the pipes' descriptors are the plugin's by contract, and nothing else knows that")]
#![allow(clippy::unwrap_used, reason = "a test's plugin that cannot go on may as well panic: the test sees it die")]

use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::process::{self, Command};
use std::str::FromStr;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The records' data types. The harness has the same numbers.
const NUMBERED: u64 = 7000;
const HELLO: u64 = 7001;
const CHILD: u64 = 7002;
const TASK: u64 = 7003;
const GOODBYE: u64 = 7004;

/// Bytes of one write, unless the script says otherwise: as many as a pipe holds.
const CHUNK: usize = 64 << 10;

/// How many different events `execve` makes.
const EVENTS: u64 = 512;

/// No process lives longer than this, whatever becomes of the test that started it.
const LIFETIME: Duration = Duration::from_secs(600);

fn main() {
    thread::spawn(|| {
        thread::sleep(LIFETIME);
        process::exit(99);
    });
    let script = match env::var("DETAIL") {
        Ok(detail) => detail,
        Err(_) => fs::read_to_string("script").unwrap_or_default(),
    };
    // SAFETY: the agent hands these two descriptors over with the process; they are taken once, here.
    let (records, urgent) = unsafe { (File::from_raw_fd(4), File::from_raw_fd(5)) };
    let mut plugin = Plugin {
        pipes: [Some(records), Some(urgent)],
        lane: 0,
        tasks: None,
        run: "r".to_owned(),
        sent: 0,
        interval: Duration::ZERO,
        padding: vec![String::new()],
        chunk: CHUNK,
        last: 0,
        eaten: Vec::new(),
    };
    plugin.follow(&script);
    while let Some(task) = plugin.next_task() {
        let fields = [("token", task.token.as_str()), ("bytes", &task.data.len().to_string())];
        plugin.send(&record(TASK, &fields));
        if let Some(script) = task.data.strip_prefix("do ") {
            plugin.follow(script);
        }
    }
    plugin.interval = Duration::ZERO;
    plugin.numbered(plugin.last);
    let goodbye = record(GOODBYE, &[("run", plugin.run.as_str()), ("sent", &plugin.sent.to_string())]);
    plugin.send(&goodbye);
}

struct Plugin {
    /// The pipes for bulk and for urgent records.
    pipes: [Option<File>; 2],
    lane: usize,
    /// The tasks. Nothing reads them before the first is wanted.
    tasks: Option<Receiver<Task>>,
    run: String,
    sent: u64,
    /// The pause between two numbered records, if there is one.
    interval: Duration,
    /// The paddings of numbered records, which take turns.
    padding: Vec<String>,
    chunk: usize,
    last: u64,
    eaten: Vec<u8>,
}

struct Task {
    data: String,
    token: String,
}

impl Plugin {
    fn follow(&mut self, script: &str) {
        for word in script.split_whitespace() {
            let (name, value) = word.split_once('=').unwrap_or((word, ""));
            match name {
                "run" => (self.run, self.sent) = (value.to_owned(), 0),
                "n" => self.numbered(count(value)),
                "endless" => self.numbered(u64::MAX),
                "rate" => self.interval = Duration::from_secs(1).checked_div(count(value)).unwrap_or_default(),
                "size" => self.padding = vec!["x".repeat(count(value))],
                "execve" => self.padding = (0..EVENTS).map(execve).collect(),
                "chunk" => self.chunk = count(value),
                "last" => self.last = count(value),
                "hello" => self.send(&record(HELLO, &surroundings())),
                "raw" => self.write(&unhex(value)),
                "zeros" => self.write(&vec![0; count::<usize>(value)]),
                "frame" => self.send(&unhex(value)),
                "bulk" => self.lane = 0,
                "urgent" => self.lane = 1,
                "close" => self.pipes[self.lane] = None,
                "child" => self.child(),
                "brief" => brief(count(value)),
                "orphan" => self.orphan(value == "bare"),
                "deaf" => sleep_until(|| !value.is_empty() && fs::remove_file(value).is_ok()),
                "eat" => self.eaten.extend(vec![1; count::<usize>(value) << 20]),
                "fill" => fs::write("filled", vec![1; count::<usize>(value) << 20]).unwrap(),
                "complain" => complain(count(value)),
                "stderr" => eprintln!("{value}"),
                "exit" => process::exit(count(value)),
                "abort" => process::abort(),
                _ => panic!("no such word: {word}"),
            }
        }
    }

    /// Sends this many numbered records at the rate that was set. If they are endless, it stops when the task pipe
    /// ends.
    fn numbered(&mut self, count: u64) {
        let begun = Instant::now();
        let mut frames = Vec::new();
        for done in 0..count {
            let seq = self.sent.to_string();
            let padding = &self.padding[usize::try_from(self.sent).unwrap() % self.padding.len()];
            frame(&record(NUMBERED, &[("run", &self.run), ("seq", &seq), ("pad", padding)]), &mut frames);
            self.sent += 1;
            if frames.len() >= self.chunk.min(CHUNK) || !self.interval.is_zero() {
                self.write(&frames);
                frames.clear();
                if count == u64::MAX && self.tasks_have_ended() {
                    return;
                }
            }
            if !self.interval.is_zero() {
                let due = begun + self.interval * u32::try_from(done).unwrap();
                thread::sleep(due.saturating_duration_since(Instant::now()));
            }
        }
        self.write(&frames);
    }

    #[expect(clippy::zombie_processes, reason = "it is to be left behind")]
    fn child(&mut self) {
        // The child inherits descriptors 3, 4 and 5, as a careless plugin's would.
        let child = Command::new("/proc/self/exe").env("DETAIL", "deaf").spawn().unwrap();
        self.send(&record(CHILD, &[("run", self.run.as_str()), ("pid", &child.id().to_string())]));
    }

    fn orphan(&mut self, bare: bool) {
        let mut parent = Command::new("/bin/sh");
        parent.args(["-c", "trap '' TERM HUP; sleep 600 >/dev/null 2>&1 & echo $!"]);
        if bare {
            parent.env_clear();
        }
        // SAFETY: setsid is async-signal-safe.
        unsafe { parent.pre_exec(|| rustix::process::setsid().map(|_| ()).map_err(Into::into)) };
        let said = parent.output().unwrap().stdout;
        let pid = String::from_utf8(said).unwrap().trim().to_owned();
        self.send(&record(CHILD, &[("run", self.run.as_str()), ("pid", &pid)]));
    }

    fn send(&mut self, body: &[u8]) {
        let mut bytes = Vec::new();
        frame(body, &mut bytes);
        self.write(&bytes);
    }

    /// Writes the bytes in pieces. If the agent is gone, it ends the process and leaves the number of numbered records
    /// that it had made in the file `made`.
    fn write(&mut self, bytes: &[u8]) {
        let Some(pipe) = &mut self.pipes[self.lane] else { return };
        for piece in bytes.chunks(self.chunk) {
            if pipe.write_all(piece).is_err() {
                fs::write("made", self.sent.to_string()).unwrap();
                process::exit(0);
            }
        }
    }

    fn next_task(&mut self) -> Option<Task> {
        self.tasks.get_or_insert_with(read_tasks).recv().ok()
    }

    fn tasks_have_ended(&mut self) -> bool {
        matches!(self.tasks.get_or_insert_with(read_tasks).try_recv(), Err(TryRecvError::Disconnected))
    }
}

/// Reads tasks on a thread of its own until their pipe ends.
fn read_tasks() -> Receiver<Task> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        // SAFETY: as with the other two; this is called once.
        let mut pipe = unsafe { File::from_raw_fd(3) };
        while let Ok(task) = read_task(&mut pipe) {
            if sender.send(task).is_err() {
                return;
            }
        }
    });
    receiver
}

/// Writes this many MiB of lines to standard error.
fn complain(mib: usize) {
    let lines = "this cannot be done, and is tried again at once\n".repeat((1 << 20) / 48);
    for _ in 0..mib {
        io::stderr().write_all(lines.as_bytes()).unwrap();
    }
}

/// Leaves processes behind that end by themselves.
fn brief(count: u32) {
    for _ in 0..count {
        let parent = Command::new("/bin/sh").args(["-c", "sleep 0.5 &"]).status().unwrap();
        assert!(parent.success());
    }
}

fn read_task(pipe: &mut File) -> io::Result<Task> {
    let mut length = [0; 4];
    pipe.read_exact(&mut length)?;
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    pipe.read_exact(&mut body)?;
    let mut task = Task { data: String::new(), token: String::new() };
    let mut rest = &body[..];
    while !rest.is_empty() {
        let tag = take_varint(&mut rest);
        let value = take_varint(&mut rest);
        if tag & 7 == 2 {
            let (bytes, behind) = rest.split_at(usize::try_from(value).unwrap());
            let text = String::from_utf8(bytes.to_vec()).unwrap();
            match tag >> 3 {
                3 => task.data = text,
                4 => task.token = text,
                _ => {}
            }
            rest = behind;
        }
    }
    Ok(task)
}

fn take_varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let (&byte, rest) = bytes.split_first().unwrap();
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            break;
        }
    }
    value
}

fn record(data_type: u64, fields: &[(&str, impl AsRef<str>)]) -> Vec<u8> {
    let mut payload = Vec::new();
    for (name, value) in fields {
        let mut entry = Vec::new();
        put_bytes(1, name.as_bytes(), &mut entry);
        put_bytes(2, value.as_ref().as_bytes(), &mut entry);
        put_bytes(1, &entry, &mut payload);
    }
    let mut body = vec![1 << 3];
    put_varint(data_type, &mut body);
    body.push(2 << 3);
    put_varint(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs(), &mut body);
    put_bytes(3, &payload, &mut body);
    body
}

fn frame(body: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
    out.extend_from_slice(body);
}

fn put_bytes(field: u8, bytes: &[u8], out: &mut Vec<u8>) {
    out.push(field << 3 | 2);
    put_varint(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

fn put_varint(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(0x80 | value.to_le_bytes()[0]);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

/// Returns the text of an execve event, a different one for every number.
fn execve(number: u64) -> String {
    const PROGRAMS: [&str; 8] = [
        "/usr/bin/bash -c /opt/app/bin/healthcheck.sh --port 8080 --timeout 5",
        "/usr/bin/curl -sS -m 10 -o /dev/null -w %{http_code} http://127.0.0.1:9100/metrics",
        "/usr/bin/python3 /usr/local/lib/collect/collector.py --interval 30 --out /var/lib/collect",
        "/usr/bin/git --git-dir=/srv/git/site.git rev-parse --verify HEAD",
        "/usr/bin/grep -rn --include=*.conf listen /etc/nginx/sites-enabled",
        "/usr/bin/systemctl is-active --quiet nginx.service",
        "/usr/bin/find /tmp -xdev -type f -mtime +7 -delete",
        "/usr/bin/tar -czf /backup/etc.tar.gz --exclude=/etc/ssl /etc",
    ];
    let mut state = number;
    let mut random = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        state >> 33
    };
    let program = |random: u64| PROGRAMS[(random % 8) as usize];
    let (argv, parent, group, socket) = (program(random()), program(random()), program(random()), program(random()));
    let exe = argv.split(' ').next().unwrap();
    let (pid, ppid, sid) = (1000 + random() % 60_000, 500 + random() % 60_000, 400 + random() % 60_000);
    let (a, b, c, port) = (random() % 255, random() % 255, random() % 255, 32_768 + random() % 28_000);
    let hash = (random() << 31 | random(), random() << 31 | random());
    format!(
        "uid=0 exe={exe} pid={pid} ppid={ppid} pgid={ppid} tgid={pid} sid={sid} comm={comm} argv={argv} run_path=/srv/app \
         nodename=prod-web-eu-0317.example.net sessionid=4294967295 pns=4026531836 root_pns=4026531836 stdin=/dev/null \
         stdout=pipe:[{stdout}] dip=10.{a}.{b}.{c} dport=443 sip=10.21.4.17 sport={port} sa_family=2 tty=-1 ssh=-1 \
         pid_tree={pid}.{comm}<{ppid}.bash<{sid}.run-parts<1021.cron<1.systemd socket_pid={pid} ld_preload=-1 res=0 \
         socket_argv={socket} ppid_argv={parent} pgid_argv={group} username=root pod_name=-3 \
         exe_hash={:016x}{:016x}",
        hash.0,
        hash.1,
        comm = exe.rsplit('/').next().unwrap(),
        stdout = 3_000_000 + random() % 1_000_000,
    )
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.chars().map(|c| u8::try_from(c.to_digit(16).unwrap()).unwrap()).collect();
    digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect()
}

fn count<N: FromStr>(value: &str) -> N {
    value.parse().unwrap_or_else(|_| panic!("{value}: expected a number"))
}

fn sleep_until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::sleep(Duration::from_millis(10));
    }
}

/// Returns what the agent has set up for this process.
fn surroundings() -> Vec<(&'static str, String)> {
    // Fields of stat behind the name: state, parent, group; the start, in clock ticks since the system's, is the 20th of them.
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let behind_name: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
    let target =
        |fd: u32| fs::read_link(format!("/proc/self/fd/{fd}")).map_or("-".into(), |to| to.display().to_string());
    let listed = fs::read_dir("/proc/self/fd").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut descriptors: Vec<u32> = listed.map(|number| count(&number)).collect();
    // One descriptor was the listing's own, and is closed by now.
    descriptors.retain(|fd| fs::symlink_metadata(format!("/proc/self/fd/{fd}")).is_ok());
    descriptors.sort_unstable();
    let environment: Vec<String> = env::vars().map(|(name, value)| format!("{name}={value}")).collect();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let signals = |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    vec![
        ("blocked", signals("SigBlk:")),
        ("ignored", signals("SigIgn:")),
        ("pid", process::id().to_string()),
        ("ppid", behind_name[1].to_owned()),
        ("pgid", behind_name[2].to_owned()),
        ("started", behind_name[19].to_owned()),
        ("cwd", env::current_dir().unwrap().display().to_string()),
        ("argv", env::args().collect::<Vec<_>>().join("\n")),
        ("environment", environment.join("\n")),
        ("descriptors", format!("{descriptors:?}")),
        ("stdin", target(0)),
        ("stdout", target(1)),
        ("stderr", target(2)),
    ]
}
