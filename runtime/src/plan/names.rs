//! Names that become parts of topics, groups and transactional ids.

/// Longest name of a pipeline or component: two of them and a port fit in a topic's name.
const LONGEST_NAME: usize = 100;
/// Kafka's limit.
const LONGEST_TOPIC: usize = 249;

/// Topics of Trunkline itself start so.
pub(super) const INTERNAL_PREFIX: &str = "_trunkline.";

/// What is wrong with the name of a pipeline or component, as the end of "`name` ...".
pub(super) fn wrong_with_name(name: &str) -> Option<String> {
    if name.is_empty() {
        return Some("is empty".to_owned());
    }
    if name.len() > LONGEST_NAME {
        return Some(format!("has {} characters", name.chars().count()));
    }
    // No dots: they separate pipeline, component and port in topics and inputs.
    first_other(name, "_-").map(|character| format!("has the character `{character}`"))
}

/// What is expected of such a name.
pub(super) const NAME_RULE: &str = "letters, digits, `_` and `-`, at most 100 of them";

/// What is wrong with a topic's name, as the end of "`name` ...".
pub(super) fn wrong_with_topic(topic: &str) -> Option<String> {
    if topic.is_empty() {
        return Some("is empty".to_owned());
    }
    if topic == "." || topic == ".." {
        return Some(format!("is `{topic}`"));
    }
    if topic.len() > LONGEST_TOPIC {
        return Some(format!("has {} characters", topic.chars().count()));
    }
    if let Some(character) = first_other(topic, "._-") {
        return Some(format!("has the character `{character}`"));
    }
    topic
        .starts_with(INTERNAL_PREFIX)
        .then(|| format!("starts with `{INTERNAL_PREFIX}`, which is for Trunkline itself"))
}

/// What is expected of a topic's name.
pub(super) const TOPIC_RULE: &str = "a topic: letters, digits, `.`, `_` and `-`, at most 249 of them";

fn first_other(name: &str, allowed: &str) -> Option<char> {
    name.chars().find(|character| !character.is_ascii_alphanumeric() && !allowed.contains(*character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_topics() {
        assert_eq!(wrong_with_name("access-logs_2"), None);
        assert!(wrong_with_name("access.logs").unwrap().contains('.'));
        assert!(wrong_with_name("größe").unwrap().contains('ö'));
        assert!(wrong_with_name("").is_some() && wrong_with_name(&"x".repeat(101)).is_some());
        assert_eq!(wrong_with_topic("access.logs-2"), None);
        for bad in ["", ".", "..", "a/b", "_trunkline.schemas", &"x".repeat(250)] {
            assert!(wrong_with_topic(bad).is_some(), "{bad}");
        }
    }
}
