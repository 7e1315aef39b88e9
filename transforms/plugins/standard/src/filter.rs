//! `filter`: passes records that meet a condition.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, Done, Inputs, Record, Verdict};

use crate::Everyday;
use crate::expression::{self, Expression, Scope};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    condition: String,
    #[serde(default)]
    tombstones: Tombstones,
}

/// What happens to tombstones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tombstones {
    #[default]
    Keep,
    Drop,
    Test,
}

#[derive(Debug)]
pub(crate) struct Filter {
    condition: Expression,
    tombstones: Tombstones,
}

impl Filter {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let condition = expression::compile_condition("condition", &config.condition)?;
        Ok(Self { condition, tombstones: config.tombstones })
    }
}

impl Everyday for Filter {
    fn keeps_schema(&self) -> bool {
        true
    }

    fn inputs(&self) -> Inputs {
        self.condition.inputs()
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let is_tombstone = record.value().is_none();
        match self.tombstones {
            Tombstones::Keep if is_tombstone => return verdict.pass(),
            Tombstones::Drop if is_tombstone => return verdict.drop(),
            _ => {}
        }
        match self.condition.is_true(Scope::of(record)) {
            Ok(true) => verdict.pass(),
            Ok(false) => verdict.drop(),
            // a tombstone has no members
            Err(_) if is_tombstone => verdict.drop(),
            Err(problem) => verdict.reject("filter.condition", &format!("the condition has no value: {problem}")),
        }
    }
}
