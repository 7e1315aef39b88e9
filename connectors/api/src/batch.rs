//! [`Batch`]: many records in one arena of bytes plus a table of fixed-stride entries.
//!
//! One copy out of the Kafka client fills a batch. One copy into a plugin's memory passes it to the
//! plugin: the sealed form below is the input of the plugin interface. Sinks read slices. No record
//! needs an allocation.
//!
//! # Sealed form (little endian), format 1
//! ```text
//! header, 32 bytes:  magic "TLB1" | format u32 = 1 | record count u32 | table_at u32
//!                    | topics_at u32 | topic count u32 | content u32 | 4 bytes reserved
//! data               keys, values and headers, in no particular order
//! topics             per topic: length u32 | name
//! table              per record one Entry of 48 bytes, at a multiple of 8
//! ```
//! All positions count from the start of the sealed form. A header block is a run of `name length
//! u32 | name | value length i32 | value`; a value length of -1 is a null value. `content` is 0 for
//! records, and 1 for the timers of a plugin.

use std::ops::Range;
use std::sync::Arc;

/// First four bytes of a sealed batch, `TLB1`.
pub const MAGIC: u32 = u32::from_le_bytes(*b"TLB1");
/// The layout described in the module's header.
pub const FORMAT: u32 = 1;
/// Bytes before the data of a sealed batch.
pub const HEADER_BYTES: usize = 32;
/// Bytes of an [`Entry`].
pub const ENTRY_BYTES: usize = size_of::<Entry>();

#[cfg(target_endian = "big")]
compile_error!("batches are little endian in memory: they are handed to plugins as they lie");

/// One record: the places of its parts in the arena. A length of -1 means that the part is absent
/// (null).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Entry {
    /// Milliseconds since the Unix epoch; -1 = none.
    pub timestamp: i64,
    /// Offset in the partition it was read from; -1 = not read from a topic yet.
    pub offset: i64,
    /// Partition it was read from. Before the topic: the [ordering key](Entry::ordering_key).
    pub partition: i32,
    /// Index into [`Batch::topics`].
    pub topic: u16,
    /// Output port of the transform that emitted it; 0 is the default port.
    pub port: u16,
    /// Where the key starts.
    pub key_at: u32,
    /// Bytes of the key; -1 = null.
    pub key_len: i32,
    /// Where the value starts.
    pub value_at: u32,
    /// Bytes of the value; -1 = null (a tombstone).
    pub value_len: i32,
    /// Where the header block starts.
    pub headers_at: u32,
    /// Bytes of the header block.
    pub headers_len: i32,
}

impl Entry {
    /// The ordering key of a record that is not in a topic yet: records with the same key go to one
    /// partition, in their order (I5).
    pub fn ordering_key(&self) -> u32 {
        self.partition as u32
    }
}

/// Records in one arena. See the module's header for the layout.
#[derive(Debug, Clone)]
pub struct Batch {
    arena: Vec<u8>,
    entries: Vec<Entry>,
    topics: Vec<Arc<str>>,
    /// Length of the arena without the trailer that [`Batch::seal`] added.
    unsealed_len: Option<usize>,
}

impl Default for Batch {
    fn default() -> Self {
        Self::with_capacity(0, 0)
    }
}

impl Batch {
    /// Positions are `u32` in the table and lengths `i32`; an arena stays below this.
    pub const MAX_BYTES: usize = i32::MAX as usize - (1 << 20);

    /// An empty batch with room for `bytes` of data and `records` entries.
    pub fn with_capacity(bytes: usize, records: usize) -> Self {
        let mut arena = Vec::with_capacity(HEADER_BYTES + bytes);
        arena.resize(HEADER_BYTES, 0);
        Self { arena, entries: Vec::with_capacity(records), topics: Vec::new(), unsealed_len: None }
    }

    /// Number of records.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The batch has no records.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of data and table, as the byte budget counts them (I6).
    pub fn bytes(&self) -> usize {
        self.unsealed_len.unwrap_or(self.arena.len()) + self.entries.len() * ENTRY_BYTES
    }

    /// Bytes of the arena alone, header included.
    pub fn arena_bytes(&self) -> usize {
        self.unsealed_len.unwrap_or(self.arena.len())
    }

