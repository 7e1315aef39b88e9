//! Commits of sinks whose destination makes repeated writes harmless (I2 c).
//!
//! ```text
//! write .. | seal → deliver (retried, several in flight)
//!          → acknowledged prefix → [txn: offsets + counters + dead letters]
//! ```
//!
//! Records of a topic partition are sealed into *parts*, in order. A delivery holds parts of one or
//! more topic partitions and is sent by a thread of [`delivery_pool`](super::delivery_pool).
//! Offsets are committed up to the first part that is not acknowledged yet. A crash before that
//! repeats deliveries, which changes nothing at the destination.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use trunkline_connector::{
    Batch, Buffered, CommitPolicy, Delivery, Error, IdempotentSink, InFlight, PartitionRecords, Rejections, Result,
    TopicPartition, failpoint,
};

use super::POLL;
use super::committer::{Assignment, Committer};
use super::delivery_pool::{DeliveryEvent, DeliveryPool};
use super::transactions::Transactions;
use crate::checkpoint::{Counters, IntentState};
use crate::stage::careful::RECORD_REJECTED;
use crate::stage::commit_timer::CommitTimer;
use crate::stage::dead_letters::DeadLetters;
use crate::stage::worker_context::WorkerContext;

/// The wait for records while deliveries are in flight: bounds how late the next one starts.
const IN_FLIGHT_POLL: Duration = Duration::from_millis(5);

/// After a rejection that stops the sink, the other deliveries have this time to finish.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// See the module's header.
pub(super) struct IdempotentCommitter {
    pool: DeliveryPool,
    limits: InFlight,
    policy: CommitPolicy,
    /// Records that are not sealed yet.
    buffers: BTreeMap<TopicPartition, Batch>,
    /// Sealed parts of each topic partition, in order.
    parts: BTreeMap<TopicPartition, VecDeque<Part>>,
    /// Identifies deliveries.
    next_delivery: u64,
    /// Deliveries in flight.
    in_flight: usize,
    timer: CommitTimer,
}

/// Sealed records of one topic partition, with all that their commit covers.
struct Part {
    state: PartState,
    /// The offset after the last record.
    next: i64,
    /// When its first record was written to its topic.
    oldest: Option<Instant>,
    bytes: usize,
    counters: Counters,
    dead_letters: DeadLetters,
}

enum PartState {
    /// Waits for a free delivery.
    Sealed(Batch),
    /// In the delivery with this number.
    InFlight(u64),
    /// Acknowledged, with the rejections routed.
    Acknowledged,
}

impl IdempotentCommitter {
    /// Starts the threads that deliver.
    pub(super) fn start(sink: Box<dyn IdempotentSink>, policy: CommitPolicy, context: &WorkerContext) -> Result<Self> {
        let limits = sink.in_flight();
        let limits = InFlight { deliveries: limits.deliveries.max(1), per_partition: limits.per_partition.max(1) };
        Ok(Self {
            pool: DeliveryPool::start(sink, limits.deliveries, context.until_idle)?,
            limits,
            policy,
            buffers: BTreeMap::new(),
            parts: BTreeMap::new(),
            next_delivery: 0,
            in_flight: 0,
            timer: CommitTimer::new(context.commit_interval),
        })
    }

    /// Turns the buffered records of a topic partition into a part.
    fn seal(&mut self, transactions: &mut Transactions<'_>, partition: &TopicPartition) {
        let Some(state) = transactions.partitions.get_mut(partition).filter(|state| state.has_pending()) else {
            return;
        };
        let records = self.buffers.remove(partition).filter(|records| !records.is_empty());
        let bytes = records.as_ref().map_or(0, Batch::bytes);
        let part = Part {
            // Without records (all were dropped or rejected) there is nothing to deliver.
            state: records.map_or(PartState::Acknowledged, PartState::Sealed),
            next: state.next,
            oldest: state.oldest,
            bytes,
            counters: std::mem::take(&mut state.pending),
            dead_letters: std::mem::take(&mut state.dead_letters),
        };
        state.mark_sealed();
        state.clear_pending();
        self.parts.entry(partition.clone()).or_default().push_back(part);
    }

