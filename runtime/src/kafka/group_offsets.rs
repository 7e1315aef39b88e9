//! The offsets of a group and of its topics, read and written from outside of the group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result, Retry, TopicPartition};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster};
use super::consumer::GroupConsumer;
use super::logins::LoginLease;
use super::producer::TransactionalProducer;

/// Time for a group without members to assign its partitions to this client. Apache Kafka waits
/// three seconds for further members.
const ASSIGNMENT_LIMIT: Duration = Duration::from_secs(60);

/// Time to read committed offsets. A member that was killed during a commit leaves offsets in an
/// open transaction, and the coordinator answers once it is aborted: after
/// `transaction.timeout.ms` of our producers, and up to ten seconds until the broker looks for such
/// transactions.
const COMMITTED_LIMIT: Duration = Duration::from_secs(60);

/// Time of one poll while the assignment is awaited.
const POLL: Duration = Duration::from_millis(100);

/// Fetched bytes are discarded: the group is joined for its generation alone.
const PREFETCH_BYTES: usize = 64 << 10;

/// State rows are small.
const BUFFER_BYTES: usize = 1 << 20;

/// The ends of a partition: its first offset, and the offset after its last record.
pub type Watermarks = (i64, i64);

/// A client that is no member of the group.
pub struct GroupOffsets {
    /// Dropped before the client.
    _login: LoginLease,
    consumer: BaseConsumer<ClientLog>,
    cluster: Cluster,
    group: String,
}

impl GroupOffsets {
    /// Connects when it is first used.
    pub fn new(cluster: &Cluster, group: &str) -> Result<Self> {
        Self::with_isolation(cluster, group, "read_committed")
    }

    fn with_isolation(cluster: &Cluster, group: &str, isolation: &str) -> Result<Self> {
        let mut config = cluster.config(&[]);
        config.set("isolation.level", isolation);
        config.set("group.id", group).set("enable.auto.commit", "false");
        let consumer: BaseConsumer<ClientLog> = cluster.create(&config, cluster.client_log())?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        Ok(Self { _login: login, consumer, cluster: cluster.clone(), group: group.to_owned() })
    }