    /// Removes all records; keeps the memory and the topics.
    pub fn clear(&mut self) {
        self.arena.truncate(HEADER_BYTES);
        self.entries.clear();
        self.unsealed_len = None;
    }

    /// Removes the topics too, for a batch that is next filled from other topics.
    pub fn reset(&mut self) {
        self.clear();
        self.topics.clear();
    }

    /// Bytes of allocated memory.
    pub fn capacity(&self) -> usize {
        self.arena.capacity() + self.entries.capacity() * ENTRY_BYTES
    }

    /// The names that [`Entry::topic`] indexes.
    pub fn topics(&self) -> &[Arc<str>] {
        &self.topics
    }

    /// The index of a topic's name, added if new.
    ///
    /// # Panics
    /// If a batch has more than 65,535 topics; batches are read from a few.
    pub fn topic_index(&mut self, name: &str) -> u16 {
        let index = self.topics.iter().position(|known| known.as_ref() == name).unwrap_or_else(|| {
            self.topics.push(Arc::from(name));
            self.topics.len() - 1
        });
        assert!(index <= usize::from(u16::MAX), "more topics in one batch than its table can name");
        index as u16
    }

    /// The table.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Replaces the table over the same arena: applies the verdicts of a transform without copying
    /// records that pass. Every entry must point into this batch's arena; [`Batch::append`] adds
    /// bytes to it.
    pub fn set_entries(&mut self, entries: Vec<Entry>) {
        self.unseal();
        self.entries = entries;
    }

    /// Removes and returns the table; the arena stays. See [`Batch::set_entries`].
    pub fn take_entries(&mut self) -> Vec<Entry> {
        self.unseal();
        std::mem::take(&mut self.entries)
    }

    /// Adds bytes to the arena and returns their start.
    pub fn append(&mut self, bytes: &[u8]) -> u32 {
        self.unseal();
        let at = self.arena.len();
        debug_assert!(at + bytes.len() <= Self::MAX_BYTES);
        self.arena.extend_from_slice(bytes);
        at as u32
    }

    /// Keeps the records for which `keep` returns true. The arena does not change.
    pub fn retain(&mut self, mut keep: impl FnMut(RecordRef<'_>) -> bool) {
        self.unseal();
        let mut entries = std::mem::take(&mut self.entries);
        entries.retain(|entry| keep(RecordRef { batch: self, entry }));
        self.entries = entries;
    }

    /// A view of record `index`.
    pub fn get(&self, index: usize) -> RecordRef<'_> {
        RecordRef { batch: self, entry: &self.entries[index] }
    }

