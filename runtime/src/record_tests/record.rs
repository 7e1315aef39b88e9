//! Records as lines of JSON.
//!
//! ```json
//! {"key": "42", "value": {"amount": 12.50}, "headers": {"source": "web"}, "timestamp": 170}
//! ```
//! A key, value or header that is a string stands for its characters, every other JSON value for
//! its JSON text (numbers stay as written), and `{"$base64": ".."}` for bytes. Without a member,
//! the record has no such part.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::value::RawValue;
use trunkline_connector::config::nearest;
use trunkline_connector::{Batch, RecordRef};

use super::json_text::compact;

/// An input or output record of a test.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TestRecord {
    /// The key.
    pub key: Option<Vec<u8>>,
    /// The value.
    pub value: Option<Vec<u8>>,
    /// The headers, in order.
    pub headers: Vec<(String, Option<Vec<u8>>)>,
    /// Milliseconds since 1970.
    pub timestamp: Option<i64>,
    /// The source that reads it, in a test of a pipeline.
    pub source: Option<String>,
    /// The topic.
    pub topic: Option<String>,
    /// The partition.
    pub partition: Option<i32>,
    /// The offset.
    pub offset: Option<i64>,
}

/// An expected record. A part that is `None` is not compared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExpectedRecord {
    /// The output: a port, a sink or a transform.
    pub output: Option<String>,
    /// The code of a rejected record.
    pub rejected: Option<String>,
    /// The parts of the record by name, each as compact JSON.
    pub parts: BTreeMap<&'static str, String>,
}

/// A line that is not a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LineError {
    /// Number of the line, from 1; 0 if the problem is the file.
    pub line: usize,
    /// Column, from 1; 0 if it is the whole line.
    pub column: usize,
    /// The problem and the expected input.
    pub message: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.line, self.column) {
            (0, _) => {}
            (line, 0) => write!(formatter, "{line}: ")?,
            (line, column) => write!(formatter, "{line}:{column}: ")?,
        }
        formatter.write_str(&self.message)
    }
}

const INPUT_MEMBERS: [&str; 8] = ["key", "value", "headers", "timestamp", "source", "topic", "partition", "offset"];
const EXPECTED_MEMBERS: [&str; 9] =
    ["port", "rejected", "message", "component", "topic", "key", "value", "headers", "timestamp"];

/// Reads input records, one per line. Blank lines are ignored.
pub fn read_records(path: &Path) -> Result<Vec<TestRecord>, LineError> {
    each_line(path, TestRecord::parse)
}

/// Reads expected records, one per line. Blank lines are ignored.
pub fn read_expected(path: &Path) -> Result<Vec<ExpectedRecord>, LineError> {
    each_line(path, ExpectedRecord::parse)
}

fn each_line<T>(path: &Path, parse: impl Fn(&str) -> Result<T, (usize, String)>) -> Result<Vec<T>, LineError> {
    let text = std::fs::read_to_string(path).map_err(|error| LineError {
        line: 0,
        column: 0,
        message: format!("cannot read {}: {error}", path.display()),
    })?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(index, line)| parse(line).map_err(|(column, message)| LineError { line: index + 1, column, message }))
        .collect()
}

type Members<'a> = BTreeMap<String, &'a RawValue>;

/// The members of an object; an error has the column and the problem.
fn members<'a>(json: &'a str, known: &[&str]) -> Result<Members<'a>, (usize, String)> {
    let members: Members<'a> = serde_json::from_str(json).map_err(|error| {
        let message = error.to_string();
        let message = message.rfind(" at line ").map_or(message.as_str(), |at| &message[..at]);
        (error.column(), format!("the record is not a JSON object: {message}"))
    })?;
    for name in members.keys() {
        if !known.contains(&name.as_str()) {
            let hint = match nearest(name, known) {
                Some(meant) => format!("did you mean `{meant}`?"),
                None => format!("expected {}", known.join(", ")),
            };
            let column = json.find(&format!("\"{name}\"")).map_or(0, |at| json[..at].chars().count() + 1);
            return Err((column, format!("a record has no member `{name}`; {hint}")));
        }
    }
    Ok(members)
}

