//! Columns and their types, as far as values need them.

use std::fmt::Write as _;
use std::sync::Arc;

use super::charset::Charset;
use super::column_mode::ColumnMode;

/// The type of a column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum ColumnType {
    /// An integer of 1, 2, 3, 4 or 8 bytes.
    Int {
        bytes: u8,
        unsigned: bool,
    },
    Year,
    Float,
    Double,
    Decimal {
        precision: u8,
        scale: u8,
    },
    Bit {
        bits: u8,
    },
    Date,
    /// `digits`, here and below: digits of the fraction of a second.
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
    Text {
        charset: Arc<Charset>,
    },
    Binary,
    Enum {
        members: Arc<[String]>,
    },
    Set {
        members: Arc<[String]>,
    },
    Json,
    Geometry,
    Vector,
    /// MariaDB only, as are the next two.
    Uuid,
    Inet4,
    Inet6,
}

impl ColumnType {
    /// MySQL's name of a type that the Arrow type does not identify.
    pub(crate) fn source_type(&self) -> Option<String> {
        let list = |name: &str, members: &[String]| {
            let mut text = format!("{name}(");
            for (index, member) in members.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                // Writing to a string cannot fail.
                let _ = write!(text, "{comma}'{}'", member.replace('\'', "''"));
            }
            text + ")"
        };
        Some(match self {
            Self::Int { bytes: 3, unsigned: false } => "mediumint".to_owned(),
            Self::Int { bytes: 3, unsigned: true } => "mediumint unsigned".to_owned(),
            Self::Year => "year".to_owned(),
            Self::Bit { bits } => format!("bit({bits})"),
            Self::Time { digits } => format!("time({digits})"),
            Self::DateTime { digits } => format!("datetime({digits})"),
            Self::Timestamp { digits } => format!("timestamp({digits})"),
            Self::Enum { members } => list("enum", members),
            Self::Set { members } => list("set", members),
            Self::Json => "json".to_owned(),
            Self::Geometry => "geometry".to_owned(),
            Self::Vector => "vector".to_owned(),
            Self::Uuid => "uuid".to_owned(),
            Self::Inet4 => "inet4".to_owned(),
            Self::Inet6 => "inet6".to_owned(),
            _ => return None,
        })
    }
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) column_type: ColumnType,
    pub(crate) nullable: bool,
    pub(crate) mode: ColumnMode,
}

impl Column {
    /// A column whose values are included unchanged.
    pub(crate) fn new(name: String, column_type: ColumnType, nullable: bool) -> Self {
        Self { name, column_type, nullable, mode: ColumnMode::Include }
    }
}
