//! A validator for the keywords of JSON Schema that the generated schemas use. Another keyword is
//! an error, so that none is ignored.

use regex::Regex;
use serde_json::{Map, Value};

const ANNOTATIONS: [&str; 6] = ["$schema", "title", "description", "default", "examples", "definitions"];

/// The problems of a value, each with its path.
pub(crate) fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    Validator { root: schema }.check(schema, value, "", &mut found);
    found
}

struct Validator<'a> {
    root: &'a Value,
}

impl<'a> Validator<'a> {
    fn check(&self, schema: &'a Value, value: &Value, path: &str, found: &mut Vec<String>) {
        let keywords = match schema {
            Value::Bool(true) => return,
            Value::Bool(false) => return found.push(format!("{path}: nothing is allowed")),
            Value::Object(keywords) => keywords,
            other => panic!("{other} is not a schema"),
        };
        for (keyword, expected) in keywords {
            match keyword.as_str() {
                "$ref" => self.check(self.resolve(expected), value, path, found),
                "anyOf" => {
                    if !expected.as_array().unwrap().iter().any(|form| self.holds(form, value)) {
                        found.push(format!("{path}: {value} has none of the allowed forms"));
                    }
                }
                "if" => {
                    let branch = if self.holds(expected, value) { "then" } else { "else" };
                    if let Some(branch) = keywords.get(branch) {
                        self.check(branch, value, path, found);
                    }
                }
                "items" => {
                    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
                        self.check(expected, item, &format!("{path}[{index}]"), found);
                    }
                }
                "properties" => self.check_members(keywords, value, path, found),
                "additionalProperties" if !keywords.contains_key("properties") => {
                    self.check_members(keywords, value, path, found);
                }
                "propertyNames" => {
                    for name in value.as_object().into_iter().flat_map(Map::keys) {
                        self.check(expected, &Value::String(name.clone()), &format!("{path}.{name}"), found);
                    }
                }
                "then" | "else" | "additionalProperties" => {}
                annotation if ANNOTATIONS.contains(&annotation) => {}
                _ => check_value(keyword, expected, value, path, found),
            }
        }
    }

    fn check_members(&self, keywords: &'a Map<String, Value>, value: &Value, path: &str, found: &mut Vec<String>) {
        for (name, member) in value.as_object().into_iter().flatten() {
            let known = keywords.get("properties").and_then(|properties| properties.get(name));
            if let Some(schema) = known.or(keywords.get("additionalProperties")) {
                self.check(schema, member, &format!("{path}.{name}"), found);
            }
        }
    }

    fn holds(&self, schema: &'a Value, value: &Value) -> bool {
        let mut found = Vec::new();
        self.check(schema, value, "", &mut found);
        found.is_empty()
    }

    fn resolve(&self, reference: &Value) -> &'a Value {
        let pointer = reference.as_str().unwrap().strip_prefix('#').unwrap();
        self.root.pointer(pointer).unwrap_or_else(|| panic!("{reference} does not exist"))
    }
}

fn check_value(keyword: &str, expected: &Value, value: &Value, path: &str, found: &mut Vec<String>) {
    let number = |limit: &Value| value.as_f64().zip(limit.as_f64());
    let holds = match keyword {
        "type" => match expected {
            Value::Array(types) => types.iter().any(|name| is_type(value, name.as_str().unwrap())),
            name => is_type(value, name.as_str().unwrap()),
        },
        "const" => value == expected,
        "enum" => expected.as_array().unwrap().contains(value),
        "pattern" => value.as_str().is_none_or(|text| Regex::new(expected.as_str().unwrap()).unwrap().is_match(text)),
        "minimum" => number(expected).is_none_or(|(number, limit)| number >= limit),
        "maximum" => number(expected).is_none_or(|(number, limit)| number <= limit),
        "required" => {
            let members = value.as_object();
            let is_absent =
                |name: &&Value| members.is_some_and(|members| !members.contains_key(name.as_str().unwrap()));
            for name in expected.as_array().unwrap().iter().filter(is_absent) {
                found.push(format!("{path}: {name} is missing"));
            }
            true
        }
        other => panic!("the validator does not know the keyword `{other}`"),
    };
    if !holds {
        found.push(format!("{path}: {value} is not {keyword} {expected}"));
    }
}

fn is_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "number" => value.is_number(),
        "integer" => value.is_i64() || value.is_u64(),
        other => panic!("`{other}` is not a type"),
    }
}
