//! The aggregate functions, and what they remember of the records. Nulls are ignored.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use trunkline_plugin::ConfigError;

use crate::expression::{self, Expression, Scope, Value};
use crate::number::Decimal;

const FUNCTIONS: &str = "count(), count(..), sum(..), min(..), max(..), avg(..), first(..) or last(..)";

/// An aggregate function with its argument.
#[derive(Debug)]
pub(super) struct Function {
    kind: Kind,
    /// `None`: the function counts records.
    argument: Option<Expression>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Sum,
    Min,
    Max,
    Average,
    First,
    Last,
}

/// What a function remembers. Values are JSON texts.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Accumulator {
    Count(u64),
    Sum(Option<Decimal>),
    Average(Decimal, i64),
    /// The least or greatest value.
    Extreme(Option<String>),
    /// The value of the first or last record, with its time.
    At(Option<(i64, String)>),
}

impl Function {
    /// Parses an aggregate such as `avg(row.celsius)`.
    pub(super) fn parse(key: &str, text: &str) -> Result<Self, ConfigError> {
        let call = text.trim().strip_suffix(')').and_then(|text| text.split_once('('));
        let Some((name, argument)) = call else {
            return Err(ConfigError::at(key, format!("`{text}` is not an aggregate; expected {FUNCTIONS}")));
        };
        let kind = match name.trim() {
            "count" => Kind::Count,
            "sum" => Kind::Sum,
            "min" => Kind::Min,
            "max" => Kind::Max,
            "avg" => Kind::Average,
            "first" => Kind::First,
            "last" => Kind::Last,
            other => {
                return Err(ConfigError::at(key, format!("there is no aggregate `{other}`; expected {FUNCTIONS}")));
            }
        };
        let argument = match argument.trim() {
            "" if kind == Kind::Count => None,
            "" => return Err(ConfigError::at(key, format!("`{text}` has no argument; expected an expression in CEL"))),
            argument => Some(expression::compile(key, argument)?),
        };
        Ok(Self { kind, argument })
    }

    /// The accumulator before the first record.
    pub(super) fn start(&self) -> Accumulator {
        match self.kind {
            Kind::Count => Accumulator::Count(0),
            Kind::Sum => Accumulator::Sum(None),
            Kind::Average => Accumulator::Average(Decimal::from(0), 0),
            Kind::Min | Kind::Max => Accumulator::Extreme(None),
            Kind::First | Kind::Last => Accumulator::At(None),
        }
    }

    /// Adds a record.
    pub(super) fn add(&self, accumulator: &mut Accumulator, scope: Scope<'_>, time: i64) -> Result<(), String> {
        let value = match &self.argument {
            Some(argument) => Some(argument.evaluate(scope)?),
            None => None,
        };
        if matches!(value, Some(Value::Null)) {
            return Ok(());
        }
        match (accumulator, value) {
            (Accumulator::Count(count), _) => *count += 1,
            (Accumulator::Sum(sum), Some(value)) => {
                let number = number(&value)?;
                *sum = Some(sum.unwrap_or(Decimal::from(0)).add(number).map_err(|error| error.to_string())?);
            }
            (Accumulator::Average(sum, count), Some(value)) => {
                *sum = sum.add(number(&value)?).map_err(|error| error.to_string())?;
                *count += 1;
            }
            (Accumulator::Extreme(extreme), Some(value)) => {
                let wanted = if self.kind == Kind::Min { Ordering::Less } else { Ordering::Greater };
                let replaces = match extreme {
                    Some(known) => value.order(&Value::of_json(known.as_bytes())?)? == wanted,
                    None => true,
                };
                if replaces {
                    *extreme = Some(json(&value));
                }
            }
            (Accumulator::At(at), Some(value)) => {
                let replaces = match (&at, self.kind) {
                    (Some((known, _)), Kind::First) => time < *known,
                    (Some((known, _)), _) => time >= *known,
                    (None, _) => true,
                };
                if replaces {
                    *at = Some((time, json(&value)));
                }
            }
            (_, None) => return Err("the aggregate has no argument".to_owned()),
        }
        Ok(())
    }
}

impl Accumulator {
    /// Appends the result as JSON.
    pub(super) fn write_result(&self, out: &mut Vec<u8>) -> Result<(), String> {
        let text = match self {
            Self::Count(count) => count.to_string(),
            Self::Sum(Some(sum)) => sum.to_string(),
            Self::Average(_, 0) | Self::Sum(None) | Self::Extreme(None) | Self::At(None) => "null".to_owned(),
            Self::Average(sum, count) => {
                sum.divide(Decimal::from(*count)).map_err(|error| error.to_string())?.to_string()
            }
            Self::Extreme(Some(value)) | Self::At(Some((_, value))) => value.clone(),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

fn number(value: &Value<'_>) -> Result<Decimal, String> {
    let problem = || format!("{} is not a number; convert it with decimal(..)", value.kind());
    value.number()?.ok_or_else(problem)
}

fn json(value: &Value<'_>) -> String {
    let mut json = Vec::new();
    value.write_json(&mut json);
    String::from_utf8_lossy(&json).into_owned()
}
