//! The stored position of a source: how far the binlog was processed (key `stream`), and the
//! progress of each table's snapshot (key `table/DATABASE.TABLE`).
//!
//! `stream` identifies the processed transactions, by GTIDs where the server has them, otherwise by
//! file and offset, and the processed part of the next transaction: its rows events, and rows of
//! the next rows event. After a restart the server sends that transaction again from its start, and
//! the source skips the processed part. The count includes rows events of tables that are not
//! captured, so a change of `tables` does not shift it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result};

use crate::format::transaction_metadata::Counts;
use crate::gtid::{Domains, GtidSet, UuidSet};
use crate::schema::table_name::TableName;

/// Key of the position in the binlog.
pub(crate) const STREAM: &str = "stream";
/// Prefix of the keys of tables.
const TABLE: &str = "table/";

/// The position in the stream of transactions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// The processed transactions; `None` if the server has no GTIDs.
    pub(crate) processed: Option<GtidSet>,
    /// The end of the last processed transaction.
    pub(crate) end: BinlogPosition,
    /// The processed part of the next transaction.
    pub(crate) partial: Option<PartialTransaction>,
    /// Identifies the binlog that `end` refers to.
    pub(crate) anchor: Option<BinlogAnchor>,
    /// The history that positions belong to; `None` if an earlier version stored the position.
    pub(crate) epoch: Option<Epoch>,
}

/// Numbers the histories that a source has followed. Positions of another server, or of a binlog
/// after its reset, may be lower than earlier ones; a higher epoch shows that they are later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Epoch {
    pub(crate) number: u64,
    /// The server's identity.
    pub(crate) server: String,
}

impl Epoch {
    /// The epoch of a history that begins at this time (seconds since the Unix epoch). The time
    /// makes it grow even if the stored one was deleted.
    pub(crate) fn begin(previous: Option<&Self>, server: &str, now: i64) -> Self {
        let next = previous.map_or(1, |previous| previous.number + 1);
        Self { number: next.max(u64::try_from(now).unwrap_or(0)), server: server.to_owned() }
    }
}

/// Facts that identify a server's binlog. A server whose binlog was reset, or whose data was
/// restored, assigns the same GTIDs and offsets to other transactions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BinlogAnchor {
    /// The server's identity.
    pub(crate) server: String,
    pub(crate) file: String,
    /// The creation of the file, in seconds since the Unix epoch.
    pub(crate) created: u32,
    /// The last processed transaction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) transaction: Option<AnchorTransaction>,
}

/// A transaction in the file of an anchor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AnchorTransaction {
    /// The offset of its first event.
    pub(crate) pos: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gtid: Option<String>,
    /// The time of its commit on the server, in microseconds since the Unix epoch.
    pub(crate) written_at: u64,
}

/// The progress of the stream, as a snapshot needs it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StreamState<'a> {
    pub(crate) position: &'a StreamPosition,
    /// The end of the last event.
    pub(crate) reached: &'a BinlogPosition,
    /// The end of the last transaction since the source opened.
    pub(crate) last_end: &'a BinlogPosition,
    /// No transaction is unfinished.
    pub(crate) is_between_transactions: bool,
}

impl StreamState<'_> {
    /// Whether the stream has passed this position, between two transactions.
    pub(crate) fn has_passed(&self, position: &BinlogPosition) -> bool {
        self.is_between_transactions && self.reached >= position
    }
}

/// An offset in a binlog file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct BinlogPosition {
    pub(crate) file: String,
    pub(crate) pos: u64,
}

impl BinlogPosition {
    pub(crate) fn file_number(&self) -> u64 {
        file_number(&self.file)
    }
}

/// The number of a binlog file: `binlog.1000000` follows `binlog.999999`.
pub(crate) fn file_number(file: &str) -> u64 {
    file.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

impl PartialOrd for BinlogPosition {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for BinlogPosition {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.file_number(), &self.file, self.pos).cmp(&(other.file_number(), &other.file, other.pos))
    }
}

/// The processed part of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PartialTransaction {
    /// Its GTID, if the server has GTIDs; otherwise it is the transaction at the position's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gtid: Option<String>,
    /// The number of rows events that were processed completely.
    pub(crate) events: u64,
    /// The number of processed rows of the next rows event.
    pub(crate) rows: u64,
    /// The number of changes per table, with `transaction_markers`; `None` if its `BEGIN` record
    /// was not written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counts: Option<Counts>,
}

