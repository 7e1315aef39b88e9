//! The rights in Kafka that a worker needs for its pipelines, and no others.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_connector::{Placement, Template};

use crate::checkpoint::{CHECKPOINTS, INTENTS, SCHEMAS, TASKS, state_topic};
use crate::config::Settings;
use crate::plan::{Input, Pipeline, TopicSelector};
use crate::stage::component_name;

/// The rights, by resource.
pub type Rights = BTreeMap<Resource, BTreeSet<Operation>>;

/// What a right applies to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Resource {
    /// Its kind.
    pub kind: ResourceKind,
    /// Its name, or the start of its name.
    pub name: String,
    /// The right applies to all names that start with `name`.
    pub is_prefix: bool,
}

/// The kinds of resources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ResourceKind {
    /// A topic.
    Topic,
    /// A consumer group.
    Group,
    /// A transactional id.
    TransactionalId,
}

/// The operations. Read and Write imply Describe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// Create topics.
    Create,
    /// Read records, or join a group and commit its offsets.
    Read,
    /// Write records, or run transactions.
    Write,
}

/// The rights that `pipelines` need with these settings.
pub fn rights_of(pipelines: &[Pipeline], settings: &Settings) -> Rights {
    let mut list = List { rights: Rights::new(), create: settings.topics.create };
    let cluster = settings.cluster_name();
    for topic in [CHECKPOINTS, INTENTS, SCHEMAS] {
        list.read_topic(&format!("{}{topic}", settings.prefix), false);
        list.write_topic(&format!("{}{topic}", settings.prefix), false);
    }
    for pipeline in pipelines {
        let component = |name: &str| component_name(&cluster, &pipeline.name, name);
        list.write_topic(&pipeline.dead_letters, false);
        for source in &pipeline.sources {
            source.topics().for_each(|topic| list.write_template(topic));
            let tasks = format!("{}{TASKS}", settings.prefix);
            list.read_topic(&tasks, false);
            list.create_topic(&tasks, false);
            let id = component(&source.name);
            match source.spec.placement() {
                Placement::Anywhere => {
                    list.add(ResourceKind::Group, &format!("{cluster}.tasks"), false, Operation::Read);
                    list.add(ResourceKind::TransactionalId, &id, false, Operation::Write);
                }
                // The names end with the name of the machine.
                Placement::EveryNode => {
                    list.add(ResourceKind::Group, &format!("{cluster}.tasks."), true, Operation::Read);
                    list.add(ResourceKind::TransactionalId, &format!("{id}."), true, Operation::Write);
                }
            }
        }
        for transform in &pipeline.transforms {
            transform.topics().for_each(|topic| list.write_template(topic));
            list.member(&component(&transform.name), &transform.inputs);
            if let Some(table) = &transform.table {
                list.read_topic(&table.topic, false);
            }
            if transform.state.is_some() {
                let topic = format!("{}{}", settings.prefix, state_topic(&component(&transform.name)));
                list.read_topic(&topic, false);
                list.write_topic(&topic, false);
            }
        }
        for sink in &pipeline.sinks {
            list.member(&component(&sink.name), &sink.inputs);
        }
    }
    list.rights
}

struct List {
    rights: Rights,
    /// Whether missing topics are created.
    create: bool,
}

impl List {
    fn add(&mut self, kind: ResourceKind, name: &str, is_prefix: bool, operation: Operation) {
        let resource = Resource { kind, name: name.to_owned(), is_prefix };
        self.rights.entry(resource).or_default().insert(operation);
    }

    fn create_topic(&mut self, name: &str, is_prefix: bool) {
        if self.create {
            self.add(ResourceKind::Topic, name, is_prefix, Operation::Create);
        }
    }

    fn write_topic(&mut self, name: &str, is_prefix: bool) {
        self.create_topic(name, is_prefix);
        self.add(ResourceKind::Topic, name, is_prefix, Operation::Write);
    }

    fn read_topic(&mut self, name: &str, is_prefix: bool) {
        self.add(ResourceKind::Topic, name, is_prefix, Operation::Read);
    }

    fn write_template(&mut self, topic: &Template) {
        match topic.constant() {
            Some(name) => self.write_topic(name, false),
            None => self.write_topic(&literal_start(&topic.pattern()), true),
        }
    }

    /// A transform or sink: its group, its inputs, and the transactional ids of its members, which
    /// end with the worker's id.
    fn member(&mut self, component: &str, inputs: &[Input]) {
        self.add(ResourceKind::Group, component, false, Operation::Read);
        self.add(ResourceKind::TransactionalId, &format!("{component}."), true, Operation::Write);
        for input in inputs {
            match &input.topics {
                TopicSelector::Exact(name) => self.read_topic(name, false),
                TopicSelector::Pattern(pattern) => self.read_topic(&literal_start(pattern), true),
            }
        }
    }
}

/// The start that all names which match a pattern have in common.
fn literal_start(pattern: &str) -> String {
    let mut start = String::new();
    let mut characters = pattern.trim_start_matches('^').chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => start.extend(characters.next()),
            '.' | '*' | '+' | '?' | '(' | ')' | '[' | ']' | '{' | '}' | '|' | '$' => break,
            _ => start.push(character),
        }
    }
    start
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_reduced_to_their_literal_start() {
        assert_eq!(literal_start(r"^shop-changes\..+\..+$"), "shop-changes.");
        assert_eq!(literal_start("^web$"), "web");
        assert_eq!(literal_start(".+"), "");
    }
}
