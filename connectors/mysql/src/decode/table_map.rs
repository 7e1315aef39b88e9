//! The table map event, which describes the columns of the row images after it. With
//! `binlog_row_metadata = FULL` it contains everything that decoding needs, so the connector parses
//! no DDL: a changed table has another table map.

use std::sync::Arc;

use super::rows::Storage;
use super::{Bytes, Malformed, packed_bytes};
use crate::schema::charset::{BINARY_COLLATION, Charset, Charsets};
use crate::schema::table_name::TableName;
use crate::schema::types::{Column, ColumnType};

/// The table that a table map names.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TableMapName<'a> {
    /// The number by which rows events refer to the table.
    pub(crate) number: u64,
    pub(crate) database: &'a str,
    pub(crate) table: &'a str,
    /// The bytes after the names.
    rest: &'a [u8],
}

/// The columns of a table map.
#[derive(Debug)]
pub(crate) struct TableMap {
    pub(crate) columns: Vec<Column>,
    pub(crate) storage: Vec<Storage>,
    pub(crate) key: Vec<usize>,
}

/// The reason why a table map cannot be used.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// The bytes are invalid.
    Malformed(Malformed),
    /// The server omits names and character sets.
    NoMetadata,
    /// A column cannot be decoded: its name and the reason.
    Column(String, String),
}

impl From<Malformed> for Unusable {
    fn from(malformed: Malformed) -> Self {
        Self::Malformed(malformed)
    }
}

impl<'a> TableMapName<'a> {
    pub(crate) fn read(event: &'a [u8]) -> Result<Self, Malformed> {
        let mut bytes = Bytes::new(event);
        let number = bytes.little(6)?;
        bytes.take(2)?;
        let mut name = || -> Result<&'a str, Malformed> {
            let length = usize::from(bytes.u8()?);
            let name = bytes.take(length)?;
            bytes.take(1)?;
            std::str::from_utf8(name).map_err(|_| Malformed::new("the name of a table is not UTF-8"))
        };
        let (database, table) = (name()?, name()?);
        Ok(Self { number, database, table, rest: bytes.rest() })
    }

    pub(crate) fn table_name(&self) -> TableName {
        TableName::new(self.database, self.table)
    }
}

/// The binlog's type numbers.
mod types {
    pub(super) const TINY: u8 = 1;
    pub(super) const SHORT: u8 = 2;
    pub(super) const LONG: u8 = 3;
    pub(super) const FLOAT: u8 = 4;
    pub(super) const DOUBLE: u8 = 5;
    pub(super) const OLD_TIMESTAMP: u8 = 7;
    pub(super) const LONGLONG: u8 = 8;
    pub(super) const INT24: u8 = 9;
    pub(super) const DATE: u8 = 10;
    pub(super) const OLD_TIME: u8 = 11;
    pub(super) const OLD_DATETIME: u8 = 12;
    pub(super) const YEAR: u8 = 13;
    pub(super) const VARCHAR: u8 = 15;
    pub(super) const BIT: u8 = 16;
    pub(super) const TIMESTAMP2: u8 = 17;
    pub(super) const DATETIME2: u8 = 18;
    pub(super) const TIME2: u8 = 19;
    pub(super) const COMPRESSED_BLOB: u8 = 140;
    pub(super) const COMPRESSED_VARCHAR: u8 = 141;
    pub(super) const VECTOR: u8 = 242;
    pub(super) const JSON: u8 = 245;
    pub(super) const DECIMAL: u8 = 246;
    pub(super) const ENUM: u8 = 247;
    pub(super) const SET: u8 = 248;
    pub(super) const BLOB: u8 = 252;
    pub(super) const STRING: u8 = 254;
    pub(super) const GEOMETRY: u8 = 255;
}

/// The reason why a date or time in the old storage format cannot be decoded.
pub(crate) const OLD_FORMAT: &str = "it is stored in the format before MySQL 5.6; set mysql56_temporal_format = ON, then ALTER TABLE .. FORCE converts it";
/// The reason why MariaDB's compressed columns cannot be decoded.
pub(crate) const COMPRESSED: &str = "it is COMPRESSED; ALTER TABLE .. MODIFY it without COMPRESSED";

