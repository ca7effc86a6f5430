//! Who may use the HTTP port.
//!
//! Whoever signs a request, or has the key of a session or of the host's own commands, is known by that. Where there are no users, whoever
//! reaches a loopback port is on this host and needs no more. A browser there only looks, because any page that is open in it can have it
//! send requests.

use super::auth::AccessKey;
use super::caller::{Caller, Proof, Role};
use super::device;
use super::password::Hasher;
use super::secret;
use super::session::{Session, Sessions};
use super::tries::SignInTries;
use crate::serve::{Options, lock};
use crate::store::Store;
use crate::store::site::{SiteError, User};
use http::header::{AUTHORIZATION, COOKIE, FORWARDED, HOST, HeaderName, ORIGIN, VIA};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::Semaphore;

/// How long a link may be opened, and how many may wait to be.
pub(super) const LINK_MS: i64 = 10 * 60 * 1000;
const LINKS: usize = 16;

/// Names that are not a user's.
pub(super) const LOCAL: &str = "local";
pub(super) const LINK: &str = "link";
pub(super) const ACCESS_KEY: &str = "access-key";

const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const CSRF: HeaderName = HeaderName::from_static("x-csrf-token");
const ACCESS_KEY_HEADER: HeaderName = HeaderName::from_static("accesskey");

/// Signed requests whose bodies are read at a time. Each may have 16 MiB, and may turn out to be a stranger's.
const UNPROVEN: usize = 8;

/// Who may do what, and who is signed in.
#[derive(Debug)]
pub(crate) struct Access {
    store: Option<Arc<Store>>,
    access_key: Option<AccessKey>,
    /// True if only this host reaches the port.
    pub(super) loopback: bool,
    /// True if the port speaks TLS.
    pub(super) tls: bool,
    cookie: String,
    /// The hash of the key that the host's own commands have.
    token: Option<String>,
    pub(super) hasher: Hasher,
    pub(super) tries: Mutex<SignInTries>,
    /// Whose turn it is to send the body of a request whose signature covers it.
    pub(super) unproven: Semaphore,
    pub(super) counts: Counts,
    state: Mutex<State>,
}

/// What the port has answered since the center started.
#[derive(Debug, Default)]
pub(super) struct Counts {
    /// Answers by status, of which there are few.
    answers: Mutex<BTreeMap<u16, u64>>,
    pub(super) sign_ins: AtomicU64,
    pub(super) wrong_sign_ins: AtomicU64,
    pub(super) hasty_sign_ins: AtomicU64,
}

impl Counts {
    pub(super) fn answered(&self, status: StatusCode) {
        *lock(&self.answers).entry(status.as_u16()).or_default() += 1;
    }

    /// Returns how often each status was answered.
    pub(super) fn answers(&self) -> BTreeMap<u16, u64> {
        lock(&self.answers).clone()
    }
}

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) users: BTreeMap<String, User>,
    pub(super) sessions: Sessions,
    links: Vec<Link>,
}

#[derive(Debug)]
struct Link {
    hash: String,
    until_ms: i64,
}

/// Who sent a request.
#[derive(Debug)]
pub(super) enum Asker {
    /// Somebody who is known.
    Known(Caller),
    /// Whoever has the access key, if the signature is right.
    Signed,
    /// Nobody who is known. The text says what it takes.
    Unknown(String),
}

