//! A sink task: a member of the sink's consumer group that writes what it reads to a sink, and publishes in two phases (I2).
//!
//! The steps are those of [`trunkline_connector::Sink`]; between them stand transactions on `_trunkline.intents`:
//!
//! ```text
//! write … write | plan → [txn: planned] → stage → [txn: promised + offsets + dead letters] → publish → [txn: published] | write …
//! ```
//!
//! Every one of these transactions carries offsets, also where they move nothing: the group's generation, which is checked with them,
//! stops a task that lost its claims while it hung and does not know it yet (I4). Without that it would write its row over the promise
//! of whoever took over.
//!
//! A crash before *promised* leaves the offsets where they were: the next owner aborts what was planned and reads again. A crash after
//! it leaves a promise: the next owner publishes it first. A claim's offsets and objects therefore move together or not at all.
//!
//! Everything happens in one thread, so that a claim cannot be lost between two lines: rebalances are served only inside polls, and
//! handled right after them. A step that fails for reasons outside is tried again with backoff while the consumer, paused, stays in its
//! group.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline_connector::{
    Batch, Domain, Error, Rejections, Reservation, Result, Retry, Sink, SinkContext, TopicPartition, failpoint,
};

use super::backoff::Backoff;
use super::chain::Chain;
use super::claimed::{Claimed, unmoved};
use super::environment::{Environment, Stop};
use super::output::Topics;
use super::routes::Routes;
use super::status::StageStatus;
use super::supervise::{GIVE_UP, Stage};
use super::upstream::{Drain, Upstream};
use crate::checkpoint::{CHECKPOINTS, IntentRecord, IntentState, Intents};
use crate::kafka::{FillLimits, GroupConsumer, PartitionBatches, RebalanceEvent, TransactionalProducer};
use crate::plan::SinkPlan;

/// The longest wait for records: how fast a stop is noticed.
const POLL: Duration = Duration::from_millis(100);

/// Offsets of claims without open objects (everything was dropped or dead-lettered) are committed this often.
const BARE_COMMIT: Duration = Duration::from_secs(1);

/// Dead letters wait in memory for the transaction of their offsets; so many bytes of them force it.
const LETTER_BYTES: usize = 4 << 20;

/// A stop waits so long for a destination that does not answer; then the claims are left to the next owner.
const STOP_PATIENCE: Duration = Duration::from_secs(10);

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
    /// What writes to its inputs.
    pub upstream: Upstream,
}

impl Stage for SinkStage {
    fn run(&self, environment: &Environment, stop: &Stop, status: &StageStatus) -> Result<()> {
        let component = environment.names.component(&self.pipeline, &self.plan.name);
        let member = environment.names.member(&self.pipeline, &self.plan.name, self.task);
        // First the producer: it settles what this worker left open, which holds up everybody's reading of offsets and intents.
        let producer = TransactionalProducer::new(&environment.cluster, &member, CHECKPOINTS, 4 << 20)?;
        let sink = self.plan.spec.open(SinkContext {
            name: status.name(),
            budget: environment.budget.clone(),
            runtime: environment.runtime.clone(),
            scratch: environment.scratch(&format!("{}.{}", status.name(), self.task))?,
            schemas: environment.schemas.clone(),
        })?;
        let routes = Routes::start(&self.plan.inputs)?;
        let consumer = GroupConsumer::join(
            &environment.cluster,
            &component,
            &member,
            &routes.subscription(),
            environment.client_buffer,
        )?;
        let mut task = SinkTask {
            stage: self,
            environment,
            stop,
            status,
            intents: Intents::of(&component),
            sink,
            producer,
            consumer,
            routes,
            topics: Topics::new(environment, None),
            claims: BTreeMap::new(),
            rejected: Rejections::default(),
            held: environment.budget.empty(),
            undecided: false,
        };
        task.run()?;
        task.consumer.leave();
        Ok(())
    }
}

struct SinkTask<'a> {
    stage: &'a SinkStage,
    environment: &'a Environment,
    stop: &'a Stop,
    status: &'a StageStatus,
    intents: Intents,
    sink: Box<dyn Sink>,
    producer: TransactionalProducer,
    consumer: GroupConsumer,
    routes: Routes,
    topics: Topics,
    claims: BTreeMap<TopicPartition, Claimed>,
    rejected: Rejections,
    held: Reservation,
    /// The last transaction may have been committed although that failed.
    undecided: bool,
}

