//! Whether two plans of a stage are the same. It decides which stages go on undisturbed when pipeline files are read again.
//!
//! How many tasks a stage has is left out: with another number some are added or taken away, and those that stay are what they were.

use std::path::PathBuf;

use serde_json::{Map, Value};
use trunkline_connector::config::Section;

use super::{SinkPlan, SourcePlan, TransformPlan};

/// Options of a component that the plan has by itself, in a form that does not depend on how they are written.
const PLANNED: [&str; 3] = ["apply", "inputs", "tasks"];

/// A component's options as written, with references resolved, for what its connector makes of them cannot be compared. No `Debug`, as they may
/// hold secrets (I8).
#[derive(Clone, PartialEq)]
pub struct Options {
    /// Relative paths start here.
    base: PathBuf,
    values: Map<String, Value>,
}

impl Options {
    pub(super) fn of(section: &Section<'_>) -> Self {
        let entries = section.table.entries.iter().filter(|(key, _)| !PLANNED.contains(&key.name.as_str()));
        Self {
            base: section.base.to_owned(),
            values: entries.map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
        }
    }
}

// All fields are named, so that a new one is not forgotten.

impl PartialEq for SourcePlan {
    fn eq(&self, other: &Self) -> bool {
        let Self {
            name,
            connector,
            spec: _,
            options,
            topic,
            port_topics,
            partitions,
            apply,
            on_error,
            commit_interval,
        } = self;
        *name == other.name
            && *connector == other.connector
            && *options == other.options
            && *topic == other.topic
            && *port_topics == other.port_topics
            && *partitions == other.partitions
            && *apply == other.apply
            && *on_error == other.on_error
            && *commit_interval == other.commit_interval
    }
}

impl PartialEq for TransformPlan {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, inputs, step, topic, port_topics, partitions, on_error, tasks: _ } = self;
        *name == other.name
            && *inputs == other.inputs
            && *step == other.step
            && *topic == other.topic
            && *port_topics == other.port_topics
            && *partitions == other.partitions
            && *on_error == other.on_error
    }
}

impl PartialEq for SinkPlan {
    fn eq(&self, other: &Self) -> bool {
        // `commit` is made of `options`.
        let Self { name, connector, spec: _, options, inputs, commit: _, on_error, tasks: _ } = self;
        *name == other.name
            && *connector == other.connector
            && *options == other.options
            && *inputs == other.inputs
            && *on_error == other.on_error
    }
}
