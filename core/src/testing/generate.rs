//! Schedules from choices.

use alloc::vec::Vec;

use super::random::{Bytes, Draw};
use super::schedule::{
    Authority, DiskFault, Event, NoDial, PluginSetup, Request, Rules, Schedule, ServerSetup, Setup, Silent, StreamEnd,
    Timed, TooLarge, Update, Way,
};
use crate::limits::REPLAY_MS;
use crate::time::Millis;

/// Events of one schedule at most.
const MAX_EVENTS: usize = 14;

const DAY_S: i64 = 24 * 60 * 60;

pub(super) fn schedule<D: Draw>(draw: &mut D, seed: u64, events: impl Fn(&mut D, &Setup) -> Vec<Timed>) -> Schedule {
    let setup = setup(draw);
    let events = events(draw, &setup);
    let mut schedule = Schedule { seed, setup, events, calm_at: Millis(0) };
    schedule.settle();
    schedule
}

fn setup(draw: &mut impl Draw) -> Setup {
    let scale = draw.pick(&[16, 1, 64]);
    let arena = draw.pick(&[4_096, 2_048, 16_384]);
    let servers = 1 + draw.index(3);
    let servers: Vec<_> = (0..servers).map(|_| server(draw)).collect();
    let plugins = 1 + draw.index(3);
    let plugins = (0..plugins).map(|_| plugin(draw)).collect();
    let forgets = draw.chance(40);
    let batches = if forgets { 64 } else { draw.pick(&[8, 4, 2]) };
    let has_discovery = servers.iter().any(|server| server.way == Way::Discovered);
    Setup {
        discovery: if has_discovery { 1 + draw.index(2) } else { 0 },
        servers,
        plugins,
        scale,
        arena,
        memory: scale * arena * batches,
        spool: draw.pick(&[16 << 20, 0, 3 << 20]),
        replay_ms: REPLAY_MS,
        forgets,
        spread_ms: draw.pick(&[5_000, 1_000]),
        keepalive_ms: draw.pick(&[30_000, 30_000, 10_000]),
        is_on_trial: draw.chance(10),
        // Most are in their last third, some have just begun it, or are young, or about to end.
        certificate_s: draw.chance(50).then(|| draw.pick(&[12 * DAY_S, DAY_S, 29 * DAY_S, 80 * DAY_S, 120])),
    }
}

fn server(draw: &mut impl Draw) -> ServerSetup {
    let has_balancer = draw.chance(20);
    ServerSetup {
        way: draw.pick(&[Way::Private, Way::Private, Way::Public, Way::Discovered]),
        window: draw.pick(&[65_535, 65_535, 1 << 20, 16_384]),
        delay_ms: draw.pick(&[1, 0, 20, 150]),
        work_ms: draw.pick(&[1, 0, 5, 40]),
        grants_ahead: draw.chance(50),
        is_lazy: draw.chance(50),
        notices_ms: draw.pick(&[60_000, 20_000, 600_000]),
        idle_ms: (has_balancer && draw.chance(50)).then_some(50_000),
        age_ms: (has_balancer && draw.chance(60)).then(|| draw.pick(&[60_000, 7_000, 25_000, 180_000])),
        is_silent: draw.chance(50),
    }
}

fn plugin(draw: &mut impl Draw) -> PluginSetup {
    PluginSetup {
        every_ms: draw.pick(&[500, 100, 1_000, 3_000]),
        records: draw.pick(&[1, 2, 5, 12]),
        padding: draw.pick(&[0, 0, 20, 150]),
        urgent_percent: draw.pick(&[0, 0, 10, 50]),
        may_drop: draw.chance(30),
        prepare_ms: draw.pick(&[50, 5, 1_000, 3_000]),
        stop_ms: draw.pick(&[100, 5, 2_000, 9_000]),
        reads_ms: draw.pick(&[10, 1, 500]),
    }
}

/// Kinds of events that a schedule is about.
#[derive(Debug, Clone, Copy)]
enum Theme {
    Network,
    Servers,
    Disk,
    Plugins,
    Operators,
    Batches,
    Certificates,
    Policies,
}

const THEMES: [Theme; 8] = [
    Theme::Network,
    Theme::Servers,
    Theme::Disk,
    Theme::Plugins,
    Theme::Operators,
    Theme::Batches,
    Theme::Certificates,
    Theme::Policies,
];

