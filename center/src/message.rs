//! What agents send, as the center takes it apart.
//!
//! The center splits a message into its records without copying or decoding their payloads. Only who asks for a payload's fields
//! pays for decoding.

use bytes::Bytes;
use elklet_proto::grpc::Payload;
use prost::Message;
use prost::encoding::{DecodeContext, decode_key, skip_field};
use std::collections::BTreeMap;

/// Data type of the agent's heartbeat.
pub const AGENT_HEARTBEAT: i32 = 1000;
/// Data type of a plugin's heartbeat.
pub const PLUGIN_HEARTBEAT: i32 = 1001;
/// Data type of a line of the agent's log.
pub const LOG: i32 = 1010;
/// Data type of a report on a task.
pub const TASK_REPORT: i32 = 5100;

/// The longest text in bytes that is kept of what a message says of its host. The system's own limit for a host's name is 64, and versions
/// are shorter.
pub(crate) const TEXT_LEN: usize = 256;

/// Addresses of a kind that are kept, and the longest in bytes. A host has a few. The longest IPv6 address has 45 bytes, and a zone may
/// follow it.
const ADDRESSES: usize = 32;
const ADDRESS_LEN: usize = 64;

/// One message of a Transfer stream.
#[derive(Debug, Clone)]
pub struct Batch {
    /// The stream's number, counted from 1 over all agents.
    pub stream: u64,
    /// The message's place in its stream, from 0.
    pub index: u64,
    /// When it was taken, in seconds since 1970.
    pub svr_time: u64,
    /// Bytes on the wire: the message as compressed, and 5 for the prefix.
    pub wire_len: usize,
    /// Bytes after decompression.
    pub decoded_len: usize,
    /// The records, and the host that they come from.
    pub data: PackagedData,
}

/// The message `grpc.PackagedData`. Its payloads share the memory of the message that they arrived in.
#[derive(Clone, PartialEq, Message)]
pub struct PackagedData {
    /// The records in the order of the message.
    #[prost(message, repeated, tag = "1")]
    pub records: Vec<Record>,
    /// The id in this message. The stream goes by the id of its first message.
    #[prost(string, tag = "2")]
    pub agent_id: String,
    /// Private IPv4 addresses.
    #[prost(string, repeated, tag = "3")]
    pub intranet_ipv4: Vec<String>,
    /// Public IPv4 addresses.
    #[prost(string, repeated, tag = "4")]
    pub extranet_ipv4: Vec<String>,
    /// Private IPv6 addresses.
    #[prost(string, repeated, tag = "5")]
    pub intranet_ipv6: Vec<String>,
    /// Public IPv6 addresses.
    #[prost(string, repeated, tag = "6")]
    pub extranet_ipv6: Vec<String>,
    /// The host's name.
    #[prost(string, tag = "7")]
    pub hostname: String,
    /// The agent's version.
    #[prost(string, tag = "8")]
    pub version: String,
    /// The agent's product name.
    #[prost(string, tag = "9")]
    pub product: String,
}

impl PackagedData {
    /// Cuts what the message says of its host. The center remembers it for each host and writes it with each record that it passes on, so
    /// that megabytes of it would come back thousands of times.
    pub(crate) fn bound(&mut self) {
        for text in [&mut self.hostname, &mut self.version, &mut self.product] {
            cut(text, TEXT_LEN);
        }
        let ipv4 = [&mut self.intranet_ipv4, &mut self.extranet_ipv4];
        for addresses in ipv4.into_iter().chain([&mut self.intranet_ipv6, &mut self.extranet_ipv6]) {
            addresses.truncate(ADDRESSES);
            addresses.iter_mut().for_each(|address| cut(address, ADDRESS_LEN));
        }
    }
}

/// Counts the fields of a serialized message, as far as `most`. Where one is malformed it ends, as decoding does.
pub(crate) fn fields_up_to(most: usize, mut message: &[u8]) -> usize {
    let mut fields = 0;
    while fields < most && !message.is_empty() {
        let passed = decode_key(&mut message)
            .and_then(|(tag, wire_type)| skip_field(wire_type, tag, &mut message, DecodeContext::default()));
        if passed.is_err() {
            break;
        }
        fields += 1;
    }
    fields
}

/// Cuts a text to at most so many bytes, at the end of a character.
pub(crate) fn cut(text: &mut String, len: usize) {
    text.truncate(text.floor_char_boundary(len));
}

/// The message `grpc.EncodedRecord`.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Record {
    /// The data type.
    #[prost(int32, tag = "1")]
    pub data_type: i32,
    /// Seconds since 1970, by the host's clock.
    #[prost(int64, tag = "2")]
    pub timestamp: i64,
    /// A serialized `grpc.Payload`, unless the agent made a mistake.
    #[prost(bytes = "bytes", tag = "3")]
    pub data: Bytes,
}

impl Record {
    /// Decodes the payload's fields.
    ///
    /// # Errors
    /// When the payload is not a `grpc.Payload`.
    pub fn fields(&self) -> Result<BTreeMap<String, String>, prost::DecodeError> {
        Ok(Payload::decode(self.data.clone())?.fields)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use elklet_proto::grpc;

    #[test]
    fn what_a_message_says_of_its_host_is_cut() {
        let long = "ü".repeat(1 << 19);
        let addresses = vec![long.clone(); 100];
        let mut data = PackagedData {
            hostname: format!("x{long}"),
            version: long.clone(),
            product: "elkeid-agent".to_owned(),
            intranet_ipv4: addresses.clone(),
            extranet_ipv4: vec!["192.0.2.1".to_owned()],
            intranet_ipv6: addresses.clone(),
            extranet_ipv6: addresses,
            ..Default::default()
        };
        data.bound();
        assert_eq!((data.hostname.len(), data.version.len()), (TEXT_LEN - 1, TEXT_LEN), "no character is halved");
        assert_eq!((data.product.as_str(), &data.extranet_ipv4[..]), ("elkeid-agent", &["192.0.2.1".to_owned()][..]));
        for addresses in [data.intranet_ipv4, data.intranet_ipv6, data.extranet_ipv6] {
            assert_eq!(addresses.len(), ADDRESSES);
            assert!(addresses.iter().all(|address| address.len() == ADDRESS_LEN));
        }
    }

    #[test]
    fn a_messages_fields_are_counted_before_it_is_decoded() {
        let record = grpc::EncodedRecord { data_type: 1, timestamp: 2, data: vec![3; 200] };
        let message = grpc::PackagedData { records: vec![record; 3], agent_id: "a".into(), ..Default::default() };
        assert_eq!(fields_up_to(10, &message.encode_to_vec()), 4);
        assert_eq!(fields_up_to(10, &b"\x0a\0".repeat(1000)), 10, "it counts no further");
        // An unknown group with a field, which decoding passes over, and a record behind it.
        assert_eq!(fields_up_to(10, b"\x7b\x08\x01\x7c\x0a\0"), 2);
        assert_eq!(fields_up_to(10, b"\x0a\0\x0a\xff"), 1, "what is no message is not decoded either");
    }

    #[test]
    fn payloads_share_the_memory_of_their_message() {
        let message = grpc::PackagedData {
            records: vec![grpc::EncodedRecord { data_type: 1, timestamp: 2, data: vec![3; 100] }],
            ..Default::default()
        };
        let bytes = Bytes::from(message.encode_to_vec());
        let range = bytes.as_ptr_range();
        let data = PackagedData::decode(bytes.clone()).unwrap();
        assert!(range.contains(&data.records[0].data.as_ptr()));
    }
}
