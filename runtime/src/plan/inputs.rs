//! Resolves the names in `inputs` and `apply` to components, ports and topics.

use std::ops::Range;

use trunkline_connector::config::{Problem, Report, nearest};

use super::names;
use super::parsed::{ParsedPipeline, Spanned};

/// The meaning of an entry of `inputs`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    /// A port of the source with this index.
    Source(usize, u16),
    /// A port of the transform with this index.
    Transform(usize, u16),
    /// A topic, whichever component or program writes it.
    Topic(String),
}

/// An entry of `inputs`.
#[derive(Debug, Clone)]
pub(super) struct Reference {
    pub(super) target: Target,
    pub(super) span: Range<usize>,
}

/// The references of a file, by the index of the component that contains them.
pub(super) struct References {
    pub(super) of_transforms: Vec<Vec<Reference>>,
    /// The tables of transforms.
    pub(super) of_tables: Vec<Option<Reference>>,
    pub(super) of_sinks: Vec<Vec<Reference>>,
    /// Transforms in `apply`, in order.
    pub(super) of_sources: Vec<Vec<usize>>,
    /// Transforms that any component reads or applies, validly or not.
    pub(super) used: Vec<bool>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Source(usize),
    Transform(usize),
    Sink,
    /// Named in the file; its contents are unknown.
    Malformed,
}

impl References {
    /// The inputs of a transform, and its table.
    pub(super) fn read_by_transform(&self, index: usize) -> impl Iterator<Item = &Reference> {
        self.of_transforms[index].iter().chain(&self.of_tables[index])
    }
}

/// Resolves all inputs and applied transforms, and reports duplicate names of components.
pub(super) fn resolve(parsed: &ParsedPipeline<'_>, report: &Report) -> References {
    let names = namespace(parsed, report);
    let mut resolver = Resolver { parsed, names, used: vec![false; parsed.transforms.len()], report };
    let of_transforms = parsed
        .transforms
        .iter()
        .map(|transform| resolver.inputs(transform.inputs.as_deref().unwrap_or_default()))
        .collect();
    let of_tables = parsed.transforms.iter().map(|transform| {
        let table = transform.table.as_ref()?;
        Some(Reference { target: resolver.target(table)?, span: table.span.clone() })
    });
    let of_tables = of_tables.collect();
    let of_sinks = parsed.sinks.iter().map(|sink| resolver.inputs(&sink.inputs)).collect();
    let of_sources = parsed
        .sources
        .iter()
        .map(|source| source.apply.iter().filter_map(|name| resolver.applied(name)).collect())
        .collect();
    References { of_transforms, of_tables, of_sinks, of_sources, used: resolver.used }
}

