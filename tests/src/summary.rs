//! The counters that a worker prints.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The last line of `trunkline run --until-idle --json`: totals since each pipeline began.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Summary {
    /// By name.
    pub pipelines: BTreeMap<String, Pipeline>,
}

/// One pipeline of a summary.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Pipeline {
    /// By name.
    pub components: BTreeMap<String, Counters>,
}

/// The counters of one component.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Counters {
    /// `source`, `transform` or `sink`.
    pub kind: String,
    /// Records in.
    #[serde(rename = "in")]
    pub input: u64,
    /// Records out.
    #[serde(rename = "out")]
    pub output: u64,
    /// Records that a verdict dropped.
    pub dropped: u64,
    /// Records in the dead letter topic.
    pub dead_lettered: u64,
    /// Records that the component added.
    pub extra: u64,
}

impl Summary {
    /// Parses a worker's standard output, and checks I3 for every component of every pipeline.
    pub(crate) fn parse(stdout: &str) -> Self {
        let last = stdout.lines().last().expect("a summary on standard output");
        let summary: Self =
            serde_json::from_str(last).unwrap_or_else(|error| panic!("{error} in the summary {last:?}"));
        for (pipeline, Pipeline { components }) in &summary.pipelines {
            for (component, counters) in components {
                let Counters { input, output, dropped, dead_lettered, extra, .. } = counters;
                assert_eq!(
                    input + extra,
                    output + dropped + dead_lettered,
                    "I3 does not hold for {pipeline}.{component}: {counters:?}"
                );
            }
        }
        summary
    }

    /// The counters of one component.
    pub fn of(&self, pipeline: &str, component: &str) -> &Counters {
        let components =
            &self.pipelines.get(pipeline).unwrap_or_else(|| panic!("no {pipeline} in {self:?}")).components;
        components.get(component).unwrap_or_else(|| panic!("no {pipeline}.{component} in {self:?}"))
    }
}
