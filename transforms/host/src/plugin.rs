//! A loaded [`Plugin`]: what instances are started from.

use std::fmt;
use std::sync::{Arc, OnceLock};

use xxhash_rust::xxh3::xxh3_64;

use crate::component::{LoadError, Loaded};
use crate::engine::Shared;
use crate::guest::{Guest, InitFault, InitReply};
use crate::instance::Instance;
use crate::limits::Limits;

/// Why an instance was not started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// What is wrong and what was expected, in the plugin's words if it refused its configuration.
    pub message: String,
    /// Where in the configuration, such as `fields[0]`.
    pub key: Option<String>,
}

/// A plugin, compiled and checked. Cheap to clone.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    name: Arc<str>,
    hash: u64,
    wasm: Box<[u8]>,
    guarded: Loaded,
    /// Without time limits; compiled when somebody asks for it.
    trusted: OnceLock<Loaded>,
}

impl Plugin {
    pub(crate) fn load(shared: Arc<Shared>, name: &str, wasm: &[u8]) -> Result<Self, LoadError> {
        let guarded = shared.compile(name, wasm, false)?;
        let inner = Inner {
            shared,
            name: name.into(),
            hash: xxh3_64(wasm),
            wasm: wasm.into(),
            guarded,
            trusted: OnceLock::new(),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// The file's name.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Hash of the file's bytes: says whether a plugin changed.
    pub fn hash(&self) -> u64 {
        self.inner.hash
    }

    /// Starts an instance with the transform's `config` table (null counts as an empty one). Also how a configuration is checked: an
    /// instance that is dropped at once has no effect.
    pub fn start(&self, config: &serde_json::Value, limits: &Limits) -> Result<Instance, StartError> {
        let config = if config.is_null() { "{}".to_owned() } else { config.to_string() };
        let (guest, reply) = self.start_guest(&config, limits)?;
        Ok(Instance::new(self.clone(), config, limits.clone(), guest, reply))
    }

    pub(crate) fn start_guest(&self, config: &str, limits: &Limits) -> Result<(Guest, InitReply), StartError> {
        let name = &self.inner.name;
        let loaded = self.loaded(limits.trusted)?;
        let (guest, reply) = Guest::start(loaded, name, config, limits).map_err(|fault| match fault {
            InitFault::Refused { message, key } => StartError { message, key },
            InitFault::Broken(message) => StartError { message: format!("`{name}`: {message}"), key: None },
        })?;
        check_ports(&reply.ports)
            .map_err(|message| StartError { message: format!("`{name}`: {message}"), key: None })?;
        Ok((guest, reply))
    }

    fn loaded(&self, trusted: bool) -> Result<&Loaded, StartError> {
        let inner = &*self.inner;
        if !trusted {
            return Ok(&inner.guarded);
        }
        if inner.trusted.get().is_none() {
            let loaded = inner.shared.compile(&inner.name, &inner.wasm, true);
            let loaded = loaded.map_err(|error| StartError { message: error.to_string(), key: None })?;
            // another thread may have been faster; both made the same
            let _ = inner.trusted.set(loaded);
        }
        inner.trusted.get().ok_or_else(|| StartError { message: "not compiled".to_owned(), key: None })
    }
}

/// The same file's bytes under the same name.
impl PartialEq for Plugin {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.hash() == other.hash()
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = format!("{:016x}", self.inner.hash);
        formatter.debug_struct("Plugin").field("name", &self.inner.name).field("hash", &hash).finish_non_exhaustive()
    }
}

const MAX_PORTS: usize = 1000;

/// Ports are named in pipeline files as `component.port`, so their names must be words of that language.
fn check_ports(ports: &[String]) -> Result<(), String> {
    if ports.len() > MAX_PORTS {
        return Err(format!("it names {} output ports; expected at most {MAX_PORTS}", ports.len()));
    }
    for (index, port) in ports.iter().enumerate() {
        let is_name = !port.is_empty() && port.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !is_name {
            return Err(format!("it names an output port {port:?}; expected letters, digits, `_` and `-`"));
        }
        if port == Instance::DEFAULT_PORT || ports[..index].contains(port) {
            return Err(format!(
                "it names the output port `{port}` twice (`{}` is always there)",
                Instance::DEFAULT_PORT
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_names_are_checked() {
        let check = |ports: &[&str]| check_ports(&ports.iter().map(|port| (*port).to_owned()).collect::<Vec<_>>());
        assert_eq!(check(&["alerts", "a-b_2"]), Ok(()));
        for bad in [&[""][..], &["a.b"], &["default"], &["a", "a"], &["ä"]] {
            assert!(check(bad).is_err(), "{bad:?}");
        }
        assert!(check(&["x"; MAX_PORTS + 1]).is_err());
    }
}
