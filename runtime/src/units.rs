//! Numbers for people, with units.

/// A number of records: `0.4`, `950`, `12.3k`, `4.0M`.
pub(crate) fn count(number: f64) -> String {
    match number {
        0.0 => "0".to_owned(),
        n if n < 10.0 && n.fract() != 0.0 => format!("{n:.1}"),
        n if n < 10_000.0 => format!("{n:.0}"),
        n if n < 9_999_500.0 => format!("{:.1}k", n / 1e3),
        n => format!("{:.1}M", n / 1e6),
    }
}

/// A number of things: `1 worker`, `2 workers`.
pub(crate) fn counted(count: usize, noun: &str) -> String {
    format!("{count} {noun}{}", if count == 1 { "" } else { "s" })
}

/// A number of bytes: `512 B`, `3.4 MB`.
pub(crate) fn bytes(number: u64) -> String {
    match number {
        0..1_000 => format!("{number} B"),
        1_000..1_000_000 => format!("{:.1} kB", number as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", number as f64 / 1e6),
        _ => format!("{:.1} GB", number as f64 / 1e9),
    }
}

/// A duration of commits.
pub(crate) fn milliseconds(seconds: f64) -> String {
    if seconds < 10.0 { format!("{:.0} ms", seconds * 1e3) } else { duration(seconds) }
}

/// A time with one unit.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h", whole / 3_600),
        _ => format!("{} d", whole / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_or_so() {
        let counts = [0.0, 0.42, 9.0, 950.4, 12_345.0, 9_999_999.0, 123e6].map(count);
        assert_eq!(counts, ["0", "0.4", "9", "950", "12.3k", "10.0M", "123.0M"]);
        assert_eq!([999, 65_536, 2_000_000, 3_400_000_000].map(bytes), ["999 B", "65.5 kB", "2.0 MB", "3.4 GB"]);
        assert_eq!([0.031, 12.0].map(milliseconds), ["31 ms", "12 s"]);
    }

    #[test]
    fn durations_have_one_unit() {
        let shown = [0.04, 9.99, 61.0, 150.0, 10_000.0, 200_000.0].map(duration);
        assert_eq!(shown, ["0.0 s", "10.0 s", "61 s", "2 min", "2 h", "2 d"]);
    }
}
