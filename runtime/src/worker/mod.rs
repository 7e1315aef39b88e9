//! A worker: the stages of its pipelines, each in a thread of its own, until everything is done or it is told to stop.
//!
//! Workers keep nothing that matters: the data directory holds the worker's id (so that Kafka knows it again after a restart), scratch
//! files and compiled plugins.

mod data_dir;
mod leases;
mod summary;

pub use data_dir::DataDir;
pub use summary::Summary;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_connector::{Domain, Error, MemoryBudget, Placement, Result};

use crate::checkpoint::{Schemas, system_topics};
use crate::config::Settings;
use crate::kafka::{Admin, Cluster, TopicSpec};
use crate::plan::{Pipeline, TopicSelector};
use crate::stage::{
    Environment, Names, SinkStage, SourceStage, Stage, StageKind, StageState, StageStatus, Stop, TransformStage,
    Upstream, supervise,
};

/// With `--until-idle`, brokers that cannot be reached within this time end the run: a batch job must not wait for ever.
const REACH_BROKERS: Duration = Duration::from_secs(30);

/// A line about each pipeline goes to the log this often, if something moved.
const REPORT: Duration = Duration::from_secs(10);

/// How a worker is run.
pub struct WorkerOptions {
    /// The worker's settings.
    pub settings: Settings,
    /// Where Kafka is.
    pub brokers: String,
    /// The pipelines.
    pub pipelines: Vec<Pipeline>,
    /// End when everything there has been moved.
    pub until_idle: bool,
    /// For what is async.
    pub runtime: tokio::runtime::Handle,
    /// Set it to stop the worker.
    pub stop: Stop,
}

/// What came of a run.
pub struct Outcome {
    /// Totals since the pipelines began, read back from Kafka.
    pub summary: Summary,
    /// Components that stopped for good, each with its error.
    pub failed: BTreeMap<String, String>,
}

/// Runs pipelines. Returns when all is done (`until_idle`) or after a stop; an error means that nothing could be run at all.
pub fn run(options: WorkerOptions, data: &DataDir) -> Result<Outcome> {
    let settings = &options.settings;
    let cluster = Cluster::new(&options.brokers, &settings.kafka);
    let admin = Arc::new(Admin::new(&cluster, options.runtime.clone())?);
    prepare_topics(&admin, &options)?;

    let stage_count = options
        .pipelines
        .iter()
        .map(|pipeline| pipeline.sources.len() + pipeline.transforms.len() + pipeline.sinks.len())
        .sum();
    let memory = usize::try_from(settings.memory.0).unwrap_or(usize::MAX);
    let environment = Environment {
        cluster: cluster.clone(),
        admin,
        runtime: options.runtime.clone(),
        budget: MemoryBudget::new(memory - memory / 2),
        schemas: Arc::new(Schemas::new(cluster.clone())),
        names: Names {
            cluster: settings.cluster.clone(),
            node: settings.node.clone(),
            worker: data.worker_id().to_owned(),
        },
        topics: settings.topics.clone(),
        commit_interval: settings.commit_interval,
        until_idle: options.until_idle,
        stop: options.stop.clone(),
        scratch: data.scratch().to_owned(),
        client_buffer: client_buffer(memory, stage_count),
        batch_bytes: batch_bytes(memory, stage_count),
    };
    let mut stages = Stages::default();
    for pipeline in &options.pipelines {
        stages.add(pipeline);
    }
    let statuses = stages.statuses();
    let running = stages.start(&environment)?;
    watch(&running, &statuses, &options);
    for thread in running {
        // A stage's panic is caught inside; what is left is a panic of the supervision itself.
        if thread.join().is_err() {
            return Err(Error::bug("worker.panic", "a thread of the worker panicked (please report this)"));
        }
    }
    let failed = statuses.iter().filter_map(|status| match status.state() {
        StageState::Failed(error) => Some((status.name(), error)),
        _ => None,
    });
    let failed = failed.collect();
    let summary = Summary::read(&cluster, &environment.names, &options.pipelines)?;
    Ok(Outcome { summary, failed })
}

