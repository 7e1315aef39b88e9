//! From paths to pipelines.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use trunkline_connector::config::{Problem, Report, Section};
use trunkline_connector::{SinkSpec, Template};
use trunkline_transform_host::Host;

use super::across::{self, Marks};
use super::draft::{self, Draft, TransformDraft};
use super::graph::{self, Graph, PortTopics};
use super::inputs::{self, References};
use super::registry::Registry;
use super::{Options, Pipeline, SinkPlan, SourcePlan, TransformPlan, files, plugins};
use crate::config::{Document, FileProblems, Settings};

/// What became of a set of pipeline files.
#[derive(Default)]
pub struct Loaded {
    /// Pipelines that can run, in the order of their files.
    pub pipelines: Vec<Pipeline>,
    /// Names of those among them that are as they were when their files were read before, because something is wrong with these now.
    pub kept: Vec<String>,
    /// What is wrong with files, a file each.
    pub problems: Vec<FileProblems>,
}

/// A file on its way to a pipeline.
pub(super) struct Planned {
    pub(super) document: Document,
    /// `None` if something is wrong with it.
    pub(super) pipeline: Option<Pipeline>,
    pub(super) problems: Vec<Problem>,
    pub(super) marks: Marks,
    /// Where its plugins would lie; a bundled one is taken where there is nothing.
    plugins: Vec<PathBuf>,
}

impl Planned {
    fn wrong(&self) -> Option<FileProblems> {
        self.document.finish(self.problems.clone())
    }
}

/// Loads the pipelines of the given files and folders. A file with problems does not keep the others from running (I7). Of two files that claim
/// the same name or topic, the first by path runs.
pub fn load_each(paths: &[PathBuf], host: &Host, settings: &Settings, registry: &Registry) -> Loaded {
    Files::default().read(paths, host, settings, registry)
}

/// Pipeline files that are read again and again.
#[derive(Default)]
pub struct Files {
    /// Those that pipelines were made of, as they were then.
    good: Vec<Planned>,
    /// Where plugins would lie that the files name, good or bad.
    plugins: Vec<PathBuf>,
}

impl Files {
    /// Reads the files again. One that was good and has a mistake now is taken as it was (I7), and what the others claim has to go together with
    /// that. One that is gone is left out.
    pub fn read(&mut self, paths: &[PathBuf], host: &Host, settings: &Settings, registry: &Registry) -> Loaded {
        let (files, mut problems) = files::discover(paths);
        let mut planned = Vec::new();
        for file in &files {
            match Document::read(file, settings.secrets.as_deref()) {
                Ok(document) => planned.push(plan(document, host, registry)),
                Err(unreadable) => problems.push(unreadable),
            }
        }
        // What is wrong between two files is a problem of the later one: those that are as they were come first.
        let is_new = |planned: &Planned| {
            let known = self.good.iter().find(|known| known.document.file == planned.document.file);
            known.is_none_or(|known| known.document.source != planned.document.source)
        };
        planned.sort_by_key(is_new);
        across::check(&mut planned);
        let (mut good, mut bad): (Vec<_>, Vec<_>) = planned.into_iter().partition(|file| file.wrong().is_none());

        // Each round takes files as they were, so there are not more rounds than files.
        let mut before = std::mem::take(&mut self.good);
        let mut kept: Vec<Planned> = Vec::new();
        loop {
            let goes_on = |known: &Planned| {
                let file = &known.document.file;
                let is_wrong = |wrong: &FileProblems| wrong.file.as_ref().is_some_and(|at| file.starts_with(at));
                let is_bad = bad.iter().any(|other| other.document.file == *file) || problems.iter().any(is_wrong);
                is_bad && !is_gone(file)
            };
            let (stay, rest): (Vec<_>, Vec<_>) = before.into_iter().partition(goes_on);
            before = rest;
            if stay.is_empty() {
                break;
            }
            kept.extend(stay);
            let count = kept.len();
            kept.append(&mut good);
            across::check(&mut kept);
            let (fine, wrong): (Vec<_>, Vec<_>) =
                kept.split_off(count).into_iter().partition(|file| file.wrong().is_none());
            good = fine;
            bad.extend(wrong);
        }

        let place = |planned: &Planned| files.iter().position(|file| *file == planned.document.file);
        bad.sort_by_key(place);
        problems.extend(bad.iter().filter_map(Planned::wrong));
        let name = |planned: &Planned| planned.pipeline.as_ref().map(|pipeline| pipeline.name.clone());
        let kept_names = kept.iter().filter_map(name).collect();
        good.append(&mut kept);
        good.sort_by_key(place);
        self.plugins = good.iter().chain(&bad).flat_map(|file| file.plugins.iter().cloned()).collect();
        self.good = good;
        let pipelines = self.good.iter().filter_map(|file| file.pipeline.clone()).collect();
        Loaded { pipelines, kept: kept_names, problems }
    }

