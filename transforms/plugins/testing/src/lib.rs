//! A plugin for tests of hosts and pipelines. It performs an action when a record's value contains
//! a configured text.
//!
//! ```toml
//! [transforms.chaos]
//! plugin = "testing.wasm"
//! config = { trap_on = "poison", drop_on = "noise" }
//! ```
//! Each key of [`Config`] sets the text that triggers its action. If several texts match, the first
//! key in the order of the fields applies. A record without a match passes.

mod work;

use serde::Deserialize;
use trunkline_plugin::host::{self, Level};
use trunkline_plugin::{ConfigError, Done, Emit, Inputs, Port, Record, Transform, Verdict};

/// The output port of `port_on`.
const SIDE: Port = 1;

/// The `config` table.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Panics.
    pub trap_on: Option<String>,
    /// Loops forever.
    pub loop_on: Option<String>,
    /// Emits records until the output or memory limit ends the call.
    pub flood_on: Option<String>,
    /// Allocates memory until the limit ends the call.
    pub bomb_on: Option<String>,
    /// Drops the record.
    pub drop_on: Option<String>,
    /// Rejects the record with the code `testing.rejected`.
    pub reject_on: Option<String>,
    /// Emits the record twice: to the default port and to the port `side`.
    pub duplicate_on: Option<String>,
    /// Emits no record.
    pub emit_none_on: Option<String>,
    /// Passes the record to the port `side`.
    pub port_on: Option<String>,
    /// Fails the batch.
    pub error_on: Option<String>,
    /// Changes the value to upper case.
    pub upper_on: Option<String>,
    /// Sets the key to `k`, the headers to `h: v` and the timestamp to 1.
    pub rekey_on: Option<String>,
    /// Sets the value to null.
    pub tombstone_on: Option<String>,
    /// Writes a log line and adds to the counter `seen`.
    pub log_on: Option<String>,
    /// Passes all records without reading their values.
    pub noop: bool,
    /// Parses, filters, masks and serialises each value: see `work.rs`.
    pub work: bool,
    /// Declares that changed values keep their schema.
    pub keeps_schema: bool,
    /// Declares that the plugin reads these parts of records only: `key`, `value` or `headers`.
    pub inputs: Option<Vec<String>>,
    /// Sets the value to the names of the parts that are not null: `key value headers`.
    pub show_parts: bool,
    /// Declares inputs outside of `init`.
    pub declare_on: Option<String>,
    /// Emits a record with this value on flush.
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
        assert!(!config.trap_in_init, "panic requested in init");
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

    fn inputs(&self) -> Inputs {
        let Some(inputs) = &self.0.inputs else { return Inputs::ALL };
        let has = |part: &str| inputs.iter().any(|name| name == part);
        Inputs { key: has("key"), value: has("value"), headers: has("headers") }
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Result<Done, String> {
        let config = &self.0;
        if config.noop {
            return Ok(verdict.pass());
        }
        if config.work {
            let mut changed = Vec::with_capacity(512);
            let is_kept = work::work(record.value().unwrap_or_default(), &mut changed);
            return Ok(if is_kept { verdict.value(&changed) } else { verdict.drop() });
        }
        if config.show_parts {
            let parts = [
                ("key", record.key().is_some()),
                ("value", record.value().is_some()),
                ("headers", !record.header_block().is_empty()),
            ];
            let present: Vec<&str> =
                parts.iter().filter(|(_, is_present)| *is_present).map(|(name, _)| *name).collect();
            return Ok(verdict.value(present.join(" ").as_bytes()));
        }
        let text = String::from_utf8_lossy(record.value().unwrap_or_default());
        let matches = |key: &Option<String>| key.as_ref().is_some_and(|wanted| text.contains(wanted.as_str()));
        if matches(&config.log_on) {
            host::log(Level::Info, &format!("saw {text}"));
            host::counter_add("seen", 1);
            host::histogram_record("length", text.len() as f64);
        }
        assert!(!matches(&config.trap_on), "panic requested by {text}");
        #[cfg(target_arch = "wasm32")]
        if matches(&config.declare_on) {
            trunkline_plugin::bindings::trunkline::transform::inputs::declare(true, true, true);
        }
        if matches(&config.loop_on) {
            spin();
        }
        if matches(&config.flood_on) {
            let more = vec![b'x'; 1 << 20];
            return Ok(verdict.emit(|out| {
                loop {
                    out.record(|parts| _ = parts.value(Some(&more)));
                }
            }));
        }
        if matches(&config.bomb_on) {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1u8; 1 << 20]);
                std::hint::black_box(&hoard);
            }
        }
        if matches(&config.error_on) {
            return Err(format!("failure requested by {text}"));
        }
        Ok(if matches(&config.drop_on) {
            verdict.drop()
        } else if matches(&config.reject_on) {
            verdict.reject("testing.rejected", &format!("rejection requested by {text}"))
        } else if matches(&config.duplicate_on) {
            verdict.emit(|out| {
                out.record(|_| {});
                out.record(|parts| _ = parts.port(SIDE));
            })
        } else if matches(&config.emit_none_on) {
            verdict.emit(|_| {})
        } else if matches(&config.port_on) {
            verdict.pass_to(SIDE)
        } else if matches(&config.upper_on) {
            verdict.value(text.to_uppercase().as_bytes())
        } else if matches(&config.rekey_on) {
            verdict.replace(|parts| {
                parts.key(Some(b"k")).headers([("h", Some(&b"v"[..]))]).timestamp(1);
            })
        } else if matches(&config.tombstone_on) {
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
