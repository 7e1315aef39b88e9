//! Several workers on one pipeline.

use std::time::{Duration, Instant};

use trunkline_connector::failpoint::FAILPOINTS;
use trunkline_tests::{Fault, Skip, Worker, wait};

use super::steps::is_reachable;
use crate::ground::{Ground, LONG};

/// Where a worker that hangs does the most harm when it wakes: with something in its hands.
const WORTHWHILE: [&str; 5] = ["source.", "mysql.", "transform.", "sink.", "producer."];

/// How long a step lets itself be waited for; then the worker is stopped wherever it is.
const COMES_ROUND: Duration = Duration::from_secs(8);

/// Steps at which it is worth while to stop or to die.
fn steps(ground: &Ground<'_>) -> Vec<&'static str> {
    let path = ground.plan.path;
    let names = FAILPOINTS.iter().filter(|point| is_reachable(point, path)).map(|point| point.name);
    names.filter(|name| WORTHWHILE.iter().any(|prefix| name.starts_with(prefix)) && !name.contains(".init.")).collect()
}

/// A step that the seed chooses, and at which time round.
fn step(ground: &mut Ground<'_>) -> (&'static str, u64) {
    let steps = steps(ground);
    (steps[ground.random.below(steps.len() as u64) as usize], 1 + ground.random.below(6))
}

/// Starts a worker and writes lines until it stops at a step; if it does not get there, stops it wherever it is.
fn start_and_stop(ground: &mut Ground<'_>, worker: &str, (step, nth): (&str, u64)) -> Worker {
    if step.starts_with("mysql.") {
        ground.read_again();
    }
    let mut zombie = ground.start_with(worker, &format!("{step}=stop@{nth}"));
    let since = Instant::now();
    while !zombie.is_stopped() && since.elapsed() < COMES_ROUND {
        ground.append(20);
        wait::within(Duration::from_millis(300), || zombie.is_stopped().then_some(()));
    }
    if !zombie.is_stopped() {
        zombie.sigstop();
    }
    ground.tally.faults += 1;
    zombie
}

/// Two workers; one stops at a step until the other one has done its work, and then goes on as if nothing had happened.
pub(crate) fn zombie(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let mut other = ground.start("b");
    for _ in 0..ground.plan.times(1, 4) {
        let at = step(ground);
        let mut zombie = start_and_stop(ground, "a", at);
        ground.append(200);
        // From the moment it hangs: sessions have to time out before the other one may take over.
        ground.recover(Instant::now(), &mut [&mut other]);
        zombie.sigcont();
        ground.append(200);
        ground.recover(Instant::now(), &mut [&mut other, &mut zombie]);
        // Now and then it is the zombie that goes on alone.
        if !ground.plan.short && ground.random.below(2) == 0 {
            ground.stop(other);
            ground.append(200);
            ground.recover(Instant::now(), &mut [&mut zombie]);
            other = ground.start("b");
        }
        ground.stop(zombie);
    }
    ground.stop(other);
    Ok(())
}

const SLOW: Fault = Fault::Slow(Duration::from_millis(700));

/// How long a worker that takes over may live: it waits for the other one's sessions first.
const TAKES_OVER: Duration = Duration::from_secs(25);

/// The same, but who has taken over dies in the middle of it, and the one that was stopped is the first to go on.
pub(crate) fn zombie_and_kill(ground: &mut Ground<'_>) -> Result<(), Skip> {
    for round in 0..ground.plan.times(2, 6) {
        // The first rounds are the worst there is: one about to write over the promise that the other leaves behind.
        let (stops, dies, all_gone) = match round {
            0 => (("sink.plan.after", 1), ("sink.intent.after", 1), false),
            1 => (("sink.plan.recorded", 1), ("sink.intent.after", 1), true),
            _ => (step(ground), step(ground), ground.random.below(2) == 0),
        };
        ground.append(200);
        let mut zombie = start_and_stop(ground, "a", stops);
        ground.append(200);
        let mut other = ground.start_with("b", &format!("{}=kill@{}", dies.0, dies.1));
        let died = wait::within(TAKES_OVER, || (!other.runs()).then_some(()));
        let exit = other.kill9();
        assert!(died.is_none() || exit.signal == Some(libc::SIGABRT), "it ended by itself: {}", exit.describe());
        ground.ended(&exit);
        ground.tally.kills += 1;
        if all_gone {
            // Nobody is left in its groups then.
            super::hold(Duration::from_secs(12));
        }
        // Between waking and its next transaction its client has time to learn that it is in no group any more.
        let slow = ground.store.as_ref().filter(|_| all_gone).map(|store| store.from_now("", "", SLOW));
        zombie.sigcont();
        ground.append(200);
        ground.recover(Instant::now(), &mut [&mut zombie]);
        drop(slow);
        ground.stop(zombie);
    }
    Ok(())
}

/// A worker joins, and the one that is to give it a share of its partitions dies before it has done so, and is back at once. It is a static
/// member: the broker gives it the share that it was to keep, and asks nobody what became of the rest.
pub(crate) fn give_away(ground: &mut Ground<'_>) -> Result<(), Skip> {
    ground.append(100);
    // First until all topics are there: where a pattern finds them one after another, partitions move while the worker is still alone. Back at once
    // after a kill it is who it was in its groups, and nothing moves. All of this once: in groups that both workers have been in nothing need move.
    let mut gives = ground.start("a");
    ground.recover(Instant::now(), &mut [&mut gives]);
    ground.kill(gives);
    let mut gives = ground.start_with("a", "consumer.revoke.before=kill");
    ground.append(100);
    ground.recover(Instant::now(), &mut [&mut gives]);
    let mut joins = ground.start("b");
    ground.append(100);
    let exit = gives.wait(LONG);
    assert_eq!(exit.signal, Some(libc::SIGABRT), "it ended by itself: {}", exit.describe());
    ground.ended(&exit);
    ground.tally.kills += 1;
    ground.append(100);
    let mut back = ground.start("a");
    ground.recover(Instant::now(), &mut [&mut back, &mut joins]);
    ground.stop(joins);
    ground.stop(back);
    Ok(())
}

/// One worker stays; every second another one joins, leaves, dies, or dies in the middle of giving a partition away.
pub(crate) fn storm(ground: &mut Ground<'_>) -> Result<(), Skip> {
    const JOINS: [&str; 3] = ["b", "c", "d"];
    let mut stays = ground.start("a");
    let mut others: [Option<Worker>; 3] = [None, None, None];
    for _ in 0..ground.plan.times(10, 40) {
        ground.append(100);
        super::hold(Duration::from_secs(1));
        let which = ground.random.below(3) as usize;
        others[which] = match others[which].take() {
            None if ground.random.below(3) == 0 => {
                let point = ["transform.rollback.before", "transform.rollback.after", "producer.abort.before"];
                let point = point[ground.random.below(3) as usize];
                Some(ground.start_with(JOINS[which], &format!("{point}=kill")))
            }
            None => Some(ground.start(JOINS[which])),
            Some(mut worker) => {
                if !worker.runs() {
                    let exit = worker.wait(LONG);
                    assert_eq!(exit.signal, Some(libc::SIGABRT), "it ended by itself: {}", exit.describe());
                    ground.ended(&exit);
                    ground.tally.kills += 1;
                } else if ground.random.below(2) == 0 {
                    worker.sigterm();
                    let exit = worker.wait(LONG);
                    // One that was to die while it gives a partition away may do so on its way out, and one that had not even begun to
                    // listen dies of the signal.
                    let unheard = exit.signal == Some(libc::SIGTERM) && exit.stderr.is_empty();
                    let ended = exit.code == Some(0) || exit.signal == Some(libc::SIGABRT) || unheard;
                    assert!(ended, "{}", exit.describe());
                    ground.ended(&exit);
                } else {
                    let exit = worker.kill9();
                    ground.ended(&exit);
                    ground.tally.kills += 1;
                }
                ground.tally.faults += 1;
                None
            }
        };
    }
    for worker in others.iter_mut().filter_map(Option::take) {
        let exit = worker.kill9();
        ground.ended(&exit);
        ground.tally.kills += 1;
    }
    ground.append(100);
    ground.recover(Instant::now(), &mut [&mut stays]);
    ground.stop(stays);
    Ok(())
}
