//! Checks names of fields: in the configuration of bundled plugins, and in templates.
//!
//! Where a source's configuration fixes the fields of its records (`parser = "combined"`), a name
//! that is not among them is a mistake in the file, not in the data: a mask would mask nothing, and
//! a template would reject every record. Fields are known as long as only transforms that keep the
//! schema are in between.

use std::collections::BTreeSet;

use trunkline_connector::config::{Node, Problem, Report, Section, Value, nearest};
use trunkline_connector::{SinkSpec, Template};

use super::inputs::{Reference, References, Target};
use super::parsed::{ParsedPipeline, ParsedTransform};
use crate::config::Document;

type Fields = BTreeSet<String>;

/// Checks all names in a file without cycles. `sinks` and `topics` belong to the components of the
/// same index.
pub(super) fn check(
    document: &Document,
    parsed: &ParsedPipeline<'_>,
    references: &References,
    sinks: &[Option<Box<dyn SinkSpec>>],
    topics: &[Option<Vec<Template>>],
    report: &Report,
) {
    let checker = Checker { document, parsed, references, report };
    for (source, applied) in parsed.sources.iter().zip(&references.of_sources) {
        let mut fields = source.spec.as_ref().and_then(|spec| spec.fields()).map(Fields::from_iter);
        for transform in applied {
            checker.transform(&parsed.transforms[*transform], fields.as_ref());
            fields = fields.filter(|_| keeps_fields(&parsed.transforms[*transform]));
        }
        if let (Some(fields), Some(template)) = (&fields, &source.topic) {
            checker.template(&source.section, "topic", template, fields);
        }
    }
    for (index, transform) in parsed.transforms.iter().enumerate() {
        let fields = checker.of_inputs(&references.of_transforms[index], transform.inputs.as_ref().map_or(0, Vec::len));
        if transform.inputs.is_none() {
            continue;
        }
        checker.transform(transform, fields.as_ref());
        let Some(fields) = fields.filter(|_| keeps_fields(transform)) else { continue };
        if let Some(template) = topics[index].as_ref().and_then(|topics| topics.first()) {
            checker.template(&transform.section, "topic", template, &fields);
        }
    }
    for (index, sink) in parsed.sinks.iter().enumerate() {
        let Some(fields) = checker.of_inputs(&references.of_sinks[index], sink.inputs.len()) else { continue };
        for (option, template) in sinks[index].iter().flat_map(|spec| spec.templates()) {
            checker.template(&sink.section, option, template, &fields);
        }
    }
}

/// Do records keep their fields in this transform?
fn keeps_fields(transform: &ParsedTransform<'_>) -> bool {
    transform.started.as_ref().is_some_and(|started| started.keeps_schema)
}

struct Checker<'c, 'a> {
    document: &'c Document,
    parsed: &'c ParsedPipeline<'a>,
    references: &'c References,
    report: &'c Report,
}

impl Checker<'_, '_> {
    /// The fields that records of these inputs can have; `None` if an input is invalid or its
    /// fields are unknown.
    fn of_inputs(&self, inputs: &[Reference], written: usize) -> Option<Fields> {
        if inputs.is_empty() || inputs.len() < written {
            return None;
        }
        let mut fields = Fields::new();
        for input in inputs {
            match input.target {
                Target::Source(index, 0) => {
                    let applied = self.references.of_sources[index].iter();
                    let keeps_all = applied.clone().all(|at| keeps_fields(&self.parsed.transforms[*at]));
                    fields.extend(self.parsed.sources[index].spec.as_ref()?.fields().filter(|_| keeps_all)?);
                }
                Target::Transform(index, _) => {
                    let transform = &self.parsed.transforms[index];
                    let written = transform.inputs.as_ref().map_or(0, Vec::len);
                    let inputs = self.of_inputs(&self.references.of_transforms[index], written);
                    fields.extend(inputs.filter(|_| keeps_fields(transform))?);
                }
                Target::Source(..) | Target::Topic(_) => return None,
            }
        }
        Some(fields)
    }

    /// Checks the names of fields in the configuration of a bundled plugin.
    fn transform(&self, transform: &ParsedTransform<'_>, fields: Option<&Fields>) {
        let (Some(fields), Some(started)) = (fields, &transform.started) else { return };
        let Some(plugin) = started.bundled else { return };
        let Some(Node { value: Value::Table(config), .. }) = transform.section.table.get("config") else { return };
        for option in plugin.field_options {
            let Some(Node { value: Value::Array(items), .. }) = config.get(option) else { continue };
            for item in items {
                let Value::String(text) = &item.value else { continue };
                if fields.contains(&text.resolved) {
                    continue;
                }
                self.report.add(Problem {
                    code: "plan.unknown_field",
                    message: format!(
                        "the records have no field `{}`, so `{}` would not change them",
                        text.raw, plugin.name
                    ),
                    span: item.span.clone(),
                    expected: expected(&text.raw, fields),
                    help: Some(known(fields)),
                });
            }
        }
    }

    /// Checks the fields of a template. A field with a default is optional, so its name may be
    /// anything.
    fn template(&self, section: &Section<'_>, option: &str, template: &Template, fields: &Fields) {
        for (field, has_default) in template.fields() {
            if has_default || fields.contains(field) {
                continue;
            }
            let span = match section.table.get(option) {
                Some(node) => self.placeholder(node, field),
                None => section.span.clone(),
            };
            self.report.add(Problem {
                code: "plan.unknown_field",
                message: format!(
                    "the records have no field `{field}`, so `{}.{option}` would reject all of them",
                    section.path
                ),
                span,
                expected: expected(field, fields),
                help: Some(known(fields)),
            });
        }
    }

    /// The place of a placeholder in a template.
    fn placeholder(&self, node: &Node, field: &str) -> std::ops::Range<usize> {
        let Value::String(text) = &node.value else { return node.span.clone() };
        let opening = format!("{{{field}");
        let is_whole = |at: &usize| text.resolved[at + opening.len()..].starts_with([':', '|', '}']);
        let found = text.resolved.match_indices(&opening).map(|(at, _)| at).find(is_whole);
        found.map_or(node.span.clone(), |at| self.document.within(node, at + 1..at + opening.len()))
    }
}

fn expected(field: &str, fields: &Fields) -> String {
    let names: Vec<&str> = fields.iter().map(String::as_str).collect();
    match nearest(field, &names) {
        Some(meant) => format!("did you mean `{meant}`?"),
        None => "expected a field of the records".to_owned(),
    }
}

fn known(fields: &Fields) -> String {
    format!("fields of the records: {}", fields.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
}
