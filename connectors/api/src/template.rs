//! Templates: the language of topic names, object paths, index names and document ids.
//!
//! `{field}`, `{nested.field}`, `{timestamp:%Y-%m-%d}` (strftime, in UTC), `{field|default}`, and
//! names after `@` for data outside the value: `{@topic} {@partition} {@offset} {@key}
//! {@timestamp}` and those that a source declares. `{{` and `}}` are braces. A missing or null
//! field without default is a data error of that record; an unknown `@name` is an error of the
//! template.

use std::fmt::Write as _;
use std::ops::Range;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::batch::RecordRef;
use crate::json;

/// A parsed template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    source: String,
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Placeholder { name: Name, format: Option<String>, default: Option<String>, written: String },
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Name {
    Field(Vec<String>),
    Topic,
    Partition,
    Offset,
    Key,
    Timestamp,
    /// A name that a source declares: the record's header of this name.
    Header(String),
}

/// A template that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateError {
    /// The problem.
    pub message: String,
    /// Byte range in the template's text.
    pub span: Range<usize>,
    /// The next step.
    pub help: Option<String>,
}

/// Why a template has no value for a record; a data error of that record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("template `{template}`: {message}")]
pub struct RenderError {
    /// The template.
    pub template: String,
    /// What is missing or wrong.
    pub message: String,
}

/// How values (not the template's own text) are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Escape {
    /// Unchanged.
    None,
    /// As a part of a topic's name: each byte that Kafka does not accept becomes `--XX`. Different
    /// values have different names, so a `-` before something that looks like such a byte becomes
    /// `--2D`.
    Topic,
    /// As one segment of a path: bytes that could leave the segment, or that readers of Hive
    /// partitions misread, become `%XX`.
    Path,
}

