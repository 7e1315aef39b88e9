//! Tumbling and hopping windows.
//!
//! The key of a window in the state is its start, as big-endian bytes, and the group. The windows
//! with the same start close together: the key of their timer is the start.

use std::collections::BTreeSet;
use std::ops::Range;

use trunkline_plugin::timers::Timer;
use trunkline_plugin::{Done, Verdict, Verdicts};

use super::{Aggregate, Arrivals, Change, Emit, Fixed, Grouped, Output, PAGE, Window, emit, late, reject};
use crate::distinct::DistinctKeys;

/// Pages of windows that one timer closes. It is set again if there are more, so that the output
/// of a call stays small.
const PAGES: u32 = 8;

/// Processes the records of a batch.
pub(super) fn process(
    aggregate: &Aggregate,
    fixed: Fixed,
    arrivals: &Arrivals<'_>,
    verdicts: &mut Verdicts,
) -> Result<(), String> {
    let mut keys = WindowKeys::default();
    let ranges = arrivals.records.iter().map(|arrival| match &arrival.grouped {
        Ok(Some(grouped)) => keys.add(fixed, grouped.time, arrivals.group(grouped)),
        _ => 0..0,
    });
    let ranges: Vec<Range<usize>> = ranges.collect();
    let mut distinct = DistinctKeys::default();
    let positions: Vec<usize> = keys.iter().map(|key| distinct.add(key)).collect();
    let mut open = Open::load(aggregate, fixed, &distinct)?;
    for (arrival, range) in arrivals.records.iter().zip(ranges) {
        let verdict = verdicts.next_verdict();
        match (&arrival.grouped, positions.get(range)) {
            (Ok(Some(grouped)), Some(positions @ [_, ..])) => {
                _ = open.record(grouped, arrival.event_time, positions, verdict)?;
            }
            (Ok(_), _) => _ = verdict.drop(),
            (Err(problem), _) => _ = reject(verdict, problem),
        }
    }
    open.store()
}

/// Closes the windows of a timer.
pub(super) fn close(
    aggregate: &Aggregate,
    fixed: Fixed,
    timer: Timer<'_>,
    verdict: Verdict<'_>,
) -> Result<Done, String> {
    let start = start_of(timer.key)?;
    let closes_at = aggregate.closes_at(fixed.end(start));
    if timer.time < closes_at {
        // The lateness was shorter when the timer was set.
        aggregate.timers.set(timer.key, closes_at);
        return Ok(verdict.drop());
    }
    let next_start = start.saturating_add(1).to_be_bytes();
    let mut outputs = Vec::new();
    for page in 0.. {
        if page == PAGES {
            aggregate.timers.set(timer.key, timer.time);
            break;
        }
        let page = aggregate.windows.range(timer.key, Some(&next_start), PAGE)?;
        if page.is_empty() {
            break;
        }
        for (key, window) in &page {
            if aggregate.emit == Emit::Final {
                outputs.push(output(aggregate, fixed, key, window)?);
            }
        }
        let keys: Vec<&[u8]> = page.iter().map(|(key, _)| key.as_slice()).collect();
        aggregate.windows.delete_all(&keys);
    }
    Ok(emit(verdict, &outputs))
}

/// The keys of the windows of a batch's records: their starts and the groups.
#[derive(Default)]
struct WindowKeys {
    bytes: Vec<u8>,
    /// Where each key ends.
    ends: Vec<usize>,
}

impl WindowKeys {
    /// Adds the keys of a record's windows, in the order of their starts. Returns their indices.
    fn add(&mut self, fixed: Fixed, time: i64, group: &[u8]) -> Range<usize> {
        let first = self.ends.len();
        let last = time - time.rem_euclid(fixed.advance);
        let mut start = last;
        // A window before 1970 would not be in the order of the bytes of its start.
        while start - fixed.advance > time - fixed.size && start >= fixed.advance {
            start -= fixed.advance;
        }
        while start <= last {
            self.bytes.extend_from_slice(&start.to_be_bytes());
            self.bytes.extend_from_slice(group);
            self.ends.push(self.bytes.len());
            start += fixed.advance;
        }
        first..self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| &self.bytes[std::mem::replace(&mut start, *end)..*end])
    }
}

