//! The durable state of a plugin for one topic partition: the host's side of the interface `state`.
//!
//! The caller writes the changes of its transaction to a changelog ([`StateStore::changes`]), and
//! calls [`StateStore::commit`] or [`StateStore::abort`] when the transaction has ended. A new
//! owner of the partition fills an empty store from the changelog ([`StateStore::restore`]).
//!
//! A store is in memory ([`StateStore::new`]), or on disk with a cache in memory
//! ([`StateStore::on_disk`]): see `state/cache.rs`.
//!
//! # Savepoints
//! Changes are applied to the entries at once. An undo log for each savepoint holds the previous
//! entries of the changed keys. The lowest log belongs to the transaction; [`Instance`] opens one
//! for each batch and each call, so that a crash or a failed batch takes back exactly its own
//! changes.
//!
//! [`Instance`]: crate::Instance

mod cache;
mod disk;
#[cfg(test)]
mod disk_tests;
mod index;
mod slots;
mod tables;
#[cfg(test)]
mod tests;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::BuildHasher;
use std::ops::Bound;
use std::sync::Arc;

use trunkline_connector::{Batch, Error};

use self::cache::DiskCache;
use self::disk::MAX_KEY_BYTES;
pub use self::disk::{StateDisk, StateIdentity};
use self::index::SlotIndex;
use self::slots::{KeyHash, Slot, SlotId, TOUCHED_AT_ONCE};

/// Greatest size of key and value together. A record of this size fits into every topic with
/// Kafka's default limit of 1 MiB.
pub(crate) const MAX_ENTRY_BYTES: usize = 512 << 10;
/// Greatest size of the entries that one call of `range` returns.
const MAX_RANGE_BYTES: usize = 1 << 20;
/// Estimated memory of an entry apart from its key and value.
const ENTRY_OVERHEAD_BYTES: usize = 128;
/// Greatest memory of the changes of one call: they stay in memory until the transaction ends.
const MAX_CALL_BYTES: usize = 64 << 20;

/// The collection of a table's rows.
const TABLE: &[u8] = b"table\0";

/// The key in a [`StateStore`] of the row of a table.
pub fn table_key(key: &[u8]) -> Vec<u8> {
    [TABLE, key].concat()
}

/// An entry that `range` returns.
pub(crate) type KeyAndValue = (Arc<[u8]>, Arc<[u8]>);

/// The value of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StateEntry {
    /// The value.
    pub value: Arc<[u8]>,
    /// The entry expires when the partition's time reaches this: milliseconds since 1970.
    pub expires_at: Option<i64>,
}

/// The changes since a savepoint.
#[derive(Debug, Default)]
struct UndoLog {
    /// Never used again for another log.
    savepoint: u64,
    /// At most one for each slot.
    changes: Vec<Change>,
    time: Option<i64>,
    /// The last row among the expiries on disk that was looked at.
    expired: Option<Arc<[u8]>>,
    bytes: usize,
}

#[derive(Debug)]
struct Change {
    slot: SlotId,
    /// `None` if the key had no entry.
    previous: Option<StateEntry>,
    /// The slot's `savepoint` before.
    savepoint: u64,
}

/// The state of one topic partition.
#[derive(Debug)]
pub struct StateStore {
    slots: Vec<Slot>,
    free: Vec<SlotId>,
    index: SlotIndex,
    key_hash: KeyHash,
    /// The keys with an entry in their order, once `range` was called.
    order: Option<BTreeMap<Arc<[u8]>, SlotId>>,
    /// The entries with a TTL, by the time at which they expire.
    expiries: BTreeSet<(i64, SlotId)>,
    /// Number of entries.
    len: usize,
    /// The greatest timestamp of the processed records.
    time: Option<i64>,
    /// The same, including the current batch.
    batch_time: Option<i64>,
    bytes: usize,
    max_bytes: usize,
    is_full: bool,
    /// The first one belongs to the transaction.
    logs: Vec<UndoLog>,
    last_savepoint: u64,
    /// Of a store on disk.
    disk: Option<Box<DiskCache>>,
    /// The first error of the disk: nothing is valid after it.
    failure: Option<Error>,
}

/// The plugin violated a limit; the message becomes the reason of a trap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the state has reached its limit of {0} bytes")]
    Full(usize),
    #[error("an entry of the state has {0} bytes; expected at most {MAX_ENTRY_BYTES}")]
    LargeEntry(usize),
    #[error("a key of the state has {0} bytes; expected at most {MAX_KEY_BYTES}")]
    LargeKey(usize),
    #[error("the state on disk failed")]
    Disk,
}

