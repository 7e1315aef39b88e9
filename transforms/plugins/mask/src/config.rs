//! The `config` table and its checks.

use serde::Deserialize;
use trunkline_plugin::ConfigError;

use crate::mode::Mode;

/// The documentation of the crate describes the keys.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Dotted paths of the fields to mask.
    pub fields: Vec<String>,
    /// The masking mode.
    #[serde(default)]
    pub mode: ModeName,
    /// The mask text.
    pub with: Option<String>,
    /// Number of characters that `keep_last` keeps.
    pub keep: Option<usize>,
    /// The secret key of `hash`.
    pub salt: Option<String>,
}

/// Values of `mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeName {
    /// Replaces every value by the same text.
    #[default]
    Fixed,
    /// Replaces values by a keyed hash.
    Hash,
    /// Keeps the end of the text.
    KeepLast,
}

const DEFAULT_MASK: &str = "***";
const DEFAULT_KEEP: usize = 4;

impl Config {
    pub(crate) fn check(&self) -> Result<Mode, ConfigError> {
        if self.fields.is_empty() {
            return Err(ConfigError::at("fields", "is empty; expected paths such as \"card_number\""));
        }
        for (index, field) in self.fields.iter().enumerate() {
            if field.split('.').any(str::is_empty) {
                let message = format!("`{field}` has an empty part; expected a path such as \"customer.email\"");
                return Err(ConfigError::at(format!("fields[{index}]"), message));
            }
            if self.fields[..index].contains(field) {
                return Err(ConfigError::at(
                    format!("fields[{index}]"),
                    format!("`{field}` is listed twice; expected each field once"),
                ));
            }
        }
        self.check_keys_of_mode()?;
        let with = self.with.as_deref().unwrap_or(DEFAULT_MASK);
        match self.mode {
            ModeName::Fixed => Ok(Mode::fixed(with)),
            ModeName::KeepLast => match self.keep.unwrap_or(DEFAULT_KEEP) {
                0 => Err(ConfigError::at(
                    "keep",
                    "is 0; expected at least 1 (use mode = \"fixed\" to keep no characters)",
                )),
                keep => Ok(Mode::keep_last(with, keep)),
            },
            ModeName::Hash => match self.salt.as_deref() {
                Some(salt) if !salt.is_empty() => Ok(Mode::hash(salt)),
                Some(_) => Err(ConfigError::at("salt", "is empty; expected a secret")),
                None => {
                    Err(ConfigError::at("mode", "`hash` needs `salt`, a secret: without it, values can be guessed"))
                }
            },
        }
    }

    fn check_keys_of_mode(&self) -> Result<(), ConfigError> {
        let unused = |key: &str, modes: &str| {
            Err(ConfigError::at(key, format!("has no effect with this mode; expected {modes}")))
        };
        if self.with.is_some() && self.mode == ModeName::Hash {
            return unused("with", "mode = \"fixed\" or \"keep_last\"");
        }
        if self.keep.is_some() && self.mode != ModeName::KeepLast {
            return unused("keep", "mode = \"keep_last\"");
        }
        if self.salt.is_some() && self.mode != ModeName::Hash {
            return unused("salt", "mode = \"hash\"");
        }
        Ok(())
    }
}
