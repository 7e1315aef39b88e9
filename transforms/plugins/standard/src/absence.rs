//! `absence`: emits a record when a key has had no record for a time.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use trunkline_plugin::state::State;
use trunkline_plugin::timers::{Timer, Timers};
use trunkline_plugin::{Batch, ConfigError, Done, Inputs, Port, Record, Verdict, Verdicts, json};

use crate::distinct::DistinctKeys;
use crate::key::{Key, KeyFormat};
use crate::rows::{self, ObjectWriter};
use crate::state_options::StateOptions;
use crate::{Everyday, duration};

/// The port of the emitted records.
const ABSENT: Port = 1;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    after: String,
    take: Option<Vec<String>>,
    #[serde(default = "last_seen")]
    into: String,
}

fn last_seen() -> String {
    "last_seen".to_owned()
}

#[derive(Debug)]
pub(crate) struct Absence {
    /// `None`: the key of the record.
    key: Option<Key>,
    after_ms: i64,
    take: Option<Vec<String>>,
    into: String,
    /// The last record of each key, until its timer fires.
    last: State<Last>,
    timers: Timers,
    state_options: StateOptions,
}

/// A remembered record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Last {
    time: i64,
    /// The members of the emitted record, as a JSON object.
    row: String,
}

/// What a batch makes of a key.
enum Change {
    Seen(Last),
    /// A tombstone ends the watch.
    Gone,
}

impl Absence {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let after_ms = duration::parse("after", &config.after)?;
        if after_ms == 0 {
            return Err(ConfigError::at("after", "is zero; expected a duration such as \"10m\""));
        }
        if config.into.is_empty() {
            return Err(ConfigError::at("into", "is empty; expected the name of a member"));
        }
        let key = Key::new(&config.fields, config.expression.as_deref(), KeyFormat::Auto)?;
        let (last, timers) = (State::new("last"), Timers::new("absent"));
        let state_options = StateOptions::of_key("last", &config.fields, config.expression.as_deref());
        Ok(Self { key, after_ms, take: config.take, into: config.into, last, timers, state_options })
    }

    /// The key of a record; `None` if it has none.
    fn key<'a>(&'a self, record: Record<'a>) -> Result<Option<Cow<'a, [u8]>>, String> {
        match (&self.key, record.value()) {
            (None, _) => Ok(record.key().map(Cow::Borrowed)),
            (Some(_), None) => Ok(None),
            (Some(key), Some(value)) => key.of(record, value),
        }
    }

    /// The members of a record that the emitted one gets.
    fn row(&self, value: &[u8], time: i64) -> Result<String, String> {
        let row = rows::trim(rows::row_of(value));
        if row.first() != Some(&b'{') {
            return Err("the value is not a JSON object".to_owned());
        }
        let mut taken = Vec::new();
        let mut object = ObjectWriter::new(&mut taken);
        for member in json::members(row) {
            let member = member.map_err(|error| error.to_string())?;
            let is_taken = self.take.as_ref().is_none_or(|take| take.iter().any(|name| json::key_is(member.key, name)));
            if is_taken && !json::key_is(member.key, &self.into) {
                object.raw_key(member.key).extend_from_slice(member.value);
            }
        }
        object.key(&self.into).extend_from_slice(time.to_string().as_bytes());
        object.finish();
        String::from_utf8(taken).map_err(|_| "the value is not valid UTF-8".to_owned())
    }

    /// Stores what a batch has changed, and sets the timers. `first`: the earliest timer of all its
    /// records; the host looks whether it is due within the batch.
    fn store(&self, keys: &[&[u8]], changes: &[Option<Change>], first: Option<(&[u8], i64)>) -> Result<(), String> {
        let changed = || keys.iter().copied().zip(changes);
        let seen = || changed().filter_map(|(key, change)| Some((key, change.as_ref()?.last()?)));
        self.timers.set_all(first.into_iter().chain(seen().map(|(key, last)| (key, last.time + self.after_ms))));
        self.last.put_all(seen())?;
        let gone: Vec<&[u8]> =
            changed().filter(|(_, change)| matches!(change, Some(Change::Gone))).map(|(key, _)| key).collect();
        self.last.delete_all(&gone);
        self.timers.delete_all(&gone);
        Ok(())
    }
}

impl Change {
    fn last(&self) -> Option<&Last> {
        match self {
            Self::Seen(last) => Some(last),
            Self::Gone => None,
        }
    }
}

impl Everyday for Absence {
    fn ports(&self) -> Vec<String> {
        vec!["absent".to_owned()]
    }

    fn keeps_schema(&self) -> bool {
        true // records pass unchanged
    }

    fn inputs(&self) -> Inputs {
        Inputs::VALUE.and(self.key.as_ref().map_or(Inputs::KEY, Key::inputs))
    }

    fn state_options(&self) -> Option<&StateOptions> {
        Some(&self.state_options)
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<_> = batch.iter().map(|record| self.key(record)).collect();
        let mut distinct = DistinctKeys::default();
        let positions: Vec<_> = keys.iter().map(|key| Some(distinct.add(key.as_ref().ok()?.as_deref()?))).collect();
        let mut times: Vec<Option<i64>> =
            self.last.get_all(distinct.keys())?.into_iter().map(|last| Some(last?.time)).collect();
        let mut changes: Vec<Option<Change>> = times.iter().map(|_| None).collect();
        let mut first: Option<(&[u8], i64)> = None;
        for ((record, key), position) in batch.iter().zip(&keys).zip(positions) {
            let verdict = verdicts.next_verdict();
            if let Err(problem) = key {
                let _ = verdict.reject("absence.no_key", &format!("the record has no key: {problem}"));
                continue;
            }
            let (Some(position), Some(time)) = (position, record.timestamp()) else {
                let _ = verdict.pass();
                continue;
            };
            let change = match record.value().map(|value| self.row(value, time)) {
                None => Change::Gone,
                Some(Ok(row)) => Change::Seen(Last { time, row }),
                Some(Err(problem)) => {
                    let _ = verdict.reject("absence.not_json", &problem);
                    continue;
                }
            };
            let _ = verdict.pass();
            // An older record does not change when the key was seen last.
            if times[position].is_none_or(|last| last <= time) {
                let due = time.saturating_add(self.after_ms);
                if matches!(change, Change::Seen(_)) && first.is_none_or(|(_, earliest)| due < earliest) {
                    first = Some((distinct.keys()[position], due));
                }
                times[position] = change.last().map(|last| last.time);
                changes[position] = Some(change);
            }
        }
        self.store(distinct.keys(), &changes, first)
    }

    fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let Some(last) = self.last.get(timer.key)? else { return Ok(verdict.drop()) };
        self.last.delete(timer.key);
        Ok(verdict.emit(|out| {
            out.record(|parts| _ = parts.port(ABSENT).key(Some(timer.key)).value(Some(last.row.as_bytes())));
        }))
    }
}
