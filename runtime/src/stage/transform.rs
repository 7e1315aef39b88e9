//! A materialised transform's task: topic to topic. What it produces, its dead letters, its
//! counters, the changes of its state and the consumer offsets are one transaction (I2 a),
//! committed every `commit_interval`.
//!
//! The state of a topic partition is restored when the partition is assigned, and dropped when it
//! is revoked; see `checkpoint/transform_state.rs`. Committed changes are copied to disk every few
//! seconds, so that the next start on this machine reads only the rest of the changelog.
//!
//! The timers of a plugin are part of its state. They fire with the records; with the option
//! `timers.idle`, also in a partition that gets none. See `docs/adr/032-timers.md`.
//!
//! The table of a lookup is read before the first record, and followed afterwards; see
//! `lookup_table.rs`.
//!
//! If a partition is revoked while a transaction is open, the transaction is aborted, and the other
//! partitions are read again from their committed offsets. A commit would not be fenced, because
//! this member already has the new generation, and the next owner has started from the old offset.

mod idle;
mod states;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Error, RecordRef, Reservation, Result, Schema, TopicPartition, failpoint};
use trunkline_transform_host::StateStore;

use super::bounds::Bounds;
use super::careful::{Mark, RECORD_REJECTED, run_until_rejection, single};
use super::chain::RunningTransform;
use super::commit_timer::CommitTimer;
use super::dead_letters::{DeadLetters, RunName};
use super::error_limits::ErrorLimits;
use super::first_records;
use super::lag::{LagReport, Uncommitted, written_at};
use super::lookup_table::LookupTable;
use super::output::Topics;
use super::pace::Throttle;
use super::repeated_inputs::Reader;
use super::routes::Routes;
use super::status::StageStatus;
use super::stop_signal::StopSignal;
use super::supervise::Stage;
use super::upstream::{Drain, Upstream};
use super::worker_context::WorkerContext;
use crate::checkpoint::{Counters, Positions, StateChangelog};
use crate::kafka::topic_reader::PartitionScanner;
use crate::kafka::{FillLimits, GroupConsumer, PartitionBatches, RebalanceEvent, TransactionalProducer};
use crate::plan::TransformPlan;

/// The longest wait for records while there is something else to do.
const POLL: Duration = Duration::from_millis(100);

/// The longest wait for records otherwise. A request to stop ends it.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// Records of one poll.
const POLL_RECORDS: usize = 10_000;

/// A transform with its own topics: one task of it.
pub struct TransformStage {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's dead letter topic.
    pub dead_letters: String,
    /// The transform.
    pub plan: TransformPlan,
    /// Number of this task in this worker.
    pub task: u32,
    /// The stages that write to its inputs.
    pub upstream: Upstream,
    /// The stages that write its table.
    pub table_upstream: Upstream,
    /// The records that it reads, if it is a replay.
    pub bounds: Option<Bounds>,
}

impl Stage for TransformStage {
    fn run(&self, context: &WorkerContext, stop: &StopSignal, status: &StageStatus) -> Result<()> {
        run_until_rejection(stop, |one_by_one| self.run_once(context, stop, status, one_by_one))
    }
}