/// A column of a key, with everything that determines the order of its values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyColumn {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) column_type: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) collation: Option<String>,
}

/// A position in the order of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeyPosition {
    /// The key of a row, as SQL literals.
    pub(crate) literals: Vec<String>,
    /// The key that the literals belong to; `None` if an earlier version stored the position.
    pub(crate) columns: Option<Vec<KeyColumn>>,
}

impl KeyPosition {
    /// Whether the literals have the same meaning for this key: the same columns in the same order.
    pub(crate) fn is_valid_for(&self, key: &[KeyColumn]) -> bool {
        self.literals.len() == key.len() && self.columns.as_deref().is_none_or(|columns| columns == key)
    }
}

/// The progress of a table's snapshot. A table whose snapshot did not start has no entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TablePosition {
    /// Every row was emitted.
    Done,
    Running(SnapshotProgress),
}

/// The progress of an unfinished snapshot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SnapshotProgress {
    /// `trunkline snapshot` requested it.
    pub(crate) is_requested: bool,
    /// The SQL condition (after WHERE) that restricts the rows.
    pub(crate) condition: Option<String>,
    /// Every row up to this key was emitted.
    pub(crate) after: Option<KeyPosition>,
    /// How often a consistent read emitted rows and failed.
    pub(crate) failures: u32,
}

/// The stored form of a [`TablePosition`]. Only earlier versions wrote `After`, `Again` and
/// `Where`.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum StoredTable {
    Done,
    After(Vec<String>),
    Again(Vec<String>),
    Where { condition: String, after: Vec<String> },
    Snapshot(StoredSnapshot),
}

#[derive(Serialize, Deserialize)]
struct StoredSnapshot {
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    requested: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    condition: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    after: Option<Vec<String>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Vec<KeyColumn>>,
    #[serde(default, skip_serializing_if = "is_zero")]
    failures: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

impl From<StoredTable> for TablePosition {
    fn from(stored: StoredTable) -> Self {
        let running = |is_requested, condition, literals: Vec<String>| {
            let after = (!literals.is_empty()).then_some(KeyPosition { literals, columns: None });
            Self::Running(SnapshotProgress { is_requested, condition, after, failures: 0 })
        };
        match stored {
            StoredTable::Done => Self::Done,
            StoredTable::After(literals) => running(false, None, literals),
            StoredTable::Again(literals) => running(true, None, literals),
            StoredTable::Where { condition, after } => running(true, Some(condition), after),
            StoredTable::Snapshot(StoredSnapshot { requested, condition, after, key, failures }) => {
                let after = after.map(|literals| KeyPosition { literals, columns: key });
                Self::Running(SnapshotProgress { is_requested: requested, condition, after, failures })
            }
        }
    }
}

impl TablePosition {
    /// The progress of an unfinished snapshot.
    pub(crate) fn running(&self) -> Option<&SnapshotProgress> {
        if let Self::Running(progress) = self { Some(progress) } else { None }
    }

    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        to_json(&match self.clone() {
            Self::Done => StoredTable::Done,
            Self::Running(SnapshotProgress { is_requested, condition, after, failures }) => {
                let (after, key) = match after {
                    Some(KeyPosition { literals, columns }) => (Some(literals), columns),
                    None => (None, None),
                };
                StoredTable::Snapshot(StoredSnapshot { requested: is_requested, condition, after, key, failures })
            }
        })
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json::<StoredTable>(bytes).map(Self::from)
    }
}

/// The stored form of a [`StreamPosition`].
#[derive(Serialize, Deserialize)]
struct StoredStream {
    #[serde(skip_serializing_if = "Option::is_none")]
    gtids: Option<String>,
    /// In MariaDB's notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    mariadb_gtids: Option<String>,
    #[serde(flatten)]
    end: BinlogPosition,
    #[serde(rename = "part", skip_serializing_if = "Option::is_none")]
    partial: Option<PartialTransaction>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    anchor: Option<BinlogAnchor>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoch: Option<Epoch>,
}

