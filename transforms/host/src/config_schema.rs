//! The JSON Schema of a plugin's configuration, in the custom section `trunkline:config-schema` of
//! its file. `trunkline transform build` embeds it; the host checks configurations against it
//! before it starts the plugin.

use serde_json::{Map, Value};
use trunkline_connector::config::nearest;

use crate::plugin::StartError;

const SECTION: &str = "trunkline:config-schema";

/// Keywords that describe, and check nothing.
const ANNOTATIONS: [&str; 8] =
    ["$schema", "$id", "$comment", "title", "description", "default", "examples", "deprecated"];
const CHECKS: [&str; 14] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "items",
    "enum",
    "const",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minLength",
    "minItems",
    "maxItems",
];

/// Appends the schema to a plugin's file.
///
/// # Errors
/// The text is not a schema, or it has a keyword that the host does not check.
pub fn embed_config_schema(wasm: &[u8], schema: &str) -> Result<Vec<u8>, String> {
    parse(schema)?;
    let mut content = Vec::new();
    push_length(&mut content, SECTION.len());
    content.extend_from_slice(SECTION.as_bytes());
    content.extend_from_slice(schema.as_bytes());
    let mut embedded = wasm.to_vec();
    embedded.push(0);
    push_length(&mut embedded, content.len());
    embedded.extend_from_slice(&content);
    Ok(embedded)
}

/// The schema in a file. If it has several, the last one counts.
pub(crate) fn find(wasm: &[u8]) -> Option<&str> {
    let mut found = None;
    let mut rest = wasm.get(8..)?;
    while let Some((kind, after)) = rest.split_first() {
        let (length, after) = length(after)?;
        let (content, next) = after.split_at_checked(length)?;
        if *kind == 0
            && let Some((name_length, content)) = self::length(content)
            && let Some((name, schema)) = content.split_at_checked(name_length)
            && name == SECTION.as_bytes()
        {
            found = std::str::from_utf8(schema).ok();
        }
        rest = next;
    }
    found
}

/// A length in LEB128, and the bytes after it.
fn length(bytes: &[u8]) -> Option<(usize, &[u8])> {
    let mut length = 0usize;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            return Some((length, &bytes[index + 1..]));
        }
    }
    None
}

fn push_length(out: &mut Vec<u8>, mut length: usize) {
    loop {
        let byte = (length & 0x7f) as u8;
        length >>= 7;
        if length == 0 {
            out.push(byte);
            return;
        }
        out.push(byte | 0x80);
    }
}

/// Checks a configuration against the schema of a plugin. The error names the key.
pub(crate) fn check(schema: &str, config: &Value) -> Result<(), StartError> {
    let schema = parse(schema)
        .map_err(|problem| StartError { message: format!("the plugin's schema is not valid: {problem}"), key: None })?;
    let empty = Value::Object(Map::new());
    let config = if config.is_null() { &empty } else { config };
    check_value(&schema, config, "")
        .map_err(|(key, message)| StartError { message, key: Some(key).filter(|key| !key.is_empty()) })
}

fn parse(text: &str) -> Result<Value, String> {
    let schema: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    check_schema(&schema, "")?;
    Ok(schema)
}

/// Checks that the host knows all keywords: one that it ignored would promise too much.
fn check_schema(schema: &Value, path: &str) -> Result<(), String> {
    let place = if path.is_empty() { "the schema".to_owned() } else { format!("`{path}`") };
    let Value::Object(keywords) = schema else {
        return if schema.is_boolean() { Ok(()) } else { Err(format!("{place} is not an object")) };
    };
    for (keyword, value) in keywords {
        if ANNOTATIONS.contains(&keyword.as_str()) {
            continue;
        }
        if !CHECKS.contains(&keyword.as_str()) {
            return Err(format!("{place} has the keyword `{keyword}`; expected {}", CHECKS.join(", ")));
        }
        match (keyword.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                for (name, schema) in properties {
                    check_schema(schema, &join(path, name))?;
                }
            }
            ("items", schema) => check_schema(schema, &format!("{path}[]"))?,
            ("additionalProperties", schema) => check_schema(schema, &join(path, "*"))?,
            _ => {}
        }
    }
    Ok(())
}

fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// A key and the problem of its value.
type Problem = (String, String);

fn check_value(schema: &Value, value: &Value, path: &str) -> Result<(), Problem> {
    let problem = |message: String| Err((path.to_owned(), message));
    let Value::Object(keywords) = schema else {
        return if schema == &Value::Bool(false) { problem("is not allowed".to_owned()) } else { Ok(()) };
    };
    if let Some(types) = keywords.get("type") {
        let names: Vec<&str> = match types {
            Value::Array(names) => names.iter().filter_map(Value::as_str).collect(),
            name => name.as_str().into_iter().collect(),
        };
        if !names.iter().any(|name| is_type(value, name)) {
            return problem(format!("is {}; expected {}", kind(value), names.join(" or ")));
        }
    }
    if let Some(Value::Array(choices)) = keywords.get("enum")
        && !choices.contains(value)
    {
        let choices: Vec<String> = choices.iter().map(Value::to_string).collect();
        // the value may be a secret (I8)
        return problem(format!("is not allowed; expected one of {}", choices.join(", ")));
    }
    if let Some(constant) = keywords.get("const")
        && constant != value
    {
        return problem(format!("is not allowed; expected {constant}"));
    }
    check_limits(keywords, value).or_else(problem)?;
    match value {
        Value::Object(members) => check_members(keywords, members, path),
        Value::Array(items) => {
            let Some(schema) = keywords.get("items") else { return Ok(()) };
            items
                .iter()
                .enumerate()
                .try_for_each(|(index, item)| check_value(schema, item, &format!("{path}[{index}]")))
        }
        _ => Ok(()),
    }
}

fn check_limits(keywords: &Map<String, Value>, value: &Value) -> Result<(), String> {
    let limit = |keyword: &str| keywords.get(keyword).and_then(Value::as_f64);
    if let Some(number) = value.as_f64() {
        let words = [
            ("minimum", "at least"),
            ("maximum", "at most"),
            ("exclusiveMinimum", "more than"),
            ("exclusiveMaximum", "less than"),
        ];
        for (keyword, words) in words {
            let Some(limit) = limit(keyword) else { continue };
            let holds = match keyword {
                "minimum" => number >= limit,
                "maximum" => number <= limit,
                "exclusiveMinimum" => number > limit,
                _ => number < limit,
            };
            if !holds {
                return Err(format!("is {value}; expected {words} {limit}"));
            }
        }
    }
    let (length, minimum, maximum, unit) = match value {
        Value::String(text) => (text.chars().count(), "minLength", "", "characters"),
        Value::Array(items) => (items.len(), "minItems", "maxItems", "items"),
        _ => return Ok(()),
    };
    let length_as_number = length as f64;
    if let Some(limit) = limit(minimum).filter(|limit| length_as_number < *limit) {
        return Err(format!("has {length} {unit}; expected at least {limit}"));
    }
    match limit(maximum).filter(|limit| length_as_number > *limit) {
        Some(limit) => Err(format!("has {length} {unit}; expected at most {limit}")),
        None => Ok(()),
    }
}

