//! The durable state of a plugin for one topic partition: the host's side of the interface `state`.
//!
//! All entries are in memory. The caller writes the changes of its transaction to a changelog
//! ([`StateStore::changes`]), and calls [`StateStore::commit`] or [`StateStore::abort`] when the
//! transaction has ended. A new owner of the partition fills an empty store from the changelog
//! ([`StateStore::restore`]).
//!
//! # Savepoints
//! Changes are applied to the entries at once. An undo log for each savepoint holds the previous
//! entries of the changed keys. The lowest log belongs to the transaction; [`Instance`] opens one
//! for each batch and each call, so that a crash or a failed batch takes back exactly its own
//! changes.
//!
//! [`Instance`]: crate::Instance

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use trunkline_connector::{Batch, Error};

/// Greatest size of key and value together. A record of this size fits into every topic with
/// Kafka's default limit of 1 MiB.
pub(crate) const MAX_ENTRY_BYTES: usize = 512 << 10;
/// Greatest size of the entries that one call of `range` returns.
const MAX_RANGE_BYTES: usize = 1 << 20;
/// Estimated memory of an entry apart from its key and value.
const ENTRY_OVERHEAD_BYTES: usize = 128;

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

/// The previous entries of changed keys; `None` if a key had no entry.
#[derive(Debug, Default)]
struct UndoLog {
    previous: HashMap<Arc<[u8]>, Option<StateEntry>>,
    time: Option<i64>,
    bytes: usize,
}

/// The state of one topic partition.
#[derive(Debug)]
pub struct StateStore {
    entries: BTreeMap<Arc<[u8]>, StateEntry>,
    /// The keys of the entries with a TTL, by the time at which they expire.
    expiries: BTreeSet<(i64, Arc<[u8]>)>,
    /// The greatest timestamp of the processed records.
    time: Option<i64>,
    /// The same, including the current batch.
    batch_time: Option<i64>,
    bytes: usize,
    max_bytes: usize,
    is_full: bool,
    /// The first one belongs to the transaction.
    logs: Vec<UndoLog>,
}

/// The plugin violated a limit; the message becomes the reason of a trap.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StateError {
    #[error("the state has reached its limit of {0} bytes")]
    Full(usize),
    #[error("an entry of the state has {0} bytes; expected at most {MAX_ENTRY_BYTES}")]
    LargeEntry(usize),
}

