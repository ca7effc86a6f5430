//! Unpacks a plugin's archive, a gzipped tar, into a fresh directory.
//!
//! The archive has the configuration's hash, and this module still trusts nothing in it. It makes only regular files
//! and directories, each below the directory, each file once, and no more and no deeper ones than the limits allow. It
//! checks each bound before it reads: an entry that announces too much ends the unpacking.

use std::fmt;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use elklet_core::limits::{MAX_ARCHIVE_DEPTH, MAX_ARCHIVE_ENTRIES, MAX_ARCHIVE_NAME_BYTES, MAX_UNPACKED_BYTES};
use tar::{Archive, Entry, EntryType, PaxExtensions};

use crate::files::FileError;
use crate::sys::gzip;
use crate::sys::room::Room;

/// Bytes that are read and written at once.
const PIECE_BYTES: usize = 64 << 10;

/// The bits of a file's mode that are kept. Nobody but its owner may write the file, and running it makes nobody its owner.
const MODE_MASK: u32 = 0o755;

/// Unpacks `archive` into the directory `into`, which has to be empty and private. Blocks.
///
/// # Errors
/// What is wrong with the archive, or why a file cannot be written, or that `is_cancelled` returned true. Parts of it
/// may then lie in the directory.
pub fn unpack(archive: impl Read, into: &Path, is_cancelled: &dyn Fn() -> bool) -> Result<(), UnpackError> {
    let mut room = Room::below(into).map_err(FileError::at(into)).map_err(UnpackError::Directory)?;
    unpack_in(archive, into, &mut room, is_cancelled)
}

/// The same, within `room`.
pub(super) fn unpack_in(
    archive: impl Read,
    into: &Path,
    room: &mut Room,
    is_cancelled: &dyn Fn() -> bool,
) -> Result<(), UnpackError> {
    let mut archive = Archive::new(gzip::Decoder::new(archive));
    let mut tree = Tree { into, room, made: 0, is_cancelled };
    let mut bytes: u64 = 0;
    let mut name = None;
    // Iterate over raw entries, because names beyond a header's length come as entries of their own and need bounds
    // like all others.
    for (count, entry) in (1..).zip(archive.entries().map_err(UnpackError::Broken)?.raw(true)) {
        if count > MAX_ARCHIVE_ENTRIES {
            return Err(UnpackError::ManyEntries);
        }
        let mut entry = entry.map_err(UnpackError::Broken)?;
        // A size may be anything up to 2^64 - 1.
        bytes = bytes.saturating_add(entry.size());
        if bytes > MAX_UNPACKED_BYTES {
            return Err(UnpackError::ManyBytes);
        }
        match entry.header().entry_type() {
            EntryType::GNULongName => {
                let mut long = read_name(&mut entry)?;
                long.truncate(long.iter().position(|byte| *byte == 0).unwrap_or(long.len()));
                name = Some(long);
            }
            EntryType::XHeader => name = path_in(&read_name(&mut entry)?)?.or(name),
            // It applies to all entries, and nothing in it matters here.
            EntryType::XGlobalHeader => drop(read_name(&mut entry)?),
            kind => {
                let name = name.take().unwrap_or_else(|| entry.path_bytes().into_owned());
                let made = checked(&name).and_then(|target| match kind {
                    EntryType::Directory => tree.make_directories(&target),
                    // In old archives, a slash at the end marks a directory.
                    EntryType::Regular | EntryType::Continuous if name.ends_with(b"/") => {
                        tree.make_directories(&target)
                    }
                    EntryType::Regular | EntryType::Continuous if target.as_os_str().is_empty() => {
                        Err(EntryError::NoFile)
                    }
                    EntryType::Regular | EntryType::Continuous => tree.write_file(&mut entry, &target),
                    kind => Err(EntryError::Kind(kind)),
                });
                made.map_err(|why| UnpackError::Entry { name: shown(&name), why })?;
            }
        }
    }
    Ok(())
}

