//! Heartbeats, and what they say of a host.
//!
//! A site has thousands of hosts, and a heartbeat a hundred fields. The fields therefore stay in one piece of memory, as they came.

use crate::message::{PackagedData, Record, cut};
use crate::store;
use elklet_proto::grpc::Payload;
use prost::Message;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Number, Value, json};
use std::collections::BTreeMap;

/// Bytes of a heartbeat's fields that are kept, with their names, and the most of one field. An agent's have some fifty short ones, and
/// Elklet's a list of everything that has gone wrong with plugins.
const FIELDS_LEN: usize = 32 << 10;
pub(super) const FIELD_LEN: usize = 16 << 10;

/// A heartbeat.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// The fields, as a serialized `grpc.Payload`.
    payload: Box<[u8]>,
    /// When it came, in seconds since 1970.
    pub at: u64,
    /// Who sent it.
    pub host: Host,
}

/// What a message says of the host that it comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Host {
    /// The id in the message.
    pub agent_id: String,
    /// The host's name.
    pub hostname: String,
    /// The agent's version.
    pub version: String,
    /// The agent's product name.
    pub product: String,
    /// Private IPv4 addresses.
    pub intranet_ipv4: Vec<String>,
    /// Public IPv4 addresses.
    pub extranet_ipv4: Vec<String>,
    /// Private IPv6 addresses.
    pub intranet_ipv6: Vec<String>,
    /// Public IPv6 addresses.
    pub extranet_ipv6: Vec<String>,
}

impl From<&PackagedData> for Host {
    fn from(data: &PackagedData) -> Self {
        Self {
            agent_id: data.agent_id.clone(),
            hostname: data.hostname.clone(),
            version: data.version.clone(),
            product: data.product.clone(),
            intranet_ipv4: data.intranet_ipv4.clone(),
            extranet_ipv4: data.extranet_ipv4.clone(),
            intranet_ipv6: data.intranet_ipv6.clone(),
            extranet_ipv6: data.extranet_ipv6.clone(),
        }
    }
}

/// Fields that stay text even where they look like numbers.
pub(super) const TEXT_OF_AGENT: [&str; 7] =
    ["platform_version", "version", "host_serial", "host_id", "host_model", "host_vendor", "cpu_name"];
pub(super) const TEXT_OF_PLUGIN: [&str; 1] = ["pversion"];

impl Heartbeat {
    /// Keeps fields, which are bounded already.
    pub(crate) fn new(fields: BTreeMap<String, String>, at: u64, host: Host) -> Self {
        Self { payload: Payload { fields }.encode_to_vec().into(), at, host }
    }

    /// Returns the payload's fields.
    pub fn fields(&self) -> BTreeMap<String, String> {
        Payload::decode(&*self.payload).expect("it was encoded here").fields
    }

    /// Returns one field.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut fields = store::fields(&self.payload);
        fields
            .find_map(|(field, value)| (field == name.as_bytes()).then_some(value))
            .and_then(|value| str::from_utf8(value).ok())
    }

    /// Returns a field that is a number.
    pub fn number(&self, name: &str) -> Option<Number> {
        self.field(name).and_then(number)
    }

    /// Returns it as `/conn/stat` reports it. The fields in `text` stay text.
    pub(super) fn info(&self, text: &[&str]) -> Map<String, Value> {
        let fields = self.fields().into_iter().map(|(name, value)| {
            let number = if text.contains(&name.as_str()) { None } else { number(&value) };
            (name, number.map_or_else(|| Value::from(value), Value::Number))
        });
        fields.chain([("last_heartbeat_time".to_owned(), json!(self.at))]).collect()
    }
}

/// Returns a record's fields, as many and as much of each as is kept.
pub(crate) fn bounded_fields(record: &Record) -> Option<BTreeMap<String, String>> {
    let bounded = |mut text: String| {
        cut(&mut text, FIELD_LEN);
        text
    };
    let mut left = FIELDS_LEN;
    let fields = record.fields().ok()?.into_iter().map(|(name, value)| (bounded(name), bounded(value)));
    let fits = |(name, value): &(String, String)| {
        let len = name.len() + value.len();
        let fits = len <= left;
        left -= if fits { len } else { 0 };
        fits
    };
    Some(fields.filter(fits).collect())
}

/// Returns the finite number that a text holds, as Go writes a float64: without a fraction if it has none.
fn number(text: &str) -> Option<Number> {
    const EXACT: f64 = (1_u64 << 53) as f64;
    let value: f64 = text.parse().ok()?;
    if value.fract() == 0.0 && value.abs() < EXACT {
        #[expect(clippy::cast_possible_truncation, reason = "a whole number of less than 54 bits")]
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_as_go_writes_them() {
        let written = |text| number(text).map(|number| number.to_string());
        assert_eq!(written("1024").as_deref(), Some("1024"));
        assert_eq!(written("0.50000000").as_deref(), Some("0.5"));
        assert_eq!(written("3.00000000").as_deref(), Some("3"));
        assert_eq!(written("-1").as_deref(), Some("-1"));
        assert_eq!(written("NaN"), None);
        assert_eq!(written("+Inf"), None);
        assert_eq!(written(""), None);
        assert_eq!(written("5.15.0-91-generic"), None);
        assert_eq!(written("6.1").as_deref(), Some("6.1"));
    }

    #[test]
    fn fields_are_found_by_name() {
        let fields = [("cpu", "0.5"), ("net_mode", "private")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let heartbeat = Heartbeat::new(fields.clone().into(), 7, Host::default());
        assert_eq!(heartbeat.fields(), fields.into());
        assert_eq!((heartbeat.field("net_mode"), heartbeat.field("mode")), (Some("private"), None));
        assert_eq!(heartbeat.number("cpu").map(|number| number.to_string()).as_deref(), Some("0.5"));
    }
}
