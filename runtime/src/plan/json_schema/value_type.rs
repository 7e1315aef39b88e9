//! The schema of an option's type, from the words of its declaration: `array of strings`,
//! "`zstd`, `snappy` or `none`", `string or table`.

use serde_json::{Value, json};

use super::REFERENCE;

const DURATION: &str = r"^\s*([0-9][0-9._]*\s*(ms|us|s|m|h|d)\s*)+$";
const SIZE: &str = r"^\s*[0-9][0-9._]*\s*(KiB|MiB|GiB|TiB|kB|KB|MB|GB|TB|B)?\s*$";

/// Words for texts, in the singular. What a text must contain is checked by `trunkline validate`.
const TEXTS: [&str; 25] = [
    "string",
    "template",
    "path",
    "name",
    "topic",
    "CEL",
    "character",
    "format",
    "format of strftime",
    "offset",
    "port",
    "regular expression",
    "grok pattern",
    "pattern",
    "glob",
    "WHATWG label",
    "time zone",
    "input",
    "filter",
    "address",
    "addresses",
    "aggregate",
    "type",
    "url",
    "one of [Parsers](#parsers)",
];

/// The schema of a type; `None` if a word is not known.
pub(super) fn schema(value_type: &str) -> Option<Value> {
    let value_type = value_type.trim();
    for (prefix, keyword, kind) in [
        ("array of ", "items", "array"),
        ("arrays of ", "items", "array"),
        ("list of ", "items", "array"),
        ("table of ", "additionalProperties", "object"),
    ] {
        if let Some(rest) = value_type.strip_prefix(prefix) {
            return Some(json!({ "type": kind, keyword: schema(rest)? }));
        }
    }
    let (mut choices, mut forms) = (Vec::new(), Vec::new());
    for alternative in alternatives(value_type) {
        match alternative.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            Some(text) if text.starts_with('{') => forms.push(json!({ "type": "object" })),
            Some("true" | "false") => forms.push(json!({ "type": "boolean" })),
            Some(text) => choices.push(text),
            None if alternative == value_type => forms.push(word(alternative)?),
            None => forms.push(schema(alternative)?),
        }
    }
    if !choices.is_empty() {
        forms.insert(0, one_of(&choices));
    }
    forms.dedup();
    Some(if forms.len() == 1 { forms.remove(0) } else { json!({ "anyOf": forms }) })
}

/// One of some texts, or a reference. Editors suggest the texts from `anyOf`, and show the error of
/// `else`, which lists them.
pub(super) fn one_of(choices: &[&str]) -> Value {
    json!({
        "type": "string",
        "anyOf": [{ "enum": choices }, true],
        "if": { "pattern": REFERENCE },
        "else": { "enum": choices },
    })
}

/// The parts between commas and `or`, except inside of backticks.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut index) = (Vec::new(), 0, false, 0);
    while index < text.len() {
        let rest = &text[index..];
        quoted ^= rest.starts_with('`');
        let separator = [", or ", ", ", " or "].into_iter().find(|it| !quoted && rest.starts_with(it));
        match separator {
            Some(separator) => {
                parts.push(&text[start..index]);
                index += separator.len();
                start = index;
            }
            None => index += rest.chars().next().map_or(1, char::len_utf8),
        }
    }
    parts.push(&text[start..]);
    parts
}

fn word(word: &str) -> Option<Value> {
    let word = word.strip_prefix("a ").unwrap_or(word);
    let singular = word.strip_suffix('s').unwrap_or(word);
    if let Some((low, high)) = word.strip_prefix("integer from ").and_then(|range| range.split_once(" to ")) {
        let (low, high): (u64, u64) = (low.parse().ok()?, high.parse().ok()?);
        return Some(json!({ "type": "integer", "minimum": low, "maximum": high }));
    }
    if TEXTS.iter().any(|text| *text == word || *text == singular) || word == "formats of strftime" {
        return Some(json!({ "type": "string" }));
    }
    Some(match singular {
        "duration" => json!({ "type": "string", "pattern": format!("{DURATION}|{REFERENCE}") }),
        // The pattern concerns strings only.
        "size" => json!({ "type": ["string", "integer"], "pattern": format!("{SIZE}|{REFERENCE}"), "minimum": 0 }),
        "integer" => json!({ "type": "integer" }),
        "number" => json!({ "type": "number" }),
        "boolean" => json!({ "type": "boolean" }),
        "table" => json!({ "type": "object" }),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_schemas() {
        let choices = |names: &[&str]| one_of(names);
        let string = json!({ "type": "string" });
        let cases = [
            ("string", string.clone()),
            ("`zstd`, `snappy` or `none`", choices(&["zstd", "snappy", "none"])),
            ("`aws`", choices(&["aws"])),
            ("`offset`, `none` or template", json!({ "anyOf": [choices(&["offset", "none"]), string] })),
            ("`java`, `none`, or a table", json!({ "anyOf": [choices(&["java", "none"]), { "type": "object" }] })),
            ("string or array of strings", json!({ "anyOf": [string, { "type": "array", "items": string }] })),
            ("array of `{ port, when }`", json!({ "type": "array", "items": { "type": "object" } })),
            (
                "table of arrays of strings",
                json!({
                    "type": "object", "additionalProperties": { "type": "array", "items": string },
                }),
            ),
            (
                "list of `rfc3339`, `unix` or formats of strftime",
                json!({
                    "type": "array", "items": { "anyOf": [choices(&["rfc3339", "unix"]), string] },
                }),
            ),
            ("integer from 1 to 9", json!({ "type": "integer", "minimum": 1, "maximum": 9 })),
            ("regular expression, or grok pattern", string.clone()),
        ];
        for (value_type, expected) in cases {
            assert_eq!(schema(value_type), Some(expected), "{value_type}");
        }
        assert_eq!(schema("string or parsec"), None);
    }
}
