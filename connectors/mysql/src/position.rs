//! What is remembered: how far the binlog has been handed out (key `stream`), and how far the snapshot of each table is (key `table/DATABASE.TABLE`).
//!
//! `stream` names whole transactions that are done, by GTIDs where the server has them, otherwise by file and offset, and how much of
//! one more: rows events, and rows of the next event. The server sends that transaction again, from its start, and so much is passed
//! over. Rows events are counted whether their tables are chosen or not, so that another choice of tables does not shift the count.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use trunkline_connector::{Error, Result};

use crate::format::transaction_metadata::Counts;
use crate::gtid::{Domains, GtidSet, UuidSet};

/// Key of the binlog's position.
pub(crate) const STREAM: &str = "stream";
/// What keys of tables begin with.
const TABLE: &str = "table/";

/// How far the binlog has been handed out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StreamPosition {
    /// All transactions that are done; `None` if the server has no GTIDs.
    pub(crate) done: Option<GtidSet>,
    /// The end of the last one.
    pub(crate) place: Place,
    /// What has been handed out of a transaction that is not done.
    pub(crate) part: Option<Part>,
}

/// A place in the binlog.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) file: String,
    pub(crate) pos: u64,
}

impl PartialOrd for Place {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Place {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // `binlog.999999` is followed by `binlog.1000000`: the number counts, not the text.
        (number_of(&self.file), &self.file, self.pos).cmp(&(number_of(&other.file), &other.file, other.pos))
    }
}

fn number_of(file: &str) -> u64 {
    file.rsplit('.').next().and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// Some of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Part {
    /// Its GTID, if the server has them; otherwise it is the one that begins at the place.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) gtid: Option<String>,
    /// Rows events that have been handed out whole.
    pub(crate) events: u64,
    /// Rows of the next event that have been.
    pub(crate) rows: u64,
    /// How many changes of which tables that was, if its markers tell; empty while its beginning is not marked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) counts: Option<Counts>,
}

/// How far the snapshot of a table is. A table without an entry has not been begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TablePosition {
    /// Every row is handed out.
    Done,
    /// Every row up to this key is: its columns as SQL literals.
    After(Vec<String>),
    /// The same, of a snapshot that was asked for. Nothing is handed out yet while the key is empty.
    Again(Vec<String>),
    /// The same, of those rows that fulfil a condition.
    Where {
        /// What follows WHERE.
        condition: String,
        after: Vec<String>,
    },
}

impl TablePosition {
    /// Only these rows are wanted.
    pub(crate) fn condition(&self) -> Option<&str> {
        if let Self::Where { condition, .. } = self { Some(condition) } else { None }
    }

    /// The key up to which rows are handed out.
    pub(crate) fn after(&self) -> Option<&[String]> {
        match self {
            Self::After(key) | Self::Again(key) | Self::Where { after: key, .. } if !key.is_empty() => Some(key),
            _ => None,
        }
    }
}

/// `stream` as stored.
#[derive(Serialize, Deserialize)]
struct Stored {
    #[serde(skip_serializing_if = "Option::is_none")]
    gtids: Option<String>,
    /// MariaDB's, which are another notation.
    #[serde(skip_serializing_if = "Option::is_none")]
    mariadb_gtids: Option<String>,
    #[serde(flatten)]
    place: Place,
    #[serde(skip_serializing_if = "Option::is_none")]
    part: Option<Part>,
}

impl StreamPosition {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        let (gtids, mariadb_gtids) = match &self.done {
            Some(GtidSet::MySql(set)) => (Some(set.to_string()), None),
            Some(GtidSet::MariaDb(domains)) => (None, Some(domains.to_string())),
            None => (None, None),
        };
        to_json(&Stored { gtids, mariadb_gtids, place: self.place.clone(), part: self.part.clone() })
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        let stored: Stored = from_json(bytes)?;
        let done = match (stored.gtids, stored.mariadb_gtids) {
            (Some(text), _) => {
                let set = UuidSet::parse(&text).ok_or_else(|| wrong(&format!("`{text}` is no GTID set")))?;
                Some(GtidSet::MySql(set))
            }
            (None, Some(text)) => {
                let domains =
                    Domains::parse(&text).ok_or_else(|| wrong(&format!("`{text}` are no GTIDs of MariaDB")))?;
                Some(GtidSet::MariaDb(domains))
            }
            (None, None) => None,
        };
        Ok(Self { done, place: stored.place, part: stored.part })
    }
}

