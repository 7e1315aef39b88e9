//! The group coordinator: groups, their committed offsets, and offsets that wait for a transaction.
//!
//! A group lives as long as it has members or offsets. Its lock covers its members and its offsets, so that "is this
//! member allowed to commit" and the commit are one step. The order of locks is transaction, group, internal log.

pub(crate) mod member;
pub(crate) mod membership;
pub(crate) mod offsets;
pub(crate) mod state;

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use bytes::Bytes;
use kafka_protocol::ResponseError;

use self::member::{GroupRecord, JoinRequest, Joined, Reply, SyncResult};
use self::membership::Identity;
use self::offsets::Offsets;
use self::state::{Group, GroupLimits, Phase};
use crate::clock::now_ms;
use crate::store::{Change, Key, Store};
use crate::sync::{lock, read, write};

/// A group with its offsets.
#[derive(Debug)]
pub(crate) struct Cell {
    pub(crate) group: Group,
    pub(crate) offsets: Offsets,
    /// No longer in the registry: whoever holds it has to look again.
    is_removed: bool,
}

/// All groups.
#[derive(Debug)]
pub(crate) struct Groups {
    limits: GroupLimits,
    cells: RwLock<HashMap<String, Arc<Mutex<Cell>>>>,
}

impl Groups {
    /// Restores every group that the internal log knows.
    pub(crate) fn open(store: &Store, limits: GroupLimits) -> io::Result<Self> {
        let (now, wall) = (Instant::now(), now_ms());
        let mut cells: HashMap<String, Cell> = HashMap::new();
        let vacant = || Cell { group: Group::new(limits, wall), offsets: Offsets::default(), is_removed: false };
        let records: Vec<(String, GroupRecord)> = store.scan(|key| match key {
            Key::Group(id) => Some(id.clone()),
            _ => None,
        })?;
        for (id, record) in records {
            let group = Group::restore(record, limits, now, wall);
            cells.insert(id, Cell { group, offsets: Offsets::default(), is_removed: false });
        }
        for ((id, topic, partition), committed) in store.scan(|key| match key {
            Key::Offset(id, topic, partition) => Some((id.clone(), topic.clone(), *partition)),
            _ => None,
        })? {
            cells.entry(id).or_insert_with(vacant).offsets.restore(topic, partition, committed);
        }
        for ((id, producer_id, topic, partition), committed) in store.scan(|key| match key {
            Key::PendingOffset(id, producer_id, topic, partition) => {
                Some((id.clone(), *producer_id, topic.clone(), *partition))
            }
            _ => None,
        })? {
            cells.entry(id).or_insert_with(vacant).offsets.restore_pending(producer_id, topic, partition, committed);
        }
        let cells = cells.into_iter().map(|(id, cell)| (id, Arc::new(Mutex::new(cell)))).collect();
        Ok(Self { limits, cells: RwLock::new(cells) })
    }

    /// Works on a group that exists.
    pub(crate) fn with<T>(&self, id: &str, work: impl FnOnce(&mut Cell) -> T) -> Option<T> {
        let cell = read(&self.cells).get(id).cloned()?;
        let mut cell = lock(&cell);
        (!cell.is_removed).then(|| work(&mut cell))
    }

