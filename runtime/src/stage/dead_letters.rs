//! Records that a component could not take: by its `on_error` they go to the pipeline's dead letter
//! topic, stop the stage, or are counted and left out.
//!
//! Dead letters wait here until the transaction that commits the offsets or positions that
//! cover them, so that none is lost and none comes twice. They carry Kafka Connect's
//! `__connect.errors.*` headers, so that existing tools read them, and the record as it came.

use trunkline_connector::batch::Headers;
use trunkline_connector::{Error, Reason, RecordRef, Rejections, Result};

use super::careful::RECORD_REJECTED;
use crate::checkpoint::Counters;
use crate::dead_letters::REPLAY;
use crate::kafka::{ProducerRecord, RecordTooLarge, SendError, TransactionalProducer};
use crate::plan::OnError;

/// Dead letters of one partition or source task that are not committed yet.
#[derive(Default)]
pub(super) struct DeadLetters {
    records: Rejections,
    origins: Vec<Origin>,
    /// The offset of the record whose rejection stops the stage.
    stopped_at: Option<i64>,
    /// Rejections are not logged, because the caller prints them.
    is_quiet: bool,
}

/// The run that writes dead letters.
pub(super) struct RunName<'a> {
    /// The pipeline.
    pub(super) pipeline: &'a str,
    /// The id of the run, if it is a replay.
    pub(super) replay: Option<&'a str>,
}

struct Origin {
    component: String,
    stage: &'static str,
}

impl DeadLetters {
    /// No records. Rejections will not be logged.
    pub(super) fn quiet() -> Self {
        Self { is_quiet: true, ..Self::default() }
    }

    /// Routes the rejected records of a component. `stage` is Kafka Connect's name of the step
    /// (`VALUE_CONVERTER`, `TRANSFORMATION`, `TASK_PUT`).
    pub(super) fn route_rejections(
        &mut self,
        component: &str,
        stage: &'static str,
        on_error: OnError,
        rejected: &Rejections,
        counters: &mut Counters,
    ) -> Result<()> {
        let Some((first, reason)) = rejected.iter().next() else { return Ok(()) };
        match on_error {
            OnError::Stop => {
                let offsets = rejected.iter().map(|(record, _)| record.entry().offset);
                self.stopped_at = offsets.min().filter(|offset| *offset >= 0);
                let message =
                    format!("`{component}` rejected {}: {} [{}]", describe(first), reason.message, reason.code);
                return Err(Error::data(RECORD_REJECTED, format!("{message}; on_error = \"stop\"")));
            }
            OnError::Skip => counters.of(component).dropped += rejected.len() as u64,
            OnError::DeadLetter | OnError::DeadLetterUntil(_) => {
                for (record, reason) in rejected.iter() {
                    counters.add_dead_letter(component, &reason.code);
                    self.records.push(record, reason.clone());
                    self.origins.push(Origin { component: component.to_owned(), stage });
                }
            }
        }
        if !self.is_quiet {
            tracing::warn!(
                component,
                records = rejected.len(),
                code = reason.code,
                "{}: {}",
                describe(first),
                reason.message
            );
        }
        Ok(())
    }

    /// The offset of the record whose rejection stops the stage, if it was read from a topic.
    pub(super) fn stopped_at(&self) -> Option<i64> {
        self.stopped_at
    }