/// A column without its optional metadata.
struct Raw {
    kind: u8,
    first: u8,
    second: u8,
}

impl Raw {
    fn read(kind: u8, metadata: &mut Bytes<'_>) -> Result<Self, Malformed> {
        use types::*;
        let count = match kind {
            VARCHAR | COMPRESSED_VARCHAR | DECIMAL | BIT | STRING | ENUM | SET => 2,
            COMPRESSED_BLOB | FLOAT | DOUBLE | BLOB | GEOMETRY | JSON | VECTOR | TIME2 | DATETIME2 | TIMESTAMP2 => 1,
            _ => 0,
        };
        let metadata = metadata.take(count)?;
        let first = metadata.first().copied().unwrap_or(0);
        let second = metadata.get(1).copied().unwrap_or(0);
        // CHAR, BINARY, ENUM and SET share a type number. The metadata distinguishes them, mixed
        // with bits of a long CHAR's length.
        let kind = if kind == STRING && first & 0x30 == 0x30 { first } else { kind };
        Ok(Self { kind, first, second })
    }

    fn is_numeric(&self) -> bool {
        use types::*;
        matches!(self.kind, TINY | SHORT | INT24 | LONG | LONGLONG | DECIMAL | FLOAT | DOUBLE | YEAR)
    }

    fn is_text(&self) -> bool {
        matches!(self.kind, types::STRING | types::VARCHAR | types::BLOB)
    }

    fn is_list(&self) -> bool {
        matches!(self.kind, types::ENUM | types::SET)
    }
}

/// The optional metadata.
#[derive(Default)]
struct Metadata<'a> {
    unsigned: &'a [u8],
    names: Vec<&'a [u8]>,
    /// By index among the text columns.
    text_collations: Collations,
    /// By index among the columns of ENUM or SET.
    list_collations: Collations,
    sets: Vec<Vec<&'a [u8]>>,
    enums: Vec<Vec<&'a [u8]>>,
    key: Vec<usize>,
}

/// Collations of some of the columns: a list, or a default with exceptions.
#[derive(Default)]
struct Collations {
    default: Option<u64>,
    exceptions: Vec<(u64, u64)>,
    all: Vec<u64>,
}

impl Collations {
    fn read_default(body: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = Bytes::new(body);
        let default = Some(bytes.packed()?);
        let mut exceptions = Vec::new();
        while !bytes.is_empty() {
            exceptions.push((bytes.packed()?, bytes.packed()?));
        }
        Ok(Self { default, exceptions, all: Vec::new() })
    }

    fn read_all(body: &[u8]) -> Result<Self, Malformed> {
        Ok(Self { all: numbers(body)?, ..Self::default() })
    }

    fn of(&self, index: usize) -> Option<u64> {
        let exception = self.exceptions.iter().find(|(column, _)| *column == index as u64);
        self.all.get(index).copied().or(exception.map(|(_, collation)| *collation)).or(self.default)
    }
}

fn numbers(body: &[u8]) -> Result<Vec<u64>, Malformed> {
    let mut bytes = Bytes::new(body);
    let mut numbers = Vec::new();
    while !bytes.is_empty() {
        numbers.push(bytes.packed()?);
    }
    Ok(numbers)
}

fn lists(body: &[u8]) -> Result<Vec<Vec<&[u8]>>, Malformed> {
    let mut bytes = Bytes::new(body);
    let mut lists = Vec::new();
    while !bytes.is_empty() {
        let mut members = Vec::new();
        for _ in 0..bytes.packed()? {
            members.push(bytes.packed_bytes()?);
        }
        lists.push(members);
    }
    Ok(lists)
}

