//! What AgentCenter writes to Kafka, and which partition it goes to.

use crate::fleet::Host;
use crate::store::Found;
use prost::Message;
use std::fmt;
use std::sync::Arc;

/// Tells what is known of a host, by the id of its agent.
pub(crate) type Facts = Arc<dyn Fn(&str) -> Option<Host> + Send + Sync>;

/// The message `MQData` of AgentCenter's `grpc.proto`.
#[derive(Clone, PartialEq, Message)]
struct MqData {
    #[prost(int32, tag = "1")]
    data_type: i32,
    /// Seconds since 1970, by the host's clock.
    #[prost(int64, tag = "2")]
    agent_time: i64,
    /// The payload as the agent sent it.
    #[prost(bytes = "bytes", tag = "3")]
    body: bytes::Bytes,
    #[prost(string, tag = "4")]
    agent_id: String,
    /// Lists of addresses, with commas between them.
    #[prost(string, tag = "5")]
    intranet_ipv4: String,
    #[prost(string, tag = "6")]
    extranet_ipv4: String,
    #[prost(string, tag = "7")]
    intranet_ipv6: String,
    #[prost(string, tag = "8")]
    extranet_ipv6: String,
    #[prost(string, tag = "9")]
    hostname: String,
    #[prost(string, tag = "10")]
    version: String,
    #[prost(string, tag = "11")]
    product: String,
    /// Seconds since 1970, by the server's clock.
    #[prost(int64, tag = "12")]
    svr_time: i64,
    /// AgentCenter leaves both empty.
    #[prost(string, tag = "13")]
    psm_name: String,
    #[prost(string, tag = "14")]
    psm_path: String,
    /// The host's tag in Elkeid's manager, which there is none of here.
    #[prost(string, tag = "15")]
    tag: String,
}

/// Writes records as AgentCenter does.
#[derive(Clone)]
pub(in crate::forward) struct Writer {
    facts: Facts,
    /// The host of the record before. Records of a host come together.
    last: Option<(Arc<str>, Host)>,
}

impl Writer {
    pub(in crate::forward) fn new(facts: Facts) -> Self {
        Self { facts, last: None }
    }

    /// Encodes a record. Its host's addresses and its agent's version are those of the latest heartbeat, since the store does not keep
    /// them with each record.
    pub(in crate::forward) fn encode(&mut self, found: &Found) -> Vec<u8> {
        let known = self.last.take().filter(|(id, _)| *id == found.agent_id);
        let (_, host) = self.last.insert(known.unwrap_or_else(|| {
            let host = (self.facts)(&found.agent_id).unwrap_or_default();
            (Arc::clone(&found.agent_id), host)
        }));
        let data = MqData {
            data_type: found.data_type,
            agent_time: found.timestamp,
            body: found.payload.clone(),
            agent_id: found.agent_id.to_string(),
            intranet_ipv4: host.intranet_ipv4.join(","),
            extranet_ipv4: host.extranet_ipv4.join(","),
            intranet_ipv6: host.intranet_ipv6.join(","),
            extranet_ipv6: host.extranet_ipv6.join(","),
            hostname: found.hostname.to_string(),
            version: host.version.clone(),
            product: host.product.clone(),
            svr_time: found.received_ms / 1000,
            ..MqData::default()
        };
        data.encode_to_vec()
    }
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

/// Returns the partition of a key, as the producer that AgentCenter uses (sarama) does unless it is told otherwise: the 32-bit FNV-1a of
/// the key as a signed number, its remainder by the number of partitions, and that without its sign.
pub(super) fn partition(key: &str, partitions: usize) -> usize {
    let hash = key.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let remainder = i64::from(hash.cast_signed()) % i64::try_from(partitions.max(1)).unwrap_or(i64::MAX);
    usize::try_from(remainder.unsigned_abs()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forward::record::tests::found;

    #[test]
    fn a_record_has_the_bytes_that_agent_center_gives_it() {
        let host = Host {
            version: "1.7.0".into(),
            product: "elkeid-agent".into(),
            intranet_ipv4: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            extranet_ipv6: vec!["2001:db8::1".into()],
            ..Host::default()
        };
        let mut writer = Writer::new(Arc::new(move |id| (id == "a-1").then(|| host.clone())));
        let bytes = writer.encode(&found(&[("exe", "ls")]));
        // Field by field: the tag, a length where there is one, and the value.
        let expected: Vec<u8> = [
            &b"\x08\x3b"[..],
            b"\x10\x80\xe2\xcf\xaa\x06",
            b"\x1a\x0b\x0a\x09\x0a\x03exe\x12\x02ls",
            b"\x22\x03a-1",
            b"\x2a\x1110.0.0.1,10.0.0.2",
            b"\x42\x0b2001:db8::1",
            b"\x4a\x03gw1",
            b"\x52\x051.7.0",
            b"\x5a\x0celkeid-agent",
            b"\x60\x81\xe2\xcf\xaa\x06",
        ]
        .concat();
        assert_eq!(bytes, expected);
        let unknown = MqData::decode(&writer.encode(&Found { agent_id: "b".into(), ..found(&[]) })[..]).unwrap();
        assert_eq!(
            (unknown.agent_id.as_str(), unknown.version.as_str()),
            ("b", ""),
            "another host's facts are not its own"
        );
    }

    #[test]
    fn a_key_has_the_partition_that_sarama_gives_it() {
        // FNV-1a of "a" is 0xe40c292c, which is -468965076 as a signed number; of "foobar" 0xbf9cf968, which is -1080231576.
        for (key, partitions, expected) in
            [("a", 10, 6), ("foobar", 7, 1_080_231_576 % 7), ("a", 1, 0), ("", 3, 2_128_831_035 % 3)]
        {
            assert_eq!(partition(key, partitions), expected, "{key:?} of {partitions}");
        }
    }
}
