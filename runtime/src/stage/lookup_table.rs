//! [`LookupTable`]: a topic in memory, as the table of a transform.
//!
//! Every task keeps the whole table, whatever partitions it has, so that topics need not be
//! co-partitioned. It reads all rows before its first record, and follows the topic afterwards. The
//! topic is its own changelog: a task that starts anywhere reads it again. See
//! `docs/adr/022-lookup-tables.md`.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::{Error, RecordRef, Result, TopicPartition};
use trunkline_transform_host::{StateEntry, StateStore, table_key};

use crate::kafka::Cluster;
use crate::kafka::topic_reader::{PartitionScanner, Tail, Tailed};
use crate::plan::TablePlan;

/// Reads of up to 1,000 rows between two batches.
const MAX_ROUNDS: usize = 10;

/// A table that follows its topic.
pub struct LookupTable {
    rows: Rows,
    /// Follows the topic after the rows that were read at the start.
    tail: Tail,
}

/// The rows that have been read.
pub(super) struct Rows {
    plan: TablePlan,
    store: StateStore,
    has_warned: bool,
}

impl Rows {
    pub(super) fn new(plan: &TablePlan) -> Self {
        Self { plan: plan.clone(), store: StateStore::new(plan.max_bytes), has_warned: false }
    }

    /// Adds a record of the topic. A record without a value removes its row.
    pub(super) fn add(&mut self, record: RecordRef<'_>) {
        let Some(key) = record.key() else {
            if !std::mem::replace(&mut self.has_warned, true) {
                tracing::warn!(topic = %self.plan.topic, "the topic of a table has records without a key: they are no rows");
            }
            return;
        };
        let entry = record.value().map(|value| StateEntry { value: Arc::from(value), expires_at: None });
        self.store.restore(&table_key(key), entry);
    }

    /// Checks that the rows are within the limit.
    pub(super) fn check(&self) -> Result<()> {
        if self.store.bytes() <= self.plan.max_bytes {
            return Ok(());
        }
        let message = format!(
            "the table in the topic `{}` needs more than {} bytes ({} rows): raise `state.max_bytes` of the transform, or \
             let the table have fewer members (`project.wasm`)",
            self.plan.topic,
            self.plan.max_bytes,
            self.store.len()
        );
        Err(Error::config("plugin.table_full", message))
    }

    /// The store for the plugin.
    pub(super) fn store(&mut self) -> &mut StateStore {
        &mut self.store
    }
}

impl LookupTable {
    /// Reads all rows that are committed now.
    pub fn load(cluster: &Cluster, plan: &TablePlan) -> Result<Self> {
        let begun = Instant::now();
        let mut scanner = PartitionScanner::new(cluster);
        let partitions = scanner.partitions_of(&plan.topic)?;
        if partitions.is_empty() {
            let message = format!(
                "the topic `{}` of a table does not exist: start the pipeline or program that writes it, or create the \
                 topic",
                plan.topic
            );
            return Err(Error::external("plugin.table_missing", message));
        }
        let mut rows = Rows::new(plan);
        let mut starts = BTreeMap::new();
        for partition in partitions {
            let end = scanner.scan(&plan.topic, partition, &mut |record| {
                rows.add(record);
                rows.check()
            })?;
            let partition = TopicPartition { topic: Arc::from(plan.topic.as_str()), partition };
            starts.insert(partition, end.unwrap_or(0));
        }
        tracing::debug!(topic = %plan.topic, rows = rows.store.len(), took = ?begun.elapsed(), "table read");
        Ok(Self { rows, tail: Tail::new(cluster, &starts) })
    }

    /// Adds the rows that have arrived. Does not wait.
    pub(super) fn update(&mut self) -> Result<()> {
        let mut read = 0;
        let Self { rows, tail } = self;
        let mut add = |record: RecordRef<'_>| {
            rows.add(record);
            read += 1;
            Ok(ControlFlow::Continue(()))
        };
        let mut rounds = 0;
        while rounds < MAX_ROUNDS && tail.next(Duration::ZERO, &mut add)? != Tailed::Nothing {
            rounds += 1;
        }
        if read > 0 { self.rows.check() } else { Ok(()) }
    }

    /// The size of the rows, as the limit counts it.
    pub(super) fn bytes(&self) -> usize {
        self.rows.store.bytes()
    }

    /// The store for the plugin.
    pub fn store(&mut self) -> &mut StateStore {
        self.rows.store()
    }
}
