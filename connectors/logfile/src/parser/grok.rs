//! `parser = "grok"`: a regular expression with references to named patterns, `%{IP:client}
//! %{NUMBER:bytes:int}`. The standard patterns are built in, and the option `patterns` adds others.
//!
//! The whole pattern is compiled once into an expression of the `regex` library, which matches in
//! time linear in the line. It has no look-around and no back-references. Where the original
//! standard patterns use look-around (the borders of numbers and addresses), those here use word
//! borders or nothing, and atomic groups are plain groups. A custom pattern with look-around is
//! refused with its position; atomic groups and possessive quantifiers in it become plain ones,
//! because without backtracking they change only what a match may give back.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use regex::{Regex, RegexBuilder};

use super::grok_patterns::STANDARD;
use super::regex::{PatternError, RegexField, RegexParser, pattern_error};
use super::types::{FieldType, FieldTypes};

/// Deepest chain of references. A longer one is probably a cycle.
const MAX_DEPTH: usize = 40;
/// Longest expanded pattern.
const MAX_EXPANDED: usize = 1 << 20;
const COMPILED_BYTES: usize = 64 << 20;
/// Names of the groups that references with a field become.
const GROUP: &str = "grok__";

struct Expansion<'p> {
    custom: &'p BTreeMap<String, String>,
    text: String,
    /// The field and the type of each generated group.
    fields: Vec<(String, Option<FieldType>)>,
}

/// Compiles a pattern.
pub(crate) fn compile(
    pattern: &str,
    custom: &BTreeMap<String, String>,
    types: &FieldTypes,
) -> Result<RegexParser, PatternError> {
    let mut expansion = Expansion { custom, text: String::new(), fields: Vec::new() };
    expansion.expand(pattern, 0)?;
    if expansion.text.len() > MAX_EXPANDED {
        return Err(problem(format!("it has more than {MAX_EXPANDED} bytes after its references are replaced"), None));
    }
    let text = plain_groups(&expansion.text);
    if let Some(at) = look_around(&text) {
        let shown: String = text[at..].chars().take(12).collect();
        return Err(PatternError {
            message: format!("it has look-around (`{shown}`), which matching in linear time excludes"),
            at: pattern.find(&text[at..at + 3]),
            help: Some("use `\\b`, or match the neighbouring text in a group".to_owned()),
        });
    }
    let regex = RegexBuilder::new(&text).size_limit(COMPILED_BYTES).build().map_err(|error| {
        let error = pattern_error(&text, &error);
        PatternError { at: error.at.filter(|_| text == pattern), ..error }
    })?;
    let fields = fields(&regex, &expansion.fields, types);
    if fields.is_empty() {
        return Err(PatternError {
            message: "it names no field, so records would be empty".to_owned(),
            at: None,
            help: Some("name the parts to keep: `%{IP:client}`".to_owned()),
        });
    }
    Ok(RegexParser::with_fields(regex, pattern, fields, "parse.grok"))
}

/// The fields of a compiled pattern. A field that several groups set is written once.
fn fields(regex: &Regex, named: &[(String, Option<FieldType>)], types: &FieldTypes) -> Vec<RegexField> {
    let mut fields: Vec<RegexField> = Vec::new();
    for (group, name) in regex.capture_names().enumerate() {
        let Some(name) = name else { continue };
        let generated = name.strip_prefix(GROUP).and_then(|number| number.parse::<usize>().ok());
        let (name, written_type) = match generated.and_then(|number| named.get(number)) {
            Some((name, field_type)) => (name.as_str(), *field_type),
            None => (name, None),
        };
        match fields.iter_mut().find(|field| field.name == name) {
            Some(field) => field.groups.push(group),
            None => {
                let field_type = types.get(name).copied().or(written_type).unwrap_or_default();
                fields.push(RegexField::new(name, group, field_type));
            }
        }
    }
    fields
}

fn problem(message: String, at: Option<usize>) -> PatternError {
    PatternError { message, at, help: None }
}

