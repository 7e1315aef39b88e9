//! Keys from fields of the row, or from an expression.

use std::borrow::Cow;

use serde::Deserialize;
use trunkline_plugin::{ConfigError, Inputs, Record, json};

use crate::expression::{self, Expression, Scope};
use crate::rows::{self, ObjectWriter};

/// How a key is made.
#[derive(Debug)]
pub(crate) enum Key {
    Expression(Expression),
    /// The text of one field.
    Text(Vec<String>),
    /// A JSON object of fields.
    Object(Vec<(String, Vec<String>)>),
}

/// The form of a key from fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyFormat {
    /// Text for one field, JSON for several.
    #[default]
    Auto,
    Json,
}

impl Key {
    /// A key from the options `fields` and `expression`; `None` if both are absent.
    pub(crate) fn new(
        fields: &[String],
        expression: Option<&str>,
        format: KeyFormat,
    ) -> Result<Option<Self>, ConfigError> {
        let mut paths = Vec::new();
        for (index, field) in fields.iter().enumerate() {
            let path = rows::path(field).map_err(|message| ConfigError::at(format!("fields[{index}]"), message))?;
            paths.push((field.clone(), path));
        }
        Ok(match (expression, paths.len()) {
            (Some(_), 1..) => {
                return Err(ConfigError::at("expression", "cannot be combined with `fields`; expected one of both"));
            }
            (Some(source), _) => Some(Self::Expression(expression::compile("expression", source)?)),
            (None, 0) => None,
            (None, 1) if format == KeyFormat::Auto => paths.into_iter().next().map(|(_, path)| Self::Text(path)),
            (None, _) => Some(Self::Object(paths)),
        })
    }

    /// The parts of records that it reads.
    pub(crate) fn inputs(&self) -> Inputs {
        match self {
            Self::Expression(expression) => expression.inputs(),
            Self::Text(_) | Self::Object(_) => Inputs::VALUE,
        }
    }

    /// The key of a record; `None` stands for null.
    pub(crate) fn of<'a>(&'a self, record: Record<'a>, value: &'a [u8]) -> Result<Option<Cow<'a, [u8]>>, String> {
        match self {
            Self::Expression(expression) => Ok(expression.evaluate(Scope::of(record))?.into_text().map(bytes)),
            Self::Text(path) => match field(rows::row_of(value), path)? {
                b"null" => Ok(None),
                raw => Ok(Some(bytes(json::text(raw).ok_or("the field is not valid UTF-8")?))),
            },
            Self::Object(fields) => {
                let row = rows::row_of(value);
                let mut key = Vec::new();
                let mut object = ObjectWriter::new(&mut key);
                for (name, path) in fields {
                    object.key(name).extend_from_slice(field(row, path)?);
                }
                object.finish();
                Ok(Some(Cow::Owned(key)))
            }
        }
    }
}

fn bytes(text: Cow<'_, str>) -> Cow<'_, [u8]> {
    match text {
        Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
        Cow::Owned(text) => Cow::Owned(text.into_bytes()),
    }
}

/// A field of a row.
pub(crate) fn field<'v>(row: &'v [u8], path: &[String]) -> Result<&'v [u8], String> {
    let found = rows::lookup(row, path)?;
    found.ok_or_else(|| format!("there is no field `{}`", path.join(".")))
}
