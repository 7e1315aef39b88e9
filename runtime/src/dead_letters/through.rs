//! [`Through`]: the plugin of `--through`, which changes records before they return.

use std::path::Path;

use trunkline_connector::{Batch, Error, Rejections, Result};
use trunkline_transform_host::{Host, Limits};

/// A running plugin.
pub struct Through {
    instance: trunkline_transform_host::Instance,
    /// Its file, for messages.
    name: String,
    rejected: Rejections,
}

impl Through {
    /// Starts a plugin from a file, or a bundled one, with its configuration.
    pub fn start(host: &Host, file: &Path, config: &serde_json::Value) -> Result<Self> {
        let name = file.display().to_string();
        let bundled = if file.is_file() { None } else { host.bundled(&name) };
        let plugin = bundled.unwrap_or_else(|| host.load(file));
        let plugin = plugin.map_err(|error| Error::config("plugin.load", format!("--through: {error}")))?;
        if plugin.uses_state() {
            let message = format!("--through {name}: the plugin keeps state, which a redrive does not have");
            return Err(Error::config("plugin.init", message));
        }
        let instance = plugin.start(config, &Limits::default()).map_err(|error| {
            let at = error.key.map_or_else(String::new, |key| format!(" (`{key}` of --through-config)"));
            Error::config("plugin.init", format!("--through {name}: {}{at}", error.message))
        })?;
        Ok(Self { instance, name, rejected: Rejections::default() })
    }

    /// Replaces the record in `batch` by the plugin's output, which may be empty. Returns why the
    /// record stays, if the plugin does not accept it.
    pub(super) fn apply(&mut self, batch: &mut Batch) -> Result<std::result::Result<(), String>> {
        let context = |error: Error| error.context(format!("--through {}", self.name));
        self.instance.ready().map_err(context)?;
        self.rejected.clear();
        self.instance.process(batch, &mut self.rejected).map_err(context)?;
        if let Some((_, reason)) = self.rejected.iter().next() {
            return Ok(Err(format!("the plugin {} rejected the record ({})", self.name, reason.code)));
        }
        if batch.entries().iter().any(|entry| entry.port != 0) {
            return Ok(Err(format!("the plugin {} sends the record to another port than `default`", self.name)));
        }
        Ok(Ok(()))
    }
}
