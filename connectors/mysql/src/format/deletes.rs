//! Deletes of rows that a snapshot no longer finds: built from the last record of the row, because
//! the server has the row no more.

use serde::Deserialize;
use serde_json::value::RawValue;
use trunkline_connector::{Batch, RecordRef, headers};

use super::options::Envelope;
use super::table::{DATABASE, TABLE};
use crate::position::file_number;
use crate::schema::table_name::TableName;

/// The headers that all records of a table have.
pub(crate) fn headers(table: TableName) -> Vec<(&'static str, String)> {
    vec![(DATABASE, table.database), (TABLE, table.table)]
}

/// The parts of a change event that its deletion needs.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    after: &'a RawValue,
    #[serde(borrow)]
    source: &'a RawValue,
    op: &'a str,
    #[serde(borrow, default)]
    transaction: Option<&'a RawValue>,
}

/// The row of the order of a delete: it is later than every change at the position of the row's
/// last record, and earlier than all changes after it.
const AFTER_ROWS: u32 = u32::MAX;

/// The order of the delete of a row, given its last record.
fn order_after(last: RecordRef<'_>, source: Option<&RawValue>) -> Option<String> {
    #[derive(Deserialize)]
    struct Source<'a> {
        #[serde(borrow)]
        file: std::borrow::Cow<'a, str>,
        pos: u64,
    }
    let text = |name| last.header(name).and_then(|value| std::str::from_utf8(value).ok());
    if let Some((before, _)) = text(headers::ORDER).and_then(|order| order.rsplit_once('.')) {
        return Some(format!("{before}.{AFTER_ROWS}"));
    }
    let source: Source<'_> = serde_json::from_str(source?.get()).ok()?;
    Some(format!("{}.{}.{}.{AFTER_ROWS}", text(headers::EPOCH)?, file_number(&source.file), source.pos))
}

/// Adds the delete event and the tombstone of a row, given its last record.
pub(crate) fn delete(last: RecordRef<'_>, now: i64, envelope: Envelope, tombstones: bool, out: &mut Batch) {
    let (Some(key), Some(value)) = (last.key(), last.value()) else { return };
    // A transform may have replaced the envelope. The tombstone then deletes the row.
    let event = (envelope == Envelope::Debezium).then(|| serde_json::from_slice::<Event<'_>>(value).ok()).flatten();
    let order = order_after(last, event.as_ref().map(|event| event.source));
    if let Some(event) = &event {
        if event.op == "d" {
            return;
        }
        let transaction = event.transaction.map_or("", |_| ",\"transaction\":null");
        let mut record = out.record();
        record.key(key).timestamp(now).value_with(|arena| {
            arena.extend_from_slice(b"{\"before\":");
            arena.extend_from_slice(event.after.get().as_bytes());
            arena.extend_from_slice(b",\"after\":null,\"source\":");
            arena.extend_from_slice(event.source.get().as_bytes());
            arena.extend_from_slice(format!(",\"op\":\"d\",\"ts_ms\":{now}{transaction}}}").as_bytes());
        });
        for name in [DATABASE, TABLE, headers::SCHEMA] {
            if let Some(value) = last.header(name) {
                record.header(name, Some(value));
            }
        }
        if let Some(order) = &order {
            record.header(headers::ORDER, Some(order.as_bytes()));
        }
        record.finish();
    }
    if tombstones || event.is_none() {
        let mut record = out.record();
        record.key(key).timestamp(now);
        for name in [DATABASE, TABLE] {
            if let Some(value) = last.header(name) {
                record.header(name, Some(value));
            }
        }
        if let Some(order) = &order {
            record.header(headers::ORDER, Some(order.as_bytes()));
        }
        record.finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn deleted(value: &str, envelope: Envelope) -> Vec<(Option<String>, Vec<String>)> {
        let mut last = Batch::default();
        let mut record = last.record();
        record.key(b"{\"id\":1}").value(value.as_bytes());
        record
            .header(DATABASE, Some(b"shop"))
            .header("__debezium.oldkey", Some(b"x"))
            .header(headers::SCHEMA, Some(b"s"));
        record.finish();
        let mut out = Batch::default();
        delete(last.get(0), 7, envelope, true, &mut out);
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        let names = |record: RecordRef<'_>| record.headers().map(|(name, _)| name.to_owned()).collect();
        out.iter().map(|record| (record.value().map(text), names(record))).collect()
    }

    #[test]
    fn the_delete_has_the_last_row_and_the_headers_of_its_table() {
        let last =
            r#"{"before":{"id":1,"v":"old"},"after":{"id":1,"v":1.50},"source":{"db":"shop"},"op":"u","ts_ms":3}"#;
        let delete = r#"{"before":{"id":1,"v":1.50},"after":null,"source":{"db":"shop"},"op":"d","ts_ms":7}"#;
        let tombstone = (None, vec![DATABASE.to_owned()]);
        let event = (Some(delete.to_owned()), vec![DATABASE.to_owned(), headers::SCHEMA.to_owned()]);
        assert_eq!(deleted(last, Envelope::Debezium), [event, tombstone.clone()]);
        assert_eq!(deleted(delete, Envelope::Debezium), []);
        assert_eq!(deleted(r#"{"id":1}"#, Envelope::Row), [tombstone]);
    }

    #[test]
    fn the_delete_is_ordered_right_after_the_last_record() {
        let value = r#"{"before":null,"after":{"id":1},"source":{"file":"bin.000012","pos":345},"op":"c"}"#;
        for (header, value, envelope) in [
            ((headers::EPOCH, "1764300000"), value, Envelope::Debezium),
            ((headers::ORDER, "1764300000.12.345.7"), r#"{"id":1}"#, Envelope::Row),
            ((headers::ORDER, "1764300000.12.345.7"), r#"{"id":1}"#, Envelope::Debezium),
        ] {
            let mut last = Batch::default();
            let mut record = last.record();
            record.key(b"{\"id\":1}").value(value.as_bytes()).header(header.0, Some(header.1.as_bytes()));
            record.finish();
            let mut out = Batch::default();
            delete(last.get(0), 7, envelope, true, &mut out);
            assert!(!out.is_empty());
            for record in out.iter() {
                assert_eq!(record.header(headers::ORDER), Some(&b"1764300000.12.345.4294967295"[..]));
            }
        }
    }
}