impl TransformStage {
    /// Runs from the committed offsets. `one_by_one`: each record is processed separately.
    fn run_once(
        &self,
        context: &WorkerContext,
        stop: &StopSignal,
        status: &StageStatus,
        one_by_one: bool,
    ) -> Result<()> {
        context.names.check_group(&self.pipeline, &self.plan.name)?;
        let component = context.names.component(&self.pipeline, &self.plan.name);
        let member = context.names.member(&self.pipeline, &self.plan.name, self.task);
        let producer = TransactionalProducer::new(&context.cluster, &member, context.share.client_buffer_bytes)?;
        let routes = Routes::start(&self.plan.inputs, Some(context.schemas.clone()))?;
        let own = RunningTransform::start(&self.plan.step, &Some(context.schemas.clone()))?;
        if !self.wait_for_table(context, stop) {
            return Ok(());
        }
        let table = match &self.plan.table {
            Some(table) => Some(LookupTable::load(&context.cluster, table).map_err(|error| self.in_transform(error))?),
            None => None,
        };
        let (cluster, buffer_bytes) = (&context.cluster, context.share.client_buffer_bytes);
        let consumer = match &self.bounds {
            Some(bounds) => GroupConsumer::join_strictly(cluster, &component, &member, &bounds.topics(), buffer_bytes)?,
            None => GroupConsumer::join(cluster, &component, &member, &routes.subscription(), buffer_bytes)?,
        };
        let mut task = TransformTask {
            stage: self,
            context,
            status,
            changelog: StateChangelog::new(&context.cluster, &component),
            component,
            producer,
            consumer,
            routes,
            own,
            table,
            topics: Topics::new(context, self.plan.partitions).written_by(
                context,
                (&self.pipeline, &self.plan.name),
                &self.dead_letters,
            ),
            partitions: BTreeMap::new(),
            memory: context.budget.empty(),
            last_copy: Instant::now(),
            restored: (Duration::ZERO, 0),
            commit_timer: CommitTimer::new(context.commit_interval),
            one_by_one,
            delivered: 0,
            schemas: Vec::new(),
            error_limits: ErrorLimits::new(&self.plan.name, self.plan.on_error, &[], &self.plan.inputs),
            throttle: self.bounds.as_ref().map(|bounds| Throttle::new(bounds.pace.clone())),
            idle_check: Instant::now(),
        };
        if self.plan.state.is_some_and(|plan| plan.idle.is_some()) {
            // Timers fire without records only where there are none, not even in open transactions.
            task.consumer.limit_watermark_age(idle::CHECK_INTERVAL);
        }
        let stops_wait = stop.on_set(task.consumer.waker());
        let outcome = task.run(stop).and_then(|()| task.close_states());
        drop(stops_wait);
        if outcome.is_ok() {
            task.consumer.leave();
        } else {
            // Best effort: the next run aborts the transaction too, but consumers would wait until
            // then.
            let _ = task.producer.abort();
        }
        outcome
    }

    /// In a run that ends when its inputs are processed, the table first gets all rows of the run.
    /// `false`: the stage was asked to stop.
    fn wait_for_table(&self, context: &WorkerContext, stop: &StopSignal) -> bool {
        while context.until_idle && !self.table_upstream.is_over() {
            if stop.wait(POLL) {
                return false;
            }
        }
        true
    }

    fn in_transform(&self, error: Error) -> Error {
        error.context(format!("transform `{}`", self.plan.name))
    }
}

struct PartitionState {
    positions: Positions,
    pending: Counters,
    dead_letters: DeadLetters,
    /// The committed offset; -1 if there is none.
    committed: i64,
    /// The offset after the last record of the open transaction.
    next: Option<i64>,
    /// When its first record was written to its topic.
    oldest: Option<Instant>,
    /// The plugin's state, if it keeps any.
    state: Option<StateStore>,
    /// When the last record was read.
    last_record: Instant,
}

struct TransformTask<'a> {
    stage: &'a TransformStage,
    context: &'a WorkerContext,
    status: &'a StageStatus,
    changelog: StateChangelog,
    component: String,
    producer: TransactionalProducer,
    consumer: GroupConsumer,
    routes: Routes,
    own: RunningTransform,
    /// The table of a lookup.
    table: Option<LookupTable>,
    topics: Topics,
    partitions: BTreeMap<TopicPartition, PartitionState>,
    /// The part of the byte budget for the caches of states (I6).
    memory: Reservation,
    /// When states were last copied to disk.
    last_copy: Instant,
    /// The time and the records of all restores of state.
    restored: (Duration, u64),
    commit_timer: CommitTimer,
    one_by_one: bool,
    /// The records that the last batch became and that were sent.
    delivered: u64,
    /// Schemas that are published in the open transaction.
    schemas: Vec<Arc<Schema>>,
    error_limits: ErrorLimits,
    /// Limits the speed of a replay.
    throttle: Option<Throttle>,
    /// When partitions were last checked for being idle.
    idle_check: Instant,
}

/// Where the transform's records go.
struct Output<'a> {
    plan: &'a TransformPlan,
    producer: &'a mut TransactionalProducer,
    topics: &'a mut Topics,
    /// Sends all records of a batch or none.
    atomic: bool,
    /// Number of records that were sent.
    delivered: &'a mut u64,
}

