//! `elklet adopt`: a host goes on as it was when its agent moves, from the one directory of Elkeid's agent or of an earlier Elklet to
//! where things lie now.
//!
//! Everything is copied, so that what was there still works. What was copied is listed in the work directory, and `--undo` removes
//! just that.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::config::{ELKEID, Flags, Layout};
use crate::failure::Failure;
use crate::files::{FileError, make_missing, read_bounded, replace};
use crate::host::{HostRoot, executing};
use crate::sys::remove::remove_tree;
use crate::workdir::is_taken;

/// The list of what was copied, a path a line.
const LIST: &str = "adopted";

/// Most bytes of the list.
const MAX_LIST_BYTES: u64 = 64 << 10;

/// How deep directories are followed. Plugins' archives are a few deep.
const MAX_DEPTH: u32 = 32;

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Adoption {
    /// The directory of the agent that was here; Elkeid's if `None`.
    pub(crate) from: Option<PathBuf>,
    /// Do it, and not only say what would be done.
    pub(crate) is_meant: bool,
    /// Take it back.
    pub(crate) is_undone: bool,
}

/// Adopts, takes back, or says what would be done. Returns that, a line for each path.
///
/// # Errors
/// When an agent runs there or here, nothing is there, or something cannot be copied. What was copied until then is listed, so that
/// it can be undone.
pub(crate) fn run(flags: &Flags, adoption: &Adoption) -> Result<String, Failure> {
    let layout = Layout::find(flags).map_err(|error| Failure::Settings(error.to_string()))?;
    let from = adoption.from.as_deref().unwrap_or(Path::new(ELKEID));
    for directory in [from, &layout.workdir] {
        if is_taken(directory) {
            return Err(Failure::Settings(format!("an agent runs in {}: stop it first", directory.display())));
        }
    }
    // Elkeid's own agent takes no lock.
    if let Some(pid) = executing(&HostRoot::live(), &from.join("elkeid-agent")) {
        let why = format!("an agent runs in {}, as process {pid}: stop it first", from.display());
        return Err(Failure::Settings(why));
    }
    let system = |error: FileError| Failure::System(error.to_string());
    if adoption.is_undone {
        return undo(&layout, adoption.is_meant).map_err(system);
    }
    let plan = plan(from, &layout);
    if plan.iter().all(|(_, _, is_there)| *is_there) {
        let why = format!("{}: there is nothing that is not here already", from.display());
        return Err(Failure::Settings(why));
    }
    adopt(&plan, &layout, adoption.is_meant).map_err(system)
}

/// What goes where, and whether that place is taken. Keys and certificates of Elkeid's own agent are part of its program.
fn plan(from: &Path, layout: &Layout) -> Vec<(PathBuf, PathBuf, bool)> {
    let state = ["machine-id", "specified_env", "plugins.kept", "plugins.newest", "plugin", "spool"];
    let state = state.map(|name| (from.join(name), layout.workdir.join(name)));
    let configuration = [(from.join("elklet.toml"), layout.file.clone()), (from.join("certs"), layout.certs.clone())];
    let all = state.into_iter().chain(configuration).filter(|(from, to)| from != to && from.symlink_metadata().is_ok());
    all.map(|(from, to)| {
        let is_there = to.symlink_metadata().is_ok() && !is_empty(&to);
        (from, to, is_there)
    })
    .collect()
}

/// Returns true for an empty directory. Packages bring some.
fn is_empty(directory: &Path) -> bool {
    fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_none())
}

fn adopt(plan: &[(PathBuf, PathBuf, bool)], layout: &Layout, is_meant: bool) -> Result<String, FileError> {
    let mut said = String::new();
    let mut list = String::new();
    if is_meant {
        layout.make()?;
    }
    for (from, to, is_there) in plan {
        let (from_shown, shown) = (from.display(), to.display());
        if *is_there {
            said.push_str(&format!("{shown} is there already, and stays\n"));
            continue;
        }
        if !is_meant {
            said.push_str(&format!("{from_shown} would be copied to {shown}\n"));
            continue;
        }
        make_missing(to.parent().unwrap_or(Path::new("/")), 0o755)?;
        // Before it is copied: half of it can be taken back as well.
        list.push_str(&format!("{shown}\n"));
        let path = layout.workdir.join(LIST);
        replace(&path, list.as_bytes(), 0o600).map_err(FileError::at(&path))?;
        // It is empty, or not there.
        let _ = fs::remove_dir(to);
        copy(from, to, 0).map_err(FileError::at(from))?;
        said.push_str(&format!("{from_shown} is copied to {shown}\n"));
    }
    said.push_str(if is_meant {
        "what was there is as it was; elklet adopt --undo --yes removes what was copied\n"
    } else {
        "nothing was done: --yes does it\n"
    });
    Ok(said)
}

fn undo(layout: &Layout, is_meant: bool) -> Result<String, FileError> {
    let path = layout.workdir.join(LIST);
    let list = read_bounded(&path, MAX_LIST_BYTES).map_err(FileError::at(&path))?;
    let mut said = String::new();
    for copied in String::from_utf8_lossy(&list).lines() {
        if is_meant {
            remove_tree(Path::new(copied), &|| true).map_err(FileError::at(Path::new(copied)))?;
            said.push_str(&format!("{copied} is removed\n"));
        } else {
            said.push_str(&format!("{copied} would be removed\n"));
        }
    }
    if is_meant {
        fs::remove_file(&path).map_err(FileError::at(&path))?;
    } else {
        said.push_str("nothing was done: --yes does it\n");
    }
    Ok(said)
}

/// Copies a file, or a directory with what is in it. Links and devices are passed over: the agent makes none.
fn copy(from: &Path, to: &Path, depth: u32) -> io::Result<()> {
    let found = from.symlink_metadata()?;
    if found.is_file() {
        let mut source = File::options().read(true).custom_flags(OFlags::NOFOLLOW.bits().cast_signed()).open(from)?;
        let mut target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut source, &mut target)?;
        target.set_permissions(Permissions::from_mode(found.mode() & 0o755))?;
        return target.sync_all();
    }
    if !found.is_dir() {
        return Ok(());
    }
    if depth == MAX_DEPTH {
        return Err(io::Error::other(format!("directories are more than {MAX_DEPTH} deep")));
    }
    DirBuilder::new().mode(found.mode() & 0o755).create(to)?;
    for entry in fs::read_dir(from)? {
        let name = entry?.file_name();
        copy(&from.join(&name), &to.join(&name), depth + 1)?;
    }
    Ok(())
}