impl Access {
    /// Reads who may do what. `token` is the key of the host's own commands.
    ///
    /// # Errors
    /// The database cannot be read, or holds a role that this program does not know.
    pub(crate) fn new(options: &Options, token: Option<&str>, now_ms: i64) -> io::Result<Self> {
        let mut state = State::default();
        if let Some(store) = &options.store {
            for user in store.site().users().list().map_err(io::Error::other)? {
                user.role
                    .parse::<Role>()
                    .map_err(|error| io::Error::other(format!("user {:?}: {error}", user.name)))?;
                state.users.insert(user.name.clone(), user);
            }
            let kept = store.site().sessions().list().map_err(io::Error::other)?;
            state.sessions = Sessions::new(kept.into_iter().map(Session::from), now_ms);
        }
        Ok(Self {
            store: options.store.clone(),
            access_key: options.access_key.clone(),
            loopback: options.http.ip().is_loopback(),
            tls: options.http_tls,
            // Cookies do not know ports, and a host may have several centers. With TLS, the prefix has browsers refuse what others set.
            cookie: format!("{}elklet-center-{}", if options.http_tls { "__Host-" } else { "" }, options.http.port()),
            token: token.map(secret::hash),
            hasher: Hasher::new(),
            tries: Mutex::default(),
            unproven: Semaphore::new(UNPROVEN),
            counts: Counts::default(),
            state: Mutex::new(state),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Changes what is kept, if there is anything that keeps it.
    pub(super) fn keep(&self, change: impl FnOnce(&Store) -> Result<(), SiteError>) -> Result<(), SiteError> {
        self.store.as_deref().map_or(Ok(()), |store| tokio::task::block_in_place(|| change(store)))
    }

    /// Returns true if users can be added, which takes a store.
    pub(super) fn keeps(&self) -> bool {
        self.store.is_some()
    }

    /// Returns who sent a request. `signs_in` is true for the request that begins a session, which needs no session.
    ///
    /// # Errors
    /// The request comes from a page elsewhere, or lacks what a page of the center sends along. The text says which.
    pub(super) fn who(&self, head: &Parts, peer: SocketAddr, signs_in: bool, now_ms: i64) -> Result<Asker, String> {
        let headers = &head.headers;
        self.refuse_elsewhere(headers)?;
        let known = |name: &str, role, proof| {
            Asker::Known(Caller { name: name.to_owned(), role, origin: peer.to_string(), proof })
        };
        if self.access_key.is_some() && headers.contains_key(ACCESS_KEY_HEADER) {
            return Ok(Asker::Signed);
        }
        if let Some(key) = text(headers, &AUTHORIZATION).strip_prefix("Bearer ") {
            let right = self.token.as_ref().is_some_and(|hash| *hash == secret::hash(key.trim()));
            return Ok(match right {
                true => known(LOCAL, Role::Admin, Proof::Token),
                false => {
                    Asker::Unknown("the bearer's key is not the one that this center wrote when it started".to_owned())
                }
            });
        }
        let changes = ![Method::GET, Method::HEAD].contains(&head.method);
        if let Some(key) = self.session_key(headers) {
            let hash = secret::hash(key);
            if let Some((name, role)) = self.session(&hash, now_ms) {
                if changes && !signs_in && text(headers, &CSRF) != secret::csrf(key) {
                    return Err("a change takes the header X-CSRF-Token with what GET /api/v1/session says".to_owned());
                }
                return Ok(known(&name, role, Proof::Session(hash)));
            }
        }
        if !self.state().users.is_empty() {
            return Ok(Asker::Unknown("this takes a session, a signed request, or the host's own key".to_owned()));
        }
        if self.access_key.is_some() {
            return Ok(Asker::Unknown("this takes a signed request: there is no header AccessKey".to_owned()));
        }
        if !self.loopback || [FORWARDED, VIA, X_FORWARDED_FOR].iter().any(|name| headers.contains_key(name)) {
            return Ok(Asker::Unknown("there are no users yet, and whoever is elsewhere needs to be one".to_owned()));
        }
        // Any user of this host reaches the port, and an admin is root on every host with an agent. Where the center has written a key for
        // those who may read its data, they have to show it. Where it has not, it is embedded in a program, which is a test's or the demo's.
        let browser = [ORIGIN, SEC_FETCH_SITE, COOKIE].iter().any(|name| headers.contains_key(name));
        let role = if browser || self.token.is_some() { Role::View } else { Role::Admin };
        Ok(known(LOCAL, role, Proof::Local))
    }

    /// Returns who has the access key.
    pub(super) fn signer(peer: SocketAddr) -> Caller {
        Caller { name: ACCESS_KEY.to_owned(), role: Role::Admin, origin: peer.to_string(), proof: Proof::Key }
    }

    /// Returns the key that requests may be signed with.
    pub(super) fn access_key(&self) -> Option<&AccessKey> {
        self.access_key.as_ref()
    }

    /// Returns true while a caller who asked before may still look.
    pub(super) fn may_still_look(&self, caller: &Caller, now_ms: i64) -> bool {
        match &caller.proof {
            Proof::Local => self.state().users.is_empty(),
            Proof::Key | Proof::Token => true,
            Proof::Session(hash) => self.session(hash, now_ms).is_some(),
        }
    }

    /// Returns whose session this is and what they may do, and notes that it was used.
    fn session(&self, hash: &str, now_ms: i64) -> Option<(String, Role)> {
        let mut state = self.state();
        let (session, keep) = state.sessions.touch(hash, now_ms)?;
        let role = match state.users.get(&session.user) {
            Some(user) => user.role.parse().ok()?,
            None if session.user == LINK => Role::Admin,
            None => return None,
        };
        drop(state);
        if keep && let Err(error) = self.keep(|store| self.keep_session(store, &session)) {
            log::warn!("a session may end early after a restart: {error}");
        }
        Some((session.user, role))
    }

    /// Writes a session, and removes it again if it has ended meanwhile: who ended it may have been faster with the database.
    pub(super) fn keep_session(&self, store: &Store, session: &Session) -> Result<(), SiteError> {
        store.site().sessions().set(&session.kept())?;
        if !self.state().sessions.has(&session.hash) {
            store.site().sessions().remove(std::slice::from_ref(&session.hash))?;
        }
        Ok(())
    }

    /// Returns the key in the cookie of a session.
    pub(super) fn session_key<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookie(headers, &self.cookie)
    }

    /// Returns the header that gives a browser its key, or takes it away.
    pub(super) fn set_cookie(&self, key: Option<&str>) -> String {
        let end = if key.is_some() { "" } else { "; Max-Age=0" };
        self.cookie_header(&self.cookie, key.unwrap_or_default(), end)
    }

    /// Returns the number of the browser, if this user has signed in with it before.
    pub(super) fn browser<'a>(
        &self,
        headers: &'a HeaderMap,
        user: &str,
        password: &str,
        now_ms: i64,
    ) -> Option<&'a str> {
        device::known(cookie(headers, &self.browser_cookie())?, user, password, now_ms / 1000)
    }

