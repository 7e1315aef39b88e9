//! Who reads whom: the names in `inputs` and `apply`, resolved.

use std::ops::Range;

use trunkline_connector::config::{Problem, Report, nearest};

use super::draft::{Draft, Located};
use super::names;

/// What an entry of `inputs` means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A port of a source, by its index.
    Source(usize, u16),
    /// A port of a transform, by its index.
    Transform(usize, u16),
    /// A topic, whoever writes it.
    Topic(String),
}

/// An entry of `inputs`.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    pub(super) target: Target,
    pub(super) span: Range<usize>,
}

/// A file's references, by the index of the component that has them.
pub(super) struct References {
    pub(super) of_transforms: Vec<Vec<Reference>>,
    pub(super) of_sinks: Vec<Vec<Reference>>,
    /// Transforms that a source applies, in order.
    pub(super) of_sources: Vec<Vec<usize>>,
    /// Transforms that something reads or applies, rightly or not.
    pub(super) used: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Source(usize),
    Transform(usize),
    Sink,
    /// Named in the file, but nothing is known of it.
    Broken,
}

/// Resolves all inputs and applied transforms, and reports names that are there twice.
pub(super) fn resolve(draft: &Draft<'_>, report: &Report) -> References {
    let names = namespace(draft, report);
    let mut used = vec![false; draft.transforms.len()];
    let mut all = |inputs: &[Located]| -> Vec<Reference> {
        let mut references: Vec<Reference> = Vec::new();
        for input in inputs {
            let Some(target) = target(draft, &names, input, &mut used, report) else { continue };
            if references.iter().any(|earlier| earlier.target == target) {
                report.add(Problem {
                    code: "plan.duplicate_input",
                    message: format!("`{}` is an input a second time", input.text),
                    span: input.span.clone(),
                    expected: "expected each input once".to_owned(),
                    help: None,
                });
            }
            references.push(Reference { target, span: input.span.clone() });
        }
        references
    };
    let of_transforms =
        draft.transforms.iter().map(|transform| all(transform.inputs.as_deref().unwrap_or_default())).collect();
    let of_sinks = draft.sinks.iter().map(|sink| all(&sink.inputs)).collect();
    let mut applied_to = |names_applied: &[Located]| -> Vec<usize> {
        names_applied.iter().filter_map(|name| applied(draft, &names, name, &mut used, report)).collect()
    };
    let of_sources = draft.sources.iter().map(|source| applied_to(&source.apply)).collect();
    References { of_transforms, of_sinks, of_sources, used }
}

/// Sources, transforms and sinks share one namespace.
fn namespace<'d>(draft: &'d Draft<'_>, report: &Report) -> Vec<(&'d str, Kind)> {
    let sources = draft.sources.iter().enumerate().map(|(index, source)| (source.key, Kind::Source(index)));
    let transforms =
        draft.transforms.iter().enumerate().map(|(index, transform)| (transform.key, Kind::Transform(index)));
    let sinks = draft.sinks.iter().map(|sink| (sink.key, Kind::Sink));
    let broken = draft.broken.iter().map(|key| (*key, Kind::Broken));
    let mut keys: Vec<_> = sources.chain(transforms).chain(sinks).chain(broken).collect();
    keys.sort_by_key(|(key, _)| key.span.start);
    let mut names: Vec<(&str, Kind)> = Vec::new();
    for (key, kind) in keys {
        if names.iter().any(|(name, _)| *name == key.name) {
            report.add(Problem {
                code: "plan.duplicate_component",
                message: format!("the pipeline has a component `{}` already", key.name),
                span: key.span.clone(),
                expected: "expected another name".to_owned(),
                help: Some("sources, transforms and sinks share one set of names".to_owned()),
            });
        } else {
            names.push((&key.name, kind));
        }
    }
    names
}