impl SinkTask<'_> {
    fn run(&mut self) -> Result<()> {
        let mut batches = PartitionBatches::default();
        let mut drain = Drain::new(&self.environment.cluster, &self.stage.upstream);
        loop {
            if self.stop.is_set() {
                let open = self.pending_claims();
                return self.publish(open);
            }
            let until_due = self.sink.next_due().map_or(POLL, |due| due.saturating_duration_since(Instant::now()));
            let limits = FillLimits { records: 10_000, bytes: self.environment.batch_bytes, wait: until_due.min(POLL) };
            let records = self.consumer.fill(&limits, &mut batches)?;
            self.rebalance(&mut batches)?;
            for (claim, batch) in batches.iter_mut() {
                if let Err(error) = self.routes.chain(&claim.topic)?.ready() {
                    let open = self.pending_claims();
                    self.publish(open)?;
                    return Err(error);
                }
                self.process(claim, batch)?;
                batch.clear();
            }
            self.mind_memory()?;
            let due = self.due_claims();
            self.publish(due)?;
            if self.environment.until_idle && records == 0 && self.stage.upstream.is_over() {
                // Whatever is open now can only be completed by waiting: the end of the run is a reason to publish.
                let open = self.pending_claims();
                self.publish(open)?;
                if drain.is_complete(&self.consumer)? {
                    return Ok(());
                }
            }
        }
    }

    fn pending_claims(&self) -> Vec<TopicPartition> {
        self.claims.iter().filter(|(_, claimed)| claimed.has_pending()).map(|(claim, _)| claim.clone()).collect()
    }

    fn due_claims(&self) -> Vec<TopicPartition> {
        let mut due: BTreeSet<TopicPartition> = self.sink.due(Instant::now()).into_iter().collect();
        for (claim, claimed) in &self.claims {
            let waits = claimed.since.is_some_and(|since| since.elapsed() >= BARE_COMMIT);
            if claimed.letters.bytes() >= LETTER_BYTES || waits && !self.sink.has_open(claim) {
                due.insert(claim.clone());
            }
        }
        due.retain(|claim| self.claims.contains_key(claim));
        due.into_iter().collect()
    }

    /// Runs a batch of one claim through the transforms and writes what comes out.
    fn process(&mut self, claim: &TopicPartition, batch: &mut Batch) -> Result<()> {
        let Some(claimed) = self.claims.get_mut(claim) else { return Ok(()) };
        let (Some(first), Some(last)) = (batch.entries().first(), batch.entries().last()) else { return Ok(()) };
        if !claimed.has_pending() {
            claimed.first = first.offset;
            claimed.since = Some(Instant::now());
        }
        claimed.next = last.offset + 1;
        let (name, on_error) = (&self.stage.plan.name, self.stage.plan.on_error);
        let (sink, rejected) = (&mut self.sink, &mut self.rejected);
        failpoint!("sink.write.before")?;
        let chain: &mut Chain = self.routes.chain(&claim.topic)?;
        chain.run(batch, &mut claimed.pending, &mut claimed.letters, &mut |out, counters, letters| {
            rejected.clear();
            sink.write(claim, out, rejected).map_err(|error| error.context(format!("sink `{name}`")))?;
            let own = counters.of(name);
            own.records_in += out.len() as u64;
            own.out += (out.len() - rejected.len()) as u64;
            letters.settle(name, "TASK_PUT", on_error, rejected, own)
        })?;
        failpoint!("sink.write.after")
    }

    /// Keeps the byte budget (I6): moves buffers out of memory when it is tight, publishes early and pauses when that is not enough.
    fn mind_memory(&mut self) -> Result<()> {
        if self.environment.budget.is_tight() {
            self.sink.relieve()?;
        }
        let letters: usize = self.claims.values().map(|claimed| claimed.letters.bytes()).sum();
        self.held.resize(self.sink.memory() + letters);
        let budget = &self.environment.budget;
        if budget.used() > budget.limit() && self.held.bytes() > 0 {
            let open = self.pending_claims();
            self.publish(open)?;
            self.held.resize(self.sink.memory());
            // Others hold the rest: fetch nothing for a moment.
            if self.environment.budget.used() > self.environment.budget.limit() {
                self.consumer.pause()?;
                self.consumer.keep_alive(POLL)?;
                self.consumer.resume()?;
            }
        }
        Ok(())
    }

    /// Handles what rebalances did during the last poll.
    fn rebalance(&mut self, batches: &mut PartitionBatches) -> Result<()> {
        for event in self.consumer.rebalance_events() {
            match event {
                RebalanceEvent::Revoked(claims) => {
                    for claim in claims {
                        batches.remove(&claim);
                        self.claims.remove(&claim);
                        self.sink.discard(&claim);
                    }
                }
                RebalanceEvent::Assigned(claims) if claims.is_empty() => {}
                RebalanceEvent::Assigned(claims) => self.claim(&claims)?,
            }
        }
        Ok(())
    }

    /// Takes partitions over: settles what their earlier owners left, then counts on from their totals.
    fn claim(&mut self, claims: &[TopicPartition]) -> Result<()> {
        failpoint!("sink.claim.before")?;
        // The committed offsets first: asking for them waits for the transactions of earlier owners.
        let committed = self.retry("claiming partitions", |this| this.consumer.committed(claims))?;
        let cluster = self.environment.cluster.clone();
        let mut rows = self.retry("reading intents", |this| this.intents.load(&cluster))?;
        let mut promised = Vec::new();
        let mut settled = Vec::new();
        for (claim, committed) in claims.iter().zip(&committed) {
            let row = rows.remove(claim);
            let mut kept = Vec::new();
            if let Some(row) = &row {
                match row.state {
                    IntentState::Planned => {
                        failpoint!("sink.abort.before")?;
                        self.retry("aborting an unfinished plan", |this| this.sink.abort(&row.payload))?;
                        failpoint!("sink.abort.after")?;
                        settled.push((claim.clone(), row.clone(), unmoved(*committed, row)));
                    }
                    IntentState::Prepared => {
                        kept.push(row.payload.clone());
                        promised.push(row.payload.clone());
                        settled.push((claim.clone(), row.clone(), unmoved(*committed, row)));
                    }
                    IntentState::Committed => {}
                }
                if row.state != IntentState::Planned && *committed >= 0 && row.next != *committed {
                    tracing::warn!(
                        stage = self.status.name(), topic = %claim.topic, partition = claim.partition, recorded = row.next, committed,
                        "the group's offsets were moved from outside; going on from where they are now"
                    );
                }
            }
            self.retry("clearing what earlier tasks left", |this| this.sink.claimed(claim, &kept))?;
            let next = (*committed).max(0);
            let totals = row.map(|row| row.counters).unwrap_or_default();
            self.claims.insert(
                claim.clone(),
                Claimed { totals, committed: *committed, first: next, next, ..Claimed::default() },
            );
        }
        if !promised.is_empty() {
            failpoint!("sink.recover.before")?;
            self.retry("publishing what an earlier task promised", |this| this.sink.publish(&promised))?;
            failpoint!("sink.recover.after")?;
        }
        if !settled.is_empty() {
            failpoint!("sink.settle.before")?;
            self.retry("recording what was settled", |this| {
                this.transaction(|this| {
                    for (claim, row, _) in &settled {
                        let row = IntentRecord { state: IntentState::Committed, payload: Value::Null, ..row.clone() };
                        this.intents.write(&mut this.producer, claim, &row)?;
                    }
                    Ok(settled.iter().map(|(claim, _, offset)| (claim.clone(), *offset)).collect())
                })
            })?;
            failpoint!("sink.settle.after")?;
        }
        failpoint!("sink.claim.after")?;
        tracing::info!(stage = self.status.name(), partitions = claims.len(), recovered = settled.len(), "claimed");
        Ok(())
    }

    /// Publishes everything that is pending of these claims. See the module's header for the steps.
    fn publish(&mut self, mut due: Vec<TopicPartition>) -> Result<()> {
        due.retain(|claim| self.claims.get(claim).is_some_and(Claimed::has_pending));
        if due.is_empty() {
            return Ok(());
        }
        failpoint!("sink.plan.before")?;
        let mut plans = BTreeMap::new();
        for claim in &due {
            // Not tried again: a file that cannot be completed has lost its rows, and only reading them again brings them back.
            if let Some(plan) = self.sink.plan(claim).map_err(|error| error.context("closing objects"))? {
                plans.insert(claim.clone(), plan);
            }
        }
        let mut intents = BTreeMap::new();
        if let Err(error) = self.promise(&due, &plans, &mut intents) {
            // Whoever owns the claims now knows only of the plans that are recorded, and a task that was fenced has its row overwritten:
            // nobody but this task may know these. Where the promise may have been made in spite of the error, they stay.
            if !self.undecided {
                for plan in plans.values() {
                    if let Err(abort) = self.sink.abort(plan) {
                        tracing::warn!(stage = self.status.name(), error = %abort, "what was planned cannot be given up");
                    }
                }
            }
            return Err(error);
        }
        failpoint!("sink.intent.after")?;
        if !intents.is_empty() {
            let payloads: Vec<Value> = intents.values().cloned().collect();
            self.retry("publishing objects", |this| this.sink.publish(&payloads))?;
            failpoint!("sink.publish.after")?;
            self.retry("recording what was published", |this| {
                this.transaction(|this| {
                    failpoint!("sink.done.before")?;
                    let mut offsets = Vec::new();
                    for claim in intents.keys() {
                        let row = this.claims[claim].row(None);
                        this.intents.write(&mut this.producer, claim, &row)?;
                        offsets.push((claim.clone(), row.next));
                    }
                    Ok(offsets)
                })
            })?;
            failpoint!("sink.done.after")?;
        }
        for claim in &due {
            let Some(claimed) = self.claims.get_mut(claim) else { continue };
            let pending = std::mem::take(&mut claimed.pending);
            claimed.totals.add(&pending);
            claimed.letters.clear();
            claimed.committed = claimed.next;
            claimed.first = claimed.next;
            claimed.since = None;
            self.status.committed(&pending);
        }
        Ok(())
    }

    /// The steps from plans to promises; `intents` gets what was promised.
    fn promise(
        &mut self,
        due: &[TopicPartition],
        plans: &BTreeMap<TopicPartition, Value>,
        intents: &mut BTreeMap<TopicPartition, Value>,
    ) -> Result<()> {
        let planned: Vec<TopicPartition> = plans.keys().cloned().collect();
        if !planned.is_empty() {
            failpoint!("sink.plan.after")?;
            self.retry("recording what is planned", |this| {
                this.transaction(|this| {
                    let mut offsets = Vec::new();
                    for (claim, plan) in plans {
                        let claimed = &this.claims[claim];
                        let row = IntentRecord {
                            state: IntentState::Planned,
                            payload: plan.clone(),
                            first: claimed.first,
                            next: claimed.first,
                            counters: claimed.totals.clone(),
                        };
                        this.intents.write(&mut this.producer, claim, &row)?;
                        offsets.push((claim.clone(), claimed.unmoved()));
                    }
                    Ok(offsets)
                })
            })?;
            failpoint!("sink.plan.recorded")?;
            let staged = self.retry("bringing objects to the destination", |this| this.sink.stage(&planned))?;
            failpoint!("sink.stage.after")?;
            intents.extend(planned.iter().cloned().zip(staged));
        }
        let letters_to = self.topics.partitions(&self.stage.dead_letters)?;
        self.retry("promising objects", |this| {
            this.transaction(|this| {
                failpoint!("sink.intent.before")?;
                let mut offsets = Vec::new();
                for claim in due {
                    let row = this.claims[claim].row(intents.get(claim));
                    this.intents.write(&mut this.producer, claim, &row)?;
                    let letters = &this.claims[claim].letters;
                    letters.write(&mut this.producer, &this.stage.pipeline, &this.stage.dead_letters, letters_to)?;
                    offsets.push((claim.clone(), row.next));
                }
                failpoint!("sink.intent.written")?;
                Ok(offsets)
            })
        })
    }

    /// One transaction: all of `body` and the offsets that it returns, or nothing.
    fn transaction(&mut self, body: impl FnOnce(&mut Self) -> Result<Vec<(TopicPartition, i64)>>) -> Result<()> {
        self.undecided = false;
        let filled = body(self).and_then(|offsets| {
            let group = self.consumer.metadata()?;
            self.producer.send_offsets(offsets.iter().map(|(claim, next)| (claim, *next)), group)
        });
        let outcome = filled.and_then(|()| {
            self.undecided = true;
            self.producer.commit()
        });
        let was_open = self.producer.in_transaction();
        match outcome {
            Ok(()) => {
                self.undecided = false;
                Ok(())
            }
            Err(error) => match self.producer.abort() {
                Ok(()) => {
                    self.undecided = self.undecided && !was_open;
                    Err(error)
                }
                // Not even that: this producer is of no use any more, and a new one settles what it left.
                Err(abort) => Err(Error::fenced("sink.producer", format!("{error}; and aborting failed: {abort}"))),
            },
        }
    }

    /// Tries a step again while it fails for reasons outside. Meanwhile the consumer fetches nothing and stays in its group, so that the
    /// claims are kept; if there is a rebalance all the same, the stage starts over and asks what it owns.
    fn retry<T>(&mut self, doing: &str, mut step: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let mut backoff = Backoff::new();
        let mut paused = false;
        let started = Instant::now();
        loop {
            let error = match step(self) {
                Ok(done) => {
                    if paused {
                        self.consumer.resume()?;
                        tracing::info!(stage = self.status.name(), "{doing} succeeded");
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            if error.domain != Domain::External || error.retry == Retry::Never {
                return Err(error.context(doing));
            }
            if self.stop.since().is_some_and(|since| since > STOP_PATIENCE) {
                return Err(error.context(format!("gave up {doing}, because it was told to stop")));
            }
            if self.environment.until_idle && started.elapsed() > GIVE_UP {
                return Err(error.context(doing));
            }
            let wait = backoff.after(&error, false);
            tracing::warn!(stage = self.status.name(), %error, retry_in = ?wait, "{doing} failed; trying again");
            self.status.failed(&error.to_string());
            if !paused {
                self.consumer.pause()?;
                paused = true;
            }
            let until = Instant::now() + wait;
            while Instant::now() < until
                && !(self.stop.is_set() && self.stop.since().is_some_and(|since| since > STOP_PATIENCE))
            {
                if self.consumer.keep_alive(POLL)? {
                    return Err(Error::external("sink.rebalanced", format!("{doing}: partitions moved meanwhile")));
                }
            }
        }
    }
}