    /// Where plugins would lie that the files named when they were read.
    pub fn plugins(&self) -> &[PathBuf] {
        &self.plugins
    }
}

/// Was the file taken away? Not where its folder is missing too, or nobody can tell: then it may be a disk that is.
fn is_gone(file: &Path) -> bool {
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    folder.is_dir() && matches!(file.try_exists(), Ok(false))
}

/// Plans one file by itself.
fn plan(document: Document, host: &Host, registry: &Registry) -> Planned {
    let report = Report::default();
    // With part of the file unread, most of what could be said of the rest would be wrong.
    let (pipeline, marks, plugins) = match document.whole {
        true => read_pipeline(&document, &report, host, registry),
        false => (None, Marks::default(), Vec::new()),
    };
    let problems = report.into_problems();
    let pipeline = pipeline.filter(|_| problems.is_empty());
    Planned { document, pipeline, problems, marks, plugins }
}

fn read_pipeline(
    document: &Document,
    report: &Report,
    host: &Host,
    registry: &Registry,
) -> (Option<Pipeline>, Marks, Vec<PathBuf>) {
    let draft = draft::read(document, document.section(report), host, registry);
    let plugins = draft.transforms.iter().filter_map(|transform| plugins::path(&transform.section)).collect();
    let references = inputs::resolve(&draft, report);
    report_unused(&draft, &references);
    let has_cycle = graph::has_cycle(&draft, &references, report);
    let sinks: Vec<Option<Box<dyn SinkSpec>>> = (0..draft.sinks.len())
        .map(|index| configure_sink(&draft, (!has_cycle).then_some(&references), index, registry))
        .collect();
    if has_cycle {
        finish_sections(document, draft);
        return (None, Marks::default(), plugins);
    }
    let topics: Vec<Option<PortTopics>> = draft
        .transforms
        .iter()
        .enumerate()
        .map(|(index, transform)| port_topics(document, &draft, &references, index, transform))
        .collect();
    let graph = Graph { draft: &draft, references: &references, topics: &topics };
    let marks = Marks::of(&graph);
    // Only a file without problems has all the parts of a pipeline.
    let pipeline = if report.is_empty() { build(document, &graph, sinks) } else { None };
    finish_sections(document, draft);
    (pipeline, marks, plugins)
}

/// Reports the keys that nobody asked for. A component with an unknown connector has none: which there are is not known.
fn finish_sections(document: &Document, draft: Draft<'_>) {
    let sources = draft.sources.into_iter().map(|source| source.section);
    let sinks = draft.sinks.into_iter().filter(|sink| sink.connector.is_some()).map(|sink| sink.section);
    // Which options a connector has may depend on one that is not known: an address, for example.
    sources.chain(sinks).filter(|section| !document.has_unresolved(section.table)).for_each(Section::finish);
    draft.transforms.into_iter().for_each(|transform| transform.section.finish());
}

fn report_unused(draft: &Draft<'_>, references: &References) {
    for (transform, used) in draft.transforms.iter().zip(&references.used) {
        if *used {
            continue;
        }
        let name = &transform.key.name;
        if transform.inputs.is_none() {
            transform.section.report.add(Problem {
                code: "plan.unused_transform",
                message: format!("the transform `{name}` has no `inputs`, and no source applies it"),
                span: transform.section.span.clone(),
                expected: "expected `inputs` here".to_owned(),
                help: Some(format!("or apply it before a source's topic: `apply = [\"{name}\"]`")),
            });
        } else if transform.topic.is_none() {
            transform.section.report.add(Problem {
                code: "plan.unused_transform",
                message: format!("nobody reads the transform `{name}`, so it would never run"),
                span: transform.section.span.clone(),
                expected: "expected in the `inputs` of a sink or transform".to_owned(),
                help: Some("give it a `topic` if its output is for others, or remove it".to_owned()),
            });
        }
    }
}

