//! Records for benchmarks: execve events as a kernel driver's plugin reports them. They are made once and stamped when
//! they are sent.
//!
//! They compress about as well as real ones. The first two fields of each payload are `seq` (12 digits) and `t_ns` (when it
//! was written, nanoseconds since 1970, 19 digits), at places that [`stamp`] finds again without decoding anything else.

use std::time::{SystemTime, UNIX_EPOCH};

use elklet_proto::grpc::EncodedRecord;
use prost::Message;

/// The records' data type, that of an execve.
pub const DATA_TYPE: i32 = 59;

/// The numbers of one plugin's records end where the next plugin's begin.
pub const NUMBERS: u64 = 10_000_000_000;

const SEQ_DIGITS: usize = 12;
const TIME_DIGITS: usize = 19;

/// The number of different records before they repeat, and the most bytes that they take together.
const TEMPLATES: usize = 512;
const TEMPLATE_BYTES: usize = 8 << 20;

/// How large records are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// All fields of an event, about 893 bytes.
    Full,
    /// The few that matter, about 219 bytes.
    Small,
    /// About this many bytes, with padding or without most fields.
    Bytes(usize),
}

/// The records to send.
#[derive(Debug)]
pub struct Templates {
    frames: Vec<Template>,
}

#[derive(Debug)]
struct Template {
    /// The record with its length in front.
    frame: Vec<u8>,
    seq_at: usize,
    time_at: usize,
}

impl Templates {
    /// Makes the records, which are the same each time.
    #[must_use]
    pub fn new(size: Size) -> Self {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let first = template(size, &mut random);
        let count = (TEMPLATE_BYTES / first.frame.len()).clamp(4, TEMPLATES);
        Self { frames: (0..count).map(|_| template(size, &mut random)).collect() }
    }

    /// Returns the average bytes of a record with its length.
    #[must_use]
    pub fn mean_len(&self) -> f64 {
        self.frames.iter().map(|template| template.frame.len()).sum::<usize>() as f64 / self.frames.len() as f64
    }

    /// Returns the bytes of the longest record.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.frames.iter().map(|template| template.frame.len()).max().unwrap_or(0)
    }

    /// Appends a frame that carries this number and this time of writing.
    pub fn append(&self, seq: u64, now_ns: u64, out: &mut Vec<u8>) {
        let at = usize::try_from(seq.wrapping_mul(2_654_435_761) % self.frames.len() as u64).expect("there are few");
        let Template { frame, seq_at, time_at } = &self.frames[at];
        let start = out.len();
        out.extend_from_slice(frame);
        put_digits(&mut out[start + seq_at..][..SEQ_DIGITS], seq);
        put_digits(&mut out[start + time_at..][..TIME_DIGITS], now_ns);
    }
}

/// Returns the nanoseconds since 1970.
///
/// # Panics
/// When the clock is wrong by centuries.
#[must_use]
pub fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970");
    u64::try_from(since.as_nanos()).expect("it is before 2554")
}

/// Reads the number and the time of a record from its payload. Returns `None` if the record is not one of these.
#[must_use]
pub fn stamp(payload: &[u8]) -> Option<(u64, u64)> {
    // Entry, key, and the value's head stand in front of each: 0a LEN 0a KEY_LEN key 12 VALUE_LEN.
    const SEQ: usize = 2 + 2 + 3 + 2;
    const TIME: usize = SEQ + SEQ_DIGITS + 2 + 2 + 4 + 2;
    let seq = payload.get(SEQ..SEQ + SEQ_DIGITS).filter(|_| payload[4..7] == *b"seq")?;
    Some((digits(seq)?, digits(payload.get(TIME..TIME + TIME_DIGITS)?)?))
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0u64, |value, &digit| {
        let digit = digit.checked_sub(b'0').filter(|digit| *digit < 10)?;
        value.checked_mul(10)?.checked_add(digit.into())
    })
}

fn put_digits(out: &mut [u8], mut value: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (value % 10).to_le_bytes()[0];
        value /= 10;
    }
}