impl<'a> Metadata<'a> {
    fn read(mut bytes: Bytes<'a>) -> Result<Self, Malformed> {
        let mut metadata = Self::default();
        while !bytes.is_empty() {
            let kind = bytes.u8()?;
            let body = bytes.packed_bytes()?;
            match kind {
                1 => metadata.unsigned = body,
                2 => metadata.text_collations = Collations::read_default(body)?,
                3 => metadata.text_collations = Collations::read_all(body)?,
                4 => {
                    let mut names = Bytes::new(body);
                    while !names.is_empty() {
                        metadata.names.push(names.packed_bytes()?);
                    }
                }
                5 => metadata.sets = lists(body)?,
                6 => metadata.enums = lists(body)?,
                8 => metadata.key = numbers(body)?.into_iter().map(|index| index as usize).collect(),
                // Pairs of a column and the length of the indexed prefix.
                9 => metadata.key = numbers(body)?.chunks(2).map(|pair| pair[0] as usize).collect(),
                10 => metadata.list_collations = Collations::read_default(body)?,
                11 => metadata.list_collations = Collations::read_all(body)?,
                // Geometry types, visibility, dimensions and later additions: decoding does not
                // need them.
                _ => {}
            }
        }
        Ok(metadata)
    }
}

impl TableMap {
    /// Reads the bytes after the names.
    pub(crate) fn read(name: &TableMapName<'_>, charsets: &Charsets, is_mariadb: bool) -> Result<Self, Unusable> {
        let mut bytes = Bytes::new(name.rest);
        let count = usize::try_from(bytes.packed()?).unwrap_or(usize::MAX);
        let kinds = bytes.take(count)?;
        let mut block = Bytes::new(bytes.packed_bytes()?);
        let raw = kinds.iter().map(|kind| Raw::read(*kind, &mut block)).collect::<Result<Vec<_>, _>>()?;
        let nullable = bytes.take(count.div_ceil(8))?;
        let metadata = Metadata::read(bytes)?;
        if metadata.names.len() != count {
            return Err(Unusable::NoMetadata);
        }
        let mut builder = Builder { metadata, charsets, is_mariadb, numeric: 0, texts: 0, lists: 0, enums: 0, sets: 0 };
        let mut columns = Vec::with_capacity(count);
        let mut storage = Vec::with_capacity(count);
        for (index, raw) in raw.iter().enumerate() {
            let name = String::from_utf8_lossy(builder.metadata.names[index]).into_owned();
            let (kind, stored) = builder.column(raw).map_err(|why| Unusable::Column(name.clone(), why))?;
            let nullable = nullable[index / 8] >> (index % 8) & 1 == 1;
            columns.push(Column::new(name, kind, nullable));
            storage.push(stored);
        }
        let key = builder.metadata.key;
        if key.iter().any(|index| *index >= count) {
            return Err(Malformed::new("the primary key names a column that the table does not have").into());
        }
        Ok(Self { columns, storage, key })
    }
}

/// The collations of a table map's columns.
pub(crate) fn collations_of(name: &TableMapName<'_>) -> Result<Vec<u64>, Malformed> {
    let mut bytes = Bytes::new(name.rest);
    let count = usize::try_from(bytes.packed()?).unwrap_or(usize::MAX);
    bytes.take(count)?;
    bytes.packed_bytes()?;
    bytes.take(count.div_ceil(8))?;
    let metadata = Metadata::read(bytes)?;
    let of = |collations: &Collations| {
        let exceptions = collations.exceptions.iter().map(|(_, collation)| *collation);
        exceptions.chain(collations.default).chain(collations.all.iter().copied()).collect::<Vec<_>>()
    };
    Ok([of(&metadata.text_collations), of(&metadata.list_collations)].concat())
}

struct Builder<'a> {
    metadata: Metadata<'a>,
    charsets: &'a Charsets,
    is_mariadb: bool,
    /// Counters per sort of column: the optional metadata indexes each sort separately.
    numeric: usize,
    texts: usize,
    lists: usize,
    enums: usize,
    sets: usize,
}

fn next(counter: &mut usize) -> usize {
    *counter += 1;
    *counter - 1
}

