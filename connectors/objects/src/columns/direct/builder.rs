//! A column under construction, and the usual form of its values.

use std::sync::Arc;

use arrow::array::builder::{BinaryBuilder, BooleanBuilder, NullBufferBuilder, PrimitiveBuilder, StringBuilder};
use arrow::array::{ArrayRef, ArrowPrimitiveType, PrimitiveArray, types};
use arrow::datatypes::{DataType, Field, TimeUnit};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Object;
use super::scan::{Refused, Scanner};
use crate::columns::layout::is_inferred;

/// Calls a macro with each numeric kind: variant, Arrow type, Rust type.
macro_rules! for_each_integer {
    ($call:ident) => {
        $call! {
            Int8 Int8Type i8, Int16 Int16Type i16, Int32 Int32Type i32, Int64 Int64Type i64,
            UInt8 UInt8Type u8, UInt16 UInt16Type u16, UInt32 UInt32Type u32, UInt64 UInt64Type u64
        }
    };
}

macro_rules! define {
    ($($integer:ident $arrow:ident $rust:ident),+) => {
        /// A column by its type.
        pub(super) enum Column {
            $($integer(Numbers<types::$arrow>),)+
            Float32(Numbers<types::Float32Type>),
            Float64(Numbers<types::Float64Type>),
            Boolean(BooleanBuilder),
            /// Text of a declared schema.
            Text(Texts),
            /// Text of an inferred column, which also holds numbers and booleans.
            AnyText(Texts),
            /// Bytes, as base64 text.
            Binary(BinaryBuilder),
            Date(Numbers<types::Date32Type>),
            Timestamp(Timestamps),
            Decimal { builder: PrimitiveBuilder<types::Decimal128Type>, precision: u8, scale: i8 },
            Object(Box<Object>),
        }

        impl Column {
            pub(super) fn new(field: &Field) -> Option<Self> {
                Some(match field.data_type() {
                    $(DataType::$integer => Self::$integer(Numbers::with_capacity(0)),)+
                    DataType::Float32 => Self::Float32(Numbers::with_capacity(0)),
                    DataType::Float64 => Self::Float64(Numbers::with_capacity(0)),
                    DataType::Boolean => Self::Boolean(BooleanBuilder::with_capacity(0)),
                    DataType::Utf8 if is_inferred(field) => Self::AnyText(Texts::new()),
                    DataType::Utf8 => Self::Text(Texts::new()),
                    DataType::Binary => Self::Binary(BinaryBuilder::with_capacity(0, 0)),
                    DataType::Date32 => Self::Date(Numbers::with_capacity(0)),
                    DataType::Timestamp(unit, zone) => Self::Timestamp(Timestamps::new(*unit, zone.clone())?),
                    DataType::Decimal128(precision, scale) if *scale >= 0 => Self::Decimal {
                        builder: PrimitiveBuilder::with_capacity(0).with_precision_and_scale(*precision, *scale).ok()?,
                        precision: *precision,
                        scale: *scale,
                    },
                    DataType::Struct(members) => Self::Object(Box::new(Object::new(members)?)),
                    _ => return None,
                })
            }

            /// Makes room in an empty column for the rows of a chunk with this number of bytes.
            pub(super) fn reserve(&mut self, rows: usize, chunk_bytes: usize) {
                match self {
                    $(Self::$integer(builder) => *builder = Numbers::with_capacity(rows),)+
                    Self::Float32(builder) => *builder = Numbers::with_capacity(rows),
                    Self::Float64(builder) => *builder = Numbers::with_capacity(rows),
                    Self::Boolean(builder) => *builder = BooleanBuilder::with_capacity(rows),
                    Self::Text(texts) | Self::AnyText(texts) => texts.reserve(rows, chunk_bytes),
                    Self::Date(builder) => *builder = Numbers::with_capacity(rows),
                    Self::Timestamp(timestamps) => timestamps.values = Numbers::with_capacity(rows),
                    Self::Object(object) => object.reserve(rows, chunk_bytes),
                    Self::Decimal { builder, precision, scale } => {
                        let data_type = DataType::Decimal128(*precision, *scale);
                        *builder = PrimitiveBuilder::with_capacity(rows).with_data_type(data_type);
                    }
                    Self::Binary(builder) => *builder = BinaryBuilder::with_capacity(rows, 0),
                }
            }

            /// Reads a value that is not null, and appends it.
            pub(super) fn read(&mut self, scanner: &mut Scanner<'_>, scratch: &mut Vec<u8>) -> Result<(), Refused> {
                match self {
                    $(Self::$integer(builder) => {
                        let number = scanner.number()?;
                        if !number.is_integer {
                            return Err(Refused);
                        }
                        builder.append_value(number.text.parse::<$rust>().map_err(|_| Refused)?);
                    })+
                    Self::Float32(builder) => {
                        builder.append_value(finite(scanner.number()?.text.parse::<f32>(), |value| value.is_finite())?);
                    }
                    Self::Float64(builder) => {
                        builder.append_value(finite(scanner.number()?.text.parse::<f64>(), |value| value.is_finite())?);
                    }
                    Self::Boolean(builder) => builder.append_value(boolean(scanner)?),
                    Self::Text(texts) => texts.builder.append_value(scanner.string(scratch)?),
                    Self::AnyText(texts) if scanner.is_string() => texts.builder.append_value(scanner.string(scratch)?),
                    Self::AnyText(texts) => match boolean(scanner) {
                        Ok(value) => texts.builder.append_value(if value { "true" } else { "false" }),
                        Err(_) => texts.builder.append_value(scanner.number()?.text),
                    },
                    Self::Binary(builder) => {
                        let text = scanner.string(scratch)?;
                        builder.append_value(STANDARD.decode(text).map_err(|_| Refused)?);
                    }
                    Self::Date(builder) => builder.append_value(date(scanner.string(scratch)?.as_bytes())?),
                    Self::Timestamp(timestamps) => timestamps.append(scanner.string(scratch)?)?,
                    Self::Decimal { builder, precision, scale } => {
                        let text =
                            if scanner.is_string() { scanner.string(scratch)? } else { scanner.number()?.text };
                        builder.append_value(decimal(text, *precision, *scale)?);
                    }
                    Self::Object(object) => object.read(scanner, scratch)?,
                }
                Ok(())
            }

            pub(super) fn append_null(&mut self) {
                match self {
                    $(Self::$integer(builder) => builder.append_null(),)+
                    Self::Float32(builder) => builder.append_null(),
                    Self::Float64(builder) => builder.append_null(),
                    Self::Boolean(builder) => builder.append_null(),
                    Self::Text(texts) | Self::AnyText(texts) => texts.builder.append_null(),
                    Self::Binary(builder) => builder.append_null(),
                    Self::Date(builder) => builder.append_null(),
                    Self::Timestamp(timestamps) => timestamps.values.append_null(),
                    Self::Decimal { builder, .. } => builder.append_null(),
                    Self::Object(object) => object.append_null_object(),
                }
            }

            /// The column so far; the builder is empty afterwards.
            pub(super) fn finish(&mut self) -> ArrayRef {
                match self {
                    $(Self::$integer(builder) => Arc::new(builder.finish()),)+
                    Self::Float32(builder) => Arc::new(builder.finish()),
                    Self::Float64(builder) => Arc::new(builder.finish()),
                    Self::Boolean(builder) => Arc::new(builder.finish()),
                    Self::Text(texts) | Self::AnyText(texts) => texts.finish(),
                    Self::Binary(builder) => Arc::new(builder.finish()),
                    Self::Date(builder) => Arc::new(builder.finish()),
                    Self::Timestamp(timestamps) => timestamps.finish(),
                    Self::Decimal { builder, .. } => Arc::new(builder.finish()),
                    Self::Object(object) => object.finish_struct(),
                }
            }
        }
    };
}

