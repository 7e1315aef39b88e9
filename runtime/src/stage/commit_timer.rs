//! Schedules a stage's commits.

use std::time::{Duration, Instant};

/// A transaction of this size is committed at once: bounds what a crash repeats and what readers
/// wait for.
const MAX_TRANSACTION_BYTES: usize = 64 << 20;

/// Schedules a stage's commits. The first record after an idle period is committed at once; later
/// commits are at least `interval` apart, and take at most half of the time.
pub(super) struct CommitTimer {
    interval: Duration,
    /// When the pending records are due; `None` while nothing is pending.
    due: Option<Instant>,
    /// The earliest time of the next commit.
    not_before: Option<Instant>,
}

impl CommitTimer {
    /// A timer with this interval between commits.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, due: None, not_before: None }
    }

    /// Records wait for a commit.
    pub(super) fn mark_pending(&mut self) {
        self.due.get_or_insert_with(|| self.not_before.unwrap_or_else(Instant::now));
    }

    /// Nothing waits for a commit.
    pub(super) fn clear(&mut self) {
        self.due = None;
    }

    /// Time until the next commit; `idle` while nothing is pending.
    pub(super) fn until_due(&self, idle: Duration) -> Duration {
        self.due.map_or(idle, |due| due.saturating_duration_since(Instant::now()))
    }

    /// When the pending records are due; `None` while nothing is pending.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// The earliest time of the next commit; `None` before the first one.
    pub(super) fn next(&self) -> Option<Instant> {
        self.not_before
    }

    /// The commit is due, given the bytes of the open transaction.
    pub(super) fn is_due(&self, transaction_bytes: usize) -> bool {
        transaction_bytes >= MAX_TRANSACTION_BYTES || self.due.is_some_and(|due| due <= Instant::now())
    }

    /// A commit that began at `begun` has succeeded. The interval runs from the beginning of one
    /// commit to the beginning of the next, so that readers do not wait for the duration of a
    /// commit on top of it. A commit that takes long defers the next one, so that slow brokers get
    /// fewer commits.
    pub(super) fn committed(&mut self, begun: Instant) {
        self.not_before = Some(begun + self.interval.max(begun.elapsed() * 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn the_first_record_is_committed_at_once_and_later_ones_after_the_interval() {
        let mut timer = CommitTimer::new(LONG);
        assert!(!timer.is_due(0) && timer.is_due(MAX_TRANSACTION_BYTES));
        assert_eq!(timer.until_due(LONG * 2), LONG * 2);
        timer.mark_pending();
        assert!(timer.is_due(0));
        timer.clear();
        assert!(!timer.is_due(0));
        timer.committed(Instant::now());
        timer.mark_pending();
        assert!(!timer.is_due(0) && timer.until_due(Duration::ZERO) > LONG / 2);
    }

    #[test]
    fn commits_take_at_most_half_of_the_time() {
        let interval = Duration::from_millis(200);
        let mut timer = CommitTimer::new(interval);
        let slow = Instant::now() - Duration::from_millis(300);
        timer.committed(slow);
        timer.mark_pending();
        assert!(timer.until_due(LONG) > interval && !timer.is_due(0), "{:?}", timer.until_due(LONG));
    }
}
