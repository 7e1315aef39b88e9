//! Positions and counters of source and transform tasks.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use trunkline_connector::{Error, PositionChange, Result};

use super::{CHECKPOINTS, Counters, TaskOwner, partition_of};
use crate::kafka::{Cluster, ProducerRecord, TransactionalProducer, table};

/// The part of a task's keys that names the row of its owner.
const OWNER: &str = "owner";

/// The keyed values of a position.
pub(super) type PositionParts = Vec<(String, Vec<u8>)>;

/// The committed state of one task, and the writer of its next state.
///
/// Load it after the task's producer is initialised: the initialisation completes the transactions
/// of the earlier owner (I4).
pub struct Positions {
    topic: String,
    owner: String,
    task: String,
    /// Committed totals since the pipeline was created.
    pub counters: Counters,
    /// The position's parts, in the order of their keys.
    pub parts: PositionParts,
    /// The stored row of the owner.
    stored_owner: Option<TaskOwner>,
    /// The row of the owner, until it is written.
    new_owner: Cell<Option<TaskOwner>>,
}

impl Positions {
    /// Reads the committed state of `task`. Its rows lie in the partition of `owner`: for a source
    /// the task itself, for a transform the stage, because a transform's tasks are partitions that
    /// move between members.
    pub fn load(cluster: &Cluster, owner: &str, task: &str) -> Result<Self> {
        let prefix = format!("{task}/");
        let topic = cluster.own_topic(CHECKPOINTS);
        let rows = table::read(cluster, &topic, Some(partition_of(owner)), prefix.as_bytes())?;
        let mut this = Self {
            topic,
            owner: owner.to_owned(),
            task: task.to_owned(),
            counters: Counters::default(),
            parts: Vec::new(),
            stored_owner: None,
            new_owner: Cell::new(None),
        };
        for (key, value) in rows {
            let key = String::from_utf8_lossy(&key);
            let part = &key[prefix.len()..];
            if part == "counters" {
                this.counters = parse_counters(&key, &value)?;
            } else if let Some(part) = part.strip_prefix("position/") {
                this.parts.push((part.to_owned(), value));
            } else if part == OWNER {
                // A newer version may write another form.
                this.stored_owner = serde_json::from_slice(&value).ok();
            }
        }
        Ok(this)
    }

    /// Checks that the state is that of this task, and not of one whose joined name is the same.
    /// The next transaction stores the owner of state without one.
    pub fn claim(&mut self, owner: TaskOwner) -> Result<()> {
        match &self.stored_owner {
            Some(stored) if *stored != owner => Err(Error::config(
                "stage.name_taken",
                format!(
                    "the name `{}` of {owner} is also that of {stored}, which has stored its position under it: give one of them \
                     another cluster, pipeline, component or node name",
                    self.task
                ),
            )),
            Some(_) => Ok(()),
            None => {
                self.new_owner.set(Some(owner));
                Ok(())
            }
        }
    }

    /// Notes changes of the position that were committed.
    pub fn note_committed(&mut self, changes: &[PositionChange]) {
        for PositionChange { key, value } in changes {
            let place = self.parts.binary_search_by(|(known, _)| known.cmp(key));
            match (place, value) {
                (Ok(place), Some(value)) => self.parts[place].1.clone_from(value),
                (Ok(place), None) => drop(self.parts.remove(place)),
                (Err(place), Some(value)) => self.parts.insert(place, (key.clone(), value.clone())),
                (Err(_), None) => {}
            }
        }
    }

    /// The positions of the tasks of a source on all nodes, by node. `component` is the source.
    pub fn by_node(cluster: &Cluster, component: &str) -> Result<BTreeMap<String, PositionParts>> {
        let prefix = format!("{component}.");
        let mut nodes: BTreeMap<String, PositionParts> = BTreeMap::new();
        for (key, value) in table::read(cluster, &cluster.own_topic(CHECKPOINTS), None, prefix.as_bytes())? {
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            if let Some((node, part)) = key.split_once("/position/") {
                nodes.entry(node.to_owned()).or_default().push((part.to_owned(), value));
            }
        }
        Ok(nodes)
    }

    /// The topics that a transform has processed. `component` is the transform.
    pub fn topics(cluster: &Cluster, component: &str) -> Result<BTreeSet<String>> {
        let prefix = format!("{component}/");
        let rows = table::read(cluster, &cluster.own_topic(CHECKPOINTS), None, prefix.as_bytes())?;
        let topic = |key: &Vec<u8>| {
            let key = String::from_utf8_lossy(&key[prefix.len()..]).into_owned();
            Some(key.strip_suffix("/counters")?.rsplit_once('/')?.0.to_owned())
        };
        Ok(rows.keys().filter_map(topic).collect())
    }

    /// The counters of tasks by name prefix: one sum for each prefix.
    pub fn totals(cluster: &Cluster, prefixes: &[String]) -> Result<Vec<Counters>> {
        super::totals(cluster, CHECKPOINTS, prefixes, |key, value| {
            let holds_counters = key.ends_with(b"/counters");
            holds_counters.then(|| parse_counters(&String::from_utf8_lossy(key), value)).transpose()
        })
    }

    /// Writes changes of the position and new totals in the producer's open transaction (I1).
    pub fn write(
        &self,
        producer: &mut TransactionalProducer,
        changes: &[PositionChange],
        totals: &Counters,
    ) -> Result<()> {
        for change in changes {
            let key = format!("{}/position/{}", self.task, change.key);
            self.row(producer, &key, change.value.as_deref())?;
        }
        let encoded = |error: serde_json::Error| Error::internal("checkpoint.counters", error.to_string());
        // A transaction that is aborted ends the task, and the next one loads the rows again.
        if let Some(owner) = self.new_owner.take() {
            let owner = serde_json::to_vec(&owner).map_err(encoded)?;
            self.row(producer, &format!("{}/{OWNER}", self.task), Some(&owner))?;
        }
        let counters = serde_json::to_vec(totals).map_err(encoded)?;
        self.row(producer, &format!("{}/counters", self.task), Some(&counters))
    }

    fn row(&self, producer: &mut TransactionalProducer, key: &str, value: Option<&[u8]>) -> Result<()> {
        Ok(producer.send(&ProducerRecord {
            topic: &self.topic,
            partition: partition_of(&self.owner),
            timestamp: None,
            key: Some(key.as_bytes()),
            value,
            headers: &[],
            more_headers: &[],
        })?)
    }
}

fn parse_counters(key: &str, value: &[u8]) -> Result<Counters> {
    serde_json::from_slice(value).map_err(|error| {
        Error::data(
            "checkpoint.unreadable",
            format!(
                "the row `{key}` of topic `{CHECKPOINTS}` cannot be read as counters ({error}): was it written by a newer \
                 version?"
            ),
        )
    })
}
