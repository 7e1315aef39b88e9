//! The `config` table and what can be wrong with it.

use serde::Deserialize;
use trunkline_plugin::ConfigError;

use crate::mode::Mode;

/// See the crate's header for what the keys mean.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Dotted paths of the members to mask.
    pub fields: Vec<String>,
    /// How.
    #[serde(default)]
    pub mode: ModeName,
    /// The mask.
    pub with: Option<String>,
    /// How many characters `keep_last` keeps.
    pub keep: Option<usize>,
    /// The secret of `hash`.
    pub salt: Option<String>,
}

/// Values of `mode`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModeName {
    /// The same text for every value.
    #[default]
    Fixed,
    /// A keyed hash.
    Hash,
    /// All but the end.
    KeepLast,
}

const DEFAULT_MASK: &str = "***";
const DEFAULT_KEEP: usize = 4;

impl Config {
    pub(crate) fn check(&self) -> Result<Mode, ConfigError> {
        if self.fields.is_empty() {
            return Err(ConfigError::at("fields", "names no field; expected paths such as \"card_number\""));
        }
        for (index, field) in self.fields.iter().enumerate() {
            if field.split('.').any(str::is_empty) {
                let message = format!("`{field}` has an empty part; expected a path such as \"customer.email\"");
                return Err(ConfigError::at(format!("fields[{index}]"), message));
            }
            if self.fields[..index].contains(field) {
                return Err(ConfigError::at(format!("fields[{index}]"), format!("`{field}` is named twice")));
            }
        }
        self.check_that_keys_fit_the_mode()?;
        let with = self.with.as_deref().unwrap_or(DEFAULT_MASK);
        match self.mode {
            ModeName::Fixed => Ok(Mode::fixed(with)),
            ModeName::KeepLast => match self.keep.unwrap_or(DEFAULT_KEEP) {
                0 => Err(ConfigError::at("keep", "is 0; expected at least 1 (to keep nothing, mode = \"fixed\")")),
                keep => Ok(Mode::keep_last(with, keep)),
            },
            ModeName::Hash => match self.salt.as_deref() {
                Some(salt) if !salt.is_empty() => Ok(Mode::hash(salt)),
                Some(_) => Err(ConfigError::at("salt", "is empty; expected a secret text")),
                None => {
                    Err(ConfigError::at("mode", "`hash` needs `salt`, a secret text: without it values can be guessed"))
                }
            },
        }
    }

    fn check_that_keys_fit_the_mode(&self) -> Result<(), ConfigError> {
        let idle =
            |key: &str, modes: &str| Err(ConfigError::at(key, format!("has no effect here; it belongs to {modes}")));
        if self.with.is_some() && self.mode == ModeName::Hash {
            return idle("with", "mode = \"fixed\" and \"keep_last\"");
        }
        if self.keep.is_some() && self.mode != ModeName::KeepLast {
            return idle("keep", "mode = \"keep_last\"");
        }
        if self.salt.is_some() && self.mode != ModeName::Hash {
            return idle("salt", "mode = \"hash\"");
        }
        Ok(())
    }
}
