//! Values with their place in the file.

use std::fmt;
use std::ops::Range;

/// A value and the bytes of the file it was read from.
#[derive(Debug, Clone)]
pub struct Node {
    /// The value.
    pub value: Value,
    /// Byte range in the file.
    pub span: Range<usize>,
}

/// A TOML value.
#[derive(Debug, Clone)]
pub enum Value {
    /// A string, with `${..}` resolved.
    String(Text),
    /// An integer.
    Integer(i64),
    /// A float.
    Float(f64),
    /// A boolean.
    Boolean(bool),
    /// A date, time or both, as written.
    Datetime(String),
    /// An array.
    Array(Vec<Node>),
    /// A table.
    Table(Table),
}

/// A string as written, and with its `${..}` resolved. Only the written form may be printed: the
/// resolved one may be a secret (I8).
#[derive(Clone)]
pub struct Text {
    /// As written in the file.
    pub raw: String,
    /// With `${env:..}`, `${file:..}` and `${secret:..}` resolved.
    pub resolved: String,
}

impl fmt::Debug for Text {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.raw.fmt(formatter)
    }
}

/// A table's key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// The name.
    pub name: String,
    /// Byte range in the file.
    pub span: Range<usize>,
}

/// A table, in the file's order.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Keys and values.
    pub entries: Vec<(Key, Node)>,
}

impl Table {
    /// The value of a key.
    pub fn get(&self, name: &str) -> Option<&Node> {
        self.entry(name).map(|(_, node)| node)
    }

    /// Key and value.
    pub fn entry(&self, name: &str) -> Option<&(Key, Node)> {
        self.entries.iter().find(|(key, _)| key.name == name)
    }
}

impl Value {
    /// The kind of value, as an error names it.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::String(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Boolean(_) => "a boolean",
            Self::Datetime(_) => "a datetime",
            Self::Array(_) => "an array",
            Self::Table(_) => "a table",
        }
    }
}

impl Node {
    /// A TOML value without a place in a file.
    pub fn from_toml(value: toml::Value) -> Self {
        let entry = |(name, value)| (Key { name, span: 0..0 }, Self::from_toml(value));
        let value = match value {
            toml::Value::String(text) => Value::String(Text { raw: text.clone(), resolved: text }),
            toml::Value::Integer(number) => Value::Integer(number),
            toml::Value::Float(number) => Value::Float(number),
            toml::Value::Boolean(flag) => Value::Boolean(flag),
            toml::Value::Datetime(time) => Value::Datetime(time.to_string()),
            toml::Value::Array(items) => Value::Array(items.into_iter().map(Self::from_toml).collect()),
            toml::Value::Table(members) => Value::Table(Table { entries: members.into_iter().map(entry).collect() }),
        };
        Self { value, span: 0..0 }
    }

    /// The same value as JSON, with strings resolved; what a plugin's init receives.
    pub fn to_json(&self) -> serde_json::Value {
        self.convert(|text| &text.resolved)
    }

    /// The value as JSON, with references as written.
    pub fn to_written_json(&self) -> serde_json::Value {
        self.convert(|text| &text.raw)
    }

    fn convert(&self, text_of: fn(&Text) -> &String) -> serde_json::Value {
        match &self.value {
            Value::String(text) => serde_json::Value::from(text_of(text).as_str()),
            Value::Integer(number) => serde_json::Value::from(*number),
            Value::Float(number) => serde_json::Value::from(*number),
            Value::Boolean(flag) => serde_json::Value::from(*flag),
            Value::Datetime(text) => serde_json::Value::from(text.as_str()),
            Value::Array(items) => items.iter().map(|item| item.convert(text_of)).collect(),
            Value::Table(table) => table
                .entries
                .iter()
                .map(|(key, node)| (key.name.clone(), node.convert(text_of)))
                .collect::<serde_json::Map<_, _>>()
                .into(),
        }
    }
}
