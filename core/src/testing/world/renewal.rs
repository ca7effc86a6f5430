//! The agent's certificate: the authority that gives it, the shell that asks for the next one and keeps it, and the host's clock.

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;

use super::World;
use super::agenda::{Answer, Happening, Packet};
use crate::agent::{Lifetime, Renewed};
use crate::testing::random::Draw;
use crate::testing::schedule::Authority;
use crate::time::Millis;

const DAY_S: i64 = 24 * 60 * 60;

/// Certificates are valid for so long.
const LIFE_S: i64 = 90 * DAY_S;

/// A certificate of which less is left is due, wherever in a fleet's spread the agent has its place.
const DUE_S: i64 = LIFE_S / 3 - LIFE_S / 10;

/// When the world begins, in seconds since 1970.
const BEGINNING_S: i64 = 20_000 * DAY_S;

/// The shell waits so long for an answer.
const PATIENCE_MS: u64 = 30_000;

/// Requests within an hour at most, while no certificate comes that is good for longer than the one before: their distances double.
const MAX_AN_HOUR: usize = 10;

/// The second request comes within this after the first one, and each further one within twice the time of the one before.
const FIRST_PAUSE_MS: u64 = 20_000;
const MAX_PAUSE_MS: u64 = 12 * 60 * 60 * 1000;

/// A server that does not know the call is asked again after this.
const UNKNOWN_PAUSE_MS: u64 = 24 * 60 * 60 * 1000;

/// What is known of the agent's certificate outside its process.
#[derive(Debug)]
pub(super) struct Certificate {
    /// The one on the disk.
    lifetime: Lifetime,
    /// Seconds by which the host's clock is ahead of the servers'.
    ahead_s: i64,
    /// When it was asked for the next one within the last hour.
    asked: VecDeque<Millis>,
    tries: u32,
    is_unknown: bool,
}

/// What the agent's shell knows of it.
#[derive(Debug, Default)]
pub(super) struct Renewing {
    /// The certificate in use.
    used: Option<Lifetime>,
    /// The request that is under way.
    asked: Option<u32>,
    next: u32,
    /// The certificate that is being written.
    installing: Option<Lifetime>,
}

impl Certificate {
    /// One of which so many seconds are left.
    pub(super) fn new(left_s: i64) -> Self {
        let until = BEGINNING_S + left_s;
        Self {
            lifetime: Lifetime { from: until - LIFE_S, until },
            ahead_s: 0,
            asked: VecDeque::new(),
            tries: 0,
            is_unknown: false,
        }
    }

    /// Whatever was tried before counts no more.
    fn begin_anew(&mut self) {
        self.asked.clear();
        (self.tries, self.is_unknown) = (0, false);
    }

    /// Milliseconds within which another request follows the last one.
    fn pause_ms(&self) -> u64 {
        let pause = (FIRST_PAUSE_MS << self.tries.min(16)).min(MAX_PAUSE_MS);
        if self.is_unknown { UNKNOWN_PAUSE_MS + pause } else { pause }
    }
}

impl World {
    /// The servers' clock, in seconds since 1970.
    fn unix_seconds(&self) -> i64 {
        BEGINNING_S + i64::try_from(self.agenda.now.0 / 1_000).unwrap_or(i64::MAX / 2)
    }

    /// A process of the agent reads its certificate.
    pub(super) fn handle_new_life(&mut self) {
        self.judged.handle_new_life();
        if let Some(certificate) = &mut self.certificate {
            certificate.begin_anew();
        }
        self.reread_certificate();
    }

    /// The shell reads the certificate again if it has changed, as it does before each connection.
    pub(super) fn reread_certificate(&mut self) {
        if let (Some(certificate), Some(host)) = (&self.certificate, &mut self.host) {
            host.renewing.used = Some(certificate.lifetime);
        }
    }

