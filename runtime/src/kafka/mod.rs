//! The Kafka layer: producers and group consumers over a client of our own ([`wire`]),
//! administration over `rdkafka`. Its calls block, so only the threads of stages use it, never
//! async code.
//!
//! - [`client`]: settings that all clients share, and the classification of errors.
//! - [`admin`]: looks up and creates topics, by the calls in `admin_api`; `admin_rights` asks what
//!   a client may do; `admin_facts` describes brokers and topics; `topic_limits` knows
//!   their largest records.
//! - [`producer`]: the transactional producer, which writes all records and their state.
//!   `row_writer` writes single rows.
//! - [`consumer`]: the group consumer; `partition_batches` collects the records that `wire::fetch`
//!   reads.
//! - [`GroupOffsets`]: reads and changes the offsets of a group from outside.
//! - `membership`, `unassigned`: a group's members, and its partitions without an owner.
//! - [`topic_reader`]: reads topics outside of groups, with a `reader`; [`table`]: compacted topics
//!   as key-value tables; [`TableFollower`] receives the changes of such a table.
//! - [`embedded`]: the broker in this process.
//! - `connection`: explains failed connections; `rebootstrap`: recovers clients that lost all
//!   brokers.
//! - `security`: short forms of security properties; `logins`: credentials of all
//!   clients, among them the tokens of MSK IAM and OAuth servers.
//! - `properties`, `secrets`: the user's properties are checked, and their values hidden (I8).

pub mod admin;
mod admin_api;
mod admin_facts;
mod admin_rights;
pub mod client;
mod connection;
pub mod consumer;
pub mod embedded;
mod group_offsets;
mod logins;
mod membership;
mod packed_headers;
mod partition_batches;
pub mod producer;
mod properties;
mod reader;
mod rebootstrap;
mod row_writer;
mod secrets;
mod security;
pub mod table;
mod table_follower;
#[cfg(test)]
mod tests;
mod timer_slack;
mod topic_limits;
pub mod topic_reader;
mod unassigned;
mod wire;

pub use admin::{Admin, EnsuredTopics, Permission, TopicIdentity, TopicSpec};
pub use admin_facts::{BrokerFacts, TopicFacts};
pub use client::{Cluster, DUPLICATE_WORKER, grant};
pub use consumer::{FillLimits, GroupConsumer};
pub use group_offsets::{GroupOffsets, Watermarks};
pub use membership::OtherMembers;
pub use partition_batches::PartitionBatches;
pub use producer::{ProducerRecord, TransactionalProducer};
pub use row_writer::RowWriter;
pub use table_follower::TableFollower;
pub use topic_limits::{MAX_RECORD_BYTES, RecordTooLarge, SendError};
pub use wire::group::RebalanceEvent;
