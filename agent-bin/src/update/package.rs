//! A new version as it was downloaded: a program, or a package for the host's package manager.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::error::{ManagerError, Unsuitable, UpdateError};
use crate::files::FileError;
use crate::plugin::explain;
use crate::sys::children::Own;

/// How long a package manager may work; it may wait for another one.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a program may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a package manager's output that go into the log, the last ones.
const MAX_OUTPUT_BYTES: u64 = 16 << 10;

/// Bytes of a package's list of files that are looked through.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// Programs that are just being started elsewhere in this process may hold the file open for writing that long.
const BUSY_RETRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// What was downloaded, as its first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// What the kernel executes: replaces the program.
    Program,
    Deb,
    Rpm,
}

impl Kind {
    /// Looks at a file from its beginning.
    pub(super) fn of(file: &mut File) -> Result<Self, UpdateError> {
        let mut head = [0; 8];
        file.read_exact(&mut head).map_err(UpdateError::Unreadable)?;
        match &head {
            b"!<arch>\n" => Ok(Self::Deb),
            [0xed, 0xab, 0xee, 0xdb, ..] => Ok(Self::Rpm),
            [0x7f, b'E', b'L', b'F', ..] | [b'#', b'!', ..] => Ok(Self::Program),
            _ => Err(UpdateError::UnknownKind),
        }
    }

    /// The host's package manager for it; none for a program.
    pub(super) fn manager(self) -> Option<Manager> {
        match self {
            Self::Program => None,
            Self::Deb => Some(Manager { name: "dpkg", list: &["--contents"], install: &["-i"], downgrade: &["-i"] }),
            Self::Rpm => {
                Some(Manager { name: "rpm", list: &["-qpl"], install: &["-Uvh"], downgrade: &["-Uvh", "--oldpackage"] })
            }
        }
    }
}

/// A package manager and its options, as the reference has them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager {
    name: &'static str,
    list: &'static [&'static str],
    install: &'static [&'static str],
    downgrade: &'static [&'static str],
}

impl Manager {
    /// Installs a package; what the manager says goes into the log.
    pub(super) async fn install(self, package: &Path, is_downgrade: bool) -> Result<(), UpdateError> {
        let options = if is_downgrade { self.downgrade } else { self.install };
        let (status, mut output) = self.run(options, package).await?;
        let bytes = output.metadata().map_or(0, |metadata| metadata.len());
        let text = output
            .seek(SeekFrom::Start(bytes.saturating_sub(MAX_OUTPUT_BYTES)))
            .and_then(|_| read_text(&mut output, MAX_OUTPUT_BYTES))
            .unwrap_or_default();
        text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| log::info!("{}: {line}", self.name));
        match status.success() {
            true => Ok(()),
            false => Err(self.failed(ManagerError::NotInstalled(status))),
        }
    }

    /// Whether a package brings this program, and not another agent, which would run beside this one.
    pub(super) async fn brings(self, package: &Path, program: &Path) -> Result<bool, UpdateError> {
        let (status, mut output) = self.run(self.list, package).await?;
        let list = output.rewind().and_then(|()| read_text(&mut output, MAX_LIST_BYTES)).unwrap_or_default();
        let program = program.to_string_lossy();
        // What lies in /usr may be listed as it was before the directories were merged; dpkg puts a dot before the path.
        let names = [&*program, program.strip_prefix("/usr").unwrap_or(&program)];
        let is_named = |line: &str| {
            let heads = names.iter().filter_map(|name| line.strip_suffix(name));
            heads.into_iter().any(|head| head.is_empty() || head.ends_with(" ."))
        };
        match status.success() {
            true => Ok(list.lines().any(is_named)),
            false => Err(self.failed(ManagerError::NotRead(status))),
        }
    }

    fn failed(self, why: ManagerError) -> UpdateError {
        UpdateError::Manager(self.name, why)
    }

    /// Runs it on a package; how it ended, and what it said on both outputs.
    ///
    /// It is not killed when the agent ends, which may be its own doing, and not waited for beyond its own end, since what
    /// it has started may keep the outputs open.
    async fn run(self, options: &[&str], package: &Path) -> Result<(ExitStatus, File), UpdateError> {
        let output = package.with_extension("output");
        let failed = |error: io::Error| {
            self.failed(match error.kind() {
                io::ErrorKind::NotFound => ManagerError::Missing,
                _ => ManagerError::Io(error),
            })
        };
        // The list of the package's files is said before anything is installed.
        let _ = fs::remove_file(&output);
        let open = || File::options().read(true).write(true).create_new(true).mode(0o600).open(&output);
        let said = open().map_err(FileError::at(&output))?;
        let mut command = Command::new(self.name);
        // Nobody is there to be asked.
        command
            .args(options)
            .arg(package)
            .env("DEBIAN_FRONTEND", "noninteractive")
            .stdin(Stdio::null())
            .process_group(0);
        command.stdout(said.try_clone().map_err(failed)?).stderr(said.try_clone().map_err(failed)?);
        if std::env::var_os("PATH").is_none() {
            command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        }
        let mut child = command.spawn().map_err(failed)?;
        let _own = child.id().map(Own::helper);
        match timeout(MANAGER_TIMEOUT, child.wait()).await {
            Ok(status) => Ok((status.map_err(failed)?, said)),
            Err(_) => Err(self.failed(ManagerError::Late(MANAGER_TIMEOUT))),
        }
    }
}

fn read_text(from: &mut File, most: u64) -> io::Result<String> {
    let mut bytes = Vec::new();
    from.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Runs a command to its end and gives what it has written.
async fn run(command: &mut Command) -> io::Result<Output> {
    let child = command.spawn()?;
    let _own = child.id().map(Own::helper);
    child.wait_with_output().await
}

/// Has a program say its version, which is to be this one: it can be executed here, and is what was wanted.
pub(super) async fn check_version(program: &Path, wanted: &str) -> Result<(), UpdateError> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut tries = 0;
    let output = loop {
        match timeout(VERSION_TIMEOUT, run(&mut command)).await {
            Ok(Ok(output)) => break output,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES => {
                tries += 1;
                sleep(BUSY_WAIT).await;
            }
            Ok(Err(error)) => {
                let why = explain(&error, program);
                return Err(match error.kind() {
                    // Where the host has no process to spare, that says nothing of the program.
                    io::ErrorKind::WouldBlock | io::ErrorKind::OutOfMemory => UpdateError::NotExecuted(why),
                    _ => Unsuitable::NotExecutable(why).into(),
                });
            }
            Err(_) => return Err(Unsuitable::Silent(VERSION_TIMEOUT).into()),
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().next().unwrap_or_default();
    match said.strip_prefix("elklet ") {
        Some(version) if version == wanted => Ok(()),
        _ => Err(Unsuitable::OtherVersion { said: said.to_owned(), wanted: wanted.to_owned() }.into()),
    }
}
