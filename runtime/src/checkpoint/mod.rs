//! Trunkline's state, all of it in compacted Kafka topics: positions of sources, intents of sinks,
//! schemas, and the counters of I3. The counters are written together with positions and intents
//! and are therefore exact across any crash.
//!
//! | topic | key | value |
//! |---|---|---|
//! | `_trunkline.checkpoints` | `{task}/position/{part}` | a part of the source's position |
//! | `_trunkline.checkpoints` | `{task}/counters` | [`Counters`] of the stage's components |
//! | `_trunkline.checkpoints` | `{task}/owner` | what the name of a source's task means |
//! | `_trunkline.checkpoints` | `{task}/position/{topic}/{partition}` | redriven offsets |
//! | `_trunkline.checkpoints` | `topics/{cluster}/{topic}/..` | a claim ([`TopicOwners`]) |
//! | `_trunkline.checkpoints` | `workers/{cluster}/{worker}` | fingerprints of its plans |
//! | `_trunkline.checkpoints` | `tasks/{cluster}/{worker}` | [`WorkerTasks`] |
//! | `_trunkline.checkpoints` | `control/{cluster}/{target}/state` | [`StateRow`] |
//! | `_trunkline.checkpoints` | `control/{cluster}/{target}/restart` | [`RestartRow`] |
//! | `_trunkline.intents` | `{cluster}.{pipeline}.{sink}/{topic}/{partition}` | [`IntentRecord`] |
//! | `_trunkline.intents` | `{cluster}.{pipeline}.{sink}.!staged/..` | [`SupersedingRows`] |
//! | `_trunkline.intents` | `{cluster}.{pipeline}.{sink}.!replaced/..` | [`SupersedingRows`] |
//! | `_trunkline.schemas` | schema id | the schema's canonical form |
//! | `_trunkline.state.{component}` | `{topic}/{key}` | an entry of the state of a transform |
//! | `_trunkline.audit` | `{cluster}` | [`AuditEntry`]; not compacted |
//!
//! A target is `{pipeline}` or `{pipeline}.{component}`.
//!
//! All clusters that share one Kafka share these topics, unless the setting `prefix` gives them
//! different names ([`Cluster::own_topic`]).
//!
//! All rows of one stage in the first three topics lie in one partition, selected by a hash of the
//! stage's name. A task therefore reads one partition.

mod audit_log;
mod control_rows;
mod counters;
mod intents;
mod moves;
mod positions;
mod schemas;
mod superseding;
mod task_owner;
mod topic_owners;
mod transform_state;
mod worker_rows;

pub use audit_log::{AUDIT, AuditEntry, audit_topic, user_name};
pub use control_rows::{
    AliveRow, ConnectorRow, ControlRow, ControlRows, RestartRow, RunState, StateRow, TaskRef, TaskRow, WorkerTasks,
};
pub use counters::{ComponentCounters, Counters, DeadLetterCodes};
pub use intents::{IntentRecord, IntentState, Intents};
pub use moves::{Moved, MovedSource, POSITION_IN_USE, source_in_use, source_stays};
pub use positions::Positions;
pub use schemas::Schemas;
pub use superseding::SupersedingRows;
pub use task_owner::TaskOwner;
pub use topic_owners::{TopicClaim, TopicOwners};
pub(crate) use transform_state::now_ms;
pub use transform_state::{ChangelogFacts, Restored, StateChangelog, state_topic};
pub use worker_rows::WorkerRows;

use std::collections::BTreeMap;

use trunkline_connector::Result;

use crate::kafka::{Cluster, TopicSpec, table};

/// Source positions and counters.
pub const CHECKPOINTS: &str = "_trunkline.checkpoints";
/// Sink intents and counters.
pub const INTENTS: &str = "_trunkline.intents";
/// Schemas by id.
pub const SCHEMAS: &str = "_trunkline.schemas";
/// Its partitions are leases on source tasks. It contains no records.
pub const TASKS: &str = "_trunkline.tasks";

/// Partitions of the state topics. Each costs a look-up at start; too few make tasks wait for each
/// other's transactions.
const STATE_PARTITIONS: i32 = 8;
/// Partitions of the lease topic: this many source tasks can be distributed evenly.
pub const LEASE_PARTITIONS: i32 = 32;

/// The topics that must exist before a stage runs.
pub fn system_topics(cluster: &Cluster, replication: i16) -> Vec<TopicSpec> {
    let compacted = BTreeMap::from([("cleanup.policy".to_owned(), "compact".to_owned())]);
    let spec = |name: &str, partitions, config: &BTreeMap<String, String>| TopicSpec {
        name: cluster.own_topic(name),
        partitions,
        replication,
        config: config.clone(),
    };
    vec![
        spec(CHECKPOINTS, STATE_PARTITIONS, &compacted),
        spec(INTENTS, STATE_PARTITIONS, &compacted),
        spec(SCHEMAS, 1, &compacted),
        spec(TASKS, LEASE_PARTITIONS, &BTreeMap::new()),
        audit_topic(cluster, replication),
    ]
}

/// The rows that a command shows: none if no worker of this cluster has run yet, because the state
/// topics do not exist then. A stage must not use this: it would begin again from the start while
/// its brokers do not know the topics.
pub fn or_empty<T: Default>(rows: Result<T>) -> Result<T> {
    match rows {
        Err(error) if error.code == "kafka.unknown_topic" => Ok(T::default()),
        rows => rows,
    }
}

/// The partition of all rows of one stage. Stored rows are found by it, so the function must not
/// change.
fn partition_of(owner: &str) -> i32 {
    (xxhash_rust::xxh3::xxh3_64(owner.as_bytes()) % STATE_PARTITIONS as u64) as i32
}

/// Sums the counters of all rows whose keys start with a prefix: one sum for each prefix, in one
/// pass over the table. `counters` returns the counters of a row, if it has any.
fn totals(
    cluster: &Cluster,
    topic: &str,
    prefixes: &[String],
    counters: impl Fn(&[u8], &[u8]) -> Result<Option<Counters>>,
) -> Result<Vec<Counters>> {
    let mut totals = vec![Counters::default(); prefixes.len()];
    for (key, value) in table::read(cluster, &cluster.own_topic(topic), None, common_prefix(prefixes))? {
        // Other rows with the common prefix may be of another kind.
        let is_chosen = |prefix: &String| key.starts_with(prefix.as_bytes());
        if !prefixes.iter().any(is_chosen) {
            continue;
        }
        let Some(counters) = counters(&key, &value)? else { continue };
        let summed = prefixes.iter().zip(&mut totals).filter(|(prefix, _)| is_chosen(prefix));
        summed.for_each(|(_, total)| total.add(&counters));
    }
    Ok(totals)
}

/// The longest common prefix. Rows without it need not be kept in memory.
fn common_prefix(prefixes: &[String]) -> &[u8] {
    let Some((first, others)) = prefixes.split_first() else { return &[] };
    let shared = |other: &String| first.bytes().zip(other.bytes()).take_while(|(left, right)| left == right).count();
    &first.as_bytes()[..others.iter().map(shared).min().unwrap_or(first.len())]
}

/// The lease partition of a source task.
pub fn lease_of(task: &str) -> i32 {
    (xxhash_rust::xxh3::xxh3_64(task.as_bytes()) % LEASE_PARTITIONS as u64) as i32
}
