//! The group consumer of sink and transform tasks: read_committed, cooperative, and never
//! committing offsets itself (I2).
//!
//! A worker is a static member of its groups (KIP-345): if it restarts after a crash within the
//! session timeout, it has its partitions again at once, without a rebalance. A worker that stops
//! normally leaves ([`GroupConsumer::leave`]), so that the other members need not wait for that
//! timeout. [`GroupConsumer::rebalance_events`] returns what a rebalance changed, after the poll in
//! which it happened and before a record of a new partition can be processed.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings::{self, rd_kafka_t};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList, TopicPartitionListElem};
use trunkline_connector::{Error, Result, TopicPartition};

use super::client::{CALL_TIMEOUT, Cluster, classify_code, close_in_background};
use super::idle_pause::IdlePause;
use super::logins::LoginLease;
use super::membership::{Members, OtherMembers};
use super::message_queue::{MessageQueue, Taken};
use super::partition_batches::PartitionBatches;
use super::queue_notifier::{QueueNotifier, wake};
use super::rebalance::{EventContext, RebalanceEvent};
use super::unassigned::UnassignedMonitor;
use super::wire::GroupMetadata;

/// Time for a client to close.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

/// Time for a member to return its partitions.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Time for a check of the group: nothing is read meanwhile.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// Idle batches keep the memory of this many polling rounds. One batch alone holds up to twice what
/// it needs.
const KEPT_ROUNDS: usize = 4;

/// A member of a consumer group.
pub struct GroupConsumer {
    /// Login, notifier and messages must be dropped before the consumer is closed.
    login: Option<LoginLease>,
    notifier: Option<QueueNotifier>,
    messages: Option<MessageQueue>,
    pub(super) consumer: ManuallyDrop<BaseConsumer<EventContext>>,
    pub(super) cluster: Cluster,
    group: String,
    instance: String,
    topics: Vec<String>,
    unassigned: RefCell<UnassignedMonitor>,
    pub(super) idle: RefCell<IdlePause>,
    /// The current wait, or the next one, shall end.
    is_interrupted: Arc<AtomicBool>,
}

/// Closes the client, but abandons it if it does not close. A member that lost its partitions while
/// it hung closes with the revocation still in its queue. rdkafka 0.39 serves that event while it
/// drops the client and asks the closed group for its protocol, and no thread answers: the stage
/// would hang.
impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.login = None;
        self.notifier = None;
        self.consumer.context().set_message_queue(ptr::null_mut());
        self.messages = None;
        // SAFETY: taken here once, and never used again.
        let consumer = unsafe { ManuallyDrop::take(&mut self.consumer) };
        if close_in_background(consumer).recv_timeout(CLOSE_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::warn!(group = self.group, "a Kafka consumer does not close: the stage continues without it");
        }
    }
}

/// Limits of one polling round.
pub struct FillLimits {
    /// Maximum number of records.
    pub records: usize,
    /// The round ends once it has this many bytes.
    pub bytes: usize,
    /// Maximum wait for the first record.
    pub wait: Duration,
}

impl GroupConsumer {
    /// Joins `group` as the static member `instance` and subscribes to topics (names, or patterns
    /// that start with `^`). `prefetch_bytes` limits what is fetched ahead (I6).
    pub fn join(
        cluster: &Cluster,
        group: &str,
        instance: &str,
        topics: &[String],
        prefetch_bytes: usize,
    ) -> Result<Self> {
        let config = group_config(cluster, (group, instance), topics, prefetch_bytes);
        Self::join_with(cluster, group, instance, topics, config)
    }

    /// Joins like [`GroupConsumer::join`]. A committed offset whose record was deleted is an error,
    /// where other members continue with the first record that is left.
    pub fn join_strictly(
        cluster: &Cluster,
        group: &str,
        instance: &str,
        topics: &[String],
        prefetch_bytes: usize,
    ) -> Result<Self> {
        let mut config = group_config(cluster, (group, instance), topics, prefetch_bytes);
        config.set("auto.offset.reset", "error");
        Self::join_with(cluster, group, instance, topics, config)
    }

