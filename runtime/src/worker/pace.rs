//! How often a loop of the worker looks for changes: often while something changes, because tasks
//! wait for several loops one after the other, and rarely otherwise.

use std::time::{Duration, Instant};

/// Time between two looks while something changes.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Time between two looks when nothing has changed for [`CALM_AFTER`].
const CALM_POLL: Duration = Duration::from_millis(100);
const CALM_AFTER: Duration = Duration::from_secs(5);

/// The time of the last change.
pub(super) struct Pace {
    last_change: Instant,
}

impl Pace {
    /// Something changes: the worker starts.
    pub(super) fn new() -> Self {
        Self { last_change: Instant::now() }
    }

    /// Notes whether something has changed since the last look.
    pub(super) fn note(&mut self, has_changed: bool) {
        if has_changed {
            self.last_change = Instant::now();
        }
    }

    /// Time until the next look.
    pub(super) fn wait(&self) -> Duration {
        if self.last_change.elapsed() < CALM_AFTER { POLL } else { CALM_POLL }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_are_rare_once_nothing_changes() {
        let mut pace = Pace::new();
        assert_eq!(pace.wait(), POLL);
        pace.last_change = Instant::now().checked_sub(CALM_AFTER).unwrap();
        pace.note(false);
        assert_eq!(pace.wait(), CALM_POLL);
        pace.note(true);
        assert_eq!(pace.wait(), POLL);
    }
}