impl Template {
    /// Parses a template. `template_variables` are the names, without `@`, that the source of the
    /// records declares.
    pub fn parse(source: &str, template_variables: &[&str]) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut at = 0;
        while let Some(found) = source[at..].find(['{', '}']) {
            let brace = at + found;
            literal.push_str(&source[at..brace]);
            let rest = &source[brace..];
            if rest.starts_with("{{") || rest.starts_with("}}") {
                literal.push_str(&rest[..1]);
                at = brace + 2;
                continue;
            }
            if rest.starts_with('}') {
                return Err(error(
                    "has a `}` without its `{`",
                    brace..brace + 1,
                    Some("write `}}` for the character itself"),
                ));
            }
            let Some(len) = rest.find('}') else {
                return Err(error(
                    "has a `{` that is never closed",
                    brace..source.len(),
                    Some("write `{{` for the character itself"),
                ));
            };
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(placeholder(&rest[1..len], brace + 1, template_variables)?);
            at = brace + len + 1;
        }
        literal.push_str(&source[at..]);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self { source: source.to_owned(), parts })
    }

    /// The text it was parsed from.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The fields of a record's value that it uses, as dotted paths, each with whether it has a
    /// default.
    pub fn fields(&self) -> impl Iterator<Item = (&str, bool)> {
        self.parts.iter().filter_map(|part| match part {
            Part::Placeholder { name: Name::Field(_), default, written, .. } => {
                Some((written.as_str(), default.is_some()))
            }
            _ => None,
        })
    }

    /// The headers of a record that it uses: those of the variables that the source declares.
    pub fn headers(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().filter_map(|part| match part {
            Part::Placeholder { name: Name::Header(header), .. } => Some(header.as_str()),
            _ => None,
        })
    }

    /// Its value, if it has no placeholder.
    pub fn constant(&self) -> Option<&str> {
        match self.parts.as_slice() {
            [] => Some(""),
            [Part::Literal(literal)] => Some(literal),
            _ => None,
        }
    }

    /// Its value for the records of a topic, if it depends on nothing but the topic.
    pub fn for_topic(&self, topic: &str) -> Option<String> {
        let part = |part: &Part| match part {
            Part::Literal(literal) => Some(literal.clone()),
            Part::Placeholder { name: Name::Topic, .. } => Some(topic.to_owned()),
            Part::Placeholder { .. } => None,
        };
        self.parts.iter().map(part).collect()
    }

    /// Whether records with equal headers have equal values.
    pub fn depends_on_headers_only(&self) -> bool {
        self.parts.iter().all(|part| match part {
            Part::Literal(_) => true,
            Part::Placeholder { name, .. } => matches!(name, Name::Header(_)),
        })
    }

    /// A regular expression (without anchors) that every value matches, for subscriptions.
    pub fn pattern(&self) -> String {
        let mut pattern = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(literal) => {
                    for character in literal.chars() {
                        if !character.is_alphanumeric() && character != '_' && character != '-' {
                            pattern.push('\\');
                        }
                        pattern.push(character);
                    }
                }
                Part::Placeholder { .. } => pattern.push_str(".+"),
            }
        }
        pattern
    }

    /// Appends the value for a record to `out`. After an error `out` holds a part of it.
    pub fn render(&self, record: RecordRef<'_>, escape: Escape, out: &mut String) -> Result<(), RenderError> {
        for part in &self.parts {
            match part {
                Part::Literal(literal) => out.push_str(literal),
                Part::Placeholder { name, format, default, written } => {
                    let start = out.len();
                    let found = self.value(record, name, format.as_deref(), written, out)?;
                    match (found, default) {
                        (true, _) => {}
                        (false, Some(default)) => out.push_str(default),
                        (false, None) => {
                            return Err(self.failed(format!("the record has no `{written}`, and there is no default")));
                        }
                    }
                    match escape {
                        Escape::None => {}
                        Escape::Topic => escape_topic(out, start),
                        Escape::Path => escape_path(out, start),
                    }
                }
            }
        }
        Ok(())
    }

    fn value(
        &self,
        record: RecordRef<'_>,
        name: &Name,
        format: Option<&str>,
        written: &str,
        out: &mut String,
    ) -> Result<bool, RenderError> {
        let text = match name {
            Name::Topic => std::borrow::Cow::Borrowed(record.topic()),
            Name::Partition => return Ok(write!(out, "{}", record.entry().partition).is_ok()),
            Name::Offset => return Ok(write!(out, "{}", record.entry().offset).is_ok()),
            Name::Timestamp => {
                let Some(milliseconds) = record.timestamp() else { return Ok(false) };
                let time = Timestamp::from_millisecond(milliseconds).map_err(|error| self.failed(error.to_string()))?;
                match format {
                    Some(format) => self.strftime(TimeZone::UTC.to_datetime(time), format, out)?,
                    None => drop(write!(out, "{time}")),
                }
                return Ok(true);
            }
            Name::Key | Name::Header(_) => {
                let bytes = match name {
                    Name::Header(header) => record.header(header),
                    _ => record.key(),
                };
                let Some(bytes) = bytes else { return Ok(false) };
                let text = std::str::from_utf8(bytes).map_err(|_| self.failed(format!("`{written}` is no UTF-8")))?;
                std::borrow::Cow::Borrowed(text)
            }
            Name::Field(path) => {
                let Some(value) = record.value() else { return Ok(false) };
                let raw = json::lookup(value, path).map_err(|error| self.failed(format!("the value is {error}")))?;
                let Some(raw) = raw.filter(|raw| *raw != b"null") else { return Ok(false) };
                if matches!(raw.first(), Some(b'{' | b'[')) {
                    return Err(self.failed(format!("`{written}` is not a plain value")));
                }
                json::text(raw).ok_or_else(|| self.failed(format!("`{written}` is no UTF-8")))?
            }
        };
        match format {
            Some(format) => {
                let time = parse_time(&text)
                    .ok_or_else(|| self.failed(format!("`{written}` is `{text}`, which is no time")))?;
                self.strftime(time, format, out)?;
            }
            None => out.push_str(&text),
        }
        Ok(true)
    }

    /// Formats a time in UTC.
    fn strftime(&self, time: DateTime, format: &str, out: &mut String) -> Result<(), RenderError> {
        // Most paths consist of days and hours: this formatter costs a twentieth of the general
        // one.
        let written = match format {
            "%Y-%m-%d" => write!(out, "{:04}-{:02}-{:02}", time.year(), time.month(), time.day()),
            "%H" => write!(out, "{:02}", time.hour()),
            _ => match TimeZone::UTC.to_timestamp(time) {
                Ok(timestamp) => write!(out, "{}", timestamp.strftime(format)),
                // The last day of the year 9999.
                Err(_) => write!(out, "{}", time.strftime(format)),
            },
        };
        written.map_err(|_| self.failed(format!("`{format}` cannot format {time}")))
    }

    fn failed(&self, message: String) -> RenderError {
        RenderError { template: self.source.clone(), message }
    }
}

