//! Lets a source fill batches, in the thread of its stage or in a second one
//! ([`super::read_ahead`]).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use trunkline_connector::{
    Error, Fill, MemoryBudget, PositionChange, Reservation, Result, Source, SourceBatch, SourceWaker,
};

use super::read_ahead::{Backlog, Backlogs};
use super::status::StageStatus;
use super::stop_signal::StopSignal;

/// Deadline of a fill: bounds how late a stop is noticed by a source that reads.
const POLL: Duration = Duration::from_millis(100);

/// How long a source without data waits that a request to stop can wake. Meanwhile it learns of no
/// commit.
const IDLE_WAIT: Duration = Duration::from_secs(5);

/// A source that has caught up and gave fewer bytes than this fills its next batch shortly before
/// the next commit: what it reads earlier becomes visible no sooner.
const GATHERED_BYTES: usize = 64 << 10;

/// How long before the next commit that batch is filled.
const BEFORE_COMMIT: Duration = Duration::from_millis(10);

/// The source looks again after this time, however far away the next commit is.
const MAX_GATHERING: Duration = Duration::from_millis(250);

/// Limit on the records of a batch.
const BATCH_RECORDS: usize = 10_000;

/// A source has a backlog after as many batches in a row that were not the end of its data.
const BACKLOG_BATCHES: u32 = 4;

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
    pub(super) backlogs: &'a Backlogs,
    /// What the writer has committed.
    pub(super) committed: Receiver<Committed>,
    pub(super) state: ReaderState,
}

/// What a reader remembers of the batches before.
#[derive(Default)]
pub(super) struct ReaderState {
    /// The earliest time of the next commit.
    next_commit: Option<Instant>,
    /// The next batch is filled shortly before that.
    gathers: bool,
    /// Batches in a row that were not the end of the source's data.
    unfinished: u32,
    /// Counts the source while it has a backlog.
    backlog: Option<Backlog>,
    /// An error that follows a batch.
    error: Option<Error>,
}

