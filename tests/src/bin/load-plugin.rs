//! A plugin that sends records as fast as it is told to, for benchmarks; see `elklet_tests::load` for the records.
//!
//! Words from `DETAIL`: `rate=R` (records a second, 0: flat out), `secs=S`, `size=full|small|BYTES`, `wait=MS` before
//! the first record, `plugin=N` (its number among others), `urgent` (on descriptor 5). At the end it writes the number
//! of records sent into the file `sent` and waits until the task pipe closes. If the agent offers no descriptor 5, it
//! sends no urgent records, and the file `sent` says `no pipe`.
#![allow(unsafe_code, reason = "the pipes' descriptors are the plugin's by contract, and nothing else knows that")]

use elklet_tests::load::{NUMBERS, Size, Templates, now_ns};
use std::env;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::FromRawFd;
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a write without a rate: as many as a pipe holds.
const CHUNK: usize = 64 << 10;

/// The pause between two writes with a rate.
const TICK: Duration = Duration::from_millis(10);

fn main() -> io::Result<()> {
    let detail = env::var("DETAIL").unwrap_or_default();
    let word = |name: &str| detail.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    let number = |name: &str| word(name).and_then(|value| value.parse::<u64>().ok()).unwrap_or(0);
    let size = match word("size") {
        Some("full") | None => Size::Full,
        Some("small") => Size::Small,
        Some(bytes) => Size::Bytes(bytes.parse().map_err(io::Error::other)?),
    };
    let is_urgent = detail.split_whitespace().any(|word| word == "urgent");
    // An agent without that pipe may have anything at descriptor 5.
    let is_unable = is_urgent && env::var_os("ELKEID_PLUGIN_HIGH_PRIORITY_PIPE").is_none_or(|value| value.is_empty());
    let records = if is_urgent && !is_unable { 5 } else { 4 };
    // SAFETY: the agent hands these descriptors over with the process; they are taken once, here.
    let (mut tasks, pipe) = unsafe { (File::from_raw_fd(3), File::from_raw_fd(records)) };
    let templates = Templates::new(size);
    if is_unable {
        leave("no pipe")?;
        let _ = tasks.read_to_end(&mut Vec::new());
        return Ok(());
    }
    thread::sleep(Duration::from_millis(number("wait")));
    let seconds = Duration::from_secs(number("secs"));
    let sent = send(pipe, &templates, number("plugin") * NUMBERS, number("rate"), seconds)?;
    leave(&sent.to_string())?;
    let _ = tasks.read_to_end(&mut Vec::new());
    Ok(())
}

/// Writes the file under another name and renames it, so that whoever waits for it finds it whole.
fn leave(outcome: &str) -> io::Result<()> {
    fs::write("sent.new", outcome)?;
    fs::rename("sent.new", "sent")
}

fn send(mut pipe: File, templates: &Templates, first: u64, rate: u64, seconds: Duration) -> io::Result<u64> {
    let begun = Instant::now();
    let mut frames = Vec::with_capacity(CHUNK + templates.longest());
    let mut sent = 0;
    let mut tick = begun;
    while begun.elapsed() < seconds {
        let due = match rate {
            0 => u64::MAX,
            _ => u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX) * rate / 1_000_000,
        };
        while sent < due && frames.len() < CHUNK {
            templates.append(first + sent, now_ns(), &mut frames);
            sent += 1;
        }
        pipe.write_all(&frames)?;
        frames.clear();
        if rate > 0 && sent == due {
            tick = (tick + TICK).max(Instant::now());
            thread::sleep(tick.saturating_duration_since(Instant::now()));
        }
    }
    Ok(sent)
}
