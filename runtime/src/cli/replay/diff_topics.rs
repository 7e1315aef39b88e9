//! Compares the topics that a run of a transform wrote with those that the live transform writes.
//!
//! A record is a row: its key, and the members of its value. The live topic has records from before
//! and after the range of the run, too. A transform keeps the times of the records that it reads,
//! so the live records between the first and the last time of the range are compared. Of a
//! compacted topic, the newest record of each key is compared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::path::Path;

use serde_json::Value;
use serde_json::value::RawValue;
use trunkline_connector::{Error, RecordRef, Result, Template};
use xxhash_rust::xxh3::xxh3_128;

use super::diff::{DiffArgs, Found, check_key, in_folder};
use super::target::Refusal;
use super::transform::TransformChoice;
use crate::config::Settings;
use crate::kafka::{Admin, Cluster, topic_reader};
use crate::plan::{Pipeline, TransformPlan};
use crate::replay::diff::{Comparison, Differences, Place, Sample, Side};
use crate::replay::inspection::line;
use crate::replay::listing::time_text;
use crate::replay::run::Run;

/// The column of the record's key.
const KEY: &str = "@key";
/// The column of the live topic: two ports have different rows.
const TOPIC: &str = "@topic";
/// The column of a value that is no JSON object.
const VALUE: &str = "@value";

/// Records at an end of a range whose times are read. Records near each other may be in another
/// order than their times.
const END_RECORDS: i64 = 1_000;

/// Compares all topics of a transform.
pub(super) fn compare(
    args: &DiffArgs,
    settings: &Settings,
    pipelines: &[Pipeline],
    cluster: &Cluster,
    run: &Run,
) -> Result<Found, Refusal> {
    let plan = |into: &str, file| {
        let choice = TransformChoice { pipeline: &run.pipeline, transform: &run.sink, into, file, appends: false };
        choice.plan(pipelines, settings).map(|(_, plan)| plan)
    };
    let live = plan("", None)?;
    let shadow = plan(&run.into, run.request.pipeline_file.as_deref())?;
    let pairs = pairs(&live, &shadow, run)?;
    let compacted = compacted_topics(cluster, &pairs)?;
    let times = times_of(cluster, run)?;
    let mut topics = Topics { cluster, pairs, times, compacted, left_out: HashSet::new() };
    let (differences, samples) = in_folder(settings, |folder| topics.compare(args, folder))?;
    Ok(Found {
        heading: "TOPIC",
        live: format!("topic:{}", live.topic.source()),
        shadow: run.destination.clone(),
        differences,
        samples,
        beyond: 0,
        notes: topics.notes(),
    })
}