    /// Views of all records, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = RecordRef<'_>> + Clone {
        self.entries.iter().map(|entry| RecordRef { batch: self, entry })
    }

    /// Starts a record whose parts are written into the arena. [`RecordWriter::finish`] adds it.
    pub fn record(&mut self) -> RecordWriter<'_> {
        self.unseal();
        let start = self.arena.len();
        let entry = Entry {
            timestamp: -1,
            offset: -1,
            partition: 0,
            topic: 0,
            port: 0,
            key_at: 0,
            key_len: -1,
            value_at: 0,
            value_len: -1,
            headers_at: 0,
            headers_len: 0,
        };
        RecordWriter { batch: self, entry, start, finished: false }
    }

    /// Copies a record of another batch, with its topic, to the end of this one.
    pub fn push_copy(&mut self, record: RecordRef<'_>) {
        let topic = self.topic_index(record.topic());
        let entry = *record.entry;
        let mut copy = self.record();
        copy.entry = Entry { key_len: -1, value_len: -1, headers_at: 0, headers_len: 0, topic, ..entry };
        if let Some(key) = record.key() {
            copy.key(key);
        }
        if let Some(value) = record.value() {
            copy.value(value);
        }
        copy.header_block(record.header_block());
        copy.finish();
    }

    /// The part of the arena from the first to the last byte of some records.
    pub fn extent(&self, records: Range<usize>) -> Range<usize> {
        let (mut start, mut end) = (usize::MAX, 0);
        for entry in &self.entries[records] {
            for (at, len) in [
                (entry.key_at, entry.key_len),
                (entry.value_at, entry.value_len),
                (entry.headers_at, entry.headers_len),
            ] {
                if len > 0 {
                    (start, end) = (start.min(at as usize), end.max(at as usize + len as usize));
                }
            }
        }
        start.min(end)..end
    }

    /// Replaces the content by some records of another batch, and whatever is between their bytes.
    /// One copy for all of them takes less time than a copy of each.
    pub fn copy_range(&mut self, other: &Self, records: Range<usize>) {
        self.reset();
        let extent = other.extent(records.clone());
        let rebased = |at: u32, len: i32| if len > 0 { at - extent.start as u32 + HEADER_BYTES as u32 } else { 0 };
        self.entries.extend(other.entries[records].iter().map(|entry| Entry {
            key_at: rebased(entry.key_at, entry.key_len),
            value_at: rebased(entry.value_at, entry.value_len),
            headers_at: rebased(entry.headers_at, entry.headers_len),
            ..*entry
        }));
        self.topics.extend_from_slice(&other.topics);
        self.arena.extend_from_slice(&other.arena[extent]);
    }

    /// The sealed form, which a plugin receives. The next change of the batch removes the trailer.
    pub fn seal(&mut self) -> &[u8] {
        self.seal_as(0)
    }

    /// Like [`Batch::seal`], for entries that are no records; `content` states what they are.
    pub fn seal_as(&mut self, content: u32) -> &[u8] {
        self.unseal();
        let data_len = self.arena.len();
        let topics_at = data_len;
        for topic in &self.topics {
            self.arena.extend_from_slice(&(topic.len() as u32).to_le_bytes());
            self.arena.extend_from_slice(topic.as_bytes());
        }
        self.arena.resize(self.arena.len().next_multiple_of(8), 0);
        let table_at = self.arena.len();
        self.arena.extend_from_slice(bytemuck::cast_slice(&self.entries));
        let header = [
            MAGIC,
            FORMAT,
            self.entries.len() as u32,
            table_at as u32,
            topics_at as u32,
            self.topics.len() as u32,
            content,
            0,
        ];
        self.arena[..HEADER_BYTES].copy_from_slice(bytemuck::cast_slice(&header));
        self.unsealed_len = Some(data_len);
        &self.arena
    }

    fn unseal(&mut self) {
        if let Some(len) = self.unsealed_len.take() {
            self.arena.truncate(len);
        }
    }

    fn slice(&self, at: u32, len: i32) -> Option<&[u8]> {
        let len = usize::try_from(len).ok()?;
        Some(&self.arena[at as usize..at as usize + len])
    }
}

/// A record that is being written into a batch. Dropping it without [`RecordWriter::finish`]
/// discards it.
pub struct RecordWriter<'a> {
    batch: &'a mut Batch,
    entry: Entry,
    start: usize,
    finished: bool,
}

impl RecordWriter<'_> {
    /// Milliseconds since the Unix epoch.
    pub fn timestamp(&mut self, milliseconds: i64) -> &mut Self {
        self.entry.timestamp = milliseconds;
        self
    }

    /// The record's origin: topic (by [`Batch::topic_index`]), partition and offset.
    pub fn read_from(&mut self, topic: u16, partition: i32, offset: i64) -> &mut Self {
        self.entry.topic = topic;
        self.entry.partition = partition;
        self.entry.offset = offset;
        self
    }

    /// For records on their way to a topic: sets the [ordering key](Entry::ordering_key). It
    /// decides the partition of a record without a key.
    pub fn ordering_key(&mut self, key: u32) -> &mut Self {
        self.entry.partition = (key & i32::MAX as u32) as i32;
        self
    }

    /// The output port.
    pub fn port(&mut self, port: u16) -> &mut Self {
        self.entry.port = port;
        self
    }

    /// The key.
    pub fn key(&mut self, key: &[u8]) -> &mut Self {
        self.entry.key_at = self.batch.arena.len() as u32;
        self.entry.key_len = key.len() as i32;
        self.batch.arena.extend_from_slice(key);
        self
    }

    /// The value.
    pub fn value(&mut self, value: &[u8]) -> &mut Self {
        self.value_with(|arena| arena.extend_from_slice(value))
    }

    /// The value, written by `write` to the end of the arena it is given. `write` must only append.
    pub fn value_with(&mut self, write: impl FnOnce(&mut Vec<u8>)) -> &mut Self {
        let at = self.batch.arena.len();
        write(&mut self.batch.arena);
        debug_assert!(self.batch.arena.len() >= at);
        self.entry.value_at = at as u32;
        self.entry.value_len = (self.batch.arena.len() - at) as i32;
        self
    }

    /// Adds a header. Headers must follow one another: do not write key or value between two of
    /// them.
    pub fn header(&mut self, name: &str, value: Option<&[u8]>) -> &mut Self {
        self.open_headers();
        write_header(&mut self.batch.arena, name, value);
        self.close_headers()
    }

    /// Adds encoded headers, as [`RecordRef::header_block`] returns them.
    pub fn header_block(&mut self, block: &[u8]) -> &mut Self {
        self.open_headers();
        self.batch.arena.extend_from_slice(block);
        self.close_headers()
    }

    /// Adds encoded headers, written by `write` to the end of the arena it is given. If it returns
    /// false, there are none. `write` must only append.
    pub fn header_block_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> bool) -> bool {
        self.open_headers();
        let end = self.batch.arena.len();
        let is_written = write(&mut self.batch.arena);
        if !is_written {
            self.batch.arena.truncate(end);
        }
        self.close_headers();
        is_written
    }

    fn open_headers(&mut self) {
        let end = self.batch.arena.len();
        if self.entry.headers_len == 0 {
            self.entry.headers_at = end as u32;
        }
        debug_assert_eq!(
            self.entry.headers_at as usize + self.entry.headers_len as usize,
            end,
            "headers must follow one another"
        );
    }

    fn close_headers(&mut self) -> &mut Self {
        self.entry.headers_len = (self.batch.arena.len() - self.entry.headers_at as usize) as i32;
        self
    }

    /// Adds the record to the table.
    pub fn finish(mut self) {
        self.finished = true;
        let entry = self.entry;
        self.batch.entries.push(entry);
    }
}

