//! Published schemas: the topic `_trunkline.schemas`, and a cache that all stages of a worker
//! share. The topic also has the column types that sinks have inferred.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Result, Schema, SchemaId, SchemaLookup, TopicPartition};
use trunkline_transform_host::SchemaStore;

use super::SCHEMAS;
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer, table};

/// Precedes the keys of inferred types: `inferred/{sink}/{topic}/{partition}`.
const INFERRED: &str = "inferred/";

/// Minimum time between two look-ups of an unknown id, so that records with a wrong header do not
/// cause a read each.
const UNKNOWN_RETRY: Duration = Duration::from_secs(10);

/// All schemas of a cluster.
pub struct Schemas {
    cluster: Cluster,
    topic: String,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_id: HashMap<SchemaId, Arc<Schema>>,
    unknown: HashMap<SchemaId, Instant>,
    committed: HashSet<SchemaId>,
}

impl Schemas {
    /// An empty cache over the cluster's topic.
    pub fn new(cluster: Cluster) -> Self {
        Self { topic: cluster.own_topic(SCHEMAS), cluster, known: Mutex::new(Known::default()) }
    }

    /// Publishes a schema in the producer's open transaction, unless this worker knows that it is
    /// published. Write the records that name it in the same transaction or a later one.
    pub fn publish(&self, producer: &mut TransactionalProducer, schema: &Arc<Schema>) -> Result<()> {
        {
            let mut known = self.lock();
            if known.committed.contains(&schema.id()) {
                return Ok(());
            }
            // The stage's own transforms look it up before the transaction is committed.
            known.by_id.insert(schema.id(), Arc::clone(schema));
        }
        let id = schema.id().to_string();
        let json = schema.to_json().map_err(|error| Error::internal("schema.encode", error.to_string()))?;
        Ok(producer.send(&ProducerRecord {
            topic: &self.topic,
            partition: 0,
            timestamp: None,
            key: Some(id.as_bytes()),
            value: Some(json.as_bytes()),
            headers: &[],
            more_headers: &[],
        })?)
    }

    /// Publishes those of these schemas that are not published, and are not in `pending`: the
    /// schemas of the producer's open transaction.
    pub fn publish_all(
        &self,
        producer: &mut TransactionalProducer,
        schemas: Vec<Arc<Schema>>,
        pending: &mut Vec<Arc<Schema>>,
    ) -> Result<()> {
        for schema in schemas {
            let is_known = |id| pending.iter().any(|pending| pending.id() == id) || self.lock().committed.contains(&id);
            if !is_known(schema.id()) {
                self.publish(producer, &schema)?;
                pending.push(schema);
            }
        }
        Ok(())
    }

    /// The column types that the tasks of a sink have inferred, with their topics. A topic has a
    /// row for each partition, because several tasks write at once.
    pub fn inferred(&self, sink: &str) -> Result<Vec<(Arc<str>, Schema)>> {
        let prefix = format!("{INFERRED}{sink}/");
        let mut types = Vec::new();
        for (key, json) in table::read(&self.cluster, &self.topic, Some(0), prefix.as_bytes())? {
            let key = String::from_utf8_lossy(&key);
            match (key[prefix.len()..].rsplit_once('/'), Schema::from_json(&json)) {
                (Some((topic, _)), Ok(schema)) => types.push((Arc::from(topic), schema)),
                (_, result) => {
                    let (topic, error) = (&self.topic, result.err());
                    tracing::warn!(%key, ?error, "a row of topic `{topic}` cannot be read as inferred types");
                }
            }
        }
        Ok(types)
    }

    /// Writes the types that a sink has inferred from records of a topic, in the row of one of its
    /// partitions, in the producer's open transaction.
    pub fn write_inferred(
        &self,
        producer: &mut TransactionalProducer,
        sink: &str,
        partition: &TopicPartition,
        types: &Schema,
    ) -> Result<()> {
        let key = format!("{INFERRED}{sink}/{}/{}", partition.topic, partition.partition);
        let json = types.to_json().map_err(|error| Error::internal("schema.encode", error.to_string()))?;
        Ok(producer.send(&ProducerRecord {
            topic: &self.topic,
            partition: 0,
            timestamp: None,
            key: Some(key.as_bytes()),
            value: Some(json.as_bytes()),
            headers: &[],
            more_headers: &[],
        })?)
    }

    /// Notes that the transaction that published these schemas was committed.
    pub fn committed(&self, schemas: &[Arc<Schema>]) {
        let mut known = self.lock();
        for schema in schemas {
            known.committed.insert(schema.id());
            known.by_id.insert(schema.id(), schema.clone());
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        // Each change is one insert, which a panic cannot leave incomplete.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SchemaStore for Schemas {
    fn add(&self, schema: &Arc<Schema>) {
        self.lock().by_id.insert(schema.id(), Arc::clone(schema));
    }
}

impl SchemaLookup for Schemas {
    fn schema(&self, id: SchemaId) -> Result<Option<Arc<Schema>>> {
        {
            let known = self.lock();
            if let Some(schema) = known.by_id.get(&id) {
                return Ok(Some(schema.clone()));
            }
            if known.unknown.get(&id).is_some_and(|last| last.elapsed() < UNKNOWN_RETRY) {
                return Ok(None);
            }
        }
        let rows = table::read(&self.cluster, &self.topic, None, &[])?;
        let mut known = self.lock();
        for (key, json) in rows.iter().filter(|(key, _)| !key.starts_with(INFERRED.as_bytes())) {
            match (std::str::from_utf8(key).ok().and_then(|key| key.parse().ok()), Schema::from_json(json)) {
                (Some(id), Ok(schema)) => {
                    known.committed.insert(id);
                    known.by_id.insert(id, Arc::new(schema));
                }
                (_, result) => {
                    let (key, error) = (String::from_utf8_lossy(key), result.err());
                    let topic = &self.topic;
                    tracing::warn!(%key, ?error, "a row of topic `{topic}` cannot be read as a schema");
                }
            }
        }
        let found = known.by_id.get(&id).cloned();
        if found.is_none() {
            known.unknown.insert(id, Instant::now());
        }
        Ok(found)
    }
}
