//! `parser = "combined"`: the access log format of Apache and nginx, `addr ident user
//! [17/May/2015:10:05:03 +0000] "METHOD path PROTOCOL" status bytes "referer" "user agent"`. A line
//! that ends after the size (the common log format) is rejected: in a combined log it is a
//! truncated line.
//!
//! `-` is null. The identity field is dropped, because it is obsolete. A request that is not three
//! words is kept whole as `path`. In quoted fields `\"`, `\\` and a run of `\xHH` that makes valid
//! UTF-8 are decoded; other escapes are kept.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use jiff::civil::DateTime;
use jiff::tz::Offset;
use memchr::{memchr, memchr2};
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::{Event, Expected};

/// Parser of the combined format.
#[derive(Default)]
pub(crate) struct CombinedParser {
    last: Stamp,
}

/// The last timestamp and its translation: busy logs have many lines per second.
#[derive(Default)]
struct Stamp {
    text: [u8; STAMP_LEN],
    iso: [u8; 20],
    milliseconds: i64,
}

/// Bytes of `17/May/2015:10:05:03 +0000`.
const STAMP_LEN: usize = 26;
const STAMP: &str = "a time such as `[17/May/2015:10:05:03 +0000]`";
const MONTHS: [&[u8; 3]; 12] =
    [b"Jan", b"Feb", b"Mar", b"Apr", b"May", b"Jun", b"Jul", b"Aug", b"Sep", b"Oct", b"Nov", b"Dec"];

/// The schema of the records. The zone is `+00:00` instead of `UTC`: readers understand an offset
/// without a time zone database.
pub(super) fn schema() -> Option<Arc<Schema>> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let fields = vec![
        text("remote_addr"),
        text("remote_user"),
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into())), true),
        text("method"),
        text("path"),
        text("protocol"),
        Field::new("status", DataType::Int32, true),
        Field::new("bytes", DataType::Int64, true),
        text("referer"),
        text("user_agent"),
    ];
    Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
}

impl CombinedParser {
    /// Appends a line's JSON to `out`.
    pub(crate) fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let bytes = line.as_bytes();
        let Some(addr_end) = memchr(b' ', bytes).filter(|end| *end > 0) else {
            if line.trim().is_empty() {
                return Ok(Event::Blank);
            }
            return Err(expected(0, "a remote address and a space"));
        };
        let Some(ident_len) = memchr(b' ', &bytes[addr_end + 1..]).filter(|len| *len > 0) else {
            return Err(expected(addr_end + 1, "an identity (usually `-`) and a space"));
        };
        let user_at = addr_end + 1 + ident_len + 1;
        // A user's name may contain spaces and brackets: the first ` [` before a text of the right
        // shape starts the time.
        let Some(bracket) = stamp_bracket(bytes, user_at) else {
            let bracket = memchr(b'[', &bytes[user_at..]).map_or(user_at, |found| user_at + found);
            return Err(expected(bracket, STAMP));
        };
        if bracket < user_at + 2 {
            return Err(expected(user_at, "a user (or `-`) and a space"));
        }
        let stamp_at = bracket + 1;
        self.read_stamp(&bytes[stamp_at..stamp_at + STAMP_LEN]).ok_or_else(|| expected(bracket, STAMP))?;

        out.extend_from_slice(b"{\"remote_addr\":");
        write_plain(out, &line[..addr_end]);
        out.extend_from_slice(b",\"remote_user\":");
        write_plain(out, &line[user_at..bracket - 1]);
        out.extend_from_slice(b",\"timestamp\":\"");
        out.extend_from_slice(&self.last.iso);
        out.push(b'"');

