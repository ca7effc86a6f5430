//! Prepares what the agent needs: a directory, certificates, the plugin in its place, and a center that listens and keeps.

use elklet_center::fleet::Upload;
use elklet_center::keep::Keeper;
use elklet_center::message::Batch;
use elklet_center::serve::{Options, Server};
use elklet_center::sink::{Sink, Taking};
use elklet_center::store::{self, Store};
use elklet_proto::grpc::Config;
use elklet_tests::binaries::Binaries;
use elklet_tests::pki;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::mpsc;

/// The name of the plugin, of its directory and of its executable.
pub(crate) const PLUGIN: &str = "procwatch";

#[derive(Debug)]
pub(crate) struct Stage {
    directory: TempDir,
    server: Server,
}

/// Keeps what the agent sends, as the program elklet-center does, and shows it.
struct Shown {
    keeper: Keeper,
    batches: mpsc::UnboundedSender<Arc<Batch>>,
}

impl Sink for Shown {
    fn take<'a>(&'a self, agent_id: &'a str, batch: &'a Arc<Batch>) -> Taking<'a> {
        Box::pin(async move {
            let kept = self.keeper.take(agent_id, batch).await?;
            // The demo may be about to end.
            _ = self.batches.send(Arc::clone(batch));
            Ok(kept)
        })
    }

    fn take_upload<'a>(&'a self, upload: &'a Upload) -> Taking<'a> {
        self.keeper.take_upload(upload)
    }
}

impl Stage {
    /// Sets everything up. If that fails, it deletes the directory again.
    pub(crate) fn set(programs: &Binaries, batches: mpsc::UnboundedSender<Arc<Batch>>) -> io::Result<Self> {
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
        let data = directory.path().join("center");
        let store = Arc::new(Store::open(&data, store::Settings::default()).map_err(io::Error::other)?);
        let options = Options {
            configs: Some(vec![config]),
            upload_dir: Some(data.join("uploads")),
            store: Some(Arc::clone(&store)),
            ..Options::new(certs)
        };
        let server = Server::start(options, Arc::new(Shown { keeper: Keeper::new(store), batches }), Arc::new(()))?;
        Ok(Self { directory, server })
    }

    /// Returns the address that agents connect to.
    pub(crate) fn grpc(&self) -> SocketAddr {
        self.server.options().listen
    }

    /// Returns a link to the center's page, which needs no password.
    ///
    /// # Errors
    /// The system gives no random numbers.
    pub(crate) fn link(&self) -> io::Result<String> {
        self.server.link()
    }

    /// Waits until no agent is connected, and returns false if that takes too long.
    pub(crate) async fn wait_for_the_end(&self, within: Duration) -> bool {
        let mut changes = self.server.changes();
        let gone = async {
            while self.server.read(|fleet| fleet.connected().count() > 0) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(within, gone).await.is_ok()
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
        drop(self.server);
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
