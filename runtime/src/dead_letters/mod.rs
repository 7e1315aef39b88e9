//! Reads dead letters back: [`DeadLetter`] is what the headers of a record say, [`Redrive`] returns
//! records to the topics that they came from.

mod condition;
mod failed;
mod offset_ranges;
mod redrive;
mod through;

pub use condition::LetterCondition;
pub use failed::Failed;
pub use offset_ranges::OffsetRanges;
pub use redrive::{FailedStages, Placed, Plan, Redrive, Selects, redriven_ranges};
pub use through::Through;

use trunkline_connector::{RecordRef, Result};

use crate::kafka::{Cluster, topic_reader};

/// The prefix of Kafka Connect's headers of dead letters.
const CONNECT: &str = "__connect.errors.";
/// The original size of a record that did not fit.
const TRUNCATED: &str = "trunkline.truncated";
/// The run that rejected the record, if it was a replay.
pub const REPLAY: &str = "trunkline.replay";
/// How often a record was redriven.
const ATTEMPTS: &str = "trunkline.redrive.attempts";

/// What the headers of a dead letter say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// Its partition in the topic of dead letters.
    pub partition: i32,
    /// Its offset there.
    pub offset: i64,
    /// When it was written, in milliseconds since the Unix epoch.
    pub timestamp: Option<i64>,
    /// The pipeline.
    pub pipeline: String,
    /// The component that rejected the record.
    pub component: String,
    /// The step that rejected it, by Kafka Connect's names.
    pub stage: String,
    /// The error code.
    pub code: String,
    /// The reason.
    pub message: String,
    /// The record that was read, unless it came from a source.
    pub origin: Option<Origin>,
    /// Whether only a part of it fitted.
    pub is_truncated: bool,
    /// How often it was redriven.
    pub attempts: u32,
    /// The run that rejected it, if it was a replay.
    pub replay: Option<String>,
}

/// The place of a record in a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
}

impl DeadLetter {
    /// Reads the headers of a record. `None` if it is not a dead letter of a pipeline.
    pub(crate) fn of(record: RecordRef<'_>) -> Option<Self> {
        let text = |name: &str| record.header(name).map(|value| String::from_utf8_lossy(value).into_owned());
        let connect = |name: &str| text(&format!("{CONNECT}{name}"));
        let connector = connect("connector.name")?;
        // Names of components have no dots.
        let (pipeline, component) = connector.rsplit_once('.')?;
        let origin = || {
            Some(Origin {
                topic: connect("topic")?,
                partition: connect("partition")?.parse().ok()?,
                offset: connect("offset")?.parse().ok()?,
            })
        };
        Some(Self {
            partition: record.entry().partition,
            offset: record.entry().offset,
            timestamp: record.timestamp(),
            pipeline: pipeline.to_owned(),
            component: component.to_owned(),
            stage: connect("stage").unwrap_or_default(),
            code: connect("exception.class.name").unwrap_or_default(),
            message: connect("exception.message").unwrap_or_default(),
            origin: origin(),
            is_truncated: text(TRUNCATED).is_some(),
            attempts: text(ATTEMPTS).and_then(|attempts| attempts.parse().ok()).unwrap_or(0),
            replay: text(REPLAY),
        })
    }
}

/// Passes the dead letters of a pipeline, partition by partition, in order.
pub fn read(
    cluster: &Cluster,
    topic: &str,
    pipeline: &str,
    mut each: impl FnMut(DeadLetter, RecordRef<'_>) -> Result<()>,
) -> Result<()> {
    topic_reader::scan(cluster, topic, &mut |record| match DeadLetter::of(record) {
        // Pipelines may share a topic.
        Some(letter) if letter.pipeline == pipeline => each(letter, record),
        _ => Ok(()),
    })
}
