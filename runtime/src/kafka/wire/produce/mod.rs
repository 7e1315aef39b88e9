//! Writes records: batches, their delivery to the leaders of partitions, and transactions.
//!
//! - [`record_batch`]: batches of records as brokers store them; [`send_buffer`]: those that are
//!   not acknowledged; [`delivery`]: sends them.
//! - [`transaction`]: the requests of a transaction; [`client`]: both together.

mod client;
mod delivery;
mod record_batch;
mod send_buffer;
mod transaction;

use std::time::Duration;

pub(in crate::kafka) use client::TransactionalClient;
pub(in crate::kafka) use delivery::{VERSIONS, request};
pub(in crate::kafka) use record_batch::{BatchWriter, Codec};
pub(in crate::kafka) use send_buffer::SendBuffer;
pub(in crate::kafka) use transaction::GroupMetadata;

/// Pauses between two attempts to send a batch.
const FIRST_RETRY: Duration = Duration::from_millis(5);
const MAX_RETRY: Duration = Duration::from_millis(500);
