//! The sandbox of a plugin that is not trusted: its rights, as steps that its process takes between fork and exec.
//!
//! An inspector has a user of its own with two capabilities: it reads every file (`CAP_DAC_READ_SEARCH`) and what the kernel shows
//! of every process (`CAP_SYS_PTRACE`). It sees the system read-only but for its own directory. Landlock is not for it: a process
//! with Landlock's rules may not look at others (their executables, environments and descriptors), which is what inspectors do.
//! A confined plugin has a user without capabilities, a network of its own without anything in it, and Landlock's rules.
//!
//! All memory is allocated before the fork. Each step stands on its own: one that the kernel does not have is told, and the others
//! are taken.

use std::ffi::{CStr, CString, OsStr};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, lchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use elklet_core::command::PluginName;
use rustix::fs::CWD;
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree,
};
use rustix::process::geteuid;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid, UnshareFlags};
use rustix::thread::{
    set_capabilities, set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::filter::{Filter, NEW};
use super::landlock::{self, Rules};
use super::{Applied, By, Confining};
use crate::config::{CAPABILITIES, Right, Rights};

/// The users that plugins have: above those of people, packages and containers, and below the sign bit.
const FIRST_USER: u32 = 2_000_000_000;
const USERS: u32 = 100_000_000;

/// Entries of a plugin's directory that the agent gives to the plugin's user. An archive has no more.
const MAX_GIVEN: usize = 10_000;

/// What a confined plugin may read and execute besides its own directory: what programs need to run, and names.
const READABLE: [&str; 20] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/sys/devices/system/cpu",
    "/etc/ld.so.cache",
    "/etc/ld.so.preload",
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/localtime",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/ssl/certs",
    "/dev/zero",
    "/dev/random",
    "/dev/urandom",
];

/// Directories that everybody may write. A plugin has its own in their place, so that it neither sees nor plants files there.
const SHARED: [&CStr; 3] = [c"/tmp", c"/var/tmp", c"/dev/shm"];

/// Bounds the memory that a plugin takes by files in each of them. Nothing is executed from there.
const OWN_TMP: &CStr = c"size=16m,nr_inodes=4096,mode=1777";
const OWN_TMP_NAME: &str = "16 MiB each";

/// A step of the process on its way into the sandbox.
#[derive(Debug)]
pub(super) enum Step {
    /// A network with nothing in it.
    NoNetwork,
    /// Mounts of its own, which are read-only but for the working directory and these.
    ReadOnly(Vec<CString>),
    /// Empty directories in the place of these, which the rules then let it write.
    OwnTmp(Vec<&'static CStr>, Option<Arc<Rules>>),
    /// A `/proc` that shows no process but those that it may trace, which the rules then let it read.
    HiddenProcesses(Option<Arc<Rules>>),
    /// This user, and its group alone.
    User(u32),
    /// These capabilities and no others.
    Capabilities(CapabilitySet),
    /// Rules for files.
    Files(Arc<Rules>),
    /// A filter of system calls. What counts those that it refuses has the next index.
    Calls(Filter),
}

/// Steps, each with the index of what it applies.
pub(super) type Steps = Vec<(Step, usize)>;

/// Prepares the sandbox for a plugin whose executable is in place. Says in `applied` what there will be of it.
pub(super) fn prepare(name: &PluginName, executable: &Path, rights: &Rights, applied: &mut Vec<Applied>) -> Steps {
    let is_root = geteuid().is_root();
    let mut steps = Vec::new();
    let mut add = |what: String, how: &'static str, step: io::Result<Step>| {
        let by = match step {
            Ok(step) => {
                steps.push((step, applied.len()));
                By::Kernel(how)
            }
            Err(error) => By::Nothing(error.to_string()),
        };
        applied.push(Applied { limit: what, by });
    };
    let for_root = |step| if is_root { Ok(step) } else { Err(io::Error::other("the agent is not root")) };
    let directory = executable.parent().unwrap_or(executable);
    let writable: Vec<&PathBuf> = rights.allow.iter().filter_map(written).collect();
    let has_network = rights.allow.contains(&Right::Network);

