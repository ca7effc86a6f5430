//! Runs the demo: starts the actors, shows what they do, ends them in order, and compares the counts.

use elklet_center::message::Batch;
use elklet_tests::binaries::Binaries;
use std::future::pending;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Interval, MissedTickBehavior, interval, sleep, sleep_until};

use crate::agent::Agent;
use crate::arguments::Arguments;
use crate::board::Board;
use crate::event::{EXEC, EXIT, Event, now, time_of_day};
use crate::maker::{self, Maker};
use crate::plugin::Plugin;
use crate::procfs::{self, Usage};
use crate::screen::{Line, Screen, Style, bytes, harmless};
use crate::stage::{PLUGIN, Stage};
use crate::summary::{self, Summary};
use crate::tally::Tally;
use crate::verdict::Facts;

/// How long to wait for the agent's connection. It takes a fraction of a second, or a few seconds on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the agent's end may take. The agent itself gives its plugins 12 s and its last records 10 s.
const END_OF_AGENT: Duration = Duration::from_secs(25);

/// How long to wait for the made processes to end, and for records on their way to arrive. Both take less.
const END_OF_PROCESSES: Duration = Duration::from_secs(5);

/// A signal that follows another one this soon asks for nothing new: `timeout` sends one to the process and one to its group.
const SAME_SIGNAL: Duration = Duration::from_millis(500);

/// How often this checks for these ends.
const LOOKS: Duration = Duration::from_millis(10);

/// How long the center's threads may take to count what it has taken. It has taken everything when the agent ends.
const END_OF_STREAM: Duration = Duration::from_secs(5);

/// The most lines of others shown in a second. Nobody could read more, so the rest is only counted.
const LINES_PER_SECOND: u64 = 200;

/// Seconds between two boards, if they scroll by.
const BOARD_INTERVAL: u64 = 10;

/// The number of lines of the agent's log that are shown when something went wrong.
const LOG_LINES: usize = 12;

/// Runs the whole demo. An error is one line. The directory is deleted, unless there is something to look at in it.
pub(crate) fn run(arguments: &Arguments, programs: &Binaries, screen: &mut Screen) -> Result<(), String> {
    let (sender, batches) = mpsc::unbounded_channel();
    let stage = Stage::set(programs, sender).map_err(|error| format!("the stage cannot be set: {error}"))?;
    let outcome = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .and_then(|runtime| runtime.block_on(perform(arguments, programs, &stage, batches, screen)));
    match outcome {
        Ok(None) => stage.clear().map_err(|error| format!("the directory cannot be deleted: {error}")),
        Ok(Some(problem)) => {
            screen.styled(Style::Bad, &format!("the directory is kept: {}", stage.keep().display()));
            screen.flush();
            Err(problem)
        }
        // The agent did not even start, so there is nothing to look at.
        Err(error) => Err(error.to_string()),
    }
}

