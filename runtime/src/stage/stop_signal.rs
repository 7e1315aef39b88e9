//! The request to stop, shared by the threads of a worker, and announcements of changes that may
//! give them something to do.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Changes follow each other for at most this time.
const BUSY_TIME: Duration = Duration::from_secs(3);

/// A request to stop that threads can wait for.
#[derive(Clone, Default)]
pub struct StopSignal {
    shared: Arc<Shared>,
    parent: Option<Box<StopSignal>>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    requested: Condvar,
}

#[derive(Default)]
struct State {
    requested_at: Option<Instant>,
    /// The last change that was announced.
    announced_at: Option<Instant>,
    /// Called when the stop is requested.
    listeners: Vec<Arc<Listener>>,
}

type Listener = dyn Fn() + Send + Sync;

/// A function that is called when a stop is requested, until this is dropped.
#[must_use = "dropping it removes the function"]
pub struct StopListener {
    signal: StopSignal,
    listener: Arc<Listener>,
}

impl StopSignal {
    /// A signal that is set when this one is, and can be set alone.
    pub fn child(&self) -> Self {
        Self { shared: Arc::default(), parent: Some(Box::new(self.clone())) }
    }

    /// Requests the stop.
    pub fn set(&self) {
        let mut state = self.shared.lock();
        state.requested_at.get_or_insert_with(Instant::now);
        let listeners = state.listeners.clone();
        // Listeners take locks of their own.
        drop(state);
        self.shared.requested.notify_all();
        listeners.iter().for_each(|listener| listener());
    }

    /// The stop was requested.
    pub fn is_set(&self) -> bool {
        self.shared.lock().requested_at.is_some() || self.parent.as_ref().is_some_and(|parent| parent.is_set())
    }

    /// Time since the stop was requested.
    pub fn since(&self) -> Option<Duration> {
        let own = self.shared.lock().requested_at.map(|at| at.elapsed());
        own.max(self.parent.as_ref().and_then(|parent| parent.since()))
    }

    /// Calls `listener` when the stop is requested, in the thread that requests it; at once if it
    /// was requested before. It must not block.
    pub fn on_set(&self, listener: impl Fn() + Send + Sync + 'static) -> StopListener {
        let listener: Arc<Listener> = Arc::new(listener);
        for signal in self.with_ancestors() {
            signal.shared.lock().listeners.push(listener.clone());
        }
        if self.is_set() {
            listener();
        }
        StopListener { signal: self.clone(), listener }
    }

    /// Announces a change to the threads that wait with [`StopSignal::wait_for_change`].
    pub fn announce(&self) {
        self.shared.lock().announced_at = Some(Instant::now());
        self.shared.requested.notify_all();
    }

    /// Waits for the request, for at most `slow`, or until a change is announced. One change leads
    /// to others, in other threads: for some seconds after it, the longest wait is `quick`. Returns
    /// whether the request was made.
    pub fn wait_for_change(&self, quick: Duration, slow: Duration) -> bool {
        let known = self.shared.lock().announced_at;
        if known.is_some_and(|at| at.elapsed() < BUSY_TIME) {
            return self.wait(quick);
        }
        self.wait_until(slow, |state| state.announced_at != known)
    }

    /// Waits at most `timeout` for the request; returns whether it was made.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.wait_until(timeout, |_| false)
    }

    /// The same, and ends the wait when `is_enough`.
    fn wait_until(&self, timeout: Duration, is_enough: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + timeout;
        let own = self.shared.clone();
        let _woken_by_parent = self.parent.as_ref().map(|parent| {
            parent.on_set(move || {
                // With the lock, the waiter either waits already, or has not looked yet.
                drop(own.lock());
                own.requested.notify_all();
            })
        });
        let mut state = self.shared.lock();
        loop {
            if state.requested_at.is_some() || self.parent.as_ref().is_some_and(|parent| parent.is_set()) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || is_enough(&state) {
                return false;
            }
            state = self.shared.requested.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn with_ancestors(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |signal| signal.parent.as_deref())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for StopListener {
    fn drop(&mut self) {
        for signal in self.signal.with_ancestors() {
            signal.shared.lock().listeners.retain(|known| !Arc::ptr_eq(known, &self.listener));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

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

    #[test]
    fn an_announced_change_ends_a_wait_and_makes_the_next_ones_short() {
        let (signal, long) = (StopSignal::default(), Duration::from_secs(60));
        assert!(!signal.wait_for_change(long, Duration::from_millis(1)), "nothing was announced");
        let begun = Instant::now();
        std::thread::scope(|scope| {
            let waiter = scope.spawn(|| signal.wait_for_change(Duration::ZERO, long));
            while !waiter.is_finished() {
                signal.announce();
                std::thread::park_timeout(Duration::from_millis(1));
            }
            assert!(!waiter.join().unwrap());
        });
        assert!(!signal.wait_for_change(Duration::from_millis(1), long) && begun.elapsed() < long / 2);
        signal.set();
        assert!(signal.wait_for_change(long, long));
    }

    #[test]
    fn listeners_are_called_for_every_request_that_stops_their_signal() {
        let parent = StopSignal::default();
        let child = parent.child();
        let calls = Arc::new(AtomicUsize::new(0));
        let counted = |signal: &StopSignal| {
            let calls = calls.clone();
            signal.on_set(move || {
                calls.fetch_add(1, Ordering::Relaxed);
            })
        };
        let count = || calls.swap(0, Ordering::Relaxed);
        drop(counted(&child));
        let listener = counted(&child);
        parent.child().set();
        assert_eq!(count(), 0);
        child.set();
        assert_eq!(count(), 1);
        parent.set();
        assert_eq!(count(), 1);
        drop(listener);
        parent.set();
        assert_eq!(count(), 0);
        let _late = counted(&child);
        assert_eq!(count(), 1);
        assert!(parent.shared.lock().listeners.len() == 1 && child.shared.lock().listeners.len() == 1);
    }
}
