//! Plans one pipeline file: parses it, resolves its inputs, and builds the stages.

use std::path::PathBuf;
use std::sync::Arc;

use trunkline_connector::config::{Problem, Report, Section};
use trunkline_connector::{SinkSpec, Template};
use trunkline_transform_host::Host;

use super::cross_file_checks::TopicUsage;
use super::fusion::{self, TransformMode};
use super::graph::{self, Graph, PortTopics};
use super::inputs::{self, References};
use super::names;
use super::parsed::{self, ParsedPipeline, ParsedTransform};
use super::registry::Registry;
use super::shared_topics;
use super::topic_options::{assumed_variables, port_templates, topic_template, used_variables};
use super::topics::TopicShape;
use super::{
    Options, Pipeline, SinkPlan, SourcePlan, StatePlan, TablePlan, TransformPlan, fields, plugins, raw_topics, tables,
};
use crate::config::{Document, FileProblems};

// As `options::TRANSFORM` says.
const DEFAULT_STATE_BYTES: usize = 1 << 30;
const DEFAULT_TABLE_BYTES: usize = 64 << 20;

/// A file with its plan or its problems.
pub(super) struct PlannedFile {
    pub(super) document: Document,
    /// `None` if the file is invalid.
    pub(super) pipeline: Option<Pipeline>,
    pub(super) problems: Vec<Problem>,
    /// Problems that do not keep the pipeline from running.
    warnings: Vec<Problem>,
    pub(super) usage: TopicUsage,
    /// Paths of its plugins; where no file exists, the name is that of a bundled plugin.
    pub(super) plugins: Vec<PathBuf>,
}

impl PlannedFile {
    /// All problems of the file, ready to be shown; `None` if it is valid.
    pub(super) fn file_problems(&self) -> Option<FileProblems> {
        self.document.finish(self.problems.clone())
    }

    /// The warnings of the file; `None` if it has none.
    pub(super) fn file_warnings(&self) -> Option<FileProblems> {
        self.document.warnings(self.warnings.clone())
    }
}

/// Plans one file by itself.
pub(super) fn plan(document: Document, host: &Host, registry: &Registry) -> PlannedFile {
    let (report, warnings) = (Report::default(), Report::default());
    // If a syntax error hides a part of the file, most problems of the rest would be false.
    let (pipeline, usage, plugins) = match document.complete {
        true => plan_pipeline(&document, &report, &warnings, host, registry),
        false => (None, TopicUsage::default(), Vec::new()),
    };
    let problems = without_consequences(report.into_problems());
    let pipeline = pipeline.filter(|_| problems.is_empty());
    PlannedFile { document, pipeline, problems, warnings: warnings.into_problems(), usage, plugins }
}

/// A misspelled key or name, or an invalid component, may be what reads an unread transform. Then
/// only the cause is reported.
fn without_consequences(mut problems: Vec<Problem>) -> Vec<Problem> {
    const CAUSES: [&str; 6] = [
        "config.missing_key",
        "config.unknown_key",
        "config.wrong_value",
        "plan.bad_apply",
        "plan.missing_input",
        "plan.unknown_connector",
    ];
    if problems.iter().any(|problem| CAUSES.contains(&problem.code)) {
        problems.retain(|problem| problem.code != "plan.unused_transform");
    }
    problems
}

fn plan_pipeline(
    document: &Document,
    report: &Report,
    warnings: &Report,
    host: &Host,
    registry: &Registry,
) -> (Option<Pipeline>, TopicUsage, Vec<PathBuf>) {
    let parsed = parsed::parse(document, document.section(report), host, registry);
    let plugins = parsed.transforms.iter().filter_map(|transform| plugins::path(&transform.section)).collect();
    let references = inputs::resolve(&parsed, report);
    report_unused(&parsed, &references);
    let has_cycle = graph::has_cycle(&parsed, &references, report);
    let sinks: Vec<Option<Box<dyn SinkSpec>>> = (0..parsed.sinks.len())
        .map(|index| configure_sink(&parsed, (!has_cycle).then_some(&references), index, registry))
        .collect();
    if has_cycle {
        finish_sections(document, parsed);
        return (None, TopicUsage::default(), plugins);
    }
    let modes = fusion::modes(&parsed, &references);
    let topics: Vec<Option<PortTopics>> = (0..parsed.transforms.len())
        .map(|index| match modes[index] {
            TransformMode::Separate => port_topics(document, &parsed, &references, index),
            TransformMode::Applied | TransformMode::Fused => None,
        })
        .collect();
    fields::check(document, &parsed, &references, &sinks, &topics, report);
    raw_topics::check(&parsed, &references, warnings);
    shared_topics::check(&parsed, report);
    warn_of_repetitions(&parsed, &sinks, warnings);
    let graph = Graph { parsed: &parsed, references: &references, modes: &modes, topics: &topics };
    tables::check(&graph, report);
    let usage = TopicUsage::of(&graph);
    // Only a file without problems has all parts of a pipeline.
    let pipeline = if report.is_empty() { build(document, &graph, sinks) } else { None };
    finish_sections(document, parsed);
    (pipeline, usage, plugins)
}