/// Sources, transforms and sinks share one namespace.
fn namespace<'p>(parsed: &'p ParsedPipeline<'_>, report: &Report) -> Vec<(&'p str, Kind)> {
    let sources = parsed.sources.iter().enumerate().map(|(index, source)| (source.key, Kind::Source(index)));
    let transforms =
        parsed.transforms.iter().enumerate().map(|(index, transform)| (transform.key, Kind::Transform(index)));
    let sinks = parsed.sinks.iter().map(|sink| (sink.key, Kind::Sink));
    let malformed = parsed.malformed.iter().map(|key| (*key, Kind::Malformed));
    let mut keys: Vec<_> = sources.chain(transforms).chain(sinks).chain(malformed).collect();
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

struct Resolver<'r, 'a> {
    parsed: &'r ParsedPipeline<'a>,
    names: Vec<(&'r str, Kind)>,
    used: Vec<bool>,
    report: &'r Report,
}

impl Resolver<'_, '_> {
    fn inputs(&mut self, inputs: &[Spanned<String>]) -> Vec<Reference> {
        let mut references: Vec<Reference> = Vec::new();
        for input in inputs {
            let Some(target) = self.target(input) else { continue };
            if references.iter().any(|earlier| earlier.target == target) {
                let message = format!("the input `{}` is listed twice", input.value);
                self.problem("plan.duplicate_input", input, message, "expected each input once".to_owned(), None);
            }
            references.push(Reference { target, span: input.span.clone() });
        }
        references
    }

    /// The component, port or topic that an input names; `None` if it is invalid (reported).
    fn target(&mut self, input: &Spanned<String>) -> Option<Target> {
        if let Some(topic) = input.value.strip_prefix("topic:") {
            return self.topic(input, topic);
        }
        let (name, port) = match input.value.split_once('.') {
            Some((name, port)) => (name, Some(port)),
            None => (input.value.as_str(), None),
        };
        match self.kind(name) {
            Some(Kind::Malformed) => None,
            Some(Kind::Source(index)) => self.source_port(input, index, port),
            Some(Kind::Transform(index)) => self.transform_port(input, index, port),
            Some(Kind::Sink) => {
                let message = format!("`{name}` is a sink, which has no output");
                self.problem("plan.not_readable", input, message, "expected a source or a transform".to_owned(), None);
                None
            }
            None => {
                self.unknown_component(input, name);
                None
            }
        }
    }

    fn topic(&self, input: &Spanned<String>, topic: &str) -> Option<Target> {
        let Some(error) = names::topic_error(topic) else { return Some(Target::Topic(topic.to_owned())) };
        let expected = format!("expected {}", names::TOPIC_RULE);
        self.problem("plan.bad_topic", input, format!("the topic `{topic}` {error}"), expected, None);
        None
    }

    fn source_port(&self, input: &Spanned<String>, index: usize, port: Option<&str>) -> Option<Target> {
        let source = &self.parsed.sources[index];
        let Some(port) = port else { return Some(Target::Source(index, 0)) };
        // The ports depend on the source's options.
        source.spec.as_ref()?;
        let known: Vec<&str> = source.port_topics.iter().map(|(port, _)| *port).collect();
        let number = known.iter().position(|known| *known == port).and_then(|at| u16::try_from(at + 1).ok());
        if number.is_none() {
            let name = &source.key.name;
            let message = match known.is_empty() {
                true => format!("the source `{name}` has no ports"),
                false => format!("the source `{name}` has no port `{port}`"),
            };
            let expected = match nearest(port, &known) {
                Some(meant) => format!("did you mean `{name}.{meant}`?"),
                None => format!("expected `{name}`"),
            };
            let help = (!known.is_empty()).then(|| format!("its ports: {}", known.join(", ")));
            self.problem("plan.unknown_port", input, message, expected, help);
        }
        number.map(|number| Target::Source(index, number))
    }

    fn transform_port(&mut self, input: &Spanned<String>, index: usize, port: Option<&str>) -> Option<Target> {
        self.used[index] = true;
        let transform = &self.parsed.transforms[index];
        let name = &transform.key.name;
        if transform.inputs.is_none() && transform.misspells_inputs {
            // The unknown key is the problem.
            return None;
        }
        if transform.inputs.is_none() {
            let message = format!("the transform `{name}` has no `inputs`, so it has no output to read");
            let help = "give it `inputs`, or keep it in a source's `apply` and read that source".to_owned();
            self.problem(
                "plan.not_readable",
                input,
                message,
                "expected a component with output".to_owned(),
                Some(help),
            );
            return None;
        }
        let ports = &transform.started.as_ref()?.ports;
        let Some(port) = port else { return Some(Target::Transform(index, 0)) };
        let number = ports.iter().position(|known| known == port).and_then(|at| u16::try_from(at).ok());
        if number.is_none() {
            let known: Vec<&str> = ports.iter().map(String::as_str).collect();
            let expected = match nearest(port, &known) {
                Some(meant) => format!("did you mean `{name}.{meant}`?"),
                None => "expected one of its ports".to_owned(),
            };
            let message = format!("the transform `{name}` has no port `{port}`");
            let help = Some(format!("its ports: {}", known.join(", ")));
            self.problem("plan.unknown_port", input, message, expected, help);
        }
        number.map(|number| Target::Transform(index, number))
    }

    fn unknown_component(&mut self, input: &Spanned<String>, name: &str) {
        let readable: Vec<&str> =
            self.names.iter().filter(|(_, kind)| *kind != Kind::Sink).map(|(name, _)| *name).collect();
        let expected = match nearest(name, &readable) {
            Some(meant) => {
                self.mark_as_used(meant);
                format!("did you mean `{meant}`?")
            }
            None => "expected a component, `component.port` or `topic:NAME`".to_owned(),
        };
        let help = match readable.is_empty() {
            true => "this file has no sources or transforms".to_owned(),
            false => format!("components to read: {}", readable.join(", ")),
        };
        self.problem("plan.missing_input", input, format!("there is no component `{name}`"), expected, Some(help));
    }

    /// A transform in `apply`, which runs in the source's stage; `None` if it cannot run there
    /// (reported).
    fn applied(&mut self, name: &Spanned<String>) -> Option<usize> {
        let text = name.value.as_str();
        let problem = |this: &Self, message: String, expected: String, help: Option<&str>| {
            this.problem("plan.bad_apply", name, message, expected, help.map(str::to_owned));
        };
        let index = match self.kind(text) {
            Some(Kind::Transform(index)) => index,
            Some(Kind::Malformed) => return None,
            Some(Kind::Source(_) | Kind::Sink) => {
                problem(self, format!("`{text}` is not a transform"), "expected a transform".to_owned(), None);
                return None;
            }
            None => {
                let transforms: Vec<&str> =
                    self.parsed.transforms.iter().map(|transform| transform.key.name.as_str()).collect();
                let expected = match nearest(text, &transforms) {
                    Some(meant) => {
                        self.mark_as_used(meant);
                        format!("did you mean `{meant}`?")
                    }
                    None => "expected a transform of this file".to_owned(),
                };
                problem(self, format!("there is no transform `{text}`"), expected, None);
                return None;
            }
        };
        self.used[index] = true;
        let transform = &self.parsed.transforms[index];
        let rule =
            "a transform that a source applies runs before the source's topic: it has no `inputs` and no `topic`";
        for (option, is_set) in [("`inputs`", transform.inputs.is_some()), ("a `topic`", transform.topic.is_some())] {
            if is_set {
                let message = format!("the transform `{text}` has {option}, so no source can apply it");
                problem(self, message, format!("expected a transform without {option}"), Some(rule));
                return None;
            }
        }
        let ports = &transform.started.as_ref()?.ports;
        if ports.len() > 1 {
            problem(
                self,
                format!("the transform `{text}` has the ports {}, and a source writes one topic", ports.join(", ")),
                "expected a transform with one output".to_owned(),
                Some("give it `inputs` and read its ports by name"),
            );
            return None;
        }
        Some(index)
    }

    fn kind(&self, name: &str) -> Option<Kind> {
        self.names.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }

    /// A transform that the author meant is not also reported as unused: one mistake, one problem.
    fn mark_as_used(&mut self, name: &str) {
        let index = self.parsed.transforms.iter().position(|transform| transform.key.name == name);
        if let Some(index) = index {
            self.used[index] = true;
        }
    }

    fn problem(
        &self,
        code: &'static str,
        input: &Spanned<String>,
        message: String,
        expected: String,
        help: Option<String>,
    ) {
        self.report.add(Problem { code, message, span: input.span.clone(), expected, help });
    }
}
