//! The topics that a stage writes to: rendered names, partition counts, and creation of topics that
//! a template names for the first time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use trunkline_connector::{Batch, Escape, Reason, RecordRef, Rejections, Result, Template};

use super::partitioner::partition_of;
use super::worker_context::WorkerContext;
use crate::checkpoint::{TaskOwner, TopicClaim, TopicOwners};
use crate::kafka::{Admin, ProducerRecord, SendError, TopicSpec, TransactionalProducer};
use crate::plan::topic_error;

/// Partition counts by topic. Topics that a template names for the first time are created.
pub(super) struct Topics {
    admin: Arc<Admin>,
    known: HashMap<String, KnownTopic>,
    spec: TopicSpec,
    writer: Option<TopicWriter>,
}

/// A topic that exists.
#[derive(Clone, Copy)]
struct KnownTopic {
    partitions: i32,
    /// Records may be written to it.
    is_claimed: bool,
}

/// The component that writes records to the topics.
struct TopicWriter {
    owners: Arc<TopicOwners>,
    owner: TaskOwner,
    takes_over: bool,
    /// The topic of the pipeline's dead letters.
    dead_letters: String,
}

impl Topics {
    pub(super) fn new(context: &WorkerContext, partitions: Option<i32>) -> Self {
        let spec = TopicSpec {
            name: String::new(),
            partitions: partitions.unwrap_or(context.topics.partitions),
            replication: context.topics.replication,
            config: context.topics.config.clone(),
        };
        Self { admin: context.admin.clone(), known: HashMap::new(), spec, writer: None }
    }

    /// Claims the topics of records for this component (pipeline and name) before the first record.
    pub(super) fn written_by(
        mut self,
        context: &WorkerContext,
        (pipeline, component): (&str, &str),
        dead_letters: &str,
    ) -> Self {
        self.writer = Some(TopicWriter {
            owners: context.owners.clone(),
            owner: context.names.owner(pipeline, component, false),
            takes_over: context.append,
            dead_letters: dead_letters.to_owned(),
        });
        self
    }

    /// As [`new`](Self::new), without a worker: topics are created as `spec` says.
    pub(super) fn with(admin: Arc<Admin>, spec: TopicSpec) -> Self {
        Self { admin, known: HashMap::new(), spec, writer: None }
    }

    /// The number of partitions of a topic, which is created if it does not exist.
    pub(super) fn partitions(&mut self, topic: &str) -> Result<i32> {
        if let Some(known) = self.known.get(topic) {
            return Ok(known.partitions);
        }
        self.ensure(std::iter::once(topic.to_owned()), false)?;
        Ok(self.known.get(topic).map_or(self.spec.partitions, |known| known.partitions))
    }

    /// Creates the missing ones of these topics with one request, and notes their partitions.
    fn ensure(&mut self, names: impl Iterator<Item = String>, is_claimed: bool) -> Result<()> {
        let specs: Vec<TopicSpec> = names.map(|name| TopicSpec { name, ..self.spec.clone() }).collect();
        let ensured = self.admin.ensure(&specs)?;
        for spec in specs {
            let partitions = ensured.partitions.get(&spec.name).copied().unwrap_or(spec.partitions);
            self.known.insert(spec.name, KnownTopic { partitions, is_claimed });
        }
        Ok(())
    }

