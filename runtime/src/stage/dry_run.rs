//! Runs records through the transforms of a pipeline in memory: without Kafka, sources and sinks.
//!
//! Records enter at a source, before its `apply`, or at a topic. They pass the stages as in a
//! worker: fused transforms in the stage that reads them, separate transforms from topic to topic.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use trunkline_connector::{Batch, Error, Reason, RecordRef, Result, Template, TopicPartition};
use trunkline_transform_host::StateStore;

use super::chain::RunningTransform;
use super::dead_letters::DeadLetters;
use super::lookup_table::Rows;
use super::output::render_topic;
use super::routes::Routes;
use crate::checkpoint::Counters;
use crate::plan::{Input, Pipeline, SourcePlan, TransformPlan};

/// More batches than this mean that records circulate through topics of other programs.
const MAX_BATCHES: usize = 10_000;

/// What the records became.
#[derive(Debug, Default)]
pub struct DryRunOutput {
    /// The records of each sink and each separate transform, by name; of its ports, by
    /// `transform.port`. The topic of a record is that of its output.
    pub outputs: BTreeMap<String, Batch>,
    /// The dead letters, in order: the component, the record and the reason.
    pub dead_letters: Vec<(String, Batch, Reason)>,
}

/// A pipeline that runs in memory.
pub struct DryRun<'p> {
    transforms: Vec<DryTransform<'p>>,
    sinks: Vec<(&'p str, &'p [Input], Routes)>,
    /// Batches of one topic each that no stage has read yet.
    pending: VecDeque<(Arc<str>, Batch)>,
    counters: Counters,
    output: DryRunOutput,
}

/// A separate transform.
struct DryTransform<'p> {
    plan: &'p TransformPlan,
    routes: Routes,
    running: RunningTransform,
    /// The state of each topic: the records of a test have one partition.
    state: BTreeMap<Arc<str>, StateStore>,
    table: Option<Rows>,
}

impl<'p> DryRun<'p> {
    /// Starts the plugins.
    pub fn new(pipeline: &'p Pipeline) -> Result<Self> {
        let transforms = pipeline.transforms.iter().map(|plan| {
            let (routes, running) = (Routes::start(&plan.inputs, None)?, RunningTransform::start(&plan.step, &None)?);
            let table = plan.table.as_ref().map(Rows::new);
            Ok(DryTransform { plan, routes, running, state: BTreeMap::new(), table })
        });
        let sinks = pipeline
            .sinks
            .iter()
            .map(|sink| Ok((sink.name.as_str(), sink.inputs.as_slice(), Routes::start(&sink.inputs, None)?)));
        Ok(Self {
            transforms: transforms.collect::<Result<_>>()?,
            sinks: sinks.collect::<Result<_>>()?,
            pending: VecDeque::new(),
            counters: Counters::default(),
            output: DryRunOutput::default(),
        })
    }

    /// Adds records of a source. A record with a topic goes to that topic, another one to the topic
    /// that the source's template gives.
    pub fn add_source(&mut self, source: &SourcePlan, mut batch: Batch) -> Result<()> {
        let mut dead_letters = DeadLetters::default();
        for step in &source.apply {
            let mut transform = RunningTransform::start(step, &None)?;
            transform.process(&mut batch, &mut self.counters, &mut dead_letters, None)?;
        }
        self.take_dead_letters(&dead_letters);
        for record in batch.iter() {
            let topic = match record.topic() {
                "" => topic_of(&source.topic, record).map_err(|problem| {
                    let message = format!("the topic of the source `{}`: {problem}", source.name);
                    Error::data("test.topic", format!("{message}; give the record a `topic`"))
                })?,
                topic => topic.to_owned(),
            };
            self.add(&topic, record);
        }
        Ok(())
    }

    /// Adds a record to a topic.
    pub fn add(&mut self, topic: &str, record: RecordRef<'_>) {
        match self.pending.back_mut() {
            Some((last, batch)) if last.as_ref() == topic => push(batch, topic, record),
            _ => {
                let mut batch = Batch::default();
                push(&mut batch, topic, record);
                self.pending.push_back((Arc::from(topic), batch));
            }
        }
    }

    /// Processes all records. `advance_to`: the event time (milliseconds since 1970) up to which
    /// the timers of all transforms fire afterwards, first those of the transforms that come first
    /// in the file.
    pub fn finish(mut self, advance_to: Option<i64>) -> Result<DryRunOutput> {
        self.process_pending()?;
        for index in 0..self.transforms.len() {
            if let Some(time) = advance_to {
                self.advance_time(index, time)?;
                self.process_pending()?;
            }
        }
        Ok(self.output)
    }

    fn process_pending(&mut self) -> Result<()> {
        let mut batches = 0;
        while let Some((topic, batch)) = self.next_batch() {
            batches += 1;
            if batches > MAX_BATCHES {
                let message = format!("the records circulate: the topic `{topic}` is read and written again");
                return Err(Error::config("test.loop", message));
            }
            self.run_transforms(&topic, &batch)?;
            self.run_sinks(&topic, &batch)?;
        }
        Ok(())
    }

