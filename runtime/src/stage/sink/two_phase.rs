//! Two-phase commit of objects and staged loads (I2 a). The steps are those of
//! [`trunkline_connector::TwoPhaseSink`]; between them are transactions on `_trunkline.intents`:
//!
//! ```text
//! write .. | seal → [txn: planned] → prepare → [txn: prepared + offsets + dead letters]
//!          → commit → [txn: committed] | write ..
//! ```
//!
//! A crash before *prepared* leaves the offsets where they were: the next owner aborts the plan and
//! reads the records again. A crash after it leaves a prepared intent: the next owner commits it
//! first. Offsets and output of a topic partition move together or not at all.
//!
//! A replay that supersedes files does not commit: the transaction of the offsets records the
//! prepared output in a row that stays, and `replay::superseding` commits all of them at the end.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use trunkline_connector::{
    Batch, Buffered, ErasedTwoPhaseSink, Error, Rejections, Result, Schema, TopicPartition, failpoint,
};

use super::committer::{Assignment, Committer};
use super::partition_state::PartitionState;
use super::transactions::Transactions;
use crate::checkpoint::{Counters, IntentRecord, IntentState};
use crate::telemetry::Trace;

/// See the module's header.
pub(super) struct TwoPhaseCommitter {
    sink: Box<dyn ErasedTwoPhaseSink>,
    /// Prepared output is collected, and not committed here.
    collects: bool,
}

impl TwoPhaseCommitter {
    pub(super) fn new(sink: Box<dyn ErasedTwoPhaseSink>, collects: bool) -> Self {
        Self { sink, collects }
    }

    /// The steps from plans to prepared intents. Returns the committables.
    fn prepare(
        &mut self,
        transactions: &mut Transactions<'_>,
        due: &[TopicPartition],
        plans: &BTreeMap<TopicPartition, Value>,
        trace: &mut Trace,
    ) -> Result<BTreeMap<TopicPartition, Value>> {
        let mut committables = BTreeMap::new();
        if !plans.is_empty() {
            trace.step("record the plan");
            failpoint!("sink.seal.after")?;
            transactions.retry("recording the plan", |transactions| record_plans(transactions, plans))?;
            failpoint!("sink.seal.recorded")?;
            let payloads: Vec<Value> = plans.values().cloned().collect();
            let mut rejected = Rejections::default();
            trace.step("prepare");
            let prepared = transactions.retry("preparing output", |_| {
                rejected.clear();
                self.sink.prepare(&payloads, &mut rejected)
            })?;
            route_late_rejections(transactions, &rejected)?;
            failpoint!("sink.prepare.after")?;
            committables.extend(plans.keys().cloned().zip(prepared));
        }
        let mut types = BTreeMap::new();
        for partition in due {
            if let Some(inferred) = self.sink.inferred_types(&partition.topic)? {
                types.insert(partition.clone(), inferred);
            }
        }
        trace.step("record the intent");
        transactions.retry("recording the prepared intent", |transactions| {
            record_prepared(transactions, due, &committables, &types, self.collects)
        })?;
        Ok(if self.collects { BTreeMap::new() } else { committables })
    }

    /// Refuses to start without any state at a destination that has output of these topic
    /// partitions: all records would be written again.
    fn check_existing_output(&mut self, transactions: &mut Transactions<'_>, assigned: &[Assignment]) -> Result<()> {
        let is_stateless = |assignment: &&Assignment| assignment.committed < 0 && assignment.intent.is_none();
        let stateless: Vec<TopicPartition> =
            assigned.iter().filter(is_stateless).map(|assignment| assignment.partition.clone()).collect();
        if stateless.is_empty() || transactions.context.append {
            return Ok(());
        }
        let Some(output) =
            transactions.retry("looking for existing output", |_| self.sink.existing_output(&stateless))?
        else {
            return Ok(());
        };
        let message = format!(
            "{output} was written by this sink, but the cluster `{}` on these brokers has no state of it, so all records would be \
             written again. Use the brokers, `--data` and `--cluster` of the earlier runs, or `--append` to write next to the \
             existing output",
            transactions.context.names.cluster
        );
        Err(Error::config("sink.output_exists", message))
    }

    /// Passes the types that earlier tasks inferred to the sink.
    fn restore_types(&mut self, transactions: &mut Transactions<'_>, assigned: &[Assignment]) -> Result<()> {
        let stored = transactions.retry("reading inferred types", |transactions| transactions.load_types())?;
        let topics: BTreeSet<&Arc<str>> = assigned.iter().map(|assignment| &assignment.partition.topic).collect();
        for (topic, types) in &stored {
            if let Some(topic) = topics.get(topic) {
                self.sink.restore_types(topic, types);
            }
        }
        Ok(())
    }

