//! A worker runs the stages of its pipelines, each task in a separate thread, until every task
//! has ended or it is stopped.
//!
//! The pipelines may change while it runs: each new set replaces the last one. Only tasks with a
//! changed plan are stopped and started (`tasks.rs`), after the topics of the new set exist. The
//! first set is handled as a change from an empty set.
//!
//! A worker keeps no state that matters: its data directory has the worker's id (by which Kafka
//! recognises it after a restart), scratch files, compiled plugins and copies of state.

mod agreement;
pub mod control;
mod data_dir;
mod leases;
mod open_files;
mod overview;
mod plugin_cache;
mod rights;
mod summary;
mod tasks;
mod threads;
mod topics;

pub use data_dir::{Addresses, DataDir, IN_USE, create_private_folder};
pub use open_files::{OpenFiles, raise_open_files_limit};
pub use overview::Overview;
pub use plugin_cache::{plugin_cache_dirs, user_cache_dir};
pub use rights::{Operation, Resource, ResourceKind, Rights, Use, rights_for, rights_of};
pub use summary::{PipelineSummary, Summary};

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use trunkline_connector::{Domain, Error, MemoryBudget, Placement, Result, Retry};

use self::agreement::Agreement;
use self::control::{Control, Follower, View};
use self::leases::LeaseManager;
use self::tasks::{Changes, Task, TaskId, Tasks};
use self::threads::Threads;
use self::topics::{claims_of, state_topics, topics_of};
use crate::checkpoint::{RestartRow, RunState, Schemas, TASKS, TaskRef, TopicClaim, TopicOwners, system_topics};
use crate::config::Settings;
use crate::kafka::embedded::EMBEDDED;
use crate::kafka::{Admin, Cluster, DUPLICATE_WORKER, TopicSpec};
use crate::plan::Pipeline;
use crate::stage::{Backlogs, Names, ResourceShare, StageState, StageStatus, StopSignal, WorkerContext};
use crate::telemetry::Tracer;

/// With `--until-idle`, the run ends if no broker answers within this time.
const CONNECT_LIMIT: Duration = Duration::from_secs(30);

/// Time between two attempts to prepare topics.
const TOPICS_RETRY: Duration = Duration::from_secs(1);

/// Time between two checks of the threads and of new pipeline sets.
const POLL: Duration = Duration::from_millis(20);

/// The same while nothing changes: a check looks at every task.
const IDLE_POLL: Duration = Duration::from_millis(100);

/// Time between two progress lines of a stage in the log. A line without a change is left out.
const REPORT: Duration = Duration::from_secs(10);

/// From this time on after a stop, the worker no longer looks for unreachable brokers.
const INTERRUPT: Duration = Duration::from_secs(1);

/// After a stop, the worker ends without its tasks if no broker has answered for this time: what
/// they cannot commit is read again at the next start, as after a crash.
const CUT_OFF: Duration = Duration::from_secs(2);

/// Time for a broker to answer while the worker stops.
const PROBE: Duration = Duration::from_secs(1);

/// The code of the error of a stop without an answer from the brokers.
pub const STOPPED_CUT_OFF: &str = "worker.stopped_cut_off";

/// Time between two checks for another worker with the same id.
const ID_CHECK: Duration = Duration::from_secs(1);

/// Copies of state on disk that were not written for this long are removed when a worker starts:
/// they are too old to be trusted.
const MAX_STATE_AGE: Duration = Duration::from_hours(24);

/// A follower repeats the same warning after this time.
const REPEAT_WARNING: Duration = Duration::from_secs(60);

/// The options of a worker.
pub struct WorkerOptions {
    /// The worker's settings.
    pub settings: Settings,
    /// Kafka's bootstrap servers.
    pub brokers: String,
    /// The pipelines to run: the first set, and the sets that replace it.
    pub sets: Receiver<PipelineSet>,
    /// End when all available records are processed.
    pub until_idle: bool,
    /// Sinks may write next to output of which the cluster has no state, and sources and transforms
    /// to topics of components that no longer exist.
    pub append: bool,
    /// Components run although other workers run other versions of them.
    pub allow_divergence: bool,
    /// Runs async code.
    pub runtime: tokio::runtime::Handle,
    /// Set it to stop the worker.
    pub stop: StopSignal,
    /// What the worker shows of itself while it runs.
    pub overview: Overview,
    /// Requests to pause, resume and restart components.
    pub control: Control,
    /// Traces the work of tasks.
    pub tracer: Tracer,
}

