//! `rekey`: sets the key.

use serde::Deserialize;
use trunkline_plugin::{ConfigError, Done, Record, Verdict, json};

use crate::Everyday;
use crate::expression::{self, Expression, Scope};
use crate::rows::{self, ObjectWriter};

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    #[serde(default)]
    fields: Vec<String>,
    expression: Option<String>,
    #[serde(default)]
    format: Format,
    #[serde(default)]
    tombstones: Tombstones,
}

/// The form of a key from fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Format {
    /// Text for one field, JSON for several.
    #[default]
    Auto,
    Json,
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

#[derive(Debug)]
enum Key {
    Expression(Expression),
    Text(Vec<String>),
    Object(Vec<(String, Vec<String>)>),
}

impl Rekey {
    pub(crate) fn new(config: Config) -> Result<Self, ConfigError> {
        let mut paths = Vec::new();
        for (index, field) in config.fields.iter().enumerate() {
            let path = rows::path(field).map_err(|message| ConfigError::at(format!("fields[{index}]"), message))?;
            paths.push((field.clone(), path));
        }
        let key = match (&config.expression, paths.len()) {
            (Some(_), 1..) => {
                return Err(ConfigError::at("expression", "cannot be combined with `fields`; expected one of both"));
            }
            (Some(source), _) => Key::Expression(expression::compile("expression", source)?),
            (None, 0) => {
                return Err(ConfigError::new("has no key; expected `fields = [\"customer_id\"]` or `expression`"));
            }
            (None, 1) if config.format == Format::Auto => {
                Key::Text(paths.into_iter().next().map(|(_, path)| path).unwrap_or_default())
            }
            (None, _) => Key::Object(paths),
        };
        Ok(Self { key, tombstones: config.tombstones })
    }

    /// The new key; `None` stands for null.
    fn key(&self, record: Record<'_>, value: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let text = |raw: &[u8]| match json::text(raw) {
            Some(text) => Ok(text.into_owned().into_bytes()),
            None => Err("the field is not valid UTF-8".to_owned()),
        };
        let field = |path: &[String]| {
            let found = rows::lookup(rows::row_of(value), path)?;
            found.ok_or_else(|| format!("there is no field `{}`", path.join(".")))
        };
        match &self.key {
            Key::Expression(expression) => {
                Ok(expression.evaluate(Scope::of(record))?.into_text().map(|text| text.into_owned().into_bytes()))
            }
            Key::Text(path) => match field(path)? {
                b"null" => Ok(None),
                raw => text(raw).map(Some),
            },
            Key::Object(fields) => {
                let mut key = Vec::new();
                let mut object = ObjectWriter::new(&mut key);
                for (name, path) in fields {
                    object.key(name).extend_from_slice(field(path)?);
                }
                object.finish();
                Ok(Some(key))
            }
        }
    }
}

impl Everyday for Rekey {
    fn keeps_schema(&self) -> bool {
        true
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else {
            return if self.tombstones == Tombstones::Drop { verdict.drop() } else { verdict.pass() };
        };
        match self.key(record, value) {
            Ok(key) => verdict.replace(|parts| _ = parts.key(key.as_deref())),
            Err(problem) => verdict.reject("rekey.no_key", &format!("the record has no key: {problem}")),
        }
    }
}
