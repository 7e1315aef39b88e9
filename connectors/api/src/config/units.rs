//! Durations (`5s`) and sizes (`16MiB`).

use std::time::Duration;

/// A size in bytes, written `16MiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

const DURATION_UNITS: [(&str, f64); 6] =
    [("ms", 1e-3), ("us", 1e-6), ("s", 1.0), ("m", 60.0), ("h", 3600.0), ("d", 86_400.0)];

const SIZE_UNITS: [(&str, f64); 10] = [
    ("KiB", 1024.0),
    ("MiB", 1_048_576.0),
    ("GiB", 1_073_741_824.0),
    ("TiB", 1_099_511_627_776.0),
    ("kB", 1e3),
    ("KB", 1e3),
    ("MB", 1e6),
    ("GB", 1e9),
    ("TB", 1e12),
    ("B", 1.0),
];

/// Parses `200ms`, `5s`, `1.5h`, `1h30m`. The error says what is wrong with the text.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err("it is empty".to_owned());
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let (number, after) = split_number(rest)?;
        let after = after.trim_start();
        let unit_len = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        seconds += number * unit_factor(unit, &DURATION_UNITS)?;
        rest = after.trim_start();
    }
    Duration::try_from_secs_f64(seconds).map_err(|_| "it is too long".to_owned())
}

/// Parses `512`, `128MiB`, `1.5GB`. The error says what is wrong with the text.
pub fn parse_bytes(text: &str) -> Result<ByteSize, String> {
    let (number, unit) = split_number(text.trim())?;
    let unit = unit.trim();
    let bytes = if unit.is_empty() { number } else { number * unit_factor(unit, &SIZE_UNITS)? };
    if bytes > 9e18 { Err("it is too large".to_owned()) } else { Ok(ByteSize(bytes as u64)) }
}

fn split_number(text: &str) -> Result<(f64, &str), String> {
    let len = text.find(|c: char| !(c.is_ascii_digit() || c == '.' || c == '_')).unwrap_or(text.len());
    let (digits, rest) = text.split_at(len);
    let number = digits.replace('_', "").parse().map_err(|_| format!("`{text}` does not start with a number"))?;
    Ok((number, rest))
}

fn unit_factor(unit: &str, units: &[(&str, f64)]) -> Result<f64, String> {
    units.iter().find(|(name, _)| *name == unit).map(|(_, factor)| *factor).ok_or_else(|| {
        let known: Vec<_> = units.iter().map(|(name, _)| *name).collect();
        if unit.is_empty() {
            format!("it lacks a unit: {}", known.join(", "))
        } else {
            format!("`{unit}` is none of the units {}", known.join(", "))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(parse_duration("200ms"), Ok(Duration::from_millis(200)));
        assert_eq!(parse_duration("1h30m"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse_duration("0.5s"), Ok(Duration::from_millis(500)));
        assert_eq!(parse_duration("1 h 30 m"), Ok(Duration::from_secs(5400)));
        assert!(parse_duration("5 parsecs").unwrap_err().contains("`parsecs` is none of the units"));
        for bad in ["", "5", "s", "5 parsecs", "5s!", "-5s"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(parse_bytes("128MiB"), Ok(ByteSize(128 << 20)));
        assert_eq!(parse_bytes("1_000"), Ok(ByteSize(1000)));
        assert_eq!(parse_bytes("1.5 kB"), Ok(ByteSize(1500)));
        for bad in ["", "MiB", "5 mib", "-1B"] {
            assert!(parse_bytes(bad).is_err(), "{bad}");
        }
    }
}
