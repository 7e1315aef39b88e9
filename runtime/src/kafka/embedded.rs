//! The embedded broker: runs in this process when the settings name no brokers, for one machine
//! without Kafka.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use tokio::runtime::Handle;
use trunkline_broker::{Broker, BrokerError, BrokerHandle, BrokerOptions, BrokerStats};
use trunkline_connector::{Error, Result, io_error};

use crate::worker::create_private_folder;

/// The value of the setting `brokers` that selects the embedded broker.
pub const EMBEDDED: &str = "embedded";

/// Kafka's default port, which tools try first.
const DEFAULT_PORT: u16 = 9092;

/// A running broker; it stops when dropped.
pub struct EmbeddedBroker {
    broker: BrokerHandle,
    runtime: Handle,
}

impl EmbeddedBroker {
    /// Starts the broker on loopback with its data in `folder`: on Kafka's default port if it is
    /// free, else on any port.
    pub fn start(runtime: &Handle, folder: &Path) -> Result<Self> {
        create_private_folder(folder).map_err(|error| io_error("create", folder, &error))?;
        let listen = |port| BrokerOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            ..BrokerOptions::new(folder)
        };
        let started = match runtime.block_on(Broker::start(listen(DEFAULT_PORT))) {
            Err(BrokerError::Listen { .. }) => runtime.block_on(Broker::start(listen(0))),
            other => other,
        };
        let broker = started
            .map_err(|error| Error::external("broker.start", format!("the embedded broker cannot start: {error}")))?;
        let address = broker.address();
        tracing::info!(%address, data = %folder.display(), "embedded broker started; any Kafka client can connect");
        Ok(Self { broker, runtime: runtime.clone() })
    }

    /// What clients have asked of it.
    pub fn stats(&self) -> BrokerStats {
        self.broker.stats()
    }

    /// The bootstrap server.
    pub fn address(&self) -> String {
        self.broker.address().to_string()
    }

    /// Stops the broker after everything is on disk.
    pub fn stop(self) {
        if let Err(error) = self.runtime.block_on(self.broker.stop()) {
            tracing::warn!(%error, "the embedded broker did not stop cleanly; no acknowledged record is lost");
        }
    }
}
