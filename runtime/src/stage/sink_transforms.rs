//! Runs records through the transforms that are fused into a sink, in memory: nothing is delivered,
//! and nothing is written to Kafka.

use std::sync::Arc;

use trunkline_connector::{Batch, Reason, RecordRef, Result};

use super::dead_letters::DeadLetters;
use super::routes::Routes;
use crate::checkpoint::Counters;
use crate::plan::{Branch, Input, OnError, Route, SinkPlan, Step};

/// The running transforms of a sink.
pub struct SinkTransforms {
    routes: Routes,
    counters: Counters,
    rejected: DeadLetters,
}

impl SinkTransforms {
    /// Starts the plugins. A record that one of them rejects is reported, whatever its `on_error`
    /// says.
    pub fn start(sink: &SinkPlan) -> Result<Self> {
        let inputs: Vec<Input> = sink
            .inputs
            .iter()
            .map(|input| Input { topics: input.topics.clone(), route: reporting(&input.route) })
            .collect();
        Ok(Self {
            routes: Routes::start(&inputs, None)?,
            counters: Counters::default(),
            rejected: DeadLetters::quiet(),
        })
    }

    /// Processes records of one topic. `deliver` receives what the sink would receive.
    pub fn process(
        &mut self,
        topic: &Arc<str>,
        batch: &mut Batch,
        deliver: &mut dyn FnMut(&mut Batch) -> Result<()>,
    ) -> Result<()> {
        self.rejected.clear();
        let chain = self.routes.chain(topic)?;
        chain.ready()?;
        chain.run(batch, &mut self.counters, &mut self.rejected, &mut |out, _, _| deliver(out))
    }

    /// The transform, the record and the reason of each rejection by the last call of
    /// [`SinkTransforms::process`].
    pub fn rejected(&self) -> impl Iterator<Item = (&str, RecordRef<'_>, &Reason)> {
        self.rejected.iter()
    }

    /// The number of records that each transform has dropped, if it has dropped some.
    pub fn dropped(&self) -> impl Iterator<Item = (&str, u64)> {
        let dropped = self.counters.0.iter().map(|(component, counted)| (component.as_str(), counted.dropped));
        dropped.filter(|(_, dropped)| *dropped > 0)
    }
}

/// The route with transforms whose rejections are kept.
pub(super) fn reporting(route: &Route) -> Route {
    let branch = |branch: &Branch| Branch {
        step: Step { on_error: OnError::DeadLetter, ..branch.step.clone() },
        outputs: branch.outputs.iter().map(|(port, route)| (*port, reporting(route))).collect(),
    };
    Route { deliver: route.deliver, branches: route.branches.iter().map(branch).collect() }
}
