//! The rights in Kafka that a worker needs for its pipelines, and those of commands. A principal
//! needs no others.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_connector::{Placement, Template};

use crate::checkpoint::{AUDIT, CHECKPOINTS, INTENTS, SCHEMAS, TASKS, state_topic};
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

/// What a principal does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Use {
    /// `trunkline run`
    Worker,
    /// `tap`, `trace`, `dlq list`, `dlq show` and `replay --to-stdout`
    Tap,
    /// `pause`, `resume` and `restart`
    Pause,
    /// `offsets`
    Offsets,
    /// `dlq redrive`
    Redrive,
    /// `replay` and `runs`
    Replay,
}

/// The rights that a worker needs for `pipelines` with these settings.
pub fn rights_of(pipelines: &[Pipeline], settings: &Settings) -> Rights {
    rights_for(&[Use::Worker], pipelines, settings)
}

/// The rights that a principal needs who does all of this.
pub fn rights_for(uses: &[Use], pipelines: &[Pipeline], settings: &Settings) -> Rights {
    let mut list = List { rights: Rights::new(), create: settings.topics.create };
    let own = |topic: &str| format!("{}{topic}", settings.prefix);
    let cluster = settings.cluster_name();
    // Each of them is recorded.
    list.write_topic(&own(AUDIT), false);
    for used in uses {
        let state: &[&str] = match used {
            Use::Worker | Use::Replay => &[CHECKPOINTS, INTENTS, SCHEMAS],
            Use::Tap => &[],
            Use::Pause => &[CHECKPOINTS],
            Use::Redrive => &[CHECKPOINTS, SCHEMAS],
            Use::Offsets => &[CHECKPOINTS, INTENTS],
        };
        for topic in state {
            list.read_topic(&own(topic), false);
            // These two uses create the topics that are missing.
            match used {
                Use::Worker | Use::Replay => list.write_topic(&own(topic), false),
                _ => list.add(ResourceKind::Topic, &own(topic), false, Operation::Write),
            }
        }
        match used {
            Use::Worker => list.worker(pipelines, settings),
            Use::Tap => {
                // Which dead letters were redriven.
                list.read_topic(&own(CHECKPOINTS), false);
                pipelines.iter().for_each(|pipeline| list.read_all(pipeline));
            }
            Use::Pause => {}
            Use::Offsets => list.offsets(pipelines, &cluster),
            Use::Redrive => list.redrive(pipelines, &cluster),
            Use::Replay => {
                list.read_topic(&own(TASKS), false);
                list.create_topic(&own(TASKS), false);
                list.replay(pipelines, &cluster);
                if pipelines.iter().flat_map(|pipeline| &pipeline.transforms).any(|plan| plan.state.is_some()) {
                    // The changelogs of runs of transforms.
                    let runs = own(&state_topic(&format!("{cluster}.!replay.")));
                    list.read_topic(&runs, true);
                    list.write_topic(&runs, true);
                }
            }
        }
    }
    list.rights
}

struct List {
    rights: Rights,
    /// Whether missing topics are created.
    create: bool,
}