/// Events of one theme or two, or of all, at moments that are close together or far apart.
pub(super) fn by_theme(draw: &mut impl Draw, setup: &Setup) -> Vec<Timed> {
    let themes: Vec<Theme> = match draw.below(4) {
        0 => THEMES.to_vec(),
        1 => [draw.pick(&THEMES)].into(),
        _ => [draw.pick(&THEMES), draw.pick(&THEMES)].into(),
    };
    let count = 1 + draw.index(MAX_EVENTS);
    let pace = draw.pick(&[4_000, 15_000, 1_000, 30_000]);
    let mut at = Millis(draw.between(0, 5_000));
    let mut events = Vec::new();
    for index in 0..count {
        // The same again is what one event alone does not find.
        let theme = draw.pick(&themes);
        let event = event(draw, theme, setup);
        let repeats = if draw.chance(15) { draw.pick(&[1usize, 1, 2]) } else { 0 };
        let gap = event.lasts_ms() + draw.between(0, 12_000);
        if let Event::CrashLoop { plugin, ms, .. } = event
            && draw.chance(70)
        {
            // The cure comes while the plugin waits for its next start.
            let cured = at + (ms - draw.between(0, ms / 4));
            events.push(Timed { at: cured, event: Event::Upgrade { plugin }, index: index * 4 + 3 });
        }
        let mut when = at;
        for again in 0..=repeats {
            events.push(Timed { at: when, event: event.clone(), index: index * 4 + again });
            when = when + gap;
        }
        at = at + draw.between(0, pace);
    }
    events
}

/// As many events as the bytes suffice for.
pub(super) fn by_bytes(draw: &mut Bytes<'_>, setup: &Setup) -> Vec<Timed> {
    let mut events = Vec::new();
    let mut at = Millis(0);
    while draw.has_more() && events.len() < 2 * MAX_EVENTS {
        at = at + draw.between(0, 15) * draw.pick(&[100, 1_000, 10, 2_000]);
        let theme = draw.pick(&THEMES);
        let event = event(draw, theme, setup);
        events.push(Timed { at, event, index: events.len() });
    }
    events
}

