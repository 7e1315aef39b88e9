//! A worker: the stages of its pipelines, each in a thread of its own, until everything is done or it is told to stop.
//!
//! Which pipelines there are may change while it runs: each set of them that it is given takes the place of the last one. Only what is planned
//! in another way is stopped and started (`tasks.rs`), and nothing is before the topics are there that the new set needs. The first
//! set is such a change too, of nothing.
//!
//! Workers keep nothing that matters: the data directory holds the worker's id (so that Kafka knows it again after a restart), scratch
//! files and compiled plugins.

mod data_dir;
mod leases;
mod summary;
mod tasks;
mod threads;
mod topics;

pub use data_dir::DataDir;
pub use summary::Summary;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use trunkline_connector::{Domain, MemoryBudget, Placement, Result};

use self::leases::Leases;
use self::tasks::{Changes, Task, Tasks};
use self::threads::Threads;
use self::topics::topics_of;
use crate::checkpoint::{Schemas, system_topics};
use crate::config::Settings;
use crate::kafka::{Admin, Cluster, TopicSpec};
use crate::plan::Pipeline;
use crate::stage::{Environment, Names, StageState, Stop};

/// With `--until-idle`, brokers that cannot be reached within this time end the run: a batch job must not wait for ever.
const REACH_BROKERS: Duration = Duration::from_secs(30);

/// Brokers that did not answer are asked again so soon.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// Threads and new sets of pipelines are looked at so often.
const LOOK: Duration = Duration::from_millis(20);

/// A line about each pipeline goes to the log this often, if something moved.
const REPORT: Duration = Duration::from_secs(10);

/// How a worker is run.
pub struct WorkerOptions {
    /// The worker's settings.
    pub settings: Settings,
    /// Where Kafka is.
    pub brokers: String,
    /// What is to run: the first set, and those that take its place.
    pub sets: Receiver<Set>,
    /// End when everything there has been moved.
    pub until_idle: bool,
    /// For what is async.
    pub runtime: tokio::runtime::Handle,
    /// Set it to stop the worker.
    pub stop: Stop,
}

/// All that is to run from now on.
pub struct Set {
    /// The pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Stages that failed for good are tried again, also where nothing of them changed.
    pub again: bool,
}

/// What came of a run.
pub struct Outcome {
    /// Totals since the pipelines began, read back from Kafka, of those that ran at the end.
    pub summary: Summary,
    /// Components that stopped for good, each with its error.
    pub failed: BTreeMap<String, String>,
}

/// Runs pipelines. Returns when all is done (`until_idle`) or after a stop; an error means that nothing could be run at all.
pub fn run(options: WorkerOptions, data: &DataDir) -> Result<Outcome> {
    let settings = &options.settings;
    let cluster = Cluster::new(&options.brokers, &settings.kafka);
    let memory = usize::try_from(settings.memory.0).unwrap_or(usize::MAX);
    let environment = Environment {
        cluster: cluster.clone(),
        admin: Arc::new(Admin::new(&cluster, options.runtime.clone())?),
        runtime: options.runtime.clone(),
        budget: MemoryBudget::new(memory - memory / 2),
        schemas: Arc::new(Schemas::new(cluster)),
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
        client_buffer: client_buffer(memory, 1),
        batch_bytes: batch_bytes(memory, 1),
    };
    let mut worker = Worker {
        options: &options,
        environment,
        memory,
        pipelines: Vec::new(),
        tasks: Tasks::new(),
        threads: Threads::default(),
        leases: Vec::new(),
    };
    worker.run()?;
    let failed = worker.tasks.values().filter_map(|task| match task.status.state() {
        StageState::Failed(error) => Some((task.status.name(), error)),
        _ => None,
    });
    let failed = failed.collect();
    let summary = Summary::read(&worker.environment.cluster, &worker.environment.names, &worker.pipelines)?;
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

struct Worker<'a> {
    options: &'a WorkerOptions,
    /// As tasks get it but for their shares of memory, which are those of the set that they come with.
    environment: Environment,
    memory: usize,
    /// The set that runs.
    pipelines: Vec<Pipeline>,
    tasks: Tasks,
    /// Of tasks without leases, which share their work through their consumer groups.
    threads: Threads,
    /// Of sources, by their placement.
    leases: Vec<Leases>,
}

/// A set that waits for its topics.
struct Pending {
    set: Set,
    since: Instant,
    /// When the brokers are asked again.
    due: Instant,
}

