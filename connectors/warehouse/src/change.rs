//! Records as changes of rows: Debezium's envelope, a bare row, plain JSON, or a tombstone.

use trunkline_connector::json::{self, Malformed};
use trunkline_connector::{Reason, RecordRef};

/// What a record does to its table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// The row exists with these values.
    Write,
    /// The row with this key is gone.
    Delete,
    /// All rows are gone.
    Truncate,
}

/// A record's change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change<'a> {
    pub(crate) operation: Operation,
    /// JSON of the row (of its key alone, for a tombstone); empty for a TRUNCATE.
    pub(crate) row: &'a [u8],
    /// The row is in an envelope: the columns are those of the schema's field `after`.
    pub(crate) is_enveloped: bool,
    /// The envelope's `source`.
    pub(crate) source: Option<&'a [u8]>,
}

impl<'a> Change<'a> {
    /// Reads a record; `None` for a record without a value that says nothing (no key either).
    pub(crate) fn of(record: RecordRef<'a>) -> Result<Self, Reason> {
        let Some(value) = record.value() else {
            return match record.key().filter(|key| is_object(key)) {
                Some(row) => Ok(Self { operation: Operation::Delete, row, is_enveloped: false, source: None }),
                None => Err(Reason::new(
                    "warehouse.no_value",
                    "the record has no value, and its key is not a JSON object that names a row",
                )),
            };
        };
        let bare = Self { operation: Operation::Write, row: value, is_enveloped: false, source: None };
        match Envelope::of(value) {
            Ok(Some(envelope)) => envelope.change(record),
            // The decoder reports text that is not JSON, with its reason.
            Ok(None) | Err(_) => Ok(bare),
        }
    }
}

/// The members of a Debezium envelope.
struct Envelope<'a> {
    op: u8,
    before: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
    source: &'a [u8],
}

impl<'a> Envelope<'a> {
    /// `None`: the object is not an envelope.
    fn of(value: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let (mut op, mut before, mut after, mut source, mut has_image) = (None, None, None, None, false);
        for member in json::members(value) {
            let member = member?;
            let image = (member.value != b"null").then_some(member.value);
            match member.key {
                b"op" => op = Some(member.value),
                b"before" => (before, has_image) = (image, true),
                b"after" => (after, has_image) = (image, true),
                b"source" => source = Some(member.value),
                _ => {}
            }
        }
        let (Some([b'"', op, b'"']), Some(source), true) = (op, source, has_image) else { return Ok(None) };
        Ok(Some(Self { op: *op, before, after, source }))
    }

    fn change(&self, record: RecordRef<'a>) -> Result<Change<'a>, Reason> {
        let bad = |message: &str| Err(Reason::new("warehouse.bad_envelope", message.to_owned()));
        let (operation, row) = match (self.op, self.after, self.before) {
            (b't', ..) => (Operation::Truncate, &b""[..]),
            (b'd', _, Some(before)) => (Operation::Delete, before),
            (b'd', _, None) => match record.key().filter(|key| is_object(key)) {
                Some(key) => (Operation::Delete, key),
                None => return bad("a delete has neither the row before it nor a key that is a JSON object"),
            },
            (b'c' | b'u' | b'r', Some(after), _) => (Operation::Write, after),
            (b'c' | b'u' | b'r', None, _) => return bad("a change has no row after it"),
            _ => return bad("the operation is none of c, u, r, d, t"),
        };
        Ok(Change { operation, row, is_enveloped: true, source: Some(self.source) })
    }
}

fn is_object(json: &[u8]) -> bool {
    json.first() == Some(&b'{')
}

/// The names of the members of a JSON object, for a key without a declared one.
pub(crate) fn member_names(object: &[u8]) -> Vec<String> {
    let keys = json::members(object).map_while(Result::ok).map(|member| member.key);
    let quoted = keys.map(|key| [b"\"", key, b"\""].concat());
    quoted.filter_map(|key| json::text(&key).map(std::borrow::Cow::into_owned)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use trunkline_connector::Batch;

    fn change(key: Option<&str>, value: Option<&str>) -> Result<(Operation, String), String> {
        let mut batch = Batch::default();
        let mut record = batch.record();
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        record.finish();
        Change::of(batch.get(0))
            .map(|change| (change.operation, String::from_utf8_lossy(change.row).into_owned()))
            .map_err(|reason| reason.code)
    }

    #[test]
    fn every_form_of_a_change_is_read() {
        use Operation::{Delete, Truncate, Write};
        let envelope = |op: &str, before: &str, after: &str| {
            format!(r#"{{"before":{before},"after":{after},"source":{{"ts_ms":7}},"op":"{op}"}}"#)
        };
        for (key, value, expected) in [
            (None, r#"{"a":1}"#.to_owned(), Ok((Write, r#"{"a":1}"#))),
            (None, envelope("u", r#"{"a":1}"#, r#"{"a":2}"#), Ok((Write, r#"{"a":2}"#))),
            (None, envelope("r", "null", r#"{"a":2}"#), Ok((Write, r#"{"a":2}"#))),
            (None, envelope("d", r#"{"a":1}"#, "null"), Ok((Delete, r#"{"a":1}"#))),
            (Some(r#"{"id":1}"#), envelope("d", "null", "null"), Ok((Delete, r#"{"id":1}"#))),
            (None, envelope("t", "null", "null"), Ok((Truncate, ""))),
            (None, envelope("d", "null", "null"), Err("warehouse.bad_envelope")),
            (None, envelope("m", "null", "null"), Err("warehouse.bad_envelope")),
            // A plain object with a field `op` is a row.
            (None, r#"{"op":"d","path":"/x"}"#.to_owned(), Ok((Write, r#"{"op":"d","path":"/x"}"#))),
        ] {
            let expected = expected.map(|(operation, row)| (operation, row.to_owned())).map_err(str::to_owned);
            assert_eq!(change(key, Some(&value)), expected, "{value}");
        }
        assert_eq!(change(Some(r#"{"id":1}"#), None), Ok((Delete, r#"{"id":1}"#.to_owned())));
        assert_eq!(change(Some("7"), None), Err("warehouse.no_value".to_owned()));
        assert_eq!(change(None, None), Err("warehouse.no_value".to_owned()));
    }

    #[test]
    fn keys_name_their_columns() {
        assert_eq!(member_names(br#"{"id":1,"na\"me":"x"}"#), ["id", "na\"me"]);
    }
}
