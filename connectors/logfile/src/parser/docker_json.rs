//! `parser = "docker_json"`: lines of Docker's driver `json-file`,
//! `{"log":"message\n","stream":"stdout","time":"2026-03-01T00:00:00.123456789Z"}`. Docker splits
//! long lines; all parts but the last have no `\n` at the end of `log`.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use serde::de::IgnoredAny;
use trunkline_connector::Schema;
use trunkline_connector::json::{Member, members, text as json_text, write_string};

use super::scan::Object;
use super::time::{rfc3339, write_time};
use super::{Event, Expected, LineParser, schema_of, text, timestamp};

const TIME: &str = "a time such as 2026-03-01T00:00:00.123Z as `time`";

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    let partial = Field::new("partial", DataType::Boolean, true);
    schema_of(vec![timestamp(TimeUnit::Nanosecond), text("stream"), partial, text("message"), text("attrs")])
}

/// The parser.
#[derive(Default)]
pub(super) struct DockerParser {
    message: Vec<u8>,
}

/// The members of a line that the parser reads, as written.
#[derive(Default)]
struct Entry<'a> {
    log: Option<Member<'a>>,
    stream: Option<&'a [u8]>,
    time: Option<Member<'a>>,
    attrs: Option<&'a [u8]>,
}

impl<'a> Entry<'a> {
    fn of(line: &'a str) -> Result<Self, Expected> {
        serde_json::from_str::<IgnoredAny>(line).map_err(|error| {
            let at = if error.line() <= 1 { error.column().saturating_sub(1) } else { line.len() };
            let text = error.to_string();
            Expected { at, what: format!("valid JSON ({})", text.split(" at line ").next().unwrap_or(&text)) }
        })?;
        let mut entry = Self::default();
        for member in members(line.as_bytes()) {
            let member = member.map_err(|error| Expected { at: error.at, what: error.expected.to_owned() })?;
            match member.key {
                b"log" => entry.log = Some(member),
                b"stream" => entry.stream = Some(member.value),
                b"time" => entry.time = Some(member),
                b"attrs" => entry.attrs = Some(member.value),
                _ => {}
            }
        }
        Ok(entry)
    }

    /// The encoded message without its newline, and whether it is a part of a line.
    fn message(&self, end: usize) -> Result<(&'a [u8], bool), Expected> {
        let Some(log) = &self.log else { return Err(Expected { at: end, what: "a member `log`".to_owned() }) };
        let [b'"', inner @ .., b'"'] = log.value else {
            return Err(Expected { at: log.range.start, what: "a string as `log`".to_owned() });
        };
        Ok(match strip_escape(inner, b'n') {
            Some(message) => (strip_escape(message, b'r').unwrap_or(message), false),
            None => (inner, true),
        })
    }
}

/// What [`crate::multiline`] needs of a line.
pub(crate) struct DockerLine<'a> {
    /// The value of `log`, as written.
    value: &'a [u8],
    pub(crate) is_partial: bool,
}

impl<'a> DockerLine<'a> {
    pub(crate) fn text(&self) -> Cow<'a, str> {
        json_text(self.value).unwrap_or_default()
    }
}

/// Finds the message of a line without checking the rest.
pub(crate) fn docker_message(line: &[u8]) -> Option<DockerLine<'_>> {
    let log = members(line).map_while(Result::ok).find(|member| member.key == b"log")?;
    let inner = log.value.strip_prefix(b"\"")?.strip_suffix(b"\"")?;
    Some(DockerLine { value: log.value, is_partial: strip_escape(inner, b'n').is_none() })
}

/// The text of a JSON string before an escape at its end.
fn strip_escape(inner: &[u8], letter: u8) -> Option<&[u8]> {
    let before = inner.strip_suffix(&[b'\\', letter])?;
    // An escaped backslash before the letter is no escape of the letter.
    let backslashes = before.iter().rev().take_while(|byte| **byte == b'\\').count();
    (backslashes % 2 == 0).then_some(before)
}

impl LineParser for DockerParser {
    fn code(&self) -> &'static str {
        "parse.docker_json"
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut parts = line.split('\n');
        let first = parts.next().unwrap_or(line).trim_end_matches('\r');
        let entry = Entry::of(first)?;
        let end = first.len().saturating_sub(1);
        let (message, mut is_partial) = entry.message(end)?;
        let Some(time) = &entry.time else { return Err(Expected { at: end, what: "a member `time`".to_owned() }) };
        let instant = match time.value {
            [b'"', inner @ .., b'"'] => {
                rfc3339(inner).filter(|(_, len)| *len == inner.len()).map(|(instant, _)| instant)
            }
            _ => None,
        };
        let mut object = Object::new(out);
        let milliseconds = write_time(&mut object, instant, 9, time.range.start, TIME)?;
        let stream = entry.stream.filter(|stream| stream.starts_with(b"\""));
        object.name("stream").extend_from_slice(stream.unwrap_or(b"null"));
        self.message.clear();
        self.message.extend_from_slice(message);
        let mut at = first.len() + 1;
        for part in parts {
            let shifted = |expected: Expected| Expected { at: at + expected.at, ..expected };
            let line = part.trim_end_matches('\r');
            let (message, more) = Entry::of(line).and_then(|entry| entry.message(line.len())).map_err(shifted)?;
            if !is_partial {
                self.message.extend_from_slice(b"\\n");
            }
            self.message.extend_from_slice(message);
            is_partial = more;
            at += part.len() + 1;
        }
        object.name("partial").extend_from_slice(if is_partial { b"true" } else { b"false" });
        let value = object.name("message");
        value.push(b'"');
        value.extend_from_slice(&self.message);
        value.push(b'"');
        let attrs = object.name("attrs");
        match entry.attrs {
            Some(json) => write_string(attrs, &String::from_utf8_lossy(json)),
            None => attrs.extend_from_slice(b"null"),
        }
        object.end();
        Ok(Event::Record(Some(milliseconds)))
    }
}