    /// Works on a group, which begins to exist if it does not and there is room for it.
    pub(crate) fn with_or_create<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut Cell) -> Result<T, ResponseError>,
    ) -> Result<T, ResponseError> {
        loop {
            let (found, count) = {
                let cells = read(&self.cells);
                (cells.get(id).cloned(), cells.len())
            };
            if found.is_none() && count >= MAX_GROUPS {
                return Err(ResponseError::PolicyViolation);
            }
            let cell = found.unwrap_or_else(|| {
                let group = Group::new(self.limits, now_ms());
                let cell = Cell { group, offsets: Offsets::default(), is_removed: false };
                Arc::clone(write(&self.cells).entry(id.to_owned()).or_insert_with(|| Arc::new(Mutex::new(cell))))
            });
            let mut cell = lock(&cell);
            if !cell.is_removed {
                return work(&mut cell);
            }
        }
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = read(&self.cells).keys().cloned().collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn join(&self, store: &Store, id: &str, request: JoinRequest) -> Reply<Joined> {
        let member_id = request.member_id.clone();
        let joined = self.with_or_create(id, |cell| {
            let reply = cell.group.join(request, Instant::now());
            cell.save_if_stable(id, store);
            Ok(reply)
        });
        joined.unwrap_or_else(|error| Reply::Now(Joined::refused(error, member_id)))
    }

    pub(crate) fn sync(
        &self,
        store: &Store,
        id: &str,
        sender: Identity<'_>,
        protocol: (Option<&str>, Option<&str>),
        assignments: Vec<(String, Bytes)>,
    ) -> Reply<SyncResult> {
        let synced = self.with(id, |cell| {
            let reply = cell.group.sync(sender, protocol.0, protocol.1, assignments, Instant::now());
            if cell.save_if_stable(id, store) {
                cell.group.release_assignments();
            } else {
                cell.group.void_assignments(Instant::now());
            }
            reply
        });
        synced.unwrap_or(Reply::Now(Err(ResponseError::UnknownMemberId)))
    }

    pub(crate) fn heartbeat(&self, id: &str, sender: Identity<'_>) -> Result<(), ResponseError> {
        let heard = self.with(id, |cell| cell.group.heartbeat(sender, Instant::now()));
        heard.unwrap_or(Err(ResponseError::UnknownMemberId))
    }

    pub(crate) fn leave(
        &self,
        store: &Store,
        id: &str,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<(), ResponseError> {
        let left = self.with(id, |cell| {
            let left = cell.group.leave(member_id, instance_id, Instant::now());
            cell.save_if_stable(id, store);
            left
        });
        left.unwrap_or(Err(ResponseError::UnknownMemberId))
    }

    /// Moves on what has waited long enough, and forgets groups that have nothing left.
    pub(crate) fn tick(&self, store: &Store, offsets_retention_ms: i64) {
        let cells: Vec<_> = read(&self.cells).iter().map(|(id, cell)| (id.clone(), Arc::clone(cell))).collect();
        let (now, wall) = (Instant::now(), now_ms());
        for (id, cell) in cells {
            let mut cell = lock(&cell);
            cell.group.tick(now);
            cell.save_if_stable(&id, store);
            if !cell.group.is_vacant() {
                continue;
            }
            let empty_since = cell.group.empty_since;
            if let Err(error) = cell.offsets.expire(&id, store, wall - offsets_retention_ms, empty_since) {
                tracing::warn!(group = id, %error, "cannot remove expired offsets");
            }
            // A group that was never more than a name leaves after a while.
            let is_idle = wall - empty_since > IDLE_GROUP_MS;
            if cell.offsets.is_empty() && is_idle && store.apply(vec![Change::remove(Key::Group(id.clone()))]).is_ok() {
                cell.is_removed = true;
                write(&self.cells).remove(&id);
            }
        }
    }

    /// Removes a group with everything it has.
    pub(crate) fn delete(&self, store: &Store, id: &str) -> Result<(), ResponseError> {
        let deleted = self.with(id, |cell| {
            if !cell.group.is_vacant() {
                return Err(ResponseError::NonEmptyGroup);
            }
            let mut changes = cell.offsets.removal(id);
            changes.push(Change::remove(Key::Group(id.to_owned())));
            store.apply(changes).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            cell.is_removed = true;
            Ok(())
        });
        let deleted = deleted.unwrap_or(Err(ResponseError::GroupIdNotFound));
        if deleted.is_ok() {
            write(&self.cells).remove(id);
        }
        deleted
    }

    /// Commits or drops the offsets that wait for a producer's transaction, and makes `change`, in one step.
    pub(crate) fn end_transaction(
        &self,
        store: &Store,
        ids: &BTreeSet<String>,
        producer_id: i64,
        commit: bool,
        change: Change,
    ) -> io::Result<()> {
        // In order of their names: two transactions that end at once take the locks in the same order.
        let cells: Vec<_> = ids.iter().filter_map(|id| Some((id, read(&self.cells).get(id).cloned()?))).collect();
        let mut locked: Vec<_> = cells.iter().map(|(id, cell)| (*id, lock(cell))).collect();
        let mut changes = vec![change];
        for (id, cell) in &locked {
            changes.extend(cell.offsets.ending(id, producer_id, commit)?);
        }
        store.apply(changes)?;
        for (_, cell) in &mut locked {
            cell.offsets.ended(producer_id, commit);
        }
        Ok(())
    }

    /// A topic is gone, and with it everybody's offsets in it.
    pub(crate) fn topic_deleted(&self, store: &Store, topic: &str) {
        for id in self.ids() {
            let removed = self.with(&id, |cell| cell.offsets.remove_topic(&id, store, topic));
            if let Some(Err(error)) = removed {
                tracing::warn!(group = id, topic, %error, "cannot remove the offsets of a deleted topic");
            }
        }
    }
}

/// Most groups: a client that makes up names must not fill the memory.
const MAX_GROUPS: usize = 100_000;
/// How long a group without members and offsets is kept.
const IDLE_GROUP_MS: i64 = 60_000;

impl Cell {
    /// Writes the group down if it changed and is between rebalances. Says whether what is written is what is.
    fn save_if_stable(&mut self, id: &str, store: &Store) -> bool {
        if !self.group.is_dirty || !matches!(self.group.phase, Phase::Stable | Phase::Empty) {
            return true;
        }
        let put =
            Change::put(Key::Group(id.to_owned()), &self.group.record()).and_then(|change| store.apply(vec![change]));
        self.group.is_dirty = put.is_err();
        put.is_ok()
    }
}
