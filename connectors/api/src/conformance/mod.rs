//! The suite that every connector runs in its own tests: what the runtime relies on, checked from outside.

mod options;
mod sink;
mod source;

pub use options::*;
pub use sink::*;
pub use source::*;
