//! The group consumer of sink and transform tasks: read_committed, cooperative, and never committing by itself (I2).
//!
//! A worker is a static member of its groups (KIP-345): restarted after a crash within the session timeout it has its partitions back at
//! once, without a rebalance. One that ends as it should leaves ([`GroupConsumer::leave`]), so that the others need not wait for that timeout.
//! What a rebalance did is told by [`GroupConsumer::rebalanced`] after the poll in which it happened and before any
//! record of a new partition can be processed.

use std::cell::RefCell;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::bindings::rd_kafka_queue_t;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, ConsumerGroupMetadata, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use rdkafka::util::Timeout;
use trunkline_connector::{Error, Result, TopicPartition, failpoint};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, classify, close_aside};
use super::orphans::{Members, OrphanWatch, owns};
use super::partition_batches::PartitionBatches;
use super::rebootstrap::Rebootstrap;
use super::records::{Records, forward};
use super::wake::Wake;

/// What a rebalance did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rebalanced {
    /// These partitions are this member's now.
    Assigned(Vec<TopicPartition>),
    /// These are no longer.
    Revoked(Vec<TopicPartition>),
}

/// How long a client may take to leave.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// How long a member may take to give its partitions back.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// How long a look at the group may take: nothing is read meanwhile.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// Batches that wait for records keep so many times the memory that a round of polling may take: one of them alone has up to twice as much as it needs.
const KEPT_ROUNDS: usize = 4;

/// What the other members of a group own.
pub struct Others(Vec<Vec<u8>>);

impl Others {
    /// Does one of them own this partition?
    pub fn own(&self, claim: &TopicPartition) -> bool {
        self.0.iter().any(|assignment| owns(assignment, claim))
    }
}

/// A member of a consumer group.
pub struct GroupConsumer {
    /// Both are given back before the consumer is closed.
    wake: Option<Wake>,
    records: Option<Records>,
    consumer: ManuallyDrop<BaseConsumer<EventContext>>,
    group: String,
    topics: Vec<String>,
    orphans: RefCell<OrphanWatch>,
}

/// Closes the client, but not at any price: it is left behind if it does not come back. A member that lost its partitions while it hung
/// closes at once, with the news of its loss still in its queue; rdkafka 0.39 serves that news while it drops the client, and asks the
/// closed group for its protocol, which nobody answers any more. The stage would hang for ever.
impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.wake = None;
        self.consumer.context().records.store(ptr::null_mut(), Ordering::Release);
        self.records = None;
        // SAFETY: taken here once, and never used again.
        let consumer = unsafe { ManuallyDrop::take(&mut self.consumer) };
        if close_aside(consumer).recv_timeout(CLOSE_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(group = self.group, "a Kafka consumer does not close; going on without it");
        }
    }
}

struct EventContext {
    events: Mutex<Vec<Rebalanced>>,
    fatal: Mutex<Option<KafkaError>>,
    /// Where the records of assigned partitions go; null while there is no such queue.
    records: AtomicPtr<rd_kafka_queue_t>,
    rebootstrap: Rebootstrap,
    log: ClientLog,
}

impl ClientContext for EventContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error.clone(), reason);
        self.rebootstrap.reported(&error);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::Fatal)
            || error.rdkafka_error_code() == Some(RDKafkaErrorCode::FencedInstanceId)
        {
            self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}

impl ConsumerContext for EventContext {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                let queue = self.records.load(Ordering::Acquire);
                if !queue.is_null() {
                    // SAFETY: the client calls, and the queue is there until it was taken out of here, in the thread that polls.
                    unsafe { forward(consumer.client().native_ptr(), partitions, queue) };
                }
            }
            Rebalance::Revoke(_) => {
                // There is nobody to give an error to: a death is what this step is for.
                let _ = failpoint!("consumer.revoke.before");
            }
            Rebalance::Error(_) => {}
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let event = match rebalance {
            Rebalance::Assign(partitions) => Rebalanced::Assigned(claims(partitions)),
            Rebalance::Revoke(partitions) => Rebalanced::Revoked(claims(partitions)),
            Rebalance::Error(error) => {
                tracing::warn!(%error, "rebalance failed");
                return;
            }
        };
        self.events.lock().unwrap_or_else(PoisonError::into_inner).push(event);
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}

fn claims(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    partitions
        .elements()
        .iter()
        .map(|element| TopicPartition { topic: Arc::from(element.topic()), partition: element.partition() })
        .collect()
}

