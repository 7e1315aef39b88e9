//! The queries of a snapshot. Only the server compares keys, because it knows the collations.

use std::fmt::Write as _;

use super::describe::TableDescription;
use crate::connection::quote::{hex, quoted_name};
use crate::decode::text::{write_clock, write_date, write_time};
use crate::decode::{Malformed, Value, write_decimal};
use crate::schema::column_mode::ColumnMode;
use crate::schema::table_name::TableName;
use crate::schema::types::ColumnType;

/// `database`.`table`
pub(crate) fn quoted_table(name: &TableName) -> String {
    format!("{}.{}", quoted_name(&name.database), quoted_name(&name.table))
}

/// The rows after a key (without one, from the first row) in the order of the key; for a table
/// without a key, all rows. The columns have the encodings that `decode::protocol` expects.
pub(crate) fn rows(
    description: &TableDescription,
    condition: Option<&str>,
    after: Option<&[String]>,
    limit: Option<usize>,
) -> String {
    let table = &*description.table;
    let columns: Vec<String> = (0..table.columns.len()).map(|index| selected(description, index)).collect();
    let mut sql = format!("SELECT {} FROM {}", columns.join(", "), quoted_table(&table.name));
    let key: Vec<(String, String)> = table
        .order
        .iter()
        .map(|index| &table.columns[*index])
        .map(|column| (quoted_name(&column.name), as_number(&column.column_type, &quoted_name(&column.name))))
        .collect();
    let mut conditions: Vec<String> = condition.map(|condition| format!("({condition})")).into_iter().collect();
    if let Some(after) = after.filter(|_| !key.is_empty()) {
        // The server scans the whole index for `(a, b) > (x, y)`.
        let mut alternatives = Vec::new();
        for (index, (_, column)) in key.iter().enumerate() {
            let Some(bound) = after.get(index) else { break };
            let mut prefix = String::new();
            for ((_, before), same) in key.iter().zip(after).take(index) {
                // Writing to a string cannot fail.
                let _ = write!(prefix, "{before} = {same} AND ");
            }
            alternatives.push(format!("({prefix}{column} > {bound})"));
        }
        conditions.push(format!("({})", alternatives.join(" OR ")));
    }
    if !conditions.is_empty() {
        let _ = write!(sql, " WHERE {}", conditions.join(" AND "));
    }
    if !key.is_empty() {
        // ENUM and SET sort and compare by their numbers.
        let names: Vec<&str> = key.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(sql, " ORDER BY {}", names.join(", "));
    }
    if let Some(limit) = limit {
        let _ = write!(sql, " LIMIT {limit}");
    }
    sql
}

/// An excluded column is not read.
fn selected(description: &TableDescription, index: usize) -> String {
    let column = &description.table.columns[index];
    let name = quoted_name(&column.name);
    match &column.column_type {
        _ if column.mode == ColumnMode::Exclude => "NULL".to_owned(),
        // Independent of the time zone and the padding of the session that computes virtual
        // columns.
        ColumnType::Timestamp { .. } if description.has_virtual_columns => {
            format!("CAST(UNIX_TIMESTAMP({name}) AS CHAR)")
        }
        ColumnType::Text { .. } if description.has_virtual_columns && description.char_columns.contains(&index) => {
            format!("TRIM(TRAILING ' ' FROM {name})")
        }
        column_type => as_number(column_type, &name),
    }
}

fn as_number(column_type: &ColumnType, name: &str) -> String {
    match column_type {
        ColumnType::Enum { .. } | ColumnType::Set { .. } | ColumnType::Bit { .. } => {
            format!("CAST({name} AS UNSIGNED)")
        }
        ColumnType::Vector => format!("CAST({name} AS BINARY)"),
        _ => name.to_owned(),
    }
}

/// Appends a value of a key as an SQL literal.
pub(crate) fn write_literal(out: &mut String, column_type: &ColumnType, value: &Value<'_>) -> Result<(), Malformed> {
    let mut text = Vec::new();
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Int(number) => write!(out, "{number}"),
        Value::UInt(number) | Value::Bits(number) | Value::EnumIndex(number) | Value::SetBits(number) => {
            write!(out, "{number}")
        }
        // A number with an exponent is a double. Every float has an exact double.
        Value::Float(number) => write!(out, "{:e}", f64::from(*number)),
        Value::Double(number) => write!(out, "{number:e}"),
        Value::Decimal(digits) => write!(out, "{}", String::from_utf8_lossy(digits)),
        Value::PackedDecimal(packed) => {
            let ColumnType::Decimal { precision, scale } = column_type else {
                return Err(Malformed::new("a column of another type holds a decimal"));
            };
            write_decimal(&mut text, packed, *precision, *scale)?;
            write!(out, "{}", String::from_utf8_lossy(&text))
        }
        Value::Date(date) => {
            write_date(&mut text, *date);
            write!(out, "'{}'", String::from_utf8_lossy(&text))
        }
        Value::DateTime(time) => {
            write_date(&mut text, time.date);
            text.push(b' ');
            write_clock(&mut text, time, 6);
            write!(out, "'{}'", String::from_utf8_lossy(&text))
        }
        Value::Time(time) => {
            write_time(&mut text, *time, 6);
            write!(out, "'{}'", String::from_utf8_lossy(&text))
        }
        Value::Bytes { bytes, .. } => match column_type {
            ColumnType::Text { charset } => write!(out, "_{} x'{}'", charset.name, hex(bytes)),
            _ => write!(out, "x'{}'", hex(bytes)),
        },
        Value::Printed(text) => write!(out, "_utf8mb4 x'{}'", hex(text)),
        other => return Err(Malformed(format!("{other:?} in a primary key"))),
    };
    Ok(())
}
