//! Reads: the range of a file that answers a fetch, without looking at its bytes.
//!
//! A fetch is answered from one segment: from the batch that contains the offset (the reader skips
//! earlier records) up to the requested number of bytes. If the caller insists, at least one whole
//! batch (KIP-74), so that a reader with a small limit makes progress.

use std::fs::File;
use std::io;
use std::sync::Arc;

use super::PartitionLog;
use super::producer_state::AbortedTransaction;
use super::segment::{LocatedBatch, Segment};

/// What a reader may see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Isolation {
    Uncommitted,
    Committed,
}

impl Isolation {
    /// From the protocol's number.
    pub(crate) fn from_wire(level: i8) -> Self {
        if level == 1 { Self::Committed } else { Self::Uncommitted }
    }
}

/// A range of a segment's file. The open file stays readable when retention removes the segment.
#[derive(Debug, Clone)]
pub(crate) struct Slice {
    pub(crate) file: Arc<File>,
    pub(crate) position: u64,
    pub(crate) length: u64,
    pub(crate) aborted: Vec<AbortedTransaction>,
}

/// A batch found by its timestamp.
#[derive(Debug, Clone)]
pub(crate) struct FoundBatch {
    pub(crate) located: LocatedBatch,
    pub(crate) batch: Vec<u8>,
}

impl PartitionLog {
    /// The first offset that a reader with `isolation` does not see.
    pub(crate) fn visible_end(&self, isolation: Isolation) -> i64 {
        match isolation {
            Isolation::Uncommitted => self.end_offset(),
            Isolation::Committed => self.last_stable_offset(),
        }
    }

    /// The bytes from `offset` on: at most `max_bytes`, but with `whole_batch` at least one batch.
    /// `None`: there are no visible records.
    pub(crate) fn read(
        &self,
        offset: i64,
        max_bytes: u64,
        isolation: Isolation,
        whole_batch: bool,
    ) -> io::Result<Option<Slice>> {
        let visible_end = self.visible_end(isolation);
        if offset >= visible_end {
            return Ok(None);
        }
        let Some((at, first)) = self.locate(offset)? else {
            return Ok(None);
        };
        if first.header.base_offset >= visible_end {
            return Ok(None);
        }
        let segment = &self.segments[at];
        let first_end = first.position + first.header.size() as u64;
        let visible_bytes = self.position_in(segment, at, visible_end)?;
        let wanted_end = (first.position + max_bytes).min(visible_bytes);
        let end = if wanted_end < first_end {
            if !whole_batch {
                return Ok(None);
            }
            first_end
        } else if wanted_end == visible_bytes {
            visible_bytes
        } else {
            // Ends at a batch, because the reader would discard a partial one and fetch it again.
            segment.boundary(first.position, wanted_end).unwrap_or(wanted_end).max(first_end)
        };
        let aborted = match isolation {
            Isolation::Uncommitted => Vec::new(),
            Isolation::Committed => {
                let segment_end =
                    self.segments.get(at + 1).map_or(visible_end, |next| next.base_offset.min(visible_end));
                self.producers.aborted_in(offset, segment_end)
            }
        };
        Ok(Some(Slice { file: segment.file()?, position: first.position, length: end - first.position, aborted }))
    }

    /// The first batch with `offset` or a later one, and its segment. Compaction leaves gaps, so it
    /// may lie in a later segment.
    fn locate(&self, offset: i64) -> io::Result<Option<(usize, LocatedBatch)>> {
        let after = self.segments.partition_point(|segment| segment.base_offset <= offset);
        for at in after.saturating_sub(1)..self.segments.len() {
            if let Some(located) = self.segments[at].locate(offset)? {
                return Ok(Some((at, located)));
            }
        }
        Ok(None)
    }

    /// The number of bytes of a segment before `offset`, which is the start of a batch or the end.
    fn position_in(&self, segment: &Segment, at: usize, offset: i64) -> io::Result<u64> {
        let next_base = self.segments.get(at + 1).map_or(self.end_offset, |next| next.base_offset);
        if offset >= next_base {
            return Ok(segment.size);
        }
        Ok(segment.locate(offset)?.map_or(segment.size, |located| located.position))
    }

    /// The first visible batch with a timestamp of at least `timestamp`.
    pub(crate) fn find_timestamp(&self, timestamp: i64, isolation: Isolation) -> io::Result<Option<FoundBatch>> {
        let visible_end = self.visible_end(isolation);
        for segment in &self.segments {
            let Some(located) = segment.locate_timestamp(timestamp)? else { continue };
            if located.header.base_offset >= visible_end {
                return Ok(None);
            }
            if located.header.last_offset() < self.start_offset {
                continue;
            }
            return Ok(Some(FoundBatch { located, batch: segment.read_batch(&located)? }));
        }
        Ok(None)
    }

    /// The first batch with the largest timestamp of the whole log.
    pub(crate) fn find_max_timestamp(&self) -> io::Result<Option<FoundBatch>> {
        let max_timestamp =
            self.segments.iter().filter(|segment| segment.size > 0).map(|segment| segment.max_timestamp).max();
        match max_timestamp {
            Some(timestamp) => self.find_timestamp(timestamp, Isolation::Uncommitted),
            None => Ok(None),
        }
    }
}
