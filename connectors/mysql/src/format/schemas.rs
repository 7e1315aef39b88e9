//! The Arrow schemas of records: rows, and changes of definitions.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema as ArrowSchema, TimeUnit};
use trunkline_connector::{Error, Result, Schema};

use super::options::{BinaryFormat, Envelope, FormatOptions, ZeroDates};
use crate::schema::column_mode::ColumnMode;
use crate::schema::types::{Column, ColumnType};

fn schema_of(arrow: ArrowSchema) -> Result<Schema> {
    Schema::new(Arc::new(arrow)).map_err(|error| Error::internal("mysql.schema", error.to_string()))
}

/// The schema of a table's records.
pub(super) fn row_schema(columns: &[Column], key: &[usize], format: FormatOptions) -> Result<Schema> {
    let included = columns.iter().filter(|column| column.mode != ColumnMode::Exclude);
    let row: Fields = included.map(|column| arrow_field(column, format)).collect();
    let key_names: Vec<&str> = key.iter().map(|index| columns[*index].name.as_str()).collect();
    let metadata =
        if key.is_empty() { HashMap::new() } else { HashMap::from([("primary_key".to_owned(), key_names.join(","))]) };
    let fields = match format.envelope {
        Envelope::Row => row,
        Envelope::Debezium => {
            let mut fields = vec![
                Field::new("before", DataType::Struct(row.clone()), true),
                Field::new("after", DataType::Struct(row), true),
                source_field(false, format.query),
                Field::new("op", DataType::Utf8, false),
                Field::new("ts_ms", DataType::Int64, false),
            ];
            if format.transaction_block {
                fields.push(transaction_field());
            }
            Fields::from(fields)
        }
    };
    schema_of(ArrowSchema::new_with_metadata(fields, metadata))
}

/// The `source` block. A statement about a database has no table.
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

/// The envelope's `transaction` block.
fn transaction_field() -> Field {
    let block = vec![
        Field::new("id", DataType::Utf8, false),
        Field::new("total_order", DataType::Int64, false),
        Field::new("data_collection_order", DataType::Int64, false),
    ];
    Field::new("transaction", DataType::Struct(block.into()), true)
}

/// The schema of schema changes (port `ddl`). It omits members that are always null or empty.
pub(crate) fn definition_schema() -> Result<Schema> {
    schema_of(ArrowSchema::new(vec![
        source_field(true, false),
        Field::new("ts_ms", DataType::Int64, false),
        Field::new("databaseName", DataType::Utf8, false),
        Field::new("schemaName", DataType::Utf8, true),
        Field::new("ddl", DataType::Utf8, false),
    ]))
}

/// The schema of transaction markers (port `transaction`).
pub(crate) fn marker_schema() -> Result<Schema> {
    let collection =
        vec![Field::new("data_collection", DataType::Utf8, false), Field::new("event_count", DataType::Int64, false)];
    let collections = Field::new("item", DataType::Struct(collection.into()), false);
    schema_of(ArrowSchema::new(vec![
        Field::new("status", DataType::Utf8, false),
        Field::new("id", DataType::Utf8, false),
        Field::new("ts_ms", DataType::Int64, false),
        Field::new("event_count", DataType::Int64, true),
        Field::new("data_collections", DataType::List(Arc::new(collections)), true),
    ]))
}

fn arrow_field(column: &Column, format: FormatOptions) -> Field {
    let column_type = &column.column_type;
    let has_zero_dates =
        matches!(column_type, ColumnType::Date | ColumnType::DateTime { .. } | ColumnType::Timestamp { .. });
    let nullable = column.nullable || (has_zero_dates && format.zero_dates != ZeroDates::String);
    if matches!(column.mode, ColumnMode::Masked(_)) {
        return Field::new(&column.name, DataType::Utf8, nullable);
    }
    let source_type = column_type.source_type();
    let metadata: HashMap<_, _> = source_type.map(|name| ("mysql.type".to_owned(), name)).into_iter().collect();
    Field::new(&column.name, arrow_type(column_type, format), nullable).with_metadata(metadata)
}

fn arrow_type(column_type: &ColumnType, format: FormatOptions) -> DataType {
    let temporal = |data_type| if format.zero_dates == ZeroDates::String { DataType::Utf8 } else { data_type };
    let is_number = format.unit(column_type).is_some();
    match column_type {
        ColumnType::Int { bytes, unsigned } => match (bytes, unsigned) {
            (1, false) => DataType::Int8,
            (1, true) => DataType::UInt8,
            (2, false) => DataType::Int16,
            (2, true) => DataType::UInt16,
            (3 | 4, false) => DataType::Int32,
            (3 | 4, true) => DataType::UInt32,
            (_, false) => DataType::Int64,
            (_, true) => DataType::UInt64,
        },
        ColumnType::Year => DataType::Int32,
        ColumnType::Float => DataType::Float32,
        ColumnType::Double => DataType::Float64,
        ColumnType::Decimal { precision, scale } if *precision <= 38 => DataType::Decimal128(*precision, *scale as i8),
        ColumnType::Decimal { precision, scale } => DataType::Decimal256(*precision, *scale as i8),
        ColumnType::Bit { bits: 1 } => DataType::Boolean,
        ColumnType::Bit { .. } => DataType::UInt64,
        // Readers of JSON do not accept a number for an Arrow date, so the field is declared as a
        // number.
        ColumnType::Date if is_number => DataType::Int32,
        ColumnType::DateTime { .. } | ColumnType::Timestamp { .. } | ColumnType::Time { .. } if is_number => {
            DataType::Int64
        }
        ColumnType::Date => temporal(DataType::Date32),
        ColumnType::DateTime { .. } => temporal(DataType::Timestamp(TimeUnit::Microsecond, None)),
        ColumnType::Timestamp { .. } => temporal(DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into()))),
        // A TIME may be negative or longer than a day, which no Arrow time can hold.
        ColumnType::Time { .. }
        | ColumnType::Text { .. }
        | ColumnType::Enum { .. }
        | ColumnType::Set { .. }
        | ColumnType::Json
        | ColumnType::Uuid
        | ColumnType::Inet4
        | ColumnType::Inet6 => DataType::Utf8,
        ColumnType::Binary => binary_type(format),
        ColumnType::Geometry => DataType::Struct(
            vec![Field::new("srid", DataType::UInt32, false), Field::new("wkb", binary_type(format), false)].into(),
        ),
        ColumnType::Vector => DataType::List(Arc::new(Field::new("item", DataType::Float32, false))),
    }
}

fn binary_type(format: FormatOptions) -> DataType {
    match format.binary {
        BinaryFormat::Base64 => DataType::Binary,
        BinaryFormat::Hex => DataType::Utf8,
    }
}
