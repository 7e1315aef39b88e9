//! [`SnapshotTracker`]: the captured tables, the progress of each snapshot, and the changes that
//! the stream reports meanwhile.
//!
//! The tracker connects the follower and the snapshot, which do not know each other: the follower
//! reports tables, keys and schema changes to it, and the snapshot asks it for the next table.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch};

use super::access::TableAccess;
use crate::format::table::Table;
use crate::position::{KeyPosition, SnapshotProgress, TablePosition, table_key};
use crate::schema::table_filter::TableFilter;
use crate::schema::table_name::TableName;

/// The maximum number of tracked keys. A source that lags behind by more reads the chunk again when
/// it has caught up.
const MAX_CHANGED_KEYS: usize = 200_000;

/// How often a consistent read may emit rows and fail, before the source stops.
const MAX_FAILURES: u32 = 3;

/// What the follower does with the rows of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TableMode {
    Emit,
    /// Emits rows and tracks their keys: a chunk of the table is being read, and loses the rows
    /// that change meanwhile.
    EmitAndTrack,
    /// Skips rows: the table has no key, and its snapshot, which is consistent, will contain them.
    Suppress,
    /// Drops rows: the user may not read the table.
    Unreadable,
}

/// A table whose rows are to be read.
#[derive(Clone)]
pub(crate) struct TableRequest {
    pub(crate) table: Arc<Table>,
    /// Restricts the rows.
    pub(crate) condition: Option<String>,
    /// The key after which the rows start.
    pub(crate) after: Option<KeyPosition>,
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
    /// Tables of the stream that the user may not read.
    unreadable: HashSet<TableName>,
    /// Tables of the stream that do not exist any more. The stream has all of their rows.
    gone: HashSet<TableName>,
    /// Tables that appeared without a creation in the stream, and were not described yet.
    appeared: BTreeSet<TableName>,
    /// Tables that were defined since the caller took them.
    defined: BTreeSet<TableName>,
    windows: Vec<ChunkWindow>,
    last_window: WindowId,
    /// The number of schema changes that the stream reported.
    schema_version: u64,
    /// The source takes no snapshots, so tables have no positions.
    is_disabled: bool,
}

/// Identifies the window of a chunk.
pub(crate) type WindowId = u64;

/// Keys of changed rows. Windows share them.
pub(crate) type ChangedKeys = HashSet<Arc<[u8]>>;

/// The changes while a chunk is read (DBLog's watermark window).
struct ChunkWindow {
    id: WindowId,
    table: TableName,
    changed_keys: ChangedKeys,
    /// The chunk is unusable: a schema change makes it ambiguous, or too many rows changed.
    is_stale: bool,
}

impl SnapshotTracker {
    pub(crate) fn new(
        positions: BTreeMap<TableName, TablePosition>,
        known: impl IntoIterator<Item = Arc<Table>>,
    ) -> Self {
        let known: HashMap<_, _> = known.into_iter().map(|table| (table.name.clone(), table)).collect();
        Self { positions, defined: known.keys().cloned().collect(), known, ..Self::default() }
    }

    /// Plans the snapshot of every known table that is not done; or, unless `all`, of requested
    /// tables only.
    pub(crate) fn plan(&mut self, all: bool) {
        self.is_disabled = !all;
        let is_due = |name: &&TableName| match self.positions.get(*name) {
            Some(TablePosition::Done) => false,
            Some(TablePosition::Running(progress)) => all || progress.is_requested,
            None => all,
        };
        self.waiting = self.known.keys().filter(is_due).cloned().collect();
        self.order();
    }

    /// Orders the tables to read. Tables without an order come first, because their changes are
    /// suppressed until they are read.
    fn order(&mut self) {
        let has_key = |name: &TableName| self.known.get(name).is_some_and(|table| !table.order.is_empty());
        self.waiting.sort_by_key(|name| (has_key(name), name.clone()));
        self.waiting.reverse();
        // A restricted snapshot lacks the changes of other rows, so it suppresses nothing.
        let is_restricted = |name: &TableName| {
            self.positions
                .get(name)
                .and_then(TablePosition::running)
                .is_some_and(|progress| progress.condition.is_some())
        };
        let is_suppressed = |name: &&TableName| !has_key(name) && !is_restricted(name);
        self.suppressed = self.waiting.iter().filter(is_suppressed).cloned().collect();
    }

    /// The next table to read, except for these.
    pub(crate) fn next(&self, is_excluded: impl Fn(&TableName) -> bool) -> Option<TableRequest> {
        self.request(self.waiting.iter().rev().find(|name| !is_excluded(name))?)
    }

    /// The request for a table, if it is to be read.
    pub(crate) fn waiting_request(&self, name: &TableName) -> Option<TableRequest> {
        if self.is_waiting(name) { self.request(name) } else { None }
    }

    /// Whether a table is to be read.
    pub(crate) fn is_waiting(&self, name: &TableName) -> bool {
        self.waiting.contains(name)
    }