/// Half of `memory` is for what librdkafka holds back and fetches ahead, shared by all stages; the other half is the stages' own budget. librdkafka
/// counts payloads only; with its own bookkeeping and the headers of small records it takes three to four times as much.
fn client_buffer(memory: usize, stages: usize) -> usize {
    (memory / 2 / 4 / stages.max(1)).clamp(256 << 10, 8 << 20)
}

/// Large enough that nothing is paid per batch; of many stages, which keep several each, small enough that they are a small part of the budget.
fn batch_bytes(memory: usize, stages: usize) -> usize {
    (memory / 64 / stages.max(1)).clamp(64 << 10, 1 << 20)
}

/// Stages that wait to be started.
#[derive(Default)]
struct Stages {
    sources: Vec<(Arc<SourceStage>, Arc<StageStatus>)>,
    others: Vec<(Box<dyn Stage>, Arc<StageStatus>)>,
}

impl Stages {
    fn add(&mut self, pipeline: &Pipeline) {
        // Which topics each stage of this pipeline writes to, to know what a reader has to wait for.
        let mut writers: Vec<(TopicMatch, Arc<StageStatus>)> = Vec::new();
        for plan in &pipeline.sources {
            let status = Arc::new(StageStatus::new(&pipeline.name, &plan.name, StageKind::Source));
            writers.push((TopicMatch::of(&plan.topic), status.clone()));
            let stage = SourceStage {
                pipeline: pipeline.name.clone(),
                dead_letters: pipeline.dead_letters.clone(),
                plan: plan.clone(),
            };
            self.sources.push((Arc::new(stage), status));
        }
        let mut transforms = Vec::new();
        for plan in &pipeline.transforms {
            for task in 0..plan.tasks.max(1) {
                let status = Arc::new(StageStatus::new(&pipeline.name, &plan.name, StageKind::Transform));
                writers.push((TopicMatch::of(&plan.topic), status.clone()));
                writers.extend(plan.port_topics.iter().map(|(_, topic)| (TopicMatch::of(topic), status.clone())));
                transforms.push((plan, task, status));
            }
        }
        let upstream_of = |inputs: &[crate::plan::Input]| {
            let reads = |topic: &TopicMatch| inputs.iter().any(|input| topic.meets(&input.topics));
            Upstream {
                stages: writers.iter().filter(|(topic, _)| reads(topic)).map(|(_, status)| status.clone()).collect(),
            }
        };
        for (plan, task, status) in transforms {
            let stage = TransformStage {
                pipeline: pipeline.name.clone(),
                dead_letters: pipeline.dead_letters.clone(),
                plan: plan.clone(),
                task,
                upstream: upstream_of(&plan.inputs),
            };
            self.others.push((Box::new(stage), status));
        }
        for plan in &pipeline.sinks {
            for task in 0..plan.tasks.max(1) {
                let status = Arc::new(StageStatus::new(&pipeline.name, &plan.name, StageKind::Sink));
                let stage = SinkStage {
                    pipeline: pipeline.name.clone(),
                    dead_letters: pipeline.dead_letters.clone(),
                    plan: plan.clone(),
                    task,
                    upstream: upstream_of(&plan.inputs),
                };
                self.others.push((Box::new(stage), status));
            }
        }
    }

    fn statuses(&self) -> Vec<Arc<StageStatus>> {
        let sources = self.sources.iter().map(|(_, status)| status.clone());
        sources.chain(self.others.iter().map(|(_, status)| status.clone())).collect()
    }

    /// Starts the threads. Sources run under leases, by their placement; the others share their work through their consumer groups.
    fn start(self, environment: &Environment) -> Result<Vec<JoinHandle<()>>> {
        let mut threads = Vec::new();
        for (stage, status) in self.others {
            let environment = environment.clone();
            threads.push(spawn(&status.name(), move || {
                supervise(stage.as_ref(), false, &environment, &environment.stop.clone(), &status);
            })?);
        }
        for placement in [Placement::EveryNode, Placement::Anywhere] {
            let sources: Vec<_> =
                self.sources.iter().filter(|(stage, _)| stage.plan.spec.placement() == placement).cloned().collect();
            if !sources.is_empty() {
                let environment = environment.clone();
                threads.push(spawn("leases", move || leases::keep(placement, &sources, &environment))?);
            }
        }
        Ok(threads)
    }
}

