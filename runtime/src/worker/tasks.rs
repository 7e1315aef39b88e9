//! The tasks that a worker runs for a set of pipelines, and the changes from one set to the next.
//!
//! A task whose plan is unchanged is the same object in the new set, so its thread is not touched.
//! (Its list of upstream tasks may then be outdated. The list matters only with `--until-idle`,
//! which has a single set.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::Regex;
use trunkline_connector::{Placement, Template, TopicPartition};

use super::agreement::Permit;
use crate::checkpoint::{TASKS, lease_of};
use crate::plan::{Input, Pipeline, SinkPlan, SourcePlan, TopicSelector, TransformPlan, fingerprint};
use crate::stage::{
    SinkStage, SourceStage, Stage, StageKind, StageState, StageStatus, TransformStage, Upstream, WorkerContext,
};

/// Tasks by their ids.
pub(super) type Tasks = BTreeMap<TaskId, Arc<Task>>;

/// Identifies a task of a worker, whatever its plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId {
    pub(super) pipeline: String,
    kind: StageKind,
    pub(super) component: String,
    pub(super) number: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.pipeline, self.component)?;
        if self.number > 0 { write!(formatter, "/{}", self.number) } else { Ok(()) }
    }
}

/// A task to run.
pub(super) struct Task {
    plan: TaskPlan,
    pub(super) stage: Box<dyn Stage>,
    pub(super) status: Arc<StageStatus>,
    pub(super) context: WorkerContext,
    /// A source's task runs on the worker that owns its lease.
    pub(super) lease: Option<Lease>,
    /// It runs while no other worker runs another version of it.
    pub(super) permit: Arc<Permit>,
}

impl Task {
    /// Whether it needs a person.
    pub(super) fn has_failed(&self) -> bool {
        matches!(self.status.state(), StageState::Failed(_))
    }
}

/// The lease that a source's task needs in order to run.
pub(super) struct Lease {
    pub(super) placement: Placement,
    pub(super) partition: TopicPartition,
}

/// The plan of a task. Two tasks with equal plans are interchangeable.
#[derive(Clone, PartialEq)]
struct TaskPlan {
    pipeline: String,
    dead_letters: String,
    component: Component,
}

#[derive(Clone, PartialEq)]
enum Component {
    Source(SourcePlan),
    Transform(TransformPlan),
    Sink(SinkPlan),
}

impl Component {
    fn kind(&self) -> StageKind {
        match self {
            Self::Source(_) => StageKind::Source,
            Self::Transform(_) => StageKind::Transform,
            Self::Sink(_) => StageKind::Sink,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Source(plan) => &plan.name,
            Self::Transform(plan) => &plan.name,
            Self::Sink(plan) => &plan.name,
        }
    }

    fn tasks(&self) -> u32 {
        match self {
            Self::Source(_) => 1,
            Self::Transform(plan) => plan.tasks.max(1),
            Self::Sink(plan) => plan.tasks.max(1),
        }
    }

    fn fingerprint(&self, dead_letters: &str) -> String {
        match self {
            Self::Source(plan) => fingerprint::of_source(plan, dead_letters),
            Self::Transform(plan) => fingerprint::of_transform(plan, dead_letters),
            Self::Sink(plan) => fingerprint::of_sink(plan, dead_letters),
        }
    }

    fn reads(&self) -> &[Input] {
        match self {
            Self::Source(_) => &[],
            Self::Transform(plan) => &plan.inputs,
            Self::Sink(plan) => &plan.inputs,
        }
    }

    fn writes(&self) -> Vec<&Template> {
        match self {
            Self::Source(plan) => plan.topics().collect(),
            Self::Transform(plan) => plan.topics().collect(),
            Self::Sink(_) => Vec::new(),
        }
    }
}

/// A task that is being added to a set.
struct Planned {
    id: TaskId,
    plan: TaskPlan,
    status: Arc<StageStatus>,
    /// The existing task with the same plan.
    existing: Option<Arc<Task>>,
}

