//! A [`StateStore`] on disk: the slots of its keys are a cache of bounded size.
//!
//! # Slots
//! - The entries of the running transaction, and committed entries that the disk does not have yet
//!   (*dirty* ones), stay in memory. [`StateStore::write`] writes the dirty entries of many
//!   transactions at once.
//! - All other slots are copies of the disk. When the memory exceeds the share of the state, those
//!   that were not used lately are evicted: a hand walks over the slots and gives used ones a
//!   second chance (the algorithm CLOCK). A slot without an entry notes that the disk has none.
//! - Until the first eviction, the slots have all entries (`is_whole`). Then nothing is read from
//!   disk, so that a state that fits into its share is as fast as one in memory.
//!
//! # Expiry
//! The entries in memory are found by their times in memory; the others by the rows of expiries on
//! disk, of which each batch looks at a limited number. An entry that is read after its time is
//! treated as removed, so that the limit changes no result.
//!
//! # Trust
//! The checkpoint names the changelog and a position in it. The rows have all committed changes
//! before that position, and perhaps later ones; a restore repeats the changes from there, in their
//! order, so that each key ends with its last value. Two conditions make that true, and
//! [`StateStore::on_disk`] discards rows that do not meet them:
//! - The position was read before a transaction of this owner committed. The group's generation
//!   fences that transaction (I4), so no other owner can have written before the position.
//! - Deletions from the position on are still in the changelog. Kafka keeps them for
//!   `delete.retention.ms`; the caller passes an age that is well below it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use trunkline_connector::Error;

use super::disk::{
    Checkpoint, DiskStore, Position, StateDisk, StateIdentity, expiry_key, key_and_value, key_of_expiry, now_ms,
};
use super::slots::{SlotId, value_bytes};
use super::{ENTRY_OVERHEAD_BYTES, KeyAndValue, StateEntry, StateError, StateStore};

/// Expiries on disk that one batch looks at.
const MAX_EXPIRED_ROWS: usize = 10_000;
/// Age of a position at which it is written again, although the state has not changed.
const MAX_POSITION_AGE_MS: i64 = 3_600_000;
/// Slots that the hand looks at for each key that is read.
const MAX_STEPS: usize = 64;

/// What a store on disk has besides its slots.
#[derive(Debug)]
pub(super) struct DiskCache {
    store: DiskStore,
    identity: Option<StateIdentity>,
    /// The memory of the slots, estimated as the limit counts it.
    pub(super) memory: usize,
    /// Whether the slots have all entries.
    pub(super) is_whole: bool,
    /// The dirty slots, each with the time at which its entry on disk expires.
    dirty: Vec<(SlotId, Option<i64>)>,
    dirty_bytes: usize,
    /// The slot at which the search for slots to evict continues.
    hand: usize,
    /// The last row among the expiries on disk that was looked at.
    pub(super) expired: Option<Arc<[u8]>>,
    /// No entry expires on disk before this time, apart from those that were looked at.
    next_expiry: i64,
    /// Where the rows on disk can be trusted.
    position: Option<Position>,
    /// Memory that finds the rows on disk.
    pinned: usize,
}

impl DiskCache {
    /// Of a store without entries.
    fn new(store: DiskStore, identity: Option<StateIdentity>) -> Self {
        Self {
            store,
            identity,
            memory: 0,
            is_whole: true,
            dirty: Vec::new(),
            dirty_bytes: 0,
            hand: 0,
            expired: None,
            next_expiry: i64::MIN,
            position: None,
            pinned: 0,
        }
    }

    /// Rows of expiries are looked at again from there on.
    pub(super) fn rewind(&mut self, expired: Option<Arc<[u8]>>) {
        if self.expired != expired {
            (self.expired, self.next_expiry) = (expired, i64::MIN);
        }
    }

    /// The entries on disk in a range that have not expired, in order; `None` if all are in memory.
    pub(super) fn rows_from(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
        time: Option<i64>,
    ) -> Option<impl Iterator<Item = Result<KeyAndValue, Error>>> {
        let is_live = move |entry: &StateEntry| entry.expires_at.is_none() || entry.expires_at > time;
        let rows = (!self.is_whole).then(|| self.store.range(start, end))?;
        Some(
            rows.filter(move |row| !matches!(row, Ok((_, entry)) if !is_live(entry))).map(|row| row.map(key_and_value)),
        )
    }

    /// The memory that the slots may use.
    fn share(&self) -> usize {
        let share = self.store.disk().share();
        share.saturating_sub(self.pinned).max(share / 4)
    }