    if rights.is_confined && !has_network {
        add("no network".to_owned(), "network namespace", for_root(Step::NoNetwork));
    }
    // Configured paths contain no zero bytes.
    let paths = writable.iter().filter_map(|path| CString::new(path.as_os_str().as_bytes()).ok());
    add("read-only system".to_owned(), "mount namespace", for_root(Step::ReadOnly(paths.collect())));
    let rules = rights.is_confined.then(|| rules(directory, &writable, has_network).map(Arc::new));
    let for_mounts = || rules.as_ref().and_then(|rules| rules.as_ref().ok()).cloned();
    let own: Vec<_> = SHARED.into_iter().filter(|place| is_apart(place, directory, &writable)).collect();
    if !own.is_empty() {
        let names: Vec<_> = own.iter().map(|place| place.to_string_lossy()).collect();
        let what = format!("own {} of {OWN_TMP_NAME}", names.join(" "));
        add(what, "tmpfs", for_root(Step::OwnTmp(own, for_mounts())));
    }
    if rights.is_confined {
        add("other processes hidden".to_owned(), "hidepid", for_root(Step::HiddenProcesses(for_mounts())));
    }
    if !rights.allow.contains(&Right::Root) {
        let user = user_of(name);
        let step = for_root(Step::User(user)).and_then(|step| give(directory, executable, user).map(|()| step));
        add(format!("user {user}"), "its own", step);
    }
    let kept = capabilities(rights);
    add(format!("capabilities {}", in_words(kept)), "capability sets", Ok(Step::Capabilities(kept)));
    if let Some(rules) = rules {
        let covers = rules.as_ref().map_or("own files", |rules| rules.covers);
        add(covers.to_owned(), "landlock", rules.map(Step::Files));
    }
    let families: &[i32] = if rights.is_confined { &[] } else { &[libc::AF_UNIX, libc::AF_NETLINK] };
    let filter = Filter::new((!has_network).then_some(families));
    let filter = filter.ok_or_else(|| io::Error::other("it has no filter for this processor"));
    let what = if has_network { "system calls" } else { "system calls and sockets" };
    add(what.to_owned(), "seccomp", filter.map(Step::Calls));
    applied.push(Applied { limit: "refused calls counted".to_owned(), by: By::Kernel("seccomp") });
    steps
}

/// Returns true if a directory is there, and nothing that the plugin writes lies in it or around it.
fn is_apart(place: &CStr, directory: &Path, writable: &[&PathBuf]) -> bool {
    let place = Path::new(OsStr::from_bytes(place.to_bytes()));
    let overlaps = |path: &Path| {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
        path.starts_with(place) || place.starts_with(&path)
    };
    // A link leads to another of them.
    place.canonicalize().is_ok_and(|real| real == place)
        && !overlaps(directory)
        && !writable.iter().any(|path| overlaps(path))
}

fn written(right: &Right) -> Option<&PathBuf> {
    match right {
        Right::Write(path) => Some(path),
        _ => None,
    }
}

/// The user of a plugin. It follows from the name, so that it is the same after a restart and needs no account.
fn user_of(name: &PluginName) -> u32 {
    FIRST_USER + crc32c::crc32c(name.as_str().as_bytes()) % USERS
}

fn capabilities(rights: &Rights) -> CapabilitySet {
    let mut kept = CapabilitySet::empty();
    if !rights.is_confined {
        kept |= CapabilitySet::DAC_READ_SEARCH | CapabilitySet::SYS_PTRACE;
    }
    for right in &rights.allow {
        if let Right::Capability(number) = right {
            kept |= CapabilitySet::from_bits_retain(1 << number);
        }
    }
    // Nobody can keep what the agent does not have.
    kept & rustix::thread::capabilities(None).map_or(CapabilitySet::empty(), |own| own.permitted)
}

fn in_words(kept: CapabilitySet) -> String {
    let names: Vec<_> =
        CAPABILITIES.iter().enumerate().filter(|(n, _)| kept.bits() >> n & 1 != 0).map(|(_, name)| *name).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

fn rules(directory: &Path, writable: &[&PathBuf], network: bool) -> io::Result<Rules> {
    let rules = Rules::new(network)?;
    for path in READABLE {
        // Not every host has all of them.
        let _ = rules.allow(Path::new(path), landlock::READ);
    }
    let _ = rules.allow(Path::new("/dev/null"), landlock::ALL);
    for path in writable {
        let _ = rules.allow(path, landlock::ALL);
    }
    rules.allow(directory, landlock::ALL)?;
    Ok(rules)
}

/// Gives a plugin's directory, with what is in it, to the plugin's user.
///
/// A file with several names may be somebody else's file, to which the plugin has made a link. It is left alone.
fn give(directory: &Path, executable: &Path, user: u32) -> io::Result<()> {
    let to = |path: &Path| lchown(path, Some(user), Some(user));
    if fs::symlink_metadata(directory)?.uid() != user {
        let (mut left, mut given) = (vec![directory.to_owned()], 0);
        while let Some(path) = left.pop() {
            for entry in fs::read_dir(&path)? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                given += 1;
                if given > MAX_GIVEN {
                    return Err(io::Error::other(format!("its directory has more than {MAX_GIVEN} entries")));
                }
                if metadata.is_dir() {
                    left.push(entry.path());
                } else if metadata.nlink() == 1 {
                    to(&entry.path())?;
                }
            }
            to(&path)?;
        }
    }
    to(executable)
}

