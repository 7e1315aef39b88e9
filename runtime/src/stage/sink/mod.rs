//! A sink task: a member of the sink's consumer group that writes its topic partitions to a
//! destination.
//!
//! The loop is the same for all sinks: poll, handle rebalances, run the fused transforms, write,
//! keep the memory budget, commit the topic partitions that are due. How output and offsets are
//! committed together (I2) depends on the kind of sink; each kind is a [`Committer`]: [`two_phase`]
//! and [`idempotent`].
//!
//! The loop runs in one thread. Rebalances are served only inside polls and are handled right after
//! them, so a topic partition is never lost between two lines.

mod committer;
mod delivery_pool;
mod idempotent;
mod partition_state;
mod parts;
mod stop_points;
mod transactions;
mod two_phase;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use trunkline_connector::{
    Batch, Buffered, READ_AGAIN, Rejections, Reservation, Result, Sink, SinkContext, TopicPartition, failpoint,
};

use self::committer::{Assignment, Committer};
use self::idempotent::IdempotentCommitter;
use self::partition_state::PartitionState;
use self::stop_points::{Rejected, StopPoints};
use self::transactions::Transactions;
use self::two_phase::TwoPhaseCommitter;
use super::bounds::Bounds;
use super::careful::{Mark, RECORD_REJECTED, single};
use super::error_limits::ErrorLimits;
use super::first_records;
use super::lag::{LagReport, Uncommitted, time_in_topic, written_at};
use super::pace::Throttle;
use super::repeated_inputs::Reader;
use super::routes::Routes;
use super::status::StageStatus;
use super::stop_signal::StopSignal;
use super::supervise::Stage;
use super::upstream::{Drain, Upstream};
use super::worker_context::WorkerContext;
use crate::checkpoint::Counters;
use crate::kafka::{FillLimits, GroupConsumer, PartitionBatches, RebalanceEvent, TransactionalProducer};
use crate::plan::SinkPlan;

/// The longest wait for records while there is something else to do: to keep the byte budget, or to
/// end a run when everything was read.
const POLL: Duration = Duration::from_millis(100);

/// The longest wait for records otherwise. A request to stop ends it.
const IDLE_WAIT: Duration = Duration::from_secs(1);

/// A topic partition without buffered output (all records were dropped or dead-lettered) commits
/// its offset this often.
const OFFSET_ONLY_COMMIT_INTERVAL: Duration = Duration::from_secs(1);

/// Dead letters wait in memory for the transaction of their offsets; this many bytes of them make a
/// topic partition due.
const MAX_DEAD_LETTER_BYTES: usize = 4 << 20;

/// Records of one poll.
const POLL_RECORDS: usize = 10_000;

/// What a sink's producer holds unsent: state rows and dead letters only.
const PRODUCER_BUFFER_BYTES: usize = 4 << 20;

/// A sink of a pipeline: one task of it.
pub struct SinkStage {
    /// The pipeline's name.
    pub pipeline: String,
    /// The pipeline's dead letter topic.
    pub dead_letters: String,
    /// The sink.
    pub plan: SinkPlan,
    /// Number of this task in this worker.
    pub task: u32,
    /// The stages that write to its inputs.
    pub upstream: Upstream,
    /// The records that it reads, if it is a replay.
    pub bounds: Option<Bounds>,
}

impl Stage for SinkStage {
    fn run(&self, context: &WorkerContext, stop: &StopSignal, status: &StageStatus) -> Result<()> {
        loop {
            let outcome = StopPoints::run(stop, |points| {
                let mut rejected = None;
                let outcome = self.run_once(context, stop, status, points, &mut rejected);
                (outcome, rejected)
            });
            match outcome {
                // The sink knows more records to reject than before, so this ends.
                Err(error) if error.code == READ_AGAIN && !stop.is_set() => {
                    tracing::warn!(stage = status.name(), %error, "restarting from the committed position");
                }
                outcome => return outcome,
            }
        }
    }
}

impl SinkStage {
    /// It is a replay that takes the place of what the live sink wrote.
    fn supersedes(&self) -> bool {
        self.bounds.as_ref().is_some_and(|bounds| bounds.supersedes.is_some())
    }

