//! Decides where each transform runs: before a source's topic, inside the stage that reads it, or
//! as a stage.
//!
//! A fused transform runs in every stage that reads it. With one reading stage it runs once. With
//! several, each record would be transformed, counted and dead-lettered several times, so such a
//! transform becomes a stage with its own topics. So does a transform whose plugin keeps state: the
//! changes of the state are committed in the transaction of the stage.

use std::collections::BTreeSet;

use trunkline_connector::config::Problem;

use super::inputs::{Reference, References, Target};
use super::parsed::{ParsedPipeline, ParsedTransform};

/// Where a transform runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TransformMode {
    /// In the stage of the source that applies it, before the topic.
    Applied,
    /// In the one stage that reads it.
    Fused,
    /// In a stage with its own topics (materialised).
    Separate,
}

/// A stage that reads transforms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Reader {
    Transform(usize),
    Sink(usize),
}

/// The mode of each transform, by index. Reports contradictions. The transforms must have no cycle.
pub(super) fn modes(parsed: &ParsedPipeline<'_>, references: &References) -> Vec<TransformMode> {
    let mut fusion = Fusion {
        parsed,
        direct: direct_readers(parsed.transforms.len(), references),
        tables: tables(references),
        decided: vec![None; parsed.transforms.len()],
    };
    let modes: Vec<TransformMode> = (0..parsed.transforms.len()).map(|index| fusion.decide(index).0).collect();
    for (transform, mode) in parsed.transforms.iter().zip(&modes) {
        report_ineffective(transform, *mode);
        report_state(transform, *mode);
    }
    modes
}

/// Reports state in a place that has none, and an option for state that a plugin does not keep.
fn report_state(transform: &ParsedTransform<'_>, mode: TransformMode) {
    let (section, name) = (&transform.section, &transform.key.name);
    if transform.uses_state() && mode == TransformMode::Applied {
        let (what, why) = match transform.reads_table() {
            true => ("reads a table", "a table is kept by a separate stage"),
            false => ("keeps state", "state is committed with the offsets of a topic"),
        };
        section.report.add(Problem {
            code: "plan.state_needs_stage",
            message: format!("the transform `{name}` has no `inputs`, and its plugin {what}"),
            span: section.span.clone(),
            expected: "expected `inputs = [..]`, which makes it a separate stage".to_owned(),
            help: Some(format!("a source cannot apply it: {why}")),
        });
    }
    let is_known = transform.started.is_some();
    if let Some((key, _)) = section.table.entry("state")
        && is_known
        && !transform.uses_state()
    {
        section.report.add(Problem {
            code: "plan.no_state",
            message: format!("`{}.state` has no effect: the plugin keeps no state", section.path),
            span: key.span.clone(),
            expected: "expected with a plugin that keeps state, such as dedupe.wasm".to_owned(),
            help: None,
        });
    }
}

/// The components that name each transform in their inputs.
fn direct_readers(count: usize, references: &References) -> Vec<Vec<Reader>> {
    let mut readers = vec![Vec::new(); count];
    let mut add = |reader: Reader, inputs: &[Reference]| {
        for input in inputs {
            if let Target::Transform(index, _) = input.target {
                readers[index].push(reader);
            }
        }
    };
    references.of_transforms.iter().enumerate().for_each(|(index, inputs)| add(Reader::Transform(index), inputs));
    references.of_sinks.iter().enumerate().for_each(|(index, inputs)| add(Reader::Sink(index), inputs));
    readers
}

/// The transforms that are read as a table, which is a topic.
fn tables(references: &References) -> BTreeSet<usize> {
    let targets = references.of_tables.iter().flatten().map(|reference| &reference.target);
    let transform = |target: &Target| match target {
        Target::Transform(index, _) => Some(*index),
        Target::Source(..) | Target::Topic(_) => None,
    };
    targets.filter_map(transform).collect()
}

struct Fusion<'f, 'a> {
    parsed: &'f ParsedPipeline<'a>,
    direct: Vec<Vec<Reader>>,
    tables: BTreeSet<usize>,
    decided: Vec<Option<(TransformMode, BTreeSet<Reader>)>>,
}

