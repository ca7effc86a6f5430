//! Configuration and commands as the manager writes them in JSON.

use crate::given::text_of;
use elklet_proto::grpc;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::Path;

/// Reads a list of configurations, `[{name,type,version,sha256,signature,download_url:[],detail}]`; only `name` must be there.
///
/// # Errors
/// When the text is not such a list.
pub fn configs_from_json(json: &str) -> Result<Vec<grpc::Config>, serde_json::Error> {
    let configs: Vec<ConfigJson> = serde_json::from_str(json)?;
    Ok(configs.into_iter().map(Into::into).collect())
}

/// Reads the same list from a file.
///
/// # Errors
/// When the file cannot be read or is not such a list; the message names the file.
pub fn configs_from_file(path: &Path) -> io::Result<Vec<grpc::Config>> {
    let at = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
    let json = text_of(path).map_err(|error| at(&error))?;
    configs_from_json(&json).map_err(|error| at(&error))
}

/// The body of `POST /command/`.
#[derive(Debug, Deserialize)]
pub(crate) struct CommandRequest {
    pub(crate) agent_id: String,
    pub(crate) command: CommandJson,
}

#[derive(Debug, Deserialize)]
pub(crate) struct CommandJson {
    #[serde(default)]
    agent_ctrl: i32,
    task: Option<TaskJson>,
    config: Option<Vec<ConfigJson>>,
}

#[derive(Debug, Deserialize)]
#[serde(default)]
#[derive(Default)]
pub(crate) struct TaskJson {
    data_type: i32,
    name: String,
    data: String,
    token: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ConfigJson {
    name: String,
    #[serde(default)]
    r#type: String,
    #[serde(default)]
    version: String,
    #[serde(default)]
    sha256: String,
    #[serde(default)]
    signature: String,
    download_url: Option<Vec<String>>,
    #[serde(default)]
    detail: String,
}

/// The body of `POST /conn/reset`.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum ResetRequest {
    /// Ends this many streams, no matter which.
    Random { count: usize },
    /// Ends the streams of these agents.
    Strict { id_list: Vec<String> },
}

impl From<CommandJson> for grpc::Command {
    fn from(json: CommandJson) -> Self {
        Self {
            agent_ctrl: json.agent_ctrl,
            task: json.task.map(Into::into),
            configs: json.config.unwrap_or_default().into_iter().map(Into::into).collect(),
        }
    }
}

impl From<TaskJson> for grpc::Task {
    fn from(json: TaskJson) -> Self {
        Self { data_type: json.data_type, object_name: json.name, data: json.data, token: json.token }
    }
}

impl From<ConfigJson> for grpc::Config {
    fn from(json: ConfigJson) -> Self {
        Self {
            name: json.name,
            r#type: json.r#type,
            version: json.version,
            sha256: json.sha256,
            signature: json.signature,
            download_urls: json.download_url.unwrap_or_default(),
            detail: json.detail,
        }
    }
}

impl From<&grpc::Config> for ConfigJson {
    fn from(config: &grpc::Config) -> Self {
        Self {
            name: config.name.clone(),
            r#type: config.r#type.clone(),
            version: config.version.clone(),
            sha256: config.sha256.clone(),
            signature: config.signature.clone(),
            download_url: Some(config.download_urls.clone()),
            detail: config.detail.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_as_the_manager_writes_it() {
        let json = r#"{"agent_id":"a","command":{"agent_ctrl":3,
            "task":{"data_type":1060,"name":"elkeid-agent","data":"{}","token":"t"},
            "config":[{"name":"driver","version":"1.0","download_url":["http://x/","http://y/"],"type":"exec"}]}}"#;
        let request: CommandRequest = serde_json::from_str(json).unwrap();
        let command = grpc::Command::from(request.command);
        assert_eq!(command.agent_ctrl, 3);
        let task = command.task.unwrap();
        assert_eq!((task.data_type, task.object_name.as_str(), task.token.as_str()), (1060, "elkeid-agent", "t"));
        assert_eq!(command.configs[0].download_urls, ["http://x/", "http://y/"]);
        assert_eq!(command.configs[0].r#type, "exec");
    }

    #[test]
    fn absent_and_null_are_nothing() {
        for json in [r#"{"agent_ctrl":1}"#, r#"{"agent_ctrl":1,"task":null,"config":null}"#] {
            let command = grpc::Command::from(serde_json::from_str::<CommandJson>(json).unwrap());
            assert_eq!(command, grpc::Command { agent_ctrl: 1, ..Default::default() });
        }
        assert!(configs_from_json(r#"[{"version":"1"}]"#).is_err());
    }
}
