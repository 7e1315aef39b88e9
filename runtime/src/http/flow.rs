//! A pipeline as nodes and edges with live rates: `trunkline graph --live`, and the page.

use std::collections::HashMap;

use super::{ClusterStatus, Rates};
use crate::plan::{Input, Pipeline, Route, TopicSelector};

/// A pipeline as a graph.
#[derive(Debug, Default)]
pub struct Flow {
    /// The nodes. Writers come before the readers of their topics.
    pub nodes: Vec<Node>,
    /// The edges, in the order in which records take them.
    pub edges: Vec<Edge>,
    known: HashMap<String, usize>,
}

/// A node of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// The name: of a component without its pipeline, or of a topic.
    pub name: String,
    /// What it is.
    pub kind: NodeKind,
    /// The connector or plugin of a component.
    pub connector: String,
}

/// The kind of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A source.
    Source,
    /// A transform with separate topics.
    Transform,
    /// A transform that runs in another component's task.
    Fused,
    /// A sink.
    Sink,
    /// A topic, or the topics of a template.
    Topic,
}

impl NodeKind {
    /// The word for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Source => "source",
            Self::Transform => "transform",
            Self::Fused => "fused transform",
            Self::Sink => "sink",
            Self::Topic => "topic",
        }
    }
}

/// An edge of a graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edge {
    /// The index of a node.
    pub from: usize,
    /// The index of another one.
    pub to: usize,
    /// The output port, if it is not the default one.
    pub port: Option<String>,
    /// Where its rate is counted.
    counted: Counted,
    /// The component that reads a topic through this edge: its lag is that of the edge.
    reader: Option<String>,
}

/// The counter of an edge: of a component, in the tasks of another or the same one.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    stage: String,
    component: String,
    is_output: bool,
}

/// The live numbers of an edge.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EdgeStatus {
    /// Records per second, if a worker that runs the component has answered.
    pub rate: Option<f64>,
    /// Records that were not read from the topic.
    pub lag_records: Option<u64>,
    /// Their age, as far as known.
    pub lag_seconds: Option<f64>,
}

impl Flow {
    /// The graph of a pipeline.
    pub fn of(pipeline: &Pipeline) -> Self {
        let mut flow = Self::default();
        for source in &pipeline.sources {
            let node = flow.node(&source.name, &source.name, NodeKind::Source, source.connector);
            let counted = |component: &str, is_output| Counted {
                stage: source.name.clone(),
                component: component.to_owned(),
                is_output,
            };
            let (mut from, mut last) = (node, counted(&source.name, true));
            for (index, step) in source.apply.iter().enumerate() {
                let key = format!("{}#{index}", source.name);
                let step_node = flow.node(&key, &step.component, NodeKind::Fused, step.plugin.name());
                flow.edge(from, step_node, None, counted(&step.component, false), None);
                (from, last) = (step_node, counted(&step.component, true));
            }
            let topic = flow.topic(&TopicSelector::of(&source.topic), source.topic.source());
            flow.edge(from, topic, None, last, None);
            for (port, template) in &source.port_topics {
                let topic = flow.topic(&TopicSelector::of(template), template.source());
                flow.edge(node, topic, Some(port), counted("", true), None);
            }
        }
        // Topics that a transform writes have the names of their templates.
        for transform in &pipeline.transforms {
            flow.node(&transform.name, &transform.name, NodeKind::Transform, transform.step.plugin.name());
            flow.topic(&TopicSelector::of(&transform.topic), transform.topic.source());
        }
        for transform in &pipeline.transforms {
            let node = flow.node(&transform.name, &transform.name, NodeKind::Transform, transform.step.plugin.name());
            flow.inputs(&transform.inputs, &transform.name, node);
            let counted = |component: &str| Counted {
                stage: transform.name.clone(),
                component: component.to_owned(),
                is_output: true,
            };
            let topic = flow.topic(&TopicSelector::of(&transform.topic), transform.topic.source());
            flow.edge(node, topic, None, counted(&transform.name), None);
            for (port, template) in &transform.port_topics {
                let topic = flow.topic(&TopicSelector::of(template), template.source());
                let port = transform.step.ports.get(usize::from(*port)).map(String::as_str);
                flow.edge(node, topic, port, counted(""), None);
            }
        }
        for sink in &pipeline.sinks {
            let node = flow.node(&sink.name, &sink.name, NodeKind::Sink, sink.connector);
            flow.inputs(&sink.inputs, &sink.name, node);
        }
        flow
    }

