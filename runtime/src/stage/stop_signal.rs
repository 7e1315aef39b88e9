//! The request to stop, shared by the threads of a worker.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A request to stop that threads can wait for.
#[derive(Clone, Default)]
pub struct StopSignal {
    shared: Arc<(Mutex<Option<Instant>>, Condvar)>,
    parent: Option<Box<StopSignal>>,
}

/// How often a child checks its parent.
const PARENT_POLL: Duration = Duration::from_millis(50);

impl StopSignal {
    /// A signal that is set when this one is, and can be set alone.
    pub fn child(&self) -> Self {
        Self { shared: Arc::default(), parent: Some(Box::new(self.clone())) }
    }

    /// Requests the stop.
    pub fn set(&self) {
        self.lock().get_or_insert_with(Instant::now);
        self.shared.1.notify_all();
    }

    /// The stop was requested.
    pub fn is_set(&self) -> bool {
        self.lock().is_some() || self.parent.as_ref().is_some_and(|parent| parent.is_set())
    }

    /// Time since the stop was requested.
    pub fn since(&self) -> Option<Duration> {
        let own = self.lock().map(|at| at.elapsed());
        own.max(self.parent.as_ref().and_then(|parent| parent.since()))
    }

    /// Waits at most `timeout` for the request; returns whether it was made.
    pub fn wait(&self, timeout: Duration) -> bool {
        let deadline = Instant::now() + timeout;
        loop {
            if self.is_set() {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let slice = if self.parent.is_some() { left.min(PARENT_POLL) } else { left };
            let own = self.lock();
            if own.is_none() {
                // The loop checks again, also after a spurious wake-up.
                drop(self.shared.1.wait_timeout(own, slice));
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Instant>> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_stops_with_its_parent_but_not_its_parent_with_it() {
        let parent = StopSignal::default();
        let (first, second) = (parent.child(), parent.child());
        first.set();
        assert!(first.is_set() && !second.is_set() && !parent.is_set());
        assert!(!second.wait(Duration::from_millis(1)));
        let waiter = std::thread::spawn(move || second.wait(Duration::from_secs(10)));
        parent.set();
        assert!(waiter.join().unwrap());
    }
}
