//! Times: scanners of common forms, zones, missing years, and ISO 8601 in UTC as output.

use jiff::civil::DateTime;
use jiff::fmt::strtime::BrokenDownTime;
use jiff::tz::{Offset, TimeZone};

use super::{Expected, FileStart};

const DAY: i64 = 86_400;
pub(super) const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// A point of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Instant {
    /// Seconds since the Unix epoch.
    pub(super) seconds: i64,
    pub(super) nanos: u32,
}

impl Instant {
    pub(super) fn milliseconds(self) -> i64 {
        self.seconds.saturating_mul(1000).saturating_add(i64::from(self.nanos / 1_000_000))
    }

    /// Writes it as ISO 8601 in UTC, in quotes, with at most `digits` digits of its fraction.
    /// `false` if its year does not have four digits.
    pub(super) fn write(self, out: &mut Vec<u8>, digits: usize) -> bool {
        let (days, second) = (self.seconds.div_euclid(DAY), self.seconds.rem_euclid(DAY) as u32);
        let (year, month, day) = date_of(days);
        if !(0..=9999).contains(&year) {
            return false;
        }
        let mut text = *b"\"0000-00-00T00:00:00";
        let year = year as u32;
        let parts = [year / 100, year % 100, month, day, second / 3600, second / 60 % 60, second % 60];
        for (at, value) in [1, 3, 6, 9, 12, 15, 18].into_iter().zip(parts) {
            text[at] += (value / 10) as u8;
            text[at + 1] += (value % 10) as u8;
        }
        out.extend_from_slice(&text);
        let mut fraction = *b".000000000";
        let mut rest = self.nanos;
        for digit in fraction[1..].iter_mut().rev() {
            *digit += (rest % 10) as u8;
            rest /= 10;
        }
        let kept = fraction[1..=digits].iter().rposition(|digit| *digit != b'0');
        if let Some(last) = kept {
            out.extend_from_slice(&fraction[..last + 2]);
        }
        out.extend_from_slice(b"Z\"");
        true
    }
}

/// Days since the Unix epoch (Hinnant, "chrono-compatible low-level date algorithms").
fn days_of(year: i64, month: u32, day: u32) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let of_era = year.rem_euclid(400);
    let of_year = i64::from((153 * ((month + 9) % 12) + 2) / 5 + day - 1);
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The reverse of [`days_of`].
fn date_of(days: i64) -> (i64, u32, u32) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = (of_era - (365 * year + year / 4 - year / 100)) as u32;
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * shifted + 2) / 5 + 1)
}

/// A date and a time without a zone. A leap second counts as the second before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Civil {
    pub(super) year: i64,
    pub(super) month: u32,
    pub(super) day: u32,
    pub(super) second_of_day: u32,
    pub(super) nanos: u32,
}

impl Civil {
    /// Seconds since 1970 as if it were in UTC. `None` if the date does not exist.
    pub(super) fn seconds(&self) -> Option<i64> {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let days = match self.month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            1..=12 => 31,
            _ => return None,
        };
        let exists = (1..=days).contains(&self.day);
        exists.then(|| days_of(self.year, self.month, self.day) * DAY + i64::from(self.second_of_day))
    }
}

/// Two digits.
fn two(bytes: &[u8], at: usize) -> Option<u32> {
    match bytes.get(at..at + 2)? {
        [tens @ b'0'..=b'9', ones @ b'0'..=b'9'] => Some(u32::from(tens - b'0') * 10 + u32::from(ones - b'0')),
        _ => None,
    }
}

