//! A new version as it was downloaded: a program, or a package for the host's package manager.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;
use tokio::time::{sleep, timeout};

/// How long a package manager may work; it may wait for another one.
const MANAGER_TIMEOUT: Duration = Duration::from_secs(300);

/// How long a program may take to say its version.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);

/// Bytes of a package manager's output that go into the log, the last ones.
const MAX_OUTPUT_BYTES: usize = 16 << 10;

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
    pub(super) fn of(file: &mut File) -> Result<Self, String> {
        let mut head = [0; 8];
        let mut read = || file.read_exact(&mut head);
        read().map_err(|error| format!("the download cannot be read: {error}"))?;
        match &head {
            b"!<arch>\n" => Ok(Self::Deb),
            [0xed, 0xab, 0xee, 0xdb, ..] => Ok(Self::Rpm),
            [0x7f, b'E', b'L', b'F', ..] | [b'#', b'!', ..] => Ok(Self::Program),
            _ => Err("the download is neither a program nor a deb or rpm package".to_owned()),
        }
    }

    /// The package manager's command for a package, as the reference's; nothing for a program.
    pub(super) fn installer(self, downgrade: bool) -> Option<(&'static str, &'static [&'static str])> {
        match (self, downgrade) {
            (Self::Program, _) => None,
            (Self::Deb, _) => Some(("dpkg", &["-i"])),
            (Self::Rpm, false) => Some(("rpm", &["-Uvh"])),
            (Self::Rpm, true) => Some(("rpm", &["-Uvh", "--oldpackage"])),
        }
    }
}

/// Installs a package; what the package manager says goes into the log.
pub(super) async fn install(manager: &str, options: &[&str], package: &Path) -> Result<(), String> {
    let mut command = Command::new(manager);
    // Nobody is there to be asked.
    command.args(options).arg(package).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).kill_on_drop(true);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let output = match timeout(MANAGER_TIMEOUT, command.output()).await {
        Ok(Ok(output)) => output,
        Ok(Err(error)) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("this host has no {manager} for the package that was downloaded"));
        }
        Ok(Err(error)) => return Err(format!("{manager}: {error}")),
        Err(_) => return Err(format!("{manager} did not end within {} s", MANAGER_TIMEOUT.as_secs())),
    };
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(MAX_OUTPUT_BYTES)..]);
        text.lines().filter(|line| !line.trim().is_empty()).for_each(|line| log::info!("{manager}: {line}"));
    }
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{manager} failed: {}", output.status)),
    }
}

/// Has a program say its version, which is to be this one: it can be executed here, and is what was wanted.
pub(super) async fn check_version(program: &Path, wanted: &str) -> Result<(), String> {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let mut tries = 0;
    let output = loop {
        match timeout(VERSION_TIMEOUT, command.output()).await {
            Ok(Ok(output)) => break output,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ExecutableFileBusy && tries < BUSY_RETRIES => {
                tries += 1;
                sleep(BUSY_WAIT).await;
            }
            Ok(Err(error)) => return Err(format!("it cannot be executed: {error}")),
            Err(_) => return Err(format!("it did not say its version within {} s", VERSION_TIMEOUT.as_secs())),
        }
    };
    let said = String::from_utf8_lossy(&output.stdout);
    let said = said.lines().next().unwrap_or_default();
    match said.strip_prefix("elklet ") {
        Some(version) if version == wanted => Ok(()),
        _ => Err(format!("it says that it is {said:.80?}, expected \"elklet {wanted}\"")),
    }
}
