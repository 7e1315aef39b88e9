//! A loaded [`Plugin`], from which instances are started.

use std::borrow::Cow;
use std::fmt;
use std::sync::{Arc, OnceLock};

use crate::bundled;
use crate::component::{CompiledPlugin, Contents, LoadError};
use crate::config_schema;
use crate::engine::HostInner;
use crate::guest::{Guest, GuestStartError, InitReply};
use crate::host_functions::{ANY_STATE_INTERFACE, ANY_TIMERS_INTERFACE};
use crate::instance::Instance;
use crate::limits::Limits;

/// An instance cannot be started.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StartError {
    /// The problem and the expected input. The text is the plugin's if it rejected its
    /// configuration.
    pub message: String,
    /// The configuration key at fault, such as `fields[0]`.
    pub key: Option<String>,
}

/// A compiled plugin. Clones share one compiled module.
#[derive(Clone)]
pub struct Plugin {
    inner: Arc<Inner>,
}

struct Inner {
    host: Arc<HostInner>,
    name: Arc<str>,
    wasm: Cow<'static, [u8]>,
    /// A bundled file with several transforms: the name of this one. Its configuration is passed
    /// as `{"variant": config}`.
    variant: Option<&'static str>,
    interruptible: Arc<CompiledPlugin>,
    /// Without time limits. Compiled on first use.
    trusted: OnceLock<CompiledPlugin>,
}

impl Plugin {
    pub(crate) fn load(host: Arc<HostInner>, name: &str, wasm: Cow<'static, [u8]>) -> Result<Self, LoadError> {
        let interruptible = Arc::new(host.compile(name, &wasm, false)?);
        Ok(Self::new(host, name, None, wasm, interruptible))
    }

    pub(crate) fn new(
        host: Arc<HostInner>,
        name: &str,
        variant: Option<&'static str>,
        wasm: Cow<'static, [u8]>,
        interruptible: Arc<CompiledPlugin>,
    ) -> Self {
        let inner = Inner { host, name: name.into(), wasm, variant, interruptible, trusted: OnceLock::new() };
        Self { inner: Arc::new(inner) }
    }

    /// The name of the plugin's file.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Hash of the file's bytes. It differs if the plugin changed.
    pub fn hash(&self) -> u64 {
        // The lower half is the hash of 64 bits.
        self.inner.interruptible.hash() as u64
    }

    /// The file's bytes.
    pub fn wasm(&self) -> &[u8] {
        &self.inner.wasm
    }

    /// The JSON Schema of the configuration, if the file has one.
    pub fn config_schema(&self) -> Option<&str> {
        config_schema::find(&self.inner.wasm)
    }

    /// The interface version and the imports of the file; for a bundled transform, those that it
    /// may use.
    pub fn contents(&self) -> Contents {
        let mut contents = self.inner.interruptible.contents(&self.inner.wasm);
        if !self.uses_state() {
            contents.imports.retain(|import| !import.starts_with(ANY_STATE_INTERFACE));
        }
        if !self.uses_timers() {
            contents.imports.retain(|import| !import.starts_with(ANY_TIMERS_INTERFACE));
        }
        contents
    }

    /// Whether the plugin reads a table: the store of [`Instance::process_with_state`] holds its
    /// rows, with the keys of [`table_key`](crate::table_key), and the plugin changes nothing.
    pub fn reads_table(&self) -> bool {
        self.inner.variant.is_some_and(|variant| bundled::READS_TABLE.contains(&variant))
    }

    /// Whether the plugin uses timers: [`Instance::advance_time`] lets them fire without records.
    pub fn uses_timers(&self) -> bool {
        match self.inner.variant {
            Some(variant) => bundled::USES_TIMERS.contains(&variant),
            None => self.inner.interruptible.imports_timers(),
        }
    }

    /// Whether the plugin uses the interface for state: run it with
    /// [`Instance::process_with_state`].
    pub fn uses_state(&self) -> bool {
        match self.inner.variant {
            // The transforms of a bundled file share its imports.
            Some(variant) => bundled::USES_STATE.contains(&variant),
            None => self.inner.interruptible.imports_state(),
        }
    }

    /// Starts an instance with the transform's `config` table (null = an empty table). To check a
    /// configuration, start an instance and drop it: starting has no side effects.
    pub fn start(&self, config: &serde_json::Value, limits: &Limits) -> Result<Instance, StartError> {
        if let Some(schema) = self.config_schema() {
            config_schema::check(schema, config)?;
        }
        let mut config = if config.is_null() { "{}".to_owned() } else { config.to_string() };
        if let Some(variant) = self.inner.variant {
            config = format!("{{\"{variant}\":{config}}}");
        }
        let (guest, reply) = self.start_guest(&config, limits)?;
        Ok(Instance::new(self.clone(), config, limits.clone(), guest, reply))
    }

    pub(crate) fn start_guest(&self, config: &str, limits: &Limits) -> Result<(Guest, InitReply), StartError> {
        let name = &self.inner.name;
        let compiled = self.compiled(limits.trusted)?;
        let (guest, reply) =
            Guest::start(compiled, name, config, limits, self.inner.host.ticker()).map_err(|error| match error {
                GuestStartError::ConfigRejected { message, key } => StartError { message, key },
                GuestStartError::Broken(message) => StartError { message: format!("`{name}`: {message}"), key: None },
            })?;
        check_ports(&reply.ports)
            .map_err(|message| StartError { message: format!("`{name}`: {message}"), key: None })?;
        Ok((guest, reply))
    }

    fn compiled(&self, trusted: bool) -> Result<&CompiledPlugin, StartError> {
        let inner = &*self.inner;
        if !trusted {
            return Ok(&inner.interruptible);
        }
        if inner.trusted.get().is_none() {
            let compiled = inner.host.compile(&inner.name, &inner.wasm, true);
            let compiled = compiled.map_err(|error| StartError { message: error.to_string(), key: None })?;
            // if another thread set it first, both hold the same code
            let _ = inner.trusted.set(compiled);
        }
        inner.trusted.get().ok_or_else(|| StartError { message: "the plugin is not compiled".to_owned(), key: None })
    }
}

/// Plugins are equal if their names and the bytes of their files are equal.
impl PartialEq for Plugin {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name() && self.hash() == other.hash()
    }
}

impl fmt::Debug for Plugin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hash = format!("{:016x}", self.hash());
        formatter.debug_struct("Plugin").field("name", &self.inner.name).field("hash", &hash).finish_non_exhaustive()
    }
}

const MAX_PORTS: usize = 1000;

/// Pipeline files refer to ports as `component.port`, which restricts the characters of port names.
fn check_ports(ports: &[String]) -> Result<(), String> {
    if ports.len() > MAX_PORTS {
        return Err(format!("it declares {} output ports; expected at most {MAX_PORTS}", ports.len()));
    }
    for (index, port) in ports.iter().enumerate() {
        let is_name = !port.is_empty() && port.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-'));
        if !is_name {
            return Err(format!("it declares an output port {port:?}; expected letters, digits, `_` and `-`"));
        }
        if port == Instance::DEFAULT_PORT || ports[..index].contains(port) {
            return Err(format!(
                "it declares the output port `{port}` twice (the port `{}` always exists)",
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
