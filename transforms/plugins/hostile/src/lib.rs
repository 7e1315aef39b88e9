//! A plugin for the fuzz test of the host. The value of a record, and the key of a timer, are a
//! program: bytes that name calls of the host with valid and invalid arguments, and changes of the
//! verdicts. A program of the same bytes does the same, so that a failure repeats.

/// The code exists for wasm32 only: on other targets there is no host.
#[cfg(target_arch = "wasm32")]
mod program;
