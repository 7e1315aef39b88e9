//! [`Batch`] and [`Record`]: views of the batch that the host passes, without copies or
//! allocations. The layout is format 1 of `wit/transform.wit`.

use std::fmt;

const MAGIC: &[u8; 4] = b"TLB1";
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 48;
/// The content of a batch whose entries are timers.
const TIMERS: usize = 1;

/// The records of one call.
#[derive(Clone, Copy)]
pub struct Batch<'a> {
    bytes: &'a [u8],
    table: &'a [[u8; ENTRY_BYTES]],
    topics: &'a [u8],
    has_timers: bool,
}

/// The bytes are not a batch of format 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InvalidBatch;

impl fmt::Display for InvalidBatch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "not a batch of format 1")
    }
}

impl std::error::Error for InvalidBatch {}

impl<'a> Batch<'a> {
    /// Parses the header and locates the table. The code that [`crate::export!`] generates calls
    /// it.
    pub fn new(bytes: &'a [u8]) -> Result<Self, InvalidBatch> {
        let word = |at: usize| u32_at(bytes, at).map(|word| word as usize);
        if bytes.get(..4) != Some(MAGIC) || word(4) != Some(1) {
            return Err(InvalidBatch);
        }
        let (Some(count), Some(table_at), Some(topics_at)) = (word(8), word(12), word(16)) else {
            return Err(InvalidBatch);
        };
        let table =
            bytes.get(table_at..).and_then(|rest| rest.get(..count.checked_mul(ENTRY_BYTES)?)).ok_or(InvalidBatch)?;
        let (table, _) = table.as_chunks();
        let topics = bytes.get(topics_at..).ok_or(InvalidBatch)?;
        if table_at < HEADER_BYTES {
            return Err(InvalidBatch);
        }
        Ok(Self { bytes, table, topics, has_timers: word(24) == Some(TIMERS) })
    }

    /// Whether the entries are timers that are due, and not records.
    pub(crate) fn has_timers(&self) -> bool {
        self.has_timers
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether the batch has no records. The host passes no empty batch.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The records, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Record<'a>> + use<'a> {
        let batch = *self;
        self.table.iter().map(move |entry| Record { batch, entry })
    }

    #[inline]
    fn slice(&self, at: u32, len: i32) -> Option<&'a [u8]> {
        let len = usize::try_from(len).ok()?;
        self.bytes.get(at as usize..)?.get(..len)
    }

    fn topic(&self, index: u16) -> &'a str {
        let mut rest = self.topics;
        for position in 0..=index {
            let Some((name, remaining)) = split_prefixed(rest) else { break };
            if position == index {
                return std::str::from_utf8(name).unwrap_or_default();
            }
            rest = remaining;
        }
        ""
    }
}

/// One record. All parts are borrowed from the batch.
#[derive(Clone, Copy)]
pub struct Record<'a> {
    batch: Batch<'a>,
    entry: &'a [u8; ENTRY_BYTES],
}

impl<'a> Record<'a> {
    /// Milliseconds since 1970.
    #[inline]
    pub fn timestamp(&self) -> Option<i64> {
        Some(self.i64_at(0)).filter(|timestamp| *timestamp >= 0)
    }

    /// The time of an entry that is a timer.
    pub(crate) fn time(&self) -> i64 {
        self.i64_at(0)
    }

    /// Offset in the partition; `None` if the record was not read from a topic.
    pub fn offset(&self) -> Option<i64> {
        Some(self.i64_at(8)).filter(|offset| *offset >= 0)
    }

    /// Partition that the record was read from.
    pub fn partition(&self) -> i32 {
        self.i32_at(16)
    }

    /// Topic that the record was read from; empty if it was not read from a topic.
    pub fn topic(&self) -> &'a str {
        self.batch.topic(u16::from_le_bytes([self.entry[20], self.entry[21]]))
    }

    /// The key; `None` = null.
    #[inline]
    pub fn key(&self) -> Option<&'a [u8]> {
        self.part(24)
    }

    /// The value; `None` = null (a tombstone).
    #[inline]
    pub fn value(&self) -> Option<&'a [u8]> {
        self.part(32)
    }

    /// The headers, in order.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.header_block() }
    }

    /// The encoded header block.
    pub fn header_block(&self) -> &'a [u8] {
        self.part(40).unwrap_or_default()
    }

    /// The value of the last header with this name. Kafka allows several headers with one name.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        self.headers().filter(|(known, _)| *known == name).last().and_then(|(_, value)| value)
    }

    #[inline]
    fn part(&self, at: usize) -> Option<&'a [u8]> {
        self.batch.slice(self.i32_at(at).cast_unsigned(), self.i32_at(at + 4))
    }

    #[inline]
    fn i64_at(&self, at: usize) -> i64 {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&self.entry[at..at + 8]);
        i64::from_le_bytes(bytes)
    }

    #[inline]
    fn i32_at(&self, at: usize) -> i32 {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&self.entry[at..at + 4]);
        i32::from_le_bytes(bytes)
    }
}

impl fmt::Debug for Record<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |part: Option<&[u8]>| part.map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        formatter.debug_struct("Record").field("key", &text(self.key())).field("value", &text(self.value())).finish()
    }
}

/// Iterator over the `(name, value)` pairs of a header block. It stops at invalid bytes.
#[derive(Debug, Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Creates an iterator over an encoded block.
    pub fn over(block: &'a [u8]) -> Self {
        Self { rest: block }
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, rest) = split_prefixed(self.rest)?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = match usize::try_from(i32::from_le_bytes(*value_len)) {
            Ok(len) => rest.split_at_checked(len).map(|(value, rest)| (Some(value), rest))?,
            Err(_) => (None, rest),
        };
        self.rest = rest;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

fn split_prefixed(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(u32::from_le_bytes(*len) as usize)
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk::<4>().map(|word| u32::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_bytes_are_rejected() {
        assert_eq!(Batch::new(b"").err(), Some(InvalidBatch));
        assert_eq!(Batch::new(&[0; 64]).err(), Some(InvalidBatch));
        let mut count_too_large = [0; 32];
        count_too_large[..4].copy_from_slice(MAGIC);
        count_too_large[4] = 1;
        count_too_large[8..16].copy_from_slice(&[0xff; 8]);
        assert_eq!(Batch::new(&count_too_large).err(), Some(InvalidBatch));
    }
}
