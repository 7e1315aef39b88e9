//! [`View`]: what the rows of a cluster's control say, and the rows that a request writes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Result};

use crate::checkpoint::{AliveRow, ConnectorRow, ControlRow, RestartRow, RunState, StateRow, TaskRef, WorkerTasks};

/// A worker that has not renewed its row for this time is gone. It renews it every three seconds.
const DEAD_AFTER: Duration = Duration::from_secs(15);

/// A worker is gone that has shown no sign of life for this time, while others did. It shows one
/// every second. If no sign of any worker arrives, Kafka or this reader is slow.
const SILENT_AFTER: Duration = Duration::from_secs(3);

/// A worker that is gone is reported for this time.
const REPORT_GONE: Duration = Duration::from_secs(600);

/// A pipeline, or a component of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// The pipeline.
    pub pipeline: String,
    /// The component; all components if `None`.
    pub component: Option<String>,
}

/// The components of a cluster: pairs of pipeline and component.
pub type Components = BTreeSet<(String, String)>;

/// What people ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// The tasks commit and stop; the position stays.
    Pause,
    /// The same, in Kafka Connect's words.
    Stop,
    /// The tasks run again.
    Resume,
    /// The tasks stop and start.
    Restart {
        /// Only tasks that have failed.
        failed_only: bool,
        /// Only this task.
        task: Option<TaskRef>,
    },
}

impl Request {
    /// Its name in the audit log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Stop => "stop",
            Self::Resume => "resume",
            Self::Restart { .. } => "restart",
        }
    }
}

/// The rows of a cluster, as one worker or command knows them.
#[derive(Debug, Clone, Default)]
pub struct View {
    states: BTreeMap<String, StateRow>,
    restarts: BTreeMap<String, RestartRow>,
    connectors: BTreeMap<String, ConnectorRow>,
    tasks: BTreeMap<String, WorkerTasks>,
    /// When the row of each worker was last renewed.
    beats: BTreeMap<String, Instant>,
    /// When each worker last showed a sign of life, and what it was. Workers of older versions show
    /// none.
    alive: BTreeMap<String, (Instant, AliveRow)>,
}

impl Target {
    /// Reads `PIPELINE` or `PIPELINE.COMPONENT`.
    pub fn parse(name: &str) -> Self {
        let (pipeline, component) = match name.split_once('.') {
            Some((pipeline, component)) => (pipeline, Some(component.to_owned())),
            None => (name, None),
        };
        Self { pipeline: pipeline.to_owned(), component }
    }

    /// The known components that it names. If there are none, the error lists what is known.
    pub fn among(&self, known: &Components) -> Result<Components> {
        let named = known.iter().filter(|(pipeline, component)| {
            *pipeline == self.pipeline && self.component.as_ref().is_none_or(|name| name == component)
        });
        let named: Components = named.cloned().collect();
        if !named.is_empty() {
            return Ok(named);
        }
        let of_pipeline = known.iter().filter(|(pipeline, _)| *pipeline == self.pipeline);
        let components: Vec<&str> = of_pipeline.map(|(_, component)| component.as_str()).collect();
        let pipeline = &self.pipeline;
        match &self.component {
            Some(component) if !components.is_empty() => {
                let message = format!(
                    "the pipeline `{pipeline}` has no stage `{component}`; its stages: {}. A fused transform runs in the stage \
                     that reads it",
                    components.join(", ")
                );
                Err(Error::config("cli.unknown_component", message))
            }
            _ => {
                let pipelines: BTreeSet<&str> = known.iter().map(|(pipeline, _)| pipeline.as_str()).collect();
                let pipelines: Vec<&str> = pipelines.into_iter().collect();
                let message =
                    format!("no worker of the cluster runs the pipeline `{pipeline}`; known: {}", pipelines.join(", "));
                Err(Error::config("cli.unknown_pipeline", message))
            }
        }
    }
}

impl View {
    /// Takes over a row that was read.
    pub fn apply(&mut self, row: ControlRow, now: Instant) {
        fn set<V>(rows: &mut BTreeMap<String, V>, key: String, row: Option<V>) {
            match row {
                Some(row) => drop(rows.insert(key, row)),
                None => drop(rows.remove(&key)),
            }
        }
        match row {
            ControlRow::State(target, row) => set(&mut self.states, target, row),
            ControlRow::Restart(target, row) => set(&mut self.restarts, target, row),
            ControlRow::Connector(name, row) => set(&mut self.connectors, name, row),
            ControlRow::Tasks(worker, row) => set(&mut self.tasks, worker, row),
            ControlRow::Beat(worker, is_alive) => set(&mut self.beats, worker, is_alive.then_some(now)),
            ControlRow::Alive(worker, row) => set(&mut self.alive, worker, row.map(|row| (now, row))),
        }
    }

