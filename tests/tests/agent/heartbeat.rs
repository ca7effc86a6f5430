//! What the agent reports about itself and its plugins, and when.

use crate::PLUGIN;
use elklet_tests::harness::{Agent, Site, types};
use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::unix::fs::PermissionsExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The fields of record 1000 in the reference agent's generation C.
pub(crate) const AGENT_FIELDS: &str = "arch boot_time cpu cpu_name cpu_usage dns du gateway host_id host_model host_serial host_vendor \
    idc kernel_version load_1 load_15 load_5 mem_usage net_mode nfd ngr nproc pid platform platform_family \
    platform_version read_speed region rss running_procs rx_speed rx_tps start_time state state_detail total_mem \
    total_procs tx_speed tx_tps write_speed";

/// The fields of record 1001 in the same generation.
const PLUGIN_FIELDS: &str =
    "cpu du name nfd pid pversion read_speed rss rx_speed rx_tps start_time tx_speed tx_tps write_speed";

/// The fields of both records that the reference writes with `%.8f`.
const FRACTIONS: &str =
    "cpu cpu_usage load_1 load_5 load_15 mem_usage read_speed write_speed rx_speed rx_tps tx_speed tx_tps";

/// Elklet's own counters, which the agent's heartbeat has besides.
const COUNTERS: &str = "records records_replayed streams connect_failures tls_failures bad_commands protocol_errors refused_tasks \
    starts_refused lost_poison own_records_lost log_lines_lost frames_too_long frames_invalid frames_truncated \
    records_refused_type records_refused_payload frame_bytes_skipped \
    records_without_payload records_without_timestamp";

#[test]
fn every_stream_begins_with_the_heartbeats() {
    let site = Site::new();
    let setup = site.eager();
    let plugins = ["one", "two"].map(|name| setup.workdir().install(name, PLUGIN, "hello"));
    site.center().set_configs(Some(plugins.to_vec()));
    let agent = setup.start();
    site.wait_records("plugins that run", &agent, |records| records.of_type(types::HELLO).count() == 2);
    for _ in 0..2 {
        _ = site.fresh_heartbeats(&agent);
    }

    let streams = site.records(&agent, |records| {
        let first_ones = records.others.iter().filter(|taken| taken.message == 0);
        let mut streams = std::collections::BTreeMap::<u64, Vec<i32>>::new();
        first_ones.for_each(|taken| streams.entry(taken.stream).or_default().push(taken.record.data_type));
        streams.into_values().collect::<Vec<_>>()
    });
    assert_eq!(streams, [vec![1000], vec![1000, 1001, 1001], vec![1000, 1001, 1001]]);

    let now = i64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()).unwrap();
    site.records(&agent, |records| {
        for taken in records.others.iter().filter(|taken| matches!(taken.record.data_type, 1000 | 1001)) {
            let timestamp = taken.record.timestamp;
            assert!((now - 120..=now).contains(&timestamp), "{timestamp} is not about {now}");
        }
    });
}