/// Why an archive was not unpacked. Unless the error says otherwise, whoever made the archive is at fault.
#[derive(Debug)]
pub enum UnpackError {
    /// It is no gzipped tar.
    Broken(io::Error),
    /// It has more than [`MAX_ARCHIVE_ENTRIES`].
    ManyEntries,
    /// It holds more than [`MAX_UNPACKED_BYTES`].
    ManyBytes,
    /// It has a name of so many bytes.
    LongName(u64),
    /// It says something of an entry, such as its size, apart from the entry.
    Apart(String),
    /// This entry cannot be unpacked.
    Entry {
        /// Its name, as it is quoted.
        name: String,
        /// Why it cannot.
        why: EntryError,
    },
    /// The host does not show the directory in which it is to be unpacked.
    Directory(FileError),
}

/// Why an entry of an archive was not unpacked.
#[derive(Debug)]
pub enum EntryError {
    /// Its name is empty, or has a zero byte.
    NoName,
    /// Its path has more than [`MAX_ARCHIVE_DEPTH`] levels.
    Deep,
    /// Its path leads out of the directory.
    Outside,
    /// Its path begins at the root.
    Absolute,
    /// It is a file, and its name is the directory's.
    NoFile,
    /// It is neither a file nor a directory.
    Kind(EntryType),
    /// More than [`MAX_ARCHIVE_ENTRIES`] files and directories would result.
    ManyFiles,
    /// The archive ends so many bytes before it does.
    EndsEarly(u64),
    /// The archive cannot be read there.
    NotRead(io::Error),
    /// The host cannot write it, or has no room for it.
    NotWritten(io::Error),
    /// Nobody wants it any more.
    Cancelled,
}

impl From<io::Error> for EntryError {
    fn from(error: io::Error) -> Self {
        Self::NotWritten(error)
    }
}

impl fmt::Display for UnpackError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(error) => write!(f, "the archive is broken: {error}"),
            Self::ManyEntries => write!(f, "the archive has more than {MAX_ARCHIVE_ENTRIES} entries"),
            Self::ManyBytes => write!(f, "the archive holds more than {MAX_UNPACKED_BYTES} bytes"),
            Self::LongName(bytes) => {
                write!(f, "the archive has a name of {bytes} bytes, the limit is {MAX_ARCHIVE_NAME_BYTES}")
            }
            Self::Apart(what) => write!(f, "the archive gives an entry's {what} apart, which is not supported"),
            Self::Entry { name, why } => write!(f, "{name} in the archive{why}"),
            Self::Directory(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for UnpackError {}

/// Completes "x in the archive".
impl fmt::Display for EntryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoName => f.write_str(" is no name"),
            Self::Deep => write!(f, " is deeper than {MAX_ARCHIVE_DEPTH} levels"),
            Self::Outside => f.write_str(" leads out of the plugin's directory"),
            Self::Absolute => f.write_str(" is an absolute path"),
            Self::NoFile => f.write_str(" names no file"),
            Self::Kind(kind) => write!(f, " is {}, expected a file or directory", kind_name(*kind)),
            Self::ManyFiles => write!(f, ": it leads to more than {MAX_ARCHIVE_ENTRIES} files and directories"),
            Self::EndsEarly(missing) => write!(f, ": the archive ends {missing} bytes early"),
            Self::NotRead(error) | Self::NotWritten(error) => write!(f, ": {error}"),
            Self::Cancelled => f.write_str(": its unpacking was cancelled"),
        }
    }
}

/// Reads an entry that describes the next one.
fn read_name(entry: &mut Entry<'_, impl Read>) -> Result<Vec<u8>, UnpackError> {
    if entry.size() > MAX_ARCHIVE_NAME_BYTES {
        return Err(UnpackError::LongName(entry.size()));
    }
    let mut contents = Vec::new();
    entry.read_to_end(&mut contents).map_err(UnpackError::Broken)?;
    Ok(contents)
}

/// Reads the path that a POSIX extended header gives the next entry. Refuses one that changes the entry's size, and
/// sparse files, because different readers would then see different archives.
fn path_in(header: &[u8]) -> Result<Option<Vec<u8>>, UnpackError> {
    let mut path = None;
    for record in PaxExtensions::new(header) {
        let record = record.map_err(UnpackError::Broken)?;
        match record.key_bytes() {
            b"path" => path = Some(record.value_bytes().to_vec()),
            key if key == b"size" || key.starts_with(b"GNU.sparse.") => {
                return Err(UnpackError::Apart(shown(key)));
            }
            _ => {}
        }
    }
    Ok(path)
}

