//! Trunkline's own client for the data path. librdkafka handles each record alone, which costs half
//! of the processor time of a record; this client handles batches. It has no threads: a stage's
//! thread writes and reads the sockets.
//!
//! - [`connection`]: connections to brokers, their TLS and logins.
//! - [`brokers`]: the brokers of a cluster, the leaders of partitions, and coordinators.
//! - [`errors`]: error codes in answers.
//! - [`produce`]: batches of records and transactions.
//! - [`fetch`]: committed records of assigned partitions.

pub(super) mod brokers;
pub(super) mod connection;
pub(super) mod errors;
pub(super) mod fetch;
pub(super) mod produce;

/// A broker could not be reached, or an answer did not arrive; the reason.
#[derive(Debug, Clone)]
pub(super) struct Lost(pub(super) String);
