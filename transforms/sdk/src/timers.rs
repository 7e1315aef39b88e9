//! Timers by event time: a transform sets them for a key and a time, and gets them in
//! [`Transform::timer`] when the event time of the topic partition reaches that time. They are
//! durable, as [`state`](crate::state) is.
//!
//! The event time of a topic partition is the greatest timestamp of its records. A timer fires
//! before the first record whose timestamp reaches its time, so the output does not depend on how
//! records are divided into batches. To wait for records that arrive late, add a time to that of
//! the timer. Without records, event time stands still, unless the pipeline sets `timers.idle`.
//!
//! ```
//! use trunkline_plugin::timers::{Timer, Timers};
//! use trunkline_plugin::{ConfigError, Done, Record, Transform, Verdict};
//!
//! /// Emits the key of a device that sends nothing for a minute.
//! struct Silence {
//!     silent: Timers,
//! }
//!
//! impl Transform for Silence {
//!     type Config = serde_json::Value;
//!
//!     fn new(_: serde_json::Value) -> Result<Self, ConfigError> {
//!         Ok(Self { silent: Timers::new("silent") })
//!     }
//!
//!     fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
//!         if let (Some(key), Some(time)) = (record.key(), record.timestamp()) {
//!             self.silent.set(key, time + 60_000);
//!         }
//!         Ok(verdict.pass())
//!     }
//!
//!     fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
//!         Ok(verdict.emit(|out| out.record(|parts| _ = parts.key(Some(timer.key)))))
//!     }
//! }
//!
//! trunkline_plugin::export!(Silence);
//!
//! // In the plugin's tests:
//! use trunkline_plugin::testing::{Input, MockHost};
//! let mut host = MockHost::<Silence>::start(serde_json::json!({}))?;
//! host.process(&[Input::value("").key("a").at(0), Input::value("").key("b").at(60_000)])?;
//! assert_eq!(host.take_fired()[0].emitted()[0].record.key.as_deref(), Some(&b"a"[..]));
//! host.advance_time(120_000)?; // as the option `timers.idle` does
//! assert_eq!(host.take_fired()[0].emitted()[0].record.timestamp, Some(120_000));
//! # Ok::<(), String>(())
//! ```
//!
//! [`Transform::timer`]: crate::Transform::timer

use crate::Record;
#[cfg(target_arch = "wasm32")]
use crate::guest as implementation;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing as implementation;

/// Separates the name of a collection from the keys of its timers.
const SEPARATOR: u8 = 0;

/// The event time of the topic partition before this call, in milliseconds since 1970; `None` if no
/// record had a timestamp. In [`Transform::process`], the records of the batch advance it one by
/// one. It shows whether a record is late for what a timer has ended, also if event time has
/// advanced without records.
///
/// [`Transform::process`]: crate::Transform::process
pub fn event_time() -> Option<i64> {
    implementation::event_time()
}

/// A collection of timers. Keys are bytes, times are milliseconds since 1970. A key has at most one
/// timer.
#[derive(Debug)]
pub struct Timers {
    /// The name and the separator.
    prefix: Vec<u8>,
}

impl Timers {
    /// The collection of this name. The collections of a plugin have different names, without zero
    /// bytes.
    pub fn new(name: &str) -> Self {
        let mut prefix = name.as_bytes().to_vec();
        prefix.push(SEPARATOR);
        Self { prefix }
    }

    /// Sets the timer of a key; it replaces an earlier one. A timer whose time has passed fires
    /// after this record.
    pub fn set(&self, key: impl AsRef<[u8]>, time: i64) {
        self.set_all([(key, time)]);
    }

    /// Sets several timers.
    pub fn set_all<K: AsRef<[u8]>>(&self, timers: impl IntoIterator<Item = (K, i64)>) {
        let timers: Vec<_> = timers.into_iter().map(|(key, time)| (self.stored(key), time)).collect();
        if !timers.is_empty() {
            implementation::timers_set(timers);
        }
    }

    /// Removes the timer of a key, if there is one.
    pub fn delete(&self, key: impl AsRef<[u8]>) {
        self.delete_all(&[key]);
    }

    /// Removes several timers.
    pub fn delete_all(&self, keys: &[impl AsRef<[u8]>]) {
        if !keys.is_empty() {
            implementation::timers_delete(keys.iter().map(|key| self.stored(key)).collect());
        }
    }

    /// The time of the timer of a key.
    pub fn get(&self, key: impl AsRef<[u8]>) -> Option<i64> {
        self.get_all(&[key]).pop().flatten()
    }

    /// The times of the timers of several keys, in order.
    pub fn get_all(&self, keys: &[impl AsRef<[u8]>]) -> Vec<Option<i64>> {
        if keys.is_empty() {
            return Vec::new();
        }
        implementation::timers_get(keys.iter().map(|key| self.stored(key)).collect())
    }

    fn stored(&self, key: impl AsRef<[u8]>) -> Vec<u8> {
        [&self.prefix, key.as_ref()].concat()
    }
}

/// A timer that fires.
#[derive(Debug, Clone, Copy)]
pub struct Timer<'a> {
    /// The name of its collection.
    pub name: &'a str,
    /// Its key.
    pub key: &'a [u8],
    /// Its time: milliseconds since 1970.
    pub time: i64,
    /// The topic of the records whose event time it follows.
    pub topic: &'a str,
    /// Their partition.
    pub partition: i32,
}

impl<'a> Timer<'a> {
    /// The timer that an entry of a batch stands for.
    pub(crate) fn of(entry: Record<'a>) -> Self {
        let stored = entry.key().unwrap_or_default();
        let at = stored.iter().position(|byte| *byte == SEPARATOR);
        let (name, key) = at.map_or((&[][..], stored), |at| (&stored[..at], &stored[at + 1..]));
        let name = std::str::from_utf8(name).unwrap_or_default();
        let (topic, partition) = (entry.topic(), entry.partition());
        Self { name, key, time: entry.time(), topic, partition }
    }
}
