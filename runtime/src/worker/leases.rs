//! Leases on source tasks: the partitions of `_trunkline.tasks`, shared out by a consumer group. Whoever is assigned the partition that a
//! task hashes to runs it.
//!
//! A lease decides who *should* run a task, so that two workers do not fight; that no more than one *can* write is decided by the
//! transactional id (I4). Sources that run on every node share their leases among the workers of that node, the others among all.
//!
//! Which tasks there are may change at any time. The group is none the wiser: a worker holds partitions, whatever tasks they are of, so
//! that those that stay the same are not disturbed. It leaves the group when it has no tasks left.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Placement, Result};

use super::tasks::{Task, Tasks};
use super::threads::Threads;
use crate::checkpoint::TASKS;
use crate::kafka::{FillLimits, GroupConsumer, Others, PartitionBatches, Rebalanced};
use crate::stage::{GIVE_UP, StageState, WorkerContext};

/// How soon an assignment is acted on.
const POLL: Duration = Duration::from_millis(20);

/// With `--until-idle`, a task whose lease has been elsewhere for so long is another worker's to finish, if there is one.
const NOT_OURS: Duration = Duration::from_secs(15);

/// The group is looked at so often while a lease is missing.
const LOOK: Duration = Duration::from_secs(1);

/// Keeps the leases of one placement, in a thread of its own: runs the tasks that it holds, until the worker stops or (`until_idle`) all are over.
pub(super) struct Leases {
    pub(super) placement: Placement,
    given: Arc<Mutex<Arc<Tasks>>>,
    thread: JoinHandle<()>,
}

impl Leases {
    /// Starts the thread.
    pub(super) fn keep(placement: Placement, tasks: Tasks, context: &WorkerContext) -> Result<Self> {
        let given = Arc::new(Mutex::new(Arc::new(tasks)));
        let tasks = current(&given);
        let mut keeper = Keeper {
            placement,
            context: context.clone(),
            given: given.clone(),
            tasks,
            threads: Threads::default(),
            waiting: Instant::now(),
        };
        let thread = std::thread::Builder::new()
            .name("leases".to_owned())
            .spawn(move || keeper.run())
            .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))?;
        Ok(Self { placement, given, thread })
    }

    /// From now on these are the tasks.
    pub(super) fn change(&self, tasks: Tasks) {
        *self.given.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tasks);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for its end. What a stage panics of is caught inside; what is left is a panic of the keeper itself.
    pub(super) fn join(self) -> Result<()> {
        let panicked = |_| Error::internal("worker.panic", "a thread of the worker panicked (please report this)");
        self.thread.join().map_err(panicked)
    }
}

fn current(given: &Mutex<Arc<Tasks>>) -> Arc<Tasks> {
    given.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

struct Keeper {
    placement: Placement,
    context: WorkerContext,
    given: Arc<Mutex<Arc<Tasks>>>,
    tasks: Arc<Tasks>,
    threads: Threads,
    /// Since when leases that are not held here have not been.
    waiting: Instant,
}

impl Keeper {
    fn run(&mut self) {
        while !self.context.stop.is_set() && !self.is_over() {
            self.tasks = current(&self.given);
            if self.tasks.is_empty() {
                self.context.stop.wait(POLL);
            } else if let Err(error) = self.hold() {
                tracing::warn!(%error, "lost the leases on source tasks; asking for them again");
                self.threads.stop(|_| true);
                self.context.stop.wait(Duration::from_secs(1));
            }
        }
        self.threads.stop(|_| true);
    }

    fn is_over(&self) -> bool {
        self.context.until_idle && self.tasks.values().all(|task| task.status.is_over())
    }

    /// Joins the group and runs what it assigns, until all is over, there are no tasks left or the worker stops; then leaves the group.
    fn hold(&mut self) -> Result<()> {
        let names = &self.context.names;
        let group = match self.placement {
            Placement::Anywhere => format!("{}.tasks", names.cluster),
            Placement::EveryNode => format!("{}.tasks.{}", names.cluster, names.node),
        };
        let topics = [TASKS.to_owned()];
        let consumer = GroupConsumer::join(&self.context.cluster, &group, &names.worker, &topics, 1 << 20)?;
        self.run_held(&consumer)?;
        // Only those that run no task any more may hand it to others.
        self.threads.stop(|_| true);
        consumer.leave();
        Ok(())
    }

    /// Fails when a task was fenced: then the group has to be asked again whose it is.
    fn run_held(&mut self, consumer: &GroupConsumer) -> Result<()> {
        let mut held = BTreeSet::new();
        let mut looked = Instant::now();
        self.waiting = Instant::now();
        let mut batches = PartitionBatches::default();
        while !self.context.stop.is_set() && !self.is_over() {
            self.tasks = current(&self.given);
            if self.tasks.is_empty() && self.threads.is_empty() {
                return Ok(());
            }
            // Waiting inside the poll would cost a twentieth of a core (see `TransactionalProducer`).
            consumer.fill(&FillLimits { records: 1, bytes: 1, wait: Duration::ZERO }, &mut batches)?;
            self.context.stop.wait(POLL);
            for (_, batch) in batches.iter_mut() {
                // Nobody should write to the lease topic; if somebody does, it means nothing.
                batch.clear();
            }
            for event in consumer.rebalanced() {
                match event {
                    Rebalanced::Assigned(claims) => held.extend(claims.iter().map(|claim| claim.partition)),
                    Rebalanced::Revoked(claims) => {
                        let lost: BTreeSet<i32> = claims.iter().map(|claim| claim.partition).collect();
                        held.retain(|partition| !lost.contains(partition));
                        for task in self.threads.tasks().filter(|task| is_among(task, &lost)) {
                            tracing::info!(stage = task.status.name(), "handing it over: its lease is gone");
                        }
                        self.threads.stop(|task| is_among(task, &lost));
                        self.waiting = Instant::now();
                    }
                }
            }
            if self.threads.align(&self.tasks, |task| is_among(task, &held)) {
                return Err(Error::fenced("worker.fenced", "another worker has taken over a task of this one"));
            }
            let waited = self.waiting.elapsed();
            let is_missing = |task: &Task| !is_among(task, &held) && !task.status.is_over() && waited > NOT_OURS;
            let missing: Vec<_> = self.tasks.values().filter(|task| is_missing(task)).collect();
            if self.context.until_idle && looked.elapsed() > LOOK && !missing.is_empty() {
                looked = Instant::now();
                // What cannot be asked now can be in a second.
                let others = consumer.others().unwrap_or_default();
                missing.into_iter().for_each(|task| leave_to_others(task, waited, others.as_ref()));
            }
        }
        Ok(())
    }
}

fn is_among(task: &Task, partitions: &BTreeSet<i32>) -> bool {
    task.lease.as_ref().is_some_and(|lease| partitions.contains(&lease.claim.partition))
}

/// Another worker finishes a task whose lease it has. One that nobody has comes back: it was lost for a moment, because this worker or the broker
/// hung.
fn leave_to_others(task: &Task, waited: Duration, others: Option<&Others>) {
    let is_theirs = |others: &Others| task.lease.as_ref().is_some_and(|lease| others.own(&lease.claim));
    if others.is_some_and(is_theirs) {
        tracing::info!(stage = task.status.name(), "another worker runs it");
        task.status.set_state(StageState::Done);
    } else if waited > GIVE_UP {
        let error = "its lease was not to be had for 5 minutes; its position is kept".to_owned();
        tracing::error!(stage = task.status.name(), error);
        task.status.set_state(StageState::Failed(error));
    }
}
