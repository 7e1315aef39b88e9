//! A parsed pipeline file: its components with each option checked by itself, before inputs are
//! resolved.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::config::{ByteSize, Key, Mismatch, Node, Problem, Section, Value, nearest};
use trunkline_connector::{SourceSpec, Template};
use trunkline_transform_host::Host;

use super::OnError;
use super::commit::CommitOptions;
use super::names;
use super::options;
use super::plugins::{self, Started};
use super::registry::Registry;
use super::replay_policy::ReplayPolicy;
use super::topic_options::{assumed_variables, port_templates, topic_template};
use crate::config::Document;

/// A value and its place in the file.
#[derive(Debug, Clone)]
pub(super) struct Spanned<T> {
    pub(super) value: T,
    pub(super) span: Range<usize>,
}

/// A parsed file.
pub(super) struct ParsedPipeline<'a> {
    /// `None` if missing or invalid.
    pub(super) name: Option<Spanned<String>>,
    /// `None` if invalid, or if the default cannot be derived because the pipeline has no name.
    pub(super) dead_letters: Option<Spanned<String>>,
    pub(super) sources: Vec<ParsedSource<'a>>,
    pub(super) transforms: Vec<ParsedTransform<'a>>,
    pub(super) sinks: Vec<ParsedSink<'a>>,
    /// Components whose names are known and whose contents are not: no table, or an unknown
    /// connector.
    pub(super) malformed: Vec<&'a Key>,
}

pub(super) struct ParsedSource<'a> {
    pub(super) key: &'a Key,
    pub(super) section: Section<'a>,
    pub(super) connector: &'static str,
    /// `None` if its options are invalid.
    pub(super) spec: Option<Arc<dyn SourceSpec>>,
    /// `None` if invalid.
    pub(super) topic: Option<Template>,
    /// Topics of the other ports; `None` if invalid.
    pub(super) port_topics: Vec<(&'static str, Option<Template>)>,
    pub(super) partitions: Option<i32>,
    pub(super) apply: Vec<Spanned<String>>,
    pub(super) on_error: OnError,
    pub(super) commit_interval: Option<Duration>,
}

pub(super) struct ParsedTransform<'a> {
    pub(super) key: &'a Key,
    pub(super) section: Section<'a>,
    /// `None` if absent: the transform is for a source's `apply`.
    pub(super) inputs: Option<Vec<Spanned<String>>>,
    /// `inputs` is absent, and another key is probably meant to be it.
    pub(super) misspells_inputs: bool,
    /// The table that its plugin reads.
    pub(super) table: Option<Spanned<String>>,
    /// `None` if the plugin cannot be loaded or rejects its configuration.
    pub(super) started: Option<Started>,
    /// `None`: the number of reading stages decides.
    pub(super) fuse: Option<Spanned<bool>>,
    /// The template is parsed once the template variables of the inputs are known.
    pub(super) topic: Option<&'a Node>,
    /// Topics of ports.
    pub(super) topics: Option<&'a Node>,
    pub(super) partitions: Option<i32>,
    pub(super) on_error: OnError,
    /// Limit on the state of each topic partition.
    pub(super) max_state_bytes: Option<usize>,
    /// The time without records after which event time advances.
    pub(super) idle: Option<Duration>,
    pub(super) tasks: u32,
}

impl ParsedTransform<'_> {
    /// Whether its plugin keeps state or reads a table. `false` if the plugin is unknown.
    pub(super) fn uses_state(&self) -> bool {
        self.started.as_ref().is_some_and(|started| started.plugin.uses_state())
    }

    /// Whether its plugin reads a table. `false` if the plugin is unknown.
    pub(super) fn reads_table(&self) -> bool {
        self.started.as_ref().is_some_and(|started| started.plugin.reads_table())
    }
}

pub(super) struct ParsedSink<'a> {
    pub(super) key: &'a Key,
    /// The connector reads it once the template variables of the inputs are known.
    pub(super) section: Section<'a>,
    pub(super) connector: Option<&'static str>,
    pub(super) inputs: Vec<Spanned<String>>,
    pub(super) commit: CommitOptions,
    pub(super) on_error: OnError,
    pub(super) tasks: u32,
    pub(super) replay: ReplayPolicy,
}

