//! `elklet init`: writes the settings of a host that has none, and puts its certificates where they belong.

use std::fs;
use std::path::Path;

use crate::config::{Address, Flags, Layout, Settings};
use crate::failure::Failure;
use crate::files::{FileError, make_missing, read_bounded, read_regular, replace};
use crate::net::Certificates;

/// Every key with its default, as comments.
const EXAMPLE: &str = include_str!("../elklet.example.toml");

/// The certificates' files, their modes, and whether an agent can do without.
const CERTIFICATES: [(&str, u32, bool); 3] =
    [("ca.crt", 0o644, false), ("client.crt", 0o644, true), ("client.key", 0o600, true)];

/// Most bytes that a package writes before the example.
const MAX_HEAD_BYTES: u64 = 4 << 10;

/// Most bytes of one of them.
const MAX_CERTIFICATE_BYTES: u64 = 1 << 20;

/// Writes the settings' file with the servers of the flags, and copies the certificates from the directory that `--certs` names.
/// Returns what was done, a line for each file.
///
/// # Errors
/// When there is a file already in which something is set, the servers or certificates are of no use, or something cannot be written. Nothing that was there has
/// changed then.
pub(crate) fn run(flags: &Flags) -> Result<String, Failure> {
    let layout = Layout::find_at_any_rate(&Flags { certs: None, ..flags.clone() });
    let head = head(&layout.file)
        .map_err(|set| Failure::Settings(format!("{set}, and stays as it is; elklet check reads it")))?;
    let settings = Settings::from_flags(flags).map_err(|error| Failure::Settings(error.to_string()))?;
    let from = flags.certs.as_ref().unwrap_or(&layout.certs);
    Certificates::load(from.clone(), &settings.server).map_err(|error| Failure::Settings(error.to_string()))?;

    let system = |error: FileError| Failure::System(error.to_string());
    let mut done = String::new();
    if flags.certs.is_some() {
        make_missing(&layout.certs, 0o700).map_err(system)?;
        for (name, mode, is_optional) in CERTIFICATES {
            let (from, to) = (from.join(name), layout.certs.join(name));
            if is_optional && !from.exists() || is_same(&from, &to) {
                continue;
            }
            let content = read_regular(&from, MAX_CERTIFICATE_BYTES).map_err(FileError::at(&from)).map_err(system)?;
            replace(&to, &content, mode).map_err(FileError::at(&to)).map_err(system)?;
            done.push_str(&format!("{} is copied from {}\n", to.display(), from.display()));
        }
    }
    done.push_str(&write(&layout.file, head, &settings).map_err(system)?);
    Ok(done)
}

/// Returns what a package has put before the example, or nothing if there is no file.
///
/// # Errors
/// Something is set in the file. The text says so.
pub(crate) fn head(file: &Path) -> Result<String, String> {
    match file.symlink_metadata() {
        Ok(_) => untouched_head(file).ok_or_else(|| format!("{} is there already", file.display())),
        Err(_) => Ok(String::new()),
    }
}

/// Writes the settings' file with these servers, and returns a line that says so.
///
/// # Errors
/// It cannot be written.
pub(crate) fn write(path: &Path, head: String, settings: &Settings) -> Result<String, FileError> {
    make_missing(path.parent().unwrap_or(Path::new("/")), 0o755)?;
    // A proxy's password may be written into it one day.
    replace(path, (head + &file(settings)).as_bytes(), 0o600).map_err(FileError::at(path))?;
    Ok(format!("{} names the servers, and has every other key as a comment\n", path.display()))
}

/// Returns what a package has put before the example, if nobody has set anything since. OpenWrt's package names the work
/// directory there.
fn untouched_head(file: &Path) -> Option<String> {
    file.symlink_metadata().ok().filter(fs::Metadata::is_file)?;
    let text = read_bounded(file, EXAMPLE.len() as u64 + MAX_HEAD_BYTES).ok()?;
    let head = str::from_utf8(text.strip_suffix(EXAMPLE.as_bytes())?).ok()?;
    let is_a_packages = |line: &str| line.is_empty() || line.starts_with('#') || line.starts_with("workdir = ");
    head.lines().all(is_a_packages).then(|| head.to_owned())
}

fn is_same(one: &Path, other: &Path) -> bool {
    fs::canonicalize(one).ok() == fs::canonicalize(other).ok()
}

/// The example with these servers.
fn file(settings: &Settings) -> String {
    let server = &settings.server;
    let mut text = EXAMPLE.replacen("\n#[server]\n", "\n[server]\n", 1);
    for (key, addresses) in [("discovery", &server.discovery), ("private", &server.private), ("public", &server.public)]
    {
        if !addresses.is_empty() {
            let list: Vec<_> =
                addresses.iter().map(Address::to_string).map(|address| format!("\"{address}\"")).collect();
            let line = format!("\n{key} = [{}]\n", list.join(", "));
            text = text.replacen(&format!("\n#{key} = []\n"), &line, 1);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Environment;

    #[test]
    fn what_a_package_has_put_before_the_example_stays_and_what_somebody_has_set_is_not_touched() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("elklet.toml");
        let head = |before: &str, after: &str| {
            fs::write(&path, [before, EXAMPLE, after].concat()).expect("writable");
            untouched_head(&path)
        };
        assert_eq!(head("", "").as_deref(), Some(""));
        let packaged = "# The flash.\nworkdir = \"/etc/elklet\"\n\n";
        assert_eq!(head(packaged, "").as_deref(), Some(packaged));
        assert_eq!(head("socket = \"/s\"\n", ""), None);
        assert_eq!(head(&"#\n".repeat(3_000), ""), None, "longer than a package's");
        assert_eq!(head("", "\n[server]\n"), None);
    }

    #[test]
    fn the_file_says_what_the_flags_said_and_nothing_else() {
        let workdir = tempfile::tempdir().expect("a directory");
        let flags = Flags {
            servers: vec!["a:1".into(), "[fd00::1]:2".into()],
            discovery: vec!["d:3".into()],
            public: vec!["p:4".into()],
            ..Flags::default()
        };
        let by_flags = Settings::from_flags(&flags).expect("they are addresses");
        fs::write(workdir.path().join("elklet.toml"), file(&by_flags)).expect("writable");
        let named = Flags { workdir: Some(workdir.path().to_owned()), ..Flags::default() };
        let by_file = Settings::load(&named, &Environment::default()).expect("it is valid");
        assert_eq!(by_file.server, by_flags.server);
        assert_eq!((by_file.buffer, by_file.spool), (by_flags.buffer, by_flags.spool));
    }
}
