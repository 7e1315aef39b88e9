//! A materialised transform's task: topic to topic. What it produces, its dead letters, its
//! counters, the changes of its state and the consumer offsets are one transaction (I2 a),
//! committed every `commit_interval`.
//!
//! The state of a topic partition is restored when the partition is assigned, and dropped when it
//! is revoked; see `checkpoint/transform_state.rs`. Committed changes are copied to disk every few
//! seconds, so that the next start on this machine reads only the rest of the changelog.
//!
//! The table of a lookup is read before the first record, and followed afterwards; see
//! `lookup_table.rs`.
//!
//! If a partition is revoked while a transaction is open, the transaction is aborted, and the other
//! partitions are read again from their committed offsets. A commit would not be fenced, because
//! this member already has the new generation, and the next owner has started from the old offset.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Error, RecordRef, Reservation, Result, Schema, TopicPartition, failpoint};
use trunkline_transform_host::StateStore;

use super::bounds::{Bounds, Throttle};
use super::careful::{Mark, RECORD_REJECTED, run_until_rejection, single};
use super::chain::RunningTransform;
use super::commit_timer::CommitTimer;
use super::dead_letters::{DeadLetters, RunName};
use super::error_limits::ErrorLimits;
use super::first_records;
use super::lag::LagReport;
use super::lookup_table::LookupTable;
use super::output::Topics;
use super::routes::Routes;
use super::status::{StageStatus, StateFigures};
use super::stop_signal::StopSignal;
use super::supervise::Stage;
use super::upstream::{Drain, Upstream};
use super::worker_context::WorkerContext;
use crate::checkpoint::{CHECKPOINTS, ChangelogFacts, Counters, Positions, Restored, StateChangelog, now_ms};
use crate::kafka::topic_reader::PartitionScanner;
use crate::kafka::{FillLimits, GroupConsumer, PartitionBatches, RebalanceEvent, TransactionalProducer};
use crate::plan::TransformPlan;

const POLL: Duration = Duration::from_millis(100);

