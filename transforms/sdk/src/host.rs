//! Functions of the host. In tests on the native target, [`crate::testing::MockHost`] implements
//! them.

/// Severity of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Details of each step.
    Trace,
    /// Information for debugging.
    Debug,
    /// Normal events.
    Info,
    /// Unexpected events that need no action.
    Warn,
    /// Errors. The last line before a trap becomes the reason of the dead letter.
    Error,
}

#[cfg(target_arch = "wasm32")]
use crate::guest as implementation;
#[cfg(not(target_arch = "wasm32"))]
use crate::testing as implementation;

/// Writes a line to the worker's log.
pub fn log(level: Level, message: &str) {
    implementation::log(level, message);
}

/// Adds to a counter of the plugin, which appears in the worker's metrics. The increments of a
/// failed batch are discarded.
pub fn counter_add(name: &str, by: u64) {
    implementation::counter_add(name, by);
}

/// Records an observation in a histogram of the plugin.
pub fn histogram_record(name: &str, value: f64) {
    implementation::histogram_record(name, value);
}

/// Milliseconds since 1970. (`SystemTime::now` panics on wasm32-unknown-unknown.)
pub fn now_ms() -> u64 {
    implementation::now_ms()
}