impl Drop for RecordWriter<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.batch.arena.truncate(self.start);
        }
    }
}

/// Appends one header in the block's encoding.
pub fn write_header(out: &mut Vec<u8>, name: &str, value: Option<&[u8]>) {
    write_raw_header(out, name.as_bytes(), value);
}

/// Appends one header whose name is UTF-8, such as [`Headers::next_raw`] returns it.
pub fn write_raw_header(out: &mut Vec<u8>, name: &[u8], value: Option<&[u8]>) {
    out.extend_from_slice(&(name.len() as u32).to_le_bytes());
    out.extend_from_slice(name);
    match value {
        Some(value) => {
            out.extend_from_slice(&(value.len() as i32).to_le_bytes());
            out.extend_from_slice(value);
        }
        None => out.extend_from_slice(&(-1i32).to_le_bytes()),
    }
}

/// A view of one record.
#[derive(Clone, Copy)]
pub struct RecordRef<'a> {
    batch: &'a Batch,
    entry: &'a Entry,
}

impl<'a> RecordRef<'a> {
    /// The table's entry.
    pub fn entry(&self) -> &'a Entry {
        self.entry
    }

    /// The topic it was read from; empty before it was in one.
    pub fn topic(&self) -> &'a str {
        self.batch.topics.get(usize::from(self.entry.topic)).map_or("", |name| name)
    }

    /// The key; `None` = null.
    pub fn key(&self) -> Option<&'a [u8]> {
        self.batch.slice(self.entry.key_at, self.entry.key_len)
    }

    /// The value; `None` = null (a tombstone).
    pub fn value(&self) -> Option<&'a [u8]> {
        self.batch.slice(self.entry.value_at, self.entry.value_len)
    }

    /// Milliseconds since the Unix epoch.
    pub fn timestamp(&self) -> Option<i64> {
        (self.entry.timestamp >= 0).then_some(self.entry.timestamp)
    }

    /// The encoded headers.
    pub fn header_block(&self) -> &'a [u8] {
        self.batch.slice(self.entry.headers_at, self.entry.headers_len).unwrap_or_default()
    }

    /// The headers, in order.
    pub fn headers(&self) -> Headers<'a> {
        Headers { rest: self.header_block() }
    }

    /// The last header of that name (Kafka allows several) whose value is not null.
    pub fn header(&self, name: &str) -> Option<&'a [u8]> {
        let (mut headers, mut last) = (self.headers(), None);
        while let Some((known, value)) = headers.next_raw() {
            if known == name.as_bytes() {
                last = value;
            }
        }
        last
    }
}

/// Iterator over `(name, value)` of a header block. It ends early at bytes that are no header
/// block.
#[derive(Clone)]
pub struct Headers<'a> {
    rest: &'a [u8],
}