impl Expansion<'_> {
    fn expand(&mut self, pattern: &str, depth: usize) -> Result<(), PatternError> {
        if depth > MAX_DEPTH || self.text.len() > MAX_EXPANDED {
            return Err(problem(
                "its references are nested too deeply: does a pattern refer to itself?".to_owned(),
                None,
            ));
        }
        let mut rest = pattern;
        while let Some(start) = rest.find("%{") {
            let at = pattern.len() - rest.len() + start;
            self.text.push_str(&rest[..start]);
            let Some(end) = rest[start..].find('}') else {
                return Err(problem("it has `%{` without `}`".to_owned(), (depth == 0).then_some(at)));
            };
            self.reference(&rest[start + 2..start + end], depth)
                .map_err(|error| PatternError { at: if depth == 0 { error.at.or(Some(at)) } else { None }, ..error })?;
            rest = &rest[start + end + 1..];
        }
        self.text.push_str(rest);
        Ok(())
    }

    /// Replaces `NAME`, `NAME:field` or `NAME:field:type`.
    fn reference(&mut self, reference: &str, depth: usize) -> Result<(), PatternError> {
        let mut parts = reference.splitn(3, ':');
        let name = parts.next().unwrap_or_default();
        // Borders of words in ASCII: those of Unicode are slow in lines with other characters.
        let standard = STANDARD.iter().find(|(known, _)| *known == name);
        let standard = || standard.map(|(_, pattern)| pattern.replace(r"\b", r"(?-u:\b)"));
        let Some(pattern) = self.custom.get(name).cloned().or_else(standard) else {
            let known: Vec<&str> =
                STANDARD.iter().map(|(known, _)| *known).chain(self.custom.keys().map(String::as_str)).collect();
            let near = trunkline_connector::config::nearest(name, &known);
            let help = near.map_or_else(
                || "define it in `patterns`".to_owned(),
                |near| format!("did you mean `{near}`? Otherwise define it in `patterns`"),
            );
            return Err(PatternError { message: format!("there is no pattern `{name}`"), at: None, help: Some(help) });
        };
        let field = parts.next().filter(|field| !field.is_empty());
        let field_type = match parts.next() {
            None => None,
            Some(written) => Some(FieldType::named(written).ok_or_else(|| {
                problem(format!("the type `{written}` is unknown: expected `string`, `int`, `float` or `bool`"), None)
            })?),
        };
        match field {
            Some(field) => {
                // `[source][address]` is Logstash's form of `source.address`.
                let field = field.replace("][", ".").replace(['[', ']'], "");
                // A String takes all that is written.
                let _ = write!(self.text, "(?P<{GROUP}{}>", self.fields.len());
                self.fields.push((field, field_type));
            }
            None => self.text.push_str("(?:"),
        }
        self.expand(&pattern, depth + 1)?;
        self.text.push(')');
        Ok(())
    }
}

/// Makes atomic groups and possessive quantifiers plain ones.
fn plain_groups(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    let (mut in_class, mut after_quantifier) = (false, false);
    while let Some(character) = characters.next() {
        let mut is_quantifier = false;
        match character {
            '\\' => {
                plain.push('\\');
                plain.extend(characters.next());
            }
            '[' => {
                in_class = true;
                plain.push('[');
            }
            ']' => {
                in_class = false;
                plain.push(']');
            }
            '(' if !in_class && characters.peek() == Some(&'?') => {
                plain.push('(');
                plain.extend(characters.next());
                if characters.next_if_eq(&'>').is_some() {
                    plain.push(':');
                }
            }
            '+' if !in_class && after_quantifier => {}
            other => {
                is_quantifier = !in_class && matches!(other, '+' | '*' | '?' | '}');
                plain.push(other);
            }
        }
        after_quantifier = is_quantifier;
    }
    plain
}

