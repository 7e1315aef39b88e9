//! Counters of pipelines: those of this run, and the totals since each pipeline began. The totals
//! are read from Kafka, so they are exact across crashes (I3).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use trunkline_connector::Result;

use crate::checkpoint::{ComponentCounters, Counters, Intents, Positions};
use crate::kafka::Cluster;
use crate::plan::{Branch, Input, Pipeline};
use crate::stage::{Names, StageStatus};

/// Counters by pipeline.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Pipelines by name.
    pub pipelines: BTreeMap<String, PipelineSummary>,
}

/// Counters of one pipeline.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
pub struct PipelineSummary {
    /// Components by name.
    pub components: BTreeMap<String, ComponentSummary>,
}

/// Counters of one component.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct ComponentSummary {
    /// `source`, `transform` or `sink`.
    pub kind: &'static str,
    /// The counters; `in + extra = out + dropped + dead_lettered`.
    #[serde(flatten)]
    pub counters: ComponentCounters,
}

impl Summary {
    /// Reads the totals of pipelines.
    pub fn read(cluster: &Cluster, names: &Names, pipelines: &[Pipeline]) -> Result<Self> {
        let mut summary = Self::default();
        let prefixes: Vec<String> = pipelines.iter().map(|pipeline| names.pipeline_prefix(&pipeline.name)).collect();
        let (written, delivered) = (Positions::totals(cluster, &prefixes)?, Intents::totals(cluster, &prefixes)?);
        for ((pipeline, mut totals), delivered) in pipelines.iter().zip(written).zip(delivered) {
            totals.add(&delivered);
            let components = component_kinds(pipeline).into_iter().map(|(name, kind)| {
                let counters = *totals.of(&name);
                (name, ComponentSummary { kind, counters })
            });
            summary.pipelines.insert(pipeline.name.clone(), PipelineSummary { components: components.collect() });
        }
        Ok(summary)
    }

    /// What these stages committed since the process started.
    pub fn of_run<'s>(pipelines: &[Pipeline], stages: impl Iterator<Item = &'s StageStatus>) -> Self {
        let mut counters: BTreeMap<&str, Counters> = BTreeMap::new();
        for stage in stages {
            counters.entry(&stage.pipeline).or_default().add(&stage.counters());
        }
        let mut summary = Self::default();
        for pipeline in pipelines {
            let mut counters = counters.remove(pipeline.name.as_str()).unwrap_or_default();
            let components = component_kinds(pipeline).into_iter().map(|(name, kind)| {
                let counters = *counters.of(&name);
                (name, ComponentSummary { kind, counters })
            });
            summary.pipelines.insert(pipeline.name.clone(), PipelineSummary { components: components.collect() });
        }
        summary
    }

    /// Components whose counters do not balance, which is a defect (I3).
    pub fn unbalanced(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (pipeline, totals) in &self.pipelines {
            let components = totals.components.iter().filter(|(_, component)| !component.counters.balanced());
            wrong.extend(components.map(|(name, _)| format!("{pipeline}.{name}")));
        }
        wrong
    }
}

fn component_kinds(pipeline: &Pipeline) -> BTreeMap<String, &'static str> {
    let mut kinds = BTreeMap::new();
    let mut inputs: Vec<&Input> = Vec::new();
    for source in &pipeline.sources {
        kinds.insert(source.name.clone(), "source");
        kinds.extend(source.apply.iter().map(|step| (step.component.clone(), "transform")));
    }
    for transform in &pipeline.transforms {
        kinds.insert(transform.name.clone(), "transform");
        inputs.extend(&transform.inputs);
    }
    for sink in &pipeline.sinks {
        kinds.insert(sink.name.clone(), "sink");
        inputs.extend(&sink.inputs);
    }
    let mut branches: Vec<&Branch> = inputs.iter().flat_map(|input| &input.route.branches).collect();
    while let Some(branch) = branches.pop() {
        kinds.insert(branch.step.component.clone(), "transform");
        branches.extend(branch.outputs.iter().flat_map(|(_, route)| &route.branches));
    }
    kinds
}

impl PipelineSummary {
    /// Components in the order that records take.
    pub fn in_order(&self) -> Vec<(&str, &ComponentSummary)> {
        let rank = |kind: &str| ["source", "transform", "sink"].iter().position(|known| *known == kind);
        let mut components: Vec<_> =
            self.components.iter().map(|(name, component)| (name.as_str(), component)).collect();
        components.sort_by_key(|(_, component)| rank(component.kind));
        components
    }
}

impl fmt::Display for PipelineSummary {
    /// One line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, component)) in self.in_order().into_iter().enumerate() {
            let ComponentCounters { records_in, out, dropped, dead_lettered, extra, unchanged: _ } = component.counters;
            let separator = if index > 0 { "; " } else { "" };
            write!(
                formatter,
                "{separator}{name} {records_in} in, {out} out, {dropped} dropped, {dead_lettered} dead-lettered"
            )?;
            if extra > 0 {
                write!(formatter, ", {extra} extra")?;
            }
        }
        Ok(())
    }
}
