//! Pauses of a [`GroupConsumer`]: while its destination fails, at the end of a replay, and while it
//! is idle. The member stays in its group.

use std::time::{Duration, Instant};

use rdkafka::consumer::Consumer;
use rdkafka::topic_partition_list::TopicPartitionList;
use trunkline_connector::{Result, TopicPartition};

use super::consumer::GroupConsumer;
use super::idle_pause::IdleStep;

/// Time for a request that wakes a connection: nothing is read meanwhile.
const WAKE_LIMIT: Duration = Duration::from_millis(500);

impl GroupConsumer {
    /// Stops fetching from all assigned partitions. The member stays in its group as long as it
    /// polls.
    pub fn pause(&self) -> Result<()> {
        // Its end would resume the partitions.
        self.idle.borrow_mut().end();
        let assigned = self.consumer.assignment().map_err(|error| self.failed("pausing", &error))?;
        self.consumer.pause(&assigned).map_err(|error| self.failed("pausing", &error))
    }

    /// Stops fetching from some of the assigned partitions.
    pub fn pause_partitions(&self, partitions: &[TopicPartition]) -> Result<()> {
        let mut paused = TopicPartitionList::with_capacity(partitions.len());
        for partition in partitions {
            paused.add_partition(&partition.topic, partition.partition);
        }
        self.consumer.pause(&paused).map_err(|error| self.failed("pausing", &error))
    }

    /// Fetches again after [`GroupConsumer::pause`].
    pub fn resume(&self) -> Result<()> {
        self.idle.borrow_mut().end();
        self.resume_assigned()
    }

    /// Call this after a poll without records while nothing waits for a commit, with the assigned
    /// partitions and their committed offsets (-1: none). A consumer that has been idle for some
    /// seconds and has read everything then fetches nothing until there are records: see
    /// [`idle_pause`](super::idle_pause).
    pub fn pause_if_idle<'p>(&self, assigned: impl Iterator<Item = (&'p TopicPartition, i64)>) -> Result<()> {
        let step = self.idle.borrow().next_step();
        match step {
            IdleStep::Stay => {}
            IdleStep::Watch => {
                let begun = Instant::now();
                match self.ends_of_read(assigned) {
                    Some(ends) => {
                        let watch = self.cluster.idle_watches().watch(&self.cluster, ends, self.waker());
                        self.idle.borrow_mut().note_watch(watch);
                    }
                    None => self.idle.borrow_mut().note_behind(begun.elapsed()),
                }
            }
            IdleStep::Pause => {
                let partitions: Vec<_> = assigned.map(|(partition, _)| partition.clone()).collect();
                self.pause_partitions(&partitions)?;
                self.idle.borrow_mut().note_pause();
            }
        }
        Ok(())
    }

    /// The offset after the last record of each partition, if there are partitions and all of their
    /// records were read.
    fn ends_of_read<'p>(
        &self,
        assigned: impl Iterator<Item = (&'p TopicPartition, i64)>,
    ) -> Option<Vec<(TopicPartition, i64)>> {
        let assigned: Vec<_> = assigned.collect();
        let positions = self.positions(assigned.iter().map(|(partition, _)| *partition));
        let end_of = |((partition, committed), position): (&(&TopicPartition, i64), Option<i64>)| {
            let (low, high) = self.watermarks(partition)?;
            // The high watermark also covers open transactions, whose records are lag.
            let next = position.unwrap_or(*committed).max(low).max(0);
            (next >= high).then(|| ((*partition).clone(), next))
        };
        let ends: Option<Vec<_>> = assigned.iter().zip(positions).map(end_of).collect();
        ends.filter(|ends| !ends.is_empty())
    }

    /// Lets the client fetch a partition that was resumed. The thread of its connection may sleep
    /// for up to a second, and resuming does not wake it (librdkafka 2.12): a request to the same
    /// broker does. A failure makes the fetch late, nothing else.
    pub(super) fn fetch_now(&self, partition: &TopicPartition) {
        // The answer comes after the client's main thread has resumed the partition.
        let _ = self.consumer.assignment();
        let _ = self.consumer.fetch_watermarks(&partition.topic, partition.partition, WAKE_LIMIT);
    }

    pub(super) fn end_idle_pause(&self) -> Result<()> {
        let is_paused = self.idle.borrow_mut().end();
        if is_paused { self.resume_assigned() } else { Ok(()) }
    }

    pub(super) fn resume_assigned(&self) -> Result<()> {
        let assigned = self.consumer.assignment().map_err(|error| self.failed("resuming", &error))?;
        self.consumer.resume(&assigned).map_err(|error| self.failed("resuming", &error))
    }
}
