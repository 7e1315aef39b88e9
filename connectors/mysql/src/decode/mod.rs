//! Decodes bytes to values. A [`Value`] borrows from its event or packet; `rows` reads it from a
//! row image, `protocol` from a row of a prepared statement.
//!
//! The decoders check every length. Invalid bytes are a [`Malformed`] error, never a panic.

mod decimal;
mod json_diff;
mod jsonb;
mod native;
pub(crate) mod protocol;
pub(crate) mod rows;
pub(crate) mod table_map;
mod temporal;
pub(crate) mod text;

pub(crate) use decimal::{packed_bytes, write_decimal};
pub(crate) use json_diff::write_changed;
pub(crate) use jsonb::write_json;
pub(crate) use native::{inet4, inet6, uuid};
pub(crate) use temporal::{Date, DateTime, Time};

/// Bytes that are not valid in their place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Malformed(pub(crate) String);

impl Malformed {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self(what.into())
    }
}

/// The value of one column.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Value<'a> {
    Null,
    Int(i64),
    UInt(u64),
    Float(f32),
    Double(f64),
    /// As MySQL packs it.
    PackedDecimal(&'a [u8]),
    /// As text, printed by the server.
    Decimal(&'a [u8]),
    Bits(u64),
    Date(Date),
    DateTime(DateTime),
    Time(Time),
    /// Text in the column's charset, or bytes, by the column's type. The binlog strips the trailing
    /// zeros of a BINARY; `zeros` is their number.
    Bytes {
        bytes: &'a [u8],
        zeros: usize,
    },
    /// From 1; 0 is the empty string that replaced an invalid value.
    EnumIndex(u64),
    SetBits(u64),
    /// MySQL's binary JSON.
    BinaryJson(&'a [u8]),
    /// Binary JSON before a change, and the differences.
    ChangedJson {
        before: &'a [u8],
        diffs: &'a [u8],
    },
    /// JSON, printed by the server.
    JsonText(&'a [u8]),
    /// Another value, printed by the server.
    Printed(&'a [u8]),
}

/// A cursor over bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bytes<'a> {
    rest: &'a [u8],
}

impl<'a> Bytes<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    pub(crate) fn rest(&self) -> &'a [u8] {
        self.rest
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    #[inline]
    pub(crate) fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        match self.rest.split_at_checked(count) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(too_short(count, self.rest.len())),
        }
    }

    #[inline]
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.take(1)?[0])
    }

    /// A little-endian number of up to 8 bytes.
    #[inline]
    pub(crate) fn little(&mut self, count: usize) -> Result<u64, Malformed> {
        Ok(little(self.take(count)?))
    }

    /// A length-encoded integer.
    pub(crate) fn packed(&mut self) -> Result<u64, Malformed> {
        match self.u8()? {
            0xfc => self.little(2),
            0xfd => self.little(3),
            0xfe => self.little(8),
            small @ 0..=0xfa => Ok(u64::from(small)),
            other => Err(Malformed(format!("{other:#x} is not the first byte of a length-encoded integer"))),
        }
    }

    /// A length-encoded string.
    pub(crate) fn packed_bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let count = self.packed()?;
        self.take(usize::try_from(count).unwrap_or(usize::MAX))
    }
}

/// The error of a cursor, apart from the code that runs for each value.
#[cold]
fn too_short(expected: usize, left: usize) -> Malformed {
    Malformed(format!("{expected} bytes expected, {left} left"))
}

/// A little-endian number of up to 8 bytes.
#[inline]
pub(crate) fn little(bytes: &[u8]) -> u64 {
    // The lengths of integers; a loop over the bytes takes several times as long.
    match *bytes {
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_le_bytes([a, b])),
        [a, b, c, d] => u64::from(u32::from_le_bytes([a, b, c, d])),
        [a, b, c, d, e, f, g, h] => u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        _ => bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

/// A big-endian number of up to 8 bytes.
#[inline]
pub(crate) fn big(bytes: &[u8]) -> u64 {
    match *bytes {
        [] => 0,
        [a] => u64::from(a),
        [a, b] => u64::from(u16::from_be_bytes([a, b])),
        [a, b, c] => u64::from(u32::from_be_bytes([0, a, b, c])),
        [a, b, c, d] => u64::from(u32::from_be_bytes([a, b, c, d])),
        [a, b, c, d, e] => u64::from_be_bytes([0, 0, 0, a, b, c, d, e]),
        _ => bytes.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)),
    }
}

/// Extends the sign of a number of `bytes` bytes to 64 bits.
#[inline]
pub(crate) fn sign_extend(number: u64, bytes: usize) -> i64 {
    let shift = 64 - 8 * bytes as u32;
    ((number << shift) as i64) >> shift
}
