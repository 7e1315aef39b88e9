//! Dates and times, as packed in row images and in binary JSON.

use super::{Malformed, big};

/// A date that MySQL stores: month or day may be 0, and with `ALLOW_INVALID_DATES` the day may not
/// exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Date {
    pub(crate) year: u16,
    pub(crate) month: u8,
    pub(crate) day: u8,
}

impl Date {
    pub(crate) const ZERO: Self = Self { year: 0, month: 0, day: 0 };

    /// Whether the calendar has this day.
    pub(crate) fn exists(self) -> bool {
        let leap = self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        let days = match self.month {
            2 => 28 + u8::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return false,
        };
        (1..=days).contains(&self.day) && self.year <= 9999
    }

    /// Days since 1970-01-01; the date must exist.
    pub(crate) fn days(self) -> i64 {
        // A year begins in March here, so that the leap day is its last day; 400 years have 146,097
        // days.
        let (month, day) = (i64::from(self.month), i64::from(self.day));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let (era, year) = (year.div_euclid(400), year.rem_euclid(400));
        let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
        era * 146_097 + year * 365 + year / 4 - year / 100 + day_of_year - 719_468
    }

    /// Decodes a row image.
    pub(crate) fn packed(number: u64) -> Self {
        Self { day: (number & 31) as u8, month: (number >> 5 & 15) as u8, year: (number >> 9) as u16 }
    }
}

/// A date with a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DateTime {
    pub(crate) date: Date,
    pub(crate) hour: u8,
    pub(crate) minute: u8,
    pub(crate) second: u8,
    pub(crate) micros: u32,
}

impl DateTime {
    pub(crate) const ZERO: Self = Self { date: Date::ZERO, hour: 0, minute: 0, second: 0, micros: 0 };

    /// Microseconds since 1970 in UTC; the date must exist.
    pub(crate) fn epoch_micros(&self) -> i64 {
        let minutes = self.date.days() * 1440 + i64::from(self.hour) * 60 + i64::from(self.minute);
        (minutes * 60 + i64::from(self.second)) * 1_000_000 + i64::from(self.micros)
    }

    /// Decodes date and time without fraction: 17 bits of year and month, 5 each of day and hour, 6
    /// each of minute and second.
    pub(crate) fn packed(whole: u64, micros: u32) -> Self {
        let year_month = whole >> 22;
        Self {
            date: Date {
                year: (year_month / 13) as u16,
                month: (year_month % 13) as u8,
                day: (whole >> 17 & 31) as u8,
            },
            hour: (whole >> 12 & 31) as u8,
            minute: (whole >> 6 & 63) as u8,
            second: (whole & 63) as u8,
            micros,
        }
    }

    /// A TIMESTAMP, from its seconds since 1970. MySQL stores the zero date as 0.
    pub(crate) fn of_epoch(seconds: u32, micros: u32) -> Self {
        if seconds == 0 && micros == 0 {
            return Self::ZERO;
        }
        // Howard Hinnant's algorithm for civil dates, restricted to days from 0.
        let days = i64::from(seconds / 86_400) + 719_468;
        let era = days / 146_097;
        let day_of_era = days % 146_097;
        let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let shifted_month = (5 * day_of_year + 2) / 153;
        let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
        let second_of_day = seconds % 86_400;
        Self {
            date: Date { year: year as u16, month: month as u8, day: day as u8 },
            hour: (second_of_day / 3600) as u8,
            minute: (second_of_day / 60 % 60) as u8,
            second: (second_of_day % 60) as u8,
            micros,
        }
    }
}

/// A duration between -838:59:59 and 838:59:59.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Time {
    pub(crate) negative: bool,
    pub(crate) hours: u16,
    pub(crate) minutes: u8,
    pub(crate) seconds: u8,
    pub(crate) micros: u32,
}

impl Time {
    /// Decodes the number that orders times: hours, minutes and seconds above 24 bits of
    /// microseconds.
    pub(crate) fn packed(number: i64) -> Self {
        let magnitude = number.unsigned_abs();
        let whole = magnitude >> 24;
        Self {
            negative: number < 0,
            hours: (whole >> 12 & 1023) as u16,
            minutes: (whole >> 6 & 63) as u8,
            seconds: (whole & 63) as u8,
            micros: (magnitude & 0xff_ffff) as u32,
        }
    }

    /// Microseconds; negative for a negative time.
    pub(crate) fn total_micros(self) -> i64 {
        let minutes = i64::from(self.hours) * 60 + i64::from(self.minutes);
        let micros = (minutes * 60 + i64::from(self.seconds)) * 1_000_000 + i64::from(self.micros);
        if self.negative { -micros } else { micros }
    }
}

/// Bytes of a fraction, by its number of digits.
pub(crate) fn fraction_bytes(digits: u8) -> usize {
    usize::from(digits).div_ceil(2)
}