/// Warns of each sink whose options make a repeated delivery visible.
fn warn_of_repetitions(parsed: &ParsedPipeline<'_>, sinks: &[Option<Box<dyn SinkSpec>>], warnings: &Report) {
    for (sink, spec) in parsed.sinks.iter().zip(sinks) {
        let Some((option, effect)) = spec.as_ref().and_then(|spec| spec.at_least_once()) else { continue };
        let span = sink.section.table.entry(option).map_or(sink.section.span.clone(), |(key, _)| key.span.clone());
        warnings.add(Problem {
            code: "plan.at_least_once",
            message: format!("`{}` writes at least once: {effect}", sink.key.name),
            span,
            expected: format!("`{option}` gives up exactly once"),
            help: None,
        });
    }
}

/// Reports unknown keys, but not for a component with an unknown connector, whose options are
/// unknown.
fn finish_sections(document: &Document, parsed: ParsedPipeline<'_>) {
    let sources = parsed.sources.into_iter().map(|source| source.section);
    let sinks = parsed.sinks.into_iter().filter(|sink| sink.connector.is_some()).map(|sink| sink.section);
    // The options of a connector may depend on a value that is unresolved: an address, for example.
    sources.chain(sinks).filter(|section| !document.has_unresolved(section.table)).for_each(Section::finish);
    parsed.transforms.into_iter().for_each(|transform| transform.section.finish());
}

fn report_unused(parsed: &ParsedPipeline<'_>, references: &References) {
    for (transform, used) in parsed.transforms.iter().zip(&references.used) {
        let is_stage = transform.topic.is_some() || transform.fuse.as_ref().is_some_and(|fuse| !fuse.value);
        if *used || transform.inputs.is_some() && is_stage {
            continue;
        }
        let name = &transform.key.name;
        let (message, expected, help) = match transform.inputs {
            None => (
                format!("the transform `{name}` has no `inputs`, and no source applies it"),
                "expected `inputs` here",
                format!("or apply it before a source's topic: `apply = [\"{name}\"]`"),
            ),
            Some(_) => (
                format!("no component reads the transform `{name}`, so it would never run"),
                "expected in the `inputs` of a sink or transform",
                "give it a `topic` if other programs read its output, or remove it".to_owned(),
            ),
        };
        transform.section.report.add(Problem {
            code: "plan.unused_transform",
            message,
            span: transform.section.span.clone(),
            expected: expected.to_owned(),
            help: Some(help),
        });
    }
}

/// The topics of a separate transform by port; `None` if one is invalid (reported), or its default
/// unknown.
fn port_topics(
    document: &Document,
    parsed: &ParsedPipeline<'_>,
    references: &References,
    index: usize,
) -> Option<PortTopics> {
    let transform = &parsed.transforms[index];
    let section = &transform.section;
    let written = transform.inputs.as_ref().map_or(0, Vec::len);
    let known = graph::template_variables(parsed, references, &references.of_transforms[index], written);
    let nodes: Vec<_> = [transform.topic, transform.topics].into_iter().flatten().collect();
    let variables = assumed_variables(known.as_ref(), &nodes);
    let topic = match transform.topic {
        Some(node) => topic_template(document, section, "topic", node, &variables),
        None => parsed
            .name
            .as_ref()
            .and_then(|pipeline| default_topic(transform, &format!("{}.{}", pipeline.value, transform.key.name), &[])),
    };
    let ports = transform.started.as_ref().map(|started| started.ports.as_slice());
    let others: Option<Vec<&str>> = ports.map(|ports| ports.iter().skip(1).map(String::as_str).collect());
    let label = format!("the transform `{}`", transform.key.name);
    let given = port_templates(document, section, &label, transform.topics, others.as_deref(), &variables);
    let topic = topic?;
    let names: Vec<&str> = variables.iter().copied().collect();
    let others = others?.into_iter().map(|port| match given.iter().find(|(name, _)| name == port) {
        Some((_, template)) => template.clone(),
        None => default_topic(transform, &format!("{}.{port}", topic.source()), &names),
    });
    std::iter::once(Some(topic.clone())).chain(others).collect()
}

