//! Runs the whole agent in a simulated world, under as many schedules of faults as one wants; see `docs/simulation.md`.
//!
//! ```text
//! schedules --seeds N [--from S]     runs N seeds over all cores, and says what fails; `--brief` leaves the stories out
//! schedules --story SEED             makes the schedule of a seed that fails small, and tells what happens in it
//! schedules --replay SEED:I@MS,...   tells what happens when only these events of a seed do, each at its time
//! ```

#![allow(clippy::print_stdout, reason = "that is how it answers")]

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;
use std::{env, thread};

use elklet_core::testing::{self, Failure, Outcome, Schedule};
use lexopt::prelude::*;

/// The most schedules that are tried to make one smaller.
const TRIES: usize = 1_000;

/// How many failures of a kind are shown, and how many of these are told as a story.
const SHOWN: usize = 12;
const TOLD: usize = 1;

#[derive(Debug)]
enum Work {
    Seeds { from: u64, count: u64, is_brief: bool },
    Story(u64),
    Replay(u64, Vec<(usize, u64)>),
}

fn main() -> ExitCode {
    let work = match work() {
        Ok(work) => work,
        Err(why) => {
            eprintln!(
                "{why}\nusage: schedules --seeds N [--from S] [--brief] | --story SEED | --replay SEED:EVENT@MS,..."
            );
            return ExitCode::from(2);
        }
    };
    // A panic is a failure like any other, so the hook prints nothing.
    panic::set_hook(Box::new(|_| {}));
    let is_good = match work {
        Work::Seeds { from, count, is_brief } => run_seeds(from, count, is_brief),
        Work::Story(seed) => show(seed, &Schedule::from_seed(seed), true),
        Work::Replay(seed, kept) => show(seed, &Schedule::from_seed(seed).only(&kept), false),
    };
    if is_good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn work() -> Result<Work, lexopt::Error> {
    let mut args = lexopt::Parser::from_args(env::args_os().skip(1));
    let (mut from, mut count, mut other, mut is_brief) = (0, None, None, false);
    while let Some(arg) = args.next()? {
        match arg {
            Long("seeds") => count = Some(args.value()?.parse()?),
            Long("from") => from = args.value()?.parse()?,
            Long("brief") => is_brief = true,
            Long("story") => other = Some(Work::Story(args.value()?.parse()?)),
            Long("replay") => other = Some(replay(&args.value()?.string()?)?),
            other => return Err(other.unexpected()),
        }
    }
    match (count, other) {
        (Some(count), None) => Ok(Work::Seeds { from, count, is_brief }),
        (None, Some(other)) => Ok(other),
        _ => Err("what is to be run?".into()),
    }
}

fn replay(text: &str) -> Result<Work, lexopt::Error> {
    let wrong = || lexopt::Error::from(format!("{text:?} is not like 17:0@1200,3@4000"));
    let (seed, events) = text.split_once(':').ok_or_else(wrong)?;
    let event = |event: &str| {
        let (index, at) = event.split_once('@')?;
        Some((index.parse().ok()?, at.parse().ok()?))
    };
    let events: Option<Vec<_>> = events.split(',').filter(|event| !event.is_empty()).map(event).collect();
    Ok(Work::Replay(seed.parse().map_err(|_| wrong())?, events.ok_or_else(wrong)?))
}

/// Runs a schedule. A panic of the agent or of the simulation counts as a broken rule.
fn run(schedule: &Schedule) -> Result<Outcome, Failure> {
    panic::catch_unwind(AssertUnwindSafe(|| testing::run(schedule))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let what = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default();
        Err(Failure { rule: "nothing panics", at: Default::default(), what })
    })
}

fn run_seeds(from: u64, count: u64, is_brief: bool) -> bool {
    let begin = Instant::now();
    let next = AtomicU64::new(from);
    let results = Mutex::new((Outcome::default(), BTreeMap::<&str, Vec<(u64, Failure)>>::new()));
    let worker = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count {
                break;
            }
            let result = run(&Schedule::from_seed(seed));
            let mut results = results.lock().expect("nobody panics while holding it");
            match result {
                Ok(outcome) => results.0.add(&outcome),
                Err(failure) => results.1.entry(failure.rule).or_default().push((seed, failure)),
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(worker);
        }
    });
    let (outcome, mut failures) = results.into_inner().expect("all threads have ended");
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{count} schedules from seed {from} in {seconds:.1} s: {} fail",
        failures.values().map(Vec::len).sum::<usize>()
    );
    println!("{}", summary(&outcome));
    for (rule, seeds) in &mut failures {
        seeds.sort_by_key(|(seed, _)| *seed);
        println!("\n{} times it does not hold that {rule}", seeds.len());
        seeds.iter().take(SHOWN).for_each(|(seed, failure)| println!("    seed {seed}: {failure}"));
        for (seed, _) in seeds.iter().take(if is_brief { 0 } else { TOLD }) {
            println!();
            show(*seed, &Schedule::from_seed(*seed), true);
        }
    }
    failures.is_empty()
}

fn summary(outcome: &Outcome) -> String {
    let Outcome { ms, passes, records, doubles, excused, lost, streams, lives, tasks } = outcome;
    let hours = *ms as f64 / 3_600_000.0;
    format!(
        "{hours:.1} hours of {lives} agents, which had {streams} streams and {tasks} tasks, and were looked after {passes} times;\n\
         of {records} records {doubles} came twice, {lost} were told to be lost, and {excused} died with a killed agent or server"
    )
}

/// Tells what happens in a schedule, which it makes small first if `shrinks`. Returns true when nothing in it fails.
fn show(seed: u64, schedule: &Schedule, shrinks: bool) -> bool {
    let failure = match run(schedule) {
        Ok(outcome) => {
            println!("{schedule}\n\nAll holds. {}", summary(&outcome));
            return true;
        }
        Err(failure) => failure,
    };
    let small = if shrinks {
        testing::shrink(schedule, TRIES, |smaller| run(smaller).is_err_and(|other| other.rule == failure.rule))
    } else {
        schedule.clone()
    };
    let failure = run(&small).err().unwrap_or(failure);
    println!("{small}\n\nWhat happens:");
    // After a panic there is no story.
    let story = panic::catch_unwind(AssertUnwindSafe(|| testing::tell(&small))).unwrap_or_default();
    // The first line is the setup, which was shown before.
    story.iter().skip(1).for_each(|line| println!("{line}"));
    println!("\n{failure}");
    let mut kept = String::new();
    for (at, (index, ms)) in small.kept().iter().enumerate() {
        let comma = if at == 0 { "" } else { "," };
        let _ = write!(kept, "{comma}{index}@{ms}");
    }
    println!("to see it again: cargo run --release -p elklet-tests --bin schedules -- --replay {seed}:{kept}");
    false
}
