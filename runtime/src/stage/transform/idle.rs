//! Timers of topic partitions that get no record (the option `timers.idle`).
//!
//! Event time then follows the worker's clock, so the output depends on it. The new time is a row
//! of the changelog, in the transaction of what the timers emit, so that each of them fires once.

use std::time::{Duration, Instant, UNIX_EPOCH};

use trunkline_connector::{Batch, Result, TopicPartition};
use trunkline_transform_host::next_timer;

use super::{Output, TransformTask};

/// Time between two looks for idle partitions.
pub(super) const CHECK_INTERVAL: Duration = Duration::from_millis(500);

impl TransformTask<'_> {
    /// Fires the timers of partitions that have had no record for the time of `timers.idle`: their
    /// event time follows the worker's clock at that distance. A replay has no such partitions,
    /// because its records are of the past.
    pub(super) fn fire_idle_timers(&mut self) -> Result<()> {
        let Some(idle) = self.stage.plan.state.and_then(|plan| plan.idle) else { return Ok(()) };
        if self.stage.bounds.is_some() || self.idle_check.elapsed() < CHECK_INTERVAL {
            return Ok(());
        }
        self.idle_check = Instant::now();
        let now = i64::try_from(UNIX_EPOCH.elapsed().unwrap_or_default().saturating_sub(idle).as_millis());
        let now = now.unwrap_or(i64::MAX);
        let mut due = Vec::new();
        for (partition, state) in &mut self.partitions {
            // The offset is committed again with the output: without one, there is no state either.
            let is_idle = state.last_record.elapsed() >= idle && state.next.or(Some(state.committed)) >= Some(0);
            let next = state.state.as_mut().filter(|_| is_idle).and_then(next_timer);
            if next.is_none_or(|time| time > now) {
                continue;
            }
            // Fetches of the partition are answered, and it has no record to read.
            let position = self.consumer.positions([partition])[0];
            let is_read = |high: i64| position.is_none_or(|position| position >= high);
            if self.consumer.high_watermark(partition).is_some_and(is_read) {
                due.push(partition.clone());
            }
        }
        due.iter().try_for_each(|partition| self.advance_time(partition, now))
    }

    /// Lets the event time of a partition advance, and sends what its timers emit.
    fn advance_time(&mut self, partition: &TopicPartition, to: i64) -> Result<()> {
        if let Err(error) = self.own.ready() {
            self.commit()?;
            return Err(error);
        }
        let Some(state) = self.partitions.get_mut(partition) else { return Ok(()) };
        let Some(store) = &mut state.state else { return Ok(()) };
        state.next = state.next.or(Some(state.committed));
        self.commit_timer.mark_pending();
        let mut out = Batch::default();
        let (counters, dead_letters) = (&mut state.pending, &mut state.dead_letters);
        self.own.advance_time(to, partition, &mut out, counters, dead_letters, store)?;
        let mut output = Output {
            plan: &self.stage.plan,
            producer: &mut self.producer,
            topics: &mut self.topics,
            atomic: self.one_by_one,
            delivered: &mut self.delivered,
        };
        output.send(&mut out, counters, dead_letters)?;
        self.publish_schemas()
    }
}
