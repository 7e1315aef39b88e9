//! The broker's tests: what Kafka's clients get from it.
//!
//! Most are about any Kafka broker. With `TRUNKLINE_TEST_BROKERS=host:port` they run against that one instead, and have to
//! give the same answer; tests of what only this broker has are left out then.

// Helpers are not test functions to clippy, but a failure in one has to fail its test just as well.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod administration;
mod cleaning;
mod common;
mod durability;
#[cfg(feature = "fault-injection")]
mod faults;
mod groups;
mod hostile;
mod introspection;
mod model;
mod producers;
mod raw;
mod records;
mod times;
mod topics;
mod transactions;
