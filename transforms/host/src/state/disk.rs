//! The committed entries of a topic partition on disk: rows in sorted tables.
//!
//! # Rows
//! | key | value |
//! |---|---|
//! | `e`, key | when the entry expires, and its value |
//! | `x`, time, key | an entry that expires at this time; empty |
//!
//! A write stores the committed changes and the checkpoint together (see `tables.rs`).
//!
//! # Folders
//! `{component}/{topic}/{partition}` in the folder for state. `lock` in it is locked while the
//! state is open. `tables` is removed when it cannot be trusted; `damaged` marks one that was
//! damaged while it was open.

use std::fmt;
use std::fs::{File, TryLockError};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use trunkline_connector::{Error, io_error};

use super::tables::{self, MANIFEST, TableError, Tables};
use super::{KeyAndValue, StateEntry};

/// Greatest size of a key. A table stores the length of its keys, with a prefix, in 16 bits.
pub(crate) const MAX_KEY_BYTES: usize = 64_000;

const ENTRY: u8 = b'e';
const EXPIRY: u8 = b'x';

/// The folder of the tables.
const TABLES: &str = "tables";
/// The file that marks tables in which damage was found.
const DAMAGED: &str = "damaged";
/// Time between two looks at a lock that another thread holds.
const POLL: Duration = Duration::from_millis(2);
/// Time for an earlier owner in this process to close the state.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The folder for the state of transforms on disk, and the memory of its caches. Clones share
/// both.
#[derive(Clone)]
pub struct StateDisk {
    folder: PathBuf,
    cache_bytes: usize,
    /// Number of open states.
    open: Arc<AtomicUsize>,
}

/// What a state on disk belongs to. With another identity it is worthless.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateIdentity {
    /// The id of the Kafka cluster.
    pub cluster: String,
    /// The id of the changelog topic: a topic that was created again has another one.
    pub topic: String,
}

/// What the rows on disk hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Checkpoint {
    /// Where the rows can be trusted.
    pub(super) position: Option<Position>,
    /// The time of the partition.
    pub(super) time: Option<i64>,
    /// Number of entries.
    pub(super) len: usize,
    /// Their size, as the limit counts it.
    pub(super) bytes: usize,
}

/// A position in a changelog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) identity: StateIdentity,
    /// All committed changes before this offset are in the rows; perhaps also later ones.
    pub(super) offset: i64,
    /// Every change from the offset on was written after this time: milliseconds since 1970.
    pub(super) since: i64,
}

/// A folder that is locked while it exists.
struct LockedFolder {
    path: PathBuf,
    _lock: File,
}

/// The open state of a topic partition.
pub(super) struct DiskStore {
    tables: Tables,
    folder: Arc<LockedFolder>,
    disk: StateDisk,
    /// For a row that is looked up or written.
    key: Vec<u8>,
}

impl StateDisk {
    /// Files that the state of a topic partition has open at most: the lock of its folder is one.
    pub const MAX_FILES: usize = tables::MAX_FILES + 1;

    /// The caches of all states in this folder may use `cache_bytes` of memory.
    pub fn new(folder: &Path, cache_bytes: usize) -> Self {
        Self { folder: folder.to_owned(), cache_bytes, open: Arc::default() }
    }

    /// The memory that each open state may use.
    pub(super) fn share(&self) -> usize {
        self.cache_bytes / self.open.load(Ordering::Relaxed).max(1)
    }

    /// Removes the states of a component: of a run that is over.
    pub fn remove(&self, component: &str) -> Result<(), Error> {
        remove_folder(&self.folder.join(component))
    }

