//! Which records a call gets, and the packed copy of them.

use std::ops::Range;

use trunkline_connector::batch::ENTRY_BYTES;
use trunkline_connector::{Batch, Entry, RecordRef};

use super::Instance;
use crate::guest::Inputs;

/// A batch is packed if more than this many bytes, and more than half, of its arena are unused.
const MAX_UNUSED_BYTES: usize = 64 << 10;
/// A cleared batch keeps its topic names; the packed batch is recreated when it has more of them.
const MAX_CACHED_TOPICS: usize = 1000;

impl Instance {
    /// The number of these records that fit into one call; at least one.
    pub(super) fn call_len(&self, batch: &Batch, records: &Range<usize>, inputs: Inputs) -> usize {
        let entries = &batch.entries()[records.clone()];
        let mut bytes = 0;
        let fit = entries.iter().take(self.limits.batch_records.max(1)).take_while(|entry| {
            bytes += record_bytes(entry, inputs);
            bytes <= self.limits.batch_bytes
        });
        fit.count().max(1)
    }
}

/// Bytes of a record's table entry and of the parts that the plugin reads.
fn record_bytes(entry: &Entry, inputs: Inputs) -> usize {
    let part = |is_read: bool, len: i32| if is_read { usize::try_from(len).unwrap_or(0) } else { 0 };
    ENTRY_BYTES
        + part(inputs.key, entry.key_len)
        + part(inputs.value, entry.value_len)
        + part(inputs.headers, entry.headers_len)
}

/// Whether the plugin does not need most of the arena, because it does not read all parts, or
/// earlier transforms dropped or replaced records. Then a packed copy costs less than the bytes
/// that are not passed.
pub(super) fn is_sparse(batch: &Batch, inputs: Inputs) -> bool {
    let used: usize = batch.entries().iter().map(|entry| record_bytes(entry, inputs)).sum();
    has_many_unused(batch.bytes(), used)
}

fn has_many_unused(all: usize, used: usize) -> bool {
    all.saturating_sub(used) > MAX_UNUSED_BYTES.max(all / 2)
}

/// Replaces the content of `packed` by copies of these records, with the parts that the plugin
/// reads, and other parts if that costs less.
pub(super) fn copy_records(packed: &mut Batch, batch: &Batch, records: Range<usize>, inputs: Inputs) {
    let used: usize = batch.entries()[records.clone()].iter().map(|entry| record_bytes(entry, inputs)).sum();
    if !has_many_unused(batch.extent(records.clone()).len() + records.len() * ENTRY_BYTES, used) {
        packed.copy_range(batch, records);
        return;
    }
    packed.clear();
    if packed.topics().len() > MAX_CACHED_TOPICS {
        *packed = Batch::default();
    }
    for index in records {
        copy_record(packed, batch.get(index), inputs);
    }
}

fn copy_record(packed: &mut Batch, record: RecordRef<'_>, inputs: Inputs) {
    let topic = packed.topic_index(record.topic());
    let entry = record.entry();
    let mut copy = packed.record();
    copy.timestamp(entry.timestamp).read_from(topic, entry.partition, entry.offset).port(entry.port);
    if let Some(key) = record.key().filter(|_| inputs.key) {
        copy.key(key);
    }
    if let Some(value) = record.value().filter(|_| inputs.value) {
        copy.value(value);
    }
    if inputs.headers {
        copy.header_block(record.header_block());
    }
    copy.finish();
}
