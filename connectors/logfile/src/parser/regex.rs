//! `parser = "regex"`: the named groups of a pattern become fields; a group without a match is
//! null. Fields are strings, unless `types` names another type.
//!
//! The library matches in time linear in the line, whatever the pattern is: a pattern that
//! backtracks elsewhere cannot hang here.

use std::sync::Arc;

use arrow::datatypes::Field;
use regex::{CaptureLocations, Regex};
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::types::{FieldType, FieldTypes};
use super::{Event, Expected, LineParser, schema_of};

/// A compiled pattern with its groups.
#[derive(Debug, Clone)]
pub struct RegexParser {
    regex: Regex,
    /// The pattern as written, for messages.
    written: String,
    fields: Vec<RegexField>,
    code: &'static str,
    locations: CaptureLocations,
}

/// A field, and the groups that it may come from: the first one that matched.
#[derive(Debug, Clone)]
pub(super) struct RegexField {
    pub(super) name: String,
    pub(super) groups: Vec<usize>,
    pub(super) field_type: FieldType,
    /// The encoded key `"name":`.
    key: Vec<u8>,
}

impl RegexField {
    pub(super) fn new(name: &str, group: usize, field_type: FieldType) -> Self {
        let mut key = Vec::new();
        write_string(&mut key, name);
        key.push(b':');
        Self { name: name.to_owned(), groups: vec![group], field_type, key }
    }
}

/// Why a pattern is not usable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PatternError {
    pub(crate) message: String,
    /// Byte of the pattern, if known.
    pub(crate) at: Option<usize>,
    pub(crate) help: Option<String>,
}

impl RegexParser {
    /// Whether a pattern, with or without groups, can be used.
    pub(crate) fn check(pattern: &str) -> Result<(), PatternError> {
        Regex::new(pattern).map(drop).map_err(|error| pattern_error(pattern, &error))
    }

    pub(crate) fn new(pattern: &str, types: &FieldTypes) -> Result<Self, PatternError> {
        let regex = Regex::new(pattern).map_err(|error| pattern_error(pattern, &error))?;
        let names = regex.capture_names().enumerate();
        let fields: Vec<RegexField> = names
            .filter_map(|(group, name)| name.map(|name| (group, name)))
            .map(|(group, name)| RegexField::new(name, group, types.get(name).copied().unwrap_or_default()))
            .collect();
        if fields.is_empty() {
            return Err(PatternError {
                message: "it has no named group, so records would have no fields".to_owned(),
                at: None,
                help: Some("name the parts to keep: `(?P<level>[A-Z]+)`".to_owned()),
            });
        }
        Ok(Self::with_fields(regex, pattern, fields, "parse.regex"))
    }

    pub(super) fn with_fields(regex: Regex, written: &str, fields: Vec<RegexField>, code: &'static str) -> Self {
        Self { locations: regex.capture_locations(), regex, written: written.to_owned(), fields, code }
    }

    pub(super) fn schema(&self) -> Option<Arc<Schema>> {
        schema_of(self.fields.iter().map(|field| Field::new(&field.name, field.field_type.arrow(), true)).collect())
    }
}

impl LineParser for RegexParser {
    fn code(&self) -> &'static str {
        self.code
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if self.regex.captures_read(&mut self.locations, line).is_none() {
            let what = format!("a line that matches the pattern {:?}", shortened(&self.written));
            return Err(Expected { at: 0, what });
        }
        for (place, field) in self.fields.iter().enumerate() {
            let before = out.len();
            out.push(if place == 0 { b'{' } else { b',' });
            out.extend_from_slice(&field.key);
            let found = field.groups.iter().find_map(|group| self.locations.get(*group));
            match found {
                Some((from, to)) => {
                    if let Err(what) = field.field_type.write(&line[from..to], out) {
                        out.truncate(before);
                        return Err(Expected { at: from, what: format!("{what} in the field `{}`", field.name) });
                    }
                }
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
        Ok(Event::Record(None))
    }
}

pub(super) fn shortened(pattern: &str) -> String {
    const SHOWN: usize = 80;
    let mut text: String = pattern.chars().take(SHOWN).collect();
    if text.len() < pattern.len() {
        text.push_str("..");
    }
    text
}

/// The library's message has several lines: the pattern, indented by four, a caret under the
/// position, and the error.
pub(super) fn pattern_error(pattern: &str, error: &regex::Error) -> PatternError {
    let text = error.to_string();
    let message = text
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix("error: "))
        .map_or_else(|| text.replace('\n', " "), str::to_owned);
    let column =
        text.lines().find(|line| line.trim_start().starts_with('^')).and_then(|line| line.find('^')?.checked_sub(4));
    let at = column
        .filter(|_| !pattern.contains('\n'))
        .and_then(|column| pattern.char_indices().map(|(at, _)| at).chain([pattern.len()]).nth(column));
    PatternError { message, at, help: None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_groups_become_fields() {
        let mut parser =
            RegexParser::new(r"^(?P<level>[A-Z]+)( \[(?<thread>\w+)\])? (?P<message>.*)$", &FieldTypes::new()).unwrap();
        let mut out = Vec::new();
        assert_eq!(parser.parse("WARN [main] say \"hi\"", &mut out), Ok(Event::Record(None)));
        out.push(b'\n');
        assert_eq!(parser.parse("INFO x", &mut out), Ok(Event::Record(None)));
        let expected = "{\"level\":\"WARN\",\"thread\":\"main\",\"message\":\"say \\\"hi\\\"\"}\n\
                        {\"level\":\"INFO\",\"thread\":null,\"message\":\"x\"}";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
        assert!(parser.parse("nothing of it", &mut Vec::new()).unwrap_err().what.contains("pattern"));
        assert_eq!(parser.schema().unwrap().arrow().fields().len(), 3);
    }

    #[test]
    fn errors_point_at_the_position_in_the_pattern() {
        let error = RegexParser::new("(?P<a>x)(y", &FieldTypes::new()).unwrap_err();
        assert_eq!((error.message.as_str(), error.at), ("unclosed group", Some(8)));
        assert!(RegexParser::new("(a)(b)", &FieldTypes::new()).unwrap_err().message.contains("named group"));
    }
}