impl TestRecord {
    /// Parses a line; an error has the column and the problem.
    pub fn parse(json: &str) -> Result<Self, (usize, String)> {
        let members = members(json, &INPUT_MEMBERS)?;
        let bytes = |name: &str| match members.get(name) {
            Some(raw) => bytes_of(raw.get()).map_err(|message| (0, format!("`{name}` {message}"))),
            None => Ok(None),
        };
        let mut headers = Vec::new();
        if let Some(raw) = members.get("headers") {
            for (name, raw) in header_members(raw.get())? {
                let value = bytes_of(raw.get()).map_err(|message| (0, format!("the header `{name}` {message}")))?;
                headers.push((name, value));
            }
        }
        Ok(Self {
            key: bytes("key")?,
            value: bytes("value")?,
            headers,
            timestamp: number(&members, "timestamp")?,
            source: string(&members, "source")?,
            topic: string(&members, "topic")?,
            partition: match number(&members, "partition")? {
                Some(number) => Some(i32::try_from(number).map_err(|_| (0, "`partition` is too large".to_owned()))?),
                None => None,
            },
            offset: number(&members, "offset")?,
        })
    }

    /// Adds the record to a batch. `index` is the offset of a record that names none; -1 stands for
    /// a record that is in no topic yet.
    pub fn push_to(&self, batch: &mut Batch, default_topic: &str, index: i64) {
        let topic = batch.topic_index(self.topic.as_deref().unwrap_or(default_topic));
        let mut record = batch.record();
        record.read_from(topic, self.partition.unwrap_or(0), self.offset.unwrap_or(index));
        if let Some(timestamp) = self.timestamp {
            record.timestamp(timestamp);
        }
        if let Some(key) = &self.key {
            record.key(key);
        }
        for (name, value) in &self.headers {
            record.header(name, value.as_deref());
        }
        if let Some(value) = &self.value {
            record.value(value);
        }
        record.finish();
    }

    /// The record of a batch.
    pub fn of(record: RecordRef<'_>) -> Self {
        Self {
            key: record.key().map(<[u8]>::to_vec),
            value: record.value().map(<[u8]>::to_vec),
            headers: record.headers().map(|(name, value)| (name.to_owned(), value.map(<[u8]>::to_vec))).collect(),
            timestamp: record.timestamp(),
            source: None,
            topic: None,
            partition: None,
            offset: None,
        }
    }

    /// The parts that the record has, by name, as JSON. A missing value is `null`, because it is a
    /// tombstone.
    pub fn parts(&self) -> BTreeMap<&'static str, String> {
        let mut parts = BTreeMap::from([("value", json_of(self.value.as_deref()))]);
        if self.key.is_some() {
            parts.insert("key", json_of(self.key.as_deref()));
        }
        if !self.headers.is_empty() {
            let header = |(name, value): &(String, Option<Vec<u8>>)| {
                format!("{}:{}", serde_json::Value::from(name.as_str()), json_of(value.as_deref()))
            };
            parts.insert("headers", format!("{{{}}}", self.headers.iter().map(header).collect::<Vec<_>>().join(",")));
        }
        if let Some(timestamp) = self.timestamp {
            parts.insert("timestamp", timestamp.to_string());
        }
        if let Some(topic) = &self.topic {
            parts.insert("topic", serde_json::Value::from(topic.as_str()).to_string());
        }
        parts
    }
}

