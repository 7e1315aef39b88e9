//! A broker that stops, loses its replies, or answers with errors.

use std::time::{Duration, Instant};

use trunkline_tests::{Process, Skip};

use crate::fixture::Fixture;

/// The requests that change state.
const WRITE_REQUESTS: [&str; 6] =
    ["Produce", "EndTxn", "TxnOffsetCommit", "AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"];

/// Transient errors of each request: coordinator loading (14), not available (15) and moved (16),
/// concurrent transactions (51), timeout (7), not leader (6), not enough replicas (19).
const ERRORS: [(&str, &[i16]); 6] = [
    ("Produce", &[6, 7, 19]),
    ("EndTxn", &[14, 15, 16, 51]),
    ("TxnOffsetCommit", &[14, 15, 16]),
    ("AddPartitionsToTxn", &[14, 15, 16, 51]),
    ("AddOffsetsToTxn", &[14, 15, 16, 51]),
    ("InitProducerId", &[14, 15, 16, 51]),
];

/// Stops the broker and starts it again while a worker runs.
pub(crate) fn restart(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    take_down(fixture, |fixture| fixture.broker.stop())
}

/// Kills the broker and starts it again while a worker runs.
pub(crate) fn kill(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    take_down(fixture, |fixture| {
        fixture.broker.kill9();
        fixture.tally.kills += 1;
    })
}

/// Takes the broker down with `stop` several times; sometimes the worker is killed too.
fn take_down(fixture: &mut Fixture<'_>, mut stop_broker: impl FnMut(&mut Fixture<'_>)) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for _ in 0..fixture.plan.times(3, 8) {
        fixture.append(200);
        let moment = fixture.random_delay(Duration::from_secs(3));
        super::let_run(moment);
        fixture.append(200);
        stop_broker(fixture);
        fixture.tally.faults += 1;
        if fixture.random.below(3) == 0
            && let Some(worker) = worker.take()
        {
            fixture.kill(worker);
        }
        fixture.append(200);
        let downtime = fixture.random_delay(Duration::from_secs(2));
        super::let_run(downtime);
        fixture.broker.restart();
        let since = Instant::now();
        if fixture.random.below(3) > 0 {
            fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
        }
    }
    let since = Instant::now();
    fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
    stop(fixture, worker);
    Ok(())
}

/// Loses or delays the replies to one or two of the next requests of each kind.
pub(crate) fn lost_replies(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    inject(fixture, |fixture, api, nth| {
        match fixture.random.below(4) {
            0 => fixture.broker.delay_reply(api, nth, Duration::from_millis(100 + fixture.random.below(8_000))),
            _ => fixture.broker.drop_reply(api, nth),
        }
        Ok(())
    })
}

/// Answers one or two of the next requests of each kind with an error, without executing them.
pub(crate) fn errors(fixture: &mut Fixture<'_>) -> Result<(), Skip> {
    inject(fixture, |fixture, api, nth| {
        let codes = ERRORS.iter().find(|(name, _)| *name == api).map_or(&[][..], |(_, codes)| codes);
        fixture.broker.answer_error(api, nth, codes[fixture.random.below(codes.len() as u64) as usize])
    })
}

fn inject(
    fixture: &mut Fixture<'_>,
    mut inject_one: impl FnMut(&mut Fixture<'_>, &'static str, u64) -> Result<(), Skip>,
) -> Result<(), Skip> {
    let mut worker = Some(fixture.start("a"));
    for _ in 0..fixture.plan.times(1, 4) {
        for api in WRITE_REQUESTS {
            // A producer is initialised only when a stage starts.
            let dies = api == "InitProducerId" || fixture.random.below(4) == 0;
            for _ in 0..1 + fixture.random.below(2) {
                let nth = 1 + fixture.random.below(4);
                inject_one(fixture, api, nth)?;
                fixture.tally.faults += 1;
            }
            if dies && let Some(worker) = worker.take() {
                fixture.append(100);
                let moment = fixture.random_delay(Duration::from_secs(2));
                super::let_run(moment);
                fixture.kill(worker);
            }
            let since = Instant::now();
            for _ in 0..fixture.plan.times(2, 4) {
                fixture.append(100);
                fixture.wait_for_recovery(since, &mut [super::running(fixture, &mut worker)]);
            }
        }
    }
    // Faults that did not apply do not count.
    fixture.tally.faults -= fixture.broker.pending();
    fixture.broker.clear();
    stop(fixture, worker);
    Ok(())
}

fn stop(fixture: &mut Fixture<'_>, worker: Option<Process>) {
    if let Some(worker) = worker {
        fixture.stop(worker);
    }
}
