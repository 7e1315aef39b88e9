//! The states of a task's topic partitions: restored, copied to disk, and shown. See
//! `docs/adr/031-state-on-disk.md`.

use std::time::{Duration, Instant};

use trunkline_connector::{Result, TopicPartition, failpoint};
use trunkline_transform_host::StateStore;

use super::TransformTask;
use crate::checkpoint::{ChangelogFacts, Restored, now_ms};
use crate::kafka::topic_reader::PartitionScanner;
use crate::stage::status::StateFigures;

/// Time between two copies of state to disk, while it changes. A worker that is killed restores at
/// most the changes of this time.
const COPY_INTERVAL: Duration = Duration::from_secs(10);

impl TransformTask<'_> {
    /// Restores the state of a partition whose committed offset has been read.
    pub(super) fn restore_state(
        &mut self,
        scanner: &mut PartitionScanner,
        facts: &ChangelogFacts,
        partition: &TopicPartition,
        max_bytes: usize,
    ) -> Result<StateStore> {
        let restored = self.changelog.restore(scanner, facts, partition, &self.context.state, max_bytes);
        let Restored { store, records, took } = restored.map_err(|error| self.stage.in_transform(error))?;
        self.restored = (self.restored.0 + took, self.restored.1 + records);
        let entries = store.len();
        tracing::info!(stage = self.status.name(), topic = %partition.topic, partition = partition.partition, entries, records, ?took, "state restored");
        Ok(store)
    }

    pub(super) fn stores(&self) -> impl Iterator<Item = &StateStore> {
        self.partitions.values().filter_map(|state| state.state.as_ref())
    }

    /// Whether changes of state should be copied to disk.
    pub(super) fn is_copy_due(&self) -> bool {
        self.stores().any(StateStore::is_write_due)
            || (self.last_copy.elapsed() >= COPY_INTERVAL && self.stores().any(StateStore::is_outdated))
    }

    /// Commits, and copies the committed changes of states to disk. The positions of the copies are
    /// read before the commit, which the group's generation fences (I4): no other member can have
    /// written before them.
    pub(super) fn commit_and_copy(&mut self) -> Result<()> {
        let since = now_ms();
        let mut ends = Vec::new();
        for (partition, state) in &mut self.partitions {
            let Some(store) = &state.state else { continue };
            if store.is_outdated() || store.changed_bytes() > 0 {
                // The commit covers the partition also if none of its records are pending.
                state.next = state.next.or((state.committed >= 0).then_some(state.committed));
                let end = match state.next {
                    Some(_) => Some(self.consumer.stable_end(self.changelog.topic(), partition.partition)?),
                    None => None,
                };
                ends.push((partition.clone(), end));
            }
        }
        self.commit()?;
        self.last_copy = Instant::now();
        failpoint!("transform.copy.before")?;
        for (partition, end) in ends {
            let store = self.partitions.get_mut(&partition).and_then(|state| state.state.as_mut());
            if let Some(store) = store {
                if let Some(end) = end {
                    store.advance(end, since);
                }
                store.write().map_err(|error| self.stage.in_transform(error))?;
            }
        }
        failpoint!("transform.copy.after")
    }

    /// Closes the states at the end of a run: what is committed is on disk.
    pub(super) fn close_states(&mut self) -> Result<()> {
        let stores = std::mem::take(&mut self.partitions).into_values().filter_map(|state| state.state);
        stores.into_iter().try_for_each(StateStore::close).map_err(|error| self.stage.in_transform(error))
    }

    /// Shows the sizes of the states, and reserves their memory.
    pub(super) fn show_states(&mut self) {
        let sum = |of: fn(&StateStore) -> u64| self.stores().map(of).sum::<u64>();
        let table = self.table.as_ref().map(|table| table.bytes() as u64);
        let figures = self.stage.plan.state.map(|_| StateFigures {
            entries: sum(|store| store.len() as u64),
            disk_bytes: sum(StateStore::disk_bytes),
            restore: self.restored.0,
            restored_records: self.restored.1,
        });
        let largest = self.stores().map(|store| store.bytes() as u64).chain(table).max();
        let plan = &self.stage.plan;
        let limit = plan.state.map(|state| state.max_bytes).or(plan.table.as_ref().map(|table| table.max_bytes));
        let memory = self.stores().map(StateStore::memory).sum();
        self.memory.resize(memory);
        self.status.set_memory_bytes(memory);
        self.status.set_plugin_state(largest.zip(limit.map(|bytes| bytes as u64)), figures);
    }
}
