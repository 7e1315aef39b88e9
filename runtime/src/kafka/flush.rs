//! Decides when a producer flushes.
//!
//! While a flush lasts, librdkafka's thread spins if a request is in flight to a partition for
//! which more records wait. A hundred producers then take all processors from the broker whose
//! answers they wait for. A flush is therefore best done while nothing is in flight.

use std::time::{Duration, Instant};

use crate::backoff::Backoff;

/// Duration of a flush while nothing is in flight. It ends when all records are acknowledged; the
/// brokers may first have to add the partitions to the transaction.
const FLUSH_MS: i32 = 20;

/// Duration of a flush otherwise: long enough for librdkafka's thread to send what is queued.
const SHORT_FLUSH_MS: i32 = 2;

/// If all flushed records are acknowledged and this time has passed since the last acknowledgement,
/// nothing is in flight.
const QUIET: Duration = Duration::from_millis(5);

/// A flush that brings no acknowledgement is repeated after this time, which doubles up to the
/// maximum.
const FLUSH_RETRY: Duration = Duration::from_millis(5);
const MAX_FLUSH_RETRY: Duration = Duration::from_millis(400);

/// The records of one producer, counted from its first, and the time of the last acknowledgement.
pub(super) struct FlushSchedule {
    sent: usize,
    /// Records that had been sent at the last flush.
    flushed: usize,
    acknowledged: usize,
    last_progress: Instant,
    /// Whether an acknowledgement has arrived since the last flush.
    has_progressed: bool,
    retry: Backoff,
}

impl FlushSchedule {
    pub(super) fn new() -> Self {
        Self {
            sent: 0,
            flushed: 0,
            acknowledged: 0,
            last_progress: Instant::now(),
            has_progressed: false,
            retry: Backoff::new(FLUSH_RETRY, MAX_FLUSH_RETRY),
        }
    }

    /// Notes that a record was passed to the client.
    pub(super) fn note_sent(&mut self) {
        self.sent += 1;
    }

    /// Notes how many records are unacknowledged.
    pub(super) fn note_in_flight(&mut self, in_flight: usize) {
        let acknowledged = self.sent.saturating_sub(in_flight);
        if acknowledged > self.acknowledged {
            (self.acknowledged, self.last_progress, self.has_progressed) = (acknowledged, Instant::now(), true);
            self.retry.reset();
        }
    }

    /// Notes that a flush was made.
    pub(super) fn note_flush(&mut self) {
        (self.flushed, self.last_progress, self.has_progressed) = (self.sent, Instant::now(), false);
        self.retry.advance();
    }

    /// Milliseconds to flush for a commit, which needs all records acknowledged; `None` if waiting
    /// is better now.
    pub(super) fn for_commit(&self) -> Option<i32> {
        if self.acknowledged >= self.flushed {
            return Some(FLUSH_MS);
        }
        let is_overdue = self.last_progress.elapsed() >= self.retry.current();
        (self.has_progressed || is_overdue).then_some(SHORT_FLUSH_MS)
    }

    /// Milliseconds to flush while the send buffer is full. Full batches are sent without a flush
    /// and make room, but there may be no full batch. With more partitions than requests in flight,
    /// several flushes are needed.
    pub(super) fn for_room(&self) -> Option<i32> {
        if self.acknowledged < self.flushed {
            return self.for_commit();
        }
        (self.last_progress.elapsed() >= QUIET).then_some(SHORT_FLUSH_MS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_commit_flushes_while_nothing_is_in_flight_and_then_waits_for_progress() {
        let mut schedule = FlushSchedule::new();
        (0..10).for_each(|_| schedule.note_sent());
        assert_eq!(schedule.for_commit(), Some(FLUSH_MS));
        schedule.note_flush();
        // Set here, because the machine may be slow.
        schedule.last_progress = Instant::now() + Duration::from_secs(60);
        assert_eq!(schedule.for_commit(), None);
        schedule.note_in_flight(5);
        assert_eq!(schedule.for_commit(), Some(SHORT_FLUSH_MS));
        schedule.note_in_flight(0);
        assert_eq!(schedule.for_commit(), Some(FLUSH_MS));
    }

    #[test]
    fn flushes_without_progress_are_repeated_after_a_growing_time() {
        let mut schedule = FlushSchedule::new();
        schedule.note_sent();
        for _ in 0..20 {
            schedule.note_flush();
        }
        assert_eq!(schedule.retry.current(), MAX_FLUSH_RETRY);
        schedule.last_progress = Instant::now() - MAX_FLUSH_RETRY;
        assert_eq!((schedule.for_commit(), schedule.for_room()), (Some(SHORT_FLUSH_MS), Some(SHORT_FLUSH_MS)));
        schedule.note_in_flight(0);
        assert_eq!(schedule.retry.current(), FLUSH_RETRY);
    }

    /// A flush sends five requests, so it may leave records of further partitions.
    #[test]
    fn a_full_buffer_is_flushed_again_after_progress() {
        let mut schedule = FlushSchedule::new();
        (0..10).for_each(|_| schedule.note_sent());
        schedule.last_progress = Instant::now() + Duration::from_secs(60);
        assert_eq!(schedule.for_room(), None);
        schedule.note_flush();
        schedule.last_progress = Instant::now() + Duration::from_secs(60);
        assert_eq!(schedule.for_room(), None);
        schedule.note_in_flight(5);
        schedule.last_progress = Instant::now() + Duration::from_secs(60);
        assert_eq!(schedule.for_room(), Some(SHORT_FLUSH_MS));
    }
}
