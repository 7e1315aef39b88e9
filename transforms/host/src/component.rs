//! Compiles a file's bytes and checks that they are a plugin.
//!
//! A file is either a component or a core module with its WIT world in a custom section (the output
//! of `cargo build --target wasm32-unknown-unknown` with the SDK). A core module is encoded as a
//! component here. All checks that need no execution happen here; each error states what was found,
//! what was expected and how to get it.

use std::borrow::Cow;
use std::path::PathBuf;
use std::time::Instant;

use wasmtime::Engine;
use wasmtime::component::types::{ComponentFunc, ComponentItem, Type};
use wasmtime::component::{Component, ComponentExportIndex, InstancePre, Linker};
use wit_component::ComponentEncoder;
use xxhash_rust::xxh3::xxh3_128;

use crate::WIT_VERSION;
use crate::cache::CompileCache;
use crate::guest::GuestState;
use crate::host_functions::{ANY_STATE_INTERFACE, ANY_TIMERS_INTERFACE};

/// The engine finds the interface of another minor version by this name, too.
const PLUGIN_INTERFACE: &str = "trunkline:transform/plugin@1.1.0";
const PLUGIN_INTERFACE_NAME: &str = "trunkline:transform/plugin@";
const HOW_TO_BUILD: &str = "to build a plugin, see transforms/README.md: a crate that uses `trunkline-plugin`, `cargo build --release \
                            --target wasm32-unknown-unknown`";

/// Plugins of this size contain a language runtime.
const SLOW_COMPILE_BYTES: usize = 2 << 20;

/// A plugin cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("cannot read the plugin {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        error: std::io::Error,
    },
    /// The file does not contain WebAssembly.
    #[error("`{name}` is {found}; expected a WebAssembly component or core module ({})", HOW_TO_BUILD)]
    NotWasm {
        /// The plugin's name.
        name: String,
        /// The kind of file that was found.
        found: String,
    },
    /// The core module does not name the world that it was built for.
    #[error(
        "`{name}` is a core module that cannot be encoded as a component: {detail}; expected a module built for the world \
         `trunkline:transform/transform@{}` ({})",
        WIT_VERSION,
        HOW_TO_BUILD
    )]
    NoWorld {
        /// The plugin's name.
        name: String,
        /// The missing part.
        detail: String,
    },
    /// The component was built for a different world.
    #[error(
        "`{name}` does not fit this worker: {detail}; expected the exports of `{}` ({})",
        PLUGIN_INTERFACE,
        HOW_TO_BUILD
    )]
    WrongWorld {
        /// The plugin's name.
        name: String,
        /// The export that is missing or has an unexpected type.
        detail: String,
    },
    /// The plugin imports a function that the host does not have.
    #[error("`{name}` imports a function that this worker does not have: {detail}; update the worker or the plugin")]
    Imports {
        /// The plugin's name.
        name: String,
        /// The import.
        detail: String,
    },
    /// The WebAssembly is invalid.
    #[error("`{name}` does not compile: {detail}")]
    Compile {
        /// The plugin's name.
        name: String,
        /// The cause.
        detail: String,
    },
}

/// What a plugin's file contains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// `core module` or `component`.
    pub kind: &'static str,
    /// The exported interface with its version.
    pub interface: String,
    /// The imported interfaces.
    pub imports: Vec<String>,
}

/// Indices of a plugin's exported functions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exports {
    pub(crate) init: ComponentExportIndex,
    pub(crate) process: ComponentExportIndex,
    pub(crate) flush: ComponentExportIndex,
}

/// A compiled plugin with resolved imports and exports.
pub(crate) struct CompiledPlugin {
    hash: u128,
    instance_pre: InstancePre<GuestState>,
    exports: Exports,
}

