//! A reader of topic partitions outside of groups, over the client of our own.
//!
//! The markers of a transaction reach its partitions one by one, so the last stable offset of one
//! partition may lag behind a commit that another partition already shows. A reader therefore waits
//! until every transaction up to the high watermark that it saw at its start is completed.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::error::RDKafkaErrorCode;
use trunkline_connector::{Error, RecordRef, Result, TopicPartition};

use super::client::{CALL_TIMEOUT, Cluster, classify_code};
use super::partition_batches::PartitionBatches;
use super::wire::brokers::Target;
use super::wire::connection::readiness::wait;
use super::wire::errors::code;
use super::wire::fetch::{Bound, FetchLimits, FetchOptions, Fetcher, Isolation, Room, bound, bound_of};

/// A read waits this long for open transactions: longer than `transaction.timeout.ms` of our
/// producers.
const COMPLETION_LIMIT: Duration = Duration::from_secs(60);

/// The longest wait for an answer, after which the reader looks for the end.
const POLL: Duration = Duration::from_millis(100);

/// A topic that was created a moment ago may not be known to every broker.
const NEW_TOPIC_LIMIT: Duration = Duration::from_millis(500);
const NEW_TOPIC_PAUSE: Duration = Duration::from_millis(50);

/// Compressed bytes of an answer. Memory holds two of them.
const FETCH_BYTES: i32 = 1 << 20;

/// The same for single records. A larger batch that has the record comes all the same (KIP-74).
const SINGLE_FETCH_BYTES: i32 = 64 << 10;

/// Records that are handed over at once.
const ROOM_RECORDS: usize = 1_000;
const ROOM_BYTES: usize = 1 << 20;

/// A consumer outside any group. Connects when it is first used.
pub(super) struct Reader {
    fetcher: Fetcher,
    batches: PartitionBatches,
    room: Room,
    isolation: Isolation,
    cluster: Cluster,
}

impl Reader {
    /// A reader of committed records, or of all records.
    pub(super) fn new(cluster: &Cluster, isolation: Isolation) -> Self {
        Self::with_limits(cluster, isolation, FETCH_BYTES, ROOM_RECORDS)
    }

    /// A reader of single committed records.
    pub(super) fn of_single_records(cluster: &Cluster) -> Self {
        Self::with_limits(cluster, Isolation::Committed, SINGLE_FETCH_BYTES, 1)
    }

    fn with_limits(cluster: &Cluster, isolation: Isolation, bytes: i32, records: usize) -> Self {
        let config = cluster.config(&[]);
        let property = |name: &str| config.get(name).unwrap_or_default().to_owned();
        let options = FetchOptions {
            group: None,
            client_id: property("client.id"),
            rack: property("client.rack"),
            limits: FetchLimits { partition_bytes: bytes, answer_bytes: bytes },
            is_strict: false,
            isolation,
        };
        Self {
            fetcher: Fetcher::new(cluster, options),
            batches: PartitionBatches::default(),
            room: Room::new(records, ROOM_BYTES),
            isolation,
            cluster: cluster.clone(),
        }
    }

    pub(super) fn fetcher(&mut self) -> &mut Fetcher {
        &mut self.fetcher
    }

    /// The first offset and the end of a partition, as far as this reader reads it.
    pub(super) fn watermarks(&mut self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let isolation = self.isolation;
        Ok((self.bound(topic, partition, Bound::First)?, self.bound(topic, partition, Bound::End(isolation))?))
    }

    /// The first offset and the high watermark of a partition: every record written so far,
    /// committed or not, lies before it.
    pub(super) fn all_watermarks(&mut self, topic: &str, partition: i32) -> Result<(i64, i64)> {
        let end = Bound::End(Isolation::Uncommitted);
        Ok((self.bound(topic, partition, Bound::First)?, self.bound(topic, partition, end)?))
    }

    /// The high watermark.
    pub(super) fn high(&mut self, topic: &str, partition: i32) -> Result<i64> {
        self.bound(topic, partition, Bound::End(Isolation::Uncommitted))
    }

    fn bound(&mut self, topic: &str, partition: i32, which: Bound) -> Result<i64> {
        self.find_leader(topic, partition)?;
        let doing = format!("reading the end offsets of topic `{topic}`");
        let (request, deadline) = (bound(topic, partition, which), Instant::now() + CALL_TIMEOUT);
        let brokers = self.fetcher.brokers();
        let answer =
            brokers.ask(Target::Leader(topic, partition), 2..=6, &request, deadline, |answer| bound_of(answer).0);
        let (error, offset) = bound_of(&answer.map_err(|error| error.explain(&doing, &self.cluster))?);
        if error == 0 { Ok(offset) } else { Err(classify_code(Some(code(error)), format!("{doing}: {}", code(error)))) }
    }

