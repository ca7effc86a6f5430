//! The server's tasks for the agent itself.

use elklet_core::command::{AgentTask, SetMetadata, Upload};
use elklet_core::time::Millis;

use super::shell::Shell;
use crate::logging::{self, Event, Kind};
use crate::specified::{self, Key};

impl Shell {
    pub(super) fn carry_out_task(&mut self, task: AgentTask, now: Millis) {
        match task {
            AgentTask::Upload(upload) => self.upload(upload),
            AgentTask::SetMetadata(metadata) => self.set_metadata(metadata, now),
            AgentTask::Shutdown { .. } => {
                log::info!("the server asks the agent to end");
                logging::audit(&Event::new(Kind::Shutdown, "the agent", "it ends"));
                self.agent.handle_shutdown(now);
            }
        }
    }

    /// Starts an upload, to the server that the stream is open to.
    fn upload(&mut self, upload: Upload) {
        // The address and not the target: settings that were read meanwhile may have other lists.
        match self.link.address().parse() {
            Ok(address) => self.uploads.start(upload, &self.link.connector, &address, self.settings.upload_rules()),
            Err(error) => self.agent.handle_uploaded(Err(format!("{}: {error}", upload.path))),
        }
    }

    /// Remembers where this host is, for the next heartbeat and for later starts.
    fn set_metadata(&mut self, SetMetadata { token, idc, region }: SetMetadata, now: Millis) {
        let done = match &region {
            Some(region) if !self.settings.has_region(region) => {
                Err(format!("no server is configured for region {region:?}"))
            }
            _ => {
                let changes = [(Key::Idc, idc.as_deref()), (Key::Region, region.as_deref())];
                let given: Vec<_> = changes.into_iter().filter(|(_, value)| value.is_some()).collect();
                specified::change(&self.settings.layout.workdir, &given).map_err(|why| why.to_string())
            }
        };
        match done {
            Ok(()) => {
                self.settings.idc = idc.unwrap_or_else(|| self.settings.idc.clone());
                self.settings.region = region.unwrap_or_else(|| self.settings.region.clone());
                self.follow_region(now);
                let what = format!("idc {}, region {}", self.settings.idc, self.settings.region);
                logging::audit(&Event { token: &token, ..Event::new(Kind::Metadata, &what, "done") });
            }
            Err(why) => self.agent.handle_task_failed(token, &why),
        }
    }
}
