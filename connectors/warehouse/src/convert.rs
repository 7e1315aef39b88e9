//! Values of a batch as values of the target's columns. Every value is checked, so that the
//! destination refuses nothing that was staged: a value that does not fit is returned with its row.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, StringBuilder};
use arrow::compute::kernels::cmp::distinct;
use arrow::compute::{CastOptions, cast_with_options};
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use trunkline_objects::columns::json_text;

use crate::dialect::{ColumnType, Dialect};
use crate::geography::{hexadecimal, is_geometry};

/// A converted column.
pub(crate) struct Converted {
    /// The values; null where one was refused.
    pub(crate) array: ArrayRef,
    /// Rows whose value does not fit, with the reason.
    pub(crate) refused: Vec<(usize, String)>,
}

/// Values of this type can be in a column of that type, each one checked.
pub(crate) fn accepts(data_type: &DataType, column_type: &ColumnType) -> bool {
    use ColumnType as C;
    use DataType as D;
    match (data_type, column_type) {
        (_, C::Other(_)) => false,
        (_, C::Geography) => is_geometry(data_type),
        (D::Binary, _) => matches!(column_type, C::Binary(_)),
        (_, C::Text(_) | C::Json) => true,
        (D::Boolean, C::Boolean) => true,
        (data_type, C::Integer(_) | C::Decimal(..) | C::Float(64)) if data_type.is_integer() => true,
        (D::Decimal128(..) | D::Decimal256(..), C::Decimal(..)) => true,
        (D::Float32, C::Float(_)) | (D::Float64, C::Float(64)) => true,
        (D::Date32 | D::Utf8, C::Date) | (D::Date32, C::Timestamp) => true,
        (D::Time32(_) | D::Time64(_) | D::Utf8, C::Time) => true,
        (D::Timestamp(..) | D::Utf8, C::Timestamp) | (D::Timestamp(_, Some(_)) | D::Utf8, C::TimestampTz) => true,
        _ => false,
    }
}

/// The type that holds the values of both; `None` if there is none that keeps them as they are.
pub(crate) fn wider(have: &ColumnType, wanted: &ColumnType) -> Option<ColumnType> {
    use ColumnType::{Binary, Date, Decimal, Float, Integer, Text, Timestamp};
    let digits = |bits: u8| match bits {
        16 => 5,
        32 => 10,
        _ => 19,
    };
    let decimal = |left: (u8, u8), right: (u8, u8)| {
        let scale = left.1.max(right.1);
        let precision = (left.0 - left.1.min(left.0)).max(right.0 - right.1.min(right.0)) + scale;
        (precision <= 38).then_some(Decimal(precision, scale))
    };
    match (have, wanted) {
        (Integer(left), Integer(right)) => Some(Integer(*left.max(right))),
        (Integer(bits), Decimal(precision, scale)) | (Decimal(precision, scale), Integer(bits)) => {
            decimal((*precision, *scale), (digits(*bits), 0))
        }
        (Decimal(..), Decimal(..)) => match (have, wanted) {
            (Decimal(p1, s1), Decimal(p2, s2)) => decimal((*p1, *s1), (*p2, *s2)),
            _ => None,
        },
        (Float(left), Float(right)) => Some(Float(*left.max(right))),
        (Integer(16 | 32), Float(_)) | (Float(_), Integer(16 | 32)) => Some(Float(64)),
        (Text(left), Text(right)) => Some(Text(*left.max(right))),
        (Binary(left), Binary(right)) => Some(Binary(*left.max(right))),
        (Date, Timestamp) | (Timestamp, Date) => Some(Timestamp),
        _ => None,
    }
}

/// The bytes of the longest text or binary value; 0 for other types.
pub(crate) fn longest(array: &ArrayRef) -> usize {
    let lengths = |offsets: &[i32]| offsets.windows(2).map(|pair| (pair[1] - pair[0]) as usize).max().unwrap_or(0);
    match array.data_type() {
        DataType::Utf8 => lengths(array.as_string::<i32>().value_offsets()),
        DataType::Binary => lengths(array.as_binary::<i32>().value_offsets()),
        // As text: nested values are JSON, long decimals digits.
        DataType::Struct(_) | DataType::List(_) => {
            json_text(array).map(|text| lengths(text.as_string::<i32>().value_offsets())).unwrap_or(0)
        }
        _ => 80,
    }
}

/// Converts a column. `is_json`: the source declares its text to be JSON.
pub(crate) fn convert(
    array: &ArrayRef,
    is_json: bool,
    column_type: &ColumnType,
    dialect: &dyn Dialect,
) -> Result<Converted, ArrowError> {
    let mut refused = Vec::new();
    let converted = match column_type {
        ColumnType::Text(_) => checked_text(&text_of(array)?, column_type, dialect, &mut refused),
        ColumnType::Geography => hexadecimal(array, &mut refused)?,
        ColumnType::Json => checked_text(&json_of(array, is_json, &mut refused)?, column_type, dialect, &mut refused),
        ColumnType::Binary(most) => {
            let most = *most as usize;
            for (row, value) in array.as_binary::<i32>().iter().enumerate() {
                if let Some(value) = value.filter(|value| value.len() > most) {
                    refused.push((row, format!("has {} bytes; the column takes {most}", value.len())));
                }
            }
            Arc::clone(array)
        }
        _ => exact(array, &natural_type(column_type), &mut refused)?,
    };
    let parquet_type = dialect.parquet_type(column_type);
    let array = cast(&converted, &parquet_type, false)?;
    refused.sort_by_key(|(row, _)| *row);
    refused.dedup_by_key(|(row, _)| *row);
    Ok(Converted { array, refused })
}

