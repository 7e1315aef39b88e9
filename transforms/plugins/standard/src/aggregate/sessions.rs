//! Session windows: the records of a group without a pause of the gap or longer between them. A
//! record can join two sessions.
//!
//! | collection | key | value |
//! |---|---|---|
//! | `sessions` | length of the group, group, first time | the last time, and the window |
//! | `session-ends` | last time, key of the session | nothing |
//!
//! Times are big-endian, so that the second collection is in the order in which sessions end.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use trunkline_plugin::{Verdict, Verdicts};

use super::{Aggregate, Emit, Grouped, Output, PAGE, Window, emit, late, reject};

/// A stored session.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Session {
    /// The greatest timestamp of its records.
    end: i64,
    window: Window,
}

/// Processes a batch whose records have these groups. Returns the watermark after it.
pub(super) fn process(
    aggregate: &Aggregate,
    gap: i64,
    groups: &[super::Group<'_>],
    watermark: Option<i64>,
    verdicts: &mut Verdicts,
) -> Result<Option<i64>, String> {
    let mut open = Open { aggregate, gap, watermark, earliest: None, groups: HashMap::new() };
    open.find_earliest()?;
    for grouped in groups.iter().filter_map(|group| group.as_ref().ok()?.as_ref()) {
        open.load(&grouped.group)?;
    }
    for group in groups {
        let verdict = verdicts.next_verdict();
        match group {
            Ok(Some(grouped)) => open.record(grouped, verdict)?,
            Ok(None) => _ = verdict.drop(),
            Err(problem) => reject(verdict, problem),
        }
    }
    open.store()?;
    Ok(open.watermark)
}

/// The state that a batch uses.
struct Open<'a> {
    aggregate: &'a Aggregate,
    gap: i64,
    watermark: Option<i64>,
    /// No open session ends before this.
    earliest: Option<i64>,
    /// The groups of the batch.
    groups: HashMap<&'a [u8], Group>,
}

