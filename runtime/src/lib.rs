//! Turns pipeline files into running tasks.

mod backoff;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod kafka;
pub mod plan;
pub mod stage;
pub mod worker;
