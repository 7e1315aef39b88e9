//! Reads the options of parsing: `parser` with the options of its format, `timestamp`, `then` and
//! `multiline`.

use std::collections::BTreeMap;
use std::time::Duration;

use trunkline_connector::config::{Mismatch, Node, Section, Value, nearest};

use crate::multiline::{Container, Multiline, Rule};
use crate::parser::{
    CsvOptions, FieldType, FieldTypes, PairOptions, ParserKind, ParserSpec, PatternError, RegexParser, TimeField,
    TimeFormat, TimeOptions, Zone,
};

/// How long an event waits for more lines.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Longest event.
const MAX_LINES: usize = 1000;

/// The parsers that need a pattern.
const WITH_PATTERN: [&str; 2] = ["regex", "grok"];

/// The options that only some parsers have.
const LIMITED: [(&str, &[&str]); 7] = [
    ("pattern", &WITH_PATTERN),
    ("patterns", &["grok"]),
    ("columns", &["csv"]),
    ("separator", &["csv"]),
    ("pair_separator", &["key_value"]),
    ("key_separator", &["key_value"]),
    ("types", &["regex", "grok", "csv", "logfmt", "key_value"]),
];

/// Reads the options of a source, or of a field in `then`. Problems are reported.
pub(crate) fn parser_spec(section: &Section<'_>, default: &'static str) -> ParserSpec {
    let name = parser_name(section, default);
    for (key, parsers) in LIMITED {
        // Each key counts as known.
        if let Some(node) = section.node(key)
            && !parsers.contains(&name)
        {
            let shown: Vec<String> = parsers.iter().map(|parser| format!("\"{parser}\"")).collect();
            let mismatch = Mismatch::new(format!("is set, but `parser` is not {}", shown.join(" or ")));
            let expected = format!("`parser = {}`, or no `{key}`", shown.join("` or `parser = "));
            section.mismatch(key, node, mismatch, expected);
        }
    }
    let types = types(section);
    let kind = match name {
        "regex" | "grok" => pattern_parser(section, name == "grok", &types).unwrap_or(ParserKind::None),
        "csv" => ParserKind::Csv(csv(section, types)),
        "logfmt" => ParserKind::Pairs(PairOptions { types, ..PairOptions::logfmt() }),
        "key_value" => ParserKind::Pairs(pairs(section, types)),
        _ => {
            ParserKind::named().into_iter().find(|(known, _)| *known == name).map_or(ParserKind::None, |(_, kind)| kind)
        }
    };
    ParserSpec { time: time_options(section, &kind), ..ParserSpec::new(kind) }
}

/// Reads `then`: the parsers of fields.
pub(crate) fn then(section: &Section<'_>, outer: &ParserKind) -> Vec<(String, ParserSpec)> {
    const EXPECTED: &str = "a list of tables such as `[{ field = \"message\", parser = \"json\" }]`";
    let Some(node) = section.node("then") else { return Vec::new() };
    let Value::Array(items) = &node.value else {
        let mismatch = Mismatch::new(format!("is {}", node.value.kind()));
        section.mismatch("then", node, mismatch, EXPECTED.to_owned());
        return Vec::new();
    };
    let mut fields = Vec::new();
    for item in items {
        let Value::Table(table) = &item.value else {
            let mismatch = Mismatch::new(format!("has {}", item.value.kind()));
            section.mismatch("then", item, mismatch, EXPECTED.to_owned());
            continue;
        };
        let nested = section.nested("then", table);
        let field: Option<String> = nested.required("field");
        if nested.table.get("parser").is_none() {
            nested.missing("parser", "the name of a parser such as `json`");
        }
        let spec = parser_spec(&nested, "none");
        if let Some(field) = field {
            check_field(&nested, "field", &field, outer);
            fields.push((field, spec));
        }
        nested.finish();
    }
    fields
}

