//! Prepares what the agent needs: a directory, certificates, the plugin in its place, and a center that listens.

use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::center::{Center, Options};
use elklet_tests::pki;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// The name of the plugin, of its directory and of its executable.
pub(crate) const PLUGIN: &str = "procwatch";

#[derive(Debug)]
pub(crate) struct Stage {
    directory: TempDir,
    pub(crate) center: Center,
}

impl Stage {
    /// Sets everything up. If that fails, it deletes the directory again.
    pub(crate) fn set(programs: &Binaries) -> io::Result<Self> {
        let directory = tempfile::Builder::new().prefix("elklet-demo-").tempdir()?;
        let certs = directory.path().join("certs");
        pki::Set::new().write(&certs)?;
        let plugin = executable(directory.path());
        fs::create_dir_all(plugin.parent().expect("it has a directory"))?;
        fs::copy(&programs.procwatch, &plugin)
            .map_err(|error| io::Error::other(format!("{}: {error}", programs.procwatch.display())))?;
        let config = Config {
            name: PLUGIN.to_owned(),
            r#type: "exec".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            sha256: sha256(&plugin)?,
            ..Config::default()
        };
        let mut options = Options::new(certs);
        options.configs = Some(vec![config]);
        let center = Center::start(options)?;
        Ok(Self { directory, center })
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn certs(&self) -> PathBuf {
        self.path().join("certs")
    }

    pub(crate) fn workdir(&self) -> PathBuf {
        workdir(self.path())
    }

    /// Returns the plugin's executable, as the agent starts it.
    pub(crate) fn plugin(&self) -> PathBuf {
        executable(self.path())
    }

    /// Ends the center and keeps the directory for somebody to look at.
    pub(crate) fn keep(self) -> PathBuf {
        self.directory.keep()
    }

    /// Ends the center and deletes the directory.
    pub(crate) fn clear(self) -> io::Result<()> {
        drop(self.center);
        self.directory.close()
    }
}

fn workdir(directory: &Path) -> PathBuf {
    directory.join("agent")
}

fn executable(directory: &Path) -> PathBuf {
    workdir(directory).join("plugin").join(PLUGIN).join(PLUGIN)
}

fn sha256(file: &Path) -> io::Result<String> {
    let digest = ring::digest::digest(&ring::digest::SHA256, &fs::read(file)?);
    Ok(digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_written_as_the_manager_writes_it() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("abc");
        fs::write(&file, "abc").unwrap();
        // The first test vector of FIPS 180-2.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file).unwrap(), expected);
    }
}
