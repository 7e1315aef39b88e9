//! The entries of a state in memory.
//!
//! Each key in memory has a slot. The index finds it by a hash of the key; the expiries and the
//! undo logs name its number. A key that was removed keeps its slot while a log names it. The order
//! of the keys is kept from the first call of `range` on, because most transforms never call it.

use std::sync::Arc;

use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Change, ENTRY_OVERHEAD_BYTES, StateEntry, StateError, StateStore};

/// Keys whose memory is read at once: with them, their entries fit into the first cache of a
/// processor.
pub(super) const TOUCHED_AT_ONCE: usize = 64;

/// A key with its entry. It fills one line of the processor's cache.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Slot {
    pub(super) key: Arc<[u8]>,
    /// `None`: the key has no entry, but an undo log names the slot.
    pub(super) entry: Option<StateEntry>,
    /// Number of undo logs that name the slot.
    pub(super) logs: u32,
    /// Whether the slot belongs to a key.
    pub(super) is_used: bool,
    /// The disk does not have the committed entry yet.
    pub(super) is_dirty: bool,
    /// Used since the cache last looked for slots to evict.
    pub(super) is_recent: bool,
    /// The savepoint of the last log that names the slot; without one, of an earlier log.
    pub(super) savepoint: u64,
}

const _: () = assert!(size_of::<Slot>() == 64, "a slot has more than one line of the cache");

/// The number of a slot.
pub(super) type SlotId = u32;

/// Hashes keys with a seed of the store, because the authors of records may choose them.
#[derive(Debug, Clone)]
pub(super) struct KeyHash {
    pub(super) seed: u64,
}

impl KeyHash {
    pub(super) fn of(&self, key: &[u8]) -> u32 {
        xxh3_64_with_seed(key, self.seed) as u32
    }
}

impl StateStore {
    /// The slot of a key in memory.
    pub(super) fn slot_in_memory(&self, key: &[u8], hash: u32) -> Option<SlotId> {
        self.index.find(hash, |slot| *self.slots[slot as usize].key == *key)
    }

    /// The slot of a key with this hash. `None`: the key has no entry, and no slot either.
    pub(super) fn find(&mut self, key: &[u8], hash: u32) -> Result<Option<SlotId>, StateError> {
        if let Some(slot) = self.slot_in_memory(key, hash) {
            self.slots[slot as usize].is_recent = true;
            return Ok(Some(slot));
        }
        if self.disk.is_none() {
            return Ok(None);
        }
        let slot = self.load(key, hash)?;
        if let Some(slot) = slot
            && self.is_expired(slot)
        {
            self.change(slot, None);
        }
        Ok(slot)
    }

    /// The slot of a key with this hash. Creates it without an entry if the key has none: the
    /// caller gives it one.
    pub(super) fn find_or_create(&mut self, key: &[u8], hash: u32) -> Result<SlotId, StateError> {
        Ok(match self.find(key, hash)? {
            Some(slot) => slot,
            None => self.create(key, hash),
        })
    }

    /// Reads the memory of the entries of keys with these hashes, level by level. The reads of a
    /// level do not depend on each other, so that the processor waits for many of them at once;
    /// one lookup after the other waits for each read.
    pub(super) fn touch(&self, hashes: &[u32]) {
        let mut read = 0;
        for hash in hashes {
            read ^= self.index.touch(*hash);
        }
        let mut found = [0; TOUCHED_AT_ONCE];
        let mut count = 0;
        for hash in hashes {
            // Another key may have the hash. Then this reads in vain.
            if let Some(slot) = self.index.find(*hash, |_| true)
                && let Some(place) = found.get_mut(count)
            {
                (*place, count) = (slot, count + 1);
                read ^= self.slots[slot as usize].logs;
            }
        }
        for slot in &found[..count] {
            let Slot { key, entry, .. } = &self.slots[*slot as usize];
            let value = entry.as_ref().and_then(|entry| entry.value.first());
            read ^= u32::from(key.first().copied().unwrap_or(0) ^ value.copied().unwrap_or(0));
        }
        // Otherwise the compiler would leave the reads out.
        std::hint::black_box(read);
    }