    /// Runs from the committed offsets. `rejected` receives the place of a rejection that stops it.
    fn run_once(
        &self,
        context: &WorkerContext,
        stop: &StopSignal,
        status: &StageStatus,
        points: &StopPoints,
        rejected: &mut Option<Rejected>,
    ) -> Result<()> {
        context.names.check_group(&self.pipeline, &self.plan.name)?;
        let component = context.names.component(&self.pipeline, &self.plan.name);
        let member = context.names.member(&self.pipeline, &self.plan.name, self.task);
        // The producer comes first: it aborts this worker's open transaction, which delays all
        // readers of offsets and intents.
        let producer = TransactionalProducer::new(&context.cluster, &member, PRODUCER_BUFFER_BYTES)?;
        let sink = self.plan.spec.open(SinkContext {
            name: status.name(),
            replay: self.bounds.as_ref().map(Bounds::sink_replay),
            budget: context.budget.clone(),
            runtime: context.runtime.clone(),
            scratch: context.scratch(&format!("{}.{}", status.name(), self.task))?,
            schemas: context.schemas.clone(),
        })?;
        let committer: Box<dyn Committer> = match sink {
            Sink::TwoPhase(sink) => Box::new(TwoPhaseCommitter::new(sink, self.supersedes())),
            Sink::Idempotent(sink) => Box::new(IdempotentCommitter::start(sink, self.plan.commit, context)?),
        };
        let routes = Routes::start(&self.plan.inputs, Some(context.schemas.clone()))?;
        let buffer_bytes = context.share.client_buffer_bytes;
        let cluster = &context.cluster;
        let consumer = match &self.bounds {
            Some(bounds) => GroupConsumer::join_strictly(cluster, &component, &member, &bounds.topics(), buffer_bytes)?,
            None => GroupConsumer::join(cluster, &component, &member, &routes.subscription(), buffer_bytes)?,
        };
        let mut task = SinkTask {
            committer,
            routes,
            rejected: Rejections::default(),
            reserved: context.budget.empty(),
            transactions: Transactions::new(self, context, stop, status, producer, consumer),
            points,
            delivered: 0,
            error_limits: ErrorLimits::new(&self.plan.name, self.plan.on_error, &[], &self.plan.inputs),
            throttle: self.bounds.as_ref().map(|bounds| Throttle::new(bounds.pace.clone())),
        };
        let stops_wait = stop.on_set(task.transactions.consumer.waker());
        let outcome = task.run();
        drop(stops_wait);
        *rejected = task.transactions.rejected_at.take();
        outcome?;
        task.transactions.consumer.leave();
        Ok(())
    }
}

struct SinkTask<'a> {
    transactions: Transactions<'a>,
    committer: Box<dyn Committer>,
    routes: Routes,
    rejected: Rejections,
    reserved: Reservation,
    points: &'a StopPoints,
    /// The records that the last batch became and that were written.
    delivered: u64,
    error_limits: ErrorLimits,
    /// Limits the speed of a replay.
    throttle: Option<Throttle>,
}

