//! `/api/v1/session`: signing in and out, and one's own password.

use super::access::{Access, Asker, LINK};
use super::api;
use super::caller::{Caller, Proof};
use super::device;
use super::limit::TooMany;
use super::openapi;
use super::reply::{Reply, json_response};
use super::session::Session;
use super::trail;
use super::tries::Try;
use super::{password, secret};
use crate::clock::now_ms;
use crate::serve::{Shared, lock};
use crate::store::Store;
use crate::store::site::{SiteError, User};
use http::header::{HeaderValue, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;

/// The longest body of a request here. It may come from anybody.
pub(super) const MAX_BODY: usize = 8 << 10;

/// The longest name of a user, in bytes.
pub(super) const MAX_NAME: usize = 64;

/// A request here.
pub(super) struct SignIn<'a> {
    pub(super) method: &'a Method,
    /// What follows `/api/v1/session`.
    pub(super) rest: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a HeaderMap,
    pub(super) body: &'a [u8],
    pub(super) asker: Asker,
    pub(super) peer: SocketAddr,
    pub(super) shared: &'a Shared,
}

/// Why somebody is not let in, or what they want is not done.
struct Refused {
    status: StatusCode,
    error: String,
    wait_s: Option<i64>,
}

type Answer = Result<Reply, Refused>;

