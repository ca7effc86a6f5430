//! Code that is specific to Linux or to a processor: numbers that threads share, timers, threads that may be refused, orphans,
//! inherited signals, processes started by a thread of their own, waiting for async work, room on a disk, deleting without recursion,
//! how much a directory holds, gzip, and what systemd is told.

pub(crate) mod alarm;
pub(crate) mod atomic;
pub(crate) mod blocking;
pub(crate) mod children;
pub(crate) mod gzip;
pub(crate) mod inherited;
pub(crate) mod notify;
pub(crate) mod remove;
pub(crate) mod room;
pub(crate) mod size;
pub(crate) mod starter;
pub(crate) mod waiting;
