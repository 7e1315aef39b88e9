//! Session windows: the records of a group without a pause of the gap or longer between them. A
//! record can join two sessions.
//!
//! The key of a session in the state is the length of the group, the group, and the time of the
//! first record as big-endian bytes. Its timer has the same key. It is set when the session begins,
//! and not moved with each record: a timer that fires while the session is open is set again.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use serde::{Deserialize, Serialize};
use trunkline_plugin::timers::Timer;
use trunkline_plugin::{Done, Verdict, Verdicts};

use super::{Aggregate, Arrivals, Emit, Grouped, PAGE, Window, emit, late, reject};

/// A stored session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Session {
    /// The greatest timestamp of its records.
    end: i64,
    window: Window,
}

/// Processes the records of a batch.
pub(super) fn process(
    aggregate: &Aggregate,
    gap: i64,
    arrivals: &Arrivals<'_>,
    verdicts: &mut Verdicts,
) -> Result<(), String> {
    let groups = || arrivals.records.iter().filter_map(|arrival| arrival.grouped.as_ref().ok()?.as_ref());
    let last = arrivals.records.last().and_then(|arrival| arrival.event_time);
    let end = last.into_iter().chain(groups().map(|grouped| grouped.time)).max().unwrap_or(i64::MIN);
    let mut open = Open { aggregate, gap, end, groups: HashMap::new(), first: None };
    for grouped in groups() {
        open.load(arrivals.group(grouped))?;
    }
    for arrival in &arrivals.records {
        let verdict = verdicts.next_verdict();
        match &arrival.grouped {
            Ok(Some(grouped)) => _ = open.record(grouped, arrivals.group(grouped), arrival.event_time, verdict)?,
            Ok(None) => _ = verdict.drop(),
            Err(problem) => _ = reject(verdict, problem),
        }
    }
    open.store()
}

/// Closes the session of a timer, unless it has got later records.
pub(super) fn close(aggregate: &Aggregate, gap: i64, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
    let Some(Session { end, window }) = aggregate.sessions.get(timer.key)? else { return Ok(verdict.drop()) };
    let closes_at = aggregate.closes_at(end.saturating_add(gap));
    if timer.time < closes_at {
        aggregate.timers.set(timer.key, closes_at);
        return Ok(verdict.drop());
    }
    aggregate.sessions.delete(timer.key);
    if aggregate.emit == Emit::Updates {
        return Ok(verdict.drop());
    }
    let (group, first) = parts_of(timer.key)?;
    Ok(emit(verdict, &[aggregate.output(group, (first, end), &window)?]))
}

/// The sessions of the groups of a batch.
struct Open<'a> {
    aggregate: &'a Aggregate,
    gap: i64,
    /// The event time after the batch.
    end: i64,
    groups: HashMap<&'a [u8], Group>,
    /// The first session that is closed within the batch, unless a later record extends it: when,
    /// and its key. The host then repeats the first part of the batch.
    first: Option<(i64, Vec<u8>)>,
}

/// The open sessions of a group.
#[derive(Default)]
struct Group {
    /// By their first times; whether they have changed.
    sessions: BTreeMap<i64, (Session, bool)>,
    /// The first times of the stored sessions.
    stored: BTreeSet<i64>,
}

impl<'a> Open<'a> {
    fn load(&mut self, group: &'a [u8]) -> Result<(), String> {
        if self.groups.contains_key(group) {
            return Ok(());
        }
        let mut loaded = Group::default();
        let prefix = prefix_of(group);
        let end = [prefix.as_slice(), &[u8::MAX; 9]].concat();
        let mut start = prefix;
        loop {
            let page = self.aggregate.sessions.range(&start, Some(&end), PAGE)?;
            let Some((last, _)) = page.last() else { break };
            start = [last.as_slice(), &[0]].concat();
            for (key, session) in page {
                let (_, first) = parts_of(&key)?;
                loaded.stored.insert(first);
                loaded.sessions.insert(first, (session, false));
            }
        }
        self.groups.insert(group, loaded);
        Ok(())
    }

