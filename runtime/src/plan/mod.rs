//! The plan: what a worker executes for a set of pipeline files.
//!
//! A pipeline file names sources, transforms and sinks, and who reads whom. The plan is the same thing in terms of stages, which is
//! what runs: every source is a stage that writes a topic, every transform with a topic of its own (*materialised*) is a stage from
//! topic to topic, and every sink is a stage that reads topics. All other transforms are *fused*: they are [`Step`]s on the way
//! into the stage that reads them, once for each such stage. [`Route`] says which records take which steps.
//!
//! Planning is all the checking there is: a plan that was made has known connectors and plugins, plugins that took their
//! configuration, inputs that exist, no cycles, and topics that nobody else writes. It touches nothing outside the pipeline files
//! and their plugins; servers may be down while a file is checked.
//!
//! Files are checked together, as duplicate names and topics show only then, but each stands for itself: [`load_each`] returns the
//! good ones beside the problems of the others (I7). [`Files`] are read again and again while a
//! worker runs: a file that is wrong then is taken as it was when it was right.

mod across;
mod commit;
mod draft;
mod files;
mod graph;
mod inputs;
mod load;
mod names;
mod plugins;
mod registry;
mod same;
mod topics;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::{CommitPolicy, SinkSpec, SourceSpec, Template};
use trunkline_transform_host::{Limits, Plugin};

pub use commit::COMMIT_OPTIONS;
pub use files::files_of;
pub use load::{Files, Loaded, load_each};
pub use registry::Registry;
pub use same::Options;

/// A pipeline, ready to be run.
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
    /// Stages from topic to topic: materialised transforms only.
    pub transforms: Vec<TransformPlan>,
    /// Stages that read topics.
    pub sinks: Vec<SinkPlan>,
}

/// A source's stage.
#[derive(Clone)]
pub struct SourcePlan {
    /// The component's name.
    pub name: String,
    /// Name of its connector.
    pub connector: &'static str,
    /// What opens it.
    pub spec: Arc<dyn SourceSpec>,
    /// What that was made of.
    pub options: Options,
    /// Topic of each record.
    pub topic: Template,
    /// Topics of its other ports, with their names; the first is of port 1.
    pub port_topics: Vec<(&'static str, Template)>,
    /// Partitions of a topic that has to be created; the worker's settings say how many if absent.
    pub partitions: Option<i32>,
    /// Transforms before the topic, in order.
    pub apply: Vec<Step>,
    /// What happens to what could not be made a record.
    pub on_error: OnError,
    /// How often it commits at the latest; the worker's settings say if absent.
    pub commit_interval: Option<Duration>,
}

impl SourcePlan {
    /// All topics that it writes, but for the dead letters.
    pub fn topics(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.topic).chain(self.port_topics.iter().map(|(_, topic)| topic))
    }
}

/// A materialised transform's stage.
#[derive(Clone)]
pub struct TransformPlan {
    /// The component's name.
    pub name: String,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// What it does.
    pub step: Step,
    /// Topic of records that leave by the default port.
    pub topic: Template,
    /// Topics of the other ports.
    pub port_topics: Vec<(u16, Template)>,
    /// Partitions of a topic that has to be created; the worker's settings say how many if absent.
    pub partitions: Option<i32>,
    /// What happens to records that fail.
    pub on_error: OnError,
    /// Tasks on each worker.
    pub tasks: u32,
}

impl TransformPlan {
    /// All topics that it writes, but for the dead letters.
    pub fn topics(&self) -> impl Iterator<Item = &Template> {
        std::iter::once(&self.topic).chain(self.port_topics.iter().map(|(_, topic)| topic))
    }
}

/// A sink's stage.
#[derive(Clone)]
pub struct SinkPlan {
    /// The component's name.
    pub name: String,
    /// Name of its connector.
    pub connector: &'static str,
    /// What opens it.
    pub spec: Arc<dyn SinkSpec>,
    /// What that was made of.
    pub options: Options,
    /// What it reads.
    pub inputs: Vec<Input>,
    /// When its topic partitions are committed: the connector's policy with the limits of the option `commit`.
    pub commit: CommitPolicy,
    /// What happens to records that it cannot write.
    pub on_error: OnError,
    /// Tasks on each worker.
    pub tasks: u32,
}

/// One run of a plugin over records.
#[derive(Clone, PartialEq)]
pub struct Step {
    /// Name of the transform.
    pub component: String,
    /// Its plugin.
    pub plugin: Plugin,
    /// What the plugin is started with; may hold secrets (I8).
    pub config: serde_json::Value,
    /// What it may use.
    pub limits: Limits,
    /// What happens to records that fail in it.
    pub on_error: OnError,
    /// The plugin's output ports; the first is `default`.
    pub ports: Vec<String>,
}

/// One topic (or pattern) that a stage reads, and what happens to its records on the way in.
#[derive(Clone, PartialEq)]
pub struct Input {
    /// The topics.
    pub topics: TopicSelector,
    /// The way in.
    pub route: Route,
}

/// Topics to read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TopicSelector {
    /// The topic of this name.
    Exact(String),
    /// Topics whose whole name matches a regular expression, anchored with `^` and `$`.
    Pattern(String),
}

/// What happens to records at a point on their way into a stage: a tree, so that common prefixes of chains of transforms run once.
#[derive(Clone, Default, PartialEq)]
pub struct Route {
    /// Records as they are here go to the stage.
    pub deliver: bool,
    /// Each gets all records.
    pub branches: Vec<Branch>,
}

/// A transform on the way, and what happens to what it puts out.
#[derive(Clone, PartialEq)]
pub struct Branch {
    /// The transform.
    pub step: Step,
    /// Where records go by port; what leaves by a port that is not here is read by nobody.
    pub outputs: Vec<(u16, Route)>,
}

/// What happens to a record that is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnError {
    /// It goes to the pipeline's dead letters.
    #[default]
    DeadLetter,
    /// The stage stops before it.
    Stop,
    /// It is counted and left out.
    Skip,
}
