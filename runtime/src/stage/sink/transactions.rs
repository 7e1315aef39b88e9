//! The Kafka side of a sink task: its consumer and producer, the state of its topic partitions, and
//! the transactions that record rows, offsets and dead letters together.
//!
//! Every transaction calls `send_offsets`, even when no offset advances: the broker checks the
//! group generation there. Without this, a task that hung could overwrite the prepared intent of
//! its successor (I4).

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::Value;
use trunkline_connector::{Domain, Error, Result, Retry, Schema, TopicPartition};

use super::partition_state::PartitionState;
use super::stop_points::Rejected;
use super::{POLL, SinkStage};
use crate::checkpoint::{IntentRecord, Intents, SupersedingRows};
use crate::kafka::{GroupConsumer, TransactionalProducer};
use crate::stage::backoff::Backoff;
use crate::stage::dead_letters::{DeadLetters, RunName};
use crate::stage::output::Topics;
use crate::stage::status::StageStatus;
use crate::stage::stop_signal::StopSignal;
use crate::stage::supervise::{GIVE_UP, SHUTDOWN_GRACE};
use crate::stage::worker_context::WorkerContext;

/// See the module's header.
pub(super) struct Transactions<'a> {
    pub(super) stage: &'a SinkStage,
    pub(super) context: &'a WorkerContext,
    pub(super) stop: &'a StopSignal,
    pub(super) status: &'a StageStatus,
    pub(super) consumer: GroupConsumer,
    pub(super) partitions: BTreeMap<TopicPartition, PartitionState>,
    pub(super) producer: TransactionalProducer,
    component: String,
    intents: Intents,
    superseding: SupersedingRows,
    topics: Topics,
    commit_in_doubt: bool,
    /// The place of the rejection that stops the sink.
    pub(super) rejected_at: Option<Rejected>,
}

impl<'a> Transactions<'a> {
    pub(super) fn new(
        stage: &'a SinkStage,
        context: &'a WorkerContext,
        stop: &'a StopSignal,
        status: &'a StageStatus,
        producer: TransactionalProducer,
        consumer: GroupConsumer,
    ) -> Self {
        let component = context.names.component(&stage.pipeline, &stage.plan.name);
        Self {
            stage,
            context,
            stop,
            status,
            consumer,
            partitions: BTreeMap::new(),
            producer,
            intents: Intents::of(&context.cluster, &component),
            superseding: SupersedingRows::of(&context.cluster, &component),
            component,
            topics: Topics::new(context, None),
            commit_in_doubt: false,
            rejected_at: None,
        }
    }

    /// The last transaction may have been committed although it returned an error.
    pub(super) fn commit_in_doubt(&self) -> bool {
        self.commit_in_doubt
    }

    /// The last row of each topic partition of this sink.
    pub(super) fn load_intents(&mut self) -> Result<BTreeMap<TopicPartition, IntentRecord>> {
        self.intents.load(&self.context.cluster)
    }

    /// The output that tasks of a superseding replay have prepared and that is not committed yet.
    pub(super) fn load_staged(&mut self) -> Result<Vec<(TopicPartition, Value)>> {
        self.superseding.staged(&self.context.cluster)
    }

    /// Writes prepared output of a superseding replay in the open transaction.
    pub(super) fn write_staged(&mut self, partition: &TopicPartition, first: i64, committable: &Value) -> Result<()> {
        self.superseding.stage(&mut self.producer, partition, first, committable)
    }

    /// The column types that tasks of this sink have inferred, with their topics. A replay that
    /// supersedes begins with those of the live sink, so that its files have the same types.
    pub(super) fn load_types(&mut self) -> Result<Vec<(Arc<str>, Schema)>> {
        let mut types = self.context.schemas.inferred(&self.component)?;
        if let Some(live) = self.stage.bounds.as_ref().and_then(|bounds| bounds.supersedes.as_deref()) {
            types.extend(self.context.schemas.inferred(live)?);
        }
        Ok(types)
    }

    /// Writes the types inferred from the topic of a topic partition in the open transaction.
    pub(super) fn write_types(&mut self, partition: &TopicPartition, types: &Schema) -> Result<()> {
        self.context.schemas.write_inferred(&mut self.producer, &self.component, partition, types)
    }

    /// Topic partitions with processed records that wait for a commit.
    pub(super) fn pending_partitions(&self) -> Vec<TopicPartition> {
        self.partitions
            .iter()
            .filter(|(_, state)| state.has_pending())
            .map(|(partition, _)| partition.clone())
            .collect()
    }