impl TablePosition {
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>> {
        to_json(self)
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self> {
        from_json(bytes)
    }
}

/// A stored position, taken apart.
pub(crate) fn read_position(
    stored: &[(String, Vec<u8>)],
) -> Result<(Option<StreamPosition>, BTreeMap<String, TablePosition>)> {
    let mut stream = None;
    let mut tables = BTreeMap::new();
    for (key, value) in stored {
        if key == STREAM {
            stream = Some(StreamPosition::from_bytes(value)?);
        } else if let Some(table) = table_of(key) {
            tables.insert(table.to_owned(), TablePosition::from_bytes(value)?);
        }
    }
    Ok((stream, tables))
}

/// The key of a table's position.
pub(crate) fn table_key(full_name: &str) -> String {
    format!("{TABLE}{full_name}")
}

/// The table of a key.
pub(crate) fn table_of(key: &str) -> Option<&str> {
    key.strip_prefix(TABLE)
}

fn to_json(value: &impl Serialize) -> Result<Vec<u8>> {
    serde_json::to_vec(value).map_err(|error| Error::internal("mysql.position", error.to_string()))
}

fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| wrong(&error.to_string()))
}

fn wrong(why: &str) -> Error {
    Error::data(
        "mysql.position",
        format!("the stored position cannot be read: {why}. It was written by another version, or by hand"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_come_back() {
        let position = StreamPosition {
            done: UuidSet::parse("3e11fa47-71ca-11e1-9e33-c80aa9429562:1-5:tag:7").map(GtidSet::MySql),
            place: Place { file: "binlog.000003".to_owned(), pos: 157 },
            part: Some(Part {
                gtid: Some("3e11fa47-71ca-11e1-9e33-c80aa9429562:6".to_owned()),
                events: 2,
                rows: 9,
                counts: Some([("a.b".to_owned(), 3)].into()),
            }),
        };
        assert_eq!(StreamPosition::from_bytes(&position.to_bytes().unwrap()).unwrap(), position);
        let mariadb = Domains::parse("0-1-5+1:7-9").map(GtidSet::MariaDb);
        let mariadb = StreamPosition { done: mariadb, ..position.clone() };
        assert_eq!(StreamPosition::from_bytes(&mariadb.to_bytes().unwrap()).unwrap(), mariadb);
        let plain = StreamPosition { done: None, part: None, ..position };
        assert_eq!(StreamPosition::from_bytes(&plain.to_bytes().unwrap()).unwrap(), plain);
        let key = || vec!["1".to_owned(), "_utf8mb4 x'61'".to_owned()];
        let condition = TablePosition::Where { condition: "a > 1".to_owned(), after: key() };
        for table in [TablePosition::Done, TablePosition::After(key()), TablePosition::Again(key()), condition] {
            assert_eq!(TablePosition::from_bytes(&table.to_bytes().unwrap()).unwrap(), table);
        }
        assert!(StreamPosition::from_bytes(b"{\"gtids\":\"x\",\"file\":\"\",\"pos\":0}").is_err());
        assert_eq!(table_of(&table_key("a.b")), Some("a.b"));
    }

    #[test]
    fn places_are_ordered_by_the_files_number() {
        let place = |file: &str, pos| Place { file: file.to_owned(), pos };
        assert!(place("b.999999", 900) < place("b.1000000", 4));
        assert!(place("b.000002", 4) < place("b.000002", 5));
    }
}
