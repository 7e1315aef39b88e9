//! The test harness: real servers, worker processes, logs that are written and rotated, and
//! independent readers.
//!
//! * [`Kafka`], [`KafkaCluster`], [`SecuredKafka`], [`S3`] and [`Mysql`] start real servers through
//!   the scripts in `tests/services`; [`Redshift`] and [`Snowflake`] start stand-ins. They end with
//!   the test process, however it ends. Tests share them where isolation allows (`shared`): each
//!   test has its own topics, buckets and databases.
//! * [`S3Faults`] is a proxy for an S3 server that breaks selected requests. [`KafkaFaults`] is a
//!   proxy for a broker that loses or delays replies, and [`RedshiftFaults`] one for a warehouse.
//! * [`SearchStub`] is a search server that refuses a share of the documents.
//! * [`TokenServer`] is an OAuth server for [`SecuredKafka`].
//! * [`Case`] is the folder, the unique pipeline name and the worker [`Process`]es of one test.
//! * [`LogWriter`] writes and rotates access logs. [`Reader`] reads a lake, [`KafkaClient::read`] a
//!   topic.
//! * [`History`] is a random history of a table, whose changes a test delivers late and again.
//! * [`Rebuilt`] is what a replay over such a table must end with.
//! * [`Tool`] is an external program.
//! * [`Summary`] has the counters of a worker, and checks conservation (I3).
//!
//! Tests wait by polling with a deadline ([`wait`]), never by sleeping. If the machine lacks
//! something, a test prints `SKIP name: reason` ([`need!`]).

// Like the tests that call it, the harness reports every failure by a panic with its reason.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod browser;
mod busy;
mod case;
mod connect;
mod history;
mod kafka;
mod kafka_faults;
mod log_writer;
mod mysql;
mod paths;
mod plugins;
mod process;
mod proxy;
mod random;
mod reader;
mod rebuilt;
mod redshift;
mod redshift_faults;
mod s3;
mod s3_faults;
mod search;
mod search_stub;
mod secured_kafka;
mod server;
mod skip;
mod snowflake;
mod summary;
mod token_server;
mod tool;
pub mod wait;

pub use browser::{Browser, Tab, View};
pub use busy::BusyWriter;
pub use case::Case;
pub use connect::KafkaConnect;
pub use history::{History, Memory, RowChange};
pub use kafka::{BrokerKind, EndOffsets, Kafka, KafkaClient, KafkaCluster, Record, Replicas};
pub use kafka_faults::{KafkaFault, KafkaFaults};
pub use log_writer::LogWriter;
pub use mysql::Mysql;
pub use paths::{repository, sample_access_log, worker_binary};
pub use plugins::{counting_plugin, test_plugin};
pub use process::{Exit, Process, memory_of};
pub use proxy::TlsFiles;
pub use random::Random;
pub use reader::{LakeContents, Reader};
pub use rebuilt::{Ended, Rebuilt, Version};
pub use redshift::{Redshift, query_redshift};
pub use redshift_faults::{RedshiftFault, RedshiftFaults};
pub use s3::S3;
pub use s3_faults::{Fault, FaultWindow, Request, S3Faults};
pub use search::OpenSearch;
pub use search_stub::SearchStub;
pub use secured_kafka::{Right, SecuredKafka};
pub use skip::Skip;
pub use snowflake::{Snowflake, SnowflakeReader};
pub use summary::{Counters, Summary};
pub use token_server::TokenServer;
pub use tool::Tool;

/// A test that takes long skips without `TRUNKLINE_TEST_LONG=1`, as `tests/run --long` sets it.
pub fn only_long() -> Result<(), Skip> {
    if repetitions(0, 1) == 1 { Ok(()) } else { Err(Skip::new("it runs with TRUNKLINE_TEST_LONG=1".to_owned())) }
}

/// The repetitions of a test: `long` with `TRUNKLINE_TEST_LONG=1`, as `tests/run --long` sets it.
pub fn repetitions(short: u64, long: u64) -> u64 {
    if std::env::var("TRUNKLINE_TEST_LONG").is_ok_and(|value| value == "1") { long } else { short }
}