impl Fusion<'_, '_> {
    /// The mode of a transform, and the stages that read it.
    fn decide(&mut self, index: usize) -> (TransformMode, BTreeSet<Reader>) {
        if let Some(decided) = &self.decided[index] {
            return decided.clone();
        }
        let mut stages = BTreeSet::new();
        for reader in self.direct[index].clone() {
            match reader {
                Reader::Sink(_) => drop(stages.insert(reader)),
                Reader::Transform(at) => match self.decide(at) {
                    (TransformMode::Separate, _) => drop(stages.insert(reader)),
                    // It runs inside its readers.
                    (_, beyond) => stages.extend(beyond),
                },
            }
        }
        let transform = &self.parsed.transforms[index];
        let fuse = transform.fuse.as_ref().map(|fuse| fuse.value);
        let mode = match transform.inputs {
            None => TransformMode::Applied,
            Some(_) if transform.topic.is_some() || fuse == Some(false) || stages.len() > 1 => TransformMode::Separate,
            Some(_) if transform.uses_state() || self.tables.contains(&index) => TransformMode::Separate,
            Some(_) => TransformMode::Fused,
        };
        if mode == TransformMode::Separate && fuse == Some(true) {
            self.report_contradiction(index, &stages);
        }
        self.decided[index] = Some((mode, stages.clone()));
        (mode, stages)
    }

    /// `fuse = true` on a transform that cannot be fused.
    fn report_contradiction(&self, index: usize, stages: &BTreeSet<Reader>) {
        let transform = &self.parsed.transforms[index];
        let Some(fuse) = &transform.fuse else { return };
        let name = &transform.key.name;
        let (message, help) = match transform.topic {
            Some(_) => (
                format!("the transform `{name}` has a `topic`, so it cannot be fused"),
                "a fused transform runs inside the stage that reads it and writes no topic; remove `fuse` or `topic`"
                    .to_owned(),
            ),
            None if transform.uses_state() => (
                format!("the transform `{name}` cannot be fused: its plugin keeps state"),
                "state is committed in the transaction of a separate stage with its own topics; remove `fuse`"
                    .to_owned(),
            ),
            None if self.tables.contains(&index) => (
                format!("the transform `{name}` cannot be fused: it is the table of another transform"),
                "a table is a topic; remove `fuse`".to_owned(),
            ),
            None => {
                let readers: Vec<String> = stages.iter().map(|reader| self.label(*reader)).collect();
                let message = format!("the transform `{name}` cannot be fused: {} read it", readers.join(" and "));
                let help = format!(
                    "fused, it would run {} times, and each record would be transformed, counted and dead-lettered {} \
                     times; remove `fuse`, or give each reader a separate transform",
                    stages.len(),
                    stages.len()
                );
                (message, help)
            }
        };
        transform.section.report.add(Problem {
            code: "plan.cannot_fuse",
            message,
            span: fuse.span.clone(),
            expected: match transform.uses_state() || self.tables.contains(&index) {
                true => "expected `fuse = false`, or no `fuse`".to_owned(),
                false => "expected one reading stage".to_owned(),
            },
            help: Some(help),
        });
    }

    fn label(&self, reader: Reader) -> String {
        match reader {
            Reader::Transform(index) => format!("the transform `{}`", self.parsed.transforms[index].key.name),
            Reader::Sink(index) => format!("the sink `{}`", self.parsed.sinks[index].key.name),
        }
    }
}

/// Reports options of a stage on a transform that is not one.
fn report_ineffective(transform: &ParsedTransform<'_>, mode: TransformMode) {
    let (why, help) = match mode {
        TransformMode::Separate => return,
        // The problem of its `topic` is reported where a source applies it.
        TransformMode::Applied if transform.topic.is_some() => return,
        TransformMode::Fused => (
            "the transform runs inside the one stage that reads it",
            "set `topic` or `fuse = false` to make it a stage with its own topics",
        ),
        TransformMode::Applied => (
            "the transform has no `inputs`: it runs inside the source that applies it",
            "these options belong to a transform with `inputs`",
        ),
    };
    let mut options = vec!["topics", "partitions", "tasks"];
    if mode == TransformMode::Applied {
        options.push("fuse");
    }
    let section = &transform.section;
    for key in options.iter().filter_map(|option| section.table.entry(option)).map(|(key, _)| key) {
        section.report.add(Problem {
            code: "plan.not_materialised",
            message: format!("`{}.{}` has no effect: {why}", section.path, key.name),
            span: key.span.clone(),
            expected: "expected only on a separate stage".to_owned(),
            help: Some(help.to_owned()),
        });
    }
}
