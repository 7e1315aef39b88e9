//! `trunkline graph`: pipelines as a mermaid flowchart, or as text with live rates.
//!
//! The chart shows the plan, so it shows what runs: every topic, every stage, and each fused
//! transform on the way into the stage that runs it. Topics are outside of the pipelines, because
//! several pipelines may use one topic.
//!
//! A topic is marked as *raw* if it holds data that no transform has processed: the topic of a
//! source without `apply`, and the dead letters of each stage that reads such data.

use std::collections::{BTreeSet, HashMap};
use std::fmt::Write as _;
use std::path::PathBuf;

use trunkline_connector::Template;

use super::output::{Exit, columns, print_data, report_error, report_problems};
use super::validate::load_for_reading;
use super::worker_api::WorkerApi;
use crate::config::Settings;
use crate::http::{ClusterStatus, Flow, Node};
use crate::plan::{Input, OnError, Pipeline, Route, SourcePlan, TopicSelector};
use crate::units::{count, duration};

/// Runs the verb.
pub(super) fn graph(paths: &[PathBuf], dead_letters: bool, settings: &Settings) -> Exit {
    match load_for_reading(paths, settings) {
        Ok(loaded) if loaded.problems.is_empty() => print_data(&mermaid(&loaded.pipelines, dead_letters)),
        Ok(loaded) => report_problems(&loaded.problems, false),
        Err(exit) => exit,
    }
}

/// Prints the edges of the pipelines with the numbers of the running workers.
pub(super) fn live(paths: &[PathBuf], settings: &Settings) -> Exit {
    let loaded = match load_for_reading(paths, settings) {
        Ok(loaded) if loaded.problems.is_empty() => loaded,
        Ok(loaded) => return report_problems(&loaded.problems, false),
        Err(exit) => return exit,
    };
    let asked = WorkerApi::connect(settings).and_then(|api| api.get::<ClusterStatus>("cluster"));
    match asked {
        Ok((cluster, _)) => print_data(&live_text(&loaded.pipelines, &cluster)),
        Err(error) => report_error(&error),
    }
}

fn live_text(pipelines: &[Pipeline], cluster: &ClusterStatus) -> String {
    let mut text = String::new();
    for pipeline in pipelines {
        let flow = Flow::of(pipeline);
        let mut rows = vec![["FROM", "TO", "RECORDS/S", "LAG", "AGE"].map(str::to_owned)];
        rows.extend(flow.edges.iter().map(|edge| {
            let status = flow.status(edge, &pipeline.name, cluster);
            let unknown = || "-".to_owned();
            let port = edge.port.as_ref().map(|port| format!(" ({port})")).unwrap_or_default();
            let named = |node: &Node| format!("{} {}", node.kind.name(), node.name);
            [
                named(&flow.nodes[edge.from]) + &port,
                named(&flow.nodes[edge.to]),
                status.rate.map_or_else(unknown, count),
                status.lag_records.map_or_else(unknown, |lag| count(lag as f64)),
                status.lag_seconds.map_or_else(unknown, duration),
            ]
        }));
        let _ = write!(text, "{}\n{}", pipeline.name, columns(&rows, &[2, 3, 4]));
    }
    cluster.problems().iter().for_each(|line| text.push_str(&format!("{line}\n")));
    text
}

/// A flowchart under construction.
#[derive(Default)]
struct Chart {
    /// Ids of nodes, by the component or topic of the node.
    ids: HashMap<String, String>,
    /// Lines of the current pipeline.
    inside: Vec<String>,
    topics: Vec<String>,
    edges: Vec<String>,
    /// The selectors of raw topics.
    raw: BTreeSet<String>,
}

/// The outline of a node.
#[derive(Clone, Copy)]
enum Outline {
    Source,
    Transform,
    Sink,
    Topic,
}

fn mermaid(pipelines: &[Pipeline], dead_letters: bool) -> String {
    let mut chart = Chart { raw: raw_topics(pipelines), ..Chart::default() };
    let mut text = String::from("flowchart LR\n");
    // Writers first: their templates are readable names, the patterns of readers are not.
    for pipeline in pipelines {
        for source in &pipeline.sources {
            drop(chart.topic_of(&source.topic));
            source.port_topics.iter().for_each(|(_, topic)| drop(chart.topic_of(topic)));
        }
        for transform in &pipeline.transforms {
            drop(chart.topic_of(&transform.topic));
            transform.port_topics.iter().for_each(|(_, topic)| drop(chart.topic_of(topic)));
        }
    }
    for (index, pipeline) in pipelines.iter().enumerate() {
        chart.pipeline(pipeline, dead_letters);
        let _ = writeln!(text, "  subgraph pipeline{} [\"{}\"]", index + 1, pipeline.name);
        chart.inside.drain(..).for_each(|line| text.push_str(&format!("    {line}\n")));
        text.push_str("  end\n");
    }
    for line in chart.topics.iter().chain(&chart.edges) {
        let _ = writeln!(text, "  {line}");
    }
    text
}

