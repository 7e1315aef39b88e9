//! The committed entries of a topic partition on disk: a log-structured merge tree of the crate
//! `lsm-tree`. `docs/adr/031-state-on-disk.md` has the reasons.
//!
//! # Rows
//! | key | value |
//! |---|---|
//! | `c` | the checkpoint: what the rows hold |
//! | `e`, key | when the entry expires, and its value |
//! | `x`, time, key | an entry that expires at this time; empty |
//!
//! # Writes The committed changes are written as one sorted table with the checkpoint. The tree
//!   registers a table by renaming a file, so that a process that dies, or a machine, leaves the
//!   rows of before or of after. There is no log of its own: the changelog in Kafka has what was
//!   not written.
//!
//! # Folders
//! `{component}/{topic}/{partition}` in the folder for state. `lock` in it is locked while the
//! state is open. `tree` is removed when it cannot be trusted; `damaged` marks one that was damaged
//! while it was open.

use std::fmt;
use std::fs::{File, TryLockError};
use std::ops::Bound;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use lsm_tree::compaction::Leveled;
use lsm_tree::config::{CompressionPolicy, PartitioningPolicy, PinningPolicy};
use lsm_tree::{AbstractTree, AnyTree, Cache, Config, DescriptorTable, Guard, SeqNo, SequenceNumberCounter};
use serde_json::{Value, json};
use trunkline_connector::{Error, io_error};

use super::{KeyAndValue, StateEntry};

/// Greatest size of a key. The tree stores the length of its keys, with a prefix, in 16 bits.
pub(crate) const MAX_KEY_BYTES: usize = 64_000;

const CHECKPOINT: &[u8] = b"c";
const ENTRY: u8 = b'e';
const EXPIRY: u8 = b'x';
/// The row after all expiries.
const PAST_EXPIRIES: &[u8] = b"y";

/// The file that marks a tree in which damage was found.
const DAMAGED: &str = "damaged";
/// Size of the tables of the tree. Smaller ones make compactions shorter.
const TABLE_BYTES: u64 = 16 << 20;
/// A smaller cache holds no block of each kind.
const MIN_BLOCK_CACHE: usize = 64 << 10;
/// Open files of all trees.
const MAX_OPEN_FILES: usize = 200;
/// Written tables that are merged.
const COMPACT_AT: usize = 16;
/// Written tables from which on a write waits for the compaction: each read looks at all of them.
const MAX_RUNS: usize = 32;
/// Time between two looks at a compaction or a lock that another thread holds.
const POLL: Duration = Duration::from_millis(2);
/// Time for an earlier owner in this process to close the state.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// The folder for the state of transforms on disk, and the memory of its caches. Clones share
/// both.
#[derive(Clone)]
pub struct StateDisk {
    folder: PathBuf,
    cache_bytes: usize,
    blocks: Arc<Cache>,
    files: Arc<DescriptorTable>,
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

/// A row to be written; without a value, to be removed.
pub(super) type Row = (Vec<u8>, Option<Vec<u8>>);

/// A folder that is locked while it exists.
struct LockedFolder {
    path: PathBuf,
    _lock: File,
}

/// The open state of a topic partition.
pub(super) struct DiskStore {
    tree: AnyTree,
    numbers: SequenceNumberCounter,
    folder: Arc<LockedFolder>,
    disk: StateDisk,
    compaction: Arc<Compaction>,
}

/// A compaction in a thread.
#[derive(Default)]
struct Compaction {
    is_running: AtomicBool,
    error: Mutex<Option<lsm_tree::Error>>,
}

impl StateDisk {
    /// The caches of all states in this folder may use `cache_bytes` of memory.
    pub fn new(folder: &Path, cache_bytes: usize) -> Self {
        Self {
            folder: folder.to_owned(),
            cache_bytes,
            blocks: Arc::new(Cache::with_capacity_bytes((cache_bytes / 4).max(MIN_BLOCK_CACHE) as u64)),
            files: Arc::new(DescriptorTable::new(MAX_OPEN_FILES)),
            open: Arc::default(),
        }
    }

    /// The memory that each open state may use for entries.
    pub(super) fn share(&self) -> usize {
        (self.cache_bytes - self.cache_bytes / 4) / self.open.load(Ordering::Relaxed).max(1)
    }

    /// The memory that each open state uses for blocks of the disk.
    pub(super) fn block_share(&self) -> usize {
        let used = usize::try_from(self.blocks.size()).unwrap_or(usize::MAX);
        used / self.open.load(Ordering::Relaxed).max(1)
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
            let written = std::fs::metadata(partition.join("tree/current")).and_then(|file| file.modified());
            let is_old = written.is_ok_and(|at| at.elapsed().is_ok_and(|elapsed| elapsed > age));
            // While it is locked, no task of this worker opens it.
            if is_old && let Ok(Some(locked)) = LockedFolder::try_new(&partition) {
                match remove_folder(&partition.join("tree")) {
                    Ok(()) => tracing::info!(folder = %locked.path.display(), "removed an outdated copy of state"),
                    Err(error) => tracing::warn!("an outdated copy of state remains: {error}"),
                }
            }
        }
    }

