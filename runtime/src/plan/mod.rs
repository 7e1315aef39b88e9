//! The plan: what a worker runs for a set of pipeline files.
//!
//! A pipeline file names sources, transforms and sinks, and their inputs. The plan expresses the
//! same in stages: a source is a stage that writes topics, a sink is a stage that reads topics, and
//! a transform that several stages read, or that has a `topic`, is a stage from topic to topic.
//! Every other transform is *fused*: it is a [`Step`] on the route into the one stage that reads
//! it. [`Route`] describes which records take which steps.
//!
//! Planning performs all checks: in a plan, connectors and plugins are known, plugins accepted
//! their configuration, inputs exist, no cycle exists, and each topic has one writer. Planning
//! reads only the pipeline files and their plugins; servers may be down.
//!
//! Files are checked together, because duplicate names and topics show only then, but each is
//! planned by itself: [`load_each`] returns the valid pipelines and the problems of the other files
//! (I7). [`Files`] reloads them while a worker runs: a file that became invalid keeps its previous
//! plan.

pub mod bundled;
mod commit;
mod connector_file;
mod cross_file_checks;
mod fields;
mod files;
pub mod fingerprint;
mod fusion;
mod graph;
mod inputs;
pub mod json_schema;
mod load;
mod names;
mod on_error;
pub mod options;
mod parsed;
mod plan_eq;
mod planned_file;
mod plugins;
mod raw_topics;
mod registry;
mod replay_policy;
mod shared_topics;
mod tables;
mod topic_options;
mod topics;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use regex::Regex;
use trunkline_connector::{CommitPolicy, SinkSpec, SourceSpec, Template};
use trunkline_transform_host::{Limits, Plugin};

pub use connector_file::{ConnectorFile, FlatConfig, KeyProblem};
pub use files::files_of;
pub use load::{Files, Loaded, load_each, load_with_options};
pub(crate) use names::{NAME_RULE, name_error, topic_error};
pub use on_error::{OnError, StopAfter};
pub use plan_eq::Options;
pub(crate) use plugins::rejected as plugin_rejected;
pub use registry::Registry;
pub use replay_policy::ReplayPolicy;
pub(crate) use shared_topics::{Headers, SharedTopics, topic_of_headers};

/// A pipeline that can run.
#[derive(Clone)]
pub struct Pipeline {
    /// Its name, unique in a cluster.
    pub name: String,
    /// The file it was read from.
    pub file: PathBuf,
    /// The topic of its dead letters.
    pub dead_letters: String,
    /// Stages that write topics.
    pub sources: Vec<SourcePlan>,
    /// Stages from topic to topic: separate transforms only.
    pub transforms: Vec<TransformPlan>,
    /// Stages that read topics.
    pub sinks: Vec<SinkPlan>,
}

impl Pipeline {
    /// Transforms whose bundled plugin selects fields by their names.
    pub fn transforms_with_field_names(&self) -> BTreeSet<&str> {
        let mut steps: Vec<&Step> = self.sources.iter().flat_map(|source| &source.apply).collect();
        steps.extend(self.transforms.iter().map(|stage| &stage.step));
        let inputs =
            self.transforms.iter().map(|stage| &stage.inputs).chain(self.sinks.iter().map(|stage| &stage.inputs));
        let mut branches: Vec<&Branch> = inputs.flatten().flat_map(|input| &input.route.branches).collect();
        while let Some(branch) = branches.pop() {
            steps.push(&branch.step);
            branches.extend(branch.outputs.iter().flat_map(|(_, route)| &route.branches));
        }
        let selects = |step: &&Step| bundled::find(step.plugin.name()).is_some_and(|it| !it.field_options.is_empty());
        steps.into_iter().filter(selects).map(|step| step.component.as_str()).collect()
    }
}

/// The stage of a source.
#[derive(Clone)]
pub struct SourcePlan {
    /// The component's name.
    pub name: String,
    /// Name of its connector.
    pub connector: &'static str,
    /// Opens the connector.
    pub spec: Arc<dyn SourceSpec>,
    /// The options that `spec` derives from.
    pub options: Options,
    /// Topic of each record.
    pub topic: Template,
    /// Names and topics of its other ports; the first one has the number 1.
    pub port_topics: Vec<(&'static str, Template)>,
    /// Partitions of topics that Trunkline creates; the worker's setting if `None`.
    pub partitions: Option<i32>,
    /// Transforms before the topic, in order.
    pub apply: Vec<Step>,
    /// What happens to input that cannot become a record.
    pub on_error: OnError,
    /// Longest time between commits; the worker's setting if `None`.
    pub commit_interval: Option<Duration>,
}

impl SourcePlan {
    /// All topics that it writes, except the dead letters.
    pub fn topics(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.topic).chain(self.port_topics.iter().map(|(_, topic)| topic))
    }
}