    /// Claims topics for the component. Fails if another component writes one of them.
    pub(super) fn claim(&self, topics: impl IntoIterator<Item = String>) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let claims = topics.into_iter().map(|topic| TopicClaim { topic, owner: writer.owner.clone() });
        writer.owners.claim(&claims.collect::<Vec<_>>(), writer.takes_over)
    }

    /// Claims and creates all topics of a batch that this stage has not written to yet. A snapshot
    /// of many small tables has many of them in each batch.
    fn ensure_all<'t>(&mut self, batch: &Batch, topic_of: &impl Fn(RecordRef<'_>) -> &'t Template) -> Result<()> {
        let mut unknown = BTreeSet::new();
        let mut rendered = String::new();
        for record in batch.iter() {
            let is_valid = self.render(topic_of(record), record, &mut rendered).is_ok();
            if is_valid && !self.is_claimed(&rendered) && !unknown.contains(&rendered) {
                unknown.insert(rendered.clone());
            }
        }
        self.claim(unknown.iter().cloned())?;
        self.ensure(unknown.into_iter(), true)
    }

    fn is_claimed(&self, topic: &str) -> bool {
        self.known.get(topic).is_some_and(|known| known.is_claimed)
    }

    /// As [`render_topic`]. A topic of dead letters holds nothing else.
    fn render(
        &self,
        template: &Template,
        record: RecordRef<'_>,
        topic: &mut String,
    ) -> std::result::Result<(), String> {
        render_topic(template, record, topic)?;
        match &self.writer {
            Some(writer) if writer.dead_letters == *topic => {
                Err(format!("the topic of the record is `{topic}`, which is for the pipeline's dead letters"))
            }
            _ => Ok(()),
        }
    }

    /// Sends a batch in the producer's open transaction, each record to the topic of its template.
    /// Returns the records that cannot be sent: their template has no value or gives an invalid
    /// topic name, or their topic does not accept their size. `atomic`: if one cannot be sent, none
    /// is.
    pub(super) fn send<'t>(
        &mut self,
        producer: &mut TransactionalProducer,
        batch: &Batch,
        atomic: bool,
        topic_of: impl Fn(RecordRef<'_>) -> &'t Template,
        timestamp_of: impl Fn(RecordRef<'_>) -> Option<i64>,
    ) -> Result<Rejections> {
        let mut rejected = Rejections::default();
        if atomic {
            self.send_or_check(producer, batch, true, &topic_of, &timestamp_of, &mut rejected)?;
        }
        if rejected.is_empty() {
            self.send_or_check(producer, batch, false, &topic_of, &timestamp_of, &mut rejected)?;
        }
        Ok(rejected)
    }

    /// Sends a batch, or only checks whether its records can be sent.
    fn send_or_check<'t>(
        &mut self,
        producer: &mut TransactionalProducer,
        batch: &Batch,
        checks_only: bool,
        topic_of: &impl Fn(RecordRef<'_>) -> &'t Template,
        timestamp_of: &impl Fn(RecordRef<'_>) -> Option<i64>,
        rejected: &mut Rejections,
    ) -> Result<()> {
        // The topic of the last record: records come in runs of one topic.
        let mut last = Destination::default();
        let mut rendered = String::new();
        for record in batch.iter() {
            let template = topic_of(record);
            if !last.is_of(template, record) {
                if let Err(message) = self.render(template, record, &mut rendered) {
                    rejected.push(record, Reason::new("stage.topic", message));
                    continue;
                }
                if last.topic != rendered {
                    if !self.is_claimed(&rendered) {
                        self.ensure_all(batch, topic_of)?;
                    }
                    last.partitions = self.partitions(&rendered)?;
                    std::mem::swap(&mut last.topic, &mut rendered);
                }
                last.applies = Applies::of(template, record);
                last.template = Some(template);
            }
            let output = ProducerRecord {
                topic: &last.topic,
                partition: partition_of(record, last.partitions),
                timestamp: timestamp_of(record),
                key: record.key(),
                value: record.value(),
                headers: record.header_block(),
                more_headers: &[],
            };
            let sent = if checks_only { producer.check(&output) } else { producer.send(&output) };
            match sent {
                Ok(()) => {}
                Err(SendError::TooLarge(refused)) => {
                    rejected.push(record, Reason::new("kafka.record_too_large", refused.to_string()));
                }
                Err(SendError::Failed(error)) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The topic of a record, its partitions, and the records that have the same topic.
#[derive(Default)]
struct Destination<'t, 'r> {
    topic: String,
    partitions: i32,
    template: Option<&'t Template>,
    applies: Applies<'r>,
}

/// The records for which a template gives the same topic. Rendering costs more than the rest of a
/// record of a table, so it is avoided.
#[derive(Default)]
enum Applies<'r> {
    Always,
    WithHeaders(&'r [u8]),
    #[default]
    Once,
}

impl<'r> Applies<'r> {
    fn of(template: &Template, record: RecordRef<'r>) -> Self {
        match template.constant() {
            Some(_) => Self::Always,
            None if template.depends_on_headers_only() => Self::WithHeaders(record.header_block()),
            None => Self::Once,
        }
    }
}

impl Destination<'_, '_> {
    /// Whether the template gives this topic to the record, too.
    fn is_of(&self, template: &Template, record: RecordRef<'_>) -> bool {
        self.template.is_some_and(|last| std::ptr::eq(last, template))
            && match self.applies {
                Applies::Always => true,
                Applies::WithHeaders(headers) => headers == record.header_block(),
                Applies::Once => false,
            }
    }
}

/// Replaces `topic` by the topic of a record; a problem is a data error of the record.
pub(super) fn render_topic(
    template: &Template,
    record: RecordRef<'_>,
    topic: &mut String,
) -> std::result::Result<(), String> {
    topic.clear();
    template.render(record, Escape::Topic, topic).map_err(|error| error.to_string())?;
    check_topic(topic)
}

/// Checks that Kafka accepts a topic's name, and that the topic is none of Trunkline's own.
fn check_topic(name: &str) -> std::result::Result<(), String> {
    match topic_error(name) {
        Some(why) => Err(format!(
            "`{name}` is not a valid topic name: it {why}; use at most 249 letters, digits, `.`, `_` and `-`"
        )),
        None => Ok(()),
    }
}
