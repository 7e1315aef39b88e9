//! What a worker counted.

use std::collections::BTreeMap;

use serde::Deserialize;

/// The last line that `trunkline run --until-idle --json` prints: totals since each pipeline began.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Summary {
    /// By name.
    pub pipelines: BTreeMap<String, Pipeline>,
}

/// One pipeline's part of it.
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
    /// Records that came in.
    #[serde(rename = "in")]
    pub input: u64,
    /// Records that went on.
    #[serde(rename = "out")]
    pub output: u64,
    /// Records that a verdict dropped.
    pub dropped: u64,
    /// Records that went to the dead letters.
    pub dead_lettered: u64,
    /// Records that came to be here: one in, several out.
    pub extra: u64,
}

impl Summary {
    /// Reads it out of what a worker printed, and checks I3 for every component of every pipeline.
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
