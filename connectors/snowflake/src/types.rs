//! Types: Arrow to Snowflake, and Snowflake's names of types back.
//!
//! | values | column | staged as |
//! |---|---|---|
//! | signed integers | `NUMBER(38,0)` | decimal |
//! | unsigned 64-bit integers | `NUMBER(20,0)` | decimal |
//! | decimals of up to 38 digits | `NUMBER(p,s)` | decimal |
//! | other decimals, texts | `VARCHAR` | text |
//! | floats | `FLOAT`, which has 64 bits | float |
//! | times | `TIME` | text, because COPY does not state how it reads Parquet's times |
//! | dates, timestamps, bytes, booleans | the type of that kind | the same |
//! | lists, structs, JSON | `VARIANT` | JSON text, read by `PARSE_JSON` |
//! | geometries, by option | `GEOGRAPHY` | hexadecimal digits, read by `TO_GEOGRAPHY` |

use arrow::datatypes::{DataType, TimeUnit};
use trunkline_warehouse::ColumnType;

/// The longest text, in bytes. An account may allow more for new columns; every account allows
/// this.
pub(crate) const MAX_TEXT: u32 = 16_777_216;

/// The longest binary value, in bytes.
pub(crate) const MAX_BINARY: u32 = 8_388_608;

/// The most digits of a number.
pub(crate) const MAX_DIGITS: u8 = 38;

/// The type of a new column for values of an Arrow type; `None` if the type has no values.
pub(crate) fn column_type(data_type: &DataType, is_json: bool) -> Option<ColumnType> {
    Some(match data_type {
        DataType::Null => return None,
        _ if is_json => ColumnType::Json,
        DataType::Boolean => ColumnType::Boolean,
        // One type for all, so that a source that widens an integer changes nothing here.
        DataType::Int8
        | DataType::Int16
        | DataType::Int32
        | DataType::Int64
        | DataType::UInt8
        | DataType::UInt16
        | DataType::UInt32 => ColumnType::Decimal(MAX_DIGITS, 0),
        DataType::UInt64 => ColumnType::Decimal(20, 0),
        DataType::Decimal128(precision, scale) | DataType::Decimal256(precision, scale) => match u8::try_from(*scale) {
            Ok(scale) if *precision <= MAX_DIGITS && scale <= *precision && scale < MAX_DIGITS => {
                ColumnType::Decimal(*precision, scale)
            }
            _ => ColumnType::Text(MAX_TEXT),
        },
        DataType::Float16 | DataType::Float32 | DataType::Float64 => ColumnType::Float(64),
        DataType::Binary | DataType::LargeBinary | DataType::FixedSizeBinary(_) => ColumnType::Binary(MAX_BINARY),
        DataType::Date32 | DataType::Date64 => ColumnType::Date,
        DataType::Time32(_) | DataType::Time64(_) => ColumnType::Time,
        DataType::Timestamp(_, None) => ColumnType::Timestamp,
        DataType::Timestamp(_, Some(_)) => ColumnType::TimestampTz,
        DataType::List(_) | DataType::LargeList(_) | DataType::Struct(_) | DataType::Map(..) => ColumnType::Json,
        _ => ColumnType::Text(MAX_TEXT),
    })
}

/// The SQL text of a type.
pub(crate) fn sql_type(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Boolean => "BOOLEAN".to_owned(),
        ColumnType::Integer(_) => "NUMBER(38, 0)".to_owned(),
        ColumnType::Decimal(precision, scale) => format!("NUMBER({precision}, {scale})"),
        ColumnType::Float(_) => "FLOAT".to_owned(),
        ColumnType::Text(length) if *length < MAX_TEXT => format!("VARCHAR({length})"),
        ColumnType::Text(_) => "VARCHAR".to_owned(),
        ColumnType::Binary(length) if *length < MAX_BINARY => format!("BINARY({length})"),
        ColumnType::Binary(_) => "BINARY".to_owned(),
        ColumnType::Date => "DATE".to_owned(),
        ColumnType::Time => "TIME".to_owned(),
        ColumnType::Timestamp => "TIMESTAMP_NTZ".to_owned(),
        ColumnType::TimestampTz => "TIMESTAMP_TZ".to_owned(),
        ColumnType::Json => "VARIANT".to_owned(),
        ColumnType::Geography => "GEOGRAPHY".to_owned(),
        ColumnType::Other(name) => name.clone(),
    }
}

/// The Arrow type of a column in staged files.
pub(crate) fn parquet_type(column_type: &ColumnType) -> DataType {
    match column_type {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Integer(_) => DataType::Int64,
        ColumnType::Decimal(precision, scale) => DataType::Decimal128(*precision, i8::try_from(*scale).unwrap_or(0)),
        ColumnType::Float(_) => DataType::Float64,
        ColumnType::Binary(_) => DataType::Binary,
        ColumnType::Date => DataType::Date32,
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some("+00:00".into())),
        ColumnType::Text(_) | ColumnType::Time | ColumnType::Json | ColumnType::Geography | ColumnType::Other(_) => {
            DataType::Utf8
        }
    }
}

/// The SQL text of a type in a staging table.
pub(crate) fn staging_type(column_type: &ColumnType) -> String {
    match column_type {
        ColumnType::Time | ColumnType::Json | ColumnType::Geography | ColumnType::Text(_) | ColumnType::Other(_) => {
            "VARCHAR".to_owned()
        }
        ColumnType::Binary(_) => "BINARY".to_owned(),
        other => sql_type(other),
    }
}

/// The value of a target column from a column of the staging table.
pub(crate) fn load_expression(column_type: &ColumnType, column: &str) -> String {
    match column_type {
        ColumnType::Time => format!("TO_TIME({column})"),
        ColumnType::Json => format!("PARSE_JSON({column})"),
        // TRUE: a polygon that crosses itself is stored, too. The sink has checked all else.
        ColumnType::Geography => format!("TO_GEOGRAPHY({column}, TRUE)"),
        _ => column.to_owned(),
    }
}

