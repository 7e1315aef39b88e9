//! The functions that a plugin may import (the interface `host` of the WIT package).
//!
//! Each of them has a limit, so that a plugin that calls them often cannot fill the log, the
//! metrics or the worker's memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::component::{ComponentType, Lift, Linker};

use crate::guest::GuestState;

/// Name of the imported interface.
pub(crate) const HOST_INTERFACE: &str = "trunkline:transform/host@1.0.0";

const MAX_LOG_LINES_PER_CALL: u32 = 100;
const MAX_LOG_LINE_BYTES: usize = 4096;
const MAX_METRIC_NAMES: usize = 64;
const MAX_METRIC_NAME_BYTES: usize = 128;
const MAX_OBSERVATIONS: usize = 10_000;

/// Counters and histograms of a plugin. See [`crate::Instance::take_metrics`].
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Metrics {
    /// Increments by counter name.
    pub counters: BTreeMap<String, u64>,
    /// Observations by histogram name.
    pub histograms: BTreeMap<String, Vec<f64>>,
}

impl Metrics {
    /// Whether it holds no counter and no histogram.
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty() && self.histograms.is_empty()
    }

    /// Adds the values of `other`.
    pub(crate) fn merge(&mut self, other: Self) {
        for (name, by) in other.counters {
            self.count(name, by);
        }
        for (name, values) in other.histograms {
            for value in values {
                self.observe(&name, value);
            }
        }
    }

    fn count(&mut self, name: String, by: u64) {
        if self.has_room_for(&name) {
            let counter = self.counters.entry(name).or_default();
            *counter = counter.saturating_add(by);
        }
    }

    fn observe(&mut self, name: &str, value: f64) {
        if self.has_room_for(name) {
            let values = self.histograms.entry(name.to_owned()).or_default();
            if values.len() < MAX_OBSERVATIONS {
                values.push(value);
            }
        }
    }

    fn has_room_for(&self, name: &str) -> bool {
        let known = self.counters.contains_key(name) || self.histograms.contains_key(name);
        known || (name.len() <= MAX_METRIC_NAME_BYTES && self.counters.len() + self.histograms.len() < MAX_METRIC_NAMES)
    }
}

/// The log lines and metrics of the current call.
#[derive(Debug)]
pub(crate) struct CallState {
    plugin: Arc<str>,
    log_lines: u32,
    /// The last line of level `error`: the most likely cause of a trap that follows it.
    pub(crate) last_error: Option<String>,
    pub(crate) metrics: Metrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "constructed by `Lift` from the plugin's argument")]
enum Level {
    #[component(name = "trace")]
    Trace,
    #[component(name = "debug")]
    Debug,
    #[component(name = "info")]
    Info,
    #[component(name = "warn")]
    Warn,
    #[component(name = "error")]
    Error,
}

impl CallState {
    pub(crate) fn new(plugin: Arc<str>) -> Self {
        Self { plugin, log_lines: 0, last_error: None, metrics: Metrics::default() }
    }

    /// Resets the state at the start of a call.
    pub(crate) fn begin(&mut self) {
        self.log_lines = 0;
        self.last_error = None;
        self.metrics = Metrics::default();
    }

    /// Reports at the end of a call how many log lines were omitted.
    pub(crate) fn end(&self) {
        if self.log_lines > MAX_LOG_LINES_PER_CALL {
            let omitted = self.log_lines - MAX_LOG_LINES_PER_CALL;
            tracing::warn!(
                plugin = %self.plugin,
                omitted,
                "the plugin logged more than {MAX_LOG_LINES_PER_CALL} lines in one call; the rest is omitted"
            );
        }
    }

    /// Logs the lines of an output stream. Language runtimes write exceptions to `stderr`, so its
    /// last line is the reason of a trap unless the plugin logged an error itself.
    pub(crate) fn log_stream(&mut self, text: &str, stderr: bool) {
        let logged_by_plugin = self.last_error.take();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.log(if stderr { Level::Error } else { Level::Info }, line);
        }
        self.last_error = logged_by_plugin.or(self.last_error.take());
    }

    fn log(&mut self, level: Level, message: &str) {
        let message = truncate(message, MAX_LOG_LINE_BYTES);
        if level == Level::Error {
            self.last_error = Some(message.to_owned());
        }
        self.log_lines = self.log_lines.saturating_add(1);
        if self.log_lines > MAX_LOG_LINES_PER_CALL {
            return;
        }
        let plugin = self.plugin.as_ref();
        match level {
            Level::Trace => tracing::trace!(plugin, "{message}"),
            Level::Debug => tracing::debug!(plugin, "{message}"),
            Level::Info => tracing::info!(plugin, "{message}"),
            Level::Warn => tracing::warn!(plugin, "{message}"),
            Level::Error => tracing::error!(plugin, "{message}"),
        }
    }
}

/// The longest prefix of whole characters that has at most `max_bytes` bytes.
pub(crate) fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// Defines the functions of the interface.
pub(crate) fn add_to_linker(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut host = linker.instance(HOST_INTERFACE)?;
    host.func_wrap("log", |mut store, (level, message): (Level, String)| {
        store.data_mut().call.log(level, &message);
        Ok(())
    })?;
    host.func_wrap("counter-add", |mut store, (name, by): (String, u64)| {
        store.data_mut().call.metrics.count(name, by);
        Ok(())
    })?;
    host.func_wrap("histogram-record", |mut store, (name, value): (String, f64)| {
        store.data_mut().call.metrics.observe(&name, value);
        Ok(())
    })?;
    host.func_wrap("now-ms", |_, (): ()| Ok((now_ms(),)))?;
    Ok(())
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_names_and_observations_are_limited() {
        let mut metrics = Metrics::default();
        for index in 0..100 {
            metrics.count(format!("c{index}"), 1);
            metrics.observe(&format!("h{index}"), 1.0);
        }
        assert_eq!(metrics.counters.len() + metrics.histograms.len(), MAX_METRIC_NAMES);
        metrics.count("x".repeat(MAX_METRIC_NAME_BYTES + 1), 1);
        for _ in 0..2 * MAX_OBSERVATIONS {
            metrics.observe("h0", 1.0);
        }
        assert_eq!(metrics.histograms["h0"].len(), MAX_OBSERVATIONS);
        assert_eq!(metrics.counters.len() + metrics.histograms.len(), MAX_METRIC_NAMES);
    }

    #[test]
    fn last_error_line_is_the_reason_of_a_trap() {
        let mut call = CallState::new("p".into());
        call.log_stream("hello\n", false);
        assert_eq!(call.last_error, None);
        call.log_stream("Traceback:\n  line 3\nValueError: no\n\n", true);
        assert_eq!(call.last_error.as_deref(), Some("ValueError: no"));
        call.begin();
        call.log(Level::Error, "panicked");
        call.log_stream("something else\n", true);
        assert_eq!(call.last_error.as_deref(), Some("panicked"));
    }

    #[test]
    fn text_is_truncated_between_characters() {
        assert_eq!(truncate("aé", 2), "a");
        assert_eq!(truncate("aé", 3), "aé");
        assert_eq!(truncate("a", 30), "a");
    }
}