    /// Starts deliveries of sealed parts, as far as the limits allow.
    fn dispatch(&mut self, transactions: &Transactions<'_>) {
        while self.in_flight < self.limits.deliveries {
            let number = self.next_delivery;
            let mut records = Vec::new();
            let (mut bytes, mut count) = (0, 0);
            for (partition, parts) in &mut self.parts {
                let in_flight = parts.iter().filter(|part| matches!(part.state, PartState::InFlight(_))).count();
                let is_sealed = |part: &&mut Part| matches!(part.state, PartState::Sealed(_));
                let Some(part) = parts.iter_mut().find(is_sealed).filter(|_| in_flight < self.limits.per_partition)
                else {
                    continue;
                };
                if let PartState::Sealed(sealed) = std::mem::replace(&mut part.state, PartState::InFlight(number)) {
                    bytes += sealed.bytes() as u64;
                    count += sealed.len() as u64;
                    records.push(PartitionRecords { partition: partition.clone(), records: sealed });
                }
                if bytes >= self.policy.bytes || count >= self.policy.records {
                    break;
                }
            }
            if records.is_empty() {
                return;
            }
            let mut trace = transactions.context.tracer.begin_call("deliver", transactions.status);
            trace.add("trunkline.records.in", count);
            trace.add("trunkline.bytes.in", bytes);
            self.pool.send(number, Delivery::new(records), trace);
            self.next_delivery += 1;
            self.in_flight += 1;
        }
    }

    /// Handles the events of the pool; waits at most `wait` for the first. After a rejection that
    /// stops the sink, it also waits for the other deliveries: the records before the rejected one
    /// may still be in flight, and are committed.
    fn collect(&mut self, transactions: &mut Transactions<'_>, wait: Duration) -> Result<()> {
        let mut wait = wait;
        let mut rejected: Option<(Error, Instant)> = None;
        loop {
            let Some(event) = self.pool.event(wait)? else {
                match &rejected {
                    Some((_, since)) if self.in_flight > 0 && since.elapsed() < SETTLE_LIMIT => continue,
                    _ => break,
                }
            };
            wait = if rejected.is_some() { IN_FLIGHT_POLL } else { Duration::ZERO };
            match event {
                DeliveryEvent::Retrying { error, retry_in } => {
                    let stage = transactions.status.name();
                    tracing::warn!(stage, %error, ?retry_in, "a delivery failed; retrying");
                    transactions.status.failed(&error.to_string());
                }
                DeliveryEvent::Finished { number, delivery } => {
                    self.in_flight -= 1;
                    match self.acknowledge(transactions, number, &delivery) {
                        Err(error) if error.code == RECORD_REJECTED => {
                            rejected.get_or_insert((error, Instant::now()));
                            wait = IN_FLIGHT_POLL;
                        }
                        outcome => outcome?,
                    }
                }
                DeliveryEvent::Failed { error } => match rejected {
                    Some(_) => break,
                    None => return Err(error.context("delivering records")),
                },
            }
        }
        rejected.map_or(Ok(()), |(error, _)| Err(error))
    }

    /// Marks the parts of a finished delivery as acknowledged, and routes what the destination
    /// rejected.
    fn acknowledge(&mut self, transactions: &mut Transactions<'_>, number: u64, delivery: &Delivery) -> Result<()> {
        failpoint!("sink.deliver.after")?;
        let plan = &transactions.stage.plan;
        let mut rejected = Rejections::default();
        for (index, PartitionRecords { partition, .. }) in delivery.partitions().iter().enumerate() {
            let is_of_delivery = |part: &&mut Part| matches!(part.state, PartState::InFlight(other) if other == number);
            // A topic partition that was revoked meanwhile has no parts: its next owner delivers
            // the records again.
            let Some(part) = self.parts.get_mut(partition).and_then(|parts| parts.iter_mut().find(is_of_delivery))
            else {
                continue;
            };
            rejected.clear();
            delivery.rejections(index, &mut rejected);
            if !rejected.is_empty() {
                let own = part.counters.of(&plan.name);
                own.out -= (rejected.len() as u64).min(own.out);
                let (dead_letters, counters) = (&mut part.dead_letters, &mut part.counters);
                let routed = dead_letters.route_rejections(&plan.name, "TASK_PUT", plan.on_error, &rejected, counters);
                if let Some(offset) = part.dead_letters.stopped_at() {
                    transactions.rejected_at.get_or_insert((partition.clone(), offset));
                }
                routed?;
            }
            part.state = PartState::Acknowledged;
            self.timer.mark_pending();
        }
        Ok(())
    }

