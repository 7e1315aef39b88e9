//! Decodes rows of a prepared statement (the binary protocol). The statement selects ENUM, SET and
//! BIT as numbers and VECTOR as bytes; see `snapshot::select`.

use super::{Bytes, Date, DateTime, Malformed, Time, Value, little, sign_extend, too_short};
use crate::schema::types::ColumnType;

/// How a query selects TIMESTAMP columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimestampEncoding {
    /// As they are, in a session whose time zone is UTC.
    Utc,
    /// As text with the seconds since 1970, in a session with another time zone.
    Epoch,
}

/// Reads a value that is not null.
#[inline]
pub(crate) fn read<'a>(
    column_type: &ColumnType,
    timestamps: TimestampEncoding,
    bytes: &'a [u8],
) -> Result<Value<'a>, Malformed> {
    Ok(match column_type {
        ColumnType::Timestamp { .. } if timestamps == TimestampEncoding::Epoch => Value::DateTime(epoch(bytes)?),
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

#[inline]
fn number(bytes: &[u8], most: usize) -> Result<&[u8], Malformed> {
    if (1..=most).contains(&bytes.len()) { Ok(bytes) } else { Err(wrong_number(bytes.len())) }
}

#[cold]
fn wrong_number(bytes: usize) -> Malformed {
    Malformed(format!("a number of {bytes} bytes"))
}

/// A length, then date, time and microseconds without trailing zero parts.
fn datetime(bytes: &[u8]) -> Result<DateTime, Malformed> {
    let mut time = DateTime::ZERO;
    let [length] = array(bytes, 0)?;
    if length >= 4 {
        let [y1, y2, month, day] = array(bytes, 1)?;
        time.date = Date { year: u16::from_le_bytes([y1, y2]), month, day };
    }
    if length >= 7 {
        [time.hour, time.minute, time.second] = array(bytes, 5)?;
    }
    if length >= 11 {
        time.micros = u32::from_le_bytes(array(bytes, 8)?);
    }
    Ok(time)
}

/// The bytes at this position.
#[inline]
fn array<const N: usize>(bytes: &[u8], at: usize) -> Result<[u8; N], Malformed> {
    let found = bytes.get(at..).and_then(<[u8]>::first_chunk);
    found.copied().ok_or_else(|| too_short(at + N, bytes.len()))
}

/// `1764300000.25`
fn epoch(bytes: &[u8]) -> Result<DateTime, Malformed> {
    let wrong = || Malformed(format!("`{}` is not a number of seconds", String::from_utf8_lossy(bytes)));
    let text = std::str::from_utf8(bytes).map_err(|_| wrong())?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let micros = format!("{fraction:0<6}");
    let micros = micros.get(..6).and_then(|digits| digits.parse().ok()).ok_or_else(wrong)?;
    Ok(DateTime::of_epoch(seconds.parse().map_err(|_| wrong())?, micros))
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
        assert_eq!(read(&ColumnType::Time { digits: 0 }, TimestampEncoding::Utc, &bytes), Ok(Value::Time(expected)));
        assert_eq!(read(&ColumnType::Date, TimestampEncoding::Utc, &[0]), Ok(Value::Date(Date::ZERO)));
    }

    #[test]
    fn timestamps_are_decoded_from_seconds() {
        fn seconds(text: &str) -> Result<Value<'_>, Malformed> {
            read(&ColumnType::Timestamp { digits: 6 }, TimestampEncoding::Epoch, text.as_bytes())
        }
        // date -u -d @1772332200
        let date = Date { year: 2026, month: 3, day: 1 };
        let expected = DateTime { date, hour: 2, minute: 30, second: 0, micros: 250_000 };
        assert_eq!(seconds("1772332200.25"), Ok(Value::DateTime(expected)));
        assert_eq!(seconds("1772332200"), Ok(Value::DateTime(DateTime { micros: 0, ..expected })));
        assert_eq!(seconds("0.000000"), Ok(Value::DateTime(DateTime::ZERO)));
        assert!(seconds("x").is_err() && seconds("-1").is_err() && seconds("1.x").is_err());
    }

    proptest! {
        #[test]
        fn invalid_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..16)) {
            for column_type in [ColumnType::Year, ColumnType::Float, ColumnType::Double, ColumnType::Date, ColumnType::Time { digits: 6 }, ColumnType::DateTime { digits: 6 }] {
                let _ = read(&column_type, TimestampEncoding::Utc, &bytes);
            }
        }
    }
}