/// Parses the top level of a file and all of its components.
pub(super) fn parse<'a>(document: &Document, top: Section<'a>, host: &Host, registry: &Registry) -> ParsedPipeline<'a> {
    top.declare(options::PIPELINE);
    let name = parse_name(&top);
    let dead_letters = parse_dead_letters(&top, name.as_ref());
    let _: Option<String> = top.optional("description");
    // `crate::record_tests` reads it: only `trunkline test` and `validate` need the tests.
    top.node("tests");
    let mut malformed = Vec::new();
    let sources = components(&top, "sources", &mut malformed);
    let transforms = components(&top, "transforms", &mut malformed);
    let sinks = components(&top, "sinks", &mut malformed);
    if sources.len() + transforms.len() + sinks.len() + malformed.len() == 0 {
        top.report.add(Problem {
            code: "plan.empty",
            message: "the pipeline has no components".to_owned(),
            span: top.span.clone(),
            expected: "expected `[sources.NAME]`, `[transforms.NAME]` or `[sinks.NAME]`".to_owned(),
            help: None,
        });
    }
    let parsed = ParsedPipeline {
        sources: sources
            .into_iter()
            .filter_map(|(key, section)| parse_source(document, key, section, name.as_ref(), registry, &mut malformed))
            .collect(),
        transforms: transforms
            .into_iter()
            .map(|(key, section)| parse_transform(document, key, section, host))
            .collect(),
        sinks: sinks.into_iter().map(|(key, section)| parse_sink(key, section, registry)).collect(),
        name,
        dead_letters,
        malformed,
    };
    top.finish();
    parsed
}

fn parse_name(top: &Section<'_>) -> Option<Spanned<String>> {
    let value = top.required::<String>("name")?;
    let node = top.node("name")?;
    if let Some(error) = names::name_error(&value) {
        top.mismatch("name", node, Mismatch::new(error), names::NAME_RULE.to_owned());
        return None;
    }
    Some(Spanned { value, span: node.span.clone() })
}

fn parse_dead_letters(top: &Section<'_>, name: Option<&Spanned<String>>) -> Option<Spanned<String>> {
    let Some(node) = top.node("dead_letter_topic") else {
        return name.map(|name| Spanned { value: format!("{}.dead-letters", name.value), span: name.span.clone() });
    };
    let value = top.optional::<String>("dead_letter_topic")?;
    if let Some(error) = names::topic_error(&value) {
        top.mismatch("dead_letter_topic", node, Mismatch::new(error), names::TOPIC_RULE.to_owned());
        return None;
    }
    Some(Spanned { value, span: node.span.clone() })
}

/// The components below `sources`, `transforms` or `sinks`.
fn components<'a>(top: &Section<'a>, kind: &'static str, malformed: &mut Vec<&'a Key>) -> Vec<(&'a Key, Section<'a>)> {
    let Some(section) = top.section(kind) else { return Vec::new() };
    let mut components = Vec::new();
    for (key, node) in &section.table.entries {
        if let Some(error) = names::name_error(&key.name) {
            top.report.add(Problem {
                code: "plan.bad_name",
                message: format!("the component name `{}` {error}", key.name),
                span: key.span.clone(),
                expected: format!("expected {}", names::NAME_RULE),
                help: None,
            });
        }
        match &node.value {
            Value::Table(table) => {
                let path = format!("{kind}.{}", key.name);
                components.push((key, Section::new(table, node.span.clone(), path, top.base, top.report)));
            }
            other => {
                section.mismatch(&key.name, node, Mismatch::new(format!("is {}", other.kind())), "a table".to_owned());
                malformed.push(key);
            }
        }
    }
    components
}

