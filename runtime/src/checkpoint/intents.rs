//! Intents: the state of a sink's output per partition. [`trunkline_connector::Sink`] describes the
//! steps.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use trunkline_connector::{Error, Result, TopicPartition};

use super::{Counters, INTENTS, partition_of};
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer, table};

/// The last step that a partition's output has completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentState {
    /// The output may exist at the destination, invisibly. Recovery aborts it.
    Planned,
    /// The output is prepared, and its offsets are committed in the same transaction. Recovery
    /// commits it.
    #[serde(alias = "promised")]
    Prepared,
    /// The output is visible.
    #[serde(alias = "published")]
    Committed,
}

/// The row of one partition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IntentRecord {
    /// The last completed step.
    pub state: IntentState,
    /// The sink's plan or committable, as the state requires.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub payload: Value,
    /// The first offset that it covers.
    pub first: i64,
    /// The offset after the last one that it covers. From `Prepared` on, the group's committed
    /// offset.
    pub next: i64,
    /// Totals of the stage's components for this partition. From `Prepared` on, they include the
    /// covered records.
    pub counters: Counters,
    /// What an idempotent sink must know of earlier records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sink_state: Option<Value>,
}

/// The intents of one sink.
pub struct Intents {
    topic: String,
    sink: String,
}

impl Intents {
    /// The intents of the sink `{cluster}.{pipeline}.{sink}`.
    pub fn of(cluster: &Cluster, sink: &str) -> Self {
        Self { topic: cluster.own_topic(INTENTS), sink: sink.to_owned() }
    }

    /// Reads the last row of each partition. Read the committed offsets of the partitions first:
    /// that waits for the transactions of earlier owners, whose intents are then visible here.
    pub fn load(&self, cluster: &Cluster) -> Result<BTreeMap<TopicPartition, IntentRecord>> {
        let prefix = format!("{}/", self.sink);
        let rows = table::read(cluster, &self.topic, Some(partition_of(&self.sink)), prefix.as_bytes())?;
        rows.iter().map(|(key, value)| parse(key, value, prefix.len())).collect()
    }

    /// The counters of sinks by name prefix: one sum for each prefix.
    pub fn totals(cluster: &Cluster, prefixes: &[String]) -> Result<Vec<Counters>> {
        super::totals(cluster, INTENTS, prefixes, |key, value| Ok(Some(parse(key, value, 0)?.1.counters)))
    }

    /// Writes a partition's row in the producer's open transaction.
    pub fn write(
        &self,
        producer: &mut TransactionalProducer,
        partition: &TopicPartition,
        record: &IntentRecord,
    ) -> Result<()> {
        let key = format!("{}/{}/{}", self.sink, partition.topic, partition.partition);
        let value = serde_json::to_vec(record).map_err(|error| Error::internal("intent.encode", error.to_string()))?;
        Ok(producer.send(&ProducerRecord {
            topic: &self.topic,
            partition: partition_of(&self.sink),
            timestamp: None,
            key: Some(key.as_bytes()),
            value: Some(&value),
            headers: &[],
            more_headers: &[],
        })?)
    }
}

fn parse(key: &[u8], value: &[u8], prefix: usize) -> Result<(TopicPartition, IntentRecord)> {
    let key = String::from_utf8_lossy(key);
    let unreadable = |problem: String| {
        let message = format!("the row `{key}` of topic `{INTENTS}` {problem}: was it written by a newer version?");
        Error::data("intent.unreadable", message)
    };
    let (topic, partition) =
        key[prefix..].rsplit_once('/').ok_or_else(|| unreadable("names no partition".to_owned()))?;
    let partition = partition.parse().map_err(|_| unreadable("names no partition".to_owned()))?;
    let record =
        serde_json::from_slice(value).map_err(|error| unreadable(format!("cannot be read as an intent ({error})")))?;
    Ok((TopicPartition { topic: topic.into(), partition }, record))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read_as_they_were_written() {
        let record = IntentRecord {
            state: IntentState::Prepared,
            payload: serde_json::json!({"objects": []}),
            first: 3,
            next: 7,
            counters: Counters::default(),
            sink_state: Some(serde_json::json!({"offset": 6})),
        };
        let value = serde_json::to_vec(&record).unwrap();
        let (partition, read) = parse(b"t.p.lake/p.web/3", &value, "t.p.lake/".len()).unwrap();
        assert_eq!((partition.topic.as_ref(), partition.partition, read), ("p.web", 3, record));
        assert!(parse(b"t.p.lake/p.web", &value, "t.p.lake/".len()).is_err());
        assert!(parse(b"x/1", b"{}", 0).is_err());
    }

    #[test]
    fn states_have_stable_names_and_the_names_of_earlier_versions_are_read() {
        let names = [
            (IntentState::Planned, "planned", "planned"),
            (IntentState::Prepared, "prepared", "promised"),
            (IntentState::Committed, "committed", "published"),
        ];
        for (state, name, earlier) in names {
            assert_eq!(serde_json::to_string(&state).unwrap(), format!("\"{name}\""));
            for stored in [name, earlier] {
                let row = format!(r#"{{"state":"{stored}","first":1,"next":2,"counters":{{}}}}"#);
                let row = parse(b"x/1", row.as_bytes(), 0).unwrap().1;
                assert_eq!((row.state, row.sink_state), (state, None), "{stored}");
            }
        }
    }
}
