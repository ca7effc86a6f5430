//! `elklet enroll`: has a center sign a key of this host, writes what an agent needs, and leaves nothing half-done.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use elklet_proto::enrollment::EnrollRequest;

use crate::clock;
use crate::config::{self, Address, Environment, Flags, Settings};
use crate::failure::Failure;
use crate::files::{FileError, make_missing, replace};
use crate::host::{HostRoot, agent_id};
use crate::identity::{Identity, NEXT, NewKey};
use crate::init;
use crate::net::{self, End};
use crate::sys::waiting::block_on;

/// What a host is identified by.
const FILES: [&str; 4] = ["ca.crt", "client.crt", "client.key", NEXT];

/// Bytes that there has to be room for in each file before the token is used. The settings have most of them, ten thousand.
const ROOM_BYTES: usize = 16 << 10;

/// How often the center is asked if the connection breaks.
const TRIES: u32 = 3;

/// What the command is told.
#[derive(Debug)]
pub(crate) struct Enrolment {
    /// The center.
    pub(crate) address: String,
    pub(crate) token: String,
    /// The SHA-256 of the authority's key.
    pub(crate) pin: String,
    /// True if an identity that is there is to be replaced.
    pub(crate) is_forced: bool,
}

/// Enrols this host. Returns what was done, a line for each file.
///
/// # Errors
/// When there is an identity or there are settings already, or the center does not enrol the host. Nothing that was there has changed then.
pub(crate) fn run(enrolment: &Enrolment, flags: &Flags) -> Result<String, Failure> {
    let wrong = |what: &dyn std::fmt::Display| Failure::Settings(what.to_string());
    let system = |what: &dyn std::fmt::Display| Failure::System(what.to_string());
    let address: Address = enrolment.address.parse().map_err(|error| wrong(&error))?;
    let pin = config::pin(&enrolment.pin).map_err(|error| wrong(&format!("--ca-pin: {error}")))?;
    let flags = Flags { servers: vec![enrolment.address.clone()], makes_config: true, ..flags.clone() };
    let settings = Settings::load(&flags, &Environment::current()).map_err(|error| wrong(&error))?;
    let layout = &settings.layout;
    let head = init::head(&layout.file);
    if !enrolment.is_forced {
        if let Some(name) = FILES.iter().find(|name| layout.certs.join(name).symlink_metadata().is_ok()) {
            let path = layout.certs.join(name);
            return Err(wrong(&format!(
                "{} is there already, and stays as it is; --force replaces it",
                path.display()
            )));
        }
        if let Err(set) = &head {
            return Err(wrong(&format!("{set}; --force enrols the host all the same, and leaves that file as it is")));
        }
    }
    // The log's directory and the socket's are the agent's to make, when it starts.
    let configuration = layout.file.parent().unwrap_or(Path::new("/"));
    let mut made = MadeDirectories::default();
    if layout.is_to_be_made() {
        made.make(&layout.workdir, 0o700).map_err(|error| system(&error))?;
    }
    made.make(configuration, 0o755).map_err(|error| system(&error))?;
    made.make(&layout.certs, 0o700).map_err(|error| system(&error))?;
    // A token that was used is gone, so that this is known before it is.
    find_room(&layout.certs, head.is_ok().then_some(configuration)).map_err(|error| system(&error))?;
    let id =
        agent_id(&HostRoot::live(), &layout.workdir, settings.agent_id.as_deref()).map_err(|error| wrong(&error))?;
    if let Some(error) = id.not_stored {
        return Err(system(&format!("{}: the agent's id cannot be kept: {error}", layout.workdir.display())));
    }

    let (identity, authority) = ask(&settings, &address, pin, &enrolment.token, &id.id)?;
    identity.with_authority(authority).install(&layout.certs).map_err(|error| system(&error))?;
    made.keep();
    let mut done = format!("agent {} is enrolled at {address}\n", id.id);
    done.push_str(&format!("{} has its key and its certificate\n", layout.certs.display()));
    match head {
        Ok(head) => done.push_str(&init::write(&layout.file, head, &settings).map_err(|error| system(&error))?),
        Err(_) => done.push_str(&format!("{} stays as it was\n", layout.file.display())),
    }
    Ok(done)
}

/// Has the center sign a new key. Returns the identity that this makes, and the authority in DER.
fn ask(
    settings: &Settings,
    address: &Address,
    pin: [u8; 32],
    token: &str,
    id: &str,
) -> Result<(Identity, Vec<u8>), Failure> {
    let system = |what: &dyn std::fmt::Display| Failure::System(what.to_string());
    let key = NewKey::make().map_err(|error| system(&error))?;
    let request = EnrollRequest { token: token.to_owned(), agent_id: id.to_owned(), request: key.request().to_vec() };
    let mut tries = 0;
    let welcome = loop {
        tries += 1;
        let trusted = (pin, settings.server.name());
        let asked =
            block_on(net::enroll(address, &settings.proxies, trusted, &request)).map_err(|error| system(&error))?;
        match asked {
            Ok(welcome) => break welcome,
            // Perhaps the token is used up and only the answer was lost. A center gives it once more to the same request.
            Err(End::Http2(_) | End::NoAnswer(_)) if tries < TRIES => {}
            Err(end) => return Err(system(&format!("{address} does not enrol this host: {end}"))),
        }
    };
    let identity = key.certified(welcome.certificate, id, clock::unix_seconds());
    Ok((identity.map_err(|error| system(&format!("{address}: {error}")))?, welcome.authority))
}

/// Directories that were missing. Those that are still empty go again, unless they are kept.
#[derive(Debug, Default)]
struct MadeDirectories(Vec<PathBuf>);

impl MadeDirectories {
    fn make(&mut self, path: &Path, mode: u32) -> Result<(), FileError> {
        let missing: Vec<_> = path.ancestors().take_while(|directory| is_missing(directory)).collect();
        self.0.extend(missing.into_iter().rev().map(Path::to_owned));
        make_missing(path, mode)
    }

    fn keep(&mut self) {
        self.0.clear();
    }
}

impl Drop for MadeDirectories {
    fn drop(&mut self) {
        // One that has something in it stays.
        self.0.iter().rev().for_each(|directory| drop(fs::remove_dir(directory)));
    }
}

fn is_missing(directory: &Path) -> bool {
    !directory.as_os_str().is_empty() && directory.symlink_metadata().is_err()
}

/// Finds out whether there is room for all that will be written, by writing as much. The settings will be written if `configuration` is the
/// directory for them. Some file systems compress, so the bytes are random.
fn find_room(certs: &Path, configuration: Option<&Path>) -> Result<(), FileError> {
    let random = Path::new("/dev/urandom");
    let mut bytes = [0; ROOM_BYTES];
    File::open(random).and_then(|mut file| file.read_exact(&mut bytes)).map_err(FileError::at(random))?;
    let files = FILES
        .map(|name| certs.join(name))
        .into_iter()
        .chain(configuration.map(|directory| directory.join("elklet.toml")));
    let tries: Vec<_> = files.map(|path| path.with_added_extension("try")).collect();
    let written = tries.iter().try_for_each(|path| {
        replace(path, &bytes, 0o600)
            .map_err(FileError::because(path, "cannot be written, and so the token was not used"))
    });
    // One that was not written is not there.
    tries.iter().for_each(|path| drop(fs::remove_file(path)));
    written
}
