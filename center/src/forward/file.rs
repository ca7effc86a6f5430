//! NDJSON in a file, which is rotated by size. A batch is on the disk before the position moves.

use super::sender::{Outcome, Records, Sending};
use super::settings::FileOutput;
use crate::serve::lock;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::task::spawn_blocking;

/// How each line begins that this program writes.
const LINE_BEGINS: &[u8] = b"{\"seq\":";
/// An unfinished line is looked for in so many bytes at the end of a file.
const TAIL: u64 = 32 << 20;

/// Writes batches to a file.
#[derive(Debug)]
pub(super) struct FileSender(Arc<Mutex<Rotated>>);

impl FileSender {
    pub(super) fn new(settings: FileOutput) -> Self {
        Self(Arc::new(Mutex::new(Rotated { settings, open: None })))
    }

    /// Bytes of a file.
    pub(super) fn max_size(&self) -> usize {
        usize::try_from(lock(&self.0).settings.max_size).unwrap_or(usize::MAX)
    }

    pub(super) fn send(&self, records: Records) -> Sending {
        let rotated = Arc::clone(&self.0);
        Box::pin(async move {
            let written = spawn_blocking(move || {
                let mut rotated = lock(&rotated);
                let written = rotated.write(&records);
                written.map_err(|error| format!("{}: {error}", rotated.settings.path.display()))
            });
            match written.await {
                Ok(Ok(())) => Outcome::taken(),
                Ok(Err(error)) => Outcome::again(error),
                Err(error) => Outcome::again(error),
            }
        })
    }
}

#[derive(Debug)]
struct Rotated {
    settings: FileOutput,
    open: Option<Current>,
}

#[derive(Debug)]
struct Current {
    file: File,
    bytes: u64,
    /// Which file it is, whatever its name is now.
    inode: (u64, u64),
}

impl Rotated {
    fn write(&mut self, records: &Records) -> io::Result<()> {
        let bytes: u64 = records.iter().map(|item| item.bytes as u64).sum();
        // Somebody else may have renamed or removed it, as logrotate does.
        let there = fs::metadata(&self.settings.path).ok().map(|there| (there.dev(), there.ino()));
        if self.open.as_ref().is_some_and(|open| there != Some(open.inode)) {
            self.open = None;
        }
        if self.open.is_none() {
            self.open = Some(Current::open(&self.settings.path)?);
        }
        if self.open.as_ref().is_some_and(|open| open.bytes > 0 && open.bytes + bytes > self.settings.max_size) {
            self.rotate()?;
            self.open = Some(Current::open(&self.settings.path)?);
        }
        let open = self.open.as_mut().expect("it was opened above");
        let written = open.append(records, bytes);
        if written.is_err() {
            // What it is like now is looked at anew.
            self.open = None;
        }
        written
    }

    /// Renames `PATH` to `PATH.1`, that to `PATH.2`, and so on. The last one goes.
    fn rotate(&mut self) -> io::Result<()> {
        self.open = None;
        let name = |number: usize| {
            let mut name = self.settings.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        let keep = self.settings.keep;
        if keep == 0 {
            return fs::remove_file(&self.settings.path);
        }
        for number in (1..keep).rev() {
            absent_is_fine(fs::rename(name(number), name(number + 1)))?;
        }
        fs::rename(&self.settings.path, name(1))?;
        sync_directory(&self.settings.path)
    }
}

impl Current {
    fn open(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path)?;
        let about = file.metadata()?;
        let inode = (about.dev(), about.ino());
        let mut bytes = about.len();
        if bytes > 0 {
            bytes = end_line(&mut file, bytes)?;
        } else {
            sync_directory(path)?;
        }
        Ok(Self { file, bytes, inode })
    }

    fn append(&mut self, records: &Records, bytes: u64) -> io::Result<()> {
        let mut all = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
        records.iter().for_each(|item| all.extend_from_slice(&item.body.text));
        let written = self.file.write_all(&all).and_then(|()| self.file.sync_data());
        if written.is_err() {
            // The batch comes again whole. Half of it, which may end in the middle of a line, does not stay.
            _ = self.file.set_len(self.bytes);
        }
        self.bytes += bytes;
        written
    }
}

