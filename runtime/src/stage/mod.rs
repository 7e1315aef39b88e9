//! Stages: running components.
//!
//! Each stage runs in its own thread, because Kafka's calls block, until it is done, stopped or
//! failed; [`supervise()`] starts it again. A stage keeps nothing between two runs: it reads its
//! committed state from Kafka. A restart within the process, a restart of the process and a move to
//! another machine are therefore the same.

mod backoff;
mod bounds;
mod careful;
mod chain;
mod commit_timer;
mod dead_letters;
mod dry_run;
mod durations;
mod error_limits;
mod first_records;
mod inspected_stage;
mod lag;
mod lookup_table;
mod names;
mod output;
mod pace;
mod partitioner;
mod read_ahead;
mod repeated_inputs;
mod routes;
mod sink;
mod snapshot_deletes;
mod source;
mod source_reader;
mod status;
mod stop_signal;
mod straight;
mod supervise;
#[cfg(test)]
mod tests;
mod transform;
mod upstream;
mod worker_context;

pub use bounds::Bounds;
pub use dry_run::{DryRun, DryRunOutput};
pub use durations::Durations;
pub use inspected_stage::InspectedStage;
pub use lookup_table::LookupTable;
pub use names::{Names, component_name};
pub use pace::{LiveWork, Pace, TaskRate};
pub use read_ahead::Backlogs;
pub use sink::SinkStage;
pub(crate) use snapshot_deletes::PendingDeletes;
pub use source::SourceStage;
pub use status::{StageKind, StageSnapshot, StageState, StageStatus, StateFigures, Work};
pub use stop_signal::StopSignal;
pub use straight::StraightStages;
pub use supervise::{Ended, GIVE_UP, Stage, supervise};
pub use transform::TransformStage;
pub use upstream::Upstream;
pub use worker_context::{ResourceShare, WorkerContext};
