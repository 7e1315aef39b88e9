//! A pipeline file as read: its components with their options checked one by one, before anybody asks who reads whom.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::config::{Key, Mismatch, Node, Problem, Section, Table, Value, nearest};
use trunkline_connector::{SourceSpec, Template};
use trunkline_transform_host::Host;

use super::OnError;
use super::commit::CommitOptions;
use super::names;
use super::plugins::{self, Started};
use super::registry::Registry;
use super::topics::TopicShape;
use crate::config::Document;

/// A string of the file and its place.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) text: String,
    pub(super) span: Range<usize>,
}

/// A file as read.
pub(super) struct Draft<'a> {
    /// `None` if missing or wrong.
    pub(super) name: Option<Located>,
    /// `None` if wrong, or by default without a name to make it from.
    pub(super) dead_letters: Option<Located>,
    pub(super) sources: Vec<SourceDraft<'a>>,
    pub(super) transforms: Vec<TransformDraft<'a>>,
    pub(super) sinks: Vec<SinkDraft<'a>>,
    /// Keys under `sources`, `transforms` and `sinks` that are no tables: named, but nothing is known of them.
    pub(super) broken: Vec<&'a Key>,
}

pub(super) struct SourceDraft<'a> {
    pub(super) key: &'a Key,
    pub(super) section: Section<'a>,
    pub(super) connector: &'static str,
    /// `None` if its options are wrong.
    pub(super) spec: Option<Arc<dyn SourceSpec>>,
    /// `None` if wrong.
    pub(super) topic: Option<Template>,
    /// Topics of its other ports; `None` if wrong.
    pub(super) port_topics: Vec<(&'static str, Option<Template>)>,
    pub(super) partitions: Option<i32>,
    pub(super) apply: Vec<Located>,
    pub(super) on_error: OnError,
    pub(super) commit_interval: Option<Duration>,
}

pub(super) struct TransformDraft<'a> {
    pub(super) key: &'a Key,
    pub(super) section: Section<'a>,
    /// `None` if not written: it is for a source's `apply`.
    pub(super) inputs: Option<Vec<Located>>,
    /// `None` if the plugin cannot be had.
    pub(super) started: Option<Started>,
    /// Written if it is materialised; a template that is parsed when the names it may use are known.
    pub(super) topic: Option<&'a Node>,
    /// Topics of ports.
    pub(super) topics: Option<&'a Node>,
    pub(super) partitions: Option<i32>,
    pub(super) on_error: OnError,
    pub(super) tasks: u32,
}

pub(super) struct SinkDraft<'a> {
    pub(super) key: &'a Key,
    /// Configured when the names it may use are known.
    pub(super) section: Section<'a>,
    pub(super) connector: Option<&'static str>,
    pub(super) inputs: Vec<Located>,
    pub(super) commit: CommitOptions,
    pub(super) on_error: OnError,
    pub(super) tasks: u32,
}

/// Reads a file's top level and all of its components.
pub(super) fn read<'a>(document: &Document, top: Section<'a>, host: &Host, registry: &Registry) -> Draft<'a> {
    let name = read_name(&top);
    let dead_letters = read_dead_letters(&top, name.as_ref());
    let _: Option<String> = top.optional("description");
    let mut broken = Vec::new();
    let sources = components(&top, "sources", &mut broken);
    let transforms = components(&top, "transforms", &mut broken);
    let sinks = components(&top, "sinks", &mut broken);
    if sources.len() + transforms.len() + sinks.len() + broken.len() == 0 {
        top.report.add(Problem {
            code: "plan.empty",
            message: "the pipeline has no components".to_owned(),
            span: top.span.clone(),
            expected: "expected `[sources.NAME]`, `[transforms.NAME]` or `[sinks.NAME]`".to_owned(),
            help: None,
        });
    }
    let draft = Draft {
        sources: sources
            .into_iter()
            .filter_map(|(key, section)| read_source(document, key, section, name.as_ref(), registry, &mut broken))
            .collect(),
        transforms: transforms.into_iter().map(|(key, section)| read_transform(key, section, host)).collect(),
        sinks: sinks.into_iter().map(|(key, section)| read_sink(key, section, registry)).collect(),
        name,
        dead_letters,
        broken,
    };
    top.finish();
    draft
}

fn read_name(top: &Section<'_>) -> Option<Located> {
    let text = top.required::<String>("name")?;
    let node = top.node("name")?;
    if let Some(wrong) = names::wrong_with_name(&text) {
        top.mismatch("name", node, Mismatch::new(wrong), names::NAME_RULE.to_owned());
        return None;
    }
    Some(Located { text, span: node.span.clone() })
}

fn read_dead_letters(top: &Section<'_>, name: Option<&Located>) -> Option<Located> {
    let Some(node) = top.node("dead_letter_topic") else {
        return name.map(|name| Located { text: format!("{}.dead-letters", name.text), span: name.span.clone() });
    };
    let text = top.optional::<String>("dead_letter_topic")?;
    if let Some(wrong) = names::wrong_with_topic(&text) {
        top.mismatch("dead_letter_topic", node, Mismatch::new(wrong), names::TOPIC_RULE.to_owned());
        return None;
    }
    Some(Located { text, span: node.span.clone() })
}

