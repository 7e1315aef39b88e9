//! Where the commands find the brokers and the worker that runs on this machine.

use trunkline_connector::{Error, Result};

use crate::config::Settings;
use crate::kafka::embedded::EMBEDDED;
use crate::worker::{Addresses, DataDir};

/// Kafka's bootstrap servers: of the settings, or of the embedded broker of the worker that runs
/// with this data directory.
pub(super) fn brokers(settings: &Settings) -> Result<String> {
    match settings.brokers.as_deref() {
        Some(brokers) if brokers != EMBEDDED => Ok(brokers.to_owned()),
        _ => running_worker(settings).map(|worker| worker.brokers),
    }
}

/// The addresses of the worker that runs with the data directory of the settings.
pub(super) fn running_worker(settings: &Settings) -> Result<Addresses> {
    DataDir::read_addresses(&settings.data)?.ok_or_else(|| {
        let message = format!(
            "no worker runs with the data directory {}: start one with `trunkline run`, or name the directory of a running \
             worker with --data",
            settings.data.display()
        );
        Error::external("worker.not_running", message)
    })
}
