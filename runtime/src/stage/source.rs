//! A source task: commits records and position in one transaction (I1).
//!
//! The *reader* lets the source fill batches. The *writer* applies transforms, produces, and
//! commits every `commit_interval` ([`CommitTimer`]). Both work in the stage's thread, one after
//! the other. While the source has a backlog and there are processors for it, the reader works in a
//! second thread ([`read_ahead()`]): the next batch is filled while the last one is produced.
//! Without data the stage sleeps in the source, and a request to stop wakes it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trunkline_connector::{
    Batch, Domain, Placement, PositionChange, RecordRef, Result, Schema, SourceBatch, SourceContext, failpoint,
};

use super::careful::{Mark, RECORD_REJECTED, run_until_rejection};
use super::chain::Chain;
use super::commit_timer::CommitTimer;
use super::dead_letters::{DeadLetters, RunName};
use super::error_limits::ErrorLimits;
use super::first_records;
use super::output::Topics;
use super::partitioner::partition_of;
use super::read_ahead::read_ahead;
use super::snapshot_deletes::{PendingDeletes, Search, without_entries};
use super::source_reader::{Committed, Filled, Reader, ReaderState};
use super::status::StageStatus;
use super::stop_signal::StopSignal;
use super::supervise::Stage;
use super::worker_context::WorkerContext;
use crate::checkpoint::{Counters, Positions};
use crate::kafka::{ProducerRecord, TransactionalProducer};
use crate::plan::{Branch, Route, SharedTopics, SourcePlan};

/// A source of a pipeline on this node.
pub struct SourceStage {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's dead letter topic.
    pub dead_letters: String,
    /// The source.
    pub plan: SourcePlan,
}

impl Stage for SourceStage {
    fn run(&self, context: &WorkerContext, stop: &StopSignal, status: &StageStatus) -> Result<()> {
        run_until_rejection(stop, |one_by_one| self.run_once(context, stop, status, one_by_one))
    }
}

impl SourceStage {
    /// Runs from the committed position. `one_by_one`: each batch has one record.
    fn run_once(
        &self,
        context: &WorkerContext,
        stop: &StopSignal,
        status: &StageStatus,
        one_by_one: bool,
    ) -> Result<()> {
        let task = match self.plan.spec.placement() {
            Placement::EveryNode => context.names.node_task(&self.pipeline, &self.plan.name),
            // One position in the cluster: the next worker continues from it and fences the last
            // one (I4).
            Placement::Anywhere => context.names.component(&self.pipeline, &self.plan.name),
        };
        let producer = TransactionalProducer::new(&context.cluster, &task, context.share.client_buffer_bytes)?;
        failpoint!("source.assign.after")?;
        let mut positions = Positions::load(&context.cluster, &task, &task)?;
        let on_node = self.plan.spec.placement() == Placement::EveryNode;
        positions.claim(context.names.owner(&self.pipeline, &self.plan.name, on_node))?;
        if positions.parts.is_empty() && self.plan.spec.placement() == Placement::EveryNode {
            self.warn_of_renamed_node(context, status)?;
        }
        let source = self.plan.spec.open(SourceContext {
            task: task.clone(),
            position: without_entries(&positions.parts),
            until_idle: context.until_idle,
            budget: context.budget.clone(),
            runtime: context.runtime.clone(),
            scratch: context.scratch(&status.name())?,
        })?;
        let deletes = PendingDeletes::read(&positions.parts)?;
        let scratch = context.scratch(&format!("{}.deletes", status.name()))?;
        let (acknowledge, committed) = std::sync::mpsc::channel();
        let mut writer = Writer {
            stage: self,
            context,
            topics: Topics::new(context, self.plan.partitions).written_by(
                context,
                (&self.pipeline, &self.plan.name),
                &self.dead_letters,
            ),
            chain: Chain::start(&linear_route(&self.plan), &Some(context.schemas.clone()))?,
            producer,
            positions,
            pending: Pending::default(),
            commit_timer: CommitTimer::new(self.plan.commit_interval.unwrap_or(context.commit_interval)),
            status,
            acknowledge,
            one_by_one,
            delivered: 0,
            deletes,
            scratch,
            stop,
            shared_topics: SharedTopics::default(),
            error_limits: ErrorLimits::new(&self.plan.name, self.plan.on_error, &self.plan.apply, &[]),
        };
        for schema in self.plan.spec.schemas() {
            writer.publish_schema(&schema)?;
        }
        writer.commit()?;
        writer.delete_gone_rows()?;

        let waker = source.waker();
        let _stops_wait = waker.map(|wake| stop.on_set(move || wake()));
        let reader = Reader {
            source,
            one_by_one,
            batch_bytes: context.share.batch_bytes,
            until_idle: context.until_idle,
            budget: &context.budget,
            status,
            stop,
            backlogs: &context.backlogs,
            committed,
            state: ReaderState::default(),
        };
        let outcome = writer.run(reader);
        if outcome.is_err() {
            // Best effort: the next owner aborts the transaction too, but consumers would wait
            // until then.
            let _ = writer.producer.abort();
        }
        outcome
    }
}

