//! The directory of the store: opening it, setting corrupt files aside, dropping old ones.

use super::catalog::{Catalog, Entry, Name};
use super::date::Day;
use super::day::{self, Reader};
use super::error::{FailureKind, StoreError};
use super::lock;
use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Sequence numbers go so far ahead while a corrupt file lies in the directory, because nobody knows which it held. They last for
/// eight million starts.
const UNKNOWN_SEQS: u64 = 1 << 40;

/// How long another process may still hold the lock, and how often this looks.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_AGAIN: Duration = Duration::from_millis(20);

/// A file of records that is not whole and lies aside.
#[derive(Clone, Copy, Debug)]
pub(super) struct Corrupt {
    pub(super) name: Name,
    pub(super) bytes: u64,
}

/// The files of a store.
#[derive(Debug)]
pub(super) struct Files {
    dir: PathBuf,
    catalog: Mutex<Catalog>,
    corrupt: Mutex<Vec<Corrupt>>,
    /// Held locked for as long as the store is open.
    _lock: File,
}

/// Takes the lock. A process that is about to end may still have it, and so may a child of this one that was just made and has not
/// executed its program yet.
fn take_lock(file: &File) -> Result<(), TryLockError> {
    let began = Instant::now();
    loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if began.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_AGAIN),
            other => return other,
        }
    }
}

impl Files {
    /// Opens a directory. Returns the next sequence number as well.
    pub(super) fn open(dir: &Path) -> Result<(Self, u64), StoreError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| StoreError::Io(path, error)
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io(dir))?;
        let path = dir.join("lock");
        let lock_file =
            File::options().create(true).truncate(false).read(true).write(true).open(&path).map_err(io(&path))?;
        match take_lock(&lock_file) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(StoreError::InUse(dir.into())),
            Err(TryLockError::Error(error)) => return Err(StoreError::Io(path, error)),
        }
        let files = Self { dir: dir.into(), catalog: Mutex::default(), corrupt: Mutex::default(), _lock: lock_file };
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(io(dir))? {
            let entry = entry.map_err(io(dir))?;
            let Ok(text) = entry.file_name().into_string() else { continue };
            if let Some(name) = text.strip_suffix(".corrupt").and_then(Name::parse) {
                files.note_corrupt(name);
            }
            names.extend(Name::parse(&text));
            // What a crash left of a file that was being dropped.
            if let Some(name) = text.strip_suffix("-wal").or_else(|| text.strip_suffix("-shm")).and_then(Name::parse)
                && !files.path(name).exists()
            {
                fs::remove_file(entry.path()).map_err(io(&entry.path()))?;
            }
        }
        for name in names {
            files.look_into(name)?;
        }
        let stored =
            files.catalog().entries.iter().filter_map(|entry| entry.extent).map(|extent| extent.seq.1 + 1).max();
        let mut next = stored.unwrap_or(1);
        if !files.corrupt().is_empty() {
            next = (next / UNKNOWN_SEQS + 2) * UNKNOWN_SEQS;
        }
        Ok((files, next))
    }

    fn look_into(&self, name: Name) -> Result<(), StoreError> {
        let path = self.path(name);
        let extent = match Reader::open(&path).and_then(|reader| reader.check()) {
            Ok(Ok(extent)) => extent,
            Ok(Err(version)) if version > day::VERSION => return Err(StoreError::Newer(path, version, day::VERSION)),
            Ok(Err(version)) => {
                log::error!("{} has version {version}, which no program wrote; it is set aside", path.display());
                return self.set_aside(name).map_err(|error| StoreError::Io(path, error));
            }
            Err(error) if FailureKind::of(&error) == FailureKind::Corrupt => {
                log::error!("{} is not whole and is set aside: {error}", path.display());
                return self.set_aside(name).map_err(|error| StoreError::Io(path, error));
            }
            Err(error) => return Err(StoreError::Sqlite(path, error)),
        };
        lock(&self.catalog).add(Entry { name, extent, bytes: self.bytes(name) });
        Ok(())
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(super) fn path(&self, name: Name) -> PathBuf {
        self.dir.join(name.to_string())
    }

    /// The files as they are now.
    pub(super) fn catalog(&self) -> Catalog {
        lock(&self.catalog).clone()
    }

    /// Changes the catalog, or asks it something.
    pub(super) fn with_catalog<T>(&self, change: impl FnOnce(&mut Catalog) -> T) -> T {
        change(&mut lock(&self.catalog))
    }

    /// The corrupt files that lie aside.
    pub(super) fn corrupt(&self) -> Vec<Corrupt> {
        lock(&self.corrupt).clone()
    }

    /// Bytes that a file takes with its log.
    pub(super) fn bytes(&self, name: Name) -> u64 {
        ["", "-wal"].iter().map(|end| self.len(&format!("{name}{end}"))).sum()
    }

    fn len(&self, file: &str) -> u64 {
        fs::metadata(self.dir.join(file)).map_or(0, |file| file.len())
    }

    /// Prepares a name for a new file.
    pub(super) fn begin(&self, name: Name) -> io::Result<()> {
        for end in ["-wal", "-shm"] {
            remove(&self.dir.join(format!("{name}{end}")))?;
        }
        lock(&self.catalog).add(Entry { name, extent: None, bytes: 0 });
        Ok(())
    }

    /// Makes sure that the names in the directory survive the loss of power.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.dir)?.sync_all()
    }

    /// Gives a corrupt file a name under which nobody looks into it.
    pub(super) fn set_aside(&self, name: Name) -> io::Result<()> {
        fs::rename(self.path(name), self.dir.join(format!("{name}.corrupt")))?;
        for end in ["-wal", "-shm"] {
            match fs::rename(self.dir.join(format!("{name}{end}")), self.dir.join(format!("{name}.corrupt{end}"))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        lock(&self.catalog).remove(name);
        self.note_corrupt(name);
        Ok(())
    }

    fn note_corrupt(&self, name: Name) {
        lock(&self.catalog).forbid(name);
        let bytes = self.len(&format!("{name}.corrupt")) + self.len(&format!("{name}.corrupt-wal"));
        lock(&self.corrupt).push(Corrupt { name, bytes });
    }

    /// Drops a file. A search that has it open reads on.
    pub(super) fn drop_file(&self, name: Name) -> io::Result<()> {
        // Nobody opens it from now on.
        lock(&self.catalog).remove(name);
        for end in ["", "-wal", "-shm"] {
            remove(&self.dir.join(format!("{name}{end}")))?;
        }
        Ok(())
    }

    /// Drops corrupt files: those older than `keep_ms` if the time is known, and the oldest ones of those that do not fit into `room`.
    pub(super) fn drop_corrupt(&self, room: u64, keep_ms: i64, now_ms: Option<i64>) -> io::Result<()> {
        let mut corrupt = lock(&self.corrupt);
        corrupt.sort_by_key(|file| file.name);
        let mut total: u64 = corrupt.iter().map(|file| file.bytes).sum();
        let old = |day: Day| now_ms.is_some_and(|now| day.end_ms() < now.saturating_sub(keep_ms));
        while let Some(&file) = corrupt.first().filter(|file| total > room || old(file.name.day)) {
            for end in ["", "-wal", "-shm"] {
                remove(&self.dir.join(format!("{}.corrupt{end}", file.name)))?;
            }
            total -= file.bytes;
            corrupt.remove(0);
        }
        Ok(())
    }
}

/// Removes a file that may not be there.
fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
