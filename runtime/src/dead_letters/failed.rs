//! [`Failed`]: the records in the topics of a sink or separate transform that have dead letters. A
//! replay can read these alone.

use std::collections::{BTreeMap, BTreeSet};

use trunkline_connector::{Error, Result, TopicPartition};

use super::{DeadLetter, OffsetRanges, read, redriven_ranges};
use crate::kafka::Cluster;
use crate::plan::{Input, Pipeline, Route};

/// The first offset of each partition, and the one after the last.
type Ranges = BTreeMap<TopicPartition, (i64, i64)>;

/// The offsets of records with a dead letter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Failed(BTreeMap<TopicPartition, OffsetRanges>);

impl Failed {
    /// Reads the dead letters of a stage, in one or several versions, each with its name and its
    /// inputs, and of the transforms that are fused into it. Those of replays do not
    /// count. Neither do those that were redriven: their records have a second place in the topic.
    pub fn find(
        cluster: &Cluster,
        cluster_name: &str,
        pipeline: &Pipeline,
        stages: &[(&str, &[Input])],
    ) -> Result<Self> {
        let components = components(stages);
        let (name, topic) = (&pipeline.name, &pipeline.dead_letters);
        let redriven = redriven_ranges(cluster, cluster_name, name, topic)?;
        let mut failed = Self::default();
        read(cluster, topic, name, |letter, _| {
            let is_redriven = redriven.get(&letter.partition).is_some_and(|ranges| ranges.contains(letter.offset));
            if !is_redriven {
                failed.add(&components, &letter);
            }
            Ok(())
        })?;
        Ok(failed)
    }

    fn add(&mut self, components: &BTreeSet<&str>, letter: &DeadLetter) {
        if let Some(origin) = &letter.origin
            && letter.replay.is_none()
            && components.contains(letter.component.as_str())
        {
            let partition = TopicPartition::new(origin.topic.as_str(), origin.partition);
            self.0.entry(partition).or_default().insert(origin.offset, origin.offset + 1);
        }
    }

    #[cfg(test)]
    pub(crate) fn of(records: impl IntoIterator<Item = (TopicPartition, i64)>) -> Self {
        let mut failed = Self::default();
        for (partition, offset) in records {
            failed.0.entry(partition).or_default().insert(offset, offset + 1);
        }
        failed
    }

    /// Whether a record has a dead letter.
    pub fn contains(&self, partition: &TopicPartition, offset: i64) -> bool {
        self.0.get(partition).is_some_and(|offsets| offsets.contains(offset))
    }

    /// The number of these records in ranges.
    pub fn count(&self, ranges: &Ranges) -> u64 {
        ranges.iter().map(|(partition, ends)| self.within(partition, *ends).count()).sum()
    }

    fn within(&self, partition: &TopicPartition, (from, to): (i64, i64)) -> OffsetRanges {
        self.0.get(partition).map(|known| known.within(from, to)).unwrap_or_default()
    }

    /// The ranges from the first to the last of these records.
    pub fn narrow(&self, ranges: &Ranges) -> Result<Ranges> {
        let ends = |(partition, ends): (&TopicPartition, &(i64, i64))| {
            Some((partition.clone(), self.within(partition, *ends).ends()?))
        };
        let narrowed: Ranges = ranges.iter().filter_map(ends).collect();
        if narrowed.is_empty() {
            let message = "no record of the range has a dead letter of this stage that was not redriven: `trunkline dlq list` \
                           counts the dead letters";
            return Err(Error::data("replay.empty", message));
        }
        Ok(narrowed)
    }
}

/// The stages, and the transforms that are fused into them.
fn components<'p>(stages: &[(&'p str, &'p [Input])]) -> BTreeSet<&'p str> {
    fn collect<'p>(route: &'p Route, found: &mut BTreeSet<&'p str>) {
        for branch in &route.branches {
            found.insert(&branch.step.component);
            branch.outputs.iter().for_each(|(_, next)| collect(next, found));
        }
    }
    let mut found = BTreeSet::new();
    for (name, inputs) in stages {
        found.insert(*name);
        inputs.iter().for_each(|input| collect(&input.route, &mut found));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dead_letters::Origin;

    fn letter(component: &str, offset: i64, replay: Option<&str>) -> DeadLetter {
        DeadLetter {
            partition: 0,
            offset: 0,
            timestamp: None,
            pipeline: "p".to_owned(),
            component: component.to_owned(),
            stage: String::new(),
            code: String::new(),
            message: String::new(),
            origin: Some(Origin { topic: "t".to_owned(), partition: 2, offset }),
            is_truncated: false,
            attempts: 0,
            replay: replay.map(str::to_owned),
        }
    }

    fn range(from: i64, to: i64) -> Ranges {
        Ranges::from([(TopicPartition::new("t", 2), (from, to))])
    }

    #[test]
    fn dead_letters_of_other_components_and_of_replays_do_not_count() {
        let mut failed = Failed::default();
        let components = BTreeSet::from(["lake", "mask"]);
        for letter in [letter("lake", 5, None), letter("mask", 9, None), letter("other", 6, None)] {
            failed.add(&components, &letter);
        }
        failed.add(&components, &letter("lake", 7, Some("a run")));
        failed.add(&components, &DeadLetter { origin: None, ..letter("lake", 8, None) });
        let partition = TopicPartition::new("t", 2);
        assert_eq!((0..20).filter(|offset| failed.contains(&partition, *offset)).collect::<Vec<_>>(), [5, 9]);
        assert!(!failed.contains(&TopicPartition::new("t", 0), 5));
    }

    #[test]
    fn a_range_begins_and_ends_with_a_record_that_failed() {
        let mut failed = Failed::default();
        for offset in [3, 5, 6, 12] {
            failed.add(&BTreeSet::from(["lake"]), &letter("lake", offset, None));
        }
        for (whole, narrowed, count) in [(range(4, 12), range(5, 7), 2), (range(0, 20), range(3, 13), 4)] {
            assert_eq!((failed.narrow(&whole).unwrap(), failed.count(&whole)), (narrowed, count));
        }
        assert_eq!(failed.narrow(&range(7, 12)).unwrap_err().code, "replay.empty");
    }
}
