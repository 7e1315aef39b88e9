//! `trunkline tap`: records of the topics of a pipeline, as JSON lines. It reads outside of groups
//! and commits nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use trunkline_connector::{Error, RecordRef, Result, TopicPartition};

use super::SettingsArgs;
use super::dlq::{connect, describe};
use super::output::{Exit, print_error, report_error};
use super::record::record_reading;
use super::replay::host;
use super::selection::{Component, component, components, pipeline};
use super::validate::load_to_inspect;
use crate::condition::Condition;
use crate::config::Settings;
use crate::dead_letters::DeadLetter;
use crate::kafka::topic_reader::{Tail, Tailed};
use crate::kafka::{Cluster, GroupOffsets};
use crate::plan::{Pipeline, TopicSelector};
use crate::replay::range::{Bound, positions};
use crate::tap::TappedRecord;

/// Time that one call waits for records.
const WAIT: Duration = Duration::from_millis(200);

/// `trunkline tap`.
#[derive(Args)]
pub(super) struct TapArgs {
    /// PIPELINE or PIPELINE.COMPONENT: the topics that it writes, or that a sink reads
    #[arg(value_name = "PIPELINE[.COMPONENT]")]
    name: String,
    /// Pipeline files, or folders of them; one of them defines the pipeline
    #[arg(default_value = "pipelines", value_name = "PATH")]
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
    /// Only records for which this expression in CEL is true: `value.price > 100 && key != null`
    #[arg(long = "where", value_name = "EXPRESSION")]
    condition: Option<String>,
    /// Only one of N of these records: 1/100
    #[arg(long, value_name = "1/N", value_parser = one_of)]
    sample: Option<u64>,
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
    let outcome = Filter::of(args, &settings).and_then(|mut filter| {
        let cluster = connect(&settings)?;
        let selected = Selected::of(args, &loaded.pipelines)?;
        let (starts, ends) = range(args, &cluster, &selected)?;
        let topics: BTreeSet<&str> = starts.keys().map(|partition| &*partition.topic).collect();
        let arguments = json!({
            "name": args.name, "topics": topics, "from": args.from, "limit": args.limit, "no_follow": args.no_follow,
            "contains": args.contains, "where": args.condition, "sample": args.sample, "dead_letters": args.dead_letters,
        });
        record_reading(&cluster, &settings, "tap", arguments)?;
        let exit = follow(args, &cluster, &selected, (starts, ends), &mut filter)?;
        if let Some(note) = filter.condition.and_then(|condition| condition.note()) {
            print_error(format_args!("{note}"));
        }
        Ok(exit)
    });
    outcome.unwrap_or_else(|error| report_error(&error))
}

/// Reads `1/N`.
fn one_of(text: &str) -> Result<u64, String> {
    let number = text.strip_prefix("1/").and_then(|number| number.parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| "write 1/N, for example 1/100".to_owned())
}

/// Which records are shown.
struct Filter<'a> {
    contains: Option<&'a str>,
    condition: Option<Condition>,
    /// One of this number is shown.
    every: u64,
    /// The records that passed the conditions.
    passed: u64,
}

impl<'a> Filter<'a> {
    fn of(args: &'a TapArgs, settings: &Settings) -> Result<Self> {
        let condition = match &args.condition {
            Some(text) => Some(Condition::compile(&host(settings)?, text)?),
            None => None,
        };
        let contains = args.contains.as_deref().filter(|text| !text.is_empty());
        Ok(Self { contains, condition, every: args.sample.unwrap_or(1), passed: 0 })
    }

