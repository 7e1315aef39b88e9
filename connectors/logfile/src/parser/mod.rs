//! Parsers: turn a line into a record's value. Each writes JSON directly into the batch's arena.
//! For a line that does not match, it returns what it expected at which byte; the line is rejected
//! with its bytes.

mod combined;
mod cri;
mod json;
mod logfmt;
mod regex;

use std::sync::Arc;

use trunkline_connector::json::write_string;
use trunkline_connector::{Reason, Schema};

pub(crate) use combined::CombinedParser;
pub use combined::Variant as CombinedVariant;
pub(crate) use regex::RegexParser;

/// A configured parser.
#[derive(Debug, Clone)]
pub enum ParserKind {
    /// `{"message": ".."}`.
    None,
    /// The line is a JSON object.
    Json,
    /// Named groups of a pattern.
    Regex(RegexParser),
    /// Combined log format.
    Combined(CombinedVariant),
    /// Pairs of keys and values.
    Logfmt,
    /// Lines of containers.
    Cri,
}

/// Result of parsing a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A value was written; with the time in the line, in milliseconds since the Unix epoch.
    Record(Option<i64>),
    /// A blank line, which the format does not have: it is counted as dropped.
    Blank,
}

/// Why a line does not match.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expected {
    /// Byte of the line (as UTF-8), counted from 0.
    pub at: usize,
    /// What was expected there.
    pub what: String,
}

/// A running parser; it keeps small caches between lines.
pub struct Parser {
    kind: Kind,
}

enum Kind {
    None,
    Json,
    Regex(RegexParser),
    Combined(Box<CombinedParser>, CombinedVariant),
    Logfmt(logfmt::LogfmtParser),
    Cri,
}

impl ParserKind {
    /// The parsers that need no pattern, by their names in pipeline files.
    pub fn named() -> [(&'static str, Self); 7] {
        [
            ("none", Self::None),
            ("json", Self::Json),
            ("logfmt", Self::Logfmt),
            ("cri", Self::Cri),
            ("combined", Self::Combined(CombinedVariant::Combined)),
            ("vhost_combined", Self::Combined(CombinedVariant::VhostCombined)),
            ("nginx_main", Self::Combined(CombinedVariant::NginxMain)),
        ]
    }

    /// The parser `regex` with a pattern; or why the pattern cannot be used.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        RegexParser::new(pattern).map(Self::Regex).map_err(|error| error.message)
    }

    /// The schema of the records, if it is known before the first line.
    pub fn schema(&self) -> Option<Arc<Schema>> {
        match self {
            Self::None | Self::Json | Self::Logfmt => None,
            Self::Cri => cri::schema(),
            Self::Regex(parser) => parser.schema(),
            Self::Combined(variant) => combined::schema(*variant),
        }
    }

    /// The fields of its records; `None` if each line decides.
    pub fn fields(&self) -> Option<Vec<String>> {
        match self {
            Self::None => Some(vec!["message".to_owned()]),
            Self::Json | Self::Logfmt => None,
            Self::Regex(_) | Self::Combined(_) | Self::Cri => {
                let schema = self.schema()?;
                Some(schema.arrow().fields().iter().map(|field| field.name().clone()).collect())
            }
        }
    }

    /// Creates the parser.
    pub fn parser(&self) -> Parser {
        let kind = match self {
            Self::None => Kind::None,
            Self::Json => Kind::Json,
            Self::Logfmt => Kind::Logfmt(logfmt::LogfmtParser::default()),
            Self::Cri => Kind::Cri,
            Self::Regex(parser) => Kind::Regex(parser.clone()),
            Self::Combined(variant) => Kind::Combined(Box::new(CombinedParser::new(*variant)), *variant),
        };
        Parser { kind }
    }
}

impl Parser {
    /// Appends the JSON of a line to `out`. After an error `out` may hold a part of it, which the
    /// caller removes.
    pub fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        match &mut self.kind {
            Kind::None => {
                out.extend_from_slice(b"{\"message\":");
                write_string(out, line);
                out.push(b'}');
                Ok(Event::Record(None))
            }
            Kind::Json => json::parse(line, out),
            Kind::Regex(parser) => parser.parse(line, out),
            Kind::Combined(parser, _) => parser.parse(line, out),
            Kind::Logfmt(parser) => parser.parse(line, out),
            Kind::Cri => cri::parse(line, out),
        }
    }

    /// The reason of a rejection.
    pub fn reason(&self, line: &str, expected: &Expected) -> Reason {
        let code = match self.kind {
            Kind::None => "parse.none",
            Kind::Json => "parse.json",
            Kind::Regex(_) => "parse.regex",
            Kind::Logfmt(_) => "parse.logfmt",
            Kind::Cri => "parse.cri",
            Kind::Combined(_, CombinedVariant::Combined) => "parse.combined",
            Kind::Combined(_, CombinedVariant::VhostCombined) => "parse.vhost_combined",
            Kind::Combined(_, CombinedVariant::NginxMain) => "parse.nginx_main",
        };
        Reason::new(code, describe(line, expected))
    }
}

/// `expected WHAT at column N, found "..."`. Columns count characters from 1, as editors do.
fn describe(line: &str, expected: &Expected) -> String {
    const SHOWN: usize = 40;
    let at = line.floor_char_boundary(expected.at.min(line.len()));
    let column = line[..at].chars().count() + 1;
    let rest = &line[at..];
    let found: String = rest.chars().take(SHOWN).collect();
    let more = if found.len() < rest.len() { ".." } else { "" };
    if found.is_empty() {
        format!("expected {} at column {column}, found the end of the line", expected.what)
    } else {
        format!("expected {} at column {column}, found {found:?}{more}", expected.what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_without_a_parser_becomes_a_message() {
        let mut out = Vec::new();
        assert_eq!(ParserKind::None.parser().parse("a \"b\"\t", &mut out), Ok(Event::Record(None)));
        assert_eq!(out, br#"{"message":"a \"b\"\t"}"#);
    }

    #[test]
    fn reasons_name_the_expected_text_and_the_column() {
        let expected = Expected { at: 3, what: "a status".to_owned() };
        assert_eq!(describe("äb x", &expected), "expected a status at column 3, found \" x\"");
        assert_eq!(describe("ab", &expected), "expected a status at column 3, found the end of the line");
    }
}
