//! Who gets a certificate from the center, and whose is no good any more.
//!
//! A host without one comes with a token, which an admin has made. One that has one asks for its next over its own connection. The tokens
//! and certificates are in `center.db`; [`crate::authority`] signs, and [`crate::serve`] speaks with hosts.

use crate::authority::{Authority, Bound, HostKey};
use crate::http::limit::{Limits, Rate};
use crate::http::secret;
use crate::serve::lock;
use crate::store::site::{Certificate, Site, SiteError, Token, Unusable};
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Tries with a token: of an address, and of all together. The right ones do not count against an address, so that the hosts of a site
/// behind one address come in together.
const PER_ADDRESS: Rate = Rate { burst: 10, per_try_ms: 60_000 };
const TOGETHER: Rate = Rate { burst: 200, per_try_ms: 250 };

/// Renewals of an agent. It needs one in months.
const PER_AGENT: Rate = Rate { burst: 20, per_try_ms: 10_000 };

/// Refused hosts that the audit trail hears of. The trail is bounded, and strangers must not fill it.
const TOLD: Rate = Rate { burst: 100, per_try_ms: 60_000 };

/// Limits by name alone have no limit of addresses.
const ANY: Rate = Rate { burst: i64::MAX / 2, per_try_ms: 0 };

/// Clients without a certificate at a time.
const ANONYMOUS: usize = 64;

/// The longest id of an agent in bytes, as agents have it themselves.
const MAX_AGENT_ID: usize = 256;

/// For so long, who asks once more with the same token and the same request gets the same certificate: the answer may have been lost.
const REPEATED_MS: i64 = 600_000;

/// So many certificates are remembered for that, the latest.
const REPEATED: usize = 256;

/// Why a host gets no certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The center cannot sign, because of this.
    NoAuthority(String),
    /// There were too many tries; seconds until the next.
    TooMany(i64),
    /// The request makes no sense.
    Request(String),
    /// The token lets this host not in.
    Token(Unusable),
    /// The host comes without token and without certificate.
    Nothing,
    /// The certificate of the connection is for another agent.
    AnotherAgent,
    /// The certificate of the connection is revoked.
    Revoked,
    /// `center.db` cannot be written, or the authority cannot sign.
    Broken(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoAuthority(why) => write!(f, "this center cannot enrol hosts, because {why}"),
            Self::TooMany(wait_s) => write!(f, "too many tries, the next one is in {wait_s} s"),
            Self::Request(what) => write!(f, "the request is of no use: {what}"),
            Self::Token(unusable) => unusable.fmt(f),
            Self::Nothing => f.write_str("this takes a token, or the certificate that is to be renewed"),
            Self::AnotherAgent => f.write_str("the connection's certificate is for another agent"),
            Self::Revoked => f.write_str("the connection's certificate is revoked"),
            Self::Broken(why) => write!(f, "the center cannot do it now: {why}"),
        }
    }
}

impl std::error::Error for Refused {}

impl From<SiteError> for Refused {
    fn from(error: SiteError) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A new token, as it is shown once.
#[derive(Debug)]
pub(crate) struct NewToken {
    pub(crate) token: Token,
    pub(crate) secret: String,
}

/// What a host gets for a token.
#[derive(Debug, Clone)]
pub(crate) struct Enrolled {
    /// The certificate, in DER.
    pub(crate) certificate: Vec<u8>,
    /// The token as it is then.
    pub(crate) token: Token,
    /// True if the host has been given it before.
    pub(crate) is_repeated: bool,
}

/// An answer that may have been lost.
#[derive(Debug)]
struct Given {
    agent_id: String,
    request: Vec<u8>,
    at_ms: i64,
    answer: Enrolled,
}

/// Certificates for hosts.
#[derive(Debug)]
pub(crate) struct Enrolment {
    authority: Result<Authority, String>,
    newcomers: Mutex<Limits>,
    renewals: Mutex<Limits>,
    told: Mutex<Limits>,
    /// Serial numbers of certificates that are revoked.
    revoked: Mutex<HashSet<String>>,
    /// The latest last.
    given: Mutex<VecDeque<Given>>,
    pub(crate) anonymous: Semaphore,
}

impl Enrolment {
    /// Reads the authority in a directory, and what was revoked. Without a `lifetime` for certificates there is no enrolment.
    ///
    /// # Errors
    /// The database cannot be read.
    pub(crate) fn new(certs: &Path, lifetime: Option<Duration>, site: &Site) -> io::Result<Self> {
        let authority = match lifetime {
            Some(lifetime) => Authority::load(certs, lifetime),
            None => Err("it was started without".to_owned()),
        };
        let revoked = site.certificates().revoked().map_err(io::Error::other)?;
        Ok(Self {
            authority,
            newcomers: Mutex::new(Limits::new(PER_ADDRESS, TOGETHER)),
            renewals: Mutex::new(Limits::new(ANY, PER_AGENT)),
            told: Mutex::new(Limits::new(ANY, TOLD)),
            revoked: Mutex::new(revoked.into_iter().collect()),
            given: Mutex::default(),
            anonymous: Semaphore::new(ANONYMOUS),
        })
    }

