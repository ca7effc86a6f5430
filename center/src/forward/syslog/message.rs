//! A record as a message of RFC 5424, behind its length (RFC 5425, section 4.3).

use crate::forward::settings::SyslogOutput;
use crate::store::{Found, fields};
use std::time::{Duration, SystemTime};

/// The last second of the year 9999.
const LAST_SECOND: u64 = 253_402_300_799;
/// The longest HOSTNAME and the longest PARAM-NAME (RFC 5424, section 6).
const MAX_HOSTNAME: usize = 255;
const MAX_PARAM_NAME: usize = 32;
/// Room that is kept for what ends a message that is cut.
const END: &[u8] = b"\"] cut";

/// How messages look.
#[derive(Clone, Debug)]
pub(in crate::forward) struct Form {
    priority: u8,
    sd_id: String,
    max_length: usize,
}

impl Form {
    pub(in crate::forward) fn new(settings: &SyslogOutput) -> Self {
        Self {
            priority: settings.facility * 8 + settings.severity,
            sd_id: settings.sd_id.clone(),
            max_length: settings.max_length,
        }
    }

    /// Returns the message with its length. One that would be too long ends where it has to, and its text is `cut`.
    pub(in crate::forward) fn encode(&self, found: &Found) -> Vec<u8> {
        let message = self.message(found);
        let mut framed = format!("{} ", message.len()).into_bytes();
        framed.extend_from_slice(&message);
        framed
    }

    fn message(&self, found: &Found) -> Vec<u8> {
        let Self { priority, sd_id, .. } = self;
        let Found { seq, agent_id, hostname, data_type, .. } = found;
        let time = time(found);
        let host: String = hostname.chars().filter(char::is_ascii_graphic).take(MAX_HOSTNAME).collect();
        let host = if host.is_empty() { "-" } else { &host };
        let mut out = Out {
            bytes: format!("<{priority}>1 {time} {host} elklet-center - {data_type} [{sd_id}").into_bytes(),
            max: self.max_length.saturating_sub(END.len()),
            cut: false,
        };
        out.param("agent_id", agent_id.as_bytes());
        out.param("seq", seq.to_string().as_bytes());
        out.param("received_ms", found.received_ms.to_string().as_bytes());
        out.bytes.extend_from_slice(b"]");
        // The names of fields come from plugins, and are apart from those above.
        let (id, number) = sd_id.split_once('@').unwrap_or((sd_id, ""));
        let start = out.bytes.len();
        out.bytes.extend_from_slice(format!("[{id}-fields@{number}").as_bytes());
        if out.bytes.len() > out.max {
            out.bytes.truncate(start);
            out.cut = true;
        } else {
            for (name, value) in fields(&found.payload) {
                out.param(&param_name(name), value);
            }
            out.bytes.extend_from_slice(b"]");
        }
        if out.cut {
            out.bytes.extend_from_slice(b" cut");
        }
        out.bytes
    }
}

/// When the record was made, by its host's clock. A clock that makes no sense is not believed.
fn time(found: &Found) -> String {
    let seconds = u64::try_from(found.timestamp).ok().filter(|&seconds| 0 < seconds && seconds <= LAST_SECOND);
    let seconds =
        seconds.or_else(|| u64::try_from(found.received_ms / 1000).ok().filter(|&seconds| seconds <= LAST_SECOND));
    let at = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds.unwrap_or(0));
    humantime::format_rfc3339_seconds(at).to_string()
}

/// Returns a name that may stand in structured data.
fn param_name(name: &[u8]) -> String {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'=' | b'"' | b']');
    let name = name.iter().take(MAX_PARAM_NAME).map(|&byte| if plain(byte) { char::from(byte) } else { '_' });
    let name: String = name.collect();
    if name.is_empty() { "_".to_owned() } else { name }
}

struct Out {
    bytes: Vec<u8>,
    max: usize,
    cut: bool,
}