/// The live topic and the shadow of each port.
fn pairs(live: &TransformPlan, shadow: &TransformPlan, run: &Run) -> Result<Vec<[String; 2]>> {
    let not_comparable = |problem: String| {
        Error::config("replay.not_comparable", format!("the run {} cannot be compared: {problem}", run.id))
    };
    let name = |topic: &Template| {
        let depends = || not_comparable(format!("the topic `{}` depends on the records", topic.source()));
        topic.constant().map(str::to_owned).ok_or_else(depends)
    };
    let mut templates = vec![(&live.topic, &shadow.topic)];
    for (port, topic) in &live.port_topics {
        templates.extend(shadow.port_topics.iter().find(|(other, _)| other == port).map(|(_, other)| (topic, other)));
    }
    let mut pairs = Vec::new();
    for (live, shadow) in templates {
        let pair = [name(live)?, name(shadow)?];
        if pair[0] == pair[1] {
            return Err(not_comparable(format!(
                "it wrote to the live topic `{}`, so that there is no shadow",
                pair[0]
            )));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// The numbers of the pairs whose live topics are compacted.
fn compacted_topics(cluster: &Cluster, pairs: &[[String; 2]]) -> Result<HashSet<usize>> {
    let names: Vec<&str> = pairs.iter().map(|[live, _]| live.as_str()).collect();
    let facts = Admin::new(cluster)?.topics(&names)?;
    let is_compacted = |name: &str| {
        let found = facts.iter().find(|topic| topic.name == name);
        found.and_then(|topic| topic.config.get("cleanup.policy")).is_some_and(|policy| policy.contains("compact"))
    };
    Ok((0..pairs.len()).filter(|number| is_compacted(&pairs[*number][0])).collect())
}

/// The first and the last time of the records in the range of a run. `None`: none of its records
/// are left, or they have no times.
fn times_of(cluster: &Cluster, run: &Run) -> Result<Option<(i64, i64)>> {
    let mut times: Option<(i64, i64)> = None;
    for range in &run.ranges {
        let mut add = |record: RecordRef<'_>| {
            if let Some(time) = record.timestamp() {
                times = Some(times.map_or((time, time), |(first, last)| (first.min(time), last.max(time))));
            }
        };
        let mut left = END_RECORDS;
        let (topic, partition) = (range.topic.as_str(), range.partition);
        topic_reader::scan_range_until(cluster, topic, partition, (range.from, range.to), &mut |record| {
            add(record);
            left -= 1;
            Ok(if left > 0 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        let last = range.from.max(range.to - END_RECORDS);
        topic_reader::scan_range(cluster, topic, partition, (last, range.to), &mut |record| {
            add(record);
            Ok(())
        })?;
    }
    Ok(times)
}

/// The newest record of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Newest {
    place: Place,
    time: Option<i64>,
    is_deleted: bool,
}

/// The topics of a comparison.
struct Topics<'a> {
    cluster: &'a Cluster,
    pairs: Vec<[String; 2]>,
    times: Option<(i64, i64)>,
    compacted: HashSet<usize>,
    /// Keys of compacted topics that have records after the range.
    left_out: HashSet<(usize, u128)>,
}

impl Topics<'_> {
    fn compare(&mut self, args: &DiffArgs, folder: &Path) -> Result<(Differences, Vec<(Value, Value)>)> {
        let mut key = args.key.clone();
        if key.is_empty() && self.compacted.len() == self.pairs.len() {
            key.push(KEY.to_owned());
        }
        if !key.is_empty() {
            key.push(TOPIC.to_owned());
        }
        let mut comparison = Comparison::new(key, args.ignore.clone(), args.samples, folder.to_owned());
        for number in 0..self.pairs.len() {
            for side in [Side::Live, Side::Shadow] {
                let newest = self.compacted.contains(&number).then(|| self.newest(side, number)).transpose()?;
                let live = self.pairs[number][0].clone();
                self.scan(side, number, &mut |place, record| {
                    if newest
                        .as_ref()
                        .is_none_or(|newest| newest.get(&key_hash(record)).is_some_and(|it| it.place == place))
                    {
                        with_row(&live, record, |row| comparison.add(side, &live, place, row))?;
                    }
                    Ok(())
                })?;
            }
        }
        let differences = comparison.finish()?;
        check_key(args, &differences)?;
        let samples = self.samples(&differences)?;
        Ok((differences, samples))
    }

    /// Passes the records of a side that may be compared, each with its place.
    fn scan(&self, side: Side, number: usize, each: &mut dyn FnMut(Place, RecordRef<'_>) -> Result<()>) -> Result<()> {
        let topic = &self.pairs[number][usize::from(side == Side::Shadow)];
        let times = self.times.filter(|_| side == Side::Live && !self.compacted.contains(&number));
        for (partition, end) in (0..).zip(topic_reader::ends(self.cluster, topic)?) {
            let mut place = Place { file: file_of(number, partition), row: 0 };
            topic_reader::scan_range(self.cluster, topic, partition, (0, end), &mut |record| {
                let is_inside =
                    times.zip(record.timestamp()).is_none_or(|((first, last), time)| (first..=last).contains(&time));
                if is_inside {
                    each(place, record)?;
                    place.row += 1;
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    /// The newest record of each key of a compacted topic, without keys that are deleted and keys
    /// with records after the range.
    fn newest(&mut self, side: Side, number: usize) -> Result<HashMap<u128, Newest>> {
        let mut newest = HashMap::new();
        self.scan(side, number, &mut |place, record| {
            let found = Newest { place, time: record.timestamp(), is_deleted: record.value().is_none() };
            newest.insert(key_hash(record), found);
            Ok(())
        })?;
        if let (Side::Live, Some((_, last))) = (side, self.times) {
            let later = newest.iter().filter(|(_, newest)| newest.time.is_some_and(|time| time > last));
            self.left_out.extend(later.map(|(key, _)| (number, *key)));
        }
        newest.retain(|key, newest| !newest.is_deleted && !self.left_out.contains(&(number, *key)));
        Ok(newest)
    }

    /// The records of the samples, as JSON.
    fn samples(&self, differences: &Differences) -> Result<Vec<(Value, Value)>> {
        let mut found: HashMap<(Side, Place), Value> = HashMap::new();
        for side in [Side::Live, Side::Shadow] {
            let at = |sample: &Sample| if side == Side::Live { sample.0 } else { sample.1 };
            let places: HashSet<Place> = differences.samples.iter().filter_map(at).collect();
            let numbers: HashSet<usize> = places.iter().map(|place| number_of(*place)).collect();
            for number in numbers {
                self.scan(side, number, &mut |place, record| {
                    if places.contains(&place) {
                        found.insert((side, place), serde_json::from_str(&line(record, None)).unwrap_or_default());
                    }
                    Ok(())
                })?;
            }
        }
        let row =
            |side, place: Option<Place>| place.and_then(|place| found.get(&(side, place))).cloned().unwrap_or_default();
        let pair = |(live, shadow): &Sample| (row(Side::Live, *live), row(Side::Shadow, *shadow));
        Ok(differences.samples.iter().map(pair).collect())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        match self.times {
            Some((first, last)) if self.compacted.len() < self.pairs.len() => notes.push(format!(
                "live records with times from {} to {} are compared, which are those of the range: records of the same times from before or \
                 after it count as missing in the shadow",
                time_text(first),
                time_text(last)
            )),
            Some(_) => {}
            None => notes.push(
                "the records of the range have no times any more, so that the whole live topics are compared".to_owned(),
            ),
        }
        if !self.compacted.is_empty() {
            notes.push("the newest record of each key of a compacted topic is compared".to_owned());
        }
        if !self.left_out.is_empty() {
            notes.push(format!(
                "{} keys are left out, because their newest live records are later than the range",
                self.left_out.len()
            ));
        }
        notes
    }
}

/// A partition of a pair, as a number. Kafka has far fewer than 2^20 partitions for each topic.
fn file_of(number: usize, partition: i32) -> u32 {
    (number as u32) << 20 | partition as u32 & 0xf_ffff
}

fn number_of(place: Place) -> usize {
    (place.file >> 20) as usize
}

fn key_hash(record: RecordRef<'_>) -> u128 {
    xxh3_128(record.key().unwrap_or_default())
}

/// Passes the columns of a record, in the order of their names.
fn with_row(topic: &str, record: RecordRef<'_>, add: impl FnOnce(&[(&str, &str)]) -> Result<()>) -> Result<()> {
    let key = record.key().map(String::from_utf8_lossy);
    let value = record.value().unwrap_or_default();
    let members: Option<BTreeMap<String, &RawValue>> =
        serde_json::from_slice(value).ok().filter(|members: &BTreeMap<_, _>| !members.is_empty());
    let text = String::from_utf8_lossy(if record.value().is_some() { value } else { b"null" });
    let mut row: Vec<(&str, &str)> = match &members {
        Some(members) => members.iter().map(|(name, value)| (name.as_str(), value.get())).collect(),
        None => vec![(VALUE, text.as_ref())],
    };
    row.extend(key.as_ref().map(|key| (KEY, key.as_ref())));
    row.push((TOPIC, topic));
    row.sort_unstable();
    add(&row)
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    fn row_of(key: Option<&str>, value: Option<&str>) -> Vec<(String, String)> {
        let mut batch = Batch::default();
        let topic = batch.topic_index("shadow");
        let mut record = batch.record();
        record.read_from(topic, 0, 5);
        if let Some(key) = key {
            record.key(key.as_bytes());
        }
        if let Some(value) = value {
            record.value(value.as_bytes());
        }
        record.finish();
        let mut found = Vec::new();
        with_row("live", batch.get(0), |row| {
            found = row.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Ok(())
        })
        .unwrap();
        found
    }

    #[test]
    fn a_row_has_the_key_and_the_members_of_the_value() {
        let row = |columns: &[(&str, &str)]| -> Vec<(String, String)> {
            columns.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let members = row_of(Some("7"), Some(r#"{"price":1.10,"id":"7","Z":null}"#));
        assert_eq!(
            members,
            row(&[("@key", "7"), ("@topic", "live"), ("Z", "null"), ("id", "\"7\""), ("price", "1.10")])
        );
        for (value, text) in [(Some("plain"), "plain"), (None, "null"), (Some("{}"), "{}"), (Some("[1]"), "[1]")] {
            assert_eq!(row_of(None, value), row(&[("@topic", "live"), ("@value", text)]), "{value:?}");
        }
    }

    #[test]
    fn a_place_names_its_topic() {
        for (number, partition) in [(0, 0), (3, 999), (4_000, 1)] {
            assert_eq!(number_of(Place { file: file_of(number, partition), row: 9 }), number);
        }
    }
}
