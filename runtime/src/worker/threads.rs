//! The threads of tasks, reconciled with the tasks that are wanted. The first start of a worker, an
//! assigned or revoked lease and changed pipeline files are all handled this way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::thread::JoinHandle;

use super::tasks::{Task, TaskId, Tasks};
use crate::stage::{Ended, StageState, StopSignal, supervise};

/// Running tasks, and tasks that were asked to stop and have not ended yet.
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

    /// Asks tasks to stop that are not wanted, not in this version, paused, or without a permit,
    /// and starts wanted tasks that may run. A new version starts after the old one has ended. Does
    /// not wait. Returns whether a task was fenced that was not asked to stop.
    pub(super) fn reconcile(&mut self, wanted: &Tasks, may_run: impl Fn(&Task) -> bool) -> bool {
        let is_wanted = |id: &TaskId, running: &Running| {
            running.task.permit.is_granted()
                && !running.task.status.is_paused()
                && wanted.get(id).is_some_and(|task| Arc::ptr_eq(task, &running.task))
        };
        self.running.iter().filter(|(id, running)| !is_wanted(id, running)).for_each(|(_, running)| running.stop.set());
        let mut fenced = false;
        for (id, ended) in self.running.extract_if(.., |_, running| running.thread.is_finished()) {
            let (was_asked_to_stop, task) = (ended.stop.is_set(), ended.task.clone());
            fenced |= ended.join() == Ended::Fenced && !was_asked_to_stop;
            if was_asked_to_stop && !wanted.contains_key(&id) && !task.context.stop.is_set() {
                let said = "stopped: the pipeline files no longer have this task";
                tracing::info!(stage = task.status.name(), task = id.number, "{said}");
            }
            // It was paused, or lost its permit. It may be allowed to run again by now.
            let is_wanted = wanted.get(&id).is_some_and(|wanted| Arc::ptr_eq(wanted, &task));
            let may_return = was_asked_to_stop && is_wanted && !task.context.stop.is_set();
            if may_return && task.status.state() == StageState::Done {
                task.status.set_state(StageState::Waiting);
            }
        }
        for (id, task) in wanted {
            if self.running.contains_key(id) || task.status.is_over() || !task.permit.is_granted() || !may_run(task) {
                continue;
            }
            if task.lease.is_some() {
                tracing::info!(stage = task.status.name(), "starting: this worker owns its lease");
            }
            if let Some(running) = Running::start(task) {
                self.running.insert(id.clone(), running);
            }
        }
        fenced
    }

    /// Stops tasks and waits for them; each commits its records. The status of a task that had not
    /// ended returns to waiting.
    pub(super) fn stop(&mut self, which: impl Fn(&Task) -> bool) {
        let mut stopping = Vec::new();
        for (_, running) in self.running.extract_if(.., |_, running| which(&running.task)) {
            // Before the stop is requested, because a stopped task reports that it is done.
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

    /// The running tasks.
    pub(super) fn tasks(&self) -> impl Iterator<Item = &Task> {
        self.running.values().map(|running| running.task.as_ref())
    }
}

impl Running {
    /// `None` if no thread can be started: then the task has failed.
    fn start(task: &Arc<Task>) -> Option<Self> {
        let stop = task.context.stop.child();
        let (own, its_stop) = (task.clone(), stop.clone());
        let body = move || {
            let ended = supervise(own.stage.as_ref(), own.lease.is_some(), &own.context, &its_stop, &own.status);
            // Its end is noticed within the short waits that follow.
            own.context.stop.announce();
            ended
        };
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
        // A stage's panic is caught in the thread; an error here is a panic of the supervision
        // itself.
        self.thread.join().unwrap_or_else(|_| {
            let error = "a thread of the worker panicked (please report this)".to_owned();
            tracing::error!(stage = self.task.status.name(), error);
            self.task.status.set_state(StageState::Failed(error));
            Ended::Over
        })
    }
}
