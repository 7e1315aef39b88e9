//! The functions that a plugin may import (the interfaces `host`, `inputs`, `state` and `timers` of
//! the WIT package).
//!
//! Each of them has a limit, so that a plugin that calls them often cannot fill the log, the
//! metrics or the worker's memory.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, WasmList};

use crate::crash_reason;
use crate::guest::{GuestState, Inputs};
use crate::state::StateStore;
use crate::{state_functions, timers};

/// Names of the interfaces. Plugins of earlier and later minor versions find them, too.
const HOST_INTERFACE: &str = "trunkline:transform/host@1.1.0";
const INPUTS_INTERFACE: &str = "trunkline:transform/inputs@1.1.0";
pub(crate) const STATE_INTERFACE: &str = "trunkline:transform/state@1.1.0";
const TIMERS_INTERFACE: &str = "trunkline:transform/timers@1.1.0";
/// The names of interfaces in any version.
pub(crate) const ANY_STATE_INTERFACE: &str = "trunkline:transform/state@";
pub(crate) const ANY_TIMERS_INTERFACE: &str = "trunkline:transform/timers@";

const MAX_LOG_LINES_PER_CALL: usize = 100;
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

/// The log lines and metrics of the current call. The lines are written to the worker's log when
/// the call ends, because the host repeats a call that crashes: lines of crashed calls would appear
/// once per bisection step.
#[derive(Debug)]
pub(crate) struct CallState {
    plugin: Arc<str>,
    lines: Vec<(Level, String)>,
    omitted_lines: u64,
    /// The last line of level `error`: the most likely cause of a trap that follows it.
    last_error: Option<String>,
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
        Self { plugin, lines: Vec::new(), omitted_lines: 0, last_error: None, metrics: Metrics::default() }
    }

    /// Resets the state at the start of a call.
    pub(crate) fn begin(&mut self) {
        self.lines.clear();
        self.omitted_lines = 0;
        self.last_error = None;
        self.metrics = Metrics::default();
    }

    /// Writes the lines of a call that ended without a crash to the log.
    pub(crate) fn write_log(&mut self, stdout: &str, stderr: &str) {
        self.add_lines(Level::Info, stdout);
        self.add_lines(Level::Error, stderr);
        let plugin = self.plugin.as_ref();
        for (level, line) in self.lines.drain(..) {
            match level {
                Level::Trace => tracing::trace!(plugin, "{line}"),
                Level::Debug => tracing::debug!(plugin, "{line}"),
                Level::Info => tracing::info!(plugin, "{line}"),
                Level::Warn => tracing::warn!(plugin, "{line}"),
                Level::Error => tracing::error!(plugin, "{line}"),
            }
        }
        if self.omitted_lines > 0 {
            tracing::warn!(
                plugin,
                omitted = self.omitted_lines,
                "the plugin logged more than {MAX_LOG_LINES_PER_CALL} lines in one call; the rest is omitted"
            );
        }
    }

    /// Takes the lines of a call that crashed, and its cause as far as the plugin or its language
    /// runtime reported it.
    pub(crate) fn take_crash_output(&mut self, stdout: &str, stderr: &str) -> CrashOutput {
        let reason = crash_reason::from_stderr(stderr).map(|reason| truncate(&reason, MAX_LOG_LINE_BYTES).to_owned());
        // without stderr, the plugin logs its panics itself
        let reason = reason.or(self.last_error.take());
        self.add_lines(Level::Info, stdout);
        self.add_lines(Level::Error, stderr);
        CrashOutput { reason, lines: self.lines.drain(..).map(|(_, line)| line).collect() }
    }

    fn add_lines(&mut self, level: Level, text: &str) {
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            self.log(level, line);
        }
    }

    fn log(&mut self, level: Level, message: &str) {
        let message = truncate(message, MAX_LOG_LINE_BYTES);
        if level == Level::Error {
            self.last_error = Some(message.to_owned());
        }
        match self.lines.len() < MAX_LOG_LINES_PER_CALL {
            true => self.lines.push((level, message.to_owned())),
            false => self.omitted_lines += 1,
        }
    }
}

