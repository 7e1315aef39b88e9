//! The thread of a source task that owns the source: fills batches for the writer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use trunkline_connector::{Fill, MemoryBudget, PositionChange, Reservation, Result, Source, SourceBatch};

use super::status::StageStatus;
use super::stop_signal::StopSignal;

/// Deadline of a fill: bounds how late a stop is noticed by a source that reads.
const POLL: Duration = Duration::from_millis(100);

/// How long a source without data waits that a request to stop can wake. Meanwhile it learns of no
/// commit.
const IDLE_WAIT: Duration = Duration::from_secs(5);

/// A source that has caught up and gave fewer bytes than this fills its next batch shortly before
/// the next commit: what it reads earlier becomes visible no sooner, and each batch wakes threads.
const GATHERED_BYTES: usize = 64 << 10;

/// How long before the next commit that batch is filled.
const BEFORE_COMMIT: Duration = Duration::from_millis(10);

/// The source looks again after this time, however far away the next commit is.
const MAX_GATHERING: Duration = Duration::from_millis(250);

/// Limit on the records of a batch.
const BATCH_RECORDS: usize = 10_000;

/// What the writer has committed.
pub(super) struct Committed {
    /// Position changes, for `Source::committed`.
    pub(super) changes: Vec<PositionChange>,
    /// The earliest time of the next commit; `None` if it may follow at once.
    pub(super) next: Option<Instant>,
}

/// A filled batch for the writer.
pub(super) struct Filled {
    pub(super) batch: SourceBatch,
    pub(super) caught_up: bool,
    /// Held until the batch was produced.
    pub(super) _reservation: Reservation,
}

pub(super) struct Reader<'a> {
    pub(super) source: Box<dyn Source>,
    /// Batches of one record.
    pub(super) one_by_one: bool,
    /// Limit on the bytes of a batch.
    pub(super) batch_bytes: usize,
    /// The run ends once the source has caught up.
    pub(super) until_idle: bool,
    pub(super) budget: &'a MemoryBudget,
    pub(super) status: &'a StageStatus,
    pub(super) stop: &'a StopSignal,
    /// The writer has ended.
    pub(super) abandoned: &'a AtomicBool,
    /// What the writer has committed.
    pub(super) committed: Receiver<Committed>,
}

impl Reader<'_> {
    /// Fills batches until stopped, and hands over those with content. An error is the last
    /// message.
    pub(super) fn run(mut self, full: &SyncSender<Result<Filled>>, empty: &Receiver<SourceBatch>) {
        let max_wait = if self.source.waker().is_some() { IDLE_WAIT } else { Duration::ZERO };
        let max_records = if self.one_by_one { 1 } else { BATCH_RECORDS };
        let can_gather = !max_wait.is_zero() && !self.one_by_one && !self.until_idle;
        let (mut next_commit, mut gathers) = (None, false);
        while !self.stop.is_set() && !self.abandoned.load(Ordering::Relaxed) {
            if let Err(error) = self.learn_of_commits(&mut next_commit) {
                let _ = full.send(Err(error));
                return;
            }
            if std::mem::take(&mut gathers) && self.stop.wait(gathering_time(next_commit)) {
                return;
            }
            // A small reservation waits while the budget is exhausted; the fill then sets the true
            // size.
            let Some(mut reservation) = self.budget.reserve(64 << 10, Instant::now() + POLL) else { continue };
            let mut batch = empty.try_recv().unwrap_or_default();
            (batch.max_bytes, batch.max_records, batch.max_wait) = (self.batch_bytes, max_records, max_wait);
            let outcome = self.source.fill(&mut batch, Instant::now() + POLL);
            reservation.resize(batch.bytes());
            let (caught_up, error) = match outcome {
                Ok(fill) => (fill == Fill::CaughtUp, None),
                Err(error) => (false, Some(error)),
            };
            self.status.set_lag(self.source.lag());
            self.status.set_memory_bytes(reservation.bytes());
            gathers = can_gather && caught_up && batch.bytes() < GATHERED_BYTES && !batch.carries_nothing();
            if batch.carries_nothing() && !(caught_up && self.until_idle) {
                // The source is idle: the memory of earlier batches is released.
                empty.try_iter().for_each(drop);
            } else if full.send(Ok(Filled { batch, caught_up, _reservation: reservation })).is_err() {
                return;
            }
            if let Some(error) = error {
                // The writer has the records from before the error. It may have ended, which does
                // not matter.
                let _ = full.send(Err(error));
                return;
            }
        }
    }

    /// Passes what was committed to the source. `next_commit` becomes the earliest time of the
    /// next commit.
    fn learn_of_commits(&mut self, next_commit: &mut Option<Instant>) -> Result<()> {
        for Committed { changes, next } in self.committed.try_iter() {
            *next_commit = next;
            self.source.committed(&changes)?;
        }
        Ok(())
    }
}

