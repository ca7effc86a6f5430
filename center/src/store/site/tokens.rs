//! What lets hosts in that have no certificate yet.

use super::{Certificate, Site, SiteError, certificates};
use rusqlite::{OptionalExtension, Row, params};
use std::fmt;

/// Tokens that are kept. The oldest that let nobody in any more are forgotten first.
const KEPT: i64 = 10_000;

/// A token, without its secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Its number.
    pub id: i64,
    /// Tells the secret when it is seen again. The secret itself is not kept.
    pub hash: String,
    /// How many hosts it lets in.
    pub uses: u32,
    /// How many it has let in.
    pub used: u32,
    /// The group that these hosts come into.
    pub group: Option<String>,
    /// Who made it.
    pub created_by: String,
    /// When, in milliseconds since 1970.
    pub created_ms: i64,
    /// Until when it lets hosts in, in milliseconds since 1970.
    pub expires_ms: i64,
    /// When it was revoked, in milliseconds since 1970.
    pub revoked_ms: Option<i64>,
}

/// Why a token lets a host not in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unusable {
    /// No token has this secret.
    Unknown,
    /// Its time is over.
    Expired,
    /// Somebody has revoked it.
    Revoked,
    /// It has let so many hosts in, and lets no more.
    UsedUp(u32),
    /// An agent of this id has a certificate already, which is neither over nor revoked.
    Taken,
}

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown => f.write_str("the center knows no such token"),
            Self::Expired => f.write_str("the token's time is over"),
            Self::Revoked => f.write_str("the token was revoked"),
            Self::UsedUp(uses) => write!(f, "the token was for {uses} hosts, which have used it"),
            Self::Taken => {
                f.write_str("an agent of this id has a certificate already; revoke it first if this is the same host")
            }
        }
    }
}

impl std::error::Error for Unusable {}

/// The table of tokens.
#[derive(Clone, Copy, Debug)]
pub struct Tokens<'a>(pub(super) &'a Site);

impl Tokens<'_> {
    /// Adds a token, and returns its number; `id` and `used` are not looked at.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn add(&self, token: &Token) -> Result<i64, SiteError> {
        self.0.change(|tx| {
            tx.execute(
                "INSERT INTO tokens (hash, uses, used, in_group, created_by, created_ms, expires_ms) VALUES (?1, ?2, 0, ?3, ?4, ?5, ?6)",
                params![token.hash, token.uses, token.group, token.created_by, token.created_ms, token.expires_ms],
            )?;
            let id = tx.last_insert_rowid();
            tx.execute("DELETE FROM tokens WHERE id <= ?1", [id - KEPT])?;
            Ok(id)
        })
    }

    /// All tokens, the latest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub fn list(&self) -> Result<Vec<Token>, SiteError> {
        self.0.list("SELECT * FROM tokens ORDER BY id DESC", [], token)
    }

    /// Uses a token for a host's first certificate: counts the token and adds the certificate, or does neither. Returns the token as it is
    /// then.
    ///
    /// # Errors
    /// The database cannot be written. Inside: why the token lets this host not in.
    pub fn redeem(
        &self,
        hash: &str,
        certificate: &Certificate,
        now_ms: i64,
    ) -> Result<Result<Token, Unusable>, SiteError> {
        self.0.change(|tx| {
            let found = tx.query_row("SELECT * FROM tokens WHERE hash = ?1", [hash], token).optional()?;
            let taken = certificates::is_live(tx, &certificate.agent_id, now_ms)?;
            let Some(mut token) = found else { return Ok(Err(Unusable::Unknown)) };
            if token.revoked_ms.is_some() {
                return Ok(Err(Unusable::Revoked));
            }
            if token.expires_ms <= now_ms {
                return Ok(Err(Unusable::Expired));
            }
            if token.used >= token.uses {
                return Ok(Err(Unusable::UsedUp(token.uses)));
            }
            if taken {
                return Ok(Err(Unusable::Taken));
            }
            token.used += 1;
            tx.execute("UPDATE tokens SET used = ?2 WHERE id = ?1", params![token.id, token.used])?;
            certificates::insert(tx, &Certificate { token: Some(token.id), ..certificate.clone() })?;
            Ok(Ok(token))
        })
    }

    /// Revokes a token, and returns whether there was one that was not revoked.
    ///
    /// # Errors
    /// The database cannot be written.
    pub fn revoke(&self, id: i64, now_ms: i64) -> Result<bool, SiteError> {
        self.0.change(|tx| {
            let sql = "UPDATE tokens SET revoked_ms = ?2 WHERE id = ?1 AND revoked_ms IS NULL";
            Ok(tx.execute(sql, params![id, now_ms])? > 0)
        })
    }
}

