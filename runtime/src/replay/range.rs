//! The range of a replay, as the user writes it and as offsets.

use std::collections::{BTreeMap, BTreeSet};

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};
use trunkline_connector::{Error, Result, TopicPartition};

use crate::kafka::{Admin, Cluster, GroupOffsets, TopicFacts, Watermarks};
use crate::plan::Input;
use crate::replay::listing::time_text;

/// One end of a range, or a position in topics.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bound {
    /// The first record that the topic still has.
    Earliest,
    /// The end of the topic at the start of the command.
    Latest,
    /// Offsets by partition, with the topic if the stage reads several.
    Offsets(Vec<(Option<String>, i32, i64)>),
    /// The first record with this time, in milliseconds since the Unix epoch, or a later one.
    Time(i64),
}

const FORMS: &str = "`earliest`, `latest`, offsets by partition (`0:1200,1:900`, or `TOPIC/0:1200` if the component reads several \
                     topics), a time (`2026-11-01T00:00Z`, `2026-11-01`), or a time ago (`-7d`, `-90m`)";

impl Bound {
    /// Reads what the user wrote.
    pub fn parse(text: &str, now: Timestamp) -> Result<Self> {
        let text = text.trim();
        match text {
            "earliest" => return Ok(Self::Earliest),
            "latest" => return Ok(Self::Latest),
            _ => {}
        }
        let wrong = || Error::config("replay.bad_range", format!("`{text}` is no position: write {FORMS}"));
        if let Some(ago) = text.strip_prefix('-') {
            return ago_of(ago).and_then(|ago| now.checked_sub(ago).ok()).map(Self::time).ok_or_else(wrong);
        }
        let offsets = text.strip_prefix("offset").map_or(text, str::trim_start);
        if let Some(offsets) = offsets.split(',').map(|part| offset_of(part.trim())).collect::<Option<Vec<_>>>() {
            return Ok(Self::Offsets(offsets));
        }
        // The parser of timestamps requires seconds.
        let with_seconds = text.strip_suffix('Z').map(|time| format!("{time}:00Z")).unwrap_or_default();
        let time = text.parse::<Timestamp>().or_else(|_| with_seconds.parse());
        let date = || text.parse::<Date>().and_then(|date| date.to_zoned(TimeZone::UTC)).map(|day| day.timestamp());
        time.or_else(|_| date()).map(Self::time).map_err(|_| wrong())
    }

    fn time(time: Timestamp) -> Self {
        Self::Time(time.as_millisecond())
    }

    /// The offset of a partition; `None` if this names offsets, and not one of this partition.
    fn named(&self, partition: &TopicPartition) -> Option<i64> {
        let Self::Offsets(offsets) = self else { return None };
        let is_meant = |topic: &Option<String>, number: i32| {
            number == partition.partition && topic.as_ref().is_none_or(|topic| *topic == *partition.topic)
        };
        offsets.iter().find(|(topic, number, _)| is_meant(topic, *number)).map(|(.., offset)| *offset)
    }

    /// Fails if this names a partition that does not exist, or if it is ambiguous.
    pub fn check(&self, partitions: &[TopicPartition]) -> Result<()> {
        let Self::Offsets(offsets) = self else { return Ok(()) };
        for (topic, number, _) in offsets {
            let is_meant = |partition: &&TopicPartition| {
                partition.partition == *number && topic.as_ref().is_none_or(|topic| *topic == *partition.topic)
            };
            let found: Vec<String> = partitions.iter().filter(is_meant).map(ToString::to_string).collect();
            let problem = match found.as_slice() {
                [_] => continue,
                [] => "no topic of the component has it".to_owned(),
                several => format!("it is in several topics ({}): write TOPIC/{number}:OFFSET", several.join(", ")),
            };
            let topic = topic.as_ref().map(|topic| format!("{topic}/")).unwrap_or_default();
            let message = format!("the partition `{topic}{number}` cannot be chosen: {problem}");
            return Err(Error::config("replay.unknown_partition", message));
        }
        Ok(())
    }
}

/// `7d`, `90m`: a number and a unit.
fn ago_of(text: &str) -> Option<SignedDuration> {
    let at = text.find(|character: char| !character.is_ascii_digit())?;
    let (number, unit) = text.split_at(at);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        "d" => 86_400,
        "w" => 604_800,
        _ => return None,
    };
    Some(SignedDuration::from_secs(number.parse::<i64>().ok()?.checked_mul(seconds)?))
}

