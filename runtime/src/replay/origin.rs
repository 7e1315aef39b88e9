//! Where a record came from: the byte of a log file, or the row of a change in a database.
//!
//! Sources write this into headers, and change events have it in `source`. Transforms keep headers,
//! so records of later topics have the origin of the record that they were made from.

use serde::{Deserialize, Serialize};
use trunkline_connector::{RecordRef, headers};

/// The headers of records of databases.
const DATABASE: &str = "trunkline.database";
const TABLE: &str = "trunkline.table";

/// See the module's header.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Origin {
    /// A line of a log file.
    File {
        /// The path under which the file was first seen.
        path: String,
        /// The byte of its decompressed content at which the line begins.
        byte: u64,
        /// The machine.
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<String>,
    },
    /// A row of a table.
    Row {
        /// The database.
        database: String,
        /// The table.
        table: String,
        /// The GTID of the transaction.
        #[serde(skip_serializing_if = "Option::is_none")]
        gtid: Option<String>,
        /// The file of the binlog, or its number.
        #[serde(skip_serializing_if = "Option::is_none")]
        file: Option<String>,
        /// The end of the event in the file.
        #[serde(skip_serializing_if = "Option::is_none")]
        position: Option<u64>,
        /// The number of the row at that position.
        #[serde(skip_serializing_if = "Option::is_none")]
        row: Option<u64>,
        /// A snapshot read it.
        is_snapshot: bool,
    },
}

/// The block `source` of a change event.
#[derive(Default, Deserialize)]
struct Source {
    gtid: Option<String>,
    file: Option<String>,
    pos: Option<u64>,
    row: Option<u64>,
    snapshot: Option<String>,
}

#[derive(Deserialize)]
struct Envelope {
    source: Source,
}

impl Origin {
    /// The origin of a record. `None`: no source of Trunkline wrote it, or a transform has removed
    /// its headers.
    pub fn of(record: RecordRef<'_>) -> Option<Self> {
        let text = |name: &str| record.header(name).and_then(|value| std::str::from_utf8(value).ok());
        if let (Some(path), Some(byte)) = (text(headers::PATH), text(headers::OFFSET)) {
            let host = text("trunkline.host").map(str::to_owned);
            return Some(Self::File { path: path.to_owned(), byte: byte.parse().ok()?, host });
        }
        let (database, table) = (text(DATABASE)?.to_owned(), text(TABLE)?.to_owned());
        let envelope = record.value().and_then(|value| serde_json::from_slice::<Envelope>(value).ok());
        let source = envelope.map(|envelope| envelope.source).or_else(|| text(headers::ORDER).and_then(of_order));
        let Source { gtid, file, pos, row, snapshot } = source.unwrap_or_default();
        let is_snapshot = snapshot.is_some_and(|snapshot| snapshot != "false");
        Some(Self::Row { database, table, gtid, file, position: pos, row, is_snapshot })
    }
}

/// Epoch, number of the file, position and row.
fn of_order(order: &str) -> Option<Source> {
    let mut parts = order.split('.').skip(1);
    let file = Some(format!("number {}", parts.next()?.parse::<u64>().ok()?));
    let (pos, row) = (parts.next()?.parse().ok(), parts.next()?.parse().ok());
    Some(Source { file, pos, row, ..Source::default() })
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File { path, byte, host } => {
                let host = host.as_ref().map_or_else(String::new, |host| format!(" on {host}"));
                write!(formatter, "the line at byte {byte} of {path}{host}")
            }
            Self::Row { database, table, gtid, file, position, row, is_snapshot } => {
                write!(formatter, "a row of {database}.{table}")?;
                if *is_snapshot {
                    formatter.write_str(", read by a snapshot")?;
                }
                if let Some(gtid) = gtid {
                    write!(formatter, ", GTID {gtid}")?;
                }
                if let Some(file) = file {
                    write!(formatter, ", binlog file {file}")?;
                }
                if let Some(position) = position {
                    write!(formatter, ", position {position}")?;
                }
                row.map_or(Ok(()), |row| write!(formatter, ", row {row}"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    fn origin(headers: &[(&str, &str)], value: &str) -> Option<Origin> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        let mut record = batch.record();
        record.read_from(topic, 0, 5).value(value.as_bytes());
        for (name, value) in headers {
            record.header(name, Some(value.as_bytes()));
        }
        record.finish();
        Origin::of(batch.get(0))
    }

    #[test]
    fn a_line_has_its_file_and_byte() {
        let found = origin(&[("trunkline.path", "/v/a.log"), ("trunkline.offset", "120")], "{}").unwrap();
        assert_eq!(found.to_string(), "the line at byte 120 of /v/a.log");
    }

    #[test]
    fn a_row_has_its_transaction_and_place() {
        let table = [("trunkline.database", "shop"), ("trunkline.table", "orders")];
        let value =
            r#"{"op":"u","source":{"gtid":"3e11:7","file":"binlog.000003","pos":157,"row":2,"snapshot":"false"}}"#;
        let found = origin(&table, value).unwrap().to_string();
        assert_eq!(found, "a row of shop.orders, GTID 3e11:7, binlog file binlog.000003, position 157, row 2");
        let value = r#"{"source":{"gtid":null,"file":"b.1","pos":4,"row":0,"snapshot":"true"}}"#;
        assert!(origin(&table, value).unwrap().to_string().starts_with("a row of shop.orders, read by a snapshot,"));
        let ordered =
            [&table[..], &[("trunkline.order", "1764395000.0000000012.0000000000004711.0000000003")]].concat();
        let found = origin(&ordered, r#"{"id":1}"#).unwrap().to_string();
        assert_eq!(found, "a row of shop.orders, binlog file number 12, position 4711, row 3");
        assert_eq!(origin(&table, r#"{"id":1}"#).unwrap().to_string(), "a row of shop.orders");
        assert_eq!(origin(&[], "{}"), None);
    }
}
