//! [`StraightStages`]: passes records of dead letters through the stages that rejected them, as
//! today's plan has these stages. The output goes to their topics, and no other reader of their
//! input sees the records a second time.
//!
//! A dead letter of a transform holds the record as the transform received it, so it enters at that
//! transform. One of a source's parser holds the data that the parser received.

use std::collections::BTreeMap;
use std::sync::Arc;

use trunkline_connector::{Batch, Error, RecordRef, Reparser, Result, Schema, SourceBatch, Template};

use super::chain::{Chain, RunningTransform, SchemasOfRecords};
use super::dead_letters::DeadLetters;
use super::inspected_stage::reporting;
use super::output::{Topics, render_topic};
use super::partitioner::partition_of;
use crate::checkpoint::{Counters, Schemas};
use crate::config::TopicSettings;
use crate::dead_letters::{DeadLetter, FailedStages, Placed};
use crate::kafka::{Admin, TopicSpec};
use crate::plan::{Branch, Input, OnError, Pipeline, Route, SourcePlan, Step, TransformPlan};

/// The running stages of a pipeline.
pub struct StraightStages<'p> {
    pipeline: &'p Pipeline,
    topics: TopicSettings,
    admin: Arc<Admin>,
    schemas: Arc<Schemas>,
    /// By component and step of the dead letters, and the stage that ran it; or why their records
    /// cannot pass it.
    running: BTreeMap<Entrance, std::result::Result<Straight<'p>, String>>,
    /// Topics are created, because the records are written.
    writes: bool,
}

/// Where records enter: the component that rejected them, its step, and the topic that it read.
type Entrance = (String, String, String);

/// A stage from the failed step on.
struct Straight<'p> {
    /// Parses the data of a source.
    reparser: Option<Box<dyn Reparser>>,
    /// The failed transform, if it is fused, and those after it.
    chain: Chain,
    /// The transform with the topics.
    own: Option<RunningTransform>,
    topic: &'p Template,
    port_topics: &'p [(u16, Template)],
    topics: Topics,
    /// Published before the first record.
    schemas: Vec<Arc<Schema>>,
    keeps_timestamp: bool,
}

impl<'p> StraightStages<'p> {
    /// The stages of a pipeline. Without `writes`, no topic is created.
    pub fn new(
        pipeline: &'p Pipeline,
        topics: &TopicSettings,
        admin: Arc<Admin>,
        schemas: Arc<Schemas>,
        writes: bool,
    ) -> Self {
        Self { pipeline, topics: topics.clone(), admin, schemas, running: BTreeMap::new(), writes }
    }