/// A default topic; `None` if Kafka does not accept its name (reported).
fn default_topic(transform: &ParsedTransform<'_>, name: &str, variables: &[&str]) -> Option<Template> {
    let template = Template::parse(name, variables).ok()?;
    let Some(error) = TopicShape::of(&template).error() else { return Some(template) };
    transform.section.report.add(Problem {
        code: "plan.bad_topic",
        message: format!("the default topic `{name}` of the transform `{}` {error}", transform.key.name),
        span: transform.section.span.clone(),
        expected: format!("expected {}", names::TOPIC_RULE),
        help: Some("set `topic`, and `topics` for its ports".to_owned()),
    });
    None
}

/// Configures a sink. The references determine which template variables it may use; they are `None`
/// in a cycle.
fn configure_sink(
    parsed: &ParsedPipeline<'_>,
    references: Option<&References>,
    index: usize,
    registry: &Registry,
) -> Option<Box<dyn SinkSpec>> {
    let sink = &parsed.sinks[index];
    let connector = registry.sink(sink.connector?)?;
    let known = references.and_then(|references| {
        graph::template_variables(parsed, references, &references.of_sinks[index], sink.inputs.len().max(1))
    });
    let variables: Vec<&str> = match &known {
        Some(known) => known.iter().copied().collect(),
        None => used_variables(sink.section.table).into_iter().collect(),
    };
    connector.configure(&sink.section, &variables)
}

/// Builds the pipeline; `None` if a part is missing, which has been reported.
fn build(document: &Document, graph: &Graph<'_, '_>, sink_specs: Vec<Option<Box<dyn SinkSpec>>>) -> Option<Pipeline> {
    let parsed = graph.parsed;
    Some(Pipeline {
        name: parsed.name.as_ref()?.value.clone(),
        file: document.file.clone(),
        dead_letters: parsed.dead_letters.as_ref()?.value.clone(),
        sources: build_sources(graph)?,
        transforms: build_transforms(graph)?,
        sinks: build_sinks(graph, sink_specs)?,
    })
}

fn build_sources(graph: &Graph<'_, '_>) -> Option<Vec<SourcePlan>> {
    let mut sources = Vec::new();
    for (source, applied) in graph.parsed.sources.iter().zip(&graph.references.of_sources) {
        let port_topics = source.port_topics.iter().map(|(port, topic)| Some((*port, topic.clone()?)));
        sources.push(SourcePlan {
            name: source.key.name.clone(),
            connector: source.connector,
            spec: source.spec.clone()?,
            options: Options::of(&source.section),
            topic: source.topic.clone()?,
            port_topics: port_topics.collect::<Option<_>>()?,
            partitions: source.partitions,
            apply: applied.iter().map(|transform| graph.step(*transform)).collect::<Option<_>>()?,
            on_error: source.on_error,
            commit_interval: source.commit_interval,
        });
    }
    Some(sources)
}

fn build_transforms(graph: &Graph<'_, '_>) -> Option<Vec<TransformPlan>> {
    let mut transforms = Vec::new();
    for (index, transform) in graph.parsed.transforms.iter().enumerate() {
        if graph.modes[index] != TransformMode::Separate {
            continue;
        }
        let (topic, others) = graph.topics[index].as_ref()?.split_first()?;
        transforms.push(TransformPlan {
            name: transform.key.name.clone(),
            inputs: graph.inputs(&graph.references.of_transforms[index])?,
            step: graph.step(index)?,
            topic: topic.clone(),
            port_topics: others.iter().zip(1..).map(|(topic, port)| (port, topic.clone())).collect(),
            partitions: transform.partitions,
            on_error: transform.on_error,
            state: (transform.uses_state() && !transform.reads_table())
                .then(|| StatePlan { max_bytes: transform.max_state_bytes.unwrap_or(DEFAULT_STATE_BYTES) }),
            table: match &graph.references.of_tables[index] {
                Some(table) => Some(TablePlan {
                    topic: tables::topic(graph, table)?,
                    max_bytes: transform.max_state_bytes.unwrap_or(DEFAULT_TABLE_BYTES),
                }),
                None => None,
            },
            tasks: transform.tasks,
        });
    }
    Some(transforms)
}

fn build_sinks(graph: &Graph<'_, '_>, specs: Vec<Option<Box<dyn SinkSpec>>>) -> Option<Vec<SinkPlan>> {
    let mut sinks = Vec::new();
    for ((sink, references), spec) in graph.parsed.sinks.iter().zip(&graph.references.of_sinks).zip(specs) {
        let spec: Arc<dyn SinkSpec> = Arc::from(spec?);
        sinks.push(SinkPlan {
            name: sink.key.name.clone(),
            connector: sink.connector?,
            commit: sink.commit.apply(spec.commit_policy()),
            spec,
            options: Options::of(&sink.section),
            inputs: graph.inputs(references)?,
            on_error: sink.on_error,
            tasks: sink.tasks,
            replay: sink.replay.clone(),
        });
    }
    Some(sinks)
}
