//! The threads of tasks, brought in line again and again with the tasks that are to run. The first start of a worker, a lease that comes or
//! goes and pipeline files that changed are all the same thing here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::tasks::{Task, TaskId, Tasks};
use crate::stage::{Ended, StageState, StopSignal, supervise};

/// Tasks that run, or have been told to stop and still do.
#[derive(Default)]
pub(super) struct Threads {
    running: BTreeMap<TaskId, Running>,
}

struct Running {
    task: Arc<Task>,
    stop: StopSignal,
    thread: JoinHandle<Ended>,
}

impl Threads {
    pub(super) fn is_empty(&self) -> bool {
        self.running.is_empty()
    }

    /// Tells tasks to stop that are not wanted (any more, or not so), and starts wanted ones that may run: in place of another one when that has
    /// ended. Waits for nothing. `true` if a task was fenced that was not told to stop.
    pub(super) fn align(&mut self, wanted: &Tasks, may_run: impl Fn(&Task) -> bool) -> bool {
        let is_wanted =
            |id: &TaskId, running: &Running| wanted.get(id).is_some_and(|task| Arc::ptr_eq(task, &running.task));
        self.running.iter().filter(|(id, running)| !is_wanted(id, running)).for_each(|(_, running)| running.stop.set());
        let mut fenced = false;
        for (_, ended) in self.running.extract_if(.., |_, running| running.thread.is_finished()) {
            let told = ended.stop.is_set();
            fenced |= ended.join() == Ended::Fenced && !told;
        }
        for (id, task) in wanted {
            if self.running.contains_key(id) || task.status.is_over() || !may_run(task) {
                continue;
            }
            if task.lease.is_some() {
                tracing::info!(stage = task.status.name(), "this worker runs it");
            }
            if let Some(running) = Running::start(task) {
                self.running.insert(id.clone(), running);
            }
        }
        fenced
    }

    /// Stops tasks and waits for them: each commits what it has. Their statuses go back to waiting, unless they were over before.
    pub(super) fn stop(&mut self, which: impl Fn(&Task) -> bool) {
        let mut stopping = Vec::new();
        for (_, running) in self.running.extract_if(.., |_, running| which(&running.task)) {
            // Asked before it is told to stop: a task that stops at once says that it is done too.
            stopping.push((running.task.status.is_over(), running));
        }
        stopping.iter().for_each(|(_, running)| running.stop.set());
        for (was_over, running) in stopping {
            let status = running.task.status.clone();
            running.join();
            if !was_over && status.state() == StageState::Done {
                status.set_state(StageState::Waiting);
            }
        }
    }

    /// Those that run.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.running.values().map(|running| running.task.as_ref())
    }
}

impl Running {
    /// `None` if there is no thread to be had: then the task has failed.
    fn start(task: &Arc<Task>) -> Option<Self> {
        let stop = task.context.stop.child();
        let (own, its_stop) = (task.clone(), stop.clone());
        let body = move || supervise(own.stage.as_ref(), own.lease.is_some(), &own.context, &its_stop, &own.status);
        match std::thread::Builder::new().name(task.status.name()).spawn(body) {
            Ok(thread) => Some(Self { task: task.clone(), stop, thread }),
            Err(error) => {
                let error = format!("cannot start a thread: {error}; raise the limit of threads of this process");
                tracing::error!(stage = task.status.name(), error);
                task.status.set_state(StageState::Failed(error));
                None
            }
        }
    }

    fn join(self) -> Ended {
        // A stage's panic is caught inside; what is left is a panic of the supervision itself.
        self.thread.join().unwrap_or_else(|_| {
            let error = "a thread of the worker panicked (please report this)".to_owned();
            tracing::error!(stage = self.task.status.name(), error);
            self.task.status.set_state(StageState::Failed(error));
            Ended::Over
        })
    }
}
