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
//!
//! A busy destination may refuse some records of a delivery. They do not keep it in flight: they
//! return to their part, and join the next delivery (`docs/adr/029-refused-records.md`).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trunkline_connector::{
    Batch, Buffered, CommitPolicy, Delivery, Error, IdempotentSink, InFlight, PartitionRecords, Rejections, Result,
    TopicPartition, failpoint,
};

use super::committer::{Assignment, Committer};
use super::delivery_pool::{DeliveryEvent, DeliveryPool};
use super::parts::{Part, PartState, Parts};
use super::transactions::Transactions;
use crate::backoff::jitter;
use crate::checkpoint::{Counters, IntentState};
use crate::stage::careful::RECORD_REJECTED;
use crate::stage::commit_timer::CommitTimer;
use crate::stage::worker_context::WorkerContext;

/// The wait for records while deliveries are in flight: bounds how late the next one starts.
const IN_FLIGHT_POLL: Duration = Duration::from_millis(5);

/// After a rejection that stops the sink, the other deliveries have this time to finish.
const SETTLE_LIMIT: Duration = Duration::from_secs(10);

/// The pause before all records of a delivery would be sent again; for a part of them it is
/// shorter.
const RETURN_PAUSE: Duration = Duration::from_millis(10);

/// While a destination refuses records, this is logged once in this time.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// See the module's header.
pub(super) struct IdempotentCommitter {
    pool: DeliveryPool,
    limits: InFlight,
    policy: CommitPolicy,
    /// Records that are not sealed yet.
    buffers: BTreeMap<TopicPartition, Batch>,
    /// Memory of acknowledged parts, for the next buffers: to allocate and free megabytes for each
    /// delivery would leave much more in the allocator. Empty while nothing is in flight.
    spare: Vec<Batch>,
    /// Sealed parts of each topic partition, in order.
    parts: Parts,
    /// Identifies parts and deliveries.
    next_number: u64,
    /// The parts of each delivery in flight, in the order of its topic partitions.
    in_flight: BTreeMap<u64, Vec<u64>>,
    timer: CommitTimer,
    /// When refused records were last logged, and the code of the error.
    reported: Option<(Instant, &'static str)>,
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
            spare: Vec::new(),
            parts: Parts::new(limits, policy),
            next_number: 0,
            in_flight: BTreeMap::new(),
            timer: CommitTimer::new(context.commit_interval),
            reported: None,
        })
    }

    /// Turns the buffered records of a topic partition into a part.
    fn seal(&mut self, transactions: &mut Transactions<'_>, partition: &TopicPartition) {
        let Some(state) = transactions.partitions.get_mut(partition).filter(|state| state.has_pending()) else {
            return;
        };
        let records = self.buffers.remove(partition).filter(|records| !records.is_empty());
        let bytes = records.as_ref().map_or(0, Batch::bytes);
        let sealed = |records| {
            PartState::Sealed(Delivery::new(vec![PartitionRecords { partition: partition.clone(), records }]))
        };
        self.next_number += 1;
        let part = Part {
            number: self.next_number,
            // Without records (all were dropped or rejected) there is nothing to deliver.
            state: records.map_or(PartState::Acknowledged, sealed),
            next: state.next,
            oldest: state.oldest,
            bytes,
            counters: std::mem::take(&mut state.pending),
            dead_letters: std::mem::take(&mut state.dead_letters),
        };
        state.mark_sealed();
        state.clear_pending();
        self.parts.push(partition, part);
    }

    /// Starts deliveries, as far as the limits allow.
    fn dispatch(&mut self, transactions: &Transactions<'_>) {
        while self.in_flight.len() < self.limits.deliveries {
            self.next_number += 1;
            let number = self.next_number;
            let Some((delivery, parts)) = self.parts.take_delivery(number, Instant::now()) else { return };
            self.in_flight.insert(number, parts);
            let mut trace = transactions.context.tracer.begin_call("deliver", transactions.status);
            trace.add("trunkline.records.in", delivery.pending_len() as u64);
            self.pool.send(number, delivery, trace);
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
                    Some((_, since)) if !self.in_flight.is_empty() && since.elapsed() < SETTLE_LIMIT => continue,
                    _ => break,
                }
            };
            match event {
                DeliveryEvent::Retrying { error, retry_in } => {
                    let stage = transactions.status.name();
                    tracing::warn!(stage, %error, ?retry_in, "a delivery failed; retrying");
                    transactions.status.failed(&error.to_string());
                }
                DeliveryEvent::Finished { number, delivery } => {
                    self.settle(transactions, number, delivery, None, &mut rejected)?;
                }
                DeliveryEvent::Partly { number, delivery, error } => {
                    self.report(transactions, &error);
                    let share = delivery.pending_len() as f64 / delivery.len().max(1) as f64;
                    let joins = Instant::now() + jitter(RETURN_PAUSE.mul_f64(share));
                    self.settle(transactions, number, delivery, Some(joins), &mut rejected)?;
                }
                DeliveryEvent::Failed { error } => match rejected {
                    Some(_) => break,
                    None => return Err(error.context("delivering records")),
                },
            }
            wait = if rejected.is_some() { IN_FLIGHT_POLL } else { Duration::ZERO };
        }
        rejected.map_or(Ok(()), |(error, _)| Err(error))
    }

    /// Marks the parts of a delivery as acknowledged, and routes what the destination rejected.
    /// `joins`: when pending records may be sent again; `None` if all records were decided.
    /// `stopped`: the first rejection that stops the sink.
    fn settle(
        &mut self,
        transactions: &mut Transactions<'_>,
        number: u64,
        delivery: Delivery,
        joins: Option<Instant>,
        stopped: &mut Option<(Error, Instant)>,
    ) -> Result<()> {
        failpoint!("sink.deliver.after")?;
        let numbers = self.in_flight.remove(&number).unwrap_or_default();
        for (mut records, number) in delivery.into_partitions().zip(numbers) {
            let Some(partition) = records.partitions().first().map(|part| part.partition.clone()) else { continue };
            let alone_after = self.policy.idle;
            // A topic partition that was revoked meanwhile has no parts: its next owner delivers
            // the records again.
            let Some(part) = self.parts.get_mut(&partition, number) else { continue };
            match route_rejections(transactions, part, &partition, &records) {
                Err(error) if error.code == RECORD_REJECTED => {
                    stopped.get_or_insert((error, Instant::now()));
                }
                routed => {
                    routed?;
                    match joins.filter(|_| records.pending_len() > 0) {
                        Some(joins) => {
                            records.release_decided();
                            part.bytes = records.bytes();
                            part.state = PartState::Returned { records, joins, alone: joins + alone_after };
                        }
                        None => {
                            part.bytes = 0;
                            part.state = PartState::Acknowledged;
                            self.timer.mark_pending();
                            self.recycle(records);
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Keeps the memory of acknowledged records.
    fn recycle(&mut self, records: Delivery) {
        for mut batch in records.into_batches() {
            if self.spare.len() < self.limits.deliveries {
                batch.reset();
                self.spare.push(batch);
            }
        }
    }

    /// Reports that the destination refused a part of a delivery for now.
    fn report(&mut self, transactions: &Transactions<'_>, error: &Error) {
        transactions.status.failed(&error.to_string());
        let is_known = |(at, code): (Instant, &str)| code == error.code && at.elapsed() < REPORT_INTERVAL;
        if !self.reported.is_some_and(is_known) {
            self.reported = Some((Instant::now(), error.code));
            let stage = transactions.status.name();
            tracing::warn!(stage, %error, "the destination refused some records for now; they are sent again");
        }
    }

    /// Commits the acknowledged prefix of each topic partition in one transaction.
    fn commit_prefixes(&mut self, transactions: &mut Transactions<'_>) -> Result<()> {
        self.timer.clear();
        let prefixes = self.parts.prefixes();
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
                for (partition, parts) in &prefixes {
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
            prefixes.values().flatten().for_each(|part| counters.add(&part.counters));
            trace.add_records(&counters, &transactions.stage.plan.name);
        }
        trace.finish(&outcome);
        outcome?;
        failpoint!("sink.acknowledge.after")?;
        let prefixes: Vec<(TopicPartition, usize)> =
            prefixes.into_iter().map(|(partition, parts)| (partition.clone(), parts.len())).collect();
        let mut oldest = None;
        for (partition, count) in prefixes {
            let committed = self.parts.drain(&partition, count);
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
}

/// Routes what the destination rejected of a part.
fn route_rejections(
    transactions: &mut Transactions<'_>,
    part: &mut Part,
    partition: &TopicPartition,
    delivery: &Delivery,
) -> Result<()> {
    let mut rejected = Rejections::default();
    delivery.rejections(0, &mut rejected);
    if rejected.is_empty() {
        return Ok(());
    }
    let plan = &transactions.stage.plan;
    let own = part.counters.of(&plan.name);
    own.out -= (rejected.len() as u64).min(own.out);
    let (dead_letters, counters) = (&mut part.dead_letters, &mut part.counters);
    let routed = dead_letters.route_rejections(&plan.name, "TASK_PUT", plan.on_error, &rejected, counters);
    if let Some(offset) = part.dead_letters.stopped_at() {
        transactions.rejected_at.get_or_insert((partition.clone(), offset));
    }
    routed
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
            None => self.buffers.entry(partition.clone()).or_insert(self.spare.pop().unwrap_or_default()),
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
        if self.in_flight.is_empty() {
            self.spare.clear();
        }
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
            if collected.is_err() || self.timer.is_due(0) || self.in_flight.is_empty() {
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
        self.spare.clear();
        Ok(())
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.buffers.remove(partition);
        self.parts.remove(partition);
    }

    fn memory_bytes(&self) -> usize {
        let buffers = self.buffers.values().chain(&self.spare);
        buffers.map(Batch::capacity).sum::<usize>() + self.parts.memory_bytes()
    }

    fn spill(&mut self) -> Result<()> {
        Ok(())
    }

    fn oldest(&self, partition: &TopicPartition) -> Option<Instant> {
        self.parts.oldest(partition)
    }

    fn wake_in(&self) -> Duration {
        let has_work = !self.in_flight.is_empty() || self.parts.has_waiting();
        let idle = if has_work { IN_FLIGHT_POLL } else { Duration::MAX };
        self.timer.until_due(idle).min(idle)
    }

    fn accepts_more(&self) -> bool {
        // One more delivery than can be in flight is kept ready. While the records that wait are of
        // topic partitions with a delivery in flight, those of others are needed.
        let ready = if self.in_flight.len() < self.limits.deliveries { self.limits.deliveries } else { 1 };
        (self.parts.waiting_bytes() as u64) < self.policy.bytes.saturating_mul(ready as u64)
    }
}