    /// The component, the record and the reason of each dead letter.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, RecordRef<'_>, &Reason)> {
        let records = self.records.iter().zip(&self.origins);
        records.map(|((record, reason), origin)| (origin.component.as_str(), record, reason))
    }

    /// Number of dead letters.
    pub(super) fn len(&self) -> usize {
        self.origins.len()
    }

    /// Bytes of the records (I6).
    pub(super) fn bytes(&self) -> usize {
        self.records.records.bytes()
    }

    /// Produces the records in the open transaction. They stay until [`DeadLetters::clear`],
    /// because the transaction may be repeated.
    pub(super) fn write(
        &self,
        producer: &mut TransactionalProducer,
        run: &RunName<'_>,
        topic: &str,
        partitions: i32,
    ) -> Result<()> {
        for ((record, reason), origin) in self.records.iter().zip(&self.origins) {
            let connector = format!("{}.{}", run.pipeline, origin.component);
            let (partition, offset) = (record.entry().partition.to_string(), record.entry().offset.to_string());
            let mut headers: Vec<(&str, &[u8])> = vec![
                ("__connect.errors.connector.name", connector.as_bytes()),
                ("__connect.errors.task.id", b"0"),
                ("__connect.errors.stage", origin.stage.as_bytes()),
                ("__connect.errors.class.name", b"trunkline"),
                ("__connect.errors.exception.class.name", reason.code.as_bytes()),
                (MESSAGE, reason.message.as_bytes()),
            ];
            if let Some(replay) = run.replay {
                headers.push((REPLAY, replay.as_bytes()));
            }
            if record.entry().offset >= 0 {
                headers.push(("__connect.errors.topic", record.topic().as_bytes()));
                headers.push(("__connect.errors.partition", partition.as_bytes()));
                headers.push(("__connect.errors.offset", offset.as_bytes()));
            }
            let dead_letter = ProducerRecord {
                topic,
                partition: super::partitioner::partition_of(record, partitions),
                timestamp: None,
                key: record.key(),
                value: record.value(),
                headers: record.header_block(),
                more_headers: &headers,
            };
            match producer.send(&dead_letter) {
                Ok(()) => {}
                Err(SendError::TooLarge(refused)) => {
                    send_truncated(producer, &dead_letter, &refused)?;
                }
                Err(SendError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }

    /// Removes the records: they are committed, or will be read again.
    pub(super) fn clear(&mut self) {
        self.records.clear();
        self.origins.clear();
    }
}

/// Room for the encoding of a truncated dead letter: its added header and the length fields.
const TRUNCATION_ROOM: usize = 1 << 10;

/// The header with the reason of a dead letter.
const MESSAGE: &str = "__connect.errors.exception.message";

/// Sends a dead letter that its topic does not accept with as much of its content as fits. The
/// headers that state its position stay (`trunkline.path`, `trunkline.offset`), and the header
/// `trunkline.truncated` has its original size.
fn send_truncated(
    producer: &mut TransactionalProducer,
    dead_letter: &ProducerRecord<'_>,
    refused: &RecordTooLarge,
) -> Result<()> {
    // Messages and paths are bounded too, so that the dead letter fits in any case.
    let part = refused.limit / 4;
    let size = refused.bytes.to_string();
    let mut headers: Vec<(&str, &[u8])> = vec![("trunkline.truncated", size.as_bytes())];
    for (name, value) in dead_letter.more_headers {
        let len = if *name == MESSAGE { value.len().min(part) } else { value.len() };
        headers.push((name, &value[..len]));
    }
    let mut kept = 0;
    for (name, value) in Headers::over(dead_letter.headers) {
        let value = value.unwrap_or_default();
        if name.starts_with("trunkline.") && kept + header_bytes(name, value) <= part {
            kept += header_bytes(name, value);
            headers.push((name, value));
        }
    }
    let added: usize = headers.iter().map(|(name, value)| header_bytes(name, value)).sum();
    let mut room = refused.limit.saturating_sub(added + TRUNCATION_ROOM);
    let mut cut = |part: Option<&'_ [u8]>| -> Option<usize> {
        part.map(|part| {
            let len = part.len().min(room);
            room -= len;
            len
        })
    };
    let (key_len, value_len) = (cut(dead_letter.key), cut(dead_letter.value));
    let truncated = ProducerRecord {
        key: dead_letter.key.zip(key_len).map(|(key, len)| &key[..len]),
        value: dead_letter.value.zip(value_len).map(|(value, len)| &value[..len]),
        headers: &[],
        more_headers: &headers,
        ..*dead_letter
    };
    Ok(producer.send(&truncated)?)
}

/// Size of a header with its length fields.
fn header_bytes(name: &str, value: &[u8]) -> usize {
    name.len() + value.len() + 10
}

/// The origin of a record, for messages.
fn describe(record: RecordRef<'_>) -> String {
    use trunkline_connector::headers::{OFFSET, PATH, TIMER};
    let text = |name| record.header(name).map(String::from_utf8_lossy);
    match (text(PATH), text(OFFSET)) {
        _ if record.entry().offset >= 0 => {
            format!(
                "the record at offset {} of `{}` partition {}",
                record.entry().offset,
                record.topic(),
                record.entry().partition
            )
        }
        (Some(path), Some(offset)) => format!("the line at byte {offset} of `{path}`"),
        _ => match text(TIMER) {
            Some(time) => {
                let key = String::from_utf8_lossy(record.key().unwrap_or_default());
                let (topic, partition) = (record.topic(), record.entry().partition);
                format!("the timer `{}` of {time} for `{topic}` partition {partition}", key.escape_debug())
            }
            None => "a record".to_owned(),
        },
    }
}
