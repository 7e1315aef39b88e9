//! Equality of stage plans. It decides which stages keep running when pipeline files are reloaded.
//!
//! `tasks` is not compared: when it changes, tasks are added or removed, and the remaining ones
//! keep running. Nor is `replay`, which only commands read.

use std::path::PathBuf;

use serde_json::{Map, Value};
use trunkline_connector::config::Section;

use super::{SinkPlan, SourcePlan, TransformPlan};

/// Options that the plan holds in a form that does not depend on how they are written, or that
/// change nothing while a stage runs.
const PLANNED: [&str; 4] = ["apply", "inputs", "replay", "tasks"];

/// A component's options as written, with references resolved. They stand for the connector's spec,
/// which cannot be compared. No `Debug`: they may hold secrets (I8).
#[derive(Clone, PartialEq)]
pub struct Options {
    /// Folder that relative paths start from.
    base: PathBuf,
    values: Map<String, Value>,
    /// The same without resolved references: it holds no secret that a reference names.
    written: Value,
}

impl Options {
    pub(super) fn of(section: &Section<'_>) -> Self {
        let entries = section.table.entries.iter().filter(|(key, _)| !PLANNED.contains(&key.name.as_str()));
        Self {
            base: section.base.to_owned(),
            values: entries.clone().map(|(key, node)| (key.name.clone(), node.to_json())).collect(),
            written: entries
                .map(|(key, node)| (key.name.clone(), node.to_written_json()))
                .collect::<Map<_, _>>()
                .into(),
        }
    }

    /// The options as written: references are not resolved.
    pub(crate) fn written(&self) -> &Value {
        &self.written
    }
}

// The patterns name all fields, so that a new field cannot be forgotten.

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
        let Self { name, inputs, step, topic, port_topics, partitions, on_error, state, table, tasks: _ } = self;
        *name == other.name
            && *inputs == other.inputs
            && *step == other.step
            && *topic == other.topic
            && *port_topics == other.port_topics
            && *partitions == other.partitions
            && *on_error == other.on_error
            && *state == other.state
            && *table == other.table
    }
}

impl PartialEq for SinkPlan {
    fn eq(&self, other: &Self) -> bool {
        // `commit` is made of `options`.
        let Self { name, connector, spec: _, options, inputs, commit: _, on_error, tasks: _, replay: _ } = self;
        *name == other.name
            && *connector == other.connector
            && *options == other.options
            && *inputs == other.inputs
            && *on_error == other.on_error
    }
}
