//! The functions of expressions: CEL's standard functions, its string and math extensions, and the
//! distance of two points on the earth.

use std::borrow::Cow;
use std::ops::RangeInclusive;
use std::rc::Rc;

use super::value::Value;
use crate::number::Decimal;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Function {
    Size,
    Contains,
    StartsWith,
    EndsWith,
    LowerAscii,
    UpperAscii,
    Trim,
    Replace,
    Split,
    Substring,
    IndexOf,
    Join,
    ToText,
    ToNumber,
    ToInteger,
    ToBoolean,
    Absolute,
    Ceiling,
    Floor,
    Round,
    Truncate,
    Least,
    Greatest,
    Distance,
}

/// The mean radius of the earth.
const EARTH_METRES: f64 = 6_371_008.8;

const FUNCTIONS: [(&str, Function, RangeInclusive<usize>); 26] = [
    ("size", Function::Size, 1..=1),
    ("contains", Function::Contains, 2..=2),
    ("startsWith", Function::StartsWith, 2..=2),
    ("endsWith", Function::EndsWith, 2..=2),
    ("lowerAscii", Function::LowerAscii, 1..=1),
    ("upperAscii", Function::UpperAscii, 1..=1),
    ("trim", Function::Trim, 1..=1),
    ("replace", Function::Replace, 3..=3),
    ("split", Function::Split, 2..=2),
    ("substring", Function::Substring, 2..=3),
    ("indexOf", Function::IndexOf, 2..=2),
    ("join", Function::Join, 1..=2),
    ("string", Function::ToText, 1..=1),
    ("decimal", Function::ToNumber, 1..=1),
    ("double", Function::ToNumber, 1..=1),
    ("int", Function::ToInteger, 1..=1),
    ("uint", Function::ToInteger, 1..=1),
    ("bool", Function::ToBoolean, 1..=1),
    ("math.abs", Function::Absolute, 1..=1),
    ("math.ceil", Function::Ceiling, 1..=1),
    ("math.floor", Function::Floor, 1..=1),
    ("math.round", Function::Round, 1..=2),
    ("math.trunc", Function::Truncate, 1..=1),
    ("math.least", Function::Least, 1..=16),
    ("math.greatest", Function::Greatest, 1..=16),
    ("geo.distance", Function::Distance, 4..=4),
];

/// A function and the numbers of arguments that it takes. The receiver of a method counts.
pub(super) fn find(name: &str) -> Option<(Function, RangeInclusive<usize>)> {
    let found = FUNCTIONS.iter().find(|(known, ..)| *known == name);
    found.map(|(_, function, counts)| (*function, counts.clone()))
}

pub(super) fn names() -> Vec<&'static str> {
    FUNCTIONS.iter().map(|(name, ..)| *name).chain(["matches", "has"]).collect()
}

/// Calls a function.
pub(super) fn call<'a>(function: Function, arguments: &[Value<'a>]) -> Result<Value<'a>, String> {
    let argument = |index: usize| arguments.get(index).ok_or_else(|| "an argument is missing".to_owned());
    let first = argument(0)?;
    match function {
        Function::Size => size(first),
        Function::Contains => Ok(Value::Boolean(text(first)?.contains(text(argument(1)?)?))),
        Function::StartsWith => Ok(Value::Boolean(text(first)?.starts_with(text(argument(1)?)?))),
        Function::EndsWith => Ok(Value::Boolean(text(first)?.ends_with(text(argument(1)?)?))),
        Function::LowerAscii => Ok(owned(text(first)?.to_ascii_lowercase())),
        Function::UpperAscii => Ok(owned(text(first)?.to_ascii_uppercase())),
        Function::Trim => Ok(owned(text(first)?.trim().to_owned())),
        Function::Replace => Ok(owned(text(first)?.replace(text(argument(1)?)?, text(argument(2)?)?))),
        Function::Split => {
            let parts = text(first)?.split(text(argument(1)?)?).map(|part| owned(part.to_owned()));
            Ok(Value::List(Rc::new(parts.collect())))
        }
        Function::Substring => substring(text(first)?, position(argument(1)?)?, arguments.get(2)),
        Function::IndexOf => {
            let (text, part) = (text(first)?, text(argument(1)?)?);
            let found = text.find(part).map_or(-1, |at| text[..at].chars().count() as i64);
            Ok(Value::Number(Decimal::from(found)))
        }
        Function::Join => {
            let separator = match arguments.get(1) {
                Some(separator) => text(separator)?,
                None => "",
            };
            let items = first.items()?.ok_or_else(|| format!("{} is not a list", first.kind()))?;
            let texts: Result<Vec<&str>, String> = items.iter().map(text).collect();
            Ok(owned(texts?.join(separator)))
        }
        Function::ToText => match first {
            Value::Null => Err("null is no text".to_owned()),
            other => Ok(other.clone().into_text().map_or(Value::Null, Value::Text)),
        },
        Function::ToNumber => to_number(first).map(Value::Number),
        Function::ToInteger => to_number(first)?.truncate().map(Value::Number).map_err(|error| error.to_string()),
        Function::ToBoolean => match first {
            Value::Boolean(_) => Ok(first.clone()),
            Value::Text(text) if matches!(text.as_ref(), "true" | "false") => Ok(Value::Boolean(text == "true")),
            other => Err(format!("{} is not a boolean", other.kind())),
        },
        Function::Absolute => {
            let number = number(first)?;
            Ok(Value::Number(if number < Decimal::from(0) { number.negate() } else { number }))
        }
        Function::Ceiling => exact(number(first)?.ceiling()),
        Function::Floor => exact(number(first)?.floor()),
        Function::Truncate => exact(number(first)?.truncate()),
        Function::Round => {
            let places = match arguments.get(1) {
                Some(places) => position(places)?,
                None => 0,
            };
            exact(number(first)?.round(i32::try_from(places).unwrap_or(38)))
        }
        Function::Least | Function::Greatest => {
            let numbers: Vec<Decimal> = arguments.iter().map(number).collect::<Result<_, _>>()?;
            let chosen = if function == Function::Least { numbers.iter().min() } else { numbers.iter().max() };
            chosen.map(|number| Value::Number(*number)).ok_or_else(|| "an argument is missing".to_owned())
        }
        Function::Distance => {
            let degrees: Vec<f64> = arguments.iter().map(degrees).collect::<Result<_, _>>()?;
            let [lat1, lon1, lat2, lon2] = degrees[..] else { return Err("an argument is missing".to_owned()) };
            distance((lat1, lon1), (lat2, lon2)).map(Value::Number)
        }
    }
}

