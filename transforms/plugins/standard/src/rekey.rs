//! `rekey`: sets the key.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, Done, Inputs, Record, Verdict};

use crate::Everyday;
use crate::key::{Key, KeyFormat};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    #[serde(default)]
    format: KeyFormat,
    #[serde(default)]
    tombstones: Tombstones,
}

/// What happens to tombstones: they have no fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tombstones {
    /// They keep their key.
    #[default]
    Keep,
    Drop,
}

#[derive(Debug)]
pub(crate) struct Rekey {
    key: Key,
    tombstones: Tombstones,
}

impl Rekey {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let Some(key) = Key::new(&config.fields, config.expression.as_deref(), config.format)? else {
            return Err(ConfigError::new("has no key; expected `fields = [\"customer_id\"]` or `expression`"));
        };
        Ok(Self { key, tombstones: config.tombstones })
    }
}

impl Everyday for Rekey {
    fn keeps_schema(&self) -> bool {
        true
    }

    fn inputs(&self) -> Inputs {
        self.key.inputs()
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else {
            return if self.tombstones == Tombstones::Drop { verdict.drop() } else { verdict.pass() };
        };
        match self.key.of(record, value) {
            Ok(key) => verdict.replace(|parts| _ = parts.key(key.as_deref())),
            Err(problem) => verdict.reject("rekey.no_key", &format!("the record has no key: {problem}")),
        }
    }
}