impl Reader<'_> {
    /// Ends a wait of the source, see [`Source::waker`].
    pub(super) fn waker(&self) -> Option<SourceWaker> {
        self.source.waker()
    }

    /// Whether a second thread makes the source faster: it has a backlog, and there are processors.
    pub(super) fn can_read_ahead(&self) -> bool {
        self.state.backlog.is_some() && self.backlogs.fit_processors()
    }

    /// Fills batches while that [is faster](Reader::can_read_ahead), and hands over those with
    /// content. An error is the last message.
    pub(super) fn run(
        &mut self,
        full: SyncSender<Result<Filled>>,
        empty: &Receiver<SourceBatch>,
        is_abandoned: &AtomicBool,
    ) {
        while self.can_read_ahead() && !self.stop.is_set() && !is_abandoned.load(Ordering::Relaxed) {
            let outcome = self.next(empty.try_recv().ok(), None);
            let is_last = outcome.is_err();
            let Some(message) = outcome.transpose() else {
                // The source is idle: the memory of earlier batches is released.
                empty.try_iter().for_each(drop);
                continue;
            };
            if full.send(message).is_err() || is_last {
                return;
            }
        }
    }

    /// Fills a batch, in the memory of `spare`; returns at the time `due` at the latest. `None` if
    /// there is nothing to hand over. The batch before an error has the records from before it.
    pub(super) fn next(&mut self, spare: Option<SourceBatch>, due: Option<Instant>) -> Result<Option<Filled>> {
        if let Some(error) = self.state.error.take() {
            return Err(error);
        }
        self.learn_of_commits()?;
        let left = || due.map_or(Duration::MAX, |due| due.saturating_duration_since(Instant::now()));
        if std::mem::take(&mut self.state.gathers) && self.stop.wait(gathering_time(self.state.next_commit).min(left()))
        {
            return Ok(None);
        }
        let deadline = Instant::now() + POLL.min(left());
        // A small reservation waits while the budget is exhausted; the fill then sets the true
        // size.
        let Some(mut reservation) = self.budget.reserve(64 << 10, deadline) else { return Ok(None) };
        let mut batch = spare.unwrap_or_default();
        let can_wait = self.source.waker().is_some();
        batch.max_wait = if can_wait { IDLE_WAIT.min(left()) } else { Duration::ZERO };
        (batch.max_bytes, batch.max_records) = (self.batch_bytes, if self.one_by_one { 1 } else { BATCH_RECORDS });
        let outcome = self.source.fill(&mut batch, deadline);
        reservation.resize(batch.bytes());
        let (caught_up, error) = match outcome {
            Ok(fill) => (fill == Fill::CaughtUp, None),
            Err(error) => (false, Some(error)),
        };
        self.status.set_lag(self.source.lag());
        self.status.set_memory_bytes(reservation.bytes());
        let is_empty = batch.carries_nothing();
        self.note_backlog(!caught_up && !is_empty);
        let can_gather = can_wait && !self.one_by_one && !self.until_idle;
        self.state.gathers = can_gather && caught_up && batch.bytes() < GATHERED_BYTES && !is_empty;
        if !is_empty || (caught_up && self.until_idle) {
            self.state.error = error;
            return Ok(Some(Filled { batch, caught_up, _reservation: reservation }));
        }
        error.map_or(Ok(None), Err)
    }

    /// Notes whether the source may have more data than it has just returned.
    fn note_backlog(&mut self, has_more: bool) {
        let state = &mut self.state;
        state.unfinished = if has_more { state.unfinished.saturating_add(1) } else { 0 };
        if state.unfinished == 0 {
            state.backlog = None;
        } else if state.unfinished >= BACKLOG_BATCHES && !self.one_by_one {
            state.backlog.get_or_insert_with(|| self.backlogs.begin());
        }
    }

    /// Passes what was committed to the source.
    fn learn_of_commits(&mut self) -> Result<()> {
        for Committed { changes, next } in self.committed.try_iter() {
            self.state.next_commit = next;
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

    use trunkline_connector::SourceLag;

    use super::*;
    use crate::stage::StageKind;
    use crate::stage::read_ahead::read_ahead;

    /// Returns these fills one after the other. Each has this many records and this lag.
    struct Scripted {
        fills: VecDeque<(usize, u64)>,
        lag: u64,
        end: Fill,
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
            Ok(self.end)
        }

        fn waker(&self) -> Option<SourceWaker> {
            self.waker.clone()
        }

        fn lag(&self) -> SourceLag {
            SourceLag { bytes: Some(self.lag), ..SourceLag::default() }
        }
    }

    struct Fixture {
        status: StageStatus,
        stop: StopSignal,
        budget: MemoryBudget,
        backlogs: Backlogs,
    }

    impl Fixture {
        fn new() -> Self {
            Self {
                status: StageStatus::new("p", "web", StageKind::Source),
                stop: StopSignal::default(),
                budget: MemoryBudget::new(1 << 20),
                backlogs: Backlogs::new(1),
            }
        }

        /// A reader that knows that the next commit is in 10 s.
        fn reader(&self, source: impl Source + 'static, until_idle: bool) -> Reader<'_> {
            let (acknowledge, committed) = channel();
            let next = Some(Instant::now() + Duration::from_secs(10));
            acknowledge.send(Committed { changes: Vec::new(), next }).unwrap();
            Reader {
                source: Box::new(source),
                one_by_one: false,
                batch_bytes: 1 << 20,
                until_idle,
                budget: &self.budget,
                status: &self.status,
                stop: &self.stop,
                backlogs: &self.backlogs,
                committed,
                state: ReaderState::default(),
            }
        }
    }

    /// The number of records of each batch that the writer gets until the source fails, the lag
    /// that is reported in the end, and how long the source was allowed to wait.
    fn handed_over(
        fills: &[(usize, u64)],
        until_idle: bool,
        waker: Option<SourceWaker>,
    ) -> (Vec<usize>, Option<u64>, Vec<Duration>) {
        let (waits, waited) = sync_channel(fills.len() + 1);
        let fixture = Fixture::new();
        let source = Scripted { fills: fills.iter().copied().collect(), lag: 0, end: Fill::CaughtUp, waker, waits };
        let mut reader = fixture.reader(source, until_idle);
        let mut batches = Vec::new();
        while let Ok(filled) = reader.next(None, None) {
            batches.extend(filled.map(|filled| filled.batch.records.len()));
        }
        (batches, fixture.status.snapshot().lag.bytes, waited.iter().take(fills.len() + 1).collect())
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
    #[test]
    fn a_source_with_a_backlog_reads_ahead_while_there_are_processors() {
        let fixture = Fixture::new();
        let source = |batches: usize, end: Fill| {
            let (waits, _) = sync_channel(batches + 1);
            Scripted { fills: vec![(1, 0); batches].into(), lag: 0, end, waker: None, waits }
        };
        let mut caught_up = fixture.reader(source(100, Fill::CaughtUp), false);
        let mut behind = fixture.reader(source(100, Fill::More), false);
        for _ in 0..BACKLOG_BATCHES {
            assert!(!caught_up.can_read_ahead() && !behind.can_read_ahead());
            caught_up.next(None, None).unwrap();
            behind.next(None, None).unwrap();
        }
        assert!(!caught_up.can_read_ahead() && behind.can_read_ahead());
        // The batches arrive in their order, and the error of the source at the end.
        let mut other = fixture.reader(source(10, Fill::More), false);
        let received = read_ahead(&mut behind, |filled, _| {
            let batches: Vec<_> = filled.iter().take(20).collect();
            (0..BACKLOG_BATCHES).for_each(|_| drop(other.next(None, None)));
            batches.len() + filled.iter().count()
        });
        // A second source has a backlog, and there is one processor.
        assert!((20..100).contains(&received), "{received}");
        assert!(!behind.can_read_ahead());
        drop(other);
        let left = read_ahead(&mut behind, |filled, _| filled.iter().collect::<Vec<_>>());
        assert!(left.last().is_some_and(Result::is_err));
        assert_eq!(received + left.len() - 1 + BACKLOG_BATCHES as usize, 100);
    }

    #[test]
    fn a_batch_is_filled_before_the_next_commit_is_due() {
        let fixture = Fixture::new();
        let (waits, waited) = sync_channel(9);
        let fills = vec![(1, 0), (0, 0)].into();
        let waker = Some(Arc::new(|| {}) as SourceWaker);
        let mut reader = fixture.reader(Scripted { fills, lag: 0, end: Fill::CaughtUp, waker, waits }, false);
        let due = Instant::now() + Duration::from_millis(30);
        assert!(reader.next(None, Some(due)).unwrap().is_some());
        // This call would gather for longer.
        assert!(reader.next(None, Some(due)).unwrap().is_none());
        assert!(due.elapsed() < Duration::from_millis(200));
        assert!(waited.iter().take(2).all(|wait| wait <= Duration::from_millis(30)));
    }
}
