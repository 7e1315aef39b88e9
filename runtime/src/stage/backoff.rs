//! Waiting times between the attempts of a stage: exponential backoff with jitter.

use std::time::{Duration, Instant};

use trunkline_connector::{Error, Retry};

use crate::backoff;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(30);

/// After this time without a failure, the backoff starts again.
const HEALTHY: Duration = Duration::from_secs(60);

/// A stage that commits between its failures waits as after this many failures at most (1.6 s), so
/// that it continues soon after the last failure of a series.
const WORKING: u32 = 3;

/// The backoff of a stage.
pub(super) struct Backoff {
    waits: backoff::Backoff,
    last_failure: Option<Instant>,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { waits: backoff::Backoff::new(FIRST, LAST), last_failure: None }
    }

    /// The wait after this failure. `committed`: the stage committed since the last failure.
    pub(super) fn after(&mut self, error: &Error, committed: bool) -> Duration {
        if self.last_failure.is_some_and(|at| at.elapsed() > HEALTHY) {
            self.waits.reset();
        }
        if committed {
            self.waits.cap_attempts(WORKING);
        }
        self.last_failure = Some(Instant::now());
        let wait = self.waits.advance();
        backoff::jitter(match error.retry {
            Retry::After(wait) => wait,
            Retry::Backoff | Retry::Never => wait,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_to_a_limit_and_obeys_a_named_time() {
        let mut backoff = Backoff::new();
        let error = Error::external("x", "y");
        let waits: Vec<_> = (0..12).map(|_| backoff.after(&error, false)).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[11] >= LAST / 2 && waits[11] <= LAST);
        let named = backoff.after(&Error::external("x", "y").retry(Retry::After(Duration::from_secs(100))), false);
        assert!(named >= Duration::from_secs(50) && named <= Duration::from_secs(100));
    }

    #[test]
    fn commits_between_failures_keep_the_wait_short() {
        let mut backoff = Backoff::new();
        let error = Error::external("x", "y");
        (0..12).for_each(|_| {
            backoff.after(&error, false);
        });
        assert!((0..12).all(|_| backoff.after(&error, true) <= FIRST * 8));
        assert!(backoff.after(&error, false) <= FIRST * 16);
        assert!((0..12).map(|_| backoff.after(&error, false)).any(|wait| wait >= LAST / 2));
    }
}
