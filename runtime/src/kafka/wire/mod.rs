//! Trunkline's own client for the data path. librdkafka handles each record alone, which costs half
//! of the processor time of a record; this client handles batches. It has no threads: a stage's
//! thread writes and reads the sockets.
//!
//! - [`connection`]: one connection to a broker, over [`stream`]; [`readiness`] waits for several.
//! - [`transport`]: opens streams; [`tls`]: certificates and handshakes; [`settings`]: the
//!   properties as librdkafka understands them.
//! - [`login`]: logs connections in; [`scram`] and [`unsecured_token`] are two of its mechanisms.
//! - [`brokers`]: the brokers of a cluster, the leaders of partitions, and coordinators.
//! - [`errors`]: error codes in answers.
//! - [`record_batch`]: batches of records as brokers store them; [`send_buffer`]: those that are
//!   not acknowledged; [`delivery`]: sends them.
//! - [`transaction`]: the requests of a transaction; [`transactional_client`]: both together.
//! - [`fetcher`]: the consumer. [`fetch_requests`] asks, [`fetch_answers`] takes the answers,
//!   [`fetch_partition`] knows the position of a partition. [`fetched_records`] selects the
//!   committed records of an answer, [`fetched_batch`] reads a batch, [`decompressor`] unpacks it.

pub(super) mod brokers;
mod connection;
mod decompressor;
mod delivery;
pub(super) mod errors;
mod fetch_answers;
mod fetch_partition;
mod fetch_requests;
mod fetched_batch;
mod fetched_records;
pub(super) mod fetcher;
mod login;
pub(super) mod readiness;
mod record_batch;
mod scram;
mod send_buffer;
mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
mod transaction;
mod transactional_client;
pub(super) mod transport;
mod unsecured_token;

use std::time::Duration;

pub(super) use fetch_requests::FetchLimits;
pub(super) use fetched_records::Room;
pub(super) use record_batch::{BatchWriter, Codec};
pub(super) use send_buffer::SendBuffer;
pub(super) use transaction::GroupMetadata;
pub(super) use transactional_client::TransactionalClient;

/// Pauses between two attempts to send a batch.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const MAX_RETRY: Duration = Duration::from_millis(500);

/// A broker could not be reached, or an answer did not arrive; the reason.
#[derive(Debug, Clone)]
pub(super) struct Lost(pub(super) String);