    /// The wanted state of a component: of its row, or else of its pipeline's row.
    pub fn state(&self, pipeline: &str, component: &str) -> RunState {
        let row = self.states.get(&format!("{pipeline}.{component}")).or_else(|| self.states.get(pipeline));
        row.map_or(RunState::Running, |row| row.state)
    }

    /// The last restart of each component.
    pub fn restarts(&self) -> &BTreeMap<String, RestartRow> {
        &self.restarts
    }

    /// The connectors that were created by REST, by name.
    pub fn connectors(&self) -> &BTreeMap<String, ConnectorRow> {
        &self.connectors
    }

    /// The workers that are alive, each with its tasks.
    pub fn workers(&self, now: Instant) -> impl Iterator<Item = (&str, &WorkerTasks)> {
        let tasks = self.tasks.iter().map(|(worker, tasks)| (worker.as_str(), tasks));
        tasks.filter(move |(worker, _)| self.is_alive(worker, now))
    }

    /// The workers that ended without removing their rows: killed, or cut off from Kafka. Each with
    /// its last tasks, and the time since its last sign of life.
    pub fn gone(&self, now: Instant) -> impl Iterator<Item = (&str, &WorkerTasks, Duration)> {
        let tasks = self.tasks.iter().filter(move |(worker, _)| !self.is_alive(worker, now));
        let silent = tasks.filter_map(move |(worker, tasks)| {
            let last = self.beats.get(worker).max(self.alive.get(worker).map(|(sign, _)| sign))?;
            Some((worker.as_str(), tasks, now.saturating_duration_since(*last)))
        });
        silent.filter(|(.., silence)| *silence < REPORT_GONE)
    }

    fn is_alive(&self, worker: &str, now: Instant) -> bool {
        let is_fresh = |beat: &Instant| now.saturating_duration_since(*beat) < DEAD_AFTER;
        let is_silent = |(sign, _): &(Instant, AliveRow)| {
            let latest = self.alive.values().map(|(sign, _)| sign).max();
            latest.is_some_and(|latest| latest.saturating_duration_since(*sign) >= SILENT_AFTER)
        };
        self.beats.get(worker).is_some_and(is_fresh) && !self.alive.get(worker).is_some_and(is_silent)
    }

    /// A component that was busy a moment ago, as `{pipeline}.{component}`: of this pipeline, or on
    /// this machine.
    pub fn busy(&self, pipeline: &str, node: &str, now: Instant) -> Option<&str> {
        let fresh = self.alive.values().filter(|(sign, _)| now.saturating_duration_since(*sign) < SILENT_AFTER);
        let mut busy = fresh.flat_map(|(_, row)| row.busy.iter().map(|name| (name.as_str(), row.node.as_str())));
        let competes = |(name, of): &(&str, &str)| {
            *of == node || name.split_once('.').is_some_and(|(of_pipeline, _)| of_pipeline == pipeline)
        };
        busy.find(competes).map(|(name, _)| name)
    }

    /// Forgets when the workers have shown signs of life: the rows that a command reads are old.
    pub(super) fn forget_signs(&mut self) {
        self.beats.clear();
        self.alive.clear();
    }

    /// Whether the worker is alive and has shown its tasks: a further sign of life changes nothing.
    pub(super) fn is_known(&self, worker: &str) -> bool {
        self.alive.contains_key(worker) && self.tasks.contains_key(worker) && self.is_alive(worker, Instant::now())
    }

    /// Whether there is a row of a worker's tasks.
    pub fn has_tasks_of(&self, worker: &str) -> bool {
        self.tasks.contains_key(worker)
    }

    /// Workers that have left their tasks behind: their own rows were removed.
    pub fn left_behind(&self) -> Vec<String> {
        self.tasks.keys().filter(|worker| !self.beats.contains_key(*worker)).cloned().collect()
    }

    /// The components of the workers that are alive.
    pub fn components(&self, now: Instant) -> Components {
        let tasks = self.workers(now).flat_map(|(_, worker)| &worker.tasks);
        tasks.map(|task| (task.pipeline.clone(), task.component.clone())).collect()
    }

