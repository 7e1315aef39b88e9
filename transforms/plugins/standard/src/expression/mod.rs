//! Conditions and computed values in CEL, the Common Expression Language.
//!
//! The crate `cel` parses. The evaluation is here, because records hold exact decimals: all numbers
//! are one type, [`Decimal`](crate::number::Decimal), and arithmetic is exact. A value that is only
//! copied (`value.amount`) keeps its bytes.
//!
//! | name | value |
//! |---|---|
//! | `value` | the record's value as JSON; null for a tombstone |
//! | `row` | the row: `after` of a change event, `before` of a delete, otherwise `value` |
//! | `key` | the key: JSON, or text |
//! | `headers` | the headers as texts |
//! | `topic`, `partition`, `offset` | where the record was read |
//! | `timestamp` | milliseconds since 1970; null if the record has none |

mod compile;
mod evaluate;
mod functions;
mod value;

use trunkline_plugin::{ConfigError, Record};

pub(crate) use compile::Expression;
pub(crate) use value::Value;

use crate::rows;

/// The record that an expression sees.
#[derive(Clone, Copy)]
pub(crate) struct Scope<'a> {
    pub(crate) record: Record<'a>,
    /// The row; `None`: the row of the record's value.
    pub(crate) row: Option<&'a [u8]>,
}

impl<'a> Scope<'a> {
    pub(crate) fn of(record: Record<'a>) -> Self {
        Self { record, row: None }
    }

    fn row(&self) -> Result<Value<'a>, String> {
        match self.row.or_else(|| self.record.value().map(rows::row_of)) {
            Some(row) => Value::of_json(rows::trim(row)),
            None => Ok(Value::Null),
        }
    }
}

/// Compiles the expression at a key of the configuration. An error names the column.
pub(crate) fn compile(key: &str, source: &str) -> Result<Expression, ConfigError> {
    compile_after(key, 0, source)
}

/// Compiles an expression that follows `before` characters in the text at a key.
pub(crate) fn compile_after(key: &str, before: usize, source: &str) -> Result<Expression, ConfigError> {
    Expression::compile(source).map_err(|(column, message)| {
        ConfigError::at(key, format!("column {}: {message}; expected an expression in CEL", before + column))
    })
}

/// Compiles an expression that must be true or false.
pub(crate) fn compile_condition(key: &str, source: &str) -> Result<Expression, ConfigError> {
    let condition = compile(key, source)?;
    match condition.other_than_boolean() {
        None => Ok(condition),
        Some(kind) => {
            let message = format!("is always {kind}; expected a condition such as \"value.amount > 100\"");
            Err(ConfigError::at(key, message))
        }
    }
}