    /// Opens the state of a topic partition of a component. An unreadable one is removed.
    pub(super) fn open(&self, component: &str, topic: &str, partition: i32) -> Result<DiskStore, Error> {
        let folder = Arc::new(LockedFolder::new(&self.folder.join(component).join(topic).join(partition.to_string()))?);
        let (path, mark) = (folder.path.join("tree"), folder.path.join(DAMAGED));
        if mark.exists() {
            remove_folder(&path)?;
            std::fs::remove_file(&mark).map_err(|error| io_error("remove", &mark, &error))?;
        }
        match DiskStore::new(self, folder.clone()) {
            Err(lsm_tree::Error::Io(error)) if !is_damage(&error) => Err(io_error("open the state in", &path, &error)),
            Err(error) => {
                tracing::warn!(folder = %path.display(), "a copy of state is unreadable and is restored from Kafka: {error}");
                remove_folder(&path)?;
                DiskStore::new(self, folder).map_err(|error| disk_error("open", &path, error))
            }
            Ok(store) => Ok(store),
        }
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
    fn new(disk: &StateDisk, folder: Arc<LockedFolder>) -> lsm_tree::Result<Self> {
        let numbers = SequenceNumberCounter::default();
        let tree = Config::new(folder.path.join("tree"), numbers.clone(), SequenceNumberCounter::default())
            .use_cache(disk.blocks.clone())
            .use_descriptor_table(Some(disk.files.clone()))
            .data_block_compression_policy(CompressionPolicy::disabled())
            // Ten bits for each key. A filter that is not in memory is read from its file, and
            // checked, as a whole for each key that is looked up.
            .filter_block_pinning_policy(PinningPolicy::all(true))
            .filter_block_partitioning_policy(PartitioningPolicy::all(false))
            .index_block_pinning_policy(PinningPolicy::all(true))
            .index_block_partitioning_policy(PartitioningPolicy::all(false))
            .open()?;
        // Tables with a greater number hide those with a lower one.
        numbers.set(tree.get_highest_seqno().map_or(0, |highest| highest + 1));
        disk.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self { tree, numbers, folder, disk: disk.clone(), compaction: Arc::default() })
    }

    pub(super) fn disk(&self) -> &StateDisk {
        &self.disk
    }

    /// Bytes of its files.
    pub(super) fn bytes(&self) -> u64 {
        self.tree.disk_space()
    }

    /// Memory of what finds the rows: the filters and indexes of the tables, about two bytes for
    /// each row.
    pub(super) fn pinned_bytes(&self) -> usize {
        self.tree.pinned_filter_size() + self.tree.pinned_block_index_size()
    }

    /// Removes all rows, with their files.
    pub(super) fn clear(&mut self) -> Result<(), Error> {
        if self.tree.table_count() == 0 {
            return Ok(());
        }
        while self.compaction.is_running.load(Ordering::Acquire) {
            thread::park_timeout(POLL);
        }
        let path = self.folder.path.join("tree");
        remove_folder(&path)?;
        let cleared = Self::new(&self.disk, self.folder.clone());
        *self = cleared.map_err(|error| disk_error("clear", &path, error))?;
        Ok(())
    }

    pub(super) fn checkpoint(&self) -> Result<Option<Checkpoint>, Error> {
        let row = self.tree.get(CHECKPOINT, SeqNo::MAX).map_err(|error| self.failed("read", error))?;
        Ok(row.and_then(|row| Checkpoint::from_json(&row)))
    }

    pub(super) fn get(&self, key: &[u8]) -> Result<Option<StateEntry>, Error> {
        let mut buffer = [0; 128];
        // Most keys are short, and a row of them needs no allocation.
        let row = match buffer.get_mut(..=key.len()) {
            Some(row_key) => {
                row_key[0] = ENTRY;
                row_key[1..].copy_from_slice(key);
                self.tree.get(&*row_key, SeqNo::MAX)
            }
            None => self.tree.get(entry_key(key), SeqNo::MAX),
        };
        let row = row.map_err(|error| self.failed("read", error))?;
        row.map(|row| decode_entry(&row).ok_or_else(|| self.damaged())).transpose()
    }

    /// The entries from `start` on, before `end`, in the order of their keys.
    pub(super) fn range(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Arc<[u8]>, StateEntry), Error>> {
        let end = end.map_or_else(|| vec![ENTRY + 1], entry_key);
        let rows = self.tree.range((Bound::Included(entry_key(start)), Bound::Excluded(end)), SeqNo::MAX, None);
        rows.map(|row| {
            let (key, value) = row.into_inner().map_err(|error| self.failed("read", error))?;
            let entry = decode_entry(&value).ok_or_else(|| self.damaged())?;
            Ok((Arc::from(key.get(1..).unwrap_or_default()), entry))
        })
    }