/// The components under `sources`, `transforms` or `sinks`.
fn components<'a>(top: &Section<'a>, kind: &'static str, broken: &mut Vec<&'a Key>) -> Vec<(&'a Key, Section<'a>)> {
    let Some(section) = top.section(kind) else { return Vec::new() };
    let mut components = Vec::new();
    for (key, node) in &section.table.entries {
        if let Some(wrong) = names::wrong_with_name(&key.name) {
            top.report.add(Problem {
                code: "plan.bad_name",
                message: format!("the component name `{}` {wrong}", key.name),
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
                broken.push(key);
            }
        }
    }
    components
}

fn read_source<'a>(
    document: &Document,
    key: &'a Key,
    section: Section<'a>,
    pipeline: Option<&Located>,
    registry: &Registry,
    broken: &mut Vec<&'a Key>,
) -> Option<SourceDraft<'a>> {
    let topic = section.node("topic");
    let partitions = count(&section, "partitions", i32::MAX.unsigned_abs()).and_then(|count| count.try_into().ok());
    let apply = strings(&section, "apply");
    let on_error = on_error(&section);
    let commit_interval = section.optional("commit_interval");
    let known = registry.source_names();
    let connector =
        connector(&section, "source", &known, &registry.sink_names()).and_then(|name| registry.source(name));
    let Some(connector) = connector else {
        // Which options it has is not known either.
        broken.push(key);
        return None;
    };
    let spec = connector.configure(&section).map(Arc::from);
    let template_variables =
        spec.as_ref().map(|spec: &Arc<dyn SourceSpec>| spec.template_variables().iter().copied().collect());
    let topic = match topic {
        Some(node) => {
            let names = believed(template_variables.as_ref(), &[node]);
            topic_template(document, &section, "topic", node, &names)
        }
        None => {
            let own =
                spec.as_ref().and_then(|spec| spec.default_topic().map(|topic| (topic, spec.template_variables())));
            let (rest, names) = own.unwrap_or((key.name.as_str(), &[]));
            pipeline.and_then(|pipeline| Template::parse(&format!("{}.{rest}", pipeline.text), names).ok())
        }
    };
    let ports = spec.as_ref().map(|spec| spec.ports());
    let called = format!("the source `{}`", key.name);
    // Of a source without ports it is no option.
    let has_ports = ports.as_ref().is_none_or(|ports| !ports.is_empty());
    let topics = if has_ports { section.node("topics") } else { None };
    let given = given_topics(document, &section, &called, topics, ports.as_deref(), &BTreeSet::new());
    let port_topic = |port: &'static str| match given.iter().find(|(name, _)| name == port) {
        Some((_, template)) => (port, template.clone()),
        None => {
            let parse = |pipeline: &Located| Template::parse(&format!("{}.{port}", pipeline.text), &[]).ok();
            (port, pipeline.and_then(parse))
        }
    };
    let port_topics = ports.unwrap_or_default().into_iter().map(port_topic).collect();
    Some(SourceDraft {
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

fn read_transform<'a>(key: &'a Key, section: Section<'a>, host: &Host) -> TransformDraft<'a> {
    let topic = section.node("topic");
    let only_with_topic: Vec<&Key> = ["topics", "partitions", "tasks"]
        .iter()
        .filter_map(|option| section.table.entry(option).map(|(key, _)| key))
        .filter(|_| topic.is_none())
        .collect();
    for option in only_with_topic {
        section.report.add(Problem {
            code: "plan.not_materialised",
            message: format!("`{}.{}` has no effect: the transform has no topic of its own", section.path, option.name),
            span: option.span.clone(),
            expected: "expected only beside `topic`".to_owned(),
            help: Some("a transform without `topic` runs inside the stage that reads it".to_owned()),
        });
    }
    TransformDraft {
        key,
        inputs: section.node("inputs").map(|_| inputs(&section)),
        started: plugins::start(&section, host),
        topic,
        topics: section.node("topics"),
        partitions: count(&section, "partitions", i32::MAX.unsigned_abs()).and_then(|count| count.try_into().ok()),
        on_error: on_error(&section),
        tasks: count(&section, "tasks", MOST_TASKS).unwrap_or(1),
        section,
    }
}

fn read_sink<'a>(key: &'a Key, section: Section<'a>, registry: &Registry) -> SinkDraft<'a> {
    let inputs = match section.node("inputs") {
        Some(_) => inputs(&section),
        None => {
            section.missing("inputs", INPUTS_RULE);
            Vec::new()
        }
    };
    SinkDraft {
        key,
        inputs,
        commit: CommitOptions::read(&section),
        on_error: on_error(&section),
        tasks: count(&section, "tasks", MOST_TASKS).unwrap_or(1),
        connector: connector(&section, "sink", &registry.sink_names(), &registry.source_names()),
        section,
    }
}

const MOST_TASKS: u32 = 1000;
const INPUTS_RULE: &str = "an array of components, `component.port` or `topic:NAME`";

/// The connector that a component names, if there is one of that kind.
fn connector(
    section: &Section<'_>,
    kind: &str,
    known: &[&'static str],
    of_other_kind: &[&'static str],
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
    let message = match of_other_kind.contains(&name.as_str()) {
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

fn on_error(section: &Section<'_>) -> OnError {
    let choices = [("dead_letter", OnError::DeadLetter), ("stop", OnError::Stop), ("skip", OnError::Skip)];
    section.choice("on_error", &choices, OnError::default())
}

/// A whole number from 1.
fn count(section: &Section<'_>, key: &'static str, most: u32) -> Option<u32> {
    let number = section.optional::<i64>(key)?;
    match u32::try_from(number) {
        Ok(count) if (1..=most).contains(&count) => Some(count),
        _ => {
            let node = section.node(key)?;
            section.mismatch(key, node, Mismatch::new(format!("is {number}")), format!("a number from 1 to {most}"));
            None
        }
    }
}

fn inputs(section: &Section<'_>) -> Vec<Located> {
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
fn strings(section: &Section<'_>, key: &'static str) -> Vec<Located> {
    let Some(texts) = section.optional::<Vec<String>>(key) else { return Vec::new() };
    let Some(Node { value: Value::Array(items), .. }) = section.node(key) else { return Vec::new() };
    texts.into_iter().zip(items).map(|(text, item)| Located { text, span: item.span.clone() }).collect()
}

/// The option `topics`: templates by port, `None` for one that is wrong. `ports` are those besides the default one, if they are known.
pub(super) fn given_topics(
    document: &Document,
    section: &Section<'_>,
    called: &str,
    topics: Option<&Node>,
    ports: Option<&[&str]>,
    names: &BTreeSet<&str>,
) -> Vec<(String, Option<Template>)> {
    let mut given = Vec::new();
    match topics.map(|topics| (topics, &topics.value)) {
        None => {}
        Some((_, Value::Table(table))) => {
            for (key, node) in &table.entries {
                if let Some(known) = ports
                    && !known.contains(&key.name.as_str())
                {
                    section.report.add(Problem {
                        code: "plan.unknown_port",
                        message: format!("{called} has no port `{}` besides its default", key.name),
                        span: key.span.clone(),
                        expected: match nearest(&key.name, known) {
                            Some(meant) => format!("did you mean `{meant}`?"),
                            None => "expected one of its ports".to_owned(),
                        },
                        help: Some(match known.is_empty() {
                            true => "its records all leave by the default port, to `topic`".to_owned(),
                            false => format!("its other ports: {}", known.join(", ")),
                        }),
                    });
                }
                let name = format!("topics.{}", key.name);
                given.push((key.name.clone(), topic_template(document, section, &name, node, names)));
            }
        }
        Some((node, other)) => {
            let mismatch = Mismatch::new(format!("is {}", other.kind()));
            section.mismatch("topics", node, mismatch, "a table from ports to topics".to_owned());
        }
    }
    given
}

/// A template of topics; `None` if it is wrong (reported).
pub(super) fn topic_template(
    document: &Document,
    section: &Section<'_>,
    key: &str,
    node: &Node,
    template_variables: &BTreeSet<&str>,
) -> Option<Template> {
    let expected = || "a topic, or a template such as `orders.{@table}`".to_owned();
    let Value::String(text) = &node.value else {
        section.mismatch(key, node, Mismatch::new(format!("is {}", node.value.kind())), expected());
        return None;
    };
    let template_variables: Vec<&str> = template_variables.iter().copied().collect();
    match Template::parse(&text.resolved, &template_variables) {
        Ok(template) => match TopicShape::of(&template).wrong() {
            Some(wrong) => {
                section.mismatch(key, node, Mismatch::new(wrong), names::TOPIC_RULE.to_owned());
                None
            }
            None => Some(template),
        },
        Err(error) => {
            let span = Some(document.within(node, error.span));
            section.mismatch(key, node, Mismatch { message: error.message, span, help: error.help }, expected());
            None
        }
    }
}

/// The names after `@` that templates may use; where they are not known (`None`), those that the templates do use: an error that
/// would only follow from another one is not worth a line.
pub(super) fn believed<'n>(known: Option<&BTreeSet<&'n str>>, templates: &[&'n Node]) -> BTreeSet<&'n str> {
    match known {
        Some(known) => known.clone(),
        None => {
            let mut names = BTreeSet::new();
            templates.iter().for_each(|node| mentioned(node, &mut names));
            names
        }
    }
}

/// The same for all options of a component.
pub(super) fn mentioned_in(table: &Table) -> BTreeSet<&str> {
    let mut names = BTreeSet::new();
    table.entries.iter().for_each(|(_, node)| mentioned(node, &mut names));
    names
}

fn mentioned<'n>(node: &'n Node, names: &mut BTreeSet<&'n str>) {
    match &node.value {
        Value::String(text) => names.extend(text.resolved.split("{@").skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })),
        Value::Array(items) => items.iter().for_each(|item| mentioned(item, names)),
        Value::Table(table) => table.entries.iter().for_each(|(_, node)| mentioned(node, names)),
        _ => {}
    }
}
