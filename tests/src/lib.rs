//! What end-to-end tests and benchmarks are made of: real servers, a worker process, logs that are being written, and independent readers.
//!
//! * [`Kafka`], [`KafkaCluster`], [`S3`] and [`Mysql`] and [`SecuredKafka`] start real servers through the scripts in `tests/services`. They end with the test process, however it ends.
//! * [`S3Faults`] is a proxy before an S3 server that breaks chosen requests; [`KafkaFaults`] one before a broker that loses its answers.
//! * [`Case`] is the private ground of one test: a folder, a pipeline name that no other test has, and its [`Worker`] processes.
//! * [`LogWriter`] writes and rotates access logs; [`Reader`] says what reached the lake; [`KafkaClient::read`] what is in a topic.
//! * [`Tool`] is a program that nobody here wrote.
//! * [`Summary`] is what a worker counted, and checks conservation (I3).
//!
//! Waits are polls with a deadline ([`wait`]), never sleeps. What a machine lacks makes a test print `SKIP name: reason` ([`need!`]).

// A harness has one way to report a failure, a panic with the reason, exactly like the tests that call it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod busy;
mod case;
mod faults;
mod kafka;
mod kafka_faults;
mod log_writer;
mod mysql;
mod plugins;
mod proxy;
mod random;
mod reader;
mod repository;
mod s3;
mod secured_kafka;
mod server;
mod skip;
mod summary;
mod tool;
pub mod wait;
mod worker;

pub use busy::BusyWriter;
pub use case::Case;
pub use faults::{Fault, Request, S3Faults, Window};
pub use kafka::{Ends, Kafka, KafkaClient, KafkaCluster, Record, Replicas};
pub use kafka_faults::{KafkaFault, KafkaFaults};
pub use log_writer::LogWriter;
pub use mysql::Mysql;
pub use plugins::test_plugin;
pub use random::Random;
pub use reader::{Found, Reader};
pub use repository::{repository, sample_access_log, worker_binary};
pub use s3::S3;
pub use secured_kafka::SecuredKafka;
pub use skip::Skip;
pub use summary::{Counters, Summary};
pub use tool::Tool;
pub use worker::{Exit, Worker, memory_of};