    fn join_with(
        cluster: &Cluster,
        group: &str,
        instance: &str,
        topics: &[String],
        config: ClientConfig,
    ) -> Result<Self> {
        let consumer: BaseConsumer<EventContext> = cluster.create(&config, EventContext::new(cluster, &config))?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        let messages = MessageQueue::new(consumer.client().native_ptr());
        consumer.context().set_message_queue(messages.as_ptr());
        let notifier =
            QueueNotifier::new(consumer.client().native_ptr(), Some(messages.as_ptr())).map_err(|error| {
                let message = format!("cannot open a socket for the consumer of group `{group}`: {error}");
                Error::external("kafka.wake", message)
            })?;
        let this = Self {
            login: Some(login),
            notifier: Some(notifier),
            messages: Some(messages),
            consumer: ManuallyDrop::new(consumer),
            cluster: cluster.clone(),
            group: group.to_owned(),
            instance: instance.to_owned(),
            topics: topics.to_owned(),
            unassigned: RefCell::new(UnassignedMonitor::new()),
            idle: RefCell::new(IdlePause::reading()),
            is_interrupted: Arc::default(),
        };
        this.subscribe()?;
        Ok(this)
    }

    fn subscribe(&self) -> Result<()> {
        let names: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        self.consumer.subscribe(&names).map_err(|error| self.failed("subscribing", &error))
    }

    /// Polls and copies records to the batches of their partitions, until the limits are reached,
    /// no record is available, or a rebalance happened. Call [`GroupConsumer::rebalance_events`]
    /// before the batches are processed: the last records may belong to a partition that was
    /// assigned in the same poll. Returns the number of records.
    pub fn fill(&self, limits: &FillLimits, batches: &mut PartitionBatches) -> Result<usize> {
        let begun = Instant::now();
        let (mut records, mut bytes) = (0, 0);
        batches.recycle(KEPT_ROUNDS * limits.bytes);
        let idle_end = self.idle.borrow_mut().end_if_due();
        if let Some(found) = idle_end {
            self.resume_assigned()?;
            found.iter().for_each(|partition| self.fetch_now(partition));
        }
        while records < limits.records && bytes < limits.bytes {
            // Events first: records of a partition follow the rebalance that assigned it.
            if self.serve()? {
                break;
            }
            let Some(queue) = &self.messages else { break };
            let mut last = None;
            let mut failed = Ok(());
            let taken = queue.take(limits.records - records, limits.bytes - bytes, |taken| match taken {
                Taken::Message(message) => {
                    bytes += message.bytes();
                    records += 1;
                    batches.push(&message, &mut last);
                }
                Taken::Failed(error, topic) => {
                    let doing = format!("consuming topic `{topic}`");
                    failed = std::mem::replace(&mut failed, Ok(())).and_then(|()| self.check(&doing, &error));
                }
            });
            failed?;
            if taken == 0 && (records > 0 || !self.wait(begun, limits.wait, true)) {
                break;
            }
        }
        if records == 0
            && let Some(error) = self.consumer.context().fatal_error()
        {
            return Err(self.failed("consuming", &error));
        }
        if records > 0 {
            self.end_idle_pause()?;
        }
        self.check_unassigned()?;
        Ok(records)
    }