/// Marsaglia's xorshift, which gives the same records each time.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 32) % bound
    }

    fn of<'t>(&mut self, choices: &[&'t str]) -> &'t str {
        choices[usize::try_from(self.below(choices.len() as u64)).expect("there are few")]
    }

    fn hex(&mut self, digits: usize) -> String {
        (0..digits)
            .map(|_| char::from_digit(u32::try_from(self.below(16)).expect("below 16"), 16).expect("it is a digit"))
            .collect()
    }
}

const PROGRAMS: [(&str, &str); 12] = [
    ("/usr/bin/bash", "/bin/bash /opt/monitor/checks/disk.sh --warn 80 --crit 95 --json"),
    ("/usr/bin/python3.12", "python3 -m collector.main --spool /var/spool/collector --every 15s --quiet"),
    ("/usr/sbin/sshd", "sshd: operator [priv]"),
    ("/usr/bin/git", "git -C /srv/deploy/site fetch --prune --no-tags origin main"),
    ("/usr/bin/sed", "sed -n s/^processor.*: //p /proc/cpuinfo"),
    ("/usr/bin/find", "find /var/tmp -xdev -type f -mtime +3 -print0"),
    ("/usr/lib/jvm/java-21/bin/java", "java -Xms256m -Xmx1g -jar /srv/orders/orders-4.2.jar --profile=live"),
    ("/usr/bin/systemctl", "systemctl is-active --quiet orders.service"),
    ("/usr/bin/rsync", "rsync -a --delete /srv/data/ backup@10.3.0.9:/backup/web/"),
    ("/usr/bin/node", "node /srv/shop/dist/server.js --port 3000"),
    ("/usr/bin/ps", "ps -eo pid,ppid,rss,comm --no-headers"),
    ("/usr/bin/date", "date -u +%FT%TZ"),
];

fn template(size: Size, random: &mut Random) -> Template {
    let mut payload = Vec::new();
    let seq_in_payload = put_entry("seq", &"0".repeat(SEQ_DIGITS), &mut payload);
    let time_in_payload = put_entry("t_ns", &"0".repeat(TIME_DIGITS), &mut payload);
    match size {
        Size::Full => fields(true, random, &mut payload),
        Size::Small => fields(false, random, &mut payload),
        Size::Bytes(wanted) => {
            if wanted > 1000 {
                fields(true, random, &mut payload);
            }
            // The bytes around the payload and around the padding are some twenty.
            let missing = wanted.saturating_sub(payload.len() + 20);
            if missing > 0 {
                put_entry("pad", &random.hex(missing), &mut payload);
            }
        }
    }
    let payload_len = payload.len();
    let body = EncodedRecord { data_type: DATA_TYPE, timestamp: 1_800_000_000, data: payload }.encode_to_vec();
    let mut frame = u32::try_from(body.len()).expect("records are short").to_le_bytes().to_vec();
    frame.extend_from_slice(&body);
    let payload_at = frame.len() - payload_len;
    Template { frame, seq_at: payload_at + seq_in_payload, time_at: payload_at + time_in_payload }
}

