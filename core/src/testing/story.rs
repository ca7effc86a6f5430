//! Setups and events in plain words.

use core::fmt;

use super::schedule::{
    Authority, DiskFault, Event, NoDial, Request, Rules, Schedule, Setup, Silent, StreamEnd, TooLarge, Update, Way,
};

/// Milliseconds as people say them.
struct Time(u64);

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ms @ 0..1_000 => write!(f, "{ms} ms"),
            ms @ 1_000..120_000 => write!(f, "{:.1} s", ms as f64 / 1_000.0),
            ms => write!(f, "{:.1} min", ms as f64 / 60_000.0),
        }
    }
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.setup)?;
        for timed in &self.events {
            writeln!(f, "at {:>5}.{:03} s {}", timed.at.0 / 1_000, timed.at.0 % 1_000, timed.event)?;
        }
        write!(f, "at {:>5}.{:03} s everything is good again", self.calm_at.0 / 1_000, self.calm_at.0 % 1_000)
    }
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, server) in self.servers.iter().enumerate() {
            let way = match server.way {
                Way::Discovered => "named by service discovery",
                Way::Private => "private",
                Way::Public => "public",
            };
            let (delay, work) = (Time(server.delay_ms), Time(server.work_ms));
            write!(f, "server {at} is {way}, {delay} away, works up to {work} on a message")?;
            writeln!(f, ", and has windows of {} bytes", server.window)?;
            let kind = if server.is_silent { "silently" } else { "by a reset" };
            if let Some(ms) = server.idle_ms {
                writeln!(f, "    its balancer ends connections {kind} that are idle for {}", Time(ms))?;
            }
            if let Some(ms) = server.age_ms {
                writeln!(f, "    its balancer ends connections {kind} that are {} old", Time(ms))?;
            }
        }
        for (at, plugin) in self.plugins.iter().enumerate() {
            let each = Time(plugin.every_ms);
            write!(
                f,
                "plugin p{at} writes {} records every {each} or so, {}% urgent",
                plugin.records, plugin.urgent_percent
            )?;
            let drops = if plugin.may_drop { ", for which others may be dropped" } else { "" };
            writeln!(
                f,
                "{drops}; it takes {} to prepare and {} to end",
                Time(plugin.prepare_ms),
                Time(plugin.stop_ms)
            )?;
        }
        let (memory, scale) = (self.memory, self.scale);
        write!(
            f,
            "the agent keeps {memory} bytes in memory and {} on the disk; each byte counts as {scale}",
            self.spool
        )?;
        let trial = if self.is_on_trial { "; its version is on trial" } else { "" };
        let forgets = if self.forgets { "; killed servers lose what they took last" } else { "" };
        write!(f, "{trial}{forgets}")?;
        match self.certificate_s {
            Some(left) => write!(f, "; its certificate is good for {:.1} days", left as f64 / 86_400.0),
            None => Ok(()),
        }
    }
}

/// A server, or all of them.
struct Of(Option<usize>);

