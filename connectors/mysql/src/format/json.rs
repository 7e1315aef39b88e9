//! Values as JSON: decimals as strings, dates and times in ISO 8601, bytes in base64, unless the options say otherwise.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use trunkline_connector::json;

use crate::config::{BinaryAs, DecimalAs, ZeroDates};
use crate::decode::text::{write_clock, write_date, write_time};
use crate::decode::{
    Date, DateTime, Malformed, Value, inet4, inet6, little, uuid, write_changed, write_decimal, write_json,
};
use crate::format::table::{Kind, Style, Table, Unit};
use crate::schema::column_filter::{Mask, Shown, hex_digits};

/// Writes values; keeps memory from one to the next.
#[derive(Default)]
pub(crate) struct Encoder {
    scratch: Vec<u8>,
    /// What the last rows held that the style cannot write: where it was, null stands.
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
        let mut separator = b'{';
        for index in columns {
            let (Some(value), Some(column)) = (row.get(index), table.columns.get(index)) else {
                return Err(Malformed(format!("a row of {} columns, {} expected", row.len(), table.columns.len())));
            };
            if column.shown == Shown::LeftOut {
                continue;
            }
            out.push(separator);
            separator = b',';
            out.extend_from_slice(&table.names_json[index]);
            let written = match &column.shown {
                Shown::Masked(mask) => self.masked(out, mask, &column.kind, value, table.style),
                _ => self.value(out, &column.kind, value, table.style),
            };
            written.map_err(|error| Malformed(format!("column `{}`: {error}", column.name)))?;
            if let Some(refused) = &mut self.refused
                && refused.is_empty()
            {
                *refused = column.name.clone();
            }
        }
        if separator == b'{' {
            out.push(b'{');
        }
        out.push(b'}');
        Ok(())
    }

    /// Writes what stands for a value: made of its text, which for a JSON string is what the string says.
    fn masked(
        &mut self,
        out: &mut Vec<u8>,
        mask: &Mask,
        kind: &Kind,
        value: &Value<'_>,
        style: Style,
    ) -> Result<(), Malformed> {
        let mut text = Vec::new();
        self.value(&mut text, kind, value, style)?;
        match text.first() {
            Some(b'"') => {
                let text: String = serde_json::from_slice(&text).map_err(|error| Malformed(error.to_string()))?;
                mask.write(out, &text);
            }
            _ if text == b"null" => out.extend_from_slice(&text),
            _ => mask.write(out, &String::from_utf8_lossy(&text)),
        }
        Ok(())
    }

    fn value(&mut self, out: &mut Vec<u8>, kind: &Kind, value: &Value<'_>, style: Style) -> Result<(), Malformed> {
        match (value, kind) {
            (Value::Null, _) => out.extend_from_slice(b"null"),
            (Value::Int(number), _) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            (Value::UInt(number), _) => out.extend_from_slice(itoa::Buffer::new().format(*number).as_bytes()),
            // MySQL stores neither infinity nor NaN, but bytes can spell them, and JSON cannot.
            (Value::Float(number), _) if number.is_finite() => {
                out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes());
            }
            (Value::Double(number), _) if number.is_finite() => {
                out.extend_from_slice(ryu::Buffer::new().format_finite(*number).as_bytes());
            }
            (Value::Float(_) | Value::Double(_), _) => return Err(Malformed::new("a number that is not finite")),
            (Value::PackedDecimal(packed), Kind::Decimal { precision, scale }) => {
                quote_decimal(out, style);
                write_decimal(out, packed, *precision, *scale)?;
                quote_decimal(out, style);
            }
            (Value::Decimal(text), _) => {
                quote_decimal(out, style);
                write_decimal_text(out, text)?;
                quote_decimal(out, style);
            }
            (Value::Bits(bits), Kind::Bit { bits: 1 }) => {
                out.extend_from_slice(if *bits == 0 { b"false" } else { b"true" });
            }
            (Value::Bits(bits), _) => out.extend_from_slice(itoa::Buffer::new().format(*bits).as_bytes()),
            (Value::Date(date), kind) => self.date(out, *date, style, |out| match style.unit(kind) {
                Some(_) => write_number(out, date.days()),
                None => {
                    out.push(b'"');
                    write_date(out, *date);
                    out.push(b'"');
                }
            }),
            (Value::DateTime(time), kind) => self.date(out, time.date, style, |out| match style.unit(kind) {
                Some(Unit::Milliseconds) => write_number(out, time.epoch_micros().div_euclid(1000)),
                Some(Unit::Microseconds) => write_number(out, time.epoch_micros()),
                None => {
                    out.push(b'"');
                    write_datetime(out, time, kind);
                    out.push(b'"');
                }
            }),
            (Value::Time(time), kind) if style.unit(kind) == Some(Unit::Milliseconds) => {
                write_number(out, time.total_micros() / 1000);
            }
            (Value::Time(time), kind) if style.unit(kind) == Some(Unit::Microseconds) => {
                write_number(out, time.total_micros());
            }
            (Value::Time(time), kind) => {
                let digits = if let Kind::Time { digits } = kind { *digits } else { 6 };
                out.push(b'"');
                write_time(out, *time, digits);
                out.push(b'"');
            }
            (Value::Bytes { bytes, zeros }, kind) => self.bytes(out, bytes, *zeros, kind, style)?,
            (Value::EnumIndex(index), Kind::Enum { members }) => match *index as usize {
                // What was no member when it was inserted.
                0 => out.extend_from_slice(b"\"\""),
                index => {
                    let member = members.get(index - 1);
                    let member = member.ok_or_else(|| Malformed(format!("member {index} of {}", members.len())))?;
                    json::write_string(out, member);
                }
            },
            (Value::SetBits(bits), Kind::Set { members }) => {
                let chosen = members.iter().enumerate().filter(|(index, _)| *index < 64 && bits >> index & 1 == 1);
                let chosen: Vec<&str> = chosen.map(|(_, member)| member.as_str()).collect();
                json::write_string(out, &chosen.join(","));
            }
            (Value::BinaryJson(document), _) => {
                self.scratch.clear();
                write_json(&mut self.scratch, document)?;
                json::write_string(out, &String::from_utf8_lossy(&self.scratch));
            }
            (Value::ChangedJson { before, diffs }, _) => {
                self.scratch.clear();
                write_changed(&mut self.scratch, before, diffs)?;
                json::write_string(out, &String::from_utf8_lossy(&self.scratch));
            }
            (Value::JsonText(text) | Value::Printed(text), _) => {
                json::write_string(out, &String::from_utf8_lossy(text))
            }
            (value, kind) => return Err(Malformed(format!("{value:?} in a column of {kind:?}"))),
        }
        Ok(())
    }

    /// A date, or what the style makes of one that no calendar has.
    fn date(&mut self, out: &mut Vec<u8>, date: Date, style: Style, write: impl FnOnce(&mut Vec<u8>)) {
        if !date.exists() && style.zero_dates != ZeroDates::String {
            out.extend_from_slice(b"null");
            if style.zero_dates == ZeroDates::Error {
                // The column's name is filled in by the caller, who knows it.
                self.refused.get_or_insert_default();
            }
            return;
        }
        write(out);
    }

    fn bytes(
        &mut self,
        out: &mut Vec<u8>,
        bytes: &[u8],
        zeros: usize,
        kind: &Kind,
        style: Style,
    ) -> Result<(), Malformed> {
        match kind {
            Kind::Text { charset } => json::write_string(out, &charset.decode(bytes)),
            Kind::Binary if zeros == 0 => write_binary(out, bytes, style),
            Kind::Binary => {
                self.scratch.clear();
                self.scratch.extend_from_slice(bytes);
                self.scratch.resize(bytes.len() + zeros, 0);
                write_binary(out, &self.scratch, style);
            }
            Kind::Geometry => {
                let split = bytes.split_at_checked(4);
                let (srid, wkb) = split.ok_or_else(|| Malformed::new("a geometry without its reference system"))?;
                out.extend_from_slice(b"{\"srid\":");
                out.extend_from_slice(itoa::Buffer::new().format(little(srid)).as_bytes());
                out.extend_from_slice(b",\"wkb\":");
                write_binary(out, wkb, style);
                out.push(b'}');
            }
            Kind::Uuid | Kind::Inet4 | Kind::Inet6 => {
                self.scratch.clear();
                self.scratch.extend_from_slice(bytes);
                self.scratch.resize(bytes.len() + zeros, 0);
                let text = match kind {
                    Kind::Uuid => uuid(&self.scratch),
                    Kind::Inet4 => inet4(&self.scratch),
                    _ => inet6(&self.scratch),
                }?;
                json::write_string(out, &text);
            }
            Kind::Vector => {
                let mut separator = b'[';
                for four in bytes.chunks(4) {
                    out.push(separator);
                    separator = b',';
                    let number = f32::from_bits(little(four) as u32);
                    if four.len() < 4 || !number.is_finite() {
                        return Err(Malformed::new("a vector of something else than numbers"));
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

fn write_number(out: &mut Vec<u8>, number: i64) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

fn quote_decimal(out: &mut Vec<u8>, style: Style) {
    if style.decimals == DecimalAs::String {
        out.push(b'"');
    }
}

/// A decimal as the server prints it, without the zeros that ZEROFILL puts in front.
fn write_decimal_text(out: &mut Vec<u8>, text: &[u8]) -> Result<(), Malformed> {
    let (sign, digits) = match text.split_first() {
        Some((b'-', digits)) => (true, digits),
        _ => (false, text),
    };
    if digits.is_empty() || !digits.iter().all(|byte| byte.is_ascii_digit() || *byte == b'.') {
        return Err(Malformed::new("a decimal of something else than digits"));
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

fn write_datetime(out: &mut Vec<u8>, time: &DateTime, kind: &Kind) {
    let (digits, zone) = match kind {
        Kind::Timestamp { digits } => (*digits, true),
        Kind::DateTime { digits } => (*digits, false),
        _ => (6, false),
    };
    write_date(out, time.date);
    out.push(b'T');
    write_clock(out, time, digits);
    if zone {
        out.push(b'Z');
    }
}

fn write_binary(out: &mut Vec<u8>, bytes: &[u8], style: Style) {
    out.push(b'"');
    let at = out.len();
    match style.binary {
        BinaryAs::Base64 => {
            out.resize(at + bytes.len().div_ceil(3) * 4, 0);
            let written = STANDARD.encode_slice(bytes, &mut out[at..]).unwrap_or(0);
            out.truncate(at + written);
        }
        BinaryAs::Hex => {
            out.extend(bytes.iter().flat_map(|byte| hex_digits(*byte)));
        }
    }
    out.push(b'"');
}