impl<'a> Headers<'a> {
    /// Over an encoded block.
    pub fn over(block: &'a [u8]) -> Self {
        Self { rest: block }
    }

    /// The next header, its name as bytes: without the check that the name is UTF-8.
    pub fn next_raw(&mut self) -> Option<(&'a [u8], Option<&'a [u8]>)> {
        let (name_len, rest) = self.rest.split_first_chunk::<4>()?;
        let (name, rest) = rest.split_at_checked(u32::from_le_bytes(*name_len) as usize)?;
        let (value_len, rest) = rest.split_first_chunk::<4>()?;
        let (value, rest) = match usize::try_from(i32::from_le_bytes(*value_len)) {
            Ok(len) => rest.split_at_checked(len).map(|(value, rest)| (Some(value), rest))?,
            Err(_) => (None, rest),
        };
        self.rest = rest;
        Some((name, value))
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a str, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, value) = self.next_raw()?;
        Some((std::str::from_utf8(name).ok()?, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Batch {
        let mut batch = Batch::default();
        let topic = batch.topic_index("web");
        let mut record = batch.record();
        record
            .timestamp(7)
            .read_from(topic, 3, 41)
            .key(b"k")
            .value(b"{\"a\":1}")
            .header("h", Some(b"x"))
            .header("n", None);
        record.finish();
        batch.record().value(b"abandoned");
        let mut tombstone = batch.record();
        tombstone.read_from(topic, 3, 42).key(b"k");
        tombstone.finish();
        batch
    }

    #[test]
    fn parts_come_back_as_written() {
        let batch = sample();
        let first = batch.get(0);
        assert_eq!((first.topic(), first.key(), first.value()), ("web", Some(&b"k"[..]), Some(&b"{\"a\":1}"[..])));
        assert_eq!(first.headers().collect::<Vec<_>>(), [("h", Some(&b"x"[..])), ("n", None)]);
        assert_eq!((batch.len(), batch.get(1).value(), batch.get(1).timestamp()), (2, None, None));
    }

    #[test]
    fn sealed_form_is_the_documented_one_and_comes_off_again() {
        let mut batch = sample();
        let before = batch.arena_bytes();
        let sealed = batch.seal().to_vec();
        let word = |at: usize| u32::from_le_bytes(sealed[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(4), word(8), word(20)), (MAGIC, FORMAT, 2, 1));
        assert_eq!(sealed.len(), word(12) as usize + 2 * 48);
        assert_eq!(word(12) % 8, 0);
        assert_eq!(&sealed[word(16) as usize..][..7], b"\x03\0\0\0web");
        assert_eq!(batch.arena_bytes(), before);
        batch.append(b"more");
        assert_eq!(batch.arena_bytes(), before + 4);
    }

    #[test]
    fn a_copied_range_is_equal() {
        let batch = sample();
        for records in [0..0, 0..1, 1..batch.len(), 0..batch.len()] {
            let mut copy = Batch::default();
            copy.topic_index("other");
            copy.copy_range(&batch, records.clone());
            assert_eq!(copy.len(), records.len());
            for (index, right) in records.zip(copy.iter()) {
                let left = batch.get(index);
                assert_eq!(
                    (left.key(), left.value(), left.header_block()),
                    (right.key(), right.value(), right.header_block())
                );
                assert_eq!((left.topic(), left.entry().offset), (right.topic(), right.entry().offset));
            }
            assert!(copy.arena_bytes() <= batch.arena_bytes());
        }
    }

    #[test]
    fn a_copy_is_equal() {
        let batch = sample();
        let mut copy = Batch::default();
        for record in batch.iter() {
            copy.push_copy(record);
        }
        for (left, right) in batch.iter().zip(copy.iter()) {
            assert_eq!(
                (left.key(), left.value(), left.header_block()),
                (right.key(), right.value(), right.header_block())
            );
            assert_eq!((left.topic(), left.entry().offset), (right.topic(), right.entry().offset));
        }
    }

    #[test]
    fn broken_header_block_ends_early() {
        assert_eq!(Headers::over(b"\xff\xff\xff\xffx").count(), 0);
        assert_eq!(Headers::over(b"\x01\0\0\0a\x09\0\0\0x").count(), 0);
    }
}
