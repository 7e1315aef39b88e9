//! Leases on source tasks: the partitions of `_trunkline.tasks`, assigned by a consumer group. The
//! worker that is assigned the partition to which a task hashes runs the task.
//!
//! A lease decides which worker *should* run a task, so that workers do not fence each other all
//! the time. The transactional id guarantees that only one worker *can* write (I4). Sources that
//! run on every node share their leases among the workers of that node, the other sources among all
//! workers.
//!
//! The tasks may change at any time without a rebalance: a worker owns partitions, whichever tasks
//! hash to them, so that unchanged tasks keep running. A worker without tasks, or with paused tasks
//! only, leaves the group.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_connector::{Domain, Error, Placement, Result, Retry};

use super::tasks::{Task, Tasks};
use super::threads::Threads;
use crate::backoff::{Backoff, jitter};
use crate::checkpoint::TASKS;
use crate::kafka::{FillLimits, GroupConsumer, OtherMembers, PartitionBatches, RebalanceEvent};
use crate::stage::{GIVE_UP, StageState, WorkerContext};

/// Time within which a changed assignment takes effect.
const POLL: Duration = Duration::from_millis(20);

/// The same while nothing changes. The first changed assignment is then noticed later; those that
/// follow it are noticed within [`POLL`].
const IDLE_POLL: Duration = Duration::from_millis(100);

/// With `--until-idle`, another worker that has held a task's lease for this long finishes the
/// task.
const LEFT_TO_OTHERS: Duration = Duration::from_secs(15);

/// Time between two checks of the group while a lease is missing.
const GROUP_CHECK: Duration = Duration::from_secs(1);

/// Times until a worker that lost its leases joins the group again.
const FIRST_REJOIN: Duration = Duration::from_secs(1);
const MAX_REJOIN: Duration = Duration::from_secs(30);

/// A membership that lasted this long starts over with the first of these times.
const HEALTHY: Duration = Duration::from_secs(60);

/// With `--until-idle`, the tasks fail if this worker cannot become a member of the group within
/// this time.
const MEMBERSHIP_LIMIT: Duration = Duration::from_secs(60);

/// The leases of one placement. A thread runs the tasks whose leases this worker owns, until the
/// worker stops or (`until_idle`) every task has ended.
pub(super) struct LeaseManager {
    pub(super) placement: Placement,
    wanted: Arc<Mutex<Arc<Tasks>>>,
    thread: JoinHandle<()>,
}

impl LeaseManager {
    /// Starts the thread.
    pub(super) fn spawn(placement: Placement, tasks: Tasks, context: &WorkerContext) -> Result<Self> {
        let wanted = Arc::new(Mutex::new(Arc::new(tasks)));
        let mut lease_loop = LeaseLoop {
            placement,
            context: context.clone(),
            tasks: current(&wanted),
            wanted: wanted.clone(),
            threads: Threads::default(),
            missing_since: Instant::now(),
            last_member: Instant::now(),
            rejoin: Backoff::new(FIRST_REJOIN, MAX_REJOIN),
        };
        let thread = std::thread::Builder::new()
            .name("leases".to_owned())
            .spawn(move || lease_loop.run())
            .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))?;
        Ok(Self { placement, wanted, thread })
    }

    /// Replaces the tasks.
    pub(super) fn set_tasks(&self, tasks: Tasks) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(tasks);
    }

    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits for the thread. Panics of stages are caught in their own threads; an error here is a
    /// panic of the loop itself.
    pub(super) fn join(self) -> Result<()> {
        let panicked = |_| Error::internal("worker.panic", "a thread of the worker panicked (please report this)");
        self.thread.join().map_err(panicked)
    }
}