fn error(message: impl Into<String>, span: Range<usize>, help: Option<&str>) -> TemplateError {
    TemplateError { message: message.into(), span, help: help.map(str::to_owned) }
}

const BUILT_IN_VARIABLES: [&str; 5] = ["topic", "partition", "offset", "key", "timestamp"];

fn placeholder(inside: &str, at: usize, template_variables: &[&str]) -> Result<Part, TemplateError> {
    let span = at..at + inside.len();
    let (rest, default) = match inside.split_once('|') {
        Some((rest, default)) => (rest, Some(default.to_owned())),
        None => (inside, None),
    };
    let (name, format) = match rest.split_once(':') {
        Some((name, format)) => (name.trim(), Some(format.to_owned())),
        None => (rest.trim(), None),
    };
    if name.is_empty() {
        return Err(error(
            "has a placeholder without a name",
            at.saturating_sub(1)..span.end + 1,
            Some("write `{field}` or `{@name}`"),
        ));
    }
    if let Some(format) = &format {
        // A wrong directive shows only when a time is formatted, so format one now.
        if format.is_empty() || jiff::fmt::strtime::format(format, Timestamp::UNIX_EPOCH).is_err() {
            let from = at + rest.find(':').map_or(0, |colon| colon + 1);
            return Err(error(
                format!("has the time format `{format}`, which is not strftime"),
                from..at + rest.len(),
                Some("for example `{timestamp:%Y-%m-%d}`"),
            ));
        }
    }
    let parsed = match name.strip_prefix('@') {
        None => {
            let path: Vec<String> = name.split('.').map(str::to_owned).collect();
            if path.iter().any(String::is_empty) {
                return Err(error(format!("has `{name}`, which is no path of fields"), span, None));
            }
            Name::Field(path)
        }
        Some("topic") => Name::Topic,
        Some("partition") => Name::Partition,
        Some("offset") => Name::Offset,
        Some("key") => Name::Key,
        Some("timestamp") => Name::Timestamp,
        Some(other) if template_variables.contains(&other) => Name::Header(format!("trunkline.{other}")),
        Some(other) => {
            let known: Vec<&str> = BUILT_IN_VARIABLES.iter().chain(template_variables).copied().collect();
            let help = match crate::config::nearest(other, &known) {
                Some(name) => format!("did you mean `@{name}`?"),
                None => format!(
                    "known here: {}",
                    known.iter().map(|name| format!("@{name}")).collect::<Vec<_>>().join(", ")
                ),
            };
            return Err(error(format!("has the unknown name `@{other}`"), span, Some(&help)));
        }
    };
    Ok(Part::Placeholder { name: parsed, format, default, written: name.to_owned() })
}

/// A point in time out of a value's text, in UTC: ISO 8601 (without a zone it is UTC), a number
/// since the epoch, the time of an access log (`17/May/2015:10:05:03 +0000`), or RFC 2822.
fn parse_time(text: &str) -> Option<DateTime> {
    if let Ok(time) = text.parse::<Timestamp>() {
        return Some(TimeZone::UTC.to_datetime(time));
    }
    if let Some(time) = parse_epoch(text) {
        return Some(TimeZone::UTC.to_datetime(time));
    }
    // A timestamp cannot hold the last day of the year 9999, which some systems write for "never".
    let civil = text.strip_suffix('Z').or_else(|| text.strip_suffix("+00:00")).unwrap_or(text);
    if let Ok(time) = civil.parse::<DateTime>() {
        return Some(time);
    }
    let access_log = Timestamp::strptime("%d/%b/%Y:%H:%M:%S %z", text);
    let time = access_log.or_else(|_| jiff::fmt::rfc2822::parse(text).map(|zoned| zoned.timestamp()));
    Some(TimeZone::UTC.to_datetime(time.ok()?))
}

