//! The agent's own update: it downloads a version, checks it, puts it in place, tries it, and rolls back if it does not
//! hold a stream.
//!
//! Core's `update` decides. The host's package manager installs a package; a program replaces the running program's
//! file. The agent then ends in order, and the same process executes what is there now. Before that, the agent keeps
//! itself as `update/previous` and writes down what is on trial. The new version counts its own starts and waits for
//! its own stream ([`start`]). A version that crashes before it gets that far is left to the service manager.

mod error;
mod package;
mod start;
mod state;

use std::fs::{self, DirBuilder, File, Permissions};
use std::future::pending;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use elklet_core::command::AgentConfig;
use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use elklet_core::update::{compare, may_try};
use rustix::fs::OFlags;
use tokio::task::JoinHandle;

pub(crate) use self::error::Refusal;
use self::error::{Unsuitable, UpdateError};
use self::package::Kind;
pub(crate) use self::start::{After, run};
use self::state::{Failed, Store, Trial};
use crate::config::Settings;
use crate::fetch::{Cancel, Fetcher, Request};
use crate::files::FileError;
use crate::sys::atomic::AtomicU64;
use crate::sys::blocking::{self, blocking, blocking_at_last};
use crate::sys::remove::remove_tree;
use crate::sys::room::Room;
use crate::{files, version};

/// The updates of one process.
#[derive(Debug)]
pub(crate) struct Updates {
    store: Store,
    /// The path of this program when it started. The file may have been replaced since.
    program: Option<PathBuf>,
    /// True if a failed version could not be rolled back yet, for instance on a full disk.
    pending: Arc<AtomicBool>,
    job: Option<Job>,
    /// The version that the server named while a job was under way.
    next: Option<AgentConfig>,
}

#[derive(Debug)]
struct Job {
    config: AgentConfig,
    cancel: Arc<Cancel>,
    task: JoinHandle<Result<InPlace, UpdateError>>,
}

/// What lies in the program's place now.
#[derive(Debug)]
enum InPlace {
    /// A version of this agent, which is on trial, with its path.
    Version(PathBuf),
    /// Elkeid's own agent.
    Elkeids,
}

/// How a job has ended.
#[derive(Debug)]
pub(crate) enum Updated {
    /// Execute this program.
    InPlace(PathBuf),
    /// Elkeid's own agent lies in the place of this one. End, so that the service manager starts it.
    HandedOver,
    /// It has failed with this version.
    Failed { version: String, why: UpdateError },
    /// Nobody wants it any more.
    Cancelled,
}

impl Updates {
    pub(crate) fn new(settings: &Settings) -> Self {
        let store = Store::new(&settings.layout);
        if let Some(Failed { version, why, .. }) = store.failed() {
            log::warn!("version {version} has failed here: {why}; what it logged is in update/failed.log");
        }
        let pending = store.pending();
        // If this is the previous version standing in for one that could not be rolled back, its own file is not the program's.
        let program = pending.as_ref().map(|trial| trial.program.clone()).or_else(|| std::env::current_exe().ok());
        Self { store, program, pending: Arc::new(AtomicBool::new(pending.is_some())), job: None, next: None }
    }

    /// The server names another version. Starts to put it in place, unless something speaks against it.
    ///
    /// # Errors
    /// What speaks against it.
    pub(crate) fn want(&mut self, config: AgentConfig, settings: &Settings) -> Result<(), Refusal> {
        if self.job.as_ref().is_some_and(|job| job.config == config && !job.cancel.is_cancelled()) {
            return Ok(());
        }
        let cancelled = self.job.as_ref().map(|job| job.cancel.cancel());
        self.next = None;
        if !settings.update.enabled {
            return Err(Refusal::SwitchedOff(config.version));
        }
        let failed = self.store.failed();
        let tried = failed.as_ref().map(|failed| (&*failed.version, &*failed.sha256));
        may_try(&config, version(), tried, settings.update.allow_downgrade).map_err(|why| {
            let before = failed.as_ref().filter(|failed| failed.version == config.version);
            Refusal::NotTried(why, before.map(|failed| failed.why.clone()))
        })?;
        self.store.forget_failed();
        if let Some(signers) = settings.plugins.signers() {
            let vouched = signers.verify(&config.statement(), config.signature.as_ref());
            vouched.map_err(|why| Refusal::NotVouched(config.version.clone(), why))?;
        }
        match cancelled {
            Some(()) => self.next = Some(config),
            None => self.start(config, settings),
        }
        Ok(())
    }

    /// The server wants the running version.
    pub(crate) fn keep(&mut self) {
        self.next = None;
        self.job.iter().for_each(|job| job.cancel.cancel());
        self.store.forget_failed();
    }

