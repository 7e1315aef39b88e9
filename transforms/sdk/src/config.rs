//! Parses the configuration with serde. Errors contain the path of the key at fault and, for a
//! misspelt key, the nearest known name.

use std::fmt;

use serde::de::DeserializeOwned;

/// The rejection of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigError {
    /// The problem and the expected input.
    pub message: String,
    /// The key at fault, such as `fields[0]` or `rules.name`.
    pub key: Option<String>,
}

impl ConfigError {
    /// An error about the configuration as a whole.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), key: None }
    }

    /// An error about one key, such as `fields[0]` or `rules.name`.
    pub fn at(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self { message: message.into(), key: Some(key.into()) }
    }

    /// Parses the JSON text of a `config` table. The SDK calls it for the whole table; a plugin can
    /// call it for parts.
    pub fn read<C: DeserializeOwned>(json: &str) -> Result<C, ConfigError> {
        let mut deserializer = serde_json::Deserializer::from_str(json);
        serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
            let mut key = key_of(error.path());
            let message = plain_message(&error.into_inner().to_string());
            let unknown = unknown_name(&message);
            // for an unknown key, the path may end at its table; the host needs the key itself
            if let Some((name, _)) =
                unknown.filter(|(name, _)| message.starts_with(UNKNOWN_FIELD) && !ends_with_key(&key, name))
            {
                push_key(&mut key, name);
            }
            let in_words = in_words(&message);
            let message = match unknown.and_then(|(_, nearest)| nearest) {
                Some(nearest) => format!("{in_words}; did you mean `{nearest}`?"),
                None => in_words,
            };
            ConfigError { message, key: Some(key).filter(|key| !key.is_empty()) }
        })
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.key {
            Some(key) => write!(formatter, "`{key}`: {}", self.message),
            None => write!(formatter, "{}", self.message),
        }
    }
}

impl std::error::Error for ConfigError {}

impl From<ConfigError> for String {
    fn from(error: ConfigError) -> Self {
        error.to_string()
    }
}

const UNKNOWN_FIELD: &str = "unknown field ";
const UNKNOWN_VARIANT: &str = "unknown variant ";

/// The path as a configuration key, without the names of enum variants, which are values.
fn key_of(path: &serde_path_to_error::Path) -> String {
    let mut key = String::new();
    for segment in path {
        match segment {
            serde_path_to_error::Segment::Seq { index } => key.push_str(&format!("[{index}]")),
            serde_path_to_error::Segment::Map { key: name } => push_key(&mut key, name),
            _ => {}
        }
    }
    key
}

fn push_key(key: &mut String, name: &str) {
    if !key.is_empty() {
        key.push('.');
    }
    key.push_str(name);
}

/// Removes serde_json's ` at line 1 column 12`: the user wrote TOML and never sees the JSON text.
fn plain_message(message: &str) -> String {
    message.rfind(" at line ").map_or(message, |at| &message[..at]).to_owned()
}

/// Serde's message in the form "PROBLEM; expected WHAT", in words of configuration files. The host
/// shows the second part at the place of the problem.
fn in_words(message: &str) -> String {
    if message == "expected value" {
        return "has the wrong type; expected a text".to_owned(); // serde_json, for an enum
    }
    if let Some(name) = message.strip_prefix("missing field ") {
        return format!("the key {name} is missing; expected `{} = ..`", name.trim_matches('`'));
    }
    let Some((problem, expected)) = message.split_once(", expected ") else { return message.to_owned() };
    let expected = match expected {
        "a sequence" => "an array",
        "a map" => "a table",
        "a boolean" => "`true` or `false`",
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number that is not negative",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        expected if expected.starts_with("struct ") => "a table",
        expected => expected,
    };
    for (prefix, is) in [
        ("invalid type: ", "has the wrong type: "),
        ("invalid value: ", "has the wrong value: "),
        (UNKNOWN_FIELD, "is not a known key: "),
        (UNKNOWN_VARIANT, "is not a known value: "),
    ] {
        if let Some(found) = problem.strip_prefix(prefix) {
            return format!("{is}{}; expected {expected}", found);
        }
    }
    format!("{problem}; expected {expected}")
}

fn ends_with_key(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

/// Extracts the unknown name and the nearest expected name from serde's message "unknown field `a`,
/// expected one of `b`, `c`".
fn unknown_name(message: &str) -> Option<(&str, Option<&str>)> {
    if !message.starts_with(UNKNOWN_FIELD) && !message.starts_with(UNKNOWN_VARIANT) {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let name = quoted.next()?;
    let nearest = quoted
        .map(|known| (strsim::damerau_levenshtein(name, known), known))
        .filter(|(distance, known)| *distance <= known.len().max(name.len()) / 2)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, known)| known);
    Some((name, nearest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read only by serde")]
    struct Config {
        fields: Vec<String>,
        #[serde(default)]
        mode: Option<Mode>,
        #[serde(default)]
        rule: Option<Rule>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(rename_all = "snake_case")]
    enum Mode {
        Hash,
        Fixed,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    #[allow(dead_code, reason = "read only by serde")]
    struct Rule {
        name: String,
    }

    fn rejected(json: &str) -> (Option<String>, String) {
        let error = ConfigError::read::<Config>(json).unwrap_err();
        (error.key, error.message)
    }

    #[test]
    fn errors_name_the_key_and_the_nearest_name() {
        let (key, message) = rejected(r#"{"feilds":["a"]}"#);
        assert_eq!(key.as_deref(), Some("feilds"));
        assert!(message.ends_with("did you mean `fields`?"), "{message}");
        let (key, message) = rejected(r#"{"fields":[],"rule":{"nam":"x"}}"#);
        assert_eq!(key.as_deref(), Some("rule.nam"));
        assert!(message.ends_with("did you mean `name`?"), "{message}");
        let (key, message) = rejected(r#"{"fields":["a",7]}"#);
        assert_eq!(
            (key.as_deref(), message.as_str()),
            (Some("fields[1]"), "has the wrong type: integer `7`; expected a string")
        );
        let (key, message) = rejected(r#"{"fields":"a"}"#);
        assert_eq!(
            (key.as_deref(), message.as_str()),
            (Some("fields"), "has the wrong type: string \"a\"; expected an array")
        );
        let (key, message) = rejected(r#"{"fields":[],"rule":5}"#);
        assert_eq!(
            (key.as_deref(), message.as_str()),
            (Some("rule"), "has the wrong type: integer `5`; expected a table")
        );
        let (key, message) = rejected(r#"{"fields":[],"mode":5}"#);
        assert_eq!((key.as_deref(), message.as_str()), (Some("mode"), "has the wrong type; expected a text"));
        let (key, message) = rejected(r#"{"fields":[],"mode":"hsah"}"#);
        assert_eq!(key.as_deref(), Some("mode"));
        assert_eq!(message, "is not a known value: `hsah`; expected `hash` or `fixed`; did you mean `hash`?");
        let (key, message) = rejected("{}");
        assert_eq!((key, message.as_str()), (None, "the key `fields` is missing; expected `fields = ..`"));
    }
}