impl SourceStage {
    /// Warns before the first start of this node if another node has read data that this one has.
    fn warn_of_renamed_node(&self, context: &WorkerContext, status: &StageStatus) -> Result<()> {
        const SHOWN: usize = 3;
        let component = context.names.component(&self.pipeline, &self.plan.name);
        for (node, position) in Positions::by_node(&context.cluster, &component)? {
            let shared = self.plan.spec.shared_data(&position);
            if shared.is_empty() {
                continue;
            }
            let more = shared.len().saturating_sub(SHOWN);
            let more = if more > 0 { format!(" and {more} more") } else { String::new() };
            tracing::warn!(
                stage = status.name(),
                "the node `{}` reads again, from the beginning, what the node `{node}` has read: {}{more}. If this machine \
                 was renamed, stop the worker and set `node = \"{node}\"`",
                context.names.node,
                shared[..shared.len().min(SHOWN)].join(", ")
            );
        }
        Ok(())
    }
}

/// The content of the open transaction.
#[derive(Default)]
struct Pending {
    position: BTreeMap<String, Option<Vec<u8>>>,
    counters: Counters,
    dead_letters: DeadLetters,
    schemas: Vec<Arc<Schema>>,
}

struct Writer<'a> {
    stage: &'a SourceStage,
    context: &'a WorkerContext,
    topics: Topics,
    chain: Chain,
    producer: TransactionalProducer,
    positions: Positions,
    pending: Pending,
    commit_timer: CommitTimer,
    status: &'a StageStatus,
    /// Reports commits to the reader.
    acknowledge: Sender<Committed>,
    one_by_one: bool,
    /// The records of the last batch that were sent.
    delivered: u64,
    /// Snapshots that delete the rows that they do not find, by table.
    deletes: BTreeMap<String, PendingDeletes>,
    scratch: PathBuf,
    stop: &'a StopSignal,
    shared_topics: SharedTopics,
    error_limits: ErrorLimits,
}

