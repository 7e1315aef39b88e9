//! Waiting for a condition, with a deadline.

use std::time::{Duration, Instant};

/// Calls `probe` until it returns a value. Panics with `what` after `limit`.
pub fn until<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    match within(limit, &mut probe) {
        Some(value) => value,
        None => panic!("timed out after {limit:?}: {what}"),
    }
}

/// Calls `probe` until it returns a value. Returns `None` after `limit`.
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
        // Probes take at most half of the time, so that an expensive one does not slow the system
        // down.
        pause(started.elapsed().clamp(Duration::from_millis(5), Duration::from_secs(1)));
    }
}

/// The interval between two probes.
#[allow(clippy::disallowed_methods)] // no stop request can interrupt it, but each loop around it has a deadline
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}
