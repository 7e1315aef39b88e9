//! The tasks that a worker is to run for a set of pipelines, and what another set changes of them.
//!
//! A task that is planned as it was before is the very same one in the new set, so whoever runs it has nothing to do. (What it knows of the
//! tasks before it may be old then: that matters with `--until-idle` alone, when there is only one set.)

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use regex::Regex;
use trunkline_connector::{Placement, Template, TopicPartition};

use crate::checkpoint::{TASKS, lease_of};
use crate::plan::{Input, Pipeline, SinkPlan, SourcePlan, TopicSelector, TransformPlan};
use crate::stage::{
    Environment, SinkStage, SourceStage, Stage, StageKind, StageState, StageStatus, TransformStage, Upstream,
};

/// Tasks by their ids.
pub(super) type Tasks = BTreeMap<TaskId, Arc<Task>>;

/// Which task of a worker it is, whatever its plan.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TaskId {
    pub(super) pipeline: String,
    kind: StageKind,
    component: String,
    number: u32,
}

impl fmt::Display for TaskId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}.{}", self.pipeline, self.component)?;
        if self.number > 0 { write!(formatter, "/{}", self.number) } else { Ok(()) }
    }
}

/// A task that is to run.
pub(super) struct Task {
    plan: TaskPlan,
    pub(super) stage: Box<dyn Stage>,
    pub(super) status: Arc<StageStatus>,
    pub(super) environment: Environment,
    /// Of a source: it runs where its lease is held.
    pub(super) lease: Option<Lease>,
}

/// What a source's task needs in order to run.
pub(super) struct Lease {
    pub(super) placement: Placement,
    pub(super) claim: TopicPartition,
}

/// All that makes a task what it is.
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

/// A task on its way into a set.
struct Planned {
    id: TaskId,
    plan: TaskPlan,
    status: Arc<StageStatus>,
    /// There is one already that was planned in the same way.
    known: Option<Arc<Task>>,
}

/// The tasks of `pipelines`. Those that are planned as in `before` are the same, but for ones that failed, if they are to be tried `again`.
/// `environment` is for the new ones.
pub(super) fn plan(pipelines: &[Pipeline], before: &Tasks, again: bool, environment: &Environment) -> Tasks {
    let mut tasks = Tasks::new();
    for pipeline in pipelines {
        let planned: Vec<Planned> = components(pipeline)
            .into_iter()
            .flat_map(|component| (0..component.tasks()).map(move |number| (number, component.clone())))
            .map(|(number, component)| planned(pipeline, number, component, before, again))
            .collect();
        // Which topics each task of this pipeline writes to, to know what a reader has to wait for.
        let writers: Vec<(TopicSelector, Arc<StageStatus>)> = planned.iter().flat_map(writers).collect();
        for Planned { id, plan, status, known } in planned {
            let task = known.unwrap_or_else(|| Arc::new(new_task(&id, plan, status, &writers, environment)));
            tasks.insert(id, task);
        }
    }
    tasks
}

fn planned(pipeline: &Pipeline, number: u32, component: Component, before: &Tasks, again: bool) -> Planned {
    let (kind, name) = (component.kind(), component.name().to_owned());
    let id = TaskId { pipeline: pipeline.name.clone(), kind, component: name, number };
    let dead_letters = pipeline.dead_letters.clone();
    let plan = TaskPlan { pipeline: pipeline.name.clone(), dead_letters, component };
    let is_tried_again = |task: &Task| again && matches!(task.status.state(), StageState::Failed(_));
    let known = before.get(&id).filter(|task| task.plan == plan && !is_tried_again(task)).cloned();
    let status = known.as_ref().map(|task| task.status.clone());
    let status = status.unwrap_or_else(|| Arc::new(StageStatus::new(&id.pipeline, &id.component, kind)));
    Planned { id, plan, status, known }
}

/// The topics that a task writes, each with its status.
fn writers(task: &Planned) -> Vec<(TopicSelector, Arc<StageStatus>)> {
    let topics = task.plan.component.writes().into_iter().map(TopicSelector::of);
    topics.map(|topic| (topic, task.status.clone())).collect()
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
    writers: &[(TopicSelector, Arc<StageStatus>)],
    environment: &Environment,
) -> Task {
    let upstream = upstream(plan.component.reads(), writers);
    let (pipeline, dead_letters, task) = (plan.pipeline.clone(), plan.dead_letters.clone(), id.number);
    let mut lease = None;
    let stage: Box<dyn Stage> = match plan.component.clone() {
        Component::Source(plan) => {
            let partition = lease_of(&environment.names.component(&pipeline, &plan.name));
            let claim = TopicPartition { topic: Arc::from(TASKS), partition };
            lease = Some(Lease { placement: plan.spec.placement(), claim });
            Box::new(SourceStage { pipeline, dead_letters, plan })
        }
        Component::Transform(plan) => Box::new(TransformStage { pipeline, dead_letters, plan, task, upstream }),
        Component::Sink(plan) => Box::new(SinkStage { pipeline, dead_letters, plan, task, upstream }),
    };
    Task { plan, stage, status, environment: environment.clone(), lease }
}