    fn start(&mut self, config: AgentConfig, settings: &Settings) {
        log::info!("the agent is to become version {:.80}; this is {}", config.version, version());
        // The outcome decides what lies in the program's place.
        self.pending.store(false, Ordering::Relaxed);
        let cancel = Arc::new(Cancel::default());
        let installation = Installation {
            store: self.store.clone(),
            program: self.program.clone(),
            fetcher: Fetcher::new(settings.layout.certs.join("ca.crt"), settings.proxies.clone()),
            tmp: settings.layout.workdir.join("tmp"),
            pending: Arc::clone(&self.pending),
            cancel: Arc::clone(&cancel),
        };
        let task = tokio::spawn(installation.run(config.clone()));
        self.job = Some(Job { config, cancel, task });
    }

    /// Waits until the running job has ended.
    pub(crate) async fn ended(&mut self, settings: &Settings) -> Updated {
        let Some(job) = &mut self.job else { return pending().await };
        let result = (&mut job.task).await.unwrap_or_else(|error| Err(UpdateError::GivenUp(error)));
        let Some(job) = self.job.take() else { return pending().await };
        let next = self.next.take();
        match result {
            Ok(InPlace::Elkeids) => Updated::HandedOver,
            Ok(InPlace::Version(program)) => Updated::InPlace(program),
            Err(_) if job.cancel.is_cancelled() => {
                if let Some(config) = next {
                    self.start(config, settings);
                }
                Updated::Cancelled
            }
            Err(why) => Updated::Failed { version: job.config.version, why },
        }
    }

    /// Tries the rollback of a failed version again, if it is still pending.
    pub(crate) fn retry_put_back(&self) {
        if !self.pending.load(Ordering::Relaxed) || self.job.is_some() {
            return;
        }
        let retried = (self.store.clone(), Arc::clone(&self.pending));
        // If no thread can be started, the next heartbeat tries again.
        let _ = blocking::start(retried, |(store, pending)| {
            let Some(trial) = store.pending() else { return pending.store(false, Ordering::Relaxed) };
            match store.put_back_again(&trial) {
                Ok(()) => {
                    log::info!("version {:.80} is taken back at last", trial.version);
                    pending.store(false, Ordering::Relaxed);
                }
                Err(error) => log::error!("{}: {error}; it is tried again", trial.program.display()),
            }
        });
    }

    /// The running version has passed its trial.
    pub(crate) fn handle_stays(&self) {
        self.store.end_trial();
    }
}

/// What one update needs.
struct Installation {
    store: Store,
    program: Option<PathBuf>,
    fetcher: Fetcher,
    tmp: PathBuf,
    pending: Arc<AtomicBool>,
    cancel: Arc<Cancel>,
}

/// A downloaded version, in a directory that nobody else can write. Dropping this deletes the directory.
#[derive(Debug)]
struct Download {
    directory: PathBuf,
    path: PathBuf,
    kind: Kind,
    /// The very file whose hash was checked.
    verified: File,
    _room: Room,
}

impl Drop for Download {
    fn drop(&mut self) {
        remove_directory(&self.directory);
    }
}

fn remove_directory(directory: &Path) {
    if let Err(error) = remove_tree(directory, &|| true) {
        log::warn!("{}: {error}; it is tried again when the agent starts", directory.display());
    }
}

impl Installation {
    /// Puts a version in place.
    async fn run(self, config: AgentConfig) -> Result<InPlace, UpdateError> {
        let program = self.program.clone().ok_or(UpdateError::NoProgram)?;
        self.install(&config, &program).await
    }