fn parse_source<'a>(
    document: &Document,
    key: &'a Key,
    section: Section<'a>,
    pipeline: Option<&Spanned<String>>,
    registry: &Registry,
    malformed: &mut Vec<&'a Key>,
) -> Option<ParsedSource<'a>> {
    section.declare(options::SOURCE);
    let topic = section.node("topic");
    let partitions = partitions(&section);
    let apply = strings(&section, "apply");
    let on_error = OnError::read(&section);
    let commit_interval = section.optional("commit_interval");
    let connector = source_connector(&section, registry).and_then(|name| registry.source(name));
    let Some(connector) = connector else {
        // Its options are unknown, too.
        malformed.push(key);
        return None;
    };
    let spec: Option<Arc<dyn SourceSpec>> = connector.configure(&section).map(Arc::from);
    let topic = source_topic(document, &section, key, topic, spec.as_deref(), pipeline);
    let ports = spec.as_ref().map(|spec| spec.ports());
    // A source without ports has no option `topics`.
    let has_ports = ports.as_ref().is_none_or(|ports| !ports.is_empty());
    let topics = if has_ports { section.node("topics") } else { None };
    let label = format!("the source `{}`", key.name);
    let given = port_templates(document, &section, &label, topics, ports.as_deref(), &BTreeSet::new());
    let port_topic = |port: &'static str| match given.iter().find(|(name, _)| name == port) {
        Some((_, template)) => (port, template.clone()),
        None => {
            let default = |pipeline: &Spanned<String>| Template::parse(&format!("{}.{port}", pipeline.value), &[]).ok();
            (port, pipeline.and_then(default))
        }
    };
    let port_topics = ports.unwrap_or_default().into_iter().map(port_topic).collect();
    Some(ParsedSource {
        key,
        section,
        connector: connector.name(),
        spec,
        topic,
        port_topics,
        partitions,
        apply,
        on_error,
        commit_interval,
    })
}

/// The topic of a source: the option `topic`, or else the connector's default; `None` if it is
/// invalid (reported).
fn source_topic(
    document: &Document,
    section: &Section<'_>,
    key: &Key,
    topic: Option<&Node>,
    spec: Option<&dyn SourceSpec>,
    pipeline: Option<&Spanned<String>>,
) -> Option<Template> {
    if let Some(node) = topic {
        let known = spec.map(|spec| spec.template_variables().iter().copied().collect());
        return topic_template(document, section, "topic", node, &assumed_variables(known.as_ref(), &[node]));
    }
    let default = spec.and_then(|spec| Some((spec.default_topic()?, spec.template_variables())));
    let (suffix, variables) = default.unwrap_or((key.name.as_str(), &[]));
    Template::parse(&format!("{}.{suffix}", pipeline?.value), variables).ok()
}

fn parse_transform<'a>(document: &Document, key: &'a Key, section: Section<'a>, host: &Host) -> ParsedTransform<'a> {
    section.declare(options::TRANSFORM);
    let fuse = section.optional::<bool>("fuse").zip(section.node("fuse"));
    let known: Vec<&str> = options::TRANSFORM.iter().map(|option| option.key).collect();
    let is_meant = |key: &Key| !known.contains(&key.name.as_str()) && nearest(&key.name, &known) == Some("inputs");
    let started = plugins::start(document, &section, host);
    ParsedTransform {
        key,
        inputs: section.node("inputs").map(|_| inputs(&section)),
        misspells_inputs: section.table.get("inputs").is_none()
            && section.table.entries.iter().any(|(key, _)| is_meant(key)),
        table: table(&section),
        fuse: fuse.map(|(value, node)| Spanned { value, span: node.span.clone() }),
        topic: section.node("topic"),
        topics: section.node("topics"),
        partitions: partitions(&section),
        on_error: OnError::read(&section),
        max_state_bytes: max_state_bytes(&section),
        idle: idle(&section, started.as_ref()),
        started,
        tasks: tasks(&section),
        section,
    }
}

fn table(section: &Section<'_>) -> Option<Spanned<String>> {
    let (value, node) = section.optional::<String>("table").zip(section.node("table"))?;
    Some(Spanned { value, span: node.span.clone() })
}

/// `timers = { idle = ".." }`. Reports it for a plugin without timers.
fn idle(section: &Section<'_>, started: Option<&Started>) -> Option<Duration> {
    let timers = section.section("timers")?;
    let idle = timers.optional::<Duration>("idle");
    let is_zero = idle.is_some_and(|idle| idle.is_zero());
    if let Some(node) = timers.node("idle").filter(|_| is_zero) {
        timers.mismatch("idle", node, Mismatch::new("is zero".to_owned()), "a duration such as `1m`".to_owned());
    }
    timers.finish();
    if let (Some(started), Some((key, _))) = (started, section.table.entry("timers"))
        && !started.plugin.uses_timers()
    {
        section.report.add(Problem {
            code: "plan.no_timers",
            message: format!("the plugin `{}` has no timers", started.plugin.name()),
            span: key.span.clone(),
            expected: "remove `timers`".to_owned(),
            help: Some("`trunkline transform inspect` shows whether a plugin has timers".to_owned()),
        });
    }
    idle.filter(|_| !is_zero)
}

