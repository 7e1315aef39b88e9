//! Waiting times between tries: doubling, with jitter so that many stages do not knock at the same moment.

use std::time::{Duration, Instant};

use trunkline_connector::{Error, Retry};

use crate::backoff;

const FIRST: Duration = Duration::from_millis(200);
const LAST: Duration = Duration::from_secs(30);

/// A stage that ran this long is healthy: its next failure starts over.
const HEALTHY: Duration = Duration::from_secs(60);

/// One that commits between its failures works, as far as what it depends on does: it waits as after so many of them at most (1.6 s), so that it goes
/// on soon after the last of a series.
const WORKING: u32 = 3;

/// Doubling waiting times.
pub(super) struct Backoff {
    waits: backoff::Backoff,
    last_failure: Option<Instant>,
}

impl Backoff {
    pub(super) fn new() -> Self {
        Self { waits: backoff::Backoff::new(FIRST, LAST), last_failure: None }
    }

    /// How long to wait after this failure. `committed`: something was committed since the one before.
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
    fn doubles_to_a_limit_and_obeys_the_other_side() {
        let mut backoff = Backoff::new();
        let error = Error::external("x", "y");
        let waits: Vec<_> = (0..12).map(|_| backoff.after(&error, false)).collect();
        assert!(waits[0] >= FIRST / 2 && waits[0] <= FIRST);
        assert!(waits[11] >= LAST / 2 && waits[11] <= LAST);
        let told = backoff.after(&Error::external("x", "y").retry(Retry::After(Duration::from_secs(100))), false);
        assert!(told >= Duration::from_secs(50) && told <= Duration::from_secs(100));
    }

    #[test]
    fn who_commits_between_failures_goes_on_soon() {
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
