//! [`Redrive`]: returns the records of dead letters to the topics that they came from, exactly
//! once.
//!
//! One Kafka transaction holds the records and the offsets of their dead letters, so that a kill
//! between the two is impossible. The offsets are rows of `_trunkline.checkpoints`. The
//! transactional id is the pipeline's: a second redrive of the pipeline fences the first.
//!
//! `--through` passes each record through a plugin first. The plugin sees the record as its
//! component received it, and may change it, drop it, or emit several.
//!
//! A record that a fused transform or its sink rejected is not as it was in its topic: the
//! transforms before it have changed it. Such a record is read from its topic again.
//!
//! A record that a source rejected was in no topic. It passes the failed stage, as today's plan has
//! it ([`FailedStages`]), and its output is in the transaction. On request, so do the records of
//! transforms.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use trunkline_connector::{Batch, Error, PositionChange, RecordRef, Result, Schema, headers};

use super::{ATTEMPTS, CONNECT, DeadLetter, OffsetRanges, Origin, REPLAY, Through};
use crate::checkpoint::{CHECKPOINTS, Positions, Schemas, or_empty};
use crate::kafka::topic_reader::RecordReader;
use crate::kafka::{Cluster, ProducerRecord, SendError, TransactionalProducer};

/// A record that was redriven this often stays.
const MAX_ATTEMPTS: u32 = 5;

/// Bytes and records of one transaction.
const TRANSACTION_BYTES: usize = 4 << 20;
const TRANSACTION_RECORDS: u64 = 1_000;

/// Unsent bytes of the producer.
const BUFFER_BYTES: usize = 8 << 20;

/// The offsets of dead letters that were redriven, by partition.
type Redriven = BTreeMap<i32, OffsetRanges>;

/// The stages that rejected records.
pub trait FailedStages {
    /// Replaces the record in `batch` by what its stage makes of it today, which may be nothing.
    /// Returns the places of these records, or why the record stays.
    fn run(&mut self, letter: &DeadLetter, batch: &mut Batch) -> Result<std::result::Result<Vec<Placed>, String>>;

    /// The schemas that these records may name.
    fn schemas(&self) -> Vec<Arc<Schema>>;
}

/// The place of a record that a stage made.
pub struct Placed {
    /// The topic.
    pub topic: String,
    /// The partition.
    pub partition: i32,
    /// The record keeps its timestamp. Otherwise it has the time of production.
    pub keeps_timestamp: bool,
}

/// What is redriven, and to where.
pub struct Plan<'a> {
    /// The pipeline.
    pub pipeline: &'a str,
    /// Its topic of dead letters.
    pub topic: &'a str,
    /// The topic that takes the records, and its partitions; `None` stands for the topics that they
    /// came from.
    pub to_topic: Option<(&'a str, i32)>,
    /// Whether the records of a component's dead letters are as they were in their topic.
    pub is_unchanged: &'a dyn Fn(&str) -> bool,
    /// Why records must not return to a topic.
    pub refusal: &'a dyn Fn(&str) -> Option<String>,
    /// Records of transforms pass the failed stage, too, instead of returning to its topic.
    pub passes_stage: bool,
    /// The schemas of the cluster.
    pub schemas: &'a Schemas,
}

/// Selects dead letters.
pub type Selects<'a> = dyn FnMut(&DeadLetter, RecordRef<'_>, bool) -> Result<bool> + 'a;