/// What one round of polling may take.
pub struct FillLimits {
    /// Stop at so many records.
    pub records: usize,
    /// Stop at so many bytes.
    pub bytes: usize,
    /// Wait so long for the first record.
    pub wait: Duration,
}

impl GroupConsumer {
    /// Joins `group` as the static member `instance` and subscribes to topics (names, or patterns that start with `^`).
    /// `prefetch_bytes` bounds what is fetched ahead (I6).
    pub fn join(
        cluster: &Cluster,
        group: &str,
        instance: &str,
        topics: &[String],
        prefetch_bytes: usize,
    ) -> Result<Self> {
        let prefetch = (prefetch_bytes / 1024).clamp(128, 1_000_000).to_string();
        // Of each partition at once, compressed: a whole answer is unpacked before the bound above is asked, to five or ten times its size.
        let fetch = (prefetch_bytes / 32).clamp(65_536, 262_144).to_string();
        // And of all together, or with many partitions one answer would be many times the bound.
        let answer = (prefetch_bytes / 8).max(1 << 20).to_string();
        let mut config = cluster.config(&[
            ("session.timeout.ms", "10000"),
            ("heartbeat.interval.ms", "1000"),
            // A sink may be busy with one upload for long; a stage that is stuck for good shows by its progress.
            ("max.poll.interval.ms", "900000"),
            // The default of a second costs two thirds of the speed.
            ("fetch.queue.backoff.ms", "5"),
            ("fetch.wait.max.ms", "100"),
            ("queued.min.messages", "400000"),
            ("queued.max.messages.kbytes", &prefetch),
            ("fetch.message.max.bytes", &fetch),
            ("fetch.max.bytes", &answer),
            // Topics that a pattern matches are found this often.
            ("topic.metadata.refresh.interval.ms", "5000"),
            ("auto.offset.reset", "earliest"),
        ]);
        config
            .set("group.id", group)
            .set("group.instance.id", instance)
            .set("partition.assignment.strategy", "cooperative-sticky")
            .set("isolation.level", "read_committed")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false");
        let context = EventContext {
            events: Mutex::default(),
            fatal: Mutex::default(),
            records: AtomicPtr::default(),
            rebootstrap: Rebootstrap::of(&config),
            log: cluster.client_log(),
        };
        let consumer: BaseConsumer<EventContext> = cluster.create(&config, context)?;
        let records = Records::new(consumer.client().native_ptr());
        consumer.context().records.store(records.queue(), Ordering::Release);
        let wake = Wake::of(consumer.client().native_ptr(), records.queue())
            .map_err(|error| Error::external("kafka.wake", format!("no socket for a Kafka consumer: {error}")))?;
        let this = Self {
            wake: Some(wake),
            records: Some(records),
            consumer: ManuallyDrop::new(consumer),
            group: group.to_owned(),
            topics: topics.to_owned(),
            orphans: RefCell::new(OrphanWatch::new()),
        };
        this.subscribe()?;
        Ok(this)
    }

