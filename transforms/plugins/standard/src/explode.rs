//! `explode`: makes a record of each item of an array.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, Done, Record, Verdict, json};

use crate::Everyday;
use crate::rows::ObjectWriter;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    field: String,
    into: Option<String>,
    #[serde(default)]
    merge: bool,
    index: Option<String>,
    #[serde(default)]
    empty: Empty,
}

/// What happens to a record without items.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Empty {
    /// It passes unchanged.
    #[default]
    Keep,
    Drop,
}

#[derive(Debug)]
pub(crate) struct Explode {
    config: Config,
}

impl Explode {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        if config.field.is_empty() {
            return Err(ConfigError::at("field", "is empty; expected the name of a member"));
        }
        for (key, name) in [("into", &config.into), ("index", &config.index)] {
            if name.as_ref().is_some_and(String::is_empty) {
                return Err(ConfigError::at(key, "is empty; expected the name of a member"));
            }
        }
        if config.merge && config.into.is_some() {
            return Err(ConfigError::at("into", "has no effect with `merge`; expected one of both"));
        }
        Ok(Self { config })
    }

    /// The value of the record of one item.
    fn value(&self, value: &[u8], item: &[u8], index: usize) -> Result<Vec<u8>, String> {
        let mut out = Vec::with_capacity(value.len());
        let mut object = ObjectWriter::new(&mut out);
        let name = self.config.into.as_deref().unwrap_or(&self.config.field);
        let merged = self.config.merge && item.first() == Some(&b'{');
        let mut item_names = Vec::new();
        if merged {
            for member in json::members(item) {
                item_names.push(member.map_err(|error| error.to_string())?.key);
            }
        }
        for member in json::members(value) {
            let member = member.map_err(|error| error.to_string())?;
            if json::key_is(member.key, &self.config.field) {
                if merged {
                    for member in json::members(item) {
                        let member = member.map_err(|error| error.to_string())?;
                        object.raw_key(member.key).extend_from_slice(member.value);
                    }
                } else {
                    object.key(name).extend_from_slice(item);
                }
            } else if !item_names.contains(&member.key) && (merged || !json::key_is(member.key, name)) {
                object.raw_key(member.key).extend_from_slice(member.value);
            }
        }
        if let Some(name) = &self.config.index {
            object.key(name).extend_from_slice(index.to_string().as_bytes());
        }
        object.finish();
        Ok(out)
    }

    fn values(&self, value: &[u8]) -> Result<Option<Vec<Vec<u8>>>, String> {
        let array = match json::lookup(value, &[&self.config.field]).map_err(|error| error.to_string())? {
            None | Some(b"null") => return Ok(None),
            Some(array @ [b'[', ..]) => array,
            Some(_) => return Err(format!("`{}` is not an array", self.config.field)),
        };
        let mut values = Vec::new();
        for (index, item) in json::items(array).enumerate() {
            values.push(self.value(value, item.map_err(|error| error.to_string())?, index)?);
        }
        Ok(Some(values).filter(|values| !values.is_empty()))
    }
}

impl Everyday for Explode {
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else { return verdict.pass() };
        match self.values(value) {
            Ok(Some(values)) => verdict.emit(|out| {
                for value in &values {
                    out.record(|parts| _ = parts.value(Some(value)));
                }
            }),
            Ok(None) if self.config.empty == Empty::Drop => verdict.drop(),
            Ok(None) => verdict.pass(),
            Err(problem) => verdict.reject("explode.not_array", &format!("the record has no array: {problem}")),
        }
    }
}
