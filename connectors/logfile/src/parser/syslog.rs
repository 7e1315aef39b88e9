//! `parser = "syslog"`: RFC 5424 (`<34>1 2003-10-11T22:14:15.003Z host app 123 ID47 [id name="v"]
//! message`) and RFC 3164 (`<34>Oct 11 22:14:15 host app[123]: message`), each with or without the
//! octet count of RFC 6587 before it. The priority may be absent from RFC 3164, as in files; its
//! time may be in the form of RFC 3339, as rsyslog writes it.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, TimeUnit};
use memchr::memchr2;
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::scan::{Object, Scanner};
use super::time::{Civil, Clock, MONTHS, rfc3339, time_of_day, write_time};
use super::{Event, Expected, FileStart, LineParser, schema_of, text, timestamp};

const FACILITIES: [&str; 24] = [
    "kern", "user", "mail", "daemon", "auth", "syslog", "lpr", "news", "uucp", "cron", "authpriv", "ftp", "ntp",
    "audit", "alert", "clock", "local0", "local1", "local2", "local3", "local4", "local5", "local6", "local7",
];
const SEVERITIES: [&str; 8] = ["emerg", "alert", "crit", "err", "warning", "notice", "info", "debug"];
const TIME: &str = "a time such as `Oct 11 22:14:15` or `2003-10-11T22:14:15Z`";

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    let parameter = Fields::from(vec![text("id"), text("name"), text("value")]);
    let item = Field::new("item", DataType::Struct(parameter), true);
    schema_of(vec![
        text("facility"),
        text("severity"),
        timestamp(TimeUnit::Microsecond),
        text("hostname"),
        text("app_name"),
        text("proc_id"),
        text("msg_id"),
        Field::new("structured_data", DataType::List(Arc::new(item)), true),
        text("message"),
    ])
}

/// Parser of both formats.
pub(super) struct SyslogParser {
    pub(super) clock: Clock,
}

impl LineParser for SyslogParser {
    fn code(&self) -> &'static str {
        "parse.syslog"
    }

    fn begin_file(&mut self, start: &FileStart<'_>) {
        self.clock.begin_file(start);
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut scanner = Scanner::new(line);
        octet_count(&mut scanner)?;
        let mut object = Object::new(out);
        let has_priority = priority(&mut scanner, &mut object)?;
        let is_5424 = has_priority && scanner.eat("1 ");
        let time =
            if is_5424 { rfc5424(&mut scanner, &mut object)? } else { Some(self.rfc3164(&mut scanner, &mut object)?) };
        object.end();
        Ok(Event::Record(time))
    }
}

impl SyslogParser {
    fn rfc3164(&mut self, scanner: &mut Scanner<'_>, object: &mut Object<'_>) -> Result<i64, Expected> {
        let at = scanner.at;
        let bytes = scanner.rest().as_bytes();
        let (instant, len) = match rfc3339(bytes) {
            Some((instant, len)) => (Some(instant), len),
            None => month_day_time(bytes).map_or((None, 0), |(civil, len)| (self.clock.without_year(civil), len)),
        };
        let time = write_time(object, instant, 6, at, TIME)?;
        scanner.at += len;
        scanner.require(" ", "a space after the time")?;
        object.text("hostname", scanner.until(b' ', "a host name and a space")?);
        // `app[123]: `, `app: `, or no tag at all.
        let rest = scanner.rest();
        let end = rest.bytes().position(|byte| matches!(byte, b':' | b'[' | b' ')).unwrap_or(rest.len());
        let (tag, after) = rest.split_at(end);
        let (app, id, message) = if let Some(inner) = after.strip_prefix('[')
            && let Some((id, message)) = inner.split_once(']')
            && let Some(message) = message.strip_prefix(':')
            && !id.contains(' ')
        {
            (Some(tag), Some(id), message)
        } else if let Some(message) = after.strip_prefix(':') {
            (Some(tag), None, message)
        } else {
            (None, None, rest)
        };
        object.optional("app_name", app.filter(|app| !app.is_empty()));
        object.optional("proc_id", id);
        object.optional("msg_id", None);
        object.name("structured_data").extend_from_slice(b"null");
        object.text("message", message.strip_prefix(' ').unwrap_or(message));
        Ok(time)
    }
}

/// Passes over the length of the message (RFC 6587), which must be right.
fn octet_count(scanner: &mut Scanner<'_>) -> Result<(), Expected> {
    let bytes = scanner.line.as_bytes();
    let len = bytes.iter().take(10).position(|byte| !byte.is_ascii_digit()).unwrap_or(0);
    let is_counted = len > 0 && bytes.get(len) == Some(&b' ') && bytes.get(len + 1) == Some(&b'<');
    if is_counted {
        let rest = bytes.len() - len - 1;
        if scanner.line[..len].parse() != Ok(rest) {
            return Err(scanner.expected(&format!("the length of the message, {rest}")));
        }
        scanner.at = len + 1;
    }
    Ok(())
}

/// `<34>`: the facility times eight, plus the severity.
fn priority(scanner: &mut Scanner<'_>, object: &mut Object<'_>) -> Result<bool, Expected> {
    const WHAT: &str = "a priority from `<0>` to `<191>`";
    let at = scanner.at;
    if !scanner.eat("<") {
        object.optional("facility", None);
        object.optional("severity", None);
        return Ok(false);
    }
    let wrong = || Expected { at, what: WHAT.to_owned() };
    let value: usize = scanner.digits(WHAT)?.parse().map_err(|_| wrong())?;
    scanner.require(">", WHAT)?;
    let facility = FACILITIES.get(value / 8).ok_or_else(wrong)?;
    object.text("facility", facility);
    object.text("severity", SEVERITIES[value % 8]);
    Ok(true)
}

