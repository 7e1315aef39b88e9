//! Executes a run in this process, from the offsets that its group has committed.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, MemoryBudget, Result, Template, TopicPartition};

use super::cluster_name;
use super::live_work::LiveWatch;
use super::run::{PartitionRange, Run, RunState};
use crate::checkpoint::{
    ComponentCounters, Counters, Intents, Positions, Schemas, TopicOwners, state_topic, system_topics,
};
use crate::config::Settings;
use crate::dead_letters::Failed;
use crate::kafka::{Admin, Cluster, GroupOffsets, TopicSpec};
use crate::plan::{Pipeline, SinkPlan, TransformPlan};
use crate::stage::{
    Backlogs, Bounds, LiveWork, Names, Pace, SinkStage, Stage, StageKind, StageState, StageStatus, StopSignal,
    TaskRate, TransformStage, Upstream, WorkerContext, component_name, supervise,
};
use crate::telemetry::Tracer;
use crate::worker::{DataDir, resource_share};

/// Time between two looks at the threads.
const POLL: Duration = Duration::from_millis(50);

/// Time between two looks at the progress.
const PROGRESS: Duration = Duration::from_secs(1);

/// What is executed.
pub struct Job<'a> {
    /// The settings.
    pub settings: &'a Settings,
    /// The brokers.
    pub cluster: &'a Cluster,
    /// The pipeline.
    pub pipeline: &'a Pipeline,
    /// What reads its topics again, with the options of the replay.
    pub work: Work<'a>,
    /// The run.
    pub run: &'a Run,
    /// Records per second. Without a rate, it yields to live work that is busy.
    pub rate: Option<NonZeroU64>,
    /// Only these records, if it is a replay of dead letters.
    pub failed: Option<Arc<Failed>>,
    /// Another process executes the run: this one takes over some of its partitions.
    pub joins: bool,
}

/// The component of a replay.
#[derive(Clone, Copy)]
pub enum Work<'a> {
    /// A sink.
    Sink(&'a SinkPlan),
    /// A separate transform.
    Transform(&'a TransformPlan),
}

impl<'a> Work<'a> {
    fn name(self) -> &'a str {
        match self {
            Self::Sink(plan) => &plan.name,
            Self::Transform(plan) => &plan.name,
        }
    }

    fn tasks(self) -> u32 {
        match self {
            Self::Sink(plan) => plan.tasks.max(1),
            Self::Transform(plan) => plan.tasks.max(1),
        }
    }
}

/// How far a run is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Progress {
    /// Offsets that are committed.
    pub done: u64,
    /// All offsets of the range.
    pub total: u64,
    /// What the sink has counted since the run was started first.
    pub counters: ComponentCounters,
}

/// How an execution ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The range is processed.
    Finished,
    /// It was asked to stop.
    Stopped,
    /// The sink failed.
    Failed(String),
}