    fn passes(&mut self, record: RecordRef<'_>) -> Result<bool> {
        if let Some(text) = self.contains {
            let contains = |part: &[u8]| part.windows(text.len()).any(|window| window == text.as_bytes());
            if ![record.key(), record.value()].into_iter().flatten().any(contains) {
                return Ok(false);
            }
        }
        if let Some(condition) = &mut self.condition
            && !condition.holds(record)?
        {
            return Ok(false);
        }
        self.passed += 1;
        Ok((self.passed - 1).is_multiple_of(self.every))
    }
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

fn follow(
    args: &TapArgs,
    cluster: &Cluster,
    selected: &Selected,
    (starts, ends): (Offsets, Offsets),
    filter: &mut Filter<'_>,
) -> Result<Exit> {
    let mut shown = Shown { args, selected, filter, count: 0 };
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
    let mut tail = Tail::new(cluster, &starts);
    loop {
        let mut is_enough = false;
        tail.next(WAIT, &mut |record| {
            let line = shown.line_of(record)?;
            is_enough = !shown.print(line)?;
            Ok(if is_enough { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if is_enough {
            return Ok(Exit::Ok);
        }
    }
}

/// The records that were printed.
struct Shown<'a, 'f> {
    args: &'a TapArgs,
    selected: &'a Selected,
    filter: &'a mut Filter<'f>,
    count: u64,
}

impl Shown<'_, '_> {
    /// Prints the records of a partition in a range of offsets. `false` if that was enough.
    fn read(&mut self, cluster: &Cluster, partition: &TopicPartition, (start, end): (i64, i64)) -> Result<bool> {
        if start >= end {
            return Ok(true);
        }
        let mut tail = Tail::new(cluster, &BTreeMap::from([(partition.clone(), start)]));
        let (mut is_over, mut is_enough) = (false, false);
        loop {
            let tailed = tail.next(WAIT, &mut |record| {
                let offset = record.entry().offset;
                if offset < end {
                    let line = self.line_of(record)?;
                    is_enough = !self.print(line)?;
                }
                is_over = offset + 1 >= end || is_enough;
                Ok(if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
            })?;
            // Markers of transactions may follow the last record.
            if is_over || tailed == Tailed::End {
                return Ok(!is_enough);
            }
        }
    }

    /// A record that is shown, as JSON.
    fn line_of(&mut self, record: RecordRef<'_>) -> Result<Option<String>> {
        let mut letter = None;
        if self.args.dead_letters {
            let found = DeadLetter::of(record).filter(|letter| letter.pipeline == self.selected.pipeline);
            let chosen = self.selected.component.as_ref();
            let found = found.filter(|letter| chosen.is_none_or(|component| *component == letter.component));
            let Some(found) = found else { return Ok(None) };
            letter = Some(found);
        }
        if !self.filter.passes(record)? {
            return Ok(None);
        }
        Ok(match letter {
            Some(letter) => Some(describe(&letter, record, false).to_string()),
            None => serde_json::to_string(&TappedRecord::of(record)).ok(),
        })
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
    use trunkline_transform_host::{Host, HostOptions};

    use super::*;

    fn offsets_shown(filter: &mut Filter<'_>) -> Vec<i64> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        for number in 0..10 {
            let mut record = batch.record();
            record.read_from(topic, 0, number).value(format!(r#"{{"n":{number}}}"#).as_bytes());
            record.finish();
        }
        batch.iter().filter(|record| filter.passes(*record).unwrap()).map(|record| record.entry().offset).collect()
    }

    #[test]
    fn records_are_filtered_and_then_sampled() {
        let filter = |contains: Option<&'static str>, condition: Option<&str>, every| {
            let host = Host::new(HostOptions::default()).unwrap();
            let condition = condition.map(|text| Condition::compile(&host, text).unwrap());
            Filter { contains, condition, every, passed: 0 }
        };
        assert_eq!(offsets_shown(&mut filter(None, None, 1)).len(), 10);
        assert_eq!(offsets_shown(&mut filter(None, None, 4)), [0, 4, 8]);
        assert_eq!(offsets_shown(&mut filter(Some("7"), None, 1)), [7]);
        let mut condition = filter(None, Some("value.n > 3"), 2);
        assert_eq!(offsets_shown(&mut condition), [4, 6, 8]);
        assert!(condition.condition.unwrap().note().is_none());
        let mut undecided = filter(None, Some("value.missing > 3"), 1);
        assert!(offsets_shown(&mut undecided).is_empty());
        assert!(undecided.condition.unwrap().note().unwrap().starts_with("10 for which --where"));
    }

    #[test]
    fn a_sample_is_one_of_a_number() {
        assert_eq!(one_of("1/100"), Ok(100));
        assert_eq!(one_of("1/1"), Ok(1));
        for wrong in ["", "1", "1/", "1/0", "2/3", "1/x", "0.1"] {
            assert!(one_of(wrong).is_err(), "{wrong}");
        }
    }
}
