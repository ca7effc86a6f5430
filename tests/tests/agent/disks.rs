//! Disks as gateways have them: other file systems in the work directory, read-only and noexec ones, deep trees, and a
//! umask that closes nothing or everything.

use crate::PLUGIN;
use crate::downloads::{archive, packed, plain, program, wait_hellos, wait_tidy};
use elklet_proto::grpc::Config;
use elklet_tests::files::{Files, How};
use elklet_tests::harness::{Agent, DEADLINE, Setup, Signal, Site, Workdir, holds_within, skipped, types, wait_until};
use rustix::fs::{Mode, OFlags, mkdirat, openat};
use rustix::process::{Pid, getuid, kill_process};
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tar::EntryType;

/// Has an agent started by a shell that first runs this script in a mount namespace of its own, with the work directory
/// as `$0`. Returns `None` if there can be no such namespace.
fn in_namespace(test: &str, setup: Setup, does: &str) -> Option<Setup> {
    if !Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|status| status.success()) {
        skipped(test, "mounting takes root");
        return None;
    }
    let workdir = setup.workdir().path().display().to_string();
    let script = format!("cd \"$0\" && {does} && cd / && exec \"$@\"");
    Some(setup.started_by(&["unshare", "--mount", "--", "sh", "-c", &script, &workdir]))
}

/// Returns a path in the work directory as the agent sees it, in its own namespace.
fn seen_by(agent: &Agent, path: &str) -> PathBuf {
    let inside = agent.workdir().path().join(path);
    Path::new(&format!("/proc/{}/root", agent.pid())).join(inside.strip_prefix("/").unwrap())
}

/// Returns the entry of a plugin that cannot be fetched. An empty configuration would change nothing.
fn another() -> Config {
    plain("another", b"", &[], "")
}

/// Has two plugins, plain and packed, fetched, upgraded, rolled back after an upgrade that cannot start, and removed.
fn downloads_arrive(site: &Site, agent: &Agent) {
    let files = Files::start();
    let versions: Vec<Vec<u8>> = (0..3).map(|n| [program(), vec![n]].concat()).collect();
    let offer = |n: usize, body: &[u8]| {
        let url = files.serve(&format!("plain{n}"), body, How::Right);
        let plain = plain("plain", body, &[url], "hello");
        let rules = format!("rules {n}");
        let entries = [
            ("packed", EntryType::Regular, body, None),
            ("data/rules.txt", EntryType::Regular, rules.as_bytes(), None),
        ];
        let packed_body = archive(&entries);
        let url = files.serve(&format!("packed{n}"), packed_body.clone(), How::Right);
        let packed = Config { signature: plain.sha256.clone(), ..packed("packed", &packed_body, &[url], "hello") };
        [plain, packed].map(|config| Config { version: format!("{n}"), ..config })
    };
    let rules = || fs::read_to_string(seen_by(agent, "plugin/packed/data/rules.txt")).unwrap_or_default();
    for (n, body) in versions.iter().enumerate().take(2) {
        site.configure(agent, &offer(n, body));
        wait_hellos(site, agent, 2 * (n + 1));
        assert_eq!(rules(), format!("rules {n}"));
    }
    site.configure(agent, &offer(2, b"neither script nor program"));
    wait_until("failures", || agent.log_lines("; version 1 is started again").len() == 2);
    wait_hellos(site, agent, 6);
    assert_eq!(rules(), "rules 1");
    site.configure(agent, &[another()]);
    wait_until("removal", || agent.log_lines("is removed").len() == 2);
    wait_until("end of everything", || {
        let left = |directory: &str| fs::read_dir(seen_by(agent, directory)).map_or(0, Iterator::count);
        left("plugin/plain") + left("plugin/packed") == 0
    });
}

#[test]
fn downloads_arrive_on_whatever_disk_plugins_are() {
    let test = "downloads_arrive_on_whatever_disk_plugins_are";
    for does in [
        // All plugins on another disk, some plugins on disks of their own, and tmp/ on another disk.
        "mkdir plugin && mount -t tmpfs -o mode=755 none plugin",
        "mkdir -p plugin/plain plugin/packed && mount -t tmpfs -o mode=755 none plugin/plain && \
         mount -t tmpfs -o mode=755 none plugin/packed",
        "mkdir tmp && mount -t tmpfs -o mode=755 none tmp",
    ] {
        let site = Site::new();
        let Some(setup) = in_namespace(test, site.eager(), does) else { return };
        let agent = setup.start();
        site.wait_connected(&agent);
        downloads_arrive(&site, &agent);
    }
}

#[test]
fn downloads_arrive_behind_links() {
    let site = Site::new();
    let disk = Workdir::new();
    let setup = site.eager();
    symlink(disk.path(), setup.workdir().path().join("plugin")).unwrap();
    let agent = setup.start();
    site.wait_connected(&agent);
    downloads_arrive(&site, &agent);
    wait_until("end of everything", || fs::read_dir(disk.path()).unwrap().count() == 0);
}

