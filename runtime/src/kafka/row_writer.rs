//! Writes single rows of a compacted topic, outside of transactions.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use kafka_protocol::messages::produce_request::PartitionProduceData;
use trunkline_connector::Result;

use super::client::{Cluster, classify_code};
use super::producer::ProducerRecord;
use super::wire::brokers::{Brokers, Target};
use super::wire::errors::code;
use super::wire::produce::{BatchWriter, Codec, VERSIONS, request};

/// Rows that were not acknowledged within this time count as not written.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Rows of a request, and their bytes: few enough for every topic.
const MAX_ROWS: usize = 1000;
const MAX_BYTES: usize = 256 << 10;

/// Writes rows, each of them acknowledged by all replicas in sync. For rows that no transaction has
/// to cover: state that does not move with records.
pub struct RowWriter {
    brokers: Mutex<Brokers>,
}

impl RowWriter {
    /// A writer, which connects with the first row. Brokers see the name `client_id`.
    pub fn new(cluster: &Cluster, client_id: &str) -> Self {
        Self { brokers: Mutex::new(Brokers::new(cluster, client_id)) }
    }

    /// Writes a row, or removes it (no value). Waits for the acknowledgement, at most for `limit`.
    /// Returns the offset of the row.
    pub fn write(&self, topic: &str, partition: i32, key: &[u8], value: Option<&[u8]>, limit: Duration) -> Result<i64> {
        self.write_rows(topic, partition, std::iter::once((key, value)), limit.min(TIMEOUT))
    }

    /// Writes rows, or removes those without a value, in this order. Waits for the
    /// acknowledgements.
    pub fn write_all(&self, topic: &str, partition: i32, rows: &[(Vec<u8>, Option<Vec<u8>>)]) -> Result<()> {
        let mut rest = rows;
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |(key, value): &&(Vec<u8>, Option<Vec<u8>>)| {
                bytes += key.len() + value.as_ref().map_or(0, Vec::len);
                bytes <= MAX_BYTES
            };
            let count = rest.iter().take(MAX_ROWS).take_while(fits).count().max(1);
            let (now, later) = rest.split_at(count);
            let now = now.iter().map(|(key, value)| (key.as_slice(), value.as_deref()));
            self.write_rows(topic, partition, now, TIMEOUT)?;
            rest = later;
        }
        Ok(())
    }

    /// A request that is repeated may write the rows twice. The last one of a key counts, and the
    /// second time has the same. Returns the offset of the first row, as it was acknowledged.
    fn write_rows<'r>(
        &self,
        topic: &str,
        partition: i32,
        rows: impl Iterator<Item = (&'r [u8], Option<&'r [u8]>)>,
        limit: Duration,
    ) -> Result<i64> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let mut batch = BatchWriter::default();
        for (key, value) in rows {
            let record = ProducerRecord {
                topic,
                partition,
                timestamp: None,
                key: Some(key),
                value,
                headers: &[],
                more_headers: &[],
            };
            batch.append(&record, i64::try_from(now.as_millis()).unwrap_or(i64::MAX));
        }
        let (batch, _) = batch.seal(Codec::None, &mut Vec::new());
        let data = PartitionProduceData::default()
            .with_index(partition)
            .with_records(Some(batch.without_transaction().into()));
        let request = request(None, limit, BTreeMap::from([(topic.to_owned(), vec![data])]));
        let doing = format!("writing to topic `{topic}`");
        let first = |answer: &kafka_protocol::messages::ProduceResponse| {
            let mut partitions = answer.responses.iter().flat_map(|topic| &topic.partition_responses);
            partitions.next().map_or((-1, -1), |partition| (partition.error_code, partition.base_offset))
        };
        let mut brokers = self.brokers.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = brokers
            .ask(Target::Leader(topic, partition), VERSIONS, &request, Instant::now() + limit, |answer| first(answer).0)
            .map_err(|error| error.explain(&doing, brokers.cluster()))?;
        match first(&answer) {
            (0, offset) => Ok(offset),
            (error, _) => Err(classify_code(Some(code(error)), format!("{doing}: {}", code(error)))),
        }
    }
}