impl StreamPosition {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let (gtids, mariadb_gtids) = match &self.processed {
            Some(GtidSet::MySql(set)) => (Some(set.to_string()), None),
            Some(GtidSet::MariaDb(domains)) => (None, Some(domains.to_string())),
            None => (None, None),
        };
        to_json(&StoredStream {
            gtids,
            mariadb_gtids,
            end: self.end.clone(),
            partial: self.partial.clone(),
            anchor: self.anchor.clone(),
            epoch: self.epoch.clone(),
        })
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let stored: StoredStream = from_json(bytes)?;
        let invalid = |text: &str| unreadable(&format!("`{text}` is not a GTID set"));
        let processed = match (stored.gtids, stored.mariadb_gtids) {
            (Some(text), _) => Some(GtidSet::MySql(UuidSet::parse(&text).ok_or_else(|| invalid(&text))?)),
            (None, Some(text)) => Some(GtidSet::MariaDb(Domains::parse(&text).ok_or_else(|| invalid(&text))?)),
            (None, None) => None,
        };
        let StoredStream { end, partial, anchor, epoch, .. } = stored;
        Ok(Self { processed, end, partial, anchor, epoch })
    }
}

/// A stored position: the stream's, and those of tables.
#[derive(Debug, Default)]
pub(crate) struct StoredPosition {
    pub(crate) stream: Option<StreamPosition>,
    pub(crate) tables: BTreeMap<TableName, TablePosition>,
    /// Keys that no longer identify a table.
    pub(crate) obsolete_keys: Vec<String>,
}

impl StoredPosition {
    pub(crate) fn read(stored: &[(String, Vec<u8>)]) -> Result<Self> {
        let mut position = Self::default();
        for (key, value) in stored {
            if key == STREAM {
                position.stream = Some(StreamPosition::from_bytes(value)?);
            } else if let Some(table) = table_of(key) {
                position.tables.insert(table, TablePosition::from_bytes(value)?);
            } else if key.starts_with(TABLE) {
                // An earlier version joined the parts of the name without escaping a `.` within
                // them, so the table is unknown. It is read again.
                position.obsolete_keys.push(key.clone());
            }
        }
        Ok(position)
    }
}

/// The key of a table's position.
pub(crate) fn table_key(table: &TableName) -> String {
    format!("{TABLE}{}", table.key())
}

/// The table of a key.
pub(crate) fn table_of(key: &str) -> Option<TableName> {
    TableName::from_key(key.strip_prefix(TABLE)?)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("mysql.position", error.to_string()))
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| unreadable(&error.to_string()))
}

