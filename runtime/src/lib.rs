//! Turns pipeline files into running tasks.

mod aws;
mod backoff;
pub mod checkpoint;
pub mod cli;
mod condition;
pub mod config;
pub mod dead_letters;
pub mod http;
pub mod kafka;
pub mod plan;
pub mod record_tests;
pub mod replay;
pub mod stage;
pub mod tap;
pub mod telemetry;
mod units;
pub mod worker;