/// Reads `multiline`. Without it, the parser decides.
pub(crate) fn multiline(section: &Section<'_>, kind: &ParserKind) -> Option<Multiline> {
    const EXPECTED: &str =
        "`java`, `python`, `go`, `indented`, `csv`, `none`, or a table with `start` or `continuation`";
    let parser = kind.fixed_name();
    let container = match parser {
        "cri" => Container::Cri,
        "docker_json" => Container::Docker,
        _ => Container::None,
    };
    let with_rule = |rule| Multiline { rule, negate: false, container, timeout: TIMEOUT, max_lines: MAX_LINES };
    let Some(node) = section.node("multiline") else { return Rule::of_parser(parser).map(with_rule) };
    match &node.value {
        Value::String(text) if text.resolved == "none" => None,
        Value::String(text) if text.resolved == "csv" => match kind {
            ParserKind::Csv(options) => Some(with_rule(Rule::Quotes(options.separator))),
            _ => {
                let mismatch = Mismatch::new("is `csv`, which joins the lines of fields in quotes");
                section.mismatch("multiline", node, mismatch, "`csv` with `parser = \"csv\"`".to_owned());
                None
            }
        },
        Value::String(text) => {
            let rule = Rule::preset(&text.resolved);
            if rule.is_none() {
                let help = nearest(&text.raw, &["java", "python", "go", "indented", "csv", "none"]);
                let help = help.map(|name| format!("did you mean `{name}`?"));
                let mismatch = Mismatch { message: format!("has no preset `{}`", text.raw), span: None, help };
                section.mismatch("multiline", node, mismatch, EXPECTED.to_owned());
            }
            rule.map(with_rule)
        }
        Value::Table(table) => {
            let nested = section.nested("multiline", table);
            let start = nested.optional::<String>("start");
            let continuation = nested.optional::<String>("continuation");
            let negate = nested.or("negate", false);
            let timeout = nested.or("timeout", TIMEOUT);
            let max_lines: u64 = nested.or("max_lines", MAX_LINES as u64);
            if let (0, Some(node)) = (max_lines, table.get("max_lines")) {
                nested.mismatch("max_lines", node, Mismatch::new("is 0"), "a whole number from 1".to_owned());
            }
            let rule = match (start, continuation) {
                (Some(start), None) => event_pattern(&nested, "start", &start).map(Rule::Start),
                (None, Some(pattern)) => event_pattern(&nested, "continuation", &pattern).map(Rule::Continuation),
                _ => {
                    let mismatch = Mismatch::new("has not exactly one of `start` and `continuation`");
                    section.mismatch("multiline", node, mismatch, EXPECTED.to_owned());
                    None
                }
            };
            nested.finish();
            rule.map(|rule| Multiline { negate, timeout, max_lines: max_lines.max(1) as usize, ..with_rule(rule) })
        }
        other => {
            section.mismatch("multiline", node, Mismatch::new(format!("is {}", other.kind())), EXPECTED.to_owned());
            None
        }
    }
}

fn event_pattern(section: &Section<'_>, key: &str, pattern: &str) -> Option<regex::bytes::Regex> {
    let expected = "a regular expression such as `^[0-9]{4}-`";
    // The two kinds of expressions accept the same patterns, and only one reports positions.
    let valid = RegexParser::check(pattern);
    if let (Err(error), Some(node)) = (&valid, section.table.get(key)) {
        report_pattern(section, key, node, pattern, error.clone(), expected);
    }
    valid.ok().and_then(|()| regex::bytes::Regex::new(pattern).ok())
}

fn parser_name(section: &Section<'_>, default: &'static str) -> &'static str {
    let named = ParserKind::named();
    let choices: Vec<(&'static str, &'static str)> =
        named.iter().map(|(name, _)| *name).chain(WITH_PATTERN).map(|name| (name, name)).collect();
    match section.table.get("parser") {
        Some(node) if is_server_name(node) => {
            // The key counts as known.
            let _ = section.node("parser");
            let mismatch = Mismatch {
                message: "has no choice of this name".to_owned(),
                span: None,
                help: Some(
                    "nginx and Apache write `combined` by default; `nginx_main` is nginx's `log_format main`, and \
                     `vhost_combined` is Apache's format with the virtual host. Error logs are `nginx_error` and \
                     `apache_error`"
                        .to_owned(),
                ),
            };
            let names: Vec<String> = choices.iter().map(|(name, _)| format!("`{name}`")).collect();
            section.mismatch("parser", node, mismatch, format!("one of {}", names.join(", ")));
            default
        }
        _ => section.choice("parser", &choices, default),
    }
}