impl Job<'_> {
    /// The sink that it replays.
    pub(super) fn sink(&self) -> Result<&SinkPlan> {
        match self.work {
            Work::Sink(plan) => Ok(plan),
            Work::Transform(plan) => Err(Error::internal(
                "replay.sink_kind",
                format!("the transform `{}` has no output to replace", plan.name),
            )),
        }
    }

    /// The live component, as `{cluster}.{pipeline}.{sink}`.
    pub(super) fn live_component(&self) -> String {
        component_name(&self.settings.cluster_name(), &self.pipeline.name, self.work.name())
    }

    /// The component of the run, in the same form.
    pub(super) fn component(&self) -> String {
        let name = cluster_name(&self.settings.cluster_name(), &self.run.id);
        component_name(&name, &self.pipeline.name, self.work.name())
    }

    /// The sink, as files name it.
    pub(super) fn sink_name(&self) -> String {
        format!("{}.{}", self.pipeline.name, self.work.name())
    }

    fn names(&self, data: &DataDir) -> Names {
        Names {
            cluster: cluster_name(&self.settings.cluster_name(), &self.run.id),
            node: self.settings.node.clone(),
            worker: data.worker_id().to_owned(),
        }
    }

    pub(super) fn context(
        &self,
        data: &DataDir,
        runtime: &tokio::runtime::Handle,
        stop: &StopSignal,
    ) -> Result<WorkerContext> {
        let (settings, cluster) = (self.settings, self.cluster);
        let memory = usize::try_from(settings.memory.0).unwrap_or(usize::MAX);
        Ok(WorkerContext {
            cluster: cluster.clone(),
            admin: Arc::new(Admin::new(cluster)?),
            runtime: runtime.clone(),
            budget: MemoryBudget::new(memory - memory / 2),
            schemas: Arc::new(Schemas::new(cluster.clone())),
            owners: Arc::new(TopicOwners::new(cluster, &cluster_name(&settings.cluster_name(), &self.run.id))),
            names: self.names(data),
            topics: settings.topics.clone(),
            commit_interval: settings.commit_interval,
            max_initial_failures: settings.max_initial_failures,
            // It ends, and a destination that does not answer fails it.
            until_idle: true,
            append: false,
            stop: stop.clone(),
            scratch: data.scratch().to_owned(),
            state: settings.state_disk(),
            share: resource_share(memory, self.work.tasks() as usize),
            backlogs: Backlogs::default(),
            tracer: Tracer::default(),
        })
    }

    fn stages(&self, pace: Pace) -> Vec<(Box<dyn Stage>, StageStatus)> {
        let ranges = self.run.ranges.iter().map(|range| (range.topic_partition(), (range.from, range.to))).collect();
        let supersedes = self.run.request.supersede.then(|| self.live_component());
        let bounds = Bounds { run: self.run.id.clone(), ranges, pace, failed: self.failed.clone(), supersedes };
        let (upstream, bounds) = (Upstream::default(), Some(bounds));
        let (pipeline, dead_letters) = (self.pipeline.name.clone(), self.pipeline.dead_letters.clone());
        let stage = |task| -> Box<dyn Stage> {
            let (pipeline, dead_letters) = (pipeline.clone(), dead_letters.clone());
            let (upstream, bounds) = (upstream.clone(), bounds.clone());
            match self.work {
                Work::Sink(plan) => {
                    Box::new(SinkStage { pipeline, dead_letters, plan: plan.clone(), task, upstream, bounds })
                }
                Work::Transform(plan) => {
                    let (plan, table_upstream) = (plan.clone(), Upstream::default());
                    Box::new(TransformStage { pipeline, dead_letters, plan, task, upstream, table_upstream, bounds })
                }
            }
        };
        let kind = match self.work {
            Work::Sink(_) => StageKind::Sink,
            Work::Transform(_) => StageKind::Transform,
        };
        let status = || StageStatus::new(&pipeline, self.work.name(), kind);
        (0..self.work.tasks()).map(|task| (stage(task), status())).collect()
    }
}

/// Creates the topics that a run writes to, if they are missing.
pub fn prepare_topics(job: &Job<'_>) -> Result<()> {
    let topics = &job.settings.topics;
    let mut specs = system_topics(job.cluster, topics.replication);
    let mut add = |name: &str, partitions: Option<i32>| {
        specs.push(TopicSpec {
            name: name.to_owned(),
            partitions: partitions.unwrap_or(topics.partitions),
            replication: topics.replication,
            config: topics.config.clone(),
        });
    };
    add(&job.pipeline.dead_letters, None);
    let admin = Admin::new(job.cluster)?;
    if let Work::Transform(plan) = job.work {
        plan.topics().filter_map(Template::constant).for_each(|topic| add(topic, plan.partitions));
        if plan.state.is_some() {
            let inputs: BTreeSet<&str> = job.run.ranges.iter().map(|range| range.topic.as_str()).collect();
            let counts = inputs.into_iter().map(|input| admin.partitions(input)).collect::<Result<Vec<_>>>()?;
            specs.push(TopicSpec {
                name: job.cluster.own_topic(&state_topic(&job.component())),
                partitions: counts.into_iter().flatten().max().unwrap_or(1),
                replication: topics.replication,
                config: BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]),
            });
        }
    }
    admin.ensure(&specs).map(drop)
}

/// Removes what only an unfinished run needs: its state and the changelog.
pub fn clean_up(job: &Job<'_>) {
    let Work::Transform(TransformPlan { state: Some(_), .. }) = job.work else { return };
    let topic = job.cluster.own_topic(&state_topic(&job.component()));
    if let Err(error) = Admin::new(job.cluster).and_then(|admin| admin.delete(&topic)) {
        tracing::warn!(%error, topic, "the state of the run is not needed any more: delete the topic");
    }
    if let Err(error) = job.settings.state_disk().remove(&job.component()) {
        tracing::warn!("the state of the run is not needed any more: {error}");
    }
}

