//! Parses TOML text into a tree of values with their places, and reports every syntax error.
//!
//! The parser recovers. After an unquoted string or a missing comma, the tree lacks only that
//! value. After a key without a value or an unclosed header, the tree may lack more that the file
//! contains. [`Parsed::complete`] distinguishes the two, so that "missing" is only reported where
//! it is true.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};
use trunkline_connector::config::{Key, Node, Problem, Table, Text, Value};

/// A parsed file.
pub(super) struct Parsed {
    /// The values that could be read. Strings are not resolved yet.
    pub(super) table: Table,
    /// Syntax errors, unordered.
    pub(super) problems: Vec<Problem>,
    /// Values that contain a syntax error. Other problems there are consequences.
    pub(super) malformed: Vec<Range<usize>>,
    /// Apart from `malformed`, the table holds the whole file.
    pub(super) complete: bool,
}

/// Parses TOML text.
pub(super) fn parse(source: &str) -> Parsed {
    let (root, errors) = DeTable::parse_recoverable(source);
    let mut parsed = Parsed { table: Table::default(), problems: Vec::new(), malformed: Vec::new(), complete: true };
    parsed.table = table(root.get_ref(), &mut parsed.problems);
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        let mut problem = problem(source, error.message(), span.clone());
        match malformed_value(&parsed.table, &span) {
            // A string that runs over lines, or an unclosed array, contains the lines that follow.
            Some(value) if !error.message().starts_with("unclosed") && !is_multiline_string(source, &value) => {
                parsed.malformed.push(value);
            }
            // The second value is lost, but the error shows its place.
            _ if error.message() == "duplicate key" => {}
            _ => {
                parsed.complete = false;
                problem.help.get_or_insert_with(|| "the rest of the file is checked once this is correct".to_owned());
            }
        }
        parsed.problems.push(problem);
    }
    parsed
}

fn is_multiline_string(source: &str, span: &Range<usize>) -> bool {
    source.get(span.clone()).is_some_and(|text| text.starts_with(['"', '\'']) && text.contains('\n'))
}

/// The value of the innermost key that contains an error.
fn malformed_value(table: &Table, error: &Range<usize>) -> Option<Range<usize>> {
    table.entries.iter().find_map(|(key, node)| match &node.value {
        // The span of a table with a header is that header; its values are elsewhere.
        Value::Table(inner) => malformed_value(inner, error),
        _ => {
            let inside = key.span.end <= error.start && node.span.start <= error.start && error.end <= node.span.end;
            inside.then(|| node.span.clone())
        }
    })
}

fn problem(source: &str, message: &str, span: Range<usize>) -> Problem {
    let (what, expected) = match message.split_once(", expected ") {
        Some((what, expected)) => (what, format!("expected {expected}")),
        None => (message, "here".to_owned()),
    };
    let syntax = |message: &str, expected: String, help: Option<String>| Problem {
        code: "config.syntax",
        message: message.to_owned(),
        span: span.clone(),
        expected,
        help,
    };
    let written = source.get(span.clone()).unwrap_or_default();
    match what {
        "duplicate key" => Problem {
            code: "config.duplicate_key",
            message: format!("`{written}` occurs twice"),
            span,
            expected: "expected each name once".to_owned(),
            help: Some("remove one of the two, or give it another name".to_owned()),
        },
        "string values must be quoted" if written.is_empty() => {
            syntax("the value is missing", "expected a value here".to_owned(), None)
        }
        "string values must be quoted" => {
            let help = format!("a string is written \"{written}\"");
            syntax(&format!("`{written}` is not a value"), "expected quotes around a string".to_owned(), Some(help))
        }
        "invalid basic string" | "invalid literal string" if written.is_empty() => {
            syntax("the string is not closed", expected, None)
        }
        _ => syntax(what, expected, None),
    }
}

fn table(entries: &DeTable<'_>, problems: &mut Vec<Problem>) -> Table {
    let mut read: Vec<(Key, Node)> = entries
        .iter()
        .map(|(key, value)| (Key { name: key.get_ref().to_string(), span: key.span() }, node(value, problems)))
        .collect();
    // The parser sorts by name; problems follow the order of the file.
    read.sort_by_key(|(key, _)| key.span.start);
    Table { entries: read }
}

fn node(value: &Spanned<DeValue<'_>>, problems: &mut Vec<Problem>) -> Node {
    let span = value.span();
    let value = match value.get_ref() {
        DeValue::String(text) => Value::String(Text { raw: text.to_string(), resolved: text.to_string() }),
        DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
            Ok(number) => Value::Integer(number),
            Err(_) => {
                problems.push(Problem {
                    code: "config.syntax",
                    message: "the number is too large".to_owned(),
                    span: span.clone(),
                    expected: format!("expected a number from {} to {}", i64::MIN, i64::MAX),
                    help: None,
                });
                Value::Integer(0)
            }
        },
        DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(time) => Value::Datetime(time.to_string()),
        DeValue::Array(items) => Value::Array(items.iter().map(|item| node(item, problems)).collect()),
        DeValue::Table(entries) => Value::Table(table(entries, problems)),
    };
    Node { value, span }
}