/// The tasks of `pipelines`. Tasks with the same plan in `before` are reused, except those that
/// `is_replaced` selects. New tasks get `context`.
pub(super) fn plan(
    pipelines: &[Pipeline],
    before: &Tasks,
    is_replaced: &dyn Fn(&TaskId, &Task) -> bool,
    context: &WorkerContext,
) -> Tasks {
    let mut tasks = Tasks::new();
    for pipeline in pipelines {
        let planned: Vec<Planned> = components(pipeline)
            .into_iter()
            .flat_map(|component| (0..component.tasks()).map(move |number| (number, component.clone())))
            .map(|(number, component)| planned(pipeline, number, component, before, is_replaced))
            .collect();
        // The topics that each task of this pipeline writes, to find the upstream tasks of readers.
        let writers: Vec<Writer> = planned.iter().flat_map(writers).collect();
        for Planned { id, plan, status, existing } in planned {
            let task = existing.unwrap_or_else(|| Arc::new(new_task(&id, plan, status, &writers, context)));
            tasks.insert(id, task);
        }
    }
    tasks
}

fn planned(
    pipeline: &Pipeline,
    number: u32,
    component: Component,
    before: &Tasks,
    is_replaced: &dyn Fn(&TaskId, &Task) -> bool,
) -> Planned {
    let (kind, name) = (component.kind(), component.name().to_owned());
    let id = TaskId { pipeline: pipeline.name.clone(), kind, component: name, number };
    let dead_letters = pipeline.dead_letters.clone();
    let plan = TaskPlan { pipeline: pipeline.name.clone(), dead_letters, component };
    let existing = before.get(&id).filter(|task| task.plan == plan && !is_replaced(&id, task)).cloned();
    let status = existing.as_ref().map(|task| task.status.clone());
    let status = status.unwrap_or_else(|| Arc::new(StageStatus::new(&id.pipeline, &id.component, kind)));
    Planned { id, plan, status, existing }
}

/// A topic that a task writes.
struct Writer {
    topic: TopicSelector,
    status: Arc<StageStatus>,
    /// The topics that the task reads.
    reads: Vec<TopicSelector>,
}

/// The topics that a task writes.
fn writers(task: &Planned) -> Vec<Writer> {
    let component = &task.plan.component;
    let reads: Vec<TopicSelector> = component.reads().iter().map(|input| input.topics.clone()).collect();
    let topics = component.writes().into_iter().map(TopicSelector::of);
    topics.map(|topic| Writer { topic, status: task.status.clone(), reads: reads.clone() }).collect()
}

fn components(pipeline: &Pipeline) -> Vec<Component> {
    let sources = pipeline.sources.iter().cloned().map(Component::Source);
    let transforms = pipeline.transforms.iter().cloned().map(Component::Transform);
    let sinks = pipeline.sinks.iter().cloned().map(Component::Sink);
    sources.chain(transforms).chain(sinks).collect()
}

fn new_task(
    id: &TaskId,
    plan: TaskPlan,
    status: Arc<StageStatus>,
    writers: &[Writer],
    context: &WorkerContext,
) -> Task {
    let upstream = upstream_of(plan.component.reads(), writers);
    let (pipeline, dead_letters, task) = (plan.pipeline.clone(), plan.dead_letters.clone(), id.number);
    let permit = Permit::new(plan.component.fingerprint(&dead_letters), status.clone());
    let mut lease = None;
    let stage: Box<dyn Stage> = match plan.component.clone() {
        Component::Source(plan) => {
            let partition = lease_of(&context.names.component(&pipeline, &plan.name));
            let partition = TopicPartition { topic: Arc::from(context.cluster.own_topic(TASKS)), partition };
            lease = Some(Lease { placement: plan.spec.placement(), partition });
            Box::new(SourceStage { pipeline, dead_letters, plan })
        }
        Component::Transform(plan) => {
            let table = plan.table.iter().map(|table| TopicSelector::Exact(table.topic.clone()));
            let table_upstream = writers_of(&table.collect::<Vec<_>>(), writers);
            Box::new(TransformStage { pipeline, dead_letters, plan, task, upstream, table_upstream, bounds: None })
        }
        Component::Sink(plan) => Box::new(SinkStage { pipeline, dead_letters, plan, task, upstream, bounds: None }),
    };
    Task { plan, stage, status, context: context.clone(), lease, permit }
}

