//! The group coordinator: groups, committed offsets and pending offsets.
//!
//! A group exists while it has members or offsets. One lock covers members and offsets, so that the
//! check of a member and its commit are one step. Lock order: transaction, group, internal log.

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
pub(crate) struct GroupSlot {
    pub(crate) group: Group,
    pub(crate) offsets: Offsets,
    /// Removed from the registry: look the group up again.
    is_removed: bool,
}

/// All groups.
#[derive(Debug)]
pub(crate) struct Groups {
    limits: GroupLimits,
    slots: RwLock<HashMap<String, Arc<Mutex<GroupSlot>>>>,
}

impl Groups {
    /// Restores every group from the internal log.
    pub(crate) fn open(store: &Store, limits: GroupLimits) -> io::Result<Self> {
        let (now, wall) = (Instant::now(), now_ms());
        let mut slots: HashMap<String, GroupSlot> = HashMap::new();
        let vacant = || GroupSlot { group: Group::new(limits, wall), offsets: Offsets::default(), is_removed: false };
        let records: Vec<(String, GroupRecord)> = store.scan(|key| match key {
            Key::Group(id) => Some(id.clone()),
            _ => None,
        })?;
        for (id, record) in records {
            let group = Group::restore(record, limits, now, wall);
            slots.insert(id, GroupSlot { group, offsets: Offsets::default(), is_removed: false });
        }
        for ((id, topic, partition), committed) in store.scan(|key| match key {
            Key::Offset(id, topic, partition) => Some((id.clone(), topic.clone(), *partition)),
            _ => None,
        })? {
            slots.entry(id).or_insert_with(vacant).offsets.restore(topic, partition, committed);
        }
        for ((id, producer_id, topic, partition), committed) in store.scan(|key| match key {
            Key::PendingOffset(id, producer_id, topic, partition) => {
                Some((id.clone(), *producer_id, topic.clone(), *partition))
            }
            _ => None,
        })? {
            slots.entry(id).or_insert_with(vacant).offsets.restore_pending(producer_id, topic, partition, committed);
        }
        let slots = slots.into_iter().map(|(id, slot)| (id, Arc::new(Mutex::new(slot)))).collect();
        Ok(Self { limits, slots: RwLock::new(slots) })
    }

    /// Runs `work` on an existing group.
    pub(crate) fn with<T>(&self, id: &str, work: impl FnOnce(&mut GroupSlot) -> T) -> Option<T> {
        let slot = read(&self.slots).get(id).cloned()?;
        let mut slot = lock(&slot);
        (!slot.is_removed).then(|| work(&mut slot))
    }

    /// Runs `work` on a group. Creates the group if it does not exist and the limit allows it.
    pub(crate) fn with_or_create<T>(
        &self,
        id: &str,
        work: impl FnOnce(&mut GroupSlot) -> Result<T, ResponseError>,
    ) -> Result<T, ResponseError> {
        loop {
            let (found, count) = {
                let slots = read(&self.slots);
                (slots.get(id).cloned(), slots.len())
            };
            if found.is_none() && count >= MAX_GROUPS {
                return Err(ResponseError::PolicyViolation);
            }
            let slot = found.unwrap_or_else(|| {
                let group = Group::new(self.limits, now_ms());
                let slot = GroupSlot { group, offsets: Offsets::default(), is_removed: false };
                Arc::clone(write(&self.slots).entry(id.to_owned()).or_insert_with(|| Arc::new(Mutex::new(slot))))
            });
            let mut slot = lock(&slot);
            if !slot.is_removed {
                return work(&mut slot);
            }
        }
    }

    pub(crate) fn ids(&self) -> Vec<String> {
        let mut ids: Vec<String> = read(&self.slots).keys().cloned().collect();
        ids.sort_unstable();
        ids
    }

    pub(crate) fn join(&self, store: &Store, id: &str, request: JoinRequest) -> Reply<Joined> {
        let member_id = request.member_id.clone();
        let joined = self.with_or_create(id, |slot| {
            let reply = slot.group.join(request, Instant::now());
            slot.save_if_stable(id, store);
            Ok(reply)
        });
        joined.unwrap_or_else(|error| Reply::Ready(Joined::refused(error, member_id)))
    }

    pub(crate) fn sync(
        &self,
        store: &Store,
        id: &str,
        sender: Identity<'_>,
        protocol: (Option<&str>, Option<&str>),
        assignments: Vec<(String, Bytes)>,
    ) -> Reply<SyncResult> {
        let synced = self.with(id, |slot| {
            let reply = slot.group.sync(sender, protocol.0, protocol.1, assignments, Instant::now());
            if slot.save_if_stable(id, store) {
                slot.group.answer_syncs();
            } else {
                slot.group.reject_syncs(Instant::now());
            }
            reply
        });
        synced.unwrap_or(Reply::Ready(Err(ResponseError::UnknownMemberId)))
    }