/// Where look-around begins.
fn look_around(text: &str) -> Option<usize> {
    let mut escaped = false;
    for (at, character) in text.char_indices() {
        let rest = &text[at..];
        let found = ["(?=", "(?!", "(?<=", "(?<!"].iter().any(|start| rest.starts_with(start));
        if found && !escaped {
            return Some(at);
        }
        escaped = character == '\\' && !escaped;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::{Event, LineParser};
    use super::*;

    fn parse(pattern: &str, line: &str) -> Option<String> {
        let mut parser = compile(pattern, &BTreeMap::new(), &FieldTypes::new()).unwrap();
        let mut out = Vec::new();
        let event = parser.parse(line, &mut out).ok()?;
        assert_eq!(event, Event::Record(None));
        Some(String::from_utf8(out).unwrap())
    }

    #[test]
    fn every_standard_pattern_compiles() {
        for (name, _) in STANDARD {
            compile(&format!("%{{{name}:x}}"), &BTreeMap::new(), &FieldTypes::new())
                .unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let twice = STANDARD.iter().filter(|(other, _)| other == name).count();
            assert_eq!(twice, 1, "{name}");
        }
    }

    #[test]
    fn standard_patterns_match_what_their_names_say() {
        for (pattern, matching, other) in [
            ("^%{INT:x}$", "-12", "1.5"),
            ("^%{NUMBER:x}$", "-1.5", "1.5.6"),
            ("^%{BASE16NUM:x}$", "0xFF", "xyz"),
            ("^%{IP:x}$", "2001:db8::1", "300.1.1.1"),
            ("^%{IPV4:x}$", "192.0.2.255", "192.0.2.256"),
            ("^%{MAC:x}$", "00:1a:2B:3c:4d:5e", "00:1a"),
            ("^%{HOSTNAME:x}$", "www.example.com", "a b"),
            ("^%{EMAILADDRESS:x}$", "anna@example.com", "anna"),
            ("^%{UUID:x}$", "123e4567-e89b-12d3-a456-426614174000", "123e4567"),
            ("^%{TIMESTAMP_ISO8601:x}$", "2026-03-01T10:00:00.123+01:00", "2026-13-01T10:00:00"),
            ("^%{HTTPDATE:x}$", "17/May/2015:10:05:03 +0000", "17/05/2015"),
            ("^%{SYSLOGTIMESTAMP:x}$", "Mar  7 13:06:56", "13:06:56"),
            ("^%{LOGLEVEL:x}$", "WARNING", "LOUD"),
            ("^%{URI:x}$", "https://anna@example.com:8080/a/b?c=d", "example"),
            ("^%{PATH:x}$", "/var/log/a.log", "a.log"),
            ("^%{QUOTEDSTRING:x}$", r#""a \"b\"""#, "\"a"),
            ("^%{USERNAME:x}$", "anna-b", "a b"),
        ] {
            assert!(parse(pattern, matching).is_some(), "{pattern} on {matching}");
            assert_eq!(parse(pattern, other), None, "{pattern} on {other}");
        }
    }

    #[test]
    fn fields_have_the_written_types_and_occur_once() {
        let line = "192.0.2.1 GET 15 0.5 true";
        let pattern = "%{IP:[source][address]} (?<verb>[A-Z]+) %{INT:bytes:int} %{NUMBER:took:float} %{WORD:ok:bool}";
        let expected = r#"{"source.address":"192.0.2.1","verb":"GET","bytes":15,"took":0.5,"ok":true}"#;
        assert_eq!(parse(pattern, line).unwrap(), expected);
        assert_eq!(parse("(?:a%{INT:n:int}|b%{INT:n:int})", "b7").unwrap(), r#"{"n":7}"#);
        let error = compile("%{WORD:n:int}", &BTreeMap::new(), &FieldTypes::new()).unwrap().parse("x", &mut Vec::new());
        assert_eq!(error.unwrap_err().at, 0);
    }

    #[test]
    fn custom_patterns_are_used_and_their_faults_are_reported() {
        let custom = |pattern: &str| BTreeMap::from([("SHOP".to_owned(), pattern.to_owned())]);
        let none = FieldTypes::new();
        let mut parser = compile("%{SHOP:id}", &custom("(?>[a-z]++)-%{INT}"), &none).unwrap();
        let mut out = Vec::new();
        parser.parse("ulm-12", &mut out).unwrap();
        assert_eq!(out, br#"{"id":"ulm-12"}"#);
        for (pattern, shop, message) in [
            ("%{SHOP:id}", "%{SHOP}", "refer to itself"),
            ("%{SHOP:id}", "a(?=b)", "look-around"),
            ("%{SHOP:id}", "(?<!a)b", "look-around"),
            ("%{SHPO:id}", "a", "no pattern `SHPO`"),
            ("%{SHOP}", "a", "names no field"),
            ("%{SHOP:id:date}", "a", "type `date`"),
            ("%{SHOP:id", "a", "without `}`"),
            ("%{SHOP:id}(", "a", "unclosed group"),
        ] {
            let error = compile(pattern, &custom(shop), &none).unwrap_err();
            assert!(error.message.contains(message), "{pattern}: {error:?}");
        }
        assert_eq!(compile("a %{NOPE:x}", &BTreeMap::new(), &none).unwrap_err().at, Some(2));
    }

    #[test]
    fn a_pattern_that_backtracks_elsewhere_stays_linear() {
        let mut parser = compile("^(?P<x>(a+)+)$", &BTreeMap::new(), &FieldTypes::new()).unwrap();
        let begun = std::time::Instant::now();
        assert!(parser.parse(&format!("{}!", "a".repeat(100_000)), &mut Vec::new()).is_err());
        assert!(begun.elapsed() < std::time::Duration::from_secs(10));
    }
}
