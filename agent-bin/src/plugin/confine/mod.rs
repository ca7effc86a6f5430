//! Confines plugins: limits on memory, processor, processes and open files, no new rights, no life without the agent, and a
//! sandbox (`sandbox`) for those that are not trusted.
//!
//! Each limit is enforced by the first of these that the host has: a control group of version 2 below the agent's own, where
//! that is delegated to it; a group of version 1; a resource limit of the process, for memory (`RLIMIT_DATA`) and always for
//! open files. The agent itself keeps a directory's quota, by measuring. A plugin starts even if a limit cannot be enforced. The log
//! says so, and [`Applied`] tells whoever asks.

mod cgroup;
mod filter;
mod landlock;
mod refusals;
mod sandbox;

use std::fmt;
use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process;
use std::sync::atomic::AtomicBool;

use elklet_core::command::PluginName;
use elklet_core::time::Millis;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};

pub(crate) use self::cgroup::Group;
use self::cgroup::{Controller, Hierarchies};
pub(crate) use self::filter::restrict_thread;
pub(crate) use self::refusals::Refusals;
use super::process::raised;
use super::quota::Quota;
use crate::config::{Confinement, Rights, Settings};

/// Pause before another attempt to remove a group that is not empty.
const REMOVE_AGAIN_MS: u64 = 1_000;

/// Number of attempts. They kill the group's processes each time, so those that are left cannot be killed.
const REMOVE_ATTEMPTS: u32 = 30;

/// How a limit is enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum By {
    /// A control group of version 1 or 2.
    Cgroup(u8),
    /// A resource limit of each process.
    Rlimit,
    /// The agent, which measures from time to time.
    Agent,
    /// Another mechanism of the kernel.
    Kernel(&'static str),
    /// Nothing, for this reason.
    Nothing(String),
}

/// A limit and how it is enforced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Applied {
    limit: String,
    by: By,
}

impl Applied {
    /// Says what the kernel does, or why it does not.
    pub(crate) fn by_kernel(limit: &str, how: &'static str, done: io::Result<()>) -> Self {
        let by = done.map_or_else(|error| By::Nothing(error.to_string()), |()| By::Kernel(how));
        Self { limit: limit.to_owned(), by }
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.by {
            By::Cgroup(version) => write!(f, "{} (cgroup v{version})", self.limit),
            By::Rlimit => write!(f, "{} (rlimit)", self.limit),
            By::Agent => write!(f, "{} (agent)", self.limit),
            By::Kernel(how) => write!(f, "{} ({how})", self.limit),
            By::Nothing(why) => write!(f, "{} not applied: {why}", self.limit),
        }
    }
}

/// Confines plugins.
#[derive(Debug)]
pub(crate) struct Confiner {
    settings: Settings,
    hierarchies: Hierarchies,
    /// Groups of ended plugins, when to try again to remove each, and how often that was tried.
    leaving: Vec<(Group, Millis, u32)>,
    groups: u64,
}

/// What confines a process between fork and exec.
#[derive(Debug)]
pub(crate) struct Confining {
    confinement: Confinement,
    /// What it may do, unless it is trusted, and its steps to that.
    rights: Option<Rights>,
    steps: sandbox::Steps,
    /// Set in the process that was forked, once nothing that it mounts is mounted for the host.
    has_mounts: AtomicBool,
    agent: libc::pid_t,
    /// `cgroup.procs` of its groups, each with the index of the limit that it is for.
    groups: Vec<(File, usize)>,
    /// Resource, value, and the index of the limit that each is for.
    rlimits: Vec<(Resource, libc::rlim_t, usize)>,
    /// Sockets for failures: the index of the limit, and the error's number. One message has the filter's listener, and no failure.
    complaints: (OwnedFd, OwnedFd),
    applied: Vec<Applied>,
    made: Vec<Group>,
}

/// A resource for the C library's `setrlimit`. Its type differs between libraries.
#[cfg(target_env = "gnu")]
type Resource = libc::__rlimit_resource_t;
#[cfg(not(target_env = "gnu"))]
type Resource = libc::c_int;

impl Confiner {
    /// Finds out what the host offers, if any plugin has limits.
    pub(crate) fn new(settings: &Settings) -> Self {
        let hierarchies = Hierarchies::default();
        let mut confiner = Self { settings: settings.clone(), hierarchies, leaving: Vec::new(), groups: 0 };
        confiner.configure(settings);
        confiner
    }

