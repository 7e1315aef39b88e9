//! An object store behind a proxy that breaks requests.

use std::time::{Duration, Instant};

use trunkline_tests::{Fault, S3Faults, Skip, Worker, wait};

use crate::ground::{Ground, LONG};

/// What tells the requests of an upload apart: the method, and a part of path and query.
const REQUESTS: [(&str, &str); 4] =
    [("POST", "?uploads"), ("PUT", "partNumber="), ("POST", "uploadId="), ("DELETE", "uploadId=")];

fn store<'g>(ground: &'g Ground<'_>) -> &'g S3Faults {
    ground.store.as_ref().expect("a path that ends in a bucket")
}

/// Each kind of request is carried out, and its reply lost, at some of the next; now and then the worker dies before it can ask again.
pub(crate) fn lost_replies(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let mut worker = Some(ground.start("a"));
    for _ in 0..ground.plan.times(1, 4) {
        for (method, target) in REQUESTS {
            let before = store(ground).broken();
            let times = 1 + ground.random.below(3);
            for n in 0..times {
                let nth = 1 + n + ground.random.below(2);
                store(ground).nth(nth, method, target, Fault::DropReply);
            }
            ground.append(300);
            let since = Instant::now();
            if ground.random.below(3) == 0 && method != "DELETE" {
                super::running(ground, &mut worker);
                meets(ground, before + 1);
                ground.kill(worker.take().expect("it was just started"));
            }
            ground.recover(since, &mut [super::running(ground, &mut worker)]);
            ground.tally.faults += (store(ground).broken() - before) as u64;
        }
    }
    stop(ground, worker)
}

/// 503 for everything.
pub(crate) fn overloaded(ground: &mut Ground<'_>) -> Result<(), Skip> {
    window(ground, Fault::Status(503))
}

/// 403 for everything: somebody has to set it right.
pub(crate) fn refusing(ground: &mut Ground<'_>) -> Result<(), Skip> {
    window(ground, Fault::Status(403))
}

/// Each request takes 3 s.
pub(crate) fn slow(ground: &mut Ground<'_>) -> Result<(), Skip> {
    window(ground, Fault::Slow(Duration::from_secs(3)))
}

/// A while in which every request is broken, of a worker that starts in it, runs into it, or dies in it.
fn window(ground: &mut Ground<'_>, fault: Fault) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..ground.plan.times(2, 5) {
        if ground.random.below(2) == 0 {
            super::running(ground, &mut worker);
        }
        ground.append(300);
        let moment = ground.moment(Duration::from_secs(2));
        super::hold(moment);
        let before = store(ground).broken();
        let broken = store(ground).from_now("", "", fault);
        ground.append(300);
        super::running(ground, &mut worker);
        let wanted = before + 2 + ground.random.below(6) as usize;
        meets(ground, wanted);
        if ground.random.below(3) == 0 {
            ground.kill(worker.take().expect("it was just started"));
        }
        broken.lift();
        ground.tally.faults += 1;
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
    }
    stop(ground, worker)
}

/// Waits until so many requests were broken; writes lines meanwhile, so that there are some to break.
fn meets(ground: &mut Ground<'_>, wanted: usize) {
    let since = Instant::now();
    while wait::within(Duration::from_secs(1), || (store(ground).broken() >= wanted).then_some(())).is_none() {
        let broken = store(ground).broken();
        assert!(since.elapsed() < LONG, "{broken} requests were broken after {LONG:?}, not {wanted}");
        ground.append(20);
    }
}

/// Connections break in the middle of requests, parts above all.
pub(crate) fn cut(ground: &mut Ground<'_>) -> Result<(), Skip> {
    let mut worker = Some(ground.start("a"));
    for _ in 0..ground.plan.times(3, 12) {
        let before = store(ground).broken();
        for n in 0..1 + ground.random.below(4) {
            let (method, target) = REQUESTS[[1, 1, 1, 0, 2][ground.random.below(5) as usize]];
            store(ground).nth(1 + n, method, target, Fault::Cut);
        }
        ground.append(300);
        ground.recover(Instant::now(), &mut [super::running(ground, &mut worker)]);
        ground.tally.faults += (store(ground).broken() - before) as u64;
    }
    stop(ground, worker)
}

fn stop(ground: &mut Ground<'_>, worker: Option<Worker>) -> Result<(), Skip> {
    if let Some(worker) = worker {
        ground.stop(worker);
    }
    Ok(())
}
