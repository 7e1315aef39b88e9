//! The aggregate functions, and what they remember of the records. Nulls are ignored.

use std::cmp::Ordering;

use serde::{Deserialize, Serialize};
use trunkline_plugin::{ConfigError, Inputs};

use super::sketch::{Distinct, Quantiles};
use crate::expression::{self, Expression, Scope, Value};
use crate::number::Decimal;

const FUNCTIONS: &str =
    "count(), count(..), distinct(..), sum(..), min(..), max(..), avg(..), percentile(.., 95), first(..) or last(..)";

/// An aggregate function with its argument.
#[derive(Debug)]
pub(super) struct Function {
    kind: Kind,
    /// `None`: the function counts records.
    argument: Option<Expression>,
    /// Of a percentile.
    percent: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Count,
    Distinct,
    Percentile,
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
    Distinct(Distinct),
    Percentile(Quantiles),
}

/// What a record changes in an accumulator. All changes of a record are made before the first of
/// them is applied: a record changes all aggregates of its windows, or none. So no accumulator is
/// copied for a record that fails.
#[derive(Debug)]
pub(super) enum Change {
    /// The value is null, or does not replace the known one.
    Nothing,
    Count,
    /// The new sum.
    Sum(Decimal),
    Average(Decimal),
    Extreme(String),
    At(i64, String),
    Distinct(String),
    Percentile(Decimal),
}

