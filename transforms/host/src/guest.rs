//! A running plugin in its own store. It is started once, called batch by batch, and discarded when
//! it crashes.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{ComponentType, Func, Lift, Lower, ResourceTable};
use wasmtime::{ResourceLimiter, Store, Trap};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::component::CompiledPlugin;
use crate::host_functions::{CallState, CrashOutput, Metrics, truncate};
use crate::limits::Limits;
use crate::state::StateStore;
use crate::ticker::{EPOCH_TICK, Ticker};
use crate::wasi::{self, OutputCapture};

/// Supported formats of batches and verdicts, the preferred one first.
const FORMATS: [u32; 1] = [1];
const MAX_MESSAGE_BYTES: usize = 4096;
const MAX_TABLE_ELEMENTS: usize = 1 << 20;

#[derive(ComponentType, Lower)]
#[component(record)]
struct Offer<'a> {
    formats: &'a [u32],
    #[component(name = "host-version")]
    host_version: &'a str,
}

/// The parts of records that a plugin reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Inputs {
    pub(crate) key: bool,
    pub(crate) value: bool,
    pub(crate) headers: bool,
}

impl Inputs {
    pub(crate) const ALL: Self = Self { key: true, value: true, headers: true };
}

/// A plugin's reply to `init`.
#[derive(Debug, Clone, PartialEq, Eq, ComponentType, Lift)]
#[component(record)]
pub(crate) struct InitReply {
    format: u32,
    pub(crate) ports: Vec<String>,
    #[component(name = "keeps-schema")]
    pub(crate) keeps_schema: bool,
}

#[derive(ComponentType, Lift)]
#[component(record)]
struct InitError {
    message: String,
    key: Option<String>,
}

/// The plugin could not be started.
pub(crate) enum GuestStartError {
    /// The plugin rejected its configuration.
    ConfigRejected { message: String, key: Option<String> },
    /// The plugin crashed, or replied with something that the interface does not allow.
    Broken(String),
}

/// A call returned no verdicts.
pub(crate) enum CallError {
    /// The plugin reports that the batch failed and may be retried.
    BatchFailed(String),
    /// The plugin crashed; its store must not be used again.
    Crashed(GuestCrash),
}

/// The cause of a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestCrash {
    pub(crate) code: &'static str,
    pub(crate) message: String,
    /// Lines that the plugin wrote during the call.
    pub(crate) output: Vec<String>,
}

impl GuestCrash {
    pub(crate) const TIMEOUT: &'static str = "plugin.timeout";
    pub(crate) const OUTPUT: &'static str = "plugin.output";
    const MEMORY: &'static str = "plugin.memory";
    const TRAP: &'static str = "plugin.trap";

    /// Writes the plugin's output, such as a traceback, to the log at level `debug`.
    pub(crate) fn log_output(&self, plugin: &str) {
        for line in &self.output {
            tracing::debug!(plugin, "{line}");
        }
    }
}

/// The host's data in the plugin's store.
pub(crate) struct GuestState {
    pub(crate) call: CallState,
    /// The state of the batch's topic partition, during a call of `process`.
    pub(crate) state: Option<StateStore>,
    /// The earliest time of the timers that the current call has set.
    pub(crate) earliest_timer: Option<i64>,
    pub(crate) inputs: Inputs,
    /// Whether `init` has not returned yet.
    pub(crate) is_starting: bool,
    memory: MemoryLimiter,
    wasi: WasiCtx,
    table: ResourceTable,
    stdout: OutputCapture,
    stderr: OutputCapture,
}

impl GuestState {
    /// Greatest size of the plugin's memory.
    pub(crate) fn memory_limit(&self) -> usize {
        self.memory.limit
    }

    /// The reason of a trap of a call whose result does not fit into the plugin's memory.
    pub(crate) fn refuse_memory(&mut self) -> wasmtime::Error {
        self.memory.refused = true;
        wasmtime::format_err!("the result of a call exceeds the plugin's memory")
    }
}

