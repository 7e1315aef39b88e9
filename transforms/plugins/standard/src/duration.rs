//! Durations in configurations: `500ms`, `30s`, `5m`, `1h`, `7d`.

use trunkline_plugin::ConfigError;

/// The milliseconds of the duration at a key of the configuration.
pub(crate) fn parse(key: &str, text: &str) -> Result<i64, ConfigError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim() {
        "ms" => Some(1),
        "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        "d" => Some(86_400_000),
        _ => None,
    };
    let milliseconds = number.parse::<i64>().ok().zip(unit).and_then(|(number, unit)| number.checked_mul(unit));
    milliseconds.ok_or_else(|| {
        ConfigError::at(key, format!("{text:?} is not a duration; expected a whole number with ms, s, m, h or d"))
    })
}