fn fields(all: bool, random: &mut Random, payload: &mut Vec<u8>) {
    let (exe, argv) = PROGRAMS[usize::try_from(random.below(12)).expect("below 12")];
    let name = exe.rsplit('/').next().unwrap_or(exe);
    let (pid, parent) = (1000 + random.below(60_000), 500 + random.below(60_000));
    let mut put = |name: &str, value: &str| {
        put_entry(name, value, payload);
    };
    put("uid", random.of(&["0", "0", "0", "1000"]));
    put("tid", &pid.to_string());
    put("exe", exe);
    put("pid", &pid.to_string());
    put("ppid", &parent.to_string());
    put("comm", name);
    put("argv", argv);
    if !all {
        return;
    }
    put("pgid", &parent.to_string());
    put("tgid", &pid.to_string());
    put("sid", &(400 + random.below(60_000)).to_string());
    put("nodename", "shop-web-de-0107.example.org");
    put("sessionid", random.of(&["4294967295", "4294967295", "812", "97"]));
    put("pns", "4026531836");
    put("root_pns", "4026531836");
    put("run_path", random.of(&["/root", "/srv/shop/releases/2026-11-20"]));
    put("stdin", random.of(&["/dev/null", "pipe:[2917263]"]));
    put("stdout", random.of(&["pipe:[2917264]", "/dev/pts/1"]));
    put("dip", &format!("10.{}.{}.{}", random.below(255), random.below(255), random.below(255)));
    put("dport", random.of(&["443", "-1", "5432"]));
    put("sip", random.of(&["10.3.0.17", "-1"]));
    put("sport", &(32_768 + random.below(28_000)).to_string());
    put("sa_family", "2");
    let grandparent = 600 + random.below(9000);
    put("pid_tree", &format!("{pid}.{name}<{parent}.bash<{grandparent}.run-parts<901.cron<1.systemd"));
    put("tty", random.of(&["-1", "-1", "pts1"]));
    put("socket_pid", &parent.to_string());
    put("ssh", random.of(&["-1", "-1", "10.3.0.4_51844_10.3.0.17_22"]));
    put("ld_preload", "-1");
    put("res", "0");
    put("socket_argv", random.of(&["-3", PROGRAMS[2].1, PROGRAMS[6].1]));
    put("ppid_argv", PROGRAMS[usize::try_from(random.below(12)).expect("below 12")].1);
    put("pgid_argv", "/usr/sbin/cron -f -P");
    put("username", random.of(&["root", "root", "operator"]));
    put("pod_name", "-3");
    put("exe_hash", &random.hex(32));
}

/// Appends an entry of the payload's map, and returns the offset of its value.
fn put_entry(name: &str, value: &str, payload: &mut Vec<u8>) -> usize {
    let mut entry = Vec::new();
    put_text(1, name, &mut entry);
    let value_at = put_text(2, value, &mut entry);
    payload.push(1 << 3 | 2);
    prost::encoding::encode_varint(entry.len() as u64, payload);
    let start = payload.len();
    payload.extend_from_slice(&entry);
    start + value_at
}

fn put_text(field: u8, text: &str, out: &mut Vec<u8>) -> usize {
    out.push(field << 3 | 2);
    prost::encoding::encode_varint(text.len() as u64, out);
    let at = out.len();
    out.extend_from_slice(text.as_bytes());
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_have_their_size_and_their_stamp() {
        for (size, expected) in
            [(Size::Full, 893), (Size::Small, 219), (Size::Bytes(64), 64), (Size::Bytes(100_000), 100_000)]
        {
            let templates = Templates::new(size);
            let mean = templates.mean_len();
            assert!((mean / f64::from(expected) - 1.0).abs() < 0.02, "{size:?}: {mean} bytes");
            let mut frame = Vec::new();
            templates.append(12 * NUMBERS + 345, 1_700_000_000_123_456_789, &mut frame);
            let record = EncodedRecord::decode(&frame[4..]).unwrap();
            assert_eq!(
                (record.data_type, frame.len() - 4),
                (DATA_TYPE, u32::from_le_bytes(frame[..4].try_into().unwrap()) as usize)
            );
            assert_eq!(stamp(&record.data), Some((12 * NUMBERS + 345, 1_700_000_000_123_456_789)));
            let payload = elklet_proto::grpc::Payload::decode(&record.data[..]).unwrap();
            assert_eq!(payload.fields["seq"], "120000000345");
        }
        assert_eq!(stamp(b"anything else"), None);
        assert_eq!(stamp(b""), None);
    }

    #[test]
    fn they_compress_like_real_ones() {
        let templates = Templates::new(Size::Full);
        let mut frames = Vec::new();
        (0..70).for_each(|seq| templates.append(seq, 1_700_000_000_123_456_789 + seq, &mut frames));
        let compressed = snap::raw::Encoder::new().compress_vec(&frames).unwrap().len();
        let ratio = frames.len() as f64 / compressed as f64;
        assert!((4.0..5.0).contains(&ratio), "{ratio}");
    }
}
