//! The number of requests in flight, adapted to the capacity of the server: one more after each
//! round of requests that all succeeded, half as many after a request that found the server busy,
//! or that took much longer than requests usually do. If the server refused a part of a request's
//! documents, the number changes by these shares: a server that is busy with other clients refuses
//! some documents whatever the number is, and would otherwise get one request at a time.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// After the limit was halved it is not halved again for this long, so that the server has time to
/// recover.
const HALVING_PAUSE: Duration = Duration::from_millis(500);

/// A request that takes less than this is never slow.
const MIN_SLOW: Duration = Duration::from_secs(1);

/// A request is slow if it takes this many times the usual time.
const SLOW_FACTOR: f64 = 4.0;

/// The share of a request's time in the new usual time: if it is longer, so that a server that
/// becomes slower shows for many requests, and if it is shorter.
const WEIGHTS: (f64, f64) = (1.0 / 32.0, 1.0 / 4.0);

/// Limits the requests in flight.
pub(crate) struct RequestLimit {
    state: Mutex<State>,
    freed: Condvar,
    max: usize,
}

struct State {
    in_flight: usize,
    limit: f64,
    halved: Option<Instant>,
    /// The usual time of a request that succeeds, in seconds; `None` before the first one.
    usual: Option<f64>,
}

impl State {
    /// Adds the time of a request that succeeded. Returns whether the request was slow.
    fn observe(&mut self, time: Duration) -> bool {
        let seconds = time.as_secs_f64();
        let usual = *self.usual.get_or_insert(seconds);
        let weight = if seconds > usual { WEIGHTS.0 } else { WEIGHTS.1 };
        self.usual = Some(usual + weight * (seconds - usual));
        time >= MIN_SLOW && seconds > SLOW_FACTOR * usual
    }
}

/// The right to one request.
pub(crate) struct Permit<'a> {
    limit: &'a RequestLimit,
    outcome: Outcome,
    started: Instant,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Succeeded,
    /// The server had no room for a part of the documents.
    Partly {
        /// The share of these documents, in percent.
        busy: u8,
    },
    Overloaded,
    /// It says nothing about the capacity of the server.
    Unknown,
}

impl RequestLimit {
    /// At most `max` requests in flight.
    pub(crate) fn new(max: usize) -> Self {
        let state = State { in_flight: 0, limit: max as f64, halved: None, usual: None };
        Self { state: Mutex::new(state), freed: Condvar::new(), max }
    }