    #[cfg(test)]
    pub(super) fn rows(
        &self,
        start: &[u8],
        end: Option<&[u8]>,
    ) -> impl Iterator<Item = Result<(Arc<[u8]>, StateEntry), Error>> {
        self.store.range(start, end)
    }

    #[cfg(test)]
    pub(super) fn expiry_rows(&self) -> usize {
        self.store.expiries(None).count()
    }

    #[cfg(test)]
    pub(super) fn is_merging(&self) -> bool {
        self.store.is_merging()
    }
}

impl StateStore {
    /// Opens the state of a topic partition on disk; an empty one if the disk has none that can be
    /// trusted. It may have `max_bytes`. `identity`: the changelog, if its ids are known.
    /// `max_age`: deletions stay in the changelog longer than this.
    ///
    /// # Errors
    /// `plugin.state_in_use`, `plugin.state_damaged` and `io.*`.
    pub fn on_disk(
        max_bytes: usize,
        disk: &StateDisk,
        (component, topic, partition): (&str, &str, i32),
        identity: Option<StateIdentity>,
        max_age: Duration,
    ) -> Result<Self, Error> {
        let store = disk.open(component, topic, partition)?;
        let checkpoint = store.checkpoint();
        let mut this = Self::new(max_bytes);
        this.disk = Some(Box::new(DiskCache::new(store, identity)));
        match checkpoint {
            Some(checkpoint) => this.take_over(checkpoint, max_age)?,
            None => this.discard()?,
        }
        Ok(this)
    }

    /// Uses the rows on disk, if they can be trusted.
    fn take_over(&mut self, checkpoint: Checkpoint, max_age: Duration) -> Result<(), Error> {
        let Some(disk) = &mut self.disk else { return Ok(()) };
        let now = now_ms();
        let max_age = i64::try_from(max_age.as_millis()).unwrap_or(i64::MAX);
        let is_young = |position: &Position| (0..max_age).contains(&now.saturating_sub(position.since));
        let is_own = |position: &Position| Some(&position.identity) == disk.identity.as_ref();
        let position = checkpoint.position.filter(|position| is_own(position) && is_young(position));
        if position.is_none() {
            return self.discard();
        }
        disk.position = position;
        if let Some(time) = checkpoint.time {
            self.restore_time(time);
        }
        let Some(disk) = &mut self.disk else { return Ok(()) };
        disk.pinned = disk.store.index_bytes();
        if checkpoint.bytes > disk.share() / 2 {
            (disk.is_whole, self.len, self.bytes) = (false, checkpoint.len, checkpoint.bytes);
            return Ok(());
        }
        let rows: Vec<_> = disk.store.range(&[], None).collect();
        for row in rows {
            let (key, entry) = row?;
            let slot = self.create(&key, self.key_hash.of(&key));
            self.replace(slot, Some(entry));
        }
        Ok(())
    }

    /// Removes all entries, in memory and on disk.
    ///
    /// # Errors
    /// `io.*`.
    pub fn discard(&mut self) -> Result<(), Error> {
        let disk = self.disk.take();
        *self = Self::new(self.max_bytes);
        let Some(mut disk) = disk else { return Ok(()) };
        disk.store.clear()?;
        self.disk = Some(Box::new(DiskCache::new(disk.store, disk.identity)));
        Ok(())
    }

    /// The offset of the changelog from which on a restore repeats the changes; `None` if the store
    /// has to be restored completely.
    pub fn position(&self) -> Option<i64> {
        let position = self.disk.as_ref()?.position.as_ref()?;
        Some(position.offset)
    }