fn check_members(keywords: &Map<String, Value>, members: &Map<String, Value>, path: &str) -> Result<(), Problem> {
    let properties = keywords.get("properties").and_then(Value::as_object);
    for (name, value) in members {
        let schema = properties.and_then(|properties| properties.get(name));
        match (schema, keywords.get("additionalProperties")) {
            (Some(schema), _) => check_value(schema, value, &join(path, name))?,
            (None, Some(Value::Bool(false))) => {
                let known: Vec<&str> = properties.into_iter().flat_map(Map::keys).map(String::as_str).collect();
                let expected = match nearest(name, &known) {
                    Some(meant) => format!("did you mean `{meant}`?"),
                    None => format!("expected {}", known.join(", ")),
                };
                return Err((join(path, name), format!("is not a known option; {expected}")));
            }
            (None, Some(schema)) => check_value(schema, value, &join(path, name))?,
            (None, None) => {}
        }
    }
    let required = keywords.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    for name in required {
        if !members.contains_key(name) {
            let doc = properties.and_then(|properties| properties.get(name)?.get("description")?.as_str());
            let doc = doc.map(|doc| format!(" ({doc})")).unwrap_or_default();
            return Err((path.to_owned(), format!("`{name}` is missing; expected `{name}`{doc}")));
        }
    }
    Ok(())
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|number| number.fract() == 0.0),
        _ => false,
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "a table",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const SCHEMA: &str = r#"{
        "type": "object", "additionalProperties": false, "required": ["over"],
        "properties": {
            "over": {"type": "number", "minimum": 0, "description": "the limit"},
            "mode": {"enum": ["a", "b"]},
            "rules": {"type": "array", "minItems": 1, "items": {"type": "object", "properties": {"to": {"type": "string", "minLength": 2}}}},
            "names": {"type": "object", "additionalProperties": {"type": ["string", "null"]}},
            "count": {"type": "integer", "exclusiveMaximum": 10}
        }
    }"#;

    fn problem(config: &Value) -> (String, String) {
        let error = check(SCHEMA, config).unwrap_err();
        (error.key.unwrap_or_default(), error.message)
    }

    #[test]
    fn problems_name_the_key_and_the_expected_value() {
        let cases = [
            (json!({}), "", "`over` is missing; expected `over` (the limit)"),
            (Value::Null, "", "`over` is missing; expected `over` (the limit)"),
            (json!({ "over": "1" }), "over", "is a string; expected number"),
            (json!({ "over": -1 }), "over", "is -1; expected at least 0"),
            (json!({ "over": 1, "moed": "a" }), "moed", "is not a known option; did you mean `mode`?"),
            (json!({ "over": 1, "mode": "c" }), "mode", "is not allowed; expected one of \"a\", \"b\""),
            (json!({ "over": 1, "rules": [] }), "rules", "has 0 items; expected at least 1"),
            (
                json!({ "over": 1, "rules": [{}, { "to": "x" }] }),
                "rules[1].to",
                "has 1 characters; expected at least 2",
            ),
            (json!({ "over": 1, "names": { "a": 1 } }), "names.a", "is a number; expected string or null"),
            (json!({ "over": 1, "count": 1.5 }), "count", "is a number; expected integer"),
            (json!({ "over": 1, "count": 10 }), "count", "is 10; expected less than 10"),
        ];
        for (config, key, message) in cases {
            assert_eq!(problem(&config), (key.to_owned(), message.to_owned()), "{config}");
        }
        let good = json!({ "over": 0, "mode": "b", "rules": [{ "to": "xy" }], "names": { "a": null }, "count": 9 });
        assert_eq!(check(SCHEMA, &good), Ok(()));
    }

    #[test]
    fn schemas_are_found_in_the_file_and_unknown_keywords_are_errors() {
        let empty = b"\0asm\x01\0\0\0".to_vec();
        assert_eq!(find(&empty), None);
        let long = format!("{{\"description\":\"{}\"}}", "x".repeat(1000));
        let first = embed_config_schema(&empty, &long).unwrap();
        assert_eq!(find(&first), Some(long.as_str()));
        assert_eq!(find(&embed_config_schema(&first, SCHEMA).unwrap()), Some(SCHEMA));
        // a file that was cut off
        assert_eq!(find(&first[..first.len() - 1]), None);
        let error = embed_config_schema(&empty, r#"{"properties":{"a":{"pattern":"x"}}}"#).unwrap_err();
        assert!(error.starts_with("`a` has the keyword `pattern`; expected type, "), "{error}");
        assert!(embed_config_schema(&empty, "{").unwrap_err().starts_with("it is not JSON"));
    }
}
