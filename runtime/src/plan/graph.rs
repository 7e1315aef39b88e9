//! The graph of one file's components: cycles, the template variables that reach a component, and
//! the routes into a stage.

use std::collections::BTreeSet;

use trunkline_connector::Template;
use trunkline_connector::config::{Problem, Report};

use super::fusion::TransformMode;
use super::inputs::{Reference, References, Target};
use super::parsed::{ParsedPipeline, ParsedTransform};
use super::{Branch, Input, Route, Step, TopicSelector};

/// Reports cycles of transforms, each once, at an input that closes it; `true` if there is one.
pub(super) fn has_cycle(parsed: &ParsedPipeline<'_>, references: &References, report: &Report) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        OnPath,
        Done,
    }
    fn visit(
        at: usize,
        parsed: &ParsedPipeline<'_>,
        references: &References,
        states: &mut [State],
        path: &mut Vec<usize>,
        report: &Report,
    ) {
        states[at] = State::OnPath;
        path.push(at);
        for reference in references.read_by_transform(at) {
            let Target::Transform(next, _) = reference.target else { continue };
            match states[next] {
                State::New => visit(next, parsed, references, states, path, report),
                State::OnPath => {
                    let start = path.iter().position(|node| *node == next).unwrap_or(0);
                    // The path leads from reader to input; records flow the other way.
                    let mut names: Vec<&str> =
                        path[start..].iter().map(|node| parsed.transforms[*node].key.name.as_str()).collect();
                    names.push(&parsed.transforms[next].key.name);
                    names.reverse();
                    report.add(Problem {
                        code: "plan.input_cycle",
                        message: format!("records would circulate for ever: {}", names.join(" -> ")),
                        span: reference.span.clone(),
                        expected: "this input closes the cycle".to_owned(),
                        help: None,
                    });
                }
                State::Done => {}
            }
        }
        path.pop();
        states[at] = State::Done;
    }
    let before = report.len();
    let mut states = vec![State::New; parsed.transforms.len()];
    for index in 0..parsed.transforms.len() {
        if states[index] == State::New {
            visit(index, parsed, references, &mut states, &mut Vec::new(), report);
        }
    }
    report.len() > before
}

/// The template variables that records of these inputs may use; `None` if an input is unknown: a
/// missing or invalid one, or a topic that another program writes. There must be no cycle.
pub(super) fn template_variables(
    parsed: &ParsedPipeline<'_>,
    references: &References,
    inputs: &[Reference],
    written: usize,
) -> Option<BTreeSet<&'static str>> {
    if inputs.len() < written {
        return None;
    }
    let mut names = BTreeSet::new();
    for input in inputs {
        match input.target {
            Target::Source(index, 0) => names.extend(parsed.sources[index].spec.as_ref()?.template_variables()),
            // Records of the other ports carry no template variables.
            Target::Source(..) => {}
            Target::Transform(index, _) => {
                let written = parsed.transforms[index].inputs.as_ref().map_or(0, Vec::len);
                names.extend(template_variables(parsed, references, &references.of_transforms[index], written)?);
            }
            Target::Topic(_) => return None,
        }
    }
    Some(names)
}

/// Topics of a separate transform, by port.
pub(super) type PortTopics = Vec<Template>;

/// A file without problems, from which routes can be built.
pub(super) struct Graph<'g, 'a> {
    pub(super) parsed: &'g ParsedPipeline<'a>,
    pub(super) references: &'g References,
    pub(super) modes: &'g [TransformMode],
    /// The topics of separate transforms; `None` for other transforms, and for invalid topics
    /// (reported).
    pub(super) topics: &'g [Option<PortTopics>],
}

/// The path from a topic to an input: fused transforms, each with the port that records leave by.
type Chain = Vec<(usize, u16)>;

impl Graph<'_, '_> {
    /// The transform as a step; `None` if its plugin could not be started.
    pub(super) fn step(&self, transform: usize) -> Option<Step> {
        step(&self.parsed.transforms[transform])
    }

    /// The topics that a stage with these inputs reads, each with its route.
    pub(super) fn inputs(&self, references: &[Reference]) -> Option<Vec<Input>> {
        let mut inputs: Vec<Input> = Vec::new();
        for reference in references {
            for (topics, chain) in self.chains(&reference.target) {
                let at = match inputs.iter().position(|input| input.topics == topics) {
                    Some(at) => at,
                    None => {
                        inputs.push(Input { topics, route: Route::default() });
                        inputs.len() - 1
                    }
                };
                self.insert(&mut inputs[at].route, &chain)?;
            }
        }
        Some(inputs)
    }

    /// The topics that an input stands for.
    pub(super) fn selectors(&self, target: &Target) -> Vec<TopicSelector> {
        self.chains(target).into_iter().map(|(topics, _)| topics).collect()
    }

    fn chains(&self, target: &Target) -> Vec<(TopicSelector, Chain)> {
        match target {
            Target::Topic(topic) => vec![(TopicSelector::Exact(topic.clone()), Chain::new())],
            Target::Source(index, port) => {
                let source = &self.parsed.sources[*index];
                let topic = match usize::from(*port).checked_sub(1) {
                    None => source.topic.as_ref(),
                    Some(at) => source.port_topics.get(at).and_then(|(_, topic)| topic.as_ref()),
                };
                topic.iter().map(|topic| (TopicSelector::of(topic), Chain::new())).collect()
            }
            Target::Transform(index, port) if self.modes[*index] == TransformMode::Separate => {
                let topic = self.topics[*index].as_ref().and_then(|ports| ports.get(usize::from(*port)));
                topic.map(|topic| (TopicSelector::of(topic), Chain::new())).into_iter().collect()
            }
            Target::Transform(index, port) => {
                let mut chains = Vec::new();
                for input in &self.references.of_transforms[*index] {
                    for (topics, mut chain) in self.chains(&input.target) {
                        chain.push((*index, *port));
                        chains.push((topics, chain));
                    }
                }
                chains
            }
        }
    }

    /// Adds a chain to a route; chains share their common prefix.
    fn insert(&self, route: &mut Route, chain: &[(usize, u16)]) -> Option<()> {
        let Some(((transform, port), rest)) = chain.split_first() else {
            route.deliver = true;
            return Some(());
        };
        let name = &self.parsed.transforms[*transform].key.name;
        let at = match route.branches.iter().position(|branch| branch.step.component == *name) {
            Some(at) => at,
            None => {
                route.branches.push(Branch { step: self.step(*transform)?, outputs: Vec::new() });
                route.branches.len() - 1
            }
        };
        let outputs = &mut route.branches[at].outputs;
        let output = match outputs.iter().position(|(known, _)| known == port) {
            Some(output) => output,
            None => {
                outputs.push((*port, Route::default()));
                outputs.len() - 1
            }
        };
        self.insert(&mut outputs[output].1, rest)
    }
}

fn step(transform: &ParsedTransform<'_>) -> Option<Step> {
    let started = transform.started.as_ref()?;
    Some(Step {
        component: transform.key.name.clone(),
        plugin: started.plugin.clone(),
        config: started.config.clone(),
        written: started.written.clone(),
        limits: started.limits.clone(),
        on_error: transform.on_error,
        ports: started.ports.clone(),
    })
}