/// Runs from the agent's start to the comparison of the counts. Returns what was wrong with them, if anything.
async fn perform(
    arguments: &Arguments,
    programs: &Binaries,
    stage: &Stage,
    batches: mpsc::UnboundedReceiver<Arc<Batch>>,
    screen: &mut Screen,
) -> io::Result<Option<String>> {
    let mut signals = Signals::new()?;
    let mut agent = Agent::start(&programs.elklet, stage)?;
    summary::print_header(screen, stage, agent.pid, arguments.watch)?;
    let mut show = Show::new(screen, batches, &agent, Plugin::new(agent.pid, stage.plugin()), arguments);

    let end_of_watch = arguments.watch.map(|watch| agent.started + watch);
    let enough = Arc::clone(&show.enough);
    let died = show
        .watch(async {
            tokio::select! {
                () = until(end_of_watch) => None,
                () = signals.recv() => None,
                () = enough.notified() => None,
                status = agent.wait() => Some(status),
            }
        })
        .await;
    let watched = agent.started.elapsed();
    let agent_failure = match died {
        Some(status) => Some(format!("the agent ended by itself: {}", status?)),
        None => {
            show.finish_processes(&mut signals).await;
            show.end_agent(&mut agent, &mut signals).await?.or(show.failure.take())
        }
    };
    let gone = stage.wait_for_the_end(END_OF_STREAM).await;
    show.finish();
    let facts = Facts {
        records: show.tally.plugin_records(),
        frame_bytes: show.tally.frame_bytes,
        written: show.written,
        agreed: show.agreed,
        scans: show.plugin.scans(),
        deaths: show.plugin.deaths,
        overrun: show.plugin.overrun(),
        own: show.maker.account(),
        agent_failure: agent_failure.or((!gone).then(|| "the center did not see the stream's end".to_owned())),
        closing_words: agent.closing_words(),
    };
    let problem = facts.problem();
    let Show { screen, tally, usage, first_message, first_event, .. } = show;
    if first_message.is_some() {
        let is_shipped = std::env::var_os("ELKLET_BIN").is_some();
        Summary { facts: &facts, tally: &tally, usage, watched, first_message, first_event, is_shipped }.print(screen);
    }
    if problem.is_none() {
        return Ok(None);
    }
    let lines = agent.last_lines(LOG_LINES);
    let words = if lines.is_empty() { "the agent has logged nothing" } else { "the end of the agent's log:" };
    screen.styled(Style::Faint, words);
    for line in lines {
        screen.styled(Style::Faint, &format!("  {}", harmless(&line)));
    }
    Ok(problem)
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment.into()).await,
        None => pending().await,
    }
}

/// What can end the demo. Whoever asks twice does not want to wait.
struct Signals {
    caught: [Signal; 3],
    last: Option<Instant>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        let caught = |kind| signal(kind);
        let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
        let [interrupt, terminate, hangup] = kinds.map(caught);
        Ok(Self { caught: [interrupt?, terminate?, hangup?], last: None })
    }

    async fn recv(&mut self) {
        loop {
            let [interrupt, terminate, hangup] = &mut self.caught;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                _ = hangup.recv() => {}
            }
            let now = Instant::now();
            if self.last.replace(now).is_none_or(|last| now > last + SAME_SIGNAL) {
                return;
            }
        }
    }
}

/// What the demo sees, and what it keeps of it.
struct Show<'a> {
    screen: &'a mut Screen,
    batches: mpsc::UnboundedReceiver<Arc<Batch>>,
    agent: u32,
    started: Instant,
    plugin: Plugin,
    maker: Maker,
    tally: Tally,
    board: Board,
    filter: Option<String>,
    /// True if each event is a line, in place of the board.
    prints_lines: bool,
    /// The agent's usage at the last look.
    usage: Usage,
    cpu_percent: f64,
    first_message: Option<Duration>,
    first_event: Option<Duration>,
    /// Bytes that the plugin had written as records at the last look.
    written: Option<u64>,
    /// True once everything that the plugin had written has arrived.
    agreed: bool,
    /// Why there is nothing to watch, if so.
    failure: Option<String>,
    /// Tells the main loop that there is no use in watching on.
    enough: Arc<Notify>,
    ending: bool,
    seconds: Interval,
    turns: Interval,
    /// Lines shown in the current second.
    lines: u64,
    unshown: u64,
    /// When the rate was last shown, and the number of records then.
    told: (Instant, u64),
}

impl<'a> Show<'a> {
    fn new(
        screen: &'a mut Screen,
        batches: mpsc::UnboundedReceiver<Arc<Batch>>,
        agent: &Agent,
        plugin: Plugin,
        arguments: &Arguments,
    ) -> Self {
        let every = |period| {
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
            ticks
        };
        Self {
            screen,
            batches,
            agent: agent.pid,
            started: agent.started,
            plugin,
            maker: Maker::default(),
            tally: Tally::default(),
            board: Board::new(arguments.filter.clone()),
            filter: arguments.filter.clone(),
            prints_lines: arguments.lines,
            usage: Usage::default(),
            cpu_percent: 0.0,
            first_message: None,
            first_event: None,
            written: None,
            agreed: false,
            failure: None,
            enough: Arc::default(),
            ending: false,
            seconds: every(Duration::from_secs(1)),
            turns: every(maker::INTERVAL),
            lines: 0,
            unshown: 0,
            told: (agent.started, 0),
        }
    }