    /// Fails soon if the partition does not exist: a request to its leader would wait for it.
    fn find_leader(&mut self, topic: &str, partition: i32) -> Result<()> {
        let begun = Instant::now();
        let brokers = self.fetcher.brokers();
        while !brokers.has_partition(topic, partition) {
            let looked_up =
                brokers.patiently(begun + CALL_TIMEOUT, |brokers, deadline| brokers.refresh(&[topic], deadline));
            looked_up.map_err(|error| error.explain(&format!("looking up topic `{topic}`"), &self.cluster))?;
            if brokers.has_partition(topic, partition) {
                break;
            }
            if begun.elapsed() >= NEW_TOPIC_LIMIT {
                let code = RDKafkaErrorCode::UnknownTopicOrPartition;
                let message = format!("looking up partition {partition} of topic `{topic}`: {code}");
                return Err(classify_code(Some(code), message));
            }
            std::thread::park_timeout(NEW_TOPIC_PAUSE);
        }
        Ok(())
    }

    /// The partitions of a topic; none if it does not exist.
    pub(super) fn partitions_of(&mut self, topic: &str) -> Result<Vec<i32>> {
        let doing = format!("looking up topic `{topic}`");
        let deadline = Instant::now() + CALL_TIMEOUT;
        let found = self.fetcher.brokers().list_topics(Some(&[topic]), deadline);
        let found = found.map_err(|error| error.explain(&doing, &self.cluster))?;
        let partitions = found.iter().find(|found| found.name == topic).map_or(0, |found| found.partitions);
        Ok((0..partitions).collect())
    }

    /// The id of the cluster.
    pub(super) fn cluster_id(&mut self) -> Result<Option<String>> {
        let brokers = self.fetcher.brokers();
        let found = brokers.patiently(Instant::now() + CALL_TIMEOUT, |brokers, deadline| brokers.cluster_id(deadline));
        found.map_err(|error| error.explain("reading the id of the cluster", &self.cluster))
    }

    /// Passes the records of a partition in a range of offsets, in order, until `each` breaks.
    pub(super) fn scan(
        &mut self,
        topic: &str,
        partition: i32,
        (from, end): (i64, i64),
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let low = self.bound(topic, partition, Bound::First)?;
        if low.max(from) >= end {
            return Ok(());
        }
        self.read_partition(topic, partition, (low.max(from), end), |record| {
            // The reader returns what follows the range too.
            if record.entry().offset >= end { Ok(ControlFlow::Break(())) } else { each(record) }
        })
    }

    /// Passes all records from `low` to `high`, in order, and perhaps some after them, until `each`
    /// breaks.
    pub(super) fn read_partition(
        &mut self,
        topic: &str,
        partition: i32,
        (low, high): (i64, i64),
        mut each: impl FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<()> {
        let name = TopicPartition { topic: Arc::from(topic), partition };
        self.start(&name, low);
        let mut last_progress = Instant::now();
        // Asked before reading: if every transaction is completed then, a read up to here returns
        // all records.
        let mut stable = self.bound(topic, partition, Bound::End(self.isolation))?;
        loop {
            let position = self.fetcher.position(&name).unwrap_or(low);
            if position >= high.min(stable) {
                if stable >= high {
                    break;
                }
                stable = self.bound(topic, partition, Bound::End(self.isolation))?;
            }
            if self.read(&mut each)?.is_break() {
                break;
            }
            if self.fetcher.position(&name).unwrap_or(low) > position {
                last_progress = Instant::now();
            } else {
                self.check_progress(topic, partition, last_progress)?;
                self.wait(Instant::now() + POLL);
            }
        }
        self.fetcher.revoke(&[name]);
        Ok(())
    }

    fn check_progress(&self, topic: &str, partition: i32, last_progress: Instant) -> Result<()> {
        if last_progress.elapsed() <= COMPLETION_LIMIT {
            return Ok(());
        }
        let message = format!(
            "topic `{topic}` partition {partition} could not be read to its end within 60 s: find hanging \
             transactions in it with Kafka's `kafka-transactions.sh find-hanging`"
        );
        Err(Error::external("kafka.undecided", message))
    }

    /// Reads a partition from an offset on.
    pub(super) fn start(&mut self, name: &TopicPartition, from: i64) {
        self.batches.remove(name);
        self.fetcher.assign(std::slice::from_ref(name));
        self.fetcher.seek(name, from);
    }

    /// Passes on the records that have arrived, until `each` breaks. Does not wait, unless a
    /// connection is opened.
    pub(super) fn read(
        &mut self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<ControlFlow<()>> {
        self.fetcher.progress()?;
        self.batches.recycle(ROOM_BYTES);
        self.fetcher.hand_over(&mut { self.room }, &mut self.batches)?;
        let mut flow = ControlFlow::Continue(());
        for (_, batch) in self.batches.iter_mut() {
            for record in batch.iter() {
                if flow.is_continue() {
                    flow = each(record)?;
                }
            }
            batch.clear();
        }
        Ok(flow)
    }

    /// Waits until something has arrived, at most until `deadline`.
    pub(super) fn wait(&self, deadline: Instant) {
        let sockets: Vec<_> = self.fetcher.readiness().collect();
        wait(&sockets, self.fetcher.next_step().map_or(deadline, |step| step.min(deadline)));
    }
}
