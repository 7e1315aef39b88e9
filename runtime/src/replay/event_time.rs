//! A range by event time: a field of the value, instead of the time of the record in Kafka.
//!
//! Records need not be in the order of this time, so all records that the topics still have are
//! read. The range of a partition goes from the first to the last record with a time in it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use trunkline_connector::{Error, RecordRef, Result, TopicPartition, json};

use super::range::Bound;
use crate::kafka::{Cluster, topic_reader};

/// The first offset of each partition, and the one after the last.
type Ranges = BTreeMap<TopicPartition, (i64, i64)>;

/// See the module's header.
#[derive(Debug, PartialEq, Eq)]
pub struct EventTimes {
    field: String,
    path: Vec<String>,
    /// The first time, and the one after the last, in milliseconds since the Unix epoch.
    from: i64,
    to: i64,
}

/// What was found in one partition.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    ends: Option<(i64, i64)>,
    /// Records with a time in the range.
    inside: u64,
    /// Records between the ends with another time, or without one.
    between: u64,
    /// Records since the last one with a time in the range.
    after: u64,
    /// Records of the partition without a time.
    without: u64,
}

impl EventTimes {
    /// The range by `field`, a path of names with dots.
    pub fn new(field: &str, from: &Bound, to: &Bound) -> Result<Self> {
        let path: Vec<String> = field.split('.').map(str::to_owned).collect();
        if path.iter().any(String::is_empty) {
            let message =
                format!("--by {field} names no field: write a path such as `created_at` or `after.created_at`");
            return Err(Error::config("replay.bad_range", message));
        }
        let time = |bound: &Bound, otherwise: i64| match bound {
            Bound::Time(milliseconds) => Ok(*milliseconds),
            Bound::Earliest | Bound::Latest => Ok(otherwise),
            Bound::Offsets(_) => {
                let message = "--by selects records by a time: --from and --to must be times, `earliest` or `latest`";
                Err(Error::config("replay.bad_range", message))
            }
        };
        if *from == Bound::Latest || *to == Bound::Earliest {
            let message = "with --by, --from can be a time or `earliest`, and --to a time or `latest`";
            return Err(Error::config("replay.bad_range", message));
        }
        Ok(Self { field: field.to_owned(), path, from: time(from, i64::MIN)?, to: time(to, i64::MAX)? })
    }

    /// The parts of ranges that have records with such a time, and notes about other records.
    pub fn narrow(&self, cluster: &Cluster, ranges: Ranges) -> Result<(Ranges, Vec<String>)> {
        let (mut narrowed, mut total) = (Ranges::new(), Found::default());
        for (partition, ends) in ranges {
            let mut found = Found::default();
            topic_reader::scan_range(cluster, &partition.topic, partition.partition, ends, &mut |record| {
                self.add(&mut found, record);
                Ok(())
            })?;
            total.inside += found.inside;
            total.between += found.between;
            total.without += found.without;
            narrowed.extend(found.ends.map(|ends| (partition, ends)));
        }
        if narrowed.is_empty() {
            let message = format!(
                "no record of the topics has a time in the range in the field `{}`; {} records have no time there",
                self.field, total.without
            );
            return Err(Error::data("replay.empty", message));
        }
        Ok((narrowed, self.notes(&total)))
    }

    fn notes(&self, total: &Found) -> Vec<String> {
        let mut notes = vec![format!("{} records have a time in the range in `{}`", total.inside, self.field)];
        if total.between > 0 {
            notes.push(format!(
                "{} records between them have another time or none, and are replayed, too: a range has no holes",
                total.between
            ));
        }
        if total.without > 0 {
            notes.push(format!("{} records of the topics have no time in `{}`", total.without, self.field));
        }
        notes
    }

