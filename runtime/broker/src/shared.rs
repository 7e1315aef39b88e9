//! What every request can reach.

use std::sync::Arc;

use kafka_protocol::messages::BrokerId;
use tokio::sync::Semaphore;

use crate::group::Groups;
use crate::options::BrokerOptions;
use crate::store::Store;
use crate::topics::Topics;
use crate::transaction::Coordinator;

/// There is one node, and this is its id.
pub(crate) const NODE: BrokerId = BrokerId(1);

/// The broker's parts.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: BrokerOptions,
    pub(crate) cluster_id: String,
    pub(crate) store: Arc<Store>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) transactions: Coordinator,
    /// Counts the bytes of requests that are being received.
    pub(crate) receiving: Arc<Semaphore>,
    #[cfg(feature = "fault-injection")]
    pub(crate) faults: crate::faults::Faults,
}
