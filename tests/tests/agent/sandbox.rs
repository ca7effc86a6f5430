//! Sandboxes of plugins: a hostile one comes as far as the table in docs/security.md says, and an honest one loses nothing.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::harness::{Agent, Setup, Site, Workdir, is_alive, skipped, types, wait_until};
use rustix::process::getuid;

use crate::PLUGIN;

const HOSTILE: &str = env!("CARGO_BIN_EXE_hostile-plugin");
const PROFILES: [&str; 3] = ["trusted", "inspector", "confined"];

const ATTEMPT: i32 = 7010;
const TRIED: i32 = 7011;

/// A process that plugins attack.
struct Victim(Child);

impl Drop for Victim {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns the lines of the table of attempts: what happens in each profile, by the attempt's name.
fn expected() -> BTreeMap<String, [String; 3]> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security.md")).unwrap();
    let section = page.split("\n## ").find(|section| section.starts_with("What a hostile plugin can do\n")).unwrap();
    let cells = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    let rows = section.lines().filter(|line| line.starts_with("| `")).map(cells);
    rows.map(|cells| (cells[0].clone(), [cells[2].clone(), cells[3].clone(), cells[4].clone()])).collect()
}

/// What a plugin reports of its attempts: the outcome and the host's word for it.
fn outcomes(site: &Site, agent: &Agent, plugin: &str) -> BTreeMap<String, (String, String)> {
    site.records(agent, |records| {
        let all = records.of_type(ATTEMPT).filter(|record| record["profile"] == plugin);
        all.map(|record| (record["attempt"].clone(), (record["outcome"].clone(), record["errno"].clone()))).collect()
    })
}

