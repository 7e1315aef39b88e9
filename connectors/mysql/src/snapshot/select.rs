//! The queries of a snapshot. Only the server compares keys, because it knows the collations.

use std::fmt::Write as _;

use super::describe::TableDescription;
use crate::connection::quote::{hex, quoted_name};
use crate::decode::text::{write_clock, write_date, write_time};
use crate::decode::{Malformed, Value, write_decimal};
use crate::format::table::Table;
use crate::schema::column_mode::ColumnMode;
use crate::schema::table_name::TableName;
use crate::schema::types::ColumnType;

/// `database`.`table`
pub(crate) fn quoted_table(name: &TableName) -> String {
    format!("{}.{}", quoted_name(&name.database), quoted_name(&name.table))
}

/// A range of keys, as SQL literals.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KeyRange<'a> {
    /// The key before the range; `None` for the first row.
    pub(crate) after: Option<&'a [String]>,
    /// The last key of the range; `None` for the last row.
    pub(crate) until: Option<&'a [String]>,
}

/// The rows of a range in the order of the key; for a table without a key, all rows. The columns
/// have the encodings that `decode::protocol` expects.
pub(crate) fn rows(
    description: &TableDescription,
    condition: Option<&str>,
    range: KeyRange<'_>,
    limit: Option<usize>,
) -> String {
    let table = &*description.table;
    let columns: Vec<String> = (0..table.columns.len()).map(|index| selected(description, index)).collect();
    let mut sql = format!("SELECT {} FROM {}", columns.join(", "), quoted_table(&table.name));
    let conditions =
        condition.map(|condition| format!("({condition})")).into_iter().chain(range_conditions(table, range));
    write_order(&mut sql, table, conditions);
    if let Some(limit) = limit {
        let _ = write!(sql, " LIMIT {limit}");
    }
    sql
}

/// The key that `offset` rows precede in the rows after a key.
pub(crate) fn key_at(description: &TableDescription, after: Option<&[String]>, offset: usize) -> String {
    let table = &*description.table;
    let columns: Vec<String> = table.order.iter().map(|index| selected(description, *index)).collect();
    let mut sql = format!("SELECT {} FROM {}", columns.join(", "), quoted_table(&table.name));
    write_order(&mut sql, table, range_conditions(table, KeyRange { after, until: None }));
    let _ = write!(sql, " LIMIT 1 OFFSET {offset}");
    sql
}

/// Appends conditions, and the order of the key.
fn write_order(sql: &mut String, table: &Table, conditions: impl IntoIterator<Item = String>) {
    let conditions: Vec<String> = conditions.into_iter().collect();
    if !conditions.is_empty() {
        // Writing to a string cannot fail.
        let _ = write!(sql, " WHERE {}", conditions.join(" AND "));
    }
    if !table.order.is_empty() {
        // ENUM and SET sort and compare by their numbers.
        let names: Vec<String> = table.order.iter().map(|index| quoted_name(&table.columns[*index].name)).collect();
        let _ = write!(sql, " ORDER BY {}", names.join(", "));
    }
}

/// The conditions of a range. A table without a key has none.
fn range_conditions(table: &Table, range: KeyRange<'_>) -> Vec<String> {
    let key: Vec<String> = table
        .order
        .iter()
        .map(|index| &table.columns[*index])
        .map(|column| as_number(&column.column_type, &quoted_name(&column.name)))
        .collect();
    let bounds = [(range.after, ">", ">"), (range.until, "<", "<=")];
    let bounds = bounds.into_iter().filter_map(|(key, operator, last)| Some((key?, operator, last)));
    bounds
        .filter(|_| !key.is_empty())
        .map(|(literals, operator, last_operator)| {
            // The server scans the whole index for `(a, b) > (x, y)`.
            let mut alternatives = Vec::new();
            for (index, (column, bound)) in key.iter().zip(literals).enumerate() {
                let mut prefix = String::new();
                for (before, same) in key.iter().zip(literals).take(index) {
                    let _ = write!(prefix, "{before} = {same} AND ");
                }
                let operator = if index + 1 == key.len() { last_operator } else { operator };
                alternatives.push(format!("({prefix}{column} {operator} {bound})"));
            }
            format!("({})", alternatives.join(" OR "))
        })
        .collect()
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
        Value::Int(number) => {
            out.push_str(itoa::Buffer::new().format(*number));
            Ok(())
        }
        Value::UInt(number) | Value::Bits(number) | Value::EnumIndex(number) | Value::SetBits(number) => {
            out.push_str(itoa::Buffer::new().format(*number));
            Ok(())
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::options::{BinaryFormat, DecimalFormat, Envelope, FormatOptions, TimeFormat, ZeroDates};
    use crate::schema::types::Column;

    #[test]
    fn ranges_compare_column_by_column() {
        let format = FormatOptions {
            envelope: Envelope::Row,
            decimals: DecimalFormat::String,
            binary: BinaryFormat::Base64,
            zero_dates: ZeroDates::Null,
            times: TimeFormat::Iso,
            transaction_block: false,
            query: false,
        };
        let int = ColumnType::Int { bytes: 4, unsigned: false };
        let column = |name: &str| Column::new(name.to_owned(), int.clone(), false);
        let table = Table::new(TableName::new("d", "t"), vec![column("a"), column("b")], vec![1, 0], format);
        let table = table.unwrap();
        let (after, until) = (["1".to_owned(), "2".to_owned()], ["5".to_owned(), "6".to_owned()]);
        let conditions = range_conditions(&table, KeyRange { after: Some(&after), until: Some(&until) });
        assert_eq!(conditions, ["((`b` > 1) OR (`b` = 1 AND `a` > 2))", "((`b` < 5) OR (`b` = 5 AND `a` <= 6))"]);
        assert!(range_conditions(&table, KeyRange::default()).is_empty());
        assert!(range_conditions(&table.without_order(), KeyRange { after: Some(&after), until: None }).is_empty());
    }
}
