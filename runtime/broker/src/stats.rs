//! What clients ask of the broker, in numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counters since the broker was started. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct BrokerStats(Arc<Counters>);

#[derive(Debug, Default)]
struct Counters {
    connections: AtomicU64,
    requests: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Counts an open connection until it is dropped.
pub(crate) struct OpenConnection(BrokerStats);

impl BrokerStats {
    /// Open connections.
    pub fn connections(&self) -> u64 {
        self.0.connections.load(Ordering::Relaxed)
    }

    /// Answered and refused requests.
    pub fn requests(&self) -> u64 {
        self.0.requests.load(Ordering::Relaxed)
    }

    /// Bytes of requests.
    pub fn bytes_in(&self) -> u64 {
        self.0.bytes_in.load(Ordering::Relaxed)
    }

    /// Bytes of responses.
    pub fn bytes_out(&self) -> u64 {
        self.0.bytes_out.load(Ordering::Relaxed)
    }

    pub(crate) fn open(&self) -> OpenConnection {
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        OpenConnection(self.clone())
    }

    pub(crate) fn request(&self, bytes: usize) {
        self.0.requests.fetch_add(1, Ordering::Relaxed);
        self.0.bytes_in.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn response(&self, bytes: u64) {
        self.0.bytes_out.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_counted_while_they_are_open() {
        let stats = BrokerStats::default();
        let (first, second) = (stats.open(), stats.open());
        stats.request(7);
        stats.response(9);
        drop(first);
        assert_eq!((stats.connections(), stats.requests(), stats.bytes_in(), stats.bytes_out()), (1, 1, 7, 9));
        drop(second);
        assert_eq!(stats.connections(), 0);
    }
}
