//! `trunkline graph`: pipelines as a mermaid flowchart.
//!
//! It is drawn from the plan, so it shows what runs: every topic, and each fused transform on the way into the stage that runs it.
//! A topic stands outside the pipelines, as several of them may meet there.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;

use trunkline_connector::Template;

use super::output::{Exit, print_data, print_problems};
use super::validate::load_for_reading;
use crate::config::Settings;
use crate::plan::{OnError, Pipeline, Route, Step, TopicSelector};

pub(super) fn graph(paths: &[PathBuf], dead_letters: bool, settings: &Settings) -> Exit {
    match load_for_reading(paths, settings) {
        Ok(loaded) if loaded.problems.is_empty() => {
            print_data(&mermaid(&loaded.pipelines, dead_letters));
            Exit::Ok
        }
        Ok(loaded) => {
            print_problems(&loaded.problems);
            Exit::Config
        }
        Err(exit) => exit,
    }
}

/// A flowchart in the making.
#[derive(Default)]
struct Chart {
    /// Ids by what a node stands for.
    ids: HashMap<String, String>,
    /// Lines of the pipeline that is being drawn.
    inside: Vec<String>,
    topics: Vec<String>,
    edges: Vec<String>,
}

/// A node's outline.
#[derive(Clone, Copy)]
enum Outline {
    Source,
    Transform,
    Sink,
    Topic,
}

fn mermaid(pipelines: &[Pipeline], dead_letters: bool) -> String {
    let mut chart = Chart::default();
    let mut text = String::from("flowchart LR\n");
    // Templates first: a reader knows a pattern only, which is no name to show.
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
        // Each stage with what happens to its errors.
        let mut stages: Vec<(String, bool)> = Vec::new();
        let at = |component: &str| format!("{}.{component}", pipeline.name);
        for source in &pipeline.sources {
            let label = format!("{}<br/>{}", source.name, source.connector);
            let stage = self.node(&at(&source.name), &label, Outline::Source);
            stages.push((stage.clone(), any_dead_letters(source.on_error, &source.apply)));
            for (port, template) in &source.port_topics {
                let topic = self.topic_of(template);
                self.edge(&stage, &topic, Some(port));
            }
            let mut from = stage;
            for (index, step) in source.apply.iter().enumerate() {
                // Applied in two sources, it runs in two places.
                let id = self.node(&at(&format!("{}#{index}", source.name)), &step.component, Outline::Transform);
                self.edge(&from, &id, None);
                from = id;
            }
            let topic = self.topic_of(&source.topic);
            self.edge(&from, &topic, None);
        }
        for transform in &pipeline.transforms {
            let stage = self.node(&at(&transform.name), &transform.name, Outline::Transform);
            stages.push((stage.clone(), transform.on_error == OnError::DeadLetter));
            for input in &transform.inputs {
                let topic = self.topic(&input.topics, None);
                self.route(&at, &input.route, &topic, None, &stage);
            }
            let topic = self.topic_of(&transform.topic);
            self.edge(&stage, &topic, None);
            for (port, template) in &transform.port_topics {
                let topic = self.topic_of(template);
                self.edge(&stage, &topic, transform.step.ports.get(usize::from(*port)).map(String::as_str));
            }
        }
        for sink in &pipeline.sinks {
            let label = format!("{}<br/>{}", sink.name, sink.connector);
            let stage = self.node(&at(&sink.name), &label, Outline::Sink);
            stages.push((stage.clone(), sink.on_error == OnError::DeadLetter));
            for input in &sink.inputs {
                let topic = self.topic(&input.topics, None);
                self.route(&at, &input.route, &topic, None, &stage);
            }
        }
        if with_dead_letters {
            let topic = self.topic(&TopicSelector::Exact(pipeline.dead_letters.clone()), None);
            for (stage, _) in stages.iter().filter(|(_, dead_letters)| *dead_letters) {
                self.edges.push(format!("{stage} -.-> {topic}"));
            }
        }
    }

    fn route(&mut self, at: &dyn Fn(&str) -> String, route: &Route, from: &str, port: Option<&str>, stage: &str) {
        if route.deliver {
            self.edge(from, stage, port);
        }
        for branch in &route.branches {
            let id = self.node(&at(&branch.step.component), &branch.step.component, Outline::Transform);
            self.edge(from, &id, port);
            for (output, next) in &branch.outputs {
                let named = branch.step.ports.get(usize::from(*output)).filter(|_| *output > 0);
                self.route(at, next, &id, named.map(String::as_str), stage);
            }
        }
    }

    fn topic_of(&mut self, template: &Template) -> String {
        self.topic(&TopicSelector::of(template), Some(template.source()))
    }

    fn topic(&mut self, topic: &TopicSelector, written: Option<&str>) -> String {
        let (TopicSelector::Exact(name) | TopicSelector::Pattern(name)) = topic;
        self.node(&format!("topic {name}"), written.unwrap_or(name), Outline::Topic)
    }

    /// The id of a node, which is drawn the first time it is asked for.
    fn node(&mut self, what: &str, label: &str, outline: Outline) -> String {
        if let Some(id) = self.ids.get(what) {
            return id.clone();
        }
        let id = format!("n{}", self.ids.len() + 1);
        self.ids.insert(what.to_owned(), id.clone());
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
        // Two stages with the same way in draw it once.
        if !self.edges.contains(&line) {
            self.edges.push(line);
        }
    }
}

fn any_dead_letters(on_error: OnError, steps: &[Step]) -> bool {
    on_error == OnError::DeadLetter || steps.iter().any(|step| step.on_error == OnError::DeadLetter)
}