for_each_integer!(define);

fn finite<T, E>(value: Result<T, E>, is_finite: impl Fn(&T) -> bool) -> Result<T, Refused> {
    value.ok().filter(is_finite).ok_or(Refused)
}

fn boolean(scanner: &mut Scanner<'_>) -> Result<bool, Refused> {
    if scanner.word("true") {
        Ok(true)
    } else if scanner.word("false") {
        Ok(false)
    } else {
        Err(Refused)
    }
}

/// Numbers. Arrow's builder makes an array in more steps, which wide rows repeat for each column of
/// a few rows.
pub(super) struct Numbers<T: ArrowPrimitiveType> {
    values: Vec<T::Native>,
    nulls: NullBufferBuilder,
}

impl<T: ArrowPrimitiveType> Numbers<T> {
    fn with_capacity(rows: usize) -> Self {
        Self { values: Vec::with_capacity(rows), nulls: NullBufferBuilder::new(rows) }
    }

    fn append_value(&mut self, value: T::Native) {
        self.values.push(value);
        self.nulls.append_non_null();
    }

    fn append_null(&mut self) {
        self.values.push(T::Native::default());
        self.nulls.append_null();
    }

    fn finish(&mut self) -> PrimitiveArray<T> {
        PrimitiveArray::new(std::mem::take(&mut self.values).into(), self.nulls.finish())
    }
}

/// Texts, and which part of the last chunk they were.
pub(super) struct Texts {
    builder: StringBuilder,
    last_bytes: usize,
    last_chunk_bytes: usize,
}

impl Texts {
    fn new() -> Self {
        Self { builder: StringBuilder::with_capacity(0, 0), last_bytes: 0, last_chunk_bytes: 0 }
    }

    /// Makes room for the same part of this chunk, and an eighth more: for all columns together,
    /// little more than the bytes of the chunk (I6).
    fn reserve(&mut self, rows: usize, chunk_bytes: usize) {
        let bytes = self.last_bytes.saturating_mul(chunk_bytes) / self.last_chunk_bytes.max(1);
        self.builder = StringBuilder::with_capacity(rows, bytes + bytes / 8);
        self.last_chunk_bytes = chunk_bytes;
    }

    fn finish(&mut self) -> ArrayRef {
        self.last_bytes = self.builder.values_slice().len();
        Arc::new(self.builder.finish())
    }
}

