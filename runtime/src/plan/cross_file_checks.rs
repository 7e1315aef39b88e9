//! Checks between files: names and topics that two files use, and records that would circulate
//! through topics.
//!
//! A conflict between two files is a problem of the later one: the earlier one may be running
//! already, and an invalid file must not affect a running pipeline (I7).

use std::collections::VecDeque;
use std::ops::Range;

use trunkline_connector::Template;
use trunkline_connector::config::Problem;

use super::TopicSelector;
use super::fusion::TransformMode;
use super::graph::Graph;
use super::inputs::Reference;
use super::parsed::Spanned;
use super::planned_file::PlannedFile;
use super::shared_topics::named_topics;
use super::topics::TopicShape;

/// The names and topics that a file uses, with their places.
#[derive(Default)]
pub(super) struct TopicUsage {
    name: Option<Spanned<String>>,
    dead_letters: Option<Spanned<String>>,
    stages: Vec<StageUsage>,
}

/// The topics that a stage uses.
struct StageUsage {
    /// The stage in messages: "the source `web`".
    label: String,
    writes: Vec<WrittenTopic>,
    reads: Vec<ReadTopic>,
    /// Its rejected records go to the pipeline's dead letters.
    dead_letters: bool,
}

/// Topics that a stage writes.
#[derive(Clone)]
struct WrittenTopic {
    shape: TopicShape,
    text: String,
    selector: TopicSelector,
    /// The topics of the data sets that the configuration names, if the template depends on them.
    named: Vec<String>,
    span: Range<usize>,
    /// The option that sets another name, where the file does not set one.
    default_of: Option<&'static str>,
}

/// Topics that a stage reads by one of its inputs.
struct ReadTopic {
    selector: TopicSelector,
    span: Range<usize>,
}

impl WrittenTopic {
    fn new(template: &Template, span: Range<usize>, default_of: Option<&'static str>) -> Self {
        Self {
            shape: TopicShape::of(template),
            text: template.source().to_owned(),
            selector: TopicSelector::of(template),
            named: Vec::new(),
            span,
            default_of,
        }
    }

    /// A topic that another component writes, too; `None` if that is not certain.
    fn shared_with(&self, other: &Self) -> Option<&str> {
        if self.selector == other.selector {
            return Some(&self.text);
        }
        match (&self.selector, &other.selector) {
            (TopicSelector::Exact(topic), _) => other.named.contains(topic).then_some(topic.as_str()),
            (_, TopicSelector::Exact(topic)) => self.named.iter().find(|named| *named == topic).map(String::as_str),
            _ => self.named.iter().find(|named| other.named.contains(named)).map(String::as_str),
        }
    }

    /// What to do about a conflict with another place.
    fn remedy(&self, other: &str) -> String {
        match self.default_of {
            Some(option) => {
                format!("this is the default topic: set another one with `{option}`; the other one: {other}")
            }
            None => format!("the other one: {other}"),
        }
    }
}

impl TopicUsage {
    /// The usage of a file without cycles. Invalid components are left out.
    pub(super) fn of(graph: &Graph<'_, '_>) -> Self {
        let parsed = graph.parsed;
        let mut stages = source_stages(graph);
        for (index, transform) in parsed.transforms.iter().enumerate() {
            let Some(topics) = graph.topics[index].as_ref().filter(|_| graph.modes[index] == TransformMode::Separate)
            else {
                continue;
            };
            let place = |node: Option<&trunkline_connector::config::Node>, option| match node {
                Some(node) => (node.span.clone(), None),
                None => (transform.section.span.clone(), Some(option)),
            };
            let (topic_span, topic_default) = place(transform.topic, "topic");
            let writes = topics.iter().enumerate().map(|(port, template)| match port {
                0 => WrittenTopic::new(template, topic_span.clone(), topic_default),
                _ => {
                    let (span, default) = place(transform.topics.or(transform.topic), "topics");
                    WrittenTopic::new(template, span, default)
                }
            });
            stages.push(StageUsage {
                label: format!("the transform `{}`", transform.key.name),
                writes: writes.collect(),
                reads: reads(graph, graph.references.read_by_transform(index)),
                dead_letters: transform.on_error.writes_dead_letters(),
            });
        }
        for (index, sink) in parsed.sinks.iter().enumerate() {
            stages.push(StageUsage {
                label: format!("the sink `{}`", sink.key.name),
                writes: Vec::new(),
                reads: reads(graph, graph.references.of_sinks[index].iter()),
                dead_letters: sink.on_error.writes_dead_letters(),
            });
        }
        Self { name: parsed.name.clone(), dead_letters: parsed.dead_letters.clone(), stages }
    }