/// The stage of a separate transform.
#[derive(Clone)]
pub struct TransformPlan {
    /// The component's name.
    pub name: String,
    /// The topics that it reads.
    pub inputs: Vec<Input>,
    /// Its plugin and configuration.
    pub step: Step,
    /// Topic of the default port.
    pub topic: Template,
    /// Topics of the other ports.
    pub port_topics: Vec<(u16, Template)>,
    /// Partitions of topics that Trunkline creates; the worker's setting if `None`.
    pub partitions: Option<i32>,
    /// What happens to records that fail.
    pub on_error: OnError,
    /// The state of its plugin; `None` if the plugin keeps none.
    pub state: Option<StatePlan>,
    /// The table that its plugin reads.
    pub table: Option<TablePlan>,
    /// Tasks on each worker.
    pub tasks: u32,
}

/// The state that a transform's plugin keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatePlan {
    /// Limit on the state of each topic partition.
    pub max_bytes: usize,
    /// Event time follows the worker's clock, at this distance, while a topic partition has no
    /// record for this time. `None`: it stands still.
    pub idle: Option<Duration>,
}

/// A topic that is kept as a table: the last record of each key is a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TablePlan {
    /// The topic.
    pub topic: String,
    /// Limit on the memory of the table.
    pub max_bytes: usize,
}

impl TransformPlan {
    /// All topics that it writes, except the dead letters.
    pub fn topics(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.topic).chain(self.port_topics.iter().map(|(_, topic)| topic))
    }
}

/// The stage of a sink.
#[derive(Clone)]
pub struct SinkPlan {
    /// The component's name.
    pub name: String,
    /// Name of its connector.
    pub connector: &'static str,
    /// Opens the connector.
    pub spec: Arc<dyn SinkSpec>,
    /// The options that `spec` derives from.
    pub options: Options,
    /// The topics that it reads.
    pub inputs: Vec<Input>,
    /// When its topic partitions are committed: the connector's policy with the limits of the
    /// option `commit`.
    pub commit: CommitPolicy,
    /// What happens to records that it cannot write.
    pub on_error: OnError,
    /// Tasks on each worker.
    pub tasks: u32,
    /// Whether, and how fast, it may be replayed.
    pub replay: ReplayPolicy,
}

/// A transform: a plugin with its configuration.
#[derive(Clone, PartialEq)]
pub struct Step {
    /// Name of the transform.
    pub component: String,
    /// Its plugin.
    pub plugin: Plugin,
    /// The plugin's configuration; may hold secrets (I8).
    pub config: serde_json::Value,
    /// The same as written: references are not resolved.
    pub written: serde_json::Value,
    /// Limits on memory and time.
    pub limits: Limits,
    /// What happens to records that it rejects.
    pub on_error: OnError,
    /// The plugin's output ports; the first is `default`.
    pub ports: Vec<String>,
}

/// A topic (or pattern) that a stage reads, and the route of its records into the stage.
#[derive(Clone, PartialEq)]
pub struct Input {
    /// The topics.
    pub topics: TopicSelector,
    /// The fused transforms on the way into the stage.
    pub route: Route,
}

/// The topics that an input reads.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TopicSelector {
    /// The topic of this name.
    Exact(String),
    /// Topics whose whole name matches a regular expression, anchored with `^` and `$`.
    Pattern(String),
}

impl TopicSelector {
    /// Whether an input reads this topic.
    pub fn selects(&self, topic: &str) -> bool {
        match self {
            Self::Exact(name) => name == topic,
            Self::Pattern(pattern) => Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(topic)),
        }
    }
}

/// What happens to records at a point on their way into a stage. Routes form a tree, so that
/// transforms which several paths share run once.
#[derive(Clone, Default, PartialEq)]
pub struct Route {
    /// Records at this point go to the stage.
    pub deliver: bool,
    /// Each branch receives all records.
    pub branches: Vec<Branch>,
}

/// A transform on a route, and the routes of its output.
#[derive(Clone, PartialEq)]
pub struct Branch {
    /// The transform.
    pub step: Step,
    /// The route of each port. No component reads the ports that are absent.
    pub outputs: Vec<(u16, Route)>,
}