impl CompiledPlugin {
    /// Compiles the plugin or reads it from the cache, and checks its imports and exports.
    pub(crate) fn new(
        name: &str,
        wasm: &[u8],
        engine: &Engine,
        linker: &Linker<GuestState>,
        cache: Option<&CompileCache>,
    ) -> Result<Self, LoadError> {
        let kind = WasmKind::detect(wasm).map_err(|found| LoadError::NotWasm { name: name.to_owned(), found })?;
        let (hash, cached) = cache.map_or_else(|| (xxh3_128(wasm), None), |cache| cache.get(engine, wasm));
        let component = match cached {
            Some(component) => component,
            None => {
                let compiled = compile_with_log(name, kind, wasm, engine)?;
                if let Some(cache) = cache {
                    cache.put(engine, hash, wasm, &compiled);
                }
                compiled
            }
        };
        let exports = find_exports(name, &component)?;
        let instance_pre = linker
            .instantiate_pre(&component)
            .map_err(|error| LoadError::Imports { name: name.to_owned(), detail: format!("{error:#}") })?;
        Ok(Self { hash, instance_pre, exports })
    }

    /// The interface version and the imports of the plugin.
    pub(crate) fn contents(&self, wasm: &[u8]) -> Contents {
        let component = self.instance_pre.component();
        let (engine, ty) = (component.engine(), component.component_type());
        let interface = ty.exports(engine).map(|(name, _)| name).find(|name| name.starts_with(PLUGIN_INTERFACE_NAME));
        Contents {
            kind: match WasmKind::detect(wasm) {
                Ok(WasmKind::CoreModule) => "core module",
                _ => "component",
            },
            interface: interface.unwrap_or(PLUGIN_INTERFACE).to_owned(),
            imports: ty.imports(engine).map(|(name, _)| name.to_owned()).collect(),
        }
    }

    /// Whether it imports the interface for state, or the one for timers, which are state.
    pub(crate) fn imports_state(&self) -> bool {
        self.imports(ANY_STATE_INTERFACE) || self.imports_timers()
    }

    /// Whether it imports the interface for timers.
    pub(crate) fn imports_timers(&self) -> bool {
        self.imports(ANY_TIMERS_INTERFACE)
    }

    fn imports(&self, interface: &str) -> bool {
        let component = self.instance_pre.component();
        let ty = component.component_type();
        ty.imports(component.engine()).any(|(name, _)| name.starts_with(interface))
    }

    /// The hash (XXH3) of the file's bytes.
    pub(crate) fn hash(&self) -> u128 {
        self.hash
    }

    pub(crate) fn engine(&self) -> &Engine {
        self.instance_pre.engine()
    }

    pub(crate) fn instance_pre(&self) -> &InstancePre<GuestState> {
        &self.instance_pre
    }

