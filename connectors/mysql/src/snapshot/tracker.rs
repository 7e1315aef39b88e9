//! [`SnapshotTracker`]: the captured tables, the progress of each snapshot, and the changes that the stream reports meanwhile.
//!
//! The tracker connects the follower and the snapshot, which do not know each other: the follower reports tables, keys and
//! schema changes to it, and the snapshot asks it for the next table.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch};

use crate::format::table::Table;
use crate::position::{TablePosition, table_key};
use crate::schema::table_filter::TableFilter;
use crate::schema::table_name::TableName;

/// The maximum number of tracked keys. A source that lags behind by more reads the chunk again when it has caught up.
const MAX_CHANGED_KEYS: usize = 200_000;

/// What the follower does with the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableMode {
    Emit,
    /// Emits rows and tracks their keys: a chunk of the table is being read, and loses the rows that change meanwhile.
    EmitAndTrack,
    /// Skips rows: the table has no key, and its snapshot, which is consistent, will contain them.
    Suppress,
}

/// A table whose rows are to be read.
#[derive(Clone)]
pub(crate) struct TableRequest {
    pub(crate) table: Arc<Table>,
    /// Restricts the rows.
    pub(crate) condition: Option<String>,
    /// The key after which the rows start.
    pub(crate) after: Option<Vec<String>>,
}

/// The state of all tables.
#[derive(Default)]
pub(crate) struct SnapshotTracker {
    positions: BTreeMap<TableName, TablePosition>,
    /// Tables to read, the next one last.
    waiting: Vec<TableName>,
    /// Tables without a key among them. Their changes are suppressed until they are read.
    suppressed: HashSet<TableName>,
    known: HashMap<TableName, Arc<Table>>,
    window: Option<ChunkWindow>,
}

/// The changes while a chunk is read (DBLog's watermark window).
struct ChunkWindow {
    table: TableName,
    changed_keys: HashSet<Vec<u8>>,
    /// The chunk is unusable: a schema change makes it ambiguous, or too many rows changed.
    is_stale: bool,
}

impl SnapshotTracker {
    pub(crate) fn new(
        positions: BTreeMap<TableName, TablePosition>,
        known: impl IntoIterator<Item = Arc<Table>>,
    ) -> Self {
        let known = known.into_iter().map(|table| (table.name.clone(), table)).collect();
        Self { positions, known, ..Self::default() }
    }

    /// Plans the snapshot of every known table that is not done; or, unless `all`, of requested tables only.
    pub(crate) fn plan(&mut self, all: bool) {
        let is_due = |name: &&TableName| match self.positions.get(*name) {
            Some(TablePosition::Done) => false,
            Some(TablePosition::Requested(_) | TablePosition::RequestedWhere { .. }) => true,
            Some(TablePosition::After(_)) | None => all,
        };
        let mut waiting: Vec<TableName> = self.known.keys().filter(is_due).cloned().collect();
        // Tables without a key come first, because their changes are suppressed until they are read.
        let has_key = |name: &TableName| self.known.get(name).is_some_and(|table| !table.key.is_empty());
        waiting.sort_by_key(|name| (has_key(name), name.clone()));
        waiting.reverse();
        // A restricted snapshot lacks the changes of other rows, so it suppresses nothing.
        let is_whole = |name: &TableName| self.positions.get(name).and_then(TablePosition::condition).is_none();
        self.suppressed = waiting.iter().filter(|name| !has_key(name) && is_whole(name)).cloned().collect();
        self.waiting = waiting;
    }

    /// The next table to read.
    pub(crate) fn next(&self) -> Option<TableRequest> {
        self.request(self.waiting.last()?)
    }

    /// All tables to read.
    pub(crate) fn all(&self) -> Vec<TableRequest> {
        self.waiting.iter().rev().filter_map(|name| self.request(name)).collect()
    }

    fn request(&self, name: &TableName) -> Option<TableRequest> {
        let position = self.positions.get(name);
        Some(TableRequest {
            table: Arc::clone(self.known.get(name)?),
            condition: position.and_then(TablePosition::condition).map(str::to_owned),
            after: position.and_then(TablePosition::after).map(<[String]>::to_vec),
        })
    }