    /// The rows of expiries after a row, in the order of their times, each with its time and key.
    pub(super) fn expiries(&self, after: Option<&[u8]>) -> impl Iterator<Item = Result<(Arc<[u8]>, i64), Error>> {
        let start = after.map_or_else(|| Bound::Included([EXPIRY].as_slice()), Bound::Excluded);
        let rows = self.tree.range::<&[u8], _>((start, Bound::Excluded(PAST_EXPIRIES)), SeqNo::MAX, None);
        rows.map(|row| {
            let key = row.key().map_err(|error| self.failed("read", error))?;
            let time = key.get(1..9).and_then(|time| time.try_into().ok()).ok_or_else(|| self.damaged())?;
            Ok((Arc::from(&*key), ordered_time(i64::from_be_bytes(time))))
        })
    }

    /// Writes rows and the checkpoint. The rows are sorted by their keys, and no key comes twice.
    pub(super) fn write(&self, checkpoint: &Checkpoint, rows: impl Iterator<Item = Row>) -> Result<(), Error> {
        let error = self.compaction.error.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(error) = error {
            return Err(self.failed("write", error));
        }
        let write = || {
            let mut ingestion = self.tree.ingestion()?;
            ingestion.write(CHECKPOINT, checkpoint.to_json())?;
            for (key, value) in rows {
                match value {
                    Some(value) => ingestion.write(key, value)?,
                    None => ingestion.write_tombstone(key)?,
                }
            }
            ingestion.finish()
        };
        write().map_err(|error| self.failed("write", error))?;
        if self.tree.l0_run_count() >= COMPACT_AT {
            self.compact()?;
        }
        Ok(())
    }

    /// Starts a compaction, unless one is running. Waits for it when too many tables are to be
    /// merged.
    fn compact(&self) -> Result<(), Error> {
        if !self.compaction.is_running.swap(true, Ordering::AcqRel) {
            let (tree, numbers, compaction) = (self.tree.clone(), self.numbers.clone(), self.compaction.clone());
            // The folder stays locked until the thread has ended.
            let folder = self.folder.clone();
            let work = move || {
                // A strategy without work ends the loop, too: nothing remains to be merged.
                let mut runs = usize::MAX;
                while (COMPACT_AT..runs).contains(&tree.l0_run_count()) {
                    runs = tree.l0_run_count();
                    let strategy = Arc::new(Leveled::default().with_table_target_size(TABLE_BYTES));
                    if let Err(error) = tree.compact(strategy, numbers.get()) {
                        *compaction.error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                        break;
                    }
                }
                drop((tree, folder));
                compaction.is_running.store(false, Ordering::Release);
            };
            thread::Builder::new().name("state-compaction".to_owned()).spawn(work).map_err(|error| {
                self.compaction.is_running.store(false, Ordering::Release);
                Error::external("plugin.state_thread", format!("cannot start a thread: {error}"))
            })?;
        }
        while self.tree.l0_run_count() >= MAX_RUNS && self.compaction.is_running.load(Ordering::Acquire) {
            thread::park_timeout(POLL);
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn is_compacting(&self) -> bool {
        self.compaction.is_running.load(Ordering::Acquire)
    }

    fn damaged(&self) -> Error {
        self.failed("read", lsm_tree::Error::Unrecoverable)
    }

    /// An error of the tree. After damage, the tree is removed when the state is opened again.
    fn failed(&self, doing: &str, error: lsm_tree::Error) -> Error {
        if !matches!(&error, lsm_tree::Error::Io(error) if !is_damage(error)) {
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
    fn to_json(&self) -> Vec<u8> {
        let position = self.position.as_ref().map(|position| {
            let StateIdentity { cluster, topic } = &position.identity;
            json!({ "cluster": cluster, "topic": topic, "offset": position.offset, "since": position.since })
        });
        let row = json!({ "position": position, "time": self.time, "len": self.len, "bytes": self.bytes });
        row.to_string().into_bytes()
    }

    /// `None` if another version wrote it.
    fn from_json(row: &[u8]) -> Option<Self> {
        let row: Value = serde_json::from_slice(row).ok()?;
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
pub(super) fn entry_key(key: &[u8]) -> Vec<u8> {
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

/// The row of an entry.
pub(super) fn encode_entry(entry: &StateEntry) -> Vec<u8> {
    let mut row = Vec::with_capacity(9 + entry.value.len());
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

/// Whether a file is shorter than the tree expects, or absent, or has another content.
fn is_damage(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

fn disk_error(doing: &str, folder: &Path, error: lsm_tree::Error) -> Error {
    match error {
        lsm_tree::Error::Io(error) => io_error(&format!("{doing} the state in"), folder, &error),
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
