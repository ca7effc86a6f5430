//! Process records as twenty hosts write them: 2,000 programs of which few run most, varied arguments and pids.

/// A small generator of repeatable numbers (splitmix64).
pub(crate) struct Numbers(u64);

impl Numbers {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }
}

/// Appends one entry of `map<string, string> fields = 1`.
pub(crate) fn put(payload: &mut Vec<u8>, name: &str, value: &str) {
    let mut entry = Vec::with_capacity(name.len() + value.len() + 8);
    for (tag, text) in [(0x0A, name), (0x12, value)] {
        entry.push(tag);
        varint(&mut entry, text.len());
        entry.extend_from_slice(text.as_bytes());
    }
    payload.push(0x0A);
    varint(payload, entry.len());
    payload.extend_from_slice(&entry);
}

fn varint(out: &mut Vec<u8>, mut value: usize) {
    while value >= 0x80 {
        out.push((value & 0x7F) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

const DIRS: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/opt/app/bin", "/usr/lib/git-core"];

/// The path of program `number`. Program 777 is `/usr/bin/curl`.
pub(crate) fn program(number: u64) -> String {
    if number == 777 {
        return "/usr/bin/curl".into();
    }
    format!("{}/tool-{number}", DIRS[(number % 5) as usize])
}

/// One record: its data type and its payload. Program 777 runs about once in 20,000 records.
pub(crate) fn record(numbers: &mut Numbers, host: u64) -> (i32, Vec<u8>) {
    // Squared twice, so that few programs run most.
    let unit = numbers.below(1 << 20) as f64 / (1u64 << 20) as f64;
    let mut chosen = (unit * unit * unit * 2000.0) as u64;
    if chosen == 777 && numbers.below(10) != 0 {
        chosen = 3;
    }
    let data_type = match numbers.below(10) {
        0 => 42,
        1 => 601,
        _ => 59,
    };
    let exe = program(chosen);
    let pid = 1000 + numbers.below(4_190_000);
    let parent = 1000 + numbers.below(400);
    let mut payload = Vec::with_capacity(640);
    let name = exe.rsplit('/').next().unwrap_or_default().to_owned();
    let p = &mut payload;
    put(p, "pid", &pid.to_string());
    put(p, "ppid", &parent.to_string());
    put(p, "pgid", &pid.to_string());
    put(p, "tgid", &pid.to_string());
    put(p, "sid", &(parent / 7).to_string());
    put(p, "uid", if chosen.is_multiple_of(3) { "0" } else { "1000" });
    put(p, "username", if chosen.is_multiple_of(3) { "root" } else { "builder" });
    put(p, "exe", &exe);
    put(p, "comm", &name);
    put(p, "nodename", &format!("gateway-{host:02}.site.example"));
    put(p, "pns", "4026531836");
    put(p, "root_pns", "4026531836");
    put(p, "ppid_argv", &format!("/bin/sh -c job-{}", parent % 40));
    put(p, "pgid_argv", &format!("/usr/sbin/cron -f -P {}", parent % 9));
    match data_type {
        42 => {
            put(p, "dip", &format!("10.{}.{}.{}", numbers.below(4), numbers.below(256), numbers.below(256)));
            put(p, "dport", &[443, 80, 53, 5432][numbers.below(4) as usize].to_string());
            put(p, "sip", &format!("10.9.8.{host}"));
            put(p, "sport", &(32768 + numbers.below(28000)).to_string());
            put(p, "res", "0");
        }
        601 => {
            put(p, "query", &format!("node-{}.service.site.example", numbers.below(3000)));
            put(p, "dip", "10.0.0.53");
            put(p, "rcode", "0");
        }
        _ => {
            let argv = format!(
                "{name} --config /etc/{name}.conf --id {:08x} -v /srv/data/{}/part-{}.tmp",
                numbers.below(1 << 32),
                numbers.below(64),
                numbers.below(100_000)
            );
            put(p, "argv", &argv);
            put(p, "run_path", &format!("/srv/data/{}", chosen % 64));
            put(p, "stdin", "/dev/null");
            put(p, "stdout", &format!("pipe:[{}]", numbers.below(9_000_000)));
            put(p, "pid_tree", &format!("{pid}.{name}<{parent}.sh<{}.cron<1.systemd", parent / 7));
            put(p, "tty", "-1");
            put(p, "ld_preload", "-1");
            put(p, "exe_hash", &format!("{:016x}", chosen.wrapping_mul(0x9E37_79B9_7F4A_7C15)));
        }
    }
    (data_type, payload)
}