    /// Uses other settings for plugins that start from now on.
    pub(crate) fn configure(&mut self, settings: &Settings) {
        self.settings = settings.clone();
        let mut sections = [None].into_iter().chain(settings.plugin.values().map(Some));
        let limited =
            |own| wanted(&settings.plugins.confinement(own, settings.plugins.may_have_sandbox(own))).next().is_some();
        if self.hierarchies.is_empty() && sections.any(limited) {
            self.hierarchies = Hierarchies::discover();
        }
    }

    /// Prepares to confine a plugin that is about to start.
    ///
    /// # Errors
    /// When no sockets can be made.
    pub(crate) fn confine(&mut self, name: &PluginName) -> io::Result<Confining> {
        let own = self.settings.plugin.get(name.as_str());
        let rights = self.settings.plugins.rights(name.as_str(), own);
        let confinement = self.settings.plugins.confinement(own, rights.is_some());
        let (read, write) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // They lie above the descriptors that have a meaning in a plugin.
        let complaints = (raised(read)?, raised(write)?);
        let mut confining = Confining {
            confinement,
            rights,
            steps: Vec::new(),
            has_mounts: AtomicBool::new(false),
            agent: libc::pid_t::try_from(process::id()).map_err(io::Error::other)?,
            groups: Vec::new(),
            rlimits: Vec::new(),
            complaints,
            applied: Vec::new(),
            made: Vec::new(),
        };
        self.groups += 1;
        let group_name = format!("{}-{}-{name}", cgroup::prefix(), self.groups);
        for (controller, value, limit) in wanted(&confinement) {
            let by = match self.hierarchies.limit(&group_name, controller, value, &mut confining.made) {
                Ok((version, join)) => {
                    if let Some(join) = join {
                        confining.groups.push((join, confining.applied.len()));
                    }
                    By::Cgroup(version)
                }
                Err(_) if controller == Controller::Memory && confinement.memory_by_rlimit => {
                    confining.rlimits.push((libc::RLIMIT_DATA, value, confining.applied.len()));
                    By::Rlimit
                }
                Err(why) => By::Nothing(why),
            };
            confining.applied.push(Applied { limit, by });
        }
        if let Some(files) = confinement.open_files {
            confining.rlimits.push((libc::RLIMIT_NOFILE, files, confining.applied.len()));
            confining.applied.push(Applied { limit: format!("{files} open files"), by: By::Rlimit });
        }
        if let Some(quota) = self.quota(name) {
            confining.applied.push(Applied { limit: format!("disk {} MiB", quota.mib()), by: By::Agent });
        }
        Ok(confining)
    }

    /// What the directory of a plugin that starts from now on may hold.
    pub(crate) fn quota(&self, name: &PluginName) -> Option<Quota> {
        let own = self.settings.plugin.get(name.as_str());
        self.settings.plugins.disk_bytes(name.as_str(), own).map(Quota)
    }

    /// A plugin's process has ended. Kills what is left in its groups and removes them.
    pub(crate) fn release(&mut self, groups: Vec<Group>, now: Millis) {
        self.leaving.extend(groups.into_iter().map(|group| (group, now, 0)));
        self.handle_timeout(now);
    }

    /// Tries again to remove groups.
    pub(crate) fn handle_timeout(&mut self, now: Millis) {
        self.leaving.retain_mut(|(group, moment, attempts)| {
            if *moment > now {
                return true;
            }
            (*moment, *attempts) = (now + REMOVE_AGAIN_MS, *attempts + 1);
            match group.remove() {
                Ok(()) => false,
                Err(_) if *attempts < REMOVE_ATTEMPTS => true,
                Err(error) => {
                    log::warn!("{group} cannot be removed: {error}");
                    false
                }
            }
        });
    }

    /// When [`Confiner::handle_timeout`] is due.
    pub(crate) fn poll_timeout(&self) -> Option<Millis> {
        self.leaving.iter().map(|(_, moment, _)| *moment).min()
    }
}

/// The limits that a group can enforce, with their names.
fn wanted(confinement: &Confinement) -> impl Iterator<Item = (Controller, u64, String)> {
    let Confinement { memory, cpu_percent, processes, .. } = *confinement;
    [
        memory.map(|bytes| (Controller::Memory, bytes, format!("memory {} MiB", bytes >> 20))),
        cpu_percent.map(|percent| (Controller::Cpu, percent, format!("processor {percent} %"))),
        processes.map(|count| (Controller::Pids, count, format!("{count} processes"))),
    ]
    .into_iter()
    .flatten()
}