impl Step {
    /// Takes the step in the calling process, which was just forked: makes only system calls and allocates no memory.
    pub(super) fn take(&self, confining: &Confining, limit: usize) -> io::Result<()> {
        match self {
            // SAFETY: nothing that this process has or does depends on its network.
            Self::NoNetwork => Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?),
            Self::ReadOnly(writable) => read_only(writable, &confining.has_mounts),
            // Without mounts of its own, it would do this to the host.
            Self::OwnTmp(..) | Self::HiddenProcesses(_) if !confining.has_mounts.load(Ordering::Relaxed) => {
                Err(io::Error::from_raw_os_error(libc::EPERM))
            }
            Self::OwnTmp(places, rules) => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
                for place in places {
                    mount(c"tmpfs", *place, c"tmpfs", flags, OWN_TMP)?;
                    allow(rules.as_deref(), place, landlock::ALL)?;
                }
                Ok(())
            }
            Self::HiddenProcesses(rules) => {
                let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
                // The word is as old as a /proc for each mount (Linux 5.8). Before, the option would hold for the host's.
                mount(c"proc", c"/proc", c"proc", flags, c"hidepid=ptraceable")?;
                allow(rules.as_deref(), c"/proc", landlock::READ)
            }
            Self::User(user) => {
                let (uid, gid) = (Uid::from_raw(*user), Gid::from_raw(*user));
                set_keep_capabilities(true)?;
                set_thread_groups(&[])?;
                set_thread_res_gid(gid, gid, gid)?;
                Ok(set_thread_res_uid(uid, uid, uid)?)
            }
            Self::Capabilities(kept) => keep(*kept),
            Self::Files(rules) => rules.restrict_self(),
            Self::Calls(filter) => {
                let asks = filter.install_asking().and_then(|listener| confining.hand_over(listener.as_fd()));
                let Err(error) = asks else { return Ok(()) };
                confining.complain(limit + 1, &error);
                // Where both are there, this one counts.
                filter.install()
            }
        }
    }
}

/// Adds a rule for what was just mounted. A short path is not copied to memory that would have to be allocated.
fn allow(rules: Option<&Rules>, place: &CStr, rights: u64) -> io::Result<()> {
    rules.map_or(Ok(()), |rules| rules.allow(Path::new(OsStr::from_bytes(place.to_bytes())), rights))
}

/// Makes every mount read-only for the calling process, but for its working directory and these paths.
fn read_only(writable: &[CString], has_mounts: &AtomicBool) -> io::Result<()> {
    /// `struct mount_attr`.
    #[repr(C)]
    #[derive(Default)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        user_namespace: u64,
    }
    const MOUNT_SETATTR: libc::c_long = NEW + 442;
    const READ_ONLY: u64 = 1;

    // SAFETY: the process shares its working directory and its mounts with nobody who relies on them.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    // What the host mounts from now on is seen here too, and nothing from here there.
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
    has_mounts.store(true, Ordering::Relaxed);
    let own = open_tree(CWD, c".", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let exempt = |path: &CStr| -> io::Result<()> {
        let tree = open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
        Ok(move_mount(tree, c"", CWD, path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
    };
    // SAFETY: the kernel reads the structure and the path.
    let seal = |path: &CStr, attributes: &Attributes, flags: i32| unsafe {
        let size = size_of::<Attributes>();
        libc::syscall(MOUNT_SETATTR, libc::AT_FDCWD, path.as_ptr(), flags, &raw const *attributes, size)
    };
    // A mount of its own can be made writable again.
    let missing = writable.iter().filter(|path| exempt(path).is_err()).count();
    let sealed = Attributes { set: READ_ONLY, ..Attributes::default() };
    const RECURSIVE: i32 = 0x8000;
    if seal(c"/", &sealed, RECURSIVE) < 0 {
        return Err(io::Error::last_os_error());
    }
    let opened = Attributes { clear: READ_ONLY, ..Attributes::default() };
    for path in writable {
        let _ = seal(path, &opened, 0);
    }
    move_mount(&own, c"", CWD, c".", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    rustix::process::fchdir(&own)?;
    if missing > 0 { Err(io::Error::from_raw_os_error(libc::ENOENT)) } else { Ok(()) }
}

/// Gives up every capability but these, for ever.
fn keep(kept: CapabilitySet) -> io::Result<()> {
    // Who becomes another user keeps capabilities, but they have no effect any more.
    let own = rustix::thread::capabilities(None)?;
    set_capabilities(None, CapabilitySets { effective: own.permitted, ..own })?;
    for number in 0..u64::BITS {
        if kept.bits() >> number & 1 == 0 {
            // It fails for numbers that the kernel does not have, and without the right to do so. Then `no_new_privs` stands in.
            // SAFETY: a system call on plain numbers.
            unsafe { libc::prctl(libc::PR_CAPBSET_DROP, libc::c_ulong::from(number), 0, 0, 0) };
        }
    }
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: kept })?;
    for number in 0..u64::BITS {
        if kept.bits() >> number & 1 != 0 {
            // SAFETY: a system call on plain numbers.
            let done = unsafe {
                libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, libc::c_ulong::from(number), 0, 0)
            };
            if done < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}
