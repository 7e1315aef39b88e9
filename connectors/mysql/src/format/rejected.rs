//! `on_malformed = "dead_letter"`: rows that cannot be decoded are rejected with their bytes and
//! their origin, and the source continues after them. Stream and snapshot reject rows in the same
//! form.

use trunkline_connector::{Reason, Rejections};

use super::table::Table;

/// Header with the binlog file of rejected bytes; for a row of a snapshot, as in `source.file`.
const BINLOG_FILE: &str = "trunkline.binlog_file";
/// Header with the end of their event in the file; for a row of a snapshot, as in `source.pos`.
const BINLOG_POS: &str = "trunkline.binlog_pos";
/// Header with the index of their first row within the event, or within the rows that the snapshot
/// read with one query.
const ROW: &str = "trunkline.row";
/// Header with the GTID of their transaction.
const GTID: &str = "trunkline.gtid";
/// Header of rows that a snapshot read.
const SNAPSHOT: &str = "trunkline.snapshot";

/// Bytes of rows that cannot be decoded, and their origin.
pub(crate) struct MalformedRows<'a> {
    /// The table, unless it is unknown.
    pub(crate) table: Option<&'a Table>,
    /// The key, if it could be decoded.
    pub(crate) key: Option<&'a [u8]>,
    /// The bytes; `None` if they have values that the configuration hides.
    pub(crate) bytes: Option<&'a [u8]>,
    pub(crate) file: &'a str,
    pub(crate) pos: u64,
    /// The index of the first row.
    pub(crate) row: u64,
    pub(crate) gtid: Option<&'a str>,
    pub(crate) is_snapshot: bool,
    /// The time of the commit, or of the read, in milliseconds since the Unix epoch.
    pub(crate) time: i64,
}

impl MalformedRows<'_> {
    /// Rejects the bytes.
    pub(crate) fn reject(&self, rejected: &mut Rejections, message: String) {
        rejected.push_with(Reason::new("mysql.malformed", message), |record| {
            record.timestamp(self.time);
            if let Some(key) = self.key {
                record.key(key);
            }
            if let Some(bytes) = self.bytes {
                record.value(bytes);
            }
            if let Some(table) = self.table {
                record.ordering_key(table.ordering_key).header_block(&table.tombstone_headers);
            }
            record.header(BINLOG_FILE, Some(self.file.as_bytes()));
            record.header(BINLOG_POS, Some(self.pos.to_string().as_bytes()));
            record.header(ROW, Some(self.row.to_string().as_bytes()));
            if let Some(gtid) = self.gtid {
                record.header(GTID, Some(gtid.as_bytes()));
            }
            if self.is_snapshot {
                record.header(SNAPSHOT, Some(b"true"));
            }
        });
    }
}