/// How long the source can wait before it fills a batch for a commit that is at this time.
fn gathering_time(commit: Option<Instant>) -> Duration {
    let left = commit.map(|commit| commit.saturating_duration_since(Instant::now()));
    left.unwrap_or_default().saturating_sub(BEFORE_COMMIT).min(MAX_GATHERING)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;
    use std::sync::mpsc::{channel, sync_channel};

    use trunkline_connector::{Error, SourceLag, SourceWaker};

    use super::*;
    use crate::stage::StageKind;

    /// Returns these fills one after the other. Each has this many records and this lag.
    struct Scripted {
        fills: VecDeque<(usize, u64)>,
        lag: u64,
        waker: Option<SourceWaker>,
        waits: SyncSender<Duration>,
    }

    impl Source for Scripted {
        fn fill(&mut self, out: &mut SourceBatch, _: Instant) -> Result<Fill> {
            let _ = self.waits.send(out.max_wait);
            let Some((records, lag)) = self.fills.pop_front() else { return Err(Error::external("test.over", "over")) };
            for _ in 0..records {
                let mut record = out.records.record();
                record.value(b"line");
                record.finish();
            }
            self.lag = lag;
            Ok(Fill::CaughtUp)
        }

        fn waker(&self) -> Option<SourceWaker> {
            self.waker.clone()
        }

        fn lag(&self) -> SourceLag {
            SourceLag { bytes: Some(self.lag), ..SourceLag::default() }
        }
    }

    /// The number of records of each batch that the writer gets, the lag that is reported in the
    /// end, and how long the source was allowed to wait.
    fn handed_over(
        fills: &[(usize, u64)],
        until_idle: bool,
        waker: Option<SourceWaker>,
    ) -> (Vec<usize>, Option<u64>, Vec<Duration>) {
        let (full, filled) = sync_channel(fills.len() + 2);
        let (_returned, empty) = channel();
        let (acknowledge, committed) = channel();
        let next = Some(Instant::now() + Duration::from_secs(10));
        acknowledge.send(Committed { changes: Vec::new(), next }).unwrap();
        let (waits, waited) = sync_channel(fills.len() + 1);
        let status = StageStatus::new("p", "web", StageKind::Source);
        let reader = Reader {
            source: Box::new(Scripted { fills: fills.iter().copied().collect(), lag: 0, waker, waits }),
            one_by_one: false,
            batch_bytes: 1 << 20,
            until_idle,
            budget: &MemoryBudget::new(1 << 20),
            status: &status,
            stop: &StopSignal::default(),
            abandoned: &AtomicBool::new(false),
            committed,
        };
        reader.run(&full, &empty);
        drop(full);
        let messages: Vec<Result<Filled>> = filled.iter().collect();
        assert!(messages.last().is_some_and(Result::is_err), "the error is the last message");
        let batches = messages.into_iter().flatten().map(|filled| filled.batch.records.len()).collect();
        (batches, status.snapshot().lag.bytes, waited.iter().collect())
    }

    #[test]
    fn a_batch_without_content_does_not_wake_the_writer() {
        let fills = [(0, 5), (2, 3), (0, 0), (0, 7)];
        let (batches, lag, waits) = handed_over(&fills, false, None);
        assert_eq!((batches, lag), (vec![2], Some(7)));
        assert_eq!(waits, [Duration::ZERO; 5]);
        // A run that ends learns from it that everything was read.
        assert_eq!(handed_over(&fills, true, None).0, [0, 2, 0, 0]);
    }

    #[test]
    fn a_source_waits_longer_if_a_stop_can_wake_it() {
        let (_, _, waits) = handed_over(&[(1, 0)], false, Some(Arc::new(|| {})));
        assert_eq!(waits, [IDLE_WAIT; 2]);
    }

    #[test]
    fn a_source_that_has_caught_up_fills_its_next_batch_shortly_before_the_next_commit() {
        assert_eq!(gathering_time(None), Duration::ZERO);
        assert_eq!(gathering_time(Instant::now().checked_sub(Duration::from_secs(1))), Duration::ZERO);
        assert_eq!(gathering_time(Some(Instant::now() + Duration::from_secs(10))), MAX_GATHERING);
        assert!(gathering_time(Some(Instant::now() + Duration::from_millis(200))) <= Duration::from_millis(190));
        let waker = || Some(Arc::new(|| {}) as SourceWaker);
        let begun = Instant::now();
        handed_over(&[(1, 0), (0, 0), (1, 0)], false, waker());
        assert!(begun.elapsed() >= 2 * MAX_GATHERING, "{:?}", begun.elapsed());
        // A run that ends does not wait.
        let begun = Instant::now();
        handed_over(&[(1, 0); 100], true, waker());
        assert!(begun.elapsed() < 100 * MAX_GATHERING, "{:?}", begun.elapsed());
    }
}
