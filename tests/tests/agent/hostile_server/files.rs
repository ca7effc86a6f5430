//! Files: what the server can have sent to it (task 1050), and what the agent hangs on.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use super::Attempt;
use super::stage::Stage;

pub(super) const ATTEMPTS: &[Attempt] = &[
    ("read-file", |stage| {
        let path = stage.ground.path().join("shadow");
        read(stage, &path)
    }),
    ("read-key", |stage| {
        let path = stage.site.certs().join("client.key");
        read(stage, &path)
    }),
    ("read-key-by-link", |stage| {
        let link = stage.ground.path().join("link");
        symlink(stage.site.certs().join("client.key"), &link).unwrap();
        read(stage, &link)
    }),
    ("read-key-by-hard-link", |stage| {
        let link = stage.ground.path().join("hard");
        fs::hard_link(stage.site.certs().join("client.key"), &link).unwrap();
        read(stage, &link)
    }),
    ("read-key-by-root", |stage| {
        let root = format!("/proc/{}/root", std::process::id());
        let path = Path::new(&root).join(stage.site.certs().join("client.key").strip_prefix("/").unwrap());
        read(stage, &path)
    }),
    ("read-password", |stage| {
        let path = stage.agent.workdir().path().join("elklet.toml");
        read(stage, &path)
    }),
    ("read-agents-memory", |stage| {
        let path = format!("/proc/{}/mem", stage.agent.pid());
        read(stage, Path::new(&path)) || read(stage, Path::new("/proc/self/mem"))
    }),
    ("read-agents-environment", |stage| {
        let path = format!("/proc/{}/environ", stage.agent.pid());
        read(stage, Path::new(&path)) || read(stage, Path::new("/proc/thread-self/environ"))
    }),
    ("read-memory", |stage| read(stage, Path::new(&format!("/proc/{}/mem", std::process::id())))),
    ("read-environment", |stage| read(stage, Path::new(&format!("/proc/{}/environ", std::process::id())))),
    ("read-kernels-memory", |stage| ["/proc/kcore", "/dev/mem"].iter().any(|path| read(stage, Path::new(path)))),
    ("read-log", |stage| {
        let path = stage.agent.workdir().path().join("log/elklet.log");
        read(stage, &path)
    }),
    ("hang-on-pipe", |stage| {
        let pipe = stage.ground.path().join("pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        read(stage, &pipe)
    }),
    ("hang-on-device", |stage| read(stage, Path::new("/dev/zero"))),
    ("read-without-end", |stage| {
        let path = stage.ground.path().join("endless");
        fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
        read(stage, &path)
    }),
    ("hear-password", |stage| stage.has_told(stage.password())),
];

/// Returns true if the file arrives, whole or in part.
fn read(stage: &mut Stage, path: &Path) -> bool {
    let token = stage.unique("read");
    let data = serde_json::json!({ "path": path, "buf_size": 500_000 }).to_string();
    stage.agent_task(1050, &data, &token, |stage| {
        stage.site.center().read(|state| state.uploads.iter().any(|upload| upload.token == token && upload.len > 0))
    })
}
