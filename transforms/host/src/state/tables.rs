//! Rows on disk: a log-structured merge tree. `docs/adr/040-state-tables.md` has the reasons.
//!
//! - A write adds a table ([`table`]) with all its rows. The manifest names the tables, newest
//!   first, and has the checkpoint; it is replaced by renaming a file, after the table is on the
//!   disk. So a process that dies, or a machine, leaves the rows and the checkpoint of before or of
//!   after.
//! - A thread merges tables into one when there are many. The next write puts it into the manifest.
//! - A lookup asks the filter of each table, newest first, and reads one block of the first that
//!   may have the key.
//! - What is read is verified with checksums. Anything unexpected is [`TableError::Damaged`].
//!
//! There is one owner, no log and no transaction: the changelog in Kafka has what was not written.

mod filter;
mod index;
mod merge;
mod table;
#[cfg(test)]
mod tests;
mod writer;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

use self::merge::Merge;
use self::table::{Lookup, Table};
pub(super) use self::writer::TableWriter;

/// The file that names the tables.
pub(super) const MANIFEST: &str = "manifest";
const NEW_MANIFEST: &str = "manifest.new";
/// Of the manifest. Tables have their own.
const VERSION: u64 = 1;
/// Number of tables that are merged.
const MERGE_AT: usize = 16;
/// Number of tables from which on a write waits for the merge: each lookup asks all of them.
const MAX_TABLES: usize = 32;
/// Files that [`Tables`] have open at most: the tables, the result of a merge, and, while it is
/// written, the manifest and its folder.
pub(super) const MAX_FILES: usize = MAX_TABLES + 3;

/// Why rows cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum TableError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The files are not what was written.
    #[error("{0}")]
    Damaged(String),
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
    /// A merge ended because the rows are not used any more.
    #[error("the merge was stopped")]
    Stopped,
}

/// The rows of a folder.
pub(super) struct Tables {
    folder: PathBuf,
    /// The newest first.
    tables: Vec<Arc<Table>>,
    next_number: u64,
    checkpoint: Option<Value>,
    merging: Option<Merging>,
    /// For the block of a lookup.
    block: Vec<u8>,
}

/// A merge in a thread.
struct Merging {
    thread: JoinHandle<Result<Option<Table>, TableError>>,
    is_stopped: Arc<AtomicBool>,
    inputs: BTreeSet<u64>,
}

impl Tables {
    /// Opens the rows of a folder, which it creates.
    pub(super) fn open(folder: &Path) -> Result<Self, TableError> {
        std::fs::create_dir_all(folder)?;
        let (listed, checkpoint) = match std::fs::read(folder.join(MANIFEST)) {
            Ok(manifest) => {
                let manifest = read_manifest(&manifest);
                manifest.ok_or_else(|| TableError::Damaged(format!("the file `{MANIFEST}` is damaged")))?
            }
            Err(error) if error.kind() == ErrorKind::NotFound => (Vec::new(), None),
            Err(error) => return Err(error.into()),
        };
        let open = |(number, bytes, seed): &(u64, u64, u64)| {
            Table::open(&folder.join(number.to_string()), *number, *bytes, *seed).map(Arc::new)
        };
        let tables: Vec<_> = listed.iter().map(open).collect::<Result<_, _>>()?;
        // What an owner that died had not finished.
        for entry in std::fs::read_dir(folder)? {
            let name = entry?.file_name();
            let number = name.to_str().and_then(|name| name.parse().ok());
            let is_listed = number.is_some_and(|number: u64| tables.iter().any(|table| table.number() == number));
            if !is_listed && name != MANIFEST {
                std::fs::remove_file(folder.join(name))?;
            }
        }
        let next_number = tables.iter().map(|table| table.number() + 1).max().unwrap_or(0);
        Ok(Self { folder: folder.to_owned(), tables, next_number, checkpoint, merging: None, block: Vec::new() })
    }

    /// Of the last write.
    pub(super) fn checkpoint(&self) -> Option<&Value> {
        self.checkpoint.as_ref()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tables.is_empty() && self.checkpoint.is_none()
    }

    /// Size of the files.
    pub(super) fn bytes(&self) -> u64 {
        self.tables.iter().map(|table| table.bytes()).sum()
    }