/// `HH:MM:SS` and a fraction after `.` or `,`: the second of the day, nanoseconds, and the length.
pub(super) fn time_of_day(bytes: &[u8]) -> Option<(u32, u32, usize)> {
    let (hour, minute, second) = (two(bytes, 0)?, two(bytes, 3)?, two(bytes, 6)?);
    let valid = bytes[2] == b':' && bytes[5] == b':' && hour < 24 && minute < 60 && second <= 60;
    if !valid {
        return None;
    }
    let second_of_day = hour * 3600 + minute * 60 + second.min(59);
    let is_fraction = matches!(bytes.get(8), Some(b'.' | b',')) && bytes.get(9).is_some_and(u8::is_ascii_digit);
    if !is_fraction {
        return Some((second_of_day, 0, 8));
    }
    let len = bytes[9..].iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len() - 9);
    let mut nanos = 0;
    for place in 0..9 {
        let digit = if place < len { u32::from(bytes[9 + place] - b'0') } else { 0 };
        nanos = nanos * 10 + digit;
    }
    Some((second_of_day, nanos, 9 + len))
}

/// `2026-03-01T10:00:00.123` or, by `date`, with another separator of the date. A space may take
/// the place of `T`. Returns the length, too.
pub(super) fn date_time(bytes: &[u8], date: u8) -> Option<(Civil, usize)> {
    let year = two(bytes, 0)? * 100 + two(bytes, 2)?;
    let (month, day) = (two(bytes, 5)?, two(bytes, 8)?);
    let valid = bytes[4] == date && bytes[7] == date && matches!(bytes.get(10), Some(b'T' | b't' | b' '));
    let (second_of_day, nanos, len) = time_of_day(bytes.get(11..)?).filter(|_| valid)?;
    Some((Civil { year: i64::from(year), month, day, second_of_day, nanos }, 11 + len))
}

/// `Z`, `+02:00`, `+0200` or `+02`: seconds east of UTC, and the length.
pub(super) fn offset(bytes: &[u8]) -> Option<(i64, usize)> {
    let sign = match bytes.first()? {
        b'Z' | b'z' => return Some((0, 1)),
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let hours = two(bytes, 1)?;
    let (minutes, len) = match bytes.get(3) {
        Some(b':') => (two(bytes, 4)?, 6),
        Some(b'0'..=b'9') => (two(bytes, 3)?, 5),
        _ => (0, 3),
    };
    (hours < 24 && minutes < 60).then(|| (sign * i64::from(hours * 3600 + minutes * 60), len))
}

/// A time with its zone, as RFC 3339 defines it.
pub(super) fn rfc3339(bytes: &[u8]) -> Option<(Instant, usize)> {
    let (civil, len) = date_time(bytes, b'-')?;
    let (east, more) = offset(&bytes[len..])?;
    Some((Instant { seconds: civil.seconds()? - east, nanos: civil.nanos }, len + more))
}

/// The zone of times that do not name theirs.
#[derive(Debug, Clone)]
pub(crate) struct Zone {
    zone: TimeZone,
    /// Seconds east of UTC, if they never change.
    fixed: Option<i64>,
    /// The last minute, and its offset.
    last: (i64, i64),
}

impl Zone {
    pub(super) fn new(zone: TimeZone) -> Self {
        let fixed = zone.to_fixed_offset().ok().map(|offset| i64::from(offset.seconds()));
        Self { zone, fixed, last: (i64::MIN, 0) }
    }

    /// A zone by its name, or an offset such as `+02:00`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        if let Some((east, len)) = offset(name.as_bytes())
            && len == name.len()
        {
            return Some(Self::new(Offset::from_seconds(east as i32).ok()?.to_time_zone()));
        }
        TimeZone::get(name).ok().map(Self::new)
    }

    /// The time in UTC. A time that a clock shows twice is the first one; a time that it skips is
    /// moved by the length of the gap.
    fn utc(&mut self, civil: i64) -> Option<i64> {
        if let Some(east) = self.fixed {
            return Some(civil - east);
        }
        let minute = civil.div_euclid(60);
        if self.last.0 != minute {
            let (year, month, day) = date_of(civil.div_euclid(DAY));
            let second = civil.rem_euclid(DAY);
            let (hour, minutes) = (second / 3600, second / 60 % 60);
            let start = DateTime::new(year as i16, month as i8, day as i8, hour as i8, minutes as i8, 0, 0).ok()?;
            let timestamp = self.zone.to_ambiguous_timestamp(start).compatible().ok()?;
            self.last = (minute, minute * 60 - timestamp.as_second());
        }
        Some(civil - self.last.1)
    }
}