/// `Oct 11 22:14:15`; a day of one digit follows a second space or a zero.
pub(super) fn month_day_time(bytes: &[u8]) -> Option<(Civil, usize)> {
    let month = MONTHS.iter().position(|name| bytes.starts_with(name.as_slice()))? as u32 + 1;
    let (day, len) = match bytes.get(3..6)? {
        [b' ', b' ', ones @ b'1'..=b'9'] => (u32::from(ones - b'0'), 6),
        [b' ', ones @ b'1'..=b'9', b' '] => (u32::from(ones - b'0'), 5),
        [b' ', tens @ b'0'..=b'3', ones @ b'0'..=b'9'] => (u32::from(tens - b'0') * 10 + u32::from(ones - b'0'), 6),
        _ => return None,
    };
    if bytes.get(len) != Some(&b' ') {
        return None;
    }
    let (second_of_day, nanos, more) = time_of_day(&bytes[len + 1..])?;
    Some((Civil { year: 0, month, day, second_of_day, nanos }, len + 1 + more))
}

fn rfc5424(scanner: &mut Scanner<'_>, object: &mut Object<'_>) -> Result<Option<i64>, Expected> {
    const TIME: &str = "a time such as `2003-10-11T22:14:15.003Z`, or `-`";
    let at = scanner.at;
    let time = if scanner.eat("- ") {
        object.name("timestamp").extend_from_slice(b"null");
        None
    } else {
        let (instant, len) = rfc3339(scanner.rest().as_bytes()).ok_or_else(|| scanner.expected(TIME))?;
        let time = write_time(object, Some(instant), 6, at, TIME)?;
        scanner.at += len;
        scanner.require(" ", "a space after the time")?;
        Some(time)
    };
    for (name, what) in [
        ("hostname", "a host name (or `-`) and a space"),
        ("app_name", "an application (or `-`) and a space"),
        ("proc_id", "a process id (or `-`) and a space"),
        ("msg_id", "a message id (or `-`) and a space"),
    ] {
        let value = scanner.until(b' ', what)?;
        object.optional(name, Some(value).filter(|value| *value != "-"));
    }
    if scanner.eat("-") {
        object.name("structured_data").extend_from_slice(b"null");
    } else {
        let mut written = Vec::new();
        structured_data(scanner, &mut written)?;
        object.name("structured_data").extend_from_slice(&written);
    }
    if scanner.rest().is_empty() {
        object.optional("message", None);
        return Ok(time);
    }
    scanner.require(" ", "a space before the message")?;
    let message = scanner.rest();
    object.text("message", message.strip_prefix('\u{feff}').unwrap_or(message));
    Ok(time)
}

/// `[id name="value" ..][id ..]`. In values `\"`, `\\` and `\]` are escaped.
fn structured_data(scanner: &mut Scanner<'_>, out: &mut Vec<u8>) -> Result<(), Expected> {
    let mut separator = b'[';
    let mut member = |id: &str, name: &str, value: Option<&str>| {
        out.push(separator);
        separator = b',';
        out.extend_from_slice(b"{\"id\":");
        write_string(out, id);
        match value {
            Some(value) => {
                out.extend_from_slice(b",\"name\":");
                write_string(out, name);
                out.extend_from_slice(b",\"value\":");
                write_string(out, value);
            }
            None => out.extend_from_slice(b",\"name\":null,\"value\":null"),
        }
        out.push(b'}');
    };
    let mut unescaped = String::new();
    if scanner.peek() != Some(b'[') {
        return Err(scanner.expected("structured data in brackets, or `-`"));
    }
    while scanner.eat("[") {
        let rest = scanner.rest();
        let len = memchr2(b' ', b']', rest.as_bytes()).filter(|len| *len > 0);
        let id = len.map(|len| &rest[..len]).ok_or_else(|| scanner.expected("an id of structured data"))?;
        scanner.at += id.len();
        let mut has_parameters = false;
        while scanner.eat(" ") {
            let name = scanner.until(b'=', "a parameter such as `name=\"value\"`")?;
            scanner.require("\"", "a value in double quotes")?;
            unescaped.clear();
            quoted(scanner, &mut unescaped)?;
            member(id, name, Some(&unescaped));
            has_parameters = true;
        }
        scanner.require("]", "a space and a parameter, or `]`")?;
        if !has_parameters {
            member(id, "", None);
        }
    }
    out.push(b']');
    Ok(())
}

/// The text up to the closing quote.
fn quoted(scanner: &mut Scanner<'_>, text: &mut String) -> Result<(), Expected> {
    loop {
        let rest = scanner.rest();
        let Some(len) = memchr2(b'"', b'\\', rest.as_bytes()) else {
            scanner.at = scanner.line.len();
            return Err(scanner.expected("the closing quote of a value"));
        };
        text.push_str(&rest[..len]);
        scanner.at += len + 1;
        if rest.as_bytes()[len] == b'"' {
            return Ok(());
        }
        match scanner.peek() {
            Some(escaped @ (b'"' | b'\\' | b']')) => {
                text.push(char::from(escaped));
                scanner.at += 1;
            }
            _ => text.push('\\'),
        }
    }
}
