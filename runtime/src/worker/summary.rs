//! The totals of pipelines since they were created, read from Kafka. They are exact across crashes
//! (I3).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use trunkline_connector::Result;

use crate::checkpoint::{ComponentCounters, Intents, Positions};
use crate::kafka::Cluster;
use crate::plan::{Branch, Input, Pipeline};
use crate::stage::Names;

/// Totals by pipeline.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Pipelines by name.
    pub pipelines: BTreeMap<String, PipelineSummary>,
}

/// Totals of one pipeline.
#[derive(Debug, Default, Serialize)]
pub struct PipelineSummary {
    /// Components by name.
    pub components: BTreeMap<String, ComponentSummary>,
}

/// Totals of one component.
#[derive(Debug, Serialize)]
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

impl fmt::Display for Summary {
    /// One line per pipeline.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (name, pipeline)) in self.pipelines.iter().enumerate() {
            if index > 0 {
                writeln!(formatter)?;
            }
            write!(formatter, "{name}:")?;
            // In the order in which records pass them.
            let rank = |kind: &str| ["source", "transform", "sink"].iter().position(|known| *known == kind);
            let mut components: Vec<_> = pipeline.components.iter().collect();
            components.sort_by_key(|(_, component)| rank(component.kind));
            for (index, (name, component)) in components.into_iter().enumerate() {
                let ComponentCounters { records_in, out, dropped, dead_lettered, extra } = component.counters;
                let separator = if index > 0 { ";" } else { "" };
                write!(
                    formatter,
                    "{separator} {name} {records_in} in, {out} out, {dropped} dropped, {dead_lettered} dead-lettered"
                )?;
                if extra > 0 {
                    write!(formatter, ", {extra} extra")?;
                }
            }
        }
        Ok(())
    }
}