impl Chart {
    fn pipeline(&mut self, pipeline: &Pipeline, with_dead_letters: bool) {
        let id = |component: &str| format!("{}.{component}", pipeline.name);
        // The stages that write dead letters.
        let mut stages: Vec<String> = Vec::new();
        for source in &pipeline.sources {
            let stage = self.source(source, &id);
            let on_error = source.apply.iter().map(|step| step.on_error).chain([source.on_error]);
            stages.extend(Some(stage).filter(|_| has_dead_letters(on_error)));
        }
        for transform in &pipeline.transforms {
            let state = if transform.state.is_some() { " with state" } else { "" };
            let label = format!("{}<br/>separate stage{state}", transform.name);
            let stage = self.node(&id(&transform.name), &label, Outline::Transform);
            self.inputs(&id, &transform.inputs, &stage);
            if let Some(table) = &transform.table {
                let topic = self.topic(&TopicSelector::Exact(table.topic.clone()), None);
                self.edge(&topic, &stage, Some("table"));
            }
            let topic = self.topic_of(&transform.topic);
            self.edge(&stage, &topic, None);
            for (port, template) in &transform.port_topics {
                let topic = self.topic_of(template);
                self.edge(&stage, &topic, transform.step.ports.get(usize::from(*port)).map(String::as_str));
            }
            let on_error = fused_on_error(&transform.inputs).into_iter().chain([transform.on_error]);
            stages.extend(Some(stage).filter(|_| has_dead_letters(on_error)));
        }
        for sink in &pipeline.sinks {
            let label = format!("{}<br/>{}", sink.name, sink.connector);
            let stage = self.node(&id(&sink.name), &label, Outline::Sink);
            self.inputs(&id, &sink.inputs, &stage);
            let on_error = fused_on_error(&sink.inputs).into_iter().chain([sink.on_error]);
            stages.extend(Some(stage).filter(|_| has_dead_letters(on_error)));
        }
        if with_dead_letters {
            let topic = self.topic(&TopicSelector::Exact(pipeline.dead_letters.clone()), None);
            self.edges.extend(stages.iter().map(|stage| format!("{stage} -.-> {topic}")));
        }
    }

    fn source(&mut self, source: &SourcePlan, id: &dyn Fn(&str) -> String) -> String {
        let label = format!("{}<br/>{}", source.name, source.connector);
        let stage = self.node(&id(&source.name), &label, Outline::Source);
        for (port, template) in &source.port_topics {
            let topic = self.topic_of(template);
            self.edge(&stage, &topic, Some(port));
        }
        let mut from = stage.clone();
        for (index, step) in source.apply.iter().enumerate() {
            // A transform that two sources apply runs in two places.
            let step_id = id(&format!("{}#{index}", source.name));
            let label = format!("{}<br/>before the topic", step.component);
            let node = self.node(&step_id, &label, Outline::Transform);
            self.edge(&from, &node, None);
            from = node;
        }
        let topic = self.topic_of(&source.topic);
        self.edge(&from, &topic, None);
        stage
    }

    fn inputs(&mut self, id: &dyn Fn(&str) -> String, inputs: &[Input], stage: &str) {
        for input in inputs {
            let topic = self.topic(&input.topics, None);
            self.route(id, &input.route, &topic, None, stage);
        }
    }

    fn route(&mut self, id: &dyn Fn(&str) -> String, route: &Route, from: &str, port: Option<&str>, stage: &str) {
        if route.deliver {
            self.edge(from, stage, port);
        }
        for branch in &route.branches {
            let label = format!("{}<br/>fused", branch.step.component);
            let node = self.node(&id(&branch.step.component), &label, Outline::Transform);
            self.edge(from, &node, port);
            for (output, next) in &branch.outputs {
                let named = branch.step.ports.get(usize::from(*output)).filter(|_| *output > 0);
                self.route(id, next, &node, named.map(String::as_str), stage);
            }
        }
    }

