//! Timers by event time (the interface `timers`): entries of the state under a prefix that plugins
//! cannot use. So timers are committed, aborted, moved and limited as all state is.
//!
//! A timer is two entries. One finds its time by its key. The key of the other one starts with the
//! time, so that a range of the state finds the timers that are due, in their order.

use crate::state::{StateError, StateStore};

/// Keys of plugins sort before it.
const PREFIX: [u8; 8] = [u8::MAX; 8];
const BY_KEY: u8 = 0;
const BY_TIME: u8 = 1;

/// A plugin uses a key of the host.
#[derive(Debug, thiserror::Error)]
#[error("keys of the state that start with eight bytes 0xff are reserved")]
pub(crate) struct ReservedKey;

/// A timer that is due.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Timer {
    pub(crate) time: i64,
    pub(crate) key: Vec<u8>,
}

/// Checks a key that a plugin uses for an entry.
pub(crate) fn check_key(key: &[u8]) -> Result<(), ReservedKey> {
    if key.starts_with(&PREFIX) { Err(ReservedKey) } else { Ok(()) }
}

/// The end of a range of a plugin, which contains no key of the host.
pub(crate) fn end_of_range(end: Option<&[u8]>) -> &[u8] {
    end.filter(|end| **end < PREFIX[..]).unwrap_or(&PREFIX)
}

/// Sets a timer, or moves the one with this key.
pub(crate) fn set(state: &mut StateStore, key: &[u8], time: i64) -> Result<(), StateError> {
    match get(state, key)? {
        Some(before) if before == time => return Ok(()),
        Some(before) => state.delete(&by_time(before, key))?,
        None => {}
    }
    state.put(&by_key(key), &time.to_be_bytes(), None)?;
    state.put(&by_time(time, key), &[], None)
}

/// Removes a timer.
pub(crate) fn delete(state: &mut StateStore, key: &[u8]) -> Result<(), StateError> {
    let Some(time) = get(state, key)? else { return Ok(()) };
    state.delete(&by_key(key))?;
    state.delete(&by_time(time, key))
}

/// The time of a timer.
pub(crate) fn get(state: &mut StateStore, key: &[u8]) -> Result<Option<i64>, StateError> {
    let stored = state.get(&by_key(key))?;
    Ok(stored.and_then(|time| Some(i64::from_be_bytes(time[..].try_into().ok()?))))
}

/// The time of the first timer.
pub fn next_timer(state: &mut StateStore) -> Option<i64> {
    let found = range(state, None, 1).unwrap_or_default();
    found.first().map(|timer| timer.time)
}

/// The first timers before `end`.
fn range(state: &mut StateStore, end: Option<&[u8]>, limit: usize) -> Result<Vec<Timer>, StateError> {
    let found = state.range(&time_prefix(i64::MIN), end, limit)?;
    Ok(found.iter().filter_map(|(key, _)| parse(key)).collect())
}

/// Removes and returns the first timers that are due at `now`: at most `limit`, all of one time.
pub(crate) fn take_due(state: &mut StateStore, now: i64, limit: usize) -> Result<Vec<Timer>, StateError> {
    let mut due = range(state, Some(&time_prefix(now.saturating_add(1))), limit.max(1))?;
    if let Some(first) = due.first().map(|timer| timer.time) {
        due.retain(|timer| timer.time == first);
    }
    for timer in &due {
        state.delete(&by_key(&timer.key))?;
        state.delete(&by_time(timer.time, &timer.key))?;
    }
    Ok(due)
}

fn by_key(key: &[u8]) -> Vec<u8> {
    [&PREFIX[..], &[BY_KEY], key].concat()
}

fn by_time(time: i64, key: &[u8]) -> Vec<u8> {
    let mut stored = time_prefix(time);
    stored.extend_from_slice(key);
    stored
}

