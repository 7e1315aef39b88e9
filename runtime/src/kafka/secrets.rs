//! Removes values of Kafka properties from texts that librdkafka writes (I8).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use super::properties;

/// Shorter values would also replace parts of ordinary words.
const MIN_LENGTH: usize = 4;

/// What a hidden value is replaced by.
const HIDDEN: &str = "***";

/// Properties with free text that are no secrets and that a message needs.
const PUBLIC: [&str; 13] = [
    "bootstrap.servers",
    "metadata.broker.list",
    "client.id",
    "client.rack",
    "group.id",
    "region",
    "sasl.mechanism",
    "sasl.mechanisms",
    "sasl.oauthbearer.client.id",
    "sasl.oauthbearer.method",
    "sasl.oauthbearer.scope",
    "sasl.oauthbearer.token.endpoint.url",
    "security",
];

/// The values that must not appear in any output. Cheap to clone.
#[derive(Clone, Default)]
pub(super) struct Secrets {
    values: Arc<RwLock<Vec<String>>>,
}

impl Secrets {
    /// The secrets among `properties`: free text, except for names, addresses and paths.
    pub(super) fn of(properties: &BTreeMap<String, String>) -> Self {
        let secrets = Self::default();
        secrets.add(properties);
        secrets
    }

    /// Adds the secrets of changed properties, for all clones. The old ones stay secrets.
    pub(super) fn add(&self, properties: &BTreeMap<String, String>) {
        let is_secret = |(name, value): &(&String, &String)| {
            let is_public = PUBLIC.contains(&name.as_str()) || properties::is_path(name, value);
            value.len() >= MIN_LENGTH && !is_public && properties::is_free_text(name)
        };
        let mut values = self.values.write().unwrap_or_else(PoisonError::into_inner);
        for (_, value) in properties.iter().filter(is_secret) {
            if !values.contains(value) {
                values.push(value.clone());
            }
        }
    }

    /// The text without secrets.
    pub(super) fn hide<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut hidden = Cow::Borrowed(text);
        for value in self.values.read().unwrap_or_else(PoisonError::into_inner).iter() {
            if hidden.contains(value.as_str()) {
                hidden = Cow::Owned(hidden.replace(value.as_str(), HIDDEN));
            }
            // librdkafka cuts long messages off, perhaps in the middle of a value.
            let lengths = MIN_LENGTH..value.len().min(hidden.len() + 1);
            let cut = lengths.rev().find(|length| {
                value.is_char_boundary(*length) && hidden.as_bytes().ends_with(&value.as_bytes()[..*length])
            });
            if let Some(length) = cut {
                let kept = hidden.len() - length;
                hidden = Cow::Owned(format!("{}{HIDDEN}", &hidden[..kept]));
            }
        }
        hidden
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secrets(properties: &[(&str, &str)]) -> Secrets {
        Secrets::of(&properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    #[test]
    fn whole_and_truncated_values_are_hidden() {
        let secrets = secrets(&[("sasl.password", "hunter2"), ("ssl.key.pem", "-----BEGIN KEY-----\nabcdef")]);
        assert_eq!(secrets.hide("login with hunter2 failed: hunter2"), "login with *** failed: ***");
        assert_eq!(secrets.hide("cannot read `-----BEGIN KEY-----\nab"), "cannot read `***");
        assert_eq!(secrets.hide("cannot read hunt"), "cannot read ***");
        assert_eq!(secrets.hide("hun"), "hun");
    }

    #[test]
    fn names_addresses_paths_and_choices_are_shown() {
        let secrets = secrets(&[
            ("security.protocol", "sasl_ssl"),
            ("bootstrap.servers", "broker:9092"),
            ("client.id", "worker"),
            ("ssl.ca.location", "/etc/ca.pem"),
            ("socket.timeout.ms", "10000"),
        ]);
        let text = "worker cannot reach broker:9092 by sasl_ssl with /etc/ca.pem in 10000 ms";
        assert_eq!(secrets.hide(text), text);
    }

    #[test]
    fn a_key_in_place_of_a_path_is_hidden() {
        let secrets = secrets(&[("ssl.key.location", "-----BEGIN PRIVATE KEY-----\nMIIB")]);
        assert_eq!(secrets.hide("cannot open -----BEGIN PRIVATE KEY-----\nMIIB"), "cannot open ***");
    }
}
