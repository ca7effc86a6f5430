//! Kafka, in the form in which AgentCenter writes there, so that what reads from AgentCenter's topic reads from here unchanged.
//!
//! A batch is taken once the leaders of its partitions and their replicas in sync have it (`acks=all`).

mod data;

pub(crate) use data::Facts;
pub(super) use data::Writer;

use super::connect::client_config;
use super::delivery::{Answer, Item};
use super::sender::{Body, Outcome, Records, Sending};
use super::settings::{Compress, KafkaOutput, Mechanism};
use crate::clock::now_ms;
use rskafka::BackoffConfig;
use rskafka::chrono::{DateTime, Utc};
use rskafka::client::error::{Error, ProtocolError};
use rskafka::client::partition::{Compression, PartitionClient, UnknownTopicHandling};
use rskafka::client::{Client, ClientBuilder, Credentials, SaslConfig};
use rskafka::record::Record;
use rustls::ClientConfig;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::timeout;

/// How long the library tries by itself, which covers the change of a partition's leader. The delivery's pauses come behind it.
const RETRY_FOR: Duration = Duration::from_secs(5);
/// How long a batch may take, with connecting.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest answer of a broker: the metadata of a large cluster.
const MAX_ANSWER: usize = 16 << 20;

/// Produces batches.
#[derive(Debug)]
pub(super) struct KafkaSender(Arc<Producer>);

#[derive(Debug)]
struct Producer {
    settings: KafkaOutput,
    tls: Option<Arc<ClientConfig>>,
    topic: Mutex<Option<Topic>>,
}

/// A topic of a cluster that is connected.
#[derive(Debug)]
struct Topic {
    partitions: Vec<PartitionClient>,
}

impl KafkaSender {
    pub(super) fn new(settings: &KafkaOutput) -> io::Result<Self> {
        let tls = settings.tls.as_ref().map(client_config).transpose()?;
        Ok(Self(Arc::new(Producer { settings: settings.clone(), tls, topic: Mutex::default() })))
    }

    pub(super) fn send(&self, records: Records) -> Sending {
        let producer = Arc::clone(&self.0);
        Box::pin(async move {
            let mut topic = producer.topic.lock().await;
            let sent = timeout(TIMEOUT, producer.send(&mut topic, &records)).await;
            let outcome = sent.unwrap_or_else(|_| Outcome::again("the brokers take too long"));
            if !matches!(outcome.answer, Answer::Taken { .. }) {
                // The next attempt learns anew what the cluster is like.
                *topic = None;
            }
            outcome
        })
    }
}

impl Producer {
    async fn connect(&self) -> Result<Topic, String> {
        let KafkaOutput { brokers, topic, sasl, .. } = &self.settings;
        let backoff = BackoffConfig {
            deadline: Some(RETRY_FOR),
            max_backoff: Duration::from_secs(1),
            ..BackoffConfig::default()
        };
        let mut builder = ClientBuilder::new(brokers.clone())
            .client_id("elklet-center")
            .max_message_size(MAX_ANSWER)
            .backoff_config(backoff);
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(Arc::clone(tls));
        }
        if let Some(sasl) = sasl {
            let credentials = Credentials::new(sasl.user.clone(), sasl.password.0.clone());
            builder = builder.sasl_config(match sasl.mechanism {
                Mechanism::Plain => SaslConfig::Plain(credentials),
                Mechanism::ScramSha256 => SaslConfig::ScramSha256(credentials),
                Mechanism::ScramSha512 => SaslConfig::ScramSha512(credentials),
            });
        }
        let client = builder.build().await.map_err(|error| error.to_string())?;
        let partitions = partitions(&client, topic).await.map_err(|error| error.to_string())?;
        if partitions.is_empty() {
            return Err(format!("there is no topic {topic:?}"));
        }
        Ok(Topic { partitions })
    }

    async fn send(&self, topic: &mut Option<Topic>, records: &Records) -> Outcome {
        let topic = match topic {
            Some(topic) => topic,
            None => match self.connect().await {
                Ok(connected) => topic.insert(connected),
                Err(error) => return Outcome::again(error),
            },
        };
        let mut parts: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (place, item) in records.iter().enumerate() {
            let partition = data::partition(&item.body.agent_id, topic.partitions.len());
            parts.entry(partition).or_default().push(place);
        }
        let (mut again, mut refused, mut error) = (Vec::new(), Vec::new(), None);
        for (partition, places) in parts {
            let Some(partition) = topic.partitions.get(partition) else { continue };
            self.produce(partition, records, places, &mut again, &mut refused, &mut error).await;
        }
        let answer = match again.is_empty() {
            true => Answer::Taken { refused },
            false if again.len() == records.len() => Answer::Again { after_ms: None },
            false => Answer::Partly { again, refused, after_ms: None },
        };
        Outcome { answer, error }
    }

    /// Produces records of one partition: all together, and one by one if the broker will never take them as they are.
    async fn produce(
        &self,
        partition: &PartitionClient,
        records: &Records,
        places: Vec<usize>,
        again: &mut Vec<usize>,
        refused: &mut Vec<usize>,
        error: &mut Option<String>,
    ) {
        let compression = match self.settings.compression {
            Compress::None => Compression::NoCompression,
            Compress::Gzip => Compression::Gzip,
            Compress::Snappy => Compression::Snappy,
            Compress::Zstd => Compression::Zstd,
        };
        let mut waiting = vec![places];
        while let Some(part) = waiting.pop() {
            let of_part = part.iter().filter_map(|&place| records.get(place)).map(record).collect();
            match partition.produce(of_part, compression).await {
                Ok(_) => {}
                Err(wrong) if is_of_the_records(&wrong) && part.len() > 1 => {
                    waiting.extend(part.into_iter().map(|place| vec![place]));
                }
                Err(wrong) => {
                    if is_of_the_records(&wrong) { &mut *refused } else { &mut *again }.extend(part);
                    error.get_or_insert_with(|| wrong.to_string());
                }
            }
        }
    }
}

/// Returns the partitions of a topic in their order.
async fn partitions(client: &Client, topic: &str) -> Result<Vec<PartitionClient>, Error> {
    let topics = client.list_topics().await?;
    let ids = topics.into_iter().find(|known| known.name == topic).map(|known| known.partitions).unwrap_or_default();
    let mut partitions = Vec::new();
    for id in ids {
        partitions.push(client.partition_client(topic, id, UnknownTopicHandling::Error).await?);
    }
    Ok(partitions)
}

/// Returns true for what is wrong with the records, and stays wrong however often they are sent.
fn is_of_the_records(error: &Error) -> bool {
    let of_records = [
        ProtocolError::MessageTooLarge,
        ProtocolError::RecordListTooLarge,
        ProtocolError::InvalidRecord,
        // A broker takes none that is too far ahead of its clock, or behind it.
        ProtocolError::InvalidTimestamp,
    ];
    matches!(error, Error::ServerError { protocol_error, .. } if of_records.contains(protocol_error))
}

fn record(item: &Item<Body>) -> Record {
    // What was received while the clock was ahead would be in the broker's future.
    let received_ms = item.received_ms.min(now_ms());
    Record {
        key: Some(item.body.agent_id.as_bytes().to_vec()),
        value: Some(item.body.text.to_vec()),
        headers: BTreeMap::new(),
        timestamp: DateTime::<Utc>::from_timestamp_millis(received_ms).unwrap_or_default(),
    }
}
