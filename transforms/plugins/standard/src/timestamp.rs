//! `timestamp`: converts points in time.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::fmt::strtime::{self, BrokenDownTime};
use jiff::tz::{Offset, TimeZone};
use serde::Deserialize;
use trunkline_plugin::json::Paths;
use trunkline_plugin::{ConfigError, Done, Record, Verdict, json};

use crate::Everyday;
use crate::number::Decimal;
use crate::rows;

/// The options.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    field: String,
    #[serde(default = "iso")]
    from: String,
    to: Option<String>,
    #[serde(default = "utc")]
    zone: String,
    #[serde(default)]
    set_timestamp: bool,
}

fn iso() -> String {
    "iso".to_owned()
}

fn utc() -> String {
    "+00:00".to_owned()
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Format {
    Iso,
    /// Units since 1970: their number in a second.
    Unix(i64),
    Pattern(String),
}

#[derive(Debug)]
pub(crate) struct Timestamps {
    name: String,
    path: Vec<String>,
    paths: Paths,
    from: Format,
    to: Option<Format>,
    offset: Offset,
    set_timestamp: bool,
}

const FORMATS: &str = "`iso`, `unix_s`, `unix_ms`, `unix_us`, `unix_ns` or a pattern such as \"%Y-%m-%d %H:%M:%S\"";

fn format(key: &str, text: &str) -> Result<Format, ConfigError> {
    Ok(match text {
        "iso" => Format::Iso,
        "unix_s" => Format::Unix(1),
        "unix_ms" => Format::Unix(1_000),
        "unix_us" => Format::Unix(1_000_000),
        "unix_ns" => Format::Unix(1_000_000_000),
        pattern if pattern.contains('%') => {
            if let Err(error) = strtime::format(pattern, &Timestamp::UNIX_EPOCH.to_zoned(TimeZone::UTC)) {
                return Err(ConfigError::at(key, format!("`{pattern}` is not a pattern: {error}; expected {FORMATS}")));
            }
            Format::Pattern(pattern.to_owned())
        }
        other => return Err(ConfigError::at(key, format!("has no format `{other}`; expected {FORMATS}"))),
    })
}

impl Timestamps {
    pub(crate) fn new(config: &Config) -> Result<Self, ConfigError> {
        let path = rows::path(&config.field).map_err(|message| ConfigError::at("field", message))?;
        if config.to.is_none() && !config.set_timestamp {
            return Err(ConfigError::new("has no effect; expected `to = \"..\"` or `set_timestamp = true`"));
        }
        let offset = offset(&config.zone).ok_or_else(|| {
            ConfigError::at("zone", format!("`{}` is not an offset; expected one such as \"+02:00\"", config.zone))
        })?;
        let mut paths = Paths::default();
        paths.add(path.iter().map(String::as_str));
        Ok(Self {
            name: config.field.clone(),
            path,
            paths,
            from: format("from", &config.from)?,
            to: config.to.as_deref().map(|to| format("to", to)).transpose()?,
            offset,
            set_timestamp: config.set_timestamp,
        })
    }

    /// The point in time that a JSON value stands for.
    fn parse(&self, raw: &[u8]) -> Result<Timestamp, String> {
        let text = json::text(raw).ok_or("the text is not valid UTF-8")?;
        let text = text.trim();
        let failed = |error: jiff::Error| format!("`{text}` is not a point in time: {error}");
        match &self.from {
            Format::Unix(per_second) => {
                let nanoseconds = Decimal::parse(text)
                    .and_then(|number| number.multiply(Decimal::from(1_000_000_000 / per_second)).ok())
                    .and_then(Decimal::to_i128);
                let nanoseconds = nanoseconds.ok_or_else(|| format!("`{text}` is not a number"))?;
                Timestamp::from_nanosecond(nanoseconds).map_err(failed)
            }
            Format::Iso => match text.parse::<Timestamp>() {
                Ok(timestamp) => Ok(timestamp),
                // without an offset, the option `zone` applies
                Err(error) => match text.parse::<DateTime>() {
                    Ok(civil) => self.offset.to_timestamp(civil).map_err(failed),
                    Err(_) => Err(failed(error)),
                },
            },
            Format::Pattern(pattern) => {
                let parsed = BrokenDownTime::parse(pattern, text).map_err(failed)?;
                if parsed.offset().is_some() || parsed.timestamp().is_some() {
                    return parsed.to_timestamp().map_err(failed);
                }
                let civil = match parsed.to_datetime() {
                    Ok(civil) => civil,
                    Err(_) => parsed.to_date().map_err(failed)?.at(0, 0, 0, 0),
                };
                self.offset.to_timestamp(civil).map_err(failed)
            }
        }
    }

    fn write(&self, format: &Format, timestamp: Timestamp, out: &mut Vec<u8>) {
        match format {
            Format::Unix(per_second) => {
                let unit = i128::from(1_000_000_000 / per_second);
                let units = timestamp.as_nanosecond().div_euclid(unit);
                out.extend_from_slice(units.to_string().as_bytes());
            }
            Format::Iso if self.offset == Offset::UTC => json::write_string(out, &timestamp.to_string()),
            Format::Iso => {
                json::write_string(out, &timestamp.display_with_offset(self.offset).to_string());
            }
            Format::Pattern(pattern) => {
                let zoned = timestamp.to_zoned(TimeZone::fixed(self.offset));
                // the configuration checked the pattern
                let text = strtime::format(pattern, &zoned).unwrap_or_default();
                json::write_string(out, &text);
            }
        }
    }

    /// Appends the value with the converted field, and returns the point in time, if the field has
    /// one.
    fn convert(&self, value: &[u8], out: &mut Vec<u8>) -> Result<Option<Timestamp>, String> {
        let mut found = None;
        match &self.to {
            None => out.extend_from_slice(value),
            Some(to) => rows::rewrite(value, out, |row, out| {
                let mut problem = None;
                let spliced = self.paths.splice(row, out, |_, raw, out| match raw {
                    b"null" => out.extend_from_slice(raw),
                    raw => match self.parse(raw) {
                        Ok(timestamp) => self.write(to, timestamp, out),
                        Err(error) => problem = Some(error),
                    },
                });
                spliced.map_err(|error| error.to_string())?;
                problem.map_or(Ok(()), Err)
            })?,
        }
        if self.set_timestamp {
            found = match rows::lookup(rows::row_of(value), &self.path)? {
                None | Some(b"null") => None,
                Some(raw) => Some(self.parse(raw)?),
            };
        }
        Ok(found)
    }
}

fn offset(text: &str) -> Option<Offset> {
    if text == "UTC" || text == "Z" {
        return Some(Offset::UTC);
    }
    let sign = match text.as_bytes().first()? {
        b'+' => 1,
        b'-' => -1,
        _ => return None,
    };
    let (hours, minutes) = text[1..].split_once(':')?;
    let is_number = |part: &str| part.len() == 2 && part.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hours) || !is_number(minutes) {
        return None;
    }
    let (hours, minutes): (i32, i32) = (hours.parse().ok()?, minutes.parse().ok()?);
    Offset::from_seconds(sign * (hours * 3600 + minutes * 60)).ok().filter(|_| minutes < 60)
}

impl Everyday for Timestamps {
    fn keeps_schema(&self) -> bool {
        self.to.is_none()
    }

    fn record(&mut self, record: Record<'_>, verdict: Verdict<'_>) -> Done {
        let Some(value) = record.value() else { return verdict.pass() };
        let mut converted = Vec::with_capacity(value.len() + 32);
        let timestamp = match self.convert(value, &mut converted) {
            Ok(timestamp) => timestamp,
            Err(problem) => {
                return verdict.reject("timestamp.invalid", &format!("the field `{}`: {problem}", self.name));
            }
        };
        verdict.replace(|parts| {
            if self.to.is_some() {
                parts.value_owned(converted);
            }
            if let Some(timestamp) = timestamp {
                parts.timestamp(timestamp.as_millisecond());
            }
        })
    }
}
