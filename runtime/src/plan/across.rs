//! Checks across files: names and topics that two of them claim, and records that would go round through topics.
//!
//! A problem between two files is one of the later file: the earlier one may be running already, and a bad file never touches a
//! running pipeline (I7).

use std::collections::VecDeque;
use std::ops::Range;

use trunkline_connector::Template;
use trunkline_connector::config::Problem;

use super::draft::Located;
use super::graph::Graph;
use super::inputs::Reference;
use super::load::Planned;
use super::topics::TopicShape;
use super::{OnError, TopicSelector};

/// What of a file matters to others, with places.
#[derive(Default)]
pub(super) struct Marks {
    name: Option<Located>,
    dead_letters: Option<Located>,
    stages: Vec<Stage>,
}

/// A stage as other stages see it.
struct Stage {
    /// What it is called: "source `web`".
    called: String,
    writes: Vec<Topic>,
    reads: Vec<Read>,
    /// Its bad records go to the pipeline's dead letters.
    dead_letters: bool,
}

/// Topics that a stage writes.
#[derive(Clone)]
struct Topic {
    shape: TopicShape,
    text: String,
    selector: TopicSelector,
    span: Range<usize>,
}

/// Topics that a stage reads, by one of its inputs.
struct Read {
    selector: TopicSelector,
    span: Range<usize>,
}

impl Marks {
    /// Of a file without cycles; components that are wrong are left out.
    pub(super) fn of(graph: &Graph<'_, '_>) -> Self {
        let draft = graph.draft;
        let topic = |template: &Template, span: Range<usize>| Topic {
            shape: TopicShape::of(template),
            text: template.source().to_owned(),
            selector: TopicSelector::of(template),
            span,
        };
        let reads = |references: &[Reference]| -> Vec<Read> {
            let read = |reference: &Reference| {
                let span = reference.span.clone();
                graph
                    .selectors(&reference.target)
                    .into_iter()
                    .map(move |selector| Read { selector, span: span.clone() })
            };
            references.iter().flat_map(read).collect()
        };
        let mut stages = Vec::new();
        for source in &draft.sources {
            let span_of =
                |key: &str| source.section.table.get(key).map_or(source.section.span.clone(), |node| node.span.clone());
            let ports = source.port_topics.iter().filter_map(|(_, template)| template.as_ref());
            let ports = ports.map(|template| topic(template, span_of("topics")));
            stages.push(Stage {
                called: format!("the source `{}`", source.key.name),
                writes: source.topic.iter().map(|template| topic(template, span_of("topic"))).chain(ports).collect(),
                reads: Vec::new(),
                dead_letters: source.on_error == OnError::DeadLetter,
            });
        }
        for (index, transform) in draft.transforms.iter().enumerate() {
            let Some(topics) = &graph.topics[index] else { continue };
            let span = transform.topic.map_or(transform.section.span.clone(), |node| node.span.clone());
            stages.push(Stage {
                called: format!("the transform `{}`", transform.key.name),
                writes: topics.iter().map(|template| topic(template, span.clone())).collect(),
                reads: reads(&graph.references.of_transforms[index]),
                dead_letters: transform.on_error == OnError::DeadLetter,
            });
        }
        for (index, sink) in draft.sinks.iter().enumerate() {
            stages.push(Stage {
                called: format!("the sink `{}`", sink.key.name),
                writes: Vec::new(),
                reads: reads(&graph.references.of_sinks[index]),
                dead_letters: sink.on_error == OnError::DeadLetter,
            });
        }
        Self { name: draft.name.clone(), dead_letters: draft.dead_letters.clone(), stages }
    }

    /// "the source `web`" here, "the source `web` of the pipeline `shop`" elsewhere.
    fn called(&self, stage: &Stage, elsewhere: bool) -> String {
        match &self.name {
            Some(name) if elsewhere => format!("{} of the pipeline `{}`", stage.called, name.text),
            _ => stage.called.clone(),
        }
    }
}

/// Adds problems between files, and those of topics within one.
pub(super) fn check(files: &mut [Planned]) {
    let mut found: Vec<(usize, Problem)> = Vec::new();
    duplicate_names(files, &mut found);
    topics_written_twice(files, &mut found);
    topics_of_dead_letters(files, &mut found);
    patterns_that_mean_more(files, &mut found);
    topic_loops(files, &mut found);
    for (file, problem) in found {
        let file = &mut files[file];
        if !file.problems.contains(&problem) {
            file.problems.push(problem);
        }
    }
}

