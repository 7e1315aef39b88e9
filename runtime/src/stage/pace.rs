//! When a stage commits.

use std::time::{Duration, Instant};

/// A transaction is committed at so many bytes at the latest: a bound on what a crash repeats and on what readers wait for.
const COMMIT_BYTES: usize = 64 << 20;

/// The times of a stage's commits. What comes after a pause is committed at once, and what follows it with an interval between: nobody waits longer than
/// under load.
pub(super) struct Pace {
    interval: Duration,
    /// When what waits is to be committed; `None` while nothing does.
    due: Option<Instant>,
    /// Not before.
    next: Option<Instant>,
}

impl Pace {
    /// Of a stage that commits every `interval`.
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, due: None, next: None }
    }

    /// There is something to commit.
    pub(super) fn waits(&mut self) {
        self.due.get_or_insert_with(|| self.next.unwrap_or_else(Instant::now));
    }

    /// There is nothing to commit any more.
    pub(super) fn rests(&mut self) {
        self.due = None;
    }

    /// How long until the next commit; `idle` while nothing waits for it.
    pub(super) fn left(&self, idle: Duration) -> Duration {
        self.due.map_or(idle, |due| due.saturating_duration_since(Instant::now()))
    }

    /// Is it time, with a transaction of so many bytes?
    pub(super) fn is_due(&self, bytes: usize) -> bool {
        bytes >= COMMIT_BYTES || self.due.is_some_and(|due| due <= Instant::now())
    }

    /// A commit that was begun then has just ended. The interval is from one to the next, so that what a commit takes is not added to what readers wait.
    /// But no more than half of the time is spent on it: brokers that are slow are not asked the more often for it.
    pub(super) fn committed(&mut self, begun: Instant) {
        self.next = Some(begun + self.interval.max(begun.elapsed() * 2));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(10);

    #[test]
    fn what_comes_first_is_committed_at_once_and_the_rest_after_an_interval() {
        let mut pace = Pace::new(LONG);
        assert!(!pace.is_due(0) && pace.is_due(COMMIT_BYTES));
        assert_eq!(pace.left(LONG * 2), LONG * 2);
        pace.waits();
        assert!(pace.is_due(0));
        pace.rests();
        assert!(!pace.is_due(0));
        pace.committed(Instant::now());
        pace.waits();
        assert!(!pace.is_due(0) && pace.left(Duration::ZERO) > LONG / 2);
    }

    #[test]
    fn commits_take_no_more_than_half_of_the_time() {
        let interval = Duration::from_millis(200);
        let mut pace = Pace::new(interval);
        let slow = Instant::now() - Duration::from_millis(300);
        pace.committed(slow);
        pace.waits();
        assert!(pace.left(LONG) > interval && !pace.is_due(0), "{:?}", pace.left(LONG));
    }
}
