//! Tasks for the agent itself. Each is one type, from the server's command to the room that does it.
//!
//! A new kind of task is a variant here, and an arm where the shell carries tasks out.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use core::fmt;

use elklet_proto::data_type::{SET_METADATA, SHUTDOWN, UPLOAD};
use elklet_proto::grpc::Task;
use serde::Deserialize;

use crate::limits::MAX_REPORT_CHARS;

/// A task for the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentTask {
    /// Data type 1050: send a file to the server.
    Upload(Upload),
    /// Data type 1051: remember where this host is.
    SetMetadata(SetMetadata),
    /// Data type 1060: end.
    Shutdown {
        /// The task's token.
        token: String,
    },
}

/// A file that the server wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upload {
    /// The task's token, which names the file at the server.
    pub token: String,
    /// The file.
    pub path: String,
    /// Bytes a second that the server asks for, at least 1. At most [`UPLOAD_BYTES_PER_SECOND`](crate::limits::UPLOAD_BYTES_PER_SECOND) leave.
    pub buf_size: u64,
}

/// Where the server says that this host is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetMetadata {
    /// The task's token.
    pub token: String,
    /// The data centre, if it is to change.
    pub idc: Option<String>,
    /// The region, if it is to change.
    pub region: Option<String>,
}

/// A task for the agent that it cannot do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedTask {
    /// The task's token.
    pub token: String,
    /// Why not, in at most [`MAX_REPORT_CHARS`] characters.
    pub reason: BadTask,
}

/// Why the agent cannot do a task; the server's fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BadTask {
    /// The agent has no task of this data type.
    Unknown(i32),
    /// The task's data is not what it needs. The text says so in at most [`MAX_REPORT_CHARS`] characters.
    Data(String),
    /// An upload is to send 0 bytes a second.
    NoSpeed,
}

impl fmt::Display for BadTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unknown(data_type) => {
                write!(f, "unknown task {data_type}: the agent knows {UPLOAD}, {SET_METADATA} and {SHUTDOWN}")
            }
            Self::Data(why) => f.write_str(why),
            Self::NoSpeed => write!(f, "buf_size of task {UPLOAD} is 0, expected at least 1"),
        }
    }
}

impl core::error::Error for BadTask {}

impl AgentTask {
    /// The task's token.
    #[must_use]
    pub fn token(&self) -> &str {
        match self {
            Self::Upload(Upload { token, .. })
            | Self::SetMetadata(SetMetadata { token, .. })
            | Self::Shutdown { token } => token,
        }
    }

    /// Parses a task that is addressed to the agent.
    ///
    /// # Errors
    /// When the agent does not know the task's data type, or the data is not what that task needs.
    pub(super) fn parse(task: Task) -> Result<Self, RefusedTask> {
        #[derive(Deserialize)]
        struct UploadData {
            path: String,
            buf_size: u64,
        }
        #[derive(Deserialize)]
        struct MetadataData {
            idc: Option<String>,
            region: Option<String>,
        }
        fn json<'a, T: Deserialize<'a>>(data_type: i32, data: &'a str) -> Result<T, BadTask> {
            serde_json::from_str(data).map_err(|error| {
                let why = format!("data of task {data_type} is not as expected: {error}");
                // The error quotes what is wrong, which may be long.
                BadTask::Data(why.chars().take(MAX_REPORT_CHARS).collect())
            })
        }

        let Task { data_type, data, token, .. } = task;
        let refuse = |token, reason| RefusedTask { token, reason };
        match data_type {
            UPLOAD => match json(data_type, &data) {
                Ok(UploadData { buf_size: 0, .. }) => Err(refuse(token, BadTask::NoSpeed)),
                Ok(UploadData { path, buf_size }) => Ok(Self::Upload(Upload { token, path, buf_size })),
                Err(reason) => Err(refuse(token, reason)),
            },
            SET_METADATA => match json(data_type, &data) {
                Ok(MetadataData { idc, region }) => Ok(Self::SetMetadata(SetMetadata { token, idc, region })),
                Err(reason) => Err(refuse(token, reason)),
            },
            SHUTDOWN => Ok(Self::Shutdown { token }),
            _ => Err(refuse(token, BadTask::Unknown(data_type))),
        }
    }
}

impl fmt::Display for AgentTask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Upload(Upload { token, path, buf_size }) => {
                write!(f, "upload {path:?} at {buf_size} bytes/s (token {token:?})")
            }
            Self::SetMetadata(SetMetadata { token, idc, region }) => {
                let or_as_it_is = |name: &Option<String>| name.clone().unwrap_or_else(|| "as it is".to_owned());
                write!(f, "set idc to {}, region to {} (token {token:?})", or_as_it_is(idc), or_as_it_is(region))
            }
            Self::Shutdown { token } => write!(f, "end (token {token:?})"),
        }
    }
}
