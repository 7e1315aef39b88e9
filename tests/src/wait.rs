//! Waiting for something to become true, with a deadline.

use std::time::{Duration, Instant};

/// Calls `probe` until it gives a value; panics with `what` when that takes longer than `limit`.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    match within(limit, &mut probe) {
        Some(value) => value,
        None => panic!("waited {limit:?} in vain: {what}"),
    }
}

/// Calls `probe` until it gives a value; `None` when that takes longer than `limit`.
pub fn within<T>(limit: Duration, mut probe: impl FnMut() -> Option<T>) -> Option<T> {
    let deadline = Instant::now() + limit;
    loop {
        let started = Instant::now();
        if let Some(value) = probe() {
            return Some(value);
        }
        if Instant::now() >= deadline {
            return None;
        }
        // An expensive probe is asked less often: at most half of the time goes into asking.
        pause(started.elapsed().clamp(Duration::from_millis(5), Duration::from_secs(1)));
    }
}

/// The gap between two polls, and the seeded moment after which a test kills a worker. Not for anything else: see the module's head.
#[allow(clippy::disallowed_methods)] // nothing here is to be interrupted: the loops around it have deadlines
pub(crate) fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
