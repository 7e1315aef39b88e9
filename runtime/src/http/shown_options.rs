//! Options of components as they may be shown (I8): references as written, and literal values
//! masked where they may be secrets.

use serde_json::{Map, Value};

/// Parts of the names of options that hold secrets.
const SECRETS: [&str; 13] = [
    "secret",
    "password",
    "passwd",
    "passphrase",
    "token",
    "credential",
    "private",
    "authorization",
    "bearer",
    "salt",
    "cookie",
    "api_key",
    "apikey",
];

/// What a secret is shown as.
pub(super) const MASK: &str = "***";

/// The options of a component, as written in its pipeline file, without secrets.
pub(super) fn shown(written: &Value) -> Value {
    match written {
        Value::Object(members) => {
            let members = members.iter().map(|(name, value)| (name.clone(), shown_member(name, value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
        Value::Array(items) => Value::Array(items.iter().map(shown).collect()),
        Value::String(text) => Value::String(without_secrets(text)),
        other => other.clone(),
    }
}

fn shown_member(name: &str, value: &Value) -> Value {
    let name = name.to_lowercase().replace('-', "_");
    let is_secret = name == "key" || SECRETS.iter().any(|secret| name.contains(secret));
    if is_secret { masked(value) } else { shown(value) }
}

/// Masks all texts and numbers that are not references.
fn masked(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, value)| (name.clone(), masked(value))).collect())
        }
        Value::Array(items) => Value::Array(items.iter().map(masked).collect()),
        Value::String(text) if is_reference(text) => value.clone(),
        Value::String(_) | Value::Number(_) => Value::String(MASK.to_owned()),
        Value::Bool(_) | Value::Null => value.clone(),
    }
}

/// The text is one reference, and nothing else.
fn is_reference(text: &str) -> bool {
    text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}')).is_some_and(|name| !name.contains('}'))
}

/// An address without the secrets in it: `mysql://user:***@host`, `https://host/path?***`.
fn without_secrets(text: &str) -> String {
    let Some((address, query)) = text.split_once('?').filter(|_| text.contains("://")) else {
        return without_password(text);
    };
    let lower = query.to_lowercase();
    let query = if SECRETS.iter().any(|secret| lower.contains(secret)) { MASK } else { query };
    format!("{}?{query}", without_password(address))
}

fn without_password(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return text.to_owned() };
    // A password may contain a slash: the last `@` ends it.
    let Some((login, place)) = rest.rsplit_once('@') else { return text.to_owned() };
    match login.split_once(':') {
        Some((user, password)) if !is_reference(password) => format!("{scheme}://{user}:{MASK}@{place}"),
        _ => text.to_owned(),
    }
}

/// Options as Kafka Connect's flat table of texts: `rotate.records`, `paths` with commas.
pub(super) fn flat(options: &Value) -> Map<String, Value> {
    fn add(name: String, value: &Value, into: &mut Map<String, Value>) {
        match value {
            Value::Object(members) if !members.is_empty() => {
                members.iter().for_each(|(member, value)| add(format!("{name}.{member}"), value, into));
            }
            Value::Array(items) if items.iter().all(|item| !item.is_object() && !item.is_array()) => {
                let items: Vec<String> = items.iter().map(text).collect();
                into.insert(name, Value::String(items.join(",")));
            }
            other => drop(into.insert(name, Value::String(text(other)))),
        }
    }
    let mut into = Map::new();
    for (name, value) in options.as_object().into_iter().flatten() {
        add(name.clone(), value, &mut into);
    }
    into
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn literal_secrets_are_masked_and_references_are_shown() {
        let written = json!({
            "url": "mysql://cdc:hun/ter2@db:3306",
            "reader": "mysql://cdc:${env:PASSWORD}@db",
            "password": "hunter2",
            "token": "${file:/run/token}",
            "half_token": "${env:A}-hunter2",
            "hook": "https://example.com/in?token=hunter2",
            "page": "https://example.com/in?a=b",
            "headers": { "Authorization": "Bearer hunter2", "X-Api-Key": "hunter2", "Accept": "json" },
            "config": { "fields": ["card"], "key": "hunter2", "salt": 5, "credentials": [{ "user": "hunter2" }] },
            "partitions": 3,
        });
        let shown = shown(&written);
        assert!(!shown.to_string().contains("hunter2"), "{shown}");
        let expected = json!({
            "url": "mysql://cdc:***@db:3306",
            "reader": "mysql://cdc:${env:PASSWORD}@db",
            "password": "***",
            "token": "${file:/run/token}",
            "half_token": "***",
            "hook": "https://example.com/in?***",
            "page": "https://example.com/in?a=b",
            "headers": { "Authorization": "***", "X-Api-Key": "***", "Accept": "json" },
            "config": { "fields": ["card"], "key": "***", "salt": "***", "credentials": [{ "user": "***" }] },
            "partitions": 3,
        });
        assert_eq!(shown, expected);
    }

    #[test]
    fn options_become_a_flat_table_of_texts() {
        let options =
            json!({ "rotate": { "records": 5, "age": "1h" }, "paths": ["/a", "/b"], "on": true, "empty": {} });
        let expected = json!({
            "rotate.records": "5", "rotate.age": "1h", "paths": "/a,/b", "on": "true", "empty": "{}",
        });
        assert_eq!(Value::Object(flat(&options)), expected);
    }
}
