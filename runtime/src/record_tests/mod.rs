//! Tests of transforms with records as JSON lines: `trunkline transform test` and `trunkline test`.
//!
//! [`TestRecord`] is a record as a line of JSON, [`compare`] checks actual records against expected
//! ones, and [`difference`] shows the result to people.

mod diff;
mod json_text;
mod pipeline;
mod plugin;
mod record;

pub use diff::{compare, difference};
pub use pipeline::{PipelineTest, TestOutcome, read_tests, run_test};
pub use plugin::run_plugin;
pub use record::{ExpectedRecord, LineError, TestRecord, read_expected, read_records};