impl Out {
    /// Adds a parameter, or as much of it as there is room for. Nothing comes behind one that was cut.
    fn param(&mut self, name: &str, value: &[u8]) {
        let start = format!(" {name}=\"");
        if self.cut || self.bytes.len() + start.len() > self.max {
            self.cut = true;
            return;
        }
        self.bytes.extend_from_slice(start.as_bytes());
        for c in String::from_utf8_lossy(value).chars() {
            let mut utf8 = [0; 4];
            let text = match c {
                '"' => "\\\"",
                '\\' => "\\\\",
                ']' => "\\]",
                // Receivers that are written in C end there.
                '\0' => "\u{fffd}",
                c => c.encode_utf8(&mut utf8),
            };
            if self.bytes.len() + text.len() > self.max {
                self.cut = true;
                break;
            }
            self.bytes.extend_from_slice(text.as_bytes());
        }
        self.bytes.push(b'"');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::record::tests::found;
    use proptest::prelude::*;

    fn form(max_length: usize) -> Form {
        Form { priority: 110, sd_id: "elkeid@32473".to_owned(), max_length }
    }

    fn message(found: &Found, max_length: usize) -> String {
        String::from_utf8(form(max_length).message(found)).unwrap()
    }

    #[test]
    fn a_message_is_as_the_rfc_has_it() {
        let expected = "<110>1 2023-11-14T22:13:20Z gw1 elklet-center - 59 [elkeid@32473 agent_id=\"a-1\" seq=\"7\" \
                        received_ms=\"1700000001234\"][elkeid-fields@32473 exe=\"/bin/\\\"x\\\" [a\\]\\\\ é\"]";
        let record = found(&[("exe", "/bin/\"x\" [a]\\ é")]);
        assert_eq!(message(&record, 8192), expected);
        assert_eq!(form(8192).encode(&record), format!("{} {expected}", expected.len()).into_bytes());
    }

    #[test]
    fn names_and_times_that_make_no_sense_do_no_harm() {
        let record =
            Found { hostname: " \u{7f}é".into(), timestamp: i64::MIN, ..found(&[("a=\"b] ", "1"), ("", "2")]) };
        let text = message(&record, 8192);
        assert!(text.starts_with("<110>1 2023-11-14T22:13:21Z - elklet-center "), "{text}");
        assert!(text.contains(" a__b__=\"1\"") && text.contains(" _=\"2\""), "{text}");
        let record = Found { timestamp: i64::MAX, received_ms: i64::MAX, ..found(&[]) };
        assert!(message(&record, 8192).contains(" 1970-01-01T00:00:00Z "));
    }

    /// Reads one element of structured data: its name and its parameters.
    fn element(text: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<(String, Vec<(String, String)>)> {
        text.next_if_eq(&'[')?;
        let until = |text: &mut std::iter::Peekable<std::str::Chars<'_>>, ends: &str| {
            let mut word = String::new();
            while let Some(c) = text.next_if(|&c| !ends.contains(c)) {
                word.push(c);
            }
            word
        };
        let name = until(text, " ]");
        let mut params = Vec::new();
        while text.next_if_eq(&' ').is_some() {
            let name = until(text, "=");
            assert_eq!((text.next(), text.next()), (Some('='), Some('"')));
            let mut value = String::new();
            loop {
                match text.next()? {
                    '"' => break,
                    '\\' => value.push(text.next()?),
                    ']' => return None,
                    c => value.push(c),
                }
            }
            params.push((name, value));
        }
        text.next_if_eq(&']')?;
        Some((name, params))
    }

    proptest! {
        #[test]
        fn whatever_a_field_says_is_read_back_and_no_message_is_too_long(
            fields in prop::collection::btree_map("[a-z]{1,9}", "\\PC{0,60}", 0..9), max_length in 480..1500usize
        ) {
            let pairs: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            let record = found(&pairs);
            let text = message(&record, max_length);
            prop_assert!(text.len() <= max_length, "{} of {}", text.len(), max_length);
            let data = text.split_once(" 59 ").unwrap().1;
            let mut chars = data.chars().peekable();
            prop_assert_eq!(element(&mut chars).unwrap().0, "elkeid@32473");
            let (id, params) = element(&mut chars).unwrap();
            prop_assert_eq!(id, "elkeid-fields@32473");
            let rest: String = chars.collect();
            let whole = message(&record, 1 << 20).len() <= max_length - END.len();
            if whole {
                prop_assert_eq!((params.len(), rest.as_str()), (fields.len(), ""));
            }
            prop_assert!(rest.is_empty() || rest == " cut");
            for (at, (name, value)) in params.iter().enumerate() {
                if at + 1 < params.len() || rest.is_empty() {
                    prop_assert_eq!(&fields[name], value);
                } else {
                    prop_assert!(fields[name].starts_with(value.as_str()));
                }
            }
        }
    }
}