    /// The rows that a request writes, in this order. `id` differs in each request; `now` is in
    /// milliseconds since the Unix epoch.
    pub fn rows_of(
        &self,
        request: &Request,
        target: &Target,
        known: &Components,
        id: &str,
        now: i64,
    ) -> Result<Vec<ControlRow>> {
        let named = target.among(known)?;
        Ok(match request {
            Request::Pause => self.state_rows(RunState::Paused, target, now),
            Request::Stop => self.state_rows(RunState::Stopped, target, now),
            Request::Resume => self.state_rows(RunState::Running, target, now),
            Request::Restart { failed_only, task } => {
                let row = RestartRow { id: id.to_owned(), failed_only: *failed_only, task: task.clone() };
                let names = named.iter().map(|(pipeline, component)| format!("{pipeline}.{component}"));
                names.map(|name| ControlRow::Restart(name, Some(row.clone()))).collect()
            }
        })
    }

    /// A row of a pipeline stands for all its components, also for those that are added later. The
    /// row of a component takes precedence.
    fn state_rows(&self, state: RunState, target: &Target, now: i64) -> Vec<ControlRow> {
        let row = Some(StateRow { state, since: now });
        let pipeline = &target.pipeline;
        let Some(component) = &target.component else {
            let own = format!("{pipeline}.");
            let row = row.filter(|row| row.state != RunState::Running);
            let components = self.states.keys().filter(|name| name.starts_with(&own));
            let components = components.map(|name| ControlRow::State(name.clone(), None));
            return std::iter::once(ControlRow::State(pipeline.clone(), row)).chain(components).collect();
        };
        let is_needed = state != RunState::Running || self.states.contains_key(pipeline);
        vec![ControlRow::State(format!("{pipeline}.{component}"), row.filter(|_| is_needed))]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::TaskRow;

    fn known() -> Components {
        let name = |(pipeline, component): (&str, &str)| (pipeline.to_owned(), component.to_owned());
        [("shop", "db"), ("shop", "lake"), ("web", "lake")].map(name).into()
    }

    fn ask(view: &mut View, request: &Request, target: &str) {
        let rows = view.rows_of(request, &Target::parse(target), &known(), "1", 0).unwrap();
        rows.into_iter().for_each(|row| view.apply(row, Instant::now()));
    }

    fn states(view: &View) -> Vec<RunState> {
        known().iter().map(|(pipeline, component)| view.state(pipeline, component)).collect()
    }

    #[test]
    fn components_and_pipelines_are_paused_and_resumed() {
        use RunState::{Paused, Running, Stopped};
        let mut view = View::default();
        assert_eq!(states(&view), [Running; 3]);
        ask(&mut view, &Request::Pause, "shop.lake");
        assert_eq!(states(&view), [Running, Paused, Running]);
        ask(&mut view, &Request::Pause, "shop");
        assert_eq!(states(&view), [Paused, Paused, Running]);
        assert_eq!(view.state("shop", "added-later"), Paused);
        ask(&mut view, &Request::Resume, "shop.db");
        assert_eq!(states(&view), [Running, Paused, Running]);
        ask(&mut view, &Request::Stop, "shop.db");
        assert_eq!(states(&view), [Stopped, Paused, Running]);
        ask(&mut view, &Request::Resume, "shop");
        assert_eq!(states(&view), [Running; 3]);
        assert!(view.states.is_empty(), "{:?}", view.states);
        ask(&mut view, &Request::Pause, "web.lake");
        ask(&mut view, &Request::Resume, "web.lake");
        assert!(view.states.is_empty(), "{:?}", view.states);
    }

    #[test]
    fn a_restart_names_each_component() {
        let mut view = View::default();
        ask(&mut view, &Request::Restart { failed_only: true, task: None }, "shop");
        let row = RestartRow { id: "1".to_owned(), failed_only: true, task: None };
        let expected = [("shop.db".to_owned(), row.clone()), ("shop.lake".to_owned(), row)];
        assert_eq!(*view.restarts(), BTreeMap::from(expected));
    }

    #[test]
    fn unknown_names_are_errors_that_list_the_known_ones() {
        let error = |name: &str| Target::parse(name).among(&known()).unwrap_err().to_string();
        let pipeline = error("shp");
        assert!(pipeline.contains("`shp`; known: shop, web [cli.unknown_pipeline]"), "{pipeline}");
        let component = error("shop.lak");
        assert!(component.contains("no stage `lak`; its stages: db, lake."), "{component}");
        assert!(error("shp.lake").contains("cli.unknown_pipeline"));
    }

    fn alive(worker: &str) -> ControlRow {
        ControlRow::Alive(worker.to_owned(), Some(AliveRow::default()))
    }

    #[test]
    fn busy_components_are_those_of_the_last_signs() {
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let mut view = View::default();
        let mut show = |worker: &str, node: &str, busy: &[&str], at| {
            let busy = busy.iter().map(|name| (*name).to_owned()).collect();
            view.apply(ControlRow::Alive(worker.to_owned(), Some(AliveRow { node: node.to_owned(), busy })), at);
            ["shop", "web"].map(|pipeline| ["n", "m"].map(|node| view.busy(pipeline, node, at).map(str::to_owned)))
        };
        let name = |name: &str| Some(name.to_owned());
        assert_eq!(show("a", "n", &[], after(0)), [[None, None], [None, None]]);
        let of_shop = [[name("shop.lake"), name("shop.lake")], [name("shop.lake"), None]];
        assert_eq!(show("a", "n", &["shop.lake"], after(1)), of_shop, "its pipeline everywhere, others on its machine");
        assert_eq!(show("b", "m", &[], after(3)), of_shop);
        assert_eq!(show("b", "m", &[], after(4)), [[None, None], [None, None]], "the worker `a` is silent");
        show("a", "n", &["shop.lake"], after(5));
        assert_eq!(show("a", "n", &[], after(5)), [[None, None], [None, None]]);
    }

    #[test]
    fn a_worker_without_a_sign_of_life_is_gone_if_others_show_one() {
        let start = Instant::now();
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        let mut view = View::default();
        for worker in ["a", "b", "old"] {
            let tasks = WorkerTasks { node: "n".to_owned(), ..WorkerTasks::default() };
            view.apply(ControlRow::Tasks(worker.to_owned(), Some(tasks)), start);
            view.apply(ControlRow::Beat(worker.to_owned(), true), start);
        }
        for second in [0.0, 1.0, 2.0] {
            view.apply(alive("a"), at(second));
            view.apply(alive("b"), at(second));
        }
        let names = |view: &View, now| view.workers(now).map(|(worker, _)| worker.to_owned()).collect::<Vec<_>>();
        // Kafka was slow: nothing arrived.
        assert_eq!(names(&view, at(9.0)), ["a", "b", "old"]);
        for second in [3.0, 4.0, 4.9] {
            view.apply(alive("a"), at(second));
        }
        assert_eq!(names(&view, at(5.4)), ["a", "b", "old"]);
        view.apply(alive("a"), at(5.5));
        assert_eq!(names(&view, at(5.5)), ["a", "old"], "a worker of an older version shows no signs");
        let gone: Vec<(String, u64)> =
            view.gone(at(6.0)).map(|(worker, _, silence)| (worker.to_owned(), silence.as_secs())).collect();
        assert_eq!(gone, [("b".to_owned(), 4)]);
        assert_eq!(view.gone(at(700.0)).count(), 0);
        view.apply(alive("b"), at(6.5));
        assert_eq!(names(&view, at(6.5)), ["a", "b", "old"]);
    }

    #[test]
    fn tasks_of_workers_that_are_gone_are_not_shown() {
        let row = TaskRow {
            pipeline: "shop".to_owned(),
            component: "lake".to_owned(),
            kind: "sink".to_owned(),
            task: 0,
            state: "running".to_owned(),
            error: None,
        };
        let tasks = WorkerTasks { node: "n".to_owned(), tasks: vec![row], ..WorkerTasks::default() };
        let start = Instant::now();
        let mut view = View::default();
        let names = |view: &View, now| view.workers(now).map(|(worker, _)| worker.to_owned()).collect::<Vec<_>>();
        view.apply(ControlRow::Tasks("a".to_owned(), Some(tasks)), start);
        assert_eq!((names(&view, start), view.left_behind()), (Vec::new(), vec!["a".to_owned()]));
        view.apply(ControlRow::Beat("a".to_owned(), true), start);
        assert_eq!((names(&view, start), view.left_behind()), (vec!["a".to_owned()], Vec::new()));
        assert_eq!(view.components(start), Components::from([("shop".to_owned(), "lake".to_owned())]));
        assert!(names(&view, start + DEAD_AFTER).is_empty());
        view.apply(ControlRow::Beat("a".to_owned(), false), start);
        assert!(view.components(start).is_empty());
    }
}