/// Microseconds of a fraction.
fn micros(bytes: &[u8]) -> u32 {
    let number = big(bytes) as u32;
    match bytes.len() {
        1 => number * 10_000,
        2 => number * 100,
        _ => number,
    }
}

/// DATETIME of a row image: 5 bytes and the fraction.
pub(crate) fn datetime(bytes: &[u8]) -> Result<DateTime, Malformed> {
    let (whole, fraction) =
        bytes.split_at_checked(5).ok_or_else(|| Malformed::new("a DATETIME has 5 bytes or more"))?;
    Ok(DateTime::packed(big(whole).wrapping_sub(0x80_0000_0000) & 0x7f_ffff_ffff, micros(fraction)))
}

/// TIMESTAMP of a row image: 4 bytes and the fraction.
pub(crate) fn timestamp(bytes: &[u8]) -> Result<DateTime, Malformed> {
    let (whole, fraction) =
        bytes.split_at_checked(4).ok_or_else(|| Malformed::new("a TIMESTAMP has 4 bytes or more"))?;
    Ok(DateTime::of_epoch(big(whole) as u32, micros(fraction)))
}

/// TIME of a row image: 3 bytes and the fraction, which for a negative time counts from the *next
/// lower* second.
pub(crate) fn time(bytes: &[u8]) -> Result<Time, Malformed> {
    let (whole, fraction) = bytes.split_at_checked(3).ok_or_else(|| Malformed::new("a TIME has 3 bytes or more"))?;
    let seconds = big(whole) as i64 - 0x80_0000;
    Ok(Time::packed(match fraction.len() {
        0 => seconds << 24,
        1 | 2 => {
            let unit = if fraction.len() == 1 { 10_000 } else { 100 };
            let parts = big(fraction) as i64;
            if seconds < 0 && parts > 0 {
                ((seconds + 1) << 24) + (parts - (1 << (8 * fraction.len()))) * unit
            } else {
                (seconds << 24) + parts * unit
            }
        }
        _ => big(bytes) as i64 - 0x8000_0000_0000,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_day_exists_or_not() {
        let date = |year, month, day| Date { year, month, day };
        assert!(date(2024, 2, 29).exists() && date(0, 1, 1).exists() && date(9999, 12, 31).exists());
        assert!(!date(2026, 2, 29).exists() && !date(1900, 2, 29).exists() && !date(2026, 0, 1).exists());
        assert!(!date(2026, 4, 31).exists() && !date(2026, 4, 0).exists() && !date(2026, 13, 1).exists());
    }

    #[test]
    fn days_and_microseconds_since_1970() {
        let date = |year, month, day| Date { year, month, day };
        // date -u -d 1000-01-01 +%s, and so on, by 86400.
        for (date, days) in [
            (date(1970, 1, 1), 0),
            (date(1969, 12, 31), -1),
            (date(2000, 2, 29), 11_016),
            (date(2000, 3, 1), 11_017),
            (date(2026, 11, 21), 20_778),
            (date(1000, 1, 1), -354_285),
            (date(9999, 12, 31), 2_932_896),
        ] {
            assert_eq!(date.days(), days, "{date:?}");
        }
        let time = DateTime { date: date(1969, 12, 31), hour: 23, minute: 59, second: 59, micros: 999_999 };
        assert_eq!(time.epoch_micros(), -1);
        assert_eq!(Time::packed(-1).total_micros(), -1);
    }

    #[test]
    fn times_below_zero() {
        let seen = |bytes: &[u8]| time(bytes).unwrap();
        let time = |negative, hours, minutes, seconds, micros| Time { negative, hours, minutes, seconds, micros };
        assert_eq!(seen(&[0x7f, 0xff, 0xff]), time(true, 0, 0, 1, 0));
        // -00:00:01.25 in TIME(2)
        assert_eq!(seen(&[0x7f, 0xff, 0xfe, 0xe7]), time(true, 0, 0, 1, 250_000));
        assert_eq!(seen(&[0x80, 0, 1, 0x19]), time(false, 0, 0, 1, 250_000));
    }

    proptest! {
        #[test]
        fn seconds_since_1970_are_what_the_calendar_says(seconds in 1u32.., micros in 0u32..1_000_000) {
            let ours = DateTime::of_epoch(seconds, micros);
            let civil = jiff::tz::TimeZone::UTC.to_datetime(jiff::Timestamp::from_second(i64::from(seconds)).unwrap());
            prop_assert_eq!((ours.date.year as i16, ours.date.month as i8, ours.date.day as i8), (civil.year(), civil.month(), civil.day()));
            prop_assert_eq!((ours.hour as i8, ours.minute as i8, ours.second as i8), (civil.hour(), civil.minute(), civil.second()));
            prop_assert!(ours.date.exists());
        }

        #[test]
        fn any_bytes_are_survived(bytes in proptest::collection::vec(any::<u8>(), 0..9)) {
            let _ = (datetime(&bytes), timestamp(&bytes), time(&bytes));
        }
    }
}