/// The start of the keys of the timers of this time. The sign bit is inverted, so that the bytes
/// have the order of the times.
fn time_prefix(time: i64) -> Vec<u8> {
    [&PREFIX[..], &[BY_TIME], &(time ^ i64::MIN).to_be_bytes()].concat()
}

fn parse(stored: &[u8]) -> Option<Timer> {
    let rest = stored.strip_prefix(&PREFIX)?.strip_prefix(&[BY_TIME])?;
    let (time, key) = rest.split_first_chunk::<8>()?;
    Some(Timer { time: i64::from_be_bytes(*time) ^ i64::MIN, key: key.to_vec() })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Set(u8, i64),
        Delete(u8),
        TakeDue(i64, usize),
        Savepoint,
        Rollback,
    }

    fn step() -> impl Strategy<Value = Step> {
        let time = || prop_oneof![-5i64..5, Just(i64::MIN), Just(i64::MAX), Just(i64::MAX - 1)];
        prop_oneof![
            8 => (0..6u8, time()).prop_map(|(key, time)| Step::Set(key, time)),
            2 => (0..6u8).prop_map(Step::Delete),
            3 => (time(), 1..4usize).prop_map(|(now, limit)| Step::TakeDue(now, limit)),
            1 => Just(Step::Savepoint),
            1 => Just(Step::Rollback),
        ]
    }

    proptest! {
        #[test]
        fn timers_agree_with_a_map(steps in proptest::collection::vec(step(), 0..60)) {
            let mut state = StateStore::new(1 << 20);
            let mut model: BTreeMap<u8, i64> = BTreeMap::new();
            let mut savepoints = Vec::new();
            for step in steps {
                match step {
                    Step::Set(key, time) => {
                        set(&mut state, &[key], time).unwrap();
                        model.insert(key, time);
                    }
                    Step::Delete(key) => {
                        delete(&mut state, &[key]).unwrap();
                        model.remove(&key);
                    }
                    Step::TakeDue(now, limit) => {
                        let due = take_due(&mut state, now, limit).unwrap();
                        // The end of time is never reached.
                        let is_due = |time: i64| time <= now && time < i64::MAX;
                        let first = model.values().copied().filter(|time| is_due(*time)).min();
                        let mut expected: Vec<u8> =
                            model.iter().filter(|(_, time)| Some(**time) == first).map(|(key, _)| *key).collect();
                        expected.truncate(limit);
                        expected.iter().for_each(|key| _ = model.remove(key));
                        let found: Vec<u8> = due.iter().map(|timer| timer.key[0]).collect();
                        prop_assert_eq!(found, expected);
                        prop_assert!(due.iter().all(|timer| Some(timer.time) == first));
                    }
                    Step::Savepoint => savepoints.push((state.savepoint(), model.clone())),
                    Step::Rollback => {
                        if let Some((savepoint, before)) = savepoints.pop() {
                            state.rollback_to(savepoint);
                            model = before;
                        }
                    }
                }
                prop_assert_eq!(next_timer(&mut state), model.values().copied().min());
                prop_assert_eq!(state.len(), 2 * model.len());
                for key in 0..6 {
                    prop_assert_eq!(get(&mut state, &[key]).unwrap(), model.get(&key).copied());
                }
            }
        }
    }

    #[test]
    fn plugins_cannot_reach_the_entries_of_timers() {
        let mut state = StateStore::new(1 << 20);
        set(&mut state, b"k", 7).unwrap();
        state.put(&[0xff; 7], b"own", None).unwrap();
        assert!(check_key(&[0xff; 7]).is_ok() && check_key(&by_key(b"k")).is_err());
        for end in [None, Some(&[0xff; 9][..]), Some(&by_time(9, b"")[..])] {
            assert_eq!(state.range(b"", Some(end_of_range(end)), 9).unwrap().len(), 1);
        }
        assert_eq!(state.range(b"", Some(end_of_range(Some(b"a"))), 9).unwrap().len(), 0);
        assert_eq!(state.range(&by_key(b""), Some(end_of_range(None)), 9).unwrap().len(), 0);
    }
}