/// Executes the run until its range is processed, it fails, or `stop` is set. `watch` is called now
/// and then.
pub fn execute(
    job: &Job<'_>,
    data: &DataDir,
    runtime: &tokio::runtime::Handle,
    stop: &StopSignal,
    watch: &mut dyn FnMut(&Progress),
) -> Result<Ending> {
    let context = job.context(data, runtime, stop)?;
    if !job.joins {
        commit_start(job.cluster, &context.names, job.run)?;
    }
    let progress = Watch::new(job.cluster, &job.settings.cluster_name(), job.run)?;
    let tasks = job.work.tasks() as usize;
    let mut speed = match job.rate {
        Some(total) => Speed::Rate(total, TaskRate::new(total, tasks + progress.tasks()?)),
        None => {
            let (cluster, node) = (job.settings.cluster_name(), &job.settings.node);
            let watch = LiveWatch::new(job.cluster, &cluster, &job.pipeline.name, node)?;
            Speed::Yielding(Box::new(watch), LiveWork::default())
        }
    };
    let stages = job.stages(speed.pace());
    std::thread::scope(|scope| {
        let threads: Vec<_> = stages
            .iter()
            .map(|(stage, status)| {
                let context = &context;
                scope.spawn(move || supervise(stage.as_ref(), false, context, stop, status))
            })
            .collect();
        let mut last = Instant::now();
        while !threads.iter().all(|thread| thread.is_finished()) {
            std::thread::park_timeout(POLL);
            speed.yield_to_live_work();
            if last.elapsed() >= PROGRESS {
                last = Instant::now();
                if let Speed::Rate(total, share) = &speed {
                    match progress.tasks() {
                        Ok(all) => share.share(*total, all.max(tasks)),
                        Err(error) => tracing::debug!(%error, "the tasks of the run cannot be counted"),
                    }
                }
                match progress.read() {
                    Ok(progress) => watch(&progress),
                    Err(error) => tracing::debug!(%error, "the progress cannot be read"),
                }
            }
        }
    });
    let failed = stages.iter().find_map(|(_, status)| match status.state() {
        StageState::Failed(error) => Some(error),
        _ => None,
    });
    Ok(match failed {
        Some(error) => Ending::Failed(error),
        None if stop.is_set() => Ending::Stopped,
        None => Ending::Finished,
    })
}

/// How fast a run reads.
enum Speed {
    /// Records per second of the run, and the share of each task of this process.
    Rate(NonZeroU64, TaskRate),
    /// As fast as it can, unless live work is busy.
    Yielding(Box<LiveWatch>, LiveWork),
}

impl Speed {
    fn pace(&self) -> Pace {
        match self {
            Self::Rate(_, share) => Pace::Rate(share.clone()),
            Self::Yielding(_, live) => Pace::Yielding(live.clone()),
        }
    }

    /// Looks whether live work is busy, if it is time.
    fn yield_to_live_work(&mut self) {
        let Self::Yielding(watch, live) = self else { return };
        let Some(busy) = watch.look() else { return };
        if live.set_busy(busy.is_some()) {
            match busy {
                Some(name) => tracing::info!(
                    "`{name}` is busy: the run reads for a tenth of the time until it is not, unless `--rate` is given"
                ),
                None => tracing::info!("live work is not busy any more: the run reads all the time"),
            }
        }
    }
}

/// Commits the start of the range where the group has no offset yet: at the first start, and where
/// the brokers have removed the offsets of a run that was stopped for long.
fn commit_start(cluster: &Cluster, names: &Names, run: &Run) -> Result<()> {
    let component = names.component(&run.pipeline, &run.sink);
    let offsets = GroupOffsets::new(cluster, &component)?;
    let topics: BTreeSet<&str> = run.ranges.iter().map(|range| range.topic.as_str()).collect();
    let partitions = offsets.partitions(|topic| topics.contains(topic))?;
    let committed = offsets.committed(&partitions)?;
    let rows = Intents::of(cluster, &component).load(cluster)?;
    let starts: BTreeMap<TopicPartition, i64> =
        run.ranges.iter().map(|range| (range.topic_partition(), range.from)).collect();
    check_topics(&offsets, run)?;
    if let Some(range) = lost_position(cluster, &component, run, &committed)? {
        let message = format!(
            "the brokers have removed the position of the run {} in {range}, because it was stopped for too long: its output so far is in \
             {}. Start another run into another topic",
            run.id, run.destination
        );
        return Err(Error::data("replay.position_lost", message));
    }
    let mut missing = BTreeMap::new();
    for partition in partitions.into_iter().filter(|partition| !committed.contains_key(partition)) {
        let start = match (rows.get(&partition), starts.get(&partition)) {
            (Some(row), _) => row.next,
            (None, Some(start)) => *start,
            // It is not replayed.
            (None, None) => offsets.watermarks(&partition)?.1,
        };
        missing.insert(partition, start);
    }
    if missing.is_empty() { Ok(()) } else { offsets.commit(&missing) }
}

