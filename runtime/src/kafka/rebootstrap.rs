//! Clients that have lost all brokers get the first ones again.
//!
//! librdkafka 2.12 forgets each broker that an answer about the cluster does not name. A node that has just started, or that its controller has missed
//! for a moment, names none at all, not even itself: then the client has nobody left to ask, and now and then does not find its way back by itself
//! (librdkafka issue 5301). Told of the bootstrap servers anew, it begins with them as it did at first.

use std::ffi::CString;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::bindings::rd_kafka_brokers_add;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};

/// The first pause between two times; each one is twice as long. The client keeps a list of what it was told, so that it cannot be told at will.
const FIRST: Duration = Duration::from_millis(500);
const LAST: Duration = Duration::from_secs(8);

/// A client that was well for so long begins with the first pause.
const WELL: Duration = Duration::from_secs(300);

/// A client's way back to its cluster.
pub(super) struct Rebootstrap {
    servers: CString,
    is_lost: AtomicBool,
    pace: Mutex<Pace>,
}

struct Pace {
    last: Option<Instant>,
    pause: Duration,
}

impl Rebootstrap {
    /// That of a client with this configuration.
    pub(super) fn of(config: &ClientConfig) -> Self {
        // One with a zero in it makes no client.
        let servers = CString::new(config.get("bootstrap.servers").unwrap_or_default()).unwrap_or_default();
        Self { servers, is_lost: AtomicBool::new(false), pace: Mutex::new(Pace { last: None, pause: FIRST }) }
    }

    /// Takes up an error that the client has reported.
    pub(super) fn reported(&self, error: &KafkaError) {
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::AllBrokersDown) {
            self.lost();
        }
    }

    /// No broker could be asked.
    pub(super) fn lost(&self) {
        self.is_lost.store(true, Ordering::Relaxed);
    }

    /// Tells the client of the bootstrap servers if it was lost, and was not told a moment ago. For one that merely waits for its brokers to come
    /// back it changes nothing.
    pub(super) fn mind(&self, client: &Client<impl ClientContext>) {
        if self.is_lost.load(Ordering::Relaxed) && self.pace.lock().unwrap_or_else(PoisonError::into_inner).is_due() {
            self.is_lost.store(false, Ordering::Relaxed);
            // SAFETY: the client is borrowed, and copies the text. The call may be made from any thread.
            unsafe { rd_kafka_brokers_add(client.native_ptr(), self.servers.as_ptr()) };
        }
    }
}

impl Pace {
    fn is_due(&mut self) -> bool {
        let since = self.last.map(|last| last.elapsed());
        if since.is_some_and(|since| since < self.pause) {
            return false;
        }
        self.pause = match since {
            Some(since) if since < WELL => (self.pause * 2).min(LAST),
            _ => FIRST,
        };
        self.last = Some(Instant::now());
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pause_doubles_and_begins_anew_after_a_while() {
        let mut pace = Pace { last: None, pause: FIRST };
        assert!(pace.is_due());
        assert!(!pace.is_due());
        let ago = |pause: Duration| Instant::now().checked_sub(pause);
        for _ in 0..10 {
            pace.last = ago(pace.pause);
            assert!(pace.is_due());
        }
        assert_eq!(pace.pause, LAST);
        pace.last = ago(WELL);
        assert!(pace.is_due());
        assert_eq!(pace.pause, FIRST);
    }
}
