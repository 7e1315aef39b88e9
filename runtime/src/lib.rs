//! What turns pipeline files into running tasks.

pub mod cli;
pub mod config;
pub mod plan;