    /// Memory of the indexes and filters of the tables.
    pub(super) fn index_bytes(&self) -> usize {
        self.tables.iter().map(|table| table.index_bytes()).sum()
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Result<Option<&[u8]>, TableError> {
        let hash = xxh3_64(key);
        for table in &self.tables {
            match table.get(key, hash, &mut self.block)? {
                Lookup::Absent => {}
                Lookup::Removed => return Ok(None),
                Lookup::Value(place) => return Ok(self.block.get(place)),
            }
        }
        Ok(None)
    }

    /// The rows from `start` on, in the order of their keys.
    pub(super) fn rows_from(&self, start: &[u8]) -> Result<Rows, TableError> {
        Ok(Rows(Merge::new(&self.tables, start)?))
    }

    /// Writes the rows that `fill` adds in their order, and a checkpoint.
    pub(super) fn write(
        &mut self,
        checkpoint: Value,
        fill: impl FnOnce(&mut TableWriter) -> Result<(), TableError>,
    ) -> Result<(), TableError> {
        let merged = self.take_merged(false)?;
        let number = self.take_number();
        let mut writer = TableWriter::new(&self.folder.join(number.to_string()), number)?;
        fill(&mut writer)?;
        if !writer.is_empty() {
            self.tables.insert(0, Arc::new(writer.finish()?));
        }
        self.checkpoint = Some(checkpoint);
        self.write_manifest()?;
        remove(merged);
        Ok(())
    }

    /// Starts a merge if there are many tables, and none is running. Waits for it when there are
    /// too many. `guard` is dropped when the thread does not use the folder any more.
    pub(super) fn merge_if_due(&mut self, guard: impl Send + 'static) -> Result<(), TableError> {
        if self.tables.len() >= MERGE_AT && self.merging.is_none() {
            self.start_merge(guard)?;
        }
        if self.tables.len() >= MAX_TABLES {
            let merged = self.take_merged(true)?;
            self.write_manifest()?;
            remove(merged);
        }
        Ok(())
    }

    fn start_merge(&mut self, guard: impl Send + 'static) -> Result<(), TableError> {
        let count = merged_tables(&self.tables.iter().map(|table| table.bytes()).collect::<Vec<_>>());
        let inputs: Vec<_> = self.tables.iter().take(count).cloned().collect();
        let keeps_removed = count < self.tables.len();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let numbers = inputs.iter().map(|table| table.number()).collect();
        let number = self.take_number();
        let path = self.folder.join(number.to_string());
        let thread = std::thread::Builder::new().name("state-merge".to_owned()).spawn({
            let is_stopped = is_stopped.clone();
            move || {
                let merged = merge(&inputs, keeps_removed, (&path, number), &is_stopped);
                drop((inputs, guard));
                merged
            }
        });
        let thread = thread.map_err(TableError::Thread)?;
        self.merging = Some(Merging { thread, is_stopped, inputs: numbers });
        Ok(())
    }

    /// Puts the result of a merge that has ended in the place of its inputs. Returns these: their
    /// files are needed until the manifest is written. `waits`: for a merge that is running.
    fn take_merged(&mut self, waits: bool) -> Result<Vec<Arc<Table>>, TableError> {
        let Some(merging) = self.merging.take_if(|merging| waits || merging.thread.is_finished()) else {
            return Ok(Vec::new());
        };
        let ended = merging.thread.join();
        let merged =
            ended.map_err(|_| TableError::Io(std::io::Error::other("the thread that merges tables failed")))??;
        let is_input = |table: &Arc<Table>| merging.inputs.contains(&table.number());
        let at = self.tables.iter().position(is_input).unwrap_or(0);
        let (inputs, mut others): (Vec<_>, Vec<_>) = self.tables.drain(..).partition(is_input);
        if let Some(merged) = merged {
            others.insert(at, Arc::new(merged));
        }
        self.tables = others;
        Ok(inputs)
    }

    /// Whether a merge is running.
    #[cfg(test)]
    pub(super) fn is_merging(&self) -> bool {
        self.merging.as_ref().is_some_and(|merging| !merging.thread.is_finished())
    }

    /// Stops a merge, and waits for its thread. Its result is discarded.
    pub(super) fn stop_merge(&mut self) {
        if let Some(merging) = self.merging.take() {
            merging.is_stopped.store(true, Ordering::Relaxed);
            let _ = merging.thread.join();
        }
    }

    fn take_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number - 1
    }