impl SignIn<'_> {
    pub(super) async fn answer(&self) -> Reply {
        let path = if self.rest.is_empty() { "/session".to_owned() } else { format!("/session/{}", self.rest) };
        let refusal = openapi::refusal(self.method, &path);
        if let Some(reply) = refusal.or_else(|| api::refuse_query(self.method, &path, self.query)) {
            return reply;
        }
        let answer = match (self.method, self.rest) {
            (&Method::GET, "") => Ok(self.tell()),
            (&Method::POST, "") => self.begin().await,
            (&Method::DELETE, "") => self.end(),
            (&Method::PUT, "password") => self.change_password().await,
            (method, rest) => refuse(StatusCode::NOT_FOUND, format!("no route {method} /api/v1/session/{rest}")),
        };
        answer.unwrap_or_else(|refused| {
            let mut reply = json_response(refused.status, &json!({ "error": refused.error }));
            if let Some(wait_s) = refused.wait_s {
                reply.headers_mut().insert(RETRY_AFTER, HeaderValue::from(wait_s));
            }
            reply
        })
    }

    fn access(&self) -> &Access {
        &self.shared.access
    }

    fn tell(&self) -> Reply {
        let (user, role, csrf) = match &self.asker {
            Asker::Known(Caller { name, role, proof, .. }) => {
                let key = self.access().session_key(self.headers).filter(|_| matches!(proof, Proof::Session(_)));
                (json!(name), json!(role.to_string()), json!(key.map(secret::csrf)))
            }
            Asker::Signed | Asker::Unknown(_) => Default::default(),
        };
        json_response(StatusCode::OK, &self.session(user, role, csrf))
    }

    fn session(&self, user: Value, role: Value, csrf: Value) -> Value {
        let users = !self.access().state().users.is_empty();
        json!({ "user": user, "role": role, "csrf": csrf, "users": users, "version": env!("CARGO_PKG_VERSION") })
    }

    async fn begin(&self) -> Answer {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Wanted {
            user: Option<String>,
            password: Option<String>,
            link: Option<String>,
        }
        if !self.access().loopback && !self.access().tls {
            return refuse(StatusCode::FORBIDDEN, "signing in from elsewhere takes TLS (http_tls = true)");
        }
        let wanted: Wanted = self.json()?;
        match wanted {
            Wanted { user: Some(user), password: Some(password), link: None } => self.by_password(user, password).await,
            Wanted { user: None, password: None, link: Some(link) } => self.by_link(&link),
            _ => refuse(StatusCode::BAD_REQUEST, "expected either user and password, or link"),
        }
    }

    async fn by_password(&self, user: String, password: String) -> Answer {
        // What is too long is nobody's name. It is cut so that it cannot fill the table of those who tried.
        let name = user[..user.floor_char_boundary(MAX_NAME)].to_owned();
        let stored = self.access().state().users.get(&user).map(|user| user.password.clone());
        let spent = self.take_try(Some(&name), stored.as_deref())?;
        let right = self.access().hasher.verify(password, stored.clone()).await.map_err(|error| broken(&error))?;
        let signed_in = match (right, stored) {
            (true, Some(stored)) => {
                self.was_right(&user, &spent)?;
                self.signed_in(&user, Some(&stored))?
            }
            (false, _) | (_, None) => None,
        };
        let Some(reply) = signed_in else {
            self.access().counts.wrong_sign_ins.fetch_add(1, Relaxed);
            self.note("nobody", "login", &name, "wrong name or password");
            return refuse(StatusCode::UNAUTHORIZED, "the name or the password is wrong");
        };
        Ok(reply)
    }

    fn by_link(&self, key: &str) -> Answer {
        let spent = self.take_try(None, None)?;
        if !self.access().open_link(key, now_ms()) {
            self.access().counts.wrong_sign_ins.fetch_add(1, Relaxed);
            self.note("nobody", "login", LINK, "no such link");
            return refuse(StatusCode::UNAUTHORIZED, "this link was opened already, or is older than 10 minutes");
        }
        lock(&self.access().tries).give_back(&spent);
        let signed_in = self.signed_in(LINK, None)?;
        signed_in.map_or_else(|| refuse(StatusCode::UNAUTHORIZED, "a link is nobody's password"), Ok)
    }

    /// Begins a session in place of the one that the browser may have. Returns nothing if this is not the user's password any more: somebody
    /// may have changed it, or removed the user, while it was checked.
    fn signed_in(&self, user: &str, password: Option<&str>) -> Result<Option<Reply>, Refused> {
        let (access, now_ms) = (self.access(), now_ms());
        let key = secret::new_key().map_err(|error| broken(&error))?;
        let session = Session::new(&secret::hash(&key), user, now_ms);
        let (ended, role) = {
            let mut state = access.state();
            let known = state.users.get(user);
            if known.map(|user| user.password.as_str()) != password {
                return Ok(None);
            }
            let role = known.map_or("admin", |user| &user.role).to_owned();
            let mut ended = state.sessions.begin(session.clone(), now_ms);
            if let Some(before) = access.session_key(self.headers).map(secret::hash)
                && state.sessions.end(&before)
            {
                ended.push(before);
            }
            if let Some(user) = state.users.get_mut(user) {
                user.last_login_ms = Some(now_ms);
            }
            (ended, role)
        };
        self.keep("the session is lost when the center ends", |store| {
            store.site().sessions().remove(&ended)?;
            access.keep_session(store, &session)?;
            store.site().users().signed_in(user, now_ms)
        });
        access.counts.sign_ins.fetch_add(1, Relaxed);
        self.note(user, "login", user, "ok");
        let told = self.session(json!(user), json!(role), json!(secret::csrf(&key)));
        let mut reply = self.with_cookie(json_response(StatusCode::OK, &told), Some(&key));
        if let Some(password) = password {
            self.remember_browser(&mut reply, user, password)?;
        }
        Ok(Some(reply))
    }

    fn end(&self) -> Answer {
        let Asker::Known(Caller { name, proof: Proof::Session(hash), .. }) = &self.asker else {
            return refuse(StatusCode::UNAUTHORIZED, "there is no session to end");
        };
        self.access().state().sessions.end(hash);
        self.keep("the session is there again after a restart", |store| {
            store.site().sessions().remove(std::slice::from_ref(hash))
        });
        self.note(name, "logout", name, "ok");
        Ok(self.with_cookie(json_response(StatusCode::OK, &json!({})), None))
    }

    async fn change_password(&self) -> Answer {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Change {
            old: String,
            new: String,
        }
        let nobody = || refuse(StatusCode::UNAUTHORIZED, "this takes the session of a user");
        let Asker::Known(Caller { name, proof: Proof::Session(hash), .. }) = &self.asker else { return nobody() };
        let Change { old, new } = self.json()?;
        password::check(&new).or_else(|error| refuse(StatusCode::BAD_REQUEST, error))?;
        let Some(before) = self.access().state().users.get(name).cloned() else { return nobody() };
        let spent = self.take_try(Some(name), Some(&before.password))?;
        let right = self.access().hasher.verify(old, Some(before.password.clone())).await;
        if !right.map_err(|error| broken(&error))? {
            self.note(name, "password.change", name, "wrong password");
            return refuse(StatusCode::FORBIDDEN, "the old password is wrong");
        }
        self.was_right(name, &spent)?;
        let stored = self.access().hasher.hash(new).await.map_err(|error| broken(&error))?;
        let password = stored.clone();
        let changed = self.access().change_user(name, Some(hash), |user| {
            // Somebody else may have changed it meanwhile.
            if user.password == before.password { Some(User { password: stored, ..user.clone() }) } else { None }
        });
        match changed {
            Ok(true) => {}
            Ok(false) => return refuse(StatusCode::CONFLICT, "the password was changed meanwhile"),
            Err(error) => return refuse(StatusCode::INSUFFICIENT_STORAGE, error.to_string()),
        }
        self.note(name, "password.change", name, "ok");
        let mut reply = json_response(StatusCode::OK, &json!({}));
        self.remember_browser(&mut reply, name, &password)?;
        Ok(reply)
    }

    /// Takes a try. `stored` is what is kept of the password of the user of this name, if there is one.
    fn take_try(&self, name: Option<&str>, stored: Option<&str>) -> Result<Try, Refused> {
        let now_ms = now_ms();
        let user = name.zip(stored);
        let browser = user.and_then(|(name, stored)| self.access().browser(self.headers, name, stored, now_ms));
        let taken = lock(&self.access().tries).take(name, browser, self.peer.ip(), now_ms);
        taken.map_err(|too_many| self.too_many(name, too_many))
    }

    /// Gives a try back that was right, unless the user was right too often.
    fn was_right(&self, name: &str, spent: &Try) -> Result<(), Refused> {
        let mut tries = lock(&self.access().tries);
        tries.give_back(spent);
        let right = tries.right(name, now_ms());
        drop(tries);
        right.map_err(|too_many| self.too_many(Some(name), too_many))
    }

    fn too_many(&self, name: Option<&str>, TooMany { wait_s, first }: TooMany) -> Refused {
        self.access().counts.hasty_sign_ins.fetch_add(1, Relaxed);
        if first {
            self.note("nobody", "login", name.unwrap_or(LINK), "too many attempts; more are refused and not noted");
        }
        let error = format!("too many attempts; the next one may be made in {wait_s} s");
        Refused { status: StatusCode::TOO_MANY_REQUESTS, error, wait_s: Some(wait_s) }
    }

    /// Has the browser known as one that this user signs in with.
    fn remember_browser(&self, reply: &mut Reply, user: &str, password: &str) -> Result<(), Refused> {
        let (access, now_ms) = (self.access(), now_ms());
        let before = access.browser(self.headers, user, password, now_ms);
        let value = device::cookie(before, user, password, now_ms / 1000).map_err(|error| broken(&error))?;
        let cookie = HeaderValue::try_from(access.set_browser_cookie(&value)).expect("it is of digits and dots");
        reply.headers_mut().append(SET_COOKIE, cookie);
        Ok(())
    }

    fn keep(&self, otherwise: &str, change: impl FnOnce(&Store) -> Result<(), SiteError>) {
        if let Err(error) = self.access().keep(change) {
            log::warn!("{otherwise}: {error}");
        }
    }

    fn note(&self, who: &str, action: &str, object: &str, outcome: &str) {
        trail::write(self.shared, who, &self.peer.to_string(), action, object, "", outcome);
    }

    fn with_cookie(&self, mut reply: Reply, key: Option<&str>) -> Reply {
        let cookie = HeaderValue::try_from(self.access().set_cookie(key)).expect("a key is hexadecimal");
        reply.headers_mut().insert(SET_COOKIE, cookie);
        reply
    }

    fn json<T: serde::de::DeserializeOwned>(&self) -> Result<T, Refused> {
        serde_json::from_slice(self.body).or_else(|error| refuse(StatusCode::BAD_REQUEST, error.to_string()))
    }
}

impl Access {
    /// Changes a user, and ends their sessions but the one of this hash. Returns false if there is no such user, or `change` says no.
    ///
    /// # Errors
    /// The change cannot be kept. Nothing is changed then.
    pub(super) fn change_user(
        &self,
        name: &str,
        but: Option<&str>,
        change: impl FnOnce(&User) -> Option<User>,
    ) -> Result<bool, SiteError> {
        let mut state = self.state();
        let Some(changed) = state.users.get(name).and_then(change) else { return Ok(false) };
        self.keep(|store| store.site().users().set(&changed))?;
        state.users.insert(name.to_owned(), changed);
        let ended = state.sessions.end_all(name, but);
        drop(state);
        self.keep(|store| store.site().sessions().remove(&ended))?;
        Ok(true)
    }
}

fn refuse<T>(status: StatusCode, error: impl Into<String>) -> Result<T, Refused> {
    Err(Refused { status, error: error.into(), wait_s: None })
}

fn broken(error: &io::Error) -> Refused {
    log::error!("nobody can sign in: {error}");
    Refused { status: StatusCode::INTERNAL_SERVER_ERROR, error: error.to_string(), wait_s: None }
}