/// The pipelines to run from now on.
pub struct PipelineSet {
    /// The pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Restart failed stages even if their plans are unchanged.
    pub retry_failed: bool,
    /// The settings `kafka`, if they were read again: changed credentials take effect.
    pub kafka: Option<BTreeMap<String, String>>,
}

/// The result of a run.
pub struct RunReport {
    /// Totals since the pipelines were created, read from Kafka, of the last pipeline set.
    pub summary: Summary,
    /// What this worker committed during this run, of the same pipelines.
    pub run: Summary,
    /// These pipelines.
    pub pipelines: Vec<Pipeline>,
    /// Components that failed, each with its error.
    pub failed: BTreeMap<String, String>,
}

/// Runs pipelines. Returns when every task has ended (`until_idle`) or after a stop. An error means
/// that no pipeline could run.
pub fn run(options: WorkerOptions, data: &DataDir) -> Result<RunReport> {
    let settings = &options.settings;
    let stop = options.stop.clone();
    let is_stopping = move || stop.since().is_some_and(|since| since > INTERRUPT);
    let cluster = Cluster::new(&options.brokers, &settings.kafka)?
        .with_prefix(&settings.prefix)
        .with_topic_creation(settings.topics.create)
        .with_interrupt(is_stopping);
    let memory = usize::try_from(settings.memory.0).unwrap_or(usize::MAX);
    let context = WorkerContext {
        cluster: cluster.clone(),
        admin: Arc::new(Admin::new(&cluster)?),
        runtime: options.runtime.clone(),
        budget: MemoryBudget::new(memory - memory / 2),
        owners: Arc::new(TopicOwners::new(&cluster, &settings.cluster_name())),
        schemas: Arc::new(Schemas::new(cluster)),
        names: Names {
            cluster: settings.cluster_name(),
            node: data.node(&settings.node, settings.is_default_node)?,
            worker: data.worker_id().to_owned(),
        },
        topics: settings.topics.clone(),
        commit_interval: settings.commit_interval,
        max_initial_failures: settings.max_initial_failures,
        until_idle: options.until_idle,
        append: options.append,
        stop: options.stop.clone(),
        scratch: data.scratch().to_owned(),
        state: settings.state_disk(),
        share: resource_share(memory, 1),
        backlogs: Backlogs::default(),
        tracer: options.tracer.clone(),
    };
    context.state.remove_older_than(MAX_STATE_AGE);
    options.overview.set_budget(context.budget.clone());
    tracing::info!(brokers = options.brokers, "connecting to Kafka");
    let agreement = Agreement::spawn(&context, options.allow_divergence)?;
    let mut worker = Worker {
        options: &options,
        context,
        memory,
        pipelines: Vec::new(),
        tasks: Tasks::new(),
        retired: Vec::new(),
        threads: Threads::default(),
        leases: Vec::new(),
        agreement,
        follower: None,
        control_version: 0,
        restarts: BTreeMap::new(),
        is_complete: false,
        fatal: None,
    };
    worker.run()?;
    worker.agreement.finish();
    if let Some(follower) = worker.follower.take() {
        follower.finish();
    }
    let failed = worker.tasks.values().filter_map(|task| match task.status.state() {
        StageState::Failed(error) => Some((task.status.name(), error)),
        _ => None,
    });
    let failed = failed.collect();
    let summary = Summary::read(&worker.context.cluster, &worker.context.names, &worker.pipelines)?;
    let stages = worker.tasks.values().map(|task| task.status.as_ref());
    let run = Summary::of_run(&worker.pipelines, stages.chain(worker.retired.iter().map(Arc::as_ref)));
    Ok(RunReport { summary, run, pipelines: worker.pipelines, failed })
}

/// The share of each of `stages` stages in the worker's memory.
pub(crate) fn resource_share(memory: usize, stages: usize) -> ResourceShare {
    ResourceShare { client_buffer_bytes: client_buffer(memory, stages), batch_bytes: batch_bytes(memory, stages) }
}

