//! For tests of hosts and pipelines: does what it is told when a record's value contains a text.
//!
//! ```toml
//! [transforms.chaos]
//! plugin = "testing.wasm"
//! config = { trap_on = "poison", drop_on = "noise" }
//! ```
//! Each key is a text to look for in the value; what it makes happen is said at the field. The first key that matches, in the order
//! below, decides. With `noop = true` no value is looked at. A record that nothing matches passes.

use serde::Deserialize;
use trunkline_plugin::host::{self, Level};
use trunkline_plugin::{ConfigError, Done, Emit, Port, Record, Transform, Verdict};

/// The port that `port_on` sends records to.
const SIDE: Port = 1;

/// The `config` table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Panics.
    pub trap_on: Option<String>,
    /// Never comes back.
    pub loop_on: Option<String>,
    /// Emits records until the host's cap on output, or memory, ends it.
    pub flood_on: Option<String>,
    /// Allocates until the memory limit.
    pub bomb_on: Option<String>,
    /// Drops the record.
    pub drop_on: Option<String>,
    /// Rejects the record with the code `testing.rejected`.
    pub reject_on: Option<String>,
    /// Emits the record twice, the second time by the port `side`.
    pub duplicate_on: Option<String>,
    /// Emits no record.
    pub emit_none_on: Option<String>,
    /// Passes the record by the port `side`.
    pub port_on: Option<String>,
    /// Fails the batch.
    pub error_on: Option<String>,
    /// Puts the value in upper case.
    pub upper_on: Option<String>,
    /// Changes key, headers and timestamp: `k`, `h: v`, 1.
    pub rekey_on: Option<String>,
    /// Makes the value null.
    pub tombstone_on: Option<String>,
    /// Writes a log line and adds to the counter `seen`.
    pub log_on: Option<String>,
    /// Looks at nothing.
    pub noop: bool,
    /// Says that it keeps the schema of what it changes.
    pub keeps_schema: bool,
    /// Emits a record with this value when it is flushed.
    pub flush: Option<String>,
    /// Panics in `init`.
    pub trap_in_init: bool,
}

/// The transform.
#[derive(Debug)]
pub struct Testing(Config);

impl Transform for Testing {
    type Config = Config;

    fn new(config: Config) -> Result<Self, ConfigError> {
        assert!(!config.trap_in_init, "told to trap in init");
        if config.trap_on.as_deref() == Some("") {
            return Err(ConfigError::at("trap_on", "is empty; expected a text"));
        }
        Ok(Self(config))
    }

    fn ports(&self) -> Vec<String> {
        vec!["side".to_owned()]
    }

    fn keeps_schema(&self) -> bool {
        self.0.keeps_schema
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let config = &self.0;
        if config.noop {
            return Ok(verdict.pass());
        }
        let text = String::from_utf8_lossy(record.value().unwrap_or_default());
        let told = |key: &Option<String>| key.as_ref().is_some_and(|wanted| text.contains(wanted.as_str()));
        if told(&config.log_on) {
            host::log(Level::Info, &format!("saw {text}"));
            host::counter_add("seen", 1);
            host::histogram_record("length", text.len() as f64);
        }
        assert!(!told(&config.trap_on), "told to trap by {text}");
        if told(&config.loop_on) {
            spin();
        }
        if told(&config.flood_on) {
            let more = vec![b'x'; 1 << 20];
            return Ok(verdict.emit(|out| {
                loop {
                    out.record(|parts| _ = parts.value(Some(&more)));
                }
            }));
        }
        if told(&config.bomb_on) {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        if told(&config.error_on) {
            return Err(format!("told to fail by {text}"));
        }
        Ok(if told(&config.drop_on) {
            verdict.drop()
        } else if told(&config.reject_on) {
            verdict.reject("testing.rejected", &format!("told to reject {text}"))
        } else if told(&config.duplicate_on) {
            verdict.emit(|out| {
                out.record(|_| {});
                out.record(|parts| _ = parts.port(SIDE));
            })
        } else if told(&config.emit_none_on) {
            verdict.emit(|_| {})
        } else if told(&config.port_on) {
            verdict.pass_to(SIDE)
        } else if told(&config.upper_on) {
            verdict.value(text.to_uppercase().as_bytes())
        } else if told(&config.rekey_on) {
            verdict.replace(|parts| {
                parts.key(Some(b"k")).headers([("h", Some(&b"v"[..]))]).timestamp(1);
            })
        } else if told(&config.tombstone_on) {
            verdict.replace(|parts| _ = parts.value(None))
        } else {
            verdict.pass()
        })
    }

    fn flush(&mut self, out: &mut Emit<'_>) -> Result<(), String> {
        if let Some(value) = &self.0.flush {
            out.record(|parts| _ = parts.value(Some(value.as_bytes())));
        }
        Ok(())
    }
}

fn spin() {
    let mut turns = 0u64;
    loop {
        turns = std::hint::black_box(turns.wrapping_add(1));
    }
}

trunkline_plugin::export!(Testing);
