//! Checks the tables of transforms: `table = ".."` of a plugin that reads one.

use trunkline_connector::config::{Problem, Report};

use super::TopicSelector;
use super::graph::Graph;
use super::inputs::Reference;

const TABLE_RULE: &str = "a component, `component.port` or `topic:NAME`, whose last record of each key is a row";

/// Reports a missing table, one that no plugin reads, and one that is not a single topic.
pub(super) fn check(graph: &Graph<'_, '_>, report: &Report) {
    for (transform, table) in graph.parsed.transforms.iter().zip(&graph.references.of_tables) {
        let (section, name) = (&transform.section, &transform.key.name);
        if transform.reads_table() && transform.table.is_none() && section.node("table").is_none() {
            section.missing("table", TABLE_RULE);
        }
        if let Some((key, _)) = section.table.entry("table")
            && transform.started.is_some()
            && !transform.reads_table()
        {
            report.add(Problem {
                code: "plan.no_table",
                message: format!("`{}.table` has no effect: the plugin reads no table", section.path),
                span: key.span.clone(),
                expected: "expected with lookup.wasm".to_owned(),
                help: None,
            });
        }
        let Some(table) = table else { continue };
        if let [TopicSelector::Pattern(_)] = graph.selectors(&table.target).as_slice() {
            report.add(Problem {
                code: "plan.table_topics",
                message: format!("the table of the transform `{name}` has several topics"),
                span: table.span.clone(),
                expected: "expected a component with one topic".to_owned(),
                help: Some("name the topic of the table: `table = \"topic:NAME\"`".to_owned()),
            });
        }
    }
}

/// The topic of a table; `None` if it has no single one.
pub(super) fn topic(graph: &Graph<'_, '_>, table: &Reference) -> Option<String> {
    match graph.selectors(&table.target).as_slice() {
        [TopicSelector::Exact(topic)] => Some(topic.clone()),
        _ => None,
    }
}
