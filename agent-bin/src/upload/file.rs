//! The file to upload. It is found by its path and checked against the rules, and read through the descriptor that was checked.

use std::ffi::OsStr;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC};

use crate::config::UploadRules;
use crate::files;

/// Why a file is not uploaded, or not to its end.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// The server's fault: its path has no beginning.
    NotAbsolute,
    /// The server's fault: it names something of this kind.
    NoFile(&'static str),
    /// The server's fault: the host's policy keeps this file to itself.
    NotAllowed(PathBuf),
    /// The server's fault: this is the agent's key, or something else that no server may have.
    Secret(PathBuf),
    /// The server's fault: it names a file of more bytes than it has time for.
    TooLong { bytes: u64, limit: u64 },
    /// The host's fault.
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotAbsolute => f.write_str("not an absolute path"),
            Self::NoFile(kind) => write!(f, "{kind}, expected a regular file"),
            Self::NotAllowed(real) => write!(f, "{} is in no directory of upload.allow", real.display()),
            Self::Secret(real) => write!(f, "{} never leaves this host", real.display()),
            Self::TooLong { bytes, limit } => write!(f, "size limit exceeded: ({bytes}/{limit})"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Refusal {}

/// A regular file that may be uploaded.
#[derive(Debug)]
pub(super) struct UploadFile {
    file: File,
    /// Bytes that are still to be read. They do not include what is appended meanwhile.
    left: u64,
    /// False for a file of /proc, which has no size and ends where it ends.
    is_sized: bool,
}

impl UploadFile {
    /// Opens the file at a path. Blocks.
    ///
    /// First opens a descriptor that can only be looked at (`O_PATH`), checks what it shows, and then opens that very file
    /// for reading. So no link that changes meanwhile leads elsewhere, and opening has no effect on devices or pipes.
    ///
    /// # Errors
    /// Why the file may not or cannot be read.
    pub(super) fn open(path: &Path, rules: &UploadRules, max_bytes: u64) -> Result<Self, Refusal> {
        if !path.is_absolute() {
            return Err(Refusal::NotAbsolute);
        }
        let found = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from)?;
        let found = File::from(found);
        let by_descriptor = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
        let meta = found.metadata()?;
        let kind = meta.file_type();
        if !kind.is_file() {
            return Err(Refusal::NoFile(files::named(kind)));
        }
        let real = fs::read_link(&by_descriptor)?;
        if !is_allowed(&real, &meta, rules) {
            return Err(Refusal::NotAllowed(real));
        }
        if is_secret(&found, &real, &meta, rules)? {
            return Err(Refusal::Secret(real));
        }
        let size = meta.len();
        if size > max_bytes {
            return Err(Refusal::TooLong { bytes: size, limit: max_bytes });
        }
        let file = File::options().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(&by_descriptor)?;
        let is_sized = size > 0;
        Ok(Self { file, left: if is_sized { size } else { max_bytes }, is_sized })
    }

    /// Reads the next at most `max` bytes. There are none at the end. Blocks.
    ///
    /// # Errors
    /// When the file cannot be read, has become shorter, or is longer than it may be.
    pub(super) fn read(&mut self, max: u64) -> io::Result<Vec<u8>> {
        let mut piece = Vec::new();
        if self.left > 0 {
            (&mut self.file).take(max.min(self.left)).read_to_end(&mut piece)?;
            self.left -= piece.len() as u64;
            if piece.is_empty() && self.is_sized {
                let why = format!("it has become shorter: {} bytes are missing", self.left);
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, why));
            }
        } else if !self.is_sized && self.file.read(&mut [0])? > 0 {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, "size limit exceeded"));
        }
        Ok(piece)
    }
}