impl Output<'_> {
    /// Sends records to the topics of their ports.
    fn send(&mut self, out: &mut Batch, counters: &mut Counters, dead_letters: &mut DeadLetters) -> Result<()> {
        let plan = self.plan;
        let topic_of = |record: RecordRef<'_>| {
            let port = record.entry().port;
            plan.port_topics.iter().find(|(known, _)| *known == port).map_or(&plan.topic, |(_, topic)| topic)
        };
        let rejected = self.topics.send(self.producer, out, self.atomic, topic_of, |record| record.timestamp())?;
        if !self.atomic || rejected.is_empty() {
            *self.delivered += out.len() as u64;
        }
        let own = counters.of(&plan.name);
        own.out -= (rejected.len() as u64).min(own.out);
        dead_letters.route_rejections(&plan.name, "KAFKA_PRODUCE", plan.on_error, &rejected, counters)
    }
}

impl TransformTask<'_> {
    fn run(&mut self, stop: &StopSignal) -> Result<()> {
        let mut batches = PartitionBatches::default();
        let mut drain = Drain::new(&self.context.cluster, &self.stage.upstream);
        if let Some(bounds) = &self.stage.bounds {
            drain = drain.with_targets(bounds.ends());
        }
        let mut lag = LagReport::new();
        loop {
            if stop.is_set() {
                return self.commit_and_copy();
            }
            let partitions = self.partitions.iter();
            let partitions = partitions.map(|(partition, state)| Uncommitted {
                partition,
                committed: state.committed,
                is_pending: state.next.is_some(),
                oldest: state.oldest,
            });
            lag.update(self.status, &self.consumer, partitions);
            let polled = self.poll(&mut batches)?;
            self.rebalance(&mut batches)?;
            let records = match &self.stage.bounds {
                Some(bounds) => bounds.apply(&mut batches, &self.consumer, self.throttle.as_mut())?,
                None => polled.unwrap_or(0),
            };
            if let Some(table) = &mut self.table {
                table.update().map_err(|error| self.stage.in_transform(error))?;
            }
            for (partition, batch) in batches.iter_mut() {
                if let Err(error) = self.routes.chain(&partition.topic)?.ready().and_then(|()| self.own.ready()) {
                    self.commit()?;
                    return Err(error);
                }
                let (bytes, begun) = (batch.bytes(), Instant::now());
                if self.one_by_one {
                    self.process_one_by_one(partition, batch)?;
                } else {
                    self.process(partition, batch)?;
                }
                self.status.processed(bytes, begun.elapsed());
                self.own.report(self.status);
                self.routes.chain(&partition.topic)?.report(self.status);
                batch.clear();
            }
            self.fire_idle_timers()?;
            let changed: usize = self.stores().map(StateStore::changed_bytes).sum();
            if self.is_copy_due() {
                self.commit_and_copy()?;
            } else if self.commit_timer.is_due(self.producer.transaction_bytes() + changed) {
                self.commit()?;
            }
            if self.context.until_idle && records == 0 && polled.is_some() && self.stage.upstream.is_over() {
                self.commit()?;
                if drain.is_complete(&self.consumer)? {
                    return self.commit_and_copy();
                }
            }
        }
    }

    /// It has no table, no state and no end: it has nothing to do until records arrive, or a commit
    /// is due.
    fn is_idle(&self) -> bool {
        let has_end = self.context.until_idle || self.stage.bounds.is_some();
        !has_end && self.table.is_none() && self.stores().next().is_none()
    }

    /// Waits for records until the next commit is due. `None` if a replay has to wait.
    fn poll(&mut self, batches: &mut PartitionBatches) -> Result<Option<usize>> {
        let longest = if self.is_idle() { IDLE_WAIT } else { POLL };
        let wait = self.commit_timer.until_due(longest).min(longest);
        let allowance = self.throttle.as_ref().map_or(POLL_RECORDS, Throttle::allowance);
        if allowance == 0 {
            let turn = self.throttle.as_ref().map_or(Duration::MAX, Throttle::longest_wait);
            self.consumer.keep_alive(wait.min(turn))?;
            return Ok(None);
        }
        let records = POLL_RECORDS.min(allowance);
        self.consumer.fill(&FillLimits { records, bytes: self.context.share.batch_bytes, wait }, batches).map(Some)
    }

    /// Processes each record separately. If one is rejected and stops the stage, the records before
    /// it are committed.
    fn process_one_by_one(&mut self, partition: &TopicPartition, batch: &Batch) -> Result<()> {
        for record in batch.iter() {
            let Some(state) = self.partitions.get_mut(partition) else { return Ok(()) };
            let (mark, next) = (Mark::of(&state.pending, &state.dead_letters), state.next);
            let savepoint = state.state.as_mut().map(StateStore::savepoint);
            let outcome = self.process(partition, &mut single(record));
            if let Err(error) = &outcome
                && error.code == RECORD_REJECTED
                && let Some(state) = self.partitions.get_mut(partition)
                && mark.undo(self.delivered, &mut state.pending, &state.dead_letters)
            {
                state.next = next;
                if let (Some(store), Some(savepoint)) = (&mut state.state, savepoint) {
                    store.rollback_to(savepoint);
                }
                self.commit()?;
            }
            outcome?;
            let store = self.partitions.get_mut(partition).and_then(|state| state.state.as_mut());
            if let (Some(store), Some(savepoint)) = (store, savepoint) {
                store.release(savepoint);
            }
        }
        Ok(())
    }

    fn process(&mut self, partition: &TopicPartition, batch: &mut Batch) -> Result<()> {
        self.delivered = 0;
        let Some(state) = self.partitions.get_mut(partition) else { return Ok(()) };
        let Some(last) = batch.entries().last() else { return Ok(()) };
        state.oldest.get_or_insert_with(|| written_at(batch.get(0)));
        state.next = Some(last.offset + 1);
        state.last_record = Instant::now();
        if let Some(bounds) = &self.stage.bounds {
            bounds.select(partition, batch);
        }
        self.commit_timer.mark_pending();
        failpoint!("transform.produce.before")?;
        let chain = self.routes.chain(&partition.topic)?;
        let own = &mut self.own;
        let mut output = Output {
            plan: &self.stage.plan,
            producer: &mut self.producer,
            topics: &mut self.topics,
            atomic: self.one_by_one,
            delivered: &mut self.delivered,
        };
        let mut store = self.table.as_mut().map(LookupTable::store).or(state.state.as_mut());
        chain.run(batch, &mut state.pending, &mut state.dead_letters, &mut |out, counters, dead_letters| {
            own.process(out, counters, dead_letters, store.as_deref_mut())?;
            output.send(out, counters, dead_letters)
        })?;
        self.publish_schemas()?;
        failpoint!("transform.produce.after")
    }

    /// Publishes the derived schemas that records of the open transaction may name.
    fn publish_schemas(&mut self) -> Result<()> {
        let mut derived = self.routes.derived_schemas();
        derived.extend_from_slice(self.own.derived_schemas());
        self.context.schemas.publish_all(&mut self.producer, derived, &mut self.schemas)
    }

    fn rebalance(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        for event in self.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Revoked(partitions) => {
                    let mut stores = Vec::new();
                    for partition in &partitions {
                        batches.remove(partition);
                        stores.extend(self.partitions.remove(partition).and_then(|state| state.state));
                    }
                    if self.producer.in_transaction() {
                        self.abort_transaction(batches)?;
                    }
                    // The copies have what this member committed while it owned the partitions.
                    stores
                        .into_iter()
                        .try_for_each(|store| store.close().map_err(|error| self.stage.in_transform(error)))?;
                }
                RebalanceEvent::Assigned(partitions) => {
                    let committed =
                        if partitions.is_empty() { Vec::new() } else { self.consumer.committed(&partitions)? };
                    self.check_inputs(&partitions, &committed)?;
                    // The same client restores the state of all partitions.
                    let mut scanner = None;
                    let facts = match self.stage.plan.state {
                        Some(_) => Some(self.changelog.facts(&self.context.admin)?),
                        None => None,
                    };
                    for (partition, committed) in partitions.into_iter().zip(committed) {
                        let task = format!("{}/{}/{}", self.component, partition.topic, partition.partition);
                        let positions = Positions::load(&self.context.cluster, &self.component, &task)?;
                        let state = match self.stage.plan.state.zip(facts.as_ref()) {
                            Some((plan, facts)) => {
                                let scanner =
                                    scanner.get_or_insert_with(|| PartitionScanner::new(&self.context.cluster));
                                Some(self.restore_state(scanner, facts, &partition, plan.max_bytes)?)
                            }
                            None => None,
                        };
                        let state = PartitionState {
                            positions,
                            pending: Counters::default(),
                            dead_letters: DeadLetters::default(),
                            committed,
                            next: None,
                            oldest: None,
                            state,
                            last_record: Instant::now(),
                        };
                        self.partitions.insert(partition, state);
                    }
                    if scanner.is_some() {
                        self.show_states();
                    }
                    failpoint!("transform.assign.after")?;
                }
            }
        }
        Ok(())
    }

    /// Refuses to process records a second time.
    fn check_inputs(&self, partitions: &[TopicPartition], committed: &[i64]) -> Result<()> {
        let is_new = |(_, committed): &(&TopicPartition, &i64)| **committed < 0;
        let new = partitions.iter().zip(committed).filter(is_new);
        let new: Vec<TopicPartition> = new.map(|(partition, _)| partition.clone()).collect();
        if new.is_empty() || self.context.append || self.stage.bounds.is_some() {
            return Ok(());
        }
        let known = Positions::topics(&self.context.cluster, &self.component)?;
        let TransformStage { pipeline, plan, upstream, .. } = self.stage;
        Reader { pipeline, component: &plan.name, inputs: &plan.inputs, upstream }.check(&known, &new)
    }

    fn abort_transaction(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        failpoint!("transform.abort.before")?;
        self.producer.abort()?;
        self.schemas.clear();
        failpoint!("transform.abort.after")?;
        self.commit_timer.clear();
        for (partition, state) in &mut self.partitions {
            state.pending = Counters::default();
            state.oldest = None;
            state.dead_letters.clear();
            if let Some(store) = &mut state.state {
                store.abort();
            }
            if state.next.take().is_some() {
                // Its batch holds records after the aborted ones. The batches of other partitions
                // are still to be processed.
                batches.remove(partition);
                self.consumer.seek(partition, state.committed);
            }
        }
        if self.stage.bounds.is_some() {
            // Complete partitions may have to be read again.
            self.consumer.resume();
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.commit_timer.clear();
        let begun = Instant::now();
        let moved: Vec<&PartitionState> = self.partitions.values().filter(|state| state.next.is_some()).collect();
        if moved.is_empty() {
            return Ok(());
        }
        let mut pending = Counters::default();
        moved.iter().for_each(|state| pending.add(&state.pending));
        first_records::check(self.status, &pending, self.context.max_initial_failures)?;
        self.error_limits.check(self.status, &pending)?;
        let mut trace = self.context.tracer.begin("commit", self.status);
        trace.add_records(&pending, &self.stage.plan.name);
        trace.add("trunkline.partitions", moved.len() as u64);
        let outcome = self.commit_pending(begun);
        trace.finish(&outcome);
        outcome
    }

    fn commit_pending(&mut self, begun: Instant) -> Result<()> {
        failpoint!("transform.checkpoint.before")?;
        let moved: Vec<(&TopicPartition, &mut PartitionState)> =
            self.partitions.iter_mut().filter(|(_, state)| state.next.is_some()).collect();
        let dead_letter_partitions = self.topics.partitions(&self.stage.dead_letters)?;
        let replay = self.stage.bounds.as_ref().map(|bounds| bounds.run.as_str());
        let run = RunName { pipeline: &self.stage.pipeline, replay };
        let mut offsets = Vec::with_capacity(moved.len());
        let mut oldest = None;
        let mut committed = Counters::default();
        for (partition, state) in moved {
            state.dead_letters.write(&mut self.producer, &run, &self.stage.dead_letters, dead_letter_partitions)?;
            state.dead_letters.clear();
            committed.add(&state.pending);
            state.positions.counters.add(&std::mem::take(&mut state.pending));
            state.positions.write(&mut self.producer, &[], &state.positions.counters)?;
            if let Some(store) = &mut state.state {
                self.changelog.write(&mut self.producer, partition, store)?;
                store.commit();
            }
            if let Some(next) = state.next.take() {
                state.committed = next;
                offsets.push((partition, next));
            }
            oldest = oldest.into_iter().chain(state.oldest.take()).min();
        }
        // A failure ends this run of the stage; the next run reads the committed state.
        failpoint!("transform.checkpoint.after")?;
        let group = self.consumer.metadata()?;
        self.producer.send_offsets(offsets, &group)?;
        let bytes = self.producer.transaction_bytes();
        self.producer.commit()?;
        self.status.sent(bytes);
        oldest.into_iter().for_each(|oldest| self.status.arrived_after(oldest.elapsed()));
        self.context.schemas.committed(&std::mem::take(&mut self.schemas));
        self.commit_timer.committed(begun);
        self.status.commit_took(begun.elapsed());
        failpoint!("transform.commit.after")?;
        self.status.committed(&committed);
        self.show_states();
        Ok(())
    }
}
