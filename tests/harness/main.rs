//! Tests of the test harness: the properties that the end-to-end tests rely on, without a worker.

// Tests fail by panicking.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod kafka_faults;
mod log_writer;
mod process;
mod reader;
mod s3_faults;
