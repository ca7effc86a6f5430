//! What the demo says before and after: who is who, and how it went.

use std::io;
use std::time::Duration;

use crate::procfs::Usage;
use crate::screen::{Screen, Style, bytes, harmless};
use crate::stage::Stage;
use crate::tally::Tally;
use crate::verdict::Facts;

/// Explains what the demo is going to show.
pub(crate) fn print_header(screen: &mut Screen, stage: &Stage, agent: u32, watch: Option<Duration>) -> io::Result<()> {
    let sight = if rustix::process::geteuid().is_root() {
        "As root it hears of every start and end from the kernel, and may look at every process."
    } else {
        "Without root it sees little of other users' processes, and may have to look through /proc once a second, which misses what \
         lives shorter. As root it would hear of every start and end from the kernel."
    };
    let end = watch.map_or_else(|| "Ctrl-C".to_owned(), |watch| format!("after {} s, or by Ctrl-C", watch.as_secs()));
    screen.text("\n");
    screen.styled(Style::Title, "Elklet reports what this host executes. Look at it in a browser:");
    // An address that is cut is none.
    screen.styled(Style::Good, &format!("  {}\n", stage.link()?));
    let center = format!("elklet-center, a server inside this process; agents connect to {}", stage.grpc());
    let process = format!("`elklet run`, process {agent}; mutual TLS with the center, certificates made just now");
    let plugin = format!("the plugin that the center tells the agent to run; its SHA-256 is checked before. {sight}");
    for (name, text) in [("center", &center), ("agent", &process), ("procwatch", &plugin)] {
        screen.named(name, text);
    }
    screen.named("directory", &format!("{}, deleted at the end", stage.path().display()));
    screen.named("end", &end);
    screen.text("\n");
    screen.flush();
    Ok(())
}

/// The figures of the summary.
#[derive(Debug)]
pub(crate) struct Summary<'a> {
    pub(crate) facts: &'a Facts,
    pub(crate) tally: &'a Tally,
    /// The agent's usage when it was asked to end.
    pub(crate) usage: Usage,
    pub(crate) watched: Duration,
    pub(crate) first_message: Option<Duration>,
    pub(crate) first_event: Option<Duration>,
    /// True if the agent was given by the environment, and not built for the demo.
    pub(crate) is_shipped: bool,
}

impl Summary<'_> {
    pub(crate) fn print(&self, screen: &mut Screen) {
        let style = if self.facts.problem().is_none() { Style::Good } else { Style::Bad };
        screen.text("\n");
        screen.styled(style, &self.result());
        for (name, text) in [
            ("procwatch", self.plugin()),
            ("demo", self.own()),
            ("events", self.tally.by_type()),
            ("wire", self.wire()),
            ("agent", self.agent()),
            ("agent says", self.agents_word()),
            ("start", self.start()),
        ] {
            screen.named(name, &text);
        }
        screen.flush();
    }

    fn result(&self) -> String {
        let (received, missing) = (self.facts.records, self.facts.missing_records());
        let of = format!("(records of procwatch, in {:.1} s)", self.watched.as_secs_f64());
        if missing > 0 {
            format!("sent about {}, received {received}, lost about {missing} {of}", received + missing)
        } else if self.facts.problem().is_some() {
            format!("received {received}, how many were lost is not known {of}")
        } else {
            format!("sent {received}, received {received}, lost 0 {of}")
        }
    }

    fn plugin(&self) -> String {
        let arrived = self.facts.frame_bytes;
        let wrote = |written| format!("wrote {written} bytes by the kernel's count");
        match self.facts.written {
            None => format!("{arrived} bytes arrived; the kernel does not tell how many it wrote"),
            Some(written) if written >= arrived => format!("{}, {arrived} arrived", wrote(written)),
            Some(written) if self.facts.agreed => {
                format!("{}, all arrived; {} more came with its end", wrote(written), arrived - written)
            }
            Some(written) => format!("{} at the last look, {arrived} arrived", wrote(written)),
        }
    }

    fn own(&self) -> String {
        let own = self.facts.own;
        let missed = if self.facts.scans { " (a plugin that scans misses short ones)" } else { "" };
        format!(
            "of {} processes made here, {} starts and {} ends were reported{missed}",
            own.made, own.execs, own.exits
        )
    }

    fn wire(&self) -> String {
        let Tally { messages, wire_bytes, decoded_bytes, .. } = self.tally;
        let ratio = *decoded_bytes as f64 / (*wire_bytes).max(1) as f64;
        format!("{} in {messages} messages, {} decoded: {ratio:.1} to 1", bytes(*wire_bytes), bytes(*decoded_bytes))
    }

    fn agent(&self) -> String {
        let Usage { peak_rss_bytes, cpu, .. } = self.usage;
        let (cpu, watched) = (cpu.as_secs_f64(), self.watched.as_secs_f64());
        let percent = 100.0 * cpu / watched.max(0.001);
        // A build for this host has the host's libc and allocator, and may have no optimization. README's figures are of what ships.
        let why = if self.is_shipped {
            ""
        } else {
            "; the static binary that ships takes 3 MB, this build is for this host alone"
        };
        format!("peak RSS {}, CPU time {cpu:.2} s, {percent:.1} % of a core{why}", bytes(peak_rss_bytes))
    }

    fn agents_word(&self) -> String {
        match &self.facts.closing_words {
            Some(Ok(words) | Err(words)) => format!("\"{}\"", harmless(words)),
            None => "none".to_owned(),
        }
    }

    fn start(&self) -> String {
        let ms = |since: Option<Duration>| {
            since.map_or_else(|| "never".to_owned(), |since| format!("{} ms", since.as_millis()))
        };
        format!(
            "from the agent's start to its first message {}, to the first event {}",
            ms(self.first_message),
            ms(self.first_event)
        )
    }
}