    fn subscribe(&self) -> Result<()> {
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&names).map_err(|error| classify("subscribing", &error))
    }

    /// Polls and copies what came to the batches of its partitions until the limits are reached, nothing more is at hand, or a
    /// rebalance happened: ask [`GroupConsumer::rebalanced`] before the batches are processed, because the last records may be of a
    /// partition that was claimed in the same poll. Returns the number of records.
    pub fn fill(&self, limits: &FillLimits, batches: &mut PartitionBatches) -> Result<usize> {
        let begun = Instant::now();
        let (mut records, mut bytes) = (0, 0);
        batches.recycle(KEPT_ROUNDS * limits.bytes);
        while records < limits.records && bytes < limits.bytes {
            // First: records of a partition come after the rebalance that gave it.
            self.serve()?;
            if !self.context_events().is_empty() {
                break;
            }
            let Some(queue) = &self.records else { break };
            let mut last = None;
            let mut failed = Ok(());
            let taken = queue.take(limits.records - records, limits.bytes - bytes, |record| match record {
                Ok(record) => {
                    bytes += record.bytes();
                    records += 1;
                    batches.push(&record, &mut last);
                }
                Err(error) => failed = std::mem::replace(&mut failed, Ok(())).and_then(|()| self.check(&error)),
            });
            failed?;
            if taken == 0 && (records > 0 || !self.wait(begun, limits.wait, true)) {
                break;
            }
        }
        if records == 0
            && let Some(error) = self.consumer.context().fatal.lock().unwrap_or_else(PoisonError::into_inner).clone()
        {
            return Err(classify("consuming", &error));
        }
        self.mind_orphans()?;
        Ok(records)
    }

    /// Serves the client's queue: rebalances and errors, until it is empty or a rebalance happened.
    fn serve(&self) -> Result<()> {
        while let Some(polled) = self.consumer.poll(Duration::ZERO) {
            match polled {
                Err(error) => self.check(&error)?,
                // Its partition was forwarded before it was assigned.
                Ok(_) => return Err(Error::internal("kafka.forwarded", "a record came past the queue of records")),
            }
            if !self.context_events().is_empty() {
                break;
            }
        }
        self.consumer.context().rebootstrap.mind(self.consumer.client());
        Ok(())
    }

    /// Waits for something in the client's queue, or that of records; `false` when `most` has passed since `begun`.
    fn wait(&self, begun: Instant, most: Duration, for_records: bool) -> bool {
        let left = most.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return false;
        }
        if let Some(wake) = &self.wake {
            wake.wait(left, for_records);
        }
        true
    }

    /// Sees to it that each partition has an owner. See [`orphans`](super::orphans).
    fn mind_orphans(&self) -> Result<()> {
        let mut watch = self.orphans.borrow_mut();
        if !self.context_events().is_empty() {
            watch.moved();
            return Ok(());
        }
        if !watch.is_due() {
            return Ok(());
        }
        let looked = self.look();
        if looked.is_ok() {
            watch.answered();
        }
        let (members, wanted) = match looked {
            Ok(Some(seen)) => seen,
            Ok(None) => {
                watch.again();
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(%error, group = self.group, "the group cannot be looked at");
                self.consumer.context().rebootstrap.lost();
                let owns_nothing = self.consumer.assignment().is_ok_and(|owned| owned.count() == 0);
                if watch.failed(owns_nothing) && self.consumer.fetch_metadata(None, LOOK_LIMIT).is_err() {
                    return Err(Error::external(
                        "kafka.cut_off",
                        "no broker has answered this member of the group since it lost its partitions; going on with a new client",
                    ));
                }
                return Ok(());
            }
        };
        let Some(orphans) = watch.judge(members, wanted) else { return Ok(()) };
        let partitions = orphans.iter().map(|claim| format!("{}/{}", claim.topic, claim.partition)).collect::<Vec<_>>();
        tracing::warn!(group = self.group, ?partitions, "partitions have no owner; joining again so that they get one");
        // Leaves the group, which a static member does in no other way, and joins it when everything is given up.
        self.consumer.unsubscribe();
        self.subscribe()
    }

    /// The group's members and the partitions that they should share; none while the group is not stable.
    fn look(&self) -> Result<Option<(Members, Vec<TopicPartition>)>> {
        let groups = self
            .consumer
            .client()
            .fetch_group_list(Some(&self.group), LOOK_LIMIT)
            .map_err(|error| classify("looking at the group", &error))?;
        let found = groups.groups().iter().find(|group| group.name() == self.group && group.state() == "Stable");
        let Some(group) = found else { return Ok(None) };
        let seen =
            |member: &GroupMemberInfo| (member.id().to_owned(), member.assignment().unwrap_or_default().to_vec());
        Ok(Some((group.members().iter().map(seen).collect(), self.subscribed_partitions()?)))
    }

    /// The other members of the group, with what they own; `None` while the group is not stable.
    pub fn others(&self) -> Result<Option<Others>> {
        let Some((members, _)) = self.look()? else { return Ok(None) };
        let own = self.member_id();
        let others = members.into_iter().filter(|(id, _)| Some(id) != own.as_ref());
        Ok(Some(Others(others.map(|(_, assignment)| assignment).collect())))
    }

    /// The name that the broker gave this member, if it is one.
    fn member_id(&self) -> Option<String> {
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client lives as long as `self`. It gives a string of its own, to be freed by its function, or null.
        unsafe {
            let id = rdkafka::bindings::rd_kafka_memberid(client);
            if id.is_null() {
                return None;
            }
            let text = std::ffi::CStr::from_ptr(id).to_string_lossy().into_owned();
            rdkafka::bindings::rd_kafka_mem_free(client, id.cast());
            Some(text)
        }
    }

    /// What rebalances did since the last call.
    pub fn rebalanced(&self) -> Vec<Rebalanced> {
        std::mem::take(&mut *self.context_events())
    }

    fn context_events(&self) -> std::sync::MutexGuard<'_, Vec<Rebalanced>> {
        self.consumer.context().events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Transient errors are logged, as the client recovers by itself; the rest end the stage.
    fn check(&self, error: &KafkaError) -> Result<()> {
        use RDKafkaErrorCode as Code;
        match error.rdkafka_error_code() {
            Some(
                Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::OperationTimedOut
                | Code::RequestTimedOut
                | Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::UnknownTopicOrPartition
                | Code::UnknownPartition
                | Code::RebalanceInProgress
                | Code::Resolve,
            ) => {
                tracing::debug!(%error, group = self.group, "consumer goes on after an error");
                Ok(())
            }
            _ => Err(classify("consuming", error)),
        }
    }

    /// Identity and generation of this member, which fence its commits (KIP-447).
    pub fn metadata(&self) -> Result<ConsumerGroupMetadata> {
        self.consumer
            .group_metadata()
            .ok_or_else(|| Error::external("kafka.no_group", "the consumer is not in its group yet"))
    }

    /// Committed offsets of partitions; -1 where there is none. Waits until no transaction that covers them is pending, so that what
    /// that transaction wrote is decided too.
    pub fn committed(&self, claims: &[TopicPartition]) -> Result<Vec<i64>> {
        let mut wanted = TopicPartitionList::with_capacity(claims.len());
        for claim in claims {
            wanted.add_partition(&claim.topic, claim.partition);
        }
        let committed = self
            .consumer
            .committed_offsets(wanted, CALL_TIMEOUT)
            .map_err(|error| classify("reading committed offsets", &error))?;
        Ok(claims
            .iter()
            .map(|claim| match committed.find_partition(&claim.topic, claim.partition).map(|found| found.offset()) {
                Some(Offset::Offset(offset)) => offset,
                _ => -1,
            })
            .collect())
    }

    /// All partitions of all subscribed topics, whoever owns them.
    pub fn subscribed_partitions(&self) -> Result<Vec<TopicPartition>> {
        let subscription =
            self.consumer.subscription().map_err(|error| classify("reading the subscription", &error))?;
        let names: Vec<String> = subscription.elements().iter().map(|element| element.topic().to_owned()).collect();
        let patterns = names.iter().filter(|name| name.starts_with('^')).map(|pattern| regex::Regex::new(pattern));
        let patterns = patterns
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| Error::internal("kafka.pattern", error.to_string()))?;
        let metadata =
            self.consumer.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| classify("listing topics", &error))?;
        let mut found = Vec::new();
        for topic in metadata.topics() {
            let name = topic.name();
            if names.iter().any(|subscribed| subscribed == name)
                || patterns.iter().any(|pattern| pattern.is_match(name))
            {
                let name: Arc<str> = Arc::from(name);
                found.extend(
                    topic
                        .partitions()
                        .iter()
                        .map(|partition| TopicPartition { topic: name.clone(), partition: partition.id() }),
                );
            }
        }
        Ok(found)
    }

    /// Reads a partition again from `offset`: what was read past it was discarded.
    pub fn seek(&self, claim: &TopicPartition, offset: i64) -> Result<()> {
        let offset = if offset < 0 { Offset::Beginning } else { Offset::Offset(offset) };
        self.consumer
            .seek(&claim.topic, claim.partition, offset, CALL_TIMEOUT)
            .map_err(|error| classify("seeking", &error))
    }

    /// Stops handing out records of all assigned partitions; the member stays in its group as long as it polls.
    pub fn pause(&self) -> Result<()> {
        let assigned = self.consumer.assignment().map_err(|error| classify("pausing", &error))?;
        self.consumer.pause(&assigned).map_err(|error| classify("pausing", &error))
    }

    /// Goes on after [`GroupConsumer::pause`].
    pub fn resume(&self) -> Result<()> {
        let assigned = self.consumer.assignment().map_err(|error| classify("resuming", &error))?;
        self.consumer.resume(&assigned).map_err(|error| classify("resuming", &error))
    }

    /// Gives up the membership and with it all partitions. Closing alone would keep them from the others until the session times out, as
    /// a static member's client does not leave while it closes. What fails here only makes the others wait.
    pub fn leave(&self) {
        self.consumer.unsubscribe();
        let begun = Instant::now();
        while begun.elapsed() < LEAVE_LIMIT && self.consumer.assignment().is_ok_and(|held| held.count() > 0) {
            self.consumer.poll(Duration::from_millis(5));
        }
    }

    /// Keeps the membership alive while paused. `true`: a rebalance happened.
    pub fn keep_alive(&self, wait: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            self.serve()?;
            let happened = !self.context_events().is_empty();
            // What was on its way when the partitions were paused stays in the queue of records, out of date.
            if happened || !self.wait(begun, wait, false) {
                return Ok(happened);
            }
        }
    }
}
