//! Puts a download in a plugin's place, and takes a plugin away.
//!
//! A stage is a directory beside the plugin's, on the same file system, so that a rename suffices. `plugin/` or a plugin's
//! directory may be a mount or a link to another disk. If the directory is a mount point itself, the stage lies in it.
//!
//! One rename exchanges the old and the new. File systems that cannot do that (NFS, jffs2, kernels before 3.15, filters
//! of containers) get two renames. Where not even those work (a mount point, the lower layer of an overlay), the
//! entries are moved one by one. [`recover`] puts back what a crash interrupts in between.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use elklet_core::command::PluginName;
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::files::{FileError, make_directory};
use crate::host::{HostRoot, mount_of};
use crate::sys::atomic::AtomicU64;
use crate::sys::remove::remove_tree;
use crate::sys::room::Room;

/// Marks in the names of stages and removed plugins: `.NAME.new.NUMBER`, `.NAME.removed.NUMBER`.
const NEW: &str = "new";
const REMOVED: &str = "removed";

/// The `NAME` of a stage inside a plugin's directory that is a mount point. No plugin has this name in its own directory.
const INSIDE: &str = "elklet";

/// The name in the stage of what was in the place, while the new one takes it.
const ASIDE: &str = "aside";

/// Most entries of `plugin/` that are looked at. It has about one for each plugin.
const MAX_LOOKED_AT: usize = 10_000;

/// The mode of `plugin/` and of a plugin's directory, which is the reference's. A plugin that has dropped root can
/// still reach its own files.
pub(super) const PLUGIN_MODE: u32 = 0o701;

/// A private directory. Dropping this deletes it.
#[derive(Debug)]
pub(super) struct Stage {
    path: PathBuf,
    room: Room,
}