fn upstream(reads: &[Input], writers: &[(TopicSelector, Arc<StageStatus>)]) -> Upstream {
    let is_read = |topic: &TopicSelector| reads.iter().any(|input| meets(topic, &input.topics));
    let stages = writers.iter().filter(|(topic, _)| is_read(topic)).map(|(_, status)| status.clone());
    Upstream { stages: stages.collect() }
}

/// Can a topic that is written be one that is read?
fn meets(written: &TopicSelector, read: &TopicSelector) -> bool {
    let matches = |pattern: &str, name: &str| Regex::new(pattern).is_ok_and(|pattern| pattern.is_match(name));
    match (written, read) {
        (TopicSelector::Exact(written), TopicSelector::Exact(read))
        | (TopicSelector::Pattern(written), TopicSelector::Pattern(read)) => written == read,
        (TopicSelector::Exact(name), TopicSelector::Pattern(pattern))
        | (TopicSelector::Pattern(pattern), TopicSelector::Exact(name)) => matches(pattern, name),
    }
}

/// What one set of tasks changes of another.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Changes {
    /// There were none of these before.
    started: Vec<String>,
    /// These are planned in another way, or had failed and are tried again.
    restarted: Vec<String>,
    /// There are none of these any more.
    stopped: Vec<String>,
    /// Tasks with an unchanged plan, which keep running.
    unchanged: Vec<String>,
    /// These had failed and are planned as they were.
    failed: Vec<String>,
    /// Pipelines with something that starts, or starts anew.
    pub(super) pipelines: Vec<String>,
}

