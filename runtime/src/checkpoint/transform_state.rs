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
//! earlier owner, and then the changelog up to the end at that moment. With a copy of the state on
//! disk that can be trusted, it reads only what the copy does not have. The copy names the cluster,
//! the topic and the offset up to which it was written; see `transforms/host/src/state/cache.rs`.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use trunkline_connector::{Error, RecordRef, Result, TopicPartition};
use trunkline_transform_host::{StateDisk, StateEntry, StateIdentity, StateStore};

use crate::kafka::topic_reader::PartitionScanner;
use crate::kafka::{Admin, Cluster, ProducerRecord, TransactionalProducer};

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

/// Greatest age of a copy on disk, if the changelog keeps deletions for longer than twice this.
const MAX_AGE: Duration = Duration::from_hours(12);

/// The changelog of a transform.
pub struct StateChangelog {
    topic: String,
    component: String,
}

/// What must be known of the changelog to trust copies on disk.
pub struct ChangelogFacts {
    identity: Option<StateIdentity>,
    /// Older copies may have entries whose deletion the changelog does not show any more.
    max_age: Duration,
}

/// A state that was restored.
pub struct Restored {
    /// The state.
    pub store: StateStore,
    /// Records of the changelog that were read.
    pub records: u64,
    /// How long it took.
    pub took: Duration,
}

impl StateChangelog {
    /// The changelog of the transform with this name in Kafka.
    pub fn new(cluster: &Cluster, component: &str) -> Self {
        Self { topic: cluster.own_topic(&state_topic(component)), component: component.to_owned() }
    }

    /// The name of the topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Asks the brokers for the changelog's ids.
    pub fn facts(&self, admin: &Admin) -> Result<ChangelogFacts> {
        let found = admin.topic_identity(&self.topic)?;
        let identity = found.cluster.zip(found.topic).map(|(cluster, topic)| StateIdentity { cluster, topic });
        // Half of the time, because clocks of workers and brokers differ.
        let max_age = found.delete_retention.map_or(Duration::ZERO, |retention| retention / 2).min(MAX_AGE);
        if identity.is_none() || max_age.is_zero() {
            tracing::info!(
                topic = self.topic,
                "state is always restored completely: the brokers do not show the topic's id and `delete.retention.ms`"
            );
        }
        Ok(ChangelogFacts { identity, max_age })
    }

    /// Restores the committed state of a topic partition. It may have `max_bytes`.
    pub fn restore(
        &self,
        scanner: &mut PartitionScanner,
        facts: &ChangelogFacts,
        partition: &TopicPartition,
        disk: &StateDisk,
        max_bytes: usize,
    ) -> Result<Restored> {
        let begun = Instant::now();
        let name = (self.component.as_str(), &*partition.topic, partition.partition);
        let mut store = StateStore::on_disk(max_bytes, disk, name, facts.identity.clone(), facts.max_age)?;
        // What is written after the end of the range is newer than this.
        let since = now_ms();
        let Some((low, end)) = scanner.bounds(&self.topic, partition.partition)? else {
            return Err(self.missing_partition(partition));
        };
        if store.position().is_some_and(|position| !(low..=end).contains(&position)) {
            tracing::warn!(
                topic = self.topic,
                partition = partition.partition,
                "the changelog does not have the records after the copy on disk: the state is restored completely"
            );
            store.discard()?;
        }
        let from = store.position().unwrap_or(low);
        let records = self.scan(scanner, partition, (from, end), &mut store)?;
        store.check_restored()?;
        store.advance(end, since);
        Ok(Restored { store, records, took: begun.elapsed() })
    }

    /// Repeats the changes in a range of offsets. Returns the number of records.
    fn scan(
        &self,
        scanner: &mut PartitionScanner,
        partition: &TopicPartition,
        range: (i64, i64),
        store: &mut StateStore,
    ) -> Result<u64> {
        let prefix = partition.topic.as_bytes();
        let mut records = 0;
        scanner.scan_range(&self.topic, partition.partition, range, &mut |record| {
            records += 1;
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
                    if store.is_write_due() {
                        store.write()?;
                    }
                }
                // Another input topic.
                Some(_) | None => {}
            }
            Ok(())
        })?;
        Ok(records)
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

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
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
