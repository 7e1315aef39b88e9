//! A plugin for tests of the host: it counts the records with the same value in its state, and
//! outputs `value=count`. A text in a value triggers an action, after the count was stored.

use std::time::Duration;

use serde::Deserialize;
use trunkline_plugin::state::State;
use trunkline_plugin::{Batch, ConfigError, Done, Emit, Record, Transform, Verdict, Verdicts, host};

/// The `config` table: the texts that trigger actions.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Panics.
    pub trap_on: Option<String>,
    /// Fails the batch.
    pub error_on: Option<String>,
    /// Stores entries until the limit ends the call.
    pub flood_on: Option<String>,
    /// Stores an entry that is too large.
    pub large_on: Option<String>,
    /// Reads one large entry many times in one call.
    pub repeat_on: Option<String>,
    /// Outputs all counts: `a=1,b=2`.
    pub list_on: Option<String>,
    /// Counts expire after this time.
    pub ttl_ms: Option<u64>,
    /// Uses the state in `flush`.
    pub in_flush: bool,
    /// Stores the value of each record by its key, and nothing else: it reads and writes the state
    /// of a whole batch at once. The counter `known` counts the keys that had a value.
    pub remember: bool,
}

/// The transform.
#[derive(Debug)]
pub struct Counting {
    config: Config,
    counts: State<u64>,
    values: State<String>,
}

impl Transform for Counting {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        let counts = State::new("counts");
        let counts = match config.ttl_ms {
            Some(ttl) => counts.with_ttl(Duration::from_millis(ttl)),
            None => counts,
        };
        Ok(Self { config, counts, values: State::new("values") })
    }

    fn process(&mut self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        if self.config.remember {
            return self.remember(batch, verdicts);
        }
        for record in batch.iter() {
            let _: Done = self.record(record, verdicts.next_verdict())?;
        }
        Ok(())
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let value = record.value().unwrap_or_default();
        let text = String::from_utf8_lossy(value);
        let matches = |key: &Option<String>| key.as_ref().is_some_and(|wanted| text.contains(wanted.as_str()));
        if matches(&self.config.list_on) {
            let counts = self.counts.range("", None, 1000)?;
            let counts = counts.iter().map(|(key, count)| format!("{}={count}", String::from_utf8_lossy(key)));
            return Ok(verdict.value(counts.collect::<Vec<_>>().join(",").as_bytes()));
        }
        let count = self.counts.get(value)?.unwrap_or(0) + 1;
        self.counts.put(value, &count)?;
        assert!(!matches(&self.config.trap_on), "panic requested by {text}");
        if matches(&self.config.error_on) {
            return Err(format!("failure requested by {text}"));
        }
        if matches(&self.config.flood_on) {
            for key in 0u64.. {
                self.counts.put(key.to_be_bytes(), &key)?;
            }
        }
        if matches(&self.config.large_on) {
            self.counts.put(vec![b'x'; 1 << 20], &0)?;
        }
        if matches(&self.config.repeat_on) {
            self.values.put("large", &"x".repeat(400_000))?;
            host::counter_add("read", self.values.get_all_bytes(&vec!["large"; 10_000]).len() as u64);
        }
        Ok(verdict.value(format!("{text}={count}").as_bytes()))
    }

    fn flush(&mut self, _: &mut Emit<'_>) -> Result<(), String> {
        if self.config.in_flush {
            self.counts.delete("a");
        }
        Ok(())
    }
}

impl Counting {
    fn remember(&self, batch: Batch<'_>, verdicts: &mut Verdicts) -> Result<(), String> {
        let keys: Vec<&[u8]> = batch.iter().map(|record| record.key().unwrap_or_default()).collect();
        let known = self.values.get_all(&keys)?.iter().flatten().count();
        host::counter_add("known", known as u64);
        let values: Vec<String> = batch
            .iter()
            .map(|record| String::from_utf8_lossy(record.value().unwrap_or_default()).into_owned())
            .collect();
        self.values.put_all(keys.iter().zip(&values))?;
        batch.iter().for_each(|_| _ = verdicts.next_verdict().pass());
        Ok(())
    }
}

trunkline_plugin::export!(Counting);
