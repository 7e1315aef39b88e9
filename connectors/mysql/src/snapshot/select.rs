//! The statements of a snapshot. Keys are compared by the server alone: it knows its collations.

use std::fmt::Write as _;

use crate::columns::Shown;
use crate::decode::{Malformed, Value, write_decimal};
use crate::table::{Column, Kind, Table};
use crate::text::{write_clock, write_date, write_time};

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

/// The key of a row as SQL literals.
pub(crate) fn key_literals(table: &Table, row: &[Value<'_>]) -> Result<Vec<String>, Malformed> {
    table
        .key
        .iter()
        .map(|index| {
            let value = row.get(*index).ok_or_else(|| Malformed::new("a row without its key"))?;
            value_literal(&table.columns[*index].kind, value)
        })
        .collect()
}

fn value_literal(kind: &Kind, value: &Value<'_>) -> Result<String, Malformed> {
    let quoted = |bytes: Vec<u8>| format!("'{}'", String::from_utf8_lossy(&bytes));
    let mut text = Vec::new();
    Ok(match value {
        Value::Int(number) => number.to_string(),
        Value::UInt(number) | Value::Bits(number) | Value::EnumIndex(number) | Value::SetBits(number) => {
            number.to_string()
        }
        // With an exponent it is a double, without one a decimal; every float is a double.
        Value::Float(number) => format!("{:e}", f64::from(*number)),
        Value::Double(number) => format!("{number:e}"),
        Value::Decimal(digits) => String::from_utf8_lossy(digits).into_owned(),
        Value::PackedDecimal(packed) => {
            let Kind::Decimal { precision, scale } = kind else {
                return Err(Malformed::new("a decimal in a column of another type"));
            };
            write_decimal(&mut text, packed, *precision, *scale)?;
            String::from_utf8_lossy(&text).into_owned()
        }
        Value::Date(date) => {
            write_date(&mut text, *date);
            quoted(text)
        }
        Value::DateTime(time) => {
            write_date(&mut text, time.date);
            text.push(b' ');
            write_clock(&mut text, time, 6);
            quoted(text)
        }
        Value::Time(time) => {
            write_time(&mut text, *time, 6);
            quoted(text)
        }
        Value::Bytes { bytes, .. } => match kind {
            Kind::Text { charset } => format!("_{} x'{}'", charset.name, hex(bytes)),
            _ => format!("x'{}'", hex(bytes)),
        },
        Value::Printed(text) => format!("_utf8mb4 x'{}'", hex(text)),
        other => return Err(Malformed(format!("{other:?} in a primary key"))),
    })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