    fn start(&self, letter: &DeadLetter) -> Result<std::result::Result<Straight<'p>, String>> {
        let component = letter.component.as_str();
        if let Some(source) = self.pipeline.sources.iter().find(|source| source.name == component) {
            return self.start_source(source, &letter.stage);
        }
        if letter.origin.is_none() {
            return self.start_applied(component);
        }
        if self.pipeline.sinks.iter().any(|sink| sink.name == component) {
            return Ok(Err(format!("the sink `{component}` rejected it: return it to its topic")));
        }
        for plan in &self.pipeline.transforms {
            if plan.name == component {
                return self.start_transform(plan, &letter.stage);
            }
            if let Some(branch) = fused_branch(&plan.inputs, component) {
                let route = Route { deliver: false, branches: vec![branch.clone()] };
                return self.transform_from(plan, route, true);
            }
        }
        Ok(Err(format!("no separate stage of today's pipeline runs `{component}`: return it to its topic")))
    }

    /// A source from its parser on, or only its topic.
    fn start_source(&self, source: &'p SourcePlan, stage: &str) -> Result<std::result::Result<Straight<'p>, String>> {
        let name = &source.name;
        let reparser = match stage {
            "VALUE_CONVERTER" => match source.spec.reparser() {
                Some(reparser) => Some(reparser),
                None => {
                    let connector = source.connector;
                    return Ok(Err(format!(
                        "the source `{name}` rejected it, and {connector} cannot read it again: name a topic with --to-topic"
                    )));
                }
            },
            _ if source.port_topics.is_empty() => None,
            _ => {
                return Ok(Err(format!(
                    "the source `{name}` could not write it, and has several topics: name one with --to-topic"
                )));
            }
        };
        let steps = if reparser.is_some() { source.apply.as_slice() } else { &[] };
        self.source_from(source, reparser, steps)
    }

    /// A source from one of the transforms in its `apply` on.
    fn start_applied(&self, component: &str) -> Result<std::result::Result<Straight<'p>, String>> {
        let place = |source: &SourcePlan| source.apply.iter().position(|step| step.component == component);
        let mut found = self.pipeline.sources.iter().filter_map(|source| Some((source, place(source)?)));
        match (found.next(), found.next()) {
            (Some((source, at)), None) => self.source_from(source, None, &source.apply[at..]),
            (None, _) => {
                Ok(Err(format!("no source of today's pipeline applies `{component}`: name a topic with --to-topic")))
            }
            (Some(_), Some(_)) => Ok(Err(format!("several sources apply `{component}`: name a topic with --to-topic"))),
        }
    }

    fn source_from(
        &self,
        source: &'p SourcePlan,
        reparser: Option<Box<dyn Reparser>>,
        steps: &[Step],
    ) -> Result<std::result::Result<Straight<'p>, String>> {
        let end = Route { deliver: true, branches: Vec::new() };
        let route = steps.iter().rev().fold(end, |rest, step| Route {
            deliver: false,
            branches: vec![Branch { step: step.clone(), outputs: vec![(0, rest)] }],
        });
        Ok(Ok(Straight {
            reparser,
            chain: Chain::start(&reporting(&route), &self.store())?,
            own: None,
            topic: &source.topic,
            port_topics: &[],
            topics: self.topics(source.partitions),
            schemas: source.spec.schemas(),
            keeps_timestamp: false,
        }))
    }

    /// A separate transform, or only its topic.
    fn start_transform(
        &self,
        plan: &'p TransformPlan,
        stage: &str,
    ) -> Result<std::result::Result<Straight<'p>, String>> {
        let runs = stage != "KAFKA_PRODUCE";
        if !runs && !plan.port_topics.is_empty() {
            return Ok(Err(format!(
                "`{}` could not write it, and has several topics: name one with --to-topic",
                plan.name
            )));
        }
        self.transform_from(plan, Route { deliver: true, branches: Vec::new() }, runs)
    }

    fn transform_from(
        &self,
        plan: &'p TransformPlan,
        route: Route,
        runs: bool,
    ) -> Result<std::result::Result<Straight<'p>, String>> {
        if runs && plan.state.is_some() {
            return Ok(Err(format!(
                "`{}` keeps state, which a redrive does not have: return it to its topic",
                plan.name
            )));
        }
        let step = Step { on_error: OnError::DeadLetter, ..plan.step.clone() };
        let own = if runs { Some(RunningTransform::start(&step, &self.store())?) } else { None };
        Ok(Ok(Straight {
            reparser: None,
            chain: Chain::start(&reporting(&route), &self.store())?,
            own,
            topic: &plan.topic,
            port_topics: &plan.port_topics,
            topics: self.topics(plan.partitions),
            schemas: Vec::new(),
            keeps_timestamp: true,
        }))
    }

    fn store(&self) -> SchemasOfRecords {
        Some(self.schemas.clone())
    }

    fn topics(&self, partitions: Option<i32>) -> Topics {
        let TopicSettings { replication, config, .. } = &self.topics;
        let partitions = partitions.unwrap_or(self.topics.partitions);
        let spec = TopicSpec { name: String::new(), partitions, replication: *replication, config: config.clone() };
        Topics::with(self.admin.clone(), spec)
    }
}