impl ExpectedRecord {
    /// Parses a line; an error has the column and the problem.
    pub fn parse(json: &str) -> Result<Self, (usize, String)> {
        let members = members(json, &EXPECTED_MEMBERS)?;
        let text = |name: &str| string(&members, name);
        let mut expected = Self { output: text("port")?, rejected: text("rejected")?, parts: BTreeMap::new() };
        for name in ["message", "component", "topic"] {
            if let Some(text) = text(name)? {
                expected.parts.insert(name, serde_json::Value::from(text).to_string());
            }
        }
        for name in ["key", "value"] {
            if let Some(raw) = members.get(name) {
                let bytes = bytes_of(raw.get()).map_err(|message| (0, format!("`{name}` {message}")))?;
                expected.parts.insert(name, json_of(bytes.as_deref()));
            }
        }
        if let Some(raw) = members.get("headers") {
            let headers: Result<Vec<_>, (usize, String)> = header_members(raw.get())?
                .into_iter()
                .map(|(name, raw)| {
                    let value = bytes_of(raw.get()).map_err(|message| (0, format!("the header `{name}` {message}")))?;
                    Ok(format!("{}:{}", serde_json::Value::from(name), json_of(value.as_deref())))
                })
                .collect();
            expected.parts.insert("headers", format!("{{{}}}", headers?.join(",")));
        }
        if let Some(timestamp) = number(&members, "timestamp")? {
            expected.parts.insert("timestamp", timestamp.to_string());
        }
        Ok(expected)
    }

    /// The record as a line.
    pub fn line(&self) -> String {
        let mut members = Vec::new();
        if let Some(output) = &self.output {
            members.push(format!("\"port\":{}", serde_json::Value::from(output.as_str())));
        }
        if let Some(code) = &self.rejected {
            members.push(format!("\"rejected\":{}", serde_json::Value::from(code.as_str())));
        }
        for name in ["component", "message", "topic", "key", "value", "headers", "timestamp"] {
            if let Some(json) = self.parts.get(name) {
                members.push(format!("\"{name}\":{json}"));
            }
        }
        format!("{{{}}}", members.join(","))
    }

    /// Whether an actual record has everything that is expected.
    pub fn matches(&self, actual: &Self) -> bool {
        let part = |name: &str| actual.parts.get(name).map(String::as_str);
        self.output.as_deref().unwrap_or("default") == actual.output.as_deref().unwrap_or("default")
            && self.rejected == actual.rejected
            && self.parts.iter().all(|(name, expected)| part(name).unwrap_or("null") == expected)
    }
}

/// The members of `headers`, in order. Names may repeat.
fn header_members(json: &str) -> Result<Vec<(String, &RawValue)>, (usize, String)> {
    struct InOrder<'a>(Vec<(String, &'a RawValue)>);
    impl<'de> serde::Deserialize<'de> for InOrder<'de> {
        fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct Visitor;
            impl<'de> serde::de::Visitor<'de> for Visitor {
                type Value = InOrder<'de>;
                fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                    formatter.write_str("an object")
                }
                fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                    let mut found = Vec::new();
                    while let Some(entry) = map.next_entry::<String, &RawValue>()? {
                        found.push(entry);
                    }
                    Ok(InOrder(found))
                }
            }
            deserializer.deserialize_map(Visitor)
        }
    }
    let parsed: InOrder<'_> = serde_json::from_str(json).map_err(|_| (0, "`headers` is not an object".to_owned()))?;
    Ok(parsed.0)
}

fn string(members: &Members<'_>, name: &str) -> Result<Option<String>, (usize, String)> {
    let Some(raw) = members.get(name) else { return Ok(None) };
    serde_json::from_str(raw.get()).map_err(|_| (0, format!("`{name}` is `{}`; expected a string", raw.get())))
}

fn number(members: &Members<'_>, name: &str) -> Result<Option<i64>, (usize, String)> {
    match members.get(name).map(|raw| raw.get()) {
        None | Some("null") => Ok(None),
        Some(raw) => raw.parse().map(Some).map_err(|_| (0, format!("`{name}` is `{raw}`; expected a whole number"))),
    }
}

const BYTES: &str = "$base64";