/// Checks `name` and returns it as a path below the directory.
fn checked(name: &[u8]) -> Result<PathBuf, EntryError> {
    if name.is_empty() || name.contains(&0) {
        return Err(EntryError::NoName);
    }
    let mut path = PathBuf::new();
    let mut depth = 0;
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => {
                depth += 1;
                if depth > MAX_ARCHIVE_DEPTH {
                    return Err(EntryError::Deep);
                }
                path.push(part);
            }
            Component::CurDir => {}
            Component::ParentDir => return Err(EntryError::Outside),
            Component::RootDir | Component::Prefix(_) => return Err(EntryError::Absolute),
        }
    }
    Ok(path)
}

/// The files being unpacked, and their bounds.
struct Tree<'a> {
    into: &'a Path,
    room: &'a mut Room,
    /// Number of files and directories.
    made: u64,
    is_cancelled: &'a dyn Fn() -> bool,
}

impl Tree<'_> {
    /// Counts one more file or directory.
    fn count(&mut self) -> Result<(), EntryError> {
        self.made += 1;
        if self.made > MAX_ARCHIVE_ENTRIES {
            return Err(EntryError::ManyFiles);
        }
        Ok(self.room.take(0)?)
    }

    /// Makes a directory below the tree's root, and those on the way to it, where they are missing.
    fn make_directories(&mut self, path: &Path) -> Result<(), EntryError> {
        let mut at = self.into.to_owned();
        if self.into.join(path).is_dir() {
            return Ok(());
        }
        for part in path.components() {
            at.push(part);
            match DirBuilder::new().mode(0o700).create(&at) {
                Ok(()) => {
                    self.count()?;
                    // A plugin that has dropped root may still have to read its own files, whatever the umask is.
                    fs::set_permissions(&at, Permissions::from_mode(0o755))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && at.is_dir() => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn write_file(&mut self, entry: &mut Entry<'_, impl Read>, path: &Path) -> Result<(), EntryError> {
        if let Some(parent) = path.parent() {
            self.make_directories(parent)?;
        }
        self.count()?;
        let mode = entry.header().mode().map_err(EntryError::NotRead)? & MODE_MASK | 0o400;
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(self.into.join(path))?;
        file.set_permissions(Permissions::from_mode(mode))?;
        let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(entry.size()).unwrap_or(PIECE_BYTES))];
        let mut missing = entry.size();
        while missing > 0 {
            if (self.is_cancelled)() {
                return Err(EntryError::Cancelled);
            }
            match entry.read(&mut piece).map_err(EntryError::NotRead)? {
                0 => return Err(EntryError::EndsEarly(missing)),
                n => {
                    self.room.take(n as u64)?;
                    file.write_all(&piece[..n])?;
                    missing = missing.saturating_sub(n as u64);
                }
            }
        }
        Ok(())
    }
}

fn kind_name(kind: EntryType) -> String {
    match kind {
        EntryType::Symlink => "a symbolic link".to_owned(),
        EntryType::Link | EntryType::GNULongLink => "a hard link".to_owned(),
        EntryType::Char | EntryType::Block => "a device".to_owned(),
        EntryType::Fifo => "a pipe".to_owned(),
        other => format!("of the unknown kind {:?}", char::from(other.as_byte())),
    }
}

/// A name as errors quote it.
fn shown(name: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(name).chars().take(80).collect();
    format!("{text:?}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use flate2::Compression;
    use flate2::write::GzEncoder;
    use tar::{Builder, Header};

    use super::*;

    /// Adds an entry with any name, which the library's own builder would refuse.
    fn raw(builder: &mut Builder<Vec<u8>>, name: &[u8], kind: EntryType, size: u64, contents: &[u8]) {
        let mut header = Header::new_ustar();
        header.as_old_mut().name[..name.len()].copy_from_slice(name);
        header.set_entry_type(kind);
        header.set_size(size);
        header.set_mode(0o6777);
        header.set_cksum();
        builder.append(&header, contents).expect("memory");
    }

    fn zipped(tar: Builder<Vec<u8>>) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(&tar.into_inner().expect("memory")).expect("memory");
        encoder.finish().expect("memory")
    }

    fn unpacked(entries: &[(&[u8], EntryType, &[u8])]) -> Result<tempfile::TempDir, UnpackError> {
        let mut builder = Builder::new(Vec::new());
        for (name, kind, contents) in entries {
            raw(&mut builder, name, *kind, contents.len() as u64, contents);
        }
        let directory = tempfile::tempdir().expect("a directory");
        unpack(&zipped(builder)[..], directory.path(), &|| false).map(|()| directory)
    }

    #[test]
    fn files_and_directories_are_unpacked_with_modest_modes() {
        let long = format!("deep/{}/{}", "d".repeat(90), "f".repeat(120));
        let directory = unpacked(&[
            (b"./", EntryType::Directory, b""),
            (b"./p", EntryType::Regular, b"program"),
            (b"data/empty", EntryType::Regular, b""),
            (b"old/", EntryType::Regular, b""),
            (b"data/", EntryType::Directory, b""),
            (b"L", EntryType::GNULongName, format!("{long}\0").as_bytes()),
            (b"deep", EntryType::Regular, b"gnu"),
            (b"g", EntryType::XGlobalHeader, b"18 comment=nothing\n"),
            (b"x", EntryType::XHeader, b"17 path=pax/name\n"),
            (b"short", EntryType::Regular, b"pax"),
        ])
        .expect("it is in order");
        let read = |path: &str| fs::read(directory.path().join(path)).expect("it is there");
        assert_eq!(
            (&read("p")[..], &read("data/empty")[..], &read(&long)[..]),
            (&b"program"[..], &b""[..], &b"gnu"[..])
        );
        assert_eq!(read("pax/name"), b"pax");
        assert!(directory.path().join("old").is_dir());
        let mode = fs::metadata(directory.path().join("p")).expect("it is there").permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "whatever the umask is");
    }

    #[test]
    fn what_is_neither_file_nor_directory_below_is_refused() {
        let entries: [(&[u8], EntryType, &[u8], &str); 15] = [
            (b"../x", EntryType::Regular, b"x", "leads out"),
            (b"a/../../x", EntryType::Regular, b"x", "leads out"),
            (b"a/..", EntryType::Directory, b"", "leads out"),
            (b"/etc/x", EntryType::Regular, b"x", "absolute"),
            (b"./", EntryType::Symlink, b"", "a symbolic link"),
            (b"l", EntryType::Symlink, b"", "a symbolic link"),
            (b"l", EntryType::Link, b"", "a hard link"),
            (b"l", EntryType::GNULongLink, b"x", "a hard link"),
            (b"d", EntryType::Char, b"", "a device"),
            (b"d", EntryType::Block, b"", "a device"),
            (b"d", EntryType::Fifo, b"", "a pipe"),
            (b"d", EntryType::GNUSparse, b"", "of the unknown kind 'S'"),
            (b".", EntryType::Regular, b"x", "names no file"),
            (b"x", EntryType::XHeader, b"10 size=9\n", "\"size\" apart"),
            (b"x", EntryType::XHeader, b"nonsense", "broken"),
        ];
        for (name, kind, contents, why) in entries {
            let error = unpacked(&[(name, kind, contents)]).expect_err(why).to_string();
            assert!(error.contains(why), "{error}: {why}");
        }
        // Long names come another way.
        for (kind, contents) in [(EntryType::GNULongName, &b"/etc/x"[..]), (EntryType::XHeader, b"12 path=../x\n")] {
            unpacked(&[(b"n", kind, contents), (b"x", EntryType::Regular, b"x")]).expect_err("it leads out");
        }
    }

    #[test]
    fn a_file_comes_once() {
        let file: (&[u8], _, &[u8]) = (b"a", EntryType::Regular, b"1");
        assert!(
            unpacked(&[file, (b"./a", EntryType::Regular, b"2")]).expect_err("twice").to_string().contains("exists")
        );
        unpacked(&[file, (b"a", EntryType::Directory, b"")]).expect_err("as a directory");
        unpacked(&[file, (b"a/b", EntryType::Regular, b"")]).expect_err("as a parent");
        unpacked(&[(b"a", EntryType::Directory, b""), file]).expect_err("a directory as a file");
    }

    #[test]
    fn size_and_number_are_bounded_before_anything_is_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let refused = |builder: Builder<Vec<u8>>| {
            unpack(&zipped(builder)[..], directory.path(), &|| false).expect_err("it is too much").to_string()
        };
        let mut large = Builder::new(Vec::new());
        raw(&mut large, b"bomb", EntryType::Regular, MAX_UNPACKED_BYTES + 1, b"");
        assert!(refused(large).contains("more than 1073741824 bytes"));
        let mut name = Builder::new(Vec::new());
        raw(&mut name, b"n", EntryType::GNULongName, MAX_ARCHIVE_NAME_BYTES + 1, b"");
        assert!(refused(name).contains("a name of 8193 bytes"));
        let mut many = Builder::new(Vec::new());
        for _ in 0..=MAX_ARCHIVE_ENTRIES {
            raw(&mut many, b"a", EntryType::Directory, 0, b"");
        }
        assert!(refused(many).contains("more than 10000 entries"));
        // Directories that a path implies count as well.
        let mut implied = Builder::new(Vec::new());
        for top in 0..MAX_ARCHIVE_ENTRIES / 30 {
            raw(&mut implied, format!("{top}/{}f", "d/".repeat(40)).as_bytes(), EntryType::Regular, 0, b"");
        }
        assert!(refused(implied).contains("more than 10000 files and directories"));
        let mut deep = Builder::new(Vec::new());
        let path = format!("{}f", "a/".repeat(MAX_ARCHIVE_DEPTH));
        raw(&mut deep, b"n", EntryType::GNULongName, path.len() as u64, path.as_bytes());
        raw(&mut deep, b"f", EntryType::Regular, 0, b"");
        assert!(refused(deep).contains("deeper than 64 levels"));
        // An entry that announces more than it has.
        let mut short = Builder::new(Vec::new());
        raw(&mut short, b"short", EntryType::Regular, 100_000, b"x");
        assert!(refused(short).contains("early"));
    }

    /// Sizes of 2^64 - n would make a sum of sizes small again. Negative ones are as large.
    #[test]
    fn a_size_of_any_number_is_refused() {
        for size in [[0xff; 12], *b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xfc\0", *b"\x80\0\0\0\x80\0\0\0\0\0\0\0"] {
            let mut builder = Builder::new(Vec::new());
            raw(&mut builder, b"first", EntryType::Regular, 1024, &[0; 1024]);
            let mut header = Header::new_ustar();
            header.as_old_mut().name[..4].copy_from_slice(b"next");
            header.set_entry_type(EntryType::Regular);
            header.set_mode(0o600);
            header.as_old_mut().size = size;
            header.set_cksum();
            builder.append(&header, &[0; 4096][..]).expect("memory");
            let directory = tempfile::tempdir().expect("a directory");
            let error =
                unpack(&zipped(builder)[..], directory.path(), &|| false).expect_err("it is too large").to_string();
            assert!(error.contains("more than 1073741824 bytes") || error.contains("broken"), "{error}");
            assert!(!directory.path().join("next").exists());
        }
    }

    #[test]
    fn what_is_no_archive_is_an_error() {
        let directory = tempfile::tempdir().expect("a directory");
        for nonsense in [&b""[..], b"nonsense", &[0x1f, 0x8b, 8, 0], b"\x1f\x8b\x08\0\0\0\0\0\0\0garbage"] {
            unpack(nonsense, directory.path(), &|| false).expect_err("it is none");
        }
        let mut builder = Builder::new(Vec::new());
        raw(&mut builder, b"a", EntryType::Regular, 1, b"x");
        let whole = zipped(builder);
        unpack(&whole[..whole.len() / 2], directory.path(), &|| false).expect_err("half of one");
        let error = unpack(&whole[..], directory.path(), &|| true).expect_err("cancelled");
        assert!(matches!(error, UnpackError::Entry { why: EntryError::Cancelled, .. }), "{error}");
    }
}