        let (request, at) = quoted(line, stamp_at + STAMP_LEN + 1, "a space and a request in double quotes")?;
        write_request(out, request);
        let (status, at) = number(line, at, "a space and a status of three digits (or `-`)", 3)?;
        out.extend_from_slice(b",\"status\":");
        out.extend_from_slice(status.as_bytes());
        let (size, at) = number(line, at, "a space and a number of bytes (or `-`)", 18)?;
        out.extend_from_slice(b",\"bytes\":");
        out.extend_from_slice(size.as_bytes());
        let (referer, at) = quoted(line, at, "a space and a referer in double quotes")?;
        out.extend_from_slice(b",\"referer\":");
        write_quoted(out, referer);
        let (agent, at) = quoted(line, at, "a space and a user agent in double quotes")?;
        out.extend_from_slice(b",\"user_agent\":");
        write_quoted(out, agent);
        out.push(b'}');
        if !line[at..].trim_end_matches(' ').is_empty() {
            return Err(expected(at, "the end of the line"));
        }
        Ok(Event::Record(Some(self.last.milliseconds)))
    }

    /// Reads `17/May/2015:10:05:03 +0000` into `self.last`.
    fn read_stamp(&mut self, text: &[u8]) -> Option<()> {
        if text == self.last.text.as_slice() {
            return Some(());
        }
        let text: &[u8; STAMP_LEN] = text.try_into().ok()?;
        let two = |at: usize| Some(digit(text[at])? * 10 + digit(text[at + 1])?);
        let separated = text[2] == b'/'
            && text[6] == b'/'
            && text[11] == b':'
            && text[14] == b':'
            && text[17] == b':'
            && text[20] == b' ';
        let month = MONTHS.iter().position(|name| name.as_slice() == &text[3..6])? as i8 + 1;
        let year = i16::from(two(7)?) * 100 + i16::from(two(9)?);
        let sign = match text[21] {
            b'+' => 1,
            b'-' => -1,
            _ => return None,
        };
        let offset = sign * (i32::from(two(22)?) * 3600 + i32::from(two(24)?) * 60);
        let civil = DateTime::new(year, month, two(0)?, two(12)?, two(15)?, two(18)?, 0).ok().filter(|_| separated)?;
        let timestamp = Offset::from_seconds(offset).ok()?.to_timestamp(civil).ok()?;
        let utc = Offset::UTC.to_datetime(timestamp);
        if !(0..=9999).contains(&utc.year()) {
            return None;
        }
        self.last.text = *text;
        self.last.milliseconds = timestamp.as_millisecond();
        let year = utc.year().unsigned_abs();
        let parts = [(year / 100) as u8, (year % 100) as u8];
        let iso = &mut self.last.iso;
        *iso = *b"0000-00-00T00:00:00Z";
        let fields = [
            (0, parts[0]),
            (2, parts[1]),
            (5, utc.month().unsigned_abs()),
            (8, utc.day().unsigned_abs()),
            (11, utc.hour().unsigned_abs()),
            (14, utc.minute().unsigned_abs()),
            (17, utc.second().unsigned_abs()),
        ];
        for (at, value) in fields {
            iso[at] += value / 10;
            iso[at + 1] += value % 10;
        }
        Some(())
    }
}

fn expected(at: usize, what: &str) -> Expected {
    Expected { at, what: what.to_owned() }
}

fn digit(byte: u8) -> Option<i8> {
    byte.is_ascii_digit().then(|| (byte - b'0') as i8)
}

/// The `[` of the first ` [` before a text that has the shape of a time.
fn stamp_bracket(bytes: &[u8], from: usize) -> Option<usize> {
    let mut at = from;
    loop {
        let bracket = at + memchr(b'[', &bytes[at..])?;
        let closed = bytes.get(bracket + STAMP_LEN + 1) == Some(&b']');
        if closed && bytes[bracket - 1] == b' ' && bytes.get(bracket + 3) == Some(&b'/') {
            return Some(bracket);
        }
        at = bracket + 1;
    }
}

/// The text between the quotes after the space at `at`, and the byte after them.
fn quoted<'a>(line: &'a str, at: usize, what: &str) -> Result<(&'a str, usize), Expected> {
    let bytes = line.as_bytes();
    if bytes.get(at..at + 2) != Some(b" \"") {
        return Err(expected(at, what));
    }
    let start = at + 2;
    let mut here = start;
    while let Some(found) = memchr2(b'"', b'\\', &bytes[here..]) {
        if bytes[here + found] == b'"' {
            return Ok((&line[start..here + found], here + found + 1));
        }
        here = (here + found + 2).min(bytes.len());
    }
    Err(expected(line.len(), "a closing double quote"))
}

