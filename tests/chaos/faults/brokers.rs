//! A broker that goes away, loses its replies, or answers with errors.

use std::time::{Duration, Instant};

use trunkline_tests::{Skip, Worker};

use crate::ground::Ground;

/// Requests that change something, and what they are most often followed by.
const CHANGING: [&str; 6] =
    ["Produce", "EndTxn", "TxnOffsetCommit", "AddPartitionsToTxn", "AddOffsetsToTxn", "InitProducerId"];

/// Errors that brokers give while they are well, by what they answer: coordinator loading, moved and not available, concurrent
/// transactions, request timed out, not leader.
const ERRORS: [(&str, &[i16]); 6] = [
    ("Produce", &[6, 7, 19]),
    ("EndTxn", &[14, 15, 16, 51]),
    ("TxnOffsetCommit", &[14, 15, 16]),
    ("AddPartitionsToTxn", &[14, 15, 16, 51]),
    ("AddOffsetsToTxn", &[14, 15, 16, 51]),
    ("InitProducerId", &[14, 15, 16, 51]),
];

/// Stops the broker and starts it again, under a worker that goes on.
pub(crate) fn restart(ground: &mut Ground<'_>) -> Result<(), Skip> {
    away(ground, |ground| ground.broker.stop())
}

/// The same with kill -9, and now and then the worker dies with it.
pub(crate) fn kill(ground: &mut Ground<'_>) -> Result<(), Skip> {
    away(ground, |ground| {
        ground.broker.kill9();
        ground.tally.kills += 1;
    })
}

fn away(ground: &mut Ground<'_>, mut go: impl FnMut(&mut Ground<'_>)) -> Result<(), Skip> {
    let mut worker = Some(ground.start("a"));
    for _ in 0..ground.plan.times(3, 8) {
        ground.append(200);
        let moment = ground.moment(Duration::from_secs(3));
        super::hold(moment);
        ground.append(200);
        go(ground);
        ground.tally.faults += 1;
        if ground.random.below(3) == 0
            && let Some(worker) = worker.take()
        {
            ground.kill(worker);
        }
        ground.append(200);
        let gone = ground.moment(Duration::from_secs(2));
        super::hold(gone);
        ground.broker.restart();
        let since = Instant::now();
        if ground.random.below(3) > 0 {
            ground.recover(since, &mut [super::running(ground, &mut worker)]);
        }
    }
    let since = Instant::now();
    ground.recover(since, &mut [super::running(ground, &mut worker)]);
    stop(ground, worker);
    Ok(())
}

/// The reply to each kind of request is lost at one or two of the next; the work was done.
pub(crate) fn lost_replies(ground: &mut Ground<'_>) -> Result<(), Skip> {
    injected(ground, |ground, api, nth| {
        match ground.random.below(4) {
            0 => ground.broker.delay_reply(api, nth, Duration::from_millis(100 + ground.random.below(8_000))),
            _ => ground.broker.drop_reply(api, nth),
        }
        Ok(())
    })
}

/// Each kind of request is answered with an error at one or two of the next; nothing was done.
pub(crate) fn errors(ground: &mut Ground<'_>) -> Result<(), Skip> {
    injected(ground, |ground, api, nth| {
        let codes = ERRORS.iter().find(|(name, _)| *name == api).map_or(&[][..], |(_, codes)| codes);
        ground.broker.answer_error(api, nth, codes[ground.random.below(codes.len() as u64) as usize])
    })
}

fn injected(
    ground: &mut Ground<'_>,
    mut inject: impl FnMut(&mut Ground<'_>, &'static str, u64) -> Result<(), Skip>,
) -> Result<(), Skip> {
    let mut worker = Some(ground.start("a"));
    for _ in 0..ground.plan.times(1, 4) {
        for api in CHANGING {
            // A producer is initialised when a stage starts: only then is there something to lose.
            let dies = api == "InitProducerId" || ground.random.below(4) == 0;
            for _ in 0..1 + ground.random.below(2) {
                let nth = 1 + ground.random.below(4);
                inject(ground, api, nth)?;
                ground.tally.faults += 1;
            }
            if dies && let Some(worker) = worker.take() {
                ground.append(100);
                let moment = ground.moment(Duration::from_secs(2));
                super::hold(moment);
                ground.kill(worker);
            }
            let since = Instant::now();
            for _ in 0..ground.plan.times(2, 4) {
                ground.append(100);
                ground.recover(since, &mut [super::running(ground, &mut worker)]);
            }
        }
    }
    // Those that did not come were none.
    ground.tally.faults -= ground.broker.pending();
    ground.broker.clear();
    stop(ground, worker);
    Ok(())
}

fn stop(ground: &mut Ground<'_>, worker: Option<Worker>) {
    if let Some(worker) = worker {
        ground.stop(worker);
    }
}
