//! `dedupe`: drops the records whose key was seen shortly before.
//!
//! The state holds the time of the last record that passed, by key. Times are the timestamps of
//! records, so that the result does not depend on when records are read.

use std::collections::HashMap;

use serde::Deserialize;
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, Record, Verdicts};

use crate::key::{Key, KeyFormat};
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
        })
    }

    /// The key of a record; `None` if it has none and passes.
    fn key(&self, record: Record<'_>) -> Result<Option<Vec<u8>>, String> {
        match (&self.key, record.value()) {
            (None, _) => Ok(record.key().map(<[u8]>::to_vec)),
            (Some(_), None) => Ok(None),
            (Some(key), Some(value)) => key.of(record, value),
        }
    }
}

impl Everyday for Dedupe {
    fn keeps_schema(&self) -> bool {
        true
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<_> = batch.iter().map(|record| self.key(record)).collect();
        let mut distinct: Vec<&[u8]> = keys.iter().filter_map(|key| key.as_ref().ok()?.as_deref()).collect();
        distinct.sort_unstable();
        distinct.dedup();
        let stored = self.passed.get_all(&distinct)?;
        let mut passed: HashMap<&[u8], Option<i64>> = distinct.iter().copied().zip(stored).collect();
        let mut changed: HashMap<&[u8], i64> = HashMap::new();
        for (record, key) in batch.iter().zip(&keys) {
            let verdict = verdicts.next_verdict();
            let key = match key {
                Ok(Some(key)) => key.as_slice(),
                Ok(None) => {
                    let _ = verdict.pass();
                    continue;
                }
                Err(problem) => {
                    let _ = verdict.reject("dedupe.no_key", &format!("the record has no key: {problem}"));
                    continue;
                }
            };
            let time = record.timestamp().unwrap_or(0);
            let last = passed.entry(key).or_default();
            if last.is_some_and(|last| last.abs_diff(time) < self.within_ms.unsigned_abs()) {
                let _ = verdict.drop();
                continue;
            }
            let _ = verdict.pass();
            // A record that is older than the last one by more than `within` is not its duplicate.
            if last.is_none_or(|last| last < time) {
                *last = Some(time);
                changed.insert(key, time);
            }
        }
        self.passed.put_all(changed.iter().map(|(key, time)| (*key, time)))
    }
}
