//! Several workers on one pipeline.

use std::time::{Duration, Instant};

use trunkline_connector::failpoint::FAILPOINTS;
use trunkline_tests::{Fault, Process, Skip, wait};

use super::steps::is_reachable;
use crate::fixture::{Fixture, LIMIT};

/// Steps at which a hung worker does the most harm when it resumes: it holds records or a
/// transaction.
const HARMFUL_STEPS: [&str; 6] = ["source.", "mysql.", "transform.", "sink.", "producer.", "warehouse."];

/// How long a worker may take to reach a step. Then it is suspended at any place.
const REACH_LIMIT: Duration = Duration::from_secs(8);

/// Steps at which a worker hangs or dies.
fn steps(fixture: &Fixture<'_>) -> Vec<&'static str> {
    let path = fixture.plan.path;
    let names = FAILPOINTS.iter().filter(|point| is_reachable(point, path)).map(|point| point.name);
    let is_harmful = |name: &&str| HARMFUL_STEPS.iter().any(|prefix| name.starts_with(prefix));
    names.filter(is_harmful).filter(|name| !name.contains(".init.")).collect()
}

/// A random step, and which time the worker reaches it.
fn random_step(fixture: &mut Fixture<'_>) -> (&'static str, u64) {
    let steps = steps(fixture);
    (steps[fixture.random.below(steps.len() as u64) as usize], 1 + fixture.random.below(6))
}

/// Starts a worker and writes records until it is suspended at a step. If it does not reach the
/// step, suspends it at any place.
fn start_and_suspend(fixture: &mut Fixture<'_>, worker: &str, (step, nth): (&str, u64)) -> Process {
    if step.starts_with("mysql.") {
        fixture.request_snapshot();
    }
    let mut zombie = fixture.start_with(worker, &format!("{step}=stop@{nth}"));
    let since = Instant::now();
    while !zombie.is_suspended() && since.elapsed() < REACH_LIMIT {
        fixture.append(20);
        wait::within(Duration::from_millis(300), || zombie.is_suspended().then_some(()));
    }
    if !zombie.is_suspended() {
        zombie.sigstop();
    }
    fixture.tally.faults += 1;
    zombie
}

/// Two workers: one hangs at a step until the other one has taken over its work, and then resumes.
pub(crate) fn zombie(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut other = fixture.start("b");
    for _ in 0..fixture.plan.times(1, 4) {
        let step = random_step(fixture);
        let mut zombie = start_and_suspend(fixture, "a", step);
        fixture.append(200);
        // The other worker ends the hung one's session, which may hold locks of a warehouse.
        fixture.wait_for_recovery(Instant::now(), &mut [&mut other]);
        zombie.sigcont();
        fixture.append(200);
        fixture.wait_for_recovery(Instant::now(), &mut [&mut other, &mut zombie]);
        // Sometimes the resumed worker continues alone.
        if !fixture.plan.short && fixture.random.below(2) == 0 {
            fixture.stop(other);
            fixture.append(200);
            fixture.wait_for_recovery(Instant::now(), &mut [&mut zombie]);
            other = fixture.start("b");
        }
        fixture.stop(zombie);
    }
    fixture.stop(other);
    Ok(())
}

const SLOW: Fault = Fault::Slow(Duration::from_millis(700));

/// How long a successor may run: it first waits until the other worker's sessions end.
const TAKEOVER_LIMIT: Duration = Duration::from_secs(25);

/// One worker hangs at a step, its successor dies at a step, and then the first one resumes.
pub(crate) fn zombie_and_kill(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    for round in 0..fixture.plan.times(2, 6) {
        // The first rounds are the worst cases: a worker that is about to overwrite the prepared
        // intent of its successor.
        let (hangs, dies, wait_for_empty_groups) = match round {
            0 => (("sink.seal.after", 1), ("sink.intent.after", 1), false),
            1 => (("sink.seal.recorded", 1), ("sink.intent.after", 1), true),
            _ => (random_step(fixture), random_step(fixture), fixture.random.below(2) == 0),
        };
        fixture.append(200);
        let mut zombie = start_and_suspend(fixture, "a", hangs);
        fixture.append(200);
        let mut successor = fixture.start_with("b", &format!("{}=kill@{}", dies.0, dies.1));
        let died = wait::within(TAKEOVER_LIMIT, || (!successor.is_running()).then_some(()));
        let exit = successor.kill9();
        let ended_as_planned = died.is_none() || exit.signal == Some(libc::SIGABRT);
        assert!(ended_as_planned, "the worker ended by itself: {}", exit.describe());
        fixture.record_exit(&exit);
        fixture.tally.kills += 1;
        if wait_for_empty_groups {
            // After this time the successor's sessions have ended too.
            super::let_run(Duration::from_secs(12));
        }
        // Slow requests give the resumed worker's client time to find out, before its next
        // transaction, that it is no member of its groups any more.
        let slow = fixture.store.as_ref().filter(|_| wait_for_empty_groups).map(|store| store.from_now("", "", SLOW));
        zombie.sigcont();
        fixture.append(200);
        fixture.wait_for_recovery(Instant::now(), &mut [&mut zombie]);
        drop(slow);
        fixture.stop(zombie);
    }
    Ok(())
}

/// A worker joins, and the one that must give it partitions dies before it has done so, and
/// restarts at once. As a static member it receives the partitions that it was to keep; the broker
/// does not assign the others again.
pub(crate) fn give_away(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    fixture.append(100);
    // The first worker runs until all topics exist: while a pattern still finds new topics,
    // partitions move although the worker is alone. After a kill and an immediate restart it is the
    // same static member, and no partition moves. This works only once: in groups that both workers
    // have joined before, no partition has to move.
    let mut gives = fixture.start("a");
    fixture.wait_for_recovery(Instant::now(), &mut [&mut gives]);
    fixture.kill(gives);
    let mut gives = fixture.start_with("a", "consumer.revoke.before=kill");
    fixture.append(100);
    fixture.wait_for_recovery(Instant::now(), &mut [&mut gives]);
    let mut joins = fixture.start("b");
    fixture.append(100);
    let exit = gives.wait(LIMIT);
    assert_eq!(exit.signal, Some(libc::SIGABRT), "the worker ended by itself: {}", exit.describe());
    fixture.record_exit(&exit);
    fixture.tally.kills += 1;
    fixture.append(100);
    let mut back = fixture.start("a");
    fixture.wait_for_recovery(Instant::now(), &mut [&mut back, &mut joins]);
    fixture.stop(joins);
    fixture.stop(back);
    Ok(())
}

/// One worker stays. Every second another one joins, leaves, is killed, or dies while it gives up a
/// partition.
pub(crate) fn storm(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    const JOINS: [&str; 3] = ["b", "c", "d"];
    let mut stays = fixture.start("a");
    let mut others: [Option<Process>; 3] = [None, None, None];
    for _ in 0..fixture.plan.times(10, 40) {
        fixture.append(100);
        super::let_run(Duration::from_secs(1));
        let which = fixture.random.below(3) as usize;
        others[which] = match others[which].take() {
            None if fixture.random.below(3) == 0 => {
                let point = ["transform.abort.before", "transform.abort.after", "producer.abort.before"];
                let point = point[fixture.random.below(3) as usize];
                Some(fixture.start_with(JOINS[which], &format!("{point}=kill")))
            }
            None => Some(fixture.start(JOINS[which])),
            Some(mut worker) => {
                if !worker.is_running() {
                    let exit = worker.wait(LIMIT);
                    assert_eq!(exit.signal, Some(libc::SIGABRT), "the worker ended by itself: {}", exit.describe());
                    fixture.record_exit(&exit);
                    fixture.tally.kills += 1;
                } else if fixture.random.below(2) == 0 {
                    worker.sigterm();
                    let exit = worker.wait(LIMIT);
                    // A failpoint at giving up a partition may kill it during its shutdown. Before
                    // it has installed its signal handler, the signal itself kills it.
                    let has_no_handler = exit.signal == Some(libc::SIGTERM) && exit.stderr.is_empty();
                    let ended = exit.code == Some(0) || exit.signal == Some(libc::SIGABRT) || has_no_handler;
                    assert!(ended, "{}", exit.describe());
                    fixture.record_exit(&exit);
                } else {
                    let exit = worker.kill9();
                    fixture.record_exit(&exit);
                    fixture.tally.kills += 1;
                }
                fixture.tally.faults += 1;
                None
            }
        };
    }
    for worker in others.iter_mut().filter_map(Option::take) {
        let exit = worker.kill9();
        fixture.record_exit(&exit);
        fixture.tally.kills += 1;
    }
    fixture.append(100);
    fixture.wait_for_recovery(Instant::now(), &mut [&mut stays]);
    fixture.stop(stays);
    Ok(())
}