/// Prepares an agent with a hostile plugin in each profile, and something for them to attack.
fn attacked(site: &Site, ground: &Path, tmp: &Path, victim: &Victim) -> (Setup, Config) {
    // Nothing of this lies in /tmp, which plugins have for themselves.
    let certs = ground.join("certs");
    fs::create_dir(&certs).unwrap();
    for file in ["ca.crt", "client.crt", "client.key"] {
        fs::copy(site.certs().join(file), certs.join(file)).unwrap();
    }
    let mut setup = Setup::in_directory(Workdir::within(ground)).argument("--certs").argument(certs.to_str().unwrap());
    setup = (0..8).fold(setup, |setup, _| setup.server(&site.address()));
    let outside = ground.join("outside");
    let open = ground.join("open");
    for (directory, mode) in [(&outside, 0o700), (&open, 0o1777)] {
        fs::create_dir(directory).unwrap();
        fs::set_permissions(directory, fs::Permissions::from_mode(mode)).unwrap();
    }
    fs::write(outside.join("file"), "x").unwrap();
    fs::set_permissions(outside.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    for profile in PROFILES {
        setup = setup.setting(&format!("plugin.{profile}"), &format!("profile = \"{profile}\""));
    }
    let workdir = setup.workdir();
    let beside = workdir.install("beside", PLUGIN, "hello");
    let mut configs = vec![beside.clone()];
    for profile in PROFILES {
        let places = [
            ("profile", profile.to_owned()),
            ("key", certs.join("client.key").display().to_string()),
            ("outside", outside.display().to_string()),
            ("open", open.display().to_string()),
            ("tmp", tmp.display().to_string()),
            ("log", workdir.path().join("log/elklet.log").display().to_string()),
            ("socket", workdir.path().join("elklet.sock").display().to_string()),
            ("beside", workdir.plugin_dir("beside").display().to_string()),
            ("victim", victim.0.id().to_string()),
        ];
        let detail: Vec<_> = places.iter().map(|(name, value)| format!("{name}={value}")).collect();
        configs.push(workdir.install(profile, HOSTILE, &detail.join("\n")));
    }
    site.center().set_configs(Some(configs));
    (setup, beside)
}

fn wait_tried(site: &Site, agent: &Agent) {
    wait_until("attempts", || site.records(agent, |records| records.of_type(TRIED).count() == PROFILES.len()));
}

#[test]
fn a_hostile_plugin_comes_as_far_as_its_profile_lets_it() {
    let name = "a_hostile_plugin_comes_as_far_as_its_profile_lets_it";
    if !getuid().is_root() {
        return skipped(name, "profiles are whole only if the agent is root");
    }
    let (site, ground) = (Site::new(), tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap());
    let tmp = tempfile::NamedTempFile::new_in("/tmp").unwrap();
    let victim = Victim(Command::new("sleep").arg("600").spawn().unwrap());
    let (setup, beside) = attacked(&site, ground.path(), tmp.path(), &victim);
    let agent = setup.start();
    wait_tried(&site, &agent);

    let expected = expected();
    assert!(expected.len() >= 50, "{expected:?}");
    let unlimited = !agent.log_lines(" processes not applied: ").is_empty();
    if unlimited {
        skipped(name, &format!("fork-without-end: {}", agent.log_lines(" processes not applied: ").join("; ")));
    }
    let mut wrong = Vec::new();
    for (at, profile) in PROFILES.into_iter().enumerate() {
        let found = outcomes(&site, &agent, profile);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{profile}");
        for (attempt, (outcome, errno)) in found {
            if outcome != expected[&attempt][at] && !(unlimited && attempt == "fork-without-end") {
                wrong.push(format!("{profile}: {attempt}: {outcome} ({errno})"));
            }
        }
    }
    assert!(wrong.is_empty(), "other outcomes than in docs/security.md:\n{}", wrong.join("\n"));
    let strays = site.records(&agent, |records| {
        records.of_type(TRIED).map(|record| record["strays"].to_string()).collect::<Vec<_>>()
    });
    assert_eq!(strays, [""; 3], "they inherit no descriptor but their own");

    // Each refused call is counted, by name, for people and for programs, and the first ones stand in the log.
    let shown = status(&agent, &[]);
    for call in ["mount 1", "unshare 1", "clone(new namespaces) 1", "socket(AF_INET) 2", "socket(AF_PACKET) 1"] {
        assert!(shown.contains(call), "{call}: {shown}");
    }
    let shown: serde_json::Value = serde_json::from_str(&status(&agent, &["--json"])).unwrap();
    let plugins = shown["plugins"].as_array().unwrap();
    let refused = |name: &str| &plugins.iter().find(|plugin| plugin["name"] == name).unwrap()["process"];
    assert_eq!(refused("trusted")["refused"], serde_json::json!({}));
    assert_eq!(refused("trusted")["counters"]["calls_refused"], 0);
    for (name, netlink) in [("inspector", serde_json::Value::Null), ("confined", 1.into())] {
        let process = refused(name);
        assert_eq!(process["refused"]["socket(AF_NETLINK)"], netlink, "{process}");
        let counts = process["refused"].as_object().unwrap().values().map(|count| count.as_u64().unwrap());
        assert_eq!(process["counters"]["calls_refused"], counts.sum::<u64>(), "{process}");
        assert_eq!(agent.log_lines(&format!("plugin {name}: the sandbox refused ")).len(), 8, "a few are told");
    }
    let beat = site.fresh_heartbeats(&agent).plugins["confined"].clone();
    assert!(beat["refused"].contains("socket(AF_INET) 2; "), "{beat:?}");

    // What they have left behind ends with them.
    let escaped: Vec<u32> = site
        .records(&agent, |records| records.of_type(TRIED).map(|record| record["escaped"].parse().unwrap()).collect());
    assert!(escaped.iter().all(|pid| is_alive(*pid)));
    site.configure(&agent, &[beside]);
    wait_until("end of what escaped", || escaped.iter().all(|pid| !is_alive(*pid)));
}

fn status(agent: &Agent, more: &[&str]) -> String {
    let mut command = Command::new(&Binaries::for_tests().elklet);
    let output = command.args(["status", "--workdir"]).arg(agent.workdir().path()).args(more).output();
    String::from_utf8(output.unwrap().stdout).unwrap()
}

#[test]
fn a_plugin_that_dies_of_a_wall_is_told_with_it() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.x", "profile = \"confined\"");
    site.center().set_configs(Some(vec![setup.workdir().install("x", HOSTILE, "die")]));
    let agent = setup.start();
    agent.wait_for_log("plugin x: the sandbox refused socket(AF_INET); allow = [\"network\"] would let it");
    agent.wait_for_log("plugin x exited with code 1 (its sandbox had refused socket(AF_INET) 1x) unexpectedly");
    let walls = agent.wait_for_log("plugin x had these limits: ");
    assert!(walls.contains("system calls and sockets (seccomp)"), "{walls}");
}

#[test]
fn a_flood_of_refused_calls_is_answered_slowly_and_hangs_nobody() {
    let site = Site::new();
    let setup = site.eager().setting("plugin.x", "profile = \"confined\"\nend_with_agent = false");
    let flood = setup.workdir().install("x", HOSTILE, "flood");
    site.center().set_configs(Some(vec![flood.clone()]));
    let agent = setup.start();
    let process = || {
        let shown: serde_json::Value = serde_json::from_str(&status(&agent, &["--json"])).unwrap();
        shown["plugins"][0]["process"].clone()
    };
    agent.wait_for_log("plugin x: the sandbox refused unshare");
    wait_until("a second of flood", || process()["uptime_seconds"].as_u64() >= Some(2));
    let began = Instant::now();
    let before = process();
    wait_until("more of it", || process()["refused"]["unshare"].as_u64() > before["refused"]["unshare"].as_u64());
    let refused = process()["refused"]["unshare"].as_u64().unwrap();
    // 32 answers, and then none for 100 ms. Both times leave out a part of a second.
    let lived = before["uptime_seconds"].as_u64().unwrap() + 2 + began.elapsed().as_secs();
    assert!(refused <= lived * 320 + 32, "{refused} in {lived} s");
    // A plugin that outlives its agent goes on.
    let directory = agent.workdir().plugin_dir("x");
    let _setup = agent.kill();
    wait_until("a plugin without an agent", || directory.join("alone").exists());
}