fn upstream_of(inputs: &[Input], writers: &[Writer]) -> Upstream {
    writers_of(&inputs.iter().map(|input| input.topics.clone()).collect::<Vec<_>>(), writers)
}

fn writers_of(reads: &[TopicSelector], writers: &[Writer]) -> Upstream {
    let is_read = |writer: &&Writer| reads.iter().any(|read| can_match(&writer.topic, read));
    let upstream = || writers.iter().filter(is_read);
    Upstream {
        stages: upstream().map(|writer| writer.status.clone()).collect(),
        transformed: upstream().flat_map(|writer| writer.reads.clone()).collect(),
    }
}

/// Whether a written topic can be one of the topics that are read.
fn can_match(written: &TopicSelector, read: &TopicSelector) -> bool {
    let matches = |pattern: &str, name: &str| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(name));
    match (written, read) {
        (TopicSelector::Exact(written), TopicSelector::Exact(read))
        | (TopicSelector::Pattern(written), TopicSelector::Pattern(read)) => written == read,
        (TopicSelector::Exact(name), TopicSelector::Pattern(pattern))
        | (TopicSelector::Pattern(pattern), TopicSelector::Exact(name)) => matches(pattern, name),
    }
}

/// The changes from one set of tasks to the next.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// New tasks.
    started: Vec<String>,
    /// Tasks with a changed plan, and failed tasks that are retried.
    restarted: Vec<String>,
    /// Removed tasks.
    stopped: Vec<String>,
    /// Tasks that keep running.
    unchanged: Vec<String>,
    /// Failed tasks whose plan is unchanged.
    failed: Vec<String>,
    /// Pipelines with started or restarted tasks.
    pub(super) pipelines: Vec<String>,
}

impl Changes {
    pub(super) fn between(before: &Tasks, after: &Tasks) -> Self {
        let mut changes = Self::default();
        for (id, task) in after {
            let list = match before.get(id) {
                None => &mut changes.started,
                Some(existing) if Arc::ptr_eq(existing, task) => {
                    if task.has_failed() { &mut changes.failed } else { &mut changes.unchanged }.push(id.to_string());
                    continue;
                }
                Some(_) => &mut changes.restarted,
            };
            list.push(id.to_string());
            changes.pipelines.push(id.pipeline.clone());
        }
        changes.pipelines.dedup();
        changes.stopped = before.keys().filter(|id| !after.contains_key(id)).map(TaskId::to_string).collect();
        changes
    }
}

