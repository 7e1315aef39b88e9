//! [`Overview`]: what a worker runs, for those who ask it (HTTP).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::MemoryBudget;

use crate::plan::Pipeline;
use crate::stage::StageStatus;

/// The tasks of a worker, and whether its main loop runs. Clones share their state.
#[derive(Clone)]
pub struct Overview {
    shared: Arc<Shared>,
}

struct Shared {
    started: Instant,
    state: Mutex<State>,
    is_running: AtomicBool,
}

struct State {
    tasks: Vec<(u32, Arc<StageStatus>)>,
    pipelines: Arc<Vec<Pipeline>>,
    budget: Option<MemoryBudget>,
    last_pass: Instant,
}

impl Overview {
    /// An overview of a worker that has no pipelines yet.
    pub fn new() -> Self {
        let now = Instant::now();
        let state = State { tasks: Vec::new(), pipelines: Arc::default(), budget: None, last_pass: now };
        Self { shared: Arc::new(Shared { started: now, state: Mutex::new(state), is_running: AtomicBool::new(false) }) }
    }

    /// The time since the worker was started.
    pub fn uptime(&self) -> Duration {
        self.shared.started.elapsed()
    }

    /// Whether the topics of the pipelines are prepared, and their tasks started.
    pub fn is_running(&self) -> bool {
        self.shared.is_running.load(Ordering::Relaxed)
    }

    /// The tasks, each with its number in its component, in the order of their pipelines and of the
    /// records in each.
    pub fn tasks(&self) -> Vec<(u32, Arc<StageStatus>)> {
        self.lock().tasks.clone()
    }

    /// Differs from an earlier value if the tasks, their states or the pipelines have changed.
    pub(crate) fn version(&self) -> u64 {
        let state = self.lock();
        let mut hasher = DefaultHasher::new();
        (self.is_running(), Arc::as_ptr(&state.pipelines)).hash(&mut hasher);
        for (number, task) in &state.tasks {
            (number, Arc::as_ptr(task), task.version()).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The pipelines that it runs.
    pub fn pipelines(&self) -> Arc<Vec<Pipeline>> {
        self.lock().pipelines.clone()
    }

    /// The time since the main loop was last at its beginning.
    pub fn since_last_pass(&self) -> Duration {
        self.lock().last_pass.elapsed()
    }

    /// The byte budget of the stages (I6): what is used, and the limit.
    pub fn budget(&self) -> Option<(usize, usize)> {
        self.lock().budget.as_ref().map(|budget| (budget.used(), budget.limit()))
    }

    pub(super) fn set_budget(&self, budget: MemoryBudget) {
        self.lock().budget = Some(budget);
    }

    pub(crate) fn set_pipelines(&self, pipelines: Vec<Pipeline>) {
        self.lock().pipelines = Arc::new(pipelines);
    }

    pub(crate) fn set_tasks(&self, tasks: impl Iterator<Item = (u32, Arc<StageStatus>)>) {
        self.lock().tasks = tasks.collect();
        self.shared.is_running.store(true, Ordering::Relaxed);
    }

    /// An overview of one stage.
    #[cfg(test)]
    pub(crate) fn show(&self, stage: Arc<StageStatus>, budget: MemoryBudget) {
        self.set_budget(budget);
        self.set_tasks(std::iter::once((0, stage)));
    }

    /// Notes that the main loop runs.
    pub(super) fn pass(&self) {
        self.lock().last_pass = Instant::now();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.shared.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Overview {
    fn default() -> Self {
        Self::new()
    }
}
