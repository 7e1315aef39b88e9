//! Values of the rows of a prepared statement, as the server sends them in its binary protocol. The statement asks for ENUM, SET and BIT
//! as numbers and for a VECTOR as bytes; see `snapshot::select`.

use super::{Bytes, Date, DateTime, Malformed, Time, Value, little, sign_extend};
use crate::format::table::Kind;

/// Reads a value that is not null.
pub(crate) fn read<'a>(kind: &Kind, bytes: &'a [u8]) -> Result<Value<'a>, Malformed> {
    Ok(match kind {
        Kind::Int { unsigned: true, .. } => Value::UInt(little(number(bytes, 8)?)),
        Kind::Int { unsigned: false, .. } => {
            let bytes = number(bytes, 8)?;
            Value::Int(sign_extend(little(bytes), bytes.len()))
        }
        Kind::Year => Value::Int(little(number(bytes, 8)?) as i64),
        Kind::Float => Value::Float(f32::from_bits(little(number(bytes, 4)?) as u32)),
        Kind::Double => Value::Double(f64::from_bits(little(number(bytes, 8)?))),
        Kind::Decimal { .. } => Value::Decimal(bytes),
        Kind::Bit { .. } => Value::Bits(little(number(bytes, 8)?)),
        Kind::Enum { .. } => Value::EnumIndex(little(number(bytes, 8)?)),
        Kind::Set { .. } => Value::SetBits(little(number(bytes, 8)?)),
        Kind::Date => Value::Date(datetime(bytes)?.date),
        Kind::DateTime { .. } | Kind::Timestamp { .. } => Value::DateTime(datetime(bytes)?),
        Kind::Time { .. } => Value::Time(time(bytes)?),
        Kind::Text { .. } | Kind::Binary | Kind::Geometry | Kind::Vector => Value::Bytes { bytes, zeros: 0 },
        Kind::Json => Value::JsonText(bytes),
        Kind::Uuid | Kind::Inet4 | Kind::Inet6 => Value::Printed(bytes),
    })
}

fn number(bytes: &[u8], most: usize) -> Result<&[u8], Malformed> {
    if (1..=most).contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(Malformed(format!("a number of {} bytes", bytes.len())))
    }
}

/// A length, then as much of date, time and microseconds as is not zero.
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
    fn times_are_days_and_hours() {
        let bytes = [8, 1, 34, 0, 0, 0, 22, 59, 59];
        let expected = Time { negative: true, hours: 838, minutes: 59, seconds: 59, micros: 0 };
        assert_eq!(read(&Kind::Time { digits: 0 }, &bytes), Ok(Value::Time(expected)));
        assert_eq!(read(&Kind::Date, &[0]), Ok(Value::Date(Date::ZERO)));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            for kind in [Kind::Year, Kind::Float, Kind::Double, Kind::Date, Kind::Time { digits: 6 }, Kind::DateTime { digits: 6 }] {
                let _ = read(&kind, &bytes);
            }
        }
    }
}
