//! What a source implements so that people can choose its committed position (`trunkline offsets`).

use crate::error::Result;
use crate::source::PositionChange;

/// Computes another committed position of a source. Nothing is written here: the runtime writes the
/// changes with the transactional id of the task, while the task does not run.
pub trait PositionMoves {
    /// The forms of a position, for messages: `FILE:OFFSET of the binlog, or ..`.
    fn forms(&self) -> &'static str;

    /// The changes of the committed `position` that make the source continue at `to`. Fails if `to`
    /// is no position of the external system (`offsets.bad_position`), or if the system no longer
    /// has the data after it (`offsets.position_gone`).
    fn move_to(
        &self,
        to: &str,
        position: &[(String, Vec<u8>)],
        runtime: &tokio::runtime::Handle,
    ) -> Result<Vec<PositionChange>>;

    /// A part of the position for people: what it is a position in, and the position. `None`: the
    /// part says nothing about a position.
    fn describe(&self, key: &str, value: &[u8]) -> Option<(String, String)>;

    /// What the source does after its whole position was removed, as a sentence.
    fn after_reset(&self) -> &'static str;
}
