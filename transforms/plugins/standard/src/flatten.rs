//! `flatten`: moves the members of nested objects to the top.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, DEFAULT_PORT, Done, Record, Verdict, json};

use crate::Everyday;
use crate::rows::{self, ObjectWriter};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default = "separator")]
    separator: String,
    #[serde(default)]
    arrays: Arrays,
}

fn separator() -> String {
    ".".to_owned()
}

/// What happens to arrays.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Arrays {
    /// They stay arrays.
    #[default]
    Keep,
    /// Their items become members, with the position as name.
    Index,
}

#[derive(Debug)]
pub(crate) struct Flatten {
    /// The separator, escaped as in a JSON string.
    separator: Vec<u8>,
    arrays: Arrays,
}

impl Flatten {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        if config.separator.is_empty() {
            return Err(ConfigError::at("separator", "is empty; expected a text such as \"_\""));
        }
        let mut quoted = Vec::new();
        json::write_string(&mut quoted, &config.separator);
        Ok(Self { separator: quoted[1..quoted.len() - 1].to_vec(), arrays: config.arrays })
    }

    fn object(&self, raw: &[u8], prefix: &mut Vec<u8>, out: &mut ObjectWriter<'_>) -> Result<(), String> {
        for member in json::members(raw) {
            let member = member.map_err(|error| error.to_string())?;
            self.member(member.key, member.value, prefix, out)?;
        }
        Ok(())
    }

    fn member(&self, key: &[u8], value: &[u8], prefix: &mut Vec<u8>, out: &mut ObjectWriter<'_>) -> Result<(), String> {
        let length = prefix.len();
        if length > 0 {
            prefix.extend_from_slice(&self.separator);
        }
        prefix.extend_from_slice(key);
        match value.first() {
            Some(b'{') => self.object(value, prefix, out)?,
            Some(b'[') if self.arrays == Arrays::Index => {
                for (index, item) in json::items(value).enumerate() {
                    let item = item.map_err(|error| error.to_string())?;
                    self.member(index.to_string().as_bytes(), item, prefix, out)?;
                }
            }
            _ => out.raw_key(prefix).extend_from_slice(value),
        }
        prefix.truncate(length);
        Ok(())
    }
}

impl Everyday for Flatten {
    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else { return verdict.pass() };
        let flattened = verdict.try_value_with(DEFAULT_PORT, |out| {
            rows::rewrite(value, out, |row, out| {
                let mut object = ObjectWriter::new(out);
                self.object(row, &mut Vec::new(), &mut object)?;
                object.finish();
                Ok(())
            })
        });
        flattened.unwrap_or_else(|(verdict, problem)| {
            verdict.reject("flatten.not_json", &format!("the value is not a JSON object: {problem}"))
        })
    }
}