    /// Makes prepared output visible and records that it is.
    fn commit_prepared(
        &mut self,
        transactions: &mut Transactions<'_>,
        committables: &BTreeMap<TopicPartition, Value>,
        trace: &mut Trace,
    ) -> Result<()> {
        if committables.is_empty() {
            return Ok(());
        }
        let payloads: Vec<Value> = committables.values().cloned().collect();
        trace.step("commit output");
        transactions.retry("committing output", |_| self.sink.commit(&payloads))?;
        failpoint!("sink.commit.after")?;
        trace.step("record the commit");
        transactions.retry("recording the commit", |transactions| {
            transactions.run(|transactions| {
                failpoint!("sink.done.before")?;
                let mut offsets = Vec::new();
                for partition in committables.keys() {
                    let Some(row) = transactions.partitions.get(partition).map(|state| state.row(None)) else {
                        continue;
                    };
                    transactions.write_intent(partition, &row)?;
                    offsets.push((partition.clone(), row.next));
                }
                Ok(offsets)
            })
        })?;
        failpoint!("sink.done.after")
    }

    /// After a failed `prepare` no other task may know the plans: a task that was fenced has its
    /// rows overwritten. A plan whose intent may have been recorded in spite of the error is left
    /// to the next owner.
    fn abort_plans(&mut self, transactions: &Transactions<'_>, plans: &BTreeMap<TopicPartition, Value>) {
        if transactions.commit_in_doubt() {
            return;
        }
        for (partition, plan) in plans {
            if let Err(error) = self.sink.abort(plan) {
                tracing::warn!(stage = transactions.status.name(), %partition, %error, "a plan could not be aborted");
            }
        }
    }

    /// Aborts the plans and collects the prepared intents of earlier owners. Returns the rows to
    /// settle.
    fn settle<'r>(
        &mut self,
        transactions: &mut Transactions<'_>,
        assigned: &'r [Assignment],
    ) -> Result<Vec<(&'r Assignment, &'r IntentRecord)>> {
        let mut settled = Vec::new();
        let staged = match self.collects {
            true => transactions.retry("reading staged output", Transactions::load_staged)?,
            false => Vec::new(),
        };
        for assignment in assigned {
            let row = assignment.intent.as_ref();
            let own_staged = staged.iter().filter(|(partition, _)| *partition == assignment.partition);
            let mut pending: Vec<Value> = own_staged.map(|(_, committable)| committable.clone()).collect();
            match row.map(|row| (row.state, row)) {
                Some((IntentState::Planned, row)) => {
                    failpoint!("sink.abort.before")?;
                    transactions.retry("aborting an unfinished plan", |_| self.sink.abort(&row.payload))?;
                    failpoint!("sink.abort.after")?;
                    settled.push((assignment, row));
                }
                Some((IntentState::Prepared, row)) => {
                    pending.push(row.payload.clone());
                    settled.push((assignment, row));
                }
                Some((IntentState::Committed, _)) | None => {}
            }
            transactions
                .retry("removing what earlier tasks left", |_| self.sink.recover(&assignment.partition, &pending))?;
        }
        Ok(settled)
    }

    /// All steps of the commit of some topic partitions.
    fn commit_due(
        &mut self,
        transactions: &mut Transactions<'_>,
        due: &[TopicPartition],
        trace: &mut Trace,
    ) -> Result<()> {
        let begun = Instant::now();
        trace.add("trunkline.partitions", due.len() as u64);
        trace.step("seal");
        failpoint!("sink.seal.before")?;
        let mut plans = BTreeMap::new();
        for partition in due {
            // Not retried: output that could not be completed is lost, and is built again from the
            // committed offset.
            if let Some(plan) = self.sink.seal(partition).map_err(|error| error.context("sealing output"))? {
                plans.insert(partition.clone(), plan);
            }
            if let Some(state) = transactions.partitions.get_mut(partition) {
                state.mark_sealed();
            }
        }
        let committables = match self.prepare(transactions, due, &plans, trace) {
            Ok(committables) => committables,
            Err(error) => {
                self.abort_plans(transactions, &plans);
                return Err(error);
            }
        };
        failpoint!("sink.intent.after")?;
        self.commit_prepared(transactions, &committables, trace)?;
        let (mut committed, mut oldest) = (Counters::default(), None);
        for partition in due {
            let Some(state) = transactions.partitions.get_mut(partition) else { continue };
            oldest = oldest.into_iter().chain(state.oldest).min();
            let pending = std::mem::take(&mut state.pending);
            state.totals.add(&pending);
            state.dead_letters.clear();
            state.committed = state.next;
            state.clear_pending();
            transactions.status.committed(&pending);
            committed.add(&pending);
        }
        trace.add_records(&committed, &transactions.stage.plan.name);
        transactions.status.commit_took(begun.elapsed());
        oldest.into_iter().for_each(|oldest| transactions.status.arrived_after(oldest.elapsed()));
        Ok(())
    }
}

