//! Who is signed in with which browser, and for how long.
//!
//! Sessions outlive the center, in `center.db`.

use crate::store::site;
use std::collections::HashMap;

/// A session that is not used for so long has ended, and so has one that began so long ago.
const IDLE_MS: i64 = 12 * 3600 * 1000;
const LIFE_MS: i64 = 7 * 24 * 3600 * 1000;

/// Sessions at a time. The one that was not used for longest ends first.
const SESSIONS: usize = 1_000;

/// Sessions of a user at a time, so that nobody ends those of others by signing in over and over.
const SESSIONS_OF_USER: usize = 20;

/// That a session is used is written when the time that was written is so old.
const WRITE_MS: i64 = 5 * 60 * 1000;

/// Sessions, by the hash of their key.
#[derive(Debug, Default)]
pub(super) struct Sessions(HashMap<String, Session>);

/// A browser that somebody signed in with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Session {
    pub(super) hash: String,
    pub(super) user: String,
    created_ms: i64,
    seen_ms: i64,
    /// The time that was written for `seen_ms`.
    written_ms: i64,
}

impl From<site::Session> for Session {
    fn from(kept: site::Session) -> Self {
        let site::Session { hash, user, created_ms, seen_ms } = kept;
        Self { hash, user, created_ms, seen_ms, written_ms: seen_ms }
    }
}

impl Session {
    pub(super) fn new(hash: &str, user: &str, now_ms: i64) -> Self {
        let (hash, user) = (hash.to_owned(), user.to_owned());
        Self { hash, user, created_ms: now_ms, seen_ms: now_ms, written_ms: now_ms }
    }

    /// Returns it as it is kept.
    pub(super) fn kept(&self) -> site::Session {
        let Self { hash, user, created_ms, seen_ms, .. } = self.clone();
        site::Session { hash, user, created_ms, seen_ms }
    }

    /// Returns true once it has ended by itself. One that began in the future did so by a clock that was wrong.
    fn over(&self, now_ms: i64) -> bool {
        now_ms - self.seen_ms > IDLE_MS || now_ms - self.created_ms > LIFE_MS || self.created_ms - now_ms > LIFE_MS
    }
}

impl Sessions {
    /// Goes on with those that have not ended.
    pub(super) fn new(kept: impl IntoIterator<Item = Session>, now_ms: i64) -> Self {
        let alive = kept.into_iter().filter(|session| !session.over(now_ms));
        Self(alive.map(|session| (session.hash.clone(), session)).collect())
    }

    /// Begins one. Returns the hashes of those that ended by now, or have to for it.
    pub(super) fn begin(&mut self, session: Session, now_ms: i64) -> Vec<String> {
        let over = |session: &Session| session.over(now_ms);
        let mut ended: Vec<_> = self.0.extract_if(|_, session| over(session)).map(|(hash, _)| hash).collect();
        let of_user = |other: &&Session| other.user == session.user;
        let too_many_of_user = self.0.values().filter(of_user).count() >= SESSIONS_OF_USER;
        let idlest = match too_many_of_user {
            true => self.0.values().filter(of_user).min_by_key(|session| session.seen_ms),
            false if self.0.len() >= SESSIONS => self.0.values().min_by_key(|session| session.seen_ms),
            false => None,
        };
        if let Some(hash) = idlest.map(|session| session.hash.clone()) {
            self.0.remove(&hash);
            ended.push(hash);
        }
        self.0.insert(session.hash.clone(), session);
        ended
    }

    /// Notes that one is used, and returns it, and whether that is to be written. Returns `None` if there is none of this hash.
    pub(super) fn touch(&mut self, hash: &str, now_ms: i64) -> Option<(Session, bool)> {
        let session = self.0.get_mut(hash).filter(|session| !session.over(now_ms))?;
        session.seen_ms = now_ms;
        let write = (now_ms - session.written_ms).abs() >= WRITE_MS;
        if write {
            session.written_ms = now_ms;
        }
        Some((session.clone(), write))
    }

    /// Returns true if there is one of this hash.
    pub(super) fn has(&self, hash: &str) -> bool {
        self.0.contains_key(hash)
    }

    /// Ends one, and returns whether there was one.
    pub(super) fn end(&mut self, hash: &str) -> bool {
        self.0.remove(hash).is_some()
    }

    /// Ends all of a user but the one of this hash. Returns their hashes.
    pub(super) fn end_all(&mut self, user: &str, but: Option<&str>) -> Vec<String> {
        let ends = |session: &Session| session.user == user && but != Some(session.hash.as_str());
        self.0.extract_if(|_, session| ends(session)).map(|(hash, _)| hash).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_when_it_is_not_used_and_in_the_end_anyway() {
        let mut sessions = Sessions::default();
        assert!(sessions.begin(Session::new("a", "ann", 0), 0).is_empty());
        assert!(sessions.touch("a", IDLE_MS).is_some());
        assert!(sessions.touch("a", 2 * IDLE_MS + 1).is_none());
        sessions.begin(Session::new("b", "ann", 0), 0);
        for now_ms in (0..=LIFE_MS).step_by(3600 * 1000) {
            assert_eq!(sessions.touch("b", now_ms).map(|(session, _)| session.user), Some("ann".to_owned()));
        }
        assert!(sessions.touch("b", LIFE_MS + 1).is_none());
        assert!(sessions.touch("c", 0).is_none());
        let mut ended = sessions.begin(Session::new("c", "ann", LIFE_MS + 1), LIFE_MS + 1);
        ended.sort();
        assert_eq!(ended, ["a", "b"]);
    }

    #[test]
    fn that_it_is_used_is_written_now_and_then() {
        let mut sessions = Sessions::default();
        sessions.begin(Session::new("a", "ann", 0), 0);
        let writes = (0..=600).filter(|second| sessions.touch("a", second * 1000).unwrap().1).count();
        assert_eq!(writes, 2);
    }

    #[test]
    fn sessions_go_on_after_a_restart_unless_they_have_ended() {
        let kept = |hash: &str, seen_ms| {
            Session::from(site::Session { hash: hash.into(), user: "ann".into(), created_ms: 0, seen_ms })
        };
        let mut sessions = Sessions::new([kept("a", 5), kept("b", 2 * IDLE_MS)], 2 * IDLE_MS);
        assert!(sessions.touch("a", 2 * IDLE_MS).is_none());
        assert_eq!(sessions.touch("b", 2 * IDLE_MS).unwrap().0.kept(), kept("b", 2 * IDLE_MS).kept());
        let long_before = -LIFE_MS - 1;
        assert!(Sessions::new([kept("a", 0)], long_before).touch("a", long_before).is_none());
    }

    #[test]
    fn there_is_a_bound_and_one_can_end_them() {
        let mut sessions = Sessions::default();
        for n in 0..1_000 {
            let user = format!("user {}", n / 20);
            assert!(sessions.begin(Session::new(&n.to_string(), &user, n), n).is_empty());
        }
        assert_eq!(sessions.begin(Session::new("x", "bob", 2_000), 2_000), ["0"]);
        assert_eq!(sessions.begin(Session::new("y", "user 7", 2_000), 2_000), ["140"], "a user ends one of their own");
        assert_eq!(sessions.end_all("user 1", Some("23")).len(), 19);
        assert!(sessions.touch("23", 2_000).is_some());
        assert!(sessions.end("x") && !sessions.end("x"));
        assert_eq!(sessions.0.len(), 980);
    }
}
