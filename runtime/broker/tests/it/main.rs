//! Tests of the broker through Kafka clients.
//!
//! Most tests hold for every Kafka broker. With `TRUNKLINE_TEST_BROKERS=host:port` they run against
//! that broker, and must give the same results; tests of features of this broker are skipped.

// Clippy does not treat helpers as tests, but a failing helper must fail its test.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod administration;
mod answers;
mod cleaning;
mod common;
mod durability;
#[cfg(feature = "fault-injection")]
mod faults;
mod fencing;
mod groups;
mod introspection;
mod invalid_records;
mod model;
mod producers;
mod protocol_violations;
mod raw;
mod records;
mod times;
mod topics;
mod transactions;