fn current(wanted: &Mutex<Arc<Tasks>>) -> Arc<Tasks> {
    wanted.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

struct LeaseLoop {
    placement: Placement,
    context: WorkerContext,
    wanted: Arc<Mutex<Arc<Tasks>>>,
    tasks: Arc<Tasks>,
    threads: Threads,
    /// When this worker joined, or last lost a lease.
    missing_since: Instant,
    /// The last time at which this worker was a member, or started.
    last_member: Instant,
    rejoin: Backoff,
}

impl LeaseLoop {
    fn run(&mut self) {
        while !self.context.stop.is_set() && !self.is_over() {
            self.tasks = current(&self.wanted);
            if !self.has_work() {
                self.context.stop.wait_for_change(POLL, IDLE_POLL);
                continue;
            }
            let started = Instant::now();
            if let Err(error) = self.run_while_member() {
                self.threads.stop(|_| true);
                if started.elapsed() > HEALTHY {
                    self.rejoin.reset();
                }
                if !self.may_rejoin(&error) {
                    break;
                }
            }
        }
        self.threads.stop(|_| true);
    }

    /// Waits before the next attempt to join the group. If another attempt is useless, fails the
    /// tasks and returns `false`: joining would only fence the worker with the same id.
    fn may_rejoin(&mut self, error: &Error) -> bool {
        let is_permanent = error.retry == Retry::Never || self.last_member.elapsed() > MEMBERSHIP_LIMIT;
        if error.domain == Domain::Config || self.context.until_idle && is_permanent {
            for task in self.tasks.values().filter(|task| !task.status.is_over()) {
                let stage = task.status.name();
                tracing::error!(stage, %error, "failed: no lease on its task; its position is kept");
                task.status.set_state(StageState::Failed(error.to_string()));
            }
            return false;
        }
        let wait = jitter(self.rejoin.advance());
        let seconds = wait.as_secs_f64();
        tracing::warn!(%error, "lost the leases on source tasks; joining their group again in {seconds:.1} s");
        self.context.stop.wait(wait);
        true
    }

    /// Whether a task is not paused.
    fn has_work(&self) -> bool {
        self.tasks.values().any(|task| !task.status.is_paused())
    }

    fn is_over(&self) -> bool {
        self.context.until_idle && self.tasks.values().all(|task| task.status.is_over())
    }

    /// Joins the group and runs the tasks that it assigns, until every task has ended, no task is
    /// left or the worker stops. Then leaves the group.
    fn run_while_member(&mut self) -> Result<()> {
        let names = &self.context.names;
        let group = match self.placement {
            Placement::Anywhere => names.leases(),
            Placement::EveryNode => names.node_leases(),
        };
        let topics = [self.context.cluster.own_topic(TASKS)];
        let consumer = GroupConsumer::join(&self.context.cluster, &group, &names.worker, &topics, 1 << 20)?;
        self.run_owned(&consumer)?;
        // Before leaving: another worker may run a task only when this one no longer does.
        self.threads.stop(|_| true);
        consumer.leave();
        Ok(())
    }

    /// Fails when a task was fenced: only the group knows whether its lease is still this worker's.
    fn run_owned(&mut self, consumer: &GroupConsumer) -> Result<()> {
        let mut owned = BTreeSet::new();
        let mut last_check = Instant::now();
        self.missing_since = Instant::now();
        let mut batches = PartitionBatches::default();
        while !self.context.stop.is_set() && !self.is_over() {
            self.tasks = current(&self.wanted);
            if !self.has_work() && self.threads.is_empty() {
                return Ok(());
            }
            consumer.fill(&FillLimits { records: 1, bytes: 1, wait: Duration::ZERO }, &mut batches)?;
            let idle_poll = if self.context.until_idle { POLL } else { IDLE_POLL };
            self.context.stop.wait_for_change(POLL, idle_poll);
            for (_, batch) in batches.iter_mut() {
                // Records in the lease topic have no meaning.
                batch.clear();
            }
            for event in consumer.rebalance_events() {
                self.last_member = Instant::now();
                self.context.stop.announce();
                self.apply(event, &mut owned);
                // The topic has no records.
                consumer.pause();
            }
            if !owned.is_empty() {
                self.last_member = Instant::now();
            }
            if self.threads.reconcile(&self.tasks, |task| is_among(task, &owned)) {
                return Err(Error::fenced("worker.fenced", "another worker has taken over a task of this one"));
            }
            if self.context.until_idle && last_check.elapsed() > GROUP_CHECK {
                last_check = Instant::now();
                self.end_tasks_of_others(&owned, consumer);
            }
        }
        Ok(())
    }

    fn apply(&mut self, event: RebalanceEvent, owned: &mut BTreeSet<i32>) {
        match event {
            RebalanceEvent::Assigned(partitions) => owned.extend(partitions.iter().map(|assigned| assigned.partition)),
            RebalanceEvent::Revoked(partitions) => {
                let lost: BTreeSet<i32> = partitions.iter().map(|revoked| revoked.partition).collect();
                owned.retain(|partition| !lost.contains(partition));
                for task in self.threads.tasks().filter(|task| is_among(task, &lost)) {
                    tracing::info!(stage = task.status.name(), "stopping: its lease was revoked");
                }
                self.threads.stop(|task| is_among(task, &lost));
                self.missing_since = Instant::now();
            }
        }
    }

    /// Ends the tasks whose leases other workers have held for long.
    fn end_tasks_of_others(&self, owned: &BTreeSet<i32>, consumer: &GroupConsumer) {
        let waited = self.missing_since.elapsed();
        let is_missing = |task: &Task| !is_among(task, owned) && !task.status.is_over() && waited > LEFT_TO_OTHERS;
        let missing: Vec<_> = self.tasks.values().filter(|task| is_missing(task)).collect();
        if missing.is_empty() {
            return;
        }
        // After a failure, the next check asks again.
        let others = consumer.other_members().unwrap_or_default();
        missing.into_iter().for_each(|task| end_if_owned_elsewhere(task, waited, others.as_ref()));
    }
}

fn is_among(task: &Task, partitions: &BTreeSet<i32>) -> bool {
    task.lease.as_ref().is_some_and(|lease| partitions.contains(&lease.partition.partition))
}

/// Another worker finishes a task whose lease it owns. A lease without an owner returns: it was
/// lost for a moment, because this worker or the broker hung.
fn end_if_owned_elsewhere(task: &Task, waited: Duration, others: Option<&OtherMembers>) {
    let is_owned_by = |others: &OtherMembers| task.lease.as_ref().is_some_and(|lease| others.own(&lease.partition));
    if others.is_some_and(is_owned_by) {
        tracing::info!(stage = task.status.name(), "another worker runs this stage");
        task.status.set_state(StageState::Done);
    } else if waited > GIVE_UP {
        let error = "no lease on the stage's task for 5 minutes; its position is kept".to_owned();
        tracing::error!(stage = task.status.name(), error);
        task.status.set_state(StageState::Failed(error));
    }
}