/// The bytes that a JSON value stands for.
fn bytes_of(raw: &str) -> Result<Option<Vec<u8>>, String> {
    if raw == "null" {
        return Ok(None);
    }
    if raw.starts_with('"') {
        let text: String = serde_json::from_str(raw).map_err(|error| format!("is not a string: {error}"))?;
        return Ok(Some(text.into_bytes()));
    }
    if raw.starts_with('{') && raw.contains(BYTES) {
        let members: BTreeMap<String, serde_json::Value> = serde_json::from_str(raw).unwrap_or_default();
        if let (1, Some(serde_json::Value::String(text))) = (members.len(), members.get(BYTES)) {
            return match BASE64.decode(text) {
                Ok(bytes) => Ok(Some(bytes)),
                Err(error) => Err(format!("is not base64: {error}")),
            };
        }
    }
    Ok(Some(compact(raw).into_bytes()))
}

/// The JSON value that stands for bytes: objects and arrays as they are, everything else as text.
fn json_of(bytes: Option<&[u8]>) -> String {
    let Some(bytes) = bytes else { return "null".to_owned() };
    match std::str::from_utf8(bytes) {
        Ok(text) if matches!(text.trim_start().as_bytes().first(), Some(b'{' | b'[')) => {
            match serde_json::from_str::<&RawValue>(text) {
                Ok(raw) => compact(raw.get()),
                Err(_) => serde_json::Value::from(text).to_string(),
            }
        }
        Ok(text) => serde_json::Value::from(text).to_string(),
        Err(_) => format!("{{\"{BYTES}\":\"{}\"}}", BASE64.encode(bytes)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_survives_the_way_into_a_batch_and_back() {
        let line =
            r#"{"key":"k","value":{ "n" : 1.10 },"headers":{"a":"1","b":null,"a":{"$base64":"/w=="}},"timestamp":5}"#;
        let record = TestRecord::parse(line).unwrap();
        let mut batch = Batch::default();
        record.push_to(&mut batch, "t", 7);
        assert_eq!((batch.get(0).topic(), batch.get(0).entry().offset), ("t", 7));
        let back = TestRecord::of(batch.get(0));
        assert_eq!(back, record);
        let actual = ExpectedRecord { parts: back.parts(), ..ExpectedRecord::default() };
        assert_eq!(
            actual.line(),
            r#"{"key":"k","value":{"n":1.10},"headers":{"a":"1","b":null,"a":{"$base64":"/w=="}},"timestamp":5}"#
        );
        assert!(ExpectedRecord::parse(&actual.line()).unwrap().matches(&actual));
    }

    #[test]
    fn texts_and_tombstones_differ() {
        let text = |json: &str| TestRecord::parse(&format!("{{\"value\":{json}}}")).unwrap();
        assert_eq!(text("null").value, None);
        assert_eq!(text("\"null\"").value.as_deref(), Some(&b"null"[..]));
        for json in ["null", "\"null\"", "\"\"", "\"a b\"", "\"12.0\"", "[1]", "{}", "\"\\\"quoted\\\"\""] {
            assert_eq!(text(json).parts()["value"], json);
        }
        assert_eq!(text("12.0"), text("\"12.0\""));
    }

    #[test]
    fn only_named_parts_are_compared() {
        let actual = ExpectedRecord {
            output: Some("alerts".to_owned()),
            rejected: None,
            parts: TestRecord::parse(r#"{"key":"k","value":{"n":1}}"#).unwrap().parts(),
        };
        let matches = |line: &str| ExpectedRecord::parse(line).unwrap().matches(&actual);
        assert!(matches(r#"{"port":"alerts"}"#));
        assert!(matches(r#"{"port":"alerts","key":"k"}"#));
        assert!(!matches(r#"{"key":"k"}"#) && !matches(r#"{"port":"alerts","value":{"n":1.0}}"#));
        assert!(!matches(r#"{"port":"alerts","timestamp":1}"#));
    }

    #[test]
    fn lines_with_problems_name_the_column() {
        let error = |line: &str| TestRecord::parse(line).unwrap_err();
        assert_eq!(error(r#"{"kye":"x"}"#), (2, "a record has no member `kye`; did you mean `key`?".to_owned()));
        assert_eq!(error(r#"{"value":tru}"#).0, 13);
        assert_eq!(error(r#"{"offset":1.5}"#).1, "`offset` is `1.5`; expected a whole number");
    }
}