/// `state = { max_bytes = ".." }`.
fn max_state_bytes(section: &Section<'_>) -> Option<usize> {
    let state = section.section("state")?;
    let size = state.optional::<ByteSize>("max_bytes");
    state.finish();
    size.map(|size| usize::try_from(size.0).unwrap_or(usize::MAX))
}

fn parse_sink<'a>(key: &'a Key, section: Section<'a>, registry: &Registry) -> ParsedSink<'a> {
    section.declare(options::SINK);
    let inputs = match section.node("inputs") {
        Some(_) => inputs(&section),
        None => {
            section.missing("inputs", INPUTS_RULE);
            Vec::new()
        }
    };
    ParsedSink {
        key,
        inputs,
        commit: CommitOptions::read(&section),
        on_error: OnError::read(&section),
        tasks: tasks(&section),
        replay: ReplayPolicy::read(&section),
        connector: sink_connector(&section, registry),
        section,
    }
}

const MAX_TASKS: u32 = 1000;
const INPUTS_RULE: &str = "an array of components, `component.port` or `topic:NAME`";

fn source_connector(section: &Section<'_>, registry: &Registry) -> Option<&'static str> {
    connector(section, "source", &registry.source_names(), &registry.sink_names())
}

fn sink_connector(section: &Section<'_>, registry: &Registry) -> Option<&'static str> {
    connector(section, "sink", &registry.sink_names(), &registry.source_names())
}

/// The connector that a component names, if one of this kind has that name.
fn connector(
    section: &Section<'_>,
    kind: &str,
    known: &[&'static str],
    other_kind: &[&'static str],
) -> Option<&'static str> {
    if section.node("connector").is_none() {
        section.missing("connector", &format!("a {kind} connector, such as {}", known.join(", ")));
        return None;
    }
    let name = section.optional::<String>("connector")?;
    if let Some(name) = known.iter().find(|known| **known == name) {
        return Some(name);
    }
    let node = section.node("connector")?;
    let message = match other_kind.contains(&name.as_str()) {
        true => format!("the connector `{name}` cannot be a {kind}"),
        false => format!("there is no {kind} connector `{name}`"),
    };
    section.report.add(Problem {
        code: "plan.unknown_connector",
        message,
        span: node.span.clone(),
        expected: match nearest(&name, known) {
            Some(meant) => format!("did you mean `{meant}`?"),
            None => format!("expected a {kind} connector"),
        },
        help: Some(format!("{kind} connectors: {}", known.join(", "))),
    });
    None
}

fn partitions(section: &Section<'_>) -> Option<i32> {
    let number = section.optional::<i64>("partitions")?;
    in_range(section, "partitions", number, i32::MAX.unsigned_abs()).and_then(|count| count.try_into().ok())
}

fn tasks(section: &Section<'_>) -> u32 {
    in_range(section, "tasks", section.value("tasks"), MAX_TASKS).unwrap_or(1)
}

/// A whole number from 1 to `max`; `None` if it is another one (reported).
fn in_range(section: &Section<'_>, key: &'static str, number: i64, max: u32) -> Option<u32> {
    match u32::try_from(number) {
        Ok(count) if (1..=max).contains(&count) => Some(count),
        _ => {
            let node = section.node(key)?;
            section.mismatch(key, node, Mismatch::new(format!("is {number}")), format!("a number from 1 to {max}"));
            None
        }
    }
}

fn inputs(section: &Section<'_>) -> Vec<Spanned<String>> {
    let inputs = strings(section, "inputs");
    if let Some(Node { value: Value::Array(items), span }) = section.node("inputs")
        && items.is_empty()
    {
        section.report.add(Problem {
            code: "plan.no_inputs",
            message: format!("`{}` has no inputs", section.path),
            span: span.clone(),
            expected: format!("expected {INPUTS_RULE}"),
            help: None,
        });
    }
    inputs
}

/// An array of strings, each with its place.
fn strings(section: &Section<'_>, key: &'static str) -> Vec<Spanned<String>> {
    let Some(texts) = section.optional::<Vec<String>>(key) else { return Vec::new() };
    let Some(Node { value: Value::Array(items), .. }) = section.node(key) else { return Vec::new() };
    texts.into_iter().zip(items).map(|(value, item)| Spanned { value, span: item.span.clone() }).collect()
}