fn target(
    draft: &Draft<'_>,
    names: &[(&str, Kind)],
    input: &Located,
    used: &mut [bool],
    report: &Report,
) -> Option<Target> {
    let problem = |code: &'static str, message: String, expected: String, help: Option<String>| {
        report.add(Problem { code, message, span: input.span.clone(), expected, help });
    };
    if let Some(topic) = input.text.strip_prefix("topic:") {
        return match names::wrong_with_topic(topic) {
            Some(wrong) => {
                let expected = format!("expected {}", names::TOPIC_RULE);
                problem("plan.bad_topic", format!("the topic `{topic}` {wrong}"), expected, None);
                None
            }
            None => Some(Target::Topic(topic.to_owned())),
        };
    }
    let (name, port) = match input.text.split_once('.') {
        Some((name, port)) => (name, Some(port)),
        None => (input.text.as_str(), None),
    };
    match names.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind) {
        Some(Kind::Broken) => None,
        Some(Kind::Source(index)) => match port {
            None => Some(Target::Source(index, 0)),
            Some(port) => {
                let source = &draft.sources[index];
                // Which ports it has follows from its options.
                source.spec.as_ref()?;
                let known: Vec<&str> = source.port_topics.iter().map(|(port, _)| *port).collect();
                let at = known.iter().position(|known| *known == port).and_then(|at| u16::try_from(at + 1).ok());
                if at.is_none() {
                    let message = match known.is_empty() {
                        true => format!("the source `{name}` has no ports"),
                        false => format!("the source `{name}` has no port `{port}`"),
                    };
                    let expected = match nearest(port, &known) {
                        Some(meant) => format!("did you mean `{name}.{meant}`?"),
                        None => format!("expected `{name}`"),
                    };
                    let help = (!known.is_empty()).then(|| format!("its ports: {}", known.join(", ")));
                    problem("plan.unknown_port", message, expected, help);
                }
                at.map(|at| Target::Source(index, at))
            }
        },
        Some(Kind::Transform(index)) => {
            used[index] = true;
            let transform = &draft.transforms[index];
            if transform.inputs.is_none() {
                let message = format!("the transform `{name}` has no inputs of its own, so nothing comes out of it");
                let help = "give it `inputs`, or leave it to a source's `apply` and read that source".to_owned();
                problem("plan.not_readable", message, "expected a component with output".to_owned(), Some(help));
                return None;
            }
            let ports = &transform.started.as_ref()?.ports;
            let Some(port) = port else { return Some(Target::Transform(index, 0)) };
            match ports.iter().position(|known| known == port).and_then(|at| u16::try_from(at).ok()) {
                Some(at) => Some(Target::Transform(index, at)),
                None => {
                    let known: Vec<&str> = ports.iter().map(String::as_str).collect();
                    let expected = match nearest(port, &known) {
                        Some(meant) => format!("did you mean `{name}.{meant}`?"),
                        None => "expected one of its ports".to_owned(),
                    };
                    let message = format!("the transform `{name}` has no port `{port}`");
                    problem("plan.unknown_port", message, expected, Some(format!("its ports: {}", known.join(", "))));
                    None
                }
            }
        }
        Some(Kind::Sink) => {
            let message = format!("`{name}` is a sink: nothing comes out of it");
            problem("plan.not_readable", message, "expected a source or a transform".to_owned(), None);
            None
        }
        None => {
            let readable: Vec<&str> =
                names.iter().filter(|(_, kind)| *kind != Kind::Sink).map(|(name, _)| *name).collect();
            let expected = match nearest(name, &readable) {
                Some(meant) => {
                    mark_as_used(draft, meant, used);
                    format!("did you mean `{meant}`?")
                }
                None => "expected a component, `component.port` or `topic:NAME`".to_owned(),
            };
            let help = match readable.is_empty() {
                true => "this file has no sources or transforms".to_owned(),
                false => format!("components to read: {}", readable.join(", ")),
            };
            problem("plan.missing_input", format!("there is no component `{name}`"), expected, Some(help));
            None
        }
    }
}

/// A transform that was meant is not unused: that would be a second error about one slip.
fn mark_as_used(draft: &Draft<'_>, name: &str, used: &mut [bool]) {
    if let Some(index) = draft.transforms.iter().position(|transform| transform.key.name == name) {
        used[index] = true;
    }
}

/// A transform that a source names in `apply`: one that runs in the source's own stage.
fn applied(
    draft: &Draft<'_>,
    names: &[(&str, Kind)],
    name: &Located,
    used: &mut [bool],
    report: &Report,
) -> Option<usize> {
    let problem = |message: String, expected: String, help: Option<&str>| {
        let help = help.map(str::to_owned);
        report.add(Problem { code: "plan.bad_apply", message, span: name.span.clone(), expected, help });
    };
    let text = &name.text;
    let index = match names.iter().find(|(known, _)| known == text).map(|(_, kind)| *kind) {
        Some(Kind::Transform(index)) => index,
        Some(Kind::Broken) => return None,
        Some(Kind::Source(_) | Kind::Sink) => {
            problem(format!("`{text}` is no transform"), "expected a transform".to_owned(), None);
            return None;
        }
        None => {
            let transforms: Vec<&str> = draft.transforms.iter().map(|transform| transform.key.name.as_str()).collect();
            let expected = match nearest(text, &transforms) {
                Some(meant) => {
                    mark_as_used(draft, meant, used);
                    format!("did you mean `{meant}`?")
                }
                None => "expected a transform of this file".to_owned(),
            };
            problem(format!("there is no transform `{text}`"), expected, None);
            return None;
        }
    };
    used[index] = true;
    let transform = &draft.transforms[index];
    let own_stage =
        "a transform that a source applies runs before the source's topic: it has no `inputs` and no `topic`";
    if transform.inputs.is_some() {
        problem(
            format!("the transform `{text}` has inputs, so no source can apply it"),
            "expected a transform without `inputs`".to_owned(),
            Some(own_stage),
        );
        return None;
    }
    if transform.topic.is_some() {
        problem(
            format!("the transform `{text}` has a topic of its own, so no source can apply it"),
            "expected a transform without `topic`".to_owned(),
            Some(own_stage),
        );
        return None;
    }
    let ports = &transform.started.as_ref()?.ports;
    if ports.len() > 1 {
        problem(
            format!("the transform `{text}` has the ports {}, and a source writes one topic", ports.join(", ")),
            "expected a transform with one output".to_owned(),
            Some("give it `inputs` and read its ports by name"),
        );
        return None;
    }
    Some(index)
}
