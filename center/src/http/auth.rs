//! The signature that AgentCenter can require on every request to its HTTP port.

use crate::hex::hex;
use ring::{digest, hmac};

/// Seconds by which a signature's timestamp may differ from the center's clock.
const MAX_SKEW_S: u64 = 60;

/// Separates the parts of the signed text: a backslash and an `n`, not a line feed.
const SEPARATOR: &str = r"\n";

/// The key pair of a client that may use the HTTP port.
#[derive(Clone, PartialEq, Eq)]
pub struct AccessKey {
    /// The public half, which the client sends with each request.
    pub access_key: String,
    /// The secret half, which the client never sends.
    pub secret_key: String,
}

impl std::fmt::Debug for AccessKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessKey").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

/// A request with the headers that authenticate it.
#[derive(Debug, Clone, Copy)]
pub struct Signed<'a> {
    /// Header `AccessKey`.
    pub access_key: &'a str,
    /// Header `TimeStamp`: seconds since 1970.
    pub timestamp: &'a str,
    /// Header `Signature`: lower-case hexadecimal.
    pub signature: &'a str,
    /// The method, in capitals.
    pub method: &'a str,
    /// The path. A trailing slash does not count.
    pub path: &'a str,
    /// The query as in the request line, without the question mark.
    pub query: &'a str,
    /// The body, which may be empty.
    pub body: &'a [u8],
}

impl AccessKey {
    /// Returns the signature that `request` should carry. It ignores the one that the request does carry.
    pub fn sign(&self, request: &Signed<'_>) -> String {
        let body = match request.body {
            [] => String::new(),
            body => hex(digest::digest(&digest::SHA256, body).as_ref()),
        };
        let path = request.path.trim_end_matches('/');
        let parts = [request.method, path, request.query, request.access_key, request.timestamp, &body];
        let key = hmac::Key::new(hmac::HMAC_SHA256, self.secret_key.as_bytes());
        hex(hmac::sign(&key, parts.join(SEPARATOR).as_bytes()).as_ref())
    }

    /// Checks that `request` was signed with this key, close enough to `now` (seconds since 1970).
    ///
    /// # Errors
    /// A text that says what is wrong with the signature.
    pub fn verify(&self, request: &Signed<'_>, now: u64) -> Result<(), String> {
        self.precheck(request, now)?;
        if self.sign(request) != request.signature {
            return Err("signature does not match".to_owned());
        }
        Ok(())
    }

    /// Checks what can be checked before the body is there.
    ///
    /// # Errors
    /// As [`AccessKey::verify`].
    pub fn precheck(&self, request: &Signed<'_>, now: u64) -> Result<(), String> {
        if request.access_key != self.access_key {
            return Err(format!("access key {:?} is not known", request.access_key));
        }
        let signed_at: u64 =
            request.timestamp.parse().map_err(|_| format!("time stamp {:?} is not a number", request.timestamp))?;
        let skew = signed_at.abs_diff(now);
        if skew >= MAX_SKEW_S {
            return Err(format!("time stamp is {skew} s off, the limit is {MAX_SKEW_S}"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request<'a>() -> Signed<'a> {
        Signed {
            access_key: "ak",
            timestamp: "1700000000",
            signature: "",
            method: "POST",
            path: "/command/",
            query: "",
            body: b"{}",
        }
    }

    #[test]
    fn what_is_signed_is_verified() {
        let key = AccessKey { access_key: "ak".into(), secret_key: "sk".into() };
        let signature = key.sign(&request());
        let signed = Signed { signature: &signature, ..request() };
        assert_eq!(key.verify(&signed, 1_700_000_059), Ok(()));
        assert!(key.verify(&signed, 1_700_000_060).unwrap_err().contains("60 s off"));
        assert!(key.verify(&Signed { body: b"", ..signed }, 1_700_000_000).unwrap_err().contains("signature"));
        assert!(key.verify(&Signed { access_key: "other", ..signed }, 1_700_000_000).is_err());
    }

    #[test]
    fn the_separator_is_two_characters() {
        let key = hmac::Key::new(hmac::HMAC_SHA256, b"sk");
        let text = r"GET\n/conn/list\na=1\nak\n1700000000\n";
        let expected = hex(hmac::sign(&key, text.as_bytes()).as_ref());
        let key = AccessKey { access_key: "ak".into(), secret_key: "sk".into() };
        assert_eq!(
            key.sign(&Signed { method: "GET", path: "/conn/list", query: "a=1", body: b"", ..request() }),
            expected
        );
    }
}
