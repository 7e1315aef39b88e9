//! The options that decide how values and records are written.

use crate::schema::types::ColumnType;

/// The shape of a record's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Envelope {
    /// Debezium's envelope: `before`, `after`, `source`, `op` and `ts_ms`.
    Debezium,
    /// The row alone.
    Row,
}

/// How decimals are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DecimalFormat {
    String,
    /// A JSON number with the same digits.
    Number,
}

/// How bytes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BinaryFormat {
    Base64,
    Hex,
}

/// How dates that do not exist (`0000-00-00`, `2026-00-00`) are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ZeroDates {
    Null,
    /// As a string, and every other date too.
    String,
    /// Not at all: the record is rejected.
    Error,
}

/// How dates and times are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeFormat {
    /// As strings in ISO 8601.
    Iso,
    /// In milliseconds; dates in days.
    EpochMs,
    /// In microseconds; dates in days.
    EpochUs,
    /// As Debezium's default `adaptive_time_microseconds`: DATETIME with up to 3 digits in
    /// milliseconds, with more in microseconds; TIME in microseconds; dates in days; TIMESTAMP in
    /// ISO 8601.
    Adaptive,
}

/// How values are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FormatOptions {
    pub(crate) envelope: Envelope,
    pub(crate) decimals: DecimalFormat,
    pub(crate) binary: BinaryFormat,
    pub(crate) zero_dates: ZeroDates,
    pub(crate) times: TimeFormat,
    /// The envelope has a `transaction` block.
    pub(crate) transaction_block: bool,
    /// The `source` block has the statement that made the change.
    pub(crate) query: bool,
}

/// The unit of a temporal value that is written as a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TimeUnit {
    Milliseconds,
    Microseconds,
}

impl FormatOptions {
    /// The unit of temporal values of this type; `None` if they are written in ISO 8601. Dates that
    /// are numbers count days.
    pub(crate) fn unit(&self, column_type: &ColumnType) -> Option<TimeUnit> {
        match (self.times, column_type) {
            (TimeFormat::Iso, _) | (TimeFormat::Adaptive, ColumnType::Timestamp { .. }) => None,
            (TimeFormat::EpochMs, _) | (TimeFormat::Adaptive, ColumnType::DateTime { digits: 0..=3 }) => {
                Some(TimeUnit::Milliseconds)
            }
            (TimeFormat::EpochUs | TimeFormat::Adaptive, _) => Some(TimeUnit::Microseconds),
        }
    }
}
