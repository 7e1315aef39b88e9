//! The process-wide byte budget (I6). Large users of memory reserve it here first: batches in
//! flight, open files, plugins. When the budget is exhausted, reservers wait, which pauses
//! partitions, and sinks commit early. No record is dropped.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

/// A budget in bytes, shared by cloning.
#[derive(Clone)]
pub struct MemoryBudget {
    shared: Arc<Shared>,
}

struct Shared {
    limit: usize,
    used: Mutex<usize>,
    released: Condvar,
}

impl MemoryBudget {
    /// A budget of `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self { shared: Arc::new(Shared { limit, used: Mutex::new(0), released: Condvar::new() }) }
    }

    /// Its size in bytes.
    pub fn limit(&self) -> usize {
        self.shared.limit
    }

    /// Bytes reserved now. It may pass the limit: see [`Reservation::resize`].
    pub fn used(&self) -> usize {
        *self.lock()
    }

    /// More than three quarters of the budget are reserved: buffers should be written out.
    pub fn is_tight(&self) -> bool {
        self.used() > self.shared.limit / 4 * 3
    }

    /// Waits until `bytes` are free; returns `None` at the `deadline`. A request larger than the
    /// whole budget is granted when nothing else is reserved, so that a huge record cannot block
    /// its partition forever.
    pub fn reserve(&self, bytes: usize, deadline: Instant) -> Option<Reservation> {
        let mut used = self.lock();
        while *used + bytes > self.shared.limit && *used > 0 {
            let left = deadline.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
            used = self.shared.released.wait_timeout(used, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *used += bytes;
        Some(Reservation { budget: self.clone(), bytes })
    }

    /// A reservation of zero bytes, to be resized.
    pub fn empty(&self) -> Reservation {
        Reservation { budget: self.clone(), bytes: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        // A count cannot be left half-changed by a panic.
        self.shared.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reserved bytes, returned when dropped.
pub struct Reservation {
    budget: MemoryBudget,
    bytes: usize,
}

impl Reservation {
    /// Reserved bytes.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the reservation without waiting, because memory in use cannot be refused. The budget
    /// may then exceed its limit; other reservers wait until it is below again.
    pub fn resize(&mut self, bytes: usize) {
        let mut used = self.budget.lock();
        *used = *used + bytes - self.bytes;
        let shrunk = bytes < self.bytes;
        self.bytes = bytes;
        drop(used);
        if shrunk {
            self.budget.shared.released.notify_all();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.resize(0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_full_budget_makes_waiters_wait_until_bytes_come_back() {
        let budget = MemoryBudget::new(100);
        let held = budget.reserve(80, Instant::now()).unwrap();
        assert!(budget.is_tight());
        assert!(budget.reserve(30, Instant::now() + Duration::from_millis(5)).is_none());
        let waiter = std::thread::spawn({
            let budget = budget.clone();
            move || budget.reserve(30, Instant::now() + Duration::from_secs(10)).map(|held| held.bytes())
        });
        drop(held);
        assert_eq!(waiter.join().unwrap(), Some(30));
        assert_eq!(budget.used(), 0);
    }

    #[test]
    fn a_request_beyond_the_whole_is_granted_alone() {
        let budget = MemoryBudget::new(100);
        let mut held = budget.reserve(1000, Instant::now()).unwrap();
        assert!(budget.reserve(1, Instant::now()).is_none());
        held.resize(10);
        assert!(budget.reserve(1, Instant::now()).is_some());
    }
}