/// Returns true when the rules allow the file with this real path.
fn is_allowed(real: &Path, meta: &fs::Metadata, rules: &UploadRules) -> bool {
    rules.allow.iter().any(|allowed| {
        // In another mount namespace, which /proc/PID/root leads to, the same path may be another file.
        let is_ours = || is_same(real, meta);
        let is_under = || fs::canonicalize(allowed).is_ok_and(|allowed| real.starts_with(allowed));
        allowed == Path::new("/") || (is_under() && is_ours())
    })
}

/// Returns true for what stays on the host whatever the rules allow.
///
/// That is the secret files under any name, the memory of processes and of the kernel, which has theirs, and all that the kernel tells
/// of this process, in whose environment proxies have their passwords. Trusted plugins inherit that, so no environment is sent.
fn is_secret(found: &File, real: &Path, meta: &fs::Metadata, rules: &UploadRules) -> io::Result<bool> {
    if rules.secret.iter().any(|secret| is_same(secret, meta)) {
        return Ok(true);
    }
    if rustix::fs::fstatfs(found)?.f_type != PROC_SUPER_MAGIC {
        return Ok(false);
    }
    let is_thread_of_ours = |name: &OsStr| {
        name.as_bytes().iter().all(u8::is_ascii_digit) && Path::new("/proc/self/task").join(name).exists()
    };
    let is_memory =
        real.file_name().is_some_and(|name| ["mem", "environ", "kcore"].iter().any(|memory| name == *memory));
    Ok(is_memory || real.iter().any(is_thread_of_ours))
}