    /// The partitions of the topics that `is_selected` selects, in order.
    pub fn partitions(&self, is_selected: impl Fn(&str) -> bool) -> Result<Vec<TopicPartition>> {
        let metadata =
            self.consumer.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| self.failed("listing topics", &error))?;
        let mut found = Vec::new();
        for topic in metadata.topics().iter().filter(|topic| is_selected(topic.name())) {
            let name: Arc<str> = Arc::from(topic.name());
            let numbers = topic.partitions().iter().map(|partition| partition.id());
            found.extend(numbers.map(|partition| TopicPartition { topic: name.clone(), partition }));
        }
        found.sort_unstable();
        Ok(found)
    }

    /// The first offset of a partition, and the offset after its last record.
    pub fn watermarks(&self, partition: &TopicPartition) -> Result<Watermarks> {
        self.consumer
            .fetch_watermarks(&partition.topic, partition.partition, CALL_TIMEOUT)
            .map_err(|error| self.failed(&format!("reading the end offsets of topic `{}`", partition.topic), &error))
    }

    /// The same for many partitions, with one request to each broker for each end.
    pub fn all_watermarks(&self, partitions: &[TopicPartition]) -> Result<Vec<Watermarks>> {
        let firsts = self.list_offsets(partitions, Offset::Beginning)?;
        let ends = self.list_offsets(partitions, Offset::End)?;
        let both = partitions.iter().zip(firsts.into_iter().zip(ends));
        both.map(|(partition, ends)| match ends {
            (Some(first), Some(end)) => Ok((first, end)),
            _ => self.watermarks(partition),
        })
        .collect()
    }

    /// The partitions with records in open transactions, each with the offset of the first one.
    /// `ends` are those of [`GroupOffsets::all_watermarks`].
    pub fn open_transactions(
        &self,
        partitions: &[TopicPartition],
        ends: &[Watermarks],
    ) -> Result<Vec<(TopicPartition, i64)>> {
        let all = Self::with_isolation(&self.cluster, &self.group, "read_uncommitted")?;
        let highs = all.list_offsets(partitions, Offset::End)?;
        let open = partitions.iter().zip(ends).zip(highs);
        let open = open.filter(|((_, (_, stable)), high)| high.is_some_and(|high| high > *stable));
        Ok(open.map(|((partition, (_, stable)), _)| (partition.clone(), *stable)).collect())
    }

    /// The first offset of each partition whose record has this time or a later one; `None` if no
    /// record has.
    pub fn at_time(&self, partitions: &[TopicPartition], milliseconds: i64) -> Result<Vec<Option<i64>>> {
        self.list_offsets(partitions, Offset::Offset(milliseconds))
    }

    /// The answers of the brokers to a request for offsets: by a time, or of an end.
    fn list_offsets(&self, partitions: &[TopicPartition], query: Offset) -> Result<Vec<Option<i64>>> {
        let mut times = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            times
                .add_partition_offset(&partition.topic, partition.partition, query)
                .map_err(|error| self.failed("looking up a time", &error))?;
        }
        let found = self
            .consumer
            .offsets_for_times(times, CALL_TIMEOUT)
            .map_err(|error| self.failed("looking up offsets by time", &error))?;
        let mut offsets = Vec::with_capacity(partitions.len());
        for partition in partitions {
            let answer = found.find_partition(&partition.topic, partition.partition);
            if let Some(Err(error)) = answer.as_ref().map(|answer| answer.error()) {
                return Err(self.failed(&format!("looking up offsets by time in `{}`", partition.topic), &error));
            }
            offsets.push(match answer.map(|answer| answer.offset()) {
                Some(Offset::Offset(offset)) => Some(offset),
                _ => None,
            });
        }
        Ok(offsets)
    }

    /// The committed offset of each partition that has one.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<BTreeMap<TopicPartition, i64>> {
        let mut requested = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            requested.add_partition(&partition.topic, partition.partition);
        }
        let committed = self
            .consumer
            .committed_offsets(requested, COMMITTED_LIMIT)
            .map_err(|error| self.failed("reading committed offsets", &error))?;
        let offset_of = |partition: &TopicPartition| match committed
            .find_partition(&partition.topic, partition.partition)
            .map(|found| found.offset())
        {
            Some(Offset::Offset(offset)) => Some((partition.clone(), offset)),
            _ => None,
        };
        Ok(partitions.iter().filter_map(offset_of).collect())
    }

    /// Number of members of the group.
    pub fn members(&self) -> Result<usize> {
        let groups = self
            .consumer
            .client()
            .fetch_group_list(Some(&self.group), CALL_TIMEOUT)
            .map_err(|error| self.failed("describing the group", &error))?;
        let found = groups.groups().iter().find(|group| group.name() == self.group);
        Ok(found.map_or(0, |group| group.members().len()))
    }

    /// Commits offsets of a group without members. A broker refuses it if the group has some.
    pub fn commit(&self, offsets: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        let mut list = TopicPartitionList::with_capacity(offsets.len());
        for (partition, offset) in offsets {
            list.add_partition_offset(&partition.topic, partition.partition, Offset::Offset(*offset))
                .map_err(|error| self.failed("committing offsets", &error))?;
        }
        self.consumer.commit(&list, CommitMode::Sync).map_err(|error| match error.rdkafka_error_code() {
            Some(
                RDKafkaErrorCode::UnknownMemberId
                | RDKafkaErrorCode::IllegalGeneration
                | RDKafkaErrorCode::RebalanceInProgress,
            ) => self.in_use(),
            _ => self.failed("committing offsets", &error),
        })
    }

    /// Runs one transaction that commits offsets of the group together with what `write` writes.
    /// Nothing is written if the group has members, or gets one meanwhile: this client joins the
    /// group as its only member, and the generation of that membership fences the transaction
    /// (KIP-447).
    pub fn change(
        &self,
        offsets: &BTreeMap<TopicPartition, i64>,
        write: impl FnOnce(&mut TransactionalProducer) -> Result<()>,
    ) -> Result<()> {
        if self.members()? > 0 {
            return Err(self.in_use());
        }
        let member = format!("{}.!offsets", self.group);
        let mut producer = TransactionalProducer::new(&self.cluster, &member, BUFFER_BYTES)?;
        let mut topics: Vec<String> = offsets.keys().map(|partition| partition.topic.to_string()).collect();
        topics.dedup();
        let consumer = GroupConsumer::join(&self.cluster, &self.group, &member, &topics, PREFETCH_BYTES)?;
        let started = Instant::now();
        // The group's other partitions have the same owner as these.
        while !consumer.keep_alive(POLL)? {
            if started.elapsed() > ASSIGNMENT_LIMIT {
                let message = format!("the group `{}` assigned no partitions to its only member in time", self.group);
                return Err(Error::external("kafka.unreachable", message));
            }
        }
        let alone = consumer.other_members()?.is_none_or(|others| others.is_empty());
        if !alone {
            consumer.leave();
            return Err(self.in_use());
        }
        let changed = write(&mut producer)
            .and_then(|()| {
                producer.send_offsets(offsets.iter().map(|(partition, next)| (partition, *next)), &consumer.metadata()?)
            })
            .and_then(|()| producer.commit());
        if changed.is_err() && producer.in_transaction() {
            // The next change aborts it, too.
            let _ = producer.abort();
        }
        consumer.leave();
        changed
    }

    fn in_use(&self) -> Error {
        let message = format!(
            "the group `{}` has members: stop the workers that run it, or remove the component from their pipeline files, and \
             try again. A worker that was killed stays a member for 10 s",
            self.group
        );
        Error::external("offsets.in_use", message).retry(Retry::Never)
    }

    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        // The reason of a failed connection waits in the client's queue.
        let _ = self.consumer.poll(Duration::ZERO);
        self.cluster.failed(&format!("{doing} (group `{}`)", self.group), error)
    }
}
