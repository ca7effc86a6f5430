//! A plugin's archive, whatever is in it, leaves only regular files and directories below the directory that it was unpacked
//! into, none of them writable by others or set-user-id; and what is kept of the last configuration is read as plugins with
//! safe names, or not at all.
#![no_main]

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use arbitrary::Arbitrary;
use elklet_agent::{decode_kept, unpack};
use flate2::Compression;
use flate2::write::GzEncoder;
use libfuzzer_sys::fuzz_target;
use tar::{Builder, EntryType, Header};

#[derive(Arbitrary, Debug)]
enum Input<'a> {
    /// Any bytes in place of the archive, or inside its compression.
    Bytes {
        gzipped: bool,
        bytes: &'a [u8],
    },
    /// Entries with heads that are right as far as their checksum goes.
    Entries(Vec<Entry<'a>>),
    Kept(&'a [u8]),
}

#[derive(Arbitrary, Debug)]
struct Entry<'a> {
    name: &'a [u8],
    kind: u8,
    mode: u16,
    contents: &'a [u8],
}

fuzz_target!(|input: Input<'_>| {
    match input {
        Input::Bytes { gzipped: false, bytes } => check(bytes),
        Input::Bytes { gzipped: true, bytes } => check(&gzip(bytes)),
        Input::Entries(entries) => {
            let mut tar = Builder::new(Vec::new());
            for entry in &entries {
                let mut header = Header::new_ustar();
                let length = entry.name.len().min(100);
                header.as_old_mut().name[..length].copy_from_slice(&entry.name[..length]);
                header.set_entry_type(EntryType::new(entry.kind));
                header.set_mode(entry.mode.into());
                header.set_size(entry.contents.len() as u64);
                header.set_cksum();
                tar.append(&header, entry.contents).expect("memory");
            }
            check(&gzip(&tar.into_inner().expect("memory")));
        }
        Input::Kept(bytes) => {
            let sum = crc32c::crc32c(bytes).to_le_bytes();
            let whole = [b"elklet plugins 1\n", &sum[..], bytes].concat();
            for plugin in decode_kept(&whole).into_iter().flatten() {
                assert!(!plugin.name.as_str().contains(['/', '.']));
            }
        }
    }
});

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::none());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn check(archive: &[u8]) {
    let outer = std::env::temp_dir().join(format!("elklet-fuzz-{}", std::process::id()));
    let inner = outer.join("a/b");
    fs::create_dir_all(&inner).expect("it is writable");
    // What is wrong with it is another matter.
    let _ = unpack(archive, &inner, &|| false);
    walk(&inner);
    assert_eq!(fs::read_dir(&outer).expect("readable").count(), 1, "nothing is outside");
    assert_eq!(fs::read_dir(outer.join("a")).expect("readable").count(), 1, "nothing is outside");
    fs::remove_dir_all(&outer).expect("it is writable");
}

fn walk(directory: &Path) {
    for entry in fs::read_dir(directory).expect("readable") {
        let entry = entry.expect("readable");
        let metadata = entry.metadata().expect("readable");
        assert!(metadata.is_file() || metadata.is_dir(), "{entry:?}");
        assert_eq!(metadata.permissions().mode() & 0o7022, 0, "{entry:?}");
        if metadata.is_dir() {
            walk(&entry.path());
        }
    }
}
