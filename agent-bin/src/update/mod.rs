//! The agent's own update: fetched, checked, put in place, tried, and taken back if it does not hold a stream.
//!
//! What is decided stands in core's `update`. A package is installed by the host's package manager, a program replaces the
//! file of the running one; the agent then ends in order and executes what is there now, as the same process. Before that
//! it keeps itself as `update/previous` and writes down what is on trial. The new version counts its own starts and waits
//! for its own stream ([`start`]); what crashes before it gets that far stays with the service manager.

mod package;
mod start;
mod state;

use std::future::pending;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use elklet_core::command::AgentConfig;
use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use elklet_core::update::{compare, may_try};
use tokio::task::JoinHandle;

use self::package::{Kind, Unsuitable};
pub(crate) use self::start::{After, run};
use self::state::{Failed, Store, Trial};
use crate::blocking::{blocking, blocking_at_last};
use crate::config::Settings;
use crate::fetch::{Cancel, Fetcher, Order};
use crate::version;

/// Why a job ends that the server has taken back.
const UNWANTED: &str = "nobody wants it any more";

/// The updates of one process.
#[derive(Debug)]
pub(crate) struct Updates {
    store: Store,
    /// Where this program was when it started; the file may have been replaced since.
    program: Option<PathBuf>,
    job: Option<Job>,
    /// What came while a job was under way.
    next: Option<AgentConfig>,
}

#[derive(Debug)]
struct Job {
    config: AgentConfig,
    cancel: Arc<Cancel>,
    task: JoinHandle<Result<PathBuf, String>>,
}

/// How a job has ended.
#[derive(Debug)]
pub(crate) enum Updated {
    /// This program is to be executed.
    InPlace(PathBuf),
    /// It has failed; the text says of what version, and why.
    Failed(String),
    /// Nobody wants it any more.
    Cancelled,
}

impl Updates {
    pub(crate) fn new(settings: &Settings) -> Self {
        let store = Store::new(settings.workdir.clone());
        if let Some(Failed { version, why, .. }) = store.failed() {
            log::warn!("version {version} has failed here: {why}; what it logged is in update/failed.log");
        }
        Self { store, program: std::env::current_exe().ok(), job: None, next: None }
    }

    /// The server names another version: brings it in place, unless something speaks against it.
    ///
    /// # Errors
    /// What does.
    pub(crate) fn want(&mut self, config: AgentConfig, settings: &Settings) -> Result<(), String> {
        if self.job.as_ref().is_some_and(|job| job.config == config && !job.cancel.is_cancelled()) {
            return Ok(());
        }
        let cancelled = self.job.as_ref().map(|job| job.cancel.cancel());
        self.next = None;
        if !settings.update.enabled {
            log::info!("the server names version {:.80}: update.enabled is off", config.version);
            return Ok(());
        }
        let failed = self.store.failed();
        let tried = failed.as_ref().map(|failed| (&*failed.version, &*failed.sha256));
        may_try(&config, version(), tried, settings.update.allow_downgrade).map_err(|why| match &failed {
            Some(failed) if failed.version == config.version => format!("{why} ({})", failed.why),
            _ => why,
        })?;
        self.store.forget_failed();
        if let Some(key) = settings.plugins.public_key() {
            key.verify_agent(&config).map_err(|why| format!("version {:.80}: {why}", config.version))?;
        }
        match cancelled {
            Some(()) => self.next = Some(config),
            None => self.start(config, settings),
        }
        Ok(())
    }

    /// The server is content with the version that runs.
    pub(crate) fn keep(&mut self) {
        self.next = None;
        self.job.iter().for_each(|job| job.cancel.cancel());
        self.store.forget_failed();
    }

    fn start(&mut self, config: AgentConfig, settings: &Settings) {
        log::info!("the agent is to become version {:.80}; this is {}", config.version, version());
        let cancel = Arc::new(Cancel::default());
        let installation = Installation {
            store: self.store.clone(),
            program: self.program.clone(),
            fetcher: Fetcher::new(settings.certs.join("ca.crt"), settings.proxies.clone()),
            directory: settings.workdir.join("tmp/update"),
            cancel: Arc::clone(&cancel),
        };
        let task = tokio::spawn(installation.run(config.clone()));
        self.job = Some(Job { config, cancel, task });
    }

