//! Reads topics outside of any group: all records of a topic or a range, single records, and the
//! ends of partitions.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, RecordRef, Result, TopicPartition};

use super::client::{CALL_TIMEOUT, Cluster};
use super::reader::Reader;
use super::wire::fetch::Isolation;

/// Time that one wait for records takes at most.
const POLL: Duration = Duration::from_millis(100);

/// The ends of a topic's partitions, by their numbers; none if the topic does not exist.
pub fn ends(cluster: &Cluster, topic: &str) -> Result<Vec<i64>> {
    let mut reader = Reader::new(cluster, Isolation::Uncommitted);
    reader.partitions_of(topic)?.into_iter().map(|partition| reader.high(topic, partition)).collect()
}

/// The id of the Kafka cluster.
pub fn cluster_id(cluster: &Cluster) -> Result<Option<String>> {
    Reader::new(cluster, Isolation::Committed).cluster_id()
}

/// Passes the committed records of a topic that exist now, partition by partition, in order.
pub fn scan(cluster: &Cluster, topic: &str, each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>) -> Result<()> {
    let mut scanner = PartitionScanner::new(cluster);
    for partition in scanner.partitions_of(topic)? {
        scanner.scan(topic, partition, each)?;
    }
    Ok(())
}

/// Passes the committed records of a partition in a range of offsets, in order.
pub fn scan_range(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    range: (i64, i64),
    each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
) -> Result<()> {
    PartitionScanner::new(cluster).scan_range(topic, partition, range, each)
}

/// The same, until `each` breaks.
pub fn scan_range_until(
    cluster: &Cluster,
    topic: &str,
    partition: i32,
    range: (i64, i64),
    each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
) -> Result<()> {
    Reader::new(cluster, Isolation::Committed).scan(topic, partition, range, each)
}

/// Reads whole partitions, one after the other, with the same client.
pub struct PartitionScanner {
    reader: Reader,
}

impl PartitionScanner {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Self {
        Self { reader: Reader::new(cluster, Isolation::Committed) }
    }

    /// The partitions of a topic; none if it does not exist.
    pub fn partitions_of(&mut self, topic: &str) -> Result<Vec<i32>> {
        self.reader.partitions_of(topic)
    }

    /// The first offset and the end of a partition, with open transactions; `None` if it does not
    /// exist.
    pub fn bounds(&mut self, topic: &str, partition: i32) -> Result<Option<(i64, i64)>> {
        if !self.partitions_of(topic)?.contains(&partition) {
            return Ok(None);
        }
        self.reader.all_watermarks(topic, partition).map(Some)
    }

    /// Passes the committed records of a partition in a range of offsets, in order. Waits for open
    /// transactions before the end.
    pub fn scan_range(
        &mut self,
        topic: &str,
        partition: i32,
        range: (i64, i64),
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
    ) -> Result<()> {
        self.reader.scan(topic, partition, range, &mut |record| {
            each(record)?;
            Ok(ControlFlow::Continue(()))
        })
    }

    /// Passes the committed records that a partition has now, in order. Returns the offset after
    /// them; `None` if the partition does not exist.
    pub fn scan(
        &mut self,
        topic: &str,
        partition: i32,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<()>,
    ) -> Result<Option<i64>> {
        let Some((_, end)) = self.bounds(topic, partition)? else { return Ok(None) };
        self.scan_range(topic, partition, (0, end), each)?;
        Ok(Some(end))
    }
}

/// Follows partitions from their offsets on.
pub struct Tail {
    reader: Reader,
    partitions: Vec<TopicPartition>,
    /// Those whose end was reported, and that had no record since.
    ended: BTreeSet<TopicPartition>,
    /// Ends that were not returned yet.
    ends: VecDeque<TopicPartition>,
}

/// What a [`Tail`] has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tailed {
    /// Records were passed on.
    Records,
    /// All committed records of one of the partitions have been read.
    End,
    /// Nothing within the time.
    Nothing,
}

impl Tail {
    /// Starts at these offsets.
    pub fn new(cluster: &Cluster, starts: &BTreeMap<TopicPartition, i64>) -> Self {
        let mut reader = Reader::new(cluster, Isolation::Committed);
        starts.iter().for_each(|(partition, start)| reader.start(partition, *start));
        let partitions = starts.keys().cloned().collect();
        Self { reader, partitions, ended: BTreeSet::new(), ends: VecDeque::new() }
    }