impl Changes {
    pub(super) fn between(before: &Tasks, after: &Tasks) -> Self {
        let mut changes = Self::default();
        for (id, task) in after {
            let list = match before.get(id) {
                None => &mut changes.started,
                Some(known) if Arc::ptr_eq(known, task) => {
                    let has_failed = matches!(task.status.state(), StageState::Failed(_));
                    if has_failed { &mut changes.failed } else { &mut changes.unchanged }.push(id.to_string());
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
    /// One line.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { started, restarted, stopped, unchanged, failed, pipelines: _ } = self;
        let lists = [("started", started), ("restarted", restarted), ("stopped", stopped), ("unchanged", unchanged)];
        let mut written: Vec<String> = lists.map(|(name, list)| format!("{name}=[{}]", list.join(", "))).into();
        if !failed.is_empty() {
            written.push(format!("failed=[{}]", failed.join(", ")));
        }
        formatter.write_str(&written.join(" "))
    }
}

#[cfg(test)]
mod tests {
    use trunkline_connector::MemoryBudget;
    use trunkline_transform_host::{Host, HostOptions};

    use super::*;
    use crate::checkpoint::Schemas;
    use crate::config::{Settings, TopicSettings};
    use crate::kafka::{Admin, Cluster};
    use crate::plan::{Registry, load_each};
    use crate::stage::{Names, Stop};

    fn ground() -> (tokio::runtime::Runtime, tempfile::TempDir) {
        (tokio::runtime::Builder::new_current_thread().build().unwrap(), tempfile::tempdir().unwrap())
    }

    /// One that reaches nobody.
    fn environment(runtime: &tokio::runtime::Runtime) -> Environment {
        let cluster = Cluster::new("127.0.0.1:1", &BTreeMap::new());
        Environment {
            admin: Arc::new(Admin::new(&cluster, runtime.handle().clone()).unwrap()),
            runtime: runtime.handle().clone(),
            budget: MemoryBudget::new(1 << 20),
            schemas: Arc::new(Schemas::new(cluster.clone())),
            cluster,
            names: Names { cluster: "c".to_owned(), node: "n".to_owned(), worker: "w".to_owned() },
            topics: TopicSettings { partitions: 1, replication: 1, config: BTreeMap::new() },
            commit_interval: std::time::Duration::from_secs(1),
            until_idle: false,
            stop: Stop::default(),
            scratch: std::env::temp_dir(),
            client_buffer: 1 << 20,
            batch_bytes: 1 << 20,
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
    fn only_what_is_planned_in_another_way_changes() {
        let (runtime, folder) = ground();
        let environment = environment(&runtime);
        let first = plan(&pipelines(&folder, TEXT), &Tasks::new(), false, &environment);
        let change = |before: &Tasks, text: &str, again: bool| {
            let after = plan(&pipelines(&folder, text), before, again, &environment);
            let said = Changes::between(before, &after).to_string();
            (after, said)
        };
        assert_eq!(
            Changes::between(&Tasks::new(), &first).to_string(),
            "started=[p.api, p.web, p.lake] restarted=[] stopped=[] unchanged=[]"
        );
        let (_, said) = change(&first, TEXT, true);
        assert_eq!(said, "started=[] restarted=[] stopped=[] unchanged=[p.api, p.web, p.lake]");

        let (second, said) = change(&first, &TEXT.replace("/lake", "/lake\"\ntasks = 2\npath = \"x"), false);
        assert_eq!(said, "started=[p.lake/1] restarted=[p.lake] stopped=[] unchanged=[p.api, p.web]");
        let (third, said) = change(&second, &TEXT.replace("/lake", "/lake\"\ntasks = 1\npath = \"x"), false);
        assert_eq!(said, "started=[] restarted=[] stopped=[p.lake/1] unchanged=[p.api, p.web, p.lake]");
        assert!(Arc::ptr_eq(&second[third.keys().last().unwrap()], third.values().last().unwrap()));

        // Whose dead letters go elsewhere is another stage; one whose kind changed, too.
        let (_, said) = change(&first, &TEXT.replace("name = \"p\"", "name = \"p\"\ndead_letter_topic = \"d\""), false);
        assert_eq!(said, "started=[] restarted=[p.api, p.web, p.lake] stopped=[] unchanged=[]");
        let sink = "[sinks.api]\nconnector = \"s3\"\ninputs = [\"web\"]\nurl = \"file:///api\"\n[sinks.lake]";
        let kinds = TEXT.replace("[sources.api]", "[sources.old]").replace("[sinks.lake]", sink);
        let (_, said) = change(&first, &kinds, false);
        assert_eq!(said, "started=[p.old, p.api] restarted=[] stopped=[p.api] unchanged=[p.web, p.lake]");
        assert_eq!(
            Changes::between(&first, &Tasks::new()).to_string(),
            "started=[] restarted=[] stopped=[p.api, p.web, p.lake] unchanged=[]"
        );
        assert_eq!(
            Changes::between(&Tasks::new(), &Tasks::new()).to_string(),
            "started=[] restarted=[] stopped=[] unchanged=[]"
        );
    }

    #[test]
    fn what_failed_is_tried_again_if_it_changed_or_somebody_asks() {
        let (runtime, folder) = ground();
        let environment = environment(&runtime);
        let before = plan(&pipelines(&folder, TEXT), &Tasks::new(), false, &environment);
        let lake = before.values().last().unwrap();
        lake.status.set_state(StageState::Failed("no bucket".to_owned()));
        let said = |text: &str, again: bool| {
            Changes::between(&before, &plan(&pipelines(&folder, text), &before, again, &environment)).to_string()
        };
        assert_eq!(said(TEXT, false), "started=[] restarted=[] stopped=[] unchanged=[p.api, p.web] failed=[p.lake]");
        assert_eq!(said(TEXT, true), "started=[] restarted=[p.lake] stopped=[] unchanged=[p.api, p.web]");
        let other = TEXT.replace("/lake", "/other");
        assert_eq!(said(&other, false), "started=[] restarted=[p.lake] stopped=[] unchanged=[p.api, p.web]");
    }

    #[test]
    fn what_goes_on_keeps_its_status() {
        let (runtime, folder) = ground();
        let text = TEXT.replace("url =", "path = \"x\"\nurl =");
        let environment = environment(&runtime);
        let before = plan(&pipelines(&folder, TEXT), &Tasks::new(), false, &environment);
        let tasks = plan(&pipelines(&folder, &text), &before, false, &environment);
        // A status of its own for what is new, the old one for what goes on.
        let statuses = |tasks: &Tasks| tasks.values().map(|task| task.status.clone()).collect::<Vec<_>>();
        let (old, new) = (statuses(&before), statuses(&tasks));
        let same: Vec<bool> = old.iter().zip(&new).map(|(old, new)| Arc::ptr_eq(old, new)).collect();
        assert_eq!(same, [true, true, false]);
    }

    #[test]
    fn a_reader_waits_for_all_that_write_what_it_reads() {
        let (_runtime, folder) = ground();
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
            components(pipeline).into_iter().map(|component| planned(pipeline, 0, component, &Tasks::new(), false));
        let tasks: Vec<Planned> = tasks.collect();
        let written: Vec<_> = tasks.iter().flat_map(writers).collect();
        let waits: BTreeMap<&str, usize> = tasks
            .iter()
            .map(|task| (task.plan.component.name(), upstream(task.plan.component.reads(), &written).stages.len()))
            .collect();
        assert_eq!(waits, BTreeMap::from([("shop", 0), ("rows", 1), ("ddl", 1), ("others", 0)]));
    }
}
