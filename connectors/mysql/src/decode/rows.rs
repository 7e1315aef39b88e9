//! Decodes row images: the values of a row, in the order and types of the table map.

use super::temporal::{self, fraction_bytes};
use super::{Bytes, Date, Malformed, Value, big, little, sign_extend};

/// The encoding of a column's value in a row image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Storage {
    Int {
        bytes: u8,
        unsigned: bool,
    },
    Year,
    Float,
    Double,
    /// A packed decimal of this number of bytes.
    Fixed(usize),
    /// Big endian.
    Bits(usize),
    Date,
    Time {
        digits: u8,
    },
    DateTime {
        digits: u8,
    },
    Timestamp {
        digits: u8,
    },
    /// A length of `prefix` bytes, then the bytes. `padded_to`: the length of a BINARY with its
    /// trailing zeros.
    Bytes {
        prefix: u8,
        padded_to: usize,
    },
    Enum {
        bytes: usize,
    },
    Set {
        bytes: usize,
    },
    Json {
        prefix: u8,
    },
}

impl Storage {
    #[inline]
    fn read<'a>(self, bytes: &mut Bytes<'a>) -> Result<Value<'a>, Malformed> {
        Ok(match self {
            Self::Int { bytes: width, unsigned } => {
                let number = bytes.little(usize::from(width))?;
                if unsigned { Value::UInt(number) } else { Value::Int(sign_extend(number, usize::from(width))) }
            }
            Self::Year => Value::Int(match bytes.u8()? {
                0 => 0,
                years => 1900 + i64::from(years),
            }),
            Self::Float => Value::Float(f32::from_bits(bytes.little(4)? as u32)),
            Self::Double => Value::Double(f64::from_bits(bytes.little(8)?)),
            Self::Fixed(count) => Value::PackedDecimal(bytes.take(count)?),
            Self::Bits(count) => Value::Bits(big(bytes.take(count)?)),
            Self::Date => Value::Date(Date::packed(bytes.little(3)?)),
            Self::Time { digits } => Value::Time(temporal::time(bytes.take(3 + fraction_bytes(digits))?)?),
            Self::DateTime { digits } => Value::DateTime(temporal::datetime(bytes.take(5 + fraction_bytes(digits))?)?),
            Self::Timestamp { digits } => {
                Value::DateTime(temporal::timestamp(bytes.take(4 + fraction_bytes(digits))?)?)
            }
            Self::Bytes { prefix, padded_to } => {
                let length = bytes.little(usize::from(prefix))?;
                let bytes = bytes.take(length as usize)?;
                Value::Bytes { bytes, zeros: padded_to.saturating_sub(bytes.len()) }
            }
            Self::Enum { bytes: count } => Value::EnumIndex(little(bytes.take(count)?)),
            Self::Set { bytes: count } => Value::SetBits(little(bytes.take(count)?)),
            Self::Json { prefix } => {
                let length = bytes.little(usize::from(prefix))?;
                Value::BinaryJson(bytes.take(length as usize)?)
            }
        })
    }
}

/// The header of a rows event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RowsHeader {
    /// The number of the table.
    pub(crate) table: u64,
    pub(crate) columns: usize,
    /// Every image has every column.
    pub(crate) is_full: bool,
    /// The offset of the rows in the event.
    pub(crate) rows_at: usize,
}

impl RowsHeader {
    /// `images`: 2 for an update, which has the row before and after. `extra`: the event has
    /// version 2, with a block of extra data.
    pub(crate) fn read(event: &[u8], images: usize, extra: bool) -> Result<Self, Malformed> {
        let mut bytes = Bytes::new(event);
        let table = bytes.little(6)?;
        bytes.take(2)?;
        if extra {
            let length = bytes.little(2)? as usize;
            bytes.take(length.saturating_sub(2))?;
        }
        let columns = usize::try_from(bytes.packed()?).unwrap_or(usize::MAX);
        let mut is_full = true;
        for _ in 0..images {
            let present = bytes.take(columns.div_ceil(8))?;
            is_full &= (0..columns).all(|index| present[index / 8] >> (index % 8) & 1 == 1);
        }
        Ok(Self { table, columns, is_full, rows_at: event.len() - bytes.rest().len() })
    }
}

