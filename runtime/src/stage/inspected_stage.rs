//! Runs records through the transforms of a sink or of a separate transform, in memory: nothing is
//! delivered, and nothing is written to Kafka.

use std::collections::BTreeMap;

use trunkline_connector::{Batch, Reason, RecordRef, Result, TopicPartition};
use trunkline_transform_host::StateStore;

use super::chain::RunningTransform;
use super::dead_letters::DeadLetters;
use super::lookup_table::LookupTable;
use super::output::render_topic;
use super::routes::Routes;
use crate::checkpoint::Counters;
use crate::kafka::Cluster;
use crate::plan::{Branch, Input, OnError, Route, SinkPlan, Step, TransformPlan};

/// The running transforms of a stage.
pub struct InspectedStage {
    /// The transforms that are fused into the stage.
    routes: Routes,
    /// The stage's own transform.
    own: Option<OwnTransform>,
    counters: Counters,
    rejected: DeadLetters,
}

/// A separate transform.
struct OwnTransform {
    plan: TransformPlan,
    running: RunningTransform,
    /// The state of each topic partition. It begins empty, as that of a replay.
    states: BTreeMap<TopicPartition, StateStore>,
    /// The table of a lookup, as it is now.
    table: Option<LookupTable>,
}

impl InspectedStage {
    /// Starts the plugins of a sink. A record that one of them rejects is reported, whatever its
    /// `on_error` says.
    pub fn of_sink(sink: &SinkPlan) -> Result<Self> {
        Self::start(&sink.inputs, None)
    }

    /// The same for a separate transform.
    pub fn of_transform(plan: &TransformPlan, cluster: &Cluster) -> Result<Self> {
        let running = RunningTransform::start(&reporting_step(&plan.step), &None)?;
        let table = plan.table.as_ref().map(|table| LookupTable::load(cluster, table)).transpose()?;
        Self::start(&plan.inputs, Some(OwnTransform { plan: plan.clone(), running, states: BTreeMap::new(), table }))
    }

    fn start(inputs: &[Input], own: Option<OwnTransform>) -> Result<Self> {
        let inputs: Vec<Input> =
            inputs.iter().map(|input| Input { topics: input.topics.clone(), route: reporting(&input.route) }).collect();
        Ok(Self {
            routes: Routes::start(&inputs, None)?,
            own,
            counters: Counters::default(),
            rejected: DeadLetters::quiet(),
        })
    }

    /// Processes records of one topic partition. `deliver` receives what the sink would receive, or
    /// what the transform would write.
    pub fn process(
        &mut self,
        partition: &TopicPartition,
        batch: &mut Batch,
        deliver: &mut dyn FnMut(&mut Batch) -> Result<()>,
    ) -> Result<()> {
        self.rejected.clear();
        let chain = self.routes.chain(&partition.topic)?;
        chain.ready()?;
        let own = &mut self.own;
        if let Some(own) = own {
            own.running.ready()?;
        }
        chain.run(batch, &mut self.counters, &mut self.rejected, &mut |out, counters, rejected| {
            if let Some(own) = own {
                own.process(partition, out, counters, rejected)?;
            }
            deliver(out)
        })
    }

    /// The topic to which a separate transform would write a record. `None`: a sink, or the record
    /// has no value for the name.
    pub fn topic_of(&self, record: RecordRef<'_>) -> Option<String> {
        let plan = &self.own.as_ref()?.plan;
        let port = record.entry().port;
        let found = plan.port_topics.iter().find(|(known, _)| *known == port);
        let template = found.map_or(&plan.topic, |(_, topic)| topic);
        let mut name = String::new();
        render_topic(template, record, &mut name).ok()?;
        Some(name)
    }

    /// The transform, the record and the reason of each rejection by the last call of
    /// [`InspectedStage::process`].
    pub fn rejected(&self) -> impl Iterator<Item = (&str, RecordRef<'_>, &Reason)> {
        self.rejected.iter()
    }

    /// The number of records that each transform has dropped, if it has dropped some.
    pub fn dropped(&self) -> impl Iterator<Item = (&str, u64)> {
        let dropped = self.counters.0.iter().map(|(component, counted)| (component.as_str(), counted.dropped));
        dropped.filter(|(_, dropped)| *dropped > 0)
    }
}

impl OwnTransform {
    fn process(
        &mut self,
        partition: &TopicPartition,
        batch: &mut Batch,
        counters: &mut Counters,
        rejected: &mut DeadLetters,
    ) -> Result<()> {
        let mut state = match self.plan.state {
            Some(limit) if !self.states.contains_key(partition) => {
                Some(self.states.entry(partition.clone()).or_insert_with(|| StateStore::new(limit.max_bytes)))
            }
            Some(_) => self.states.get_mut(partition),
            None => None,
        };
        let store = self.table.as_mut().map(LookupTable::store).or(state.as_deref_mut());
        self.running.process(batch, counters, rejected, store)?;
        if let Some(state) = state {
            state.commit();
        }
        Ok(())
    }
}

/// The route with transforms whose rejections are kept.
pub(super) fn reporting(route: &Route) -> Route {
    let branch = |branch: &Branch| Branch {
        step: reporting_step(&branch.step),
        outputs: branch.outputs.iter().map(|(port, route)| (*port, reporting(route))).collect(),
    };
    Route { deliver: route.deliver, branches: route.branches.iter().map(branch).collect() }
}

fn reporting_step(step: &Step) -> Step {
    Step { on_error: OnError::DeadLetter, ..step.clone() }
}
