//! Values of expressions. JSON from a record stays text until an operation needs more.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::rc::Rc;

use trunkline_plugin::json;

use crate::number::Decimal;

/// A value.
#[derive(Debug, Clone)]
pub(crate) enum Value<'a> {
    Null,
    Boolean(bool),
    Number(Decimal),
    Text(Cow<'a, str>),
    /// A JSON number, object or array, as in the record.
    Json(&'a [u8]),
    List(Rc<Vec<Value<'a>>>),
    Map(Rc<Vec<(String, Value<'a>)>>),
}

impl<'a> Value<'a> {
    /// The value of a JSON text. Objects, arrays and numbers are not parsed.
    pub(crate) fn of_json(raw: &'a [u8]) -> Result<Self, String> {
        match raw.first() {
            Some(b'"') => json::text(raw).map(Self::Text).ok_or_else(|| "a text is not valid UTF-8".to_owned()),
            Some(b'{' | b'[' | b'-' | b'0'..=b'9') => Ok(Self::Json(raw)),
            _ => match raw {
                b"null" => Ok(Self::Null),
                b"true" => Ok(Self::Boolean(true)),
                b"false" => Ok(Self::Boolean(false)),
                _ => Err(format!("`{}` is not JSON", String::from_utf8_lossy(raw))),
            },
        }
    }

    /// Its type, for messages.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Boolean(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::Text(_) => "a text",
            Self::Json([b'{', ..]) | Self::Map(_) => "an object",
            Self::Json([b'[', ..]) | Self::List(_) => "a list",
            Self::Json(_) => "a number",
        }
    }

    /// The number; `None` if it is another type, an error if it has more than 38 digits.
    pub(crate) fn number(&self) -> Result<Option<Decimal>, String> {
        match self {
            Self::Number(number) => Ok(Some(*number)),
            Self::Json(raw @ [b'-' | b'0'..=b'9', ..]) => {
                let text = std::str::from_utf8(raw).unwrap_or_default();
                let problem = || format!("the number {text} is not valid or has more than 38 digits");
                Decimal::parse(text).map(Some).ok_or_else(problem)
            }
            _ => Ok(None),
        }
    }

    /// The items of a list; `None` if it is another type.
    pub(crate) fn items(&self) -> Result<Option<Vec<Value<'a>>>, String> {
        match self {
            Self::List(items) => Ok(Some(items.as_ref().clone())),
            Self::Json(raw @ [b'[', ..]) => {
                let raw: &'a [u8] = raw;
                let mut items = Vec::new();
                for item in json::items(raw) {
                    items.push(Self::of_json(item.map_err(|error| error.to_string())?)?);
                }
                Ok(Some(items))
            }
            _ => Ok(None),
        }
    }

    /// The member of an object; the inner `None` if the object does not have it, the outer one if
    /// the value is no object.
    pub(crate) fn member(&self, name: &str) -> Result<Option<Option<Value<'a>>>, String> {
        match self {
            Self::Map(members) => {
                Ok(Some(members.iter().find(|(known, _)| known == name).map(|(_, value)| value.clone())))
            }
            Self::Json(raw @ [b'{', ..]) => {
                let raw: &'a [u8] = raw;
                match json::lookup(raw, &[name]).map_err(|error| error.to_string())? {
                    Some(found) => Ok(Some(Some(Self::of_json(found)?))),
                    None => Ok(Some(None)),
                }
            }
            _ => Ok(None),
        }
    }

    /// The names of the members of an object; `None` if it is another type.
    pub(crate) fn names(&self) -> Result<Option<Vec<Value<'a>>>, String> {
        match self {
            Self::Map(members) => {
                Ok(Some(members.iter().map(|(name, _)| Self::Text(Cow::Owned(name.clone()))).collect()))
            }
            Self::Json(raw @ [b'{', ..]) => {
                let raw: &'a [u8] = raw;
                let mut names = Vec::new();
                for member in json::members(raw) {
                    let member = member.map_err(|error| error.to_string())?;
                    names.push(Self::Text(json::key_text(member.key).ok_or("a key is not valid UTF-8")?));
                }
                Ok(Some(names))
            }
            _ => Ok(None),
        }
    }

    /// Whether two values are equal. Values of different types are not.
    pub(crate) fn equals(&self, other: &Self) -> Result<bool, String> {
        if let (Some(left), Some(right)) = (self.number()?, other.number()?) {
            return Ok(left == right);
        }
        if let (Some(left), Some(right)) = (self.items()?, other.items()?) {
            if left.len() != right.len() {
                return Ok(false);
            }
            for (left, right) in left.iter().zip(&right) {
                if !left.equals(right)? {
                    return Ok(false);
                }
            }
            return Ok(true);
        }
        if let (Some(left), Some(right)) = (self.names()?, other.names()?) {
            return self.equal_members(other, &left, right.len());
        }
        Ok(match (self, other) {
            (Self::Null, Self::Null) => true,
            (Self::Boolean(left), Self::Boolean(right)) => left == right,
            (Self::Text(left), Self::Text(right)) => left == right,
            _ => false,
        })
    }

    fn equal_members(&self, other: &Self, names: &[Self], count: usize) -> Result<bool, String> {
        if names.len() != count {
            return Ok(false);
        }
        for name in names {
            let Self::Text(name) = name else { return Ok(false) };
            let (Some(Some(left)), Some(Some(right))) = (self.member(name)?, other.member(name)?) else {
                return Ok(false);
            };
            if !left.equals(&right)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The order of two numbers, texts or booleans.
    pub(crate) fn order(&self, other: &Self) -> Result<Ordering, String> {
        if let (Some(left), Some(right)) = (self.number()?, other.number()?) {
            return Ok(left.cmp(&right));
        }
        match (self, other) {
            (Self::Text(left), Self::Text(right)) => Ok(left.cmp(right)),
            (Self::Boolean(left), Self::Boolean(right)) => Ok(left.cmp(right)),
            _ => {
                let is_mixed = |text: &Self, number: &Self| {
                    matches!((text, number), (Self::Text(_), Self::Number(_) | Self::Json([b'-' | b'0'..=b'9', ..])))
                };
                let hint = match is_mixed(self, other) || is_mixed(other, self) {
                    true => "; convert the text with decimal(..)",
                    false => "",
                };
                Err(format!("{} and {} cannot be compared{hint}", self.kind(), other.kind()))
            }
        }
    }

    /// Appends the value as JSON.
    pub(crate) fn write_json(&self, out: &mut Vec<u8>) {
        match self {
            Self::Null => out.extend_from_slice(b"null"),
            Self::Boolean(true) => out.extend_from_slice(b"true"),
            Self::Boolean(false) => out.extend_from_slice(b"false"),
            Self::Number(number) => out.extend_from_slice(number.to_string().as_bytes()),
            Self::Text(text) => json::write_string(out, text),
            Self::Json(raw) => out.extend_from_slice(raw),
            Self::List(items) => {
                out.push(b'[');
                for (index, item) in items.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    item.write_json(out);
                }
                out.push(b']');
            }
            Self::Map(members) => {
                out.push(b'{');
                for (index, (name, value)) in members.iter().enumerate() {
                    if index > 0 {
                        out.push(b',');
                    }
                    json::write_string(out, name);
                    out.push(b':');
                    value.write_json(out);
                }
                out.push(b'}');
            }
        }
    }

    /// The value as text: a text itself, the JSON of other values; `None` for null.
    pub(crate) fn into_text(self) -> Option<Cow<'a, str>> {
        match self {
            Self::Null => None,
            Self::Text(text) => Some(text),
            other => {
                let mut json = Vec::new();
                other.write_json(&mut json);
                Some(Cow::Owned(String::from_utf8_lossy(&json).into_owned()))
            }
        }
    }
}
