//! `previous`: adds the previous record with the same key to each record.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, DEFAULT_PORT, Inputs, Record, Verdict, Verdicts, json};

use crate::distinct::DistinctKeys;
use crate::key::{Key, KeyFormat};
use crate::rows::{self, ObjectWriter};
use crate::state_options::StateOptions;
use crate::{Everyday, duration};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    into: String,
    take: Option<Vec<String>>,
    within: Option<String>,
}

#[derive(Debug)]
pub(crate) struct Previous {
    /// `None`: the key of the record.
    key: Option<Key>,
    into: String,
    take: Option<Vec<String>>,
    within_ms: Option<i64>,
    /// The last record of each key.
    last: State<Last>,
    state_options: StateOptions,
}

/// A remembered record.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Last {
    time: i64,
    /// The members that are added to the next record, as a JSON object.
    row: String,
}

impl Previous {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        if config.into.is_empty() {
            return Err(ConfigError::at("into", "is empty; expected the name of a member"));
        }
        let within_ms = config.within.as_ref().map(|text| duration::parse("within", text)).transpose()?;
        let last = State::new("last");
        let last = match within_ms.map(u64::try_from) {
            None => last,
            Some(Ok(ttl)) if ttl > 0 => last.with_ttl(std::time::Duration::from_millis(ttl)),
            Some(_) => return Err(ConfigError::at("within", "is zero; expected a duration such as \"10m\"")),
        };
        let key = Key::new(&config.fields, config.expression.as_deref(), KeyFormat::Auto)?;
        let state_options = StateOptions::of_key("last", &config.fields, config.expression.as_deref());
        Ok(Self { key, into: config.into, take: config.take, within_ms, last, state_options })
    }

    /// The key of a record; `None` if it has none.
    fn key<'a>(&'a self, record: Record<'a>) -> Result<Option<Cow<'a, [u8]>>, String> {
        match (&self.key, record.value()) {
            (_, None) => Ok(None),
            (None, _) => Ok(record.key().map(Cow::Borrowed)),
            (Some(key), Some(value)) => key.of(record, value),
        }
    }

    /// The members of a record that the next one gets.
    fn row(&self, value: &[u8]) -> Result<String, String> {
        let row = rows::trim(rows::row_of(value));
        if row.first() != Some(&b'{') {
            return Err("the value is not a JSON object".to_owned());
        }
        let mut taken = Vec::new();
        let mut object = ObjectWriter::new(&mut taken);
        for member in json::members(row) {
            let member = member.map_err(|error| error.to_string())?;
            let is_taken = match &self.take {
                Some(take) => take.iter().any(|name| json::key_is(member.key, name)),
                // The previous record of the previous record would grow without end.
                None => !json::key_is(member.key, &self.into),
            };
            if is_taken {
                object.raw_key(member.key).extend_from_slice(member.value);
            }
        }
        object.finish();
        String::from_utf8(taken).map_err(|_| "the value is not valid UTF-8".to_owned())
    }

    /// Whether the record after `last` gets it.
    fn is_previous(&self, last: &Last, time: i64) -> bool {
        last.time <= time && self.within_ms.is_none_or(|within| time - last.time < within)
    }

    fn write(&self, value: &[u8], previous: Option<&str>, verdict: Verdict<'_>) {
        let written = verdict.try_value_with(DEFAULT_PORT, |out| {
            rows::rewrite(value, out, |image, out| {
                let mut object = ObjectWriter::new(out);
                for member in json::members(image) {
                    let member = member.map_err(|error| error.to_string())?;
                    if !json::key_is(member.key, &self.into) {
                        object.raw_key(member.key).extend_from_slice(member.value);
                    }
                }
                object.key(&self.into).extend_from_slice(previous.unwrap_or("null").as_bytes());
                object.finish();
                Ok(())
            })
        });
        if let Err((verdict, problem)) = written {
            reject(verdict, &problem);
        }
    }
}

fn reject(verdict: Verdict<'_>, problem: &str) {
    let _ = verdict.reject("previous.not_json", &format!("the record cannot take its predecessor: {problem}"));
}

impl Everyday for Previous {
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
        // the last record, and whether this batch has changed it
        let stored = self.last.get_all(distinct.keys())?.into_iter();
        let mut last: Vec<(Option<Last>, bool)> = stored.map(|last| (last, false)).collect();
        for ((record, key), position) in batch.iter().zip(&keys).zip(positions) {
            let verdict = verdicts.next_verdict();
            let value = match (record.value(), key) {
                (None, _) => {
                    let _ = verdict.pass();
                    continue;
                }
                (Some(value), Ok(_)) => value,
                (Some(_), Err(problem)) => {
                    let _ = verdict.reject("previous.no_key", &format!("the record has no key: {problem}"));
                    continue;
                }
            };
            let row = match self.row(value) {
                Ok(row) => row,
                Err(problem) => {
                    reject(verdict, &problem);
                    continue;
                }
            };
            let time = record.timestamp().unwrap_or(0);
            let Some((known, has_changed)) = position.and_then(|position| last.get_mut(position)) else {
                self.write(value, None, verdict);
                continue;
            };
            let previous = known.as_ref().filter(|last| self.is_previous(last, time));
            self.write(value, previous.map(|last| last.row.as_str()), verdict);
            // An older record is not the previous one of those that follow.
            if known.as_ref().is_none_or(|last| last.time <= time) {
                (*known, *has_changed) = (Some(Last { time, row }), true);
            }
        }
        let changed = distinct.keys().iter().zip(&last).filter(|(_, (_, has_changed))| *has_changed);
        self.last.put_all(changed.filter_map(|(key, (last, _))| Some((*key, last.as_ref()?))))
    }
}
