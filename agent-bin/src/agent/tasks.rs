//! The server's tasks for the agent itself.

use super::Agent;
use super::ending::Ending;
use crate::logging::{self, Event, Kind};
use crate::specified::{self, Key};
use crate::upload::Order;

impl Agent {
    /// Queues a file for the server.
    pub(super) fn queue_upload(&mut self, order: Order) {
        if let Err((token, why)) = self.uploads.push(order) {
            self.refuse(token, &why);
        }
    }

    /// Starts the next upload, to the server that the stream is open to.
    pub(super) fn start_upload(&mut self) {
        // The address and not the target: settings that were read meanwhile may have other lists.
        if self.session.streaming_to().is_some()
            && self.ending == Ending::No
            && self.uploads.wants_start()
            && let Ok(address) = self.address.parse()
        {
            self.uploads.start(&self.connector, &address, &self.settings.upload);
        }
    }

    /// An upload has ended; of one that succeeded the server knows.
    pub(super) fn handle_uploaded(&mut self, token: String, result: Result<(), String>) {
        if let Err(why) = result {
            self.refuse(token, &format!("upload of {why}"));
        }
    }

    /// Remembers where this host is, for the next heartbeat and for later starts.
    pub(super) fn set_metadata(&mut self, token: String, idc: Option<String>, region: Option<String>) {
        let done = match &region {
            Some(region) if !self.settings.has_region(region) => {
                Err(format!("no server is configured for region {region:?}"))
            }
            _ => {
                let changes = [(Key::Idc, idc.as_deref()), (Key::Region, region.as_deref())];
                let given: Vec<_> = changes.into_iter().filter(|(_, value)| value.is_some()).collect();
                specified::change(&self.settings.workdir, &given)
            }
        };
        match done {
            Ok(()) => {
                self.settings.idc = idc.unwrap_or_else(|| self.settings.idc.clone());
                self.settings.region = region.unwrap_or_else(|| self.settings.region.clone());
                self.beat.set_place(&self.settings);
                self.follow_region();
                let what = format!("idc {}, region {}", self.settings.idc, self.settings.region);
                logging::audit(&Event { token: &token, ..Event::new(Kind::Metadata, &what, "done") });
            }
            Err(why) => self.refuse(token, &why),
        }
    }

    /// The agent ends: nothing is uploaded any more.
    pub(super) fn give_up_uploads(&mut self) {
        for token in self.uploads.give_up() {
            self.refuse(token, "the agent ends before the file is uploaded");
        }
    }
}