/// The number (or `-`, as `null`) after the space at `at`, as JSON, and the byte after it.
fn number<'a>(line: &'a str, at: usize, what: &str, max_digits: usize) -> Result<(&'a str, usize), Expected> {
    let bytes = line.as_bytes();
    if bytes.get(at) != Some(&b' ') {
        return Err(expected(at, what));
    }
    let start = at + 1;
    let len = bytes[start..].iter().position(|byte| *byte == b' ').unwrap_or(bytes.len() - start);
    let text = &line[start..start + len];
    if text == "-" {
        return Ok(("null", start + 1));
    }
    if text.is_empty() || text.len() > max_digits || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(expected(start, what.trim_start_matches("a space and ")));
    }
    let leading = text.len() - text.trim_start_matches('0').len();
    Ok((&text[leading.min(text.len() - 1)..], start + len))
}

/// Writes `-` as null and any other text as a string.
fn write_plain(out: &mut Vec<u8>, text: &str) {
    if text == "-" { out.extend_from_slice(b"null") } else { write_string(out, text) }
}

fn write_quoted(out: &mut Vec<u8>, text: &str) {
    if text == "-" {
        out.extend_from_slice(b"null");
    } else if memchr(b'\\', text.as_bytes()).is_none() {
        write_string(out, text);
    } else {
        write_string(out, &unescape(text));
    }
}

fn write_request(out: &mut Vec<u8>, request: &str) {
    let mut words = request.split(' ');
    let three = match (words.next(), words.next(), words.next(), words.next()) {
        (Some(method), Some(path), Some(protocol), None) => {
            Some((method, path, protocol)).filter(|(method, path, _)| !method.is_empty() && !path.is_empty())
        }
        _ => None,
    };
    match three.filter(|(.., protocol)| !protocol.is_empty()) {
        Some((method, path, protocol)) => {
            out.extend_from_slice(b",\"method\":");
            write_quoted(out, method);
            out.extend_from_slice(b",\"path\":");
            write_quoted(out, path);
            out.extend_from_slice(b",\"protocol\":");
            write_quoted(out, protocol);
        }
        None => {
            out.extend_from_slice(b",\"method\":null,\"path\":");
            write_quoted(out, request);
            out.extend_from_slice(b",\"protocol\":null");
        }
    }
}

/// Decodes `\"`, `\\` and runs of `\xHH` that make valid UTF-8.
fn unescape(text: &str) -> Cow<'_, str> {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = memchr(b'\\', rest.as_bytes()) {
        plain.push_str(&rest[..at]);
        rest = &rest[at..];
        let mut run = Vec::new();
        while let Some(byte) = hex_escape(&rest.as_bytes()[run.len() * 4..]) {
            run.push(byte);
        }
        match (rest.as_bytes().get(1), std::str::from_utf8(&run)) {
            (Some(b'"' | b'\\'), _) => {
                plain.push_str(&rest[1..2]);
                rest = &rest[2..];
            }
            (_, Ok(decoded)) if !run.is_empty() => {
                plain.push_str(decoded);
                rest = &rest[run.len() * 4..];
            }
            _ => {
                let kept = (run.len() * 4).max(1);
                plain.push_str(&rest[..kept]);
                rest = &rest[kept..];
            }
        }
    }
    plain.push_str(rest);
    Cow::Owned(plain)
}