/// A number since the epoch, with an optional fraction. Its size shows its unit: 10^11 is the year
/// 5138 in seconds and the year 1973 in milliseconds, and so on for smaller units.
fn parse_epoch(text: &str) -> Option<Timestamp> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
    let number: i64 = whole.parse().ok()?;
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = match number.unsigned_abs() {
        0..100_000_000_000 => 9,
        100_000_000_000..100_000_000_000_000 => 6,
        100_000_000_000_000..100_000_000_000_000_000 => 3,
        _ => 0,
    };
    let fraction: i128 = format!("{fraction:0<digits$}").get(..digits)?.parse().unwrap_or(0);
    let nanoseconds = i128::from(number) * 10_i128.pow(digits as u32);
    Timestamp::from_nanosecond(if whole.starts_with('-') { nanoseconds - fraction } else { nanoseconds + fraction })
        .ok()
}

/// Escapes what was written since `start` as a part of a topic's name.
fn escape_topic(out: &mut String, start: usize) {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_');
    if out.as_bytes()[start..].iter().all(|byte| plain(*byte)) {
        return;
    }
    let written = out.split_off(start);
    let bytes = written.as_bytes();
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte);
    for (index, byte) in bytes.iter().enumerate() {
        let is_escape = matches!(bytes[index..], [b'-', b'-', high, low, ..] if is_digit(high) && is_digit(low));
        if plain(*byte) || *byte == b'-' && !is_escape {
            out.push(char::from(*byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(out, "--{byte:02X}");
        }
    }
}

/// Escapes what was written since `start` as one path segment.
fn escape_path(out: &mut String, start: usize) {
    let plain = |byte: u8| {
        byte >= 0x80
            || byte.is_ascii_alphanumeric()
            || matches!(byte, b'-' | b'_' | b'.' | b' ' | b'+' | b',' | b'@' | b'~')
    };
    let written = &out[start..];
    // A segment of dots would leave the directory.
    let climbs = !written.is_empty() && written.bytes().all(|byte| byte == b'.');
    if !climbs && written.bytes().all(plain) {
        return;
    }
    let mut escaped = String::with_capacity(written.len() + 8);
    for character in written.chars() {
        match u8::try_from(character) {
            Ok(byte) if byte.is_ascii() && (climbs || !plain(byte)) => drop(write!(escaped, "%{byte:02X}")),
            _ => escaped.push(character),
        }
    }
    out.truncate(start);
    out.push_str(&escaped);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    fn render(template: &str, value: &str) -> Result<String, String> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("web");
        let mut record = batch.record();
        record
            .timestamp(0)
            .read_from(topic, 3, 41)
            .key(b"k")
            .value(value.as_bytes())
            .header("trunkline.path", Some(b"/var/log/a"));
        record.finish();
        let template = Template::parse(template, &["path"]).map_err(|error| error.message)?;
        let mut out = String::new();
        template.render(batch.get(0), Escape::Path, &mut out).map(|()| out).map_err(|error| error.message)
    }

    #[test]
    fn values_of_every_kind() {
        let value = r#"{"timestamp":"2015-05-17T10:05:03Z","a":{"b":7},"n":null,"s":"x/y","e":1431857103,"l":"2015-05-17T10:05:03","..":".."}"#;
        for (template, expected) in [
            ("day={timestamp:%Y-%m-%d}/h={timestamp:%H}", "day=2015-05-17/h=10"),
            ("{@topic}-{@partition}-{@offset}-{@key}-{@timestamp:%Y}", "web-3-41-k-1970"),
            ("{a.b}{{x}}", "7{x}"),
            ("{n|none}{missing|gone}", "nonegone"),
            ("{s}/{@path}", "x%2Fy/%2Fvar%2Flog%2Fa"),
            ("{e:%Y}{l:%d}", "201517"),
            ("", ""),
        ] {
            assert_eq!(render(template, value).as_deref(), Ok(expected), "{template}");
        }
        assert_eq!(render("{up}", r#"{"up":".."}"#).as_deref(), Ok("%2E%2E"));
    }

    #[test]
    fn different_values_have_different_parts_of_topic_names() {
        let values = [
            "orders", "a$b", "a--24b", "a b", "a_b", "a.b", "a-b", "é", "a---24b", "a-$", "a--$", "a----24", "--2D",
            "-", "--", "--2d", "日本", "a--2D24b",
        ];
        let escaped = values.map(|value| {
            let mut out = "x.".to_owned();
            out.push_str(value);
            escape_topic(&mut out, 2);
            assert!(out.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)), "{out}");
            out
        });
        for (index, name) in escaped.iter().enumerate() {
            assert!(!escaped[..index].contains(name), "{name}");
        }
        assert_eq!(escaped[..5], ["x.orders", "x.a--24b", "x.a--2D-24b", "x.a--20b", "x.a_b"]);
        assert_eq!((escaped[6].as_str(), escaped[7].as_str()), ("x.a-b", "x.--C3--A9"));
        let template = Template::parse("{@path}-{@topic}-{a}", &["path"]).unwrap();
        assert_eq!(template.headers().collect::<Vec<_>>(), ["trunkline.path"]);
    }

    #[test]
    fn times_are_read_as_people_write_them() {
        for (time, expected) in [
            ("\"2024-02-29T12:00:00.52Z\"", "2024-02-29 12:00:00.520"),
            ("\"2024-02-29T14:00:00+02:00\"", "2024-02-29 12:00:00.000"),
            ("1709208000", "2024-02-29 12:00:00.000"),
            ("1709208000.52", "2024-02-29 12:00:00.520"),
            ("1709208000520", "2024-02-29 12:00:00.520"),
            ("1709208000520.75", "2024-02-29 12:00:00.520"),
            ("1709208000520000", "2024-02-29 12:00:00.520"),
            ("1709208000520000000", "2024-02-29 12:00:00.520"),
            ("\"1709208000.520\"", "2024-02-29 12:00:00.520"),
            ("-0.5", "1969-12-31 23:59:59.500"),
            ("\"29/Feb/2024:14:00:00 +0200\"", "2024-02-29 12:00:00.000"),
            ("\"Thu, 29 Feb 2024 07:00:00 -0500\"", "2024-02-29 12:00:00.000"),
            ("\"9999-12-31T23:59:59Z\"", "9999-12-31 23:59:59.000"),
            ("\"9999-12-31 23:59:59\"", "9999-12-31 23:59:59.000"),
        ] {
            let value = format!("{{\"t\":{time}}}");
            assert_eq!(
                render("{t:%Y-%m-%d %H:%M:%S.%3f}", &value).as_deref(),
                Ok(expected.replace(':', "%3A").as_str()),
                "{time}"
            );
            let day = render("{t:%Y-%m-%d}", &value);
            assert_eq!(day.as_deref(), Ok(&expected[..10]), "{time}");
        }
        for time in ["\"1.2.3\"", "\"1.\"", "\".5\"", "\"soon\"", "\"29/Feb/2023:14:00:00 +0200\"", "\"1709208000.5x\""]
        {
            assert!(render("{t:%Y}", &format!("{{\"t\":{time}}}")).is_err(), "{time}");
        }
    }

    #[test]
    fn what_a_record_lacks_is_its_error() {
        assert!(render("{gone}", "{}").unwrap_err().contains("no `gone`"));
        assert!(render("{a:%Y}", r#"{"a":"soon"}"#).unwrap_err().contains("no time"));
        assert!(render("{a}", r#"{"a":[1]}"#).unwrap_err().contains("plain"));
        assert!(render("{a}", "nope").unwrap_err().contains("not JSON"));
    }

    #[test]
    fn bad_templates_say_where() {
        let parse = |text: &str| Template::parse(text, &["path"]).unwrap_err();
        assert_eq!(parse("a{b").span, 1..3);
        assert_eq!(parse("a}b").span, 1..2);
        assert_eq!(parse("{@pth}").help.as_deref(), Some("did you mean `@path`?"));
        assert_eq!(parse("{t:%!}").span, 3..5);
        assert!(parse("{}").message.contains("without a name"));
        assert!(parse("{a..b}").message.contains("no path"));
    }

    #[test]
    fn fields_are_listed_with_whether_they_have_a_default() {
        let template = Template::parse("{a.b:%Y}/{@path}/{c|none}", &["path"]).unwrap();
        assert_eq!(template.fields().collect::<Vec<_>>(), [("a.b", false), ("c", true)]);
    }

    #[test]
    fn constants_and_patterns() {
        assert_eq!(Template::parse("a.b", &[]).unwrap().constant(), Some("a.b"));
        assert_eq!(Template::parse("a.{@topic}", &[]).unwrap().pattern(), "a\\..+");
    }
}