    /// Lets the event time of a transform's input topics advance.
    fn advance_time(&mut self, index: usize, to: i64) -> Result<()> {
        let mut written = Vec::new();
        let mut dead_letters = DeadLetters::default();
        let Some(DryTransform { plan, running, state, .. }) = self.transforms.get_mut(index) else { return Ok(()) };
        for (topic, state) in state {
            let partition = TopicPartition { topic: topic.clone(), partition: 0 };
            let mut out = Batch::default();
            running.advance_time(to, &partition, &mut out, &mut self.counters, &mut dead_letters, state)?;
            write_output(plan, &out, &mut written)?;
            state.commit();
        }
        self.take_dead_letters(&dead_letters);
        self.take_written(written);
        Ok(())
    }

    /// Adds what transforms have written to their topics.
    fn take_written(&mut self, written: Vec<Written>) {
        for Written { output, topic, record } in written {
            for record in record.iter() {
                push(self.output.outputs.entry(output.clone()).or_default(), &topic, record);
                self.add(&topic, record);
            }
        }
    }

    /// The next batch. A table has all of its rows before a record is looked up in it.
    fn next_batch(&mut self) -> Option<(Arc<str>, Batch)> {
        let looks_up = |transform: &DryTransform<'_>, topic: &str| {
            transform.table.is_some() && transform.plan.inputs.iter().any(|input| input.topics.selects(topic))
        };
        let is_early = |topic: &str| !self.transforms.iter().any(|transform| looks_up(transform, topic));
        let at = self.pending.iter().position(|(topic, _)| is_early(topic)).unwrap_or(0);
        self.pending.remove(at)
    }

    fn run_transforms(&mut self, topic: &Arc<str>, batch: &Batch) -> Result<()> {
        let mut written = Vec::new();
        let mut dead_letters = DeadLetters::default();
        for DryTransform { plan, routes, running: own, state, table } in &mut self.transforms {
            if let Some(table) = table
                && plan.table.as_ref().is_some_and(|table| table.topic.as_str() == topic.as_ref())
            {
                batch.iter().for_each(|record| table.add(record));
            }
            if !plan.inputs.iter().any(|input| input.topics.selects(topic)) {
                continue;
            }
            let chain = routes.chain(topic)?;
            let mut input = batch.clone();
            let mut state =
                plan.state.map(|limit| state.entry(topic.clone()).or_insert_with(|| StateStore::new(limit.max_bytes)));
            chain.run(&mut input, &mut self.counters, &mut dead_letters, &mut |out, counters, dead_letters| {
                let store = table.as_mut().map(Rows::store).or(state.as_deref_mut());
                own.process(out, counters, dead_letters, store)?;
                write_output(plan, out, &mut written)
            })?;
            if let Some(state) = state {
                state.commit();
            }
        }
        self.take_dead_letters(&dead_letters);
        self.take_written(written);
        Ok(())
    }

    fn run_sinks(&mut self, topic: &Arc<str>, batch: &Batch) -> Result<()> {
        let mut dead_letters = DeadLetters::default();
        for (name, inputs, routes) in &mut self.sinks {
            if !inputs.iter().any(|input| input.topics.selects(topic)) {
                continue;
            }
            let delivered = self.output.outputs.entry((*name).to_owned()).or_default();
            let mut input = batch.clone();
            routes.chain(topic)?.run(&mut input, &mut self.counters, &mut dead_letters, &mut |out, _, _| {
                out.iter().for_each(|record| push(delivered, topic, record));
                Ok(())
            })?;
        }
        self.take_dead_letters(&dead_letters);
        Ok(())
    }

    fn take_dead_letters(&mut self, dead_letters: &DeadLetters) {
        for (component, record, reason) in dead_letters.iter() {
            let mut single = Batch::default();
            push(&mut single, record.topic(), record);
            self.output.dead_letters.push((component.to_owned(), single, reason.clone()));
        }
    }
}

/// A record that a separate transform has written to its topic.
struct Written {
    /// The transform, or its port.
    output: String,
    topic: String,
    record: Batch,
}

/// The records that a transform outputs, with their topics.
fn write_output(plan: &TransformPlan, out: &Batch, written: &mut Vec<Written>) -> Result<()> {
    for record in out.iter() {
        let port = record.entry().port;
        let found = plan.port_topics.iter().find(|(known, _)| *known == port);
        let template = found.map_or(&plan.topic, |(_, template)| template);
        let output = match plan.step.ports.get(usize::from(port)).filter(|_| found.is_some()) {
            Some(port) => format!("{}.{port}", plan.name),
            None => plan.name.clone(),
        };
        let topic = topic_of(template, record).map_err(|problem| {
            Error::data("test.topic", format!("the topic of the transform `{}`: {problem}", plan.name))
        })?;
        let mut single = Batch::default();
        push(&mut single, &topic, record);
        written.push(Written { output, topic, record: single });
    }
    Ok(())
}

/// Adds a copy of a record, as if it were read from the topic.
fn push(batch: &mut Batch, topic: &str, record: RecordRef<'_>) {
    let offset = batch.len() as i64;
    let topic = batch.topic_index(topic);
    let mut copy = batch.record();
    copy.read_from(topic, 0, offset);
    if let Some(timestamp) = record.timestamp() {
        copy.timestamp(timestamp);
    }
    if let Some(key) = record.key() {
        copy.key(key);
    }
    copy.header_block(record.header_block());
    if let Some(value) = record.value() {
        copy.value(value);
    }
    copy.finish();
}

fn topic_of(template: &Template, record: RecordRef<'_>) -> std::result::Result<String, String> {
    let mut topic = String::new();
    render_topic(template, record, &mut topic)?;
    Ok(topic)
}
