//! A plugin for tests of the host: the values of records are commands that set and remove timers,
//! and a timer that fires emits `key@time`.
//!
//! | value | effect |
//! |---|---|
//! | `set KEY TIME` | sets a timer |
//! | `delete KEY` | removes a timer |
//! | `get KEY` | outputs `KEY=TIME`, or `KEY=none` |
//! | `time` | outputs the event time before the call, or `none` |
//! | `forge` | stores an entry with a key that is reserved for timers |

use serde::Deserialize;
use trunkline_plugin::state::State;
use trunkline_plugin::timers::{Timer, Timers, event_time};
use trunkline_plugin::{ConfigError, Done, Record, Transform, Verdict};

/// The `config` table: parts of keys that trigger actions when a timer fires.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Panics.
    pub trap_on: Option<String>,
    /// Rejects the timer.
    pub reject_on: Option<String>,
    /// Fails the batch.
    pub error_on: Option<String>,
    /// Loops forever.
    pub loop_on: Option<String>,
    /// Emits nothing.
    pub drop_on: Option<String>,
    /// Returns a verdict that a timer cannot have.
    pub pass_on: Option<String>,
    /// Each timer sets itself again for this time later.
    pub again_ms: Option<i64>,
    /// The time of the last timer that is set again.
    pub until: Option<i64>,
}

/// The transform.
#[derive(Debug)]
pub struct Timing {
    config: Config,
    timers: Timers,
    fired: State<u64>,
}

impl Transform for Timing {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        Ok(Self { config, timers: Timers::new("t"), fired: State::new("fired") })
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let text = String::from_utf8_lossy(record.value().unwrap_or_default());
        let words: Vec<&str> = text.split(' ').collect();
        match words.as_slice() {
            ["set", key, time] => self.timers.set(key, time.parse().map_err(|_| "not a time")?),
            ["delete", key] => self.timers.delete(key),
            ["get", key] => {
                let time = self.timers.get(key).map_or("none".to_owned(), |time| time.to_string());
                return Ok(verdict.value(format!("{key}={time}").as_bytes()));
            }
            ["time"] => {
                let time = event_time().map_or("none".to_owned(), |time| time.to_string());
                return Ok(verdict.value(time.as_bytes()));
            }
            #[cfg(target_arch = "wasm32")]
            ["forge"] => {
                use trunkline_plugin::bindings::trunkline::transform::state::{NewEntry, put};
                put(&[NewEntry { key: vec![0xff; 20], value: Vec::new(), ttl_ms: None }]);
            }
            _ => {}
        }
        Ok(verdict.pass())
    }

    fn timer(&mut self, timer: Timer<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let key = String::from_utf8_lossy(timer.key);
        let matches = |part: &Option<String>| part.as_ref().is_some_and(|part| key.contains(part.as_str()));
        let count = self.fired.get(timer.key)?.unwrap_or(0) + 1;
        self.fired.put(timer.key, &count)?;
        if let Some(again) = self.config.again_ms
            && self.config.until.is_none_or(|until| timer.time + again <= until)
        {
            self.timers.set(timer.key, timer.time + again);
        }
        assert!(!matches(&self.config.trap_on), "panic requested by {key}");
        if matches(&self.config.error_on) {
            return Err(format!("failure requested by {key}"));
        }
        while matches(&self.config.loop_on) {
            std::hint::black_box(&self.config);
        }
        Ok(if matches(&self.config.reject_on) {
            verdict.reject("timing.rejected", &format!("rejection requested by {key}"))
        } else if matches(&self.config.drop_on) {
            verdict.drop()
        } else if matches(&self.config.pass_on) {
            verdict.pass()
        } else {
            let value = format!("{key}@{}", timer.time);
            verdict.emit(|out| out.record(|parts| _ = parts.key(Some(timer.key)).value(Some(value.as_bytes()))))
        })
    }
}

trunkline_plugin::export!(Timing);