    /// Commits the acknowledged prefix of each topic partition in one transaction.
    fn commit_prefixes(&mut self, transactions: &mut Transactions<'_>) -> Result<()> {
        self.timer.clear();
        let acknowledged = |parts: &VecDeque<Part>| {
            parts.iter().take_while(|part| matches!(part.state, PartState::Acknowledged)).count()
        };
        let prefixes: BTreeMap<&TopicPartition, usize> = self
            .parts
            .iter()
            .map(|(partition, parts)| (partition, acknowledged(parts)))
            .filter(|(_, count)| *count > 0)
            .collect();
        if prefixes.is_empty() {
            return Ok(());
        }
        let begun = Instant::now();
        failpoint!("sink.acknowledge.before")?;
        let mut trace = transactions.context.tracer.begin("commit", transactions.status);
        trace.add("trunkline.partitions", prefixes.len() as u64);
        let outcome = transactions.retry("committing offsets", |transactions| {
            transactions.run(|transactions| {
                let mut offsets = Vec::new();
                for (partition, count) in &prefixes {
                    let parts = self.parts.get(partition).into_iter().flatten().take(*count);
                    let Some(state) = transactions.partitions.get(partition) else { continue };
                    let mut row = state.row(None);
                    row.first = state.committed.max(0);
                    row.counters = state.totals.clone();
                    row.sink_state = self.pool.sink().state(partition);
                    for part in parts {
                        row.counters.add(&part.counters);
                        row.next = part.next;
                        transactions.write_dead_letters(&part.dead_letters)?;
                    }
                    transactions.write_intent(partition, &row)?;
                    offsets.push(((*partition).clone(), row.next));
                }
                Ok(offsets)
            })
        });
        if outcome.is_ok() && trace.is_recording() {
            let mut counters = Counters::default();
            let parts =
                prefixes.iter().filter_map(|(partition, count)| Some(self.parts.get(*partition)?.iter().take(*count)));
            parts.flatten().for_each(|part| counters.add(&part.counters));
            trace.add_records(&counters, &transactions.stage.plan.name);
        }
        trace.finish(&outcome);
        outcome?;
        failpoint!("sink.acknowledge.after")?;
        let prefixes: Vec<(TopicPartition, usize)> =
            prefixes.into_iter().map(|(partition, count)| (partition.clone(), count)).collect();
        let mut oldest = None;
        for (partition, count) in prefixes {
            let Some(parts) = self.parts.get_mut(&partition) else { continue };
            let committed: Vec<Part> = parts.drain(..count).collect();
            if parts.is_empty() {
                self.parts.remove(&partition);
            }
            let Some(state) = transactions.partitions.get_mut(&partition) else { continue };
            for part in committed {
                oldest = oldest.into_iter().chain(part.oldest).min();
                state.totals.add(&part.counters);
                state.committed = part.next;
                transactions.status.committed(&part.counters);
            }
        }
        self.timer.committed(begun);
        transactions.status.commit_took(begun.elapsed());
        oldest.into_iter().for_each(|oldest| transactions.status.arrived_after(oldest.elapsed()));
        Ok(())
    }

    /// Bytes of the parts that wait for a free delivery.
    fn sealed_bytes(&self) -> usize {
        let parts = self.parts.values().flatten().filter(|part| matches!(part.state, PartState::Sealed(_)));
        parts.map(|part| part.bytes).sum()
    }
}

