//! Which tables there are, how far the snapshot of each is, and what the binlog has to mind meanwhile.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use trunkline_connector::{Result, SourceBatch};

use crate::format::table::Table;
use crate::position::{TablePosition, table_key};
use crate::schema::table_filter::Selection;

/// Of a source that has stood still for hours, the keys that changed since are not all remembered: the chunk is read again when the follower
/// is near.
const MOST_TOUCHED: usize = 200_000;

/// What the follower has to do with a table's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Watch {
    /// Hand them out.
    HandOut,
    /// Hand them out, and tell their keys: a chunk of the table is being read, and a row that changed meanwhile is not taken from the chunk.
    Record,
    /// Leave them out: the table has no key, and its snapshot, which is of one moment, will have them.
    Suppress,
}

/// A table whose rows are to be read.
#[derive(Clone)]
pub(crate) struct Wanted {
    pub(crate) table: Arc<Table>,
    /// Only rows that fulfil this.
    pub(crate) condition: Option<String>,
    /// The key after which they begin.
    pub(crate) after: Option<Vec<String>>,
}

/// The state of all tables.
#[derive(Default)]
pub(crate) struct Progress {
    positions: BTreeMap<String, TablePosition>,
    /// Tables whose rows are still to be read, the next one first.
    waiting: Vec<String>,
    /// Tables without key among them: their changes are left out until they are read.
    suppressed: HashSet<String>,
    known: HashMap<String, Arc<Table>>,
    recording: Option<Recording>,
}

/// Changes since a chunk was asked for.
struct Recording {
    table: String,
    touched: HashSet<Vec<u8>>,
    /// What is read cannot be taken: some definition changed, so that it may be of either side of the change, or too many rows did.
    stale: bool,
}

impl Progress {
    pub(crate) fn new(positions: BTreeMap<String, TablePosition>, known: HashMap<String, Arc<Table>>) -> Self {
        Self { positions, known, ..Self::default() }
    }

    /// Plans the snapshot of every table that is known and not done; or, if not `all`, of those that were asked for.
    pub(crate) fn plan(&mut self, all: bool) {
        let is_wanted = |name: &&String| match self.positions.get(*name) {
            Some(TablePosition::Done) => false,
            Some(TablePosition::Again(_) | TablePosition::Where { .. }) => true,
            Some(TablePosition::After(_)) | None => all,
        };
        let mut waiting: Vec<String> = self.known.keys().filter(is_wanted).cloned().collect();
        // Tables without key first: their changes are left out until they are read. And the last of the list is taken first.
        let keyed = |name: &String| self.known.get(name).is_some_and(|table| !table.key.is_empty());
        waiting.sort_by_key(|name| (keyed(name), name.clone()));
        waiting.reverse();
        // Of a snapshot of some of the rows the changes of the others would be missed.
        let is_whole = |name: &String| self.positions.get(name).and_then(TablePosition::condition).is_none();
        self.suppressed = waiting.iter().filter(|name| !keyed(name) && is_whole(name)).cloned().collect();
        self.waiting = waiting;
    }

    /// What is read next.
    pub(crate) fn next(&self) -> Option<Wanted> {
        self.wanted(self.waiting.last()?)
    }

    /// All that is still to be read.
    pub(crate) fn all(&self) -> Vec<Wanted> {
        self.waiting.iter().rev().filter_map(|name| self.wanted(name)).collect()
    }

    fn wanted(&self, name: &str) -> Option<Wanted> {
        let position = self.positions.get(name);
        Some(Wanted {
            table: Arc::clone(self.known.get(name)?),
            condition: position.and_then(TablePosition::condition).map(str::to_owned),
            after: position.and_then(TablePosition::after).map(<[String]>::to_vec),
        })
    }

    /// Tables whose snapshot is not done, by database and name.
    pub(crate) fn waiting(&self) -> Vec<(&str, &str)> {
        let table = |name: &String| self.known.get(name).map(|table| (table.database.as_str(), table.name.as_str()));
        self.waiting.iter().filter_map(table).collect()
    }

    /// Tables whose snapshot is not done.
    pub(crate) fn left(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn known(&self, full_name: &str) -> Option<Arc<Table>> {
        self.known.get(full_name).cloned()
    }

    /// Could a statement change a table that is taken? It names the table's database, or that is the session's own.
    pub(crate) fn concerns(&self, tables: &Selection, database: &str, statement: &[u8]) -> bool {
        let statement = String::from_utf8_lossy(statement).to_lowercase();
        let named = |table: &Arc<Table>| statement.contains(&table.database.to_lowercase());
        tables.may_take_of(database) || self.known.values().any(named)
    }

    /// A table's definition, as it is now.
    pub(crate) fn define(&mut self, table: &Arc<Table>) {
        self.known.insert(table.full_name(), Arc::clone(table));
    }

    /// A table map has come. A table that nobody knew was created meanwhile: all of its rows are in the binlog, and if `remember`, that is
    /// noted, so that no later start reads them once more.
    pub(crate) fn table_seen(&mut self, table: &Arc<Table>, remember: bool, out: &mut SourceBatch) -> Result<()> {
        let name = table.full_name();
        self.known.insert(name.clone(), Arc::clone(table));
        if remember && !self.positions.contains_key(&name) && !self.waiting.contains(&name) {
            self.set(&name, TablePosition::Done, out)?;
        }
        Ok(())
    }

    pub(crate) fn watch(&self, full_name: &str) -> Watch {
        if self.recording.as_ref().is_some_and(|recording| recording.table == full_name) {
            Watch::Record
        } else if self.suppressed.contains(full_name) {
            Watch::Suppress
        } else {
            Watch::HandOut
        }
    }

    /// From now on the changes of this table are recorded.
    pub(crate) fn record(&mut self, full_name: &str) {
        self.recording = Some(Recording { table: full_name.to_owned(), touched: HashSet::new(), stale: false });
    }

    pub(crate) fn touched(&mut self, key: &[u8]) {
        if let Some(recording) = &mut self.recording
            && !recording.stale
            && !recording.touched.contains(key)
        {
            recording.touched.insert(key.to_vec());
            if recording.touched.len() > MOST_TOUCHED {
                recording.touched = HashSet::new();
                recording.stale = true;
            }
        }
    }

    pub(crate) fn definition_changed(&mut self) {
        if let Some(recording) = &mut self.recording {
            recording.stale = true;
        }
    }

    /// Ends the recording: the keys that were touched, or `None` if what was read cannot be taken.
    pub(crate) fn recorded(&mut self) -> Option<HashSet<Vec<u8>>> {
        self.recording.take().filter(|recording| !recording.stale).map(|recording| recording.touched)
    }

    /// Notes that a table is handed out up to a key.
    pub(crate) fn advance(&mut self, full_name: &str, key: Vec<String>, out: &mut SourceBatch) -> Result<()> {
        let position = match self.positions.get(full_name) {
            Some(TablePosition::Again(_)) => TablePosition::Again(key),
            Some(TablePosition::Where { condition, .. }) => {
                TablePosition::Where { condition: condition.clone(), after: key }
            }
            _ => TablePosition::After(key),
        };
        self.set(full_name, position, out)
    }

    /// Notes how far a table is.
    pub(crate) fn set(&mut self, full_name: &str, position: TablePosition, out: &mut SourceBatch) -> Result<()> {
        out.set_position(&table_key(full_name), Some(position.to_bytes()?));
        if position == TablePosition::Done {
            self.waiting.retain(|name| name != full_name);
            self.suppressed.remove(full_name);
        }
        self.positions.insert(full_name.to_owned(), position);
        Ok(())
    }
}