#[test]
fn a_plugin_on_a_layer_that_cannot_be_renamed_is_upgraded() {
    let test = "a_plugin_on_a_layer_that_cannot_be_renamed_is_upgraded";
    let site = Site::new();
    let setup = site.eager();
    let lower = setup.workdir().path().join("lower/packed");
    fs::create_dir_all(lower.join("data")).unwrap();
    fs::write(lower.join("data/rules.txt"), "of the image").unwrap();
    fs::write(lower.join("packed"), "of the image").unwrap();
    // Not every system can mount an overlay on an overlay, but on a tmpfs it always works.
    let does = "mkdir plugin over && mount -t tmpfs none over && mkdir over/upper over/work && \
                mount -t overlay -o lowerdir=lower,upperdir=over/upper,workdir=over/work,redirect_dir=off none plugin";
    let probe = format!("cd {} && {does}", setup.workdir().path().display());
    let can = Command::new("unshare").args(["--mount", "--", "sh", "-c", &probe]).status();
    if !can.is_ok_and(|status| status.success()) {
        return skipped(test, "there is no overlay here, or mounting takes root");
    }
    for directory in ["plugin", "over"] {
        fs::remove_dir(setup.workdir().path().join(directory)).unwrap();
    }
    let Some(setup) = in_namespace(test, setup, does) else { return };
    let agent = setup.start();
    site.wait_connected(&agent);
    downloads_arrive(&site, &agent);
}

#[test]
fn what_is_in_place_runs_on_a_read_only_file_system() {
    let test = "what_is_in_place_runs_on_a_read_only_file_system";
    let site = Site::new();
    let setup = site.eager();
    let config = setup.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![config]));
    // The directory is mounted over itself and then made read-only. Only the log can be written.
    let does = "mkdir log && mount --bind . . && cd \"$0\" && mount -t tmpfs none log && mount -o remount,bind,ro .";
    let Some(setup) = in_namespace(test, setup, does) else { return };
    let agent = setup.start();
    wait_hellos(&site, &agent, 1);
    for pid in agent.workdir().processes() {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).unwrap();
        _ = kill_process(pid, Signal::KILL);
    }
    wait_hellos(&site, &agent, 2);
    site.wait_connected(&agent);
}

#[test]
fn a_mount_that_executes_nothing_is_named() {
    let test = "a_mount_that_executes_nothing_is_named";
    let site = Site::new();
    let setup = site.eager();
    let config = setup.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![config]));
    let does = "mount --bind . . && cd \"$0\" && mount -o remount,bind,noexec .";
    let Some(setup) = in_namespace(test, setup, does) else { return };
    let agent = setup.start();
    let line = agent.wait_for_log("plugin probe cannot be started: ");
    let mounted = format!("lies on {}, which is mounted noexec", agent.workdir().path().display());
    assert!(line.contains(&mounted), "{line}");
}

/// How long the agent may take over a tree that no plugin has, on a busy machine.
const DELETED: Duration = DEADLINE.saturating_mul(3);

/// A directory of deep trees. The standard library deletes them level by level on the stack, which they overflow.
struct DeepDir(PathBuf);

impl Drop for DeepDir {
    fn drop(&mut self) {
        // The test has gone well if there is not much left.
        _ = Command::new("rm").arg("-rf").arg(&self.0).status();
    }
}

/// Makes a chain of directories below `top`, one inside the other. The deeper ones are too deep for a path.
fn dig(top: &Path, levels: usize) {
    let mut at: OwnedFd = fs::File::open(top).unwrap().into();
    for _ in 0..levels {
        mkdirat(&at, "d", Mode::RWXU).unwrap();
        at = openat(&at, "d", OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

#[test]
fn deep_trees_that_earlier_runs_have_left_are_deleted_at_the_start() {
    let site = Site::new();
    let setup = site.eager();
    // Making that many directories is slow on a disk and fast in memory.
    let disk = DeepDir(tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap().keep());
    symlink(&disk.0, setup.workdir().path().join("plugin")).unwrap();
    let config = setup.workdir().install("probe", PLUGIN, "hello");
    site.center().set_configs(Some(vec![config]));
    let (left, kept) = (disk.0.join(".probe.removed.3"), disk.0.join("probe/.mine.new.1"));
    fs::create_dir(&left).unwrap();
    fs::create_dir(&kept).unwrap();
    dig(&left, 20_000);
    let deep_in_use = disk.0.join("probe");
    dig(&deep_in_use, 20_000);
    let agent = setup.start();
    site.wait_connected(&agent);
    assert!(holds_within(DELETED, || !left.exists()), "it is deleted: {}", agent.log());
    // The agent also survives measuring a plugin's directory like this, and the plugin's own files stay.
    assert!(site.fresh_heartbeats(&agent).agent.contains_key("du") && kept.exists());
    site.center().set_configs(Some(vec![another()]));
    site.configure(&agent, &[another()]);
    let is_empty = || fs::read_dir(&disk.0).unwrap().count() == 0;
    assert!(holds_within(DELETED, is_empty), "it is removed: {}", agent.log());
    let status = agent.into_setup();
    assert!(!status.workdir().path().join("tmp").exists());
}

/// Returns all files and directories below, with their modes and without links.
fn modes(top: &Path) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(directory) = waiting.pop() {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                waiting.push(entry.path());
            }
            if meta.is_dir() || meta.is_file() {
                found.push((entry.path(), meta.mode() & 0o7777));
            }
        }
    }
    found
}

