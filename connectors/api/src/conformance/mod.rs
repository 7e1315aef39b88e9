//! The suites that every connector runs in its tests: what the runtime relies on, checked from
//! outside.

mod idempotent;
mod options;
mod sink_bench;
mod source;
mod two_phase;

pub use idempotent::check_idempotent_sink;
pub use options::*;
pub use sink_bench::SinkFixture;
pub use source::*;
pub use two_phase::check_two_phase_sink;
