//! Fingerprints of stage plans: the workers of a cluster compare them (`worker/agreement.rs`).
//!
//! A fingerprint depends on the pipeline file as written: references (`${env:X}`) are not resolved,
//! so that no secret is in it (I8), and a password can be changed on one worker after the other. It
//! does not depend on the folder of the file, which may differ between machines, or on `tasks`.

use std::fmt::Write as _;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use super::{Input, Route, SinkPlan, SourcePlan, Step, TransformPlan};

/// The fingerprint of a component's plan, as hexadecimal digits.
#[derive(Default)]
struct Fingerprint(String);

impl Fingerprint {
    fn add(&mut self, part: &dyn std::fmt::Debug) {
        // Writing to a string cannot fail.
        let _ = write!(self.0, "{part:?};");
    }

    fn add_step(&mut self, step: &Step) {
        let Step { component, plugin, config: _, written, limits, on_error, ports } = step;
        self.add(component);
        self.add(&(plugin.name(), plugin.hash()));
        self.add_json(written);
        self.add(limits);
        self.add(&(on_error, ports));
    }

    /// Keys in alphabetical order: their order in the file has no meaning.
    fn add_json(&mut self, value: &Value) {
        match value {
            Value::Object(entries) => {
                let mut keys: Vec<&String> = entries.keys().collect();
                keys.sort();
                self.0.push('{');
                for key in keys {
                    self.add(key);
                    self.add_json(&entries[key]);
                }
                self.0.push('}');
            }
            Value::Array(items) => {
                self.0.push('[');
                items.iter().for_each(|item| self.add_json(item));
                self.0.push(']');
            }
            other => self.add(other),
        }
    }

    fn add_inputs(&mut self, inputs: &[Input]) {
        for Input { topics, route } in inputs {
            self.add(topics);
            self.add_route(route);
        }
    }

    fn add_route(&mut self, route: &Route) {
        self.add(&route.deliver);
        for branch in &route.branches {
            self.0.push('(');
            self.add_step(&branch.step);
            for (port, output) in &branch.outputs {
                self.add(port);
                self.add_route(output);
            }
            self.0.push(')');
        }
    }

    fn finish(self) -> String {
        format!("{:016x}", xxh3_64(self.0.as_bytes()))
    }
}

// The patterns name all fields, so that a new field cannot be forgotten.

/// The fingerprint of a source in a pipeline with these dead letters.
pub fn of_source(plan: &SourcePlan, dead_letters: &str) -> String {
    let SourcePlan {
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
    } = plan;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&("source", dead_letters, name, connector));
    fingerprint.add_json(options.written());
    fingerprint.add(&(topic, port_topics, partitions, on_error, commit_interval));
    apply.iter().for_each(|step| fingerprint.add_step(step));
    fingerprint.finish()
}

/// The fingerprint of a separate transform in a pipeline with these dead letters.
pub fn of_transform(plan: &TransformPlan, dead_letters: &str) -> String {
    let TransformPlan { name, inputs, step, topic, port_topics, partitions, on_error, state, table, tasks: _ } = plan;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&("transform", dead_letters, name));
    fingerprint.add_inputs(inputs);
    fingerprint.add_step(step);
    fingerprint.add(&(topic, port_topics, partitions, on_error));
    // Absent from the fingerprints of other transforms, so that they stay as in earlier versions.
    if let Some(state) = state {
        fingerprint.add(state);
    }
    if let Some(table) = table {
        fingerprint.add(table);
    }
    fingerprint.finish()
}

/// The fingerprint of a sink in a pipeline with these dead letters.
pub fn of_sink(plan: &SinkPlan, dead_letters: &str) -> String {
    // `commit` is made of `options`.
    let SinkPlan { name, connector, spec: _, options, inputs, commit: _, on_error, tasks: _, replay: _ } = plan;
    let mut fingerprint = Fingerprint::default();
    fingerprint.add(&("sink", dead_letters, name, connector));
    fingerprint.add_json(options.written());
    fingerprint.add_inputs(inputs);
    fingerprint.add(on_error);
    fingerprint.finish()
}