impl fmt::Display for Of {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(server) => write!(f, "server {server}"),
            None => f.write_str("every server"),
        }
    }
}

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { plugins, odd_versions, tasks, own_tasks, tasks_per_minute } = self;
        let versions = match odd_versions {
            None => "",
            Some(true) => " of odd versions",
            Some(false) => " of even versions",
        };
        write!(f, "plugins {plugins:03b}{versions}, tasks for {tasks:03b} and of the agent {own_tasks:03b}")?;
        if *tasks_per_minute > 0 { write!(f, ", {tasks_per_minute} a minute") } else { Ok(()) }
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = Time(self.lasts_ms());
        match self {
            Self::Silence { server, silent: Silent::Both, .. } => {
                write!(f, "the path to {} is silent for {ms}", Of(*server))
            }
            Self::Silence { server, silent: Silent::ToServer, .. } => {
                write!(f, "nothing reaches {} for {ms}", Of(*server))
            }
            Self::Silence { server, silent: Silent::ToAgent, .. } => {
                write!(f, "nothing comes back from {} for {ms}", Of(*server))
            }
            Self::Slow { server, delay_ms, bytes_per_ms, .. } => {
                let delay = Time(*delay_ms);
                write!(f, "server {server} is {delay} away and takes {bytes_per_ms} bytes/ms for {ms}")
            }
            Self::Reset => f.write_str("the network resets the connection"),
            Self::NoDials { server, why: NoDial::Refused, .. } => {
                write!(f, "{} refuses connections for {ms}", Of(*server))
            }
            Self::NoDials { server, why: NoDial::Tls, .. } => {
                write!(f, "TLS with {} fails for {ms}", Of(*server))
            }
            Self::NoDiscovery { .. } => write!(f, "service discovery fails for {ms}"),
            Self::ServerKilled { server, .. } => write!(f, "server {server} is killed, and is back after {ms}"),
            Self::HostDies { server, .. } => {
                write!(f, "server {server} is gone without a word, and is back after {ms}")
            }
            Self::ServerStops { server, .. } => write!(f, "server {server} is stopped for {ms}"),
            Self::AppStops { server, .. } => write!(f, "the application of server {server} takes nothing for {ms}"),
            Self::AppSlow { server, work_ms, .. } => {
                let work = Time(*work_ms);
                write!(f, "the application of server {server} works up to {work} on each message for {ms}")
            }
            Self::StreamEnds { server, how: StreamEnd::InOrder } => {
                write!(f, "server {server} ends the stream with status OK")
            }
            Self::StreamEnds { server, how: StreamEnd::Broken } => write!(f, "server {server} breaks the stream off"),
            Self::StreamEnds { server, how: StreamEnd::TooManyPings } => {
                write!(f, "server {server} finds that PINGs come too close")
            }
            Self::Poison { plugin, .. } => {
                write!(f, "plugin p{plugin} is about to write a record that servers die of for {ms}")
            }
            Self::DiesOfNext { times, .. } => {
                write!(f, "servers die of the next {times} messages, within {ms}")
            }
            Self::Limit { bytes, how, .. } => {
                let how = match how {
                    TooLarge::Says => "say so",
                    TooLarge::EndsInOrder => "end the stream with status OK",
                    TooLarge::Breaks => "break the stream off",
                };
                write!(f, "servers take messages up to {bytes} bytes for {ms}, and {how} at larger ones")
            }
            Self::Disk { fault: DiskFault::Full, .. } => write!(f, "the disk is full for {ms}"),
            Self::Disk { fault: DiskFault::ReadOnly, .. } => write!(f, "the disk is read-only for {ms}"),
            Self::Disk { fault: DiskFault::NoThread, .. } => write!(f, "there is no thread for the disk for {ms}"),
            Self::Disk { fault: DiskFault::Slow(each), .. } => {
                write!(f, "the disk takes up to {} for everything for {ms}", Time(*each))
            }
            Self::Vanish => f.write_str("somebody deletes the spool"),
            Self::Spoil { which } => write!(f, "batch {which} on the disk is damaged"),
            Self::Jam { which } => write!(f, "file {which} on the disk can be neither read nor deleted"),
            Self::Burst { plugin, records, urgent } => {
                let kind = if *urgent { "urgent " } else { "" };
                write!(f, "plugin p{plugin} writes {records} {kind}records at once")
            }
            Self::Long { plugin } => write!(f, "plugin p{plugin} writes a record that is longer than the buffer"),
            Self::Crash { plugin } => write!(f, "plugin p{plugin} crashes"),
            Self::CrashLoop { plugin, lives_ms, .. } => {
                write!(f, "for {ms} the version of plugin p{plugin} crashes {} after each start", Time(*lives_ms))
            }
            Self::NoSpawns { .. } => write!(f, "no process can be started for {ms}"),
            Self::NoPreparations { .. } => write!(f, "nothing can be fetched for {ms}"),
            Self::SlowDownloads { .. } => write!(f, "downloads are slow for {ms}"),
            Self::Stubborn { .. } => write!(f, "plugins do not end when they are asked to, for {ms}"),
            Self::Upgrade { plugin } => write!(f, "the server wants another version of plugin p{plugin}"),
            Self::Remove { plugin, .. } => {
                write!(f, "the server does not want plugin p{plugin} any more, and wants it again after {ms}")
            }
            Self::Ask { request } => match request {
                Request::Plugin(plugin) => write!(f, "the server has a task for plugin p{plugin}"),
                Request::Unknown => f.write_str("the server has a task for a plugin that nobody knows"),
                Request::Upload(ms, works) => {
                    let fails = if *works { "" } else { " and will fail" };
                    write!(f, "the server wants a file, which takes {}{fails}", Time(*ms))
                }
                Request::Metadata(_) => f.write_str("the server says where the host is"),
                Request::Nonsense => f.write_str("the server has a task that does not exist"),
                Request::Shutdown => f.write_str("the server asks the agent to end"),
            },
            Self::Terminate { again_ms: None, .. } => write!(f, "SIGTERM; a new start {ms} after the end"),
            Self::Terminate { again_ms: Some(again), .. } => {
                write!(f, "SIGTERM, and again after {}; a new start {ms} after the end", Time(*again))
            }
            Self::Kill { .. } => write!(f, "kill -9; a new start after {ms}"),
            Self::Reload { without, spool } => {
                write!(f, "SIGHUP: the settings name all servers but {without}, and {spool} bytes of spool")
            }
            Self::Suspend { .. } => write!(f, "the host sleeps for {ms}"),
            Self::Authority { authority, .. } => match authority {
                Authority::Refuses => write!(f, "the authority refuses certificates for {ms}"),
                Authority::Silent => write!(f, "the authority is silent for {ms}"),
                Authority::Late(late) => write!(f, "the authority answers after {} for {ms}", Time(*late)),
                Authority::Unknown => write!(f, "servers give no certificates for {ms}"),
            },
            Self::Clock { ahead_s } => {
                write!(f, "the host's clock jumps, and is wrong by {:.1} days", *ahead_s as f64 / 86_400.0)
            }
            Self::Policy { rules, ms: None } => write!(f, "SIGHUP: the owner allows {rules}"),
            Self::Policy { rules, .. } => write!(f, "SIGHUP: the owner allows {rules} for {ms}"),
            Self::Update { update } => {
                let how = match update {
                    Update::Fails => "cannot be fetched",
                    Update::Works => "works",
                    Update::Deaf => "reaches no server",
                };
                write!(f, "the server wants another version of the agent, which {how}")
            }
        }
    }
}
