//! When a stage that reads topics is done (`--until-idle`): when everything that writes to its inputs in this process is done, and the
//! group has consumed and committed all that was in its inputs then.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Result, TopicPartition};

use super::status::{StageState, StageStatus};
use crate::kafka::{Cluster, GroupConsumer, table::EndProbe};

/// Looking at the ends of all partitions costs round trips: not more often than this.
const ASK_AGAIN: Duration = Duration::from_millis(100);

/// The stages whose output a stage reads.
#[derive(Clone, Default)]
pub struct Upstream {
    /// Their statuses.
    pub stages: Vec<Arc<StageStatus>>,
}

impl Upstream {
    /// Will nothing more come from them? A stage that failed counts too: the run ends with its error, after what could be moved was.
    pub fn is_over(&self) -> bool {
        self.stages.iter().all(|stage| stage.is_over())
    }

    /// Did one of them fail?
    pub fn failed(&self) -> bool {
        self.stages.iter().any(|stage| matches!(stage.state(), StageState::Failed(_)))
    }
}

/// Decides whether a group has consumed everything.
pub(super) struct Drain<'a> {
    cluster: &'a Cluster,
    upstream: &'a Upstream,
    probe: Option<EndProbe>,
    /// The ends of all partitions when the last upstream stage was done: later records of others do not keep the run alive.
    targets: BTreeMap<TopicPartition, i64>,
    asked: Option<Instant>,
}

impl<'a> Drain<'a> {
    pub(super) fn new(cluster: &'a Cluster, upstream: &'a Upstream) -> Self {
        Self { cluster, upstream, probe: None, targets: BTreeMap::new(), asked: None }
    }

    /// Is everything consumed and committed by the group, whichever member did it? Ask when the consumer is quiet and nothing is
    /// pending.
    pub(super) fn is_complete(&mut self, consumer: &GroupConsumer) -> Result<bool> {
        if !self.upstream.is_over() || self.asked.is_some_and(|at| at.elapsed() < ASK_AGAIN) {
            return Ok(false);
        }
        self.asked = Some(Instant::now());
        let probe = match &self.probe {
            Some(probe) => probe,
            None => self.probe.insert(EndProbe::new(self.cluster)?),
        };
        if self.targets.is_empty() {
            for claim in consumer.subscribed_partitions()? {
                let high = probe.high(&claim.topic, claim.partition)?;
                self.targets.insert(claim, high);
            }
        }
        let claims: Vec<TopicPartition> = self.targets.keys().cloned().collect();
        for (claim, committed) in claims.iter().zip(consumer.committed(&claims)?) {
            let target = self.targets[claim];
            let drained = probe.is_drained(&claim.topic, claim.partition, committed, target)?;
            tracing::debug!(topic = %claim.topic, partition = claim.partition, committed, target, drained, "looked at the end");
            if !drained {
                return Ok(false);
            }
        }
        Ok(true)
    }
}
