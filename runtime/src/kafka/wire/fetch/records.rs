//! The records of one partition from one answer, as a reader of committed records sees them.
//!
//! The answer begins with the batch that contains the wanted offset, and may end within a batch. It
//! lists the aborted transactions whose records are in it: each begins at an offset, and ends at
//! the producer's next control batch (KIP-98). The rules are those of the Java client
//! (`CompletedFetch`).

use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use trunkline_connector::Batch;

use super::batch::{BatchHeader, Defect, HEADER_LENGTH, Records};
use super::decompressor::Decompressor;

/// An aborted transaction: its producer, and the offset of its first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka::wire) struct Aborted {
    pub(in crate::kafka::wire) producer_id: i64,
    pub(in crate::kafka::wire) first_offset: i64,
}

/// The part of an answer that was not read yet.
pub(in crate::kafka::wire) struct FetchedRecords {
    /// The offset of the next record, or the end.
    next: i64,
    /// The batches that were not opened yet.
    batches: Bytes,
    /// The aborted transactions that begin later, the next one last.
    aborted: Vec<Aborted>,
    /// The producers whose transaction is aborted.
    aborted_producers: Vec<i64>,
    open: Option<OpenBatch>,
    /// Counts the parts of an answer that are in memory.
    _answer: Arc<()>,
}

/// A batch of which some records were read.
struct OpenBatch {
    header: BatchHeader,
    /// Records that were not read yet.
    left: i32,
    source: Source,
}

enum Source {
    /// The rest of the records.
    Plain(Bytes),
    /// The records, where the rest begins, and where it ends.
    Decompressed(Vec<u8>, usize, usize),
}

/// How much to read: a number of records, and of bytes. With large records, the bytes would be few
/// records, and each batch has a fixed cost, for example for each column of its rows. So a large
/// record counts less than its bytes, up to a limit of all bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka) struct Room {
    pub(in crate::kafka) records: usize,
    /// Bytes, of which each record counts `most_counted` at most.
    counted_bytes: usize,
    most_counted: usize,
    bytes: usize,
}

/// Records that there is room for, whatever their size, unless all bytes reach their limit.
const FEW_RECORDS: usize = 64;
/// The limit of all bytes, as a multiple of the bytes that there is room for.
const LARGE_RECORDS_FACTOR: usize = 4;

impl Room {
    /// Room for this number of records, and for these bytes or a few large records.
    pub(in crate::kafka) const fn new(records: usize, bytes: usize) -> Self {
        let most_counted = bytes.div_ceil(FEW_RECORDS);
        Self { records, counted_bytes: bytes, most_counted, bytes: bytes.saturating_mul(LARGE_RECORDS_FACTOR) }
    }

    pub(in crate::kafka) fn is_full(&self) -> bool {
        self.records == 0 || self.counted_bytes == 0 || self.bytes == 0
    }

    fn take(&mut self, bytes: usize) {
        self.records = self.records.saturating_sub(1);
        self.counted_bytes = self.counted_bytes.saturating_sub(bytes.min(self.most_counted));
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

/// A batch that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kafka::wire) struct BadBatch {
    /// The first offset of the batch, or the wanted offset.
    pub(in crate::kafka::wire) offset: i64,
    pub(in crate::kafka::wire) defect: Defect,
}

impl FetchedRecords {
    /// The answer to a fetch from offset `from` on. `answer` is shared by all parts of an answer.
    pub(in crate::kafka::wire) fn new(from: i64, batches: Bytes, mut aborted: Vec<Aborted>, answer: Arc<()>) -> Self {
        aborted.sort_unstable_by_key(|aborted| std::cmp::Reverse(aborted.first_offset));
        Self { next: from, batches, aborted, aborted_producers: Vec::new(), open: None, _answer: answer }
    }

    /// The offset of the next record, or where the next fetch continues.
    pub(in crate::kafka::wire) fn position(&self) -> i64 {
        self.next
    }

    /// Where the next fetch continues. A batch that cannot be read ends the search: reading it is
    /// an error.
    pub(in crate::kafka::wire) fn end(&self) -> i64 {
        let (mut end, mut rest) = (self.next, &self.batches[..]);
        while let Ok(Some(header)) = BatchHeader::parse(rest) {
            end = end.max(header.next_offset());
            rest = &rest[header.size..];
        }
        end
    }

    /// Whether there is a batch, or bytes that are none.
    pub(in crate::kafka::wire) fn has_batch(&self) -> bool {
        !matches!(BatchHeader::parse(&self.batches), Ok(None))
    }