    /// Waits until what is under way has ended.
    pub(crate) async fn ended(&mut self, settings: &Settings) -> Updated {
        let Some(job) = &mut self.job else { return pending().await };
        let result = (&mut job.task).await.unwrap_or_else(|error| Err(error.to_string()));
        let Some(job) = self.job.take() else { return pending().await };
        let next = self.next.take();
        match result {
            Ok(program) => Updated::InPlace(program),
            Err(_) if job.cancel.is_cancelled() => {
                if let Some(config) = next {
                    self.start(config, settings);
                }
                Updated::Cancelled
            }
            Err(why) => Updated::Failed(format!("the update to version {:.80} failed: {why}", job.config.version)),
        }
    }

    /// The version that runs has stood its trial.
    pub(crate) fn handle_stays(&self) {
        self.store.end_trial();
    }
}

/// What one update is carried out with.
struct Installation {
    store: Store,
    program: Option<PathBuf>,
    fetcher: Fetcher,
    directory: PathBuf,
    cancel: Arc<Cancel>,
}

impl Installation {
    /// Brings a version in place; the program that is to be executed then.
    async fn run(self, config: AgentConfig) -> Result<PathBuf, String> {
        let program = self.program.clone().ok_or("it is not known where this program is")?;
        let directory = self.directory.clone();
        let result = self.install(&config, &program).await;
        let _ = std::fs::remove_dir_all(directory);
        result.map(|()| program)
    }

    async fn install(self, config: &AgentConfig, program: &Path) -> Result<(), String> {
        let Self { store, fetcher, directory, cancel, .. } = self;
        let package = directory.join("elklet");
        let (to, wanted) = (package.clone(), config.clone());
        let wish = Arc::clone(&cancel);
        let kind = blocking(move || {
            let _ = std::fs::remove_dir_all(&directory);
            std::fs::create_dir_all(&directory).map_err(|error| format!("{}: {error}", directory.display()))?;
            let order = Order { urls: &wanted.urls, sha256: wanted.sha256, max_bytes: MAX_DOWNLOAD_BYTES };
            let mut file = fetcher.fetch(&order, &to, &wish)?;
            if wish.is_cancelled() {
                return Err(UNWANTED.to_owned());
            }
            let kind = Kind::of(&mut file)?;
            make_executable(&file).map_err(|error| format!("{}: {error}", to.display()))?;
            Ok::<_, String>(kind)
        })
        .await
        .map_err(|error| error.to_string())??;
        let manager = kind.manager();
        let unsuitable = match manager {
            Some(manager) if manager.brings(&package, program).await? => None,
            Some(_) => {
                let why = format!("the package does not bring {}, which is this program", program.display());
                Some(Unsuitable::for_good(why))
            }
            None => package::check_version(&package, &config.version).await.err(),
        };
        if let Some(Unsuitable { why, for_good }) = unsuitable {
            if for_good {
                let (version, sha256) = (config.version.clone(), config.sha256.to_string());
                let _ = store.set_failed(&Failed { version, sha256, why: why.clone() });
            }
            return Err(why);
        }
        if cancel.is_cancelled() {
            return Err(UNWANTED.to_owned());
        }

        let before = store.trial();
        let trial = Trial {
            version: config.version.clone(),
            sha256: config.sha256.to_string(),
            // What is on trial itself is nothing to come back to.
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
        .map_err(|error| format!("this version cannot be kept: {error}"))?;

        let is_downgrade = compare(&config.version, version()) == Some(std::cmp::Ordering::Less);
        let installed = match manager {
            Some(manager) => manager.install(&package, is_downgrade).await,
            None => {
                let to = program.to_owned();
                let replaced = blocking(move || state::replace_program(&package, &to)).await.flatten();
                replaced.map_err(|error| format!("{}: {error}", program.display()))
            }
        };
        let checked = match installed {
            Ok(()) if cancel.is_cancelled() => Err((false, UNWANTED.to_owned())),
            Ok(()) => {
                let checked = package::check_version(program, &config.version).await;
                checked.map_err(|Unsuitable { why, for_good }| (for_good, why))
            }
            Err(why) => Err((false, why)),
        };
        let Err((is_its_fault, why)) = checked else { return Ok(()) };
        // It is not executed: everything is to be as it was, but a package that brings something else is not tried again.
        let (text, back) = (why.clone(), store.clone());
        let put_back = blocking_at_last(move || back.put_back(&trial, &text)).await;
        if !is_its_fault {
            store.forget_failed();
        }
        match put_back {
            Ok(()) => Err(why),
            Err(error) => Err(format!("{why}; nor could the previous program be put back: {error}")),
        }
    }
}

fn make_executable(file: &std::fs::File) -> std::io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(std::fs::Permissions::from_mode(0o700))
}