/// `0:1200` or `TOPIC/0:1200`.
fn offset_of(text: &str) -> Option<(Option<String>, i32, i64)> {
    let (partition, offset) = text.rsplit_once(':')?;
    let (topic, number) = match partition.rsplit_once('/') {
        Some((topic, number)) => (Some(topic.to_owned()), number),
        None => (None, partition),
    };
    let offset = offset.parse().ok().filter(|offset| *offset >= 0)?;
    Some((topic, number.parse().ok().filter(|number| *number >= 0)?, offset))
}

/// The topic partitions that a stage reads.
pub fn partitions_of(offsets: &GroupOffsets, inputs: &[Input]) -> Result<Vec<TopicPartition>> {
    let found = offsets.partitions(|topic| inputs.iter().any(|input| input.topics.selects(topic)))?;
    if found.is_empty() {
        let message = "none of the component's topics exists yet: start the pipeline first";
        return Err(Error::config("replay.no_topic", message));
    }
    Ok(found)
}

/// The offsets of a range: the first one of each partition, and the one after the last.
pub fn resolve(
    offsets: &GroupOffsets,
    partitions: &[TopicPartition],
    from: &Bound,
    to: &Bound,
    only: Option<&[i32]>,
) -> Result<BTreeMap<TopicPartition, (i64, i64)>> {
    from.check(partitions)?;
    to.check(partitions)?;
    let is_chosen = |partition: &&TopicPartition| only.is_none_or(|only| only.contains(&partition.partition));
    let chosen: Vec<TopicPartition> = partitions.iter().filter(is_chosen).cloned().collect();
    if chosen.is_empty() {
        let message = "the component's topics have none of the partitions in --partitions".to_owned();
        return Err(Error::config("replay.unknown_partition", message));
    }
    let watermarks = offsets.all_watermarks(&chosen)?;
    let firsts = positions(offsets, &chosen, from, &watermarks, true)?;
    let ends = positions(offsets, &chosen, to, &watermarks, false)?;
    let mut ranges = BTreeMap::new();
    let mut empty = Vec::new();
    for ((partition, records), (first, end)) in chosen.into_iter().zip(watermarks).zip(firsts.into_iter().zip(ends)) {
        // Partitions that --from or --to leaves out are not replayed.
        let (Some(first), Some(end)) = (first, end) else { continue };
        if first < end {
            ranges.insert(partition, (first, end));
        } else {
            empty.push((partition, records, (first, end)));
        }
    }
    if ranges.is_empty() { Err(no_records(&empty)) } else { Ok(ranges) }
}

/// Partitions that a message names.
const NAMED_PARTITIONS: usize = 3;

/// The error for a range without records, with what it is in some of the partitions.
fn no_records(partitions: &[(TopicPartition, Watermarks, (i64, i64))]) -> Error {
    let with_records: Vec<_> = partitions.iter().filter(|(_, (low, high), _)| low < high).collect();
    if with_records.is_empty() {
        return Error::data("replay.empty", "the range has no records: the topics of the component are empty");
    }
    let place = |(partition, (low, high), (first, end)): &&(TopicPartition, Watermarks, (i64, i64))| {
        format!("{partition} begins at offset {first} and ends before {end} (there are {low} to {})", high - 1)
    };
    let mut places: Vec<String> = with_records.iter().take(NAMED_PARTITIONS).map(place).collect();
    if with_records.len() > NAMED_PARTITIONS {
        places.push(format!("and {} more partitions", with_records.len() - NAMED_PARTITIONS));
    }
    let message = format!(
        "the range has no records: {}. Choose --from before --to, and before the last record",
        places.join("; ")
    );
    Error::data("replay.empty", message)
}

/// Refuses times in the wrong order: they are wrong for all topics.
pub fn check_order(from: &Bound, to: &Bound) -> Result<()> {
    let (Bound::Time(begin), Bound::Time(end)) = (from, to) else { return Ok(()) };
    if begin < end {
        return Ok(());
    }
    let message = format!(
        "the range ends before it begins: --from is {}, and --to is {}. Exchange them",
        time_text(*begin),
        time_text(*end)
    );
    Err(Error::config("replay.bad_range", message))
}

