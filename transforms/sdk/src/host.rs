//! What a plugin may ask of its host. In tests on the native target the [`crate::testing::MockHost`] answers.

/// How grave a log line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Every step.
    Trace,
    /// For finding a fault.
    Debug,
    /// Worth knowing.
    Info,
    /// Something is odd.
    Warn,
    /// Something is wrong. The last line before a trap becomes the reason of the dead letter.
    Error,
}

#[cfg(target_arch = "wasm32")]
use crate::guest as answering;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing as answering;

/// Writes a line to the worker's log.
pub fn log(level: Level, message: &str) {
    answering::log(level, message);
}

/// Adds to a counter of the plugin; it appears in the worker's metrics. Counts of a batch that fails are forgotten.
pub fn counter_add(name: &str, by: u64) {
    answering::counter_add(name, by);
}

/// Records one observation in a histogram of the plugin.
pub fn histogram_record(name: &str, value: f64) {
    answering::histogram_record(name, value);
}

/// Milliseconds since 1970. (`SystemTime::now` panics on wasm32-unknown-unknown.)
pub fn now_ms() -> u64 {
    answering::now_ms()
}