impl Stage {
    /// Makes a stage for the plugin's directory `place`.
    pub(super) fn beside(place: &Path) -> Result<Self, FileError> {
        let place = real(place);
        let (directory, name) = match (place.parent(), place.file_name().and_then(OsStr::to_str)) {
            (Some(parent), Some(name)) if !is_mount_point(&place) => (parent, name),
            _ => (&*place, INSIDE),
        };
        let failed = FileError::at(directory);
        make_plugin_directory(directory).map_err(failed)?;
        let path = with_free_name(directory, name, NEW, |path| DirBuilder::new().mode(0o700).create(path));
        let path = path.map_err(failed)?;
        let room = Room::below(&path).map_err(failed)?;
        Ok(Self { path, room })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn room(&mut self) -> &mut Room {
        &mut self.room
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Err(error) = remove_tree(&self.path, &|| true) {
            log::warn!("{}: {error}; it is tried again when the agent starts", self.path.display());
        }
    }
}

/// Makes a directory of plugins. If others can write it, this only warns, because the agent executes what it has
/// verified, wherever that lies.
fn make_plugin_directory(path: &Path) -> io::Result<()> {
    match make_directory(path, PLUGIN_MODE) {
        Err(error) if path.is_dir() => {
            log::warn!("{}: {error}", path.display());
            Ok(())
        }
        made => made,
    }
}

/// Tries `make` with names until one is free, and returns its path. Others in this directory may be an earlier run's.
fn with_free_name(
    directory: &Path,
    name: &str,
    what: &str,
    make: impl Fn(&Path) -> io::Result<()>,
) -> io::Result<PathBuf> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    loop {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = directory.join(format!(".{name}.{what}.{number}"));
        match make(&path) {
            Ok(()) => return Ok(path),
            Err(error) if matches!(error.kind(), io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Resolves links to a directory.
fn real(place: &Path) -> PathBuf {
    place.canonicalize().unwrap_or_else(|_| place.to_owned())
}

fn is_mount_point(real: &Path) -> bool {
    mount_of(&HostRoot::live(), real).is_some_and(|mount| mount.point == real)
}

/// A file or directory that takes the place of another. It keeps the other one until it is dropped.
#[derive(Debug)]
pub(super) struct Staged {
    new: PathBuf,
    target: PathBuf,
    /// The name of the plugin's executable.
    name: String,
    state: State,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The new one lies in the stage.
    Waits,
    /// The new one is in its place, where nothing was before.
    InPlace,
    /// The new one has changed places with the old one.
    Exchanged,
    /// The new one's entries are in their place, and the old ones are aside.
    ByEntries,
}

impl Staged {
    /// Stages the file or directory `new`. It is to become the directory `place` of the plugin `name`, or the executable in it.
    pub(super) fn new(stage: Stage, new: PathBuf, place: &Path, name: &str, is_executable: bool) -> Self {
        let mut target = real(place);
        if is_executable {
            target.push(name);
        }
        Self { new, target, name: name.to_owned(), state: State::Waits, stage }
    }

    pub(super) fn install(&mut self) -> io::Result<()> {
        self.state = if self.target.symlink_metadata().is_ok() {
            self.exchange()?
        } else {
            if let Some(parent) = self.target.parent() {
                make_plugin_directory(parent)?;
            }
            fs::rename(&self.new, &self.target)?;
            State::InPlace
        };
        Ok(())
    }

    pub(super) fn put_back(&mut self) -> io::Result<()> {
        match self.state {
            State::Waits => {}
            State::InPlace => fs::rename(&self.target, &self.new)?,
            State::Exchanged => drop(self.exchange()?),
            State::ByEntries => self.put_back_entries()?,
        }
        self.state = State::Waits;
        Ok(())
    }

    fn exchange(&self) -> io::Result<State> {
        match renameat_with(CWD, &self.new, CWD, &self.target, RenameFlags::EXCHANGE) {
            Ok(()) => Ok(State::Exchanged),
            Err(Errno::INVAL | Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP | Errno::XDEV | Errno::BUSY) => {
                self.exchange_in_steps()
            }
            Err(error) => Err(error.into()),
        }
    }

    fn exchange_in_steps(&self) -> io::Result<State> {
        let aside = self.aside();
        match fs::rename(&self.target, &aside) {
            Ok(()) => {}
            Err(error) if may_not_move(&error) && self.target.is_dir() => return self.exchange_entries(),
            Err(error) => return Err(error),
        }
        if let Err(error) = fs::rename(&self.new, &self.target) {
            fs::rename(&aside, &self.target)?;
            return Err(error);
        }
        fs::rename(&aside, &self.new)?;
        Ok(State::Exchanged)
    }

    /// Keeps the directory and exchanges its entries. The executable leaves first and comes last, so that a directory
    /// without one shows where a crash has interrupted this.
    fn exchange_entries(&self) -> io::Result<State> {
        let aside = self.aside();
        DirBuilder::new().mode(0o700).create(&aside)?;
        move_entries(&self.target, &aside, &self.name, Executable::First, self.stage.path())?;
        if let Err(error) = move_entries(&self.new, &self.target, &self.name, Executable::Last, self.stage.path()) {
            self.put_back_entries()?;
            return Err(error);
        }
        Ok(State::ByEntries)
    }

    fn put_back_entries(&self) -> io::Result<()> {
        move_entries(&self.target, &self.new, &self.name, Executable::First, self.stage.path())?;
        move_entries(&self.aside(), &self.target, &self.name, Executable::Last, self.stage.path())?;
        fs::remove_dir(self.aside())
    }

    fn aside(&self) -> PathBuf {
        self.stage.path().join(ASIDE)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        if self.state == State::Waits {
            return;
        }
        // The new one is in place even if the directories cannot be synced. The old one is deleted only after this.
        for directory in self.target.ancestors().skip(1).take(2) {
            if let Err(error) = File::open(directory).and_then(|directory| directory.sync_all()) {
                log::warn!("{}: {error}; what was put there may not outlast a loss of power", directory.display());
            }
        }
    }
}

/// Returns true when a directory cannot be renamed although its entries may be: it is a mount point, or in the lower
/// layer of an overlay.
fn may_not_move(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::CrossesDevices | io::ErrorKind::ResourceBusy)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Executable {
    First,
    Last,
}

/// Moves a directory's entries to another one, except the stage. Deletes what cannot be moved (a directory of an
/// overlay's lower layer), because it would be in the way, and a download brings it back.
fn move_entries(from: &Path, to: &Path, name: &str, when: Executable, stage: &Path) -> io::Result<()> {
    let mut names = fs::read_dir(from)?.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
    names.retain(|name| from.join(name) != stage);
    names.sort_by_key(|other| (other == name) == (when == Executable::Last));
    for name in names {
        let (from, to) = (from.join(&name), to.join(&name));
        match fs::rename(&from, &to) {
            Err(error) if may_not_move(&error) => remove_tree(&from, &|| true)?,
            moved => moved?,
        }
    }
    Ok(())
}

/// Takes a plugin's directory away, so that the plugin may come back at once. Returns the path to delete, or `None` if
/// there is no directory. Empties a directory that cannot be moved. Takes away a link without its target.
///
/// # Errors
/// When it cannot be taken away.
pub(crate) fn take_away(place: &Path) -> io::Result<Option<PathBuf>> {
    let (Some(directory), Some(name)) = (place.parent(), place.file_name().and_then(OsStr::to_str)) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match with_free_name(directory, name, REMOVED, |path| fs::rename(place, path)) {
        Ok(away) => Ok(Some(away)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if may_not_move(&error) => {
            let away = with_free_name(place, INSIDE, REMOVED, |path| DirBuilder::new().mode(0o700).create(path))?;
            move_entries(place, &away, name, Executable::First, &away)?;
            Ok(Some(away))
        }
        Err(error) => Err(error),
    }
}

/// Examines what earlier runs have left. Puts back what a crash has interrupted, and returns the paths to delete.
pub(crate) fn recover(workdir: &Path) -> Vec<PathBuf> {
    let plugins = workdir.join("plugin");
    let mut left = leftovers(&plugins, None);
    for entry in fs::read_dir(&plugins).into_iter().flatten().flatten().take(MAX_LOOKED_AT) {
        let name = entry.file_name();
        if name.to_str().is_none_or(|name| name.parse::<PluginName>().is_err()) {
            continue;
        }
        let place = real(&entry.path());
        if let (true, Some(parent)) = (entry.path().is_symlink(), place.parent()) {
            left.extend(leftovers(parent, place.file_name()));
        }
        if is_mount_point(&place) {
            left.extend(leftovers(&place, Some(INSIDE.as_ref())).into_iter().map(|(stage, _)| (stage, place.clone())));
        }
    }
    for (stage, place) in &left {
        if let Err(error) = put_back_aside(stage, place) {
            log::error!("{}: what a crash has left aside cannot be put back: {error}", stage.display());
        }
    }
    left.into_iter().map(|(stage, _)| stage).collect()
}

/// Finds the stages and removed plugins in a directory, of one name or of all, each with its plugin's directory.
fn leftovers(directory: &Path, of: Option<&OsStr>) -> Vec<(PathBuf, PathBuf)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten().take(MAX_LOOKED_AT);
    let found = entries.filter_map(|entry| {
        let name = entry.file_name();
        let plugin = plugin_of(name.to_str()?).filter(|plugin| of.is_none_or(|of| of == *plugin))?;
        Some((entry.path(), directory.join(plugin)))
    });
    found.collect()
}

/// The NAME in `.NAME.new.NUMBER` or `.NAME.removed.NUMBER`.
fn plugin_of(name: &str) -> Option<&str> {
    let (rest, number) = name.strip_prefix('.')?.rsplit_once('.')?;
    let (plugin, what) = rest.rsplit_once('.')?;
    let is_ours = number.parse::<u64>().is_ok() && matches!(what, NEW | REMOVED);
    is_ours.then_some(plugin).filter(|plugin| !plugin.is_empty())
}

/// Puts back what lies aside in a stage if a crash came before the new one was in its place.
fn put_back_aside(stage: &Path, place: &Path) -> io::Result<()> {
    let aside = stage.join(ASIDE);
    let Ok(found) = aside.symlink_metadata() else { return Ok(()) };
    let Some(name) = place.file_name().and_then(OsStr::to_str) else { return Ok(()) };
    let executable = place.join(name);
    if executable.symlink_metadata().is_ok() {
        return Ok(());
    }
    log::warn!("{}: what an interrupted exchange has taken away is put back", place.display());
    if !found.is_dir() {
        return fs::rename(&aside, &executable);
    }
    if place.symlink_metadata().is_err() {
        return fs::rename(&aside, place);
    }
    for entry in fs::read_dir(&aside)? {
        remove_tree(&place.join(entry?.file_name()), &|| true)?;
    }
    move_entries(&aside, place, name, Executable::Last, stage)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A stage with a plugin in a work directory.
    fn staged(workdir: &Path) -> Staged {
        let place = workdir.join("plugin/p");
        let stage = Stage::beside(&place).expect("writable");
        let new = stage.path().join("tree");
        fs::create_dir(&new).expect("writable");
        fs::write(new.join("p"), "new").expect("writable");
        fs::create_dir(new.join("data")).expect("writable");
        Staged::new(stage, new, &place, "p", false)
    }

    fn names(directory: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(directory)
            .expect("readable")
            .map(|entry| entry.expect("readable").file_name().into_string().expect("text"))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn the_new_takes_the_place_of_the_old_and_gives_it_back() {
        let workdir = tempfile::tempdir().expect("a directory");
        let place = workdir.path().join("plugin/p/p");
        let read = || fs::read_to_string(&place).ok();
        let mut first = staged(workdir.path());
        first.install().expect("installed");
        assert_eq!(read().as_deref(), Some("new"));
        first.put_back().expect("put back");
        assert_eq!(read(), None);
        first.install().expect("installed again");
        drop(first);
        fs::write(&place, "old").expect("writable");

        let mut second = staged(workdir.path());
        for exchange in [Staged::exchange, Staged::exchange_in_steps, Staged::exchange_entries] {
            second.state = exchange(&second).expect("exchanged");
            assert_eq!(read().as_deref(), Some("new"));
            second.put_back().expect("put back");
            assert_eq!(read().as_deref(), Some("old"));
        }
        second.install().expect("installed");
        drop(second);
        assert_eq!(read().as_deref(), Some("new"));
        assert_eq!(names(&workdir.path().join("plugin")), ["p"], "the old is gone");
    }

    #[test]
    fn a_crash_between_two_renames_is_mended_at_the_next_start() {
        let workdir = tempfile::tempdir().expect("a directory");
        let plugins = workdir.path().join("plugin");
        let read = || fs::read_to_string(plugins.join("p/p")).ok();
        let recovered = || {
            let left = recover(workdir.path());
            left.iter().for_each(|left| remove_tree(left, &|| true).expect("deleted"));
            left.len()
        };
        fs::create_dir_all(plugins.join("p")).expect("writable");
        fs::write(plugins.join("p/p"), "old").expect("writable");
        // Leave each as it lies when the process is killed.
        let crash = |staged: Staged| std::mem::forget(staged);
        let whole = staged(workdir.path());
        fs::rename(&whole.target, whole.aside()).expect("renamed");
        crash(whole);
        assert_eq!((recovered(), read().as_deref()), (1, Some("old")));

        let mut plain = staged(workdir.path());
        plain.target.push("p");
        fs::rename(&plain.target, plain.aside()).expect("renamed");
        crash(plain);
        assert_eq!((recovered(), read().as_deref()), (1, Some("old")));

        fs::write(plugins.join("p/rules"), "old rules").expect("writable");
        let entries = staged(workdir.path());
        fs::create_dir(entries.aside()).expect("writable");
        move_entries(&entries.target, &entries.aside(), "p", Executable::First, entries.stage.path()).expect("moved");
        fs::rename(entries.new.join("data"), entries.target.join("data")).expect("renamed");
        crash(entries);
        assert_eq!((recovered(), read().as_deref()), (1, Some("old")));
        assert!(plugins.join("p/rules").exists());

        // The new one stays once it is in place.
        let mut done = staged(workdir.path());
        done.install().expect("installed");
        crash(done);
        assert_eq!((recovered(), read().as_deref()), (1, Some("new")));
        assert_eq!((recovered(), names(&plugins)), (0, vec!["p".to_owned()]));
    }

    #[test]
    fn a_plugin_behind_a_link_is_staged_where_it_lies() {
        let (workdir, disk) = (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("a directory"));
        fs::create_dir(workdir.path().join("plugin")).expect("writable");
        fs::create_dir(disk.path().join("x")).expect("writable");
        std::os::unix::fs::symlink(disk.path().join("x"), workdir.path().join("plugin/p")).expect("writable");
        let mut staged = staged(workdir.path());
        assert!(staged.stage.path().starts_with(disk.path().canonicalize().expect("it exists")));
        staged.install().expect("installed");
        assert!(disk.path().join("x/p").exists());
        std::mem::forget(staged);
        assert_eq!(recover(workdir.path()).len(), 1, "it is found there again");
        // The link goes with the plugin, and its target stays.
        let away = take_away(&workdir.path().join("plugin/p")).expect("taken away").expect("it was there");
        remove_tree(&away, &|| true).expect("deleted");
        assert!(disk.path().join("x/p").exists() && names(&workdir.path().join("plugin")).is_empty());
    }

    #[test]
    fn names_of_an_earlier_run_are_no_obstacle() {
        let workdir = tempfile::tempdir().expect("a directory");
        let place = workdir.path().join("plugin/p");
        assert_eq!(take_away(&place).expect("nothing is there"), None);
        for number in 0..50 {
            fs::create_dir_all(workdir.path().join(format!("plugin/.p.removed.{number}/x"))).expect("writable");
            fs::create_dir_all(workdir.path().join(format!("plugin/.p.new.{number}/x"))).expect("writable");
        }
        fs::create_dir(&place).expect("writable");
        take_away(&place).expect("taken away").expect("it was there");
        drop(Stage::beside(&place).expect("a stage"));
        assert_eq!(recover(workdir.path()).len(), 101);
        for (name, plugin) in [(".p.new.1", Some("p")), (".new.1", None), ("p.new.1", None), (".p.old.1", None)] {
            assert_eq!(plugin_of(name), plugin, "{name}");
        }
    }
}
