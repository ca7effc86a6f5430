//! The data types of records and tasks that the agent itself sends, takes or looks at. Plugins have many more of their own.
//!
//! Source: Elkeid's agent (`agent/heartbeat`, `agent/log`, `agent/task`) and AgentCenter (`common/consts`, `grpc_handler`), except for
//! [`LOSS`], which is Elklet's.

/// Record: the agent's heartbeat. AgentCenter answers the first one of a stream with the configuration.
pub const AGENT_HEARTBEAT: i32 = 1000;

/// Record: a plugin's heartbeat, sent by the agent.
pub const PLUGIN_HEARTBEAT: i32 = 1001;

/// Record: a warning or an error from the agent's log. Plugins of the Rust SDK send theirs under the same number.
pub const LOG: i32 = 1010;

/// Record: what the agent has lost. AgentCenter does not know it, and passes on what it does not know.
pub const LOSS: i32 = 1012;

/// Task for the agent: send a file to the server.
pub const UPLOAD: i32 = 1050;

/// Task for the agent: remember the data centre and the region of this host.
pub const SET_METADATA: i32 = 1051;

/// Task for the agent: end.
pub const SHUTDOWN: i32 = 1060;

/// Record: the outcome of a task, with its token. The agent sends failures only; plugins send both.
pub const TASK_RESULT: i32 = 5100;

/// Returns true for a record that AgentCenter hands to the manager as the outcome of a task. It writes into the record's field map on
/// the way, and panics when the record brings no field. (AgentCenter: `rawdata_worker.go`.)
#[must_use]
pub const fn needs_fields(data_type: i32) -> bool {
    matches!(data_type, 2001 | 2003 | TASK_RESULT | 5101 | 6000 | 8010)
}