    /// Creates the slot of a key that has none.
    pub(super) fn create(&mut self, key: &[u8], hash: u32) -> SlotId {
        let key: Arc<[u8]> = Arc::from(key);
        if let Some(disk) = &mut self.disk {
            disk.memory += key.len() + ENTRY_OVERHEAD_BYTES;
        }
        let slot = Slot { key, is_used: true, ..Slot::default() };
        let id = match self.free.pop() {
            Some(id) => {
                self.slots[id as usize] = slot;
                id
            }
            None => {
                self.slots.push(slot);
                (self.slots.len() - 1) as SlotId
            }
        };
        self.index.insert(hash, id);
        id
    }

    /// Frees the slot of a key without an entry, unless an undo log names it, or the disk may have
    /// an entry.
    pub(super) fn free_unused(&mut self, id: SlotId) {
        let slot = &self.slots[id as usize];
        let is_whole = self.disk.as_ref().is_none_or(|disk| disk.is_whole);
        if slot.logs == 0 && slot.entry.is_none() && !slot.is_dirty && is_whole {
            self.free_slot(id);
        }
    }

    pub(super) fn free_slot(&mut self, id: SlotId) {
        let slot = std::mem::take(&mut self.slots[id as usize]);
        if let Some(disk) = &mut self.disk {
            disk.memory -= slot.key.len() + ENTRY_OVERHEAD_BYTES;
        }
        self.index.remove(self.key_hash.of(&slot.key), id);
        self.free.push(id);
    }

    /// Replaces an entry, and notes the previous one in the undo log.
    pub(super) fn change(&mut self, id: SlotId, entry: Option<StateEntry>) {
        let previous = self.replace(id, entry);
        let Some(log) = self.logs.last_mut() else { return };
        let slot = &mut self.slots[id as usize];
        if slot.savepoint == log.savepoint {
            return;
        }
        let change = Change { slot: id, previous, savepoint: slot.savepoint };
        (slot.logs, slot.savepoint) = (slot.logs + 1, log.savepoint);
        log.bytes += change.bytes(&slot.key);
        log.changes.push(change);
    }

    pub(super) fn replace(&mut self, id: SlotId, entry: Option<StateEntry>) -> Option<StateEntry> {
        let slot = &mut self.slots[id as usize];
        let bytes = |entry: &Option<StateEntry>| entry.as_ref().map_or(0, |entry| entry_bytes(&slot.key, entry));
        let expiry = |entry: &Option<StateEntry>| entry.as_ref().and_then(|entry| entry.expires_at);
        self.bytes = (self.bytes + bytes(&entry)).saturating_sub(bytes(&slot.entry));
        if let Some(disk) = &mut self.disk {
            disk.memory = (disk.memory + value_bytes(&entry)).saturating_sub(value_bytes(&slot.entry));
        }
        let (before, after) = (expiry(&slot.entry), expiry(&entry));
        if before != after {
            if let Some(before) = before {
                self.expiries.remove(&(before, id));
            }
            if let Some(after) = after {
                self.expiries.insert((after, id));
            }
        }
        let is_present = entry.is_some();
        let previous = std::mem::replace(&mut slot.entry, entry);
        match (previous.is_some(), is_present) {
            (false, true) => {
                self.len += 1;
                if let Some(order) = &mut self.order {
                    order.insert(slot.key.clone(), id);
                }
            }
            (true, false) => {
                self.len -= 1;
                if let Some(order) = &mut self.order {
                    order.remove(&slot.key);
                }
            }
            _ => {}
        }
        previous
    }
}

pub(super) fn entry_bytes(key: &[u8], entry: &StateEntry) -> usize {
    let expiry = if entry.expires_at.is_some() { ENTRY_OVERHEAD_BYTES / 2 } else { 0 };
    key.len() + entry.value.len() + ENTRY_OVERHEAD_BYTES + expiry
}

/// The part of [`entry_bytes`] that a slot without an entry does not have.
pub(super) fn value_bytes(entry: &Option<StateEntry>) -> usize {
    entry.as_ref().map_or(0, |entry| entry_bytes(&[], entry) - ENTRY_OVERHEAD_BYTES)
}
