//! `parser = "regex"`: the named groups of a pattern become string fields; a group without a match
//! is null.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema};
use regex::Regex;
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::{Event, Expected};

/// A compiled pattern with its groups.
#[derive(Debug, Clone)]
pub struct RegexParser {
    regex: Regex,
    /// Group number, name, and the encoded key `"name":`.
    groups: Vec<(usize, String, Vec<u8>)>,
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
    pub(crate) fn new(pattern: &str) -> Result<Self, PatternError> {
        let regex = Regex::new(pattern).map_err(|error| pattern_error(pattern, &error))?;
        let mut groups = Vec::new();
        for (number, name) in regex.capture_names().enumerate() {
            if let Some(name) = name {
                let mut key = Vec::new();
                write_string(&mut key, name);
                key.push(b':');
                groups.push((number, name.to_owned(), key));
            }
        }
        if groups.is_empty() {
            return Err(PatternError {
                message: "it has no named group, so records would have no fields".to_owned(),
                at: None,
                help: Some("name the parts to keep: `(?P<level>[A-Z]+)`".to_owned()),
            });
        }
        Ok(Self { regex, groups })
    }

    pub(super) fn schema(&self) -> Option<Arc<Schema>> {
        let fields: Vec<Field> =
            self.groups.iter().map(|(_, name, _)| Field::new(name, DataType::Utf8, true)).collect();
        Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
    }

    pub(super) fn parse(&self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let captures = self.regex.captures(line).ok_or_else(|| Expected {
            at: 0,
            what: format!("a line that matches the pattern {:?}", shortened(self.regex.as_str())),
        })?;
        out.push(b'{');
        for (place, (number, _, key)) in self.groups.iter().enumerate() {
            if place > 0 {
                out.push(b',');
            }
            out.extend_from_slice(key);
            match captures.get(*number) {
                Some(found) => write_string(out, found.as_str()),
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b'}');
        Ok(Event::Record(None))
    }
}

fn shortened(pattern: &str) -> String {
    const SHOWN: usize = 80;
    let mut text: String = pattern.chars().take(SHOWN).collect();
    if text.len() < pattern.len() {
        text.push_str("..");
    }
    text
}

/// The library's message has several lines: the pattern, indented by four, a caret under the
/// position, and the error.
fn pattern_error(pattern: &str, error: &regex::Error) -> PatternError {
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
        let parser = RegexParser::new(r"^(?P<level>[A-Z]+)( \[(?<thread>\w+)\])? (?P<message>.*)$").unwrap();
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
        let error = RegexParser::new("(?P<a>x)(y").unwrap_err();
        assert_eq!((error.message.as_str(), error.at), ("unclosed group", Some(8)));
        assert!(RegexParser::new("(a)(b)").unwrap_err().message.contains("named group"));
    }
}