/// The open sessions of a group.
#[derive(Default)]
struct Group {
    /// By their first times; whether they have changed.
    sessions: BTreeMap<i64, (Session, bool)>,
    /// The last times of the stored sessions, by their first times.
    stored: BTreeMap<i64, i64>,
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
                self.aggregate.check(&session.window)?;
                let first = time_at(&key, key.len().saturating_sub(8))?;
                loaded.stored.insert(first, session.end);
                loaded.sessions.insert(first, (session, false));
            }
        }
        self.groups.insert(group, loaded);
        Ok(())
    }

    fn find_earliest(&mut self) -> Result<(), String> {
        let first = self.aggregate.session_ends.range("", None, 1)?;
        self.earliest = first.first().map(|(key, ())| time_at(key, 0)).transpose()?;
        Ok(())
    }

    /// Stores the changed sessions.
    fn store(&mut self) -> Result<(), String> {
        let (mut changed, mut ends, mut removed, mut removed_ends) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for (group, Group { sessions, stored }) in &mut self.groups {
            for (first, end) in &*stored {
                let known = sessions.get(first).map(|(session, _)| session.end);
                if known != Some(*end) {
                    removed_ends.push(end_key(*end, &session_key(group, *first)));
                }
                if known.is_none() {
                    removed.push(session_key(group, *first));
                }
            }
            stored.clear();
            for (first, (session, has_changed)) in sessions {
                stored.insert(*first, session.end);
                if std::mem::take(has_changed) {
                    let key = session_key(group, *first);
                    ends.push(end_key(session.end, &key));
                    changed.push((key, &*session));
                }
            }
        }
        self.aggregate.session_ends.delete_all(&removed_ends);
        self.aggregate.sessions.delete_all(&removed);
        self.aggregate.session_ends.put_all(ends.iter().map(|key| (key, &())))?;
        self.aggregate.sessions.put_all(changed)
    }

    fn record(&mut self, record: &Grouped<'_>, verdict: Verdict<'_>) -> Result<(), String> {
        let (aggregate, time, group) = (self.aggregate, record.time, record.group.as_slice());
        let Some(sessions) = self.groups.get(group).map(|group| &group.sessions) else {
            return Err("a group of the batch was not loaded".to_owned());
        };
        let joined = sessions.range(..time.saturating_add(self.gap)).rev();
        let mut joined: Vec<(i64, &Session)> = joined
            .take_while(|(_, (session, _))| session.end.saturating_add(self.gap) > time)
            .map(|(first, (session, _))| (*first, session))
            .collect();
        joined.reverse();
        if joined.is_empty() && self.is_closed(time) {
            late(aggregate, verdict);
            return Ok(());
        }
        let first = joined.first().map_or(time, |(first, _)| time.min(*first));
        let end = joined.last().map_or(time, |(_, session)| time.max(session.end));
        let mut windows = joined.iter().map(|(_, session)| &session.window);
        let merged = match windows.next().cloned() {
            Some(earliest) => windows.try_fold(earliest, |window, later| aggregate.merge(window, later)).map(Some),
            None => Ok(None),
        };
        let window = match merged.and_then(|merged| aggregate.add(merged.as_ref(), record)) {
            Ok(window) => window,
            Err(problem) => {
                reject(verdict, &problem);
                return Ok(());
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
        self.earliest = Some(self.earliest.map_or(end, |earliest| earliest.min(end)));
        self.watermark = self.watermark.max(Some(time));
        outputs.extend(self.close()?);
        emit(verdict, &outputs);
        Ok(())
    }

    /// Closes the sessions that the watermark has passed. Returns their results.
    fn close(&mut self) -> Result<Vec<Output>, String> {
        let mut outputs = Vec::new();
        if !self.earliest.is_some_and(|end| self.is_closed(end)) {
            return Ok(outputs);
        }
        self.store()?;
        let (aggregate, watermark) = (self.aggregate, self.watermark.unwrap_or(i64::MIN));
        // The first last time of a session that stays open.
        let open = watermark.saturating_sub(self.gap).saturating_sub(aggregate.lateness).saturating_add(1);
        loop {
            let page = aggregate.session_ends.range("", Some(&open.to_be_bytes()), PAGE)?;
            if page.is_empty() {
                break;
            }
            let ends: Vec<&[u8]> = page.iter().map(|(key, ())| key.as_slice()).collect();
            let keys: Vec<&[u8]> = ends.iter().map(|key| key.get(8..).unwrap_or_default()).collect();
            for (key, session) in keys.iter().zip(aggregate.sessions.get_all(&keys)?) {
                let session = session.ok_or("the state lacks a session that ends")?;
                let (group, first) = parts_of(key)?;
                aggregate.check(&session.window)?;
                if aggregate.emit == Emit::Final {
                    outputs.push(aggregate.output(group, (first, session.end), &session.window)?);
                }
                if let Some(Group { sessions, stored }) = self.groups.get_mut(group) {
                    sessions.remove(&first);
                    stored.remove(&first);
                }
            }
            aggregate.session_ends.delete_all(&ends);
            aggregate.sessions.delete_all(&keys);
        }
        self.find_earliest()?;
        Ok(outputs)
    }

    /// The watermark has passed the pause after this time, and the allowed lateness.
    fn is_closed(&self, end: i64) -> bool {
        self.watermark >= Some(end.saturating_add(self.gap).saturating_add(self.aggregate.lateness))
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

fn end_key(end: i64, session_key: &[u8]) -> Vec<u8> {
    [&end.to_be_bytes(), session_key].concat()
}

/// The group and the first time in the key of a session.
fn parts_of(key: &[u8]) -> Result<(&[u8], i64), String> {
    let first_at = key.len().saturating_sub(8);
    Ok((key.get(4..first_at).unwrap_or_default(), time_at(key, first_at)?))
}

fn time_at(key: &[u8], at: usize) -> Result<i64, String> {
    let time = key.get(at..).and_then(<[u8]>::first_chunk::<8>).ok_or("the state has a session without a time")?;
    Ok(i64::from_be_bytes(*time))
}