impl FailedStages for StraightStages<'_> {
    fn run(&mut self, letter: &DeadLetter, batch: &mut Batch) -> Result<std::result::Result<Vec<Placed>, String>> {
        let input = letter.origin.as_ref().map(|origin| origin.topic.clone()).unwrap_or_default();
        let entrance = (letter.component.clone(), letter.stage.clone(), input);
        if !self.running.contains_key(&entrance) {
            let started = self.start(letter)?;
            self.running.insert(entrance.clone(), started);
        }
        let writes = self.writes;
        match self.running.get_mut(&entrance) {
            Some(Ok(straight)) => straight.run(letter, batch, writes),
            Some(Err(reason)) => Ok(Err(reason.clone())),
            None => Err(Error::internal("cli.redrive_stage", "a stage that was started is missing")),
        }
    }

    fn schemas(&self) -> Vec<Arc<Schema>> {
        let mut schemas = Vec::new();
        for straight in self.running.values().flatten() {
            schemas.extend_from_slice(&straight.schemas);
            straight.chain.derived_schemas(&mut schemas);
            schemas.extend(straight.own.iter().flat_map(RunningTransform::derived_schemas).cloned());
        }
        schemas
    }
}

impl Straight<'_> {
    fn run(
        &mut self,
        letter: &DeadLetter,
        batch: &mut Batch,
        writes: bool,
    ) -> Result<std::result::Result<Vec<Placed>, String>> {
        if let Some(reparser) = &mut self.reparser {
            let mut parsed = SourceBatch::with_limits(usize::MAX, usize::MAX);
            for record in batch.iter() {
                reparser.reparse(record, &letter.code, &mut parsed)?;
            }
            if let Some((_, reason)) = parsed.rejected.iter().next() {
                let component = &letter.component;
                return Ok(Err(format!("`{component}` rejects it today, too ({})", reason.code)));
            }
            *batch = parsed.records;
        }
        self.chain.ready()?;
        let (mut counters, mut rejected) = (Counters::default(), DeadLetters::quiet());
        let mut output = Batch::default();
        let own = &mut self.own;
        self.chain.run(batch, &mut counters, &mut rejected, &mut |out, counters, rejected| {
            if let Some(own) = own.as_mut() {
                own.ready()?;
                own.process(out, counters, rejected, None)?;
            }
            out.iter().for_each(|record| output.push_copy(record));
            Ok(())
        })?;
        if let Some((component, _, reason)) = rejected.iter().next() {
            return Ok(Err(format!("`{component}` rejects it today, too ({})", reason.code)));
        }
        let mut places = Vec::with_capacity(output.len());
        for record in output.iter() {
            match self.place(record, writes)? {
                Ok(place) => places.push(place),
                Err(reason) => return Ok(Err(reason)),
            }
        }
        *batch = output;
        Ok(Ok(places))
    }

    fn place(&mut self, record: RecordRef<'_>, writes: bool) -> Result<std::result::Result<Placed, String>> {
        let (port, topic, port_topics) = (record.entry().port, self.topic, self.port_topics);
        let template = port_topics.iter().find(|(known, _)| *known == port).map_or(topic, |(_, topic)| topic);
        let mut topic = String::new();
        if let Err(problem) = render_topic(template, record, &mut topic) {
            return Ok(Err(format!("its topic today: {problem}")));
        }
        let partition = if writes { partition_of(record, self.topics.partitions(&topic)?) } else { 0 };
        Ok(Ok(Placed { topic, partition, keeps_timestamp: self.keeps_timestamp }))
    }
}

/// The branch of a fused transform.
fn fused_branch<'p>(inputs: &'p [Input], component: &str) -> Option<&'p Branch> {
    let mut routes: Vec<&Route> = inputs.iter().map(|input| &input.route).collect();
    while let Some(route) = routes.pop() {
        for branch in &route.branches {
            if branch.step.component == component {
                return Some(branch);
            }
            routes.extend(branch.outputs.iter().map(|(_, next)| next));
        }
    }
    None
}
