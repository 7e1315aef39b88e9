//! Pipeline files: the plans of valid ones and the problems of invalid ones.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod diagnostics;
mod fusion;
mod plans;
mod reload;
mod support;