/// The output of a call that crashed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct CrashOutput {
    pub(crate) reason: Option<String>,
    pub(crate) lines: Vec<String>,
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
    let mut inputs = linker.instance(INPUTS_INTERFACE)?;
    inputs.func_wrap("declare", |mut store, (key, value, headers): (bool, bool, bool)| {
        let state = store.data_mut();
        if !state.is_starting {
            return Err(wasmtime::format_err!("the plugin declares its inputs outside of `init`"));
        }
        state.inputs = Inputs { key, value, headers };
        Ok(())
    })?;
    state_functions::add_to_linker(linker)?;
    add_timers(linker)
}

type Keys = (Vec<WasmList<u8>>,);

/// A timer as `set` receives it.
#[derive(ComponentType, Lift)]
#[component(record)]
struct NewTimer {
    key: WasmList<u8>,
    time: i64,
}

fn add_timers(linker: &mut Linker<GuestState>) -> wasmtime::Result<()> {
    let mut functions = linker.instance(TIMERS_INTERFACE)?;
    functions.func_wrap("set", |mut store, (timers,): (Vec<NewTimer>,)| {
        let earliest = timers.iter().map(|timer| timer.time).min();
        let state = store.data_mut();
        state.earliest_timer = state.earliest_timer.into_iter().chain(earliest).min();
        with_state(&mut store, |state, memory| {
            for timer in &timers {
                timers::set(state, timer.key.as_le_slice(memory), timer.time)?;
            }
            Ok(())
        })
    })?;
    functions.func_wrap("delete", |mut store, (keys,): Keys| {
        with_state(&mut store, |state, memory| {
            for key in &keys {
                timers::delete(state, key.as_le_slice(memory))?;
            }
            Ok(())
        })
    })?;
    functions.func_wrap("get", |mut store, (keys,): Keys| {
        let times = with_state(&mut store, |state, memory| {
            Ok(keys.iter().map(|key| timers::get(state, key.as_le_slice(memory))).collect::<Result<Vec<_>, _>>()?)
        })?;
        Ok((times,))
    })?;
    functions
        .func_wrap("event-time", |mut store, (): ()| Ok((with_state(&mut store, |state, _| Ok(state.time()))?,)))?;
    Ok(())
}

/// Calls a function with the state of the current batch and the plugin's memory. Traps outside of
/// `process`.
pub(crate) fn with_state<R>(
    store: &mut StoreContextMut<'_, GuestState>,
    call: impl FnOnce(&mut StateStore, &StoreContextMut<'_, GuestState>) -> wasmtime::Result<R>,
) -> wasmtime::Result<R> {
    let Some(mut state) = store.data_mut().state.take() else {
        return Err(wasmtime::format_err!(
            "the plugin uses state or timers outside of `process`, or in a place without state"
        ));
    };
    let result = call(&mut state, store);
    store.data_mut().state = Some(state);
    result
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
    fn reason_of_a_crash_is_the_last_error_on_stderr_or_in_the_log() {
        let crash_reason = |logged: &[(Level, &str)], stderr: &str| {
            let mut call = CallState::new("p".into());
            logged.iter().for_each(|(level, line)| call.log(*level, line));
            call.take_crash_output("hello\n", stderr)
        };
        assert_eq!(crash_reason(&[(Level::Info, "a")], "").reason, None);
        let logged = crash_reason(&[(Level::Error, "a"), (Level::Error, "b"), (Level::Warn, "c")], "");
        assert_eq!(
            (logged.reason.as_deref(), logged.lines),
            (Some("b"), ["a", "b", "c", "hello"].map(str::to_owned).to_vec())
        );
        assert_eq!(crash_reason(&[(Level::Error, "a")], "thrown\n").reason.as_deref(), Some("thrown"));
    }

    #[test]
    fn log_lines_of_a_call_are_limited() {
        let mut call = CallState::new("p".into());
        (0..150).for_each(|_| call.log(Level::Info, "line"));
        assert_eq!((call.lines.len(), call.omitted_lines), (MAX_LOG_LINES_PER_CALL, 50));
        call.begin();
        assert_eq!((call.lines.len(), call.omitted_lines), (0, 0));
    }

    #[test]
    fn text_is_truncated_between_characters() {
        assert_eq!(truncate("aé", 2), "a");
        assert_eq!(truncate("aé", 3), "aé");
        assert_eq!(truncate("a", 30), "a");
    }
}
