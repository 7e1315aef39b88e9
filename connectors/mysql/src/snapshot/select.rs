//! The statements of a snapshot. Keys are compared by the server alone: it knows its collations.

use std::fmt::Write as _;

use crate::decode::text::{write_clock, write_date, write_time};
use crate::decode::{Malformed, Value, write_decimal};
use crate::format::table::{Column, Kind, Table};
use crate::schema::column_filter::Shown;

/// A name in backquotes.
pub(crate) fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// A string that no character of can end it early.
pub(crate) fn literal(text: &str) -> String {
    format!("_utf8mb4 x'{}'", hex(text.as_bytes()))
}

/// `database`.`table`
pub(crate) fn quoted_table(table: &Table) -> String {
    format!("{}.{}", quoted(&table.database), quoted(&table.name))
}

/// A condition that cannot reach beyond itself.
pub(crate) fn in_parentheses(condition: &str) -> String {
    format!("({condition})")
}

/// Rows after a key (from the beginning without one), in the key's order; without a key all rows. Columns come so that `decode::protocol`
/// can read them.
pub(crate) fn rows(table: &Table, condition: Option<&str>, after: Option<&[String]>, limit: Option<usize>) -> String {
    let columns: Vec<String> = table.columns.iter().map(selected).collect();
    let mut sql = format!("SELECT {} FROM {}", columns.join(", "), quoted_table(table));
    let key: Vec<(String, String)> = table
        .key
        .iter()
        .map(|index| &table.columns[*index])
        .map(|column| (quoted(&column.name), as_number(&column.kind, &quoted(&column.name))))
        .collect();
    let mut wanted: Vec<String> = condition.map(in_parentheses).into_iter().collect();
    if let Some(after) = after {
        // Not `(a, b) > (x, y)`: the server reads the whole index for that.
        let mut ways = Vec::new();
        for (index, (_, column)) in key.iter().enumerate() {
            let Some(bound) = after.get(index) else { break };
            let mut way = String::new();
            for ((_, before), same) in key.iter().zip(after).take(index) {
                // Writing to a string cannot fail.
                let _ = write!(way, "{before} = {same} AND ");
            }
            ways.push(format!("({way}{column} > {bound})"));
        }
        wanted.push(in_parentheses(&ways.join(" OR ")));
    }
    if !wanted.is_empty() {
        let _ = write!(sql, " WHERE {}", wanted.join(" AND "));
    }
    if !key.is_empty() {
        // ENUM and SET sort by their numbers, as they are compared.
        let names: Vec<&str> = key.iter().map(|(name, _)| name.as_str()).collect();
        let _ = write!(sql, " ORDER BY {}", names.join(", "));
    }
    if let Some(limit) = limit {
        let _ = write!(sql, " LIMIT {limit}");
    }
    sql
}

/// What is not written is not read either.
fn selected(column: &Column) -> String {
    if column.shown == Shown::LeftOut { "NULL".to_owned() } else { as_number(&column.kind, &quoted(&column.name)) }
}

fn as_number(kind: &Kind, name: &str) -> String {
    match kind {
        Kind::Enum { .. } | Kind::Set { .. } | Kind::Bit { .. } => format!("CAST({name} AS UNSIGNED)"),
        Kind::Vector => format!("CAST({name} AS BINARY)"),
        _ => name.to_owned(),
    }
}

/// Appends a value of a key as an SQL literal.
pub(crate) fn write_literal(out: &mut String, kind: &Kind, value: &Value<'_>) -> Result<(), Malformed> {
    let mut text = Vec::new();
    // Writing to a string cannot fail.
    let _ = match value {
        Value::Int(number) => write!(out, "{number}"),
        Value::UInt(number) | Value::Bits(number) | Value::EnumIndex(number) | Value::SetBits(number) => {
            write!(out, "{number}")
        }
        // With an exponent it is a double, without one a decimal; every float is a double.
        Value::Float(number) => write!(out, "{:e}", f64::from(*number)),
        Value::Double(number) => write!(out, "{number:e}"),
        Value::Decimal(digits) => write!(out, "{}", String::from_utf8_lossy(digits)),
        Value::PackedDecimal(packed) => {
            let Kind::Decimal { precision, scale } = kind else {
                return Err(Malformed::new("a decimal in a column of another type"));
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
        Value::Bytes { bytes, .. } => match kind {
            Kind::Text { charset } => write!(out, "_{} x'{}'", charset.name, hex(bytes)),
            _ => write!(out, "x'{}'", hex(bytes)),
        },
        Value::Printed(text) => write!(out, "_utf8mb4 x'{}'", hex(text)),
        other => return Err(Malformed(format!("{other:?} in a primary key"))),
    };
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