    /// Waits until a request may be sent; `None` if that is not before the deadline.
    pub(crate) fn acquire(&self, deadline: Instant) -> Option<Permit<'_>> {
        let mut state = self.lock();
        while state.in_flight >= state.limit as usize {
            let wait = deadline.checked_duration_since(Instant::now())?;
            state = self.freed.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0;
        }
        state.in_flight += 1;
        Some(Permit { limit: self, outcome: Outcome::Unknown, started: Instant::now() })
    }

    fn release(&self, outcome: Outcome, started: Instant, now: Instant) {
        let mut state = self.lock();
        state.in_flight -= 1;
        let is_slow = outcome == Outcome::Succeeded && state.observe(now.duration_since(started));
        let outcome = if is_slow { Outcome::Overloaded } else { outcome };
        // A request that was in flight when the limit was halved reports the same overload.
        let is_known = state.halved.is_some_and(|at| started < at || now.duration_since(at) < HALVING_PAUSE);
        let busy = match outcome {
            Outcome::Succeeded => 0.0,
            Outcome::Partly { busy } => f64::from(busy.min(100)) / 100.0,
            Outcome::Overloaded => 1.0,
            Outcome::Unknown => return self.wake_after(state),
        };
        if busy > 0.0 && !is_known {
            state.limit = (state.limit * (1.0 - busy / 2.0)).max(1.0);
            state.halved = Some(now);
        } else {
            state.limit = (state.limit + (1.0 - busy) / state.limit).min(self.max as f64);
        }
        self.wake_after(state);
    }

    fn wake_after(&self, state: MutexGuard<'_, State>) {
        drop(state);
        self.freed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// Ends the request.
    pub(crate) fn end(mut self, outcome: Outcome) {
        self.outcome = outcome;
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.limit.release(self.outcome, self.started, Instant::now());
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use super::*;

    /// How many requests may be in flight.
    fn capacity(limit: &RequestLimit) -> usize {
        let permits: Vec<_> = std::iter::from_fn(|| limit.acquire(Instant::now())).take(100).collect();
        permits.len()
    }

    #[test]
    fn an_overload_halves_the_limit_once_and_successes_raise_it_again() {
        let limit = RequestLimit::new(8);
        assert_eq!(capacity(&limit), 8);
        // All requests in flight report the same overload.
        let permits: Vec<_> = (0..8).map(|_| limit.acquire(Instant::now()).unwrap()).collect();
        permits.into_iter().for_each(|permit| permit.end(Outcome::Overloaded));
        assert_eq!(capacity(&limit), 4);
        let succeed = || limit.acquire(Instant::now()).unwrap().end(Outcome::Succeeded);
        (0..5).for_each(|_| succeed());
        assert_eq!(capacity(&limit), 5);
        (0..100).for_each(|_| succeed());
        assert_eq!(capacity(&limit), 8);
    }

    #[test]
    fn a_server_that_takes_most_documents_keeps_most_of_the_limit() {
        let after = |busy: u8| {
            let limit = RequestLimit::new(8);
            let start = Instant::now();
            // Forty requests in each second.
            for number in 0..400 {
                let now = start + Duration::from_millis(25) * number;
                limit.lock().in_flight += 1;
                limit.release(Outcome::Partly { busy }, now, now);
            }
            capacity(&limit)
        };
        assert!(after(30) >= 6, "{}", after(30));
        assert_eq!(after(100), 1);
    }

    #[test]
    fn one_request_is_always_allowed() {
        let limit = RequestLimit::new(4);
        let start = Instant::now();
        for later in 0..10 {
            limit.acquire(Instant::now()).unwrap();
            limit.lock().in_flight += 1;
            let now = start + HALVING_PAUSE * later;
            limit.release(Outcome::Overloaded, now, now);
        }
        assert_eq!(capacity(&limit), 1);
    }

    #[test]
    fn slow_requests_halve_the_limit_until_they_are_usual() {
        let (limit, start) = (RequestLimit::new(8), Instant::now());
        // `requests` requests of this time, one after the other; returns the capacity after them.
        let mut now = start;
        let mut requests = |count: u32, time: Duration| {
            for _ in 0..count {
                limit.lock().in_flight += 1;
                limit.release(Outcome::Succeeded, now, now + time);
                now += time;
            }
            capacity(&limit)
        };
        assert_eq!(requests(20, Duration::from_millis(100)), 8);
        // Nine times as long, and still not slow.
        assert_eq!(requests(1, Duration::from_millis(900)), 8);
        assert_eq!(requests(20, Duration::from_millis(100)), 8);
        assert_eq!(requests(1, Duration::from_secs(3)), 4);
        assert_eq!(requests(2, Duration::from_secs(3)), 1);
        // The server stays as slow: the limit grows again.
        assert_eq!(requests(200, Duration::from_secs(3)), 8);
        // All requests that were in flight were slow: one reason to halve the limit.
        limit.lock().in_flight += 8;
        for _ in 0..8 {
            limit.release(Outcome::Succeeded, now, now + Duration::from_secs(40));
        }
        assert_eq!(capacity(&limit), 4);
    }

    #[test]
    fn a_waiting_request_starts_when_another_one_ends() {
        let limit = RequestLimit::new(1);
        let permit = limit.acquire(Instant::now()).unwrap();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| limit.acquire(Instant::now() + Duration::from_secs(30)).is_some());
            permit.end(Outcome::Unknown);
            assert!(waiting.join().unwrap());
        });
    }
}
