//! Moves the committed position of a component that does not run.

use std::collections::BTreeMap;

use trunkline_connector::{Domain, Error, PositionChange, Result, TopicPartition};

use super::{IntentRecord, IntentState, Intents, Positions, TaskOwner, or_empty};
use crate::kafka::{Cluster, GroupOffsets, TransactionalProducer};

/// A change of a position is a few records.
const BUFFER_BYTES: usize = 1 << 20;

/// The code of the error of a component that runs.
pub const POSITION_IN_USE: &str = "offsets.in_use";

/// A component whose position is moved.
#[derive(Debug, Clone, Copy)]
pub struct Moved<'a> {
    /// Its name for people: `{pipeline}.{component}`.
    pub name: &'a str,
    /// Its name in Kafka.
    pub task: &'a str,
    /// A sink has rows of intents that must agree with its position.
    pub is_sink: bool,
}

impl Moved<'_> {
    /// An error if a task of the component is in its group.
    pub fn require_stopped(&self, offsets: &GroupOffsets) -> Result<()> {
        if offsets.members()? == 0 {
            return Ok(());
        }
        let message = format!(
            "`{}` is running: pause it, or stop the workers that run it, and try again. A worker that was killed counts as \
             running for 10 s",
            self.name
        );
        Err(Error::config(POSITION_IN_USE, message))
    }

    /// Commits the next offset of each topic partition.
    pub fn to(&self, cluster: &Cluster, offsets: &GroupOffsets, next: &BTreeMap<TopicPartition, i64>) -> Result<()> {
        self.to_with(cluster, offsets, next, || Ok(()))
    }

    /// The same, after `change`, while no task of the component can run. Nothing is committed if it
    /// fails.
    pub fn to_with(
        &self,
        cluster: &Cluster,
        offsets: &GroupOffsets,
        next: &BTreeMap<TopicPartition, i64>,
        change: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let intents = self.is_sink.then(|| Intents::of(cluster, self.task));
        offsets.change(next, |producer| {
            let Some(intents) = &intents else { return change() };
            let mut moved = Vec::new();
            // The group has no other member, so these rows are the last ones.
            for (partition, row) in or_empty(intents.load(cluster))? {
                let Some(next) = next.get(&partition) else { continue };
                let row = self.row(&partition, row, *next)?;
                moved.push((partition, row));
            }
            change()?;
            moved.iter().try_for_each(|(partition, row)| intents.write(producer, partition, row))
        })
    }

    /// The row of a partition after its position was moved. A plan stays, so that the sink aborts
    /// it.
    fn row(&self, partition: &TopicPartition, row: IntentRecord, next: i64) -> Result<IntentRecord> {
        if row.state == IntentState::Prepared {
            let message = format!(
                "`{}` has prepared the output of the offsets {} to {} of {partition} and has not committed it, because its \
                 worker was killed: start the pipeline, so that it commits the output, stop it, and try again",
                self.name,
                row.first,
                row.next - 1
            );
            return Err(Error::data("offsets.prepared_output", message));
        }
        Ok(IntentRecord { first: next, next, ..row })
    }
}

/// A source whose position is moved.
#[derive(Debug, Clone, Copy)]
pub struct MovedSource<'a> {
    /// Its name for people: `{pipeline}.{component}`.
    pub name: &'a str,
    /// Its task in Kafka: the transactional id, and the owner of its rows.
    pub task: &'a str,
    /// What the name of the task stands for.
    pub owner: &'a TaskOwner,
}

impl MovedSource<'_> {
    /// Writes changes of the position, if it is still `before`.
    ///
    /// The transactional id is that of the task (I4). A task that runs is fenced by this, and
    /// starts again from the changed position; one that starts meanwhile fences this change, which
    /// is not written then. So the task never commits over a changed position, and the change never
    /// takes back what the task has committed (I1).
    pub fn to(&self, cluster: &Cluster, before: &[(String, Vec<u8>)], changes: &[PositionChange]) -> Result<()> {
        let write = || {
            let mut producer = TransactionalProducer::new(cluster, self.task, BUFFER_BYTES)?;
            let mut positions = Positions::load(cluster, self.task, self.task)?;
            positions.claim(self.owner.clone())?;
            if positions.parts != before {
                let message = format!(
                    "the position of `{}` has changed meanwhile, because a worker has run it: nothing was changed. Pause the source, and \
                     try again",
                    self.name
                );
                return Err(Error::config("offsets.changed", message));
            }
            positions.write(&mut producer, changes, &positions.counters)?;
            producer.commit()
        };
        write().map_err(|error| match error.domain {
            Domain::Fenced => source_in_use(self.name, "a worker has started it meanwhile, and nothing was changed"),
            _ => error,
        })
    }
}

/// The error of a source that runs.
pub fn source_in_use(name: &str, reason: &str) -> Error {
    let message = format!(
        "`{name}` is running ({reason}): pause it with `trunkline pause {name}`, or stop the workers that run it, and try again. A worker \
         that was killed counts as running for 10 s"
    );
    Error::config(POSITION_IN_USE, message)
}

/// The error of a request that cannot move a source.
pub fn source_stays(name: &str) -> Error {
    let message = format!(
        "`{name}` is a source, and its position cannot be moved here: use `trunkline offsets set`, which checks the position with the \
         external system"
    );
    Error::config("offsets.source", message)
}