    /// Returns the header by which a browser is known again.
    pub(super) fn set_browser_cookie(&self, value: &str) -> String {
        self.cookie_header(&self.browser_cookie(), value, &format!("; Max-Age={}", device::LIFE_S))
    }

    fn browser_cookie(&self) -> String {
        format!("{}-browser", self.cookie)
    }

    fn cookie_header(&self, name: &str, value: &str, end: &str) -> String {
        let secure = if self.tls { "; Secure" } else { "" };
        format!("{name}={value}; Path=/; HttpOnly; SameSite=Strict{secure}{end}")
    }

    /// Makes the key of a link that may be opened once.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(crate) fn new_link(&self, now_ms: i64) -> io::Result<String> {
        let key = secret::new_key()?;
        let mut state = self.state();
        state.links.retain(|link| link.until_ms > now_ms);
        if state.links.len() == LINKS {
            state.links.remove(0);
        }
        state.links.push(Link { hash: secret::hash(&key), until_ms: now_ms + LINK_MS });
        Ok(key)
    }

    /// Returns true if a link has this key, which opens it this once.
    pub(super) fn open_link(&self, key: &str, now_ms: i64) -> bool {
        let (mut state, hash) = (self.state(), secret::hash(key));
        let found = state.links.iter().position(|link| link.hash == hash);
        found.is_some_and(|index| state.links.remove(index).until_ms > now_ms)
    }

    /// Refuses what a browser sends for a page from elsewhere.
    fn refuse_elsewhere(&self, headers: &HeaderMap) -> Result<(), String> {
        let host = text(headers, &HOST);
        if self.loopback {
            check_host(host)?;
        }
        if headers.contains_key(ORIGIN) {
            let origin = text(headers, &ORIGIN);
            let authority = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
            if !authority.is_some_and(|authority| !host.is_empty() && authority.eq_ignore_ascii_case(host)) {
                return Err(format!("a request from a page of {origin:?}, expected one of the center's own"));
            }
        }
        match headers.get(SEC_FETCH_SITE).map(|site| site.as_bytes()) {
            None | Some(b"same-origin" | b"none") => Ok(()),
            Some(_) => Err("a request from a page elsewhere, expected one of the center's own".to_owned()),
        }
    }
}

/// Refuses a name that its owner may have point to this host, so that pages under it would be the center's own.
fn check_host(host: &str) -> Result<(), String> {
    let name = host.rsplit_once(':').map_or(host, |(name, port)| if port.contains(']') { host } else { name });
    let address = name.trim_start_matches('[').trim_end_matches(']');
    // A name without a dot is nobody's to give on the Internet.
    if !name.contains('.') || address.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err("the Host of a request is to be an address, or a name without dots".to_owned())
}