/// Half of `memory` is for the send buffers and prefetch queues of librdkafka, shared by all
/// stages; the other half is the stages' own budget. librdkafka counts payloads only; with its
/// bookkeeping and the headers of small records it uses three to four times as much.
fn client_buffer(memory: usize, stages: usize) -> usize {
    (memory / 2 / 4 / stages.max(1)).clamp(256 << 10, 8 << 20)
}

/// Large enough that the cost per batch is negligible. Many stages, each with several batches, use
/// smaller ones, so that batches are a small part of the budget.
fn batch_bytes(memory: usize, stages: usize) -> usize {
    (memory / 64 / stages.max(1)).clamp(64 << 10, 1 << 20)
}

struct Worker<'a> {
    options: &'a WorkerOptions,
    /// The context of new tasks, except for their shares of memory, which depend on the
    /// pipeline set.
    context: WorkerContext,
    memory: usize,
    /// The running set.
    pipelines: Vec<Pipeline>,
    tasks: Tasks,
    /// The statuses of tasks that were replaced or removed: their counts are part of the run.
    retired: Vec<Arc<StageStatus>>,
    /// Threads of tasks without leases: consumer groups distribute their work.
    threads: Threads,
    /// Leases of source tasks, by placement.
    leases: Vec<LeaseManager>,
    /// Keeps two versions of a component from running at the same time.
    agreement: Agreement,
    /// Follows the requests to pause, resume and restart, from the first set on.
    follower: Option<Follower>,
    /// The version of the control that the tasks agree with.
    control_version: u64,
    /// The last restart of each component that was carried out.
    restarts: BTreeMap<String, RestartRow>,
    /// Whether every task has ended by itself (`until_idle`).
    is_complete: bool,
    /// Why the worker stops although nothing asked it to.
    fatal: Option<Error>,
}

/// A set that waits for its topics.
struct PendingSet {
    set: PipelineSet,
    since: Instant,
    /// The time of the next attempt.
    due: Instant,
    /// The last warning about a failed attempt, and its time.
    warned: Option<(String, Instant)>,
}

/// Whether the brokers are out of reach while the worker stops.
#[derive(Default)]
struct CutOff {
    last_probe: Option<Instant>,
    failing_since: Option<Instant>,
}

impl CutOff {
    /// Probes the brokers once per interval, from an interval after the stop on. Most stops take
    /// less.
    fn is_certain(&mut self, stopping_for: Duration, admin: &Admin, tasks: &str) -> bool {
        if stopping_for < PROBE || self.last_probe.is_some_and(|last| last.elapsed() < PROBE) {
            return false;
        }
        let started = Instant::now();
        if admin.is_reachable(tasks, PROBE) {
            self.failing_since = None;
        } else {
            self.failing_since.get_or_insert(started);
        }
        self.last_probe = Some(Instant::now());
        self.failing_since.is_some_and(|since| since.elapsed() >= CUT_OFF)
    }
}