    /// "the source `web`" within its own file, "the source `web` of the pipeline `shop`" in other
    /// files.
    fn label(&self, stage: &StageUsage, in_other_file: bool) -> String {
        match &self.name {
            Some(name) if in_other_file => format!("{} of the pipeline `{}`", stage.label, name.value),
            _ => stage.label.clone(),
        }
    }
}

fn source_stages(graph: &Graph<'_, '_>) -> Vec<StageUsage> {
    let mut stages = Vec::new();
    for source in &graph.parsed.sources {
        let written = |key: &'static str, template: &Template| match source.section.table.get(key) {
            Some(node) => WrittenTopic::new(template, node.span.clone(), None),
            None => WrittenTopic::new(template, source.section.span.clone(), Some(key)),
        };
        let ports = source.port_topics.iter().filter_map(|(_, template)| template.as_ref());
        let ports = ports.map(|template| written("topics", template));
        let default = source.topic.iter().map(|template| WrittenTopic {
            // An error is reported already.
            named: named_topics(source).unwrap_or_default(),
            ..written("topic", template)
        });
        stages.push(StageUsage {
            label: format!("the source `{}`", source.key.name),
            writes: default.chain(ports).collect(),
            reads: Vec::new(),
            dead_letters: source.on_error.writes_dead_letters(),
        });
    }
    stages
}

fn reads<'r>(graph: &Graph<'_, '_>, references: impl Iterator<Item = &'r Reference>) -> Vec<ReadTopic> {
    let read = |reference: &Reference| {
        let span = reference.span.clone();
        graph.selectors(&reference.target).into_iter().map(move |selector| ReadTopic { selector, span: span.clone() })
    };
    references.flat_map(read).collect()
}

/// Adds the problems between files, and those between the topics of one file.
pub(super) fn check(files: &mut [PlannedFile]) {
    let mut found: Vec<(usize, Problem)> = Vec::new();
    duplicate_names(files, &mut found);
    topics_with_two_writers(files, &mut found);
    topics_of_dead_letters(files, &mut found);
    ambiguous_patterns(files, &mut found);
    dead_letter_loops(files, &mut found);
    topic_loops(files, &mut found);
    for (file, problem) in found {
        let file = &mut files[file];
        if !file.problems.contains(&problem) {
            file.problems.push(problem);
        }
    }
}

fn duplicate_names(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    for (index, file) in files.iter().enumerate() {
        let Some(name) = &file.usage.name else { continue };
        let earlier = files[..index].iter().find_map(|other| {
            let same = other.usage.name.as_ref().filter(|other| other.value == name.value)?;
            Some(other.document.place(&same.span))
        });
        if let Some(earlier) = earlier {
            found.push((
                index,
                Problem {
                    code: "plan.duplicate_pipeline",
                    message: format!("there is a pipeline `{}` already", name.value),
                    span: name.span.clone(),
                    expected: "expected another name".to_owned(),
                    help: Some(format!("the other one: {earlier}")),
                },
            ));
        }
    }
}

/// All written topics, with the indices of file and stage.
fn written(files: &[PlannedFile]) -> Vec<(usize, usize, &WrittenTopic)> {
    let mut topics = Vec::new();
    for (file, planned) in files.iter().enumerate() {
        for (stage, usage) in planned.usage.stages.iter().enumerate() {
            topics.extend(usage.writes.iter().map(|topic| (file, stage, topic)));
        }
    }
    topics
}

/// One topic has one writer (I4).
fn topics_with_two_writers(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    let mut topics = written(files);
    // Within a file, the problem belongs to the topic further down.
    topics.sort_by_key(|(file, _, topic)| (*file, topic.span.start));
    for (at, (file, stage, topic)) in topics.iter().enumerate() {
        // Templates that only overlap may never produce the same name: a task claims such a topic
        // before its first record (`checkpoint/topic_owners.rs`), and `ambiguous_patterns` checks
        // the readers.
        let earlier = topics[..at].iter().find_map(|earlier| Some((earlier, topic.shared_with(earlier.2)?)));
        let Some(((other_file, other_stage, other), shared)) = earlier else { continue };
        // A duplicate pipeline name is reported already; duplicate topics follow from it.
        if same_name(&files[*file], &files[*other_file]) && file != other_file {
            continue;
        }
        let usage = &files[*other_file].usage;
        let writer = match (file, stage) == (other_file, other_stage) {
            true => "another port".to_owned(),
            false => usage.label(&usage.stages[*other_stage], file != other_file),
        };
        found.push((
            *file,
            Problem {
                code: "plan.topic_taken",
                message: format!("{writer} writes the topic `{shared}` already"),
                span: topic.span.clone(),
                expected: "expected a topic that no other component writes".to_owned(),
                help: Some(topic.remedy(&files[*other_file].document.place(&other.span))),
            },
        ));
    }
}

