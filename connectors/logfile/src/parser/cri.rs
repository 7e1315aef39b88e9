//! `parser = "cri"`: lines of containers, as containerd and CRI-O write them below
//! `/var/log/containers` (Kubernetes' `KEP-1602`, logging format of the container runtime
//! interface): `2026-03-01T00:00:00.123456789Z stdout F message`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use trunkline_connector::Schema;

use super::scan::{Object, Scanner};
use super::time::{rfc3339, write_time};
use super::{Event, Expected, LineParser, schema_of, text, timestamp};

const TIME: &str = "a time such as 2026-03-01T00:00:00.123Z";

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    let partial = Field::new("partial", DataType::Boolean, true);
    schema_of(vec![timestamp(TimeUnit::Nanosecond), text("stream"), partial, text("message")])
}

/// The parser.
#[derive(Default)]
pub(super) struct CriParser {
    joined: String,
}

/// What stands before the message of a line.
pub(super) struct Prefix<'a> {
    pub(super) time: Result<(super::time::Instant, usize), Expected>,
    pub(super) stream: &'a str,
    pub(super) is_partial: bool,
    pub(super) message_at: usize,
}

/// Reads what stands before the message.
pub(super) fn prefix(line: &str) -> Result<Prefix<'_>, Expected> {
    let mut scanner = Scanner::new(line);
    let time = rfc3339(line.as_bytes()).ok_or_else(|| scanner.expected(TIME));
    let len = scanner.until(b' ', TIME)?.len();
    let time =
        time.and_then(
            |(instant, end)| {
                if end == len { Ok((instant, end)) } else { Err(Expected { at: 0, what: TIME.to_owned() }) }
            },
        );
    if let Err(expected) = &time {
        return Err(expected.clone());
    }
    let stream_at = scanner.at;
    let wrong_stream = || Expected { at: stream_at, what: "`stdout` or `stderr`".to_owned() };
    let stream = scanner.until(b' ', "`stdout` or `stderr`")?;
    if !matches!(stream, "stdout" | "stderr") {
        return Err(wrong_stream());
    }
    // An empty message may follow the tag without a space.
    let rest = scanner.rest();
    let tags = rest.split(' ').next().unwrap_or(rest);
    let is_partial = match tags.split(':').next() {
        Some("P") => true,
        Some("F") => false,
        _ => return Err(scanner.expected("`F` (a full line) or `P` (a part of one)")),
    };
    let message_at = (scanner.at + tags.len() + 1).min(line.len());
    Ok(Prefix { time, stream, is_partial, message_at })
}

/// What [`crate::multiline`] needs of a line.
pub(crate) struct ContainerLine<'a> {
    pub(crate) stream: &'a [u8],
    pub(crate) is_partial: bool,
    pub(crate) message: &'a [u8],
}

/// Splits a line without checking its time.
pub(crate) fn container_message(line: &[u8]) -> Option<ContainerLine<'_>> {
    let mut words = line.splitn(4, |byte| *byte == b' ');
    let (_, stream, tags) = (words.next()?, words.next()?, words.next()?);
    let is_partial = match tags {
        [b'P'] | [b'P', b':', ..] => true,
        [b'F'] | [b'F', b':', ..] => false,
        _ => return None,
    };
    Some(ContainerLine { stream, is_partial, message: words.next().unwrap_or_default() })
}

impl LineParser for CriParser {
    fn code(&self) -> &'static str {
        "parse.cri"
    }

    fn parse(&mut self, line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
        if line.trim().is_empty() {
            return Ok(Event::Blank);
        }
        // An event of several lines has a prefix in each of them.
        let (first, more) = match memchr::memchr(b'\n', line.as_bytes()) {
            Some(end) => (&line[..end], &line[end..]),
            None => (line, ""),
        };
        let Prefix { time, stream, mut is_partial, message_at } = prefix(first)?;
        let (instant, _) = time?;
        let mut object = Object::new(out);
        let time = write_time(&mut object, Some(instant), 9, 0, TIME)?;
        object.text("stream", stream);
        let mut message = &first[message_at..];
        if !more.is_empty() {
            self.joined.clear();
            self.joined.push_str(message.trim_end_matches('\r'));
            let mut at = first.len() + 1;
            for part in more[1..].split('\n') {
                let found = prefix(part).map_err(|expected| Expected { at: at + expected.at, ..expected })?;
                if !is_partial {
                    self.joined.push('\n');
                }
                is_partial = found.is_partial;
                self.joined.push_str(part[found.message_at..].trim_end_matches('\r'));
                at += part.len() + 1;
            }
            message = &self.joined;
        }
        object.name("partial").extend_from_slice(if is_partial { b"true" } else { b"false" });
        object.text("message", message);
        object.end();
        Ok(Event::Record(Some(time)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Option<i64>, String), Expected> {
        let mut out = Vec::new();
        match CriParser::default().parse(line, &mut out)? {
            Event::Record(time) => Ok((time, String::from_utf8(out).unwrap())),
            Event::Blank => Ok((None, String::new())),
        }
    }

    #[test]
    fn full_and_partial_lines_have_their_time_and_stream() {
        let line = "2016-10-06T00:17:09.669794202Z stdout P log content 1";
        let expected = r#"{"timestamp":"2016-10-06T00:17:09.669794202Z","stream":"stdout","partial":true,"message":"log content 1"}"#;
        assert_eq!(parsed(line).unwrap(), (Some(1_475_713_029_669), expected.to_owned()));
        // The kubelet writes the zone of the node.
        let (time, json) = parsed("2016-10-06T02:17:09.669+02:00 stderr F").unwrap();
        assert_eq!(time, Some(1_475_713_029_669));
        let expected = r#"{"timestamp":"2016-10-06T00:17:09.669Z","stream":"stderr","partial":false,"message":""}"#;
        assert_eq!(json, expected);
        let (_, json) = parsed("2016-10-06T00:17:09Z stdout F:tag {\"a\": \"b\"}").unwrap();
        assert!(json.ends_with(r#""message":"{\"a\": \"b\"}"}"#), "{json}");
        assert_eq!(parsed(" ").unwrap(), (None, String::new()));
    }

    #[test]
    fn other_lines_are_rejected_with_their_column() {
        for (line, at) in [
            ("x", 0),
            ("yesterday stdout F x", 0),
            ("2016-10-06T00:17:09Z", 0),
            ("2016-10-06T00:17:09Z stdlog F x", 21),
            ("2016-10-06T00:17:09Z stdout", 21),
            ("2016-10-06T00:17:09Z stdout X x", 28),
        ] {
            assert_eq!(parsed(line).unwrap_err().at, at, "{line}");
        }
    }
}