    fn add(&self, found: &mut Found, record: RecordRef<'_>) {
        let time = record.value().and_then(|value| json::lookup(value, &self.path).ok().flatten()).and_then(time_of);
        found.without += u64::from(time.is_none());
        if !time.is_some_and(|time| (self.from..self.to).contains(&time)) {
            found.after += u64::from(found.ends.is_some());
            return;
        }
        let offset = record.entry().offset;
        found.inside += 1;
        found.between += std::mem::take(&mut found.after);
        found.ends = Some((found.ends.map_or(offset, |(first, _)| first), offset + 1));
    }
}

/// A JSON value as a time in milliseconds since the Unix epoch: text in ISO 8601 (UTC if it names
/// no zone), or a number of seconds, milliseconds, microseconds or nanoseconds, by its size.
fn time_of(raw: &[u8]) -> Option<i64> {
    if raw.first() != Some(&b'"') {
        let number: f64 = std::str::from_utf8(raw).ok()?.parse().ok()?;
        let per_millisecond = match number.abs() {
            seconds if seconds < 1e11 => 1e-3,
            milliseconds if milliseconds < 1e14 => 1.0,
            microseconds if microseconds < 1e17 => 1e3,
            _ => 1e6,
        };
        return Some((number / per_millisecond).floor() as i64);
    }
    let text = json::text(raw)?;
    let text = text.trim();
    let zoned = || text.parse::<Timestamp>().ok();
    let civil = || text.parse::<DateTime>().ok()?.to_zoned(TimeZone::UTC).ok().map(|time| time.timestamp());
    zoned().or_else(civil).map(|time| time.as_millisecond())
}

#[cfg(test)]
mod tests {
    use trunkline_connector::Batch;

    use super::*;

    fn bound(text: &str) -> Bound {
        Bound::parse(text, Timestamp::UNIX_EPOCH).unwrap()
    }

    #[test]
    fn times_are_text_or_numbers_of_any_unit() {
        let time = |text: &str| time_of(text.as_bytes());
        for same in [
            "\"2026-11-01T00:00:00Z\"",
            "\"2026-11-01T01:00:00+01:00\"",
            "\"2026-11-01 00:00:00\"",
            "\"2026-11-01\"",
            "1793491200",
            "1793491200.0",
            "1793491200000",
            "1793491200000000",
            "1793491200000000000",
        ] {
            assert_eq!(time(same), Some(1_793_491_200_000), "{same}");
        }
        for none in ["null", "true", "\"yesterday\"", "{}", "\"\""] {
            assert_eq!(time(none), None, "{none}");
        }
    }

    #[test]
    fn a_range_goes_from_the_first_to_the_last_record_with_such_a_time() {
        let times = EventTimes::new("a.at", &bound("2026-11-01"), &bound("2026-11-02")).unwrap();
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        let days = ["10-31", "11-01", "11-03", "", "11-01", "11-02"];
        for (day, offset) in days.iter().zip(7..) {
            let value = if day.is_empty() { "{}".to_owned() } else { format!("{{\"a\":{{\"at\":\"2026-{day}\"}}}}") };
            let mut record = batch.record();
            record.read_from(topic, 0, offset).value(value.as_bytes());
            record.finish();
        }
        let mut found = Found::default();
        batch.iter().for_each(|record| times.add(&mut found, record));
        assert_eq!(found, Found { ends: Some((8, 12)), inside: 2, between: 2, after: 1, without: 1 });
        let notes = times.notes(&found);
        assert!(notes.len() == 3 && notes[1].starts_with("2 records between them"), "{notes:?}");
    }

    #[test]
    fn offsets_are_no_event_times() {
        let code = |field: &str, from: &str, to: &str| {
            EventTimes::new(field, &bound(from), &bound(to)).map(drop).map_err(|error| error.code)
        };
        assert_eq!(code("at", "earliest", "latest"), Ok(()));
        assert_eq!(code("at", "0:5", "latest"), Err("replay.bad_range"));
        assert_eq!(code("at", "latest", "latest"), Err("replay.bad_range"));
        assert_eq!(code("a..b", "earliest", "latest"), Err("replay.bad_range"));
    }
}
