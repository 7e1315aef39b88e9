//! [`StopPoints`]: `on_error = "stop"` of a sink. The records before the rejected one are
//! committed, and the position is at the rejected one.
//!
//! A rejection ends everything that is in flight with it. The sink then runs again from its
//! committed offsets, and knows where to stop: it commits all records before that offset in batches
//! of the usual size, and then processes the record alone.

use std::collections::BTreeMap;

use trunkline_connector::{Batch, Error, Result, TopicPartition};

use crate::stage::careful::RECORD_REJECTED;
use crate::stage::stop_signal::StopSignal;

/// How a sink runs.
#[derive(Debug, Default)]
pub(super) struct StopPoints {
    /// The offset of a rejected record, by topic partition.
    offsets: BTreeMap<TopicPartition, i64>,
    /// The offset of a rejected record is unknown: each record is processed separately.
    pub(super) one_by_one: bool,
}

/// A place where a record was rejected.
pub(super) type Rejected = (TopicPartition, i64);

impl StopPoints {
    /// Runs until the record of a stop point is rejected alone. `run` returns the place of the
    /// rejection that stopped it, if it is known.
    ///
    /// Each repetition adds a topic partition or lowers an offset, so they end.
    pub(super) fn run(
        stop: &StopSignal,
        mut run: impl FnMut(&Self) -> (Result<()>, Option<Rejected>),
    ) -> Result<(), Error> {
        let mut points = Self::default();
        loop {
            let (outcome, rejected) = run(&points);
            let is_rejection = outcome.as_ref().is_err_and(|error| error.code == RECORD_REJECTED);
            if !is_rejection || stop.is_set() || points.one_by_one {
                return outcome;
            }
            match rejected {
                Some(rejected) if !points.add(&rejected) => return outcome,
                Some(_) => {}
                None => points.one_by_one = true,
            }
        }
    }

    /// Adds a stop point. Returns whether it is new.
    fn add(&mut self, (partition, offset): &Rejected) -> bool {
        let is_known = self.offsets.get(partition).is_some_and(|known| known <= offset);
        if !is_known {
            self.offsets.insert(partition.clone(), *offset);
        }
        !is_known
    }

    /// Splits a batch at the stop point of its topic partition: the records before it, those at its
    /// offset, and those after it. `None` if the batch ends before it.
    pub(super) fn split(&self, partition: &TopicPartition, batch: &Batch) -> Option<[Batch; 3]> {
        let point = *self.offsets.get(partition)?;
        let (first, last) = (batch.entries().first()?, batch.entries().last()?);
        if point < first.offset || last.offset < point {
            return None;
        }
        let mut parts = [Batch::default(), Batch::default(), Batch::default()];
        for record in batch.iter() {
            let part = match record.entry().offset.cmp(&point) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => 1,
                std::cmp::Ordering::Greater => 2,
            };
            parts[part].push_copy(record);
        }
        Some(parts)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn partition(number: i32) -> TopicPartition {
        TopicPartition { topic: "web".into(), partition: number }
    }

    fn rejected() -> Result<()> {
        Err(Error::data(RECORD_REJECTED, "rejected"))
    }

    #[test]
    fn a_sink_runs_until_a_known_record_is_rejected_alone() {
        let stop = StopSignal::default();
        // Two partitions reject, and a later run finds an earlier record.
        let found = [(0, 9), (1, 7), (0, 4), (1, 7)];
        let runs = RefCell::new(Vec::new());
        let outcome = StopPoints::run(&stop, |points| {
            let (number, offset) = found[runs.borrow().len()];
            runs.borrow_mut().push(points.offsets.values().copied().collect::<Vec<_>>());
            (rejected(), Some((partition(number), offset)))
        });
        assert_eq!(outcome.unwrap_err().code, RECORD_REJECTED);
        assert_eq!(*runs.borrow(), [vec![], vec![9], vec![9, 7], vec![4, 7]]);
    }

    #[test]
    fn a_sink_that_does_not_know_the_record_runs_once_more() {
        let stop = StopSignal::default();
        let runs = RefCell::new(Vec::new());
        let outcome = StopPoints::run(&stop, |points| {
            runs.borrow_mut().push(points.one_by_one);
            (rejected(), None)
        });
        assert!(outcome.is_err());
        assert_eq!(*runs.borrow(), [false, true]);
        let mut count = 0;
        StopPoints::run(&stop, |_| {
            count += 1;
            (Ok(()), None)
        })
        .unwrap();
        assert_eq!(count, 1);
    }

    #[test]
    fn a_batch_is_split_at_the_stop_point() {
        let mut points = StopPoints::default();
        assert!(points.add(&(partition(0), 5)) && !points.add(&(partition(0), 5)));
        let batch = |offsets: std::ops::Range<i64>| {
            let mut batch = Batch::default();
            let topic = batch.topic_index("web");
            for offset in offsets {
                let mut record = batch.record();
                record.read_from(topic, 0, offset).value(b"{}");
                record.finish();
            }
            batch
        };
        let lens = |offsets| points.split(&partition(0), &batch(offsets)).map(|parts| parts.map(|part| part.len()));
        assert_eq!(lens(3..8), Some([2, 1, 2]));
        assert_eq!(lens(5..6), Some([0, 1, 0]));
        assert_eq!((lens(0..5), lens(6..9)), (None, None));
        assert!(points.split(&partition(1), &batch(3..8)).is_none());
    }
}