/// Cuts off a line that a crash left unfinished, or ends one that somebody else did. Returns the file's length.
fn end_line(file: &mut File, bytes: u64) -> io::Result<u64> {
    let from = bytes.saturating_sub(TAIL);
    let mut last = [0];
    file.seek(SeekFrom::End(-1))?;
    file.read_exact(&mut last)?;
    if last == *b"\n" {
        return Ok(bytes);
    }
    file.seek(SeekFrom::Start(from))?;
    let mut tail = Vec::new();
    Read::by_ref(file).take(TAIL).read_to_end(&mut tail)?;
    let line = tail.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let unfinished = &tail[line..];
    if LINE_BEGINS.starts_with(unfinished) || unfinished.starts_with(LINE_BEGINS) {
        let whole = from + line as u64;
        file.set_len(whole)?;
        return Ok(whole);
    }
    file.write_all(b"\n")?;
    Ok(bytes + 1)
}

/// Has a name survive the loss of power.
fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::sender::tests::item;

    fn records(lines: &[&str]) -> Records {
        let item = |line: &&str| item(1, &format!("{{\"seq\":{line}}}\n"));
        lines.iter().map(item).collect()
    }

    fn rotated(dir: &Path, max_size: u64, keep: usize) -> Rotated {
        Rotated { settings: FileOutput { path: dir.join("out"), max_size, keep }, open: None }
    }

    fn text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn files_are_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = rotated(dir.path(), 20, 2);
        for line in ["1", "2", "3", "4", "5"] {
            out.write(&records(&[line])).unwrap();
            out.write(&records(&[line])).unwrap();
        }
        let twice = |n: u8| format!("{{\"seq\":{n}}}\n").repeat(2);
        assert_eq!(text(&dir.path().join("out")), twice(5));
        assert_eq!((text(&dir.path().join("out.1")), text(&dir.path().join("out.2"))), (twice(4), twice(3)));
        assert!(!dir.path().join("out.3").exists());
    }

    #[test]
    fn a_file_that_was_renamed_is_made_anew() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = rotated(dir.path(), 1 << 20, 2);
        out.write(&records(&["1"])).unwrap();
        fs::rename(dir.path().join("out"), dir.path().join("elsewhere")).unwrap();
        out.write(&records(&["2"])).unwrap();
        assert_eq!(text(&dir.path().join("out")), "{\"seq\":2}\n");
        assert_eq!(text(&dir.path().join("elsewhere")), "{\"seq\":1}\n");
    }

    #[test]
    fn an_unfinished_line_is_cut_off_and_a_foreign_one_is_ended() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        for (before, after) in [
            ("{\"seq\":1}\n{\"seq\":2,\"ag", "{\"seq\":1}\n{\"seq\":3}\n"),
            ("{\"seq\":1}\n{\"s", "{\"seq\":1}\n{\"seq\":3}\n"),
            ("hello", "hello\n{\"seq\":3}\n"),
        ] {
            fs::write(&path, before).unwrap();
            rotated(dir.path(), 1 << 20, 1).write(&records(&["3"])).unwrap();
            assert_eq!(text(&path), after);
        }
    }

    #[test]
    fn what_cannot_be_written_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut out = rotated(&dir.path().join("nowhere"), 1 << 20, 1);
        assert_eq!(out.write(&records(&["1"])).unwrap_err().kind(), io::ErrorKind::NotFound);
        if Path::new("/dev/full").exists() {
            let mut full =
                Current { file: OpenOptions::new().write(true).open("/dev/full").unwrap(), bytes: 0, inode: (0, 0) };
            assert_eq!(full.append(&records(&["1"]), 10).unwrap_err().kind(), io::ErrorKind::StorageFull);
        }
    }
}