/// Time between two copies of state to disk, while it changes. A worker that is killed restores at
/// most the changes of this time.
const COPY_INTERVAL: Duration = Duration::from_secs(10);

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
        let producer = TransactionalProducer::new(
            &context.cluster,
            &member,
            &context.cluster.own_topic(CHECKPOINTS),
            context.share.client_buffer_bytes,
        )?;
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
            throttle: self.bounds.as_ref().and_then(|bounds| bounds.rate).map(Throttle::new),
        };
        let outcome = task.run(stop).and_then(|()| task.close_states());
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
    /// The plugin's state, if it keeps any.
    state: Option<StateStore>,
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
            let partitions = partitions.map(|(partition, state)| (partition, state.committed, state.next.is_some()));
            lag.update(self.status, &self.consumer, partitions);
            let records = self.poll(&mut batches)?;
            self.rebalance(&mut batches)?;
            let records = match &self.stage.bounds {
                Some(bounds) => bounds.apply(&mut batches, &self.consumer, self.throttle.as_mut())?,
                None => records,
            };
            if let Some(table) = &mut self.table {
                table.update().map_err(|error| self.stage.in_transform(error))?;
            }
            for (partition, batch) in batches.iter_mut() {
                if let Err(error) = self.routes.chain(&partition.topic)?.ready().and_then(|()| self.own.ready()) {
                    self.commit()?;
                    return Err(error);
                }
                if self.one_by_one {
                    self.process_one_by_one(partition, batch)?;
                } else {
                    self.process(partition, batch)?;
                }
                batch.clear();
            }
            let changed: usize = self.stores().map(StateStore::changed_bytes).sum();
            if self.is_copy_due() {
                self.commit_and_copy()?;
            } else if self.commit_timer.is_due(self.producer.transaction_bytes() + changed) {
                self.commit()?;
            }
            let is_throttled = self.throttle.as_ref().is_some_and(|throttle| throttle.allowance() == 0);
            if self.context.until_idle && records == 0 && !is_throttled && self.stage.upstream.is_over() {
                self.commit()?;
                if drain.is_complete(&self.consumer)? {
                    return self.commit_and_copy();
                }
            }
        }
    }

    /// Waits for records until the next commit is due.
    fn poll(&mut self, batches: &mut PartitionBatches) -> Result<usize> {
        let wait = self.commit_timer.until_due(POLL).min(POLL);
        let allowance = self.throttle.as_ref().map_or(POLL_RECORDS, Throttle::allowance);
        if allowance == 0 {
            self.consumer.keep_alive(wait)?;
            return Ok(0);
        }
        let records = POLL_RECORDS.min(allowance);
        self.consumer.fill(&FillLimits { records, bytes: self.context.share.batch_bytes, wait }, batches)
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
        state.next = Some(last.offset + 1);
        self.commit_timer.mark_pending();
        failpoint!("transform.produce.before")?;
        let chain = self.routes.chain(&partition.topic)?;
        let (own, producer, topics, plan) = (&mut self.own, &mut self.producer, &mut self.topics, &self.stage.plan);
        let (delivered, atomic) = (&mut self.delivered, self.one_by_one);
        let mut store = self.table.as_mut().map(LookupTable::store).or(state.state.as_mut());
        chain.run(batch, &mut state.pending, &mut state.dead_letters, &mut |out, counters, dead_letters| {
            own.process(out, counters, dead_letters, store.as_deref_mut())?;
            let port_topics = &plan.port_topics;
            let topic_of = |record: RecordRef<'_>| {
                let port = record.entry().port;
                port_topics.iter().find(|(known, _)| *known == port).map_or(&plan.topic, |(_, topic)| topic)
            };
            let rejected = topics.send(producer, out, atomic, topic_of, |record| record.timestamp())?;
            if !atomic || rejected.is_empty() {
                *delivered += out.len() as u64;
            }
            let own = counters.of(&plan.name);
            own.out -= (rejected.len() as u64).min(own.out);
            dead_letters.route_rejections(&plan.name, "KAFKA_PRODUCE", plan.on_error, &rejected, counters)
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
                    // The same clients restore the state of all partitions.
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
                                let scanner = match &mut scanner {
                                    Some(scanner) => scanner,
                                    None => scanner.insert(PartitionScanner::new(&self.context.cluster)?),
                                };
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
                            state,
                        };
                        self.partitions.insert(partition, state);
                    }
                    if let Some(scanner) = scanner {
                        scanner.close();
                        self.show_states();
                    }
                    failpoint!("transform.assign.after")?;
                }
            }
        }
        Ok(())
    }

    /// Restores the state of a partition whose committed offset has been read.
    fn restore_state(
        &mut self,
        scanner: &PartitionScanner,
        facts: &ChangelogFacts,
        partition: &TopicPartition,
        max_bytes: usize,
    ) -> Result<StateStore> {
        let restored = self.changelog.restore(scanner, facts, partition, &self.context.state, max_bytes);
        let Restored { store, records, took } = restored.map_err(|error| self.stage.in_transform(error))?;
        self.restored = (self.restored.0 + took, self.restored.1 + records);
        let entries = store.len();
        tracing::info!(stage = self.status.name(), topic = %partition.topic, partition = partition.partition, entries, records, ?took, "state restored");
        Ok(store)
    }

    fn stores(&self) -> impl Iterator<Item = &StateStore> {
        self.partitions.values().filter_map(|state| state.state.as_ref())
    }

    /// Whether changes of state should be copied to disk.
    fn is_copy_due(&self) -> bool {
        self.stores().any(StateStore::is_write_due)
            || (self.last_copy.elapsed() >= COPY_INTERVAL && self.stores().any(StateStore::is_outdated))
    }

    /// Commits, and copies the committed changes of states to disk. The positions of the copies are
    /// read before the commit, which the group's generation fences (I4): no other member can have
    /// written before them.
    fn commit_and_copy(&mut self) -> Result<()> {
        let since = now_ms();
        let mut ends = Vec::new();
        for (partition, state) in &mut self.partitions {
            let Some(store) = &state.state else { continue };
            if store.is_outdated() || store.changed_bytes() > 0 {
                // The commit covers the partition also if none of its records are pending.
                state.next = state.next.or((state.committed >= 0).then_some(state.committed));
                let end = match state.next {
                    Some(_) => Some(self.consumer.stable_end(self.changelog.topic(), partition.partition)?),
                    None => None,
                };
                ends.push((partition.clone(), end));
            }
        }
        self.commit()?;
        self.last_copy = Instant::now();
        failpoint!("transform.copy.before")?;
        for (partition, end) in ends {
            let store = self.partitions.get_mut(&partition).and_then(|state| state.state.as_mut());
            if let Some(store) = store {
                if let Some(end) = end {
                    store.advance(end, since);
                }
                store.write().map_err(|error| self.stage.in_transform(error))?;
            }
        }
        failpoint!("transform.copy.after")
    }

    /// Closes the states at the end of a run: what is committed is on disk.
    fn close_states(&mut self) -> Result<()> {
        let stores = std::mem::take(&mut self.partitions).into_values().filter_map(|state| state.state);
        stores.into_iter().try_for_each(StateStore::close).map_err(|error| self.stage.in_transform(error))
    }

    /// Shows the sizes of the states, and reserves their memory.
    fn show_states(&mut self) {
        let sum = |of: fn(&StateStore) -> u64| self.stores().map(of).sum::<u64>();
        let table = self.table.as_ref().map(|table| table.bytes() as u64);
        let figures = self.stage.plan.state.map(|_| StateFigures {
            entries: sum(|store| store.len() as u64),
            disk_bytes: sum(StateStore::disk_bytes),
            restore: self.restored.0,
            restored_records: self.restored.1,
        });
        let largest = self.stores().map(|store| store.bytes() as u64).chain(table).max();
        let plan = &self.stage.plan;
        let limit = plan.state.map(|state| state.max_bytes).or(plan.table.as_ref().map(|table| table.max_bytes));
        let memory = self.stores().map(StateStore::memory).sum();
        self.memory.resize(memory);
        self.status.set_memory_bytes(memory);
        self.status.set_plugin_state(largest.zip(limit.map(|bytes| bytes as u64)), figures);
    }

    fn abort_transaction(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        failpoint!("transform.abort.before")?;
        self.producer.abort()?;
        self.schemas.clear();
        failpoint!("transform.abort.after")?;
        self.commit_timer.clear();
        for (partition, state) in &mut self.partitions {
            state.pending = Counters::default();
            state.dead_letters.clear();
            if let Some(store) = &mut state.state {
                store.abort();
            }
            if state.next.take().is_some() {
                // Its batch holds records after the aborted ones. The batches of other partitions
                // are still to be processed.
                batches.remove(partition);
                self.consumer.seek(partition, state.committed)?;
            }
        }
        if self.stage.bounds.is_some() {
            // Complete partitions may have to be read again.
            self.consumer.resume()?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        self.commit_timer.clear();
        let begun = Instant::now();
        let moved: Vec<(&TopicPartition, &mut PartitionState)> =
            self.partitions.iter_mut().filter(|(_, state)| state.next.is_some()).collect();
        if moved.is_empty() {
            return Ok(());
        }
        let mut pending = Counters::default();
        moved.iter().for_each(|(_, state)| pending.add(&state.pending));
        first_records::check(self.status, &pending, self.context.max_initial_failures)?;
        self.error_limits.check(self.status, &pending)?;
        failpoint!("transform.checkpoint.before")?;
        let dead_letter_partitions = self.topics.partitions(&self.stage.dead_letters)?;
        let replay = self.stage.bounds.as_ref().map(|bounds| bounds.run.as_str());
        let run = RunName { pipeline: &self.stage.pipeline, replay };
        let mut offsets = Vec::with_capacity(moved.len());
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
        }
        // A failure ends this run of the stage; the next run reads the committed state.
        failpoint!("transform.checkpoint.after")?;
        let group = self.consumer.metadata()?;
        self.producer.send_offsets(offsets, group)?;
        self.producer.commit()?;
        self.context.schemas.committed(&std::mem::take(&mut self.schemas));
        self.commit_timer.committed(begun);
        self.status.commit_took(begun.elapsed());
        failpoint!("transform.commit.after")?;
        self.status.committed(&committed);
        self.show_states();
        Ok(())
    }
}