#[test]
fn a_plugin_loses_no_record_in_a_sandbox_and_its_status_names_the_walls() {
    let site = Site::new();
    let mut setup = site.eager();
    for profile in ["inspector", "confined"] {
        setup = setup.setting(&format!("plugin.{profile}"), &format!("profile = \"{profile}\""));
    }
    let [inspector, confined] = ["inspector", "confined"]
        .map(|profile| setup.workdir().install(profile, PLUGIN, &format!("hello run={profile} n=3000 rate=0")));
    site.center().set_configs(Some(vec![inspector, confined]));
    let agent = setup.start();
    for profile in ["inspector", "confined"] {
        site.wait_records(&format!("records of {profile}"), &agent, |records| {
            records
                .series
                .get(profile)
                .is_some_and(|series| (series.received, series.missing, series.misplaced) == (3000, 0, 0))
        });
    }
    let status = status(&agent, &[]);
    assert!(status.contains("system calls and sockets (seccomp)"), "{status}");
    // The next heartbeat is a minute away. A new stream begins with one of each plugin.
    let _ = site.fresh_heartbeats(&agent);
    wait_until("heartbeat with the walls", || {
        site.records(&agent, |records| {
            records.of_type(1001).any(|beat| beat.get("limits").is_some_and(|limits| limits.contains("(seccomp)")))
        })
    });
    if getuid().is_root() {
        for wall in ["limits of inspector", "limits of confined", "read-only system", "(its own)", "capabilities none"]
        {
            assert!(status.contains(wall), "{wall}: {status}");
        }
        let owner = fs::metadata(agent.workdir().plugin_dir("confined")).unwrap().uid();
        assert!(owner >= 2_000_000_000, "{owner}");
        let pid = site.records(&agent, |records| {
            let hello = records.of_type(types::HELLO).find(|hello| hello["cwd"].ends_with("/confined"));
            hello.map(|hello| hello["pid"].to_string())
        });
        let held = fs::read_to_string(format!("/proc/{}/status", pid.unwrap())).unwrap();
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(held.contains(&format!("{set}:\t0000000000000000")), "{held}");
        }
    }
}

#[test]
fn procwatch_sees_programs_of_root_in_the_profile_that_is_shipped_for_it() {
    let name = "procwatch_sees_programs_of_root_in_the_profile_that_is_shipped_for_it";
    if !getuid().is_root() {
        return skipped(name, "an inspector has its rights only from an agent that is root");
    }
    const EXEC: i32 = 59;
    let site = Site::new();
    let setup = site.eager().setting("plugins", "profile = \"by_name\"");
    let program = Binaries::for_tests().procwatch.display().to_string();
    site.center().set_configs(Some(vec![setup.workdir().install("procwatch", &program, "")]));
    let agent = setup.start();
    agent.wait_for_log("plugin procwatch: capabilities dac_read_search net_admin sys_ptrace");
    let mut started = Vec::new();
    wait_until("a program with its path and its hash", || {
        // Those from before the plugin listened are not reported.
        started.push(Victim(Command::new("sleep").arg("600").spawn().unwrap()));
        site.records(&agent, |records| {
            let is_own = |pid: &str| started.iter().any(|victim| victim.0.id().to_string() == pid);
            records
                .of_type(EXEC)
                .any(|exec| is_own(&exec["pid"]) && exec["exe"].starts_with('/') && exec["exe_hash"].len() >= 16)
        })
    });
}

#[test]
#[ignore = "it prints figures, and what they are depends on the machine"]
fn how_long_a_plugin_takes_to_start_in_each_profile() {
    const EACH: usize = 20;
    let site = Site::new();
    let mut setup = site.eager().setting("log", "debug = true");
    let names: Vec<Vec<String>> =
        PROFILES.iter().map(|profile| (0..EACH).map(|n| format!("{profile}-{n}")).collect()).collect();
    let mut configs = Vec::new();
    for (profile, names) in PROFILES.iter().zip(&names) {
        for name in names {
            setup = setup.setting(&format!("plugin.{name}"), &format!("profile = \"{profile}\""));
            configs.push(setup.workdir().install(name, PLUGIN, "hello"));
        }
    }
    site.center().set_configs(Some(configs));
    let agent = setup.start();
    wait_until("all of them", || agent.log_lines(": confined and started in ").len() == PROFILES.len() * EACH);
    for (profile, names) in PROFILES.iter().zip(&names) {
        let mut us: Vec<u64> = names
            .iter()
            .flat_map(|name| agent.log_lines(&format!("plugin {name}: confined and started in ")))
            .map(|line| line.rsplit(' ').nth(1).unwrap().parse().unwrap())
            .collect();
        us.sort_unstable();
        eprintln!("{profile}: {} us in the median, {} at most", us[EACH / 2], us[EACH - 1]);
    }
}