#[test]
fn the_agents_heartbeat_has_every_field() {
    let site = Site::new();
    let agent = site.agent();
    let fields = site.heartbeats(&agent).agent;
    for name in AGENT_FIELDS.split_whitespace().chain(COUNTERS.split_whitespace()) {
        assert!(fields.contains_key(name), "{name} is not in {fields:?}");
    }
    for (name, value) in fields.iter().filter(|(name, _)| AGENT_FIELDS.split_whitespace().all(|known| known != *name)) {
        assert!(value.parse::<u64>().is_ok(), "what is more than the reference's are counters: {name} is {value:?}");
    }
    for name in FRACTIONS.split(' ') {
        assert_fraction(name, &fields[name]);
    }
    for (name, value) in [
        ("pid", agent.pid().to_string()),
        ("state", "running".into()),
        ("state_detail", "[]".into()),
        ("idc", "default".into()),
        ("region", "default".into()),
        ("net_mode", "private".into()),
        ("streams", "1".into()),
        ("kernel_version", fs::read_to_string("/proc/sys/kernel/osrelease").unwrap().trim().into()),
        ("arch", std::env::consts::ARCH.into()),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    for name in ["nproc", "total_mem", "boot_time", "start_time", "rss", "nfd", "ngr", "total_procs"] {
        assert!(fields[name].parse::<u64>().is_ok_and(|value| value > 0), "{name} is {:?}", fields[name]);
    }
    for name in COUNTERS.split_whitespace().filter(|name| *name != "streams") {
        assert_eq!(fields[name], "0", "{name}");
    }
    assert!(site.records(&agent, |records| records.batches[0].decoded_len) < 4096, "a heartbeat is short");
}

#[test]
fn a_plugins_heartbeat_has_every_field() {
    let site = Site::new();
    let setup = site.eager();
    site.center().set_configs(Some(vec![setup.workdir().install("probe", PLUGIN, "hello run=a n=500")]));
    let agent = setup.start();
    site.wait_records("records", &agent, |records| records.run("a").received == 500);
    let mut heartbeats = site.fresh_heartbeats(&agent);
    // The directory's size appears once the agent has measured it in the background.
    for _ in 0..5 {
        if heartbeats.plugins["probe"]["du"] != "0" {
            break;
        }
        heartbeats = site.fresh_heartbeats(&agent);
    }
    assert_eq!(heartbeats.plugins.len(), 1);
    let fields = &heartbeats.plugins["probe"];
    let names: BTreeSet<&str> = fields.keys().map(String::as_str).collect();
    assert!(PLUGIN_FIELDS.split(' ').all(|name| names.contains(name)), "{names:?}");
    for name in FRACTIONS.split(' ').filter(|name| PLUGIN_FIELDS.split(' ').any(|other| other == *name)) {
        assert_fraction(name, &fields[name]);
    }
    let pid = site.records(&agent, |records| records.values(types::HELLO, "pid"));
    assert_eq!((&fields["name"][..], &fields["pversion"][..]), ("probe", "1.0"));
    assert_eq!(fields["pid"], pid[0], "the plugin's own, not the agent's");
    assert_eq!(fields["restarts"], "0");
    assert_eq!(heartbeats.count("records"), 501);
    let executable = fs::metadata(agent.workdir().plugin_dir("probe").join("probe")).unwrap().len();
    assert!(fields["du"].parse::<u64>().unwrap() >= executable, "du is {}", fields["du"]);
}

#[test]
fn the_envelope_names_the_host() {
    let site = Site::new();
    let agent = site.agent();
    let data = site.records(&agent, |records| records.batches[0].data.clone());
    assert_eq!(data.agent_id, agent.id());
    assert_eq!(data.product, "elkeid-agent");
    assert_eq!(data.version, env!("CARGO_PKG_VERSION"));
    assert_eq!(data.hostname, fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim());

    let v4 = |text: &String| text.parse::<Ipv4Addr>().unwrap();
    let v6 = |text: &String| text.parse::<Ipv6Addr>().unwrap();
    assert!(data.intranet_ipv4.iter().map(v4).all(|address| address.is_private()));
    assert!(!data.extranet_ipv4.iter().map(v4).any(|address| address.is_private()));
    assert!(data.intranet_ipv6.iter().map(v6).all(|address| address.octets()[0] == 0xfd));
    assert!(!data.extranet_ipv6.iter().map(v6).any(|address| address.octets()[0] == 0xfd));
    assert!(data.intranet_ipv4.len() <= 5 && data.intranet_ipv6.len() <= 5);
    let all: BTreeSet<IpAddr> = [&data.intranet_ipv4, &data.extranet_ipv4, &data.intranet_ipv6, &data.extranet_ipv6]
        .into_iter()
        .flatten()
        .map(|text| text.parse().unwrap())
        .collect();
    let local = local_addresses();
    assert!(all.is_subset(&local), "{all:?} are not all among {local:?}");
    assert!(all.iter().all(|address| !address.is_loopback()), "{all:?}");
    let is_told = |address: &&IpAddr| match address {
        IpAddr::V4(v4) => !v4.is_loopback() && !v4.is_link_local(),
        IpAddr::V6(v6) => !v6.is_loopback() && !v6.is_unicast_link_local(),
    };
    assert!(!all.is_empty() || local.iter().find(is_told).is_none(), "of {local:?} none is told");
    // Every message has the same envelope.
    _ = site.fresh_heartbeats(&agent);
    site.records(&agent, |records| assert!(records.batches.iter().all(|batch| batch.data == data)));
}

#[test]
fn the_environment_says_who_and_where() {
    let site = Site::new();
    let named = site.eager().variable("specified_idc", "north").variable("specified_region", "eu-1");
    let agent = named.variable("RUNTIME_MODE", "DEBUG").start();
    site.wait_connected(&agent);
    let fields = site.heartbeats(&agent).agent;
    assert_eq!((&fields["idc"][..], &fields["region"][..]), ("north", "eu-1"));
    assert!(!agent.workdir().path().join("machine-id").exists(), "a given id is not kept");
    assert!(agent.log().contains(" DEBUG "), "{}", agent.log());
    assert!(agent.wait_for_log("starts as").contains(&format!("{} (environment)", agent.id())));
}

#[test]
fn an_agent_keeps_the_id_that_it_found() {
    let site = Site::new();
    let id_of = |agent: &mut Agent| {
        site.wait("connected agent", |state| state.connected().next().is_some());
        let id = site.center().read(|state| state.connected().next().unwrap().to_owned());
        agent.set_id(&id);
        id
    };
    let mut agent = site.eager().without_id().start();
    let id = id_of(&mut agent);
    let groups: Vec<usize> = id.split('-').map(str::len).collect();
    assert_eq!(groups, [8, 4, 4, 4, 12], "{id} looks like a UUID");
    let kept = agent.workdir().path().join("machine-id");
    assert_eq!(fs::read_to_string(&kept).unwrap().trim(), id);
    assert_eq!(fs::metadata(&kept).unwrap().permissions().mode() & 0o777, 0o600);

    let setup = agent.into_setup();
    site.wait("the end of the stream", |state| state.connected().next().is_none());
    let mut agent = setup.start();
    assert_eq!(id_of(&mut agent), id);
    assert_eq!(fs::read_to_string(&kept).unwrap().trim(), id);
}

fn assert_fraction(name: &str, value: &str) {
    let digits = value.split_once('.').map(|(_, behind_point)| behind_point);
    assert!(
        digits.is_some_and(|digits| digits.len() == 8) && value.parse::<f64>().is_ok_and(f64::is_finite),
        "{name} is {value:?}, expected a number with eight decimals"
    );
}

/// Returns the host's addresses from its routing tables.
fn local_addresses() -> BTreeSet<IpAddr> {
    let trie = fs::read_to_string("/proc/net/fib_trie").unwrap_or_default();
    // An address stands on the line before "/32 host LOCAL".
    let lines: Vec<&str> = trie.lines().collect();
    let v4 = lines.windows(2).filter(|pair| pair[1].contains("/32 host LOCAL"));
    let v4 = v4.filter_map(|pair| pair[0].trim().strip_prefix("|-- ")?.parse::<Ipv4Addr>().ok()).map(IpAddr::V4);
    let inet6 = fs::read_to_string("/proc/net/if_inet6").unwrap_or_default();
    let v6 = inet6.lines().filter_map(|line| u128::from_str_radix(line.split(' ').next()?, 16).ok());
    v4.chain(v6.map(|bits| IpAddr::V6(Ipv6Addr::from_bits(bits)))).collect()
}