/// Completes times: adds the zone, and the year where the format has none.
#[derive(Debug, Clone)]
pub(super) struct Clock {
    pub(super) zone: Zone,
    /// A zone is configured.
    pub(super) zone_is_set: bool,
    pub(super) default_year: Option<i64>,
    /// No line is later than this, by more than a day: when the file was last modified.
    latest: i64,
}

impl Default for Clock {
    fn default() -> Self {
        Self { zone: Zone::new(TimeZone::UTC), zone_is_set: false, default_year: None, latest: 0 }
    }
}

impl Clock {
    pub(super) fn new(zone: Option<&Zone>, default_year: Option<i64>) -> Self {
        let clock = Self { default_year, zone_is_set: zone.is_some(), ..Self::default() };
        Self { zone: zone.cloned().unwrap_or(clock.zone), ..clock }
    }

    pub(super) fn begin_file(&mut self, start: &FileStart<'_>) {
        self.latest = start.modified.div_euclid(1000);
    }

    /// A time in the configured zone.
    pub(super) fn instant(&mut self, civil: Civil) -> Option<Instant> {
        Some(Instant { seconds: self.zone.utc(civil.seconds()?)?, nanos: civil.nanos })
    }

    /// A time without a year. Its year is the latest one with which it is not after the end of the
    /// file. So lines of December have the old year in a file that ends in January.
    pub(super) fn without_year(&mut self, mut civil: Civil) -> Option<Instant> {
        if let Some(year) = self.default_year {
            civil.year = year;
            return self.instant(civil);
        }
        let (this_year, ..) = date_of(self.latest.div_euclid(DAY));
        // The 29th of February exists every four years, or eight around some centuries.
        for year in (this_year - 8..=this_year + 1).rev() {
            civil.year = year;
            if let Some(instant) = self.instant(civil)
                && instant.seconds <= self.latest + DAY
            {
                return Some(instant);
            }
        }
        None
    }
}

/// A format of the option `timestamp.formats`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TimeFormat {
    /// RFC 3339.
    Rfc3339,
    /// A number since the Unix epoch; digits of the unit below the second.
    Unix(u32),
    /// A format with the directives of strftime.
    Strftime(String),
}

impl TimeFormat {
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        match text {
            "rfc3339" | "iso8601" => Ok(Self::Rfc3339),
            "unix" => Ok(Self::Unix(0)),
            "unix_ms" => Ok(Self::Unix(3)),
            "unix_us" => Ok(Self::Unix(6)),
            "unix_ns" => Ok(Self::Unix(9)),
            _ if !text.contains('%') => Err("it has no directive such as `%Y`, and is not a known name".to_owned()),
            _ => {
                let sample = jiff::Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC);
                // Writing a time finds unknown directives.
                let written = jiff::fmt::strtime::format(text, &sample).map_err(|error| error.to_string())?;
                BrokenDownTime::parse(text, &written).map_err(|error| error.to_string())?;
                Ok(Self::Strftime(text.to_owned()))
            }
        }
    }

    pub(super) fn parse(&self, text: &str, clock: &mut Clock) -> Option<Instant> {
        match self {
            Self::Rfc3339 => match rfc3339(text.as_bytes()) {
                Some((instant, len)) => (len == text.len()).then_some(instant),
                None => {
                    let (civil, len) = date_time(text.as_bytes(), b'-')?;
                    if len == text.len() { clock.instant(civil) } else { None }
                }
            },
            Self::Unix(digits) => unix(text, *digits),
            Self::Strftime(format) => {
                let mut parsed = BrokenDownTime::parse(format, text).ok()?;
                if let Some(timestamp) = parsed.timestamp() {
                    return Some(of_jiff(timestamp));
                }
                let needs_year = parsed.year().is_none() && parsed.iso_week_year().is_none();
                if needs_year {
                    // A leap year, so that all days exist.
                    parsed.set_year(Some(2000)).ok()?;
                    parsed.set_weekday(None);
                }
                let date = parsed.to_date().ok()?;
                let time = parsed.to_time().ok().unwrap_or_default();
                let civil = Civil {
                    year: i64::from(date.year()),
                    month: date.month().unsigned_abs().into(),
                    day: date.day().unsigned_abs().into(),
                    second_of_day: u32::from(time.hour().unsigned_abs()) * 3600
                        + u32::from(time.minute().unsigned_abs()) * 60
                        + u32::from(time.second().unsigned_abs()),
                    nanos: time.subsec_nanosecond().unsigned_abs(),
                };
                match parsed.offset() {
                    Some(_) if needs_year => clock.without_year(civil),
                    Some(offset) => {
                        let seconds = civil.seconds()? - i64::from(offset.seconds());
                        Some(Instant { seconds, nanos: civil.nanos })
                    }
                    None if needs_year => clock.without_year(civil),
                    None => clock.instant(civil),
                }
            }
        }
    }
}

