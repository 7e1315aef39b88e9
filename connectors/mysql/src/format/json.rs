//! Writes values as JSON: by default decimals as strings, dates and times in ISO 8601, bytes in
//! base64.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_connector::json;

use super::options::{BinaryFormat, DecimalFormat, FormatOptions, TimeUnit, ZeroDates};
use super::table::Table;
use crate::decode::text::{write_clock, write_date, write_time};
use crate::decode::{
    Date, DateTime, Malformed, Time, Value, inet4, inet6, little, uuid, write_changed, write_decimal, write_json,
};
use crate::schema::column_mode::{ColumnMode, Mask, hex_digits};
use crate::schema::types::{Column, ColumnType};

/// Writes values. Reuses its buffers.
#[derive(Default)]
pub(crate) struct Encoder {
    scratch: Vec<u8>,
    /// The first column that held a value which the format refuses. The encoder writes null in its
    /// place.
    pub(crate) refused: Option<String>,
}

impl Encoder {
    /// Appends a row as a JSON object.
    pub(crate) fn row(&mut self, out: &mut Vec<u8>, table: &Table, row: &[Value<'_>]) -> Result<(), Malformed> {
        self.members(out, table, row, 0..row.len().min(table.columns.len()))
    }

    /// Appends the key of a row as a JSON object.
    pub(crate) fn key(&mut self, out: &mut Vec<u8>, table: &Table, row: &[Value<'_>]) -> Result<(), Malformed> {
        self.members(out, table, row, table.key.iter().copied())
    }

    fn members(
        &mut self,
        out: &mut Vec<u8>,
        table: &Table,
        row: &[Value<'_>],
        columns: impl Iterator<Item = usize>,
    ) -> Result<(), Malformed> {
        let start = out.len();
        for index in columns {
            let (Some(value), Some(column)) = (row.get(index), table.columns.get(index)) else {
                return Err(wrong_columns(row, table));
            };
            if column.mode == ColumnMode::Exclude {
                continue;
            }
            out.extend_from_slice(&table.names_json[index]);
            let written = match &column.mode {
                ColumnMode::Masked(mask) => self.masked(out, mask, &column.column_type, value, table.format),
                _ => self.value(out, &column.column_type, value, table.format),
            };
            if let Err(error) = written {
                return Err(in_column(column, &error));
            }
            if let Some(refused) = &mut self.refused
                && refused.is_empty()
            {
                *refused = column.name.clone();
            }
        }
        // The comma before the first name.
        match out.get_mut(start) {
            Some(first) => *first = b'{',
            None => out.push(b'{'),
        }
        out.push(b'}');
        Ok(())
    }

    /// Writes the mask of a value. The mask applies to the value's text, which for a JSON string is
    /// its content.
    fn masked(
        &mut self,
        out: &mut Vec<u8>,
        mask: &Mask,
        column_type: &ColumnType,
        value: &Value<'_>,
        format: FormatOptions,
    ) -> Result<(), Malformed> {
        let mut text = Vec::new();
        self.value(&mut text, column_type, value, format)?;
        match text.first() {
            Some(b'"') => {
                let text: String = serde_json::from_slice(&text).map_err(|error| Malformed(error.to_string()))?;
                mask.write(out, &text);
            }
            _ if text == b"null" => out.extend_from_slice(&text),
            _ => mask.write(out, &json::lossy(&text)),
        }
        Ok(())
    }

    fn value(
        &mut self,
        out: &mut Vec<u8>,
        column_type: &ColumnType,
        value: &Value<'_>,
        format: FormatOptions,
    ) -> Result<(), Malformed> {
        match (value, column_type) {
            (Value::Null, _) => out.extend_from_slice(b"null"),
            (Value::Int(number), _) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            (Value::UInt(number), _) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            // MySQL stores neither infinity nor NaN, but malformed bytes could encode them. JSON
            // cannot.
            (Value::Float(number), _) if number.is_finite() => {
                out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes());
            }
            (Value::Double(number), _) if number.is_finite() => {
                out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes());
            }
            (Value::Float(_) | Value::Double(_), _) => return Err(Malformed::new("a number is not finite")),
            (Value::PackedDecimal(packed), ColumnType::Decimal { precision, scale }) => {
                quote_decimal(out, format);
                write_decimal(out, packed, *precision, *scale)?;
                quote_decimal(out, format);
            }
            (Value::Decimal(text), _) => {
                quote_decimal(out, format);
                write_decimal_text(out, text)?;
                quote_decimal(out, format);
            }
            (Value::Bits(bits), ColumnType::Bit { bits: 1 }) => {
                out.extend_from_slice(if *bits == 0 { b"false" } else { b"true" });
            }
            (Value::Bits(bits), _) => out.extend_from_slice(itoa::Buffer::new().format(*bits).as_bytes()),
            (Value::Date(date), _) => self.date(out, *date, column_type, format),
            (Value::DateTime(time), _) => self.datetime(out, time, column_type, format),
            (Value::Time(time), _) => write_time_value(out, *time, column_type, format),
            (Value::Bytes { bytes, zeros }, column_type) => self.bytes(out, bytes, *zeros, column_type, format)?,
            (Value::EnumIndex(index), ColumnType::Enum { members }) => match *index as usize {
                // The value was not a member when it was inserted.
                0 => out.extend_from_slice(b"\"\""),
                index => {
                    let member = members.get(index - 1);
                    let member = member.ok_or_else(|| Malformed(format!("member {index} of {}", members.len())))?;
                    json::write_string(out, member);
                }
            },
            (Value::SetBits(bits), ColumnType::Set { members }) => {
                let chosen = members.iter().enumerate().filter(|(index, _)| *index < 64 && bits >> index & 1 == 1);
                let chosen: Vec<&str> = chosen.map(|(_, member)| member.as_str()).collect();
                json::write_string(out, &chosen.join(","));
            }
            (Value::BinaryJson(document), _) => {
                self.scratch.clear();
                write_json(&mut self.scratch, document)?;
                json::write_utf8(out, &self.scratch);
            }
            (Value::ChangedJson { before, diffs }, _) => {
                self.scratch.clear();
                write_changed(&mut self.scratch, before, diffs)?;
                json::write_utf8(out, &self.scratch);
            }
            (Value::JsonText(text) | Value::Printed(text), _) => json::write_utf8(out, text),
            (value, column_type) => return Err(wrong_type(value, column_type)),
        }
        Ok(())
    }

    fn date(&mut self, out: &mut Vec<u8>, date: Date, column_type: &ColumnType, format: FormatOptions) {
        if self.replaces(out, date, format) {
            return;
        }
        match format.unit(column_type) {
            Some(_) => write_number(out, date.days()),
            None => quoted(out, |out| write_date(out, date)),
        }
    }

    fn datetime(&mut self, out: &mut Vec<u8>, time: &DateTime, column_type: &ColumnType, format: FormatOptions) {
        if self.replaces(out, time.date, format) {
            return;
        }
        match format.unit(column_type) {
            Some(TimeUnit::Milliseconds) => write_number(out, time.epoch_micros().div_euclid(1000)),
            Some(TimeUnit::Microseconds) => write_number(out, time.epoch_micros()),
            None => quoted(out, |out| write_datetime(out, time, column_type)),
        }
    }

    /// Writes the replacement of a date that does not exist, if the format replaces it.
    fn replaces(&mut self, out: &mut Vec<u8>, date: Date, format: FormatOptions) -> bool {
        if date.exists() || format.zero_dates == ZeroDates::String {
            return false;
        }
        out.extend_from_slice(b"null");
        if format.zero_dates == ZeroDates::Error {
            // The caller fills in the column's name.
            self.refused.get_or_insert_default();
        }
        true
    }

    fn bytes(
        &mut self,
        out: &mut Vec<u8>,
        bytes: &[u8],
        zeros: usize,
        column_type: &ColumnType,
        format: FormatOptions,
    ) -> Result<(), Malformed> {
        match column_type {
            ColumnType::Text { charset } => charset.write_json(out, bytes),
            ColumnType::Binary if zeros == 0 => write_binary(out, bytes, format),
            ColumnType::Binary => {
                self.scratch.clear();
                self.scratch.extend_from_slice(bytes);
                self.scratch.resize(bytes.len() + zeros, 0);
                write_binary(out, &self.scratch, format);
            }
            ColumnType::Geometry => {
                let split = bytes.split_at_checked(4);
                let (srid, wkb) = split.ok_or_else(|| Malformed::new("a geometry lacks its SRID"))?;
                out.extend_from_slice(b"{\"srid\":");
                out.extend_from_slice(itoa::Buffer::new().format(little(srid)).as_bytes());
                out.extend_from_slice(b",\"wkb\":");
                write_binary(out, wkb, format);
                out.push(b'}');
            }
            ColumnType::Uuid | ColumnType::Inet4 | ColumnType::Inet6 => {
                self.scratch.clear();
                self.scratch.extend_from_slice(bytes);
                self.scratch.resize(bytes.len() + zeros, 0);
                let text = match column_type {
                    ColumnType::Uuid => uuid(&self.scratch),
                    ColumnType::Inet4 => inet4(&self.scratch),
                    _ => inet6(&self.scratch),
                }?;
                json::write_string(out, &text);
            }
            ColumnType::Vector => {
                let mut separator = b'[';
                for four in bytes.chunks(4) {
                    out.push(separator);
                    separator = b',';
                    let number = f32::from_bits(little(four) as u32);
                    if four.len() < 4 || !number.is_finite() {
                        return Err(Malformed::new("a vector holds a value that is not a number"));
                    }
                    out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
                }
                if separator == b'[' {
                    out.push(b'[');
                }
                out.push(b']');
            }
            other => return Err(Malformed(format!("bytes in a column of {other:?}"))),
        }
        Ok(())
    }
}

// Errors, apart from the code that runs for each value.

#[cold]
fn wrong_columns(row: &[Value<'_>], table: &Table) -> Malformed {
    Malformed(format!("a row of {} columns, {} expected", row.len(), table.columns.len()))
}

#[cold]
fn in_column(column: &Column, error: &Malformed) -> Malformed {
    Malformed(format!("column `{}`: {error}", column.name))
}

#[cold]
fn wrong_type(value: &Value<'_>, column_type: &ColumnType) -> Malformed {
    Malformed(format!("{value:?} in a column of {column_type:?}"))
}

fn write_number(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn quoted(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    out.push(b'"');
    write(out);
    out.push(b'"');
}

fn quote_decimal(out: &mut Vec<u8>, format: FormatOptions) {
    if format.decimals == DecimalFormat::String {
        out.push(b'"');
    }
}

/// Writes a decimal that the server printed, without the leading zeros of ZEROFILL.
fn write_decimal_text(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Malformed> {
    let (sign, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return Err(Malformed::new("a decimal holds a character that is not a digit"));
    }
    if sign {
        out.push(b'-');
    }
    let zeros = digits.iter().take_while(|digit| **digit == b'0').count();
    let rest = &digits[zeros..];
    if rest.is_empty() || rest[0] == b'.' {
        out.push(b'0');
    }
    out.extend_from_slice(rest);
    Ok(())
}

fn write_time_value(out: &mut Vec<u8>, time: Time, column_type: &ColumnType, format: FormatOptions) {
    match format.unit(column_type) {
        Some(TimeUnit::Milliseconds) => write_number(out, time.total_micros() / 1000),
        Some(TimeUnit::Microseconds) => write_number(out, time.total_micros()),
        None => {
            let digits = if let ColumnType::Time { digits } = column_type { *digits } else { 6 };
            quoted(out, |out| write_time(out, time, digits));
        }
    }
}

fn write_datetime(out: &mut Vec<u8>, time: &DateTime, column_type: &ColumnType) {
    let (digits, zone) = match column_type {
        ColumnType::Timestamp { digits } => (*digits, true),
        ColumnType::DateTime { digits } => (*digits, false),
        _ => (6, false),
    };
    write_date(out, time.date);
    out.push(b'T');
    write_clock(out, time, digits);
    if zone {
        out.push(b'Z');
    }
}

fn write_binary(out: &mut Vec<u8>, bytes: &[u8], format: FormatOptions) {
    out.push(b'"');
    let at = out.len();
    match format.binary {
        BinaryFormat::Base64 => {
            out.resize(at + bytes.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(bytes, &mut out[at..]).unwrap_or(0);
            out.truncate(at + written);
        }
        BinaryFormat::Hex => {
            out.extend(bytes.iter().flat_map(|byte| hex_digits(*byte)));
        }
    }
    out.push(b'"');
}
