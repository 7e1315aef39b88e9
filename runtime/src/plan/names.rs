//! Rules for names that become parts of topics, groups and transactional ids.

/// Longest name of a pipeline or component: two of them and a port fit into the name of a topic.
const MAX_NAME: usize = 100;
/// Kafka's limit.
const MAX_TOPIC: usize = 249;

/// Prefix of Trunkline's own topics.
pub(super) const INTERNAL_PREFIX: &str = "_trunkline.";

/// Why the name of a pipeline or component is invalid, as the end of the sentence "`name` ...".
pub(crate) fn name_error(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".to_owned());
    }
    if name.len() > MAX_NAME {
        return Some(format!("has {} characters", name.chars().count()));
    }
    // No dots: they separate pipeline, component and port in topics and inputs.
    first_forbidden(name, "_-").map(|character| format!("has the character `{character}`"))
}

/// The rule for such names.
pub(crate) const NAME_RULE: &str = "letters, digits, `_` and `-`, at most 100 of them";

/// The rule as a regular expression.
pub(super) const NAME_PATTERN: &str = "^[A-Za-z0-9_-]{1,100}$";

/// Why the name of a topic is invalid, as the end of the sentence "`name` ...".
pub(crate) fn topic_error(topic: &str) -> Option<String> {
    if topic.is_empty() {
        return Some("is empty".to_owned());
    }
    if topic == "." || topic == ".." {
        return Some(format!("is `{topic}`"));
    }
    if topic.len() > MAX_TOPIC {
        return Some(format!("has {} characters", topic.chars().count()));
    }
    if let Some(character) = first_forbidden(topic, "._-") {
        return Some(format!("has the character `{character}`"));
    }
    topic
        .contains(INTERNAL_PREFIX)
        .then(|| format!("contains `{INTERNAL_PREFIX}`, which is reserved for Trunkline's own topics"))
}

/// The rule for names of topics.
pub(super) const TOPIC_RULE: &str = "a topic: letters, digits, `.`, `_` and `-`, at most 249 of them";

fn first_forbidden(name: &str, allowed: &str) -> Option<char> {
    name.chars().find(|character| !character.is_ascii_alphanumeric() && !allowed.contains(*character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forbidden_characters_and_lengths_are_reported() {
        assert_eq!(name_error("access-logs_2"), None);
        assert!(name_error("access.logs").unwrap().contains('.'));
        assert!(name_error("größe").unwrap().contains('ö'));
        assert!(name_error("").is_some() && name_error(&"x".repeat(101)).is_some());
        assert_eq!(topic_error("access.logs-2"), None);
        for bad in ["", ".", "..", "a/b", "_trunkline.schemas", "team-a._trunkline.schemas", &"x".repeat(250)] {
            assert!(topic_error(bad).is_some(), "{bad}");
        }
    }
}
