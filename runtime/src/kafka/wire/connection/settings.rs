//! The properties of a client as librdkafka understands them: aliases, defaults and the forms of
//! numbers are its own.

use rdkafka::ClientConfig;
use rdkafka::config::NativeClientConfig;
use trunkline_connector::Result;

use crate::kafka::client::Cluster;

/// The properties of a client of a cluster.
pub(in crate::kafka) struct Settings {
    native: NativeClientConfig,
}

impl Settings {
    /// Fails if librdkafka does not accept a property.
    pub(in crate::kafka) fn of(cluster: &Cluster, config: &ClientConfig) -> Result<Self> {
        let native = config.create_native_config().map_err(|error| cluster.creation_error(&error))?;
        Ok(Self { native })
    }

    /// A property's value, or its default. `None`: it has none.
    pub(in crate::kafka) fn get(&self, name: &str) -> Option<String> {
        self.native.get(name).ok().filter(|value| !value.is_empty())
    }

    /// A switch.
    pub(in crate::kafka) fn is(&self, name: &str) -> bool {
        self.get(name).as_deref() == Some("true")
    }

    /// A size or another number that is not negative.
    pub(in crate::kafka) fn number(&self, name: &str) -> usize {
        self.get(name).and_then(|value| value.parse().ok()).unwrap_or_default()
    }
}
