//! Writing files so that a reader, and a host that loses its power, has the old content or the new, never a part.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Puts `content` in the place of a file, with this mode.
///
/// # Errors
/// Whatever writing gives; the old file stays then.
pub(crate) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = Path::new(&new);
    let _ = fs::remove_file(new);
    let write = || {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(new)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(new, path)
    };
    write().inspect_err(|_| drop(fs::remove_file(new)))
}
