//! `parser = "combined"`: the access log format of Apache and nginx, `addr ident user
//! [17/May/2015:10:05:03 +0000] "METHOD path PROTOCOL" status bytes "referer" "user agent"`.
//! `vhost_combined` has the virtual host before it (`%v:%p`), `nginx_main` has X-Forwarded-For in
//! double quotes after it.
//!
//! `common` has no referer and no user agent. For the others, a line that ends after the size is
//! rejected: in a combined log it is a truncated line. The address is an IP address or a host name,
//! or several of them separated by a comma and a space (X-Forwarded-For in its place).
//!
//! `-` is null. The identity field is dropped, because it is obsolete. A request that is not three
//! words is kept whole as `path`. In quoted fields `\"`, `\\` and a run of `\xHH` that makes valid
//! UTF-8 are decoded; other escapes are kept.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use jiff::civil::DateTime;
use jiff::tz::Offset;
use memchr::{memchr, memchr2};
use trunkline_connector::Schema;
use trunkline_connector::json::{write_string, write_unescaped};

use super::time::MONTHS;
use super::{Event, Expected, LineParser};

/// Parser of the combined format.
pub(crate) struct CombinedParser {
    variant: Variant,
    last: Stamp,
}

/// The combined format and its common extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    /// The combined format.
    Combined,
    /// With the virtual host before it.
    VhostCombined,
    /// With X-Forwarded-For after it.
    NginxMain,
    /// Without referer and user agent: the common log format.
    Common,
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

/// The schema of the records. The zone is `+00:00` instead of `UTC`: readers understand an offset
/// without a time zone database.
pub(super) fn schema(variant: Variant) -> Option<Arc<Schema>> {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let mut fields = vec![
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
    match variant {
        Variant::Combined => {}
        Variant::VhostCombined => fields.insert(0, text("vhost")),
        Variant::NginxMain => fields.push(text("forwarded_for")),
        Variant::Common => fields.truncate(8),
    }
    Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
}

impl LineParser for CombinedParser {
    fn code(&self) -> &'static str {
        match self.variant {
            Variant::Combined => "parse.combined",
            Variant::VhostCombined => "parse.vhost_combined",
            Variant::NginxMain => "parse.nginx_main",
            Variant::Common => "parse.common",
        }
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        self.parse_line(line, out)
    }
}

impl CombinedParser {
    pub(crate) fn new(variant: Variant) -> Self {
        Self { variant, last: Stamp::default() }
    }

    /// Appends a line's JSON to `out`.
    fn parse_line(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        let bytes = line.as_bytes();
        if bytes.first().is_none_or(|byte| *byte == b' ') && line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        let mut addr_at = 0;
        out.push(b'{');
        if self.variant == Variant::VhostCombined {
            let end =
                memchr(b' ', bytes).filter(|end| *end > 0).ok_or_else(|| expected(0, "a virtual host and a space"))?;
            out.extend_from_slice(b"\"vhost\":");
            write_plain(out, &line[..end]);
            out.push(b',');
            addr_at = end + 1;
        }
        let addr_end = addresses(line, addr_at)?;
        let ident_at = addr_end + 1;
        let ident_len = memchr(b' ', &bytes[ident_at..]).filter(|len| *len > 0);
        let ident_len = ident_len.ok_or_else(|| expected(ident_at, "an identity (usually `-`) and a space"))?;
        let ident = &line[ident_at..ident_at + ident_len];
        if ident != "-" && ident.parse::<IpAddr>().is_ok() {
            return Err(expected(
                ident_at,
                "an identity (usually `-`); for a virtual host before the address use `vhost_combined`",
            ));
        }
        let user_at = ident_at + ident_len + 1;
        // A user's name may contain spaces and brackets: the first ` [` before a text of the right
        // shape starts the time.
        let Some(bracket) = stamp_bracket(bytes, user_at) else {
            let bracket = memchr(b'[', &bytes[user_at..]).map_or(user_at, |found| user_at + found);
            return Err(expected(bracket, STAMP));
        };
        if bracket < user_at + 2 {
            return Err(expected(user_at, "a user (or `-`) and a space"));
        }
        if bytes[user_at..bracket].starts_with(b"- ") && bracket > user_at + 2 {
            return Err(expected(user_at + 2, STAMP));
        }
        let stamp_at = bracket + 1;
        let stamp = &bytes[stamp_at..stamp_at + STAMP_LEN];
        if stamp != self.last.text.as_slice() {
            self.read_stamp(stamp).ok_or_else(|| expected(bracket, STAMP))?;
        }

        out.extend_from_slice(b"\"remote_addr\":");
        write_plain(out, &line[addr_at..addr_end]);
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
        let mut at = at;
        if self.variant != Variant::Common {
            let (referer, agent);
            (referer, at) = quoted(line, at, "a space and a referer in double quotes")?;
            out.extend_from_slice(b",\"referer\":");
            write_quoted(out, referer);
            (agent, at) = quoted(line, at, "a space and a user agent in double quotes")?;
            out.extend_from_slice(b",\"user_agent\":");
            write_quoted(out, agent);
        }
        if self.variant == Variant::NginxMain {
            let forwarded_for;
            (forwarded_for, at) = quoted(line, at, "a space and X-Forwarded-For in double quotes")?;
            out.extend_from_slice(b",\"forwarded_for\":");
            write_quoted(out, forwarded_for);
        }
        out.push(b'}');
        let rest = line[at..].trim_end_matches(' ');
        if self.variant == Variant::Combined && rest.starts_with(" \"") {
            return Err(expected(at, "the end of the line; for X-Forwarded-For at the end use `nginx_main`"));
        }
        if self.variant == Variant::Common && rest.starts_with(" \"") {
            return Err(expected(at, "the end of the line; with referer and user agent use `combined`"));
        }
        if !rest.is_empty() {
            return Err(expected(at, "the end of the line"));
        }
        Ok(Event::Record(Some(self.last.milliseconds)))
    }

