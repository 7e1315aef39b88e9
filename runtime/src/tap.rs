//! Records of topics for people: `trunkline tap`, and the record tap of the page. Reads outside of
//! groups and commits nothing.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::value::RawValue;
use trunkline_connector::{RecordRef, Result};

use crate::kafka::topic_reader::{Tail, Tailed};
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::TopicSelector;

/// Time that one call waits for records.
const WAIT: Duration = Duration::from_millis(200);

/// A record as JSON.
#[derive(Serialize)]
pub struct TappedRecord<'r> {
    /// The topic.
    pub topic: &'r str,
    /// The partition.
    pub partition: i32,
    /// The offset.
    pub offset: i64,
    /// Its timestamp.
    pub time: Option<String>,
    /// The key.
    pub key: Part<'r>,
    /// The value.
    pub value: Part<'r>,
    /// The headers.
    pub headers: Vec<(&'r str, Part<'r>)>,
}

/// Bytes of a record: as JSON if they are JSON, as text if they are text.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Part<'r> {
    /// The record has none.
    Absent(()),
    /// A JSON document.
    Json(Box<RawValue>),
    /// Other text.
    Text(&'r str),
    /// Bytes that are not UTF-8.
    Bytes {
        /// In base64.
        base64: String,
    },
}

impl<'r> TappedRecord<'r> {
    /// Decodes a record.
    pub fn of(record: RecordRef<'r>) -> Self {
        let time = record.timestamp().and_then(|time| Timestamp::from_millisecond(time).ok());
        Self {
            topic: record.topic(),
            partition: record.entry().partition,
            offset: record.entry().offset,
            time: time.map(|time| time.to_string()),
            key: Part::of(record.key()),
            value: Part::of(record.value()),
            headers: record.headers().map(|(name, value)| (name, Part::of(value))).collect(),
        }
    }
}

/// For people: without quotes around texts.
impl std::fmt::Display for Part<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Absent(()) => formatter.write_str("(none)"),
            Self::Json(json) => formatter.write_str(json.get()),
            Self::Text(text) => formatter.write_str(text),
            Self::Bytes { base64 } => write!(formatter, "base64: {base64}"),
        }
    }
}

impl<'r> Part<'r> {
    fn of(bytes: Option<&'r [u8]>) -> Self {
        let Some(bytes) = bytes else { return Self::Absent(()) };
        let Ok(text) = std::str::from_utf8(bytes) else { return Self::Bytes { base64: STANDARD.encode(bytes) } };
        // The text stays as it is, so that numbers keep their digits. Line breaks in JSON are
        // between its tokens only.
        let is_document = text.trim_start().starts_with(['{', '[']);
        let one_line = text.replace(['\n', '\r'], " ");
        match RawValue::from_string(one_line) {
            Ok(json) if is_document => Self::Json(json),
            _ => Self::Text(text),
        }
    }
}

/// Partitions of which the newest records are read.
const MAX_PARTITIONS: usize = 64;

/// The newest records of topics, newest first: at most `limit`. Ends after `time`, and does not
/// wait for new records.
pub fn newest<T>(
    cluster: &Cluster,
    topics: &[TopicSelector],
    (limit, time): (usize, Duration),
    mut each: impl FnMut(RecordRef<'_>) -> Option<T>,
) -> Result<Vec<T>> {
    let deadline = Instant::now() + time;
    let offsets = GroupOffsets::new(cluster, "trunkline-reader")?;
    let mut partitions = offsets.partitions(|topic| topics.iter().any(|selector| selector.selects(topic)))?;
    partitions.truncate(MAX_PARTITIONS);
    // Each transaction ends with a marker, which has an offset. Most hold several records.
    let wanted = i64::try_from(2 * limit).unwrap_or(i64::MAX);
    let mut starts = BTreeMap::new();
    for partition in partitions {
        let (low, high) = offsets.watermarks(&partition)?;
        if low < high {
            starts.insert(partition, low.max(high - wanted));
        }
    }
    if starts.is_empty() {
        return Ok(Vec::new());
    }
    let mut open = starts.len();
    let mut tail = Tail::new(cluster, &starts);
    let mut found: Vec<((i64, i64), T)> = Vec::new();
    while open > 0 && Instant::now() < deadline {
        let tailed = tail.next(WAIT, &mut |record| {
            let place = (record.timestamp().unwrap_or(0), record.entry().offset);
            found.extend(each(record).map(|shown| (place, shown)));
            if found.len() > 4 * limit {
                keep_newest(&mut found, limit);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        // A partition that receives records meanwhile may end twice: an older record of another one
        // may then be missing.
        open -= usize::from(tailed == Tailed::End);
    }
    keep_newest(&mut found, limit);
    Ok(found.into_iter().map(|(_, shown)| shown).collect())
}

fn keep_newest<T>(found: &mut Vec<((i64, i64), T)>, limit: usize) {
    found.sort_by_key(|(place, _)| std::cmp::Reverse(*place));
    found.truncate(limit);
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    #[test]
    fn records_are_decoded_as_json_text_or_bytes() {
        let mut batch = Batch::default();
        let topic = batch.topic_index("orders");
        let mut record = batch.record();
        record.read_from(topic, 2, 7).timestamp(1_000).key(b"a b").value(b"{\"n\":\n  1.10000000000000000001}");
        record.header("h", Some(b"\xff")).header("none", None);
        record.finish();
        let line = serde_json::to_string(&TappedRecord::of(batch.get(0))).unwrap();
        let expected = r#"{"topic":"orders","partition":2,"offset":7,"time":"1970-01-01T00:00:01Z","key":"a b","value":{"n":   1.10000000000000000001},"headers":[["h",{"base64":"/w=="}],["none",null]]}"#;
        assert_eq!(line, expected);
    }

    #[test]
    fn texts_that_look_like_numbers_stay_texts() {
        let shown = |bytes: &[u8]| serde_json::to_string(&Part::of(Some(bytes))).unwrap();
        assert_eq!(shown(b"12"), "\"12\"");
        assert_eq!(shown(b"{broken"), "\"{broken\"");
        assert_eq!(shown(b"[1, 2]"), "[1, 2]");
        assert_eq!(serde_json::to_string(&Part::of(None)).unwrap(), "null");
    }

    #[test]
    fn the_newest_records_are_kept() {
        let mut found: Vec<((i64, i64), i64)> = [3, 9, 1, 7].map(|time| ((time, 0), time)).to_vec();
        keep_newest(&mut found, 2);
        assert_eq!(found.into_iter().map(|(_, time)| time).collect::<Vec<_>>(), [9, 7]);
    }
}
