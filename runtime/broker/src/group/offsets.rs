//! The committed offsets of a group.
//!
//! An offset that a producer commits in a transaction (KIP-98, TxnOffsetCommit) is **pending**
//! until the transaction ends. A reader that requires stable offsets (KIP-447) gets a retriable
//! error while an offset is pending; otherwise it would process again the records that the
//! transaction is about to commit.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use serde::{Deserialize, Serialize};

use crate::store::{Change, Key, Store};

/// Limit on the metadata of an offset, `offset.metadata.max.bytes`.
pub(crate) const MAX_METADATA_BYTES: usize = 4096;

/// A committed offset.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Committed {
    pub(crate) offset: i64,
    pub(crate) leader_epoch: i32,
    pub(crate) metadata: String,
    pub(crate) committed_ms: i64,
}

type ByPartition = BTreeMap<(String, i32), Committed>;

/// The offsets of one group.
#[derive(Debug, Default)]
pub(crate) struct Offsets {
    committed: ByPartition,
    /// Pending offsets by producer id.
    pending: BTreeMap<i64, ByPartition>,
}

impl Offsets {
    pub(super) fn restore(&mut self, topic: String, partition: i32, committed: Committed) {
        self.committed.insert((topic, partition), committed);
    }

    pub(super) fn restore_pending(&mut self, producer_id: i64, topic: String, partition: i32, committed: Committed) {
        self.pending.entry(producer_id).or_default().insert((topic, partition), committed);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.committed.is_empty() && self.pending.is_empty()
    }

    pub(crate) fn get(&self, topic: &str, partition: i32) -> Option<&Committed> {
        self.committed.get(&(topic.to_owned(), partition))
    }

    /// Every partition with a committed or pending offset.
    pub(crate) fn partitions(&self) -> BTreeSet<(String, i32)> {
        let pending = self.pending.values().flat_map(BTreeMap::keys);
        self.committed.keys().chain(pending).cloned().collect()
    }

    pub(crate) fn is_pending(&self, topic: &str, partition: i32) -> bool {
        let key = (topic.to_owned(), partition);
        self.pending.values().any(|offsets| offsets.contains_key(&key))
    }

    pub(crate) fn commit(&mut self, id: &str, store: &Store, offsets: ByPartition) -> io::Result<()> {
        let put = |((topic, partition), committed): (&(String, i32), &Committed)| {
            Change::put(Key::Offset(id.to_owned(), topic.clone(), *partition), committed)
        };
        store.apply(offsets.iter().map(put).collect::<io::Result<_>>()?)?;
        self.committed.extend(offsets);
        Ok(())
    }

    pub(crate) fn commit_pending(
        &mut self,
        id: &str,
        store: &Store,
        producer_id: i64,
        offsets: ByPartition,
    ) -> io::Result<()> {
        let put = |((topic, partition), committed): (&(String, i32), &Committed)| {
            Change::put(Key::PendingOffset(id.to_owned(), producer_id, topic.clone(), *partition), committed)
        };
        store.apply(offsets.iter().map(put).collect::<io::Result<_>>()?)?;
        self.pending.entry(producer_id).or_default().extend(offsets);
        Ok(())
    }

    /// The changes of the internal log when a producer's transaction ends. The caller applies them
    /// together with the transaction's own change.
    pub(crate) fn ending(&self, id: &str, producer_id: i64, commit: bool) -> io::Result<Vec<Change>> {
        let mut changes = Vec::new();
        for ((topic, partition), committed) in self.pending.get(&producer_id).into_iter().flatten() {
            changes.push(Change::remove(Key::PendingOffset(id.to_owned(), producer_id, topic.clone(), *partition)));
            if commit {
                changes.push(Change::put(Key::Offset(id.to_owned(), topic.clone(), *partition), committed)?);
            }
        }
        Ok(changes)
    }

    /// Applies the changes of [`Offsets::ending`] to memory.
    pub(crate) fn ended(&mut self, producer_id: i64, commit: bool) {
        let pending = self.pending.remove(&producer_id).unwrap_or_default();
        if commit {
            self.committed.extend(pending);
        }
    }

    pub(crate) fn remove(&mut self, id: &str, store: &Store, partitions: &[(String, i32)]) -> io::Result<()> {
        let remove =
            |(topic, partition): &(String, i32)| Change::remove(Key::Offset(id.to_owned(), topic.clone(), *partition));
        store.apply(partitions.iter().map(remove).collect())?;
        for key in partitions {
            self.committed.remove(key);
        }
        Ok(())
    }

    pub(super) fn remove_topic(&mut self, id: &str, store: &Store, topic: &str) -> io::Result<()> {
        let of_topic: Vec<_> = self.committed.keys().filter(|(name, _)| name == topic).cloned().collect();
        self.remove(id, store, &of_topic)
    }

    /// Removes offsets committed before `before`, if the last member left before `before`.
    pub(super) fn expire(&mut self, id: &str, store: &Store, before: i64, empty_since: i64) -> io::Result<()> {
        if empty_since >= before {
            return Ok(());
        }
        let is_old = |committed: &Committed| committed.committed_ms < before;
        let old: Vec<_> = self.committed.iter().filter(|(_, c)| is_old(c)).map(|(key, _)| key.clone()).collect();
        self.remove(id, store, &old)
    }

    pub(super) fn removal(&self, id: &str) -> Vec<Change> {
        let remove =
            |(topic, partition): &(String, i32)| Change::remove(Key::Offset(id.to_owned(), topic.clone(), *partition));
        let mut changes: Vec<Change> = self.committed.keys().map(remove).collect();
        for (producer_id, offsets) in &self.pending {
            changes.extend(offsets.keys().map(|(topic, partition)| {
                Change::remove(Key::PendingOffset(id.to_owned(), *producer_id, topic.clone(), *partition))
            }));
        }
        changes
    }
}
