//! The options `topic` and `topics`: templates of topic names, and the template variables that they
//! may use.

use std::collections::BTreeSet;

use trunkline_connector::Template;
use trunkline_connector::config::{Mismatch, Node, Problem, Section, Table, Value, nearest};

use super::names;
use super::topics::TopicShape;
use crate::config::Document;

/// The option `topics`: templates by port, `None` for an invalid one (reported). `ports` are the
/// ports besides the default one, if they are known. `label` names the component in messages.
pub(super) fn port_templates(
    document: &Document,
    section: &Section<'_>,
    label: &str,
    topics: Option<&Node>,
    ports: Option<&[&str]>,
    variables: &BTreeSet<&str>,
) -> Vec<(String, Option<Template>)> {
    let Some(node) = topics else { return Vec::new() };
    let Value::Table(table) = &node.value else {
        let mismatch = Mismatch::new(format!("is {}", node.value.kind()));
        section.mismatch("topics", node, mismatch, "a table from ports to topics".to_owned());
        return Vec::new();
    };
    let mut templates = Vec::new();
    for (key, node) in &table.entries {
        if let Some(known) = ports
            && !known.contains(&key.name.as_str())
        {
            section.report.add(Problem {
                code: "plan.unknown_port",
                message: format!("{label} has no port `{}` besides its default", key.name),
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
        let path = format!("topics.{}", key.name);
        templates.push((key.name.clone(), topic_template(document, section, &path, node, variables)));
    }
    templates
}

/// A template of topic names; `None` if it is invalid (reported).
pub(super) fn topic_template(
    document: &Document,
    section: &Section<'_>,
    key: &str,
    node: &Node,
    variables: &BTreeSet<&str>,
) -> Option<Template> {
    let expected = || "a topic, or a template such as `orders.{@table}`".to_owned();
    let Value::String(text) = &node.value else {
        section.mismatch(key, node, Mismatch::new(format!("is {}", node.value.kind())), expected());
        return None;
    };
    let variables: Vec<&str> = variables.iter().copied().collect();
    match Template::parse(&text.resolved, &variables) {
        Ok(template) => match TopicShape::of(&template).error() {
            Some(error) => {
                section.mismatch(key, node, Mismatch::new(error), names::TOPIC_RULE.to_owned());
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

/// The known template variables. Where they are unknown because of another error, the variables
/// that the templates use: a consequence of an error is not reported as a second one.
pub(super) fn assumed_variables<'n>(known: Option<&BTreeSet<&'n str>>, templates: &[&'n Node]) -> BTreeSet<&'n str> {
    match known {
        Some(known) => known.clone(),
        None => {
            let mut variables = BTreeSet::new();
            templates.iter().for_each(|node| collect_variables(node, &mut variables));
            variables
        }
    }
}

/// The template variables that any option of a component uses.
pub(super) fn used_variables(table: &Table) -> BTreeSet<&str> {
    let mut variables = BTreeSet::new();
    table.entries.iter().for_each(|(_, node)| collect_variables(node, &mut variables));
    variables
}

fn collect_variables<'n>(node: &'n Node, variables: &mut BTreeSet<&'n str>) {
    match &node.value {
        Value::String(text) => variables.extend(text.resolved.split("{@").skip(1).map(|rest| {
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
            &rest[..end]
        })),
        Value::Array(items) => items.iter().for_each(|item| collect_variables(item, variables)),
        Value::Table(table) => table.entries.iter().for_each(|(_, node)| collect_variables(node, variables)),
        _ => {}
    }
}