/// The topics of a materialised transform by port; `None` if it is fused, or wrong (reported).
fn port_topics(
    document: &Document,
    draft: &Draft<'_>,
    references: &References,
    index: usize,
    transform: &TransformDraft<'_>,
) -> Option<PortTopics> {
    let node = transform.topic?;
    let section = &transform.section;
    let written = transform.inputs.as_ref().map_or(0, Vec::len);
    let known = graph::template_variables(draft, references, &references.of_transforms[index], written);
    let names =
        draft::believed(known.as_ref(), &[Some(node), transform.topics].into_iter().flatten().collect::<Vec<_>>());
    let topic = draft::topic_template(document, section, "topic", node, &names);
    let ports = transform.started.as_ref().map(|started| started.ports.as_slice());
    let known: Option<Vec<&str>> = ports.map(|ports| ports.iter().skip(1).map(String::as_str).collect());
    let called = format!("the transform `{}`", transform.key.name);
    let given = draft::given_topics(document, section, &called, transform.topics, known.as_deref(), &names);
    let topic = topic?;
    let template_variables: Vec<&str> = names.iter().copied().collect();
    let others = ports?.iter().skip(1).map(|port| match given.iter().find(|(name, _)| name == port) {
        Some((_, template)) => template.clone(),
        None => Template::parse(&format!("{}.{port}", topic.source()), &template_variables).ok(),
    });
    std::iter::once(Some(topic.clone())).chain(others).collect()
}

/// `references` are needed to know what may be used in its templates; in a cycle that cannot be known.
fn configure_sink(
    draft: &Draft<'_>,
    references: Option<&References>,
    index: usize,
    registry: &Registry,
) -> Option<Box<dyn SinkSpec>> {
    let sink = &draft.sinks[index];
    let connector = registry.sink(sink.connector?)?;
    let known = references.and_then(|references| {
        graph::template_variables(draft, references, &references.of_sinks[index], sink.inputs.len().max(1))
    });
    let names: Vec<&str> = match &known {
        Some(known) => known.iter().copied().collect(),
        None => draft::mentioned_in(sink.section.table).into_iter().collect(),
    };
    connector.configure(&sink.section, &names)
}

/// Puts a pipeline together; `None` if a part is missing, which has been reported.
fn build(document: &Document, graph: &Graph<'_, '_>, sink_specs: Vec<Option<Box<dyn SinkSpec>>>) -> Option<Pipeline> {
    let draft = graph.draft;
    let mut sources = Vec::new();
    for (source, applied) in draft.sources.iter().zip(&graph.references.of_sources) {
        sources.push(SourcePlan {
            name: source.key.name.clone(),
            connector: source.connector,
            spec: source.spec.clone()?,
            options: Options::of(&source.section),
            topic: source.topic.clone()?,
            port_topics: source
                .port_topics
                .iter()
                .map(|(port, topic)| Some((*port, topic.clone()?)))
                .collect::<Option<_>>()?,
            partitions: source.partitions,
            apply: applied.iter().map(|transform| graph.step(*transform)).collect::<Option<_>>()?,
            on_error: source.on_error,
            commit_interval: source.commit_interval,
        });
    }
    let mut transforms = Vec::new();
    for (index, transform) in draft.transforms.iter().enumerate() {
        let Some((topic, others)) = graph.topics[index].as_ref().and_then(|topics| topics.split_first()) else {
            continue;
        };
        let port_topics = others.iter().zip(1..).map(|(topic, port)| (port, topic.clone())).collect();
        transforms.push(TransformPlan {
            name: transform.key.name.clone(),
            inputs: graph.inputs(&graph.references.of_transforms[index])?,
            step: graph.step(index)?,
            topic: topic.clone(),
            port_topics,
            partitions: transform.partitions,
            on_error: transform.on_error,
            tasks: transform.tasks,
        });
    }
    let mut sinks = Vec::new();
    for ((sink, references), spec) in draft.sinks.iter().zip(&graph.references.of_sinks).zip(sink_specs) {
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
        });
    }
    Some(Pipeline {
        name: draft.name.as_ref()?.text.clone(),
        file: document.file.clone(),
        dead_letters: draft.dead_letters.as_ref()?.text.clone(),
        sources,
        transforms,
        sinks,
    })
}