/// A redrive of one pipeline.
pub struct Redrive<'a> {
    plan: &'a Plan<'a>,
    cluster: &'a Cluster,
    selects: &'a mut Selects<'a>,
    through: Option<Through>,
    stages: &'a mut dyn FailedStages,
    /// Schemas that are published in the open transaction.
    published: Vec<Arc<Schema>>,
    /// `None` for a dry run.
    producer: Option<TransactionalProducer>,
    positions: Option<Positions>,
    redriven: Redriven,
    /// The last dead letter of the pipeline in its partition, if it was redriven.
    previous: BTreeMap<i32, i64>,
    changed: BTreeSet<i32>,
    originals: Option<RecordReader>,
    batch: Batch,
    records: u64,
    bytes: usize,
    /// The records of each component, code and target topic.
    pub moved: BTreeMap<(String, String, String), u64>,
    /// The records of each component and code that the plugin of `--through`, or their stage,
    /// dropped.
    pub dropped: BTreeMap<(String, String), u64>,
    /// The dead letters that stay, by reason.
    pub skipped: BTreeMap<String, u64>,
}

/// What happened to the record of a dead letter.
enum Outcome {
    /// It was sent to this topic.
    Sent(String),
    /// The plugin of `--through`, or its stage, dropped it.
    Dropped,
    /// It stays: it was not chosen, or for a reason.
    Stays(Option<String>),
}

/// The name by which Kafka knows the redrive of a pipeline: no component has such a name.
fn owner(cluster: &str, pipeline: &str) -> String {
    format!("{cluster}.{pipeline}.!redrive")
}

/// The offsets of a pipeline's dead letters that were redriven, by partition of their topic.
pub fn redriven_ranges(cluster: &Cluster, name: &str, pipeline: &str, topic: &str) -> Result<Redriven> {
    let owner = owner(name, pipeline);
    or_empty(Positions::load(cluster, &owner, &owner).and_then(|positions| parse(&positions, topic)))
}

fn parse(positions: &Positions, topic: &str) -> Result<Redriven> {
    let prefix = format!("{topic}/");
    let mut redriven = Redriven::new();
    for (key, value) in &positions.parts {
        let Some(partition) = key.strip_prefix(&prefix).and_then(|partition| partition.parse().ok()) else { continue };
        let ranges = serde_json::from_slice(value).map_err(|error| {
            let message = format!(
                "the row `{key}` of the redrive in topic `{CHECKPOINTS}` cannot be read ({error}): was it written by a newer \
                 version?"
            );
            Error::data("checkpoint.unreadable", message)
        })?;
        redriven.insert(partition, ranges);
    }
    Ok(redriven)
}

impl<'a> Redrive<'a> {
    /// Prepares a redrive of the dead letters that `selects` chooses. With `dry_run` nothing is
    /// written, and a running redrive is not fenced.
    pub fn new(
        cluster: &'a Cluster,
        name: &str,
        plan: &'a Plan<'a>,
        selects: &'a mut Selects<'a>,
        through: Option<Through>,
        stages: &'a mut dyn FailedStages,
        dry_run: bool,
    ) -> Result<Self> {
        let owner = owner(name, plan.pipeline);
        let (producer, positions, redriven) = if dry_run {
            (None, None, redriven_ranges(cluster, name, plan.pipeline, plan.topic)?)
        } else {
            // First: it ends the transaction of a redrive that was killed.
            let producer = TransactionalProducer::new(cluster, &owner, BUFFER_BYTES)?;
            let positions = Positions::load(cluster, &owner, &owner)?;
            let redriven = parse(&positions, plan.topic)?;
            (Some(producer), Some(positions), redriven)
        };
        Ok(Self {
            plan,
            cluster,
            selects,
            through,
            stages,
            published: Vec::new(),
            producer,
            positions,
            redriven,
            previous: BTreeMap::new(),
            changed: BTreeSet::new(),
            originals: None,
            batch: Batch::default(),
            records: 0,
            bytes: 0,
            moved: BTreeMap::new(),
            dropped: BTreeMap::new(),
            skipped: BTreeMap::new(),
        })
    }

    /// Redrives all dead letters that exist now.
    pub fn run(&mut self) -> Result<()> {
        let (cluster, plan) = (self.cluster, self.plan);
        super::read(cluster, plan.topic, plan.pipeline, |letter, record| self.handle(&letter, record))?;
        self.commit()
    }