    /// The manifest: a line of JSON, and its checksum.
    fn write_manifest(&self) -> Result<(), TableError> {
        let tables: Vec<Value> =
            self.tables.iter().map(|table| json!([table.number(), table.bytes(), table.seed()])).collect();
        let line = json!({ "version": VERSION, "checkpoint": self.checkpoint, "tables": tables }).to_string();
        let new = self.folder.join(NEW_MANIFEST);
        let mut file = File::create(&new)?;
        writeln!(file, "{line}\n{:016x}", xxh3_64(line.as_bytes()))?;
        file.sync_all()?;
        // The names of new tables must be on the disk before the manifest names them.
        let folder = File::open(&self.folder)?;
        folder.sync_all()?;
        std::fs::rename(&new, self.folder.join(MANIFEST))?;
        folder.sync_all()?;
        Ok(())
    }
}

impl Drop for Tables {
    fn drop(&mut self) {
        // The thread ends soon, and keeps its guard until then.
        if let Some(merging) = &self.merging {
            merging.is_stopped.store(true, Ordering::Relaxed);
        }
    }
}

/// A row that was not removed.
type KeyAndValue<'r> = (&'r [u8], &'r [u8]);

/// Rows in the order of their keys. The tables stay as they are meanwhile.
pub(super) struct Rows(Merge);

impl Rows {
    /// The next row that was not removed.
    pub(super) fn next(&mut self) -> Result<Option<KeyAndValue<'_>>, TableError> {
        while let Some((_, None)) = self.0.next()? {}
        Ok(self.0.current().and_then(|(key, value)| Some((key, value?))))
    }
}

/// The tables of the manifest with number, size and seed, and the checkpoint.
type Manifest = (Vec<(u64, u64, u64)>, Option<Value>);

fn read_manifest(bytes: &[u8]) -> Option<Manifest> {
    let (line, checksum) = std::str::from_utf8(bytes).ok()?.trim_end().split_once('\n')?;
    if checksum != format!("{:016x}", xxh3_64(line.as_bytes())) {
        return None;
    }
    let mut manifest: Value = serde_json::from_str(line).ok()?;
    if manifest["version"].as_u64()? != VERSION {
        return None;
    }
    let table = |table: &Value| Some((table[0].as_u64()?, table[1].as_u64()?, table[2].as_u64()?));
    let tables = manifest["tables"].as_array()?.iter().map(table).collect::<Option<_>>()?;
    let checkpoint = manifest["checkpoint"].take();
    Some((tables, (!checkpoint.is_null()).then_some(checkpoint)))
}

/// How many of the newest tables to merge, by their sizes: as many as possible, of which the oldest
/// is at most twice as large as the others together. So a row is copied a number of times that
/// grows with the logarithm of the state, and the number of tables that remain does, too.
fn merged_tables(sizes: &[u64]) -> usize {
    let mut newer = 0;
    let mut count = sizes.len() / 2;
    for (at, size) in sizes.iter().enumerate() {
        if at > 0 && *size <= 2 * newer {
            count = at + 1;
        }
        newer += size;
    }
    count
}

/// Merges tables, the newest first; `None` if no row remains.
fn merge(
    inputs: &[Arc<Table>],
    keeps_removed: bool,
    (path, number): (&Path, u64),
    is_stopped: &AtomicBool,
) -> Result<Option<Table>, TableError> {
    let mut writer = TableWriter::new(path, number)?;
    let mut rows = Merge::new(inputs, &[])?;
    while let Some((key, value)) = rows.next()? {
        if is_stopped.load(Ordering::Relaxed) {
            return Err(TableError::Stopped);
        }
        if value.is_some() || keeps_removed {
            writer.add(key, value)?;
        }
    }
    if writer.is_empty() { Ok(None) } else { writer.finish().map(Some) }
}

/// Removes the files of merged tables. Those that cannot be removed are when the folder is opened.
fn remove(merged: Vec<Arc<Table>>) {
    for table in merged {
        let _ = std::fs::remove_file(table.path());
    }
}