/// Returns true when the file at the path is this one.
fn is_same(path: &Path, meta: &fs::Metadata) -> bool {
    fs::metadata(path).is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn open(path: &Path, allow: &[&Path]) -> Result<UploadFile, Refusal> {
        let allow = allow.iter().map(|path| path.to_path_buf()).collect();
        UploadFile::open(path, &UploadRules { allow, secret: Vec::new() }, 1000)
    }

    fn refusal(path: &Path, allow: &[&Path]) -> String {
        open(path, allow).expect_err("it is refused").to_string()
    }

    #[test]
    fn what_a_path_leads_to_decides() {
        let dir = tempfile::tempdir().expect("a directory");
        let dir = fs::canonicalize(dir.path()).expect("it exists");
        let (inside, outside) = (dir.join("in"), dir.join("out"));
        fs::create_dir(&inside).expect("writable");
        fs::create_dir(&outside).expect("writable");
        fs::create_dir(dir.join("in-between")).expect("writable");
        for path in ["in/file", "out/file", "in-between/file"] {
            fs::write(dir.join(path), path).expect("writable");
        }
        symlink(dir.join("out/file"), dir.join("in/link")).expect("writable");
        symlink(&outside, dir.join("in/way")).expect("writable");
        symlink(&inside, dir.join("alias")).expect("writable");
        symlink(dir.join("in/file"), dir.join("out/back")).expect("writable");

        let allow = [&*inside];
        let read = |path: &str, allow: &[&Path]| {
            open(&dir.join(path), allow)
                .map(|mut source| source.read(100).expect("readable"))
                .map_err(|why| why.to_string())
        };
        assert_eq!(read("in/file", &allow).as_deref(), Ok(&b"in/file"[..]));
        assert_eq!(read("out/back", &allow).as_deref(), Ok(&b"in/file"[..]), "the file is what counts");
        assert_eq!(read("alias/file", &allow).as_deref(), Ok(&b"in/file"[..]));
        assert_eq!(read("in/file", &[&dir.join("alias")]).as_deref(), Ok(&b"in/file"[..]), "so may the rule be a link");
        assert_eq!(read("in/file", &[&dir.join("in/file")]).as_deref(), Ok(&b"in/file"[..]), "or a file");
        assert_eq!(read("out/file", &[Path::new("/")]).as_deref(), Ok(&b"out/file"[..]));
        for path in ["out/file", "in/link", "in/way/file", "in/../out/file", "in-between/file"] {
            let why = refusal(&dir.join(path), &allow);
            assert!(why.ends_with("is in no directory of upload.allow"), "{path}: {why}");
        }
        assert!(refusal(&dir.join("in/file"), &[]).contains("upload.allow"));
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.is_ok_and(|status| status.success()));
        let _socket = std::os::unix::net::UnixListener::bind(dir.path().join("socket")).expect("bindable");
        for (path, what) in [
            (dir.path().to_owned(), "a directory, expected"),
            (fifo, "a named pipe, expected"),
            (dir.path().join("socket"), "a socket, expected"),
            (PathBuf::from("/dev/null"), "a device, expected"),
            (dir.path().join("none"), "No such file"),
            (PathBuf::from("relative"), "not an absolute path"),
            (PathBuf::from("/etc/\0"), "Invalid argument"),
        ] {
            let why = refusal(&path, &[Path::new("/")]);
            assert!(why.contains(what), "{why}");
        }
    }

    #[test]
    fn sizes_are_held_to() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        fs::write(&path, [b'x'; 1001]).expect("writable");
        assert!(refusal(&path, &[Path::new("/")]).ends_with("size limit exceeded: (1001/1000)"));
        fs::write(&path, [b'x'; 1000]).expect("writable");
        let mut source = open(&path, &[Path::new("/")]).expect("at the limit");
        assert_eq!(source.read(600).map(|piece| piece.len()).ok(), Some(600));
        // What is appended is left out. What is cut off is an error.
        fs::write(&path, [b'x'; 5000]).expect("writable");
        assert_eq!(source.read(600).map(|piece| piece.len()).ok(), Some(400));
        assert_eq!(source.read(600).map(|piece| piece.len()).ok(), Some(0));
        fs::write(&path, [b'x'; 900]).expect("writable");
        let mut source = open(&path, &[Path::new("/")]).expect("below the limit");
        fs::write(&path, [b'x'; 10]).expect("writable");
        assert_eq!(source.read(600).map(|piece| piece.len()).ok(), Some(10));
        let error = source.read(600).expect_err("it is shorter now");
        assert_eq!(error.to_string(), "it has become shorter: 890 bytes are missing");
        // A file of /proc.
        let mut status = open(Path::new("/proc/1/status"), &[Path::new("/")]).expect("a regular file");
        assert!(!status.read(600).expect("readable").is_empty());
    }

    #[test]
    fn a_secret_stays_whatever_it_is_called() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = |name: &str| dir.path().join(name);
        fs::write(path("client.key"), "key").expect("writable");
        fs::write(path("other"), "other").expect("writable");
        symlink(path("client.key"), path("link")).expect("writable");
        fs::hard_link(path("client.key"), path("hard")).expect("writable");
        let rules = UploadRules { allow: vec!["/".into()], secret: vec![path("gone"), path("client.key")] };
        let open = |path: &Path| UploadFile::open(path, &rules, 1000).map(drop).map_err(|why| why.to_string());
        assert_eq!(open(&path("other")), Ok(()));
        for name in ["client.key", "link", "hard"] {
            let why = open(&path(name)).expect_err(name);
            assert!(why.ends_with(" never leaves this host"), "{name}: {why}");
        }
    }

    #[test]
    fn a_process_keeps_its_memory_and_this_one_keeps_everything() {
        let pid = std::process::id();
        let thread = rustix::thread::gettid().as_raw_nonzero();
        let own =
            ["/proc/self/environ".to_owned(), format!("/proc/{thread}/maps"), format!("/proc/{pid}/task/{thread}/mem")];
        // Not every kernel shows its memory.
        let kernels = Path::new("/proc/kcore").exists().then_some("/proc/kcore");
        for path in own
            .iter()
            .map(String::as_str)
            .chain(["/proc/1/mem", "/proc/1/environ", "/proc/thread-self/status"])
            .chain(kernels)
        {
            let why = refusal(Path::new(path), &[Path::new("/")]);
            assert!(why.ends_with(" never leaves this host"), "{path}: {why}");
        }
    }
}
