//! How agents are told what they should run: what is desired, with the plugins of rollouts, and with addresses to fetch files from.
//!
//! Whoever tells an agent holds the lock of the rollouts, so that agents hear of configurations in the order in which they were decided.

use super::rolling::{Entry, put};
use super::shared::{Shared, lock};
use super::transfer::Order;
use crate::clock::now_ms;
use crate::desired::Plugin;
use crate::files::Digest;
use crate::rollout::AGENT;
use elklet_proto::grpc::{Command, Config};
use std::net::IpAddr;
use tokio::sync::oneshot;

impl Shared {
    /// Sends an agent what it should run, if anybody has said.
    pub(super) fn send_configs(&self, agent_id: &str) {
        let mut list = lock(&self.rolling.list);
        self.push(&mut list, agent_id, false);
        self.carry_out(&mut list);
    }

    /// Tells connected agents what they should run.
    pub(crate) fn push_configs(&self, concerned: impl Fn(&str) -> bool) {
        let mut list = lock(&self.rolling.list);
        for id in self.connected_ids().iter().filter(|id| concerned(id)) {
            self.push(&mut list, id, false);
        }
        self.carry_out(&mut list);
    }

    pub(super) fn connected_ids(&self) -> Vec<String> {
        self.read(|fleet| fleet.connected().map(str::to_owned).collect())
    }

    /// Sends an agent its configuration. If nobody has said what it should run, `emptied` makes it run nothing.
    pub(super) fn push(&self, list: &mut [Entry], agent_id: &str, emptied: bool) {
        let wanted = self.desired(|desired| {
            let mut plugins = desired.of(agent_id).cloned();
            let reaching = list.iter().filter(|entry| desired.reaches(entry.rollout.group.as_deref(), agent_id));
            for overlay in reaching.filter_map(|entry| entry.rollout.overlay(agent_id)) {
                put(plugins.get_or_insert_default(), overlay);
            }
            plugins
        });
        let Some(plugins) = wanted.or_else(|| emptied.then(Vec::new)) else { return };
        let (done, _) = oneshot::channel();
        // Who is gone meanwhile hears of it when it comes back.
        let configs = self.configs(agent_id, plugins);
        if self.order(agent_id, Order::Command(Command { configs, ..Default::default() }, done)) {
            let reaches = |group: Option<&str>| self.desired(|desired| desired.reaches(group, agent_id));
            for entry in list.iter_mut().filter(|entry| reaches(entry.rollout.group.as_deref())) {
                entry.rollout.handle_sent(agent_id, now_ms());
            }
        }
    }

    /// Returns plugins as an agent is told of them.
    fn configs(&self, agent_id: &str, plugins: Vec<Plugin>) -> Vec<Config> {
        let (local, version) = self.read(|fleet| {
            let beat = fleet.agents.get(agent_id).and_then(|agent| agent.heartbeat.as_ref());
            let version = beat.map(|beat| beat.host.version.clone());
            (fleet.live.get(agent_id).map(|live| live.local), version)
        });
        let mut configs: Vec<_> = plugins
            .into_iter()
            .map(|Plugin { mut config, file }| {
                if let (Some(file), Some(local)) = (file, local) {
                    config.download_urls = self.download_url(&file, local).into_iter().collect();
                }
                config
            })
            .collect();
        if configs.is_empty()
            && self.options.empty_ends_all
            && let Some(version) = version.filter(|version| !version.is_empty())
        {
            // A command with nothing in it changes nothing. The agent's own entry, in the version that runs, makes it a configuration.
            configs.push(Config { name: AGENT.to_owned(), version, ..Default::default() });
        }
        configs
    }

    /// Returns where an agent fetches a file that reaches this server at `local`.
    fn download_url(&self, file: &Digest, local: IpAddr) -> Option<String> {
        let port = self.options.downloads?.port();
        let host = match (&self.options.download_host, local.to_canonical()) {
            (Some(host), _) => host.clone(),
            (None, IpAddr::V4(address)) => address.to_string(),
            (None, IpAddr::V6(address)) => format!("[{address}]"),
        };
        Some(format!("http://{host}:{port}/files/{file}"))
    }
}
