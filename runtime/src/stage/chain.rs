//! Transforms that are fused into a stage: batches pass the plan's tree of steps in the stage's
//! thread, without a topic between.
//!
//! Each branch has its own plugin instance. A batch that passes several branches is copied for each
//! but the last.

use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Rejections, Result, Schema};
use trunkline_transform_host::{Instance, SchemaStore, StateStore};

use super::dead_letters::DeadLetters;
use super::status::StageStatus;
use crate::checkpoint::Counters;
use crate::plan::{Branch, Route, Step};

/// The schemas that records name. Without them, changed records lose their schema.
pub(super) type SchemasOfRecords = Option<Arc<dyn SchemaStore>>;

/// A tree of running transforms.
pub(super) struct Chain {
    deliver: bool,
    branches: Vec<RunningBranch>,
}

struct RunningBranch {
    transform: RunningTransform,
    outputs: Vec<(u16, Chain)>,
}

/// A running plugin.
pub(super) struct RunningTransform {
    step: Step,
    instance: Instance,
    rejected: Rejections,
    /// The time that the plugin ran since the last report.
    ran: Duration,
}

impl Chain {
    /// Starts the plugins of a route.
    pub(super) fn start(route: &Route, schemas: &SchemasOfRecords) -> Result<Self> {
        let start_branch = |branch: &Branch| -> Result<RunningBranch> {
            let outputs = branch.outputs.iter().map(|(port, route)| Ok((*port, Self::start(route, schemas)?)));
            let outputs = outputs.collect::<Result<_>>()?;
            Ok(RunningBranch { transform: RunningTransform::start(&branch.step, schemas)?, outputs })
        };
        let branches = route.branches.iter().map(start_branch).collect::<Result<_>>()?;
        Ok(Self { deliver: route.deliver, branches })
    }

    /// Checks that another batch may start; see [`Instance::ready`]. Commit the processed records
    /// before you return the error, or they are processed again.
    pub(super) fn ready(&mut self) -> Result<()> {
        self.branches.iter_mut().try_for_each(|branch| {
            branch.transform.ready()?;
            branch.outputs.iter_mut().try_for_each(|(_, chain)| chain.ready())
        })
    }

    /// Reports how long the plugins ran since the last report.
    pub(super) fn report(&mut self, status: &StageStatus) {
        for branch in &mut self.branches {
            branch.transform.report(status);
            branch.outputs.iter_mut().for_each(|(_, chain)| chain.report(status));
        }
    }

    /// Adds the schemas that the plugins have derived so far.
    pub(super) fn derived_schemas(&self, derived: &mut Vec<Arc<Schema>>) {
        for branch in &self.branches {
            derived.extend_from_slice(branch.transform.derived_schemas());
            branch.outputs.iter().for_each(|(_, chain)| chain.derived_schemas(derived));
        }
    }

    /// Runs a batch through the transforms; calls `deliver` with each resulting batch, in order.
    pub(super) fn run(
        &mut self,
        batch: &mut Batch,
        counters: &mut Counters,
        dead_letters: &mut DeadLetters,
        deliver: &mut dyn FnMut(&mut Batch, &mut Counters, &mut DeadLetters) -> Result<()>,
    ) -> Result<()> {
        if self.branches.is_empty() {
            return if self.deliver { deliver(batch, counters, dead_letters) } else { Ok(()) };
        }
        if self.deliver {
            deliver(&mut batch.clone(), counters, dead_letters)?;
        }
        let last = self.branches.len() - 1;
        for (index, branch) in self.branches.iter_mut().enumerate() {
            if index == last {
                branch.run(batch, counters, dead_letters, deliver)?;
            } else {
                branch.run(&mut batch.clone(), counters, dead_letters, deliver)?;
            }
        }
        Ok(())
    }
}

impl RunningBranch {
    fn run(
        &mut self,
        batch: &mut Batch,
        counters: &mut Counters,
        dead_letters: &mut DeadLetters,
        deliver: &mut dyn FnMut(&mut Batch, &mut Counters, &mut DeadLetters) -> Result<()>,
    ) -> Result<()> {
        // A plugin with state is never fused.
        self.transform.process(batch, counters, dead_letters, None)?;
        let last = self.outputs.len().saturating_sub(1);
        for (index, (port, chain)) in self.outputs.iter_mut().enumerate() {
            let mut copy;
            let output = if index == last {
                &mut *batch
            } else {
                copy = batch.clone();
                &mut copy
            };
            if output.entries().iter().any(|entry| entry.port != *port) {
                output.retain(|record| record.entry().port == *port);
            }
            chain.run(output, counters, dead_letters, deliver)?;
        }
        Ok(())
    }
}

impl RunningTransform {
    /// Starts a plugin with its configuration.
    pub(super) fn start(step: &Step, schemas: &SchemasOfRecords) -> Result<Self> {
        let instance = step.plugin.start(&step.config, &step.limits).map_err(|error| {
            trunkline_connector::Error::config(
                "plugin.init",
                format!("transform `{}`: {}", step.component, error.message),
            )
        })?;
        let instance = match schemas {
            Some(schemas) => instance.with_schemas(schemas.clone()),
            None => instance,
        };
        Ok(Self { step: step.clone(), instance, rejected: Rejections::default(), ran: Duration::ZERO })
    }

    /// The schemas that the plugin's output names and that the host has derived.
    pub(super) fn derived_schemas(&self) -> &[Arc<Schema>] {
        self.instance.derived_schemas()
    }

    /// Reports how long the plugin ran since the last report.
    pub(super) fn report(&mut self, status: &StageStatus) {
        if !self.ran.is_zero() {
            status.plugin_ran(&self.step.component, std::mem::take(&mut self.ran));
        }
    }

    /// Checks that another batch may start.
    pub(super) fn ready(&mut self) -> Result<()> {
        self.instance.ready().map_err(|error| error.context(format!("transform `{}`", self.step.component)))
    }

    /// Replaces a batch by the plugin's output, and counts (I3). `state`: the state of the batch's
    /// topic partition, if the plugin keeps any.
    pub(super) fn process(
        &mut self,
        batch: &mut Batch,
        counters: &mut Counters,
        dead_letters: &mut DeadLetters,
        state: Option<&mut StateStore>,
    ) -> Result<()> {
        if batch.is_empty() {
            return Ok(());
        }
        self.rejected.clear();
        let begun = Instant::now();
        let processed = match state {
            Some(state) => self.instance.process_with_state(batch, &mut self.rejected, state),
            None => self.instance.process(batch, &mut self.rejected),
        };
        self.ran += begun.elapsed();
        let counts = processed.map_err(|error| error.context(format!("transform `{}`", self.step.component)))?;
        let own = counters.of(&self.step.component);
        own.records_in += counts.records_in;
        own.out += counts.out;
        own.dropped += counts.dropped;
        own.extra += counts.extra;
        own.unchanged += counts.unchanged;
        let (component, on_error) = (&self.step.component, self.step.on_error);
        dead_letters.route_rejections(component, "TRANSFORMATION", on_error, &self.rejected, counters)
    }
}
