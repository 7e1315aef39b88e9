//! The store against a model: a map.

use proptest::prelude::*;

use super::slots::entry_bytes;
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

/// The keys of one call of `range`.
fn ranged(store: &mut StateStore) -> Vec<Vec<u8>> {
    store.range(&[], None, usize::MAX).unwrap().iter().map(|(key, _)| key.to_vec()).collect()
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
            prop_assert_eq!(store.len(), model.entries.len());
            prop_assert_eq!(ranged(&mut store), model.entries.keys().cloned().collect::<Vec<_>>());
            let named = store.slots.iter().filter(|slot| slot.entry.is_some() || slot.logs > 0).count();
            prop_assert_eq!((store.index.len(), store.slots.len()), (named, named + store.free.len()));
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
                Call::Get(key) => {
                    let known = store.entries().find(|(known, _)| *known == key).map(|(_, entry)| entry.value.clone());
                    prop_assert_eq!(store.get(&key).unwrap().cloned(), known);
                }
                Call::Range(start, end, limit) => {
                    let found = store.range(&start, end.as_deref(), limit).unwrap();
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
    let keys = |found: Result<Vec<KeyAndValue>, _>| found.unwrap().iter().map(|(key, _)| key[0]).collect::<Vec<_>>();
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
    let refused = (0..100u8).find(|key| store.put(&[*key], b"1", None).and_then(|()| store.delete(&[*key])).is_err());
    assert_eq!(refused, Some(2));
}
