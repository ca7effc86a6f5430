//! Keeps the list of plugins on disk, so that the agent can start them without a server.
//!
//! The file `plugins.kept` in the work directory is a line that identifies it, the CRC-32C of the rest (4 bytes, little
//! endian), and the list as the configuration of a protobuf `Command`. It is replaced as a whole. Only its owner can
//! read it, because details may hold secrets.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use elklet_core::command::{Command, Configuration, PluginConfig};
use elklet_core::limits::MAX_COMMAND_BYTES;

use crate::files::{self, FileError};

const HEAD: &[u8] = b"elklet plugins 1\n";

/// Where the list is kept.
fn path(workdir: &Path) -> PathBuf {
    workdir.join("plugins.kept")
}

/// Reads the kept list. It is empty when there is no file. Blocks.
///
/// # Errors
/// Why the file is useless. The text names it.
pub(crate) fn read_kept(workdir: &Path) -> Result<Vec<PluginConfig>, String> {
    let path = path(workdir);
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let mut bytes = Vec::new();
    match File::open(&path) {
        Ok(file) => {
            let limit = (HEAD.len() + 4 + MAX_COMMAND_BYTES + 1) as u64;
            file.take(limit).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(&error)),
    }
    decode_kept(&bytes).map_err(|why| failed(&why))
}

/// Replaces the file. Blocks.
///
/// # Errors
/// When it cannot be written. The previous file is then still there. The text names the file.
pub(crate) fn write_kept(workdir: &Path, plugins: &[PluginConfig]) -> Result<(), FileError> {
    let path = path(workdir);
    let write = || -> io::Result<()> {
        let bytes = encode(plugins);
        if bytes.len() > HEAD.len() + 4 + MAX_COMMAND_BYTES {
            return Err(io::Error::other(format!("{} bytes, the limit is {MAX_COMMAND_BYTES}", bytes.len())));
        }
        files::replace(&path, &bytes, 0o600)
    };
    write().map_err(FileError::at(&path))
}

fn encode(plugins: &[PluginConfig]) -> Vec<u8> {
    let command = Configuration::encode(plugins);
    [HEAD, &crc32c::crc32c(&command).to_le_bytes(), &command].concat()
}

/// Decodes a file's list.
///
/// # Errors
/// Why it is no list.
pub fn decode_kept(bytes: &[u8]) -> Result<Vec<PluginConfig>, String> {
    let rest = bytes.strip_prefix(HEAD).ok_or("it is no list of plugins that this version keeps")?;
    let (sum, command) = rest.split_first_chunk().ok_or("it is cut short")?;
    if crc32c::crc32c(command) != u32::from_le_bytes(*sum) || command.len() > MAX_COMMAND_BYTES {
        return Err("it is damaged: its checksum is another".to_owned());
    }
    match Command::decode(command).map_err(|error| error.to_string())? {
        Command::Nothing => Ok(Vec::new()),
        // The list may be longer than a configuration when a refused entry has left its plugin running. The rest starts
        // when a server names it.
        Command::Configuration(configuration) if configuration.agent.is_none() => Ok(configuration.plugins),
        _ => Err("it holds something else than plugins".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use elklet_core::command::{Packing, Sha256, Signature};

    use super::*;

    fn plugins() -> Vec<PluginConfig> {
        let plugin = |name: &str, signature| PluginConfig {
            name: name.parse().expect("a name"),
            version: "1.2".into(),
            packing: Packing::TarGz,
            download_sha256: Sha256([1; 32]),
            executable_sha256: Sha256([2; 32]),
            signature,
            urls: vec!["http://a/b".into()],
            detail: "a secret".into(),
        };
        vec![
            plugin("a", None),
            plugin("b", Some(Signature { bytes: Box::new([3; 64]), signed_s: 4, has_open_detail: true })),
        ]
    }

    #[test]
    fn what_was_kept_is_read_and_replaced_as_a_whole() {
        let workdir = tempfile::tempdir().expect("a directory");
        assert_eq!(read_kept(workdir.path()), Ok(vec![]));
        for list in [plugins(), vec![], plugins()[1..].to_vec()] {
            write_kept(workdir.path(), &list).expect("writable");
            assert_eq!(read_kept(workdir.path()), Ok(list));
        }
        assert_eq!(fs::read_dir(workdir.path()).expect("readable").count(), 1);
        let missing = workdir.path().join("missing");
        assert!(write_kept(&missing, &[]).expect_err("no directory").to_string().contains("plugins.kept"));
    }

    #[test]
    fn what_is_damaged_is_refused_and_never_half_believed() {
        let good = encode(&plugins());
        for length in 0..good.len() {
            decode_kept(&good[..length]).expect_err("cut short");
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            decode_kept(&bad).expect_err("one bit is another");
        }
        let workdir = tempfile::tempdir().expect("a directory");
        fs::create_dir(path(workdir.path())).expect("writable");
        read_kept(workdir.path()).expect_err("a directory");
    }
}
