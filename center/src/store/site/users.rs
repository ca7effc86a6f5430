//! Who may do what.

use super::{Site, SiteError};
use rusqlite::{Row, params};

/// Somebody who may sign in.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// The name to sign in with.
    pub name: String,
    /// What they may do, in the caller's words.
    pub role: String,
    /// What their password is checked against. The store does not look into it.
    pub password: String,
    /// When the user was added, in milliseconds since 1970.
    pub created_ms: i64,
    /// When they last signed in, in milliseconds since 1970.
    pub last_login_ms: Option<i64>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("name", &self.name).field("role", &self.role).finish_non_exhaustive()
    }
}

/// The table of users.
#[derive(Clone, Copy, Debug)]
pub struct Users<'a>(pub(super) &'a Site);

impl Users<'_> {
    /// Adds a user, or replaces the one of this name.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn set(&self, user: &User) -> Result<(), SiteError> {
        self.0.change(|tx| {
            tx.execute(
                "INSERT OR REPLACE INTO users VALUES (?1, ?2, ?3, ?4, ?5)",
                params![user.name, user.role, user.password, user.created_ms, user.last_login_ms],
            )?;
            Ok(())
        })
    }

    /// Notes when a user signed in, if there still is one of this name.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn signed_in(&self, name: &str, at_ms: i64) -> Result<(), SiteError> {
        self.0.change(|tx| {
            tx.execute("UPDATE users SET last_login_ms = ?2 WHERE name = ?1", params![name, at_ms])?;
            Ok(())
        })
    }

    /// All users, by name.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<User>, SiteError> {
        self.0.list("SELECT * FROM users ORDER BY name", [], user)
    }

    /// Removes a user with their sessions, and returns whether there was one.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn remove(&self, name: &str) -> Result<bool, SiteError> {
        self.0.change(|tx| {
            tx.execute("DELETE FROM sessions WHERE user = ?1", [name])?;
            Ok(tx.execute("DELETE FROM users WHERE name = ?1", [name])? > 0)
        })
    }
}

fn user(row: &Row<'_>) -> rusqlite::Result<User> {
    Ok(User {
        name: row.get(0)?,
        role: row.get(1)?,
        password: row.get(2)?,
        created_ms: row.get(3)?,
        last_login_ms: row.get(4)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::Session;
    use super::super::tests::across_a_restart;
    use super::*;

    fn user(name: &str, role: &str) -> User {
        User { name: name.into(), role: role.into(), password: "hash".into(), created_ms: 5, last_login_ms: None }
    }

    #[test]
    fn a_user_is_there_after_a_restart_and_takes_sessions_along() {
        let ann = User { last_login_ms: Some(9), ..user("ann", "view") };
        let session =
            |hash: &str, user: &str| Session { hash: hash.into(), user: user.into(), created_ms: 1, seen_ms: 2 };
        across_a_restart(
            |site| {
                site.users().set(&user("bob", "operate")).unwrap();
                site.users().set(&user("ann", "admin")).unwrap();
                site.users().set(&ann).unwrap();
                site.sessions().set(&session("1", "bob")).unwrap();
                site.sessions().set(&session("2", "ann")).unwrap();
                assert!(site.users().remove("bob").unwrap());
                assert!(!site.users().remove("bob").unwrap());
            },
            |site| {
                assert_eq!(site.users().list().unwrap(), std::slice::from_ref(&ann));
                assert_eq!(site.sessions().list().unwrap(), [session("2", "ann")]);
            },
        );
        assert!(!format!("{ann:?}").contains("hash"));
    }
}
