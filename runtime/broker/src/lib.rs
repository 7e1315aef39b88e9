//! An embedded, single-node Kafka broker: transactions, groups and durable logs inside a Rust
//! program.
//!
//! ```no_run
//! # async fn run() -> Result<(), trunkline_broker::BrokerError> {
//! use trunkline_broker::{Broker, BrokerOptions};
//!
//! let broker = Broker::start(BrokerOptions::new("/var/lib/example")).await?;
//! println!("bootstrap.servers={}", broker.address());
//! // ... any Kafka client ...
//! broker.stop().await?;
//! # Ok(())
//! # }
//! ```
//!
//! Any Kafka client can use it; it is tested with librdkafka, the Java client, franz-go and
//! kafkajs. It supports exactly-once: idempotent and transactional producers, `read_committed`,
//! fencing, offsets in transactions, static group members. Acknowledged records survive `kill -9`,
//! and with [`FlushPolicy::Always`] a power failure.
//!
//! It is one node: no replication, replication factor 1. It listens on loopback by default, without
//! TLS and without users; see [`BrokerOptions::tls`] and [`BrokerOptions::users`].
//!
//! # Structure
//! Dependencies point one way: `server` -> `api` -> `request` -> the state below.
//!
//! - `server` reads requests, refuses malformed ones and writes responses.
//! - `api` answers requests, one file for each family of APIs.
//! - `request` defines the call and the response that `server` and `api` exchange.
//! - `request_memory` limits the memory of all requests together.
//! - `security` has the certificate and the users of a broker that requires TLS and logins.
//! - `topics` has the partitions, each with a `log`: append-only segments of record batches as
//!   received.
//! - `group` and `transaction` are the coordinators. Their state is in `store`, the internal log.
//! - `maintenance` runs timeouts, checkpoints, retention and compaction.
//!
//! Lock order: transaction, group, partition, internal log. No lock is held while waiting for a
//! client.

mod api;
mod broker;
mod clock;
mod error;
#[cfg(feature = "fault-injection")]
mod faults;
mod group;
mod log;
mod maintenance;
mod options;
mod private_files;
mod request;
mod request_memory;
mod security;
mod server;
mod state;
mod stats;
mod store;
mod sync;
mod topics;
mod transaction;

pub use broker::{Broker, BrokerError, BrokerHandle};
#[cfg(feature = "fault-injection")]
pub use faults::{ApiKey, Fault, Faults};
pub use options::{BrokerOptions, FlushPolicy};
pub use security::{TlsFiles, Users};
pub use stats::BrokerStats;
