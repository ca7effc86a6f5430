//! The URI that binds a certificate to an agent: `urn:elklet:agent:` and the agent's id (`proto/enrollment.proto`).

use alloc::string::String;
use alloc::vec::Vec;

const PREFIX: &str = "urn:elklet:agent:";

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Returns the URI of an agent.
#[must_use]
pub fn of(agent_id: &str) -> String {
    let mut uri = String::from(PREFIX);
    for byte in agent_id.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            uri.push(char::from(byte));
        } else {
            let digit = |four: u8| char::from(DIGITS[usize::from(four)]);
            uri.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    uri
}

/// Returns the id of the agent whose URI this is, or `None` if it is no agent's.
#[must_use]
pub fn agent(uri: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(uri.len());
    let mut rest = uri.strip_prefix(PREFIX)?.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => 16 * value(rest.next()?)? + value(rest.next()?)?,
            byte => byte,
        });
    }
    String::from_utf8(bytes).ok().filter(|id| !id.is_empty())
}

fn value(digit: u8) -> Option<u8> {
    u8::try_from(char::from(digit).to_digit(16)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_of_any_characters_is_found_again() {
        for id in ["6ba7b812-9dad-11d1-80b4-00c04fd430c8", "gateway 1", "a%41/é\n", "~._-"] {
            let uri = of(id);
            assert!(uri.bytes().all(|byte| byte.is_ascii_graphic()), "{uri}");
            assert_eq!(agent(&uri).as_deref(), Some(id));
        }
        assert_eq!(of("a b"), "urn:elklet:agent:a%20b");
    }

    #[test]
    fn what_is_no_agents_uri_names_nobody() {
        for uri in
            ["urn:elklet:agent:", "urn:elklet:center:a", "https://a", "urn:elklet:agent:%", "urn:elklet:agent:%4"]
        {
            assert_eq!(agent(uri), None, "{uri}");
        }
        assert_eq!(agent("urn:elklet:agent:%ff"), None, "no UTF-8");
        assert_eq!(agent("urn:elklet:agent:%+1"), None);
    }
}
