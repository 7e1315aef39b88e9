//! Trunkline's own client for the data path. librdkafka handles each record alone, which costs half
//! of the processor time of a record; this client handles batches. A stage's thread writes
//! and reads the sockets.
//!
//! - [`connection`]: connections to brokers, their TLS and logins.
//! - [`brokers`]: the brokers of a cluster, the leaders of partitions, and coordinators.
//! - [`errors`]: error codes in answers.
//! - [`produce`]: batches of records and transactions.
//! - [`fetch`]: committed records of assigned partitions.
//! - [`group`]: the membership of consumer groups, in a thread for all groups; [`group_lookups`]:
//!   questions about a group.
//! - [`wake`]: ends a wait for sockets.

pub(super) mod brokers;
pub(super) mod connection;
pub(super) mod errors;
pub(super) mod fetch;
pub(super) mod group;
pub(super) mod group_lookups;
pub(super) mod produce;
pub(super) mod wake;

/// A broker could not be reached, or an answer did not arrive; the reason.
#[derive(Debug, Clone)]
pub(super) struct Lost(pub(super) String);
