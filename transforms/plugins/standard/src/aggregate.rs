//! `aggregate`: one record for each group and window of time.
//!
//! Tumbling windows have one size, start at multiples of it, and do not overlap. With `advance`,
//! windows hop: they start at multiples of `advance`, and a record belongs to several of them. The
//! time of a record is its timestamp. The *watermark* is the greatest timestamp of the topic
//! partition so far. A window is closed when the watermark has passed its end by the allowed
//! lateness; a record of a closed window is late. There are no timers: a record that advances the
//! watermark closes windows, and the results take the place of that record.

mod accumulator;

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, Port, Record, Verdict, Verdicts, json};

use self::accumulator::{Accumulator, Function};
use crate::expression::Scope;
use crate::key::field;
use crate::rows::{self, ObjectWriter};
use crate::{Everyday, duration};

/// The port of late records.
const LATE: Port = 1;
/// Windows that one call of the host returns.
const PAGE: u32 = 1000;
/// Most windows that a record can belong to.
const MAX_OVERLAP: i64 = 100;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    group_by: Vec<String>,
    window: String,
    advance: Option<String>,
    lateness: Option<String>,
    aggregates: BTreeMap<String, String>,
    #[serde(default)]
    emit: Emit,
    #[serde(default)]
    late: Late,
}

/// When results are output.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Emit {
    /// When the window is closed.
    #[default]
    Final,
    /// After each record of the window.
    Updates,
}

/// What happens to late records.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Late {
    #[default]
    Drop,
    /// They pass to the port `late`.
    Port,
}

#[derive(Debug)]
pub(crate) struct Aggregate {
    /// The fields, with their paths.
    group_by: Vec<(String, Vec<String>)>,
    size: i64,
    /// Time between the starts of two windows.
    advance: i64,
    lateness: i64,
    /// The aggregates, with their names.
    functions: Vec<(String, Function)>,
    emit: Emit,
    late: Late,
    /// Hash of the options that the stored windows depend on.
    form: u64,
    /// One entry, with an empty key.
    watermark: State<i64>,
    /// The open windows: the start of the window as big-endian bytes, and the group.
    windows: State<Window>,
}

/// The records of one group in one window.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Window {
    /// The `form` of the transform that wrote it.
    form: u64,
    /// The greatest timestamp of the records.
    time: i64,
    accumulators: Vec<Accumulator>,
}

/// A result.
struct Output {
    key: Option<Vec<u8>>,
    value: Vec<u8>,
    time: i64,
}

