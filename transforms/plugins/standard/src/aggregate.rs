//! `aggregate`: one record for each group and window of time.
//!
//! Tumbling windows have one size, start at multiples of it, and do not overlap. With `advance`,
//! windows hop: they start at multiples of `advance`, and a record belongs to several of them.
//! Session windows end with a pause. The time of a record is its timestamp. A window is closed when
//! the event time of the topic partition has passed its end by the allowed lateness; a record of a
//! closed window is late.
//!
//! A timer closes each window, or each session, and emits the result. Timers fire before the first
//! record that reaches their time, so all windows in the state are open while records are
//! processed.

mod accumulator;
mod sessions;
mod sketch;
mod windows;

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};
use serde_json::json;
use trunkline_plugin::state::State;
use trunkline_plugin::timers::{self, Timer, Timers};
use trunkline_plugin::{Batch, ConfigError, Done, Inputs, Port, Record, Verdict, Verdicts, json};

use self::accumulator::{Accumulator, Change, Function};
use crate::expression::Scope;
use crate::key::field;
use crate::rows::{self, ObjectWriter};
use crate::state_options::StateOptions;
use crate::{Everyday, duration};

/// The port of late records.
const LATE: Port = 1;
/// Entries that one call of the host returns.
const PAGE: u32 = 1000;
/// Usual bytes of a group.
const GROUP_BYTES: usize = 16;
/// Most windows that a record can belong to.
const MAX_OVERLAP: i64 = 100;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    group_by: Vec<String>,
    window: Option<String>,
    advance: Option<String>,
    session: Option<String>,
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

/// How windows are made.
#[derive(Debug, Clone, Copy)]
enum Kind {
    /// Tumbling and hopping windows.
    Fixed(Fixed),
    /// A pause of this length ends a window.
    Session(i64),
}

/// Windows of one size, in milliseconds.
#[derive(Debug, Clone, Copy)]
struct Fixed {
    size: i64,
    /// Time between the starts of two windows.
    advance: i64,
}

#[derive(Debug)]
pub(crate) struct Aggregate {
    /// The fields, with their paths.
    group_by: Vec<(String, Vec<String>)>,
    kind: Kind,
    lateness: i64,
    /// The aggregates, with their names.
    functions: Vec<(String, Function)>,
    emit: Emit,
    late: Late,
    /// The open fixed windows: see `windows.rs`.
    windows: State<Window>,
    /// The open sessions: see `sessions.rs`.
    sessions: State<sessions::Session>,
    /// They close windows and sessions.
    timers: Timers,
    state_options: StateOptions,
}

/// The records of one group in one window.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Window {
    /// The greatest timestamp of the records.
    time: i64,
    accumulators: Vec<Accumulator>,
}

/// The records of a batch.
struct Arrivals<'a> {
    records: Vec<Arrival<'a>>,
    /// The groups of the records, one after the other.
    groups: Vec<u8>,
}

/// A record of a batch.
struct Arrival<'a> {
    /// The event time of the topic partition before the record; `None` if no earlier record had a
    /// timestamp.
    event_time: Option<i64>,
    /// `None` for a tombstone.
    grouped: Result<Option<Grouped<'a>>, String>,
}