/// Names of servers and formats that people write for `combined`.
fn is_server_name(node: &Node) -> bool {
    const NAMES: [&str; 7] = ["nginx", "apache", "apache2", "httpd", "access", "access_log", "clf"];
    matches!(&node.value, Value::String(text) if NAMES.contains(&text.raw.to_lowercase().as_str()))
}

fn types(section: &Section<'_>) -> FieldTypes {
    let written: BTreeMap<String, String> = section.optional("types").unwrap_or_default();
    let mut types = FieldTypes::new();
    for (field, name) in written {
        if let Some(found) = FieldType::named(&name) {
            types.insert(field, found);
        } else if let Some(node) = section.table.get("types") {
            let names: Vec<&str> = FieldType::NAMES.iter().map(|(name, _)| *name).collect();
            let help = nearest(&name, &names).map(|name| format!("did you mean `{name}`?"));
            let mismatch = Mismatch { message: format!("has no type `{name}` (of `{field}`)"), span: None, help };
            section.mismatch("types", node, mismatch, format!("one of `{}` for each field", names.join("`, `")));
        }
    }
    types
}

fn pattern_parser(section: &Section<'_>, is_grok: bool, types: &FieldTypes) -> Option<ParserKind> {
    let expected = if is_grok {
        "a pattern with fields such as `%{IP:client} %{GREEDYDATA:message}`"
    } else {
        "a regular expression with named groups such as `(?P<level>[A-Z]+) (?P<message>.*)`"
    };
    let custom: BTreeMap<String, String> =
        if is_grok { section.optional("patterns").unwrap_or_default() } else { BTreeMap::new() };
    let Some(node) = section.table.get("pattern") else {
        let parser = if is_grok { "grok" } else { "regex" };
        section.missing("pattern", &format!("{expected}, for `parser = \"{parser}\"`"));
        return None;
    };
    let pattern: String = section.optional("pattern")?;
    let parser = if is_grok {
        ParserKind::grok_with(&pattern, &custom, types)
    } else {
        RegexParser::new(&pattern, types).map(|parser| ParserKind::Regex(Box::new(parser)))
    };
    parser.map_err(|error| report_pattern(section, "pattern", node, &pattern, error, expected)).ok()
}

/// Reports a pattern that cannot be used, with the place in it.
pub(crate) fn report_pattern(
    section: &Section<'_>,
    key: &str,
    node: &Node,
    pattern: &str,
    error: PatternError,
    expected: &str,
) {
    let mismatch = Mismatch {
        message: format!("is not usable: {}", error.message),
        span: error.at.and_then(|at| span_in_string(node, pattern, at)),
        help: error.help,
    };
    section.mismatch(key, node, mismatch, expected.to_owned());
}

/// The span in the file of byte `at` of a string, if the string is written without escapes.
fn span_in_string(node: &Node, text: &str, at: usize) -> Option<std::ops::Range<usize>> {
    let quotes = node.span.len().checked_sub(text.len())?;
    let opening = match quotes {
        2 | 6 => quotes / 2,
        _ => return None,
    };
    let start = node.span.start + opening + at;
    Some(start..(start + 1).min(node.span.end))
}

fn csv(section: &Section<'_>, types: FieldTypes) -> CsvOptions {
    let columns: Option<Vec<String>> = section.optional("columns");
    if let (Some(columns), Some(node)) = (&columns, section.table.get("columns")) {
        let repeated = columns.iter().enumerate().find(|(index, name)| columns[..*index].contains(name));
        if columns.is_empty() || columns.iter().any(String::is_empty) || repeated.is_some() {
            let mismatch = match repeated {
                Some((_, name)) => Mismatch::new(format!("has `{name}` twice")),
                None => Mismatch::new("has no name, or an empty one"),
            };
            section.mismatch("columns", node, mismatch, "different names, one for each column".to_owned());
        }
    }
    CsvOptions { columns, separator: one_byte(section, "separator", b','), types }
}