impl fmt::Display for Changes {
    /// One line: `started=[..] restarted=[..] stopped=[..] unchanged=[..]`, and `failed=[..]` if a
    /// task has failed.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, restarted, stopped, unchanged, failed, pipelines: _ } = self;
        let lists = [("started", started), ("restarted", restarted), ("stopped", stopped), ("unchanged", unchanged)];
        let written: Vec<String> = lists
            .into_iter()
            .chain((!failed.is_empty()).then_some(("failed", failed)))
            .map(|(name, tasks)| format!("{name}=[{}]", tasks.join(", ")))
            .collect();
        formatter.write_str(&written.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use trunkline_connector::MemoryBudget;
    use trunkline_transform_host::{Host, HostOptions, StateDisk};

    use super::*;
    use crate::checkpoint::{Schemas, TopicOwners};
    use crate::config::{Settings, TopicSettings};
    use crate::kafka::{Admin, Cluster};
    use crate::plan::{Registry, load_each};
    use crate::stage::{Backlogs, Names, ResourceShare, StopSignal};

    fn fixture() -> (tokio::runtime::Runtime, tempfile::TempDir) {
        (tokio::runtime::Builder::new_current_thread().build().unwrap(), tempfile::tempdir().unwrap())
    }

    /// An context without brokers.
    fn context(runtime: &tokio::runtime::Runtime) -> WorkerContext {
        let cluster = Cluster::new("127.0.0.1:1", &BTreeMap::new()).unwrap();
        WorkerContext {
            admin: Arc::new(Admin::new(&cluster).unwrap()),
            runtime: runtime.handle().clone(),
            budget: MemoryBudget::new(1 << 20),
            schemas: Arc::new(Schemas::new(cluster.clone())),
            owners: Arc::new(TopicOwners::new(&cluster, "c")),
            cluster,
            names: Names { cluster: "c".to_owned(), node: "n".to_owned(), worker: "w".to_owned() },
            topics: TopicSettings { create: true, partitions: 1, replication: 1, config: BTreeMap::new() },
            commit_interval: std::time::Duration::from_secs(1),
            max_initial_failures: 1000,
            until_idle: false,
            append: false,
            stop: StopSignal::default(),
            scratch: std::env::temp_dir(),
            state: StateDisk::new(&std::env::temp_dir(), 0),
            share: ResourceShare { client_buffer_bytes: 1 << 20, batch_bytes: 1 << 20 },
            backlogs: Backlogs::default(),
            tracer: crate::telemetry::Tracer::default(),
        }
    }

    fn pipelines(folder: &tempfile::TempDir, text: &str) -> Vec<Pipeline> {
        let file = folder.path().join("p.toml");
        std::fs::write(&file, text).unwrap();
        let host = Host::new(HostOptions::default()).unwrap();
        let settings = Settings::load(None, &Vec::new()).unwrap();
        let loaded = load_each(&[file], &host, &settings, &Registry::new());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        loaded.pipelines
    }

    /// No task is replaced that has the same plan.
    const KEEP: fn(&TaskId, &Task) -> bool = |_, _| false;

    const TEXT: &str = r#"
        name = "p"
        [sources.web]
        connector = "logfile"
        paths = ["/a.log"]
        [sources.api]
        connector = "logfile"
        paths = ["/b.log"]
        [sinks.lake]
        connector = "s3"
        inputs = ["web"]
        url = "file:///lake"
    "#;

    #[test]
    fn only_tasks_with_a_changed_plan_restart() {
        let (runtime, folder) = fixture();
        let context = context(&runtime);
        let first = plan(&pipelines(&folder, TEXT), &Tasks::new(), &KEEP, &context);
        let change = |before: &Tasks, text: &str, retry_failed: bool| {
            let after = plan(&pipelines(&folder, text), before, &|_, task| retry_failed && task.has_failed(), &context);
            let changes = Changes::between(before, &after).to_string();
            (after, changes)
        };
        let changes = Changes::between(&Tasks::new(), &first).to_string();
        assert_eq!(changes, "started=[p.api, p.web, p.lake] restarted=[] stopped=[] unchanged=[]");
        let (_, changes) = change(&first, TEXT, true);
        assert_eq!(changes, "started=[] restarted=[] stopped=[] unchanged=[p.api, p.web, p.lake]");

        let (second, changes) = change(&first, &TEXT.replace("/lake", "/lake\"\ntasks = 2\npath = \"x"), false);
        assert_eq!(changes, "started=[p.lake/1] restarted=[p.lake] stopped=[] unchanged=[p.api, p.web]");
        let (third, changes) = change(&second, &TEXT.replace("/lake", "/lake\"\ntasks = 1\npath = \"x"), false);
        assert_eq!(changes, "started=[] restarted=[] stopped=[p.lake/1] unchanged=[p.api, p.web, p.lake]");
        assert!(Arc::ptr_eq(&second[third.keys().last().unwrap()], third.values().last().unwrap()));

        // A stage with another dead letter topic is another stage. So is a component of another
        // kind.
        let (_, changes) =
            change(&first, &TEXT.replace("name = \"p\"", "name = \"p\"\ndead_letter_topic = \"d\""), false);
        assert_eq!(changes, "started=[] restarted=[p.api, p.web, p.lake] stopped=[] unchanged=[]");
        let sink = "[sinks.api]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file:///api\"\n[sinks.lake]";
        let kinds = TEXT.replace("[sources.api]", "[sources.old]").replace("[sinks.lake]", sink);
        let (_, changes) = change(&first, &kinds, false);
        assert_eq!(changes, "started=[p.old, p.api] restarted=[] stopped=[p.api] unchanged=[p.web, p.lake]");
        let changes = Changes::between(&first, &Tasks::new()).to_string();
        assert_eq!(changes, "started=[] restarted=[] stopped=[p.api, p.web, p.lake] unchanged=[]");
    }

    #[test]
    fn failed_tasks_restart_if_their_plan_changed_or_on_request() {
        let (runtime, folder) = fixture();
        let context = context(&runtime);
        let before = plan(&pipelines(&folder, TEXT), &Tasks::new(), &KEEP, &context);
        let lake = before.values().last().unwrap();
        lake.status.set_state(StageState::Failed("no bucket".to_owned()));
        let changes = |text: &str, retry_failed: bool| {
            Changes::between(
                &before,
                &plan(&pipelines(&folder, text), &before, &|_, task| retry_failed && task.has_failed(), &context),
            )
            .to_string()
        };
        assert_eq!(changes(TEXT, false), "started=[] restarted=[] stopped=[] unchanged=[p.api, p.web] failed=[p.lake]");
        let restarted = "started=[] restarted=[p.lake] stopped=[] unchanged=[p.api, p.web]";
        assert_eq!(changes(TEXT, true), restarted);
        assert_eq!(changes(&TEXT.replace("/lake", "/other"), false), restarted);
    }

    #[test]
    fn unchanged_tasks_keep_their_status() {
        let (runtime, folder) = fixture();
        let text = TEXT.replace("url =", "path = \"x\"\nurl =");
        let context = context(&runtime);
        let before = plan(&pipelines(&folder, TEXT), &Tasks::new(), &KEEP, &context);
        let tasks = plan(&pipelines(&folder, &text), &before, &KEEP, &context);
        let statuses = |tasks: &Tasks| tasks.values().map(|task| task.status.clone()).collect::<Vec<_>>();
        let (old, new) = (statuses(&before), statuses(&tasks));
        let same: Vec<bool> = old.iter().zip(&new).map(|(old, new)| Arc::ptr_eq(old, new)).collect();
        assert_eq!(same, [true, true, false]);
    }

    #[test]
    fn a_reader_waits_for_every_writer_of_its_topics() {
        let (_runtime, folder) = fixture();
        let text = r#"
            name = "p"
            [sources.shop]
            connector = "mysql"
            url = "mysql://cdc@127.0.0.1"
            tables = ["shop.*"]
            ddl = true
            [sinks.rows]
            connector = "s3"
            inputs = ["shop"]
            url = "file:///rows"
            [sinks.ddl]
            connector = "s3"
            inputs = ["shop.ddl"]
            url = "file:///ddl"
            [sinks.others]
            connector = "s3"
            inputs = ["topic:else"]
            url = "file:///else"
        "#;
        let pipeline = &pipelines(&folder, text)[0];
        let tasks =
            components(pipeline).into_iter().map(|component| planned(pipeline, 0, component, &Tasks::new(), &KEEP));
        let tasks: Vec<Planned> = tasks.collect();
        let written: Vec<_> = tasks.iter().flat_map(writers).collect();
        let waits: BTreeMap<&str, usize> = tasks
            .iter()
            .map(|task| (task.plan.component.name(), upstream_of(task.plan.component.reads(), &written).stages.len()))
            .collect();
        assert_eq!(waits, BTreeMap::from([("shop", 0), ("rows", 1), ("ddl", 1), ("others", 0)]));
    }
}
