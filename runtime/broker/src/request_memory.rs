//! The memory of requests that are being received or served, `queued.max.request.bytes`.
//!
//! A request reserves memory as its bytes arrive: a client that claims a huge request and sends
//! little of it holds little. The memory has two parts.
//!
//! - The **shared** part is for all requests.
//! - The **turn** has room for one request of the largest size. When the shared part is used up,
//!   one request at a time finishes there, and must keep a minimum pace. So requests that hold
//!   shared memory and wait for more never block each other.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

use crate::options::BrokerOptions;

/// The unit of the limit.
const PERMIT_BYTES: usize = 1024;
/// The pace that a request must keep while it has the turn: this many bytes a second...
const TURN_BYTES_PER_SECOND: u64 = 4 << 20;
/// ...after this time.
const TURN_GRACE: Duration = Duration::from_secs(1);

/// The memory of all requests.
#[derive(Debug)]
pub(crate) struct RequestMemory {
    shared: Arc<Semaphore>,
    turn: Arc<Semaphore>,
}

/// The memory of one request.
#[derive(Debug, Default)]
pub(crate) struct Reservation {
    bytes: usize,
    shared: Option<OwnedSemaphorePermit>,
    turn: Option<OwnedSemaphorePermit>,
}

impl RequestMemory {
    pub(crate) fn new(options: &BrokerOptions) -> Self {
        let shared = options.max_requests_bytes.saturating_sub(options.max_request_bytes) / PERMIT_BYTES;
        let shared = Arc::new(Semaphore::new(shared.min(Semaphore::MAX_PERMITS)));
        Self { shared, turn: Arc::new(Semaphore::new(1)) }
    }
}

impl Reservation {
    /// Whether the request has the turn.
    pub(crate) fn has_turn(&self) -> bool {
        self.turn.is_some()
    }

    /// How long a request with the turn may take for its remaining bytes.
    pub(crate) fn turn_limit(remaining: usize) -> Duration {
        TURN_GRACE + Duration::from_millis(remaining as u64 * 1000 / TURN_BYTES_PER_SECOND)
    }

    /// Waits until the request may hold `bytes` bytes.
    pub(crate) async fn grow(&mut self, memory: &RequestMemory, bytes: usize) -> Result<(), AcquireError> {
        if self.has_turn() || bytes <= self.bytes {
            return Ok(());
        }
        let permits = (bytes - self.bytes).div_ceil(PERMIT_BYTES);
        let permits = u32::try_from(permits).unwrap_or(u32::MAX);
        let acquired = match Arc::clone(&memory.shared).try_acquire_many_owned(permits) {
            Ok(permit) => permit,
            Err(_) => tokio::select! {
                biased;
                permit = Arc::clone(&memory.shared).acquire_many_owned(permits) => permit?,
                turn = Arc::clone(&memory.turn).acquire_owned() => {
                    self.turn = Some(turn?);
                    return Ok(());
                }
            },
        };
        self.bytes += permits as usize * PERMIT_BYTES;
        match &mut self.shared {
            Some(held) => held.merge(acquired),
            None => self.shared = Some(acquired),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory(all: usize, largest: usize) -> RequestMemory {
        RequestMemory::new(&BrokerOptions {
            max_requests_bytes: all << 20,
            max_request_bytes: largest << 20,
            ..BrokerOptions::new("unused")
        })
    }

    #[tokio::test]
    async fn requests_that_share_the_memory_finish_one_by_one() {
        let memory = Arc::new(memory(3, 1));
        let mut held = Vec::new();
        for _ in 0..2 {
            let mut reservation = Reservation::default();
            reservation.grow(&memory, 1 << 20).await.unwrap();
            held.push(reservation);
        }
        // The shared part is used up: every further request finishes with the turn.
        for _ in 0..5 {
            let mut reservation = Reservation::default();
            reservation.grow(&memory, 1 << 20).await.unwrap();
            assert!(reservation.has_turn());
        }
        let mut with_turn = Reservation::default();
        with_turn.grow(&memory, 10).await.unwrap();
        let mut waiting = Reservation::default();
        let waiter = tokio::spawn({
            let memory = Arc::clone(&memory);
            async move { waiting.grow(&memory, 1 << 20).await.map(|()| waiting) }
        });
        drop(held);
        let waited = waiter.await.unwrap().unwrap();
        assert!(!waited.has_turn(), "freed shared memory goes to those who wait");
        assert_eq!(waited.bytes, 1 << 20);
    }
}