fn duplicate_names(files: &[Planned], found: &mut Vec<(usize, Problem)>) {
    for (index, file) in files.iter().enumerate() {
        let Some(name) = &file.marks.name else { continue };
        let earlier = files[..index].iter().find_map(|other| {
            let same = other.marks.name.as_ref().filter(|other| other.text == name.text)?;
            Some(other.document.place(&same.span))
        });
        if let Some(earlier) = earlier {
            found.push((
                index,
                Problem {
                    code: "plan.duplicate_pipeline",
                    message: format!("there is a pipeline `{}` already", name.text),
                    span: name.span.clone(),
                    expected: "expected another name".to_owned(),
                    help: Some(format!("the other one: {earlier}")),
                },
            ));
        }
    }
}

/// All topics that are written, with the indices of file and stage.
fn written(files: &[Planned]) -> Vec<(usize, usize, &Topic)> {
    let mut topics = Vec::new();
    for (file, planned) in files.iter().enumerate() {
        for (stage, marks) in planned.marks.stages.iter().enumerate() {
            topics.extend(marks.writes.iter().map(|topic| (file, stage, topic)));
        }
    }
    topics
}

/// One topic has one writer (I4).
fn topics_written_twice(files: &[Planned], found: &mut Vec<(usize, Problem)>) {
    let mut topics = written(files);
    // Within a file, the topic that is further down is the one that is one too many.
    topics.sort_by_key(|(file, _, topic)| (*file, topic.span.start));
    for (at, (file, stage, topic)) in topics.iter().enumerate() {
        // Templates that only overlap may never meet; readers of a pattern are another matter.
        let earlier = topics[..at].iter().find(|(_, _, other)| other.selector == topic.selector);
        let Some((other_file, other_stage, other)) = earlier else { continue };
        // The same name twice is reported already, and with it come the same topics.
        if same_name(&files[*file], &files[*other_file]) && file != other_file {
            continue;
        }
        let marks = &files[*other_file].marks;
        let writer = match (file, stage) == (other_file, other_stage) {
            true => "another port".to_owned(),
            false => marks.called(&marks.stages[*other_stage], file != other_file),
        };
        found.push((
            *file,
            Problem {
                code: "plan.topic_taken",
                message: format!("{} writes the topic `{}` already", writer, topic.text),
                span: topic.span.clone(),
                expected: "expected a topic of its own".to_owned(),
                help: Some(format!("the other one: {}", files[*other_file].document.place(&other.span))),
            },
        ));
    }
}

fn same_name(file: &Planned, other: &Planned) -> bool {
    match (&file.marks.name, &other.marks.name) {
        (Some(name), Some(other)) => name.text == other.text,
        _ => false,
    }
}

/// Dead letters are mixed with nothing else.
fn topics_of_dead_letters(files: &[Planned], found: &mut Vec<(usize, Problem)>) {
    for (file, stage, topic) in written(files) {
        for (other_file, other) in files.iter().enumerate() {
            let Some(dead_letters) = &other.marks.dead_letters else { continue };
            if topic.selector != TopicSelector::Exact(dead_letters.text.clone()) {
                continue;
            }
            let blamed = file.max(other_file);
            let marks = &files[file].marks;
            let (span, place) = match blamed == file {
                true => (topic.span.clone(), other.document.place(&dead_letters.span)),
                false => (dead_letters.span.clone(), files[file].document.place(&topic.span)),
            };
            let writer = marks.called(&marks.stages[stage], blamed != file);
            let owner = other.marks.name.as_ref().map_or("?", |name| &name.text);
            found.push((
                blamed,
                Problem {
                    code: "plan.topic_taken",
                    message: format!(
                        "{writer} writes the topic `{}`, which is for the dead letters of the pipeline `{owner}`",
                        topic.text
                    ),
                    span,
                    expected: "expected another topic".to_owned(),
                    help: Some(format!("the other one: {place}")),
                },
            ));
        }
    }
}

/// A component whose topics depend on its records is read by a pattern: it must not mean topics of anybody else.
fn patterns_that_mean_more(files: &[Planned], found: &mut Vec<(usize, Problem)>) {
    for (file, stage, topic) in written(files) {
        let is_pattern = matches!(topic.selector, TopicSelector::Pattern(_));
        let marks = &files[file].marks;
        let is_read = marks.stages.iter().any(|reader| reader.reads.iter().any(|read| read.selector == topic.selector));
        if !is_pattern || !is_read {
            continue;
        }
        // Each with its file, and whether its place can be blamed.
        let mut others: Vec<(usize, String, Range<usize>)> = Vec::new();
        for (other_file, other_stage, other) in written(files) {
            let itself = (file, stage) == (other_file, other_stage);
            if !itself && other.selector != topic.selector && topic.shape.overlaps(&other.shape) {
                let other_marks = &files[other_file].marks;
                let writer = other_marks.called(&other_marks.stages[other_stage], other_file != file);
                others.push((other_file, format!("`{}` of {writer}", other.text), other.span.clone()));
            }
        }
        for (other_file, other) in files.iter().enumerate() {
            let Some(dead_letters) = &other.marks.dead_letters else { continue };
            if topic.shape.overlaps(&TopicShape::exact(&dead_letters.text)) {
                let what = format!("`{}`, a topic of dead letters", dead_letters.text);
                others.push((other_file, what, dead_letters.span.clone()));
            }
        }
        if topic.shape.overlaps(&TopicShape::internal()) {
            others.push((file, "those of Trunkline itself".to_owned(), topic.span.clone()));
        }
        // One is enough to see what is wrong.
        if let Some((other_file, what, other_span)) = others.into_iter().next() {
            let blamed = file.max(other_file);
            let (span, help) = match blamed == file {
                true => (topic.span.clone(), "start the template with text that no other topic starts with".to_owned()),
                false => (other_span, format!("the template: {}", files[file].document.place(&topic.span))),
            };
            found.push((
                blamed,
                Problem {
                    code: "plan.topic_ambiguous",
                    message: format!(
                        "whoever reads {} would also read {what}",
                        marks.called(&marks.stages[stage], blamed != file)
                    ),
                    span,
                    expected: format!("`{}` is read as a pattern", topic.text),
                    help: Some(help),
                },
            ));
        }
    }
}

