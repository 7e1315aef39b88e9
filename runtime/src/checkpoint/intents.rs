//! Intents: what a sink promised to publish, by partition. See [`trunkline_connector::Sink`] for the steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_connector::{Error, Result, TopicPartition};

use super::{Counters, INTENTS, partition_of};
use crate::kafka::{Cluster, Outgoing, TransactionalProducer, table};

/// How far a partition's objects have come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentState {
    /// About to be created outside; nothing is promised. Recovery aborts it.
    Planned,
    /// Promised, with the offsets committed in the same transaction. Recovery publishes it.
    Promised,
    /// Published.
    Published,
}

/// The row of one partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// How far it has come.
    pub state: IntentState,
    /// The sink's plan or intent, whichever the state is about.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    /// First offset covered.
    pub first: i64,
    /// The offset after the last one covered: what the group's committed offset is then.
    pub next: i64,
    /// Totals of the stage's components for this partition, what the intent covers included once it is promised.
    pub counters: Counters,
}

/// The intents of one sink.
pub struct Intents {
    sink: String,
}

impl Intents {
    /// Of the sink `{cluster}.{pipeline}.{sink}`.
    pub fn of(sink: &str) -> Self {
        Self { sink: sink.to_owned() }
    }

    /// Reads the last row of each partition. Ask for the committed offsets of the partitions first: that waits for the transactions of
    /// their earlier owner, whose intents are then found here.
    pub fn load(&self, cluster: &Cluster) -> Result<BTreeMap<TopicPartition, IntentRecord>> {
        let prefix = format!("{}/", self.sink);
        let rows = table::read(cluster, INTENTS, Some(partition_of(&self.sink)), prefix.as_bytes())?;
        rows.iter().map(|(key, value)| parse(key, value, prefix.len())).collect()
    }

    /// The counters of the sinks whose names start with a prefix, summed for each of several prefixes.
    pub fn totals(cluster: &Cluster, prefixes: &[String]) -> Result<Vec<Counters>> {
        super::totals(cluster, INTENTS, prefixes, |key, value| Ok(Some(parse(key, value, 0)?.1.counters)))
    }

    /// Writes a partition's row in the producer's open transaction.
    pub fn write(
        &self,
        producer: &mut TransactionalProducer,
        claim: &TopicPartition,
        record: &IntentRecord,
    ) -> Result<()> {
        let key = format!("{}/{}/{}", self.sink, claim.topic, claim.partition);
        let value = serde_json::to_vec(record).map_err(|error| Error::internal("intent.encode", error.to_string()))?;
        producer.send(&Outgoing {
            topic: INTENTS,
            partition: partition_of(&self.sink),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: Some(&value),
            headers: &[],
            more_headers: &[],
        })
    }
}

fn parse(key: &[u8], value: &[u8], prefix: usize) -> Result<(TopicPartition, IntentRecord)> {
    let key = String::from_utf8_lossy(key);
    let unreadable = |what: String| Error::data("intent.unreadable", format!("the row `{key}` of `{INTENTS}` {what}"));
    let (topic, partition) =
        key[prefix..].rsplit_once('/').ok_or_else(|| unreadable("names no partition".to_owned()))?;
    let partition = partition.parse().map_err(|_| unreadable("names no partition".to_owned()))?;
    let record = serde_json::from_slice(value).map_err(|error| unreadable(format!("is no intent: {error}")))?;
    Ok((TopicPartition { topic: topic.into(), partition }, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_back() {
        let record = IntentRecord {
            state: IntentState::Promised,
            payload: serde_json::json!({"objects": []}),
            first: 3,
            next: 7,
            counters: Counters::default(),
        };
        let value = serde_json::to_vec(&record).unwrap();
        let (claim, read) = parse(b"t.p.lake/p.web/3", &value, "t.p.lake/".len()).unwrap();
        assert_eq!((claim.topic.as_ref(), claim.partition, read), ("p.web", 3, record));
        assert!(parse(b"t.p.lake/p.web", &value, "t.p.lake/".len()).is_err());
        assert!(parse(b"x/1", b"{}", 0).is_err());
    }
}
