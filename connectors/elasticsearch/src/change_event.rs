//! Change events in Debezium's format, and a check of documents: one walk over the members of a
//! value does both.

use trunkline_connector::json::{self, Malformed};

/// The parts of a JSON object that the sink looks at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Members<'a> {
    op: Option<&'a [u8]>,
    after: Option<&'a [u8]>,
    has_before: bool,
    source: Option<&'a [u8]>,
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
    /// Where the change is from.
    pub(crate) source: &'a [u8],
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
                b"source" => found.source = Some(member.value),
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
        let source = self.source.filter(|_| self.has_before || self.after.is_some())?;
        Some(ChangeEvent { op: *op, after: self.after.filter(|row| *row != b"null"), source })
    }
}

/// Bits of the position within a binlog file: 64 GiB, of which a single transaction can fill a part
/// beyond `max_binlog_size`.
const POSITION_BITS: u32 = 36;

/// Bits of the number of a binlog file.
const FILE_BITS: u32 = 22;

/// The binlog position in the `source` of a change event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct BinlogPosition {
    /// One number that grows with each event of the binlog. A row of a snapshot has the position at
    /// which it was read: it is newer than all changes up to there, and older than all later ones.
    ///
    /// Changes that one event makes, and those of a compressed or an XA transaction, have the same
    /// number.
    pub(crate) version: u64,
    /// The server that made the change.
    pub(crate) server_id: Option<u64>,
}

impl BinlogPosition {
    /// Reads `source`; `None` if it has no such position.
    pub(crate) fn of(source: &[u8]) -> Option<Self> {
        let (mut file, mut position, mut server_id) = (None, None, None);
        let number = |raw: &[u8]| std::str::from_utf8(raw).ok()?.parse::<u64>().ok();
        for member in json::members(source) {
            let member = member.ok()?;
            match member.key {
                b"file" => file = json::text(member.value),
                b"pos" => position = number(member.value),
                b"server_id" => server_id = number(member.value),
                _ => {}
            }
        }
        let file: u64 = file?.rsplit_once('.')?.1.parse().ok()?;
        let is_small = |value: u64, bits: u32| value >> bits == 0;
        let position = position.filter(|position| is_small(*position, POSITION_BITS))?;
        is_small(file, FILE_BITS).then_some(Self { version: file << POSITION_BITS | position, server_id })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn change_events_are_recognised_by_their_members() {
        let event = |value: &'static str| Members::of(value.as_bytes()).unwrap().change_event();
        let update = r#"{"before":{"a":1},"after":{"a":2},"source":{"pos":4},"op":"u","ts_ms":5}"#;
        assert_eq!(event(update), Some(ChangeEvent { op: b'u', after: Some(br#"{"a":2}"#), source: br#"{"pos":4}"# }));
        let delete = r#"{"before":{"a":1},"after":null,"source":{},"op":"d"}"#;
        assert_eq!(event(delete), Some(ChangeEvent { op: b'd', after: None, source: b"{}" }));
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
    fn later_binlog_positions_are_greater_versions() {
        let version_of = |source: &str| BinlogPosition::of(source.as_bytes()).map(|position| position.version);
        let version = |file: &str, pos: &str| version_of(&format!(r#"{{"file":"{file}","pos":{pos}}}"#));
        let in_order = [
            version("binlog.000001", "4"),
            version("binlog.000001", "157"),
            // A transaction that makes the file longer than 4 GiB.
            version("binlog.000001", "68719476735"),
            version("binlog.000002", "4"),
            version("mysql-bin.000010", "4"),
            version("db.example-bin.4194303", "68719476735"),
        ];
        assert!(in_order.iter().all(Option::is_some) && in_order.is_sorted(), "{in_order:?}");
        assert!(in_order[5].is_some_and(|last| last >> (FILE_BITS + POSITION_BITS) == 0));
        for (file, pos) in
            [("binlog.4194304", "4"), ("binlog.1", "68719476736"), ("", "0"), ("binlog", "4"), ("a.1", "-1")]
        {
            assert_eq!(version(file, pos), None, "{file} {pos}");
        }
        assert_eq!(version_of(r#"{"lsn":17}"#), None);
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