    async fn install(self, config: &AgentConfig, program: &Path) -> Result<InPlace, UpdateError> {
        let Self { store, fetcher, tmp, pending, cancel, .. } = self;
        let (wanted, wish) = (config.clone(), Arc::clone(&cancel));
        let download = blocking(move || download(&fetcher, &tmp, &wanted, &wish));
        let download = download.await.map_err(UpdateError::NoThread)??;
        let (kind, package) = (download.kind, download.path.clone());
        let manager = kind.manager();
        let suits = match manager {
            Some(manager) if manager.brings(&package, program).await? => Ok(()),
            Some(_) => Err(Unsuitable::OtherPackage(program.to_owned()).into()),
            None => package::check_version(&package, &config.version).await,
        };
        if let Err(why) = suits {
            if matches!(why, UpdateError::Unsuitable(_)) {
                let (version, sha256) = (config.version.clone(), config.sha256.to_string());
                let _ = store.set_failed(&Failed { version, sha256, why: why.to_string() });
            }
            return Err(why);
        }
        if cancel.is_cancelled() {
            return Err(UpdateError::Cancelled);
        }

        let before = store.trial();
        let trial = Trial {
            version: config.version.clone(),
            sha256: config.sha256.to_string(),
            // A version that is itself on trial is nothing to roll back to.
            previous: before.as_ref().map_or_else(|| version().to_owned(), |trial| trial.previous.clone()),
            program: program.to_owned(),
            starts: 0,
        };
        let (keeper, kept) = (store.clone(), trial.clone());
        blocking(move || {
            if before.is_none() {
                keeper.keep_previous()?;
            }
            keeper.set_trial(&kept)
        })
        .await
        .flatten()
        .map_err(UpdateError::NotKept)?;

        let is_downgrade = compare(&config.version, version()) == Some(std::cmp::Ordering::Less);
        let installed = match manager {
            Some(manager) => manager.install(&package, is_downgrade).await,
            None => {
                let to = program.to_owned();
                let mut download = download;
                let replaced = blocking(move || state::replace_program(&mut download.verified, &to)).await.flatten();
                replaced.map_err(|error| FileError::at(program)(error).into())
            }
        };
        let checked = match installed {
            Ok(()) if cancel.is_cancelled() => Err(UpdateError::Cancelled),
            Ok(()) if manager.is_some() && is_elkeids_own(program).await => {
                // It knows of no trial. This program stays in `update/previous`, for whoever wants it back.
                store.end_trial();
                return Ok(InPlace::Elkeids);
            }
            Ok(()) => package::check_version(program, &config.version).await,
            Err(why) => Err(why),
        };
        let Err(why) = checked else { return Ok(InPlace::Version(program.to_owned())) };
        // The version will not run, so restore everything. Do not try a package again that brought something else.
        let (text, back) = (why.to_string(), store.clone());
        let put_back = blocking_at_last(move || back.put_back(&trial, &text)).await;
        if !matches!(why, UpdateError::Unsuitable(_)) {
            store.forget_failed();
        }
        match put_back {
            Ok(()) => Err(why),
            Err(error) => {
                pending.store(true, Ordering::Relaxed);
                Err(UpdateError::NotPutBack(Box::new(why), error))
            }
        }
    }
}

/// Returns true if the package manager has put Elkeid's own agent in this place. The package is installed by then, so this waits
/// for a thread if there is none.
async fn is_elkeids_own(program: &Path) -> bool {
    let path = program.to_owned();
    // A program that cannot be read cannot be executed either, and whoever tries says why.
    blocking_at_last(move || package::is_elkeids_own(&path).unwrap_or(false)).await
}

/// Downloads a version into a directory of its own. Blocks.
fn download(fetcher: &Fetcher, tmp: &Path, wanted: &AgentConfig, cancel: &Cancel) -> Result<Download, UpdateError> {
    let directory = private_directory(tmp).map_err(FileError::at(tmp))?;
    let fetched = || {
        let path = directory.join("elklet");
        let mut room = Room::below(&directory).map_err(FileError::at(&directory))?;
        let request = Request { urls: &wanted.urls, sha256: wanted.sha256, max_bytes: MAX_DOWNLOAD_BYTES };
        let mut file = fetcher.fetch(&request, &path, &mut room, cancel)?;
        if cancel.is_cancelled() {
            return Err(UpdateError::Cancelled);
        }
        let kind = Kind::of(&mut file)?;
        let verified = for_execution(file, &path).map_err(FileError::at(&path))?;
        Ok(Download { directory: directory.clone(), path, kind, verified, _room: room })
    };
    fetched().inspect_err(|_| remove_directory(&directory))
}

/// Makes a directory that nobody else can write or replace.
fn private_directory(tmp: &Path) -> io::Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    files::make_directory(tmp, 0o700)?;
    loop {
        let path = tmp.join(format!("elklet-update.{}", NUMBER.fetch_add(1, Ordering::Relaxed)));
        match DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => return Ok(path),
            // An earlier run has left it.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes a file executable, and opens it for reading only, because a file that is open for writing cannot be executed.
/// Checks that the opened file is the same.
fn for_execution(file: File, path: &Path) -> io::Result<File> {
    file.set_permissions(Permissions::from_mode(0o700))?;
    let flags = (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed();
    let reading = File::options().read(true).custom_flags(flags).open(path)?;
    let inode = |found: fs::Metadata| (found.dev(), found.ino());
    if inode(reading.metadata()?) != inode(file.metadata()?) {
        return Err(io::Error::other("another file lies there than the one that was verified"));
    }
    Ok(reading)
}