/// The offset of a bound in each partition; `None` where it names none. `strict`: records that the
/// range would have begun with must not have been deleted.
pub fn positions(
    offsets: &GroupOffsets,
    partitions: &[TopicPartition],
    bound: &Bound,
    watermarks: &[Watermarks],
    strict: bool,
) -> Result<Vec<Option<i64>>> {
    let at_time = match bound {
        Bound::Time(milliseconds) => offsets.at_time(partitions, *milliseconds)?,
        _ => vec![None; partitions.len()],
    };
    let mut found = Vec::with_capacity(partitions.len());
    for ((partition, (low, high)), at_time) in partitions.iter().zip(watermarks).zip(at_time) {
        let position = match bound {
            Bound::Earliest => Some(*low),
            Bound::Latest => Some(*high),
            Bound::Offsets(_) => bound.named(partition),
            Bound::Time(_) => Some(at_time.unwrap_or(*high)),
        };
        if let Some(position) = position {
            check_position(partition, bound, position, (*low, *high), strict)?;
        }
        found.push(position);
    }
    Ok(found)
}

/// Refuses positions whose records are gone, or do not exist yet.
fn check_position(
    partition: &TopicPartition,
    bound: &Bound,
    position: i64,
    (low, high): Watermarks,
    strict: bool,
) -> Result<()> {
    let place = format!("topic `{}` partition {}", partition.topic, partition.partition);
    let choice = format!(
        "the first offset that is left is {low}. Choose `earliest` to begin there, or restore the records from a backup"
    );
    match bound {
        Bound::Offsets(_) if position > high => {
            let message = format!(
                "offset {position} of {place} does not exist yet, or is in a transaction that is not complete: the committed records end \
                 at {high}"
            );
            Err(Error::config("replay.beyond_end", message))
        }
        Bound::Offsets(_) if strict && position < low => {
            let message = format!("the offsets {position} to {} of {place} were deleted: {choice}", low - 1);
            Err(Error::data("replay.deleted", message))
        }
        // The first record that is left may follow deleted ones of that time.
        Bound::Time(_) if strict && position == low && low > 0 && low < high => {
            let message = format!(
                "{place} has no record before that time any more, so that records after it may have been deleted: {choice}"
            );
            Err(Error::data("replay.deleted", message))
        }
        _ => Ok(()),
    }
}

/// What a range that ends with the topics leaves out: records in open transactions.
pub fn open_transactions(offsets: &GroupOffsets, ranges: &BTreeMap<TopicPartition, (i64, i64)>) -> Result<Vec<String>> {
    let partitions: Vec<TopicPartition> = ranges.keys().cloned().collect();
    let ends = offsets.all_watermarks(&partitions)?;
    // A range that ends before the committed records do leaves nothing out.
    let is_at_end = |(partition, from): &(TopicPartition, i64)| ranges.get(partition).is_some_and(|(_, to)| to >= from);
    let open = offsets.open_transactions(&partitions, &ends)?.into_iter().filter(is_at_end);
    let open: Vec<String> = open.map(|(partition, from)| format!("{partition} from {from} on")).collect();
    if open.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "records in transactions that are not complete are not part of the range: {}. To replay them, wait for the end of the transactions, \
         and start another run there",
        open.join(", ")
    )])
}