    fn inputs(&mut self, inputs: &[Input], stage: &str, node: usize) {
        for input in inputs {
            let (TopicSelector::Exact(name) | TopicSelector::Pattern(name)) = &input.topics;
            let topic = self.topic(&input.topics, name);
            self.route(&input.route, (topic, None), stage, node, true);
        }
    }

    fn route(&mut self, route: &Route, (from, port): (usize, Option<&str>), stage: &str, node: usize, is_topic: bool) {
        let counted =
            |component: &str| Counted { stage: stage.to_owned(), component: component.to_owned(), is_output: false };
        let reader = |is_topic: bool| is_topic.then(|| stage.to_owned());
        if route.deliver {
            self.edge(from, node, port, counted(stage), reader(is_topic));
        }
        for branch in &route.branches {
            let step = &branch.step;
            let key = format!("{stage}/{}", step.component);
            let step_node = self.node(&key, &step.component, NodeKind::Fused, step.plugin.name());
            self.edge(from, step_node, port, counted(&step.component), reader(is_topic));
            for (output, next) in &branch.outputs {
                let named = step.ports.get(usize::from(*output)).filter(|_| *output > 0);
                self.route(next, (step_node, named.map(String::as_str)), stage, node, false);
            }
        }
    }

    fn topic(&mut self, topic: &TopicSelector, shown: &str) -> usize {
        let (TopicSelector::Exact(name) | TopicSelector::Pattern(name)) = topic;
        self.node(&format!("topic {name}"), shown, NodeKind::Topic, "")
    }

    fn node(&mut self, key: &str, name: &str, kind: NodeKind, connector: &str) -> usize {
        if let Some(index) = self.known.get(key) {
            return *index;
        }
        self.known.insert(key.to_owned(), self.nodes.len());
        self.nodes.push(Node { name: name.to_owned(), kind, connector: connector.to_owned() });
        self.nodes.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, port: Option<&str>, counted: Counted, reader: Option<String>) {
        let edge = Edge { from, to, port: port.map(str::to_owned), counted, reader };
        // Inputs that share a part of their route have it once.
        if !self.edges.contains(&edge) {
            self.edges.push(edge);
        }
    }

    /// The live numbers of an edge, over all tasks. A component that reads several topics counts
    /// the records of all of them: such an edge has no rate.
    pub fn status(&self, edge: &Edge, pipeline: &str, cluster: &ClusterStatus) -> EdgeStatus {
        let Counted { stage, component, is_output } = &edge.counted;
        let found = cluster.components.iter().find(|it| it.pipeline == pipeline && it.component == *stage);
        let Some(found) = found else { return EdgeStatus::default() };
        let statuses: Vec<_> = cluster.tasks(found).filter_map(|task| task.status).collect();
        let is_shared = self.edges.iter().filter(|other| other.counted == edge.counted).count() > 1;
        let rate = |rates: &Rates| if *is_output { rates.out } else { rates.records_in };
        let rates = statuses.iter().filter_map(|task| task.components.get(component)?.per_second.as_ref().map(rate));
        let rates: Vec<f64> = rates.collect();
        let reads = edge.reader.is_some();
        EdgeStatus {
            rate: (!is_shared && !rates.is_empty()).then(|| rates.iter().sum()),
            lag_records: statuses
                .iter()
                .filter_map(|task| task.lag_records)
                .reduce(u64::saturating_add)
                .filter(|_| reads),
            lag_seconds: statuses.iter().filter_map(|task| task.lag_seconds).reduce(f64::max).filter(|_| reads),
        }
    }

