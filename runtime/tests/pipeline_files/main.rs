//! Pipeline files, good and bad: what is said of them, and what plan comes out.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod again;
mod diagnostics;
mod plans;
mod support;