    /// Removes states that were not written for `age`, unless they are open: they cannot be trusted
    /// any more. Errors are logged.
    pub fn remove_older_than(&self, age: Duration) {
        let folders = |folder: &Path| -> Vec<PathBuf> {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
        };
        for partition in
            folders(&self.folder).iter().flat_map(|component| folders(component)).flat_map(|it| folders(&it))
        {
            let written = std::fs::metadata(partition.join(TABLES).join(MANIFEST)).and_then(|file| file.modified());
            let is_old = written.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
            // While it is locked, no task of this worker opens it.
            if is_old && let Ok(Some(locked)) = LockedFolder::try_new(&partition) {
                match remove_folder(&partition.join(TABLES)) {
                    Ok(()) => tracing::info!(folder = %locked.path.display(), "removed an outdated copy of state"),
                    Err(error) => tracing::warn!("an outdated copy of state remains: {error}"),
                }
            }
        }
    }

    /// Opens the state of a topic partition of a component. An unreadable one is removed.
    pub(super) fn open(&self, component: &str, topic: &str, partition: i32) -> Result<DiskStore, Error> {
        let folder = Arc::new(LockedFolder::new(&self.folder.join(component).join(topic).join(partition.to_string()))?);
        let (path, mark) = (folder.path.join(TABLES), folder.path.join(DAMAGED));
        if mark.exists() {
            remove_folder(&path)?;
            std::fs::remove_file(&mark).map_err(|error| io_error("remove", &mark, &error))?;
        }
        let tables = match Tables::open(&path) {
            Err(TableError::Io(error)) if !is_damage(&error) => {
                return Err(io_error("open the state in", &path, &error));
            }
            Err(error) => {
                tracing::warn!(folder = %path.display(), "a copy of state is unreadable and is restored from Kafka: {error}");
                remove_folder(&path)?;
                Tables::open(&path).map_err(|error| disk_error("open", &path, error))?
            }
            Ok(tables) => tables,
        };
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(DiskStore { tables, folder, disk: self.clone(), key: Vec::new() })
    }
}

impl fmt::Debug for StateDisk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("StateDisk").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl LockedFolder {
    /// Waits while an earlier owner closes it.
    fn new(path: &Path) -> Result<Self, Error> {
        // The rows are records in plain text.
        let mut builder = std::fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(|error| io_error("create", path, &error))?;
        let started = Instant::now();
        loop {
            if let Some(locked) = Self::try_new(path).map_err(|error| io_error("lock", path, &error))? {
                return Ok(locked);
            }
            if started.elapsed() > LOCK_PATIENCE {
                let message = format!(
                    "another task still uses the state in {}: the stage tries again. If another worker uses the folder, \
                     give each worker its own `state_folder`",
                    path.display()
                );
                return Err(Error::external("plugin.state_in_use", message));
            }
            thread::park_timeout(POLL);
        }
    }

