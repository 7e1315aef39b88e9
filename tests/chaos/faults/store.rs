//! An object store or a search server behind a proxy that breaks requests.

use std::time::{Duration, Instant};

use trunkline_tests::{Fault, Process, S3Faults, Skip, wait};

use crate::fixture::{Fixture, LIMIT};

/// The requests of an upload: method, and a part of path and query.
const REQUESTS: [(&str, &str); 4] =
    [("POST", "?uploads"), ("PUT", "partNumber="), ("POST", "uploadId="), ("DELETE", "uploadId=")];

fn store<'g>(fixture: &'g Fixture<'_>) -> &'g S3Faults {
    fixture.store.as_ref().expect("a path with a bucket")
}

/// The requests to a search server that repeat.
const SEARCH_REQUESTS: [(&str, &str); 1] = [("POST", "/_bulk")];

/// Loses the replies to some requests of each kind after they are executed. Sometimes the worker is
/// killed before it can retry.
pub(crate) fn lost_replies(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    lose_replies(fixture, &REQUESTS)
}

/// The same with a search server.
pub(crate) fn lost_search_replies(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    lose_replies(fixture, &SEARCH_REQUESTS)
}

/// The requests to the stage of a warehouse.
const STAGE_REQUESTS: [(&str, &str); 3] = [("PUT", ".parquet"), ("POST", "?delete"), ("GET", "list-type=2")];

/// The same with the stage of a warehouse.
pub(crate) fn lost_stage_replies(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    lose_replies(fixture, &STAGE_REQUESTS)
}

/// Kills the search server while documents are written, and starts it again on its data.
pub(crate) fn kill_search(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = fixture.start("a");
    for _ in 0..fixture.plan.times(2, 6) {
        fixture.append(500);
        let moment = fixture.random_delay(Duration::from_secs(2));
        super::let_run(moment);
        fixture.search.as_mut().expect("the path has a search server").restart();
        fixture.tally.kills += 1;
        fixture.append(200);
        fixture.wait_for_recovery(Instant::now(), &mut [&mut worker]);
    }
    fixture.stop(worker);
    Ok(())
}

fn lose_replies(fixture: &mut Fixture<'_>, requests: &[(&str, &str)]) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for _ in 0..fixture.plan.times(1, 4) {
        for (method, target) in requests {
            let before = store(fixture).broken();
            let times = 1 + fixture.random.below(3);
            for n in 0..times {
                let nth = 1 + n + fixture.random.below(2);
                store(fixture).nth(nth, method, target, Fault::DropReply);
            }
            fixture.append(300);
            let since = Instant::now();
            if fixture.random.below(3) == 0 && *method != "DELETE" {
                super::running(fixture, &mut worker);
                wait_for_broken(fixture, before + 1);
                fixture.kill(worker.take().expect("it was just started"));
            }
            fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
            fixture.tally.faults += (store(fixture).broken() - before) as u64;
        }
    }
    stop(fixture, worker)
}

/// Answers every request with 503.
pub(crate) fn overloaded(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    window(fixture, Fault::Status(503))
}

/// Answers every request with 403.
pub(crate) fn refusing(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    window(fixture, Fault::Status(403))
}

/// Delays each request by 3 s.
pub(crate) fn slow(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    window(fixture, Fault::Slow(Duration::from_secs(3)))
}

/// Breaks every request for a while. The worker starts before or during that time, and is sometimes
/// killed in it.
fn window(fixture: &mut Fixture<'_>, fault: Fault) -> Result<(), Skip> {
    let mut worker = None;
    for _ in 0..fixture.plan.times(2, 5) {
        if fixture.random.below(2) == 0 {
            super::running(fixture, &mut worker);
        }
        fixture.append(300);
        let moment = fixture.random_delay(Duration::from_secs(2));
        super::let_run(moment);
        let before = store(fixture).broken();
        let outage = store(fixture).from_now("", "", fault);
        fixture.append(300);
        super::running(fixture, &mut worker);
        let wanted = before + 2 + fixture.random.below(6) as usize;
        wait_for_broken(fixture, wanted);
        if fixture.random.below(3) == 0 {
            fixture.kill(worker.take().expect("it was just started"));
        }
        outage.end();
        fixture.tally.faults += 1;
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
    }
    stop(fixture, worker)
}

/// Waits until `wanted` requests were broken. Meanwhile it writes records, so that there are
/// requests.
fn wait_for_broken(fixture: &mut Fixture<'_>, wanted: usize) {
    let since = Instant::now();
    while wait::within(Duration::from_secs(1), || (store(fixture).broken() >= wanted).then_some(())).is_none() {
        let broken = store(fixture).broken();
        assert!(since.elapsed() < LIMIT, "{broken} of {wanted} requests were broken after {LIMIT:?}");
        fixture.append(20);
    }
}

/// Breaks connections in the middle of requests, mostly of parts.
pub(crate) fn cut(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for _ in 0..fixture.plan.times(3, 12) {
        let before = store(fixture).broken();
        for n in 0..1 + fixture.random.below(4) {
            let (method, target) = REQUESTS[[1, 1, 1, 0, 2][fixture.random.below(5) as usize]];
            store(fixture).nth(1 + n, method, target, Fault::Cut);
        }
        fixture.append(300);
        fixture.wait_for_recovery(Instant::now(), &mut [super::running(fixture, &mut worker)]);
        fixture.tally.faults += (store(fixture).broken() - before) as u64;
    }
    stop(fixture, worker)
}

fn stop(fixture: &mut Fixture<'_>, worker: Option<Process>) -> Result<(), Skip> {
    if let Some(worker) = worker {
        fixture.stop(worker);
    }
    Ok(())
}