/// The windows of the records of a batch.
struct Open<'a> {
    aggregate: &'a Aggregate,
    fixed: Fixed,
    keys: &'a DistinctKeys<'a>,
    /// By the position of their keys.
    windows: Vec<OpenWindow>,
    /// Of the current record: the positions of its open windows, and the changes of each.
    open: Vec<usize>,
    changes: Vec<Change>,
}

struct OpenWindow {
    window: Window,
    /// The state has it, so it has a timer.
    is_stored: bool,
    is_changed: bool,
}

impl<'a> Open<'a> {
    fn load(aggregate: &'a Aggregate, fixed: Fixed, keys: &'a DistinctKeys<'a>) -> Result<Self, String> {
        let stored = aggregate.windows.get_all(keys.keys())?;
        let windows = stored.into_iter().map(|window| {
            let is_stored = window.is_some();
            OpenWindow { window: window.unwrap_or_else(|| aggregate.empty_window()), is_stored, is_changed: false }
        });
        Ok(Self { aggregate, fixed, keys, windows: windows.collect(), open: Vec::new(), changes: Vec::new() })
    }

    /// Stores the changed windows, and sets the timers of new ones.
    fn store(&self) -> Result<(), String> {
        let changed = || self.keys.keys().iter().zip(&self.windows).filter(|(_, window)| window.is_changed);
        let mut starts = BTreeSet::new();
        for (key, _) in changed().filter(|(_, window)| !window.is_stored) {
            starts.insert(start_of(key)?);
        }
        let closes_at = |start: i64| self.aggregate.closes_at(self.fixed.end(start));
        self.aggregate.timers.set_all(starts.into_iter().map(|start| (start.to_be_bytes(), closes_at(start))));
        self.aggregate.windows.put_all(changed().map(|(key, window)| (*key, &window.window)))
    }

    fn record(
        &mut self,
        record: &Grouped<'_>,
        event_time: Option<i64>,
        positions: &[usize],
        verdict: Verdict<'_>,
    ) -> Result<Done, String> {
        let (aggregate, keys) = (self.aggregate, self.keys.keys());
        // All windows change, or none does.
        self.open.clear();
        self.changes.clear();
        for position in positions {
            if event_time >= Some(aggregate.closes_at(self.fixed.end(start_of(keys[*position])?))) {
                continue;
            }
            if let Err(problem) = aggregate.change(&self.windows[*position].window, record, &mut self.changes) {
                return Ok(reject(verdict, &problem));
            }
            self.open.push(*position);
        }
        if self.open.is_empty() {
            return Ok(late(aggregate, verdict));
        }
        let mut outputs = Vec::new();
        let mut changes = self.changes.drain(..);
        for position in &self.open {
            let open = &mut self.windows[*position];
            open.window.apply(record.time, &mut changes);
            open.is_changed = true;
            if aggregate.emit == Emit::Updates {
                outputs.push(output(aggregate, self.fixed, keys[*position], &open.window)?);
            }
        }
        Ok(emit(verdict, &outputs))
    }
}

impl Fixed {
    /// The end of the window with this start.
    fn end(self, start: i64) -> i64 {
        start.saturating_add(self.size)
    }
}

/// The result of the window with this key.
fn output(aggregate: &Aggregate, fixed: Fixed, key: &[u8], window: &Window) -> Result<Output, String> {
    let start = start_of(key)?;
    aggregate.output(&key[8..], (start, fixed.end(start)), window)
}

/// The start of the window with this key.
fn start_of(key: &[u8]) -> Result<i64, String> {
    let start = key.first_chunk::<8>().ok_or("the state has a window without a start")?;
    Ok(i64::from_be_bytes(*start))
}