    /// Shows what happens until something is done.
    async fn watch<T>(&mut self, done: impl Future<Output = T>) -> T {
        let mut done = pin!(done);
        loop {
            tokio::select! {
                biased;
                result = &mut done => return result,
                Some(batch) = self.batches.recv() => self.handle_batch(&batch),
                _ = self.seconds.tick() => self.handle_second(),
                _ = self.turns.tick() => self.handle_turn(),
            }
            self.screen.flush();
            if self.screen.is_closed() {
                self.enough.notify_one();
            }
        }
    }

    /// Makes no more processes, and waits until those that run have ended and all reports have arrived.
    async fn finish_processes(&mut self, signals: &mut Signals) {
        self.ending = true;
        self.maker.stop();
        self.note("ends", "the last processes end, then the plugin, then the agent");
        let deadline = Instant::now() + END_OF_PROCESSES;
        // An agent that has just started does not catch signals yet. One whose plugin reports does.
        let is_up = |show: &Self| show.first_event.is_some() || show.failure.is_some();
        // procwatch writes what it has seen twice a second. Both counts may therefore agree while a report is on its way.
        let is_told = |show: &Self| show.plugin.scans() || show.maker.is_reported();
        while !(is_up(self) && self.maker.is_quiet() && is_told(self) && self.compare()) && Instant::now() < deadline {
            let wait = async {
                tokio::select! {
                    () = sleep(LOOKS) => false,
                    () = signals.recv() => true,
                }
            };
            if self.watch(wait).await {
                self.maker.hurry();
                return;
            }
        }
    }

    /// Returns true if everything that the plugin has written so far has arrived, or if that cannot be known. The
    /// plugin writes twice a second and a record is on its way for a tenth of a second. Without a loss this therefore
    /// holds again and again, and after a loss it never does.
    fn compare(&mut self) -> bool {
        self.written = self.plugin.written();
        self.agreed = self.written == Some(self.tally.frame_bytes);
        self.agreed || self.written.is_none() || self.plugin.deaths > 0
    }

    /// Ends the agent in order. If that fails it kills it, and the text says why.
    async fn end_agent(&mut self, agent: &mut Agent, signals: &mut Signals) -> io::Result<Option<String>> {
        self.look_at_agent();
        let follower = self.plugin.follow_to_its_end();
        agent.terminate();
        let status = self
            .watch(async {
                tokio::select! {
                    status = agent.wait() => Ok(status),
                    () = sleep(END_OF_AGENT) => Err(format!("did not end within {} s", END_OF_AGENT.as_secs())),
                    () = signals.recv() => Err("was not given the time to end".to_owned()),
                }
            })
            .await;
        let failure = match status {
            Ok(status) => Some(status?).filter(|status| !status.success()).map(|status| format!("ended with {status}")),
            Err(why) => {
                agent.kill().await;
                Some(format!("{why} and was killed"))
            }
        };
        self.written = follower.last(&self.plugin);
        Ok(failure.map(|how| format!("the agent {how}")))
    }

    /// Shows what has arrived meanwhile. No more will.
    fn finish(&mut self) {
        while let Ok(batch) = self.batches.try_recv() {
            self.handle_batch(&batch);
        }
        self.tell_unshown();
        self.screen.clear_board();
        self.screen.flush();
    }

    fn handle_batch(&mut self, batch: &Batch) {
        self.tally.take(batch);
        if self.first_message.is_none() {
            let after = self.started.elapsed();
            self.first_message = Some(after);
            let text = format!("the agent has connected, {} ms after its start", after.as_millis());
            self.note("link", &text);
        }
        for record in &batch.data.records {
            let event = Event::new(record);
            match (record.data_type, event.pid()) {
                (EXEC, Some(pid)) => self.maker.handle_exec(pid),
                (EXIT, Some(pid)) => self.maker.handle_exit(pid),
                _ => {}
            }
            if matches!(record.data_type, EXEC | EXIT) && self.first_event.is_none() {
                self.first_event = Some(self.started.elapsed());
                self.introduce_plugin(record.timestamp);
            }
            self.show(&event);
        }
    }