/// Reads one full row image into `row`.
pub(crate) fn read_row<'a>(
    bytes: &mut Bytes<'a>,
    storage: &[Storage],
    row: &mut Vec<Value<'a>>,
) -> Result<(), Malformed> {
    row.clear();
    let nulls = bytes.take(storage.len().div_ceil(8))?;
    for (index, storage) in storage.iter().enumerate() {
        let is_null = nulls[index / 8] >> (index % 8) & 1 == 1;
        row.push(if is_null { Value::Null } else { storage.read(bytes)? });
    }
    Ok(())
}

/// Reads the after image of an update whose JSON columns may be encoded as differences from the
/// before image.
pub(crate) fn read_changed_row<'a>(
    bytes: &mut Bytes<'a>,
    storage: &[Storage],
    before: &[Value<'a>],
    row: &mut Vec<Value<'a>>,
) -> Result<(), Malformed> {
    const PARTIAL_JSON: u64 = 1;
    row.clear();
    let documents = storage.iter().filter(|storage| matches!(storage, Storage::Json { .. })).count();
    let partial = if bytes.packed()? & PARTIAL_JSON != 0 { bytes.take(documents.div_ceil(8))? } else { &[] };
    let nulls = bytes.take(storage.len().div_ceil(8))?;
    let mut document = 0;
    for (index, storage) in storage.iter().enumerate() {
        let is_json = matches!(storage, Storage::Json { .. });
        let changed = is_json && partial.get(document / 8).is_some_and(|bits| bits >> (document % 8) & 1 == 1);
        document += usize::from(is_json);
        let is_null = nulls[index / 8] >> (index % 8) & 1 == 1;
        let value = if is_null { Value::Null } else { storage.read(bytes)? };
        row.push(match (value, before.get(index)) {
            (Value::BinaryJson(diffs), Some(Value::BinaryJson(before))) if changed => {
                Value::ChangedJson { before, diffs }
            }
            (Value::BinaryJson(_), _) if changed => {
                return Err(Malformed::new("JSON differences refer to a column that is not a JSON document"));
            }
            (value, _) => value,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_row_is_read() {
        let storage = [
            Storage::Int { bytes: 3, unsigned: false },
            Storage::Year,
            Storage::Bytes { prefix: 1, padded_to: 4 },
            Storage::Bits(2),
            Storage::Double,
        ];
        let image = [0b1_0000, 0xff, 0xff, 0x7f, 0, 2, b'a', 0, 0x0a, 0xaa];
        let mut bytes = Bytes::new(&image);
        let mut row = Vec::new();
        read_row(&mut bytes, &storage, &mut row).unwrap();
        let expected = [
            Value::Int(0x7f_ffff),
            Value::Int(0),
            Value::Bytes { bytes: b"a\0", zeros: 2 },
            Value::Bits(0xaaa),
            Value::Null,
        ];
        assert_eq!(row, expected);
        assert!(bytes.is_empty());
        let mut short = Bytes::new(&image[..7]);
        assert!(read_row(&mut short, &storage, &mut row).is_err());
    }

    #[test]
    fn negative_mediumints_keep_their_sign() {
        let mut row = Vec::new();
        let storage = [Storage::Int { bytes: 3, unsigned: false }];
        read_row(&mut Bytes::new(&[0, 0, 0, 0x80]), &storage, &mut row).unwrap();
        assert_eq!(row, [Value::Int(-8_388_608)]);
    }

    fn any_storage() -> impl Strategy<Value = Storage> {
        prop_oneof![
            (1u8..=8, any::<bool>()).prop_map(|(bytes, unsigned)| Storage::Int { bytes, unsigned }),
            Just(Storage::Year),
            Just(Storage::Float),
            Just(Storage::Date),
            (0u8..=6).prop_map(|digits| Storage::Time { digits }),
            (0u8..=6).prop_map(|digits| Storage::DateTime { digits }),
            (0u8..=6).prop_map(|digits| Storage::Timestamp { digits }),
            (1u8..=4, 0usize..9).prop_map(|(prefix, padded_to)| Storage::Bytes { prefix, padded_to }),
            (1usize..=8).prop_map(Storage::Bits),
            (1u8..=4).prop_map(|prefix| Storage::Json { prefix }),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(
            storage in proptest::collection::vec(any_storage(), 0..20),
            image in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut row = Vec::new();
            let _ = read_row(&mut Bytes::new(&image), &storage, &mut row);
            let _ = read_changed_row(&mut Bytes::new(&image), &storage, &row, &mut Vec::new());
            for extra in [false, true] {
                let _ = RowsHeader::read(&image, 2, extra);
            }
        }
    }
}
