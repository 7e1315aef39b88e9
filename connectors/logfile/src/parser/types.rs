//! [`FieldType`]: the type of a field whose format has none.

use std::collections::BTreeMap;

use arrow::datatypes::DataType;
use trunkline_connector::json::write_string;

/// The types of fields, by their names; the others are strings.
pub(crate) type FieldTypes = BTreeMap<String, FieldType>;

/// The type of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldType {
    /// Text, as it is.
    #[default]
    String,
    /// A whole number of 64 bits.
    Int,
    /// A number.
    Float,
    /// `true` or `false`.
    Bool,
}

impl FieldType {
    pub(crate) const NAMES: [(&'static str, Self); 4] =
        [("string", Self::String), ("int", Self::Int), ("float", Self::Float), ("bool", Self::Bool)];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(known, _)| *known == name).map(|(_, found)| *found)
    }

    pub(super) fn arrow(self) -> DataType {
        match self {
            Self::String => DataType::Utf8,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Bool => DataType::Boolean,
        }
    }

    /// Writes a value as JSON. A typed value that is empty or `-` is null. On an error, returns the
    /// expected value.
    pub(super) fn write(self, text: &str, out: &mut Vec<u8>) -> Result<(), &'static str> {
        let is_missing = matches!(text, "" | "-");
        match self {
            Self::String => write_string(out, text),
            _ if is_missing => out.extend_from_slice(b"null"),
            Self::Int => {
                let number: i64 = text.parse().map_err(|_| "a whole number")?;
                out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
            }
            Self::Float => {
                let number: f64 = text.parse().map_err(|_| "a number")?;
                let number = serde_json::Number::from_f64(number).ok_or("a finite number")?;
                out.extend_from_slice(number.to_string().as_bytes());
            }
            Self::Bool if text.eq_ignore_ascii_case("true") => out.extend_from_slice(b"true"),
            Self::Bool if text.eq_ignore_ascii_case("false") => out.extend_from_slice(b"false"),
            Self::Bool => return Err("`true` or `false`"),
        }
        Ok(())
    }
}