    fn handle(&mut self, letter: &DeadLetter, record: RecordRef<'_>) -> Result<()> {
        if self.redriven.get(&letter.partition).is_some_and(|ranges| ranges.contains(letter.offset)) {
            self.previous.insert(letter.partition, letter.offset);
            return Ok(());
        }
        let is_chosen = (self.selects)(letter, record, false)?;
        let outcome = if is_chosen { self.send(letter, record)? } else { Outcome::Stays(None) };
        let (component, code) = (letter.component.clone(), letter.code.clone());
        match outcome {
            Outcome::Sent(topic) => *self.moved.entry((component, code, topic)).or_default() += 1,
            Outcome::Dropped => *self.dropped.entry((component, code)).or_default() += 1,
            Outcome::Stays(reason) => {
                self.previous.remove(&letter.partition);
                if let Some(reason) = reason {
                    *self.skipped.entry(reason).or_default() += 1;
                }
                return Ok(());
            }
        }
        // Between two dead letters of the pipeline lie those of others, and markers.
        let from = self.previous.insert(letter.partition, letter.offset).unwrap_or(letter.offset);
        self.redriven.entry(letter.partition).or_default().insert(from, letter.offset + 1);
        self.changed.insert(letter.partition);
        if self.records >= TRANSACTION_RECORDS || self.bytes >= TRANSACTION_BYTES {
            self.commit()?;
        }
        Ok(())
    }

    /// Sends the record of a dead letter, unless it stays or is dropped.
    fn send(&mut self, letter: &DeadLetter, record: RecordRef<'_>) -> Result<Outcome> {
        if record.header(headers::TIMER).is_some() {
            let reason =
                "it is a timer, and no record: the transform has removed it, and sets others for later records";
            return Ok(Outcome::Stays(Some(reason.to_owned())));
        }
        let target = match self.target(letter) {
            Ok(target) => target,
            Err(reason) => return Ok(Outcome::Stays(Some(reason))),
        };
        let passes_stage = target.is_none();
        let is_unchanged = passes_stage || self.plan.to_topic.is_some() || (self.plan.is_unchanged)(&letter.component);
        self.batch.clear();
        if is_unchanged {
            copy(&mut self.batch, record);
        } else if let Some(origin) = &letter.origin {
            let reader = self.originals.get_or_insert_with(|| RecordReader::new(self.cluster));
            let batch = &mut self.batch;
            let found = reader.read(&origin.topic, origin.partition, origin.offset, |original| {
                copy(batch, original);
            })?;
            if !found {
                let reason = format!("topic `{}` no longer has the original records", origin.topic);
                return Ok(Outcome::Stays(Some(reason)));
            }
        }
        if let Some(through) = &mut self.through
            && let Err(reason) = through.apply(&mut self.batch)?
        {
            return Ok(Outcome::Stays(Some(reason)));
        }
        let mut places = Vec::new();
        if passes_stage && !self.batch.is_empty() {
            places = match self.stages.run(letter, &mut self.batch)? {
                Ok(places) => places,
                Err(reason) => return Ok(Outcome::Stays(Some(reason))),
            };
            if let Some(producer) = &mut self.producer {
                self.plan.schemas.publish_all(producer, self.stages.schemas(), &mut self.published)?;
            }
        }
        if self.batch.is_empty() {
            return Ok(Outcome::Dropped);
        }
        self.produce(letter, target.as_ref(), &places)
    }

