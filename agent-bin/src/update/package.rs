//! A downloaded version: a program, or a package for the host's package manager.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{ExitStatus, Output, Stdio};
use std::time::Duration;

use elklet_core::limits::MAX_DOWNLOAD_BYTES;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use super::error::{ManagerError, Unsuitable, UpdateError};
use crate::files::FileError;
use crate::plugin::explain;
use crate::sys::children::Own;
use crate::sys::starter;

/// Time limit for a package manager, which may wait for another one.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(300);

/// Time limit for a program to print its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Most bytes of a package manager's output that go into the log. The last ones count.
const MAX_OUTPUT_BYTES: u64 = 16 << 10;

/// Most bytes of a package's list of files that are read.
const MAX_LIST_BYTES: u64 = 16 << 20;

/// The head of the build information that every program in Go has, stripped or not (debug/buildinfo).
const GO_MARK: [u8; 14] = shifted(b"\xff Go buildinf:");

/// The module of Elkeid's agent, which stands in its build information.
const ELKEIDS_MODULE: [u8; 33] = shifted(b"github.com/bytedance/Elkeid/agent");

/// Adds one to each byte. What this program searches in others would otherwise be found in itself.
const fn shifted<const N: usize>(text: &[u8; N]) -> [u8; N] {
    let mut shifted = *text;
    let mut index = 0;
    while index < N {
        shifted[index] = text[index].wrapping_add(1);
        index += 1;
    }
    shifted
}

/// Bytes of a program that are searched at a time.
const SEARCHED_BYTES: u64 = 64 << 10;

/// How often and how long to wait while a program that another thread is starting holds the file open for writing.
const BUSY_RETRIES: u32 = 50;
const BUSY_WAIT: Duration = Duration::from_millis(100);

/// The kind of a download, by its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The kernel executes it. It replaces the program.
    Program,
    Deb,
    Rpm,
}

impl Kind {
    /// Reads the first bytes of a file.
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

    /// The host's package manager for it, or `None` for a program.
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

/// A package manager and its options, which are the reference's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Manager {
    name: &'static str,
    list: &'static [&'static str],
    install: &'static [&'static str],
    downgrade: &'static [&'static str],
}