fn hex_escape(bytes: &[u8]) -> Option<u8> {
    let [b'\\', b'x', high, low, ..] = bytes else { return None };
    let nibble = |byte: &u8| char::from(*byte).to_digit(16).map(|digit| digit as u8);
    Some(nibble(high)? << 4 | nibble(low)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn parse_combined(line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        CombinedParser::default().parse(line, out)
    }

    fn parsed(line: &str) -> Result<Value, Expected> {
        let mut out = Vec::new();
        match parse_combined(line, &mut out)? {
            Event::Record(_) => Ok(serde_json::from_slice(&out).unwrap()),
            Event::Blank => Ok(Value::Null),
        }
    }

    #[test]
    fn all_fields_of_a_line_are_read() {
        let line = r#"83.149.9.216 - jo [17/May/2015:10:05:03 +0000] "GET /a?b=\"c\" HTTP/1.1" 200 203023 "http://x/" "Moz \"q\" \xc3\xa4 \xff \t""#;
        let expected = json!({
            "remote_addr": "83.149.9.216", "remote_user": "jo", "timestamp": "2015-05-17T10:05:03Z", "method": "GET",
            "path": "/a?b=\"c\"", "protocol": "HTTP/1.1", "status": 200, "bytes": 203023, "referer": "http://x/",
            "user_agent": "Moz \"q\" ä \\xff \\t"
        });
        assert_eq!(parsed(line).unwrap(), expected);
        let mut out = Vec::new();
        assert_eq!(parse_combined(line, &mut out), Ok(Event::Record(Some(1_431_857_103_000))));
    }

    #[test]
    fn dashes_are_null_and_truncated_lines_are_rejected() {
        let line = r#"::1 - - [31/Dec/1999:23:59:59 -0130] "-" 408 - "-" "-""#;
        let expected = json!({
            "remote_addr": "::1", "remote_user": null, "timestamp": "2000-01-01T01:29:59Z", "method": null, "path": null,
            "protocol": null, "status": 408, "bytes": null, "referer": null, "user_agent": null
        });
        assert_eq!(parsed(line).unwrap(), expected);
        assert_eq!(parsed("  ").unwrap(), Value::Null);
        assert!(parsed(line.trim_end_matches(r#" "-" "-""#)).is_err());
    }

    #[test]
    fn requests_other_than_three_words_are_kept_whole() {
        for (request, path) in [
            ("GET /", json!("GET /")),
            ("GET /a b HTTP/1.1", json!("GET /a b HTTP/1.1")),
            (r"\x16\x03\x01", json!("\u{16}\u{3}\u{1}")),
            ("", json!("")),
            ("GET  HTTP/1.1", json!("GET  HTTP/1.1")),
        ] {
            let line = format!(r#"1.2.3.4 - - [17/May/2015:10:05:03 +0000] "{request}" 400 0 "-" "-""#);
            let value = parsed(&line).unwrap();
            assert_eq!((&value["path"], &value["method"], &value["protocol"]), (&path, &Value::Null, &Value::Null));
        }
    }

    #[test]
    fn user_names_may_contain_spaces_and_brackets() {
        let value = parsed(r#"h - John [x] Doe [17/May/2015:10:05:03 +0000] "GET / HTTP/1.0" 007 00 "-" "-""#).unwrap();
        assert_eq!(
            (&value["remote_user"], &value["status"], &value["bytes"]),
            (&json!("John [x] Doe"), &json!(7), &json!(0))
        );
    }

    #[test]
    fn errors_point_at_the_byte() {
        let good = r#"1.2.3.4 - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "x""#;
        assert!(parsed(good).is_ok());
        for (from, to, at) in [
            ("1.2.3.4 - - [", "garbage", 0),
            ("17/May", "17/Mai", 12),
            ("17/May", "32/May", 12),
            ("+0000]", "+0000", 12),
            ("\"GET", "GET", 40),
            ("200", "2OO", 58),
            ("200", "2000", 58),
            (" 5 ", " five ", 62),
            ("\"x\"", "\"x", 70),
            ("\"x\"", "\"x\" more", 71),
        ] {
            let bad = good.replacen(from, to, 1);
            match parsed(&bad) {
                Err(error) if from.starts_with("1.2") => assert!(error.at <= bad.len(), "{bad}"),
                Err(error) => assert_eq!(error.at, at, "{bad}: {error:?}"),
                Ok(value) => panic!("{bad} was read as {value}"),
            }
        }
    }

    proptest! {
        #[test]
        fn parsed_lines_are_valid_json(
            addr in "[^ \n]{1,8}", user in "[^\n]{1,8}", request in "[^\n]{0,20}", agent in "[^\n]{0,20}", cut in 0usize..120
        ) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let whole = format!(
                "{addr} - {user} [17/May/2015:10:05:03 +0000] \"{}\" 200 5 \"-\" \"{}\"", escape(&request), escape(&agent)
            );
            let value = parsed(&whole);
            if !user.contains('[') {
                let value = value.unwrap();
                prop_assert_eq!(value["user_agent"].as_str().unwrap_or("-"), agent);
            }
            let cut = whole.floor_char_boundary(cut.min(whole.len()));
            let _ = parsed(&whole[..cut]);
        }
    }
}