fn token(row: &Row<'_>) -> rusqlite::Result<Token> {
    Ok(Token {
        id: row.get(0)?,
        hash: row.get(1)?,
        uses: row.get(2)?,
        used: row.get(3)?,
        group: row.get(4)?,
        created_by: row.get(5)?,
        created_ms: row.get(6)?,
        expires_ms: row.get(7)?,
        revoked_ms: row.get(8)?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::across_a_restart;
    use super::*;

    fn token(hash: &str, uses: u32, expires_ms: i64) -> Token {
        Token {
            id: 0,
            hash: hash.into(),
            uses,
            used: 0,
            group: Some("edge".into()),
            created_by: "ann".into(),
            created_ms: 1,
            expires_ms,
            revoked_ms: None,
        }
    }

    fn certificate(serial: &str, agent_id: &str) -> Certificate {
        Certificate {
            id: 0,
            serial: serial.into(),
            agent_id: agent_id.into(),
            token: None,
            issued_ms: 5,
            expires_ms: 100,
            revoked_ms: None,
            revoked_by: String::new(),
        }
    }

    #[test]
    fn a_token_lets_as_many_in_as_it_says_also_across_a_restart() {
        across_a_restart(
            |site| {
                let id = site.tokens().add(&token("h", 2, 50)).unwrap();
                let redeemed = site.tokens().redeem("h", &certificate("1", "a"), 5).unwrap().unwrap();
                assert_eq!((redeemed.id, redeemed.used, redeemed.group.as_deref()), (id, 1, Some("edge")));
            },
            |site| {
                let redeem = |hash: &str, serial: &str, agent: &str, now_ms| {
                    site.tokens().redeem(hash, &certificate(serial, agent), now_ms)
                };
                assert_eq!(redeem("x", "2", "b", 5), Ok(Err(Unusable::Unknown)));
                assert_eq!(redeem("h", "2", "b", 50), Ok(Err(Unusable::Expired)));
                assert_eq!(redeem("h", "2", "a", 5), Ok(Err(Unusable::Taken)));
                assert_eq!(site.tokens().list().unwrap()[0].used, 1, "none of these counts");
                assert_eq!(redeem("h", "2", "b", 5).unwrap().unwrap().used, 2);
                assert_eq!(redeem("h", "3", "c", 5), Ok(Err(Unusable::UsedUp(2))));
                assert_eq!(site.certificates().list(None, 9).unwrap().len(), 2);
                assert_eq!(site.certificates().list(None, 9).unwrap()[0].token, Some(1));
            },
        );
    }

    #[test]
    fn a_host_is_let_in_again_once_its_certificate_is_over_or_revoked() {
        across_a_restart(
            |site| {
                site.tokens().add(&token("h", 9, 1_000)).unwrap();
                let redeem =
                    |serial: &str, now_ms| site.tokens().redeem("h", &certificate(serial, "a"), now_ms).unwrap();
                assert!(redeem("1", 5).is_ok());
                assert_eq!(redeem("2", 99), Err(Unusable::Taken));
                assert!(redeem("3", 100).is_ok());
                assert_eq!(site.certificates().revoke("a", "ann", 5).unwrap(), ["1", "3"]);
                assert!(redeem("4", 6).is_ok());
            },
            |site| {
                assert!(site.tokens().revoke(1, 7).unwrap());
                assert!(!site.tokens().revoke(1, 8).unwrap() && !site.tokens().revoke(2, 8).unwrap());
                let refused = site.tokens().redeem("h", &certificate("5", "b"), 7).unwrap();
                assert_eq!(refused, Err(Unusable::Revoked));
            },
        );
    }
}
