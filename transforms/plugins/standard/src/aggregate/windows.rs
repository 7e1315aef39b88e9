//! Tumbling and hopping windows.

use std::collections::HashMap;

use trunkline_plugin::{Batch, Record, Verdict, Verdicts};

use super::{Aggregate, Emit, Fixed, Output, PAGE, Window, emit, late, reject};

/// Processes a batch whose records have these groups. Returns the watermark after it.
pub(super) fn process(
    aggregate: &Aggregate,
    fixed: Fixed,
    batch: Batch<'_>,
    groups: &[Result<Option<Vec<u8>>, String>],
    watermark: Option<i64>,
    verdicts: &mut Verdicts,
) -> Result<Option<i64>, String> {
    let keys_of = |(record, group): (Record<'_>, &Result<Option<Vec<u8>>, String>)| match group {
        Ok(Some(group)) => window_keys(fixed, record.timestamp().unwrap_or(0), group),
        Ok(None) | Err(_) => Vec::new(),
    };
    let keys: Vec<Vec<Vec<u8>>> = batch.iter().zip(groups).map(keys_of).collect();
    let mut distinct: Vec<&[u8]> = keys.iter().flatten().map(Vec::as_slice).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let mut open = Open::load(aggregate, fixed, watermark, &distinct)?;
    for ((record, group), keys) in batch.iter().zip(groups).zip(&keys) {
        let verdict = verdicts.next_verdict();
        match group {
            Ok(_) if keys.is_empty() => _ = verdict.drop(),
            Ok(_) => open.record(record, keys, verdict)?,
            Err(problem) => reject(verdict, problem),
        }
    }
    open.store()?;
    Ok(open.watermark)
}

/// The state that a batch uses.
struct Open<'a> {
    aggregate: &'a Aggregate,
    fixed: Fixed,
    watermark: Option<i64>,
    /// The start of the earliest open window.
    earliest: Option<i64>,
    /// The windows of the batch, and whether they have changed.
    windows: HashMap<Vec<u8>, (Option<Window>, bool)>,
}

impl<'a> Open<'a> {
    fn load(aggregate: &'a Aggregate, fixed: Fixed, watermark: Option<i64>, keys: &[&[u8]]) -> Result<Self, String> {
        let windows = aggregate.windows.get_all(keys)?;
        windows.iter().flatten().try_for_each(|window| aggregate.check(window))?;
        let windows = windows.into_iter().map(|window| (window, false));
        let mut open = Self {
            aggregate,
            fixed,
            watermark,
            earliest: None,
            windows: keys.iter().map(|key| key.to_vec()).zip(windows).collect(),
        };
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
        let changed = self.windows.iter().filter(|(_, (_, changed))| *changed);
        let changed = changed.filter_map(|(key, (window, _))| Some((key, window.as_ref()?)));
        self.aggregate.windows.put_all(changed)?;
        self.windows.values_mut().for_each(|(_, changed)| *changed = false);
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
                self.windows.remove(key);
            }
            let keys: Vec<&[u8]> = page.iter().map(|(key, _)| key.as_slice()).collect();
            self.aggregate.windows.delete_all(&keys);
        }
        self.find_earliest()?;
        Ok(outputs)
    }

    fn record(&mut self, record: Record<'_>, keys: &[Vec<u8>], verdict: Verdict<'_>) -> Result<(), String> {
        let aggregate = self.aggregate;
        let time = record.timestamp().unwrap_or(0);
        // All windows change, or none does.
        let mut changed = Vec::new();
        for key in keys {
            let start = start_of(key)?;
            if self.is_closed(start) {
                continue;
            }
            let window = self.windows.get(key).and_then(|(window, _)| window.as_ref());
            match aggregate.add(window, record, time) {
                Ok(window) => changed.push((start, key, window)),
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
        for (start, key, window) in changed {
            if aggregate.emit == Emit::Updates {
                outputs.push(self.output(key, &window)?);
            }
            self.earliest = Some(self.earliest.map_or(start, |earliest| earliest.min(start)));
            self.windows.insert(key.clone(), (Some(window), true));
        }
        self.watermark = self.watermark.max(Some(time));
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

/// The keys of a record's windows: their starts and the group.
fn window_keys(fixed: Fixed, time: i64, group: &[u8]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    let mut start = time - time.rem_euclid(fixed.advance);
    // A window before 1970 would not be in the order of the bytes of its start.
    while start > time - fixed.size && start >= 0 {
        keys.push([&start.to_be_bytes(), group].concat());
        start -= fixed.advance;
    }
    keys.reverse();
    keys
}

/// The start of the window with this key.
fn start_of(key: &[u8]) -> Result<i64, String> {
    let start = key.first_chunk::<8>().ok_or("the state has a window without a start")?;
    Ok(i64::from_be_bytes(*start))
}