/// Reads a type as `DESCRIBE TABLE` prints it.
pub(crate) fn parse_type(text: &str) -> ColumnType {
    let upper = text.trim().to_ascii_uppercase();
    let (name, arguments) = match upper.split_once('(') {
        Some((name, rest)) => (name.trim(), rest.split(')').next().unwrap_or_default()),
        None => (upper.as_str(), ""),
    };
    let mut numbers = arguments.split(',').map_while(|number| number.trim().parse::<u32>().ok());
    let (first, second) = (numbers.next(), numbers.next());
    let digits = |number: Option<u32>, default: u8| number.and_then(|n| u8::try_from(n).ok()).unwrap_or(default);
    match name {
        "NUMBER" | "DECIMAL" | "NUMERIC" | "INT" | "INTEGER" | "BIGINT" => {
            ColumnType::Decimal(digits(first, MAX_DIGITS), digits(second, 0))
        }
        "FLOAT" | "DOUBLE" | "REAL" => ColumnType::Float(64),
        // The length counts characters. Texts with characters of several bytes are taken for too
        // long earlier than necessary: the column is then widened.
        "VARCHAR" | "TEXT" | "STRING" | "CHAR" => ColumnType::Text(first.unwrap_or(MAX_TEXT)),
        "BINARY" | "VARBINARY" => ColumnType::Binary(first.unwrap_or(MAX_BINARY)),
        "BOOLEAN" => ColumnType::Boolean,
        "DATE" => ColumnType::Date,
        "TIME" => ColumnType::Time,
        "TIMESTAMP_NTZ" | "DATETIME" => ColumnType::Timestamp,
        "TIMESTAMP_LTZ" | "TIMESTAMP_TZ" => ColumnType::TimestampTz,
        "VARIANT" | "OBJECT" | "ARRAY" => ColumnType::Json,
        "GEOGRAPHY" => ColumnType::Geography,
        _ => ColumnType::Other(text.trim().to_owned()),
    }
}

/// Whether `ALTER COLUMN .. SET DATA TYPE` can change the first type into the second. Snowflake
/// makes texts and binaries longer, and numbers longer without a change of their scale.
pub(crate) fn can_alter(from: &ColumnType, to: &ColumnType) -> bool {
    match (from, to) {
        (ColumnType::Text(from), ColumnType::Text(to)) => from <= to && *to <= MAX_TEXT,
        (ColumnType::Binary(from), ColumnType::Binary(to)) => from <= to && *to <= MAX_BINARY,
        (ColumnType::Decimal(from, scale), ColumnType::Decimal(to, other_scale)) => {
            from <= to && scale == other_scale && *to <= MAX_DIGITS
        }
        (ColumnType::Decimal(_, 0), ColumnType::Integer(_)) => false,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_of_the_catalog_are_read_back() {
        for (data_type, is_json, sql) in [
            (DataType::Boolean, false, "BOOLEAN"),
            (DataType::Int8, false, "NUMBER(38, 0)"),
            (DataType::UInt64, false, "NUMBER(20, 0)"),
            (DataType::Decimal128(10, 2), false, "NUMBER(10, 2)"),
            (DataType::Decimal128(38, 38), false, "VARCHAR"),
            (DataType::Decimal256(65, 30), false, "VARCHAR"),
            (DataType::Float32, false, "FLOAT"),
            (DataType::Utf8, false, "VARCHAR"),
            (DataType::Utf8, true, "VARIANT"),
            (DataType::Binary, false, "BINARY"),
            (DataType::Date32, false, "DATE"),
            (DataType::Time64(TimeUnit::Microsecond), false, "TIME"),
            (DataType::Timestamp(TimeUnit::Microsecond, None), false, "TIMESTAMP_NTZ"),
            (DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())), false, "TIMESTAMP_TZ"),
            (DataType::Struct(Vec::<arrow::datatypes::Field>::new().into()), false, "VARIANT"),
        ] {
            let made = column_type(&data_type, is_json).unwrap();
            assert_eq!(sql_type(&made), sql, "{data_type}");
            assert_eq!(parse_type(&sql_type(&made)), made, "{data_type}");
        }
        assert_eq!(column_type(&DataType::Null, false), None);
        assert_eq!(parse_type("TIMESTAMP_LTZ(9)"), ColumnType::TimestampTz);
        assert_eq!(parse_type("VARCHAR(16777216)"), ColumnType::Text(MAX_TEXT));
        assert_eq!(parse_type("VARCHAR(10)"), ColumnType::Text(10));
        assert_eq!(parse_type("GEOGRAPHY"), ColumnType::Geography);
        assert_eq!(load_expression(&ColumnType::Geography, "\"AT\""), "TO_GEOGRAPHY(\"AT\", TRUE)");
        assert_eq!(parse_type("GEOMETRY"), ColumnType::Other("GEOMETRY".to_owned()));
        assert_eq!(parse_type("VECTOR(FLOAT, 256)"), ColumnType::Other("VECTOR(FLOAT, 256)".to_owned()));
    }

    #[test]
    fn columns_are_altered_only_as_the_service_allows() {
        use ColumnType::{Decimal, Float, Text};
        assert!(can_alter(&Text(10), &Text(MAX_TEXT)));
        assert!(can_alter(&Decimal(10, 2), &Decimal(12, 2)));
        assert!(!can_alter(&Decimal(10, 2), &Decimal(12, 3)));
        assert!(!can_alter(&Decimal(10, 0), &Float(64)));
        assert!(!can_alter(&Text(10), &Text(9)));
    }
}