fn same_name(file: &PlannedFile, other: &PlannedFile) -> bool {
    match (&file.usage.name, &other.usage.name) {
        (Some(name), Some(other)) => name.value == other.value,
        _ => false,
    }
}

/// A topic of dead letters holds nothing else.
fn topics_of_dead_letters(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    for (file, stage, topic) in written(files) {
        for (other_file, other) in files.iter().enumerate() {
            let Some(dead_letters) = &other.usage.dead_letters else { continue };
            let is_named = topic.named.contains(&dead_letters.value);
            if !is_named && topic.selector != TopicSelector::Exact(dead_letters.value.clone()) {
                continue;
            }
            let blamed = file.max(other_file);
            let usage = &files[file].usage;
            let (span, help) = match blamed == file {
                true => (topic.span.clone(), topic.remedy(&other.document.place(&dead_letters.span))),
                false => {
                    let place = files[file].document.place(&topic.span);
                    (dead_letters.span.clone(), format!("the other one: {place}"))
                }
            };
            let writer = usage.label(&usage.stages[stage], blamed != file);
            let owner = other.usage.name.as_ref().map_or("?", |name| &name.value);
            found.push((
                blamed,
                Problem {
                    code: "plan.topic_taken",
                    message: format!(
                        "{writer} writes the topic `{}`, which is for the dead letters of the pipeline `{owner}`",
                        dead_letters.value
                    ),
                    span,
                    expected: "expected another topic".to_owned(),
                    help: Some(help),
                },
            ));
        }
    }
}

/// A component whose topics depend on its records is read by a pattern, which must match no other
/// topics.
fn ambiguous_patterns(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    for (file, stage, topic) in written(files) {
        let is_pattern = matches!(topic.selector, TopicSelector::Pattern(_));
        let usage = &files[file].usage;
        let is_read = usage.stages.iter().any(|reader| reader.reads.iter().any(|read| read.selector == topic.selector));
        if !is_pattern || !is_read {
            continue;
        }
        // The first match is enough to show the problem.
        let Some(other) = other_matches(files, (file, stage), topic).into_iter().next() else { continue };
        let blamed = file.max(other.file);
        let (span, help) = match blamed == file {
            // A default topic further down in the same file is easier to change than the template.
            true => match other.default_of {
                Some(option) => (other.span, format!("set another topic with `{option}`")),
                None => (topic.span.clone(), "start the template with text that no other topic starts with".to_owned()),
            },
            false => (other.span, format!("the template: {}", files[file].document.place(&topic.span))),
        };
        found.push((
            blamed,
            Problem {
                code: "plan.topic_ambiguous",
                message: format!(
                    "a reader of {} would also read {}",
                    usage.label(&usage.stages[stage], blamed != file),
                    other.label
                ),
                span,
                expected: format!("`{}` is read as a pattern", topic.text),
                help: Some(help),
            },
        ));
    }
}

/// A topic that the pattern of another component matches.
struct OtherMatch {
    file: usize,
    label: String,
    span: Range<usize>,
    default_of: Option<&'static str>,
}

/// The topics besides its own that the pattern of a component matches.
fn other_matches(files: &[PlannedFile], owner: (usize, usize), topic: &WrittenTopic) -> Vec<OtherMatch> {
    let mut matches = Vec::new();
    for (file, stage, other) in written(files) {
        if (file, stage) != owner && other.selector != topic.selector && topic.shape.overlaps(&other.shape) {
            let usage = &files[file].usage;
            let writer = usage.label(&usage.stages[stage], file != owner.0);
            let label = format!("`{}` of {writer}", other.text);
            matches.push(OtherMatch { file, label, span: other.span.clone(), default_of: other.default_of });
        }
    }
    for (file, other) in files.iter().enumerate() {
        let Some(dead_letters) = &other.usage.dead_letters else { continue };
        if topic.shape.overlaps(&TopicShape::exact(&dead_letters.value)) {
            let label = format!("`{}`, a topic of dead letters", dead_letters.value);
            matches.push(OtherMatch { file, label, span: dead_letters.span.clone(), default_of: None });
        }
    }
    if topic.shape.overlaps(&TopicShape::internal()) {
        let label = "Trunkline's own topics".to_owned();
        matches.push(OtherMatch { file: owner.0, label, span: topic.span.clone(), default_of: None });
    }
    matches
}