    /// Reads `17/May/2015:10:05:03 +0000` into `self.last`.
    fn read_stamp(&mut self, text: &[u8]) -> Option<()> {
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

/// The end of the remote address, or of a list of addresses.
fn addresses(line: &str, from: usize) -> Result<usize, Expected> {
    const ADDRESS: &str = "a remote address (an IP address or a host name) and a space";
    let mut at = from;
    loop {
        let len = memchr(b' ', &line.as_bytes()[at..]).ok_or_else(|| expected(at, ADDRESS))?;
        let word = &line[at..at + len];
        let address = word.strip_suffix(',').unwrap_or(word);
        let is_missing = address == "-" && at > from;
        if !is_address(address) || is_missing {
            return Err(expected(at, ADDRESS));
        }
        if address.len() == word.len() {
            return Ok(at + len);
        }
        at += len + 1;
    }
}

/// Whether a text is `-`, a host name, or an IP address with or without a port.
fn is_address(text: &str) -> bool {
    let legal = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if text.bytes().all(|byte| legal(&byte)) {
        return !text.is_empty();
    }
    let without_zone = text.split('%').next().unwrap_or(text);
    without_zone.parse::<Ipv6Addr>().is_ok() || text.parse::<SocketAddr>().is_ok() || text == "unix:"
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
    let len = bytes[start..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    let end = start + len;
    match bytes.get(end) {
        None | Some(b' ') if (1..=max_digits).contains(&len) => {
            let zeros = bytes[start..end - 1].iter().take_while(|byte| **byte == b'0').count();
            Ok((&line[start + zeros..end], end))
        }
        Some(b'-') if len == 0 && matches!(bytes.get(end + 1), None | Some(b' ')) => Ok(("null", end + 1)),
        _ => Err(expected(start, what.trim_start_matches("a space and "))),
    }
}

/// Writes `-` as null and any other text as a string.
fn write_plain(out: &mut Vec<u8>, text: &str) {
    if text == "-" { out.extend_from_slice(b"null") } else { write_string(out, text) }
}

fn write_quoted(out: &mut Vec<u8>, text: &str) {
    if text == "-" {
        out.extend_from_slice(b"null");
    } else if !write_unescaped(out, text) {
        write_string(out, &unescape(text));
    }
}

fn write_request(out: &mut Vec<u8>, request: &str) {
    match three_words(request) {
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

/// The words of a text that has three of them, with one space between two.
fn three_words(text: &str) -> Option<(&str, &str, &str)> {
    let bytes = text.as_bytes();
    let first = memchr(b' ', bytes)?;
    let second = first + 1 + memchr(b' ', &bytes[first + 1..])?;
    let words = (&text[..first], &text[first + 1..second], &text[second + 1..]);
    let is_empty = words.0.is_empty() || words.1.is_empty() || words.2.is_empty();
    (!is_empty && memchr(b' ', words.2.as_bytes()).is_none()).then_some(words)
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
        CombinedParser::new(Variant::Combined).parse(line, out)
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
    fn addresses_are_checked() {
        let line =
            |before: &str| format!(r#"{before} - - [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "ua""#);
        for address in [
            "203.0.113.9",
            "2001:db8::1",
            "fe80::1%eth0",
            "www.example.com",
            "a_b-c",
            "unix:",
            "203.0.113.9:4711",
            "[2001:db8::1]:4711",
            "203.0.113.9, 10.0.0.1",
            "unknown, 2001:db8::1, 10.0.0.1",
        ] {
            assert_eq!(parsed(&line(address)).unwrap()["remote_addr"], json!(address));
        }
        assert_eq!(parsed(&line("-")).unwrap()["remote_addr"], Value::Null);
        for (before, at) in [
            ("www.example.com:443 203.0.113.9", 0),
            ("www.example.com 203.0.113.9", 16),
            ("www.example.com client.example.org", 37),
            ("\x00\x00203.0.113.9", 0),
            ("203.0.113.9,", 13),
            ("203.0.113.9, b\u{e4}d", 13),
            (",", 0),
        ] {
            match parsed(&line(before)) {
                Err(error) => assert_eq!(error.at, at, "{before}: {error:?}"),
                Ok(value) => panic!("{before} was read as {value}"),
            }
        }
    }

    #[test]
    fn common_extensions_of_the_format_have_parsers() {
        let combined = r#"203.0.113.9 - jo [17/May/2015:10:05:03 +0000] "GET / HTTP/1.1" 200 5 "-" "ua""#;
        let parse = |variant, line: &str| {
            let mut out = Vec::new();
            CombinedParser::new(variant).parse(line, &mut out).map(|_| serde_json::from_slice::<Value>(&out).unwrap())
        };
        let vhost = parse(Variant::VhostCombined, &format!("www.example.com:443 {combined}")).unwrap();
        assert_eq!((&vhost["vhost"], &vhost["remote_addr"]), (&json!("www.example.com:443"), &json!("203.0.113.9")));
        let main = parse(Variant::NginxMain, &format!(r#"{combined} "198.51.100.7, 10.0.0.1""#)).unwrap();
        assert_eq!((&main["user_agent"], &main["forwarded_for"]), (&json!("ua"), &json!("198.51.100.7, 10.0.0.1")));
        assert_eq!(parse(Variant::NginxMain, &format!(r#"{combined} "-""#)).unwrap()["forwarded_for"], Value::Null);
        assert!(parse(Variant::NginxMain, combined).is_err() && parse(Variant::VhostCombined, combined).is_err());
        let error = parse(Variant::Combined, &format!(r#"{combined} "-""#)).unwrap_err();
        assert_eq!((error.at, error.what.contains("nginx_main")), (combined.len(), true));
        let common = combined.strip_suffix(r#" "-" "ua""#).unwrap_or_else(|| panic!("{combined}"));
        for variant in [Variant::Combined, Variant::VhostCombined, Variant::NginxMain, Variant::Common] {
            let value = match variant {
                Variant::Combined => parse(variant, combined).unwrap(),
                Variant::VhostCombined => vhost.clone(),
                Variant::NginxMain => main.clone(),
                Variant::Common => parse(variant, common).unwrap(),
            };
            let schema = schema(variant).unwrap();
            let fields: Vec<&String> = schema.arrow().fields().iter().map(|field| field.name()).collect();
            assert_eq!(value.as_object().unwrap().len(), fields.len());
            assert!(fields.iter().all(|field| value.get(field.as_str()).is_some()), "{fields:?}");
        }
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
            addr in "[0-9a-z.]{1,8}", user in "[^\n]{1,8}", request in "[^\n]{0,20}", agent in "[^\n]{0,20}", cut in 0usize..120
        ) {
            let escape = |text: &str| text.replace('\\', "\\\\").replace('"', "\\\"");
            let whole = format!(
                "{addr} - {user} [17/May/2015:10:05:03 +0000] \"{}\" 200 5 \"-\" \"{}\"", escape(&request), escape(&agent)
            );
            let value = parsed(&whole);
            if !user.contains('[') && !user.starts_with("- ") {
                let value = value.unwrap();
                prop_assert_eq!(value["user_agent"].as_str().unwrap_or("-"), agent);
            }
            let cut = whole.floor_char_boundary(cut.min(whole.len()));
            let _ = parsed(&whole[..cut]);
        }
    }
}