impl Confining {
    /// Prepares the sandbox, if the plugin is not trusted. Its executable is in place.
    pub(super) fn enclose(&mut self, name: &PluginName, executable: &Path) {
        if let Some(rights) = &self.rights {
            self.steps = sandbox::prepare(name, executable, rights, &mut self.applied);
        }
    }

    /// Returns true if the plugin is not trusted.
    pub(super) fn is_sandbox(&self) -> bool {
        self.rights.is_some()
    }

    /// Confines the calling process, which was just forked: it makes only system calls and allocates no memory. It
    /// reports failures to the parent. They are errors only if the parent is gone.
    pub(super) fn confine_self(&self) -> io::Result<()> {
        for (group, limit) in &self.groups {
            // SAFETY: `write` is async-signal-safe; the text lives for ever.
            if unsafe { libc::write(group.as_raw_fd(), c"0".as_ptr().cast(), 1) } < 0 {
                self.complain(*limit, &io::Error::last_os_error());
            }
        }
        for (resource, value, limit) in &self.rlimits {
            let value = libc::rlimit { rlim_cur: *value, rlim_max: *value };
            // SAFETY: `setrlimit` is a system call that reads the value.
            if unsafe { libc::setrlimit(*resource, &value) } < 0 {
                self.complain(*limit, &io::Error::last_os_error());
            }
        }
        if self.confinement.no_new_privs || self.rights.is_some() {
            // SAFETY: a system call on plain numbers. It is there since Linux 3.5 and cannot fail.
            unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
        }
        for (step, limit) in &self.steps {
            if let Err(error) = step.take(self, *limit) {
                self.complain(*limit, &error);
            }
        }
        // After the steps, because a process that becomes another user loses this.
        if self.confinement.end_with_agent {
            // The kernel sends the signal when the forking thread ends, which is the agent's main thread.
            // SAFETY: both are system calls on plain numbers.
            let parent = unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                libc::getppid()
            };
            if parent != self.agent {
                return Err(io::Error::from_raw_os_error(libc::ESRCH));
            }
        }
        Ok(())
    }

    fn complain(&self, limit: usize, error: &io::Error) {
        let errno = error.raw_os_error().unwrap_or(0);
        let [limit, ..] = limit.to_le_bytes();
        let [a, b, c, d] = errno.to_ne_bytes();
        let complaint = [limit, a, b, c, d];
        // SAFETY: `write` is async-signal-safe and reads the array.
        unsafe { libc::write(self.complaints.1.as_raw_fd(), complaint.as_ptr().cast(), complaint.len()) };
    }

    /// Gives the parent a descriptor. Allocates nothing.
    fn hand_over(&self, listener: BorrowedFd<'_>) -> io::Result<()> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let listener = [listener];
        ancillary.push(SendAncillaryMessage::ScmRights(&listener));
        sendmsg(&self.complaints.1, &[IoSlice::new(&[0; 5])], &mut ancillary, SendFlags::empty())?;
        Ok(())
    }

    /// Receives a complaint, or the listener.
    fn receive(&self) -> Option<([u8; 5], Option<OwnedFd>)> {
        let (mut complaint, mut space) = ([0; 5], [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))]);
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received =
            recvmsg(&self.complaints.0, &mut [IoSliceMut::new(&mut complaint)], &mut ancillary, flags).ok()?;
        let listener = ancillary.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
            _ => None,
        });
        (received.bytes == complaint.len()).then_some((complaint, listener))
    }

    /// Returns, once the process has started, how each limit is enforced, the groups to release when it has ended, and what
    /// hears of refused calls. Logs limits that are not enforced.
    pub(super) fn finish(mut self, name: &PluginName) -> (Vec<Applied>, Vec<Group>, Option<OwnedFd>) {
        let mut listener = None;
        while let Some((complaint, received)) = self.receive() {
            if received.is_some() {
                listener = received;
                continue;
            }
            let [limit, errno @ ..] = complaint;
            let error = io::Error::from_raw_os_error(i32::from_ne_bytes(errno));
            if let Some(applied) = self.applied.get_mut(usize::from(limit)) {
                applied.by = By::Nothing(error.to_string());
            }
        }
        for applied in &self.applied {
            match applied.by {
                By::Nothing(_) => log::warn!("plugin {name}: {applied}"),
                By::Cgroup(_) | By::Rlimit | By::Agent | By::Kernel(_) => log::info!("plugin {name}: {applied}"),
            }
        }
        (self.applied, self.made, listener)
    }

    /// The process could not be started. Returns the groups to release.
    pub(super) fn abandon(self) -> Vec<Group> {
        self.made
    }
}
