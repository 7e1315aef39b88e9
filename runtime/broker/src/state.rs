//! The state that all requests share.

use std::sync::Arc;

use kafka_protocol::messages::BrokerId;

use crate::group::Groups;
use crate::options::BrokerOptions;
use crate::request_memory::RequestMemory;
use crate::stats::BrokerStats;
use crate::store::Store;
use crate::topics::Topics;
use crate::transaction::Coordinator;

/// The id of the only node.
pub(crate) const NODE: BrokerId = BrokerId(1);

/// The parts of a running broker.
#[derive(Debug)]
pub(crate) struct BrokerState {
    pub(crate) options: BrokerOptions,
    pub(crate) cluster_id: String,
    pub(crate) store: Arc<Store>,
    pub(crate) topics: Arc<Topics>,
    pub(crate) groups: Arc<Groups>,
    pub(crate) transactions: Coordinator,
    pub(crate) request_memory: Arc<RequestMemory>,
    pub(crate) stats: BrokerStats,
    #[cfg(feature = "fault-injection")]
    pub(crate) faults: crate::faults::Faults,
}