impl Builder<'_> {
    fn column(&mut self, raw: &Raw) -> Result<(ColumnType, Storage), String> {
        use types::*;
        let unsigned = raw.is_numeric() && {
            let index = next(&mut self.numeric);
            self.metadata.unsigned.get(index / 8).is_some_and(|byte| byte >> (7 - index % 8) & 1 == 1)
        };
        // MariaDB lists a geometry among the columns with a collation.
        let collation = if raw.is_text() || self.is_mariadb && raw.kind == GEOMETRY {
            self.metadata.text_collations.of(next(&mut self.texts))
        } else if raw.is_list() {
            self.metadata.list_collations.of(next(&mut self.lists))
        } else {
            None
        };
        let int = |bytes: u8| (ColumnType::Int { bytes, unsigned }, Storage::Int { bytes, unsigned });
        Ok(match raw.kind {
            TINY => int(1),
            SHORT => int(2),
            INT24 => int(3),
            LONG => int(4),
            LONGLONG => int(8),
            YEAR => (ColumnType::Year, Storage::Year),
            FLOAT => (ColumnType::Float, Storage::Float),
            DOUBLE => (ColumnType::Double, Storage::Double),
            DECIMAL => {
                let (precision, scale) = (raw.first, raw.second);
                if !(1..=65).contains(&precision) || scale > precision {
                    return Err(format!("DECIMAL({precision},{scale}) does not exist"));
                }
                (ColumnType::Decimal { precision, scale }, Storage::Fixed(packed_bytes(precision, scale)))
            }
            BIT => {
                let bits = raw.second.saturating_mul(8).saturating_add(raw.first);
                if !(1..=64).contains(&bits) {
                    return Err(format!("BIT({bits}) does not exist"));
                }
                (ColumnType::Bit { bits }, Storage::Bits(usize::from(bits).div_ceil(8)))
            }
            DATE => (ColumnType::Date, Storage::Date),
            TIME2 => (ColumnType::Time { digits: digits(raw)? }, Storage::Time { digits: raw.first }),
            DATETIME2 => (ColumnType::DateTime { digits: digits(raw)? }, Storage::DateTime { digits: raw.first }),
            TIMESTAMP2 => (ColumnType::Timestamp { digits: digits(raw)? }, Storage::Timestamp { digits: raw.first }),
            VARCHAR => {
                let longest = u16::from_le_bytes([raw.first, raw.second]);
                (self.text(collation)?, Storage::Bytes { prefix: if longest > 255 { 2 } else { 1 }, padded_to: 0 })
            }
            STRING => {
                let kind = self.text(collation)?;
                let longest = usize::from(raw.second) | usize::from(raw.first & 0x30 ^ 0x30) << 4;
                let padded_to = if kind == ColumnType::Binary { longest } else { 0 };
                (kind, Storage::Bytes { prefix: if longest > 255 { 2 } else { 1 }, padded_to })
            }
            BLOB => (self.text(collation)?, blob(raw)?),
            ENUM | SET => self.members(raw, collation)?,
            JSON => match blob(raw)? {
                Storage::Bytes { prefix, .. } => (ColumnType::Json, Storage::Json { prefix }),
                other => (ColumnType::Json, other),
            },
            GEOMETRY => (ColumnType::Geometry, blob(raw)?),
            VECTOR => (ColumnType::Vector, blob(raw)?),
            OLD_TIMESTAMP | OLD_TIME | OLD_DATETIME => return Err(OLD_FORMAT.to_owned()),
            COMPRESSED_BLOB | COMPRESSED_VARCHAR => return Err(COMPRESSED.to_owned()),
            other => return Err(format!("its type number {other} is unknown")),
        })
    }

    fn members(&mut self, raw: &Raw, collation: Option<u64>) -> Result<(ColumnType, Storage), String> {
        let bytes = usize::from(raw.second);
        if !(1..=8).contains(&bytes) {
            return Err(format!("an ENUM or SET of {bytes} bytes does not exist"));
        }
        let is_enum = raw.kind == types::ENUM;
        let (lists, index) = if is_enum {
            (&self.metadata.enums, next(&mut self.enums))
        } else {
            (&self.metadata.sets, next(&mut self.sets))
        };
        let members = lists.get(index).ok_or("the binlog lacks its members")?;
        let charset = self.charset(collation)?;
        let members = members.iter().map(|member| charset.decode(member).into_owned()).collect();
        Ok(if is_enum {
            (ColumnType::Enum { members }, Storage::Enum { bytes })
        } else {
            (ColumnType::Set { members }, Storage::Set { bytes })
        })
    }

    fn text(&self, collation: Option<u64>) -> Result<ColumnType, String> {
        Ok(match collation {
            Some(BINARY_COLLATION) => ColumnType::Binary,
            collation => ColumnType::Text { charset: self.charset(collation)?.clone() },
        })
    }

    fn charset(&self, collation: Option<u64>) -> Result<&Arc<Charset>, String> {
        let collation = collation.ok_or("the binlog lacks its collation")?;
        self.charsets.by_collation(collation).ok_or_else(|| format!("its collation {collation} is unknown"))
    }
}