/// Stages that read the topic of their own dead letters.
fn dead_letter_loops(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    for (index, file) in files.iter().enumerate() {
        let Some(dead_letters) = &file.usage.dead_letters else { continue };
        // If a component writes this topic, too, the loops are a consequence.
        if found.iter().any(|(at, problem)| *at == index && problem.code == "plan.topic_taken") {
            continue;
        }
        let own = TopicSelector::Exact(dead_letters.value.clone());
        for stage in file.usage.stages.iter().filter(|stage| stage.dead_letters) {
            for read in stage.reads.iter().filter(|read| read.selector == own) {
                found.push((
                    index,
                    Problem {
                        code: "plan.topic_loop",
                        message: format!("{} reads the topic that its own dead letters go to", stage.label),
                        span: read.span.clone(),
                        expected: "records that fail would return for ever".to_owned(),
                        help: Some(
                            "set its `on_error` to \"stop\" or \"skip\", or read them in another pipeline".to_owned(),
                        ),
                    },
                ));
            }
        }
    }
}

/// Records that return to a stage through topics.
fn topic_loops(files: &[PlannedFile], found: &mut Vec<(usize, Problem)>) {
    let stages: Vec<(usize, &StageUsage)> = files
        .iter()
        .enumerate()
        .flat_map(|(file, planned)| planned.usage.stages.iter().map(move |stage| (file, stage)))
        .collect();
    let edges: Vec<Edges> = stages.iter().map(|(_, reader)| edges_of(reader, &stages)).collect();
    for start in 0..stages.len() {
        let Some(path) = shortest_cycle(start, &edges) else { continue };
        // Every stage of a cycle finds it. The last one, by file and place, reports it.
        if path.iter().any(|at| *at > start) {
            continue;
        }
        let file = stages[start].0;
        // If a topic has two writers, the cycle depends on which of them is wrong.
        if found.iter().any(|(at, problem)| *at == file && problem.code == "plan.topic_taken") {
            continue;
        }
        // The path leads from reader to writer; records flow the other way.
        let label = |at: &usize| files[stages[*at].0].usage.label(stages[*at].1, stages[*at].0 != file);
        let names: Vec<String> = path.iter().rev().chain([&start]).map(label).collect();
        let closing = edges[start].iter().find(|(to, _)| Some(to) == path.first());
        let Some((_, span)) = closing else { continue };
        found.push((
            file,
            Problem {
                code: "plan.topic_loop",
                message: format!("records would circulate for ever: {}", names.join(" -> ")),
                span: span.clone(),
                expected: "this input closes the loop".to_owned(),
                help: None,
            },
        ));
    }
}

/// The stages that a stage reads from, each with the place of the input.
type Edges = Vec<(usize, Range<usize>)>;

fn edges_of(reader: &StageUsage, stages: &[(usize, &StageUsage)]) -> Edges {
    let mut edges = Edges::new();
    for read in &reader.reads {
        for (at, (_, writer)) in stages.iter().enumerate() {
            // A pattern derives from a component's own template, so equality is enough.
            let writes_it = writer.writes.iter().any(|topic| match &read.selector {
                TopicSelector::Exact(name) => topic.shape.overlaps(&TopicShape::exact(name)),
                TopicSelector::Pattern(_) => topic.selector == read.selector,
            });
            if writes_it {
                edges.push((at, read.span.clone()));
            }
        }
    }
    edges
}

/// The shortest path from a stage along the edges back to itself: the stages after it, itself last.
fn shortest_cycle(start: usize, edges: &[Edges]) -> Option<Vec<usize>> {
    let mut previous: Vec<Option<usize>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (next, _) in &edges[at] {
            if *next == start {
                let mut path = vec![start];
                let mut back = at;
                while back != start {
                    path.push(back);
                    back = previous[back]?;
                }
                path.reverse();
                return Some(path);
            }
            if previous[*next].is_none() {
                previous[*next] = Some(at);
                queue.push_back(*next);
            }
        }
    }
    None
}