/// Refuses to continue in topics that have fewer offsets than when the run began.
fn check_topics(offsets: &GroupOffsets, run: &Run) -> Result<()> {
    let partitions: Vec<TopicPartition> = run.ranges.iter().map(PartitionRange::topic_partition).collect();
    let ends = offsets.all_watermarks(&partitions)?;
    match run.ranges.iter().zip(ends).find(|(range, (_, end))| *end < range.to) {
        None => Ok(()),
        Some((range, (_, end))) => {
            let message = format!(
                "the range of the run {} in topic `{}` partition {} ended at offset {}, and the topic ends at {end} now: it was created again, so \
                 its offsets are those of other records. Start another run",
                run.id, range.topic, range.partition, range.to
            );
            Err(Error::data("replay.topic_changed", message))
        }
    }
}

/// A topic partition in which a transform has counted records and has no position. Those of sinks
/// are in the rows of their intents, too.
fn lost_position(
    cluster: &Cluster,
    component: &str,
    run: &Run,
    committed: &BTreeMap<TopicPartition, i64>,
) -> Result<Option<TopicPartition>> {
    if !run.transform {
        return Ok(None);
    }
    for partition in run.ranges.iter().map(PartitionRange::topic_partition) {
        let task = format!("{component}/{}/{}", partition.topic, partition.partition);
        if !committed.contains_key(&partition) && !Positions::load(cluster, component, &task)?.counters.0.is_empty() {
            return Ok(Some(partition));
        }
    }
    Ok(None)
}

/// Reads the progress of a run, whichever process executes it.
pub struct Watch<'a> {
    cluster: &'a Cluster,
    run: &'a Run,
    offsets: GroupOffsets,
    /// Prefix of the rows of its counters.
    prefix: String,
}

impl<'a> Watch<'a> {
    /// Connects when it is first used. `cluster_name` is the name of the Trunkline cluster.
    pub fn new(cluster: &'a Cluster, cluster_name: &str, run: &'a Run) -> Result<Self> {
        let name = super::cluster_name(cluster_name, &run.id);
        let component = crate::stage::component_name(&name, &run.pipeline, &run.sink);
        let offsets = GroupOffsets::new(cluster, &component)?;
        Ok(Self { cluster, run, offsets, prefix: format!("{component}/") })
    }

    /// Whether a process executes it.
    pub fn is_executed(&self) -> Result<bool> {
        Ok(self.tasks()? > 0)
    }

    /// Number of its tasks in all processes. Those of a process that was killed count for 10 s.
    pub fn tasks(&self) -> Result<usize> {
        self.offsets.members()
    }

    /// What all components of the run have counted.
    pub fn counters(&self) -> Result<Counters> {
        let prefixes = std::slice::from_ref(&self.prefix);
        let totals = match self.run.transform {
            true => Positions::totals(self.cluster, prefixes),
            false => Intents::totals(self.cluster, prefixes),
        };
        Ok(totals?.pop().unwrap_or_default())
    }

    /// The prefix of the rows with its counters.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// How far the run is.
    pub fn read(&self) -> Result<Progress> {
        self.progress(self.counters()?)
    }

    /// The same with counters that were read before.
    pub fn progress(&self, mut counters: Counters) -> Result<Progress> {
        let partitions: Vec<TopicPartition> = self.run.ranges.iter().map(PartitionRange::topic_partition).collect();
        let is_finished = self.run.state == RunState::Finished;
        // The brokers need not be asked for the offsets of a finished run.
        let committed = if is_finished { BTreeMap::new() } else { self.offsets.committed(&partitions)? };
        let mut progress = Progress { counters: *counters.of(&self.run.sink), ..Progress::default() };
        for (partition, range) in partitions.iter().zip(&self.run.ranges) {
            let done = committed.get(partition).map_or(0, |next| (*next).clamp(range.from, range.to) - range.from);
            progress.done += u64::try_from(done).unwrap_or(0);
            progress.total += u64::try_from(range.to - range.from).unwrap_or(0);
        }
        if is_finished {
            // The last offsets may be those of markers.
            progress.done = progress.total;
        }
        Ok(progress)
    }
}