impl StateStore {
    /// An empty store in memory that may grow to `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            index: SlotIndex::default(),
            key_hash: KeyHash { seed: RandomState::new().hash_one(0) },
            order: None,
            expiries: BTreeSet::new(),
            len: 0,
            time: None,
            batch_time: None,
            bytes: 0,
            max_bytes,
            is_full: false,
            logs: vec![UndoLog { savepoint: 1, ..UndoLog::default() }],
            last_savepoint: 1,
            disk: None,
            failure: None,
        }
    }

    /// Takes over an entry from the changelog; `None` removes the key. An error of the disk is
    /// reported by [`StateStore::check_restored`].
    pub fn restore(&mut self, key: &[u8], entry: Option<StateEntry>) {
        let hash = self.key_hash.of(key);
        let mut slot = self.slot_in_memory(key, hash);
        if slot.is_none() && self.disk.is_some() {
            // `check_restored` reports the error.
            slot = self.load(key, hash).unwrap_or_default();
        }
        if slot.is_none() && entry.is_some() {
            slot = Some(self.create(key, hash));
        }
        if let Some(slot) = slot {
            let previous = self.replace(slot, entry);
            self.mark_dirty(slot, previous.as_ref());
            self.free_unused(slot);
        }
    }

    /// Takes over the time of the partition from the changelog.
    pub fn restore_time(&mut self, time: i64) {
        self.time = Some(time);
        if let Some(log) = self.logs.first_mut() {
            log.time = self.time;
        }
    }

    /// Checks that the restored entries are within the limit, and that the disk has not failed.
    ///
    /// # Errors
    /// `plugin.state_full`, and those of the disk.
    pub fn check_restored(&mut self) -> Result<(), Error> {
        if let Some(failure) = self.failure.take() {
            return Err(failure);
        }
        if self.bytes <= self.max_bytes { Ok(()) } else { Err(self.full_error()) }
    }

    /// The error with which the stage stops.
    pub(crate) fn full_error(&self) -> Error {
        let message = if self.bytes > self.max_bytes {
            format!(
                "its state of a topic partition needs more than {} bytes ({} entries): raise `state.max_bytes` of the \
                 transform, or keep entries for a shorter time",
                self.max_bytes, self.len
            )
        } else {
            format!(
                "it changed more than {} bytes of its state in one call ({} entries): change fewer entries for each \
                 record",
                self.max_bytes.min(MAX_CALL_BYTES),
                self.logs.last().map_or(0, |log| log.changes.len())
            )
        };
        Error::config("plugin.state_full", message)
    }

    /// Takes the error of the disk, after which a call cannot be repeated.
    pub(crate) fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// The time of the partition: the greatest timestamp of the processed records.
    pub fn time(&self) -> Option<i64> {
        self.time
    }

    /// Its size, as the limit counts it.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether the store has no entry.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The keys that the transaction has changed, with their entries; `None` if a key was removed.
    pub fn changes(&self) -> impl Iterator<Item = (&[u8], Option<&StateEntry>)> {
        let slots = self.logs.iter().flat_map(|log| &log.changes).map(|change| &self.slots[change.slot as usize]);
        slots.map(|slot| (&*slot.key, slot.entry.as_ref()))
    }

    /// Bytes of the keys and previous entries that the transaction has changed.
    pub fn changed_bytes(&self) -> usize {
        self.logs.iter().map(|log| log.bytes).sum()
    }

    /// The new time of the partition, if the transaction has changed it.
    pub fn changed_time(&self) -> Option<i64> {
        let before = self.logs.first().and_then(|log| log.time);
        self.time.filter(|time| Some(*time) != before)
    }

    /// The transaction is committed.
    pub fn commit(&mut self) {
        for log in std::mem::take(&mut self.logs) {
            for change in log.changes {
                self.slots[change.slot as usize].logs -= 1;
                self.mark_dirty(change.slot, change.previous.as_ref());
                self.free_unused(change.slot);
            }
        }
        self.open_log();
    }

    /// The transaction is aborted: takes its changes back.
    pub fn abort(&mut self) {
        self.rollback_to(0);
    }

    /// Opens a savepoint. Returns the value for [`StateStore::rollback_to`].
    pub fn savepoint(&mut self) -> usize {
        self.open_log();
        self.logs.len() - 1
    }

    fn open_log(&mut self) {
        self.last_savepoint += 1;
        let expired = self.disk.as_ref().and_then(|disk| disk.expired.clone());
        let log = UndoLog { savepoint: self.last_savepoint, time: self.time, expired, ..UndoLog::default() };
        self.logs.push(log);
    }

    /// Takes back all changes since a savepoint, and closes it and the later ones. With 0, takes
    /// back the transaction.
    pub fn rollback_to(&mut self, savepoint: usize) {
        while self.logs.len() > savepoint {
            let Some(log) = self.logs.pop() else { break };
            self.time = log.time;
            if let Some(disk) = &mut self.disk {
                disk.rewind(log.expired);
            }
            for change in log.changes {
                self.replace(change.slot, change.previous);
                let slot = &mut self.slots[change.slot as usize];
                (slot.logs, slot.savepoint) = (slot.logs - 1, change.savepoint);
                self.free_unused(change.slot);
            }
        }
        if self.logs.is_empty() {
            self.open_log();
        }
        self.is_full = false;
    }

    /// Keeps the changes since the savepoint, and closes it.
    pub fn release(&mut self, savepoint: usize) {
        while self.logs.len() > savepoint.max(1) {
            let (Some(released), Some(below)) = (self.logs.pop(), self.logs.last_mut()) else { break };
            if below.changes.is_empty() {
                // The log below becomes the one that the slots name.
                *below = UndoLog { time: below.time, expired: below.expired.take(), ..released };
                continue;
            }
            for change in released.changes {
                let slot = &mut self.slots[change.slot as usize];
                slot.savepoint = below.savepoint;
                if change.savepoint == below.savepoint {
                    slot.logs -= 1;
                } else {
                    below.bytes += change.bytes(&slot.key);
                    below.changes.push(change);
                }
            }
        }
    }

    /// Whether the plugin tried to exceed the limit.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Notes the timestamps of a batch that the plugin is about to process.
    pub(crate) fn begin_batch(&mut self, batch: &Batch) {
        let greatest = batch.iter().filter_map(|record| record.timestamp()).max();
        self.batch_time = self.time.max(greatest);
    }

    /// Advances the time after a batch, and removes the expired entries.
    pub(crate) fn end_batch(&mut self) {
        self.time = self.batch_time;
        let Some(time) = self.time else { return };
        while let Some((expires_at, slot)) = self.expiries.first().copied()
            && expires_at <= time
        {
            self.change(slot, None);
        }
        // An error of the disk is kept for the caller.
        let _ = self.expire_on_disk(time);
    }

    /// The value of a key.
    pub(crate) fn get(&mut self, key: &[u8]) -> Result<Option<&Arc<[u8]>>, StateError> {
        self.get_hashed(key, self.key_hash.of(key))
    }

    /// Passes each of the keys with its value to a function.
    pub(crate) fn get_all<E: From<StateError>>(
        &mut self,
        keys: &[&[u8]],
        mut each: impl FnMut(Option<&Arc<[u8]>>) -> Result<(), E>,
    ) -> Result<(), E> {
        for keys in keys.chunks(TOUCHED_AT_ONCE) {
            let hashes = self.touched_hashes(keys.iter().copied());
            for (key, hash) in keys.iter().zip(hashes) {
                each(self.get_hashed(key, hash)?)?;
            }
        }
        Ok(())
    }

    fn get_hashed(&mut self, key: &[u8], hash: u32) -> Result<Option<&Arc<[u8]>>, StateError> {
        let Some(slot) = self.find(key, hash)? else { return Ok(None) };
        Ok(self.slots[slot as usize].entry.as_ref().map(|entry| &entry.value))
    }

    /// The hashes of at most [`TOUCHED_AT_ONCE`] keys, whose entries it has [touched].
    ///
    /// [touched]: StateStore::touch
    fn touched_hashes<'k>(&self, keys: impl ExactSizeIterator<Item = &'k [u8]>) -> [u32; TOUCHED_AT_ONCE] {
        let mut hashes = [0; TOUCHED_AT_ONCE];
        let count = keys.len().min(TOUCHED_AT_ONCE);
        hashes.iter_mut().zip(keys).for_each(|(hash, key)| *hash = self.key_hash.of(key));
        self.touch(&hashes[..count]);
        hashes
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), StateError> {
        self.put_hashed(key, self.key_hash.of(key), value, ttl_ms)
    }

    /// Stores entries: keys and values, each with its TTL.
    pub(crate) fn put_all(&mut self, entries: &[(&[u8], &[u8], Option<u64>)]) -> Result<(), StateError> {
        for entries in entries.chunks(TOUCHED_AT_ONCE) {
            let hashes = self.touched_hashes(entries.iter().map(|(key, ..)| *key));
            for ((key, value, ttl_ms), hash) in entries.iter().zip(hashes) {
                self.put_hashed(key, hash, value, *ttl_ms)?;
            }
        }
        Ok(())
    }

    fn put_hashed(&mut self, key: &[u8], hash: u32, value: &[u8], ttl_ms: Option<u64>) -> Result<(), StateError> {
        let bytes = key.len() + value.len();
        if bytes > MAX_ENTRY_BYTES {
            return Err(StateError::LargeEntry(bytes));
        }
        if key.len() > MAX_KEY_BYTES {
            return Err(StateError::LargeKey(key.len()));
        }
        // Without any timestamp, time does not advance and the entry stays.
        let now = self.batch_time.unwrap_or(0);
        let expires_at = ttl_ms.map(|ttl| now.saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX)));
        let slot = self.find_or_create(key, hash)?;
        self.change(slot, Some(StateEntry { value: Arc::from(value), expires_at }));
        self.check_limit()
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        if let Some(slot) = self.find(key, self.key_hash.of(key))?
            && self.slots[slot as usize].entry.is_some()
        {
            self.change(slot, None);
        }
        self.check_limit()
    }

    /// The entries from `start` on, before `end`, in the order of their keys. Those on disk are
    /// merged with those in memory.
    pub(crate) fn range(
        &mut self,
        start: &[u8],
        end: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<KeyAndValue>, StateError> {
        let slots = &self.slots;
        let order = self.order.get_or_insert_with(|| {
            let with_entry = self.index.slots().filter(|slot| slots[*slot as usize].entry.is_some());
            with_entry.map(|slot| (slots[slot as usize].key.clone(), slot)).collect()
        });
        if end.is_some_and(|end| end <= start) {
            return Ok(Vec::new());
        }
        let in_memory = order.range::<[u8], _>((Bound::Included(start), end.map_or(Bound::Unbounded, Bound::Excluded)));
        let mut in_memory = in_memory
            .filter_map(|(key, slot)| Some((key.clone(), slots[*slot as usize].entry.as_ref()?.value.clone())))
            .peekable();
        let rows = self.disk.as_deref().and_then(|disk| disk.rows_from(start, end, self.time));
        // What is in memory is newer.
        let (index, key_hash) = (&self.index, &self.key_hash);
        let is_key = |key: &[u8], slot: SlotId| *slots[slot as usize].key == *key;
        let is_in_memory = |key: &[u8]| index.find(key_hash.of(key), |slot| is_key(key, slot)).is_some();
        let rows = rows.into_iter().flatten().filter(|row| !matches!(row, Ok((key, _)) if is_in_memory(key)));
        let mut on_disk = rows.peekable();
        let mut found = Vec::new();
        let mut bytes = 0;
        loop {
            let is_on_disk = match (in_memory.peek(), on_disk.peek()) {
                (None, None) => break,
                (Some(_), None) => false,
                (_, Some(Err(_))) | (None, Some(_)) => true,
                (Some((in_memory, _)), Some(Ok((on_disk, _)))) => on_disk < in_memory,
            };
            let next = if is_on_disk { on_disk.next() } else { in_memory.next().map(Ok) };
            match next {
                Some(Ok((key, value))) => {
                    bytes += key.len() + value.len();
                    if found.len() == limit || (bytes > MAX_RANGE_BYTES && !found.is_empty()) {
                        break;
                    }
                    found.push((key, value));
                }
                Some(Err(error)) => {
                    drop((in_memory, on_disk));
                    return Err(self.fail(error));
                }
                None => break,
            }
        }
        Ok(found)
    }

    /// The changes of one savepoint are limited too: a plugin that stores and deletes keys in turn
    /// would fill the undo log.
    fn check_limit(&mut self) -> Result<(), StateError> {
        let logged = self.logs.last().map_or(0, |log| log.bytes);
        if self.bytes <= self.max_bytes && logged <= self.max_bytes.min(MAX_CALL_BYTES) {
            return Ok(());
        }
        self.is_full = true;
        Err(StateError::Full(self.max_bytes))
    }

    /// The entries in the order of their keys. It sorts them, so it is for tests and diagnosis.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &StateEntry)> {
        let entries = self.slots.iter().filter_map(|slot| Some((&*slot.key, slot.entry.as_ref()?)));
        entries.collect::<BTreeMap<_, _>>().into_iter()
    }
}

impl Change {
    /// Its estimated memory.
    fn bytes(&self, key: &[u8]) -> usize {
        key.len() + self.previous.as_ref().map_or(0, |entry| entry.value.len()) + ENTRY_OVERHEAD_BYTES
    }
}
