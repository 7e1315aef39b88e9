//! A plugin in a store of its own: built once, called batch by batch, given up when it dies.

use std::sync::Arc;
use std::time::Duration;

use wasmtime::component::{ComponentType, Func, Lift, Lower, ResourceTable};
use wasmtime::{ResourceLimiter, Store, Trap};
use wasmtime_wasi::{WasiCtx, WasiCtxView, WasiView};

use crate::calls::{Calls, Metrics, cut};
use crate::component::Loaded;
use crate::engine::TICK;
use crate::limits::Limits;
use crate::wasi::{self, Written};

/// Formats of batches and verdicts that this host speaks, the preferred one first.
const FORMATS: [u32; 1] = [1];
/// How much of a plugin's own words is kept.
const MESSAGE_BYTES: usize = 4096;
const TABLE_ELEMENTS: usize = 1 << 20;

#[derive(ComponentType, Lower)]
#[component(record)]
struct Offer<'a> {
    formats: &'a [u32],
    #[component(name = "host-version")]
    host_version: &'a str,
}

/// What a plugin answers to its configuration.
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

/// Why a plugin could not be started.
pub(crate) enum InitFault {
    /// It refused its configuration.
    Refused { message: String, key: Option<String> },
    /// It does not work.
    Broken(String),
}

/// Why a call gave no verdicts.
pub(crate) enum CallFault {
    /// The plugin says that the batch failed and may be tried again.
    Failed(String),
    /// The plugin did not survive; its store must not be used again.
    Died(Death),
}

/// What a plugin died of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Death {
    pub(crate) code: &'static str,
    pub(crate) message: String,
}

impl Death {
    pub(crate) const TIMEOUT: &'static str = "plugin.timeout";
    pub(crate) const OUTPUT: &'static str = "plugin.output";
    const MEMORY: &'static str = "plugin.memory";
    const TRAP: &'static str = "plugin.trap";
}

/// What the store holds beside the plugin.
pub(crate) struct State {
    pub(crate) calls: Calls,
    memory: MemoryLimit,
    wasi: WasiCtx,
    table: ResourceTable,
    stdout: Written,
    stderr: Written,
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        WasiCtxView { ctx: &mut self.wasi, table: &mut self.table }
    }
}

/// Refuses memory past the limit, and remembers that it did: the plugin will trap, by its own allocator's decision.
struct MemoryLimit {
    limit: usize,
    used: usize,
    refused: bool,
}

impl ResourceLimiter for MemoryLimit {
    fn memory_growing(&mut self, current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        // a component may have several memories; the limit is on their sum
        let after = self.used.saturating_add(desired.saturating_sub(current));
        self.refused |= after > self.limit;
        if after <= self.limit {
            self.used = after;
        }
        Ok(after <= self.limit)
    }

    fn table_growing(&mut self, _current: usize, desired: usize, _maximum: Option<usize>) -> wasmtime::Result<bool> {
        Ok(desired <= TABLE_ELEMENTS)
    }
}

/// A running plugin.
pub(crate) struct Guest {
    store: Store<State>,
    process: Func,
    flush: Func,
    limits: Limits,
}