    /// Whether so many committed changes are not on disk that they should be written.
    pub fn is_write_due(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.dirty_bytes > disk.share() / 5 * 4)
    }

    /// Whether committed changes are not on disk.
    pub fn has_unwritten(&self) -> bool {
        self.disk.as_ref().is_some_and(|disk| !disk.dirty.is_empty())
    }

    /// Whether a write would let a restart read less: committed changes are not on disk, or the
    /// position becomes too old to be trusted.
    pub fn is_outdated(&self) -> bool {
        let position = self.disk.as_ref().and_then(|disk| disk.position.as_ref());
        self.has_unwritten() || position.is_some_and(|position| now_ms() - position.since > MAX_POSITION_AGE_MS)
    }

    /// Notes a position that the next write stores: all committed changes before this offset are in
    /// the store. It is the end of the changelog to which the store was restored, or that was read
    /// before a transaction of this owner was committed. `since`: a time before that end was read,
    /// in milliseconds since 1970.
    pub fn advance(&mut self, offset: i64, since: i64) {
        if let Some(disk) = &mut self.disk {
            let identity = disk.identity.clone();
            disk.position = identity.map(|identity| Position { identity, offset, since });
        }
    }

    /// Writes the committed changes to the disk, between two transactions.
    ///
    /// # Errors
    /// `plugin.state_damaged` and `io.*`, such as `io.disk_full`.
    pub fn write(&mut self) -> Result<(), Error> {
        let (time, len, bytes) = (self.time, self.len, self.bytes);
        let Some(disk) = &mut self.disk else { return Ok(()) };
        debug_assert!(self.logs.iter().all(|log| log.changes.is_empty()), "written within a transaction");
        let slots = &self.slots;
        let mut dirty = std::mem::take(&mut disk.dirty);
        sort_by_key(&mut dirty, |slot| &slots[*slot as usize].key);
        let mut expiries = BTreeMap::new();
        for (slot, before) in &dirty {
            let slot = &slots[*slot as usize];
            let after = slot.entry.as_ref().and_then(|entry| entry.expires_at);
            if *before != after {
                before.map(|time| expiries.insert(expiry_key(time, &slot.key), false));
                after.map(|time| expiries.insert(expiry_key(time, &slot.key), true));
                disk.next_expiry = disk.next_expiry.min(after.unwrap_or(i64::MAX));
            }
        }
        let entries = dirty.iter().map(|(slot, _)| {
            let slot = &slots[*slot as usize];
            (&*slot.key, slot.entry.as_ref())
        });
        let checkpoint = Checkpoint { position: disk.position.clone(), time, len, bytes };
        disk.store.write(&checkpoint, entries, expiries.into_iter())?;
        disk.dirty_bytes = 0;
        disk.pinned = disk.store.index_bytes();
        for (slot, _) in dirty {
            self.slots[slot as usize].is_dirty = false;
            self.free_unused(slot);
        }
        self.evict(usize::MAX);
        Ok(())
    }

    /// Ends the use of the store: writes what is committed.
    ///
    /// # Errors
    /// Those of [`StateStore::write`].
    pub fn close(mut self) -> Result<(), Error> {
        self.abort();
        if self.has_unwritten() && self.failure.is_none() { self.write() } else { Ok(()) }
    }

    /// Bytes of its files.
    pub fn disk_bytes(&self) -> u64 {
        self.disk.as_ref().map_or(0, |disk| disk.store.bytes())
    }

    /// Its memory: of its entries, and of what finds them on disk.
    pub fn memory(&self) -> usize {
        self.disk.as_ref().map_or(self.bytes, |disk| disk.memory + disk.pinned)
    }

    /// An error of the disk. The caller of the plugin takes it.
    pub(super) fn fail(&mut self, error: Error) -> StateError {
        self.failure.get_or_insert(error);
        StateError::Disk
    }

    /// A committed entry has changed. `previous`: the entry before.
    pub(super) fn mark_dirty(&mut self, id: SlotId, previous: Option<&StateEntry>) {
        let Some(disk) = &mut self.disk else { return };
        let slot = &mut self.slots[id as usize];
        // A key that came and went: a slot that is not dirty is as on disk.
        let is_unchanged = slot.entry.is_none() && previous.is_none();
        if slot.is_dirty || is_unchanged {
            return;
        }
        slot.is_dirty = true;
        disk.dirty_bytes += slot.key.len() + ENTRY_OVERHEAD_BYTES + value_bytes(&slot.entry);
        disk.dirty.push((id, previous.and_then(|entry| entry.expires_at)));
    }

    /// Reads a key with this hash that is not in memory. `None`: the key has no entry, and no slot
    /// either.
    pub(super) fn load(&mut self, key: &[u8], hash: u32) -> Result<Option<SlotId>, StateError> {
        let Some(disk) = &mut self.disk else { return Ok(None) };
        let entry = match disk.is_whole {
            true => None,
            false => Some(disk.store.get(key).map_err(|error| self.fail(error))?),
        };
        self.evict(MAX_STEPS);
        let Some(entry) = entry else { return Ok(None) };
        let id = self.create(key, hash);
        if let Some(entry) = entry {
            self.copy_from_disk(id, entry);
        }
        Ok(Some(id))
    }

    /// Whether the entry of a slot should have expired.
    pub(super) fn is_expired(&self, id: SlotId) -> bool {
        let entry = self.slots[id as usize].entry.as_ref();
        entry.is_some_and(|entry| entry.expires_at.is_some() && entry.expires_at <= self.time)
    }

    /// Gives a new slot the entry that the disk has.
    fn copy_from_disk(&mut self, id: SlotId, entry: StateEntry) {
        let slot = &mut self.slots[id as usize];
        slot.entry = Some(entry);
        if let Some(disk) = &mut self.disk {
            disk.memory += value_bytes(&slot.entry);
        }
        if let Some(order) = &mut self.order {
            order.insert(slot.key.clone(), id);
        }
    }

    /// Evicts slots while the memory exceeds its share. Looks at `max_steps` slots, at most at each
    /// one twice.
    fn evict(&mut self, max_steps: usize) {
        let Some(disk) = &self.disk else { return };
        let mut steps = max_steps.min(2 * self.slots.len());
        let share = disk.share();
        while let Some(disk) = &mut self.disk
            && disk.memory > share
            && steps > 0
        {
            steps -= 1;
            disk.hand = if disk.hand + 1 < self.slots.len() { disk.hand + 1 } else { 0 };
            let hand = disk.hand;
            let Some(slot) = self.slots.get_mut(hand) else { return };
            if !slot.is_used || slot.is_dirty || slot.logs > 0 || std::mem::take(&mut slot.is_recent) {
                continue;
            }
            disk.is_whole = false;
            let id = hand as SlotId;
            if let Some(entry) = &slot.entry {
                disk.memory -= value_bytes(&slot.entry);
                if let Some(time) = entry.expires_at {
                    self.expiries.remove(&(time, id));
                }
                if let Some(order) = &mut self.order {
                    order.remove(&slot.key);
                }
            }
            self.free_slot(id);
        }
    }

    /// Removes entries on disk that have expired.
    pub(super) fn expire_on_disk(&mut self, time: i64) -> Result<(), StateError> {
        let Some(disk) = &self.disk else { return Ok(()) };
        if disk.is_whole || time < disk.next_expiry {
            return Ok(());
        }
        let mut rows = disk.store.expiries(disk.expired.as_deref());
        let (mut due, mut next_expiry) = (Vec::new(), i64::MAX);
        let failed = loop {
            match rows.next() {
                Some(Ok((_, at))) if at > time || due.len() == MAX_EXPIRED_ROWS => {
                    next_expiry = at;
                    break None;
                }
                Some(Ok(row)) => due.push(row),
                Some(Err(error)) => break Some(error),
                None => break None,
            }
        };
        drop(rows);
        if let Some(error) = failed {
            return Err(self.fail(error));
        }
        for (row, at) in &due {
            // A dirty entry may have another time by now.
            let key = key_of_expiry(row);
            if let Some(slot) = self.find(key, self.key_hash.of(key))?
                && self.slots[slot as usize].entry.as_ref().is_some_and(|entry| entry.expires_at == Some(*at))
            {
                self.change(slot, None);
            }
        }
        if let Some(disk) = &mut self.disk {
            disk.next_expiry = next_expiry;
            if let Some((row, _)) = due.pop() {
                disk.expired = Some(row);
            }
        }
        Ok(())
    }
}