    /// Returns the authority, or why there is none.
    ///
    /// # Errors
    /// Why the center cannot sign.
    pub(crate) fn authority(&self) -> Result<&Authority, Refused> {
        self.authority.as_ref().map_err(|why| Refused::NoAuthority(why.clone()))
    }

    /// Makes a token. Its number and its secret are not looked at.
    ///
    /// # Errors
    /// The center cannot sign, or the token cannot be kept.
    pub(crate) fn new_token(&self, site: &Site, token: Token) -> Result<NewToken, Refused> {
        self.authority()?;
        let secret = secret::new_key().map_err(|error| Refused::Broken(error.to_string()))?;
        let mut token = Token { hash: secret::hash(&secret), ..token };
        token.id = site.tokens().add(&token)?;
        Ok(NewToken { token, secret })
    }

    /// Signs the key of a host that comes with a token.
    ///
    /// A wrong token takes the same work as a right one until it is known to be wrong: the request is read and its signature checked
    /// first, and a token is looked up by its hash.
    ///
    /// # Errors
    /// Why the host gets none.
    pub(crate) fn enrol(
        &self,
        site: &Site,
        (secret, agent_id, request): (&str, &str, &[u8]),
        address: IpAddr,
        now_ms: i64,
    ) -> Result<Enrolled, Refused> {
        let authority = self.authority()?;
        let taken = lock(&self.newcomers).take(Some(""), address, now_ms);
        taken.map_err(|too_many| Refused::TooMany(too_many.wait_s))?;
        check_id(agent_id)?;
        let key = HostKey::of(request).map_err(Refused::Request)?;
        let hash = secret::hash(secret);
        if let Some(answer) = self.given(&hash, agent_id, request, now_ms) {
            lock(&self.newcomers).give_back(address);
            return Ok(Enrolled { is_repeated: true, ..answer });
        }
        let (terms, certificate) = self.terms(authority, agent_id, now_ms)?;
        let token = site.tokens().redeem(&hash, &certificate, now_ms)?.map_err(Refused::Token)?;
        let certificate = authority.issue(&key, agent_id, &terms).map_err(Refused::Broken)?;
        lock(&self.newcomers).give_back(address);
        let answer = Enrolled { certificate, token, is_repeated: false };
        let mut given = lock(&self.given);
        if given.len() == REPEATED {
            given.pop_front();
        }
        let (agent_id, request) = (agent_id.to_owned(), request.to_owned());
        given.push_back(Given { agent_id, request, at_ms: now_ms, answer: answer.clone() });
        Ok(answer)
    }

    /// Returns what the same host was given for the same request a short time ago.
    fn given(&self, hash: &str, agent_id: &str, request: &[u8], now_ms: i64) -> Option<Enrolled> {
        let mut given = lock(&self.given);
        given.retain(|given| (0..REPEATED_MS).contains(&now_ms.saturating_sub(given.at_ms)));
        let is_it =
            |given: &&Given| given.answer.token.hash == hash && given.agent_id == agent_id && given.request == request;
        given.iter().find(is_it).map(|given| given.answer.clone())
    }

    /// Signs the next key of an agent, whose connection has a certificate that is not revoked.
    ///
    /// # Errors
    /// Why it gets no certificate.
    pub(crate) fn renew(
        &self,
        site: &Site,
        bound: &Bound,
        (agent_id, request): (&str, &[u8]),
        address: IpAddr,
        now_ms: i64,
    ) -> Result<Vec<u8>, Refused> {
        let authority = self.authority()?;
        if bound.agent_id != agent_id {
            return Err(Refused::AnotherAgent);
        }
        let taken = lock(&self.renewals).take(Some(agent_id), address, now_ms);
        taken.map_err(|too_many| Refused::TooMany(too_many.wait_s))?;
        let key = HostKey::of(request).map_err(Refused::Request)?;
        let (terms, certificate) = self.terms(authority, agent_id, now_ms)?;
        site.certificates().add(&certificate)?;
        // Somebody may have revoked the agent's certificates before this one was among them.
        if self.is_revoked(bound) {
            self.revoke(site, agent_id, "", now_ms)?;
            return Err(Refused::Revoked);
        }
        authority.issue(&key, agent_id, &terms).map_err(Refused::Broken)
    }

