//! Finds and reads the settings' file, and reports a mistake in one line with its place.

use std::io;
use std::path::{Path, PathBuf};

use elklet_core::similar::closest;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};
use zeroize::Zeroizing;

use super::document::Node;
use super::layout::Keys;
use super::{ConfigError, Flags, Layout, Settings};
use crate::files::{FileError, read_regular};

/// The longest file, in bytes. The one with every key and what it is for has some ten thousand.
const MAX_BYTES: u64 = 1 << 20;

/// Reads the file that the flags name, or the one that lies where the layout has it. Without either, every key has its default.
///
/// # Errors
/// One line: file, line, key, what is wrong.
pub(super) fn read(flags: &Flags) -> Result<Settings, ConfigError> {
    let path = path(flags);
    if is_optional(flags) && is_missing(&path) {
        return Ok(Settings::default());
    }
    let settings: Settings = read_from(&path)?;
    Ok(Settings { has_file: true, ..settings })
}

/// The path where the file lies, or would lie.
pub(super) fn path(flags: &Flags) -> PathBuf {
    flags.config.clone().unwrap_or_else(|| Layout::default_file(flags))
}

/// What the file says of where things lie, whatever else is in it.
///
/// # Errors
/// As [`read`], but for keys that are no business of this.
pub(super) fn keys(flags: &Flags) -> Result<Keys, ConfigError> {
    let path = path(flags);
    if is_optional(flags) && is_missing(&path) { Ok(Keys::default()) } else { read_from(&path) }
}

/// Returns true when the file need not exist.
fn is_optional(flags: &Flags) -> bool {
    flags.config.is_none() || flags.makes_config
}

/// Returns true when nothing has this name. A link that leads nowhere is something, here and on the way: whoever made it wants the
/// file to be read, which may forbid things.
fn is_missing(path: &Path) -> bool {
    let is_nothing = path.symlink_metadata().is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    is_nothing && path.parent().is_none_or(|directory| directory.exists() || is_missing(directory))
}

/// Reads the text of the file, without the byte order mark that some editors put before it.
fn read_text(path: &Path) -> io::Result<String> {
    let bytes = read_regular(path, MAX_BYTES).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if path.is_symlink() => io::Error::other("it is a link that leads nowhere"),
        _ => error,
    })?;
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(io::Error::other("it is UTF-16, expected UTF-8"));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        io::Error::other(format!("it is no UTF-8 at byte {at}, expected TOML in UTF-8"))
    })?;
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

fn read_from<T: DeserializeOwned>(path: &Path) -> Result<T, ConfigError> {
    // A proxy's password may stand in it.
    let text = Zeroizing::new(read_text(path).map_err(FileError::at(path)).map_err(ConfigError::File)?);
    parse(&text).map_err(|(line, what)| ConfigError::Line { path: path.to_owned(), line, what })
}

/// Parses the settings, or some of them. An error is a line number and what is wrong there.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, (usize, String)> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        (line_at(text, at), error.message().replace('\n', " "))
    })?;
    let document = DeValue::Table(table.into_inner());
    T::deserialize(Node::root(&document)).map_err(|mistake| {
        let (at, message) = (mistake.at(), in_words(mistake.message()));
        match key_at(&document, at) {
            Some(key) => (line_at(text, at), format!("{key}: {message}")),
            None => (line_at(text, at), message),
        }
    })
}

/// The number of the line with this byte, from 1. The byte may be inside a character, or behind the text.
fn line_at(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|byte| *byte == b'\n').count()
}

/// Translates the deserialiser's messages from Rust's words into those of whoever writes the file.
fn in_words(message: &str) -> String {
    for (unknown, called) in [("unknown field `", "unknown key"), ("unknown variant `", "unknown word")] {
        let Some((word, known)) = message.strip_prefix(unknown).and_then(|rest| rest.split_once('`')) else { continue };
        let known: Vec<_> = known.split('`').skip(1).step_by(2).collect();
        return match closest(word, known.iter().copied()) {
            Some(meant) => format!("{called} `{word}`, did you mean `{meant}`?"),
            None => format!("{called} `{word}`, expected one of: {}", known.join(", ")),
        };
    }
    let types = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match types.and_then(|types| types.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("{}, expected {}", found_in_words(found), expected_in_words(expected)),
        None => message.to_owned(),
    }
}

