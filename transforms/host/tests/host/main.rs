//! The host against real plugins: those of `transforms/plugins`, built here, and guests written by hand that lie.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod deaths;
mod guests;
mod loading;
mod mask;
mod support;
mod verdicts;
mod wasi;
