//! The real programs that tests and the demo start. Cargo builds them on demand.
//!
//! Cargo builds a package's own binaries for its tests, but not those of other packages. This module therefore asks it
//! to. A build that is up to date costs a fraction of a second, and cargo's lock serializes builds that run at the same
//! time.

use std::env;
use std::io::{self, IsTerminal};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// The paths of the programs.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// The agent, `elklet`.
    pub elklet: PathBuf,
    /// The plugin `elklet-procwatch`.
    pub procwatch: PathBuf,
}

impl Binaries {
    /// Returns the programs for tests: in the development profile, built once in each process.
    ///
    /// `ELKLET_BIN` and `PROCWATCH_BIN` name others, such as those that ship.
    ///
    /// # Panics
    /// When they cannot be built. Cargo has said why on standard error.
    #[must_use]
    pub fn for_tests() -> &'static Self {
        static BUILT: OnceLock<Binaries> = OnceLock::new();
        BUILT.get_or_init(|| Self::build("dev").expect("cargo builds the programs under test"))
    }

    /// Builds them in a profile of the workspace, unless the environment names others.
    ///
    /// # Errors
    /// When cargo cannot be run or fails.
    pub fn build(profile: &str) -> io::Result<Self> {
        let given = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let program = |variable, package, binary| match given(variable) {
            Some(path) => Ok(path),
            None => build(profile, package, binary),
        };
        Ok(Self {
            elklet: program("ELKLET_BIN", "elklet", "elklet")?,
            procwatch: program("PROCWATCH_BIN", "elklet-procwatch", "elklet-procwatch")?,
        })
    }
}

/// Returns the program `elklet-center` for tests, as [`Binaries::for_tests`] does. `ELKLET_CENTER_BIN` names another.
///
/// # Panics
/// When it cannot be built. Cargo has said why on standard error.
#[must_use]
pub fn center_for_tests() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| match env::var_os("ELKLET_CENTER_BIN").filter(|value| !value.is_empty()) {
        Some(path) => path.into(),
        None => build("dev", "elklet-center", "elklet-center").expect("cargo builds the program under test"),
    })
}

fn build(profile: &str, package: &str, binary: &str) -> io::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(workspace)
        .args(["build", "--message-format=json-render-diagnostics"])
        .args(["--profile", profile, "--bin", binary])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    match profile {
        // `cargo test --workspace` chooses the features of libraries with a view to tests. A build that names any test
        // chooses the same features. Then only the program itself is left to build. The test that is named here must not
        // be one of this package. With a package's test cargo builds the package's programs, and in `cargo test -p
        // elklet-tests` those have other features: cargo would replace the plugins while tests use them.
        "dev" => command.args(["--workspace", "--test", "procwatch"]),
        // The features with which it ships.
        _ => command.args(["--package", package]),
    };
    if !io::stderr().is_terminal() {
        command.arg("--quiet");
    }
    // `cargo run` and `cargo test` set variables that describe the package. Build scripts read the same variables
    // (ring's does). Builds inside and outside of cargo would therefore invalidate each other each time.
    for (name, _) in env::vars_os() {
        if ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
            command.env_remove(name);
        }
    }
    let output = command.output()?;
    let executable = output
        .stdout
        .split(|byte| *byte == b'\n')
        .filter_map(|line| serde_json::from_slice::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == binary)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from));
    match executable {
        Some(path) if output.status.success() => Ok(path),
        _ => Err(io::Error::other(format!("cargo build of {binary} ended with {}", output.status))),
    }
}
