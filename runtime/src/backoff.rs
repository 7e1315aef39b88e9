//! Waiting times between attempts: they double, and jitter spreads the attempts of many tasks over
//! time.

use std::time::Duration;

/// Waiting times that double from `first` up to `max`.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    max: Duration,
    attempts: u32,
}

impl Backoff {
    /// Starts with `first`.
    pub(crate) const fn new(first: Duration, max: Duration) -> Self {
        Self { first, max, attempts: 0 }
    }

    /// The waiting time after the attempts so far.
    pub(crate) fn current(&self) -> Duration {
        // 2^20 times any waiting time exceeds every maximum; more would overflow.
        self.first.saturating_mul(1 << self.attempts.min(20)).min(self.max)
    }

    /// Counts another attempt and returns the waiting time before it.
    pub(crate) fn advance(&mut self) -> Duration {
        let wait = self.current();
        self.attempts = self.attempts.saturating_add(1);
        wait
    }

    /// Starts over with the first waiting time.
    pub(crate) fn reset(&mut self) {
        self.attempts = 0;
    }

    /// Reduces the waiting time to the one after `attempts` attempts, if it is longer.
    pub(crate) fn cap_attempts(&mut self, attempts: u32) {
        self.attempts = self.attempts.min(attempts);
    }
}

/// A random duration between half of `whole` and `whole`. Longer ones are whole milliseconds, as
/// logs show them.
pub(crate) fn jitter(whole: Duration) -> Duration {
    const EXACT: Duration = Duration::from_millis(100);
    let share = (uuid::Uuid::new_v4().as_u128() % 512) as u32 + 512;
    let wait = whole * share / 1024;
    if whole < EXACT { wait } else { wait - Duration::from_nanos(u64::from(wait.subsec_nanos() % 1_000_000)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(30);

    #[test]
    fn waits_double_up_to_the_maximum_and_start_over_after_a_reset() {
        let mut backoff = Backoff::new(FIRST, MAX);
        assert_eq!([backoff.advance(), backoff.advance(), backoff.advance()], [FIRST, FIRST * 2, FIRST * 4]);
        backoff.cap_attempts(1);
        assert_eq!(backoff.current(), FIRST * 2);
        (0..100).for_each(|_| {
            backoff.advance();
        });
        assert_eq!(backoff.current(), MAX);
        backoff.reset();
        assert_eq!(backoff.advance(), FIRST);
    }

    #[test]
    fn jitter_lies_between_half_and_the_whole() {
        let waits: Vec<Duration> = (0..100).map(|_| jitter(MAX)).collect();
        assert!(waits.iter().all(|wait| (MAX / 2..=MAX).contains(wait)));
        assert!(waits.iter().any(|wait| *wait != waits[0]));
        assert!(waits.iter().all(|wait| wait.subsec_nanos() % 1_000_000 == 0), "{waits:?}");
    }
}