    fn terms(
        &self,
        authority: &Authority,
        agent_id: &str,
        now_ms: i64,
    ) -> Result<(crate::authority::Terms, Certificate), Refused> {
        let random = secret::random().map_err(|error| Refused::Broken(error.to_string()))?;
        let terms = authority.terms(random, now_ms / 1000);
        let certificate = Certificate {
            id: 0,
            serial: terms.serial.clone(),
            agent_id: agent_id.to_owned(),
            token: None,
            issued_ms: now_ms,
            expires_ms: terms.until.saturating_mul(1000),
            revoked_ms: None,
            revoked_by: String::new(),
        };
        Ok((terms, certificate))
    }

    /// Revokes all certificates of an agent. Returns their serial numbers, of which there are none if it has none that is not revoked.
    ///
    /// # Errors
    /// The database cannot be written. Nothing is revoked then.
    pub(crate) fn revoke(&self, site: &Site, agent_id: &str, by: &str, now_ms: i64) -> Result<Vec<String>, SiteError> {
        let serials = site.certificates().revoke(agent_id, by, now_ms)?;
        lock(&self.given).retain(|given| given.agent_id != agent_id);
        lock(&self.revoked).extend(serials.iter().cloned());
        Ok(serials)
    }

    /// Returns true if a certificate is no good any more.
    pub(crate) fn is_revoked(&self, bound: &Bound) -> bool {
        lock(&self.revoked).contains(&bound.serial)
    }