/// The topics that a template can name.
enum TopicMatch {
    Exact(String),
    Pattern(String),
}

impl TopicMatch {
    fn of(template: &trunkline_connector::Template) -> Self {
        match template.constant() {
            Some(name) => Self::Exact(name.to_owned()),
            None => Self::Pattern(format!("^{}$", template.pattern())),
        }
    }

    fn meets(&self, selector: &TopicSelector) -> bool {
        let matches =
            |pattern: &str, name: &str| regex::Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(name));
        match (self, selector) {
            (Self::Exact(written), TopicSelector::Exact(read)) => written == read,
            (Self::Exact(name), TopicSelector::Pattern(pattern))
            | (Self::Pattern(pattern), TopicSelector::Exact(name)) => matches(pattern, name),
            (Self::Pattern(written), TopicSelector::Pattern(read)) => written == read,
        }
    }
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(body)
        .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))
}

/// Waits until all threads are done, reporting progress; with `--until-idle` a failure of one stage lets the others finish first.
fn watch(threads: &[JoinHandle<()>], statuses: &[Arc<StageStatus>], options: &WorkerOptions) {
    let mut reported = Instant::now();
    let mut lines: Vec<String> = Vec::new();
    while threads.iter().any(|thread| !thread.is_finished()) {
        let over = statuses.iter().all(|status| status.is_over());
        if over && options.until_idle {
            // Only the lease keeper is left.
            options.stop.set();
        }
        // A stop must not keep this loop from waiting.
        let pause = Duration::from_millis(20);
        if options.stop.is_set() {
            std::thread::park_timeout(pause);
        } else {
            options.stop.wait(pause);
        }
        if reported.elapsed() >= REPORT {
            reported = Instant::now();
            let now: Vec<String> = statuses.iter().map(|status| status.line()).collect();
            for line in now.iter().filter(|line| !lines.contains(line)) {
                tracing::info!("{line}");
            }
            lines = now;
        }
    }
}

/// Creates the topics whose names are known. Waits for brokers that are not there yet.
fn prepare_topics(admin: &Admin, options: &WorkerOptions) -> Result<()> {
    let settings = &options.settings;
    let replication = settings.topics.replication;
    let mut topics: BTreeMap<String, TopicSpec> =
        system_topics(replication).into_iter().map(|topic| (topic.name.clone(), topic)).collect();
    let mut add = |name: &str, partitions: Option<i32>| {
        let partitions = partitions.unwrap_or(settings.topics.partitions);
        let spec = TopicSpec { name: name.to_owned(), partitions, replication, config: settings.topics.config.clone() };
        topics.insert(name.to_owned(), spec);
    };
    for pipeline in &options.pipelines {
        add(&pipeline.dead_letters, None);
        for source in &pipeline.sources {
            let ports = source.port_topics.iter().map(|(_, topic)| topic);
            for topic in std::iter::once(&source.topic).chain(ports).filter_map(|topic| topic.constant()) {
                add(topic, source.partitions);
            }
        }
        for transform in &pipeline.transforms {
            let ports = transform.port_topics.iter().map(|(_, topic)| topic);
            for topic in std::iter::once(&transform.topic).chain(ports).filter_map(|topic| topic.constant()) {
                add(topic, transform.partitions);
            }
        }
    }
    let topics: Vec<TopicSpec> = topics.into_values().collect();
    let started = Instant::now();
    loop {
        match admin.ensure(&topics) {
            Ok(differences) => {
                for difference in differences {
                    tracing::warn!("{difference}");
                }
                return Ok(());
            }
            Err(error)
                if error.domain != Domain::External || options.until_idle && started.elapsed() >= REACH_BROKERS =>
            {
                return Err(error);
            }
            Err(error) => {
                tracing::warn!(%error, brokers = options.brokers, "cannot prepare topics; trying again");
                if options.stop.wait(Duration::from_secs(1)) {
                    return Err(error.context("stopped before the brokers answered"));
                }
            }
        }
    }
}