    /// Waits at most this long, and passes on the next records, until `each` breaks: what has
    /// arrived with the last one is dropped then.
    pub fn next(
        &mut self,
        wait: Duration,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<ControlFlow<()>>,
    ) -> Result<Tailed> {
        let deadline = Instant::now() + wait;
        loop {
            if self.ends.pop_front().is_some() {
                return Ok(Tailed::End);
            }
            let mut records = 0;
            let flow = self.reader.read(&mut |record| {
                records += 1;
                each(record)
            })?;
            if flow.is_break() {
                return Ok(Tailed::Records);
            }
            let fetcher = self.reader.fetcher();
            for partition in &self.partitions {
                if !fetcher.is_at_end(partition) {
                    self.ended.remove(partition);
                } else if self.ended.insert(partition.clone()) {
                    self.ends.push_back(partition.clone());
                }
            }
            if records > 0 {
                return Ok(Tailed::Records);
            }
            if self.ends.is_empty() {
                if Instant::now() >= deadline {
                    return Ok(Tailed::Nothing);
                }
                self.reader.wait(deadline);
            }
        }
    }
}

/// Reads single records by their offsets.
pub struct RecordReader {
    reader: Reader,
}

impl RecordReader {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Self {
        Self { reader: Reader::of_single_records(cluster) }
    }

    /// Passes on the record at an offset. `false` if there is none, or no longer.
    pub fn read(&mut self, topic: &str, partition: i32, offset: i64, each: impl FnOnce(RecordRef<'_>)) -> Result<bool> {
        let (low, high) = self.reader.watermarks(topic, partition)?;
        if !(low..high).contains(&offset) {
            return Ok(false);
        }
        let mut each = Some(each);
        let mut found = false;
        first_record(&mut self.reader, topic, partition, (offset, offset + 1), &mut |record| {
            found = record.entry().offset == offset;
            if let Some(each) = each.take().filter(|_| found) {
                each(record);
            }
        })?;
        Ok(found)
    }
}

/// Passes on the first record from an offset on, if there is one before `end`, or in the same
/// answer. For readers of single records.
fn first_record(
    reader: &mut Reader,
    topic: &str,
    partition: i32,
    (from, end): (i64, i64),
    each: &mut dyn FnMut(RecordRef<'_>),
) -> Result<()> {
    let name = TopicPartition { topic: Arc::from(topic), partition };
    reader.start(&name, from);
    let deadline = Instant::now() + CALL_TIMEOUT;
    loop {
        let flow = reader.read(&mut |record| {
            each(record);
            Ok(ControlFlow::Break(()))
        })?;
        if flow.is_break() || reader.fetcher().position(&name).is_some_and(|position| position >= end) {
            reader.fetcher().revoke(&[name]);
            return Ok(());
        }
        if Instant::now() >= deadline {
            let message =
                format!("topic `{topic}` partition {partition} could not be read at offset {from} within 30 s");
            return Err(Error::external("kafka.unreachable", message));
        }
        reader.wait(Instant::now() + POLL);
    }
}

/// Reads the ends of partitions. The end offset alone does not show whether records are left:
/// markers of transactions and aborted records have offsets too.
pub struct EndProbe {
    reader: Reader,
}

impl EndProbe {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster) -> Self {
        Self { reader: Reader::of_single_records(cluster) }
    }

    /// The high watermark: every record written so far, committed or not, lies before it.
    pub fn high(&mut self, topic: &str, partition: i32) -> Result<i64> {
        self.reader.high(topic, partition)
    }

    /// Whether every transaction before `target` is completed and no record is left to read from
    /// `offset` to `target`.
    pub fn is_drained(&mut self, topic: &str, partition: i32, offset: i64, target: i64) -> Result<bool> {
        let (low, stable) = self.reader.watermarks(topic, partition)?;
        let from = offset.max(low);
        if stable < target || from >= target {
            return Ok(from >= target);
        }
        let mut is_drained = true;
        first_record(&mut self.reader, topic, partition, (from, target), &mut |record| {
            is_drained = record.entry().offset >= target;
        })?;
        Ok(is_drained)
    }
}