    pub(crate) fn exports(&self) -> Exports {
        self.exports
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WasmKind {
    CoreModule,
    Component,
}

impl WasmKind {
    /// Detects the kind by the first bytes. The error describes files that are not WebAssembly.
    fn detect(bytes: &[u8]) -> Result<Self, String> {
        match bytes {
            [b'\0', b'a', b's', b'm', 1, 0, 0, 0, ..] => Ok(Self::CoreModule),
            [b'\0', b'a', b's', b'm', 0x0d, 0, 1, 0, ..] => Ok(Self::Component),
            [b'\0', b'a', b's', b'm', ..] => Err("WebAssembly of an unknown version".to_owned()),
            [] => Err("empty".to_owned()),
            [0x7f, b'E', b'L', b'F', ..] => Err("a native library or program (ELF)".to_owned()),
            [b'P', b'K', ..] => Err("a zip archive".to_owned()),
            [0x1f, 0x8b, ..] => Err("a gzip file".to_owned()),
            _ => match std::str::from_utf8(bytes).map(str::trim_start) {
                Ok(text) if text.starts_with("(module") || text.starts_with("(component") => {
                    Err("WebAssembly text".to_owned())
                }
                Ok(_) => Err("a text file".to_owned()),
                Err(_) => Err("an unknown binary file".to_owned()),
            },
        }
    }
}

/// Compiles a plugin, and logs it if the plugin is so large that this takes seconds.
fn compile_with_log(name: &str, kind: WasmKind, wasm: &[u8], engine: &Engine) -> Result<Component, LoadError> {
    if wasm.len() < SLOW_COMPILE_BYTES {
        return compile(name, kind, wasm, engine);
    }
    let megabytes = wasm.len() >> 20;
    tracing::info!(plugin = name, "compiling the plugin ({megabytes} MiB); this can take some seconds");
    let started = Instant::now();
    let compiled = compile(name, kind, wasm, engine)?;
    tracing::info!(plugin = name, "plugin compiled in {:.1} s", started.elapsed().as_secs_f64());
    Ok(compiled)
}

fn compile(name: &str, kind: WasmKind, wasm: &[u8], engine: &Engine) -> Result<Component, LoadError> {
    let component = match kind {
        WasmKind::Component => Cow::Borrowed(wasm),
        WasmKind::CoreModule => Cow::Owned(encode_component(name, wasm, engine)?),
    };
    Component::new(engine, &component)
        .map_err(|error| LoadError::Compile { name: name.to_owned(), detail: format!("{error:#}") })
}

fn encode_component(name: &str, module: &[u8], engine: &Engine) -> Result<Vec<u8>, LoadError> {
    // wit-component panics on invalid modules
    wasmtime::Module::validate(engine, module)
        .map_err(|error| LoadError::Compile { name: name.to_owned(), detail: format!("{error:#}") })?;
    let encoded = std::panic::catch_unwind(|| {
        ComponentEncoder::default().validate(true).module(module).and_then(|mut encoder| encoder.encode())
    });
    match encoded {
        Ok(Ok(component)) => Ok(component),
        Ok(Err(error)) => Err(LoadError::NoWorld { name: name.to_owned(), detail: format!("{error:#}") }),
        Err(_) => Err(LoadError::NoWorld { name: name.to_owned(), detail: "its WIT section is damaged".to_owned() }),
    }
}

fn find_exports(name: &str, component: &Component) -> Result<Exports, LoadError> {
    let wrong = |detail: String| LoadError::WrongWorld { name: name.to_owned(), detail };
    let Some((_, interface)) = component.get_export(None, PLUGIN_INTERFACE) else {
        return Err(wrong(
            other_version(component).unwrap_or_else(|| format!("it does not export `{PLUGIN_INTERFACE}`")),
        ));
    };
    let function =
        |function: &str, fits: fn(&ComponentFunc) -> bool| match component.get_export(Some(&interface), function) {
            Some((ComponentItem::ComponentFunc(found), index)) if fits(&found) => Ok(index),
            Some(_) => Err(wrong(format!("its function `{function}` does not have the type of version {WIT_VERSION}"))),
            None => Err(wrong(format!("it lacks the function `{function}` of version {WIT_VERSION}"))),
        };
    Ok(Exports {
        init: function("init", |found| found.params().len() == 2 && is_result_of(found, |_| true))?,
        process: function("process", |found| {
            found.params().map(|(_, param)| is_bytes(&param)).eq([true]) && is_result_of(found, is_bytes)
        })?,
        flush: function("flush", |found| found.params().len() == 0 && is_result_of(found, is_bytes))?,
    })
}

fn is_result_of(function: &ComponentFunc, fits: fn(&Type) -> bool) -> bool {
    let mut results = function.results();
    match (results.next(), results.next()) {
        (Some(Type::Result(result)), None) => result.ok().is_some_and(|ok| fits(&ok)) && result.err().is_some(),
        _ => false,
    }
}

fn is_bytes(found: &Type) -> bool {
    matches!(found, Type::List(list) if list.ty() == Type::U8)
}

/// Describes the mismatch if the component exports the interface of a different major version.
fn other_version(component: &Component) -> Option<String> {
    let engine = component.engine();
    let ty = component.component_type();
    let found = ty.exports(engine).find_map(|(name, _)| name.strip_prefix(PLUGIN_INTERFACE_NAME).map(str::to_owned));
    found.map(|version| {
        format!("it was built for version {version} of `trunkline:transform`, this worker runs {WIT_VERSION}")
    })
}