    /// All tables to read.
    pub(crate) fn all(&self) -> Vec<TableRequest> {
        self.waiting.iter().rev().filter_map(|name| self.request(name)).collect()
    }

    fn request(&self, name: &TableName) -> Option<TableRequest> {
        let progress = self.positions.get(name).and_then(TablePosition::running);
        Some(TableRequest {
            table: Arc::clone(self.known.get(name)?),
            condition: progress.and_then(|progress| progress.condition.clone()),
            after: progress.and_then(|progress| progress.after.clone()),
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

    /// The known tables of a database.
    pub(crate) fn tables_of(&self, database: &str) -> Vec<TableName> {
        self.known.keys().filter(|name| name.database == database).cloned().collect()
    }

    /// Whether a statement could change a captured table: it contains the name of the table's
    /// database, or runs in it.
    pub(crate) fn may_affect(&self, tables: &TableFilter, database: &str, statement: &[u8]) -> bool {
        let statement = String::from_utf8_lossy(statement).to_lowercase();
        let is_named = |table: &TableName| statement.contains(&table.database.to_lowercase());
        tables.may_include_database(database) || self.known.keys().any(is_named)
    }

    /// Sets the current definition of a table.
    pub(crate) fn define(&mut self, table: &Arc<Table>) {
        if self.known.insert(table.name.clone(), Arc::clone(table)).is_none() {
            self.defined.insert(table.name.clone());
        }
    }

    /// The tables that are new since the last call.
    pub(crate) fn take_defined(&mut self) -> BTreeSet<TableName> {
        std::mem::take(&mut self.defined)
    }

    /// Whether a table of the stream was not described since the source opened. The user may lack
    /// access to it, and without a creation in the stream the stream has only a part of its rows.
    pub(crate) fn is_unknown(&self, name: &TableName) -> bool {
        !self.is_disabled
            && !self.known.contains_key(name)
            && !self.unreadable.contains(name)
            && !self.gone.contains(name)
    }

    /// Whether the progress of the table's snapshot is known.
    pub(crate) fn has_position(&self, name: &TableName) -> bool {
        self.positions.contains_key(name)
    }

    /// Notes a creation in the stream, which contains all rows of the table. Its position is set,
    /// so that no later start takes a snapshot of it.
    pub(crate) fn table_created(&mut self, name: &TableName, out: &mut SourceBatch) -> Result<()> {
        self.gone.remove(name);
        self.unreadable.remove(name);
        self.appeared.remove(name);
        match self.is_disabled {
            true => Ok(()),
            false => self.set(name, TablePosition::Done, out),
        }
    }

    /// Notes a table that exists without a creation in the stream (a rename, a restored backup). It
    /// needs a snapshot.
    pub(crate) fn table_appeared(&mut self, name: &TableName) {
        self.gone.remove(name);
        if self.is_unknown(name) && !self.positions.contains_key(name) {
            self.appeared.insert(name.clone());
        }
    }

    /// The tables that appeared and need a description.
    pub(crate) fn take_appeared(&mut self) -> BTreeSet<TableName> {
        std::mem::take(&mut self.appeared)
    }

    /// Notes that a table does not exist any more under this name.
    pub(crate) fn table_dropped(&mut self, name: &TableName, out: &mut SourceBatch) {
        self.known.remove(name);
        self.waiting.retain(|waiting| waiting != name);
        self.suppressed.remove(name);
        self.unreadable.remove(name);
        self.appeared.remove(name);
        if self.positions.remove(name).is_some() {
            out.set_position(&table_key(name), None);
        }
    }

    /// Sets the user's access to a table of the stream.
    pub(crate) fn set_access(&mut self, name: &TableName, access: TableAccess, out: &mut SourceBatch) {
        match access {
            TableAccess::Readable(table) => {
                if !self.positions.contains_key(name) && !self.waiting.contains(name) {
                    self.waiting.push(name.clone());
                }
                self.define(&table);
                self.order();
            }
            // Its changes are dropped, so it needs a snapshot once it is readable.
            TableAccess::Unreadable => {
                self.table_dropped(name, out);
                self.unreadable.insert(name.clone());
            }
            TableAccess::Gone => drop(self.gone.insert(name.clone())),
        }
    }

    /// Describes unreadable tables again: privileges may have changed.
    pub(crate) fn privileges_changed(&mut self) {
        self.appeared.extend(self.unreadable.drain());
    }

    /// Starts the snapshot of a table again, because the order of its key changed.
    pub(crate) fn restart(&mut self, table: &Arc<Table>, out: &mut SourceBatch) -> Result<()> {
        self.define(table);
        let mut progress = self.progress(&table.name);
        progress.after = None;
        self.set(&table.name, TablePosition::Running(progress), out)?;
        self.order();
        Ok(())
    }

    fn progress(&self, name: &TableName) -> SnapshotProgress {
        self.positions.get(name).and_then(TablePosition::running).cloned().unwrap_or_default()
    }

    /// Counts a failure of a consistent read that emitted rows of these tables. Returns the tables
    /// that failed too often.
    pub(crate) fn read_failed(&mut self, names: &[TableName], out: &mut SourceBatch) -> Result<Vec<TableName>> {
        let mut exhausted = Vec::new();
        for name in names.iter().filter(|name| self.waiting.contains(name)).cloned().collect::<Vec<_>>() {
            let mut progress = self.progress(&name);
            progress.failures += 1;
            if progress.failures >= MAX_FAILURES {
                exhausted.push(name.clone());
            }
            self.set(&name, TablePosition::Running(progress), out)?;
        }
        Ok(exhausted)
    }

    /// A table whose consistent read failed too often.
    pub(crate) fn exhausted(&self) -> Option<&TableName> {
        self.waiting.iter().find(|name| self.progress(name).failures >= MAX_FAILURES)
    }

    pub(crate) fn mode(&self, name: &TableName) -> TableMode {
        if self.unreadable.contains(name) {
            TableMode::Unreadable
        } else if self.windows.iter().any(|window| window.table == *name) {
            TableMode::EmitAndTrack
        } else if self.suppressed.contains(name) {
            TableMode::Suppress
        } else {
            TableMode::Emit
        }
    }

    /// Opens the window of a chunk: tracks the changes of this table.
    pub(crate) fn open_window(&mut self, name: &TableName) -> WindowId {
        self.last_window += 1;
        let (id, table) = (self.last_window, name.clone());
        self.windows.push(ChunkWindow { id, table, changed_keys: ChangedKeys::new(), is_stale: false });
        id
    }

    /// Notes the key of a changed row in the windows of its table.
    pub(crate) fn key_changed(&mut self, table: &TableName, key: &[u8]) {
        let mut shared: Option<Arc<[u8]>> = None;
        for window in self.windows.iter_mut().filter(|window| window.table == *table && !window.is_stale) {
            if let Some(known) = window.changed_keys.get(key) {
                shared.get_or_insert_with(|| Arc::clone(known));
                continue;
            }
            window.changed_keys.insert(Arc::clone(shared.get_or_insert_with(|| key.into())));
            if window.changed_keys.len() > MAX_CHANGED_KEYS {
                window.changed_keys = ChangedKeys::new();
                window.is_stale = true;
            }
        }
    }

    /// Notes a schema change.
    pub(crate) fn schema_changed(&mut self) {
        self.schema_version += 1;
        for window in &mut self.windows {
            window.is_stale = true;
        }
    }

    /// The number of schema changes that the stream reported.
    pub(crate) fn schema_version(&self) -> u64 {
        self.schema_version
    }

    /// Closes a window. Returns the changed keys, or `None` if the chunk is unusable.
    pub(crate) fn close_window(&mut self, id: WindowId) -> Option<ChangedKeys> {
        let index = self.windows.iter().position(|window| window.id == id)?;
        let window = self.windows.remove(index);
        (!window.is_stale).then_some(window.changed_keys)
    }

    /// Closes all windows: their chunks are not needed any more.
    pub(crate) fn close_all_windows(&mut self) {
        self.windows.clear();
    }

    /// Advances the snapshot of a table to a key.
    pub(crate) fn advance(&mut self, name: &TableName, key: KeyPosition, out: &mut SourceBatch) -> Result<()> {
        let mut progress = self.progress(name);
        progress.after = Some(key);
        self.set(name, TablePosition::Running(progress), out)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_counts_in_every_open_window_of_its_table() {
        let (a, b) = (TableName::new("d", "a"), TableName::new("d", "b"));
        let mut tracker = SnapshotTracker::default();
        let first = tracker.open_window(&a);
        tracker.key_changed(&a, b"1");
        let (second, other) = (tracker.open_window(&a), tracker.open_window(&b));
        tracker.key_changed(&a, b"2");
        tracker.key_changed(&a, b"1");
        assert_eq!((tracker.mode(&a), tracker.mode(&b)), (TableMode::EmitAndTrack, TableMode::EmitAndTrack));
        let keys = |keys: Option<ChangedKeys>| {
            let mut keys: Vec<Vec<u8>> = keys.unwrap().iter().map(|key| key.to_vec()).collect();
            keys.sort();
            keys
        };
        assert_eq!(keys(tracker.close_window(first)), [b"1", b"2"]);
        tracker.key_changed(&a, b"3");
        assert_eq!(keys(tracker.close_window(second)), [b"1", b"2", b"3"]);
        assert!(keys(tracker.close_window(other)).is_empty());
        assert_eq!(tracker.mode(&a), TableMode::Emit);
        // A schema change makes the chunks of every open window unusable.
        let windows = [tracker.open_window(&a), tracker.open_window(&b)];
        tracker.schema_changed();
        assert!(windows.into_iter().all(|window| tracker.close_window(window).is_none()));
        assert_eq!(tracker.schema_version(), 1);
    }
}
