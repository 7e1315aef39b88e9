//! The group consumer of sink and transform tasks: read_committed, cooperative, and never
//! committing offsets itself (I2).
//!
//! librdkafka keeps the membership of the group, see [`rebalance`](super::rebalance); the
//! [`Fetcher`] reads the records.
//!
//! A worker is a static member of its groups (KIP-345): if it restarts after a crash within the
//! session timeout, it has its partitions again at once, without a rebalance. A worker that stops
//! normally leaves ([`GroupConsumer::leave`]), so that the other members need not wait for that
//! timeout. [`GroupConsumer::rebalance_events`] returns what a rebalance changed, after the poll in
//! which it happened and before a record of a new partition can be processed.

use std::cell::{Cell, RefCell};
use std::ffi::{CStr, c_char};
use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::RecvTimeoutError;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings::{self, rd_kafka_t};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::groups::GroupMemberInfo;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result, TopicPartition};

use super::client::{CALL_TIMEOUT, Cluster, classify_code, close_in_background};
use super::logins::LoginLease;
use super::membership::{Members, OtherMembers};
use super::partition_batches::PartitionBatches;
use super::queue_notifier::{QueueNotifier, wake};
use super::rebalance::{EventContext, RebalanceEvent};
use super::unassigned::UnassignedMonitor;
use super::wire::connection::readiness::wait;
use super::wire::fetch::{FetchLimits, FetchOptions, Fetcher, Room};
use super::wire::produce::GroupMetadata;

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
    /// Login and notifier must be dropped before the consumer is closed.
    login: Option<LoginLease>,
    notifier: Option<QueueNotifier>,
    consumer: ManuallyDrop<BaseConsumer<EventContext>>,
    pub(super) fetcher: RefCell<Fetcher>,
    /// How many of the rebalance events the fetcher knows.
    known_events: Cell<usize>,
    cluster: Cluster,
    group: String,
    instance: String,
    topics: Vec<String>,
    unassigned: RefCell<UnassignedMonitor>,
    /// The current wait, or the next one, shall end.
    is_interrupted: Arc<AtomicBool>,
}

/// Closes the client, but abandons it if it does not close. A member that lost its partitions while
/// it hung closes with the revocation still in its queue, and a client that closes may not answer
/// the calls that serve this event: the stage would hang.
impl Drop for GroupConsumer {
    fn drop(&mut self) {
        self.login = None;
        self.notifier = None;
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
        Self::join_with(cluster, (group, instance), topics, prefetch_bytes, false)
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
        Self::join_with(cluster, (group, instance), topics, prefetch_bytes, true)
    }