    /// Copies records to `batch` while there is room. Returns whether everything was read.
    pub(in crate::kafka::wire) fn read(
        &mut self,
        decompressor: &mut Decompressor,
        room: &mut Room,
        batch: &mut Batch,
        (topic, partition): (u16, i32),
    ) -> Result<bool, BadBatch> {
        loop {
            let mut open = match self.open.take() {
                Some(open) => open,
                None => match self.open_next(decompressor)? {
                    Some(open) => open,
                    None => return Ok(true),
                },
            };
            let bad = |defect| BadBatch { offset: open.header.base_offset, defect };
            let bytes = match &open.source {
                Source::Plain(bytes) => &bytes[..],
                Source::Decompressed(bytes, from, to) => &bytes[*from..*to],
            };
            let mut records = Records::new(bytes);
            while open.left > 0 && !room.is_full() {
                let (offset, bytes) =
                    records.copy_next(&open.header, self.next, batch, (topic, partition)).map_err(bad)?;
                open.left -= 1;
                if offset >= self.next {
                    self.next = offset + 1;
                    room.take(bytes);
                }
            }
            let read = bytes.len() - records.left();
            match &mut open.source {
                Source::Plain(bytes) => bytes.advance(read),
                Source::Decompressed(_, from, _) => *from += read,
            }
            if open.left > 0 {
                self.open = Some(open);
                return Ok(false);
            }
            self.next = self.next.max(open.header.next_offset());
            if let Source::Decompressed(buffer, ..) = open.source {
                decompressor.recycle(buffer);
            }
        }
    }

    /// Opens the next batch that has records to return. Control batches and aborted ones are
    /// passed.
    fn open_next(&mut self, decompressor: &mut Decompressor) -> Result<Option<OpenBatch>, BadBatch> {
        loop {
            let unreadable = |defect| BadBatch { offset: self.next, defect };
            let Some(header) = BatchHeader::parse(&self.batches).map_err(unreadable)? else { return Ok(None) };
            let bytes = self.batches.split_to(header.size);
            let end = header.next_offset();
            let bad = |defect| BadBatch { offset: header.base_offset, defect };
            // Before the check: damage in a part that was read already does not matter.
            let is_wanted = end > self.next;
            if is_wanted {
                BatchHeader::check(&bytes).map_err(bad)?;
            }
            if header.producer_id >= 0 && self.is_hidden(&header, &bytes, decompressor).map_err(bad)?
                || header.is_control()
                || !is_wanted
            {
                self.next = self.next.max(end);
                continue;
            }
            let source = open(&header, &bytes, decompressor).map_err(bad)?;
            return Ok(Some(OpenBatch { header, left: header.record_count, source }));
        }
    }

    /// Whether the records of a batch belong to an aborted transaction.
    fn is_hidden(
        &mut self,
        header: &BatchHeader,
        bytes: &Bytes,
        decompressor: &mut Decompressor,
    ) -> Result<bool, Defect> {
        while let Some(begun) = self.aborted.pop_if(|aborted| aborted.first_offset < header.next_offset()) {
            if !self.aborted_producers.contains(&begun.producer_id) {
                self.aborted_producers.push(begun.producer_id);
            }
        }
        let Some(at) = self.aborted_producers.iter().position(|id| *id == header.producer_id) else {
            return Ok(false);
        };
        // Compaction keeps an empty batch of a producer.
        if header.is_control() && header.record_count > 0 && is_abort(header, bytes, decompressor)? {
            self.aborted_producers.swap_remove(at);
            return Ok(false);
        }
        Ok(header.is_transactional())
    }
}

/// The records of a batch.
fn open(header: &BatchHeader, bytes: &Bytes, decompressor: &mut Decompressor) -> Result<Source, Defect> {
    let body = bytes.slice(HEADER_LENGTH..);
    if header.codec() == 0 {
        return Ok(Source::Plain(body));
    }
    let (records, size) =
        decompressor.decompress(header.codec(), &body).map_err(|error| Defect::Compression(error.to_string()))?;
    Ok(Source::Decompressed(records, 0, size))
}

fn is_abort(header: &BatchHeader, bytes: &Bytes, decompressor: &mut Decompressor) -> Result<bool, Defect> {
    match open(header, bytes, decompressor)? {
        Source::Plain(records) => Records::new(&records).is_abort(),
        Source::Decompressed(records, _, size) => Records::new(&records[..size]).is_abort(),
    }
}

#[cfg(test)]
mod tests;
