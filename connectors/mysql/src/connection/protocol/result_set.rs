//! Rows of a result: where their values are in a packet.
//!
//! A prepared statement's rows have binary values, whose lengths follow from the types of the
//! columns; a query's rows have texts.

use crate::decode::{Bytes, Malformed};

/// The encoding of a value in a row of a prepared statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireType {
    /// This number of bytes.
    Fixed(u8),
    /// A length of one byte, which is a part of the value.
    Temporal,
    /// A length-encoded string.
    String,
}

impl WireType {
    /// Reads the definition of a column.
    pub(crate) fn of_definition(packet: &[u8]) -> Result<Self, Malformed> {
        let mut bytes = Bytes::new(packet);
        // Catalog, schema, table, original table, name, original name.
        for _ in 0..6 {
            bytes.packed_bytes()?;
        }
        // The length of the rest, the character set and the maximum length.
        bytes.packed()?;
        bytes.take(6)?;
        Self::of_type(bytes.u8()?)
    }

    fn of_type(number: u8) -> Result<Self, Malformed> {
        Ok(match number {
            // TINYINT; SMALLINT and YEAR; INT, MEDIUMINT and FLOAT; BIGINT and DOUBLE; NULL.
            1 => Self::Fixed(1),
            2 | 13 => Self::Fixed(2),
            3 | 4 | 9 => Self::Fixed(4),
            5 | 8 => Self::Fixed(8),
            6 => Self::Fixed(0),
            // TIMESTAMP, DATE, TIME, DATETIME, and DATE as tables store it.
            7 | 10..=12 | 14 => Self::Temporal,
            // DECIMAL, VARCHAR, BIT, VECTOR, JSON, newer DECIMAL, ENUM, SET, BLOB,
            // texts, GEOMETRY.
            0 | 15 | 16 | 242 | 245..=255 => Self::String,
            other => return Err(Malformed(format!("a column of the unknown type {other}"))),
        })
    }
}

/// The place of a value in a packet; `None` is null.
type Place = Option<(u32, u32)>;

/// A row in the buffer of its connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    packet: &'a [u8],
    places: &'a [Place],
}

impl<'a> Row<'a> {
    /// The number of values.
    pub(crate) fn len(&self) -> usize {
        self.places.len()
    }

    /// The bytes of a value. Those of a date or time include their length.
    #[inline]
    pub(crate) fn value(&self, index: usize) -> Result<Option<&'a [u8]>, Malformed> {
        match self.places.get(index) {
            Some(Some((from, to))) => Ok(self.packet.get(*from as usize..*to as usize)),
            Some(None) => Ok(None),
            None => Err(missing_value(index, self.len())),
        }
    }

    /// The bytes of each value.
    pub(crate) fn values(&self) -> impl Iterator<Item = Option<&'a [u8]>> {
        let packet = self.packet;
        self.places.iter().map(move |place| place.and_then(|(from, to)| packet.get(from as usize..to as usize)))
    }
}

#[cold]
fn missing_value(index: usize, count: usize) -> Malformed {
    Malformed(format!("a row of {count} values lacks value {}", index + 1))
}

/// Finds the values of rows. Reuses its memory.
#[derive(Default)]
pub(crate) struct RowReader {
    places: Vec<Place>,
}

impl RowReader {
    /// A row of a prepared statement.
    pub(crate) fn binary<'a>(&'a mut self, packet: &'a [u8], types: &[WireType]) -> Result<Row<'a>, Malformed> {
        // A zero byte, and a bit for each null, of which the first two are unused.
        const UNUSED_BITS: usize = 2;
        let mut bytes = Bytes::new(packet);
        bytes.take(1)?;
        let nulls = bytes.take((types.len() + UNUSED_BITS).div_ceil(8))?;
        let mut at = packet.len() - bytes.rest().len();
        self.places.resize(types.len(), None);
        for (index, (place, wire_type)) in self.places.iter_mut().zip(types).enumerate() {
            let bit = index + UNUSED_BITS;
            if nulls[bit / 8] >> (bit % 8) & 1 == 1 {
                *place = None;
                continue;
            }
            let count = match (wire_type, packet.get(at)) {
                (WireType::Fixed(count), _) => usize::from(*count),
                (WireType::Temporal, Some(length)) => 1 + usize::from(*length),
                (WireType::String, Some(length @ 0..=0xfa)) => {
                    at += 1;
                    usize::from(*length)
                }
                (WireType::String, Some(_)) => {
                    let mut long = Bytes::new(&packet[at..]);
                    let count = long.packed()?;
                    at = packet.len() - long.rest().len();
                    usize::try_from(count).unwrap_or(usize::MAX)
                }
                (_, None) => return Err(short_row(index)),
            };
            let end = at.checked_add(count).filter(|end| *end <= packet.len()).ok_or_else(|| short_row(index))?;
            // A packet has at most 1 GiB.
            *place = Some((at as u32, end as u32));
            at = end;
        }
        self.end(packet, at)
    }

