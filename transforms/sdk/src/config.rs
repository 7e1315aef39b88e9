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
            let message = match unknown.and_then(|(_, nearest)| nearest) {
                Some(nearest) => format!("{message}; did you mean `{nearest}`?"),
                None => message.clone(),
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
            (Some("fields[1]"), "invalid type: integer `7`, expected a string")
        );
        let (key, message) = rejected(r#"{"fields":[],"mode":"hsah"}"#);
        assert_eq!(key.as_deref(), Some("mode"));
        assert!(message.ends_with("did you mean `hash`?"), "{message}");
        let (key, message) = rejected("{}");
        assert_eq!((key, message.as_str()), (None, "missing field `fields`"));
    }
}
