//! Published schemas: the topic `_trunkline.schemas`, and a cache that all stages of a worker
//! share.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Result, Schema, SchemaId, SchemaLookup};

use super::SCHEMAS;
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer, table};

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
        if self.lock().committed.contains(&schema.id()) {
            return Ok(());
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
        for (key, json) in rows {
            match (std::str::from_utf8(&key).ok().and_then(|key| key.parse().ok()), Schema::from_json(&json)) {
                (Some(id), Ok(schema)) => {
                    known.committed.insert(id);
                    known.by_id.insert(id, Arc::new(schema));
                }
                (_, result) => {
                    let (key, error) = (String::from_utf8_lossy(&key), result.err());
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