impl Manager {
    /// Installs a package, and logs the manager's output.
    pub(super) async fn install(self, package: &Path, is_downgrade: bool) -> Result<(), UpdateError> {
        let options = if is_downgrade { self.downgrade } else { self.install };
        let (status, mut output) = self.run(options, package).await?;
        let bytes = output.metadata().map_or(0, |metadata| metadata.len());
        let text = output
            .seek(SeekFrom::Start(bytes.saturating_sub(MAX_OUTPUT_BYTES)))
            .and_then(|_| read_text(&mut output, MAX_OUTPUT_BYTES))
            .unwrap_or_default();
        text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| log::info!("{}: {line}", self.name));
        if !status.success() {
            return Err(self.failed(ManagerError::NotInstalled(status)));
        }
        Ok(())
    }

    /// Returns true when a package brings this program, and not another agent, which would run beside this one.
    pub(super) async fn brings(self, package: &Path, program: &Path) -> Result<bool, UpdateError> {
        let (status, mut output) = self.run(self.list, package).await?;
        let list = output.rewind().and_then(|()| read_text(&mut output, MAX_LIST_BYTES)).unwrap_or_default();
        let program = program.to_string_lossy();
        // A package may list a file of /usr as before the directories were merged. dpkg puts a dot before the path.
        let names = [&*program, program.strip_prefix("/usr").unwrap_or(&program)];
        let is_named = |line: &str| {
            let heads = names.iter().filter_map(|name| line.strip_suffix(name));
            heads.into_iter().any(|head| head.is_empty() || head.ends_with(" ."))
        };
        if !status.success() {
            return Err(self.failed(ManagerError::NotRead(status)));
        }
        Ok(list.lines().any(is_named))
    }

    fn failed(self, why: ManagerError) -> UpdateError {
        UpdateError::Manager(self.name, why)
    }

    /// Runs it on a package. Returns its exit status, and the file with both its outputs.
    ///
    /// The agent does not kill it at its own end, which may be the package manager's doing. It waits only for the
    /// process itself, because what that has started may keep the outputs open.
    async fn run(self, options: &[&str], package: &Path) -> Result<(ExitStatus, File), UpdateError> {
        let output = package.with_extension("output");
        let failed = |error: io::Error| {
            self.failed(match error.kind() {
                io::ErrorKind::NotFound => ManagerError::Missing,
                _ => ManagerError::Io(error),
            })
        };
        // The output of an earlier run is not needed any more.
        let _ = fs::remove_file(&output);
        let open = || File::options().read(true).write(true).create_new(true).mode(0o600).open(&output);
        let said = open().map_err(FileError::at(&output))?;
        let mut command = Command::new(self.name);
        // Nobody is there to answer questions.
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
        let mut child = starter::spawn(command).map_err(failed)?;
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

/// Returns true if the program is Elkeid's own agent: a program in Go, of that agent's module. Blocks.
///
/// It is not asked for its version, since it has no word for that: it would start, as a second agent of this host.
///
/// # Errors
/// When it cannot be read.
pub(super) fn is_elkeids_own(program: &Path) -> io::Result<bool> {
    let (mut is_go, mut is_module) = (false, false);
    // A mark may lie across two pieces.
    let overlap = ELKEIDS_MODULE.len();
    let mut rest = File::open(program)?.take(MAX_DOWNLOAD_BYTES);
    let mut piece = Vec::new();
    loop {
        let kept = piece.len().min(overlap);
        piece.drain(..piece.len() - kept);
        if rest.by_ref().take(SEARCHED_BYTES).read_to_end(&mut piece)? == 0 {
            return Ok(false);
        }
        is_go = is_go || contains(&piece, &GO_MARK);
        is_module = is_module || contains(&piece, &ELKEIDS_MODULE);
        if is_go && is_module {
            return Ok(true);
        }
    }
}

fn contains(piece: &[u8], shifted: &[u8]) -> bool {
    let is_mark = |window: &[u8]| window.iter().zip(shifted).all(|(byte, mark)| byte.wrapping_add(1) == *mark);
    piece.windows(shifted.len()).any(is_mark)
}

/// Runs a command to its end and returns its output.
async fn run(command: Command) -> io::Result<Output> {
    let child = starter::spawn(command)?;
    let _own = child.id().map(Own::helper);
    child.wait_with_output().await
}

/// Runs a program with `--version` and checks the answer. This shows that it can be executed here and is the wanted version.
pub(super) async fn check_version(program: &Path, wanted: &str) -> Result<(), UpdateError> {
    let mut tries = 0;
    let output = loop {
        let mut command = Command::new(program);
        command.arg("--version").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        match timeout(VERSION_TIMEOUT, run(command)).await {
            Ok(Ok(output)) => break output,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES => {
                tries += 1;
                sleep(BUSY_WAIT).await;
            }
            Ok(Err(error)) => {
                let why = explain(&error, program);
                return Err(match error.kind() {
                    // If the host has no process to spare, that says nothing about the program.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elkeids_own_agent_is_known_by_what_go_writes_into_it() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("program");
        let (go, module) = (&b"\xff Go buildinf:"[..], &b"github.com/bytedance/Elkeid/agent"[..]);
        let is_elkeids = |content: &[u8]| {
            fs::write(&path, content).expect("writable");
            is_elkeids_own(&path).expect("readable")
        };
        for before in [0, 1, (64 << 10) - 3, (64 << 10) + 1, 200_000] {
            let padding = vec![b'x'; before];
            assert!(is_elkeids(&[&padding, go, &padding, module].concat()), "{before}");
            assert!(is_elkeids(&[&padding, module, go, &padding].concat()), "{before}");
            assert!(!is_elkeids(&[&padding, go, &padding].concat()), "another program in Go");
            assert!(!is_elkeids(&[&padding, module, &padding].concat()), "a program that names it");
        }
        assert!(!is_elkeids(b""));
        is_elkeids_own(directory.path()).expect_err("a directory");
    }
}
