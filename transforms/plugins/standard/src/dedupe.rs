//! `dedupe`: drops the records whose key was seen shortly before.
//!
//! The state holds the time of the last record that passed, by key. Times are the timestamps of
//! records, so that the result does not depend on when records are read.

use std::borrow::Cow;

use serde::Deserialize;
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, Inputs, Record, Verdicts};

use crate::distinct::DistinctKeys;
use crate::key::{Key, KeyFormat};
use crate::state_options::StateOptions;
use crate::{Everyday, duration};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    within: String,
}

#[derive(Debug)]
pub(crate) struct Dedupe {
    /// `None`: the key of the record.
    key: Option<Key>,
    within_ms: i64,
    /// The time of the last record of a key that passed.
    passed: State<i64>,
    state_options: StateOptions,
}

impl Dedupe {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let within_ms = duration::parse("within", &config.within)?;
        let Some(ttl) = u64::try_from(within_ms).ok().filter(|within| *within > 0) else {
            return Err(ConfigError::at("within", "is zero; expected a duration such as \"10m\""));
        };
        Ok(Self {
            key: Key::new(&config.fields, config.expression.as_deref(), KeyFormat::Auto)?,
            within_ms,
            passed: State::new("passed").with_ttl(std::time::Duration::from_millis(ttl)),
            state_options: StateOptions::of_key("passed", &config.fields, config.expression.as_deref()),
        })
    }

    /// The key of a record; `None` if it has none and passes.
    fn key<'a>(&'a self, record: Record<'a>) -> Result<Option<Cow<'a, [u8]>>, String> {
        match (&self.key, record.value()) {
            (None, _) => Ok(record.key().map(Cow::Borrowed)),
            (Some(_), None) => Ok(None),
            (Some(key), Some(value)) => key.of(record, value),
        }
    }
}

impl Everyday for Dedupe {
    fn keeps_schema(&self) -> bool {
        true
    }

    fn inputs(&self) -> Inputs {
        self.key.as_ref().map_or(Inputs::KEY, Key::inputs)
    }

    fn state_options(&self) -> Option<&StateOptions> {
        Some(&self.state_options)
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<_> = batch.iter().map(|record| self.key(record)).collect();
        let mut distinct = DistinctKeys::default();
        let positions: Vec<_> = keys.iter().map(|key| Some(distinct.add(key.as_ref().ok()?.as_deref()?))).collect();
        // the time of the last record that passed, and whether this batch has changed it
        let stored = self.passed.get_all(distinct.keys())?.into_iter();
        let mut passed: Vec<(Option<i64>, bool)> = stored.map(|time| (time, false)).collect();
        for ((record, key), position) in batch.iter().zip(&keys).zip(positions) {
            let verdict = verdicts.next_verdict();
            if let Err(problem) = key {
                let _ = verdict.reject("dedupe.no_key", &format!("the record has no key: {problem}"));
                continue;
            }
            let Some((last, has_changed)) = position.and_then(|position| passed.get_mut(position)) else {
                let _ = verdict.pass();
                continue;
            };
            let time = record.timestamp().unwrap_or(0);
            if last.is_some_and(|last| last.abs_diff(time) < self.within_ms.unsigned_abs()) {
                let _ = verdict.drop();
                continue;
            }
            let _ = verdict.pass();
            // A record that is older than the last one by more than `within` is not its duplicate.
            if last.is_none_or(|last| last < time) {
                (*last, *has_changed) = (Some(time), true);
            }
        }
        let changed = distinct.keys().iter().zip(&passed).filter(|(_, (_, has_changed))| *has_changed);
        self.passed.put_all(changed.filter_map(|(key, (time, _))| Some((*key, time.as_ref()?))))
    }
}