fn cookie<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(COOKIE).iter().filter_map(|cookies| cookies.to_str().ok());
    let mut pairs = cookies.flat_map(|cookies| cookies.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn access(change: impl FnOnce(&mut Options)) -> Access {
        let mut options = Options::new("");
        change(&mut options);
        Access::new(&options, Some("token"), 0).unwrap()
    }

    fn who(access: &Access, headers: &[(&str, &str)]) -> String {
        let mut request = http::Request::builder().method(Method::GET).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let head = request.body(()).unwrap().into_parts().0;
        match access.who(&head, SocketAddr::from(([10, 0, 0, 1], 7)), false, 0) {
            Ok(Asker::Known(caller)) => format!("{} {}", caller.name, caller.role),
            Ok(Asker::Signed) => "signed".to_owned(),
            Ok(Asker::Unknown(_)) => "unknown".to_owned(),
            Err(reason) => reason,
        }
    }

    #[test]
    fn whoever_comes_from_elsewhere_is_nobody_without_a_key() {
        let open = access(|options| options.http = SocketAddr::from(([0, 0, 0, 0], 1)));
        assert_eq!(who(&open, &[("host", "center.example")]), "unknown");
        assert_eq!(who(&open, &[("host", "center.example"), ("authorization", "Bearer token")]), "local admin");
        assert_eq!(who(&open, &[("host", "center.example"), ("authorization", "Bearer toke")]), "unknown");
        assert_eq!(who(&open, &[("accesskey", "a")]), "unknown", "there is none");
        let closed = access(|_| {});
        assert_eq!(who(&closed, &[("host", "127.0.0.1:1")]), "local view");
        assert_eq!(who(&closed, &[("host", "127.0.0.1:1"), ("authorization", "Bearer token")]), "local admin");
        assert_eq!(who(&closed, &[("via", "1.1 proxy")]), "unknown");
        assert!(who(&closed, &[("host", "center.example")]).contains("Host"));
        let key = AccessKey { access_key: "a".to_owned(), secret_key: "s".to_owned() };
        let keyed = access(|options| options.access_key = Some(key));
        assert_eq!(who(&keyed, &[("accesskey", "b")]), "signed", "so it says");
        assert_eq!(who(&keyed, &[]), "unknown");
    }

    #[test]
    fn a_page_is_the_centers_own_or_refused() {
        let access = access(|_| {});
        for host in ["localhost:6752", "127.0.0.1:6752", "[::1]:6752"] {
            assert_eq!(who(&access, &[("host", host), ("origin", &format!("http://{host}"))]), "local view");
            for origin in ["http://evil.example", "null", "", "http://", "file://", "http://localhost:67520"] {
                assert!(who(&access, &[("host", host), ("origin", origin)]).contains("page of"), "{origin}");
            }
        }
        assert!(who(&access, &[("origin", "http://")]).contains("page of"), "no Host is no center's");
        assert_eq!(who(&access, &[("sec-fetch-site", "none")]), "local view");
        assert!(who(&access, &[("sec-fetch-site", "same-site")]).contains("page elsewhere"));
    }

    #[test]
    fn a_link_opens_once_within_its_time() {
        let access = access(|_| {});
        let first = access.new_link(0).unwrap();
        assert!(access.open_link(&first, LINK_MS - 1) && !access.open_link(&first, 0));
        let late = access.new_link(0).unwrap();
        assert!(!access.open_link(&late, LINK_MS));
        let links: Vec<_> = (0..=LINKS).map(|_| access.new_link(0).unwrap()).collect();
        assert!(
            !access.open_link(&links[0], 0) && access.open_link(&links[1], 0) && access.open_link(&links[LINKS], 0)
        );
    }

    #[test]
    fn a_cookie_over_tls_is_bound_to_this_center() {
        let access = access(|options| {
            options.http_tls = true;
            options.http.set_port(7);
        });
        let set = access.set_cookie(Some("00"));
        assert_eq!(set, "__Host-elklet-center-7=00; Path=/; HttpOnly; SameSite=Strict; Secure");
        let mut headers = HeaderMap::new();
        headers.append(COOKIE, "a=b; elklet-center-7=11; __Host-elklet-center-8=22".parse().unwrap());
        headers.append(COOKIE, "__Host-elklet-center-7=00".parse().unwrap());
        assert_eq!(access.session_key(&headers), Some("00"));
        let set = access.set_browser_cookie("1.2.3");
        let rest = "; Path=/; HttpOnly; SameSite=Strict; Secure; Max-Age=31536000";
        assert_eq!(set, format!("__Host-elklet-center-7-browser=1.2.3{rest}"));
        headers.append(COOKIE, "__Host-elklet-center-7-browser=1.2.3".parse().unwrap());
        assert_eq!(access.session_key(&headers), Some("00"));
        assert_eq!(cookie(&headers, &access.browser_cookie()), Some("1.2.3"));
    }
}