fn unreadable(why: &str) -> Error {
    Error::data(
        "mysql.position",
        format!("cannot read the stored position: {why}; another version wrote it; create a source with another name"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_survive_a_round_trip() {
        let position = StreamPosition {
            processed: UuidSet::parse("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:tag:7").map(GtidSet::MySql),
            end: BinlogPosition { file: "binlog.000003".to_owned(), pos: 157 },
            partial: Some(PartialTransaction {
                gtid: Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:6".to_owned()),
                events: 2,
                rows: 9,
                counts: Some([("a.b".to_owned(), 3)].into()),
            }),
            anchor: Some(BinlogAnchor {
                server: "3e11fa47-71ca-11e1-9e33-c80aa9429562".to_owned(),
                file: "binlog.000003".to_owned(),
                created: 1_764_300_000,
                transaction: Some(AnchorTransaction { pos: 100, gtid: None, written_at: 1_764_300_001_000_002 }),
            }),
            epoch: Some(Epoch::begin(None, "3e11fa47-71ca-11e1-9e33-c80aa9429562", 1_764_300_000)),
        };
        assert_eq!(StreamPosition::from_bytes(&position.to_bytes().unwrap()).unwrap(), position);
        let mariadb = Domains::parse("0-1-5+1:7-9").map(GtidSet::MariaDb);
        let mariadb = StreamPosition { processed: mariadb, ..position.clone() };
        assert_eq!(StreamPosition::from_bytes(&mariadb.to_bytes().unwrap()).unwrap(), mariadb);
        let plain = StreamPosition { processed: None, partial: None, anchor: None, ..position };
        assert_eq!(StreamPosition::from_bytes(&plain.to_bytes().unwrap()).unwrap(), plain);
        let column = |name: &str, collation: Option<&str>| KeyColumn {
            name: name.to_owned(),
            column_type: "varchar(9)".to_owned(),
            collation: collation.map(str::to_owned),
        };
        let key = KeyPosition {
            literals: vec!["1".to_owned(), "_utf8mb4 x'61'".to_owned()],
            columns: Some(vec![column("a", None), column("b", Some("utf8mb4_bin"))]),
        };
        let condition = Some("a > 1".to_owned());
        let progress = SnapshotProgress { is_requested: true, condition, after: Some(key), failures: 2 };
        for table in [TablePosition::Done, TablePosition::Running(progress), TablePosition::Running(Default::default())]
        {
            assert_eq!(TablePosition::from_bytes(&table.to_bytes().unwrap()).unwrap(), table);
        }
        assert!(StreamPosition::from_bytes(b"{\"gtids\":\"x\",\"file\":\"\",\"pos\":0}").is_err());
        let name = TableName::new("a", "b");
        assert_eq!(table_of(&table_key(&name)), Some(name));
    }

    #[test]
    fn positions_of_earlier_versions_are_readable() {
        let stream = br#"{"gtids":"3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5","file":"binlog.000003","pos":157,"part":{"gtid":"3e11fa47-71ca-11e1-9e33-c80aa9429562:6","events":2,"rows":9,"counts":{"a.b":3}}}"#;
        let stream = StreamPosition::from_bytes(stream).unwrap();
        assert_eq!((stream.end.pos, stream.partial.map(|partial| partial.rows)), (157, Some(9)));
        let stream = StreamPosition::from_bytes(br#"{"mariadb_gtids":"0-1-5","file":"b.1","pos":4}"#).unwrap();
        assert_eq!(stream.processed, Domains::parse("0-1-5").map(GtidSet::MariaDb));
        for (stored, after, condition) in [
            ("\"done\"", None, None),
            ("{\"after\":[\"1\"]}", Some("1"), None),
            ("{\"again\":[]}", None, None),
            ("{\"again\":[\"2\"]}", Some("2"), None),
            ("{\"where\":{\"condition\":\"a > 1\",\"after\":[\"3\"]}}", Some("3"), Some("a > 1")),
        ] {
            let table = TablePosition::from_bytes(stored.as_bytes()).unwrap();
            let progress = table.running().cloned().unwrap_or_default();
            assert_eq!(progress.after.map(|key| key.literals[0].clone()).as_deref(), after, "{stored}");
            assert_eq!(progress.condition.as_deref(), condition, "{stored}");
        }
    }

    #[test]
    fn a_position_is_valid_for_its_own_key_only() {
        let column = |name: &str, column_type: &str, collation: Option<&str>| KeyColumn {
            name: name.to_owned(),
            column_type: column_type.to_owned(),
            collation: collation.map(str::to_owned),
        };
        let (a, b) = (column("a", "int", None), column("b", "varchar(9)", Some("utf8mb4_bin")));
        let literals = || vec!["1".to_owned(), "x'61'".to_owned()];
        let position = KeyPosition { literals: literals(), columns: Some(vec![a.clone(), b.clone()]) };
        assert!(position.is_valid_for(&[a.clone(), b.clone()]));
        let collated = column("b", "varchar(9)", Some("utf8mb4_0900_ai_ci"));
        for other in [vec![b.clone(), a.clone()], vec![a.clone()], vec![a.clone(), collated], Vec::new()] {
            assert!(!position.is_valid_for(&other), "{other:?}");
        }
        // An earlier version stored no columns.
        let old = KeyPosition { literals: literals(), columns: None };
        assert!(old.is_valid_for(&[b, a.clone()]) && !old.is_valid_for(&[a]));
    }

    #[test]
    fn every_epoch_is_higher_than_the_ones_before() {
        let first = Epoch::begin(None, "a", 1_764_300_000);
        assert_eq!(first.number, 1_764_300_000);
        // A second history in the same second, and a clock that was set back.
        let second = Epoch::begin(Some(&first), "b", 1_764_300_000);
        assert_eq!((second.number, second.server.as_str()), (1_764_300_001, "b"));
        assert_eq!(Epoch::begin(Some(&second), "a", 5).number, 1_764_300_002);
        // Without a stored one, the time decides.
        assert!(Epoch::begin(None, "a", 1_764_400_000).number > second.number);
    }

    #[test]
    fn positions_are_ordered_by_the_number_of_the_file() {
        let at = |file: &str, pos| BinlogPosition { file: file.to_owned(), pos };
        assert!(at("b.999999", 900) < at("b.1000000", 4));
        assert!(at("b.000002", 4) < at("b.000002", 5));
    }
}
