//! Moves the committed position of a sink or transform that does not run.

use std::collections::BTreeMap;

use trunkline_connector::{Error, Result, TopicPartition};

use super::{CHECKPOINTS, IntentRecord, IntentState, Intents, or_empty};
use crate::kafka::{Cluster, GroupOffsets};

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
        let topic = cluster.own_topic(CHECKPOINTS);
        let intents = self.is_sink.then(|| Intents::of(cluster, self.task));
        offsets.change(next, &topic, |producer| {
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

/// The error of moving a source.
pub fn source_stays(name: &str, has_snapshots: bool) -> Error {
    let verb = match has_snapshots {
        true => "read tables again with `trunkline snapshot`",
        false => "give the source another name, and it reads its input from the beginning",
    };
    Error::config("offsets.source", format!("`{name}` is a source, and its position can only be shown: {verb}"))
}