impl Committer for TwoPhaseCommitter {
    fn assign(&mut self, transactions: &mut Transactions<'_>, assigned: &[Assignment]) -> Result<usize> {
        self.check_existing_output(transactions, assigned)?;
        let settled = self.settle(transactions, assigned)?;
        self.restore_types(transactions, assigned)?;
        let prepared: Vec<Value> = settled
            .iter()
            .filter(|(_, row)| row.state == IntentState::Prepared)
            .map(|(_, row)| row.payload.clone())
            .collect();
        if !prepared.is_empty() {
            failpoint!("sink.recover.before")?;
            transactions.retry("committing what an earlier task prepared", |_| self.sink.commit(&prepared))?;
            failpoint!("sink.recover.after")?;
        }
        if !settled.is_empty() {
            failpoint!("sink.settle.before")?;
            transactions.retry("recording the recovery", |transactions| {
                transactions.run(|transactions| {
                    for (assignment, row) in &settled {
                        let row =
                            IntentRecord { state: IntentState::Committed, payload: Value::Null, ..(*row).clone() };
                        transactions.write_intent(&assignment.partition, &row)?;
                    }
                    let offset = |(assignment, row): &(&Assignment, &IntentRecord)| {
                        (assignment.partition.clone(), assignment.current_offset(row))
                    };
                    Ok(settled.iter().map(offset).collect())
                })
            })?;
            failpoint!("sink.settle.after")?;
        }
        Ok(settled.len())
    }

    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()> {
        self.sink.write(partition, records, rejected)
    }

    fn buffered(&self, partition: &TopicPartition) -> Buffered {
        self.sink.buffered(partition)
    }

    fn commit(&mut self, transactions: &mut Transactions<'_>, due: &[TopicPartition]) -> Result<()> {
        if due.is_empty() {
            return Ok(());
        }
        let mut trace = transactions.context.tracer.begin("commit", transactions.status);
        let outcome = self.commit_due(transactions, due, &mut trace);
        trace.finish(&outcome);
        outcome
    }

    fn flush(&mut self, transactions: &mut Transactions<'_>) -> Result<()> {
        let pending = transactions.pending_partitions();
        self.commit(transactions, &pending)
    }

    fn revoke(&mut self, partition: &TopicPartition) {
        self.sink.discard(partition);
    }

    fn memory_bytes(&self) -> usize {
        self.sink.memory_bytes()
    }

    fn spill(&mut self) -> Result<()> {
        self.sink.spill()
    }
}

fn record_plans(transactions: &mut Transactions<'_>, plans: &BTreeMap<TopicPartition, Value>) -> Result<()> {
    transactions.run(|transactions| {
        let mut offsets = Vec::new();
        for (partition, plan) in plans {
            let Some(state) = transactions.partitions.get(partition) else { continue };
            let row = IntentRecord {
                state: IntentState::Planned,
                payload: plan.clone(),
                first: state.first,
                next: state.first,
                counters: state.totals.clone(),
                sink_state: None,
            };
            offsets.push((partition.clone(), state.current_offset()));
            transactions.write_intent(partition, &row)?;
        }
        Ok(offsets)
    })
}

fn record_prepared(
    transactions: &mut Transactions<'_>,
    due: &[TopicPartition],
    committables: &BTreeMap<TopicPartition, Value>,
    types: &BTreeMap<TopicPartition, Schema>,
    collects: bool,
) -> Result<()> {
    transactions.run(|transactions| {
        failpoint!("sink.intent.before")?;
        for (partition, types) in types {
            transactions.write_types(partition, types)?;
        }
        let mut offsets = Vec::new();
        for partition in due {
            let committable = committables.get(partition);
            let row = |state: &PartitionState| state.row(committable.filter(|_| !collects));
            let Some(row) = transactions.partitions.get(partition).map(row) else { continue };
            if let Some(committable) = committable.filter(|_| collects) {
                transactions.write_staged(partition, row.first, committable)?;
            }
            transactions.write_intent(partition, &row)?;
            transactions.write_pending_dead_letters(partition)?;
            offsets.push((partition.clone(), row.next));
        }
        failpoint!("sink.intent.written")?;
        Ok(offsets)
    })
}

/// Routes the records that the destination rejected during `prepare`, which were counted as
/// written, by their topic partition.
fn route_late_rejections(transactions: &mut Transactions<'_>, rejected: &Rejections) -> Result<()> {
    let plan = &transactions.stage.plan;
    if rejected.is_empty() {
        return Ok(());
    }
    for (partition, state) in &mut transactions.partitions {
        let mut own_rejected = Rejections::default();
        for (record, reason) in rejected.iter() {
            if record.entry().partition == partition.partition && record.topic() == partition.topic.as_ref() {
                own_rejected.push(record, reason.clone());
            }
        }
        let own = state.pending.of(&plan.name);
        own.out -= (own_rejected.len() as u64).min(own.out);
        let (dead_letters, counters) = (&mut state.dead_letters, &mut state.pending);
        let routed = dead_letters.route_rejections(&plan.name, "TASK_PUT", plan.on_error, &own_rejected, counters);
        if let Some(offset) = state.dead_letters.stopped_at() {
            transactions.rejected_at = Some((partition.clone(), offset));
        }
        routed?;
    }
    Ok(())
}