/// Timestamps in UTC (`2015-05-17T10:05:03Z`) or without a zone (`2015-05-17T10:05:03`).
pub(super) struct Timestamps {
    values: Numbers<types::Int64Type>,
    unit: TimeUnit,
    zone: Option<Arc<str>>,
    /// Digits of the fraction that the unit can hold.
    digits: usize,
}

impl Timestamps {
    fn new(unit: TimeUnit, zone: Option<Arc<str>>) -> Option<Self> {
        if zone.as_deref().is_some_and(|zone| zone != "+00:00") {
            return None;
        }
        let digits = match unit {
            TimeUnit::Second => 0,
            TimeUnit::Millisecond => 3,
            TimeUnit::Microsecond => 6,
            TimeUnit::Nanosecond => 9,
        };
        Some(Self { values: Numbers::with_capacity(0), unit, zone, digits })
    }

    fn append(&mut self, text: &str) -> Result<(), Refused> {
        let bytes = text.as_bytes();
        let local = match (&self.zone, bytes) {
            (Some(_), [local @ .., b'Z']) => local,
            (None, local) => local,
            (Some(_), _) => return Err(Refused),
        };
        let [date_part @ .., b'T', h1, h2, b':', m1, m2, b':', s1, s2] = local.get(..19).ok_or(Refused)? else {
            return Err(Refused);
        };
        let (hour, minute, second) = (two_digits(*h1, *h2, 23)?, two_digits(*m1, *m2, 59)?, two_digits(*s1, *s2, 59)?);
        let seconds = i64::from(date(date_part)?) * 86_400 + hour * 3600 + minute * 60 + second;
        let mut fraction = 0;
        let mut missing = self.digits;
        if let Some((b'.', digits)) = local[19..].split_first() {
            if digits.is_empty() || digits.len() > self.digits {
                return Err(Refused);
            }
            for digit in digits {
                fraction = fraction * 10 + number_of(*digit)?;
            }
            missing -= digits.len();
        } else if local.len() != 19 {
            return Err(Refused);
        }
        let power = |digits: usize| 10_i64.pow(digits as u32);
        let value =
            seconds.checked_mul(power(self.digits)).and_then(|whole| whole.checked_add(fraction * power(missing)));
        self.values.append_value(value.ok_or(Refused)?);
        Ok(())
    }

    fn finish(&mut self) -> ArrayRef {
        let values = self.values.finish();
        let zone = self.zone.clone();
        match self.unit {
            TimeUnit::Second => {
                Arc::new(values.reinterpret_cast::<types::TimestampSecondType>().with_timezone_opt(zone))
            }
            TimeUnit::Millisecond => {
                Arc::new(values.reinterpret_cast::<types::TimestampMillisecondType>().with_timezone_opt(zone))
            }
            TimeUnit::Microsecond => {
                Arc::new(values.reinterpret_cast::<types::TimestampMicrosecondType>().with_timezone_opt(zone))
            }
            TimeUnit::Nanosecond => {
                Arc::new(values.reinterpret_cast::<types::TimestampNanosecondType>().with_timezone_opt(zone))
            }
        }
    }
}

fn number_of(digit: u8) -> Result<i64, Refused> {
    if digit.is_ascii_digit() { Ok(i64::from(digit - b'0')) } else { Err(Refused) }
}

fn two_digits(tens: u8, ones: u8, max: i64) -> Result<i64, Refused> {
    let number = number_of(tens)? * 10 + number_of(ones)?;
    if number <= max { Ok(number) } else { Err(Refused) }
}

/// Days since the epoch of `2015-05-17`, years 1 to 9999.
fn date(text: &[u8]) -> Result<i32, Refused> {
    let [y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2] = text else { return Err(Refused) };
    let year = two_digits(*y1, *y2, 99)? * 100 + two_digits(*y3, *y4, 99)?;
    let (month, day) = (two_digits(*m1, *m2, 12)?, two_digits(*d1, *d2, 31)?);
    let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + i64::from(is_leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    if year == 0 || month == 0 || day == 0 || day > days {
        return Err(Refused);
    }
    // Days from civil: a year starts in March, so that the leap day is its last day.
    // https://howardhinnant.github.io/date_algorithms.html
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year / 400, year % 400);
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let days = era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468;
    i32::try_from(days).map_err(|_| Refused)
}

/// The unscaled value of `-12.30`. Digits that the type cannot hold are refused.
fn decimal(text: &str, precision: u8, scale: i8) -> Result<i128, Refused> {
    let (is_negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let scale = scale.unsigned_abs() as usize;
    let is_decimal = !whole.is_empty() && (digits.len() == whole.len() || !fraction.is_empty());
    if !is_decimal || fraction.len() > scale || whole.len() + scale > 38 {
        return Err(Refused);
    }
    let mut value: i128 = 0;
    for digit in whole.bytes().chain(fraction.bytes()) {
        value = value * 10 + i128::from(number_of(digit)?);
    }
    value *= 10_i128.pow((scale - fraction.len()) as u32);
    if value >= 10_i128.pow(u32::from(precision)) {
        return Err(Refused);
    }
    Ok(if is_negative { -value } else { value })
}