    /// Stores the changed sessions, and sets the timers of new ones.
    fn store(&self) -> Result<(), String> {
        let (mut changed, mut timers, mut removed) = (Vec::new(), Vec::new(), Vec::new());
        timers.extend(self.first.as_ref().map(|(time, key)| (key.clone(), *time)));
        for (group, Group { sessions, stored }) in &self.groups {
            let is_removed = |first: &&i64| !sessions.contains_key(first);
            removed.extend(stored.iter().filter(is_removed).map(|first| session_key(group, *first)));
            for (first, (session, _)) in sessions.iter().filter(|(_, (_, is_changed))| *is_changed) {
                let key = session_key(group, *first);
                if !stored.contains(first) {
                    timers.push((key.clone(), self.closes_at(session.end)));
                }
                changed.push((key, session));
            }
        }
        self.aggregate.timers.set_all(timers);
        self.aggregate.timers.delete_all(&removed);
        self.aggregate.sessions.delete_all(&removed);
        self.aggregate.sessions.put_all(changed)
    }

    fn record(
        &mut self,
        record: &Grouped<'_>,
        group: &[u8],
        event_time: Option<i64>,
        verdict: Verdict<'_>,
    ) -> Result<Done, String> {
        let (aggregate, time) = (self.aggregate, record.time);
        let Some(sessions) = self.groups.get(group).map(|group| &group.sessions) else {
            return Err("a group of the batch was not loaded".to_owned());
        };
        let joined = sessions.range(..time.saturating_add(self.gap)).rev();
        let mut joined: Vec<(i64, &Session)> = joined
            .take_while(|(_, (session, _))| session.end.saturating_add(self.gap) > time)
            .map(|(first, (session, _))| (*first, session))
            .collect();
        joined.reverse();
        if joined.is_empty() && event_time >= Some(self.closes_at(time)) {
            return Ok(late(aggregate, verdict));
        }
        let first = joined.first().map_or(time, |(first, _)| time.min(*first));
        let end = joined.last().map_or(time, |(_, session)| time.max(session.end));
        let mut windows = joined.iter().map(|(_, session)| &session.window);
        let merged = match windows.next().cloned() {
            Some(earliest) => windows.try_fold(earliest, |window, later| aggregate.merge(window, later)).map(Some),
            None => Ok(None),
        };
        let mut changes = Vec::new();
        let changed = merged.and_then(|merged| {
            let mut window = merged.unwrap_or_else(|| aggregate.empty_window());
            aggregate.change(&window, record, &mut changes)?;
            window.apply(time, &mut changes.drain(..));
            Ok(window)
        });
        let window = match changed {
            Ok(window) => window,
            Err(problem) => {
                return Ok(reject(verdict, &problem));
            }
        };
        let mut outputs = Vec::new();
        if aggregate.emit == Emit::Updates {
            outputs.push(aggregate.output(group, (first, end), &window)?);
        }
        let joined: Vec<i64> = joined.into_iter().map(|(first, _)| first).collect();
        if let Some(Group { sessions, .. }) = self.groups.get_mut(group) {
            joined.iter().for_each(|first| drop(sessions.remove(first)));
            sessions.insert(first, (Session { end, window }, true));
        }
        let closes_at = self.closes_at(end);
        if closes_at <= self.end && self.first.as_ref().is_none_or(|(earliest, _)| closes_at < *earliest) {
            self.first = Some((closes_at, session_key(group, first)));
        }
        Ok(emit(verdict, &outputs))
    }

    /// The event time at which a session is closed whose last record has this time.
    fn closes_at(&self, end: i64) -> i64 {
        self.aggregate.closes_at(end.saturating_add(self.gap))
    }
}

/// The length of the group and the group: no key of another group starts with it.
fn prefix_of(group: &[u8]) -> Vec<u8> {
    let length = u32::try_from(group.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes(), group].concat()
}

fn session_key(group: &[u8], first: i64) -> Vec<u8> {
    [prefix_of(group).as_slice(), &first.to_be_bytes()].concat()
}

/// The group and the first time in the key of a session.
fn parts_of(key: &[u8]) -> Result<(&[u8], i64), String> {
    let split = key.split_last_chunk::<8>().and_then(|(rest, first)| Some((rest.get(4..)?, first)));
    let (group, first) = split.ok_or("the state has a session without a time")?;
    Ok((group, i64::from_be_bytes(*first)))
}