    /// The column of each node in a drawing from left to right: one more than that of the nodes
    /// before it.
    pub fn columns(&self) -> Vec<usize> {
        let mut columns = vec![0; self.nodes.len()];
        // Each pass moves at least one node, unless nothing is left to move. Pipelines have no
        // cycles; a bound keeps a mistake here from hanging the worker.
        for _ in 0..self.nodes.len() {
            let mut is_settled = true;
            for edge in &self.edges {
                if columns[edge.to] <= columns[edge.from] {
                    columns[edge.to] = columns[edge.from] + 1;
                    is_settled = false;
                }
            }
            if is_settled {
                break;
            }
        }
        columns
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::config::Settings;
    use crate::plan::{Registry, load_each};
    use trunkline_transform_host::{Host, HostOptions};

    pub(crate) fn pipeline() -> Pipeline {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.toml");
        let text = r#"
            name = "shop"
            [sources.web]
            connector = "logfile"
            paths = ["/a.log"]
            [transforms.masked]
            plugin = "filter.wasm"
            config = { condition = "value.id > 0" }
            inputs = ["web"]
            [sinks.lake]
            connector = "s3"
            url = "s3://lake/v1"
            inputs = ["masked"]
            [sinks.raw]
            connector = "s3"
            url = "s3://lake/v2"
            inputs = ["web"]
        "#;
        std::fs::write(&file, text).unwrap();
        let host = Host::new(HostOptions::default()).unwrap();
        let mut loaded = load_each(&[file], &host, &Settings::load(None, &Vec::new()).unwrap(), &Registry::new());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        loaded.pipelines.remove(0)
    }

    /// The status of the sink `lake` with its fused transform.
    pub(crate) fn cluster() -> ClusterStatus {
        let json = r#"{"cluster":"c",
            "components":[{"name":"shop.lake","pipeline":"shop","component":"lake","kind":"sink","connector":"s3",
                "wanted":"running","tasks":[{"id":0,"worker":"w","node":"n","http":null,"task":0,"state":"running",
                "error":null}]}],
            "workers":[{"worker":"w","node":"n","http":null,"is_this":true,"gone_seconds":null,"error":null,
                "status":{"worker":"w","cluster":"c","version":"1","uptime_seconds":5,"running":true,"tasks":[
                {"pipeline":"shop","component":"lake","task":0,"kind":"sink","state":"running","failures":0,
                 "lag_records":4711,"lag_seconds":2.5,
                 "components":{
                    "lake":{"in":9,"out":9,"dropped":0,"dead_lettered":0,"extra":0,
                        "per_second":{"in":940.0,"out":940.0,"dead_lettered":0.0}},
                    "masked":{"in":9,"out":9,"dropped":0,"dead_lettered":0,"extra":0,
                        "per_second":{"in":950.0,"out":940.0,"dead_lettered":10.0}}}}]}}]}"#;
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn edges_have_the_numbers_of_the_components_that_count_them() {
        let flow = Flow::of(&pipeline());
        let names: Vec<(&str, NodeKind)> = flow.nodes.iter().map(|node| (node.name.as_str(), node.kind)).collect();
        let expected = [
            ("web", NodeKind::Source),
            ("shop.web", NodeKind::Topic),
            ("lake", NodeKind::Sink),
            ("masked", NodeKind::Fused),
            ("raw", NodeKind::Sink),
        ];
        assert_eq!(names, expected);
        let edges: Vec<(usize, usize)> = flow.edges.iter().map(|edge| (edge.from, edge.to)).collect();
        assert_eq!(edges, [(0, 1), (1, 3), (3, 2), (1, 4)]);
        assert_eq!(flow.columns(), [0, 1, 3, 2, 2]);
        let status = |edge: usize| flow.status(&flow.edges[edge], "shop", &cluster());
        assert_eq!(status(0), EdgeStatus::default(), "no task of the source is known");
        let lag = EdgeStatus { rate: Some(950.0), lag_records: Some(4711), lag_seconds: Some(2.5) };
        assert_eq!(status(1), lag);
        assert_eq!(status(2), EdgeStatus { rate: Some(940.0), ..EdgeStatus::default() });
    }
}