/// Records that come back to a stage through topics.
fn topic_loops(files: &[Planned], found: &mut Vec<(usize, Problem)>) {
    let stages: Vec<(usize, &Stage)> = files
        .iter()
        .enumerate()
        .flat_map(|(file, planned)| planned.marks.stages.iter().map(move |stage| (file, stage)))
        .collect();
    for (file, stage) in &stages {
        let Some(dead_letters) = files[*file].marks.dead_letters.as_ref().filter(|_| stage.dead_letters) else {
            continue;
        };
        let own = TopicSelector::Exact(dead_letters.text.clone());
        for read in stage.reads.iter().filter(|read| read.selector == own) {
            found.push((
                *file,
                Problem {
                    code: "plan.topic_loop",
                    message: format!("{} reads the topic that its own dead letters go to", stage.called),
                    span: read.span.clone(),
                    expected: "records that fail would come back for ever".to_owned(),
                    help: Some(
                        "set its `on_error` to \"stop\" or \"skip\", or read them in another pipeline".to_owned(),
                    ),
                },
            ));
        }
    }
    // Edges from reader to writer, with the input that makes them.
    let mut edges: Vec<Vec<(usize, Range<usize>)>> = Vec::new();
    for (_, reader) in &stages {
        let mut to = Vec::new();
        for read in &reader.reads {
            for (at, (_, writer)) in stages.iter().enumerate() {
                // Patterns are made of a component's own template, so equality is enough for them.
                let meets = writer.writes.iter().any(|topic| match &read.selector {
                    TopicSelector::Exact(name) => topic.shape.overlaps(&TopicShape::exact(name)),
                    TopicSelector::Pattern(_) => topic.selector == read.selector,
                });
                if meets {
                    to.push((at, read.span.clone()));
                }
            }
        }
        edges.push(to);
    }
    for start in 0..stages.len() {
        let Some(path) = way_back(start, &edges) else { continue };
        // Every stage of a cycle finds it; the last of them, by file and place, reports it.
        if path.iter().any(|at| *at > start) {
            continue;
        }
        let file = stages[start].0;
        // With two writers of one topic, who goes round depends on which of them is wrong.
        if found.iter().any(|(at, problem)| *at == file && problem.code == "plan.topic_taken") {
            continue;
        }
        // The path goes from reader to writer; records go the other way.
        let called = |at: &usize| files[stages[*at].0].marks.called(stages[*at].1, stages[*at].0 != file);
        let names: Vec<String> = path.iter().rev().chain([&start]).map(called).collect();
        let closing = edges[start].iter().find(|(to, _)| Some(to) == path.first());
        let Some((_, span)) = closing else { continue };
        found.push((
            file,
            Problem {
                code: "plan.topic_loop",
                message: format!("records would go round for ever: {}", names.join(" -> ")),
                span: span.clone(),
                expected: "this input closes the loop".to_owned(),
                help: None,
            },
        ));
    }
}

/// The shortest way from a stage along the edges back to itself: the stages after it, itself last.
fn way_back(start: usize, edges: &[Vec<(usize, Range<usize>)>]) -> Option<Vec<usize>> {
    let mut came_from: Vec<Option<usize>> = vec![None; edges.len()];
    let mut queue = VecDeque::from([start]);
    while let Some(at) = queue.pop_front() {
        for (next, _) in &edges[at] {
            if *next == start {
                let mut path = vec![start];
                let mut back = at;
                while back != start {
                    path.push(back);
                    back = came_from[back]?;
                }
                path.reverse();
                return Some(path);
            }
            if came_from[*next].is_none() {
                came_from[*next] = Some(at);
                queue.push_back(*next);
            }
        }
    }
    None
}