impl WasiView for GuestState {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Refuses memory beyond the limit. A refusal does not end the call: the plugin's allocator traps.
/// `refused` lets the host report that trap as a memory error.
struct MemoryLimiter {
    limit: usize,
    used: usize,
    refused: bool,
}

impl ResourceLimiter for MemoryLimiter {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // the limit applies to the sum of the component's memories
        let after = self.used.saturating_add(desired.saturating_sub(current));
        self.refused |= after > self.limit;
        if after <= self.limit {
            self.used = after;
        }
        Ok(after <= self.limit)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= MAX_TABLE_ELEMENTS)
    }
}

/// A running plugin.
pub(crate) struct Guest {
    store: Store<GuestState>,
    process: Func,
    flush: Func,
    limits: Limits,
    ticker: Arc<Ticker>,
}

impl Guest {
    /// Instantiates the plugin and calls `init` with its configuration.
    pub(crate) fn start(
        compiled: &CompiledPlugin,
        name: &Arc<str>,
        config: &str,
        limits: &Limits,
        ticker: &Arc<Ticker>,
    ) -> Result<(Self, InitReply), GuestStartError> {
        let _ticking = ticker.begin_call();
        let mut store = new_store(compiled, name, limits);
        begin_call(&mut store, limits, limits.timeout);
        let started = instantiate(&mut store, compiled, config);
        let (process, flush, reply) = match end_call(&mut store, started, limits.timeout) {
            Ok((process, flush, Ok(reply))) => (process, flush, reply),
            Ok((_, _, Err(InitError { message, key }))) => {
                let message = truncate(&message, MAX_MESSAGE_BYTES).to_owned();
                return Err(GuestStartError::ConfigRejected { message, key: key.filter(|key| !key.is_empty()) });
            }
            Err(crash) => {
                crash.log_output(name);
                return Err(GuestStartError::Broken(format!("the plugin crashed during start: {}", crash.message)));
            }
        };
        store.data_mut().is_starting = false;
        if !FORMATS.contains(&reply.format) {
            let message = format!(
                "the plugin selected batch format {}, which this worker did not offer; expected one of {FORMATS:?}",
                reply.format
            );
            return Err(GuestStartError::Broken(message));
        }
        Ok((Self { store, process, flush, limits: limits.clone(), ticker: ticker.clone() }, reply))
    }

    /// Returns the verdicts on a sealed batch. A guest that crashed must be discarded. `state`: the
    /// state that the plugin may use, if it has any.
    pub(crate) fn process(
        &mut self,
        batch: &[u8],
        timeout: Duration,
        state: &mut Option<StateStore>,
    ) -> Result<Vec<u8>, CallError> {
        let _ticking = self.ticker.begin_call();
        begin_call(&mut self.store, &self.limits, timeout);
        self.store.data_mut().state = state.take();
        let called = match self.process.typed::<(&[u8],), (Result<Vec<u8>, String>,)>(&self.store) {
            Ok(process) => process.call(&mut self.store, (batch,)),
            Err(error) => Err(error),
        };
        *state = self.store.data_mut().state.take();
        self.end(called, timeout)
    }

    /// Returns the verdict of `flush`.
    pub(crate) fn flush(&mut self) -> Result<Vec<u8>, CallError> {
        let timeout = self.limits.timeout;
        let _ticking = self.ticker.begin_call();
        begin_call(&mut self.store, &self.limits, timeout);
        let called = match self.flush.typed::<(), (Result<Vec<u8>, String>,)>(&self.store) {
            Ok(flush) => flush.call(&mut self.store, ()),
            Err(error) => Err(error),
        };
        self.end(called, timeout)
    }

    /// The parts of records that the plugin reads.
    pub(crate) fn inputs(&self) -> Inputs {
        self.store.data().inputs
    }

    /// The earliest time of the timers that the last call has set.
    pub(crate) fn earliest_timer(&self) -> Option<i64> {
        self.store.data().earliest_timer
    }

    /// Takes the metrics of the last call.
    pub(crate) fn take_metrics(&mut self) -> Metrics {
        std::mem::take(&mut self.store.data_mut().call.metrics)
    }