/// A record with a group.
struct Grouped<'a> {
    record: Record<'a>,
    /// The row of its value.
    row: &'a [u8],
    time: i64,
    /// The values of the fields as a JSON array: a part of `groups`.
    group: Range<usize>,
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
        let kind = Kind::parse(config)?;
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
            kind,
            lateness: config.lateness.as_ref().map_or(Ok(0), |text| duration::parse("lateness", text))?,
            functions,
            emit: config.emit,
            late: config.late,
            windows: State::new("windows"),
            sessions: State::new("sessions"),
            timers: Timers::new("close"),
            state_options: StateOptions::new(
                &["windows", "sessions"],
                [
                    ("group_by", json!(config.group_by)),
                    ("window", json!(config.window)),
                    ("advance", json!(config.advance)),
                    ("session", json!(config.session)),
                    ("aggregates", json!(config.aggregates)),
                ],
            ),
        })
    }

    /// The records of a batch.
    fn arrivals<'a>(&self, batch: Batch<'a>) -> Arrivals<'a> {
        let mut event_time = timers::event_time();
        let mut groups = Vec::with_capacity(batch.len() * GROUP_BYTES);
        let records = batch.iter().map(|record| {
            let before = event_time;
            event_time = event_time.max(record.timestamp());
            Arrival { event_time: before, grouped: self.grouped(record, &mut groups) }
        });
        Arrivals { records: records.collect(), groups }
    }

    /// The event time at which a window is closed that ends at `end`.
    fn closes_at(&self, end: i64) -> i64 {
        end.saturating_add(self.lateness)
    }

    fn grouped<'a>(&self, record: Record<'a>, groups: &mut Vec<u8>) -> Result<Option<Grouped<'a>>, String> {
        let Some(value) = record.value() else { return Ok(None) };
        let Some(time) = record.timestamp() else { return Err("the record has no timestamp".to_owned()) };
        let row = rows::row_of(value);
        let start = groups.len();
        groups.push(b'[');
        for (index, (_, path)) in self.group_by.iter().enumerate() {
            if index > 0 {
                groups.push(b',');
            }
            groups.extend_from_slice(field(row, path)?);
        }
        groups.push(b']');
        Ok(Some(Grouped { record, row, time, group: start..groups.len() }))
    }

    /// A window without records.
    fn empty_window(&self) -> Window {
        Window { time: i64::MIN, accumulators: self.functions.iter().map(|(_, function)| function.start()).collect() }
    }

    /// Appends what a record changes in the accumulators of a window.
    fn change(&self, window: &Window, record: &Grouped<'_>, changes: &mut Vec<Change>) -> Result<(), String> {
        let scope = Scope { record: record.record, row: Some(record.row) };
        for ((name, function), accumulator) in self.functions.iter().zip(&window.accumulators) {
            let change = function.change(accumulator, scope, record.time);
            changes.push(change.map_err(|problem| format!("`aggregates.{name}`: {problem}"))?);
        }
        Ok(())
    }

    /// The window of two sessions. `later` has the later records.
    fn merge(&self, mut window: Window, later: &Window) -> Result<Window, String> {
        window.time = window.time.max(later.time);
        for ((_, function), (accumulator, later)) in
            self.functions.iter().zip(window.accumulators.iter_mut().zip(&later.accumulators))
        {
            function.merge(accumulator, later)?;
        }
        Ok(window)
    }

    /// The result of a window.
    fn output(&self, group: &[u8], (start, end): (i64, i64), window: &Window) -> Result<Output, String> {
        let mut groups = Vec::new();
        for item in json::items(group) {
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
        object.key("window_end").extend_from_slice(end.to_string().as_bytes());
        for ((name, function), accumulator) in self.functions.iter().zip(&window.accumulators) {
            function.write_result(accumulator, object.key(name))?;
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

impl Window {
    /// Applies the changes of a record, one for each accumulator.
    fn apply(&mut self, time: i64, changes: &mut impl Iterator<Item = Change>) {
        self.time = self.time.max(time);
        for (accumulator, change) in self.accumulators.iter_mut().zip(changes) {
            accumulator.apply(change);
        }
    }
}

impl Arrivals<'_> {
    fn group(&self, record: &Grouped<'_>) -> &[u8] {
        &self.groups[record.group.clone()]
    }
}

impl Kind {
    fn parse(config: &Config) -> Result<Self, ConfigError> {
        let (size, session) = match (&config.window, &config.session) {
            (Some(_), Some(_)) => {
                return Err(ConfigError::at("session", "cannot be combined with `window`; expected one of both"));
            }
            (None, None) => {
                return Err(ConfigError::new("has no windows; expected `window`, such as \"1m\", or `session`"));
            }
            (None, Some(gap)) => (duration::parse("session", gap)?, true),
            (Some(size), None) => (duration::parse("window", size)?, false),
        };
        if size == 0 {
            let key = if session { "session" } else { "window" };
            return Err(ConfigError::at(key, "is zero; expected a duration such as \"1m\""));
        }
        if session {
            if config.advance.is_some() {
                return Err(ConfigError::at("advance", "has no effect with `session`; expected it with `window`"));
            }
            return Ok(Self::Session(size));
        }
        let advance = config.advance.as_ref().map_or(Ok(size), |text| duration::parse("advance", text))?;
        if advance < 1 || advance > size || (size - 1) / advance >= MAX_OVERLAP {
            let message = format!("does not fit `window`; expected 1/{MAX_OVERLAP} of it to all of it");
            return Err(ConfigError::at("advance", message));
        }
        Ok(Self::Fixed(Fixed { size, advance }))
    }
}

/// Emits results.
fn emit(verdict: Verdict<'_>, outputs: &[Output]) -> Done {
    if outputs.is_empty() {
        return verdict.drop();
    }
    verdict.emit(|out| {
        for output in outputs {
            out.record(|parts| {
                parts.key(output.key.as_deref()).value(Some(&output.value)).timestamp(output.time);
                parts.headers(std::iter::empty::<(&str, Option<&[u8]>)>());
            });
        }
    })
}

fn reject(verdict: Verdict<'_>, problem: &str) -> Done {
    verdict.reject("aggregate.failed", &format!("the record cannot be aggregated: {problem}"))
}

/// The verdict on a record of closed windows.
fn late(aggregate: &Aggregate, verdict: Verdict<'_>) -> Done {
    match aggregate.late {
        Late::Drop => verdict.drop(),
        Late::Port => verdict.pass_to(LATE),
    }
}

impl Everyday for Aggregate {
    fn ports(&self) -> Vec<String> {
        if self.late == Late::Port { vec!["late".to_owned()] } else { Vec::new() }
    }

    fn inputs(&self) -> Inputs {
        self.functions.iter().fold(Inputs::VALUE, |inputs, (_, function)| inputs.and(function.inputs()))
    }

    fn state_options(&self) -> Option<&StateOptions> {
        Some(&self.state_options)
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let arrivals = self.arrivals(batch);
        match self.kind {
            Kind::Fixed(fixed) => windows::process(self, fixed, &arrivals, verdicts),
            Kind::Session(gap) => sessions::process(self, gap, &arrivals, verdicts),
        }
    }

    fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        match self.kind {
            Kind::Fixed(fixed) => windows::close(self, fixed, timer, verdict),
            Kind::Session(gap) => sessions::close(self, gap, timer, verdict),
        }
    }
}