    /// Returns true if the audit trail should hear of one more host that was refused.
    pub(crate) fn is_told(&self, address: IpAddr, now_ms: i64) -> bool {
        lock(&self.told).take(Some(""), address, now_ms).is_ok()
    }
}

/// Checks that an agent may have this id.
fn check_id(agent_id: &str) -> Result<(), Refused> {
    if agent_id.is_empty() || agent_id.len() > MAX_AGENT_ID || agent_id.chars().any(char::is_control) {
        let len = agent_id.len();
        return Err(Refused::Request(format!(
            "an agent's id of {len} bytes, expected 1 to {MAX_AGENT_ID} that can be printed"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authority::{Peer, own};
    use rcgen::{CertificateParams, KeyPair};
    use rustls::pki_types::CertificateDer;

    const NOW_MS: i64 = 1_800_000_000_000;
    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    struct World {
        site: Site,
        enrolment: Enrolment,
        _data: tempfile::TempDir,
    }

    impl World {
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let (dir, _) = own::ensure(data.path(), NOW_MS / 1000).unwrap();
            let site = Site::in_memory().unwrap();
            let enrolment = Enrolment::new(&dir, Some(Duration::from_secs(1000)), &site).unwrap();
            Self { site, enrolment, _data: data }
        }

        fn token(&self, uses: u32) -> String {
            let token = Token {
                id: 0,
                hash: String::new(),
                uses,
                used: 0,
                group: None,
                created_by: String::new(),
                created_ms: NOW_MS,
                expires_ms: NOW_MS + 1000,
                revoked_ms: None,
            };
            self.enrolment.new_token(&self.site, token).unwrap().secret
        }

        fn enrol(&self, secret: &str, agent_id: &str) -> Result<Bound, Refused> {
            let enrolled = self.enrolment.enrol(&self.site, (secret, agent_id, &request()), HERE, NOW_MS)?;
            Ok(bound(enrolled.certificate))
        }
    }

    fn request() -> Vec<u8> {
        let key = KeyPair::generate().unwrap();
        CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
    }

    fn bound(signed: Vec<u8>) -> Bound {
        let Peer::Agent(bound) = Peer::of(Some(&CertificateDer::from(signed))) else { panic!("it is an agent's") };
        bound
    }

    #[test]
    fn a_token_brings_a_certificate_for_the_agent_and_no_secret_is_kept() {
        let world = World::new();
        let secret = world.token(1);
        assert!(!format!("{:?}", world.site.tokens().list().unwrap()).contains(&secret));
        assert_eq!(world.enrol(&secret, "a").unwrap().agent_id, "a");
        assert_eq!(world.enrol(&secret, "b"), Err(Refused::Token(Unusable::UsedUp(1))));
        assert!(matches!(world.enrol(&secret, ""), Err(Refused::Request(_))));
        assert!(matches!(world.enrol(&secret, &"x".repeat(257)), Err(Refused::Request(_))));
    }

    #[test]
    fn a_lost_answer_is_given_again_to_the_same_request_alone() {
        let world = World::new();
        let (secret, request) = (world.token(1), request());
        let enrol = |secret: &str, id: &str, request: &[u8], now_ms: i64| {
            world.enrolment.enrol(&world.site, (secret, id, request), HERE, now_ms)
        };
        let first = enrol(&secret, "a", &request, NOW_MS).unwrap();
        assert_eq!(enrol(&secret, "b", &request, NOW_MS).unwrap_err(), Refused::Token(Unusable::UsedUp(1)));
        assert_eq!(enrol("guess", "a", &request, NOW_MS).unwrap_err(), Refused::Token(Unusable::Unknown));
        let other = self::request();
        assert_eq!(enrol(&secret, "a", &other, NOW_MS).unwrap_err(), Refused::Token(Unusable::UsedUp(1)));
        let another = world.token(1);
        enrol(&another, "c", &request, NOW_MS).unwrap();
        world.enrolment.revoke(&world.site, "c", "ann", NOW_MS).unwrap();
        assert!(enrol(&another, "c", &request, NOW_MS).is_err(), "what was revoked is not given again");
        let again = enrol(&secret, "a", &request, NOW_MS + REPEATED_MS - 1).unwrap();
        assert_eq!((first.is_repeated, again.is_repeated), (false, true));
        assert_eq!((&first.certificate, first.token.used), (&again.certificate, again.token.used));
        let late = enrol(&secret, "a", &request, NOW_MS + REPEATED_MS).unwrap_err();
        assert!(matches!(late, Refused::Token(_)), "{late}");
    }

    #[test]
    fn strangers_have_few_tries_and_do_not_keep_others_out() {
        let world = World::new();
        let secret = world.token(100);
        for n in 0..50 {
            assert!(world.enrol(&secret, &format!("host {n}")).is_ok(), "right ones do not count");
        }
        for _ in 0..10 {
            assert_eq!(world.enrol("guess", "a"), Err(Refused::Token(Unusable::Unknown)));
        }
        assert_eq!(world.enrol(&secret, "a"), Err(Refused::TooMany(60)));
        let elsewhere = IpAddr::from([10, 0, 0, 1]);
        assert!(world.enrolment.enrol(&world.site, (&secret, "a", &request()), elsewhere, NOW_MS).is_ok());
    }

    #[test]
    fn an_agent_renews_its_own_certificate_until_it_is_revoked() {
        let world = World::new();
        let first = world.enrol(&world.token(1), "a").unwrap();
        let renew = |bound: &Bound, id: &str| {
            world.enrolment.renew(&world.site, bound, (id, &request()), HERE, NOW_MS).map(self::bound)
        };
        let second = renew(&first, "a").unwrap();
        assert!(second.agent_id == "a" && second.serial != first.serial);
        assert_eq!(renew(&first, "b"), Err(Refused::AnotherAgent));
        assert!(!world.enrolment.is_revoked(&first));
        assert_eq!(world.enrolment.revoke(&world.site, "a", "ann", NOW_MS).unwrap().len(), 2);
        assert!(world.enrolment.is_revoked(&first) && world.enrolment.is_revoked(&second));
        assert_eq!(renew(&second, "a"), Err(Refused::Revoked), "a call that had begun brings nothing");
        let live = world.site.certificates().of("a", 9).unwrap();
        assert!(live.iter().all(|certificate| certificate.revoked_ms.is_some()), "{live:?}");
        assert_eq!(world.enrol(&world.token(1), "a").unwrap().agent_id, "a", "a new token lets it in again");
    }

    #[test]
    fn what_was_revoked_stays_so_for_the_next_center() {
        let world = World::new();
        let bound = world.enrol(&world.token(1), "a").unwrap();
        world.enrolment.revoke(&world.site, "a", "ann", NOW_MS).unwrap();
        let next = Enrolment::new(Path::new("/nowhere"), None, &world.site).unwrap();
        assert!(next.is_revoked(&bound));
        assert!(matches!(next.authority(), Err(Refused::NoAuthority(_))));
    }
}
