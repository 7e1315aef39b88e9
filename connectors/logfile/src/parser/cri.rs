//! `parser = "cri"`: lines of containers, as containerd and CRI-O write them below
//! `/var/log/containers` (Kubernetes' `KEP-1602`, logging format of the container runtime
//! interface): `2026-03-01T00:00:00.123456789Z stdout F message`.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema as ArrowSchema, TimeUnit};
use jiff::Timestamp;
use trunkline_connector::Schema;
use trunkline_connector::json::write_string;

use super::{Event, Expected};

/// The columns.
pub(super) fn schema() -> Option<Arc<Schema>> {
    let fields = vec![
        Field::new("timestamp", DataType::Timestamp(TimeUnit::Nanosecond, Some("+00:00".into())), true),
        Field::new("stream", DataType::Utf8, true),
        Field::new("partial", DataType::Boolean, true),
        Field::new("message", DataType::Utf8, true),
    ];
    Schema::new(Arc::new(ArrowSchema::new(fields))).ok().map(Arc::new)
}

pub(super) fn parse(line: &str, out: &mut Vec<u8>) -> Result<Event, Expected> {
    if line.trim().is_empty() {
        return Ok(Event::Blank);
    }
    let expected = |at: usize, what: &str| Expected { at, what: what.to_owned() };
    let (time, rest) = line.split_once(' ').ok_or_else(|| expected(0, "a time such as 2026-03-01T00:00:00.123Z"))?;
    let timestamp: Timestamp = time.parse().map_err(|_| expected(0, "a time such as 2026-03-01T00:00:00.123Z"))?;
    let stream_at = time.len() + 1;
    let (stream, rest) = rest.split_once(' ').ok_or_else(|| expected(stream_at, "`stdout` or `stderr`"))?;
    if !matches!(stream, "stdout" | "stderr") {
        return Err(expected(stream_at, "`stdout` or `stderr`"));
    }
    let tags_at = stream_at + stream.len() + 1;
    // An empty message may follow the tag without a space.
    let (tags, message) = rest.split_once(' ').unwrap_or((rest, ""));
    let is_partial = match tags.split(':').next() {
        Some("P") => true,
        Some("F") => false,
        _ => return Err(expected(tags_at, "`F` (a full line) or `P` (a part of one)")),
    };
    out.extend_from_slice(b"{\"timestamp\":\"");
    out.extend_from_slice(timestamp.to_string().as_bytes());
    out.extend_from_slice(b"\",\"stream\":\"");
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(if is_partial { b"\",\"partial\":true" } else { b"\",\"partial\":false" });
    out.extend_from_slice(b",\"message\":");
    write_string(out, message);
    out.push(b'}');
    Ok(Event::Record(Some(timestamp.as_millisecond())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Option<i64>, String), Expected> {
        let mut out = Vec::new();
        match parse(line, &mut out)? {
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
