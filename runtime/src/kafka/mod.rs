//! All of Trunkline's talk with Kafka, over `rdkafka`. Its calls block, so everything here is used from the threads of stages, never
//! from async code.
//!
//! - [`client`]: settings every client shares, and what its errors mean.
//! - [`admin`]: topics are created, never altered.
//! - [`producer`]: the transactional producer; the only way anything is written.
//! - [`consumer`]: the group consumer that fills batches.
//! - `partition_batches`: what was read, a batch for each partition.
//! - `orphans`: partitions of a group that nobody owns.
//! - `properties`: the properties that a user sets, checked without showing a value (I8).
//! - `rebootstrap`: clients that have lost all brokers.
//! - `records`: what was read, taken out of the client many at once.
//! - `secrets`: removes values from texts.
//! - [`embedded`]: the broker in the process, when no other is named.
//! - [`table`]: compacted topics as key-value tables.
//! - `wake`: waiting for a consumer's queue.

pub mod admin;
pub mod client;
pub mod consumer;
pub mod embedded;
mod orphans;
mod partition_batches;
pub mod producer;
mod properties;
mod rebootstrap;
mod records;
mod secrets;
pub mod table;
mod wake;

pub use admin::{Admin, TopicSpec};
pub use client::Cluster;
pub use consumer::{FillLimits, GroupConsumer, Others, Rebalanced};
pub use partition_batches::PartitionBatches;
pub use producer::{Outgoing, TransactionalProducer};