fn owned<'a>(text: String) -> Value<'a> {
    Value::Text(Cow::Owned(text))
}

fn exact<'a>(number: Result<Decimal, crate::number::Inexact>) -> Result<Value<'a>, String> {
    number.map(Value::Number).map_err(|error| error.to_string())
}

fn text<'v>(value: &'v Value<'_>) -> Result<&'v str, String> {
    match value {
        Value::Text(text) => Ok(text),
        other => Err(format!("{} is not a text", other.kind())),
    }
}

pub(super) fn number(value: &Value<'_>) -> Result<Decimal, String> {
    value.number()?.ok_or_else(|| {
        let hint = if matches!(value, Value::Text(_)) { "; convert it with decimal(..)" } else { "" };
        format!("{} is not a number{hint}", value.kind())
    })
}

fn position(value: &Value<'_>) -> Result<usize, String> {
    let number = number(value)?.to_i64().and_then(|number| usize::try_from(number).ok());
    number.ok_or_else(|| "a position is not a whole number from 0".to_owned())
}

fn degrees(value: &Value<'_>) -> Result<f64, String> {
    let degrees: f64 = number(value)?.to_string().parse().map_err(|_| "an angle is too large".to_owned())?;
    if degrees.abs() <= 360.0 { Ok(degrees) } else { Err(format!("{degrees} is not an angle in degrees")) }
}

/// The great-circle distance of two points (latitude and longitude in degrees) in metres, with one
/// decimal: the haversine formula.
fn distance((lat1, lon1): (f64, f64), (lat2, lon2): (f64, f64)) -> Result<Decimal, String> {
    let half = |from: f64, to: f64| ((to - from).to_radians() / 2.0).sin().powi(2);
    let haversine = half(lat1, lat2) + lat1.to_radians().cos() * lat2.to_radians().cos() * half(lon1, lon2);
    let metres = 2.0 * EARTH_METRES * haversine.sqrt().min(1.0).asin();
    Decimal::parse(&format!("{metres:.1}")).ok_or_else(|| "the distance is not a number".to_owned())
}

fn to_number(value: &Value<'_>) -> Result<Decimal, String> {
    match value {
        Value::Text(text) => {
            Decimal::parse(text.trim()).ok_or_else(|| format!("the text {text:?} is not a number of up to 38 digits"))
        }
        other => number(other),
    }
}

fn size<'a>(value: &Value<'a>) -> Result<Value<'a>, String> {
    let size = match value {
        Value::Text(text) => text.chars().count(),
        Value::List(items) => items.len(),
        Value::Map(members) => members.len(),
        other => match (other.items()?, other.names()?) {
            (Some(items), _) => items.len(),
            (None, Some(names)) => names.len(),
            (None, None) => return Err(format!("{} has no size", other.kind())),
        },
    };
    Ok(Value::Number(Decimal::from(size as i64)))
}

fn substring<'a>(text: &str, from: usize, to: Option<&Value<'a>>) -> Result<Value<'a>, String> {
    let length = text.chars().count();
    let to = to.map_or(Ok(length), position)?;
    if from > to || to > length {
        return Err(format!("the text has {length} characters; there is no part from {from} to {to}"));
    }
    Ok(owned(text.chars().skip(from).take(to - from).collect()))
}