    /// The names of the tables to read.
    pub(crate) fn waiting(&self) -> &[TableName] {
        &self.waiting
    }

    /// The number of tables to read.
    pub(crate) fn left(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn known(&self, name: &TableName) -> Option<Arc<Table>> {
        self.known.get(name).cloned()
    }

    /// Whether a statement could change a captured table: it contains the name of the table's database, or runs in it.
    pub(crate) fn may_affect(&self, tables: &TableFilter, database: &str, statement: &[u8]) -> bool {
        let statement = String::from_utf8_lossy(statement).to_lowercase();
        let is_named = |table: &TableName| statement.contains(&table.database.to_lowercase());
        tables.may_include_database(database) || self.known.keys().any(is_named)
    }

    /// Sets the current definition of a table.
    pub(crate) fn define(&mut self, table: &Arc<Table>) {
        self.known.insert(table.name.clone(), Arc::clone(table));
    }

    /// Notes a table map. An unknown table was created meanwhile, so the binlog has all of its rows. If `remember`, its position
    /// is set, so that no later start takes a snapshot of it.
    pub(crate) fn table_seen(&mut self, table: &Arc<Table>, remember: bool, out: &mut SourceBatch) -> Result<()> {
        self.define(table);
        if remember && !self.positions.contains_key(&table.name) && !self.waiting.contains(&table.name) {
            self.set(&table.name, TablePosition::Done, out)?;
        }
        Ok(())
    }

    pub(crate) fn mode(&self, name: &TableName) -> TableMode {
        if self.window.as_ref().is_some_and(|window| window.table == *name) {
            TableMode::EmitAndTrack
        } else if self.suppressed.contains(name) {
            TableMode::Suppress
        } else {
            TableMode::Emit
        }
    }

    /// Opens the window of a chunk: tracks the changes of this table.
    pub(crate) fn open_window(&mut self, name: &TableName) {
        self.window = Some(ChunkWindow { table: name.clone(), changed_keys: HashSet::new(), is_stale: false });
    }

    /// Notes the key of a changed row.
    pub(crate) fn key_changed(&mut self, key: &[u8]) {
        if let Some(window) = &mut self.window
            && !window.is_stale
            && !window.changed_keys.contains(key)
        {
            window.changed_keys.insert(key.to_vec());
            if window.changed_keys.len() > MAX_CHANGED_KEYS {
                window.changed_keys = HashSet::new();
                window.is_stale = true;
            }
        }
    }

    /// Notes a schema change.
    pub(crate) fn schema_changed(&mut self) {
        if let Some(window) = &mut self.window {
            window.is_stale = true;
        }
    }

    /// Closes the window. Returns the changed keys, or `None` if the chunk is unusable.
    pub(crate) fn close_window(&mut self) -> Option<HashSet<Vec<u8>>> {
        self.window.take().filter(|window| !window.is_stale).map(|window| window.changed_keys)
    }

    /// Advances the snapshot of a table to a key.
    pub(crate) fn advance(&mut self, name: &TableName, key: Vec<String>, out: &mut SourceBatch) -> Result<()> {
        let position = match self.positions.get(name) {
            Some(TablePosition::Requested(_)) => TablePosition::Requested(key),
            Some(TablePosition::RequestedWhere { condition, .. }) => {
                TablePosition::RequestedWhere { condition: condition.clone(), after: key }
            }
            _ => TablePosition::After(key),
        };
        self.set(name, position, out)
    }

    /// Sets the progress of a table.
    pub(crate) fn set(&mut self, name: &TableName, position: TablePosition, out: &mut SourceBatch) -> Result<()> {
        out.set_position(&table_key(name), Some(position.to_bytes()?));
        if position == TablePosition::Done {
            self.waiting.retain(|waiting| waiting != name);
            self.suppressed.remove(name);
        }
        self.positions.insert(name.clone(), position);
        Ok(())
    }
}
