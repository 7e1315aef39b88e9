//! The graph of one file's components: cycles, which names reach a component, and the routes into a stage.

use std::collections::BTreeSet;

use trunkline_connector::Template;
use trunkline_connector::config::{Problem, Report};

use super::draft::{Draft, TransformDraft};
use super::inputs::{Reference, References, Target};
use super::{Branch, Input, Route, Step, TopicSelector};

/// Reports cycles of transforms; `true` if there is one. Each is reported once, at an input that closes it.
pub(super) fn has_cycle(draft: &Draft<'_>, references: &References, report: &Report) -> bool {
    #[derive(Clone, Copy, PartialEq)]
    enum State {
        New,
        OnPath,
        Done,
    }
    fn visit(
        at: usize,
        draft: &Draft<'_>,
        references: &References,
        states: &mut [State],
        path: &mut Vec<usize>,
        report: &Report,
    ) {
        states[at] = State::OnPath;
        path.push(at);
        for reference in &references.of_transforms[at] {
            let Target::Transform(next, _) = reference.target else { continue };
            match states[next] {
                State::New => visit(next, draft, references, states, path, report),
                State::OnPath => {
                    let start = path.iter().position(|node| *node == next).unwrap_or(0);
                    // The path goes from reader to what is read; records go the other way.
                    let mut names: Vec<&str> =
                        path[start..].iter().map(|node| draft.transforms[*node].key.name.as_str()).collect();
                    names.push(&draft.transforms[next].key.name);
                    names.reverse();
                    report.add(Problem {
                        code: "plan.input_cycle",
                        message: format!("records would go round for ever: {}", names.join(" -> ")),
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
    let mut states = vec![State::New; draft.transforms.len()];
    for index in 0..draft.transforms.len() {
        if states[index] == State::New {
            visit(index, draft, references, &mut states, &mut Vec::new(), report);
        }
    }
    report.len() > before
}

/// The names after `@` that records of these inputs may be addressed by; `None` if some of them are not known: an input that is
/// missing or wrong, or a topic that somebody else writes. There must be no cycle.
pub(super) fn template_variables(
    draft: &Draft<'_>,
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
            Target::Source(index, 0) => names.extend(draft.sources[index].spec.as_ref()?.template_variables()),
            // What its names are of is not told by records of its other ports.
            Target::Source(..) => {}
            Target::Transform(index, _) => {
                let written = draft.transforms[index].inputs.as_ref().map_or(0, Vec::len);
                names.extend(template_variables(draft, references, &references.of_transforms[index], written)?);
            }
            Target::Topic(_) => return None,
        }
    }
    Some(names)
}

/// Topics of a materialised transform, by port.
pub(super) type PortTopics = Vec<Template>;

/// A file that has no problems of its own, so that routes can be made of it.
pub(super) struct Graph<'g, 'a> {
    pub(super) draft: &'g Draft<'a>,
    pub(super) references: &'g References,
    /// `None` for fused transforms.
    pub(super) topics: &'g [Option<PortTopics>],
}

/// The way from a topic to an input: fused transforms, each with the port to leave by.
type Chain = Vec<(usize, u16)>;

impl Graph<'_, '_> {
    /// The transform as a step; `None` if its plugin was not started.
    pub(super) fn step(&self, transform: usize) -> Option<Step> {
        step(&self.draft.transforms[transform])
    }

    /// What a stage with these inputs reads.
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

    /// The topics that an input means.
    pub(super) fn selectors(&self, target: &Target) -> Vec<TopicSelector> {
        self.chains(target).into_iter().map(|(topics, _)| topics).collect()
    }

    fn chains(&self, target: &Target) -> Vec<(TopicSelector, Chain)> {
        match target {
            Target::Topic(topic) => vec![(TopicSelector::Exact(topic.clone()), Chain::new())],
            Target::Source(index, port) => {
                let source = &self.draft.sources[*index];
                let topic = match usize::from(*port).checked_sub(1) {
                    None => source.topic.as_ref(),
                    Some(at) => source.port_topics.get(at).and_then(|(_, topic)| topic.as_ref()),
                };
                topic.iter().map(|topic| (TopicSelector::of(topic), Chain::new())).collect()
            }
            Target::Transform(index, port) => match &self.topics[*index] {
                Some(ports) => ports
                    .get(usize::from(*port))
                    .map(|topic| (TopicSelector::of(topic), Chain::new()))
                    .into_iter()
                    .collect(),
                None => {
                    let mut chains = Vec::new();
                    for input in &self.references.of_transforms[*index] {
                        for (topics, mut chain) in self.chains(&input.target) {
                            chain.push((*index, *port));
                            chains.push((topics, chain));
                        }
                    }
                    chains
                }
            },
        }
    }

    /// Adds a chain to a tree, sharing what is there.
    fn insert(&self, route: &mut Route, chain: &[(usize, u16)]) -> Option<()> {
        let Some(((transform, port), rest)) = chain.split_first() else {
            route.deliver = true;
            return Some(());
        };
        let name = &self.draft.transforms[*transform].key.name;
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

fn step(transform: &TransformDraft<'_>) -> Option<Step> {
    let started = transform.started.as_ref()?;
    Some(Step {
        component: transform.key.name.clone(),
        plugin: started.plugin.clone(),
        config: started.config.clone(),
        limits: started.limits.clone(),
        on_error: transform.on_error,
        ports: started.ports.clone(),
    })
}
