//! The group consumer of sink and transform tasks: read_committed, cooperative, and never
//! committing offsets itself (I2).
//!
//! A [`Membership`] learns which partitions belong to it, and the [`Fetcher`] reads their records.
//!
//! A worker is a static member of its groups (KIP-345): if it restarts after a crash within the
//! session timeout, it has its partitions again at once, without a rebalance. A worker that stops
//! normally leaves ([`GroupConsumer::leave`]), so that the other members need not wait for that
//! timeout. [`GroupConsumer::rebalance_events`] returns what a rebalance changed, after the poll in
//! which it happened and before a record of a new partition can be processed.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use trunkline_connector::{Error, Result, TopicPartition, failpoint};

use super::client::{CALL_TIMEOUT, Cluster, classify_code};
use super::membership::OtherMembers;
use super::partition_batches::PartitionBatches;
use super::unassigned::UnassignedMonitor;
use super::wire::brokers::{Brokers, Target};
use super::wire::connection::readiness::wait;
use super::wire::connection::settings::Settings;
use super::wire::errors::code;
use super::wire::fetch::{Bound, FetchLimits, FetchOptions, Fetcher, Isolation, Room, bound, bound_of};
use super::wire::group::{MemberOptions, Membership, RebalanceEvent};
use super::wire::group_lookups::{self, GroupMember};
use super::wire::produce::GroupMetadata;
use super::wire::wake::wake;

/// Time for a member to leave its group.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Time for a check of the group: nothing is read meanwhile.
const CHECK_LIMIT: Duration = Duration::from_secs(1);

/// Idle batches keep the memory of this many polling rounds. One batch alone holds up to twice what
/// it needs.
const KEPT_ROUNDS: usize = 4;

/// A member of a consumer group.
pub struct GroupConsumer {
    membership: Membership,
    pub(super) fetcher: RefCell<Fetcher>,
    /// The rebalances that the caller has not taken.
    events: RefCell<Vec<RebalanceEvent>>,
    group: String,
    topics: Vec<String>,
    unassigned: RefCell<UnassignedMonitor>,
    /// The current wait, or the next one, shall end.
    is_interrupted: Arc<AtomicBool>,
}

