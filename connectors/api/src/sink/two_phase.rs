//! Sinks that make output visible in two phases.
//!
//! The stage drives the steps for each topic partition, so that offsets and output move together
//! (I2 a) wherever a task dies:
//!
//! 1. [`SinkWriter::write`] adds records to buffered output, which no reader sees.
//! 2. [`TwoPhaseSink::seal`] completes the buffered output of a topic partition and names what will
//!    be created at the destination: the *plan*. The stage records the plan in Kafka before
//!    anything is created, so that the next owner finds and [aborts](TwoPhaseSink::abort) what a
//!    crash left behind.
//! 3. [`TwoPhaseSink::prepare`] brings the bytes to the destination without making them visible,
//!    and returns the *committable*: all that `commit` needs. The stage records it as the prepared
//!    intent, in one transaction with the consumer offsets and dead letters.
//! 4. [`TwoPhaseSink::commit`] makes the output visible. It may be repeated, also by the next owner
//!    of the topic partition.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::batch::Batch;
use crate::error::{Error, Result};
use crate::rejection::Rejections;
use crate::schema::Schema;
use crate::sink::{Buffered, TopicPartition};

/// The buffering part of a sink. It runs in the task's own thread and may block there: a call that
/// cannot finish returns an external error within a minute.
pub trait SinkWriter: Send {
    /// Adds records of one topic partition to the buffered output, in order of offsets. A record
    /// that cannot be written goes to `rejected`; the others are written. An offset may occur
    /// several times (a transform emitted several records) or be missing.
    ///
    /// After an error the stage opens a new sink and reads again from the committed offsets.
    fn write(&mut self, partition: &TopicPartition, records: &Batch, rejected: &mut Rejections) -> Result<()>;

    /// What is buffered for a topic partition and not sealed yet.
    fn buffered(&self, partition: &TopicPartition) -> Buffered;

    /// Drops the buffered output of a topic partition: the partition was revoked or is read again.
    /// Sealed output is not affected.
    fn discard(&mut self, partition: &TopicPartition);

    /// Bytes of memory in use; the stage reserves them from the byte budget (I6).
    fn memory_bytes(&self) -> usize {
        0
    }

