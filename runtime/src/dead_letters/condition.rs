//! [`LetterCondition`]: the expression of `dlq --where`. It is CEL, as in filters: it sees a dead
//! letter as the members of an object, whose names are the variables of the expression.

use jiff::Timestamp;
use serde_json::{Map, Value, json};
use trunkline_connector::{Batch, Error, RecordRef, Result};
use trunkline_transform_host::Host;

use super::{CONNECT, DeadLetter};
use crate::condition::Condition;

/// The variables of the expression.
const VARIABLES: [&str; 17] = [
    "pipeline",
    "component",
    "stage",
    "code",
    "error",
    "topic",
    "partition",
    "offset",
    "time",
    "attempts",
    "redriven",
    "truncated",
    "replay",
    "dead_letter",
    "key",
    "value",
    "headers",
];

/// The member of the filter's record that holds the variables.
const ROOT: &str = "value.";

/// Begins, in a message about an unknown name, the list of the variables of filters.
const FILTER_VARIABLES: &str = "; a member of the value is `";

/// A condition on dead letters.
pub struct LetterCondition(Condition);

impl LetterCondition {
    /// Compiles the expression.
    ///
    /// # Errors
    /// `cli.bad_where`: with the column in the expression.
    pub fn compile(host: &Host, expression: &str) -> Result<Self> {
        let condition = Condition::compile_rooted(host, expression, (ROOT, &VARIABLES)).map_err(|error| {
            let message = error.message();
            let message = message.strip_prefix("--where: ").unwrap_or(message);
            let message = message.split_once(FILTER_VARIABLES).map_or(message, |(problem, _)| problem);
            Error::config(
                "cli.bad_where",
                format!(
                    "--where: {message}; the expression is `{expression}`, and its variables are {}",
                    VARIABLES.join(", ")
                ),
            )
        })?;
        Ok(Self(condition))
    }

    /// Whether it is true for a dead letter.
    pub fn holds(&mut self, letter: &DeadLetter, record: RecordRef<'_>, is_redriven: bool) -> Result<bool> {
        let mut batch = Batch::default();
        let mut writer = batch.record();
        writer.value(variables(letter, record, is_redriven).to_string().as_bytes());
        writer.finish();
        self.0.holds(batch.get(0))
    }

    /// How many dead letters it was neither true nor false for, and why.
    pub fn note(&self) -> Option<String> {
        self.0.note()
    }
}

/// A dead letter as the expression sees it.
fn variables(letter: &DeadLetter, record: RecordRef<'_>, is_redriven: bool) -> Value {
    let parsed = |bytes: Option<&[u8]>| match bytes {
        None => Value::Null,
        Some(bytes) => {
            serde_json::from_slice(bytes).unwrap_or_else(|_| Value::from(String::from_utf8_lossy(bytes).into_owned()))
        }
    };
    let text = |value: Option<&[u8]>| value.map(|value| String::from_utf8_lossy(value).into_owned());
    let headers: Map<String, Value> = record
        .headers()
        .filter(|(name, _)| !name.starts_with(CONNECT))
        .map(|(name, value)| (name.to_owned(), json!(text(value))))
        .collect();
    let origin = letter.origin.as_ref();
    // Three digits, so that times of the same second compare as text.
    let time = letter.timestamp.and_then(|time| Timestamp::from_millisecond(time).ok());
    json!({
        "pipeline": letter.pipeline, "component": letter.component, "stage": letter.stage, "code": letter.code,
        "error": letter.message,
        "topic": origin.map(|origin| &origin.topic), "partition": origin.map(|origin| origin.partition),
        "offset": origin.map(|origin| origin.offset),
        "time": time.map(|time| format!("{time:.3}")),
        "attempts": letter.attempts, "redriven": is_redriven, "truncated": letter.is_truncated, "replay": letter.replay,
        "dead_letter": { "partition": letter.partition, "offset": letter.offset },
        "key": parsed(record.key()), "value": parsed(record.value()), "headers": headers,
    })
}

#[cfg(test)]
mod tests {
    use trunkline_transform_host::HostOptions;

    use super::*;
    use crate::dead_letters::Origin;

    fn letter() -> DeadLetter {
        DeadLetter {
            partition: 1,
            offset: 40,
            timestamp: Some(1_767_225_600_123),
            pipeline: "shop".to_owned(),
            component: "web".to_owned(),
            stage: "VALUE_CONVERTER".to_owned(),
            code: "parse.combined".to_owned(),
            message: "expected a quote at column 7".to_owned(),
            origin: Some(Origin { topic: "orders".to_owned(), partition: 2, offset: 9 }),
            is_truncated: false,
            attempts: 1,
            replay: None,
        }
    }

    fn holds(host: &Host, expression: &str) -> Result<(bool, Option<String>)> {
        let mut batch = Batch::default();
        let mut record = batch.record();
        record.key(b"k1").value(br#"{"country":"DE","offset":3}"#).header("trunkline.path", Some(b"/var/log/a.log"));
        record.finish();
        let mut condition = LetterCondition::compile(host, expression)?;
        Ok((condition.holds(&letter(), batch.get(0), false)?, condition.note()))
    }

    #[test]
    fn conditions_select_dead_letters_and_problems_have_a_column() {
        // One host, because it compiles the plugin.
        let host = Host::new(HostOptions::default()).unwrap();
        for (expression, expected) in [
            (r#"code == "parse.combined""#, true),
            (r#"code = "parse.combined" && component = 'web'"#, true),
            (r#"code != "parse.combined""#, false),
            (r#"code.startsWith("parse.") && error.contains("column 7")"#, true),
            (r#"pipeline == "shop" && stage == "VALUE_CONVERTER""#, true),
            (r#"topic == "orders" && partition == 2 && offset >= 9 && dead_letter.offset == 40"#, true),
            (r#"value.country == "DE" && value.offset == 3"#, true),
            (r#"value.country == "FR" || key == "k1""#, true),
            (r#"headers["trunkline.path"] == "/var/log/a.log""#, true),
            (r#"time >= "2026-01-01" && time < "2026-01-01T00:01""#, true),
            (r#"attempts < 1 || redriven || truncated || replay != null"#, false),
            (r#""code" == "code""#, true),
        ] {
            assert_eq!(holds(&host, expression).unwrap(), (expected, None), "{expression}");
        }
        let (held, note) = holds(&host, "value.missing > 3").unwrap();
        assert!(!held && note.is_some_and(|note| note.contains("neither true nor false")), "no value");
        check_problems(&host);
    }

    fn check_problems(host: &Host) {
        for (expression, column) in
            [(r#"code == "a" && cod == "b""#, 16), (r#"code = "a" && cod = "b""#, 15), ("cod == 1", 1)]
        {
            let error = holds(host, expression).unwrap_err();
            assert_eq!(error.code, "cli.bad_where");
            let message = error.message();
            assert!(message.contains(&format!("column {column}")) && message.contains("`cod`"), "{message}");
            assert!(message.contains("component, stage, code"), "{message}");
        }
        assert!(holds(host, r#"code == "a" &&"#).is_err());
        assert!(holds(host, "code").is_ok_and(|(held, note)| !held && note.is_some()));
    }
}