fn digits(raw: &Raw) -> Result<u8, String> {
    if raw.first > 6 { Err(format!("{} digits of a second's fraction", raw.first)) } else { Ok(raw.first) }
}

fn blob(raw: &Raw) -> Result<Storage, String> {
    match raw.first {
        prefix @ 1..=4 => Ok(Storage::Bytes { prefix, padded_to: 0 }),
        other => Err(format!("a length of {other} bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn utf8() -> Charset {
        Charset::multi_byte("utf8mb4").unwrap()
    }

    fn charsets() -> Charsets {
        Charsets::new(vec![utf8()], vec![(255, "utf8mb4".to_owned())])
    }

    #[test]
    fn a_table_map_is_decoded() {
        let mut event = vec![7, 0, 0, 0, 0, 0, 1, 0];
        event.extend_from_slice(b"\x01d\0\x01t\0");
        event.push(4);
        event.extend_from_slice(&[types::LONG, types::STRING, types::STRING, types::DECIMAL]);
        // CHAR(300 bytes): 0x12c; ENUM in 1 byte; DECIMAL(10,2)
        event.extend_from_slice(&[8, 0xee, 0x2c, types::ENUM, 1, 10, 2, 0, 0]);
        event.truncate(event.len() - 2);
        let at = event.len() - 7;
        event[at] = 6;
        event.push(0b1010);
        event.extend_from_slice(&[1, 1, 0b1000_0000]);
        event.extend_from_slice(&[2, 2, 0xfc, 255]);
        event.truncate(event.len() - 4);
        event.extend_from_slice(&[2, 3, 0xfc, 255, 0]);
        event.extend_from_slice(&[4, 8, 1, b'a', 1, b'b', 1, b'c', 1, b'd']);
        event.extend_from_slice(&[6, 5, 2, 1, b'x', 1, b'y']);
        event.extend_from_slice(&[8, 1, 0]);
        event.extend_from_slice(&[10, 3, 0xfc, 255, 0]);
        let name = TableMapName::read(&event).unwrap();
        assert_eq!((name.number, name.database, name.table), (7, "d", "t"));
        let map = TableMap::read(&name, &charsets(), false).unwrap();
        let kinds: Vec<_> = map.columns.iter().map(|column| column.column_type.clone()).collect();
        assert_eq!(
            kinds,
            [
                ColumnType::Int { bytes: 4, unsigned: true },
                ColumnType::Text { charset: Arc::new(utf8()) },
                ColumnType::Enum { members: vec!["x".to_owned(), "y".to_owned()].into() },
                ColumnType::Decimal { precision: 10, scale: 2 },
            ]
        );
        assert_eq!(map.storage[1], Storage::Bytes { prefix: 2, padded_to: 0 });
        assert_eq!(map.columns.iter().map(|column| column.nullable).collect::<Vec<_>>(), [false, true, false, true]);
        assert_eq!(map.key, [0]);
        // Without the optional metadata.
        let end = event.len() - 34;
        let name = TableMapName::read(&event[..end]).unwrap();
        assert!(matches!(
            TableMap::read(&name, &charsets(), false),
            Err(Unusable::NoMetadata | Unusable::Malformed(_))
        ));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..80), count in 0u8..6) {
            let mut event = vec![7, 0, 0, 0, 0, 0, 1, 0];
            event.extend_from_slice(b"\x01d\0\x01t\0");
            event.push(count);
            event.extend_from_slice(&bytes);
            if let Ok(name) = TableMapName::read(&event) {
                let _ = TableMap::read(&name, &charsets(), false);
                let _ = TableMap::read(&name, &charsets(), true);
                let _ = collations_of(&name);
            }
            let _ = TableMapName::read(&bytes);
        }
    }
}
