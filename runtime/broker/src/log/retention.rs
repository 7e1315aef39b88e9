//! Retention: removes whole segments at the front of the log, by age, by size, or for
//! DeleteRecords.

use std::io;

use super::PartitionLog;
use crate::topics::config::TopicConfig;

impl PartitionLog {
    /// Applies `retention.ms` and `retention.bytes`, if the cleanup policy has `delete`.
    pub(crate) fn apply_retention(&mut self, config: &TopicConfig, now: i64) -> io::Result<()> {
        if !config.cleanup_delete {
            return Ok(());
        }
        if let Some(retention_ms) = config.retention_ms {
            let is_expired = |max_timestamp: i64| max_timestamp < now.saturating_sub(retention_ms);
            // The active segment can expire as well: roll first.
            if let [segment] = &self.segments[..]
                && segment.size > 0
                && is_expired(segment.max_timestamp)
            {
                self.roll()?;
            }
            let expired =
                self.segments.iter().take_while(|segment| segment.size > 0 && is_expired(segment.max_timestamp));
            let count = expired.count().min(self.segments.len() - 1);
            if count > 0 {
                return self.remove_front(count);
            }
        }
        if let Some(retention_bytes) = config.retention_bytes {
            let mut excess = self.size().saturating_sub(retention_bytes);
            let mut count = 0;
            while count + 1 < self.segments.len() && self.segments[count].size <= excess {
                excess -= self.segments[count].size;
                count += 1;
            }
            if count > 0 {
                return self.remove_front(count);
            }
        }
        Ok(())
    }

    /// Moves the start of the log up to `offset` and removes the segments before it.
    pub(crate) fn delete_before(&mut self, offset: i64) -> io::Result<()> {
        debug_assert!(offset <= self.end_offset);
        if offset <= self.start_offset {
            return Ok(());
        }
        self.start_offset = offset;
        let count = self.segments.windows(2).take_while(|pair| pair[1].base_offset <= offset).count();
        self.remove_front(count)
    }

    fn remove_front(&mut self, count: usize) -> io::Result<()> {
        let kept = self.segments.split_off(count);
        let removed = std::mem::replace(&mut self.segments, kept);
        self.start_offset = self.start_offset.max(self.segments[0].base_offset);
        self.producers.log_starts_at(self.start_offset);
        tracing::debug!(directory = %self.directory.display(), segments = count, start_offset = self.start_offset, "removed segments");
        removed.iter().try_for_each(super::segment::Segment::remove)
    }
}
