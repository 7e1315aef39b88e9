//! Leases on source tasks: the partitions of `_trunkline.tasks`, shared out by a consumer group. Whoever is assigned the partition that a
//! task hashes to runs it.
//!
//! A lease decides who *should* run a task, so that two workers do not fight; that no more than one *can* write is decided by the
//! transactional id (I4). Sources that run on every node share their leases among the workers of that node, the others among all.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, Placement, Result};

use crate::checkpoint::{TASKS, lease_of};
use crate::kafka::{ClaimBatches, FillLimits, GroupConsumer, Rebalanced};
use crate::stage::{Ended, Environment, SourceStage, StageState, StageStatus, Stop, supervise};

/// How soon an assignment is acted on.
const POLL: Duration = Duration::from_millis(20);

/// With `--until-idle`, a task whose lease is still elsewhere after this time is another worker's to finish.
const NOT_OURS: Duration = Duration::from_secs(15);

struct Leased {
    stage: Arc<SourceStage>,
    status: Arc<StageStatus>,
    partition: i32,
    running: Option<Running>,
}

struct Running {
    stop: Stop,
    thread: JoinHandle<Ended>,
}

/// Runs the tasks whose leases this worker holds, until stopped or (`until_idle`) all are over.
pub(super) fn keep(placement: Placement, sources: &[(Arc<SourceStage>, Arc<StageStatus>)], environment: &Environment) {
    let mut tasks: Vec<Leased> = sources
        .iter()
        .map(|(stage, status)| {
            let task = environment.names.component(&stage.pipeline, &stage.plan.name);
            Leased { stage: stage.clone(), status: status.clone(), partition: lease_of(&task), running: None }
        })
        .collect();
    while !environment.stop.is_set() && !is_over(&tasks, environment) {
        if let Err(error) = hold(placement, &mut tasks, environment) {
            tracing::warn!(%error, "lost the leases on source tasks; asking for them again");
            stop_all(&mut tasks, |_| true);
            environment.stop.wait(Duration::from_secs(1));
        }
    }
    stop_all(&mut tasks, |_| true);
}

fn is_over(tasks: &[Leased], environment: &Environment) -> bool {
    environment.until_idle && tasks.iter().all(|task| task.status.is_over())
}

/// Joins the group and runs what it assigns, until all is over or the worker stops; then leaves the group.
fn hold(placement: Placement, tasks: &mut [Leased], environment: &Environment) -> Result<()> {
    let names = &environment.names;
    let group = match placement {
        Placement::Anywhere => format!("{}.tasks", names.cluster),
        Placement::EveryNode => format!("{}.tasks.{}", names.cluster, names.node),
    };
    let consumer = GroupConsumer::join(&environment.cluster, &group, &names.worker, &[TASKS.to_owned()], 1 << 20)?;
    run_held(&consumer, tasks, environment)?;
    // Only those that run no task any more may hand it to others.
    stop_all(tasks, |_| true);
    consumer.leave();
    Ok(())
}

/// Fails when a task was fenced: then the group has to be asked again whose it is.
fn run_held(consumer: &GroupConsumer, tasks: &mut [Leased], environment: &Environment) -> Result<()> {
    // Since the group was joined, or a lease was taken away: it may come back, of a worker whose machine was too busy to answer the group in time.
    let mut asked = Instant::now();
    let mut held = BTreeSet::new();
    let mut batches = ClaimBatches::default();
    while !environment.stop.is_set() && !is_over(tasks, environment) {
        // Waiting inside the poll would cost a twentieth of a core (see `TransactionalProducer`).
        consumer.fill(&FillLimits { records: 1, bytes: 1, wait: Duration::ZERO }, &mut batches)?;
        environment.stop.wait(POLL);
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
                    stop_all(tasks, |task| lost.contains(&task.partition));
                    // Not before: a task that fails may take its time to stop.
                    asked = Instant::now();
                }
            }
        }
        for task in tasks.iter_mut() {
            if let Some(running) = task.running.take_if(|running| running.thread.is_finished())
                && running.thread.join().is_ok_and(|ended| ended == Ended::Fenced)
            {
                return Err(Error::fenced("worker.fenced", "another worker has taken over a task of this one"));
            }
            if task.status.is_over() || task.running.is_some() {
                continue;
            }
            if held.contains(&task.partition) {
                task.running = Some(start(task, environment)?);
            } else if environment.until_idle && asked.elapsed() > NOT_OURS {
                tracing::info!(stage = task.status.name(), "another worker of this node runs it");
                task.status.set_state(StageState::Done);
            }
        }
    }
    Ok(())
}

fn start(task: &Leased, environment: &Environment) -> Result<Running> {
    let stop = environment.stop.child();
    let (stage, status, environment, own) =
        (task.stage.clone(), task.status.clone(), environment.clone(), stop.clone());
    let thread = std::thread::Builder::new()
        .name(status.name())
        .spawn(move || supervise(stage.as_ref(), true, &environment, &own, &status))
        .map_err(|error| Error::external("worker.thread", format!("cannot start a thread: {error}")))?;
    Ok(Running { stop, thread })
}

/// Stops tasks and waits for them: each commits what it has. Their statuses go back to waiting unless the worker itself stops.
fn stop_all(tasks: &mut [Leased], which: impl Fn(&Leased) -> bool) {
    let mut stopping = Vec::new();
    for task in tasks.iter_mut().filter(|task| which(task)) {
        if let Some(running) = task.running.take() {
            running.stop.set();
            stopping.push((task.status.clone(), running.thread));
        }
    }
    for (status, thread) in stopping {
        let before = status.is_over();
        let _ = thread.join();
        if !before && status.state() == StageState::Done {
            status.set_state(StageState::Waiting);
        }
    }
}