fn cast(array: &ArrayRef, to: &DataType, safe: bool) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    cast_with_options(array, to, &CastOptions { safe, ..CastOptions::default() })
}

/// The Arrow type with the column's values.
fn natural_type(column_type: &ColumnType) -> DataType {
    match column_type {
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Integer(16) => DataType::Int16,
        ColumnType::Integer(32) => DataType::Int32,
        ColumnType::Integer(_) => DataType::Int64,
        ColumnType::Decimal(precision, scale) => DataType::Decimal128(*precision, *scale as i8),
        ColumnType::Float(32) => DataType::Float32,
        ColumnType::Float(_) => DataType::Float64,
        ColumnType::Binary(_) => DataType::Binary,
        ColumnType::Date => DataType::Date32,
        ColumnType::Time => DataType::Time64(TimeUnit::Microsecond),
        ColumnType::Timestamp => DataType::Timestamp(TimeUnit::Microsecond, None),
        ColumnType::TimestampTz => DataType::Timestamp(TimeUnit::Microsecond, Some(Arc::from("+00:00"))),
        ColumnType::Text(_) | ColumnType::Json | ColumnType::Geography | ColumnType::Other(_) => DataType::Utf8,
    }
}

/// Casts, and refuses every value that the cast changes.
fn exact(array: &ArrayRef, to: &DataType, refused: &mut Vec<(usize, String)>) -> Result<ArrayRef, ArrowError> {
    if array.data_type() == to {
        return Ok(Arc::clone(array));
    }
    let converted = cast(array, to, true)?;
    let mut refuse = |row: usize| {
        let shown = cast(&array.slice(row, 1), &DataType::Utf8, true);
        let shown = shown.map(|text| text.as_string::<i32>().iter().next().flatten().unwrap_or("").to_owned());
        refused.push((row, format!("{} does not fit", shown.unwrap_or_default())));
    };
    if *array.data_type() == DataType::Utf8 {
        // Text has several forms of the same value, so only a failed cast counts.
        (0..array.len()).filter(|row| array.is_valid(*row) && converted.is_null(*row)).for_each(&mut refuse);
    } else {
        let back = cast(&converted, array.data_type(), true)?;
        let changed = distinct(&back, array)?;
        (0..array.len()).filter(|row| changed.value(*row)).for_each(&mut refuse);
    }
    Ok(converted)
}

fn text_of(array: &ArrayRef) -> Result<ArrayRef, ArrowError> {
    match array.data_type() {
        DataType::Struct(_) | DataType::List(_) => json_text(array),
        _ => cast(array, &DataType::Utf8, false),
    }
}

/// JSON of the values. Text that the source declares to be JSON stays as it is, if it is JSON.
fn json_of(array: &ArrayRef, is_json: bool, refused: &mut Vec<(usize, String)>) -> Result<ArrayRef, ArrowError> {
    if *array.data_type() != DataType::Utf8 || !is_json {
        return json_text(array);
    }
    for (row, text) in array.as_string::<i32>().iter().enumerate() {
        if let Some(text) = text
            && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(text)
        {
            refused.push((row, format!("is not JSON: {error}")));
        }
    }
    Ok(Arc::clone(array))
}

/// Refuses texts that are too long or that the dialect refuses; their place becomes null, so that
/// nothing long remains in the batch.
fn checked_text(
    array: &ArrayRef,
    column_type: &ColumnType,
    dialect: &dyn Dialect,
    refused: &mut Vec<(usize, String)>,
) -> ArrayRef {
    let most = match column_type {
        ColumnType::Text(most) => *most as usize,
        _ => usize::MAX,
    };
    let before = refused.len();
    let texts = array.as_string::<i32>();
    for (row, text) in texts.iter().enumerate() {
        let Some(text) = text else { continue };
        if text.len() > most {
            refused.push((row, format!("has {} bytes; the column takes {most}", text.len())));
        } else if let Some(reason) = dialect.refused_text(column_type, text) {
            refused.push((row, reason));
        }
    }
    if refused.len() == before {
        return Arc::clone(array);
    }
    let mut builder = StringBuilder::new();
    let mut skip = refused.iter().map(|(row, _)| *row).collect::<Vec<_>>();
    skip.sort_unstable();
    for (row, text) in texts.iter().enumerate() {
        builder.append_option(text.filter(|_| skip.binary_search(&row).is_err()));
    }
    Arc::new(builder.finish())
}
