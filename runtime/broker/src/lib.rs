//! An embedded, single-node Kafka broker: transactions, groups and durable logs inside a Rust program.
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
//! Any client that speaks Kafka's protocol can use it: it has been built for librdkafka, the Java client, franz-go and
//! kafkajs. It is correct for exactly-once: idempotent and transactional producers, `read_committed`, fencing, offsets
//! inside of transactions, static group members. What was acknowledged survives `kill -9`, and with
//! [`FlushPolicy::Always`] a power cut.
//!
//! It is one node: there is no replication, and a topic's replication factor is 1. It has no authentication and no
//! encryption, and listens on loopback unless told otherwise; see [`BrokerOptions::listen`].
//!
//! # How it is made
//! - `server` reads requests, refuses what is malformed, and leads the rest to `api`, which has a file for each family.
//! - `topics` has the partitions, each with a `log`: append-only segments of record batches as they were received.
//! - `group` and `transaction` are the coordinators. What they know is in `store`, the internal log.
//! - `maintenance` is what happens by itself: timeouts, checkpoints, retention, compaction.
//!
//! Locks are taken in the order transaction, group, partition, internal log, and held only for work that does not wait
//! for a client.

mod api;
mod broker;
mod clock;
#[cfg(feature = "fault-injection")]
mod faults;
mod group;
mod log;
mod maintenance;
mod options;
mod server;
mod shared;
mod store;
mod sync;
mod topics;
mod transaction;

pub use broker::{Broker, BrokerError, BrokerHandle};
#[cfg(feature = "fault-injection")]
pub use faults::{ApiKey, Fault, Faults};
pub use options::{BrokerOptions, FlushPolicy};
