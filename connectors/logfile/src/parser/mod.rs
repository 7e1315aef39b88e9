//! Parsers: turn a line into a record's value. Each writes JSON directly into the batch's arena.
//! For a line that does not match, it returns what it expected at which byte; the line is rejected
//! with its bytes.
//!
//! A [`ParserSpec`] is what a pipeline file configures, a [`Parser`] what runs. [`nested`] handles
//! the parts that all formats share: parsers of fields (`then`), times in fields (`timestamp`), and
//! records of lines that match in part (`partial`).

mod combined;
mod cri;
mod csv;
mod databases;
mod docker_json;
mod grok;
mod grok_patterns;
mod java;
mod json;
mod klog;
mod logfmt;
mod nested;
mod regex;
mod scan;
mod server_error;
mod syslog;
mod time;
mod types;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use trunkline_connector::json::write_string;
use trunkline_connector::{Reason, Schema};

pub(crate) use combined::CombinedParser;
pub use combined::Variant as CombinedVariant;
pub(crate) use cri::container_message;
pub use csv::CsvOptions;
pub(crate) use docker_json::docker_message;
pub use logfmt::PairOptions;
pub use nested::{Parser, ParserSpec};
pub(crate) use nested::{TimeField, TimeOptions};
pub(crate) use regex::{PatternError, RegexParser};
pub(crate) use time::{TimeFormat, Zone};
pub(crate) use types::{FieldType, FieldTypes};

use time::Clock;

/// A format of lines.
#[derive(Debug, Clone)]
pub enum ParserKind {
    /// `{"message": ".."}`.
    None,
    /// The line is a JSON object.
    Json,
    /// Named groups of a pattern.
    Regex(Box<RegexParser>),
    /// Combined log format.
    Combined(CombinedVariant),
    /// Pairs of keys and values.
    Pairs(PairOptions),
    /// Fields between separators.
    Csv(CsvOptions),
    /// A format without options, by its index in [`FIXED`].
    Fixed(usize),
}

/// A format with fixed fields and without options.
pub(crate) struct Fixed {
    name: &'static str,
    schema: fn() -> Option<Arc<Schema>>,
    parser: fn(Clock) -> Box<dyn LineParser>,
}

/// The formats with fixed fields, except the access logs.
const FIXED: [Fixed; 10] = [
    Fixed { name: "syslog", schema: syslog::schema, parser: |clock| Box::new(syslog::SyslogParser { clock }) },
    Fixed { name: "cri", schema: cri::schema, parser: |_| Box::<cri::CriParser>::default() },
    Fixed { name: "docker_json", schema: docker_json::schema, parser: |_| Box::<docker_json::DockerParser>::default() },
    Fixed { name: "klog", schema: klog::schema, parser: |clock| Box::new(klog::KlogParser { clock }) },
    Fixed { name: "java", schema: java::schema, parser: |clock| Box::new(java::JavaParser { clock }) },
    Fixed {
        name: "nginx_error",
        schema: server_error::nginx_schema,
        parser: |clock| Box::new(server_error::NginxErrorParser { clock }),
    },
    Fixed {
        name: "apache_error",
        schema: server_error::apache_schema,
        parser: |clock| Box::new(server_error::ApacheErrorParser { clock }),
    },
    Fixed {
        name: "postgres",
        schema: databases::postgres_schema,
        parser: |clock| Box::new(databases::PostgresParser { clock }),
    },
    Fixed {
        name: "mysql_slow",
        schema: databases::mysql_schema,
        parser: |clock| Box::new(databases::MysqlSlowParser { clock }),
    },
    Fixed { name: "none", schema: || None, parser: |_| Box::new(NoParser) },
];

/// Result of parsing a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// A value was written; with the time in the line, in milliseconds since the Unix epoch.
    Record(Option<i64>),
    /// A line without a record, such as a blank one or a header: it is counted as dropped.
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

/// What a parser can learn from the file of the lines that follow.
#[derive(Debug, Clone, Copy)]
pub struct FileStart<'a> {
    /// The beginning of the file, if it is known.
    pub first: &'a str,
    /// When the file was last modified, in milliseconds since the Unix epoch.
    pub modified: i64,
}

/// A running parser of one format; it keeps small caches between lines.
pub(crate) trait LineParser: Send {
    /// The code of a rejection.
    fn code(&self) -> &'static str;

    /// The lines that follow are of this file.
    fn begin_file(&mut self, start: &FileStart<'_>) {
        let _ = start;
    }

    /// Passes the first line of a file. `true` if it is no record.
    fn first_line(&mut self, line: &str) -> Result<bool, Expected> {
        let _ = line;
        Ok(false)
    }

