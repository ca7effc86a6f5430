//! Plugins' executables and processes. The agent executes the very file that it has verified.

mod archive;
mod confine;
mod executable;
mod kept;
mod kin;
mod newest;
mod prepare;
mod process;
mod quota;
mod stage;
mod stderr;

pub use self::archive::unpack;
pub(crate) use self::confine::{Applied, Confiner, Group, Refusals, restrict_thread};
pub(crate) use self::executable::{directory, explain, sha256_of};
pub use self::kept::decode_kept;
pub(crate) use self::kept::{read_kept, write_kept};
pub(crate) use self::kin::{Kin, end_all, end_earlier_lives};
pub(crate) use self::newest::Newest;
pub(crate) use self::prepare::{PrepareError, Prepared, Preparer};
pub(crate) use self::process::{Spawned, describe, reserve_descriptors, spawn};
pub(crate) use self::quota::{OverQuota, Quota};
pub(crate) use self::stage::{recover, take_away};
pub(crate) use self::stderr::Stderr;
