//! The suite that every connector runs in its own tests: what the runtime relies on, checked from outside.

mod sink;
mod source;

#[allow(unused_imports, reason = "filled by the first sink")]
pub use sink::*;
pub use source::*;
