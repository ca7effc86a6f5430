//! Finds the agent's files and directories that others on the host could read or change.
//!
//! Whoever can write one of them, or any directory above it, can become this agent, its server, or root. Whoever can
//! read the key can speak to the server in this agent's name.

use std::collections::BTreeSet;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::process::{getegid, geteuid};

use crate::config::Settings;

/// Entries of a work directory that belong to the agent alone.
const IN_WORKDIR: [&str; 7] = ["plugin", "spool", "update", "tmp", "machine-id", "plugins.kept", "specified_env"];

/// Most plugins that are looked at. A work directory has no more of them.
const MAX_PLUGINS: usize = elklet_core::limits::MAX_PLUGINS_KNOWN;

/// Says what others could do, in one text for each file or directory.
pub(super) fn examine(settings: &Settings) -> Vec<String> {
    let workdir = &settings.layout.workdir;
    let mut examined = Examination::default();
    examined.secret(&settings.layout.certs.join("client.key"));
    for name in ["client.crt", "ca.crt"] {
        examined.kept(&settings.layout.certs.join(name));
    }
    let file = &settings.layout.file;
    if settings.has_proxy_password() {
        examined.secret(file);
    } else {
        examined.kept(file);
    }
    examined.kept(&settings.layout.log);
    for name in IN_WORKDIR {
        examined.kept(&workdir.join(name));
    }
    let plugins = fs::read_dir(workdir.join("plugin")).into_iter().flatten().flatten();
    for plugin in plugins.take(MAX_PLUGINS) {
        examined.kept(&plugin.path().join(plugin.file_name()));
        examined.kept(&plugin.path());
    }
    examined.findings
}

#[derive(Debug, Default)]
struct Examination {
    seen: BTreeSet<PathBuf>,
    findings: Vec<String>,
}

impl Examination {
    /// Checks a file that nobody else may read or write.
    fn secret(&mut self, path: &Path) {
        if let Ok(found) = fs::metadata(path)
            && is_open(&found, 0o044)
        {
            self.find(path, &found, "others can read it");
        }
        self.kept(path);
    }

    /// Checks a file or directory that nobody else may write, and every directory above it.
    fn kept(&mut self, path: &Path) {
        let Ok(path) = fs::canonicalize(path) else { return };
        for (depth, path) in path.ancestors().enumerate() {
            if !self.seen.insert(path.to_owned()) {
                return;
            }
            let Ok(found) = fs::symlink_metadata(path) else { continue };
            // In a sticky directory such as /tmp, nobody can remove another user's file.
            let is_sticky = depth > 0 && found.mode() & 0o1000 != 0;
            if !is_own(&found, path) {
                self.find(path, &found, &format!("it belongs to user {}, who can change it", found.uid()));
            } else if is_open(&found, 0o022) && !is_sticky {
                self.find(path, &found, "others can write it");
            }
        }
    }

    fn find(&mut self, path: &Path, found: &Metadata, what: &str) {
        self.findings.push(format!("{}: {what} (mode {:04o})", path.display(), found.mode() & 0o7777));
    }
}

/// Returns true when others have one of these rights: everybody, or a group that is neither root's nor this process's.
fn is_open(found: &Metadata, rights: u32) -> bool {
    let is_own_group = found.gid() == 0 || found.gid() == getegid().as_raw();
    let counted = if is_own_group { rights & 0o007 } else { rights };
    found.mode() & counted != 0
}

/// Returns true when it belongs to root, to this user, or to the owner of the directory around it.
fn is_own(found: &Metadata, path: &Path) -> bool {
    let owner = found.uid();
    let around = || path.parent().and_then(|parent| fs::metadata(parent).ok()).map(|parent| parent.uid());
    owner == 0 || owner == geteuid().as_raw() || around() == Some(owner)
}