    pub(crate) fn heartbeat(&self, id: &str, sender: Identity<'_>) -> Result<(), ResponseError> {
        let heard = self.with(id, |slot| slot.group.heartbeat(sender, Instant::now()));
        heard.unwrap_or(Err(ResponseError::UnknownMemberId))
    }

    pub(crate) fn leave(
        &self,
        store: &Store,
        id: &str,
        member_id: &str,
        instance_id: Option<&str>,
    ) -> Result<(), ResponseError> {
        let left = self.with(id, |slot| {
            let left = slot.group.leave(member_id, instance_id, Instant::now());
            slot.save_if_stable(id, store);
            left
        });
        left.unwrap_or(Err(ResponseError::UnknownMemberId))
    }

    /// Applies timeouts and removes groups without members and offsets.
    pub(crate) fn tick(&self, store: &Store, offsets_retention_ms: i64) {
        let slots: Vec<_> = read(&self.slots).iter().map(|(id, slot)| (id.clone(), Arc::clone(slot))).collect();
        let (now, wall) = (Instant::now(), now_ms());
        for (id, slot) in slots {
            let mut slot = lock(&slot);
            slot.group.tick(now);
            slot.save_if_stable(&id, store);
            if !slot.group.has_no_members() {
                continue;
            }
            let empty_since = slot.group.empty_since;
            if let Err(error) = slot.offsets.expire(&id, store, wall - offsets_retention_ms, empty_since) {
                tracing::warn!(group = id, %error, "cannot remove expired offsets");
            }
            // A group that never had members or offsets is removed after a while.
            let is_idle = wall - empty_since > IDLE_GROUP_MS;
            if slot.offsets.is_empty() && is_idle && store.apply(vec![Change::remove(Key::Group(id.clone()))]).is_ok() {
                slot.is_removed = true;
                write(&self.slots).remove(&id);
            }
        }
    }

    /// Removes a group and its offsets.
    pub(crate) fn delete(&self, store: &Store, id: &str) -> Result<(), ResponseError> {
        let deleted = self.with(id, |slot| {
            if !slot.group.has_no_members() {
                return Err(ResponseError::NonEmptyGroup);
            }
            let mut changes = slot.offsets.removal(id);
            changes.push(Change::remove(Key::Group(id.to_owned())));
            store.apply(changes).map_err(|_| ResponseError::CoordinatorNotAvailable)?;
            slot.is_removed = true;
            Ok(())
        });
        let deleted = deleted.unwrap_or(Err(ResponseError::GroupIdNotFound));
        if deleted.is_ok() {
            write(&self.slots).remove(id);
        }
        deleted
    }

    /// Commits or drops the pending offsets of a producer and applies `change`, in one frame.
    pub(crate) fn end_transaction(
        &self,
        store: &Store,
        ids: &BTreeSet<String>,
        producer_id: i64,
        commit: bool,
        change: Change,
    ) -> io::Result<()> {
        // In order of the group ids, so that two concurrent transactions lock in the same order.
        let slots: Vec<_> = ids.iter().filter_map(|id| Some((id, read(&self.slots).get(id).cloned()?))).collect();
        let mut locked: Vec<_> = slots.iter().map(|(id, slot)| (*id, lock(slot))).collect();
        let mut changes = vec![change];
        for (id, slot) in &locked {
            changes.extend(slot.offsets.ending(id, producer_id, commit)?);
        }
        store.apply(changes)?;
        for (_, slot) in &mut locked {
            slot.offsets.ended(producer_id, commit);
        }
        Ok(())
    }

    /// Removes all offsets of a deleted topic.
    pub(crate) fn topic_deleted(&self, store: &Store, topic: &str) {
        for id in self.ids() {
            let removed = self.with(&id, |slot| slot.offsets.remove_topic(&id, store, topic));
            if let Some(Err(error)) = removed {
                tracing::warn!(group = id, topic, %error, "cannot remove the offsets of a deleted topic");
            }
        }
    }
}

/// Limit on groups: clients with generated group ids must not exhaust the memory.
const MAX_GROUPS: usize = 100_000;
/// How long a group without members and offsets is kept.
const IDLE_GROUP_MS: i64 = 60_000;

impl GroupSlot {
    /// Persists the group if it changed and is between rebalances. Returns whether the persisted
    /// state is current.
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
