//! Decides when a stage that reads topics is done (`--until-idle`): when all stages of this process
//! that write to its inputs are done, and the group has committed all records that its inputs held
//! at that time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Result, TopicPartition};

use super::status::{StageState, StageStatus};
use crate::kafka::{Cluster, GroupConsumer, topic_reader::EndProbe};
use crate::plan::TopicSelector;

/// Time between two checks, because each costs round trips for all partitions.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The stages whose output a stage reads.
#[derive(Clone, Default)]
pub struct Upstream {
    /// Their statuses.
    pub stages: Vec<Arc<StageStatus>>,
    /// The topics that the transforms among them read.
    pub transformed: Vec<TopicSelector>,
}

impl Upstream {
    /// The stages write no further records. A failed stage counts too: the run ends with its error
    /// after all other records were processed.
    pub fn is_over(&self) -> bool {
        self.stages.iter().all(|stage| stage.is_over())
    }

    /// One of the stages failed.
    pub fn failed(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage.state(), StageState::Failed(_)))
    }
}

/// Decides whether a group has consumed all records.
pub(super) struct Drain<'a> {
    cluster: &'a Cluster,
    upstream: &'a Upstream,
    probe: Option<EndProbe>,
    /// The ends of all partitions when the last upstream stage was done. Later records of other
    /// writers do not extend the run.
    targets: BTreeMap<TopicPartition, i64>,
    asked: Option<Instant>,
}

impl<'a> Drain<'a> {
    pub(super) fn new(cluster: &'a Cluster, upstream: &'a Upstream) -> Self {
        Self { cluster, upstream, probe: None, targets: BTreeMap::new(), asked: None }
    }

    /// Ends at these offsets, whatever the topics hold.
    pub(super) fn with_targets(self, targets: BTreeMap<TopicPartition, i64>) -> Self {
        Self { targets, ..self }
    }

    /// The group has consumed and committed all records, by any of its members. Call it when no
    /// record is pending.
    pub(super) fn is_complete(&mut self, consumer: &GroupConsumer) -> Result<bool> {
        if !self.upstream.is_over() || self.asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return Ok(false);
        }
        let probe = self.probe.get_or_insert_with(|| EndProbe::new(self.cluster));
        if self.targets.is_empty() {
            for partition in consumer.subscribed_partitions()? {
                let high = probe.high(&partition.topic, partition.partition)?;
                self.targets.insert(partition, high);
            }
        }
        // No broker has to be asked to know that this member has not reached an end.
        if self.targets.iter().any(|(partition, target)| consumer.has_reached(partition, *target) == Some(false)) {
            return Ok(false);
        }
        self.asked = Some(Instant::now());
        let partitions: Vec<TopicPartition> = self.targets.keys().cloned().collect();
        for (partition, committed) in partitions.iter().zip(consumer.committed(&partitions)?) {
            let target = self.targets[partition];
            let drained = probe.is_drained(&partition.topic, partition.partition, committed, target)?;
            tracing::debug!(topic = %partition.topic, partition = partition.partition, committed, target, drained, "checked the end of a partition");
            if !drained {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