impl SinkTask<'_> {
    fn run(&mut self) -> Result<()> {
        let (context, upstream) = (self.transactions.context, &self.transactions.stage.upstream);
        let mut batches = PartitionBatches::default();
        let mut drain = Drain::new(&context.cluster, upstream);
        if let Some(bounds) = &self.transactions.stage.bounds {
            drain = drain.with_targets(bounds.ends());
        }
        let mut lag = LagReport::new();
        loop {
            if self.transactions.stop.is_set() {
                return self.committer.flush(&mut self.transactions);
            }
            let Transactions { partitions, consumer, status, .. } = &self.transactions;
            let partitions = partitions.iter();
            let partitions = partitions.map(|(partition, state)| Uncommitted {
                partition,
                committed: state.committed,
                is_pending: state.has_pending(),
                oldest: self.committer.oldest(partition).or(state.oldest),
            });
            lag.update(status, consumer, partitions);
            let polled = self.poll(&mut batches)?;
            self.rebalance(&mut batches)?;
            let records = self.drop_out_of_bounds(&mut batches, polled.unwrap_or(0))?;
            for (partition, batch) in batches.iter_mut() {
                if let Err(error) = self.routes.chain(&partition.topic)?.ready() {
                    self.check_failures()?;
                    self.committer.flush(&mut self.transactions)?;
                    return Err(error);
                }
                let (bytes, begun) = (batch.bytes(), Instant::now());
                if self.points.one_by_one {
                    self.process_one_by_one(partition, batch)?;
                } else if let Some(parts) = self.points.split(partition, batch) {
                    self.process_parts(partition, parts)?;
                } else {
                    self.process(partition, batch)?;
                }
                self.transactions.status.processed(bytes, begun.elapsed());
                self.routes.chain(&partition.topic)?.report(self.transactions.status);
                batch.clear();
            }
            self.check_failures()?;
            if records == 0 && self.is_idle() {
                self.release(&mut batches)?;
            }
            self.enforce_memory_budget()?;
            let due = self.due_partitions();
            self.committer.commit(&mut self.transactions, &due)?;
            if context.until_idle && records == 0 && polled.is_some() && upstream.is_over() {
                // The run ends: the buffered output is committed before it is due.
                self.committer.flush(&mut self.transactions)?;
                if drain.is_complete(&self.transactions.consumer)? {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for records until the next commit is due. `None` if it may not read now: the sink has
    /// enough in flight, or the replay has to wait.
    fn poll(&mut self, batches: &mut PartitionBatches) -> Result<Option<usize>> {
        let longest = if self.is_idle() { IDLE_WAIT } else { POLL };
        let wait = self.until_due().min(self.committer.wake_in()).min(longest);
        let allowance = self.throttle.as_ref().map_or(POLL_RECORDS, Throttle::allowance);
        if allowance == 0 || !self.committer.accepts_more() {
            let turn = self.throttle.as_ref().map_or(Duration::MAX, Throttle::longest_wait);
            self.transactions.consumer.keep_alive(wait.min(turn))?;
            return Ok(None);
        }
        let limits = FillLimits {
            records: POLL_RECORDS.min(allowance),
            bytes: self.transactions.context.share.batch_bytes,
            wait,
        };
        self.transactions.consumer.fill(&limits, batches).map(Some)
    }

    /// Nothing waits for a commit, and it has no end: it has nothing to do until records arrive.
    fn is_idle(&self) -> bool {
        let has_end = self.transactions.context.until_idle || self.transactions.stage.bounds.is_some();
        let is_pending = self.transactions.partitions.values().any(PartitionState::has_pending);
        !has_end && !is_pending && self.committer.wake_in() == Duration::MAX
    }

    /// Releases what is kept for the next records, while there are none.
    fn release(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        batches.release();
        self.committer.spill()
    }

    /// Drops the records that a replay does not read. Returns the number of the other records.
    fn drop_out_of_bounds(&mut self, batches: &mut PartitionBatches, polled: usize) -> Result<usize> {
        match &self.transactions.stage.bounds {
            Some(bounds) => bounds.apply(batches, &self.transactions.consumer, self.throttle.as_mut()),
            None => Ok(polled),
        }
    }

    /// Commits the records before a stop point, and then the record of the stop point alone. If it
    /// is rejected again, the position is at it.
    fn process_parts(&mut self, partition: &TopicPartition, [mut before, mut at, mut after]: [Batch; 3]) -> Result<()> {
        self.process(partition, &mut before)?;
        self.committer.flush(&mut self.transactions)?;
        self.process(partition, &mut at)?;
        self.committer.flush(&mut self.transactions)?;
        self.process(partition, &mut after)
    }

    /// Processes each record separately. If one is rejected and stops the stage, the records before
    /// it are committed.
    fn process_one_by_one(&mut self, partition: &TopicPartition, batch: &Batch) -> Result<()> {
        for record in batch.iter() {
            let Some(state) = self.transactions.partitions.get(partition) else { return Ok(()) };
            let (mark, next) = (Mark::of(&state.pending, &state.dead_letters), state.next);
            let was_pending = state.has_pending();
            let outcome = self.process(partition, &mut single(record));
            if let Err(error) = &outcome
                && error.code == RECORD_REJECTED
                && let Some(state) = self.transactions.partitions.get_mut(partition)
                && mark.undo(self.delivered, &mut state.pending, &state.dead_letters)
            {
                state.next = next;
                if !was_pending {
                    state.clear_pending();
                }
                self.committer.flush(&mut self.transactions)?;
            }
            outcome?;
            self.committer.end_record(&mut self.transactions, partition);
        }
        Ok(())
    }

    /// Runs the records of one topic partition through the fused transforms and writes the result.
    fn process(&mut self, partition: &TopicPartition, batch: &mut Batch) -> Result<()> {
        self.delivered = 0;
        let Some(state) = self.transactions.partitions.get_mut(partition) else { return Ok(()) };
        let (Some(first), Some(last)) = (batch.entries().first(), batch.entries().last()) else { return Ok(()) };
        state.advance(first.offset, last.offset + 1);
        state.oldest.get_or_insert_with(|| written_at(batch.get(0)));
        if let Some(bounds) = &self.transactions.stage.bounds {
            bounds.select(partition, batch);
        }
        let plan = &self.transactions.stage.plan;
        let (name, on_error) = (&plan.name, plan.on_error);
        let (committer, rejected, delivered) = (&mut self.committer, &mut self.rejected, &mut self.delivered);
        let mut waited: Option<Duration> = None;
        failpoint!("sink.write.before")?;
        let chain = self.routes.chain(&partition.topic)?;
        let outcome =
            chain.run(batch, &mut state.pending, &mut state.dead_letters, &mut |out, counters, dead_letters| {
                rejected.clear();
                committer.write(partition, out, rejected).map_err(|error| error.context(format!("sink `{name}`")))?;
                *delivered += (out.len() - rejected.len()) as u64;
                if out.len() > rejected.len() {
                    waited.get_or_insert_with(|| time_in_topic(out.get(0)));
                }
                let own = counters.of(name);
                own.records_in += out.len() as u64;
                own.out += (out.len() - rejected.len()) as u64;
                dead_letters.route_rejections(name, "TASK_PUT", on_error, rejected, counters)
            });
        if let Some(offset) = state.dead_letters.stopped_at() {
            self.transactions.rejected_at = Some((partition.clone(), offset));
        }
        outcome?;
        if let Some(waited) = waited {
            state.mark_buffered(waited);
        }
        failpoint!("sink.write.after")
    }

    /// Stops the stage if its first records all failed, or too many records fail. It adds up the
    /// counters of all topic partitions, so it runs once per poll.
    fn check_failures(&mut self) -> Result<()> {
        let mut pending = Counters::default();
        self.transactions.partitions.values().for_each(|state| pending.add(&state.pending));
        let Transactions { status, context, .. } = &self.transactions;
        first_records::check(status, &pending, context.max_initial_failures)?;
        self.error_limits.check(status, &pending)
    }

    /// Topic partitions to commit now.
    fn due_partitions(&self) -> Vec<TopicPartition> {
        let (now, policy) = (Instant::now(), &self.transactions.stage.plan.commit);
        let pending: Vec<(&TopicPartition, &PartitionState, Buffered)> = self
            .transactions
            .partitions
            .iter()
            .filter(|(_, state)| state.has_pending())
            .map(|(partition, state)| (partition, state, self.committer.buffered(partition)))
            .collect();
        let is_due = |(_, state, buffered): &&(&TopicPartition, &PartitionState, Buffered)| {
            state.dead_letters.bytes() >= MAX_DEAD_LETTER_BYTES
                || policy.is_full(buffered)
                || state.due_at(policy, buffered).is_some_and(|at| at <= now)
        };
        let mut due: Vec<TopicPartition> = pending.iter().filter(is_due).map(|(due, ..)| (*due).clone()).collect();
        let open_files: usize = pending.iter().map(|(_, _, buffered)| buffered.open_files).sum();
        if due.is_empty() && open_files > policy.max_open_files {
            let largest = pending.iter().max_by_key(|(_, _, buffered)| buffered.bytes);
            due.extend(largest.map(|(partition, ..)| (*partition).clone()));
        }
        due
    }

    /// Time until a topic partition becomes due if no further record is written.
    fn until_due(&self) -> Duration {
        let policy = &self.transactions.stage.plan.commit;
        let pending = self.transactions.partitions.iter().filter(|(_, state)| state.has_pending());
        let due = pending.filter_map(|(partition, state)| state.due_at(policy, &self.committer.buffered(partition)));
        due.min().map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()))
    }

    /// Keeps the byte budget (I6): moves buffers to disk when memory is short; commits early and
    /// pauses when that is not enough.
    fn enforce_memory_budget(&mut self) -> Result<()> {
        let budget = &self.transactions.context.budget;
        if budget.is_tight() {
            self.committer.spill()?;
        }
        self.reserved.resize(self.committer.memory_bytes() + self.transactions.dead_letter_bytes());
        if budget.used() > budget.limit() && self.reserved.bytes() > 0 {
            self.committer.flush(&mut self.transactions)?;
            self.reserved.resize(self.committer.memory_bytes());
            // Other stages use the rest: fetch nothing for a moment.
            if budget.used() > budget.limit() {
                self.transactions.consumer.pause();
                self.transactions.consumer.keep_alive(POLL)?;
                self.transactions.consumer.resume();
            }
        }
        self.transactions.status.set_memory_bytes(self.reserved.bytes());
        Ok(())
    }

    /// Handles the rebalances of the last poll.
    fn rebalance(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        for event in self.transactions.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Revoked(revoked) => {
                    for partition in revoked {
                        batches.remove(&partition);
                        self.transactions.partitions.remove(&partition);
                        self.committer.revoke(&partition);
                    }
                }
                RebalanceEvent::Assigned(assigned) if assigned.is_empty() => {}
                RebalanceEvent::Assigned(assigned) => self.assign(&assigned)?,
            }
        }
        Ok(())
    }

    /// Takes over topic partitions: settles what earlier owners left, then continues from their
    /// offsets and totals.
    fn assign(&mut self, partitions: &[TopicPartition]) -> Result<()> {
        failpoint!("sink.assign.before")?;
        let transactions = &mut self.transactions;
        // The committed offsets come first: the broker answers only when the transactions of
        // earlier owners are decided.
        let committed = transactions
            .retry("reading committed offsets", |transactions| transactions.consumer.committed(partitions))?;
        let mut rows = transactions.retry("reading intents", Transactions::load_intents)?;
        if !transactions.context.append && transactions.stage.bounds.is_none() {
            let is_new = |(_, committed): &(&TopicPartition, &i64)| **committed < 0;
            let new = partitions.iter().zip(&committed).filter(is_new);
            let new: Vec<TopicPartition> = new.map(|(partition, _)| partition.clone()).collect();
            let known = rows.keys().map(|partition| partition.topic.to_string()).collect();
            let SinkStage { pipeline, plan, upstream, .. } = transactions.stage;
            Reader { pipeline, component: &plan.name, inputs: &plan.inputs, upstream }.check(&known, &new)?;
        }
        let assigned: Vec<Assignment> = partitions
            .iter()
            .zip(committed)
            .map(|(partition, committed)| {
                let intent = rows.remove(partition);
                Assignment { partition: partition.clone(), committed, intent }
            })
            .collect();
        assigned.iter().for_each(|assignment| assignment.warn_of_moved_offsets(transactions.status));
        let recovered = self.committer.assign(transactions, &assigned)?;
        let states: BTreeMap<_, _> = assigned
            .into_iter()
            .map(|assignment| (assignment.partition.clone(), PartitionState::of(assignment)))
            .collect();
        transactions.partitions.extend(states);
        failpoint!("sink.assign.after")?;
        tracing::info!(
            stage = transactions.status.name(),
            partitions = partitions.len(),
            recovered,
            "partitions assigned"
        );
        Ok(())
    }
}