/// Limits of one polling round.
pub struct FillLimits {
    /// Maximum number of records.
    pub records: usize,
    /// The round ends once it has this many bytes. With records of more than 1/64 of them, it ends
    /// after 64 records or four times the bytes.
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
        let config = group_config(cluster, instance, prefetch_bytes);
        let settings = Settings::of(cluster, &config)?;
        let milliseconds = |name: &str| Duration::from_millis(settings.number(name) as u64);
        let bytes = |name: &str| i32::try_from(settings.number(name)).unwrap_or(i32::MAX);
        let client_id = config.get("client.id").unwrap_or(instance);
        let fetcher = Fetcher::new(
            cluster,
            FetchOptions {
                group: Some(group.to_owned()),
                client_id: client_id.to_owned(),
                rack: config.get("client.rack").unwrap_or_default().to_owned(),
                limits: FetchLimits {
                    partition_bytes: bytes("fetch.message.max.bytes"),
                    answer_bytes: bytes("fetch.max.bytes"),
                },
                is_strict,
                isolation: Isolation::Committed,
            },
        );
        let options = MemberOptions {
            group: group.to_owned(),
            instance: instance.to_owned(),
            client_id: client_id.to_owned(),
            topics: topics.to_owned(),
            session: milliseconds("session.timeout.ms"),
            heartbeat: milliseconds("heartbeat.interval.ms"),
            max_poll: milliseconds("max.poll.interval.ms"),
        };
        Ok(Self {
            membership: Membership::join(cluster, options)?,
            fetcher: RefCell::new(fetcher),
            events: RefCell::default(),
            group: group.to_owned(),
            topics: topics.to_owned(),
            unassigned: RefCell::new(UnassignedMonitor::new()),
            is_interrupted: Arc::default(),
        })
    }

    /// Polls and copies records to the batches of their partitions, until the limits are reached,
    /// no record is available, or a rebalance happened. Call [`GroupConsumer::rebalance_events`]
    /// before the batches are processed: the last records may belong to a partition that was
    /// assigned in the same poll. Returns the number of records.
    pub fn fill(&self, limits: &FillLimits, batches: &mut PartitionBatches) -> Result<usize> {
        let deadline = Instant::now() + limits.wait;
        batches.recycle(KEPT_ROUNDS * limits.bytes);
        let mut room = Room::new(limits.records, limits.bytes);
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
        self.check_unassigned()?;
        Ok(limits.records - room.records)
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

    /// Whether this member has read a partition up to `end`, markers of transactions included.
    /// `None` if the partition is not assigned, or paused before its position is known.
    pub fn has_reached(&self, partition: &TopicPartition, end: i64) -> Option<bool> {
        self.fetcher.borrow().has_reached(partition, end)
    }

    /// A function that ends the current wait for records, or the next one, from any thread. It may
    /// outlive the consumer.
    pub fn waker(&self) -> impl Fn() + Send + Sync + use<> {
        let (is_interrupted, sender) = (self.is_interrupted.clone(), self.membership.waker());
        move || {
            is_interrupted.store(true, Ordering::Release);
            wake(&sender);
        }
    }

    /// Takes rebalances and errors, and passes the former to the fetcher. Returns whether the
    /// caller has to handle a rebalance.
    fn serve(&self) -> Result<bool> {
        let mut events = self.events.borrow_mut();
        // What the membership returned last counts as handled once it is polled again.
        if !events.is_empty() {
            return Ok(true);
        }
        *events = self.membership.poll()?;
        let mut fetcher = self.fetcher.borrow_mut();
        for event in &*events {
            match event {
                RebalanceEvent::Assigned(partitions) => fetcher.assign(partitions),
                RebalanceEvent::Revoked(partitions) => {
                    failpoint!("consumer.revoke.before")?;
                    fetcher.revoke(partitions);
                }
            }
        }
        Ok(!events.is_empty())
    }

    /// Waits for an event or, with `for_records`, an answer; `false` at `deadline`, or after an
    /// interruption.
    fn wait(&self, deadline: Instant, for_records: bool) -> bool {
        if deadline <= Instant::now() {
            return false;
        }
        let fetcher = self.fetcher.borrow();
        let mut sockets = vec![self.membership.readiness()];
        let mut until = deadline;
        if for_records {
            sockets.extend(fetcher.readiness());
            until = fetcher.next_step().map_or(deadline, |step| step.min(deadline));
        }
        wait(&sockets, until);
        self.membership.clear_wake_ups();
        !self.is_interrupted.swap(false, Ordering::AcqRel)
    }

    /// Joins the group again if a partition has no owner. See [`unassigned`](super::unassigned).
    fn check_unassigned(&self) -> Result<()> {
        let mut monitor = self.unassigned.borrow_mut();
        if !self.events.borrow().is_empty() {
            monitor.note_rebalance();
            return Ok(());
        }
        if !monitor.is_due() {
            return Ok(());
        }
        let (members, subscribed) = match self.describe_group() {
            Ok(Some(described)) => described,
            Ok(None) => {
                monitor.schedule();
                return Ok(());
            }
            Err(error) => {
                tracing::debug!(%error, group = self.group, "the group cannot be described");
                monitor.note_failure(self.fetcher.borrow().is_unassigned());
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
        self.membership.join_again();
        Ok(())
    }

    /// Calls brokers. Connections that a call has opened are closed after it: the fetcher has its
    /// own ones.
    fn ask<T>(&self, call: impl FnOnce(&mut Brokers) -> Result<T>) -> Result<T> {
        let mut fetcher = self.fetcher.borrow_mut();
        let answer = call(fetcher.brokers());
        fetcher.brokers().disconnect();
        answer
    }

    /// The group's members and all partitions of the subscribed topics; `None` while the group is
    /// not stable.
    fn describe_group(&self) -> Result<Option<(Vec<GroupMember>, Vec<TopicPartition>)>> {
        let deadline = Instant::now() + CHECK_LIMIT;
        let Some(members) = self.ask(|brokers| group_lookups::members(brokers, &self.group, deadline))? else {
            return Ok(None);
        };
        Ok(Some((members, self.subscribed_partitions()?)))
    }

    /// The other members of the group; `None` while the group is not stable.
    pub fn other_members(&self) -> Result<Option<OtherMembers>> {
        let Some((members, _)) = self.describe_group()? else { return Ok(None) };
        let own = self.membership.identity().map(|identity| identity.member);
        let others = members.into_iter().filter(|member| Some(&member.id) != own.as_ref());
        Ok(Some(OtherMembers(others.map(|member| member.assignment).collect())))
    }

    /// Takes the changes of the rebalances since the last call. They count as handled when the
    /// consumer is polled again: only then does another member get what was revoked.
    pub fn rebalance_events(&self) -> Vec<RebalanceEvent> {
        self.events.take()
    }

    /// Identity and generation of this member, which fence its commits (KIP-447).
    pub fn metadata(&self) -> Result<GroupMetadata> {
        self.membership.identity().ok_or_else(|| {
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
        let deadline = Instant::now() + CALL_TIMEOUT;
        let mut fetcher = self.fetcher.borrow_mut();
        // The connection is then used to fetch, if it leads to the right broker.
        group_lookups::committed(fetcher.brokers(), &self.group, partitions, deadline)
    }

    /// The last stable offset of a partition of any topic, asked of its broker: no transaction that
    /// is open now wrote before it.
    pub fn stable_end(&self, topic: &str, partition: i32) -> Result<i64> {
        let doing = format!("reading the end of topic `{topic}` in group `{}`", self.group);
        let (deadline, request) =
            (Instant::now() + CALL_TIMEOUT, bound(topic, partition, Bound::End(Isolation::Committed)));
        let (error, end) = self.ask(|brokers| {
            let answer =
                brokers.ask(Target::Leader(topic, partition), 2..=6, &request, deadline, |answer| bound_of(answer).0);
            Ok(bound_of(&answer.map_err(|error| error.explain(&doing, brokers.cluster()))?))
        })?;
        if error == 0 { Ok(end) } else { Err(classify_code(Some(code(error)), format!("{doing}: {}", code(error)))) }
    }

    /// All partitions of all subscribed topics, whichever member owns them.
    pub fn subscribed_partitions(&self) -> Result<Vec<TopicPartition>> {
        let (names, patterns): (Vec<&str>, Vec<&str>) =
            self.topics.iter().map(String::as_str).partition(|topic| !topic.starts_with('^'));
        let deadline = Instant::now() + CALL_TIMEOUT;
        let doing = format!("listing topics in group `{}`", self.group);
        let topics = self.ask(|brokers| {
            let topics = brokers.list_topics(patterns.is_empty().then_some(names.as_slice()), deadline);
            topics.map_err(|error| error.explain(&doing, brokers.cluster()))
        })?;
        let mut found = Vec::new();
        for topic in topics.iter().filter(|topic| self.membership.subscribes(&topic.name)) {
            let name: Arc<str> = Arc::from(topic.name.as_str());
            found.extend((0..topic.partitions).map(|partition| TopicPartition { topic: name.clone(), partition }));
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
        self.membership.leave(LEAVE_LIMIT);
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

/// The settings of the membership, and the limits of fetches.
fn group_config(cluster: &Cluster, instance: &str, prefetch_bytes: usize) -> ClientConfig {
    // Per partition and answer, compressed: a broker sends no more than this at once.
    let fetch = (prefetch_bytes / 32).clamp(65_536, 1 << 20).to_string();
    // For all partitions of a broker together. Memory holds two answers of each broker.
    let answer = (prefetch_bytes / 8).max(256 << 10).to_string();
    cluster.config(&[
        // Brokers name it in their logs and quotas.
        ("client.id", instance),
        ("session.timeout.ms", "10000"),
        ("heartbeat.interval.ms", "1000"),
        // A sink may be busy with one upload for a long time. A stage that hangs shows by its
        // progress.
        ("max.poll.interval.ms", "900000"),
        ("fetch.message.max.bytes", &fetch),
        ("fetch.max.bytes", &answer),
    ])
}