impl Accumulator {
    /// Applies a change that [`Function::change`] has made for this accumulator.
    pub(super) fn apply(&mut self, change: Change) {
        match (self, change) {
            (Accumulator::Count(count), Change::Count) => *count += 1,
            (Accumulator::Sum(sum), Change::Sum(changed)) => *sum = Some(changed),
            (Accumulator::Average(sum, count), Change::Average(changed)) => (*sum, *count) = (changed, *count + 1),
            (Accumulator::Extreme(extreme), Change::Extreme(value)) => *extreme = Some(value),
            (Accumulator::At(at), Change::At(time, value)) => *at = Some((time, value)),
            (Accumulator::Distinct(distinct), Change::Distinct(value)) => distinct.add(value.as_bytes()),
            (Accumulator::Percentile(quantiles), Change::Percentile(number)) => quantiles.add(number),
            _ => {}
        }
    }
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
            "distinct" => Kind::Distinct,
            "percentile" => Kind::Percentile,
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
        let (argument, percent) = match kind {
            Kind::Percentile => {
                let split = argument.rsplit_once(',');
                let split = split.and_then(|(argument, percent)| Some((argument, percent.trim().parse::<f64>().ok()?)));
                let Some(split) = split.filter(|(_, percent)| (0.0..=100.0).contains(percent)) else {
                    let message = format!("`{text}` has no percentage; expected such as `percentile(row.ms, 95)`");
                    return Err(ConfigError::at(key, message));
                };
                split
            }
            _ => (argument, 0.0),
        };
        let argument = match argument.trim() {
            "" if kind == Kind::Count => None,
            "" => return Err(ConfigError::at(key, format!("`{text}` has no argument; expected an expression in CEL"))),
            argument => {
                let before = text.find('(').map_or(0, |at| at + 1);
                let before = before + text[before..].len() - text[before..].trim_start().len();
                Some(expression::compile_after(key, text[..before].chars().count(), argument)?)
            }
        };
        Ok(Self { kind, argument, percent })
    }

    /// The parts of records that its argument reads.
    pub(super) fn inputs(&self) -> Inputs {
        self.argument.as_ref().map_or(Inputs::VALUE, Expression::inputs)
    }

    /// The accumulator before the first record.
    pub(super) fn start(&self) -> Accumulator {
        match self.kind {
            Kind::Count => Accumulator::Count(0),
            Kind::Sum => Accumulator::Sum(None),
            Kind::Average => Accumulator::Average(Decimal::from(0), 0),
            Kind::Min | Kind::Max => Accumulator::Extreme(None),
            Kind::First | Kind::Last => Accumulator::At(None),
            Kind::Distinct => Accumulator::Distinct(Distinct::new()),
            Kind::Percentile => Accumulator::Percentile(Quantiles::new()),
        }
    }

    /// What a record changes in an accumulator.
    pub(super) fn change(&self, accumulator: &Accumulator, scope: Scope<'_>, time: i64) -> Result<Change, String> {
        let value = match &self.argument {
            Some(argument) => Some(argument.evaluate(scope)?),
            None => None,
        };
        if matches!(value, Some(Value::Null)) {
            return Ok(Change::Nothing);
        }
        let add = |sum: Decimal, value: &Value<'_>| sum.add(number(value)?).map_err(|error| error.to_string());
        Ok(match (accumulator, value) {
            (Accumulator::Count(_), _) => Change::Count,
            (Accumulator::Sum(sum), Some(value)) => Change::Sum(add(sum.unwrap_or(Decimal::from(0)), &value)?),
            (Accumulator::Average(sum, _), Some(value)) => Change::Average(add(*sum, &value)?),
            (Accumulator::Extreme(extreme), Some(value)) => match self.is_more_extreme(extreme.as_deref(), &value)? {
                true => Change::Extreme(json(&value)),
                false => Change::Nothing,
            },
            (Accumulator::At(at), Some(value)) => match self.is_nearer(at.as_ref().map(|(known, _)| *known), time) {
                true => Change::At(time, json(&value)),
                false => Change::Nothing,
            },
            (Accumulator::Distinct(_), Some(value)) => Change::Distinct(canonical(&value)?),
            (Accumulator::Percentile(_), Some(value)) => Change::Percentile(number(&value)?),
            (_, None) => return Err("the aggregate has no argument".to_owned()),
        })
    }

    /// Adds the records of another window, which has the later records.
    pub(super) fn merge(&self, accumulator: &mut Accumulator, later: &Accumulator) -> Result<(), String> {
        let add = |left: Decimal, right: Decimal| left.add(right).map_err(|error| error.to_string());
        match (accumulator, later) {
            (Accumulator::Count(count), Accumulator::Count(later)) => *count += later,
            (Accumulator::Sum(sum), Accumulator::Sum(Some(later))) => {
                *sum = Some(add(sum.unwrap_or(Decimal::from(0)), *later)?);
            }
            (Accumulator::Average(sum, count), Accumulator::Average(later, later_count)) => {
                *sum = add(*sum, *later)?;
                *count += later_count;
            }
            (Accumulator::Extreme(extreme), Accumulator::Extreme(Some(later))) => {
                if self.is_more_extreme(extreme.as_deref(), &Value::of_json(later.as_bytes())?)? {
                    *extreme = Some(later.clone());
                }
            }
            (Accumulator::At(at), Accumulator::At(Some((time, value)))) => {
                if self.is_nearer(at.as_ref().map(|(known, _)| *known), *time) {
                    *at = Some((*time, value.clone()));
                }
            }
            (Accumulator::Distinct(distinct), Accumulator::Distinct(later)) => distinct.merge(later),
            (Accumulator::Percentile(quantiles), Accumulator::Percentile(later)) => quantiles.merge(later),
            // The later window has no value.
            (Accumulator::Sum(_), Accumulator::Sum(None))
            | (Accumulator::Extreme(_), Accumulator::Extreme(None))
            | (Accumulator::At(_), Accumulator::At(None)) => {}
            _ => return Err("the state has two windows with different aggregates".to_owned()),
        }
        Ok(())
    }

    /// Whether a value replaces the least or greatest one.
    fn is_more_extreme(&self, known: Option<&str>, value: &Value<'_>) -> Result<bool, String> {
        let wanted = if self.kind == Kind::Min { Ordering::Less } else { Ordering::Greater };
        match known {
            Some(known) => Ok(value.order(&Value::of_json(known.as_bytes())?)? == wanted),
            None => Ok(true),
        }
    }

    /// Whether a value of this time replaces the first or last one.
    fn is_nearer(&self, known: Option<i64>, time: i64) -> bool {
        match (known, self.kind) {
            (Some(known), Kind::First) => time < known,
            (Some(known), _) => time >= known,
            (None, _) => true,
        }
    }

    /// Appends the result as JSON.
    pub(super) fn write_result(&self, accumulator: &Accumulator, out: &mut Vec<u8>) -> Result<(), String> {
        let null = || "null".to_owned();
        let text = match accumulator {
            Accumulator::Count(count) => count.to_string(),
            Accumulator::Sum(sum) => sum.map_or_else(null, |sum| sum.to_string()),
            Accumulator::Average(_, 0) => null(),
            Accumulator::Average(sum, count) => {
                sum.divide(Decimal::from(*count)).map_err(|error| error.to_string())?.to_string()
            }
            Accumulator::Extreme(value) => value.clone().unwrap_or_else(null),
            Accumulator::At(at) => at.as_ref().map_or_else(null, |(_, value)| value.clone()),
            Accumulator::Distinct(distinct) => distinct.count().to_string(),
            Accumulator::Percentile(quantiles) => quantiles.percentile(self.percent).unwrap_or_else(null),
        };
        out.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// The JSON of a value; equal numbers have the same.
fn canonical(value: &Value<'_>) -> Result<String, String> {
    let Some(number) = value.number()? else { return Ok(json(value)) };
    let text = number.to_string();
    Ok(match text.contains('.') && !text.contains(['e', 'E']) {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    })
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