    /// Bytes of the dead letters that wait for a commit.
    pub(super) fn dead_letter_bytes(&self) -> usize {
        self.partitions.values().map(|state| state.dead_letters.bytes()).sum()
    }

    /// Writes a topic partition's row in the open transaction.
    pub(super) fn write_intent(&mut self, partition: &TopicPartition, row: &IntentRecord) -> Result<()> {
        self.intents.write(&mut self.producer, partition, row)
    }

    /// Writes dead letters in the open transaction.
    pub(super) fn write_dead_letters(&mut self, dead_letters: &DeadLetters) -> Result<()> {
        let topic = &self.stage.dead_letters;
        let partitions = self.topics.partitions(topic)?;
        let replay = self.stage.bounds.as_ref().map(|bounds| bounds.run.as_str());
        let run = RunName { pipeline: &self.stage.pipeline, replay };
        dead_letters.write(&mut self.producer, &run, topic, partitions)
    }

    /// Writes the pending dead letters of a topic partition in the open transaction.
    pub(super) fn write_pending_dead_letters(&mut self, partition: &TopicPartition) -> Result<()> {
        let Some(state) = self.partitions.get_mut(partition) else { return Ok(()) };
        let dead_letters = std::mem::take(&mut state.dead_letters);
        let written = self.write_dead_letters(&dead_letters);
        if let Some(state) = self.partitions.get_mut(partition) {
            state.dead_letters = dead_letters;
        }
        written
    }

    /// Runs one transaction: all that `body` writes and the offsets that it returns, or nothing.
    pub(super) fn run(&mut self, body: impl FnOnce(&mut Self) -> Result<Vec<(TopicPartition, i64)>>) -> Result<()> {
        self.commit_in_doubt = false;
        let filled = body(self).and_then(|offsets| {
            let group = self.consumer.metadata()?;
            self.producer.send_offsets(offsets.iter().map(|(partition, next)| (partition, *next)), &group)
        });
        let outcome = filled.and_then(|()| {
            self.commit_in_doubt = true;
            self.producer.commit()
        });
        let was_open = self.producer.in_transaction();
        match outcome {
            Ok(()) => {
                self.commit_in_doubt = false;
                Ok(())
            }
            Err(error) => match self.producer.abort() {
                Ok(()) => {
                    self.commit_in_doubt = self.commit_in_doubt && !was_open;
                    Err(error)
                }
                // The producer cannot be used again. A new one aborts its transaction.
                Err(abort) => Err(Error::fenced("sink.producer", format!("{error}; and aborting failed: {abort}"))),
            },
        }
    }

    /// Repeats a step while it fails with an external error. Meanwhile the consumer fetches nothing
    /// and stays in its group, so the task keeps its assignment. If a rebalance happens all the
    /// same, the stage starts again.
    pub(super) fn retry<T>(&mut self, doing: &str, mut step: impl FnMut(&mut Self) -> Result<T>) -> Result<T> {
        let mut backoff = Backoff::new();
        let mut paused = false;
        let started = Instant::now();
        loop {
            let error = match step(self) {
                Ok(done) => {
                    if paused {
                        self.consumer.resume();
                        tracing::info!(stage = self.status.name(), "{doing} succeeded");
                    }
                    return Ok(done);
                }
                Err(error) => error,
            };
            if error.domain != Domain::External || error.retry == Retry::Never {
                return Err(error.context(doing));
            }
            if self.shutdown_grace_is_over() {
                return Err(error.context(format!("gave up {doing}, because the worker stops")));
            }
            if self.context.until_idle && started.elapsed() > GIVE_UP {
                return Err(error.context(doing));
            }
            let wait = backoff.after(&error, false);
            tracing::warn!(stage = self.status.name(), %error, retry_in = ?wait, "{doing} failed; retrying");
            self.status.failed(&error.to_string());
            if !paused {
                self.consumer.pause();
                paused = true;
            }
            let until = Instant::now() + wait;
            while Instant::now() < until && !self.shutdown_grace_is_over() {
                if self.consumer.keep_alive(POLL)? {
                    return Err(Error::external("sink.rebalanced", format!("{doing}: the group rebalanced meanwhile")));
                }
            }
        }
    }

    /// The worker stops, and has waited long enough for the destination. The topic partitions are
    /// left to their next owner.
    pub(super) fn shutdown_grace_is_over(&self) -> bool {
        self.stop.since().is_some_and(|since| since > SHUTDOWN_GRACE)
    }
}
