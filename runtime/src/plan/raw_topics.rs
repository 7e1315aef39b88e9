//! Warns of confidential data in topics: a transform that hides data runs after a topic that holds
//! the data as it was.

use std::collections::BTreeSet;

use trunkline_connector::config::{Problem, Report};

use super::inputs::{Reference, References, Target};
use super::parsed::ParsedPipeline;

/// Warns of each transform that hides data downstream of a source of the same file. (A topic that
/// another program writes is that program's choice.)
pub(super) fn check(parsed: &ParsedPipeline<'_>, references: &References, warnings: &Report) {
    for (index, transform) in parsed.transforms.iter().enumerate() {
        let hides_data = transform.started.as_ref().and_then(|started| started.bundled).is_some_and(|it| it.hides_data);
        let mut sources = BTreeSet::new();
        collect_sources(&references.of_transforms[index], references, &mut sources);
        if !hides_data || sources.is_empty() {
            continue;
        }
        let name = &transform.key.name;
        let topics: Vec<String> = sources
            .iter()
            .filter_map(|source| parsed.sources[*source].topic.as_ref())
            .map(|topic| format!("`{}`", topic.source()))
            .collect();
        let span =
            transform.section.table.entry("inputs").map_or(transform.section.span.clone(), |(key, _)| key.span.clone());
        warnings.add(Problem {
            code: "plan.hides_after_topic",
            message: format!(
                "`{name}` hides data only after the topic: {} and the dead letters hold the original values",
                topics.join(" and ")
            ),
            span,
            expected: "reads a topic".to_owned(),
            help: Some(format!(
                "to hide it before the topic, remove `inputs`, write `apply = [\"{name}\"]` in {}, and read the source \
                 instead of `{name}`",
                sources
                    .iter()
                    .map(|source| format!("`sources.{}`", parsed.sources[*source].key.name))
                    .collect::<Vec<_>>()
                    .join(" and ")
            )),
        });
    }
}

/// The sources of this file whose records reach these inputs. There must be no cycle.
fn collect_sources(inputs: &[Reference], references: &References, sources: &mut BTreeSet<usize>) {
    for input in inputs {
        match input.target {
            Target::Source(index, 0) => drop(sources.insert(index)),
            Target::Transform(index, _) => collect_sources(&references.of_transforms[index], references, sources),
            Target::Source(..) | Target::Topic(_) => {}
        }
    }
}