fn pairs(section: &Section<'_>, types: FieldTypes) -> PairOptions {
    PairOptions {
        pair_separator: one_byte(section, "pair_separator", b' '),
        key_separator: one_byte(section, "key_separator", b'='),
        types,
        ..PairOptions::key_value()
    }
}

/// A separator of one ASCII character.
fn one_byte(section: &Section<'_>, key: &'static str, default: u8) -> u8 {
    let Some(text) = section.optional::<String>(key) else { return default };
    match text.as_bytes() {
        [byte] if byte.is_ascii() && !matches!(byte, b'"' | b'\n' | b'\r') => *byte,
        _ => {
            if let Some(node) = section.table.get(key) {
                let mismatch = Mismatch::new(format!("is {text:?}"));
                section.mismatch(key, node, mismatch, "one ASCII character such as `\";\"`, no quote".to_owned());
            }
            default
        }
    }
}

fn time_options(section: &Section<'_>, kind: &ParserKind) -> TimeOptions {
    let Some(section) = section.section("timestamp") else { return TimeOptions::default() };
    let field: Option<String> = section.optional("field");
    let written: Option<Vec<String>> = section.optional("formats");
    let mut formats = Vec::new();
    for format in written.iter().flatten() {
        match TimeFormat::new(format) {
            Ok(format) => formats.push(format),
            Err(why) => {
                if let Some(node) = section.table.get("formats") {
                    let expected = "`rfc3339`, `unix`, `unix_ms`, `unix_us`, `unix_ns`, or a format of strftime such as \
                                    `%Y-%m-%d %H:%M:%S`";
                    let mismatch = Mismatch::new(format!("has the format `{format}`, which cannot be used: {why}"));
                    section.mismatch("formats", node, mismatch, expected.to_owned());
                }
            }
        }
    }
    if let (None, Some(node)) = (&field, section.table.get("formats")) {
        section.mismatch("formats", node, Mismatch::new("is set without `field`"), "`field`, too".to_owned());
    }
    if formats.is_empty() {
        formats.push(TimeFormat::Rfc3339);
    }
    if let Some(field) = &field {
        check_field(&section, "field", field, kind);
    }
    let zone = section.optional::<String>("zone").and_then(|name| {
        let zone = Zone::named(&name);
        if let (None, Some(node)) = (&zone, section.table.get("zone")) {
            let expected = "a name such as `Europe/Berlin`, or an offset such as `+02:00`";
            section.mismatch("zone", node, Mismatch::new("is not a known time zone"), expected.to_owned());
        }
        zone
    });
    let default_year = section.optional::<u64>("default_year").and_then(|year| {
        if (1970..=9999).contains(&year) {
            return i64::try_from(year).ok();
        }
        if let Some(node) = section.table.get("default_year") {
            section.mismatch("default_year", node, Mismatch::new(format!("is {year}")), "a year from 1970".to_owned());
        }
        None
    });
    section.finish();
    TimeOptions { field: field.map(|name| TimeField { name, formats }), zone, default_year }
}

/// Reports a field that the records do not have.
fn check_field(section: &Section<'_>, key: &str, field: &str, kind: &ParserKind) {
    let Some(known) = ParserSpec::new(kind.clone()).fields() else { return };
    if known.iter().any(|name| name == field) {
        return;
    }
    let Some(node) = section.table.get(key) else { return };
    let known: Vec<&str> = known.iter().map(String::as_str).collect();
    let help = nearest(field, &known).map(|name| format!("did you mean `{name}`?"));
    let mismatch = Mismatch { message: format!("is `{field}`, which the parser does not produce"), span: None, help };
    section.mismatch(key, node, mismatch, format!("one of its fields: {}", known.join(", ")));
}