    /// The shell tells the agent which certificate is in use, and what time it is.
    pub(super) fn tell_certificate(&mut self) {
        let (Some(certificate), Some(host)) = (&self.certificate, &self.host) else { return };
        let (used, unix_seconds) = (host.renewing.used, self.unix_seconds() + certificate.ahead_s);
        self.tell(|agent, now| agent.handle_certificate(used, unix_seconds, now));
    }

    /// Whether servers take the certificate in use for one that has ended.
    pub(super) fn has_expired(&self) -> bool {
        let used = self.host.as_ref().and_then(|host| host.renewing.used);
        used.is_some_and(|used| used.until <= self.unix_seconds())
    }

    pub(super) fn set_clock(&mut self, ahead_s: i64) {
        if let Some(certificate) = &mut self.certificate {
            certificate.ahead_s = ahead_s;
        }
    }

    /// The agent asks for the next certificate.
    pub(super) fn renew(&mut self) {
        let now = self.agenda.now;
        self.note(|| "the agent asks for a certificate".into());
        let connection = self.current().filter(|id| self.connections[*id].is_streaming);
        let (Some(certificate), Some(host)) = (&mut self.certificate, &mut self.host) else {
            return self.fail("only a certificate that a center has given is renewed", "there is none");
        };
        let Some(id) = connection else {
            return self.fail("a certificate is asked for on a stream", "there is none");
        };
        certificate.tries += 1;
        certificate.asked.push_back(now);
        certificate.asked.retain(|at| now.since(*at) < 60 * 60 * 1000);
        let asked = certificate.asked.len();
        let renewing = &mut host.renewing;
        let under_way = (renewing.asked, renewing.installing);
        renewing.next += 1;
        let request = renewing.next;
        renewing.asked = Some(request);
        if under_way != (None, None) {
            let what = format!("(asked, being written) is {under_way:?}");
            return self.fail("one certificate is asked for at a time", &what);
        }
        if asked > MAX_AN_HOUR {
            self.fail("a certificate is asked for ever less often", &format!("{asked} times within an hour"));
        }
        self.agenda.after(PATIENCE_MS, Happening::NotCertified { life: self.life, request });
        self.send(id, Packet::Certify(request));
    }

    /// A server is asked for a certificate.
    pub(super) fn certify(&mut self, connection: usize, request: u32) {
        let now = self.agenda.now;
        let from = self.unix_seconds() - 300;
        let given = Answer::Given(Lifetime { from, until: from + LIFE_S });
        let does = self.program.authority.filter(|(_, until)| now < *until).map(|(does, _)| does);
        let (answer, ms) = match does {
            Some(Authority::Silent) => return,
            Some(Authority::Refuses) => (Answer::Refused, 5),
            Some(Authority::Unknown) => (Answer::Unknown, 1),
            Some(Authority::Late(ms)) => (given, ms),
            None => (given, self.random.between(5, 200)),
        };
        self.agenda.after(ms, Happening::Certified { connection, request, answer });
    }

    pub(super) fn answer_request(&mut self, connection: usize, request: u32, answer: Answer) {
        if self.connections[connection].server_open {
            self.send(connection, Packet::Certified(request, answer));
        }
    }

    /// The stream is gone, and with it what was asked beside it.
    pub(super) fn forget_request(&mut self) {
        if let Some(host) = &mut self.host {
            host.renewing.asked = None;
        }
    }

    /// Takes the request that is under way, if it is this one.
    fn take_request(&mut self, request: u32) -> bool {
        let asked = self.host.as_mut().map(|host| &mut host.renewing.asked);
        asked.and_then(|asked| asked.take_if(|asked| *asked == request)).is_some()
    }

    pub(super) fn handle_patience(&mut self, request: u32) {
        if self.take_request(request) {
            self.not_certified("there is no answer", Renewed::Failed);
        }
    }