impl Committer for IdempotentCommitter {
    fn assign(&mut self, _: &mut Transactions<'_>, assigned: &[Assignment]) -> Result<usize> {
        for assignment in assigned {
            let unsettled = assignment.intent.as_ref().filter(|row| row.state != IntentState::Committed);
            if unsettled.is_some() {
                let message = format!(
                    "the sink's connector was changed while {} had output that was planned or prepared and not committed. \
                     Run the sink with its earlier connector until it has committed, then change it, or give the new sink \
                     another name",
                    assignment.partition
                );
                return Err(Error::config("sink.pending_intents", message));
            }
            // What the sink knows is about the records before the offset that the row has.
            let row = assignment.intent.as_ref().filter(|row| row.next == assignment.committed);
            let state = row.and_then(|row| row.sink_state.as_ref());
            self.pool.sink().restore(&assignment.partition, state);
        }
        Ok(0)
    }

    fn write(&mut self, partition: &TopicPartition, records: &Batch, _: &mut Rejections) -> Result<()> {
        let buffer = match self.buffers.get_mut(partition) {
            Some(buffer) => buffer,
            None => self.buffers.entry(partition.clone()).or_default(),
        };
        records.iter().for_each(|record| buffer.push_copy(record));
        Ok(())
    }

    /// Seals each record alone: its rejection must not keep the records before it from being
    /// committed.
    fn end_record(&mut self, transactions: &mut Transactions<'_>, partition: &TopicPartition) {
        self.seal(transactions, partition);
    }

    fn buffered(&self, partition: &TopicPartition) -> Buffered {
        let Some(records) = self.buffers.get(partition) else { return Buffered::default() };
        Buffered { bytes: records.bytes() as u64, records: records.len() as u64, open_files: 0 }
    }

    fn commit(&mut self, transactions: &mut Transactions<'_>, due: &[TopicPartition]) -> Result<()> {
        for partition in due {
            self.seal(transactions, partition);
            self.timer.mark_pending();
        }
        let collected = self.collect(transactions, Duration::ZERO);
        self.dispatch(transactions);
        // What was acknowledged before an error is committed first.
        if collected.is_err() || self.timer.is_due(0) {
            self.commit_prefixes(transactions)?;
        }
        collected
    }

    fn flush(&mut self, transactions: &mut Transactions<'_>) -> Result<()> {
        let pending = transactions.pending_partitions();
        pending.iter().for_each(|partition| self.seal(transactions, partition));
        while !self.parts.is_empty() {
            self.dispatch(transactions);
            let collected = self.collect(transactions, IN_FLIGHT_POLL);
            if collected.is_err() || self.timer.is_due(0) || self.in_flight == 0 {
                self.commit_prefixes(transactions)?;
            }
            collected?;
            if transactions.shutdown_grace_is_over() {
                return Err(Error::external(
                    "sink.stopped",
                    "the worker stopped before all deliveries were acknowledged",
                ));
            }
            if transactions.consumer.keep_alive(Duration::ZERO)? {
                // The loop handles the rebalance first.
                return Ok(());
            }
        }
        Ok(())
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.buffers.remove(partition);
        self.parts.remove(partition);
    }

    fn memory_bytes(&self) -> usize {
        let parts: usize = self.parts.values().flatten().map(|part| part.bytes + part.dead_letters.bytes()).sum();
        self.buffers.values().map(Batch::capacity).sum::<usize>() + parts
    }

    fn spill(&mut self) -> Result<()> {
        Ok(())
    }

    fn oldest(&self, partition: &TopicPartition) -> Option<Instant> {
        self.parts.get(partition)?.iter().filter_map(|part| part.oldest).min()
    }

    fn wake_in(&self) -> Duration {
        let idle = if self.in_flight > 0 { IN_FLIGHT_POLL } else { POLL };
        self.timer.until_due(idle).min(idle)
    }

    fn accepts_more(&self) -> bool {
        // One more delivery than can be in flight is kept ready.
        (self.sealed_bytes() as u64) < self.policy.bytes || self.in_flight < self.limits.deliveries
    }
}