/// Sorts by keys. They often have a long prefix in common, so the eight bytes after it are compared
/// first, without a look at the keys.
fn sort_by_key<'k>(dirty: &mut [(SlotId, Option<i64>)], key_of: impl Fn(&SlotId) -> &'k Arc<[u8]>) {
    let Some((first, _)) = dirty.first() else { return };
    let first = key_of(first);
    let common = dirty.iter().fold(first.len(), |common, (slot, _)| {
        let key = key_of(slot);
        first.iter().zip(key.iter()).take(common).take_while(|(a, b)| a == b).count()
    });
    let word = |slot: &SlotId| {
        let rest = key_of(slot).get(common..).unwrap_or_default();
        let mut word = [0; 8];
        let len = rest.len().min(8);
        word[..len].copy_from_slice(&rest[..len]);
        u64::from_be_bytes(word)
    };
    let mut words: Vec<(u64, (SlotId, Option<i64>))> = dirty.iter().map(|item| (word(&item.0), *item)).collect();
    words.sort_unstable_by(|(a, (slot_a, _)), (b, (slot_b, _))| {
        a.cmp(b).then_with(|| key_of(slot_a).cmp(key_of(slot_b)))
    });
    for (item, (_, sorted)) in dirty.iter_mut().zip(words) {
        *item = sorted;
    }
}
