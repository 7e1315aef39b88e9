//! What a table looks like: its columns with all that decides how a value is written, its key, and the schema that its records name.
//!
//! A table is described twice: by the binlog's table map event for streamed rows, and by `information_schema` for a snapshot. Both make the same
//! [`Table`], so that a row is the same record whichever way it came.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema, TimeUnit};
use trunkline_connector::batch::write_header;
use trunkline_connector::{Error, Result, Schema, headers, json};

use crate::config::{BinaryAs, DecimalAs, Envelope, MysqlOptions, TimesAs, ZeroDates};
use crate::format::transaction_metadata as marks;
use crate::schema::charset::Charset;
use crate::schema::column_filter::Shown;

/// Header with the database of a record; `{@database}` in templates.
pub(crate) const DATABASE: &str = "trunkline.database";
/// Header with the table of a record; `{@table}` in templates.
pub(crate) const TABLE: &str = "trunkline.table";

/// A type, as far as values need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Of 1, 2, 3, 4 or 8 bytes.
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
    /// Each with its digits of a second's fraction.
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
    /// MariaDB's.
    Uuid,
    Inet4,
    Inet6,
}

/// A column.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) nullable: bool,
    pub(crate) shown: Shown,
}

impl Column {
    /// A column that is written as it is.
    pub(crate) fn new(name: String, kind: Kind, nullable: bool) -> Self {
        Self { name, kind, nullable, shown: Shown::AsIs }
    }
}

/// How values are written, as the options say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Style {
    pub(crate) envelope: Envelope,
    pub(crate) decimals: DecimalAs,
    pub(crate) binary: BinaryAs,
    pub(crate) zero_dates: ZeroDates,
    pub(crate) times: TimesAs,
    /// Changes tell which one of their transaction they are.
    pub(crate) transactions: bool,
    /// Changes tell the statement that made them.
    pub(crate) query: bool,
}

impl Style {
    pub(crate) fn of(options: &MysqlOptions) -> Self {
        Self {
            envelope: options.envelope,
            decimals: options.decimals,
            binary: options.binary,
            zero_dates: options.zero_dates,
            times: options.times,
            transactions: options.transaction_markers,
            query: options.query,
        }
    }
}

/// What numbers of times count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Milliseconds,
    Microseconds,
}

impl Style {
    /// What a time of this kind is counted in; `None` if it is written in ISO 8601. Dates that are not are counted in days.
    pub(crate) fn unit(&self, kind: &Kind) -> Option<Unit> {
        match (self.times, kind) {
            (TimesAs::Iso, _) | (TimesAs::Adaptive, Kind::Timestamp { .. }) => None,
            (TimesAs::EpochMs, _) | (TimesAs::Adaptive, Kind::DateTime { digits: 0..=3 }) => Some(Unit::Milliseconds),
            (TimesAs::EpochUs | TimesAs::Adaptive, _) => Some(Unit::Microseconds),
        }
    }
}

/// A table with everything that its records share, worked out once.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) database: String,
    pub(crate) name: String,
    pub(crate) columns: Vec<Column>,
    /// Indices of the primary key's columns, in the key's order; empty without a key.
    pub(crate) key: Vec<usize>,
    pub(crate) style: Style,
    pub(crate) schema: Arc<Schema>,
    /// Per column `"name":` in JSON.
    pub(crate) names_json: Vec<Vec<u8>>,
    /// `"db":"..","table":".."`
    pub(crate) source_json: Vec<u8>,
    /// The headers of every record that has a value.
    pub(crate) headers: Vec<u8>,
    /// The headers of a tombstone: it has no value, and so no schema.
    pub(crate) tombstone_headers: Vec<u8>,
    /// Records without a key keep their order by this.
    pub(crate) ordering_key: u32,
}

impl Table {
    pub(crate) fn new(
        database: String,
        name: String,
        columns: Vec<Column>,
        key: Vec<usize>,
        style: Style,
    ) -> Result<Self> {
        let schema = schema(&columns, &key, style).map_err(|error| error.context(format!("{database}.{name}")))?;
        let member = |name: &str| {
            let mut json = Vec::new();
            json::write_string(&mut json, name);
            json.push(b':');
            json
        };
        let mut source_json = b"\"db\":".to_vec();
        json::write_string(&mut source_json, &database);
        source_json.extend_from_slice(b",\"table\":");
        json::write_string(&mut source_json, &name);
        let mut tombstone_headers = Vec::new();
        write_header(&mut tombstone_headers, DATABASE, Some(database.as_bytes()));
        write_header(&mut tombstone_headers, TABLE, Some(name.as_bytes()));
        let mut headers = tombstone_headers.clone();
        write_header(&mut headers, headers::SCHEMA, Some(schema.id().to_string().as_bytes()));
        let ordering_key = xxhash_rust::xxh3::xxh3_64(format!("{database}.{name}").as_bytes()) as u32;
        Ok(Self {
            names_json: columns.iter().map(|column| member(&column.name)).collect(),
            database,
            name,
            columns,
            key,
            style,
            schema: Arc::new(schema),
            source_json,
            headers,
            tombstone_headers,
            ordering_key,
        })
    }

    /// Names of the primary key's columns, in the key's order.
    pub(crate) fn key_names(&self) -> impl Iterator<Item = &str> {
        self.key.iter().filter_map(|index| self.columns.get(*index)).map(|column| column.name.as_str())
    }

    /// `database.table`.
    pub(crate) fn full_name(&self) -> String {
        format!("{}.{}", self.database, self.name)
    }
}