    pub(super) fn handle_answer(&mut self, request: u32, answer: Answer) {
        // The shell waits for that no longer.
        if !self.take_request(request) {
            return;
        }
        match answer {
            Answer::Given(lifetime) => self.install(lifetime),
            Answer::Refused => self.not_certified("it is refused", Renewed::Failed),
            Answer::Unknown => {
                if let Some(certificate) = &mut self.certificate {
                    certificate.is_unknown = true;
                }
                self.not_certified("the server gives none", Renewed::Unknown);
            }
        }
    }

    fn not_certified(&mut self, why: &str, renewed: Renewed) {
        self.note(|| format!("no new certificate: {why}"));
        self.tell(|agent, now| agent.handle_renewed(renewed, now));
    }

    /// A thread writes the certificate.
    fn install(&mut self, lifetime: Lifetime) {
        self.tell(|agent, _| agent.handle_certificate_given());
        let (now, disk) = (self.agenda.now, &self.disk);
        if now < disk.no_thread_until {
            return self.not_certified("there is no thread to write it", Renewed::Failed);
        }
        let is_writable = now >= disk.full_until && now >= disk.read_only_until;
        let most = if now < disk.slow_until { disk.slow_ms } else { 20 };
        let written = if is_writable { Ok(lifetime) } else { Err("it cannot be written") };
        let ms = self.random.between(1, most);
        if let Some(host) = &mut self.host {
            host.renewing.installing = Some(lifetime);
        }
        self.agenda.after(ms, Happening::Installed { life: self.life, written });
    }

    pub(super) fn handle_installed(&mut self, written: Result<Lifetime, &'static str>) {
        let Some(host) = &mut self.host else { return };
        host.renewing.installing = None;
        match written {
            Ok(lifetime) => {
                self.keep_certificate(lifetime);
                self.reread_certificate();
                self.note(|| "the agent has a new certificate".into());
                self.tell_certificate();
                self.tell(|agent, now| agent.handle_renewed(Renewed::Done, now));
                self.move_stream();
            }
            Err(why) => self.not_certified(why, Renewed::Failed),
        }
    }

    /// A certificate is on the disk.
    fn keep_certificate(&mut self, lifetime: Lifetime) {
        let now_s = self.unix_seconds();
        let Some(certificate) = &mut self.certificate else { return };
        certificate.lifetime = lifetime;
        let left = lifetime.until - now_s - certificate.ahead_s;
        if left > LIFE_S / 3 {
            certificate.begin_anew();
        } else if left > DUE_S {
            // It depends on the agent's place whether it counts as a young one.
            certificate.asked.clear();
        }
    }

    /// The agent's process is gone: what was being written is on the disk or not.
    pub(super) fn tear_certificate(&mut self, installing: Option<Lifetime>) {
        if let Some(lifetime) = installing.filter(|_| self.random.chance(50)) {
            self.keep_certificate(lifetime);
        }
    }

    /// The host's clock is right again. Who has let the certificate end enrols the host anew.
    pub(super) fn mend_certificate(&mut self) {
        let (now_s, from) = (self.unix_seconds(), self.unix_seconds() - 300);
        let Some(certificate) = &mut self.certificate else { return };
        certificate.ahead_s = 0;
        if certificate.lifetime.until - now_s < 60 * 60 {
            certificate.lifetime = Lifetime { from, until: from + LIFE_S };
            certificate.asked.clear();
            self.note(|| "the host is enrolled anew".into());
        }
    }

    /// Whether the certificate is still an old one, so long after all else is good. What is wrong if that is too long.
    pub(super) fn check_renewal(&self, waited: u64) -> Option<Result<(), String>> {
        let certificate = self.certificate.as_ref()?;
        let left = certificate.lifetime.until - self.unix_seconds();
        if left > DUE_S {
            return None;
        }
        let patience = certificate.pause_ms() + 2 * PATIENCE_MS;
        let what = || format!("{left} s are left of it after {waited} ms and {} requests", certificate.tries);
        Some(if waited > patience { Err(what()) } else { Ok(()) })
    }
}

impl Renewing {
    pub(super) fn installing(&self) -> Option<Lifetime> {
        self.installing
    }
}