    fn try_new(path: &Path) -> std::io::Result<Option<Self>> {
        let lock = File::options().write(true).create(true).truncate(false).open(path.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => Ok(Some(Self { path: path.to_owned(), _lock: lock })),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

impl DiskStore {
    pub(super) fn disk(&self) -> &StateDisk {
        &self.disk
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        self.tables.bytes()
    }

    /// Memory of what finds the rows: two to three bytes for each row.
    pub(super) fn index_bytes(&self) -> usize {
        self.tables.index_bytes()
    }

    /// Removes all rows, with their files.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        if self.tables.is_empty() {
            return Ok(());
        }
        self.tables.stop_merge();
        let path = self.folder.path.join(TABLES);
        remove_folder(&path)?;
        self.tables = Tables::open(&path).map_err(|error| disk_error("clear", &path, error))?;
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> Option<Checkpoint> {
        Checkpoint::from_json(self.tables.checkpoint()?)
    }

    pub(super) fn get(&mut self, key: &[u8]) -> Result<Option<StateEntry>, Error> {
        self.key.clear();
        self.key.push(ENTRY);
        self.key.extend_from_slice(key);
        match self.tables.get(&self.key) {
            Ok(None) => Ok(None),
            Ok(Some(row)) => match decode_entry(row) {
                Some(entry) => Ok(Some(entry)),
                None => Err(self.damaged()),
            },
            Err(error) => Err(self.failed("read", error)),
        }
    }

    /// The entries from `start` on, before `end`, in the order of their keys.
    pub(super) fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Arc<[u8]>, StateEntry), Error>> {
        let end = end.map_or_else(|| vec![ENTRY + 1], entry_key);
        self.rows(entry_key(start), move |key, row| {
            let key = key.get(1..).filter(|_| *key < *end)?;
            Some(decode_entry(row).map(|entry| (Arc::from(key), entry)))
        })
    }

    /// The rows of expiries after a row, in the order of their times, each with its time and key.
    pub(super) fn expiries(&self, after: Option<&[u8]>) -> impl Iterator<Item = Result<(Arc<[u8]>, i64), Error>> {
        // No row is between a key and the key with a zero behind it.
        let start = after.map_or_else(|| vec![EXPIRY], |after| [after, &[0]].concat());
        self.rows(start, |key, _| {
            let (&EXPIRY, rest) = key.split_first()? else { return None };
            let time = rest.first_chunk().map(|time| ordered_time(i64::from_be_bytes(*time)));
            Some(time.map(|time| (Arc::from(key), time)))
        })
    }

    /// The rows from `start` on, until `parse` returns `None`. It returns `Some(None)` for a row of
    /// an unknown format.
    fn rows<T>(
        &self,
        start: Vec<u8>,
        parse: impl Fn(&[u8], &[u8]) -> Option<Option<T>>,
    ) -> impl Iterator<Item = Result<T, Error>> {
        let (mut rows, mut failure) = match self.tables.rows_from(&start) {
            Ok(rows) => (Some(rows), None),
            Err(error) => (None, Some(error)),
        };
        std::iter::from_fn(move || {
            if let Some(error) = failure.take() {
                return Some(Err(self.failed("read", error)));
            }
            match rows.as_mut()?.next() {
                Ok(Some((key, value))) => Some(parse(key, value)?.ok_or_else(|| self.damaged())),
                Ok(None) => None,
                Err(error) => {
                    rows = None;
                    Some(Err(self.failed("read", error)))
                }
            }
        })
    }

    /// Writes changed entries, rows of expiries (false: to be removed), and the checkpoint. Entries
    /// and expiries are sorted, and no key comes twice.
    pub(super) fn write<'e>(
        &mut self,
        checkpoint: &Checkpoint,
        entries: impl Iterator<Item = (&'e [u8], Option<&'e StateEntry>)>,
        expiries: impl Iterator<Item = (Vec<u8>, bool)>,
    ) -> Result<(), Error> {
        let (key_buffer, mut row) = (&mut self.key, Vec::new());
        let written = self.tables.write(checkpoint.to_json(), |writer| {
            for (key, entry) in entries {
                key_buffer.clear();
                key_buffer.push(ENTRY);
                key_buffer.extend_from_slice(key);
                let row = entry.map(|entry| encode_entry(entry, &mut row));
                writer.add(key_buffer, row)?;
            }
            for (key, expires) in expiries {
                writer.add(&key, expires.then_some(&[]))?;
            }
            Ok(())
        });
        // The folder stays locked until the merge has ended.
        let written = written.and_then(|()| self.tables.merge_if_due(self.folder.clone()));
        written.map_err(|error| self.failed("write", error))
    }

    #[cfg(test)]
    pub(super) fn is_merging(&self) -> bool {
        self.tables.is_merging()
    }

    fn damaged(&self) -> Error {
        self.failed("read", TableError::Damaged("a row has an unknown format".to_owned()))
    }

    /// An error of the tables. After damage, they are removed when the state is opened again.
    fn failed(&self, doing: &str, error: TableError) -> Error {
        let is_damage = match &error {
            TableError::Io(error) => is_damage(error),
            TableError::Damaged(_) => true,
            TableError::Thread(_) | TableError::Stopped => false,
        };
        if is_damage {
            // Best effort: without the mark, the damage is found again.
            let _ = File::create(self.folder.path.join(DAMAGED));
        }
        disk_error(doing, &self.folder.path, error)
    }
}