    /// Memory is short (I6): moves the largest buffers to disk. The output does not change. After
    /// an error the stage opens a new sink, as after an error of [`write`](SinkWriter::write).
    fn spill(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A sink with two phases. See the module's header for the protocol.
///
/// After an external error of `prepare`, `commit`, `abort` or `recover` the stage calls the same
/// step again with the same arguments. Plans and committables are kept in Kafka as JSON: a later
/// version must read what an earlier one wrote.
pub trait TwoPhaseSink: SinkWriter {
    /// Names the external objects that `prepare` will create.
    type Plan: Serialize + DeserializeOwned + Send;
    /// Contains all that `commit` needs to make the output visible.
    type Committable: Serialize + DeserializeOwned + Send;

    /// Completes the buffered output of a topic partition; later records start new output.
    /// `Ok(None)`: nothing was buffered.
    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<Self::Plan>>;

    /// Brings sealed output to the destination without making it visible. Returns one committable
    /// for each plan, in order. Records that only the destination can judge are added to `rejected`
    /// here, and left out of the output. A sink that no longer has them returns an error with the
    /// code [`READ_AGAIN`](crate::READ_AGAIN).
    fn prepare(&mut self, plans: &[Self::Plan], rejected: &mut Rejections) -> Result<Vec<Self::Committable>>;

    /// Makes prepared output visible. Repeating it changes nothing, whether this task, an earlier
    /// one or both at once do it.
    fn commit(&mut self, committables: &[Self::Committable]) -> Result<()>;

    /// Removes all that `prepare` may have created for a plan without an intent, here and at the
    /// destination. May be repeated.
    fn abort(&mut self, plan: &Self::Plan) -> Result<()>;

    /// A topic partition was assigned: removes what earlier tasks left for it, except the output of
    /// the `pending` committables, which the stage commits next.
    fn recover(&mut self, partition: &TopicPartition, pending: &[Self::Committable]) -> Result<()> {
        let _ = (partition, pending);
        Ok(())
    }

    /// Checks that prepared output can still be committed, in whatever time has passed since. The
    /// stage asks before it commits the output of a replay that supersedes files.
    fn check_prepared(&mut self, committables: &[Self::Committable]) -> Result<()> {
        let _ = committables;
        Ok(())
    }

    /// Removes prepared output that will never be committed. May be repeated. Required for
    /// [`Supersede::Files`](crate::Supersede::Files) and
    /// [`Supersede::Rows`](crate::Supersede::Rows).
    fn discard_prepared(&mut self, committables: &[Self::Committable]) -> Result<()> {
        let _ = committables;
        Err(Error::internal("sink.discard_prepared", "the connector cannot remove prepared output"))
    }

    /// The name of an output of this sink at the destination that holds records of one of these
    /// topic partitions. The stage asks before it starts without any state of them: all records
    /// would be written again.
    fn existing_output(&mut self, partitions: &[TopicPartition]) -> Result<Option<String>> {
        let _ = partitions;
        Ok(None)
    }

    /// The column types that were inferred from records of a topic, if they changed since the last
    /// call. The stage calls it after [`seal`](TwoPhaseSink::seal), and stores the types with the
    /// intent.
    fn inferred_types(&mut self, topic: &Arc<str>) -> Result<Option<Schema>> {
        let _ = topic;
        Ok(None)
    }

    /// The types that a task of this sink has inferred from records of a topic. Called when a topic
    /// partition was assigned, before its first record, once for each task that stored some.
    fn restore_types(&mut self, topic: &Arc<str>, types: &Schema) {
        let _ = (topic, types);
    }
}

/// A [`TwoPhaseSink`] whose plans and committables are JSON, as the stage keeps them. Connectors
/// implement [`TwoPhaseSink`]; this trait is implemented for all of those.
pub trait ErasedTwoPhaseSink: SinkWriter {
    /// See [`TwoPhaseSink::seal`].
    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<Value>>;
    /// See [`TwoPhaseSink::prepare`].
    fn prepare(&mut self, plans: &[Value], rejected: &mut Rejections) -> Result<Vec<Value>>;
    /// See [`TwoPhaseSink::commit`].
    fn commit(&mut self, committables: &[Value]) -> Result<()>;
    /// See [`TwoPhaseSink::abort`].
    fn abort(&mut self, plan: &Value) -> Result<()>;
    /// See [`TwoPhaseSink::recover`].
    fn recover(&mut self, partition: &TopicPartition, pending: &[Value]) -> Result<()>;
    /// See [`TwoPhaseSink::check_prepared`].
    fn check_prepared(&mut self, committables: &[Value]) -> Result<()>;
    /// See [`TwoPhaseSink::discard_prepared`].
    fn discard_prepared(&mut self, committables: &[Value]) -> Result<()>;
    /// See [`TwoPhaseSink::existing_output`].
    fn existing_output(&mut self, partitions: &[TopicPartition]) -> Result<Option<String>>;
    /// See [`TwoPhaseSink::inferred_types`].
    fn inferred_types(&mut self, topic: &Arc<str>) -> Result<Option<Schema>>;
    /// See [`TwoPhaseSink::restore_types`].
    fn restore_types(&mut self, topic: &Arc<str>, types: &Schema);
}

impl<S: TwoPhaseSink> ErasedTwoPhaseSink for S {
    fn seal(&mut self, partition: &TopicPartition) -> Result<Option<Value>> {
        TwoPhaseSink::seal(self, partition)?.as_ref().map(to_json).transpose()
    }

    fn prepare(&mut self, plans: &[Value], rejected: &mut Rejections) -> Result<Vec<Value>> {
        let plans = plans.iter().map(from_json).collect::<Result<Vec<_>>>()?;
        let committables = TwoPhaseSink::prepare(self, &plans, rejected)?;
        if committables.len() != plans.len() {
            let message = format!("prepare returned {} committables for {} plans", committables.len(), plans.len());
            return Err(Error::internal("sink.committables", message));
        }
        committables.iter().map(to_json).collect()
    }

    fn commit(&mut self, committables: &[Value]) -> Result<()> {
        TwoPhaseSink::commit(self, &committables.iter().map(from_json).collect::<Result<Vec<_>>>()?)
    }

    fn abort(&mut self, plan: &Value) -> Result<()> {
        TwoPhaseSink::abort(self, &from_json(plan)?)
    }

    fn recover(&mut self, partition: &TopicPartition, pending: &[Value]) -> Result<()> {
        TwoPhaseSink::recover(self, partition, &pending.iter().map(from_json).collect::<Result<Vec<_>>>()?)
    }

    fn check_prepared(&mut self, committables: &[Value]) -> Result<()> {
        TwoPhaseSink::check_prepared(self, &committables.iter().map(from_json).collect::<Result<Vec<_>>>()?)
    }

    fn discard_prepared(&mut self, committables: &[Value]) -> Result<()> {
        TwoPhaseSink::discard_prepared(self, &committables.iter().map(from_json).collect::<Result<Vec<_>>>()?)
    }

    fn existing_output(&mut self, partitions: &[TopicPartition]) -> Result<Option<String>> {
        TwoPhaseSink::existing_output(self, partitions)
    }

    fn inferred_types(&mut self, topic: &Arc<str>) -> Result<Option<Schema>> {
        TwoPhaseSink::inferred_types(self, topic)
    }

    fn restore_types(&mut self, topic: &Arc<str>, types: &Schema) {
        TwoPhaseSink::restore_types(self, topic, types);
    }
}

fn to_json(state: &impl Serialize) -> Result<Value> {
    serde_json::to_value(state).map_err(|error| Error::internal("sink.encode_intent", error.to_string()))
}

fn from_json<T: DeserializeOwned>(state: &Value) -> Result<T> {
    T::deserialize(state).map_err(|error| {
        Error::data(
            "sink.unreadable_intent",
            format!(
                "the recorded intent of the sink cannot be read: {error}. A later version of Trunkline may have written it, or the \
                 sink's connector was changed: run the version and the connector that wrote it until the sink has committed"
            ),
        )
    })
}