impl Writer<'_> {
    fn run(&mut self, mut reader: Reader<'_>) -> Result<()> {
        let mut spare = None;
        while !self.stop.is_set() {
            if reader.can_read_ahead() {
                let flow = read_ahead(&mut reader, |filled, returned| self.run_behind(&filled, &returned))?;
                if flow.is_break() {
                    return Ok(());
                }
            } else {
                let outcome = reader.next(spare.take(), self.commit_timer.due());
                if let Some(filled) = outcome.transpose() {
                    let (batch, flow) = self.take(filled)?;
                    if flow.is_break() {
                        return Ok(());
                    }
                    spare = Some(batch);
                }
                self.commit_if_due()?;
            }
        }
        self.commit()
    }

    /// Takes the batches of a reader in a second thread, until that ends. Breaks when the stage has
    /// nothing left to do.
    fn run_behind(
        &mut self,
        filled: &Receiver<Result<Filled>>,
        returned: &Sender<SourceBatch>,
    ) -> Result<ControlFlow<()>> {
        loop {
            match filled.recv_timeout(self.commit_timer.until_due(Duration::MAX)) {
                Ok(filled) => {
                    let (batch, flow) = self.take(filled)?;
                    if flow.is_break() {
                        return Ok(flow);
                    }
                    // The reader may have ended; the memory is then released.
                    let _ = returned.send(batch);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(ControlFlow::Continue(())),
            }
            self.commit_if_due()?;
        }
    }

    /// Produces a batch, and returns its memory. Breaks when the stage has nothing left to do.
    /// After an error of the source, the records before it are committed: they are valid, and their
    /// position is known.
    fn take(&mut self, filled: Result<Filled>) -> Result<(SourceBatch, ControlFlow<()>)> {
        let ready = filled.and_then(|filled| self.chain.ready().map(|()| filled));
        let Filled { mut batch, caught_up, _reservation } = match ready {
            Ok(filled) => filled,
            Err(error) => {
                self.commit()?;
                return Err(error);
            }
        };
        let (bytes, begun) = (batch.bytes(), Instant::now());
        let is_empty = batch.is_empty();
        self.produce_or_stop(&mut batch)?;
        if !is_empty {
            self.status.processed(bytes, begun.elapsed());
            self.chain.report(self.status);
        }
        self.delete_gone_rows()?;
        batch.clear();
        if caught_up && self.context.until_idle {
            self.commit()?;
            return Ok((batch, ControlFlow::Break(())));
        }
        Ok((batch, ControlFlow::Continue(())))
    }

    fn commit_if_due(&mut self) -> Result<()> {
        if self.commit_timer.is_due(self.producer.transaction_bytes()) { self.commit() } else { Ok(()) }
    }

    /// Produces a batch. If its only record is rejected and stops the source, the records before it
    /// are committed.
    fn produce_or_stop(&mut self, batch: &mut SourceBatch) -> Result<()> {
        let mark = self.one_by_one.then(|| Mark::of(&self.pending.counters, &self.pending.dead_letters));
        let outcome = self.produce(batch);
        if let (Err(error), Some(mark)) = (&outcome, mark)
            && error.code == RECORD_REJECTED
            && mark.undo(self.delivered, &mut self.pending.counters, &self.pending.dead_letters)
        {
            self.commit()?;
        }
        outcome
    }

    fn produce(&mut self, batch: &mut SourceBatch) -> Result<()> {
        self.delivered = 0;
        let mut topics = Vec::new();
        for headers in std::mem::take(&mut batch.data_sets) {
            topics.extend(self.shared_topics.add(&self.stage.plan.topic, &headers)?);
        }
        self.topics.claim(topics)?;
        if batch.is_empty() {
            return Ok(());
        }
        self.commit_timer.mark_pending();
        for schema in std::mem::take(&mut batch.schemas) {
            self.publish_schema(&schema)?;
        }
        for table in std::mem::take(&mut batch.snapshot_begins) {
            self.begin_deletes(&table)?;
        }
        let plan = &self.stage.plan;
        let producer = &mut self.producer;
        let Pending { counters, dead_letters, .. } = &mut self.pending;
        let own = counters.of(&plan.name);
        let emitted = (batch.records.len() + batch.side_outputs.len()) as u64;
        own.records_in += emitted + batch.rejected.len() as u64 + batch.dropped;
        own.out += emitted;
        own.dropped += batch.dropped;
        dead_letters.route_rejections(&plan.name, "VALUE_CONVERTER", plan.on_error, &batch.rejected, counters)?;
        let (topics, delivered) = (&mut self.topics, &mut self.delivered);
        let atomic = self.one_by_one;
        failpoint!("source.produce.before")?;
        let mut send = |out: &Batch, counters: &mut Counters, dead_letters: &mut DeadLetters| {
            // Records get the time of production. Kafka's retention deletes by this time: with the
            // event's time it would delete old log lines before any sink has read them.
            let topic_of = |record: RecordRef<'_>| {
                let port = usize::from(record.entry().port).checked_sub(1);
                port.and_then(|port| plan.port_topics.get(port)).map_or(&plan.topic, |(_, topic)| topic)
            };
            let rejected = topics.send(producer, out, atomic, topic_of, |_| None)?;
            if !atomic || rejected.is_empty() {
                *delivered += out.len() as u64;
            }
            let own = counters.of(&plan.name);
            // These records were counted as out when they were read.
            own.out -= (rejected.len() as u64).min(own.out);
            dead_letters.route_rejections(&plan.name, "KAFKA_PRODUCE", plan.on_error, &rejected, counters)
        };
        send(&batch.side_outputs, counters, dead_letters)?;
        self.chain.run(&mut batch.records, counters, dead_letters, &mut |out, counters, dead_letters| {
            send(out, counters, dead_letters)
        })?;
        let mut derived = Vec::new();
        self.chain.derived_schemas(&mut derived);
        self.context.schemas.publish_all(producer, derived, &mut self.pending.schemas)?;
        failpoint!("source.produce.after")?;
        for PositionChange { key, value } in batch.position.drain(..) {
            self.pending.position.insert(key, value);
        }
        self.note_rejected(&batch.rejected.records)?;
        for table in batch.snapshot_ends.drain(..) {
            if let Some(pending) = self.deletes.get_mut(&table) {
                pending.is_due = true;
                let PositionChange { key, value } = pending.stored(&table)?;
                self.pending.position.insert(key, value);
            }
        }
        Ok(())
    }

    /// Notes that rows of tables were rejected, whose deletes are pending.
    fn note_rejected(&mut self, rejected: &Batch) -> Result<()> {
        if rejected.is_empty() || self.deletes.is_empty() {
            return Ok(());
        }
        let spec = Arc::clone(&self.stage.plan.spec);
        let Some(snapshots) = spec.snapshots() else { return Ok(()) };
        for (table, pending) in &mut self.deletes {
            if pending.note_rejected(rejected, &snapshots.record_headers(table)) {
                let PositionChange { key, value } = pending.stored(table)?;
                self.pending.position.insert(key, value);
            }
        }
        Ok(())
    }

    /// Prepares the deletes of a table whose snapshot starts again.
    fn begin_deletes(&mut self, table: &str) -> Result<()> {
        let plan = &self.stage.plan;
        let Some(snapshots) = plan.spec.snapshots() else { return Ok(()) };
        match PendingDeletes::begin(&self.context.cluster, &plan.topic, snapshots, table) {
            Ok(pending) => {
                let PositionChange { key, value } = pending.stored(table)?;
                self.pending.position.insert(key, value);
                self.deletes.insert(table.to_owned(), pending);
                Ok(())
            }
            Err(error) if error.domain == Domain::Config => {
                tracing::warn!(stage = self.status.name(), %error, "rows that no longer exist are not deleted: {table}");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Writes the deletes of the rows that completed snapshots did not find.
    fn delete_gone_rows(&mut self) -> Result<()> {
        let is_due = |(_, pending): &(&String, &PendingDeletes)| pending.is_due;
        let due: Vec<String> = self.deletes.iter().filter(is_due).map(|(table, _)| table.clone()).collect();
        for table in due {
            let Some(pending) = self.deletes.remove(&table) else { continue };
            self.commit()?;
            let spec = Arc::clone(&self.stage.plan.spec);
            let Some(snapshots) = spec.snapshots() else { continue };
            let scratch = self.scratch.clone();
            let (cluster, stop) = (self.context.cluster.clone(), self.stop);
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let now = i64::try_from(now).unwrap_or(i64::MAX);
            let search = Search { cluster: &cluster, snapshots, scratch: &scratch, stop, now };
            if pending.has_rejected {
                tracing::warn!(
                    stage = self.status.name(),
                    code = "source.deletes",
                    "rows that no longer exist are not deleted from the topic of {table}: rows of the table were rejected during its \
                     snapshot, and would be deleted too; correct the cause (see the dead letters) and run `trunkline snapshot \
                     {}.{} --with-deletes`",
                    self.stage.pipeline,
                    self.stage.plan.name
                );
                let PositionChange { key, value } = PendingDeletes::removed(&table);
                self.pending.position.insert(key, value);
                self.commit()?;
                continue;
            }
            let mut count = 0;
            pending.find(&search, &table, |deletes| {
                count += deletes.len();
                self.send_deletes(pending.topic(), deletes)
            })?;
            let PositionChange { key, value } = PendingDeletes::removed(&table);
            self.pending.position.insert(key, value);
            self.commit()?;
            tracing::info!(
                stage = self.status.name(),
                records = count,
                "deleted the rows that the snapshot did not find: {table}"
            );
        }
        Ok(())
    }

    fn send_deletes(&mut self, topic: &str, deletes: &Batch) -> Result<()> {
        self.commit_timer.mark_pending();
        let partitions = self.topics.partitions(topic)?;
        let producer = &mut self.producer;
        for record in deletes.iter() {
            producer.send(&ProducerRecord {
                topic,
                partition: partition_of(record, partitions),
                timestamp: None,
                key: record.key(),
                value: record.value(),
                headers: record.header_block(),
                more_headers: &[],
            })?;
        }
        let own = self.pending.counters.of(&self.stage.plan.name);
        own.records_in += deletes.len() as u64;
        own.out += deletes.len() as u64;
        self.commit_if_due()
    }

    fn publish_schema(&mut self, schema: &Arc<Schema>) -> Result<()> {
        let producer = &mut self.producer;
        self.context.schemas.publish(producer, schema)?;
        self.pending.schemas.push(schema.clone());
        Ok(())
    }

    /// Commits records, dead letters, position and counters together (I1).
    fn commit(&mut self) -> Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        self.commit_timer.clear();
        let position = std::mem::take(&mut pending.position);
        let changes: Vec<_> = position.into_iter().map(|(key, value)| PositionChange { key, value }).collect();
        if changes.is_empty() && pending.counters.is_zero() && !self.producer.in_transaction() {
            return Ok(());
        }
        first_records::check(self.status, &pending.counters, self.context.max_initial_failures)?;
        self.error_limits.check(self.status, &pending.counters)?;
        let mut trace = self.context.tracer.begin("commit", self.status);
        trace.add_records(&pending.counters, &self.stage.plan.name);
        let outcome = self.commit_pending(&pending, changes);
        trace.finish(&outcome);
        outcome
    }

    fn commit_pending(&mut self, pending: &Pending, changes: Vec<PositionChange>) -> Result<()> {
        let begun = Instant::now();
        failpoint!("source.checkpoint.before")?;
        let partitions = self.topics.partitions(&self.stage.dead_letters)?;
        let run = RunName { pipeline: &self.stage.pipeline, replay: None };
        let producer = &mut self.producer;
        pending.dead_letters.write(producer, &run, &self.stage.dead_letters, partitions)?;
        self.positions.counters.add(&pending.counters);
        if !changes.is_empty() || !pending.counters.is_zero() {
            self.positions.write(producer, &changes, &self.positions.counters)?;
        }
        failpoint!("source.checkpoint.after")?;
        let bytes = producer.transaction_bytes();
        producer.commit()?;
        self.positions.note_committed(&changes);
        self.status.sent(bytes);
        failpoint!("source.commit.after")?;
        if !pending.counters.is_zero() {
            self.commit_timer.committed(begun);
            self.status.commit_took(begun.elapsed());
        }
        self.context.schemas.committed(&pending.schemas);
        // The reader may have ended; the acknowledgement is then lost, which is allowed.
        let _ = self.acknowledge.send(Committed { changes, next: self.commit_timer.next() });
        self.status.committed(&pending.counters);
        Ok(())
    }
}

/// The transforms in `apply`, one after the other, by their default ports.
fn linear_route(plan: &SourcePlan) -> Route {
    let end = Route { deliver: true, branches: Vec::new() };
    plan.apply.iter().rev().fold(end, |rest, step| Route {
        deliver: false,
        branches: vec![Branch { step: step.clone(), outputs: vec![(0, rest)] }],
    })
}