    /// The offset after the last record of a partition, from the last fetch. `None` before the
    /// first fetch.
    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.watermarks(partition).map(|(_, high)| high)
    }

    /// The first offset of a partition and the offset after its last record, from the last fetch.
    pub(super) fn watermarks(&self, partition: &TopicPartition) -> Option<(i64, i64)> {
        let topic = CString::new(partition.topic.as_ref()).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client and the name are alive. The call reads what the client knows.
        let answer = unsafe {
            bindings::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                partition.partition,
                &raw mut low,
                &raw mut high,
            )
        };
        (answer == bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some((low, high))
    }

    /// The offsets up to which these partitions were read, markers of transactions included; `None`
    /// for a partition of which nothing was read. The call reads what the client knows: asking for
    /// the assigned partitions too, as rdkafka does, would wake the client's main thread.
    pub fn positions<'p>(&self, partitions: impl IntoIterator<Item = &'p TopicPartition>) -> Vec<Option<i64>> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&partition.topic, partition.partition);
        }
        // SAFETY: the client and the list are alive. The call changes the offsets in the list only,
        // and cannot fail as a whole.
        unsafe { bindings::rd_kafka_position(self.consumer.client().native_ptr(), list.ptr()) };
        let read = |found: &TopicPartitionListElem<'_>| match found.offset() {
            Offset::Offset(offset) => Some(offset),
            _ => None,
        };
        list.elements().iter().map(read).collect()
    }

    /// A function that ends the current wait for records, or the next one, from any thread. It may
    /// outlive the consumer.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<> {
        let (is_interrupted, sender) = (self.is_interrupted.clone(), self.notifier.as_ref().map(QueueNotifier::sender));
        move || {
            is_interrupted.store(true, Ordering::Release);
            sender.iter().for_each(|sender| wake(sender));
        }
    }

    /// Serves rebalances and errors from the client's queue, until it is empty or a rebalance
    /// happened. Returns whether one happened; an idle consumer reads again then.
    fn serve(&self) -> Result<bool> {
        while let Some(polled) = self.consumer.poll(Duration::ZERO) {
            match polled {
                Err(error) => {
                    // The error itself does not name the topic.
                    let denied = self.consumer.context().take_denied();
                    self.check(
                        &denied.map_or("consuming".to_owned(), |reason| format!("consuming ({reason})")),
                        &error,
                    )?;
                }
                // Every partition was forwarded before it was assigned.
                Ok(_) => return Err(Error::internal("kafka.forwarded", "a message bypassed the message queue")),
            }
            if !self.events().is_empty() {
                break;
            }
        }
        self.consumer.context().rebootstrap().run_if_due(self.consumer.client());
        let has_rebalanced = !self.events().is_empty();
        if has_rebalanced {
            self.end_idle_pause()?;
        }
        Ok(has_rebalanced)
    }

    /// Waits for an event or, with `for_messages`, a message; `false` once `limit` has passed since
    /// `begun`, or after an interruption.
    fn wait(&self, begun: Instant, limit: Duration, for_messages: bool) -> bool {
        let left = limit.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return false;
        }
        if let Some(notifier) = &self.notifier {
            notifier.wait(left, for_messages);
        }
        !self.is_interrupted.swap(false, Ordering::AcqRel)
    }

    /// Joins the group again if a partition has no owner. See [`unassigned`](super::unassigned).
    fn check_unassigned(&self) -> Result<()> {
        let mut monitor = self.unassigned.borrow_mut();
        if !self.events().is_empty() {
            monitor.note_rebalance();
            return Ok(());
        }
        if !monitor.is_due() {
            return Ok(());
        }
        let (members, subscribed) = match self.describe_group() {
            Ok(described) => {
                monitor.note_answer();
                let Some(described) = described else {
                    monitor.schedule();
                    return Ok(());
                };
                described
            }
            Err(error) => {
                tracing::debug!(%error, group = self.group, "the group cannot be described");
                self.consumer.context().rebootstrap().set_lost();
                let owns_nothing = self.consumer.assignment().is_ok_and(|owned| owned.count() == 0);
                if monitor.note_failure(owns_nothing) && self.consumer.fetch_metadata(None, CHECK_LIMIT).is_err() {
                    let message = format!(
                        "no broker has answered this member of group `{}` since it lost its partitions: a new client is \
                         needed",
                        self.group
                    );
                    return Err(Error::external("kafka.cut_off", message));
                }
                return Ok(());
            }
        };
        let Some(unassigned) = monitor.find_unassigned(members, subscribed) else { return Ok(()) };
        let partitions =
            unassigned.iter().map(|found| format!("{}/{}", found.topic, found.partition)).collect::<Vec<_>>();
        tracing::warn!(
            group = self.group,
            ?partitions,
            "partitions are assigned to no member: this member joins again, so that they are assigned"
        );
        // A static member leaves its group only this way. It joins again once all its partitions
        // are revoked.
        self.consumer.unsubscribe();
        self.subscribe()
    }

    /// The group's members and all partitions of the subscribed topics; `None` while the group is
    /// not stable.
    fn describe_group(&self) -> Result<Option<(Members, Vec<TopicPartition>)>> {
        let groups = self
            .consumer
            .client()
            .fetch_group_list(Some(&self.group), CHECK_LIMIT)
            .map_err(|error| self.failed("describing the group", &error))?;
        let found = groups.groups().iter().find(|group| group.name() == self.group && group.state() == "Stable");
        let Some(group) = found else { return Ok(None) };
        let describe =
            |member: &GroupMemberInfo| (member.id().to_owned(), member.assignment().unwrap_or_default().to_vec());
        Ok(Some((group.members().iter().map(describe).collect(), self.subscribed_partitions()?)))
    }

    /// The other members of the group; `None` while the group is not stable.
    pub fn other_members(&self) -> Result<Option<OtherMembers>> {
        let Some((members, _)) = self.describe_group()? else { return Ok(None) };
        let own = self.member_id();
        let others = members.into_iter().filter(|(id, _)| Some(id) != own.as_ref());
        Ok(Some(OtherMembers(others.map(|(_, assignment)| assignment).collect())))
    }

    /// The id that the broker gave this member; `None` if it has not joined.
    fn member_id(&self) -> Option<String> {
        let client = self.consumer.client().native_ptr();
        // SAFETY: the client lives as long as `self`. It returns null or a copy that its own
        // function frees.
        unsafe {
            let id = bindings::rd_kafka_memberid(client);
            if id.is_null() {
                return None;
            }
            let text = CStr::from_ptr(id).to_string_lossy().into_owned();
            bindings::rd_kafka_mem_free(client, id.cast());
            Some(text)
        }
    }

    /// Takes the changes of the rebalances since the last call.
    pub fn rebalance_events(&self) -> Vec<RebalanceEvent> {
        std::mem::take(&mut *self.events())
    }

    fn events(&self) -> MutexGuard<'_, Vec<RebalanceEvent>> {
        self.consumer.context().events()
    }

    /// Ignores transient errors, from which the client recovers; other errors end the stage.
    fn check(&self, doing: &str, error: &KafkaError) -> Result<()> {
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
                tracing::debug!(%error, group = self.group, "the consumer continues after an error");
                Ok(())
            }
            Some(Code::Authentication) if !self.cluster.connection().is_refused() => {
                tracing::debug!(%error, group = self.group, "the consumer continues after a login without an answer");
                Ok(())
            }
            Some(Code::AutoOffsetReset) => {
                let message = format!(
                    "{doing}: the next offset of group `{}` no longer exists, because retention deleted it or the topic was \
                     created again",
                    self.group
                );
                Err(Error::data("replay.deleted", message))
            }
            _ => Err(self.failed(doing, error)),
        }
    }

    pub(super) fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        // After a fatal error, the codes of later errors do not have the reason.
        match self.consumer.client().fatal_error() {
            Some((RDKafkaErrorCode::FencedInstanceId, _)) => {
                return self.cluster.fenced_member(&self.group, &self.instance);
            }
            Some((code, reason)) => {
                return classify_code(Some(code), format!("{doing} in group `{}`: {reason}", self.group));
            }
            None => {}
        }
        self.cluster.failed(&format!("{doing} in group `{}`", self.group), error)
    }

    /// Identity and generation of this member, which fence its commits (KIP-447).
    pub fn metadata(&self) -> Result<GroupMetadata> {
        group_metadata(self.consumer.client().native_ptr()).ok_or_else(|| {
            Error::external("kafka.no_group", format!("the consumer has not joined group `{}` yet", self.group))
        })
    }

    /// Committed offsets of partitions; -1 where there is none. Waits until no transaction that
    /// covers them is pending, so that everything this transaction wrote is decided too.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        let mut requested = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            requested.add_partition(&partition.topic, partition.partition);
        }
        let committed = self
            .consumer
            .committed_offsets(requested, CALL_TIMEOUT)
            .map_err(|error| self.failed("reading committed offsets", &error))?;
        let offset_of = |partition: &TopicPartition| match committed
            .find_partition(&partition.topic, partition.partition)
            .map(|found| found.offset())
        {
            Some(Offset::Offset(offset)) => offset,
            _ => -1,
        };
        Ok(partitions.iter().map(offset_of).collect())
    }

    /// The last stable offset of a partition of any topic, asked of its broker: no transaction that
    /// is open now wrote before it.
    pub fn stable_end(&self, topic: &str, partition: i32) -> Result<i64> {
        let found = self.consumer.fetch_watermarks(topic, partition, CALL_TIMEOUT);
        let (_, end) = found.map_err(|error| self.failed(&format!("reading the end of topic `{topic}`"), &error))?;
        Ok(end)
    }

    /// All partitions of all subscribed topics, whichever member owns them.
    pub fn subscribed_partitions(&self) -> Result<Vec<TopicPartition>> {
        let subscription =
            self.consumer.subscription().map_err(|error| self.failed("reading the subscription", &error))?;
        let names: Vec<String> = subscription.elements().iter().map(|element| element.topic().to_owned()).collect();
        let patterns = names.iter().filter(|name| name.starts_with('^')).map(|pattern| regex::Regex::new(pattern));
        let patterns = patterns
            .collect::<std::result::Result<Vec<_>, _>>()
            .map_err(|error| Error::internal("kafka.pattern", error.to_string()))?;
        let metadata =
            self.consumer.fetch_metadata(None, CALL_TIMEOUT).map_err(|error| self.failed("listing topics", &error))?;
        let is_subscribed = |topic: &str| {
            names.iter().any(|name| name == topic) || patterns.iter().any(|pattern| pattern.is_match(topic))
        };
        let mut found = Vec::new();
        for topic in metadata.topics().iter().filter(|topic| is_subscribed(topic.name())) {
            let name: Arc<str> = Arc::from(topic.name());
            let numbers = topic.partitions().iter().map(|partition| partition.id());
            found.extend(numbers.map(|partition| TopicPartition { topic: name.clone(), partition }));
        }
        Ok(found)
    }

    /// Continues a partition at `offset`, after records past it were discarded.
    pub fn seek(&self, partition: &TopicPartition, offset: i64) -> Result<()> {
        self.end_idle_pause()?;
        let offset = if offset < 0 { Offset::Beginning } else { Offset::Offset(offset) };
        self.consumer
            .seek(&partition.topic, partition.partition, offset, CALL_TIMEOUT)
            .map_err(|error| self.failed("seeking", &error))
    }

    /// Leaves the group and returns all partitions. Closing alone would keep them until the session
    /// times out, because a static member does not leave when it closes. A failure makes the other
    /// members wait, nothing else.
    pub fn leave(&self) {
        self.consumer.unsubscribe();
        let begun = Instant::now();
        while begun.elapsed() < LEAVE_LIMIT && self.consumer.assignment().is_ok_and(|held| held.count() > 0) {
            self.consumer.poll(Duration::from_millis(5));
        }
    }

    /// Keeps the membership alive while paused. Returns whether a rebalance happened.
    pub fn keep_alive(&self, wait: Duration) -> Result<bool> {
        let begun = Instant::now();
        loop {
            let has_rebalanced = self.serve()?;
            // Messages that were in flight when the partitions were paused stay in the message
            // queue as outdated ones.
            if has_rebalanced || !self.wait(begun, wait, false) {
                return Ok(has_rebalanced);
            }
        }
    }
}

