//! [`TopicOwners`]: a topic has one component that writes it (I4).
//!
//! The plan refuses components whose topics are known to be equal. Topics that depend on records
//! (`{@database}.{@table}` and `shop.{@table}`) are known when a record is written. Before the
//! first one, the component claims the topic: it writes its row and then reads all claims.
//! The owner is the component whose claim is the first in the log, so that exactly one of several
//! components that claim a topic at the same time gets it. The others remove their claims and stop.
//!
//! A claim precedes all records of its component in the topic, so it is written outside of the
//! transactions of records, and read without waiting for those of other rows.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use trunkline_connector::{Error, Result};

use super::{CHECKPOINTS, TaskOwner, partition_of};
use crate::kafka::{Cluster, RowWriter, table};

/// The claims of a cluster: rows `topics/{cluster}/{topic}/{pipeline}.{component}` in one
/// partition.
pub struct TopicOwners {
    cluster: Cluster,
    topic: String,
    partition: i32,
    prefix: String,
    claims: Mutex<Claims>,
}

/// The claims that were read so far.
#[derive(Default)]
struct Claims {
    /// The offset after them.
    next: i64,
    /// By topic, in the order of the log.
    by_topic: HashMap<String, Vec<TaskOwner>>,
}

/// A topic, and the component that claims it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicClaim {
    /// The topic.
    pub topic: String,
    /// The component, without a node.
    pub owner: TaskOwner,
}

impl Claims {
    fn owner(&self, topic: &str) -> Option<&TaskOwner> {
        self.by_topic.get(topic)?.first()
    }

    fn add(&mut self, claim: TopicClaim) {
        let claims = self.by_topic.entry(claim.topic).or_default();
        if !claims.contains(&claim.owner) {
            claims.push(claim.owner);
        }
    }
}

impl TopicOwners {
    /// The owners of topics in the cluster `name`. Reads nothing yet.
    pub fn new(cluster: &Cluster, name: &str) -> Self {
        let prefix = format!("topics/{name}/");
        Self {
            cluster: cluster.clone(),
            topic: cluster.own_topic(CHECKPOINTS),
            partition: partition_of(&prefix),
            prefix,
            claims: Mutex::default(),
        }
    }

    /// Claims topics before the first record. Fails if another component owns one of them, unless
    /// `takes_over`, which removes the claims of other components.
    pub fn claim(&self, claims: &[TopicClaim], takes_over: bool) -> Result<()> {
        let mut known = self.lock();
        let is_missing = |known: &Claims, claim: &&TopicClaim| known.owner(&claim.topic) != Some(&claim.owner);
        let missing: Vec<&TopicClaim> = claims.iter().filter(|claim| is_missing(&known, claim)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        // Most claims of a task that starts again are known after a read.
        self.read(&mut known)?;
        let missing: Vec<&TopicClaim> = missing.into_iter().filter(|claim| is_missing(&known, claim)).collect();
        if missing.is_empty() {
            return Ok(());
        }
        let writer = RowWriter::new(&self.cluster, &format!("{}.topics", self.prefix));
        if takes_over {
            self.release(&mut known, &missing, &writer)?;
        }
        let free: Vec<&TopicClaim> =
            missing.iter().copied().filter(|claim| known.owner(&claim.topic).is_none()).collect();
        self.write(&writer, &free, true)?;
        self.read(&mut known)?;
        let lost = |claim: &&&TopicClaim| is_missing(&known, claim);
        let withdrawn: Vec<&TopicClaim> = free.iter().filter(lost).copied().collect();
        self.write(&writer, &withdrawn, false)?;
        match missing.iter().find(lost) {
            Some(claim) => Err(taken(claim, known.owner(&claim.topic))),
            None => Ok(()),
        }
    }

    /// Removes the claims of the owners of these topics.
    fn release(&self, known: &mut Claims, claims: &[&TopicClaim], writer: &RowWriter) -> Result<()> {
        let mut released = Vec::new();
        for claim in claims {
            for owner in known.by_topic.remove(&claim.topic).unwrap_or_default() {
                if owner != claim.owner {
                    tracing::warn!(
                        code = "stage.topic_taken",
                        "the topic `{}` belongs to {} from now on, because of `--append`, and no longer to {owner}",
                        claim.topic,
                        claim.owner
                    );
                }
                released.push(TopicClaim { topic: claim.topic.clone(), owner });
            }
        }
        self.write(writer, &released.iter().collect::<Vec<_>>(), false)
    }

    /// Writes claims, or removes them.
    fn write(&self, writer: &RowWriter, claims: &[&TopicClaim], exist: bool) -> Result<()> {
        let mut rows = Vec::with_capacity(claims.len());
        for TopicClaim { topic, owner } in claims {
            let key = format!("{}{topic}/{}.{}", self.prefix, owner.pipeline, owner.component);
            let value =
                serde_json::to_vec(owner).map_err(|error| Error::internal("stage.topic_owner", error.to_string()))?;
            rows.push((key.into_bytes(), exist.then_some(value)));
        }
        writer.write_all(&self.topic, self.partition, &rows)
    }

    /// Reads the claims since the last read.
    fn read(&self, known: &mut Claims) -> Result<()> {
        let (from, prefix) = (known.next, self.prefix.as_bytes());
        known.next = table::read_on(&self.cluster, &self.topic, self.partition, from, |key, value| {
            let key = key.strip_prefix(prefix).map(String::from_utf8_lossy);
            let Some((topic, name)) = key.as_deref().and_then(|key| key.split_once('/')) else { return };
            let owner = value.map(serde_json::from_slice::<TaskOwner>);
            match owner {
                Some(Ok(owner)) => known.add(TopicClaim { topic: topic.to_owned(), owner }),
                // A newer version may write another form.
                Some(Err(_)) => {}
                None => {
                    if let Some(claims) = known.by_topic.get_mut(topic) {
                        claims.retain(|owner| format!("{}.{}", owner.pipeline, owner.component) != name);
                    }
                }
            }
        })?;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Claims> {
        // A panic leaves at most fewer claims, which are read again when they are missing.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The error of a component whose topic belongs to another one.
fn taken(claim: &TopicClaim, owner: Option<&TaskOwner>) -> Error {
    let TopicClaim { topic, owner: component } = claim;
    let other = owner.map_or_else(|| "another component".to_owned(), ToString::to_string);
    Error::config(
        "stage.topic_taken",
        format!(
            "a record of {component} would be written to the topic `{topic}`, which {other} writes: set another `topic` in one of \
             them; if the other one no longer exists, because it was renamed or removed, start the worker once with `--append`"
        ),
    )
}
