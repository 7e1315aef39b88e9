//! The components of the cluster with their tasks on all workers, for the answers of REST.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use trunkline_connector::Placement;

use super::Served;
use super::shown_options::shown;
use crate::checkpoint::{ConnectorRow, RunState, TaskRow, WorkerTasks};
use crate::plan::{Input, Pipeline, Registry, TopicSelector};
use crate::worker::control::{Components, View};

/// A component that has tasks: a source, a separate transform or a sink.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentInfo {
    /// `{pipeline}.{component}`.
    pub name: String,
    /// The pipeline.
    pub pipeline: String,
    /// The name in the pipeline.
    pub component: String,
    /// `source`, `transform` or `sink`.
    pub kind: String,
    /// Its connector or plugin.
    pub connector: String,
    /// `running`, `paused` or `stopped`: what people want.
    pub wanted: RunState,
    /// Its tasks on all workers.
    pub tasks: Vec<TaskInfo>,
    /// For Kafka Connect's paths; not part of the JSON.
    #[serde(skip)]
    pub(super) options: Arc<Value>,
    #[serde(skip)]
    pub(super) max_tasks: u32,
    /// The topics that it reads, or a source writes.
    #[serde(skip)]
    pub(super) topics: Vec<TopicSelector>,
    #[serde(skip)]
    pub(super) placement: Option<Placement>,
}

/// A task on one of the workers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskInfo {
    /// Number of the task among those of the component in the cluster. It changes when workers
    /// come or go.
    pub id: u32,
    /// The worker's id.
    pub worker: String,
    /// The worker's machine.
    pub node: String,
    /// The address of the worker's HTTP server.
    pub http: Option<String>,
    /// Number of the task of the component in that worker.
    pub task: u32,
    /// `waiting`, `running`, `paused`, `done` or `failed`.
    pub state: String,
    /// The error of a failed task.
    pub error: Option<String>,
}

impl TaskInfo {
    /// Where it runs: `{host}:{port}`, as Kafka Connect names workers.
    pub(super) fn worker_id(&self) -> String {
        match self.http.as_deref().and_then(|address| address.rsplit_once(':')) {
            Some((_, port)) => format!("{}:{port}", self.node),
            None => self.worker.clone(),
        }
    }
}

/// The components of the pipelines that this worker has loaded, with the tasks of all workers.
pub(super) fn all(served: &Served) -> Vec<ComponentInfo> {
    let view = served.control.view();
    let workers = workers(served, &view);
    let pipelines = served.overview.pipelines();
    let loaded = served.loaded.of(&pipelines);
    let of_shown = |pipeline: &Pipeline| loaded.get(&pipeline.name).into_iter().flatten().cloned();
    let mut found: Vec<ComponentInfo> = shown_pipelines(served, &view, &pipelines).flat_map(of_shown).collect();
    show_stored(&mut found, view.connectors());
    let rows = rows_by_component(&workers);
    for component in &mut found {
        component.wanted = view.state(&component.pipeline, &component.component);
        component.tasks = tasks(component, &rows);
    }
    found
}

/// The pipelines without those of connectors that were deleted by REST: the worker ends their tasks
/// a second later.
pub(super) fn shown_pipelines<'p>(
    served: &'p Served,
    view: &'p View,
    pipelines: &'p [Pipeline],
) -> impl Iterator<Item = &'p Pipeline> {
    let is_deleted = |pipeline: &&Pipeline| {
        let is_created = served.connectors.as_deref().is_some_and(|folder| pipeline.file.parent() == Some(folder));
        let name = pipeline.file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        is_created && !view.connectors().contains_key(name)
    };
    pipelines.iter().filter(move |pipeline| !is_deleted(pipeline))
}

/// The names of these components.
pub(super) fn names(served: &Served) -> Components {
    let pipelines = served.overview.pipelines();
    let view = served.control.view();
    let found: Vec<ComponentInfo> = shown_pipelines(served, &view, &pipelines).flat_map(of_pipeline).collect();
    found.into_iter().map(|component| (component.pipeline, component.component)).collect()
}