    fn topic_of(&mut self, template: &Template) -> String {
        self.topic(&TopicSelector::of(template), Some(template.source()))
    }

    fn topic(&mut self, topic: &TopicSelector, written: Option<&str>) -> String {
        let (TopicSelector::Exact(name) | TopicSelector::Pattern(name)) = topic;
        let label = written.unwrap_or(name);
        let label = if self.raw.contains(name) { format!("{label}<br/>raw") } else { label.to_owned() };
        self.node(&format!("topic {name}"), &label, Outline::Topic)
    }

    /// The id of a node; the first call draws the node.
    fn node(&mut self, key: &str, label: &str, outline: Outline) -> String {
        if let Some(id) = self.ids.get(key) {
            return id.clone();
        }
        let id = format!("n{}", self.ids.len() + 1);
        self.ids.insert(key.to_owned(), id.clone());
        let label = label.replace('"', "#quot;");
        match outline {
            Outline::Source => self.inside.push(format!("{id}[/\"{label}\"/]")),
            Outline::Transform => self.inside.push(format!("{id}(\"{label}\")")),
            Outline::Sink => self.inside.push(format!("{id}[\\\"{label}\"\\]")),
            Outline::Topic => self.topics.push(format!("{id}[(\"{label}\")]")),
        }
        id
    }

    fn edge(&mut self, from: &str, to: &str, label: Option<&str>) {
        let line = match label {
            Some(label) => format!("{from} -->|{label}| {to}"),
            None => format!("{from} --> {to}"),
        };
        // Inputs that share a part of their route draw it once.
        if !self.edges.contains(&line) {
            self.edges.push(line);
        }
    }
}

/// The selectors of the topics that hold raw data.
fn raw_topics(pipelines: &[Pipeline]) -> BTreeSet<String> {
    let name = |topic: &TopicSelector| match topic {
        TopicSelector::Exact(name) | TopicSelector::Pattern(name) => name.clone(),
    };
    let mut raw = BTreeSet::new();
    for source in pipelines.iter().flat_map(|pipeline| &pipeline.sources) {
        // Transforms before the topic do not see the records of the other ports.
        let ports = source.port_topics.iter().map(|(_, topic)| topic);
        let topics = ports.chain(Some(&source.topic).filter(|_| source.apply.is_empty()));
        raw.extend(topics.map(|topic| name(&TopicSelector::of(topic))));
    }
    let mut dead_letters = BTreeSet::new();
    for pipeline in pipelines {
        let transforms = pipeline.transforms.iter().map(|stage| (&stage.inputs, stage.on_error));
        let sinks = pipeline.sinks.iter().map(|stage| (&stage.inputs, stage.on_error));
        let reads_raw = |inputs: &[Input]| inputs.iter().any(|input| raw.contains(&name(&input.topics)));
        let is_raw = transforms.chain(sinks).any(|(inputs, on_error)| {
            reads_raw(inputs) && has_dead_letters(fused_on_error(inputs).into_iter().chain([on_error]))
        });
        // A source rejects its input as it was read.
        if is_raw || pipeline.sources.iter().any(|source| source.on_error.writes_dead_letters()) {
            dead_letters.insert(pipeline.dead_letters.clone());
        }
    }
    raw.extend(dead_letters);
    raw
}

fn has_dead_letters(mut on_error: impl Iterator<Item = OnError>) -> bool {
    on_error.any(OnError::writes_dead_letters)
}

/// `on_error` of the transforms that are fused into a stage: the stage writes their dead letters,
/// too.
fn fused_on_error(inputs: &[Input]) -> Vec<OnError> {
    fn collect(route: &Route, found: &mut Vec<OnError>) {
        for branch in &route.branches {
            found.push(branch.step.on_error);
            branch.outputs.iter().for_each(|(_, next)| collect(next, found));
        }
    }
    let mut found = Vec::new();
    inputs.iter().for_each(|input| collect(&input.route, &mut found));
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::test_flow;

    #[test]
    fn edges_are_printed_with_rate_lag_and_age() {
        let expected = "\
shop
FROM                    TO                      RECORDS/S   LAG    AGE
source web              topic shop.web                  -     -      -
topic shop.web          fused transform masked        950  4711  2.5 s
fused transform masked  sink lake                     940     -      -
topic shop.web          sink raw                        -     -      -
";
        assert_eq!(live_text(&[test_flow::pipeline()], &test_flow::cluster()), expected);
    }
}
