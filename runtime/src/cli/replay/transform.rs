//! `trunkline replay --transform`: a separate transform reads its topics again and writes into a
//! shadow topic, with a state of its range.

use std::path::Path;

use regex::Regex;
use trunkline_connector::{Error, Result, Template};

use super::super::selection;
use super::target::{Refusal, check_file, check_options, host, sets_inputs};
use crate::config::Settings;
use crate::kafka::GroupOffsets;
use crate::plan::{Pipeline, Registry, TransformPlan, load_with_options};

/// The transform of a replay.
pub(super) struct TransformTarget {
    pub(super) pipeline: Pipeline,
    pub(super) plan: TransformPlan,
    pub(super) destination: String,
    /// It may write to a topic that has records, and that others write.
    pub(super) appends: bool,
}

/// What a command line chooses.
pub(super) struct TransformChoice<'a> {
    /// The pipeline's name.
    pub(super) pipeline: &'a str,
    /// The transform's name.
    pub(super) transform: &'a str,
    /// The options of `--into`, as TOML.
    pub(super) into: &'a str,
    /// Another file for the same pipeline.
    pub(super) file: Option<&'a Path>,
    /// The option `--append`.
    pub(super) appends: bool,
}

impl TransformChoice<'_> {
    /// The transform with its options, checked against the topics of the live pipelines.
    pub(super) fn target(&self, pipelines: &[Pipeline], settings: &Settings) -> Result<TransformTarget, Refusal> {
        let (pipeline, plan) = self.plan(pipelines, settings)?;
        for topic in plan.topics() {
            self.check_topic(pipelines, &plan, topic)?;
        }
        let destination = format!("topic:{}", plan.topic.source());
        Ok(TransformTarget { pipeline, plan, destination, appends: self.appends })
    }

    /// The transform with its options, and its pipeline.
    pub(super) fn plan(
        &self,
        pipelines: &[Pipeline],
        settings: &Settings,
    ) -> Result<(Pipeline, TransformPlan), Refusal> {
        let live = selection::pipeline(pipelines, self.pipeline)?;
        check_options(self.into)?;
        if sets_inputs(self.into) {
            let message = "--into sets `inputs`: a replay reads the topics of the live transform; set the topic that it writes to";
            return Err(Error::config("replay.bad_into", message).into());
        }
        let host = host(settings)?;
        let (file, place) = (self.file.unwrap_or(&live.file), ("transforms", self.transform));
        let mut pipeline =
            load_with_options(file, place, self.into, &host, settings, &Registry::new()).map_err(Refusal::Problems)?;
        if self.file.is_some() {
            check_file(file, &pipeline, live, self.transform)?;
            pipeline.dead_letters.clone_from(&live.dead_letters);
        }
        let Some(plan) = pipeline.transforms.iter().find(|plan| plan.name == self.transform).cloned() else {
            let known: Vec<&str> = pipeline.transforms.iter().map(|plan| plan.name.as_str()).collect();
            let known =
                if known.is_empty() { "it has none".to_owned() } else { format!("it has {}", known.join(", ")) };
            let message = format!(
                "the pipeline `{}` has no separate transform `{}`; {known}. A fused transform runs in the stage that reads it: replay that \
                 stage, or name a topic with --into 'topic=\"..\"'",
                self.pipeline, self.transform
            );
            return Err(Error::config("cli.unknown_component", message).into());
        };
        Ok((pipeline, plan))
    }

    /// Refuses a topic that a live component writes, unless that is asked for.
    fn check_topic(&self, pipelines: &[Pipeline], plan: &TransformPlan, topic: &Template) -> Result<()> {
        let Some(name) = topic.constant() else {
            if self.appends {
                return Ok(());
            }
            let message = format!(
                "the topic `{}` depends on the records, so that it may be the one that the live transform writes: name one topic with \
                 --into 'topic=\"{}-v2\"'",
                topic.source(),
                self.transform
            );
            return Err(Error::config("replay.live_destination", message));
        };
        if plan.inputs.iter().any(|input| input.topics.selects(name)) {
            let message = format!(
                "the transform `{}` reads the topic `{name}`, so that its output would be its input",
                plan.name
            );
            return Err(Error::config("replay.live_destination", message));
        }
        match writer_of(pipelines, name) {
            Some(writer) if !self.appends => {
                let message = format!(
                    "{writer} writes the topic `{name}`, and its readers would get the records of the replay a second time: choose another \
                     topic with --into, such as 'topic=\"{}-v2\"' (`topics` for those of other ports), or add to the topic with --append",
                    self.transform
                );
                Err(Error::config("replay.live_destination", message))
            }
            _ => Ok(()),
        }
    }
}

impl TransformTarget {
    /// Refuses topics that have records.
    pub(super) fn check_output(&self, offsets: &GroupOffsets) -> Result<()> {
        if self.appends {
            return Ok(());
        }
        let names: Vec<&str> = self.plan.topics().filter_map(Template::constant).collect();
        for partition in offsets.partitions(|topic| names.contains(&topic))? {
            let (low, high) = offsets.watermarks(&partition)?;
            if low < high {
                let message = format!(
                    "the topic `{0}` has records already, to which the replay would add its own: choose another topic, or delete `{0}` if an \
                     earlier replay wrote it",
                    partition.topic
                );
                return Err(Error::config("replay.output_exists", message));
            }
        }
        Ok(())
    }

    /// What the run does to existing data, in one sentence.
    pub(super) fn effect(&self) -> String {
        let state = match self.plan.state {
            Some(_) => " The transform begins without its state, and builds it from the range.",
            None => "",
        };
        let effect = match self.appends {
            true => "Records are added to the topic after those that it has, and all of its readers get them.",
            false => "Records are written to a topic that no component writes and that has no record.",
        };
        format!("{effect}{state}")
    }
}

/// Refuses to rerun a transform with state over single records: it would build its state from these
/// alone.
pub(super) fn check_failed_only(plan: &TransformPlan) -> Result<()> {
    if plan.state.is_none() {
        return Ok(());
    }
    let message = format!(
        "the transform `{}` keeps a state, which --dead-letters would build from the records with dead letters alone: replay the whole \
         range",
        plan.name
    );
    Err(Error::config("replay.state_of_failed", message))
}

/// The component that writes a topic, for a message.
fn writer_of(pipelines: &[Pipeline], name: &str) -> Option<String> {
    let writes = |topic: &Template| {
        Regex::new(&format!("^(?:{})$", topic.pattern())).is_ok_and(|pattern| pattern.is_match(name))
    };
    for pipeline in pipelines {
        let sources = pipeline.sources.iter().filter(|source| source.topics().any(writes)).map(|source| &source.name);
        let transforms = pipeline.transforms.iter().filter(|plan| plan.topics().any(writes)).map(|plan| &plan.name);
        if let Some(component) = sources.chain(transforms).next() {
            return Some(format!("the live component `{}.{component}`", pipeline.name));
        }
        if pipeline.dead_letters == name {
            return Some(format!("the pipeline `{}`, for its dead letters,", pipeline.name));
        }
    }
    None
}