/// Translates the found part, such as "integer `3`".
fn found_in_words(found: &str) -> String {
    match found.split_once(['`', '"']) {
        Some((kind, value)) => {
            let value = value.split_once('`').map_or(value.trim_end_matches('"'), |(value, _)| value);
            let quote = if kind.starts_with("string") { "\"" } else { "" };
            format!("{quote}{value}{quote}")
        }
        None if found == "sequence" => "a list".to_owned(),
        None if found == "map" => "a section".to_owned(),
        None => found.to_owned(),
    }
}

fn expected_in_words(expected: &str) -> &str {
    match expected {
        "i64" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "a list, as in [\"...\"]",
        "a string" => "a text in quotes",
        "path string" => "a path in quotes",
        "a map" => "sections, as in [regions.NAME]",
        // Do not show the name of a Rust type.
        kind if kind.starts_with("struct ") => "a section with keys of its own, as in elklet.example.toml",
        kind => kind,
    }
}

/// The dotted key at this place, or the one whose value is there.
fn key_at(value: &DeValue<'_>, at: usize) -> Option<String> {
    let DeValue::Table(table) = value else { return None };
    table.iter().find_map(|(key, value)| match key_at(value.get_ref(), at) {
        Some(inner) => Some(format!("{}.{inner}", key.get_ref())),
        None => (key.span().contains(&at) || value.span().contains(&at)).then(|| key.get_ref().to_string()),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_link_that_leads_nowhere_is_not_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let at = |name: &str| directory.path().join(name);
        assert!(is_missing(&at("elklet.toml")) && is_missing(&at("no/such/directory/elklet.toml")));
        for (name, to) in [("away", "/nonexistent/x"), ("loop", "loop")] {
            std::os::unix::fs::symlink(to, at(name)).expect("writable");
            assert!(!is_missing(&at(name)) && !is_missing(&at(name).join("elklet.toml")), "{name}");
        }
        assert!(is_missing(Path::new("no-such-file")));
    }

    /// Keys of each kind of value, a section, and one that nobody knows.
    const KEYS: [&str; 16] = [
        "idc",
        "certs",
        "server.private",
        "server.reconnect_spread_s",
        "regions.eu.public",
        "buffer",
        "buffer.arena_kib",
        "plugins.when_full",
        "plugins.public_key",
        "plugins.no_new_privs",
        "plugin.x.profile",
        "plugin.x.allow",
        "log.stderr",
        "upload.allow",
        "policy.tasks",
        "spool.nothing",
    ];

    const VALUES: [&str; 16] = [
        "true",
        "7",
        "-1",
        "300",
        "9223372036854775808",
        "1.5",
        "2026-01-31",
        "\"\"",
        "\"a:1\"",
        "\"/var/log\"",
        "\"drop_oldest\"",
        "\"confined\"",
        "[\"a:1\", \"/b\"]",
        "[7]",
        "{}",
        "{ arena_kib = 300 }",
    ];

    proptest! {
        #[test]
        fn a_file_means_what_tomls_own_deserialiser_takes_it_for(
            lines in prop::collection::vec((prop::sample::select(&KEYS), prop::sample::select(&VALUES)), 0..4)
        ) {
            let text: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
            let expected = toml::from_str::<Settings>(&text);
            match parse::<Settings>(&text) {
                Ok(settings) => prop_assert_eq!(expected, Ok(settings)),
                // It takes a list for a section whose keys have no names.
                Err((_, why)) if why.contains("a list, expected a section") => {}
                Err((line, why)) => prop_assert!(expected.is_err() && line >= 1, "{text}{line}: {why}"),
            }
        }

        #[test]
        fn a_file_of_any_text_is_refused_with_a_line_or_read(text in "[\\[\\]a-c=\"'#.\\n\\\\ ä€😀\u{202e}0-9{},]{0,60}") {
            if let Err((line, _)) = parse::<Settings>(&text) {
                prop_assert!((1..=1 + text.matches('\n').count()).contains(&line), "line {line}");
            }
        }
    }
}