impl Aggregate {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let mut group_by = Vec::new();
        for (index, name) in config.group_by.iter().enumerate() {
            let path = rows::path(name).map_err(|message| ConfigError::at(format!("group_by[{index}]"), message))?;
            group_by.push((name.clone(), path));
        }
        let size = duration::parse("window", &config.window)?;
        if size == 0 {
            return Err(ConfigError::at("window", "is zero; expected a duration such as \"1m\""));
        }
        let advance = config.advance.as_ref().map_or(Ok(size), |text| duration::parse("advance", text))?;
        if advance < 1 || advance > size || (size - 1) / advance >= MAX_OVERLAP {
            let message = format!("does not fit `window`; expected 1/{MAX_OVERLAP} of it to all of it");
            return Err(ConfigError::at("advance", message));
        }
        if config.aggregates.is_empty() {
            return Err(ConfigError::at(
                "aggregates",
                "is empty; expected aggregates such as `{ count = \"count()\" }`",
            ));
        }
        let mut functions = Vec::new();
        for (name, text) in &config.aggregates {
            let key = format!("aggregates.{name}");
            if matches!(name.as_str(), "window_start" | "window_end") || config.group_by.contains(name) {
                return Err(ConfigError::at(key, "is the name of another member of the result; expected another name"));
            }
            functions.push((name.clone(), Function::parse(&key, text)?));
        }
        Ok(Self {
            group_by,
            size,
            advance,
            lateness: config.lateness.as_ref().map_or(Ok(0), |text| duration::parse("lateness", text))?,
            functions,
            emit: config.emit,
            late: config.late,
            form: form_of(config),
            watermark: State::new("watermark"),
            windows: State::new("windows"),
        })
    }

    /// The keys of a record's windows: their starts and the group; none for a tombstone.
    fn window_keys(&self, record: Record<'_>) -> Result<Vec<Vec<u8>>, String> {
        let Some(value) = record.value() else { return Ok(Vec::new()) };
        let time = record.timestamp().ok_or("the record has no timestamp")?;
        let mut group = b"[".to_vec();
        for (index, (_, path)) in self.group_by.iter().enumerate() {
            if index > 0 {
                group.push(b',');
            }
            group.extend_from_slice(field(value, path)?);
        }
        group.push(b']');
        let mut keys = Vec::new();
        let mut start = time - time.rem_euclid(self.advance);
        // A window before 1970 would not be in the order of the bytes of its start.
        while start > time - self.size && start >= 0 {
            keys.push([&start.to_be_bytes(), group.as_slice()].concat());
            start -= self.advance;
        }
        keys.reverse();
        Ok(keys)
    }

    /// The watermark from which on a window is closed.
    fn closes_at(&self, start: i64) -> i64 {
        start.saturating_add(self.size).saturating_add(self.lateness)
    }

    /// The accumulators of a window after a record.
    fn add(&self, window: Option<&Window>, record: Record<'_>, time: i64) -> Result<Window, String> {
        let mut accumulators = match window {
            Some(window) => window.accumulators.clone(),
            None => self.functions.iter().map(|(_, function)| function.start()).collect(),
        };
        for ((name, function), accumulator) in self.functions.iter().zip(&mut accumulators) {
            let added = function.add(accumulator, Scope::of(record), time);
            added.map_err(|problem| format!("`aggregates.{name}`: {problem}"))?;
        }
        let time = window.map_or(time, |window| window.time.max(time));
        Ok(Window { form: self.form, time, accumulators })
    }

    /// Checks that a stored window belongs to these options.
    fn check(&self, window: &Window) -> Result<(), String> {
        if window.form == self.form {
            return Ok(());
        }
        Err("the open windows in the state were made with other options: restore `group_by`, `window` and \
             `aggregates`, or give the transform another name"
            .to_owned())
    }

    fn output(&self, key: &[u8], window: &Window) -> Result<Output, String> {
        let start = start_of(key)?;
        let mut groups = Vec::new();
        for item in json::items(&key[8..]) {
            groups.push(item.map_err(|error| error.to_string())?);
        }
        let record_key = match groups.as_slice() {
            [] => None,
            [b"null"] => None,
            [group] => json::text(group).map(|text| text.into_owned().into_bytes()),
            _ => {
                let mut record_key = Vec::new();
                self.write_group(&mut ObjectWriter::new(&mut record_key), &groups);
                record_key.push(b'}');
                Some(record_key)
            }
        };
        let mut value = Vec::new();
        let mut object = ObjectWriter::new(&mut value);
        self.write_group(&mut object, &groups);
        object.key("window_start").extend_from_slice(start.to_string().as_bytes());
        object.key("window_end").extend_from_slice(start.saturating_add(self.size).to_string().as_bytes());
        for ((name, _), accumulator) in self.functions.iter().zip(&window.accumulators) {
            accumulator.write_result(object.key(name))?;
        }
        object.finish();
        Ok(Output { key: record_key, value, time: window.time })
    }

    fn write_group(&self, object: &mut ObjectWriter<'_>, groups: &[&[u8]]) {
        for ((name, _), group) in self.group_by.iter().zip(groups) {
            object.key(name).extend_from_slice(group);
        }
    }
}

/// A hash of the options that stored windows depend on (FNV-1a).
fn form_of(config: &Config) -> u64 {
    let form = format!("{:?} {} {:?} {:?}", config.group_by, config.window, config.advance, config.aggregates);
    form.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// The start of the window with this key.
fn start_of(key: &[u8]) -> Result<i64, String> {
    let start = key.first_chunk::<8>().ok_or("the state has a window without a start")?;
    Ok(i64::from_be_bytes(*start))
}

/// The state that a batch uses.
struct Open<'a> {
    aggregate: &'a Aggregate,
    watermark: Option<i64>,
    /// The start of the earliest open window.
    earliest: Option<i64>,
    /// The windows of the batch, and whether they have changed.
    windows: HashMap<Vec<u8>, (Option<Window>, bool)>,
}

