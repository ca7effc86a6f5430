//! Browsers that a user has signed in with before.
//!
//! Each has a cookie that says so, and tries to sign in of its own. Guesses from elsewhere, which keep a name waiting, therefore do not keep its
//! user waiting. OWASP describes that as device cookies. The cookie lets nobody in: it takes the password all the same.
//!
//! The cookie is signed with what is stored of the user's password. The center has no other key for it to keep, and who changes the password
//! makes all browsers strangers again. What is stored begins with a salt of 128 bits that the cookie does not show, so that nobody can try
//! passwords on a cookie.

use super::secret;
use crate::hex::hex;
use ring::hmac;
use std::io;

/// A browser is known for so long since its user signed in with it last.
pub(super) const LIFE_S: i64 = 365 * 86_400;

/// Hexadecimal digits of a browser's number.
const ID_DIGITS: usize = 32;

/// Returns the cookie's value of a browser that its user has just signed in with. It keeps its number if it has one.
///
/// # Errors
/// The system gives no random numbers.
pub(super) fn cookie(id: Option<&str>, user: &str, password: &str, now_s: i64) -> io::Result<String> {
    let id = match id {
        Some(id) => id.to_owned(),
        None => hex(&secret::random::<{ ID_DIGITS / 2 }>()?),
    };
    let signature = hmac::sign(&key(password), signed(&id, user, now_s).as_bytes());
    Ok(format!("{id}.{now_s}.{}", hex(signature.as_ref())))
}

/// Returns the number of the browser that has this cookie, if this user has signed in with it within the year, and has the same password since.
pub(super) fn known<'a>(cookie: &'a str, user: &str, password: &str, now_s: i64) -> Option<&'a str> {
    let (id, rest) = cookie.split_once('.')?;
    let (at_s, signature) = rest.split_once('.')?;
    let at_s: i64 = at_s.parse().ok()?;
    // A time in the future is one of a clock that was wrong.
    let is_young = now_s.abs_diff(at_s) <= LIFE_S.unsigned_abs();
    let signature = unhex(signature)?;
    let is_signed = hmac::verify(&key(password), signed(id, user, at_s).as_bytes(), &signature).is_ok();
    (is_young && is_signed).then_some(id)
}

fn key(password: &str) -> hmac::Key {
    hmac::Key::new(hmac::HMAC_SHA256, password.as_bytes())
}

fn signed(id: &str, user: &str, at_s: i64) -> String {
    format!("a browser of\n{user}\n{id}\n{at_s}")
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    rest.is_empty().then(|| pairs.iter().map(|[high, low]| Some(digit(high)? << 4 | digit(low)?)).collect())?
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_S: i64 = 1_800_000_000;

    #[test]
    fn a_browser_is_known_to_one_user_with_one_password_for_a_year() {
        let made = cookie(None, "ann", "$stored", NOW_S).unwrap();
        let id = known(&made, "ann", "$stored", NOW_S).unwrap();
        assert_eq!(id.len(), ID_DIGITS);
        assert!(known(&made, "ann", "$stored", NOW_S + LIFE_S).is_some());
        assert_eq!(known(&made, "ann", "$stored", NOW_S + LIFE_S + 1), None);
        assert_eq!(known(&made, "ann", "$stored", NOW_S - LIFE_S - 1), None);
        assert_eq!(known(&made, "bob", "$stored", NOW_S), None);
        assert_eq!(known(&made, "ann", "$other", NOW_S), None);
        let again = cookie(Some(id), "ann", "$stored", NOW_S + 7).unwrap();
        assert_eq!(known(&again, "ann", "$stored", NOW_S + LIFE_S + 7), Some(id));
        assert_ne!(cookie(None, "ann", "$stored", NOW_S).unwrap(), made);
    }

    #[test]
    fn what_was_not_signed_is_no_browser_of_anybody() {
        let made = cookie(None, "ann", "$stored", NOW_S).unwrap();
        let (rest, signature) = made.rsplit_once('.').unwrap();
        let (id, _) = rest.split_once('.').unwrap();
        for forged in [
            String::new(),
            "..".to_owned(),
            rest.to_owned(),
            format!("{rest}."),
            format!("{rest}.{}", &signature[2..]),
            format!("{rest}.{}", &signature[1..]),
            format!("{rest}.{}é", &signature[2..]),
            format!("{}.{signature}", rest.replace(id, "0")),
            format!("{id}.{}.{signature}", NOW_S + 1),
            format!("{id}.{}.{signature}", i64::MIN),
            format!("{id}.99999999999999999999.{signature}"),
        ] {
            assert_eq!(known(&forged, "ann", "$stored", NOW_S), None, "{forged}");
        }
    }
}