impl Drop for DiskStore {
    fn drop(&mut self) {
        self.disk.open.fetch_sub(1, Ordering::Relaxed);
    }
}

impl fmt::Debug for DiskStore {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("DiskStore").field("folder", &self.folder.path).finish_non_exhaustive()
    }
}

impl Checkpoint {
    fn to_json(&self) -> Value {
        let position = self.position.as_ref().map(|position| {
            let StateIdentity { cluster, topic } = &position.identity;
            json!({ "cluster": cluster, "topic": topic, "offset": position.offset, "since": position.since })
        });
        json!({ "position": position, "time": self.time, "len": self.len, "bytes": self.bytes })
    }

    /// `None` if another version wrote it.
    fn from_json(row: &Value) -> Option<Self> {
        let size = |name: &str| usize::try_from(row[name].as_u64()?).ok();
        let position = || {
            let position = &row["position"];
            let text = |name: &str| position[name].as_str().map(str::to_owned);
            let identity = StateIdentity { cluster: text("cluster")?, topic: text("topic")? };
            Some(Position { identity, offset: position["offset"].as_i64()?, since: position["since"].as_i64()? })
        };
        Some(Self { position: position(), time: row["time"].as_i64(), len: size("len")?, bytes: size("bytes")? })
    }
}

/// The key of the row of an entry.
fn entry_key(key: &[u8]) -> Vec<u8> {
    [&[ENTRY], key].concat()
}

/// The key of the row of an expiry.
pub(super) fn expiry_key(time: i64, key: &[u8]) -> Vec<u8> {
    [&[EXPIRY], ordered_time(time).to_be_bytes().as_slice(), key].concat()
}

/// The key of the entry that a row of an expiry names.
pub(super) fn key_of_expiry(row: &[u8]) -> &[u8] {
    row.get(9..).unwrap_or_default()
}

/// Moves the sign, so that the bytes of negative times come first. Its own inverse.
fn ordered_time(time: i64) -> i64 {
    time ^ i64::MIN
}

/// The row of an entry, in a buffer.
fn encode_entry<'b>(entry: &StateEntry, row: &'b mut Vec<u8>) -> &'b [u8] {
    row.clear();
    row.push(u8::from(entry.expires_at.is_some()));
    if let Some(time) = entry.expires_at {
        row.extend_from_slice(&time.to_le_bytes());
    }
    row.extend_from_slice(&entry.value);
    row
}

fn decode_entry(row: &[u8]) -> Option<StateEntry> {
    match row.split_first()? {
        (0, value) => Some(StateEntry { value: Arc::from(value), expires_at: None }),
        (1, rest) => {
            let (time, value) = rest.split_first_chunk()?;
            Some(StateEntry { value: Arc::from(value), expires_at: Some(i64::from_le_bytes(*time)) })
        }
        _ => None,
    }
}

/// Whether a file is shorter than the manifest says, or absent, or has another content.
fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

fn disk_error(doing: &str, folder: &Path, error: TableError) -> Error {
    match error {
        TableError::Io(error) => io_error(&format!("{doing} the state in"), folder, &error),
        TableError::Thread(error) => {
            Error::external("plugin.state_thread", format!("cannot start a thread that merges state: {error}"))
        }
        error => {
            let message = format!(
                "cannot {doing} the state in {}: {error}. It is restored from Kafka when the stage starts again; \
                 check the disk if this happens often",
                folder.display()
            );
            Error::external("plugin.state_damaged", message)
        }
    }
}

fn remove_folder(path: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(io_error("remove", path, &error)),
        _ => Ok(()),
    }
}

/// Milliseconds since 1970.
pub(super) fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    now.map_or(0, |since| i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}

/// A row of a range, as the plugin gets it.
pub(super) fn key_and_value((key, entry): (Arc<[u8]>, StateEntry)) -> KeyAndValue {
    (key, entry.value)
}