    /// Appends the JSON of a line to `out`. After an error `out` may hold some members, each of
    /// them complete.
    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected>;
}

/// `parser = "none"`.
struct NoParser;

impl LineParser for NoParser {
    fn code(&self) -> &'static str {
        "parse.none"
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        out.extend_from_slice(b"{\"message\":");
        write_string(out, line);
        out.push(b'}');
        Ok(Event::Record(None))
    }
}

impl ParserKind {
    /// The parsers that need no pattern, by their names in pipeline files.
    pub fn named() -> Vec<(&'static str, Self)> {
        let fixed = |name: &str| Self::Fixed(FIXED.iter().position(|fixed| fixed.name == name).unwrap_or_default());
        vec![
            ("none", Self::None),
            ("json", Self::Json),
            ("logfmt", Self::Pairs(PairOptions::logfmt())),
            ("key_value", Self::Pairs(PairOptions::key_value())),
            ("csv", Self::Csv(CsvOptions::default())),
            ("syslog", fixed("syslog")),
            ("cri", fixed("cri")),
            ("docker_json", fixed("docker_json")),
            ("klog", fixed("klog")),
            ("java", fixed("java")),
            ("nginx_error", fixed("nginx_error")),
            ("apache_error", fixed("apache_error")),
            ("postgres", fixed("postgres")),
            ("mysql_slow", fixed("mysql_slow")),
            ("combined", Self::Combined(CombinedVariant::Combined)),
            ("common", Self::Combined(CombinedVariant::Common)),
            ("vhost_combined", Self::Combined(CombinedVariant::VhostCombined)),
            ("nginx_main", Self::Combined(CombinedVariant::NginxMain)),
        ]
    }

    /// The parser `regex` with a pattern; or why the pattern cannot be used.
    pub fn regex(pattern: &str) -> Result<Self, String> {
        let parser = RegexParser::new(pattern, &FieldTypes::new()).map_err(|error| error.message)?;
        Ok(Self::Regex(Box::new(parser)))
    }

    /// The parser `grok` with a pattern; or why the pattern cannot be used.
    pub fn grok(pattern: &str) -> Result<Self, String> {
        Self::grok_with(pattern, &BTreeMap::new(), &FieldTypes::new()).map_err(|error| error.message)
    }

    pub(crate) fn grok_with(
        pattern: &str,
        custom: &BTreeMap<String, String>,
        types: &FieldTypes,
    ) -> Result<Self, PatternError> {
        Ok(Self::Regex(Box::new(grok::compile(pattern, custom, types)?)))
    }

    /// The schema of the records, if it is known before the first line.
    pub fn schema(&self) -> Option<Arc<Schema>> {
        match self {
            Self::None | Self::Json | Self::Pairs(_) => None,
            Self::Regex(parser) => parser.schema(),
            Self::Csv(options) => options.schema(),
            Self::Combined(variant) => combined::schema(*variant),
            Self::Fixed(place) => FIXED.get(*place).and_then(|fixed| (fixed.schema)()),
        }
    }

    /// The name of a format with fixed fields; empty for the others.
    pub(crate) fn fixed_name(&self) -> &'static str {
        match self {
            Self::Fixed(place) => FIXED.get(*place).map_or("", |fixed| fixed.name),
            _ => "",
        }
    }

    fn line_parser(&self, clock: Clock) -> Box<dyn LineParser> {
        match self {
            Self::None => Box::new(NoParser),
            Self::Json => Box::new(json::JsonParser),
            Self::Regex(parser) => parser.clone(),
            Self::Pairs(options) => Box::new(logfmt::LogfmtParser::new(options)),
            Self::Csv(options) => Box::new(csv::CsvParser::new(options)),
            Self::Combined(variant) => Box::new(CombinedParser::new(*variant)),
            Self::Fixed(place) => match FIXED.get(*place) {
                Some(fixed) => (fixed.parser)(clock),
                None => Box::new(NoParser),
            },
        }
    }

    /// Creates the parser, without further options.
    pub fn parser(&self) -> Parser {
        ParserSpec::new(self.clone()).parser()
    }
}

fn schema_of(fields: Vec<Field>) -> Option<Arc<Schema>> {
    Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
}

fn text(name: &str) -> Field {
    Field::new(name, DataType::Utf8, true)
}

/// The column of the time. The zone is `+00:00` instead of `UTC`: readers understand an offset
/// without a time zone database.
fn timestamp(unit: TimeUnit) -> Field {
    Field::new("timestamp", DataType::Timestamp(unit, Some("+00:00".into())), true)
}

/// The reason of a rejection.
fn reason(code: &'static str, line: &str, expected: &Expected) -> Reason {
    Reason::new(code, describe(line, expected))
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
mod fuzz;
#[cfg(test)]
mod tests;
