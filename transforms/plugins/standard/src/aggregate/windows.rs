//! Tumbling and hopping windows.

use std::ops::Range;

use trunkline_plugin::{Verdict, Verdicts};

use super::{Aggregate, Emit, Fixed, Group, Grouped, Output, PAGE, Window, emit, late, reject};
use crate::distinct::DistinctKeys;

/// Processes a batch whose records have these groups. Returns the watermark after it.
pub(super) fn process(
    aggregate: &Aggregate,
    fixed: Fixed,
    groups: &[Group<'_>],
    watermark: Option<i64>,
    verdicts: &mut Verdicts,
) -> Result<Option<i64>, String> {
    let mut keys = WindowKeys::default();
    let ranges: Vec<Range<usize>> = groups.iter().map(|group| keys.add(fixed, group)).collect();
    let mut distinct = DistinctKeys::default();
    let positions: Vec<usize> = keys.iter().map(|key| distinct.add(key)).collect();
    let mut open = Open::load(aggregate, fixed, watermark, &distinct)?;
    for (group, range) in groups.iter().zip(ranges) {
        let verdict = verdicts.next_verdict();
        match (group, positions.get(range)) {
            (Ok(Some(grouped)), Some(positions @ [_, ..])) => open.record(grouped, positions, verdict)?,
            (Ok(_), _) => _ = verdict.drop(),
            (Err(problem), _) => reject(verdict, problem),
        }
    }
    open.store()?;
    Ok(open.watermark)
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
    fn add(&mut self, fixed: Fixed, group: &Group<'_>) -> Range<usize> {
        let first = self.ends.len();
        if let Ok(Some(Grouped { time, group, .. })) = group {
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
        }
        first..self.ends.len()
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().map(move |end| &self.bytes[std::mem::replace(&mut start, *end)..*end])
    }
}

/// The state that a batch uses.
struct Open<'a> {
    aggregate: &'a Aggregate,
    fixed: Fixed,
    watermark: Option<i64>,
    /// The start of the earliest open window.
    earliest: Option<i64>,
    keys: &'a DistinctKeys<'a>,
    /// The windows of the keys, and whether they have changed.
    windows: Vec<(Option<Window>, bool)>,
}

impl<'a> Open<'a> {
    fn load(
        aggregate: &'a Aggregate,
        fixed: Fixed,
        watermark: Option<i64>,
        keys: &'a DistinctKeys<'a>,
    ) -> Result<Self, String> {
        let windows = aggregate.windows.get_all(keys.keys())?;
        windows.iter().flatten().try_for_each(|window| aggregate.check(window))?;
        let windows = windows.into_iter().map(|window| (window, false)).collect();
        let mut open = Self { aggregate, fixed, watermark, earliest: None, keys, windows };
        open.find_earliest()?;
        Ok(open)
    }

    fn find_earliest(&mut self) -> Result<(), String> {
        let first = self.aggregate.windows.range("", None, 1)?;
        self.earliest = first.first().map(|(key, _)| start_of(key)).transpose()?;
        Ok(())
    }

    /// Stores the changed windows.
    fn store(&mut self) -> Result<(), String> {
        let changed = self.keys.keys().iter().zip(&self.windows).filter(|(_, (_, changed))| *changed);
        let changed = changed.filter_map(|(key, (window, _))| Some((*key, window.as_ref()?)));
        self.aggregate.windows.put_all(changed)?;
        self.windows.iter_mut().for_each(|(_, changed)| *changed = false);
        Ok(())
    }

    /// Closes the windows that the watermark has passed. Returns their results.
    fn close(&mut self) -> Result<Vec<Output>, String> {
        let mut outputs = Vec::new();
        if !self.earliest.is_some_and(|start| self.is_closed(start)) {
            return Ok(outputs);
        }
        self.store()?;
        let watermark = self.watermark.unwrap_or(i64::MIN);
        // The first start that stays open.
        let end = watermark.saturating_sub(self.fixed.size).saturating_sub(self.aggregate.lateness);
        let end = end.saturating_add(1).to_be_bytes();
        loop {
            let page = self.aggregate.windows.range("", Some(&end), PAGE)?;
            if page.is_empty() {
                break;
            }
            for (key, window) in &page {
                self.aggregate.check(window)?;
                if self.aggregate.emit == Emit::Final {
                    outputs.push(self.output(key, window)?);
                }
                if let Some(window) = self.keys.position(key).and_then(|position| self.windows.get_mut(position)) {
                    *window = (None, false);
                }
            }
            let keys: Vec<&[u8]> = page.iter().map(|(key, _)| key.as_slice()).collect();
            self.aggregate.windows.delete_all(&keys);
        }
        self.find_earliest()?;
        Ok(outputs)
    }

    fn record(&mut self, record: &Grouped<'_>, positions: &[usize], verdict: Verdict<'_>) -> Result<(), String> {
        let aggregate = self.aggregate;
        // All windows change, or none does.
        let mut changed = Vec::with_capacity(positions.len());
        for position in positions {
            let key = self.keys.keys()[*position];
            let start = start_of(key)?;
            if self.is_closed(start) {
                continue;
            }
            let window = self.windows.get(*position).and_then(|(window, _)| window.as_ref());
            match aggregate.add(window, record) {
                Ok(window) => changed.push((start, *position, window)),
                Err(problem) => {
                    reject(verdict, &problem);
                    return Ok(());
                }
            }
        }
        if changed.is_empty() {
            late(aggregate, verdict);
            return Ok(());
        }
        let mut outputs = Vec::new();
        for (start, position, window) in changed {
            if aggregate.emit == Emit::Updates {
                outputs.push(self.output(self.keys.keys()[position], &window)?);
            }
            self.earliest = Some(self.earliest.map_or(start, |earliest| earliest.min(start)));
            self.windows[position] = (Some(window), true);
        }
        self.watermark = self.watermark.max(Some(record.time));
        outputs.extend(self.close()?);
        emit(verdict, &outputs);
        Ok(())
    }

    /// The watermark has passed the end of the window by the allowed lateness.
    fn is_closed(&self, start: i64) -> bool {
        let end = start.saturating_add(self.fixed.size);
        self.watermark >= Some(end.saturating_add(self.aggregate.lateness))
    }

    fn output(&self, key: &[u8], window: &Window) -> Result<Output, String> {
        let start = start_of(key)?;
        self.aggregate.output(&key[8..], (start, start.saturating_add(self.fixed.size)), window)
    }
}

/// The start of the window with this key.
fn start_of(key: &[u8]) -> Result<i64, String> {
    let start = key.first_chunk::<8>().ok_or("the state has a window without a start")?;
    Ok(i64::from_be_bytes(*start))
}
