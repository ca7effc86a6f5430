//! The envelope that follows the records in every batch and says who sends them.

use alloc::string::String;
use alloc::vec::Vec;

use elklet_proto::grpc::PackagedData;
use prost::Message;

/// Fields 2 to 9 of a `PackagedData`. They are encoded once, and again only when they change.
#[derive(Debug, Clone, Default)]
pub struct Envelope {
    sender: Sender,
    bytes: Vec<u8>,
}

/// Who sends a batch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sender {
    /// The agent's id.
    pub agent_id: String,
    /// Private IPv4 addresses of the host, at most five.
    pub intranet_ipv4: Vec<String>,
    /// Public IPv4 addresses of the host.
    pub extranet_ipv4: Vec<String>,
    /// Private IPv6 addresses of the host, at most five.
    pub intranet_ipv6: Vec<String>,
    /// Public IPv6 addresses of the host.
    pub extranet_ipv6: Vec<String>,
    /// The host's name.
    pub hostname: String,
    /// The agent's version, dotted numbers.
    pub version: String,
    /// The agent's product name. AgentCenter knows the reference's, `elkeid-agent`.
    pub product: String,
}

impl Envelope {
    /// The envelope of `sender`.
    #[must_use]
    pub fn new(sender: Sender) -> Self {
        let mut envelope = Self::default();
        envelope.update(sender);
        envelope
    }

    /// Changes the sender, and encodes the envelope again if it differs.
    pub fn update(&mut self, sender: Sender) {
        if sender != self.sender {
            self.sender = sender;
            self.bytes = packaged(&self.sender).encode_to_vec();
        }
    }

    /// The bytes that follow a batch's records.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

fn packaged(sender: &Sender) -> PackagedData {
    let Sender { agent_id, intranet_ipv4, extranet_ipv4, intranet_ipv6, extranet_ipv6, hostname, version, product } =
        sender.clone();
    PackagedData {
        records: Vec::new(),
        agent_id,
        intranet_ipv4,
        extranet_ipv4,
        intranet_ipv6,
        extranet_ipv6,
        hostname,
        version,
        product,
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use elklet_proto::grpc::EncodedRecord;
    use proptest::prelude::*;

    use super::*;
    use crate::record::buffer::RecordBuffer;

    proptest! {
        #[test]
        fn records_and_envelope_are_the_message_that_prost_would_write(
            records in prop::collection::vec((any::<i32>(), any::<i64>(), prop::collection::vec(any::<u8>(), 0..300)), 0..30),
            names in prop::collection::vec(".{0,20}", 4),
            addresses in prop::collection::vec(prop::collection::vec("[0-9a-f:.]{1,20}", 0..6), 4),
        ) {
            let sender = Sender {
                agent_id: names[0].clone(),
                intranet_ipv4: addresses[0].clone(),
                extranet_ipv4: addresses[1].clone(),
                intranet_ipv6: addresses[2].clone(),
                extranet_ipv6: addresses[3].clone(),
                hostname: names[1].clone(),
                version: names[2].clone(),
                product: names[3].clone(),
            };
            let records: Vec<_> =
                records.into_iter().map(|(data_type, timestamp, data)| EncodedRecord { data_type, timestamp, data }).collect();
            let mut buffer = RecordBuffer::<_, 32>::new(vec![0; 20_000]);
            for record in &records {
                buffer.push(&record.encode_to_vec()).expect("room");
            }
            let mut envelope = Envelope::new(Sender::default());
            envelope.update(sender);
            let [intranet_ipv4, extranet_ipv4, intranet_ipv6, extranet_ipv6] =
                addresses.try_into().expect("there are four");
            let [agent_id, hostname, version, product] = names.try_into().expect("there are four");
            let message = PackagedData {
                records,
                agent_id,
                intranet_ipv4,
                extranet_ipv4,
                intranet_ipv6,
                extranet_ipv6,
                hostname,
                version,
                product,
            };
            prop_assert_eq!([buffer.bytes(), envelope.bytes()].concat(), message.encode_to_vec());
        }
    }
}