    /// Bytes of linear memory in use.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().memory.used
    }

    fn end(
        &mut self,
        called: wasmtime::Result<(Result<Vec<u8>, String>,)>,
        timeout: Duration,
    ) -> Result<Vec<u8>, CallError> {
        match end_call(&mut self.store, called, timeout) {
            Ok((Ok(verdicts),)) => Ok(verdicts),
            Ok((Err(message),)) => Err(CallError::BatchFailed(truncate(&message, MAX_MESSAGE_BYTES).to_owned())),
            Err(crash) => Err(CallError::Crashed(crash)),
        }
    }
}

fn new_store(compiled: &CompiledPlugin, name: &Arc<str>, limits: &Limits) -> Store<GuestState> {
    let (stdout, stderr) = (OutputCapture::default(), OutputCapture::default());
    let state = GuestState {
        call: CallState::new(name.clone()),
        state: None,
        earliest_timer: None,
        inputs: Inputs::ALL,
        is_starting: true,
        memory: MemoryLimiter { limit: limits.memory, used: 0, refused: false },
        wasi: wasi::isolated_context(&stdout, &stderr),
        table: ResourceTable::new(),
        stdout,
        stderr,
    };
    let mut store = Store::new(compiled.engine(), state);
    store.limiter(|state| &mut state.memory);
    store
}

type Started = (Func, Func, Result<InitReply, InitError>);

/// Instantiates the plugin and calls `init`. Returns its functions `process` and `flush`.
fn instantiate(store: &mut Store<GuestState>, compiled: &CompiledPlugin, config: &str) -> wasmtime::Result<Started> {
    let instance = compiled.instance_pre().instantiate(&mut *store)?;
    let exports = compiled.exports();
    let functions = [exports.init, exports.process, exports.flush].map(|index| instance.get_func(&mut *store, index));
    let [Some(init), Some(process), Some(flush)] = functions else {
        return Err(wasmtime::format_err!("the instance lacks an export of the component"));
    };
    let init = init.typed::<(&str, Offer<'_>), (Result<InitReply, InitError>,)>(&*store)?;
    let offer = Offer { formats: &FORMATS, host_version: env!("CARGO_PKG_VERSION") };
    let (reply,) = init.call(store, (config, offer))?;
    Ok((process, flush, reply))
}

fn begin_call(store: &mut Store<GuestState>, limits: &Limits, timeout: Duration) {
    if !limits.trusted {
        let ticks = timeout.as_nanos().div_ceil(EPOCH_TICK.as_nanos());
        // one more tick, because the current one has partly elapsed
        store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX - 1).saturating_add(1));
    }
    let state = store.data_mut();
    state.call.begin();
    state.earliest_timer = None;
    state.memory.refused = false;
}

/// Ends a call. Writes its output to the log, unless it crashed.
fn end_call<R>(store: &mut Store<GuestState>, called: wasmtime::Result<R>, timeout: Duration) -> Result<R, GuestCrash> {
    let state = store.data_mut();
    let (stdout, stderr) = (state.stdout.take(), state.stderr.take());
    match called {
        Ok(result) => {
            state.call.write_log(&stdout, &stderr);
            Ok(result)
        }
        Err(error) => {
            let output = state.call.take_crash_output(&stdout, &stderr);
            Err(state.crash(&error, timeout, output))
        }
    }
}

impl GuestState {
    fn crash(&self, error: &wasmtime::Error, timeout: Duration, output: CrashOutput) -> GuestCrash {
        let (code, message) = if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
            (GuestCrash::TIMEOUT, format!("the plugin did not return within {timeout:?}"))
        } else if self.memory.refused {
            let message = format!("the plugin needs more memory than its limit of {} bytes", self.memory.limit);
            (GuestCrash::MEMORY, message)
        } else {
            let cause = error.root_cause().to_string();
            let message = match output.reason {
                Some(reason) => format!("{reason} ({cause})"),
                None => cause,
            };
            (GuestCrash::TRAP, message)
        };
        GuestCrash { code, message, output: output.lines }
    }
}