    /// Produces the records of the batch in the open transaction: to `target`, or each to its
    /// place.
    fn produce(&mut self, letter: &DeadLetter, target: Option<&Origin>, places: &[Placed]) -> Result<Outcome> {
        let attempts = (letter.attempts + 1).to_string();
        let mut first_topic: Option<String> = None;
        for (index, record) in self.batch.iter().enumerate() {
            self.records += 1;
            self.bytes += record.value().map_or(0, <[u8]>::len) + record.key().map_or(0, <[u8]>::len);
            let (topic, partition, keeps_timestamp) = match (target, places.get(index)) {
                (Some(target), _) => (&target.topic, target.partition, true),
                (None, Some(place)) => (&place.topic, place.partition, place.keeps_timestamp),
                (None, None) => return Err(Error::internal("cli.redrive_stage", "a record of a stage has no place")),
            };
            first_topic.get_or_insert_with(|| topic.clone());
            let Some(producer) = &mut self.producer else { continue };
            let sent = producer.send(&ProducerRecord {
                topic,
                partition,
                timestamp: record.timestamp().filter(|_| keeps_timestamp),
                key: record.key(),
                value: record.value(),
                headers: record.header_block(),
                more_headers: &[(ATTEMPTS, attempts.as_bytes())],
            });
            match sent {
                Ok(()) => {}
                Err(SendError::TooLarge(refused)) if index == 0 => {
                    return Ok(Outcome::Stays(Some(refused.to_string())));
                }
                // An earlier record of the same dead letter is in the transaction, which ends.
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Outcome::Sent(first_topic.unwrap_or_default()))
    }

    /// Where the record of a dead letter goes; `None`: through its stage. To its own partition, so
    /// that the records of a key keep their order.
    fn target(&self, letter: &DeadLetter) -> std::result::Result<Option<Origin>, String> {
        if letter.is_truncated {
            return Err("only a part of the record is in the dead letter".to_owned());
        }
        if let Some(run) = &letter.replay {
            return Err(format!(
                "the replay {run} rejected it, and its topic still has the record: correct the cause, and replay it again"
            ));
        }
        if letter.attempts >= MAX_ATTEMPTS {
            return Err(format!("it was redriven {MAX_ATTEMPTS} times, and failed each time"));
        }
        if let Some((topic, partitions)) = self.plan.to_topic {
            let partition = letter.origin.as_ref().map_or(letter.partition, |origin| origin.partition);
            return Ok(Some(Origin {
                topic: topic.to_owned(),
                partition: partition % partitions.max(1),
                offset: letter.offset,
            }));
        }
        match &letter.origin {
            Some(origin) if !self.plan.passes_stage => match (self.plan.refusal)(&origin.topic) {
                Some(reason) => Err(reason),
                None => Ok(Some(origin.clone())),
            },
            _ => Ok(None),
        }
    }

    fn commit(&mut self) -> Result<()> {
        self.records = 0;
        self.bytes = 0;
        let changed = std::mem::take(&mut self.changed);
        let (Some(producer), Some(positions)) = (&mut self.producer, &self.positions) else { return Ok(()) };
        let mut changes = Vec::new();
        for partition in &changed {
            let ranges = json!(self.redriven[partition]).to_string().into_bytes();
            changes.push(PositionChange { key: format!("{}/{partition}", self.plan.topic), value: Some(ranges) });
        }
        if !changes.is_empty() {
            positions.write(producer, &changes, &positions.counters)?;
        }
        producer.commit()?;
        self.plan.schemas.committed(&std::mem::take(&mut self.published));
        Ok(())
    }
}

/// Copies a record to a batch, without the headers of its dead letter.
fn copy(batch: &mut Batch, record: RecordRef<'_>) {
    let mut copy = batch.record();
    // Without a key, the partition of a record decides that of the records made of it.
    copy.ordering_key(record.entry().partition.unsigned_abs());
    if let Some(timestamp) = record.timestamp() {
        copy.timestamp(timestamp);
    }
    if let Some(key) = record.key() {
        copy.key(key);
    }
    if let Some(value) = record.value() {
        copy.value(value);
    }
    for (name, value) in
        record.headers().filter(|(name, _)| !name.starts_with(CONNECT) && ![ATTEMPTS, REPLAY].contains(name))
    {
        copy.header(name, value);
    }
    copy.finish();
}