/// What each use needs.
impl List {
    fn worker(&mut self, pipelines: &[Pipeline], settings: &Settings) {
        let (list, cluster) = (self, settings.cluster_name());
        // Looked up at the start, also without sources.
        let tasks = format!("{}{TASKS}", settings.prefix);
        list.read_topic(&tasks, false);
        list.create_topic(&tasks, false);
        for pipeline in pipelines {
            let component = |name: &str| component_name(&cluster, &pipeline.name, name);
            list.write_topic(&pipeline.dead_letters, false);
            for source in &pipeline.sources {
                source.topics().for_each(|topic| list.write_template(topic));
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
    }

    /// Everything that a pipeline reads or writes.
    fn read_all(&mut self, pipeline: &Pipeline) {
        self.read_topic(&pipeline.dead_letters, false);
        let written = pipeline.sources.iter().flat_map(|source| source.topics());
        for topic in written.chain(pipeline.transforms.iter().flat_map(|transform| transform.topics())) {
            match topic.constant() {
                Some(name) => self.read_topic(name, false),
                None => self.read_topic(&literal_start(&topic.pattern()), true),
            }
        }
        inputs_of(pipeline).for_each(|(_, input)| self.read_input(input));
    }

    fn offsets(&mut self, pipelines: &[Pipeline], cluster: &str) {
        for pipeline in pipelines {
            for (name, input) in inputs_of(pipeline) {
                let component = component_name(cluster, &pipeline.name, name);
                self.add(ResourceKind::Group, &component, false, Operation::Read);
                self.add(ResourceKind::TransactionalId, &format!("{component}.!offsets"), false, Operation::Write);
                self.read_input(input);
            }
        }
    }

    /// Records return to the topics that they came from, or pass the stage that rejected them.
    fn redrive(&mut self, pipelines: &[Pipeline], cluster: &str) {
        for pipeline in pipelines {
            let id = component_name(cluster, &pipeline.name, "!redrive");
            self.add(ResourceKind::TransactionalId, &id, false, Operation::Write);
            self.read_topic(&pipeline.dead_letters, false);
            self.write_topic(&pipeline.dead_letters, false);
            pipeline.sources.iter().flat_map(|source| source.topics()).for_each(|topic| self.write_template(topic));
            for transform in &pipeline.transforms {
                transform.topics().for_each(|topic| self.write_template(topic));
            }
            for (_, input) in inputs_of(pipeline) {
                self.read_input(input);
                let (name, is_prefix) = selected(input);
                self.add(ResourceKind::Topic, &name, is_prefix, Operation::Write);
            }
        }
    }

    fn replay(&mut self, pipelines: &[Pipeline], cluster: &str) {
        self.add(ResourceKind::TransactionalId, &format!("{cluster}.!runs"), false, Operation::Write);
        // The names of a run start with this one.
        let runs = format!("{cluster}.!replay.");
        self.add(ResourceKind::Group, &runs, true, Operation::Read);
        self.add(ResourceKind::TransactionalId, &runs, true, Operation::Write);
        for pipeline in pipelines {
            self.read_topic(&pipeline.dead_letters, false);
            self.write_topic(&pipeline.dead_letters, false);
            inputs_of(pipeline).for_each(|(_, input)| self.read_input(input));
        }
    }
}

/// The inputs of transforms and sinks, each with the name of its component.
fn inputs_of(pipeline: &Pipeline) -> impl Iterator<Item = (&str, &Input)> {
    let transforms = pipeline.transforms.iter().map(|transform| (&transform.name, &transform.inputs));
    let sinks = pipeline.sinks.iter().map(|sink| (&sink.name, &sink.inputs));
    transforms.chain(sinks).flat_map(|(name, inputs)| inputs.iter().map(move |input| (name.as_str(), input)))
}

/// The topic of an input, or what the names of its topics start with.
fn selected(input: &Input) -> (String, bool) {
    match &input.topics {
        TopicSelector::Exact(name) => (name.clone(), false),
        TopicSelector::Pattern(pattern) => (literal_start(pattern), true),
    }
}

/// The list itself.
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

    fn read_input(&mut self, input: &Input) {
        let (name, is_prefix) = selected(input);
        self.read_topic(&name, is_prefix);
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
        inputs.iter().for_each(|input| self.read_input(input));
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
    use trunkline_transform_host::{Host, HostOptions};

    use super::*;
    use crate::plan::{Registry, load_each};

    const PIPELINE: &str = r#"
        name = "shop"
        [sources.web]
        connector = "logfile"
        paths = ["/a.log"]
        [sources.db]
        connector = "mysql"
        url = "mysql://u:p@h"
        tables = ["a.*"]
        [transforms.clean]
        inputs = ["web"]
        plugin = "mask.wasm"
        config = { fields = ["message"] }
        topic = "clean"
        [sinks.lake]
        connector = "s3"
        inputs = ["clean", "db"]
        url = "s3://lake/v1"
    "#;

    /// The rights of these uses, as `KIND NAME OPERATION..`, with `*` after a prefix.
    fn rights(uses: &[Use], create: bool) -> Vec<String> {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shop.toml");
        std::fs::write(&file, PIPELINE).unwrap();
        let mut settings = Settings::load(None, &Vec::new()).unwrap();
        settings.cluster = "c".to_owned();
        settings.prefix = "team.".to_owned();
        settings.topics.create = create;
        let loaded = load_each(&[file], &Host::new(HostOptions::default()).unwrap(), &settings, &Registry::new());
        assert!(loaded.problems.is_empty(), "{}", loaded.problems[0]);
        let line = |(resource, operations): (Resource, BTreeSet<Operation>)| {
            let operations: Vec<String> = operations.iter().map(|operation| format!("{operation:?}")).collect();
            let end = if resource.is_prefix { "*" } else { "" };
            format!("{:?} {}{end} {}", resource.kind, resource.name, operations.join(" "))
        };
        rights_for(uses, &loaded.pipelines, &settings).into_iter().map(line).collect()
    }

    #[test]
    fn a_worker_creates_reads_and_writes_what_its_pipelines_name() {
        let expected = [
            "Topic clean Create Read Write",
            "Topic shop.* Create Read Write",
            "Topic shop.dead-letters Create Write",
            "Topic shop.web Create Read Write",
            "Topic team._trunkline.audit Create Write",
            "Topic team._trunkline.checkpoints Create Read Write",
            "Topic team._trunkline.intents Create Read Write",
            "Topic team._trunkline.schemas Create Read Write",
            "Topic team._trunkline.tasks Create Read",
            "Group team.c.shop.clean Read",
            "Group team.c.shop.lake Read",
            "Group team.c.tasks Read",
            "Group team.c.tasks.* Read",
            "TransactionalId team.c.shop.clean.* Write",
            "TransactionalId team.c.shop.db Write",
            "TransactionalId team.c.shop.lake.* Write",
            "TransactionalId team.c.shop.web.* Write",
        ];
        assert_eq!(rights(&[Use::Worker], true), expected);
        let existing = expected.map(|line| line.replace("Create ", ""));
        assert_eq!(rights(&[Use::Worker], false), existing, "with topics.create = false");
    }

    #[test]
    fn each_use_of_commands_has_its_rights_and_no_others() {
        let tap = [
            "Topic clean Read",
            "Topic shop.* Read",
            "Topic shop.dead-letters Read",
            "Topic shop.web Read",
            "Topic team._trunkline.audit Create Write",
            "Topic team._trunkline.checkpoints Read",
        ];
        assert_eq!(rights(&[Use::Tap], true), tap);
        let pause = ["Topic team._trunkline.audit Create Write", "Topic team._trunkline.checkpoints Read Write"];
        assert_eq!(rights(&[Use::Pause], true), pause);
        let offsets = [
            "Topic clean Read",
            "Topic shop.* Read",
            "Topic shop.web Read",
            "Topic team._trunkline.audit Create Write",
            "Topic team._trunkline.checkpoints Read Write",
            "Topic team._trunkline.intents Read Write",
            "Group team.c.shop.clean Read",
            "Group team.c.shop.lake Read",
            "TransactionalId team.c.shop.clean.!offsets Write",
            "TransactionalId team.c.shop.lake.!offsets Write",
        ];
        assert_eq!(rights(&[Use::Offsets], true), offsets);
        let redrive = [
            "Topic clean Create Read Write",
            "Topic shop.* Create Read Write",
            "Topic shop.dead-letters Create Read Write",
            "Topic shop.web Create Read Write",
            "Topic team._trunkline.audit Create Write",
            "Topic team._trunkline.checkpoints Read Write",
            "Topic team._trunkline.schemas Read Write",
            "TransactionalId team.c.shop.!redrive Write",
        ];
        assert_eq!(rights(&[Use::Redrive], true), redrive);
        let replay = [
            "Topic clean Read",
            "Topic shop.* Read",
            "Topic shop.dead-letters Create Read Write",
            "Topic shop.web Read",
            "Topic team._trunkline.audit Create Write",
            "Topic team._trunkline.checkpoints Create Read Write",
            "Topic team._trunkline.intents Create Read Write",
            "Topic team._trunkline.schemas Create Read Write",
            "Topic team._trunkline.tasks Create Read",
            "Group team.c.!replay.* Read",
            "TransactionalId team.c.!replay.* Write",
            "TransactionalId team.c.!runs Write",
        ];
        assert_eq!(rights(&[Use::Replay], true), replay);
        // Several uses have the rights of each.
        let both: BTreeSet<_> = rights(&[Use::Tap, Use::Pause], true).into_iter().collect();
        let with_write = "Topic team._trunkline.checkpoints Read Write";
        let expected: BTreeSet<_> = tap[..5].iter().copied().chain([with_write]).map(str::to_owned).collect();
        assert_eq!(both, expected);
    }

    #[test]
    fn patterns_are_reduced_to_their_literal_start() {
        assert_eq!(literal_start(r"^shop-changes\..+\..+$"), "shop-changes.");
        assert_eq!(literal_start("^web$"), "web");
        assert_eq!(literal_start(".+"), "");
    }
}