/// The live workers of the cluster with their tasks; this one as it is now.
pub(super) fn workers(served: &Served, view: &View) -> BTreeMap<String, WorkerTasks> {
    let others = view.workers(Instant::now()).map(|(worker, tasks)| (worker.to_owned(), tasks.clone()));
    let mut workers: BTreeMap<String, WorkerTasks> = others.collect();
    workers.insert(served.worker.clone(), served.control.own_tasks(&served.overview));
    workers
}

/// Shows connectors that were created by REST as they are stored: workers run them seconds later.
fn show_stored(found: &mut Vec<ComponentInfo>, stored: &BTreeMap<String, ConnectorRow>) {
    if stored.is_empty() {
        return;
    }
    let registry = Registry::new();
    for (name, row) in stored {
        let Some((pipeline, component)) = name.split_once('.') else { continue };
        let options = Arc::new(shown(&json!(row.config)));
        let class = row.config.get("connector.class").cloned().unwrap_or_default();
        match found.iter_mut().find(|known| known.name == *name) {
            Some(known) => known.options = options,
            None => found.push(ComponentInfo {
                name: name.clone(),
                pipeline: pipeline.to_owned(),
                component: component.to_owned(),
                kind: if registry.source(&class).is_some() { "source" } else { "sink" }.to_owned(),
                connector: class,
                wanted: RunState::Running,
                tasks: Vec::new(),
                options,
                max_tasks: row.config.get("tasks.max").and_then(|tasks| tasks.parse().ok()).unwrap_or(1),
                topics: Vec::new(),
                placement: None,
            }),
        }
    }
}

/// The components of the pipelines that a worker has loaded, without tasks, by pipeline: made once,
/// because each answer shows them.
#[derive(Default)]
pub struct LoadedComponents(Mutex<Option<Loaded>>);

type ByPipeline = HashMap<String, Vec<ComponentInfo>>;

struct Loaded {
    of: Arc<Vec<Pipeline>>,
    components: Arc<ByPipeline>,
}

impl LoadedComponents {
    fn of(&self, pipelines: &Arc<Vec<Pipeline>>) -> Arc<ByPipeline> {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(loaded) = &*last
            && Arc::ptr_eq(&loaded.of, pipelines)
        {
            return loaded.components.clone();
        }
        let components = pipelines.iter().map(|pipeline| (pipeline.name.clone(), of_pipeline(pipeline)));
        let components: Arc<ByPipeline> = Arc::new(components.collect());
        *last = Some(Loaded { of: pipelines.clone(), components: components.clone() });
        components
    }
}

fn of_pipeline(pipeline: &Pipeline) -> Vec<ComponentInfo> {
    let new = |component: &str, kind: &str, connector: &str, options: &Value| ComponentInfo {
        name: format!("{}.{component}", pipeline.name),
        pipeline: pipeline.name.clone(),
        component: component.to_owned(),
        kind: kind.to_owned(),
        connector: connector.to_owned(),
        wanted: RunState::Running,
        tasks: Vec::new(),
        options: Arc::new(shown(options)),
        max_tasks: 1,
        topics: Vec::new(),
        placement: None,
    };
    let read = |inputs: &[Input]| inputs.iter().map(|input| input.topics.clone()).collect::<BTreeSet<_>>();
    let mut found = Vec::new();
    for source in &pipeline.sources {
        found.push(ComponentInfo {
            topics: source.topics().map(TopicSelector::of).collect(),
            placement: Some(source.spec.placement()),
            ..new(&source.name, "source", source.connector, source.options.written())
        });
    }
    for transform in &pipeline.transforms {
        let options = json!({ "plugin": transform.step.plugin.name(), "config": transform.step.written });
        found.push(ComponentInfo {
            topics: read(&transform.inputs).into_iter().collect(),
            max_tasks: transform.tasks.max(1),
            ..new(&transform.name, "transform", transform.step.plugin.name(), &options)
        });
    }
    for sink in &pipeline.sinks {
        found.push(ComponentInfo {
            topics: read(&sink.inputs).into_iter().collect(),
            max_tasks: sink.tasks.max(1),
            ..new(&sink.name, "sink", sink.connector, sink.options.written())
        });
    }
    found
}

