//! Clients re-bootstrap after losing every broker.
//!
//! librdkafka 2.12 drops each broker that is missing from a metadata response. A node that has just
//! started, or that its controller has missed for a moment, names no broker, not even itself. The
//! client then has no broker left to ask, and sometimes does not recover (librdkafka issue 5301).
//! Adding the bootstrap servers again lets it connect as it did at first.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;

use crate::backoff::Backoff;

/// Pauses between two additions. They grow because the client keeps a list of all servers that were
/// added.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const MAX_PAUSE: Duration = Duration::from_secs(8);

/// A client that had brokers for this long starts over with the first pause.
const HEALTHY: Duration = Duration::from_secs(300);

/// Adds a client's bootstrap servers again when it has lost all brokers.
pub(super) struct Rebootstrap {
    servers: CString,
    is_lost: AtomicBool,
    schedule: Mutex<Schedule>,
}

struct Schedule {
    last: Option<Instant>,
    pause: Duration,
    backoff: Backoff,
}

impl Rebootstrap {
    /// For a client with this configuration.
    pub(super) fn new(config: &ClientConfig) -> Self {
        // No client can be created with a zero byte in the servers.
        let servers = CString::new(config.get("bootstrap.servers").unwrap_or_default()).unwrap_or_default();
        Self { servers, is_lost: AtomicBool::new(false), schedule: Mutex::new(Schedule::new()) }
    }

    /// Notes that no broker could be asked.
    pub(super) fn set_lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Adds the bootstrap servers if the client has lost all brokers and the pause since the last
    /// addition is over. It changes nothing for a client that merely waits for its brokers to
    /// return.
    pub(super) fn run_if_due(&self, client: &Client<impl ClientContext>) {
        let is_due = || self.schedule.lock().unwrap_or_else(PoisonError::into_inner).is_due();
        if self.is_lost.load(Ordering::Relaxed) && is_due() {
            self.is_lost.store(false, Ordering::Relaxed);
            // SAFETY: the client is borrowed, and copies the text. The call may be made from any
            // thread.
            unsafe { rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

impl Schedule {
    const fn new() -> Self {
        Self { last: None, pause: Duration::ZERO, backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE) }
    }

    fn is_due(&mut self) -> bool {
        if let Some(last) = self.last {
            if last.elapsed() < self.pause {
                return false;
            }
            if last.elapsed() >= HEALTHY {
                self.backoff.reset();
            }
        }
        self.pause = self.backoff.advance();
        self.last = Some(Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_starts_over_after_a_healthy_period() {
        let mut schedule = Schedule::new();
        assert!(schedule.is_due());
        assert!(!schedule.is_due());
        assert_eq!(schedule.pause, FIRST_PAUSE);
        let ago = |pause: Duration| Instant::now().checked_sub(pause);
        for _ in 0..10 {
            schedule.last = ago(schedule.pause);
            assert!(schedule.is_due());
        }
        assert_eq!(schedule.pause, MAX_PAUSE);
        schedule.last = ago(HEALTHY);
        assert!(schedule.is_due());
        assert_eq!(schedule.pause, FIRST_PAUSE);
    }
}