fn of_jiff(timestamp: jiff::Timestamp) -> Instant {
    let nanos = timestamp.as_nanosecond();
    Instant { seconds: nanos.div_euclid(1_000_000_000) as i64, nanos: nanos.rem_euclid(1_000_000_000) as u32 }
}

/// A number of units since the Unix epoch, with or without a fraction.
fn unix(text: &str, digits: u32) -> Option<Instant> {
    let (sign, unsigned) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let (whole, fraction) = unsigned.split_once('.').unwrap_or((unsigned, ""));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 20 || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    let unit = 10_i128.pow(9 - digits);
    let mut nanos = whole.parse::<i128>().ok()? * unit;
    let mut weight = unit / 10;
    for digit in fraction.bytes().take(9) {
        nanos += i128::from(digit - b'0') * weight;
        weight /= 10;
    }
    let nanos = sign * nanos;
    Some(Instant {
        seconds: i64::try_from(nanos.div_euclid(1_000_000_000)).ok()?,
        nanos: nanos.rem_euclid(1_000_000_000) as u32,
    })
}

/// Writes a parsed time as a member, or rejects the line at `at`.
pub(super) fn write_time(
    object: &mut super::scan::Object<'_>,
    instant: Option<Instant>,
    digits: usize,
    at: usize,
    what: &str,
) -> Result<i64, Expected> {
    let expected = || Expected { at, what: what.to_owned() };
    let instant = instant.ok_or_else(expected)?;
    let before = object.out.len();
    if instant.write(object.name("timestamp"), digits) {
        return Ok(instant.milliseconds());
    }
    object.out.truncate(before);
    Err(expected())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn iso(instant: Instant) -> String {
        let mut out = Vec::new();
        assert!(instant.write(&mut out, 9));
        String::from_utf8(out).unwrap().trim_matches('"').to_owned()
    }

    fn clock(zone: &str, latest: &str) -> Clock {
        let (latest, _) = rfc3339(latest.as_bytes()).unwrap();
        let mut clock = Clock { zone: Zone::named(zone).unwrap(), ..Clock::default() };
        clock.begin_file(&FileStart { first: "", modified: latest.milliseconds() });
        clock
    }

    fn day(month: u32, day: u32) -> Civil {
        Civil { year: 0, month, day, second_of_day: 43_200, nanos: 0 }
    }

    #[test]
    fn a_missing_year_is_resolved_across_new_year() {
        let mut clock = clock("+00:00", "2026-01-01T00:10:00Z");
        for (civil, expected) in [
            (day(12, 31), "2025-12-31T12:00:00Z"),
            (day(1, 1), "2026-01-01T12:00:00Z"),
            // A day after the end of the file: clocks differ, and zones.
            (day(1, 2), "2025-01-02T12:00:00Z"),
            (day(2, 29), "2024-02-29T12:00:00Z"),
        ] {
            assert_eq!(iso(clock.without_year(civil).unwrap()), expected);
        }
        // A file of the last day of the year, read at any later time.
        clock.begin_file(&FileStart { first: "", modified: 1_767_225_599_000 });
        assert_eq!(iso(clock.without_year(day(12, 31)).unwrap()), "2025-12-31T12:00:00Z");
        assert_eq!(iso(clock.without_year(day(1, 1)).unwrap()), "2026-01-01T12:00:00Z");
        clock.default_year = Some(2019);
        assert_eq!(iso(clock.without_year(day(1, 1)).unwrap()), "2019-01-01T12:00:00Z");
        assert_eq!(clock.without_year(day(2, 29)), None);
    }

    #[test]
    fn a_zone_with_summer_time_is_applied() {
        let mut clock = clock("Europe/Berlin", "2026-12-01T00:00:00Z");
        for (text, expected) in [
            ("2026-01-10 12:00:00", "2026-01-10T11:00:00Z"),
            ("2026-07-10 12:00:00", "2026-07-10T10:00:00Z"),
            // Skipped, and shown twice.
            ("2026-03-29 02:30:00", "2026-03-29T01:30:00Z"),
            ("2026-10-25 02:30:00", "2026-10-25T00:30:00Z"),
        ] {
            let (civil, _) = date_time(text.as_bytes(), b'-').unwrap();
            assert_eq!(iso(clock.instant(civil).unwrap()), expected, "{text}");
        }
        assert!(Zone::named("Europe/Nowhere").is_none());
    }

    #[test]
    fn formats_are_parsed() {
        let mut clock = clock("+02:00", "2026-06-01T00:00:00Z");
        for (format, text, expected) in [
            ("rfc3339", "2026-03-01T10:00:00.5+01:00", "2026-03-01T09:00:00.5Z"),
            ("rfc3339", "2026-03-01 10:00:00", "2026-03-01T08:00:00Z"),
            ("unix", "1709208000.52", "2024-02-29T12:00:00.52Z"),
            ("unix_ms", "1709208000520", "2024-02-29T12:00:00.52Z"),
            ("unix_us", "-1", "1969-12-31T23:59:59.999999Z"),
            ("unix_ns", "1709208000520000001", "2024-02-29T12:00:00.520000001Z"),
            ("%d/%b/%Y:%H:%M:%S %z", "29/Feb/2024:12:00:00 +0000", "2024-02-29T12:00:00Z"),
            ("%d.%m.%Y %H:%M", "29.02.2024 12:00", "2024-02-29T10:00:00Z"),
            ("%b %e %H:%M:%S", "Jul  9 12:00:00", "2025-07-09T10:00:00Z"),
            ("%Y-%m-%d", "2024-02-29", "2024-02-28T22:00:00Z"),
        ] {
            let parsed = TimeFormat::new(format).unwrap().parse(text, &mut clock);
            assert_eq!(iso(parsed.unwrap_or_else(|| panic!("{format}: {text}"))), expected, "{format}: {text}");
        }
        for (format, text) in
            [("rfc3339", "2026-02-30T10:00:00Z"), ("unix", "1e5"), ("%Y-%m-%d", "2024-02-30"), ("unix", "")]
        {
            assert_eq!(TimeFormat::new(format).unwrap().parse(text, &mut clock), None, "{format}: {text}");
        }
        assert!(TimeFormat::new("%!").is_err() && TimeFormat::new("iso").is_err());
    }

    proptest! {
        #[test]
        fn written_times_are_what_another_library_reads(seconds in -60_000_000_000_i64..250_000_000_000, nanos in 0_u32..1_000_000_000) {
            let written = iso(Instant { seconds, nanos });
            let parsed: jiff::Timestamp = written.parse().unwrap();
            prop_assert_eq!(of_jiff(parsed), Instant { seconds, nanos });
            let (scanned, len) = rfc3339(written.as_bytes()).unwrap();
            prop_assert_eq!((scanned, len), (Instant { seconds, nanos }, written.len()));
        }
    }
}
