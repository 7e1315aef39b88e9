//! What a plugin may ask of its host (the interface `host` of the WIT package), and how much of it: a plugin can fill neither the log nor
//! the metrics nor the worker's memory by asking often.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::component::{ComponentType, Lift, Linker};

use crate::guest::State;

/// The instance that plugins import.
pub(crate) const HOST_INTERFACE: &str = "trunkline:transform/host@1.0.0";

const LINES_IN_A_CALL: u32 = 100;
const LINE_BYTES: usize = 4096;
const METRIC_NAMES: usize = 64;
const METRIC_NAME_BYTES: usize = 128;
const OBSERVATIONS: usize = 10_000;

/// What a plugin counted. See [`crate::Instance::take_metrics`].
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Metrics {
    /// What was added to each counter.
    pub counters: BTreeMap<String, u64>,
    /// What was observed in each histogram.
    pub histograms: BTreeMap<String, Vec<f64>>,
}

impl Metrics {
    /// Nothing counted?
    pub fn is_empty(&self) -> bool {
        self.counters.is_empty() && self.histograms.is_empty()
    }

    /// Adds what `other` counted.
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
            if values.len() < OBSERVATIONS {
                values.push(value);
            }
        }
    }

    fn has_room_for(&self, name: &str) -> bool {
        let known = self.counters.contains_key(name) || self.histograms.contains_key(name);
        known || (name.len() <= METRIC_NAME_BYTES && self.counters.len() + self.histograms.len() < METRIC_NAMES)
    }
}

/// What a plugin said and counted since the call began.
#[derive(Debug)]
pub(crate) struct Calls {
    plugin: Arc<str>,
    lines: u32,
    /// The last line of level `error`: most likely why it traps, if it does.
    pub(crate) last_error: Option<String>,
    pub(crate) metrics: Metrics,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ComponentType, Lift)]
#[component(enum)]
#[repr(u8)]
#[allow(dead_code, reason = "made by `Lift` out of what the plugin passes")]
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

impl Calls {
    pub(crate) fn new(plugin: Arc<str>) -> Self {
        Self { plugin, lines: 0, last_error: None, metrics: Metrics::default() }
    }

    /// A call begins.
    pub(crate) fn begin(&mut self) {
        self.lines = 0;
        self.last_error = None;
        self.metrics = Metrics::default();
    }

    /// A call ended: says how many lines were left out.
    pub(crate) fn end(&self) {
        if self.lines > LINES_IN_A_CALL {
            let left_out = self.lines - LINES_IN_A_CALL;
            tracing::warn!(plugin = %self.plugin, left_out, "the plugin logged more lines in one call than are kept");
        }
    }

    /// Logs the lines of an output stream. The last one of `stderr` is the reason of a trap unless the plugin gave one: there the runtimes
    /// of other languages write what was thrown.
    pub(crate) fn take_lines(&mut self, text: &str, stderr: bool) {
        let said = self.last_error.take();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.log(if stderr { Level::Error } else { Level::Info }, line);
        }
        self.last_error = said.or(self.last_error.take());
    }

    fn log(&mut self, level: Level, message: &str) {
        let message = cut(message, LINE_BYTES);
        if level == Level::Error {
            self.last_error = Some(message.to_owned());
        }
        self.lines = self.lines.saturating_add(1);
        if self.lines > LINES_IN_A_CALL {
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

/// At most `bytes` bytes of a text, whole characters.
pub(crate) fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// Defines the functions of the interface.
pub(crate) fn link(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let mut host = linker.instance(HOST_INTERFACE)?;
    host.func_wrap("log", |mut store, (level, message): (Level, String)| {
        store.data_mut().calls.log(level, &message);
        Ok(())
    })?;
    host.func_wrap("counter-add", |mut store, (name, by): (String, u64)| {
        store.data_mut().calls.metrics.count(name, by);
        Ok(())
    })?;
    host.func_wrap("histogram-record", |mut store, (name, value): (String, f64)| {
        store.data_mut().calls.metrics.observe(&name, value);
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
    fn names_and_observations_are_bounded() {
        let mut metrics = Metrics::default();
        for index in 0..100 {
            metrics.count(format!("c{index}"), 1);
            metrics.observe(&format!("h{index}"), 1.0);
        }
        assert_eq!(metrics.counters.len() + metrics.histograms.len(), METRIC_NAMES);
        metrics.count("x".repeat(METRIC_NAME_BYTES + 1), 1);
        for _ in 0..2 * OBSERVATIONS {
            metrics.observe("h0", 1.0);
        }
        assert_eq!(metrics.histograms["h0"].len(), OBSERVATIONS);
        assert_eq!(metrics.counters.len() + metrics.histograms.len(), METRIC_NAMES);
    }

    #[test]
    fn the_reason_of_a_trap_is_the_last_thing_said() {
        let mut calls = Calls::new("p".into());
        calls.take_lines("hello\n", false);
        assert_eq!(calls.last_error, None);
        calls.take_lines("Traceback:\n  line 3\nValueError: no\n\n", true);
        assert_eq!(calls.last_error.as_deref(), Some("ValueError: no"));
        calls.begin();
        calls.log(Level::Error, "panicked");
        calls.take_lines("something else\n", true);
        assert_eq!(calls.last_error.as_deref(), Some("panicked"));
    }

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(cut("aé", 2), "a");
        assert_eq!(cut("aé", 3), "aé");
        assert_eq!(cut("a", 30), "a");
    }
}
