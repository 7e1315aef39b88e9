//! [`RateLimit`]: the option `max_lines_per_second`, for one file.

use std::path::Path;
use std::time::{Duration, Instant};

/// Time between two warnings about a file.
const WARN_INTERVAL: Duration = Duration::from_secs(60);

/// Lines that may be read now. A second without lines allows a second's worth at once.
#[derive(Debug, Default)]
pub(crate) struct RateLimit {
    allowed: f64,
    refilled: Option<Instant>,
    /// Lines that were dropped since the last warning.
    dropped: u64,
    warned: Option<Instant>,
}

impl RateLimit {
    /// Allows the lines of the time since the last call.
    pub(crate) fn refill(&mut self, per_second: u64, now: Instant) {
        let limit = per_second as f64;
        let added = self.refilled.map_or(limit, |last| now.saturating_duration_since(last).as_secs_f64() * limit);
        self.allowed = (self.allowed + added).min(limit);
        self.refilled = Some(now);
    }

    /// Takes a line. `false` if there are too many.
    pub(crate) fn take(&mut self) -> bool {
        let is_allowed = self.allowed >= 1.0;
        if is_allowed {
            self.allowed -= 1.0;
        }
        is_allowed
    }

    /// Logs that lines were dropped, once a minute.
    pub(crate) fn report(&mut self, dropped: u64, per_second: u64, path: &Path) {
        self.dropped += dropped;
        if self.warned.is_some_and(|last| last.elapsed() < WARN_INTERVAL) {
            return;
        }
        self.warned = Some(Instant::now());
        tracing::warn!(
            path = %path.display(),
            dropped = std::mem::take(&mut self.dropped),
            "lines were dropped: the file has more than `max_lines_per_second` ({per_second}). Raise it, or make the \
             writer log less"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_kept_with_bursts_of_a_second() {
        let mut rate = RateLimit::default();
        let begun = Instant::now();
        let mut taken = |milliseconds: u64| {
            rate.refill(10, begun + Duration::from_millis(milliseconds));
            (0..100).filter(|_| rate.take()).count()
        };
        assert_eq!([taken(0), taken(0), taken(500), taken(550), taken(60_000)], [10, 0, 5, 0, 10]);
    }
}
