//! Replays (I9): a sink reads a range of its topics again, as a run that is separate from the live
//! one.
//!
//! A run is a [`SinkStage`](crate::stage::SinkStage) under another cluster name,
//! `{cluster}.!replay.{run}`. Its group, transactional ids, intents and counters follow from that
//! name, so they cannot meet those of the live run, and everything that makes a sink exactly once
//! holds for a run, too. Its [`Bounds`](crate::stage::Bounds) end it.
//!
//! - [`range`]: what the user asks for, and the offsets that result.
//! - [`run`]: the rows of runs in `_trunkline.checkpoints`.
//! - [`execution`]: executes a run in this process, and continues it after a crash.
//! - [`inspection`]: shows what the transforms make of a range, and writes nothing.
//! - [`audit`]: checks the files of a destination against the committed offsets.

pub mod audit;
pub mod execution;
pub mod inspection;
pub mod range;
pub mod run;

/// The cluster name of a run: the prefix of all its names in Kafka. No pipeline has such a name.
pub fn cluster_name(cluster: &str, run: &str) -> String {
    format!("{cluster}.!replay.{run}")
}
