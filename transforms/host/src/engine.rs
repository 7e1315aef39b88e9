//! The [`Host`]: engines, linkers, the clock for time limits and the compile cache.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use wasmtime::component::Linker;
use wasmtime::{Config, Engine};

use crate::bundled::{self, Bundled};
use crate::cache::CompileCache;
use crate::component::{CompiledPlugin, LoadError};
use crate::guest::GuestState;
use crate::host_functions;
use crate::plugin::Plugin;
use crate::ticker::Ticker;
use crate::wasi;

/// Options of a [`Host`].
#[derive(Debug, Clone, Default)]
pub struct HostOptions {
    /// Directories for compiled plugins: the first one that can be used is used. Its files are
    /// executed as native code, so it must belong to the user: it is created with mode 0700, and a
    /// directory of another user, or one that others may write to, is not used. Without a
    /// directory, every start compiles all plugins.
    pub cache_dirs: Vec<PathBuf>,
}

/// The WASM engine cannot be set up.
#[derive(Debug, thiserror::Error)]
#[error("the WASM engine cannot be set up: {0}")]
pub struct HostError(String);

/// Loads plugins. A worker has one host; plugins and instances may outlive it.
pub struct Host {
    inner: Arc<HostInner>,
}

/// The part of the host that plugins and instances keep alive.
pub(crate) struct HostInner {
    /// With epoch interruption, so that the time limit of a call can be enforced.
    interruptible: Engine,
    interruptible_linker: Linker<GuestState>,
    /// Without epoch interruption, for plugins with `trusted = true`.
    trusted: Engine,
    trusted_linker: Linker<GuestState>,
    cache: Option<CompileCache>,
    /// Compiled bundled files, by the address of their bytes: several plugins share a file.
    bundled: Mutex<HashMap<usize, Arc<CompiledPlugin>>>,
    ticker: Arc<Ticker>,
}

impl Host {
    /// Sets up the engines, and opens the compile cache.
    pub fn new(options: HostOptions) -> Result<Self, HostError> {
        let failed = |error: wasmtime::Error| HostError(format!("{error:#}"));
        let interruptible = engine(true).map_err(failed)?;
        let trusted = engine(false).map_err(failed)?;
        let inner = HostInner {
            interruptible_linker: linker(&interruptible).map_err(failed)?,
            trusted_linker: linker(&trusted).map_err(failed)?,
            cache: CompileCache::open(&options.cache_dirs),
            ticker: Ticker::start(interruptible.clone()).map_err(|error| HostError(error.to_string()))?,
            bundled: Mutex::default(),
            interruptible,
            trusted,
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Loads a plugin from a file. The plugin's name is the file name.
    pub fn load(&self, path: &Path) -> Result<Plugin, LoadError> {
        let wasm = std::fs::read(path).map_err(|error| LoadError::Read { path: path.to_owned(), error })?;
        let name =
            path.file_name().map_or_else(|| path.display().to_string(), |name| name.to_string_lossy().into_owned());
        Plugin::load(self.inner.clone(), &name, wasm.into())
    }

    /// Loads a plugin from memory.
    pub fn load_bytes(&self, name: &str, wasm: &[u8]) -> Result<Plugin, LoadError> {
        Plugin::load(self.inner.clone(), name, wasm.to_vec().into())
    }

    /// Loads a bundled plugin by its name, such as `mask.wasm`. `None` if no bundled plugin has
    /// this name.
    pub fn bundled(&self, name: &str) -> Option<Result<Plugin, LoadError>> {
        let Bundled { name, wasm, variant } = bundled::find(name)?;
        Some(
            self.inner
                .compile_bundled(name, wasm)
                .map(|compiled| Plugin::new(self.inner.clone(), name, variant, wasm.into(), compiled)),
        )
    }

    /// Names of the bundled plugins.
    pub fn bundled_names() -> &'static [&'static str] {
        bundled::NAMES
    }
}

impl fmt::Debug for Host {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Host").field("cache", &self.inner.cache).finish_non_exhaustive()
    }
}

impl HostInner {
    pub(crate) fn compile(&self, name: &str, wasm: &[u8], trusted: bool) -> Result<CompiledPlugin, LoadError> {
        let (engine, linker) = match trusted {
            true => (&self.trusted, &self.trusted_linker),
            false => (&self.interruptible, &self.interruptible_linker),
        };
        CompiledPlugin::new(name, wasm, engine, linker, self.cache.as_ref())
    }

    /// The clock for the time limits of calls.
    pub(crate) fn ticker(&self) -> &Arc<Ticker> {
        &self.ticker
    }

    /// Compiles a bundled file once.
    fn compile_bundled(&self, name: &str, wasm: &'static [u8]) -> Result<Arc<CompiledPlugin>, LoadError> {
        let mut bundled = self.bundled.lock().unwrap_or_else(PoisonError::into_inner);
        let address = wasm.as_ptr().addr();
        if let Some(compiled) = bundled.get(&address) {
            return Ok(compiled.clone());
        }
        let compiled = Arc::new(self.compile(name, wasm, false)?);
        bundled.insert(address, compiled.clone());
        Ok(compiled)
    }
}

fn engine(epoch_interruption: bool) -> wasmtime::Result<Engine> {
    let mut config = Config::new();
    config.wasm_component_model(true).epoch_interruption(epoch_interruption);
    Engine::new(&config)
}

fn linker(engine: &Engine) -> wasmtime::Result<Linker<GuestState>> {
    let mut linker = Linker::new(engine);
    wasi::add_to_linker(&mut linker)?;
    host_functions::add_to_linker(&mut linker)?;
    Ok(linker)
}