/// What the range of a compacted topic does not have.
pub fn compacted_topics(cluster: &Cluster, ranges: &BTreeMap<TopicPartition, (i64, i64)>) -> Result<Vec<String>> {
    let names: BTreeSet<&str> = ranges.keys().map(|partition| partition.topic.as_ref()).collect();
    let facts = Admin::new(cluster)?.topics(&names.into_iter().collect::<Vec<_>>())?;
    let is_compacted =
        |topic: &&TopicFacts| topic.config.get("cleanup.policy").is_some_and(|policy| policy.contains("compact"));
    let compacted: Vec<&str> = facts.iter().filter(is_compacted).map(|topic| topic.name.as_str()).collect();
    if compacted.is_empty() {
        return Ok(Vec::new());
    }
    Ok(vec![format!(
        "compacted: {}. Records that a later one with the same key has replaced may be gone, and deleted keys with them: the result is \
         the newest state, not each change",
        compacted.join(", ")
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Bound {
        Bound::parse(text, "2026-11-28T12:00:00Z".parse().unwrap()).unwrap()
    }

    #[test]
    fn every_form_of_a_position_is_read() {
        let time = |text: &str| Bound::Time(text.parse::<Timestamp>().unwrap().as_millisecond());
        assert_eq!((parse("earliest"), parse(" latest ")), (Bound::Earliest, Bound::Latest));
        let offsets = Bound::Offsets(vec![(None, 0, 1200), (None, 1, 900)]);
        assert_eq!((parse("0:1200,1:900"), parse("offset 0:1200, 1:900")), (offsets.clone(), offsets));
        assert_eq!(parse("shop.a/2:5"), Bound::Offsets(vec![(Some("shop.a".to_owned()), 2, 5)]));
        assert_eq!(parse("2026-11-01T00:00Z"), time("2026-11-01T00:00:00Z"));
        assert_eq!(parse("2026-11-01T00:00:00+01:00"), time("2026-10-31T23:00:00Z"));
        assert_eq!(parse("2026-11-01"), time("2026-11-01T00:00:00Z"));
        assert_eq!((parse("-7d"), parse("-90m")), (time("2026-11-21T12:00:00Z"), time("2026-11-28T10:30:00Z")));
        for wrong in ["", "yesterday", "-7", "-d", "0:-1", "-1:5", "0:1,", "2026-13-01"] {
            let error = Bound::parse(wrong, Timestamp::UNIX_EPOCH).unwrap_err();
            assert_eq!(error.code, "replay.bad_range", "{wrong}");
        }
    }

    #[test]
    fn a_range_without_records_names_what_there_is() {
        let partition = |number, records, range| (TopicPartition::new("t", number), records, range);
        let one = no_records(&[partition(0, (0, 0), (0, 0)), partition(1, (3, 301), (200, 100))]).to_string();
        assert!(one.contains(" begins at offset 200 and ends before 100 (there are 3 to 300). Choose"), "{one}");
        let many: Vec<_> = (0..5).map(|number| partition(number, (0, 9), (9, 9))).collect();
        let many = no_records(&many).to_string();
        assert!(many.contains("; and 2 more partitions. Choose --from before --to"), "{many}");
        assert!(no_records(&[partition(0, (7, 7), (7, 7))]).to_string().contains("are empty [replay.empty]"));
    }

    #[test]
    fn times_in_the_wrong_order_are_refused() {
        let (early, late) = (parse("2026-11-01"), parse("2026-11-08"));
        assert!(check_order(&early, &late).is_ok() && check_order(&late, &Bound::Latest).is_ok());
        let error = check_order(&late, &early).unwrap_err();
        let message = "the range ends before it begins: --from is 2026-11-08T00:00:00Z, and --to is 2026-11-01T00:00:00Z. Exchange them";
        assert_eq!((error.code, error.message()), ("replay.bad_range", message));
    }

    #[test]
    fn deleted_and_future_positions_are_refused() {
        let partition = TopicPartition::new("t", 0);
        let check = |bound: &Bound, position, watermarks, strict| {
            check_position(&partition, bound, position, watermarks, strict).map_err(|error| error.code)
        };
        let offset = Bound::Offsets(vec![(None, 0, 5)]);
        assert_eq!(check(&offset, 5, (0, 5), true), Ok(()));
        assert_eq!(check(&offset, 5, (0, 4), true), Err("replay.beyond_end"));
        assert_eq!(check(&offset, 5, (6, 9), true), Err("replay.deleted"));
        assert_eq!(check(&offset, 5, (6, 9), false), Ok(()));
        assert_eq!(check(&Bound::Time(1), 0, (0, 9), true), Ok(()), "nothing was deleted");
        assert_eq!(check(&Bound::Time(1), 3, (3, 9), true), Err("replay.deleted"));
        assert_eq!(check(&Bound::Time(1), 4, (3, 9), true), Ok(()));
    }

    #[test]
    fn ambiguous_and_unknown_partitions_are_refused() {
        let partitions = [TopicPartition::new("a", 0), TopicPartition::new("b", 0), TopicPartition::new("b", 1)];
        let error = |text: &str| parse(text).check(&partitions).map_err(|error| error.to_string());
        assert_eq!((error("1:5"), error("a/0:5")), (Ok(()), Ok(())));
        assert!(error("0:5").unwrap_err().contains("a-0, b-0"), "{:?}", error("0:5"));
        assert!(error("7:5").is_err() && error("c/0:1").is_err());
        assert_eq!(parse("b/0:5").named(&partitions[0]), None);
        assert_eq!(parse("b/0:5").named(&partitions[1]), Some(5));
    }
}