#[test]
fn the_umask_opens_nothing_to_others_and_closes_nothing_to_plugins() {
    for umask in ["0", "077"] {
        let site = Site::new();
        let files = Files::start();
        let body = archive(&[
            ("packed", EntryType::Regular, &program(), None),
            ("sub/", EntryType::Directory, b"", None),
            ("sub/file", EntryType::Regular, b"x", None),
        ]);
        let slow = |name: &str| vec![files.serve(name, program(), How::Slow(1000))];
        let mut update = plain("elkeid-agent", &program(), &slow("agent"), "");
        update.version = "99.9.9".into();
        let configs = vec![
            update,
            plain("slow", &program(), &slow("slow"), ""),
            plain("quick", &program(), &[files.serve("quick", program(), How::Right)], "hello"),
            packed("packed", &body, &[files.serve("packed", body.clone(), How::Right)], "hello"),
        ];
        site.center().set_configs(Some(configs));
        let script = format!("umask {umask}; exec \"$@\"");
        let setup = site.eager().started_by(&["sh", "-c", &script, "sh"]);
        // These files come from an earlier version, or from whoever made the work directory.
        let workdir = setup.workdir().path().to_owned();
        let before: Vec<_> = modes(&workdir).into_iter().map(|(path, _)| path).collect();
        fs::create_dir_all(workdir.join("tmp")).unwrap();
        fs::create_dir_all(workdir.join("plugin")).unwrap();
        for directory in ["tmp", "plugin"] {
            fs::set_permissions(workdir.join(directory), fs::Permissions::from_mode(0o777)).unwrap();
        }
        let agent = setup.start();
        wait_hellos(&site, &agent, 2);
        wait_until("slow downloads", || files.open("slow") + files.open("agent") == 2);
        for (path, mode) in modes(&workdir) {
            let is_ours = !before.contains(&path) && path != workdir.join("stderr");
            assert!(!is_ours || mode & 0o022 == 0, "umask {umask}: {} {mode:o}", path.display());
        }
        let mode = |path: &str| fs::metadata(workdir.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(
            (mode("plugin/packed"), mode("plugin/packed/sub"), mode("plugin/packed/sub/file")),
            (0o701, 0o755, 0o755)
        );
        assert_eq!((mode("plugin/quick"), mode("plugin/quick/quick")), (0o701, 0o700));
        let downloads: Vec<_> = modes(&workdir.join("tmp")).into_iter().map(|(_, mode)| mode).collect();
        assert_eq!(downloads, [0o700, 0o600], "the update is on its way, and for nobody else");
    }
}

#[test]
fn a_directory_of_somebody_else_takes_no_update() {
    if !getuid().is_root() {
        return skipped("a_directory_of_somebody_else_takes_no_update", "giving a directory away takes root");
    }
    let site = Site::new();
    let files = Files::start();
    let setup = site.eager();
    let tmp = setup.workdir().path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    std::os::unix::fs::chown(&tmp, Some(12345), None).unwrap();
    let agent = setup.start();
    site.wait_connected(&agent);
    let mut update = plain("elkeid-agent", &program(), &[files.serve("agent", program(), How::Right)], "");
    update.version = "99.9.9".into();
    site.configure(&agent, &[update]);
    let line = agent.wait_for_log("the update to version 99.9.9 failed: ");
    assert!(line.contains("it belongs to user 12345, expected 0"), "{line}");
    assert_eq!(files.requests("agent"), 0);
}

#[test]
fn a_disk_without_room_takes_no_download() {
    let test = "a_disk_without_room_takes_no_download";
    let site = Site::new();
    let files = Files::start();
    let body = vec![7; 2 << 20];
    let configs = vec![plain("large", &body, &[files.serve("large", body.clone(), How::Right)], "")];
    site.center().set_configs(Some(configs));
    // There is room for it, but then less than a twentieth of the disk would be free.
    let does = "mkdir plugin && mount -t tmpfs -o size=2100k none plugin";
    let Some(setup) = in_namespace(test, site.eager(), does) else { return };
    let agent = setup.start();
    let line = agent.wait_for_log("plugin large cannot be started: ");
    assert!(line.contains("are free on the disk, of which"), "{line}");
    assert!(fs::read_dir(seen_by(&agent, "plugin")).unwrap().next().is_none(), "what had come is gone");
    wait_tidy(&agent);
    assert!(site.records(&agent, |records| records.of_type(types::HELLO).count()) == 0);
}