fn event(draw: &mut impl Draw, theme: Theme, setup: &Setup) -> Event {
    let server = draw.index(setup.servers.len());
    let plugin = draw.index(setup.plugins.len());
    let one_or_all = draw.chance(50).then_some(server);
    let long = draw.pick(&[20_000, 3_000, 300, 60_000]);
    let ms = draw.between(long / 10, long);
    match theme {
        Theme::Network => match draw.below(8) {
            0..3 => {
                let silent = draw.pick(&[Silent::Both, Silent::Both, Silent::ToServer, Silent::ToAgent]);
                Event::Silence { server: one_or_all, silent, ms }
            }
            3 => {
                let delay_ms = draw.between(1, 800);
                Event::Slow { server, delay_ms, bytes_per_ms: draw.pick(&[50, 5, 1_000]), ms }
            }
            4 | 5 => Event::Reset,
            6 => Event::NoDials { server: one_or_all, why: draw.pick(&[NoDial::Refused, NoDial::Tls]), ms },
            _ => Event::NoDiscovery { ms },
        },
        Theme::Servers => match draw.below(9) {
            0..3 => Event::ServerKilled { server, away_ms: ms },
            3 => Event::HostDies { server, away_ms: ms },
            4 => Event::ServerStops { server, ms },
            5 => Event::AppStops { server, ms },
            6 => Event::AppSlow { server, work_ms: draw.between(50, 900), ms },
            _ => {
                let ends = [StreamEnd::InOrder, StreamEnd::Broken, StreamEnd::TooManyPings];
                Event::StreamEnds { server, how: draw.pick(&ends) }
            }
        },
        Theme::Disk => match draw.below(10) {
            0..4 => {
                let slow = DiskFault::Slow(draw.between(100, 4_000));
                let faults = [DiskFault::Full, DiskFault::ReadOnly, slow, DiskFault::NoThread];
                Event::Disk { fault: draw.pick(&faults), ms }
            }
            4 => Event::Vanish,
            5 => Event::Spoil { which: draw.index(16) },
            6 => Event::Jam { which: draw.index(16) },
            7 => Event::Burst { plugin, records: draw.between(50, 1_500), urgent: false },
            // A disk is used while there is no server.
            _ => Event::Silence { server: None, silent: Silent::Both, ms },
        },
        Theme::Plugins => match draw.below(13) {
            0 | 1 => Event::Upgrade { plugin },
            2 => Event::Remove { plugin, ms },
            3 => Event::Crash { plugin },
            4 => Event::CrashLoop { plugin, lives_ms: draw.between(0, 3_000), ms: ms + draw.between(0, 60_000) },
            5 => Event::NoSpawns { ms },
            6 => Event::NoPreparations { ms },
            7 => Event::SlowDownloads { ms },
            8 => Event::Stubborn { ms },
            9 => Event::Burst { plugin, records: draw.between(50, 1_500), urgent: draw.chance(40) },
            10 => Event::Long { plugin },
            _ => Event::Ask { request: request(draw, plugin, ms) },
        },
        Theme::Operators => match draw.below(10) {
            0..2 => Event::Terminate { again_ms: draw.chance(20).then(|| draw.between(0, 15_000)), down_ms: ms },
            2..4 => Event::Kill { down_ms: ms },
            4 => Event::Reload { without: draw.index(4), spool: draw.pick(&[16 << 20, 3 << 20, 2 << 20]) },
            5 => Event::Suspend { ms: ms * draw.pick(&[1, 10, 60]) },
            6 => Event::Update { update: draw.pick(&[Update::Fails, Update::Works, Update::Deaf]) },
            7 => Event::Crash { plugin },
            _ => Event::Ask { request: request(draw, plugin, ms) },
        },
        Theme::Batches => match draw.below(6) {
            0..2 => Event::Poison { plugin, ms: 40_000 + 3 * ms },
            2 => Event::DiesOfNext { times: draw.between(1, 6), ms },
            3 => {
                let how = draw.pick(&[TooLarge::Says, TooLarge::EndsInOrder, TooLarge::Breaks]);
                Event::Limit { bytes: draw.between(1, 32) * 8_192, how, ms: 30_000 + 2 * ms }
            }
            4 => Event::Long { plugin },
            _ => Event::Burst { plugin, records: draw.between(50, 1_500), urgent: draw.chance(20) },
        },
        Theme::Certificates => match draw.below(10) {
            0..4 => {
                let late = Authority::Late(draw.between(1_000, 40_000));
                let does = [Authority::Refuses, Authority::Silent, late, Authority::Unknown];
                Event::Authority { authority: draw.pick(&does), ms }
            }
            4 | 5 => {
                // Over the moment at which it is due, over its end, or back behind its beginning.
                let days = draw.pick(&[40, 100, -1, -40, -400]);
                Event::Clock { ahead_s: days * DAY_S + i64::try_from(draw.below(3_600)).unwrap_or(0) }
            }
            6 => Event::Disk { fault: draw.pick(&[DiskFault::Full, DiskFault::ReadOnly, DiskFault::NoThread]), ms },
            7 => Event::Disk { fault: DiskFault::Slow(draw.between(1_000, 20_000)), ms },
            8 => Event::Reset,
            _ => Event::Kill { down_ms: ms },
        },
        Theme::Policies => match draw.below(9) {
            0..3 => Event::Policy { rules: rules(draw), ms: draw.chance(60).then_some(ms) },
            3 => Event::Upgrade { plugin },
            4 => match draw.below(3) {
                0 => Event::Crash { plugin },
                1 => Event::Kill { down_ms: ms },
                _ => Event::SlowDownloads { ms },
            },
            _ => Event::Ask { request: request(draw, plugin, ms) },
        },
    }
}

fn rules(draw: &mut impl Draw) -> Rules {
    let mut bits = |percent| if draw.chance(percent) { u8::try_from(draw.below(8)).unwrap_or(0) } else { u8::MAX };
    let (plugins, tasks, own_tasks) = (bits(50), bits(40), bits(40));
    let odd_versions = draw.chance(30).then(|| draw.chance(50));
    let tasks_per_minute = if draw.chance(30) { draw.pick(&[1, 2, 3]) } else { 0 };
    Rules { plugins, odd_versions, tasks, own_tasks, tasks_per_minute }
}

fn request(draw: &mut impl Draw, plugin: usize, ms: u64) -> Request {
    match draw.below(8) {
        0..3 => Request::Plugin(plugin),
        3 => Request::Unknown,
        4 | 5 => Request::Upload(ms, draw.chance(70)),
        6 => Request::Metadata(draw.chance(50)),
        _ => draw.pick(&[Request::Nonsense, Request::Shutdown]),
    }
}
