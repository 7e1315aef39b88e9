//! `trunkline tap`: records of the topics of a pipeline, as JSON lines. It reads outside of groups
//! and commits nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use serde_json::value::RawValue;
use trunkline_connector::{Error, RecordRef, Result, TopicPartition};

use super::SettingsArgs;
use super::dlq::{connect, describe};
use super::output::{Exit, print_error, report_error};
use super::record::record;
use super::selection::{Component, component, components, pipeline};
use super::validate::load_to_inspect;
use crate::dead_letters::DeadLetter;
use crate::kafka::topic_reader::{Tail, Tailed};
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, TopicSelector};
use crate::replay::range::{Bound, positions};

/// Time that one call waits for records.
const WAIT: Duration = Duration::from_millis(200);

/// `trunkline tap`.
#[derive(Args)]
pub(super) struct TapArgs {
    /// PIPELINE or PIPELINE.COMPONENT: the topics that it writes, or that a sink reads
    #[arg(value_name = "PIPELINE[.COMPONENT]")]
    name: String,
    /// Pipeline files, or folders of them; one of them defines the pipeline
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Start: `latest`, `earliest`, a time ago (-5m), a time (2026-11-01T00:00Z), or offsets by
    /// partition (0:1200,1:900)
    #[arg(long, value_name = "POSITION", default_value = "latest", allow_hyphen_values = true)]
    from: String,
    /// End after N records
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// End at the ends that the topics have now, instead of waiting for new records
    #[arg(long)]
    no_follow: bool,
    /// Only records whose key or value contains this text
    #[arg(long, value_name = "TEXT")]
    contains: Option<String>,
    /// The dead letters instead, with their errors and origins
    #[arg(long)]
    dead_letters: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Runs the verb.
pub(super) fn tap(args: &TapArgs) -> Exit {
    let (settings, loaded) = match load_to_inspect(&args.paths, &args.settings, false) {
        Ok(loaded) => loaded,
        Err(exit) => return exit,
    };
    let outcome = connect(&settings).and_then(|cluster| {
        let selected = Selected::of(args, &loaded.pipelines)?;
        let (starts, ends) = range(args, &cluster, &selected)?;
        let topics: BTreeSet<&str> = starts.keys().map(|partition| &*partition.topic).collect();
        let arguments = json!({
            "name": args.name, "topics": topics, "from": args.from, "limit": args.limit, "no_follow": args.no_follow,
            "contains": args.contains, "dead_letters": args.dead_letters,
        });
        record(&cluster, &settings, "tap", arguments)?;
        follow(args, &cluster, &selected, (starts, ends))
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// What is shown.
struct Selected {
    topics: Vec<TopicSelector>,
    pipeline: String,
    /// Only the dead letters of this component.
    component: Option<String>,
}

impl Selected {
    fn of(args: &TapArgs, pipelines: &[Pipeline]) -> Result<Self> {
        let (found, chosen) = match args.name.contains('.') {
            true => component(pipelines, &args.name).map(|(found, chosen)| (found, vec![chosen]))?,
            false => pipeline(pipelines, &args.name).map(|found| (found, components(found)))?,
        };
        let component = args.name.split_once('.').map(|(_, component)| component.to_owned());
        let topics: BTreeSet<TopicSelector> = match args.dead_letters {
            true => BTreeSet::from([TopicSelector::Exact(found.dead_letters.clone())]),
            false => chosen.into_iter().flat_map(topics_of).collect(),
        };
        Ok(Self { topics: topics.into_iter().collect(), pipeline: found.name.clone(), component })
    }
}

/// The topics that a source or transform writes, or a sink reads.
fn topics_of(component: Component<'_>) -> Vec<TopicSelector> {
    match component {
        Component::Source(plan) => plan.topics().map(TopicSelector::of).collect(),
        Component::Transform(plan) => plan.topics().map(TopicSelector::of).collect(),
        Component::Sink(plan) => plan.inputs.iter().map(|input| input.topics.clone()).collect(),
    }
}

fn follow(args: &TapArgs, cluster: &Cluster, selected: &Selected, (starts, ends): (Offsets, Offsets)) -> Result<Exit> {
    let mut shown = Shown { args, selected, count: 0 };
    if args.no_follow {
        for (partition, start) in starts {
            if !shown.read(cluster, &partition, (start, ends[&partition]))? {
                break;
            }
        }
        return Ok(Exit::Ok);
    }
    let topics: BTreeSet<&str> = starts.keys().map(|partition| &*partition.topic).collect();
    let topics: Vec<&str> = topics.into_iter().collect();
    print_error(format_args!("reading {}; stop with Ctrl-C", topics.join(", ")));
    let tail = Tail::new(cluster, &starts)?;
    loop {
        let mut line = None;
        tail.next(WAIT, |record| line = line_of(args, selected, record))?;
        if !shown.print(line)? {
            return Ok(Exit::Ok);
        }
    }
}

/// The records that were printed.
struct Shown<'a> {
    args: &'a TapArgs,
    selected: &'a Selected,
    count: u64,
}

impl Shown<'_> {
    /// Prints the records of a partition in a range of offsets. `false` if that was enough.
    fn read(&mut self, cluster: &Cluster, partition: &TopicPartition, (start, end): (i64, i64)) -> Result<bool> {
        if start >= end {
            return Ok(true);
        }
        let tail = Tail::new(cluster, &BTreeMap::from([(partition.clone(), start)]))?;
        loop {
            let mut line = None;
            let tailed = tail.next(WAIT, |record| {
                if record.entry().offset < end {
                    line = line_of(self.args, self.selected, record);
                }
            })?;
            if !self.print(line)? {
                return Ok(false);
            }
            match tailed {
                // Markers of transactions may follow the last record.
                Tailed::End => return Ok(true),
                Tailed::Record(offset) if offset + 1 >= end => return Ok(true),
                Tailed::Record(_) | Tailed::Nothing => {}
            }
        }
    }

    /// Prints a record, if there is one. `false` if that was enough.
    fn print(&mut self, line: Option<String>) -> Result<bool> {
        let Some(line) = line else { return Ok(true) };
        self.count += 1;
        Ok(print_line(&line)? && self.args.limit != Some(self.count))
    }
}

type Offsets = BTreeMap<TopicPartition, i64>;

/// The first offset of each partition, and its end now.
fn range(args: &TapArgs, cluster: &Cluster, selected: &Selected) -> Result<(Offsets, Offsets)> {
    let bound = Bound::parse(&args.from, Timestamp::now())?;
    let offsets = GroupOffsets::new(cluster, "trunkline-reader")?;
    let partitions = offsets.partitions(|topic| selected.topics.iter().any(|selector| selector.selects(topic)))?;
    if partitions.is_empty() {
        let message = format!("`{}` has no topic yet that exists: start the pipeline first", args.name);
        return Err(Error::config("replay.no_topic", message));
    }
    bound.check(&partitions)?;
    let watermarks = partitions.iter().map(|partition| offsets.watermarks(partition)).collect::<Result<Vec<_>>>()?;
    let starts = positions(&offsets, &partitions, &bound, &watermarks, false)?;
    let mut range = (BTreeMap::new(), BTreeMap::new());
    for ((partition, start), (low, high)) in partitions.into_iter().zip(starts).zip(watermarks) {
        // Partitions that --from leaves out are not shown.
        if let Some(start) = start {
            range.0.insert(partition.clone(), start.max(low));
            range.1.insert(partition, high);
        }
    }
    Ok(range)
}

/// A record that is shown, as JSON.
fn line_of(args: &TapArgs, selected: &Selected, record: RecordRef<'_>) -> Option<String> {
    if let Some(text) = &args.contains {
        let contains = |part: &[u8]| part.windows(text.len().max(1)).any(|window| window == text.as_bytes());
        let parts = [record.key(), record.value()];
        if !text.is_empty() && !parts.into_iter().flatten().any(contains) {
            return None;
        }
    }
    if args.dead_letters {
        let letter = DeadLetter::of(record).filter(|letter| letter.pipeline == selected.pipeline)?;
        let is_chosen = selected.component.as_ref().is_none_or(|component| *component == letter.component);
        return is_chosen.then(|| describe(&letter, record, false).to_string());
    }
    serde_json::to_string(&Line::of(record)).ok()
}

/// A record as JSON.
#[derive(Serialize)]
struct Line<'r> {
    topic: &'r str,
    partition: i32,
    offset: i64,
    time: Option<String>,
    key: Part<'r>,
    value: Part<'r>,
    headers: Vec<(&'r str, Part<'r>)>,
}

/// Bytes of a record: as JSON if they are JSON, as text if they are text.
#[derive(Serialize)]
#[serde(untagged)]
enum Part<'r> {
    Absent(()),
    Json(Box<RawValue>),
    Text(&'r str),
    Bytes { base64: String },
}

impl<'r> Line<'r> {
    fn of(record: RecordRef<'r>) -> Self {
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

/// Writes a line to stdout. `false` if nothing reads it any more.
fn print_line(line: &str) -> Result<bool> {
    let mut stdout = std::io::stdout().lock();
    match writeln!(stdout, "{line}").and_then(|()| stdout.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Error::external("io.failed", format!("cannot write to stdout: {error}"))),
    }
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
        let line = serde_json::to_string(&Line::of(batch.get(0))).unwrap();
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
}
