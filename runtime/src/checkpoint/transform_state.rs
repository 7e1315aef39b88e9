//! The changelog of a transform's state: a compacted topic for each transform,
//! `_trunkline.state.{cluster}.{pipeline}.{transform}`. Its partition has the number of the input
//! partition.
//!
//! | key | value |
//! |---|---|
//! | `{topic}/{key}` | the entry's value; header `trunkline.expires`: when it expires |
//! | `{topic}` | the time of the partition: the greatest timestamp of its records |
//!
//! The key names the input topic, because several of them may have a partition of this number. The
//! names of topics have no `/`.
//!
//! Changes are written in the transaction of the output and the offsets (I2 a). A new owner of a
//! topic partition first reads its committed offset, which waits for the transactions of the
//! earlier owner, and then the changelog up to the end at that moment.

use std::sync::Arc;

use trunkline_connector::{Error, RecordRef, Result, TopicPartition};
use trunkline_transform_host::{StateEntry, StateStore};

use crate::kafka::topic_reader::PartitionScanner;
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer};

/// Start of the names of the changelog topics.
const STATE: &str = "_trunkline.state.";
const EXPIRES: &str = "trunkline.expires";
const SEPARATOR: u8 = b'/';

/// The changelog topic of a transform without the prefix of the cluster's own topics. `component`
/// is the name of the transform in Kafka.
pub fn state_topic(component: &str) -> String {
    // The name of a replay has a `!`, which topics cannot have.
    format!("{STATE}{}", component.replace('!', "-"))
}

/// The changelog of a transform.
pub struct StateChangelog {
    topic: String,
}

impl StateChangelog {
    /// The changelog of the transform with this name in Kafka.
    pub fn new(cluster: &Cluster, component: &str) -> Self {
        Self { topic: cluster.own_topic(&state_topic(component)) }
    }

    /// Reads the committed state of a topic partition. It may have `max_bytes`.
    pub fn restore(
        &self,
        scanner: &PartitionScanner,
        partition: &TopicPartition,
        max_bytes: usize,
    ) -> Result<StateStore> {
        let mut store = StateStore::new(max_bytes);
        let prefix = partition.topic.as_bytes();
        let end = scanner.scan(&self.topic, partition.partition, &mut |record| {
            match record.key().and_then(|key| key.strip_prefix(prefix)) {
                Some([]) => store.restore_time(number(&self.topic, record.value())?),
                Some([SEPARATOR, key @ ..]) => {
                    let entry = match record.value() {
                        Some(value) => {
                            Some(StateEntry { value: Arc::from(value), expires_at: expiry(&self.topic, record)? })
                        }
                        None => None,
                    };
                    store.restore(key, entry);
                }
                // Another input topic.
                Some(_) | None => {}
            }
            Ok(())
        })?;
        if end.is_none() {
            return Err(self.missing_partition(partition));
        }
        store.check_restored()?;
        Ok(store)
    }

    /// Writes the changes of the store's transaction in the producer's open transaction.
    pub fn write(
        &self,
        producer: &mut TransactionalProducer,
        partition: &TopicPartition,
        store: &StateStore,
    ) -> Result<()> {
        let prefix = partition.topic.as_bytes();
        let mut row_key = [prefix, &[SEPARATOR]].concat();
        let prefix_len = row_key.len();
        for (key, entry) in store.changes() {
            row_key.truncate(prefix_len);
            row_key.extend_from_slice(key);
            let expires = entry.and_then(|entry| entry.expires_at).map(|time| time.to_string());
            let header = expires.as_ref().map(|expires| (EXPIRES, expires.as_bytes()));
            producer.send(&ProducerRecord {
                topic: &self.topic,
                partition: partition.partition,
                timestamp: None,
                key: Some(&row_key),
                value: entry.map(|entry| &*entry.value),
                headers: &[],
                more_headers: header.as_slice(),
            })?;
        }
        if let Some(time) = store.changed_time() {
            producer.send(&ProducerRecord {
                topic: &self.topic,
                partition: partition.partition,
                timestamp: None,
                key: Some(prefix),
                value: Some(time.to_string().as_bytes()),
                headers: &[],
                more_headers: &[],
            })?;
        }
        Ok(())
    }

    fn missing_partition(&self, partition: &TopicPartition) -> Error {
        let message = format!(
            "the input topic `{}` has a partition {}, and the state topic `{}` does not: create it, or add partitions with \
             `kafka-topics.sh --alter --topic {} --partitions {}`",
            partition.topic,
            partition.partition,
            self.topic,
            self.topic,
            partition.partition + 1
        );
        Error::external("plugin.state_partitions", message)
    }
}

fn expiry(topic: &str, record: RecordRef<'_>) -> Result<Option<i64>> {
    let header = record.headers().find(|(name, _)| *name == EXPIRES);
    header.map(|(_, value)| number(topic, value)).transpose()
}

fn number(topic: &str, text: Option<&[u8]>) -> Result<i64> {
    let number = text.and_then(|text| std::str::from_utf8(text).ok()?.parse().ok());
    number.ok_or_else(|| {
        let message =
            format!("a row of the state topic `{topic}` has no valid time: was it written by a newer version?");
        Error::data("checkpoint.unreadable", message)
    })
}
