//! Change events in Debezium's format, and a check of documents: one walk over the members of a
//! value does both.

use trunkline_connector::json::{self, Malformed};

/// The parts of a JSON object that the sink looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members<'a> {
    op: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
    has_before: bool,
    has_source: bool,
    /// The object has a field `@timestamp`.
    pub(crate) has_timestamp: bool,
    pub(crate) is_empty: bool,
}

/// A change event.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ChangeEvent<'a> {
    /// `c`, `u`, `r` (read by a snapshot), `d`, `t` (truncate), `m` (message).
    pub(crate) op: u8,
    /// The row after the change.
    pub(crate) after: Option<&'a [u8]>,
}

impl<'a> Members<'a> {
    /// Walks the members of `value`, which must be one JSON object.
    pub(crate) fn of(value: &'a [u8]) -> Result<Self, Malformed> {
        let mut found = Self { is_empty: true, ..Self::default() };
        for member in json::members(value) {
            let member = member?;
            found.is_empty = false;
            match member.key {
                b"op" => found.op = Some(member.value),
                b"after" => found.after = Some(member.value),
                b"before" => found.has_before = true,
                b"source" => found.has_source = true,
                b"@timestamp" => found.has_timestamp = true,
                // A key with escapes may spell the field too, and a server refuses a field that
                // occurs twice.
                key if key.contains(&b'\\') && json::key_is(key, "@timestamp") => found.has_timestamp = true,
                _ => {}
            }
        }
        Ok(found)
    }

    /// The change event that the object is, if it has the members of one: `op` of one letter,
    /// `source`, and `before` or `after`.
    pub(crate) fn change_event(&self) -> Option<ChangeEvent<'a>> {
        let Some([b'"', op, b'"']) = self.op else { return None };
        if !self.has_source || !(self.has_before || self.after.is_some()) {
            return None;
        }
        Some(ChangeEvent { op: *op, after: self.after.filter(|row| *row != b"null") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_events_are_recognised_by_their_members() {
        let event = |value: &'static str| Members::of(value.as_bytes()).unwrap().change_event();
        let update = r#"{"before":{"a":1},"after":{"a":2},"source":{"pos":4},"op":"u","ts_ms":5}"#;
        assert_eq!(event(update), Some(ChangeEvent { op: b'u', after: Some(br#"{"a":2}"#) }));
        let delete = r#"{"before":{"a":1},"after":null,"source":{},"op":"d"}"#;
        assert_eq!(event(delete), Some(ChangeEvent { op: b'd', after: None }));
        for other in [
            r#"{"op":"d","path":"/x"}"#,
            r#"{"op":"delete","before":1,"after":2,"source":3}"#,
            r#"{"op":4,"after":{},"source":{}}"#,
            r#"{"after":{"op":"c","source":{}}}"#,
            "{}",
        ] {
            assert_eq!(event(other), None, "{other}");
        }
    }

    #[test]
    fn only_objects_are_documents() {
        for wrong in ["", "[1]", "17", "null", "\"text\"", "{\"a\":", "{\"a\":1} x", "{\"a\":1}{\"a\":2}"] {
            assert!(Members::of(wrong.as_bytes()).is_err(), "{wrong}");
        }
        assert!(Members::of(b"{}").unwrap().is_empty);
        assert!(Members::of(br#"{"@timestamp":1}"#).unwrap().has_timestamp);
        assert!(Members::of(br#"{"\u0040timestamp":1}"#).unwrap().has_timestamp);
        assert!(!Members::of(br#"{"a":{"@timestamp":1}}"#).unwrap().has_timestamp);
    }
}