impl Worker<'_> {
    /// Runs until stopped, or (`until_idle`) all is over.
    fn run(&mut self) -> Result<()> {
        let mut pending: Option<Pending> = None;
        let mut ready = false;
        let mut report = Report { last: Instant::now(), lines: Vec::new() };
        let stop = &self.options.stop;
        let nothing = Tasks::new();
        while !(ready && stop.is_set() && self.threads.is_empty() && self.leases.iter().all(Leases::is_finished)) {
            for mut set in self.options.sets.try_iter() {
                // Of several only the last one is still wanted.
                set.again |= pending.take().is_some_and(|earlier| earlier.set.again);
                pending = Some(Pending { set, since: Instant::now(), due: Instant::now() });
            }
            if let Some(waiting) = pending.take_if(|pending| pending.due <= Instant::now() && !(ready && stop.is_set()))
            {
                pending = self.take(waiting, ready)?;
                ready |= pending.is_none();
            }
            self.threads.align(if stop.is_set() { &nothing } else { &self.tasks }, |task| task.lease.is_none());
            if ready && self.options.until_idle && self.tasks.values().all(|task| task.status.is_over()) {
                // Only those that keep leases are left.
                stop.set();
            }
            // A stop must not keep this loop from waiting.
            if stop.is_set() {
                std::thread::park_timeout(LOOK);
            } else {
                stop.wait(LOOK);
            }
            report.write(&self.tasks);
        }
        self.leases.drain(..).try_for_each(Leases::join)
    }

    /// Runs a set from now on; gives it back if the brokers do not answer. With the first set an error ends the run, with a later one it ends
    /// nothing: what runs goes on as it is (I7).
    fn take(&mut self, pending: Pending, is_later: bool) -> Result<Option<Pending>> {
        let set = &pending.set;
        let stages = |pipeline: &Pipeline| pipeline.sources.len() + pipeline.transforms.len() + pipeline.sinks.len();
        let count = set.pipelines.iter().map(stages).sum();
        // What goes on keeps the share that it has.
        let environment = Environment {
            client_buffer: client_buffer(self.memory, count),
            batch_bytes: batch_bytes(self.memory, count),
            ..self.environment.clone()
        };
        let tasks = tasks::plan(&set.pipelines, &self.tasks, set.again, &environment);
        let changes = Changes::between(&self.tasks, &tasks);
        match self.prepare_topics(&set.pipelines, &changes, is_later) {
            Ok(()) => {}
            Err(error) if error.domain == Domain::External => {
                let until_idle = self.options.until_idle;
                if until_idle && pending.since.elapsed() >= REACH_BROKERS {
                    return Err(error);
                }
                if !is_later && self.options.stop.is_set() {
                    return Err(error.context("stopped before the brokers answered"));
                }
                let until_then = if is_later { "; until then all goes on as it was" } else { "" };
                tracing::warn!(%error, brokers = self.options.brokers, "cannot prepare topics; trying again{until_then}");
                return Ok(Some(Pending { due: Instant::now() + ASK_AGAIN, ..pending }));
            }
            Err(error) if is_later => {
                tracing::error!(%error, "the pipeline files are not followed, all goes on as it was: their topics cannot be prepared");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        tracing::info!("pipelines reloaded: {changes}");
        self.tasks = tasks;
        self.pipelines = pending.set.pipelines;
        for placement in [Placement::EveryNode, Placement::Anywhere] {
            let is_leased = |task: &Task| task.lease.as_ref().is_some_and(|lease| lease.placement == placement);
            let leased = self.tasks.iter().filter(|(_, task)| is_leased(task));
            let leased: Tasks = leased.map(|(id, task)| (id.clone(), task.clone())).collect();
            match self.leases.iter().find(|leases| leases.placement == placement) {
                Some(leases) => leases.change(leased),
                None if leased.is_empty() => {}
                None => self.leases.push(Leases::keep(placement, leased, &self.environment)?),
            }
        }
        Ok(None)
    }

    /// Creates the topics whose names are known, of pipelines of which something starts.
    fn prepare_topics(&self, pipelines: &[Pipeline], changes: &Changes, is_later: bool) -> Result<()> {
        let settings = &self.options.settings.topics;
        let starting = pipelines.iter().filter(|pipeline| changes.pipelines.contains(&pipeline.name));
        let of_system = if is_later { Vec::new() } else { system_topics(settings.replication) };
        // Pipelines may share a topic of dead letters.
        let topics: BTreeMap<String, TopicSpec> = starting
            .flat_map(|pipeline| topics_of(pipeline, settings))
            .chain(of_system)
            .map(|topic| (topic.name.clone(), topic))
            .collect();
        let topics: Vec<TopicSpec> = topics.into_values().collect();
        if topics.is_empty() {
            return Ok(());
        }
        self.environment.admin.reach()?;
        for difference in self.environment.admin.ensure(&topics)? {
            tracing::warn!("{difference}");
        }
        Ok(())
    }
}

/// The lines about stages in the log.
struct Report {
    last: Instant,
    lines: Vec<String>,
}

impl Report {
    /// Writes those that changed, when it is time.
    fn write(&mut self, tasks: &Tasks) {
        if self.last.elapsed() < REPORT {
            return;
        }
        self.last = Instant::now();
        let now: Vec<String> = tasks.values().map(|task| task.status.line()).collect();
        for line in now.iter().filter(|line| !self.lines.contains(line)) {
            tracing::info!("{line}");
        }
        self.lines = now;
    }
}
