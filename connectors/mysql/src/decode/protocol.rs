//! Decodes rows of a prepared statement (the binary protocol). The statement selects ENUM, SET and BIT as numbers and VECTOR as
//! bytes; see `snapshot::select`.

use super::{Bytes, Date, DateTime, Malformed, Time, Value, little, sign_extend};
use crate::schema::types::ColumnType;

/// Reads a value that is not null.
pub(crate) fn read<'a>(column_type: &ColumnType, bytes: &'a [u8]) -> Result<Value<'a>, Malformed> {
    Ok(match column_type {
        ColumnType::Int { unsigned: true, .. } => Value::UInt(little(number(bytes, 8)?)),
        ColumnType::Int { unsigned: false, .. } => {
            let bytes = number(bytes, 8)?;
            Value::Int(sign_extend(little(bytes), bytes.len()))
        }
        ColumnType::Year => Value::Int(little(number(bytes, 8)?) as i64),
        ColumnType::Float => Value::Float(f32::from_bits(little(number(bytes, 4)?) as u32)),
        ColumnType::Double => Value::Double(f64::from_bits(little(number(bytes, 8)?))),
        ColumnType::Decimal { .. } => Value::Decimal(bytes),
        ColumnType::Bit { .. } => Value::Bits(little(number(bytes, 8)?)),
        ColumnType::Enum { .. } => Value::EnumIndex(little(number(bytes, 8)?)),
        ColumnType::Set { .. } => Value::SetBits(little(number(bytes, 8)?)),
        ColumnType::Date => Value::Date(datetime(bytes)?.date),
        ColumnType::DateTime { .. } | ColumnType::Timestamp { .. } => Value::DateTime(datetime(bytes)?),
        ColumnType::Time { .. } => Value::Time(time(bytes)?),
        ColumnType::Text { .. } | ColumnType::Binary | ColumnType::Geometry | ColumnType::Vector => {
            Value::Bytes { bytes, zeros: 0 }
        }
        ColumnType::Json => Value::JsonText(bytes),
        ColumnType::Uuid | ColumnType::Inet4 | ColumnType::Inet6 => Value::Printed(bytes),
    })
}

fn number(bytes: &[u8], most: usize) -> Result<&[u8], Malformed> {
    if (1..=most).contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(Malformed(format!("a number of {} bytes", bytes.len())))
    }
}

/// A length, then date, time and microseconds without trailing zero parts.
fn datetime(bytes: &[u8]) -> Result<DateTime, Malformed> {
    let mut bytes = Bytes::new(bytes);
    let mut time = DateTime::ZERO;
    let length = bytes.u8()?;
    if length >= 4 {
        time.date = Date { year: bytes.little(2)? as u16, month: bytes.u8()?, day: bytes.u8()? };
    }
    if length >= 7 {
        (time.hour, time.minute, time.second) = (bytes.u8()?, bytes.u8()?, bytes.u8()?);
    }
    if length >= 11 {
        time.micros = bytes.little(4)? as u32;
    }
    Ok(time)
}

fn time(bytes: &[u8]) -> Result<Time, Malformed> {
    let mut bytes = Bytes::new(bytes);
    let mut time = Time { negative: false, hours: 0, minutes: 0, seconds: 0, micros: 0 };
    let length = bytes.u8()?;
    if length >= 8 {
        time.negative = bytes.u8()? != 0;
        let days = bytes.little(4)?.min(34) as u16;
        time.hours = days * 24 + u16::from(bytes.u8()?);
        (time.minutes, time.seconds) = (bytes.u8()?, bytes.u8()?);
    }
    if length >= 12 {
        time.micros = bytes.little(4)? as u32;
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn times_are_encoded_as_days_and_hours() {
        let bytes = [8, 1, 34, 0, 0, 0, 22, 59, 59];
        let expected = Time { negative: true, hours: 838, minutes: 59, seconds: 59, micros: 0 };
        assert_eq!(read(&ColumnType::Time { digits: 0 }, &bytes), Ok(Value::Time(expected)));
        assert_eq!(read(&ColumnType::Date, &[0]), Ok(Value::Date(Date::ZERO)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            for column_type in [ColumnType::Year, ColumnType::Float, ColumnType::Double, ColumnType::Date, ColumnType::Time { digits: 6 }, ColumnType::DateTime { digits: 6 }] {
                let _ = read(&column_type, &bytes);
            }
        }
    }
}
