//! The [`Host`]: engines, linkers, the clock that ends calls, the compile cache.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{Config, Engine};

use crate::bundled;
use crate::cache::CompileCache;
use crate::calls;
use crate::component::{LoadError, Loaded};
use crate::guest::State;
use crate::plugin::Plugin;
use crate::wasi;

/// How often running plugins are asked whether their time is over.
pub(crate) const TICK: Duration = Duration::from_millis(10);

/// What a host is made with.
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// Where compiled plugins are kept. It must belong to the worker alone: what lies there is run as native code. It is made with mode
    /// 0700; a directory that others may write to is not used. Without one, each start compiles anew.
    pub cache_dir: Option<PathBuf>,
}

/// Why there is no host.
#[derive(Debug, thiserror::Error)]
#[error("the WASM engine cannot be set up: {0}")]
pub struct HostError(String);

/// Loads plugins. One for a worker; plugins and instances outlive it.
pub struct Host {
    shared: Arc<Shared>,
}

/// What plugins and instances need of the host.
pub(crate) struct Shared {
    guarded: Engine,
    guarded_linker: Linker<State>,
    trusted: Engine,
    trusted_linker: Linker<State>,
    cache: Option<CompileCache>,
    /// Dropped with the last instance, which ends the ticker.
    _ticker: mpsc::Sender<()>,
}

impl Host {
    /// Sets up the engine.
    pub fn new(options: HostOptions) -> Result<Self, HostError> {
        let failed = |error: wasmtime::Error| HostError(format!("{error:#}"));
        let guarded = engine(true).map_err(failed)?;
        let trusted = engine(false).map_err(failed)?;
        let shared = Shared {
            guarded_linker: linker(&guarded).map_err(failed)?,
            trusted_linker: linker(&trusted).map_err(failed)?,
            cache: options.cache_dir.and_then(CompileCache::open),
            _ticker: start_ticker(guarded.clone()).map_err(|error| HostError(error.to_string()))?,
            guarded,
            trusted,
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Loads a plugin from a file. Its name is the file's.
    pub fn load(&self, path: &Path) -> Result<Plugin, LoadError> {
        let wasm = std::fs::read(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        self.load_bytes(&name, &wasm)
    }

    /// Loads a plugin from memory.
    pub fn load_bytes(&self, name: &str, wasm: &[u8]) -> Result<Plugin, LoadError> {
        Plugin::load(self.shared.clone(), name, wasm)
    }

    /// A plugin that comes with the worker, by its name such as `mask.wasm`; `None` if there is none of that name.
    pub fn bundled(&self, name: &str) -> Option<Result<Plugin, LoadError>> {
        bundled::wasm(name).map(|wasm| self.load_bytes(name, wasm))
    }

    /// Names of the plugins that come with the worker.
    pub fn bundled_names() -> &'static [&'static str] {
        bundled::NAMES
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").field("cache", &self.shared.cache).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn compile(&self, name: &str, wasm: &[u8], trusted: bool) -> Result<Loaded, LoadError> {
        let (engine, linker) = match trusted {
            true => (&self.trusted, &self.trusted_linker),
            false => (&self.guarded, &self.guarded_linker),
        };
        Loaded::new(name, wasm, engine, linker, self.cache.as_ref())
    }
}

fn engine(epochs: bool) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.wasm_component_model(true).epoch_interruption(epochs);
    Engine::new(&config)
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<State>> {
    let mut linker = Linker::new(engine);
    wasi::link(&mut linker)?;
    calls::link(&mut linker)?;
    Ok(linker)
}

/// Advances the epoch until the sender is dropped.
fn start_ticker(engine: Engine) -> std::io::Result<mpsc::Sender<()>> {
    let (alive, stopped) = mpsc::channel::<()>();
    std::thread::Builder::new().name("plugin-ticker".to_owned()).spawn(move || {
        while stopped.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            engine.increment_epoch();
        }
    })?;
    Ok(alive)
}