impl StateStore {
    /// An empty store that may grow to `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            expiries: BTreeSet::new(),
            time: None,
            batch_time: None,
            bytes: 0,
            max_bytes,
            is_full: false,
            logs: vec![UndoLog::default()],
        }
    }

    /// Takes over an entry from the changelog; `None` removes the key.
    pub fn restore(&mut self, key: &[u8], entry: Option<StateEntry>) {
        self.replace(&Arc::from(key), entry);
    }

    /// Takes over the time of the partition from the changelog.
    pub fn restore_time(&mut self, time: i64) {
        self.time = Some(time);
        if let Some(log) = self.logs.first_mut() {
            log.time = self.time;
        }
    }

    /// Checks that the restored entries are within the limit.
    ///
    /// # Errors
    /// `plugin.state_full`.
    pub fn check_restored(&self) -> Result<(), Error> {
        if self.bytes <= self.max_bytes { Ok(()) } else { Err(self.full_error()) }
    }

    /// The error with which the stage stops.
    pub(crate) fn full_error(&self) -> Error {
        let message = format!(
            "its state of a topic partition needs more than {} bytes ({} entries): raise `state.max_bytes` of the \
             transform, or keep entries for a shorter time",
            self.max_bytes,
            self.entries.len()
        );
        Error::config("plugin.state_full", message)
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
        self.entries.len()
    }

    /// Whether the store has no entry.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The entries in the order of their keys.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &StateEntry)> {
        self.entries.iter().map(|(key, entry)| (&**key, entry))
    }

    /// The keys that the transaction has changed, with their entries; `None` if a key was removed.
    pub fn changes(&self) -> impl Iterator<Item = (&[u8], Option<&StateEntry>)> {
        let keys = self.logs.iter().flat_map(|log| log.previous.keys());
        keys.map(|key| (&**key, self.entries.get(key)))
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
        self.logs.truncate(1);
        for log in &mut self.logs {
            *log = UndoLog { time: self.time, ..UndoLog::default() };
        }
    }

    /// The transaction is aborted: takes its changes back.
    pub fn abort(&mut self) {
        self.rollback_to(0);
    }

    /// Opens a savepoint. Returns the value for [`StateStore::rollback_to`].
    pub fn savepoint(&mut self) -> usize {
        self.logs.push(UndoLog { time: self.time, ..UndoLog::default() });
        self.logs.len() - 1
    }

    /// Takes back all changes since a savepoint, and closes it and the later ones. With 0, takes
    /// back the transaction.
    pub fn rollback_to(&mut self, savepoint: usize) {
        while self.logs.len() > savepoint {
            let Some(log) = self.logs.pop() else { break };
            self.time = log.time;
            for (key, entry) in log.previous {
                self.replace(&key, entry);
            }
        }
        if self.logs.is_empty() {
            self.logs.push(UndoLog { time: self.time, ..UndoLog::default() });
        }
        self.is_full = false;
    }

    /// Keeps the changes since the savepoint, and closes it.
    pub fn release(&mut self, savepoint: usize) {
        while self.logs.len() > savepoint.max(1) {
            let (Some(released), Some(below)) = (self.logs.pop(), self.logs.last_mut()) else { break };
            for (key, entry) in released.previous {
                below.add(key, entry);
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
        while let Some((expires_at, key)) = self.expiries.first().cloned()
            && expires_at <= time
        {
            self.change(&key, None);
        }
    }

    pub(crate) fn get(&self, key: &[u8]) -> Option<Arc<[u8]>> {
        self.entries.get(key).map(|entry| entry.value.clone())
    }

    pub(crate) fn put(&mut self, key: &[u8], value: &[u8], ttl_ms: Option<u64>) -> Result<(), StateError> {
        let bytes = key.len() + value.len();
        if bytes > MAX_ENTRY_BYTES {
            return Err(StateError::LargeEntry(bytes));
        }
        // Without any timestamp, time does not advance and the entry stays.
        let now = self.batch_time.unwrap_or(0);
        let expires_at = ttl_ms.map(|ttl| now.saturating_add(i64::try_from(ttl).unwrap_or(i64::MAX)));
        self.change(&Arc::from(key), Some(StateEntry { value: Arc::from(value), expires_at }));
        self.check_limit()
    }

    pub(crate) fn delete(&mut self, key: &[u8]) -> Result<(), StateError> {
        if let Some((key, _)) = self.entries.get_key_value(key) {
            self.change(&key.clone(), None);
        }
        self.check_limit()
    }

    pub(crate) fn range(&self, start: &[u8], end: Option<&[u8]>, limit: usize) -> Vec<KeyAndValue> {
        let mut found = Vec::new();
        let mut bytes = 0;
        for (key, entry) in
            self.entries.range::<[u8], _>((std::ops::Bound::Included(start), std::ops::Bound::Unbounded))
        {
            bytes += key.len() + entry.value.len();
            let is_past = end.is_some_and(|end| &**key >= end);
            if is_past || found.len() == limit || (bytes > MAX_RANGE_BYTES && !found.is_empty()) {
                break;
            }
            found.push((key.clone(), entry.value.clone()));
        }
        found
    }

    /// The changes of one savepoint are limited too: a plugin that stores and deletes keys in turn
    /// would fill the undo log.
    fn check_limit(&mut self) -> Result<(), StateError> {
        let logged = self.logs.last().map_or(0, |log| log.bytes);
        if self.bytes <= self.max_bytes && logged <= self.max_bytes {
            return Ok(());
        }
        self.is_full = true;
        Err(StateError::Full(self.max_bytes))
    }

    /// Replaces an entry, and notes the previous one in the undo log.
    fn change(&mut self, key: &Arc<[u8]>, entry: Option<StateEntry>) {
        let previous = self.replace(key, entry);
        if let Some(log) = self.logs.last_mut() {
            log.add(key.clone(), previous);
        }
    }

    fn replace(&mut self, key: &Arc<[u8]>, entry: Option<StateEntry>) -> Option<StateEntry> {
        let expires_at = entry.as_ref().and_then(|entry| entry.expires_at);
        let added = entry.as_ref().map_or(0, |entry| entry_bytes(key, entry));
        let previous = match entry {
            Some(entry) => self.entries.insert(key.clone(), entry),
            None => self.entries.remove(key),
        };
        let removed = previous.as_ref().map_or(0, |previous| entry_bytes(key, previous));
        self.bytes = (self.bytes + added).saturating_sub(removed);
        if let Some(before) = previous.as_ref().and_then(|previous| previous.expires_at) {
            self.expiries.remove(&(before, key.clone()));
        }
        if let Some(expires_at) = expires_at {
            self.expiries.insert((expires_at, key.clone()));
        }
        previous
    }
}

impl UndoLog {
    /// Notes the entry of a key from before its first change.
    fn add(&mut self, key: Arc<[u8]>, previous: Option<StateEntry>) {
        let bytes = key.len() + previous.as_ref().map_or(0, |entry| entry.value.len()) + ENTRY_OVERHEAD_BYTES;
        if let std::collections::hash_map::Entry::Vacant(vacant) = self.previous.entry(key) {
            vacant.insert(previous);
            self.bytes += bytes;
        }
    }
}

fn entry_bytes(key: &[u8], entry: &StateEntry) -> usize {
    let expiry = if entry.expires_at.is_some() { ENTRY_OVERHEAD_BYTES / 2 } else { 0 };
    key.len() + entry.value.len() + ENTRY_OVERHEAD_BYTES + expiry
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, u8, Option<u8>),
        Delete(u8),
        Savepoint,
        Release,
        Rollback,
        /// Ends a batch with a record of this age.
        Advance(u8),
        Commit,
        Abort,
        /// The partition moves: a new store is filled from the changelog.
        Move,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0..12u8, any::<u8>(), proptest::option::of(0..20u8)).prop_map(|(key, value, ttl)| Step::Put(key, value, ttl)),
            3 => (0..12u8).prop_map(Step::Delete),
            2 => Just(Step::Savepoint),
            2 => Just(Step::Release),
            2 => Just(Step::Rollback),
            3 => (0..10u8).prop_map(Step::Advance),
            2 => Just(Step::Commit),
            1 => Just(Step::Abort),
            1 => Just(Step::Move),
        ]
    }

    /// The state as a plain map, which is copied at each savepoint.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Model {
        entries: BTreeMap<Vec<u8>, (Vec<u8>, Option<i64>)>,
        time: Option<i64>,
    }

    fn contents(store: &StateStore) -> Model {
        let entries = store.entries().map(|(key, entry)| (key.to_vec(), (entry.value.to_vec(), entry.expires_at)));
        Model { entries: entries.collect(), time: store.time() }
    }

    /// Writes the changes of the transaction as a commit does.
    fn write_changelog(store: &StateStore, changelog: &mut BTreeMap<Vec<u8>, StateEntry>, time: &mut Option<i64>) {
        for (key, entry) in store.changes() {
            match entry {
                Some(entry) => drop(changelog.insert(key.to_vec(), entry.clone())),
                None => drop(changelog.remove(key)),
            }
        }
        *time = store.changed_time().or(*time);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

        #[test]
        fn store_and_changelog_agree_with_a_map(steps in proptest::collection::vec(step(), 0..120)) {
            let mut store = StateStore::new(1 << 20);
            let mut model = Model::default();
            let mut committed = Model::default();
            let mut savepoints: Vec<(usize, Model)> = Vec::new();
            let mut changelog = BTreeMap::new();
            let mut changelog_time = None;
            let mut clock = 1000;
            for step in steps {
                match step {
                    Step::Put(key, value, ttl) => {
                        store.put(&[key], &[value], ttl.map(u64::from)).unwrap();
                        let now = store.batch_time.unwrap_or(0);
                        model.entries.insert(vec![key], (vec![value], ttl.map(|ttl| now + i64::from(ttl))));
                    }
                    Step::Delete(key) => {
                        store.delete(&[key]).unwrap();
                        model.entries.remove(&vec![key]);
                    }
                    Step::Savepoint => savepoints.push((store.savepoint(), model.clone())),
                    Step::Release => {
                        if let Some((savepoint, _)) = savepoints.pop() {
                            store.release(savepoint);
                        }
                    }
                    Step::Rollback => {
                        if let Some((savepoint, before)) = savepoints.pop() {
                            store.rollback_to(savepoint);
                            model = before;
                        }
                    }
                    Step::Advance(by) => {
                        clock += i64::from(by);
                        store.batch_time = store.time().max(Some(clock));
                        store.end_batch();
                        model.time = model.time.max(Some(clock));
                        let now = model.time;
                        model.entries.retain(|_, (_, expires_at)| *expires_at > now || expires_at.is_none());
                    }
                    Step::Commit => {
                        write_changelog(&store, &mut changelog, &mut changelog_time);
                        store.commit();
                        savepoints.clear();
                        committed = model.clone();
                    }
                    Step::Abort => {
                        store.abort();
                        savepoints.clear();
                        model = committed.clone();
                    }
                    Step::Move => {
                        store = StateStore::new(1 << 20);
                        for (key, entry) in &changelog {
                            store.restore(key, Some(entry.clone()));
                        }
                        if let Some(time) = changelog_time {
                            store.restore_time(time);
                        }
                        store.commit();
                        savepoints.clear();
                        model = committed.clone();
                        // The clock of the next batch is not known before it.
                        store.batch_time = store.time();
                    }
                }
                prop_assert_eq!(contents(&store), model.clone());
                let bytes: usize = store.entries().map(|(key, entry)| entry_bytes(key, entry)).sum();
                prop_assert_eq!(store.bytes, bytes);
                let with_ttl = store.entries().filter(|(_, entry)| entry.expires_at.is_some()).count();
                prop_assert_eq!(store.expiries.len(), with_ttl);
            }
        }
    }

    /// A call of a hostile plugin.
    #[derive(Debug, Clone)]
    enum Call {
        Put(Vec<u8>, usize, Option<u64>),
        Delete(Vec<u8>),
        Get(Vec<u8>),
        Range(Vec<u8>, Option<Vec<u8>>, usize),
        EndBatch(i64),
        Savepoint,
        /// Closes a savepoint that need not exist.
        Rollback(usize),
        Release(usize),
        Abort,
    }

    fn call() -> impl Strategy<Value = Call> {
        let key = || prop_oneof![proptest::collection::vec(0..3u8, 0..4), Just(vec![u8::MAX; MAX_ENTRY_BYTES + 1])];
        let limit = prop_oneof![0..4usize, Just(usize::MAX)];
        let size = prop_oneof![9 => 0..2_000usize, 1 => Just(MAX_ENTRY_BYTES), 1 => Just(MAX_ENTRY_BYTES + 1)];
        let ttl = proptest::option::of(prop_oneof![0..5u64, Just(u64::MAX)]);
        prop_oneof![
            8 => (key(), size, ttl).prop_map(|(key, size, ttl)| Call::Put(key, size, ttl)),
            3 => key().prop_map(Call::Delete),
            1 => key().prop_map(Call::Get),
            3 => (key(), proptest::option::of(key()), limit).prop_map(|(start, end, limit)| Call::Range(start, end, limit)),
            2 => prop_oneof![any::<i64>(), 0..10i64].prop_map(Call::EndBatch),
            2 => Just(Call::Savepoint),
            1 => (0..6usize).prop_map(Call::Rollback),
            1 => (0..6usize).prop_map(Call::Release),
            1 => Just(Call::Abort),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

        #[test]
        fn hostile_calls_cause_no_panic_and_stay_within_the_limits(calls in proptest::collection::vec(call(), 0..60)) {
            const MAX_BYTES: usize = 1 << 20;
            let mut store = StateStore::new(MAX_BYTES);
            for call in calls {
                match call {
                    Call::Put(key, size, ttl) => {
                        let is_large = key.len() + size > MAX_ENTRY_BYTES;
                        let outcome = store.put(&key, &vec![0; size], ttl);
                        prop_assert_eq!(is_large, matches!(outcome, Err(StateError::LargeEntry(_))));
                    }
                    Call::Delete(key) => drop(store.delete(&key)),
                    Call::Get(key) => prop_assert_eq!(store.get(&key).is_some(), store.entries.contains_key(key.as_slice())),
                    Call::Range(start, end, limit) => {
                        let found = store.range(&start, end.as_deref(), limit);
                        prop_assert!(found.len() <= limit);
                        let bytes: usize = found.iter().skip(1).map(|(key, value)| key.len() + value.len()).sum();
                        prop_assert!(bytes <= MAX_RANGE_BYTES);
                        prop_assert!(found.is_sorted() && found.iter().all(|(key, _)| **key >= *start));
                    }
                    Call::EndBatch(time) => {
                        store.batch_time = store.time.max(Some(time));
                        store.end_batch();
                    }
                    Call::Savepoint => _ = store.savepoint(),
                    Call::Rollback(savepoint) => store.rollback_to(savepoint),
                    Call::Release(savepoint) => store.release(savepoint),
                    Call::Abort => store.abort(),
                }
                // The call that exceeds the limit traps, and its savepoint is rolled back.
                if store.is_full() {
                    store.abort();
                }
                prop_assert!(store.bytes() <= MAX_BYTES, "{} bytes", store.bytes());
                let bytes: usize = store.entries().map(|(key, entry)| entry_bytes(key, entry)).sum();
                prop_assert_eq!(store.bytes, bytes);
            }
        }
    }

    #[test]
    fn range_is_limited_by_end_count_and_bytes() {
        let mut store = StateStore::new(64 << 20);
        for key in 0..10u8 {
            store.put(&[key], &vec![key; 200 << 10], None).unwrap();
        }
        let keys = |found: Vec<KeyAndValue>| found.iter().map(|(key, _)| key[0]).collect::<Vec<_>>();
        assert_eq!(keys(store.range(&[3], Some(&[5]), 100)), [3, 4]);
        assert_eq!(keys(store.range(&[3], None, 2)), [3, 4]);
        assert_eq!(keys(store.range(&[3, 0], None, 100)), [4, 5, 6, 7, 8]);
        assert_eq!(keys(store.range(&[9, 0], None, 100)), [0u8; 0]);
    }

    #[test]
    fn full_store_refuses_changes_until_a_rollback() {
        let mut store = StateStore::new(2 * (ENTRY_OVERHEAD_BYTES + 2));
        let savepoint = store.savepoint();
        store.put(b"a", b"1", None).unwrap();
        store.put(b"b", b"1", None).unwrap();
        assert!(matches!(store.put(b"c", b"1", None), Err(StateError::Full(_))) && store.is_full());
        store.rollback_to(savepoint);
        assert!(store.is_empty() && !store.is_full());
        for _ in 0..2 {
            let key = [0; MAX_ENTRY_BYTES];
            assert!(matches!(store.put(&key, b"1", None), Err(StateError::LargeEntry(_))));
        }
        // Keys that are stored and deleted in turn fill the undo log.
        let refused =
            (0..100u8).find(|key| store.put(&[*key], b"1", None).and_then(|()| store.delete(&[*key])).is_err());
        assert_eq!(refused, Some(2));
    }
}