    /// A row of texts.
    pub(crate) fn text<'a>(&'a mut self, packet: &'a [u8], columns: usize) -> Result<Row<'a>, Malformed> {
        const NULL: u8 = 0xfb;
        let mut bytes = Bytes::new(packet);
        self.places.clear();
        for _ in 0..columns {
            if bytes.rest().first() == Some(&NULL) {
                bytes.take(1)?;
                self.places.push(None);
            } else {
                let value = bytes.packed_bytes()?;
                let end = packet.len() - bytes.rest().len();
                self.places.push(Some(((end - value.len()) as u32, end as u32)));
            }
        }
        self.end(packet, packet.len() - bytes.rest().len())
    }

    fn end<'a>(&'a self, packet: &'a [u8], end: usize) -> Result<Row<'a>, Malformed> {
        match packet.len() - end {
            0 => Ok(Row { packet, places: &self.places }),
            rest => Err(Malformed(format!("a row has {rest} bytes after its last value"))),
        }
    }
}

#[cold]
fn short_row(index: usize) -> Malformed {
    Malformed(format!("a row ends within value {}", index + 1))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(row: Row<'_>) -> Vec<Option<Vec<u8>>> {
        let values: Vec<Option<&[u8]>> = (0..row.len()).map(|index| row.value(index).unwrap()).collect();
        assert!(row.values().eq(values.iter().copied()));
        values.into_iter().map(|value| value.map(<[u8]>::to_vec)).collect()
    }

    #[test]
    fn binary_rows_are_divided_by_the_types_of_their_columns() {
        let types = [WireType::Fixed(4), WireType::String, WireType::Temporal, WireType::Fixed(1), WireType::String];
        // The second value is null: bit 3.
        let packet = [0, 0b1000, 1, 2, 3, 4, 4, 0xea, 7, 11, 29, 9, 2, b'h', b'i'];
        let mut reader = RowReader::default();
        let row = reader.binary(&packet, &types).unwrap();
        let expected = [Some(&packet[2..6]), None, Some(&packet[6..11]), Some(&packet[11..12]), Some(&b"hi"[..])];
        assert_eq!(values(row), expected.map(|value| value.map(<[u8]>::to_vec)));
        assert!(row.value(5).is_err());
        for end in 0..packet.len() {
            assert!(reader.binary(&packet[..end], &types).is_err(), "{end}");
        }
        assert!(reader.binary(&[&packet[..], &[0]].concat(), &types).is_err());
    }

    #[test]
    fn text_rows_are_divided_by_their_lengths() {
        let long = vec![b'x'; 300];
        let packet = [&[1, b'a', 0xfb, 0, 0xfc, 44, 1][..], &long].concat();
        let mut reader = RowReader::default();
        let row = reader.text(&packet, 4).unwrap();
        assert_eq!(values(row), [Some(b"a".to_vec()), None, Some(Vec::new()), Some(long)]);
        assert!(reader.text(&packet, 3).is_err() && reader.text(&packet, 5).is_err());
    }

    #[test]
    fn a_definition_has_the_type_of_its_column() {
        let definition = b"\x03def\x01d\x01t\x01t\x02id\x02id\x0c\x3f\x00\x0b\x00\x00\x00\x03\x03\x50\x00\x00\x00";
        assert_eq!(WireType::of_definition(definition), Ok(WireType::Fixed(4)));
        for end in 0..23 {
            assert!(WireType::of_definition(&definition[..end]).is_err(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn invalid_rows_never_panic(packet in proptest::collection::vec(any::<u8>(), 0..80), types in proptest::collection::vec(any::<u8>(), 0..20)) {
            let types: Vec<WireType> = types.into_iter().filter_map(|number| WireType::of_type(number).ok()).collect();
            let mut reader = RowReader::default();
            if let Ok(row) = reader.binary(&packet, &types) {
                prop_assert_eq!(values(row).len(), types.len());
            }
            if let Ok(row) = reader.text(&packet, types.len()) {
                prop_assert_eq!(values(row).len(), types.len());
            }
            let _ = WireType::of_definition(&packet);
        }
    }
}