impl Worker<'_> {
    /// Runs until stopped, or (`until_idle`) until every task has ended.
    fn run(&mut self) -> Result<()> {
        let mut pending: Option<PendingSet> = None;
        let mut ready = false;
        let mut report = Report { last: Instant::now(), lines: Vec::new() };
        let mut cut_off = CutOff::default();
        let mut last_check = Instant::now();
        let stop = &self.options.stop;
        let nothing = Tasks::new();
        let tasks = self.context.cluster.own_topic(TASKS);
        while !(ready && stop.is_set() && self.threads.is_empty() && self.leases.iter().all(LeaseManager::is_finished))
        {
            self.options.overview.pass();
            for mut set in self.options.sets.try_iter() {
                if let Some(settings) = set.kafka.take() {
                    self.change_credentials(&settings);
                }
                // The last of several sets replaces the others.
                set.retry_failed |= pending.take().is_some_and(|earlier| earlier.set.retry_failed);
                stop.announce();
                pending = Some(PendingSet { set, since: Instant::now(), due: Instant::now(), warned: None });
            }
            if let Some(waiting) = pending.take_if(|pending| pending.due <= Instant::now() && !(ready && stop.is_set()))
            {
                pending = self.apply(waiting, ready)?;
                ready |= pending.is_none();
            }
            if ready && !stop.is_set() {
                self.follow_control()?;
            }
            self.threads.reconcile(if stop.is_set() { &nothing } else { &self.tasks }, |task| task.lease.is_none());
            if ready && self.options.until_idle && self.tasks.values().all(|task| task.status.is_over()) {
                // Only the lease managers still run.
                self.is_complete = true;
                stop.set();
            }
            if last_check.elapsed() >= ID_CHECK {
                last_check = Instant::now();
                self.check_worker_id();
            }
            if let Some(since) = stop.since() {
                if cut_off.is_certain(since, &self.context.admin, &tasks) {
                    return Err(self.cut_off_error());
                }
                // Waiting for the stop would return at once.
                std::thread::park_timeout(POLL);
            } else if self.options.until_idle || pending.is_some() {
                stop.wait(POLL);
            } else {
                stop.wait_for_change(POLL, IDLE_POLL);
            }
            report.write(&self.tasks);
        }
        self.leases.drain(..).try_for_each(LeaseManager::join)?;
        if let Some(error) = self.fatal.take() {
            return Err(error);
        }
        // The summary would wait for the brokers much longer.
        if !self.is_complete && !self.context.admin.is_reachable(&tasks, PROBE) {
            return Err(self.cut_off_error());
        }
        Ok(())
    }

    /// Takes over changed credentials of Kafka. An error changes nothing (I7).
    fn change_credentials(&self, settings: &BTreeMap<String, String>) {
        match self.context.cluster.change_credentials(settings) {
            Ok(others) if others.is_empty() => tracing::info!("the clients of Kafka use the changed credentials"),
            Ok(others) => {
                tracing::warn!("changed Kafka properties take effect when the worker restarts: {}", others.join(", "));
            }
            Err(error) => tracing::error!(%error, "the changed settings `kafka` are not valid and have no effect"),
        }
    }

    fn cut_off_error(&self) -> Error {
        let message = format!(
            "stopped while the brokers at {} could not be reached: records that were not committed are read again at the \
             next start",
            self.options.brokers
        );
        Error::external(STOPPED_CUT_OFF, message)
    }

    /// Stops the worker if another one has its id. (The tasks of both would fence each other
    /// forever.)
    fn check_worker_id(&mut self) {
        let suffix = format!("[{DUPLICATE_WORKER}]");
        for task in self.tasks.values() {
            if let StageState::Failed(error) = task.status.state()
                && let Some(message) = error.strip_suffix(&suffix)
            {
                self.options.stop.set();
                self.fatal.get_or_insert_with(|| Error::config(DUPLICATE_WORKER, message.trim_end()));
            }
        }
    }

    /// Replaces the running set; returns the new set if the brokers do not answer. With the first
    /// set an error ends the run; with a later one, the running set stays (I7).
    fn apply(&mut self, pending: PendingSet, is_later: bool) -> Result<Option<PendingSet>> {
        let set = &pending.set;
        let is_retried = |_: &TaskId, task: &Task| set.retry_failed && task.has_failed();
        let tasks = tasks::plan(&set.pipelines, &self.tasks, &is_retried, &self.context_of(&set.pipelines));
        let changes = Changes::between(&self.tasks, &tasks);
        let prepared = self.prepare_topics(&set.pipelines, &changes, is_later);
        match prepared.and_then(|()| self.connect_control()) {
            Ok(()) => {}
            Err(error) if error.domain == Domain::External => {
                let warned = self.check_retry(error, &pending, is_later)?;
                return Ok(Some(PendingSet { due: Instant::now() + TOPICS_RETRY, warned, ..pending }));
            }
            Err(error) if is_later => {
                let consequence = "the running pipelines stay unchanged";
                tracing::error!(%error, "the topics of the new pipelines cannot be prepared; {consequence}");
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        tracing::info!("pipelines reloaded: {changes}");
        self.pipelines = pending.set.pipelines;
        self.install(tasks)?;
        Ok(None)
    }

    /// The context of new tasks in these pipelines. Unchanged tasks keep their shares.
    fn context_of(&self, pipelines: &[Pipeline]) -> WorkerContext {
        let count = pipelines.iter().map(stage_count).sum();
        WorkerContext { share: resource_share(self.memory, count), ..self.context.clone() }
    }

    /// Replaces the tasks.
    fn install(&mut self, tasks: Tasks) -> Result<()> {
        self.pause(&tasks, &self.options.control.view());
        let is_retired = |status: &Arc<StageStatus>| !tasks.values().any(|task| Arc::ptr_eq(&task.status, status));
        self.retired.extend(self.tasks.values().map(|task| task.status.clone()).filter(is_retired));
        self.tasks = tasks;
        self.options.overview.set_pipelines(self.pipelines.clone());
        self.options.overview.set_tasks(self.tasks.iter().map(|(id, task)| (id.number, task.status.clone())));
        self.agreement.watch(self.tasks.values().map(|task| &task.permit));
        self.assign_leases()
    }

    /// Reads the requests to pause and restart, before the first task starts. Earlier restarts
    /// have no effect.
    fn connect_control(&mut self) -> Result<()> {
        if self.follower.is_none() {
            let (overview, control) = (&self.options.overview, &self.options.control);
            self.follower = Some(Follower::start(&self.context, overview, control)?);
            self.restarts = control.view().restarts().clone();
        }
        Ok(())
    }

    /// Carries out new requests to pause, resume and restart.
    fn follow_control(&mut self) -> Result<()> {
        let version = self.options.control.version();
        if version == self.control_version {
            return Ok(());
        }
        self.control_version = version;
        self.options.stop.announce();
        let view = self.options.control.view();
        let is_new = |(name, row): &(&String, &RestartRow)| self.restarts.get(*name) != Some(*row);
        let due: BTreeMap<String, RestartRow> =
            view.restarts().iter().filter(is_new).map(|(name, row)| (name.clone(), row.clone())).collect();
        self.restarts = view.restarts().clone();
        // A job has its own way to handle failures, and its readers know their writers by these
        // tasks.
        if due.is_empty() || self.options.until_idle {
            self.pause(&self.tasks, &view);
            return Ok(());
        }
        let worker = &self.context.names.worker;
        let is_restarted = |id: &TaskId, task: &Task| {
            due.get(&task.status.name()).is_some_and(|row| {
                let is_meant = |only: &TaskRef| only.worker == *worker && only.number == id.number;
                row.task.as_ref().is_none_or(is_meant) && (!row.failed_only || task.has_failed())
            })
        };
        let tasks = tasks::plan(&self.pipelines, &self.tasks, &is_restarted, &self.context_of(&self.pipelines));
        let changes = Changes::between(&self.tasks, &tasks);
        tracing::info!("tasks restarted on request: {changes}");
        self.install(tasks)
    }

    /// Pauses and resumes tasks as wanted.
    fn pause(&self, tasks: &Tasks, view: &View) {
        for (id, task) in tasks {
            let is_paused = view.state(&id.pipeline, &id.component) != RunState::Running;
            if !task.status.set_paused(is_paused) {
                continue;
            }
            let stage = task.status.name();
            match is_paused {
                true if self.options.until_idle => tracing::warn!(stage, "paused: this run ends without it"),
                true => tracing::info!(stage, "paused: it commits and stops, and its position is kept"),
                false => tracing::info!(stage, "resumed"),
            }
        }
    }

    /// Decides whether the topics are tried again after an external error; returns the error if
    /// not. Returns the last warning and its time.
    fn check_retry(&self, error: Error, pending: &PendingSet, is_later: bool) -> Result<Option<(String, Instant)>> {
        let is_useless = error.retry == Retry::Never || pending.since.elapsed() >= CONNECT_LIMIT;
        if self.options.until_idle && is_useless {
            return Err(error);
        }
        if !is_later && self.options.stop.is_set() {
            return Err(error.context("stopped before the brokers answered"));
        }
        let text = error.to_string();
        let is_known = |(last, at): &&(String, Instant)| *last == text && at.elapsed() < REPEAT_WARNING;
        if let Some(warned) = pending.warned.as_ref().filter(is_known) {
            return Ok(Some(warned.clone()));
        }
        let meanwhile = if is_later { "; the running pipelines stay unchanged until then" } else { "" };
        tracing::warn!(%error, brokers = self.options.brokers, "cannot prepare topics; trying again{meanwhile}");
        Ok(Some((text, Instant::now())))
    }

    /// Gives each lease manager its tasks, and starts a manager for each placement that has tasks.
    fn assign_leases(&mut self) -> Result<()> {
        for placement in [Placement::EveryNode, Placement::Anywhere] {
            let is_leased = |task: &Task| task.lease.as_ref().is_some_and(|lease| lease.placement == placement);
            let leased = self.tasks.iter().filter(|(_, task)| is_leased(task));
            let leased: Tasks = leased.map(|(id, task)| (id.clone(), task.clone())).collect();
            // A manager that has given up does not return.
            let (until_idle, stop) = (self.options.until_idle, &self.options.stop);
            let gave_up = |leases: &LeaseManager| leases.is_finished() && !until_idle && !stop.is_set();
            let ended = self.leases.extract_if(.., |leases| leases.placement == placement && gave_up(leases));
            ended.into_iter().try_for_each(LeaseManager::join)?;
            match self.leases.iter().find(|leases| leases.placement == placement) {
                Some(leases) => leases.set_tasks(leased),
                None if leased.is_empty() => {}
                None => self.leases.push(LeaseManager::spawn(placement, leased, &self.context)?),
            }
        }
        Ok(())
    }

    /// Warns before the process runs out of open files, if the known topics already need too many.
    fn warn_if_files_are_short(&self, pipelines: &[Pipeline], topics: &[TopicSpec]) {
        let is_embedded = matches!(self.options.settings.brokers.as_deref(), None | Some(EMBEDDED));
        let partitions = topics.iter().map(|topic| usize::try_from(topic.partitions).unwrap_or(0)).sum();
        let partitions_of = |name: &str| topics.iter().find(|topic| topic.name == name).map(|topic| topic.partitions);
        let embedded = if is_embedded { partitions } else { 0 };
        let files = OpenFiles::of(pipelines, embedded, partitions_of, self.options.settings.topics.partitions);
        let Ok(limit) = raise_open_files_limit() else { return };
        if let Some(warning) = files.shortage(limit) {
            tracing::warn!("{warning}");
        }
    }

    /// Creates the topics with known names of pipelines in which a task starts.
    fn prepare_topics(&self, pipelines: &[Pipeline], changes: &Changes, is_later: bool) -> Result<()> {
        let settings = &self.options.settings.topics;
        let starting: Vec<&Pipeline> =
            pipelines.iter().filter(|pipeline| changes.pipelines.contains(&pipeline.name)).collect();
        let system = if is_later { Vec::new() } else { system_topics(&self.context.cluster, settings.replication) };
        // Pipelines may share a dead letter topic.
        let topics: BTreeMap<String, TopicSpec> = starting
            .iter()
            .flat_map(|pipeline| topics_of(pipeline, settings))
            .chain(system)
            .map(|topic| (topic.name.clone(), topic))
            .collect();
        let topics: Vec<TopicSpec> = topics.into_values().collect();
        if topics.is_empty() {
            return Ok(());
        }
        self.warn_if_files_are_short(pipelines, &topics);
        self.context.admin.connect()?;
        let admin = &self.context.admin;
        let ensured = admin.ensure(&topics)?;
        let partitions_of = |topic: &str| match ensured.partitions.get(topic) {
            Some(partitions) => Ok(Some(*partitions)),
            None => admin.partitions(topic),
        };
        let claims: Vec<TopicClaim> =
            starting.iter().flat_map(|pipeline| claims_of(pipeline, &self.context.names)).collect();
        if let Err(error) = self.context.owners.claim(&claims, self.context.append) {
            // The component claims its topic again before its first record, and stops then.
            tracing::debug!(%error, "not all topics could be claimed");
        }
        let mut state = Vec::new();
        for pipeline in starting {
            let (cluster, names) = (&self.context.cluster, &self.context.names);
            state.extend(state_topics(pipeline, settings, cluster, names, partitions_of)?);
        }
        for difference in ensured.differences.into_iter().chain(admin.ensure(&state)?.differences) {
            tracing::warn!("{difference}");
        }
        Ok(())
    }
}

/// The stages of a pipeline.
fn stage_count(pipeline: &Pipeline) -> usize {
    pipeline.sources.len() + pipeline.transforms.len() + pipeline.sinks.len()
}

/// Progress lines of stages in the log.
struct Report {
    last: Instant,
    lines: Vec<String>,
}

impl Report {
    /// Writes the lines that changed, once per interval.
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