impl Guest {
    /// Builds an instance and hands it its configuration.
    pub(crate) fn start(
        loaded: &Loaded,
        name: &Arc<str>,
        config: &str,
        limits: &Limits,
    ) -> Result<(Self, InitReply), InitFault> {
        let (stdout, stderr) = (Written::default(), Written::default());
        let state = State {
            calls: Calls::new(name.clone()),
            memory: MemoryLimit { limit: limits.memory, used: 0, refused: false },
            wasi: wasi::closed(&stdout, &stderr),
            table: ResourceTable::new(),
            stdout,
            stderr,
        };
        let mut store = Store::new(loaded.engine(), state);
        store.limiter(|state| &mut state.memory);
        begin(&mut store, limits, limits.time);
        let broken = |store: &Store<State>, error: wasmtime::Error| {
            InitFault::Broken(format!(
                "the plugin died while it was started: {}",
                death(store, &error, limits.time).message
            ))
        };
        let instance = match loaded.instance_pre().instantiate(&mut store) {
            Ok(instance) => instance,
            Err(error) => {
                end(&mut store);
                return Err(broken(&store, error));
            }
        };
        let exports = loaded.exports();
        let functions =
            [exports.init, exports.process, exports.flush].map(|index| instance.get_func(&mut store, index));
        let [Some(init), Some(process), Some(flush)] = functions else {
            return Err(InitFault::Broken("the plugin lost its exports".to_owned()));
        };
        let typed = init.typed::<(&str, Offer<'_>), (Result<InitReply, InitError>,)>(&store);
        let init = typed.map_err(|error| InitFault::Broken(format!("its export `init` has another type: {error}")))?;
        let offer = Offer { formats: &FORMATS, host_version: env!("CARGO_PKG_VERSION") };
        let called = init.call(&mut store, (config, offer));
        end(&mut store);
        let reply = match called {
            Ok((Ok(reply),)) => reply,
            Ok((Err(InitError { message, key }),)) => {
                let message = cut(&message, MESSAGE_BYTES).to_owned();
                return Err(InitFault::Refused { message, key: key.filter(|key| !key.is_empty()) });
            }
            Err(error) => return Err(broken(&store, error)),
        };
        if !FORMATS.contains(&reply.format) {
            let message =
                format!("the plugin wants format {} for batches, which was not offered: {FORMATS:?}", reply.format);
            return Err(InitFault::Broken(message));
        }
        Ok((Self { store, process, flush, limits: limits.clone() }, reply))
    }

    /// Verdicts on a sealed batch. After a death the guest must be given up.
    pub(crate) fn process(&mut self, batch: &[u8], time: Duration) -> Result<Vec<u8>, CallFault> {
        begin(&mut self.store, &self.limits, time);
        let called = match self.process.typed::<(&[u8],), (Result<Vec<u8>, String>,)>(&self.store) {
            Ok(process) => process.call(&mut self.store, (batch,)),
            Err(error) => Err(error),
        };
        self.end(called, time)
    }

    /// What the plugin still has to say.
    pub(crate) fn flush(&mut self) -> Result<Vec<u8>, CallFault> {
        let time = self.limits.time;
        begin(&mut self.store, &self.limits, time);
        let called = match self.flush.typed::<(), (Result<Vec<u8>, String>,)>(&self.store) {
            Ok(flush) => flush.call(&mut self.store, ()),
            Err(error) => Err(error),
        };
        self.end(called, time)
    }

    /// What the last call counted.
    pub(crate) fn take_metrics(&mut self) -> Metrics {
        std::mem::take(&mut self.store.data_mut().calls.metrics)
    }

    /// Bytes of linear memory.
    pub(crate) fn memory(&self) -> usize {
        self.store.data().memory.used
    }

    fn end(
        &mut self,
        called: wasmtime::Result<(Result<Vec<u8>, String>,)>,
        time: Duration,
    ) -> Result<Vec<u8>, CallFault> {
        end(&mut self.store);
        match called {
            Ok((Ok(verdicts),)) => Ok(verdicts),
            Ok((Err(message),)) => Err(CallFault::Failed(cut(&message, MESSAGE_BYTES).to_owned())),
            Err(error) => Err(CallFault::Died(death(&self.store, &error, time))),
        }
    }
}

fn begin(store: &mut Store<State>, limits: &Limits, time: Duration) {
    if !limits.trusted {
        let ticks = time.as_nanos().div_ceil(TICK.as_nanos());
        // one more: the tick under way is partly over
        store.set_epoch_deadline(u64::try_from(ticks).unwrap_or(u64::MAX - 1).saturating_add(1));
    }
    let state = store.data_mut();
    state.calls.begin();
    state.memory.refused = false;
}

/// Takes what the guest wrote to its streams into the log.
fn end(store: &mut Store<State>) {
    let state = store.data_mut();
    state.calls.take_lines(&state.stdout.take(), false);
    state.calls.take_lines(&state.stderr.take(), true);
    state.calls.end();
}

fn death(store: &Store<State>, error: &wasmtime::Error, time: Duration) -> Death {
    let state = store.data();
    if error.downcast_ref::<Trap>() == Some(&Trap::Interrupt) {
        return Death { code: Death::TIMEOUT, message: format!("the plugin did not return within {time:?}") };
    }
    if state.memory.refused {
        let message = format!("the plugin wanted more than its limit of {} bytes of memory", state.memory.limit);
        return Death { code: Death::MEMORY, message };
    }
    let cause = error.root_cause().to_string();
    let message = match &state.calls.last_error {
        Some(said) => format!("{said} ({cause})"),
        None => cause,
    };
    Death { code: Death::TRAP, message }
}