impl<'a> Open<'a> {
    fn load(aggregate: &'a Aggregate, keys: &[&[u8]]) -> Result<Self, String> {
        let windows = aggregate.windows.get_all(keys)?;
        windows.iter().flatten().try_for_each(|window| aggregate.check(window))?;
        let windows = windows.into_iter().map(|window| (window, false));
        let mut open = Self {
            aggregate,
            watermark: aggregate.watermark.get("")?,
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
        let is_closed = |open: &Self, start: i64| open.watermark >= Some(open.aggregate.closes_at(start));
        if !self.earliest.is_some_and(|start| is_closed(self, start)) {
            return Ok(outputs);
        }
        self.store()?;
        let watermark = self.watermark.unwrap_or(i64::MIN);
        // The first start that stays open.
        let end = watermark.saturating_sub(self.aggregate.size).saturating_sub(self.aggregate.lateness);
        let end = end.saturating_add(1).to_be_bytes();
        loop {
            let page = self.aggregate.windows.range("", Some(&end), PAGE)?;
            if page.is_empty() {
                break;
            }
            for (key, window) in &page {
                self.aggregate.check(window)?;
                if self.aggregate.emit == Emit::Final {
                    outputs.push(self.aggregate.output(key, window)?);
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
            if self.watermark >= Some(aggregate.closes_at(start)) {
                continue;
            }
            let window = self.windows.get(key).and_then(|(window, _)| window.as_ref());
            match aggregate.add(window, record, time) {
                Ok(window) => changed.push((start, key, window)),
                Err(problem) => {
                    let _ = verdict.reject("aggregate.failed", &format!("the record cannot be aggregated: {problem}"));
                    return Ok(());
                }
            }
        }
        if changed.is_empty() {
            let _ = match aggregate.late {
                Late::Drop => verdict.drop(),
                Late::Port => verdict.pass_to(LATE),
            };
            return Ok(());
        }
        let mut outputs = Vec::new();
        for (start, key, window) in changed {
            if aggregate.emit == Emit::Updates {
                outputs.push(aggregate.output(key, &window)?);
            }
            self.earliest = Some(self.earliest.map_or(start, |earliest| earliest.min(start)));
            self.windows.insert(key.clone(), (Some(window), true));
        }
        self.watermark = self.watermark.max(Some(time));
        outputs.extend(self.close()?);
        let _ = verdict.emit(|out| {
            for output in &outputs {
                out.record(|parts| {
                    parts.key(output.key.as_deref()).value(Some(&output.value)).timestamp(output.time);
                    parts.headers(std::iter::empty::<(&str, Option<&[u8]>)>());
                });
            }
        });
        Ok(())
    }
}

impl Everyday for Aggregate {
    fn ports(&self) -> Vec<String> {
        if self.late == Late::Port { vec!["late".to_owned()] } else { Vec::new() }
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<_> = batch.iter().map(|record| self.window_keys(record)).collect();
        let mut distinct: Vec<&[u8]> = keys.iter().flatten().flatten().map(Vec::as_slice).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let mut open = Open::load(self, &distinct)?;
        let before = open.watermark;
        for (record, keys) in batch.iter().zip(&keys) {
            let verdict = verdicts.next_verdict();
            match keys {
                Ok(keys) if keys.is_empty() => _ = verdict.drop(),
                Ok(keys) => open.record(record, keys, verdict)?,
                Err(problem) => {
                    _ = verdict.reject("aggregate.failed", &format!("the record cannot be aggregated: {problem}"));
                }
            }
        }
        open.store()?;
        match open.watermark {
            Some(watermark) if before != Some(watermark) => self.watermark.put("", &watermark),
            _ => Ok(()),
        }
    }
}