/// What the client knows of its membership; `None` if it has no group.
fn group_metadata(client: *mut rd_kafka_t) -> Option<GroupMetadata> {
    // SAFETY: the client is alive. The metadata is a copy, whose texts live until it is destroyed.
    unsafe {
        let metadata = bindings::rd_kafka_consumer_group_metadata(client);
        if metadata.is_null() {
            return None;
        }
        let text = |text: *const c_char| (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned());
        let found = GroupMetadata {
            group: text(bindings::rd_kafka_consumer_group_metadata_group_id(metadata)).unwrap_or_default(),
            generation: bindings::rd_kafka_consumer_group_metadata_generation_id(metadata),
            member: text(bindings::rd_kafka_consumer_group_metadata_member_id(metadata)).unwrap_or_default(),
            instance: text(bindings::rd_kafka_consumer_group_metadata_group_instance_id(metadata)),
        };
        bindings::rd_kafka_consumer_group_metadata_destroy(metadata);
        Some(found)
    }
}

fn group_config(
    cluster: &Cluster,
    (group, instance): (&str, &str),
    topics: &[String],
    prefetch_bytes: usize,
) -> ClientConfig {
    let prefetch = (prefetch_bytes / 1024).clamp(128, 1_000_000).to_string();
    // Per partition and response, compressed. A response is decompressed to five or ten times its
    // size before the limit above applies.
    let fetch = (prefetch_bytes / 32).clamp(65_536, 262_144).to_string();
    // For all partitions together: with many partitions, one response would be many times the
    // limit.
    let response = (prefetch_bytes / 8).max(1 << 20).to_string();
    // Each answer costs time for every partition, and with thousands of topics (which match a
    // pattern) the client searches each of them. New records end the wait; only the first fetch of
    // a partition that is added meanwhile waits longer.
    let fetch_wait = if topics.iter().any(|topic| topic.starts_with('^')) { "500" } else { "100" };
    let mut config = cluster.config(&[
        // Brokers name it in their logs and quotas.
        ("client.id", instance),
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "1000"),
        // A sink may be busy with one upload for a long time. A stage that hangs shows by its
        // progress.
        ("max.poll.interval.ms", "900000"),
        // The default of one second costs two thirds of the speed.
        ("fetch.queue.backoff.ms", "5"),
        ("fetch.wait.max.ms", fetch_wait),
        ("queued.min.messages", "400000"),
        ("queued.max.messages.kbytes", &prefetch),
        ("fetch.message.max.bytes", &fetch),
        ("fetch.max.bytes", &response),
        // New topics that match a pattern are found within this time.
        ("topic.metadata.refresh.interval.ms", "5000"),
        ("auto.offset.reset", "earliest"),
    ]);
    config
        .set("group.id", group)
        .set("group.instance.id", instance)
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("isolation.level", "read_committed")
        // `rd_kafka_consume_batch_queue` (2.12) takes the event at the end of a partition for a
        // message: it moves the position past the next record, which is lost after a rebalance.
        .set("enable.partition.eof", "false")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    config
}
