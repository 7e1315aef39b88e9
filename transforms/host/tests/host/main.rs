//! Tests the host with the plugins of `transforms/plugins`, which the tests build, and with
//! handwritten guests that violate the interface.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod aggregate;
mod crashes;
mod fuzz;
mod handwritten_guests;
mod inputs;
mod loading;
mod log_capture;
mod mask;
mod state;
mod support;
mod timers;
mod verdicts;
mod wasi;