/// The rows of each component's tasks with their workers, by pipeline, component and kind.
type Rows<'w> = HashMap<(&'w str, &'w str, &'w str), Vec<(&'w str, &'w WorkerTasks, &'w TaskRow)>>;

fn rows_by_component(workers: &BTreeMap<String, WorkerTasks>) -> Rows<'_> {
    let mut rows = Rows::new();
    for (worker, of_worker) in workers {
        for task in &of_worker.tasks {
            let key = (task.pipeline.as_str(), task.component.as_str(), task.kind.as_str());
            rows.entry(key).or_default().push((worker, of_worker, task));
        }
    }
    rows
}

/// The tasks of a component. The task of a source runs on one of the workers that could run it:
/// the others wait for its lease, and are not shown.
fn tasks(component: &ComponentInfo, rows: &Rows<'_>) -> Vec<TaskInfo> {
    let key = (component.pipeline.as_str(), component.component.as_str(), component.kind.as_str());
    let own = rows.get(&key).map(Vec::as_slice).unwrap_or_default().iter();
    let info = |(worker, row, task): &(&str, &WorkerTasks, &TaskRow)| TaskInfo {
        id: 0,
        worker: (*worker).to_owned(),
        node: row.node.clone(),
        http: row.http.clone(),
        task: task.task,
        state: task.state.clone(),
        error: task.error.clone(),
    };
    let mut found: Vec<TaskInfo> = own.map(info).collect();
    if let Some(placement) = component.placement {
        let mut best: BTreeMap<String, TaskInfo> = BTreeMap::new();
        for task in found {
            let place = if placement == Placement::EveryNode { task.node.clone() } else { String::new() };
            let is_better = best.get(&place).is_none_or(|known| rank(&task.state) < rank(&known.state));
            if is_better {
                best.insert(place, task);
            }
        }
        found = best.into_values().collect();
    }
    for (id, task) in (0..).zip(&mut found) {
        task.id = id;
    }
    found
}

/// Which of several states says more about a source.
fn rank(state: &str) -> usize {
    ["running", "failed", "paused", "waiting"].iter().position(|known| *known == state).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn component(placement: Option<Placement>) -> ComponentInfo {
        ComponentInfo {
            name: "shop.x".to_owned(),
            pipeline: "shop".to_owned(),
            component: "x".to_owned(),
            kind: "source".to_owned(),
            connector: "mysql".to_owned(),
            wanted: RunState::Running,
            tasks: Vec::new(),
            options: Arc::default(),
            max_tasks: 1,
            topics: Vec::new(),
            placement,
        }
    }

    /// Workers on two nodes, each with a task of the component in this state.
    fn workers(states: [(&str, &str, &str); 3]) -> BTreeMap<String, WorkerTasks> {
        let row = |state: &str| TaskRow {
            pipeline: "shop".to_owned(),
            component: "x".to_owned(),
            kind: "source".to_owned(),
            task: 0,
            state: state.to_owned(),
            error: None,
        };
        let worker = |(name, node, state): (&str, &str, &str)| {
            let http = Some("0.0.0.0:8083".to_owned());
            (
                name.to_owned(),
                WorkerTasks { node: node.to_owned(), http, tasks: vec![row(state)], ..WorkerTasks::default() },
            )
        };
        states.map(worker).into()
    }

    fn shown(placement: Option<Placement>, states: [(&str, &str, &str); 3]) -> Vec<(u32, String, String)> {
        let workers = workers(states);
        let found = tasks(&component(placement), &rows_by_component(&workers));
        found.iter().map(|task| (task.id, task.worker_id(), task.state.clone())).collect()
    }

    #[test]
    fn a_source_has_one_task_for_each_place_where_it_runs() {
        let states = [("a", "n1", "waiting"), ("b", "n1", "running"), ("c", "n2", "paused")];
        let task = |id, worker: &str, state: &str| (id, worker.to_owned(), state.to_owned());
        assert_eq!(shown(Some(Placement::Anywhere), states), [task(0, "n1:8083", "running")]);
        let by_node = [task(0, "n1:8083", "running"), task(1, "n2:8083", "paused")];
        assert_eq!(shown(Some(Placement::EveryNode), states), by_node);
        let all = [task(0, "n1:8083", "waiting"), task(1, "n1:8083", "running"), task(2, "n2:8083", "paused")];
        assert_eq!(shown(None, states), all);
    }
}