    fn show(&mut self, event: &Event<'_>) {
        let demo = std::process::id();
        if !self.prints_lines {
            if event.data_type() == EXEC
                && let Some(start) = event.start(demo)
            {
                self.board.take(start);
            }
            return;
        }
        if self.filter.as_ref().is_some_and(|filter| !event.has(filter)) {
            return;
        }
        self.lines += 1;
        // What the demo makes itself is three lines a second, and shows that it works when the host is busy with something else.
        if self.lines > LINES_PER_SECOND && !event.descends_from(demo) {
            self.unshown += 1;
        } else {
            self.screen.line(&event.line(demo));
        }
    }

    /// Updates what changes once a second.
    fn handle_second(&mut self) {
        self.tell_unshown();
        self.look_at_agent();
        if self.ending {
            return;
        }
        let elapsed = self.started.elapsed();
        if elapsed > PATIENCE && self.first_event.is_none() && self.failure.is_none() {
            let what = match self.first_message {
                None => "the agent did not connect",
                Some(_) => "no record of a process arrived",
            };
            self.failure = Some(format!("{what} within {} s", PATIENCE.as_secs()));
            self.enough.notify_one();
        }
        if self.screen.is_in_place() || elapsed.as_secs() % BOARD_INTERVAL == BOARD_INTERVAL / 2 {
            let lines = self.board_lines();
            self.screen.board(lines);
        }
    }

    /// Returns the figures, and below them what has started, unless that scrolls by.
    fn board_lines(&mut self) -> Vec<String> {
        let mut lines = vec![self.figures()];
        if !self.prints_lines {
            lines.extend(self.board.lines(self.screen.width()));
        }
        lines
    }

    /// Updates what changes three times a second.
    fn handle_turn(&mut self) {
        if self.ending || self.first_message.is_none() {
            return;
        }
        if let Some(pid) = self.plugin.look() {
            self.note("plug", &format!("the agent has started {PLUGIN}, process {pid}"));
        }
        if self.plugin.pid().is_some() {
            // Once one record has arrived, procwatch watches, and misses none from then on.
            self.maker.make(self.first_event.is_some());
        }
    }

    /// Says at the first record how procwatch gets what it reports.
    fn introduce_plugin(&mut self, timestamp: i64) {
        let text = if self.plugin.scans() {
            "procwatch looks through /proc once a second"
        } else {
            "procwatch hears of every start and end from the kernel"
        };
        self.note_at(time_of_day(timestamp), "plug", text);
    }

    fn look_at_agent(&mut self) {
        if let Some(usage) = procfs::usage(self.agent) {
            self.usage = usage;
            self.cpu_percent = 100.0 * usage.cpu.as_secs_f64() / self.started.elapsed().as_secs_f64();
        }
    }

    fn figures(&mut self) -> String {
        let (at, before) = self.told;
        let records = self.tally.all_records();
        self.told = (Instant::now(), records);
        let rate = (records - before) as f64 / at.elapsed().as_secs_f64().max(0.001);
        let plugin = match (self.plugin.pid(), self.plugin.deaths) {
            (Some(_), 0) => "runs".to_owned(),
            (Some(_), deaths) => format!("runs, but died {deaths} times"),
            (None, 0) => "not started".to_owned(),
            (None, deaths) => format!("died {deaths} times"),
        };
        format!(
            "{} s | {rate:.0}/s, {records} records | agent {}, CPU {:.1} % | {PLUGIN} {plugin}",
            self.started.elapsed().as_secs(),
            bytes(self.usage.rss_bytes),
            self.cpu_percent,
        )
    }

    fn tell_unshown(&mut self) {
        self.lines = 0;
        if self.unshown > 0 {
            let text = format!("... and {} more in this second, counted and not shown", self.unshown);
            self.unshown = 0;
            self.note("more", &text);
        }
    }

    fn note(&mut self, word: &'static str, text: &str) {
        self.note_at(now(), word, text);
    }

    fn note_at(&mut self, time: String, word: &'static str, text: &str) {
        self.screen.line(&Line { style: Style::Note, time, word, text: text.to_owned() });
        self.screen.flush();
    }
}