/// The schema of a table's records.
fn schema(columns: &[Column], key: &[usize], style: Style) -> Result<Schema> {
    let shown = columns.iter().filter(|column| column.shown != Shown::LeftOut);
    let row: Fields = shown.map(|column| arrow_field(column, style)).collect();
    let key_names: Vec<&str> = key.iter().map(|index| columns[*index].name.as_str()).collect();
    let metadata =
        if key.is_empty() { HashMap::new() } else { HashMap::from([("primary_key".to_owned(), key_names.join(","))]) };
    let fields = match style.envelope {
        Envelope::Row => row,
        Envelope::Debezium => {
            let mut fields = vec![
                Field::new("before", DataType::Struct(row.clone()), true),
                Field::new("after", DataType::Struct(row), true),
                source_field(false, style.query),
                Field::new("op", DataType::Utf8, false),
                Field::new("ts_ms", DataType::Int64, false),
            ];
            if style.transactions {
                fields.push(marks::block_field());
            }
            Fields::from(fields)
        }
    };
    Schema::new(Arc::new(ArrowSchema::new_with_metadata(fields, metadata)))
        .map_err(|error| Error::internal("mysql.schema", error.to_string()))
}

/// The block `source`. Statements on a database have no table.
fn source_field(table_is_nullable: bool, with_query: bool) -> Field {
    let text = |name: &str, nullable| Field::new(name, DataType::Utf8, nullable);
    let number = |name: &str, nullable| Field::new(name, DataType::Int64, nullable);
    let mut source = vec![
        text("version", false),
        text("connector", false),
        text("name", false),
        number("ts_ms", false),
        text("snapshot", false),
        text("db", false),
        text("table", table_is_nullable),
        number("server_id", false),
        text("gtid", true),
        text("file", false),
        number("pos", false),
        number("row", false),
        number("thread", true),
    ];
    if with_query {
        source.push(text("query", true));
    }
    Field::new("source", DataType::Struct(source.into()), false)
}

/// The schema of changes of definitions. What is always null or empty in them has none.
pub(crate) fn definition_schema() -> Result<Schema> {
    let fields = vec![
        source_field(true, false),
        Field::new("ts_ms", DataType::Int64, false),
        Field::new("databaseName", DataType::Utf8, false),
        Field::new("schemaName", DataType::Utf8, true),
        Field::new("ddl", DataType::Utf8, false),
    ];
    Schema::new(Arc::new(ArrowSchema::new(fields))).map_err(|error| Error::internal("mysql.schema", error.to_string()))
}

fn arrow_field(column: &Column, style: Style) -> Field {
    let temporal = |kind| if style.zero_dates == ZeroDates::String { DataType::Utf8 } else { kind };
    let is_number = style.unit(&column.kind).is_some();
    let has_zero = matches!(column.kind, Kind::Date | Kind::DateTime { .. } | Kind::Timestamp { .. });
    let kind = match &column.kind {
        Kind::Int { bytes, unsigned } => match (bytes, unsigned) {
            (1, false) => DataType::Int8,
            (1, true) => DataType::UInt8,
            (2, false) => DataType::Int16,
            (2, true) => DataType::UInt16,
            (3 | 4, false) => DataType::Int32,
            (3 | 4, true) => DataType::UInt32,
            (_, false) => DataType::Int64,
            (_, true) => DataType::UInt64,
        },
        Kind::Year => DataType::Int32,
        Kind::Float => DataType::Float32,
        Kind::Double => DataType::Float64,
        Kind::Decimal { precision, scale } if *precision <= 38 => DataType::Decimal128(*precision, *scale as i8),
        Kind::Decimal { precision, scale } => DataType::Decimal256(*precision, *scale as i8),
        Kind::Bit { bits: 1 } => DataType::Boolean,
        Kind::Bit { .. } => DataType::UInt64,
        // A number is declared as one: readers of JSON take no number for a date.
        Kind::Date if is_number => DataType::Int32,
        Kind::DateTime { .. } | Kind::Timestamp { .. } | Kind::Time { .. } if is_number => DataType::Int64,
        Kind::Date => temporal(DataType::Date32),
        Kind::DateTime { .. } => temporal(DataType::Timestamp(TimeUnit::Microsecond, None)),
        Kind::Timestamp { .. } => temporal(DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
        // A TIME may be negative and longer than a day: no Arrow time can hold it.
        Kind::Time { .. } | Kind::Text { .. } | Kind::Enum { .. } | Kind::Set { .. } | Kind::Json => DataType::Utf8,
        Kind::Uuid | Kind::Inet4 | Kind::Inet6 => DataType::Utf8,
        Kind::Binary => binary_type(style),
        Kind::Geometry => DataType::Struct(
            vec![Field::new("srid", DataType::UInt32, false), Field::new("wkb", binary_type(style), false)].into(),
        ),
        Kind::Vector => DataType::List(Arc::new(Field::new("item", DataType::Float32, false))),
    };
    let nullable = column.nullable || (has_zero && style.zero_dates != ZeroDates::String);
    if matches!(column.shown, Shown::Masked(_)) {
        return Field::new(&column.name, DataType::Utf8, nullable);
    }
    let metadata: HashMap<_, _> = column.kind.told().map(|told| ("mysql.type".to_owned(), told)).into_iter().collect();
    Field::new(&column.name, kind, nullable).with_metadata(metadata)
}

fn binary_type(style: Style) -> DataType {
    match style.binary {
        BinaryAs::Base64 => DataType::Binary,
        BinaryAs::Hex => DataType::Utf8,
    }
}

impl Kind {
    /// MySQL's name of a type that the Arrow type does not tell.
    fn told(&self) -> Option<String> {
        let list = |name: &str, members: &[String]| {
            let mut told = format!("{name}(");
            for (index, member) in members.iter().enumerate() {
                let comma = if index == 0 { "" } else { "," };
                // Writing to a string cannot fail.
                let _ = write!(told, "{comma}'{}'", member.replace('\'', "''"));
            }
            told + ")"
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