    fn join_with(
        cluster: &Cluster,
        (group, instance): (&str, &str),
        topics: &[String],
        prefetch_bytes: usize,
        is_strict: bool,
    ) -> Result<Self> {
        let config = group_config(cluster, (group, instance), prefetch_bytes);
        let number = |name: &str| config.get(name).and_then(|value| value.parse().ok()).unwrap_or(i32::MAX);
        let fetcher = Fetcher::new(
            cluster,
            FetchOptions {
                group: group.to_owned(),
                client_id: config.get("client.id").unwrap_or(instance).to_owned(),
                rack: config.get("client.rack").unwrap_or_default().to_owned(),
                limits: FetchLimits {
                    partition_bytes: number("fetch.message.max.bytes"),
                    answer_bytes: number("fetch.max.bytes"),
                },
                is_strict,
            },
        );
        let consumer: BaseConsumer<EventContext> = cluster.create(&config, EventContext::new(cluster, &config))?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        let notifier = QueueNotifier::new(consumer.client().native_ptr()).map_err(|error| {
            let message = format!("cannot open a socket for the consumer of group `{group}`: {error}");
            Error::external("kafka.wake", message)
        })?;
        let this = Self {
            login: Some(login),
            notifier: Some(notifier),
            consumer: ManuallyDrop::new(consumer),
            fetcher: RefCell::new(fetcher),
            known_events: Cell::new(0),
            cluster: cluster.clone(),
            group: group.to_owned(),
            instance: instance.to_owned(),
            topics: topics.to_owned(),
            unassigned: RefCell::new(UnassignedMonitor::new()),
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
        let deadline = Instant::now() + limits.wait;
        batches.recycle(KEPT_ROUNDS * limits.bytes);
        let mut room = Room { records: limits.records, bytes: limits.bytes };
        while !room.is_full() {
            // Events first: records of a partition follow the rebalance that assigned it.
            if self.serve()? {
                break;
            }
            self.look_up_starts()?;
            let before = room.records;
            {
                let mut fetcher = self.fetcher.borrow_mut();
                fetcher.progress()?;
                fetcher.hand_over(&mut room, batches)?;
            }
            if room.records == before && (before < limits.records || !self.wait(deadline, true)) {
                break;
            }
        }
        let records = limits.records - room.records;
        if records == 0
            && let Some(error) = self.consumer.context().fatal_error()
        {
            return Err(self.failed("consuming", &error));
        }
        self.check_unassigned()?;
        Ok(records)
    }

    /// Reads the committed offsets of partitions that were assigned, unless the caller has.
    fn look_up_starts(&self) -> Result<()> {
        let without = self.fetcher.borrow().without_start();
        if without.is_empty() {
            return Ok(());
        }
        let committed = self.read_committed(&without)?;
        let mut fetcher = self.fetcher.borrow_mut();
        without.iter().zip(committed).try_for_each(|(partition, committed)| fetcher.set_start(partition, committed))
    }

    /// The offset after the last record of a partition, from the last fetch. `None` before the
    /// first fetch.
    pub fn high_watermark(&self, partition: &TopicPartition) -> Option<i64> {
        self.fetcher.borrow().high_watermark(partition)
    }

    /// The offsets up to which these partitions were read, markers of transactions included; `None`
    /// for a partition that is not assigned, or whose first offset is not known yet.
    pub fn positions<'p>(&self, partitions: impl IntoIterator<Item = &'p TopicPartition>) -> Vec<Option<i64>> {
        let fetcher = self.fetcher.borrow();
        partitions.into_iter().map(|partition| fetcher.position(partition)).collect()
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
    /// happened. Returns whether one happened.
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
                // The client has no partition to fetch.
                Ok(_) => return Err(Error::internal("kafka.fetched_twice", "librdkafka has fetched a message")),
            }
            if !self.events().is_empty() {
                break;
            }
        }
        self.consumer.context().rebootstrap().run_if_due(self.consumer.client());
        Ok(self.pass_rebalances())
    }

    /// Passes rebalances to the fetcher. Returns whether the caller has to handle one.
    fn pass_rebalances(&self) -> bool {
        let events = self.events();
        let mut fetcher = self.fetcher.borrow_mut();
        for event in &events[self.known_events.replace(events.len())..] {
            match event {
                RebalanceEvent::Assigned(partitions) => fetcher.assign(partitions),
                RebalanceEvent::Revoked(partitions) => fetcher.revoke(partitions),
            }
        }
        !events.is_empty()
    }

    /// Waits for an event or, with `for_records`, an answer; `false` at `deadline`, or after an
    /// interruption.
    fn wait(&self, deadline: Instant, for_records: bool) -> bool {
        if deadline <= Instant::now() {
            return false;
        }
        if let Some(notifier) = &self.notifier {
            let fetcher = self.fetcher.borrow();
            let mut sockets = vec![notifier.readiness()];
            let mut until = deadline;
            if for_records {
                sockets.extend(fetcher.readiness());
                until = fetcher.next_step().map_or(deadline, |step| step.min(deadline));
            }
            wait(&sockets, until);
            notifier.clear();
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
                let owns_nothing = self.fetcher.borrow().is_unassigned();
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
        self.known_events.set(0);
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
    ///
    /// Partitions that were assigned are read from these offsets on.
    pub fn committed(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
        let committed = self.read_committed(partitions)?;
        let mut fetcher = self.fetcher.borrow_mut();
        for (partition, committed) in partitions.iter().zip(&committed) {
            // A strict reader fails when it is about to fetch.
            let _ = fetcher.set_start(partition, *committed);
        }
        Ok(committed)
    }

    fn read_committed(&self, partitions: &[TopicPartition]) -> Result<Vec<i64>> {
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

    /// Continues a partition at `offset`, or at its first record if that is negative, after records
    /// past it were discarded.
    pub fn seek(&self, partition: &TopicPartition, offset: i64) {
        self.fetcher.borrow_mut().seek(partition, offset);
    }

    /// Stops fetching from all assigned partitions. The member stays in its group as long as it
    /// polls.
    pub fn pause(&self) {
        self.fetcher.borrow_mut().pause();
    }

    /// Stops fetching from some of the assigned partitions.
    pub fn pause_partitions(&self, partitions: &[TopicPartition]) {
        self.fetcher.borrow_mut().pause_partitions(partitions);
    }

    /// Fetches again after [`GroupConsumer::pause`] and [`GroupConsumer::pause_partitions`].
    pub fn resume(&self) {
        self.fetcher.borrow_mut().resume();
    }

    /// Learns of records of open transactions within `age`: it limits the age of the watermarks.
    /// Without records, brokers are otherwise asked every 10 s.
    pub fn limit_watermark_age(&self, age: Duration) {
        self.fetcher.borrow_mut().limit_wait(age);
    }

    /// Leaves the group and returns all partitions. Closing alone would keep them until the session
    /// times out, because a static member does not leave when it closes. A failure makes the other
    /// members wait, nothing else.
    pub fn leave(&self) {
        self.consumer.unsubscribe();
        let deadline = Instant::now() + LEAVE_LIMIT;
        while !self.fetcher.borrow().is_unassigned() && deadline > Instant::now() {
            // Errors do not matter any more.
            self.consumer.poll(Duration::from_millis(5));
            self.pass_rebalances();
        }
    }

    /// Keeps the membership alive while paused. Returns whether a rebalance happened.
    pub fn keep_alive(&self, wait: Duration) -> Result<bool> {
        let deadline = Instant::now() + wait;
        loop {
            let has_rebalanced = self.serve()?;
            if has_rebalanced || !self.wait(deadline, false) {
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

/// The settings of the client that keeps the membership, and the limits of fetches.
fn group_config(cluster: &Cluster, (group, instance): (&str, &str), prefetch_bytes: usize) -> ClientConfig {
    // Per partition and answer, compressed: a broker sends no more than this at once.
    let fetch = (prefetch_bytes / 32).clamp(65_536, 1 << 20).to_string();
    // For all partitions of a broker together. Memory holds two answers of each broker.
    let answer = (prefetch_bytes / 8).max(1 << 20).to_string();
    let mut config = cluster.config(&[
        // Brokers name it in their logs and quotas.
        ("client.id", instance),
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "1000"),
        // A sink may be busy with one upload for a long time. A stage that hangs shows by its
        // progress.
        ("max.poll.interval.ms", "900000"),
        ("fetch.message.max.bytes", &fetch),
        ("fetch.max.bytes", &answer),
        // New topics that match a pattern are found within this time.
        ("topic.metadata.refresh.interval.ms", "5000"),
    ]);
    config
        .set("group.id", group)
        .set("group.instance.id", instance)
        .set("partition.assignment.strategy", "cooperative-sticky")
        // Committed offsets are read when no transaction that covers them is open.
        .set("isolation.level", "read_committed")
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false");
    config
}
