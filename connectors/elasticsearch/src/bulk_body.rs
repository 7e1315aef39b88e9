//! The pending records of a delivery as the body of `_bulk` requests.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;

use bytes::Bytes;
use trunkline_connector::{Delivery, Error, PendingRecord, Reason, RecordIndex};

use crate::config::DocumentOptions;
use crate::document::{self, Appended, Identity, Observers};

/// The operations of a delivery, one after the other in one body. A request is a range of
/// operations, so splitting copies nothing.
pub(crate) struct BulkBody {
    body: Bytes,
    operations: Vec<Operation>,
    capacity: usize,
}

/// An operation: an action line and, mostly, a document.
struct Operation {
    record: RecordIndex,
    /// Where it ends in the body.
    end: usize,
    /// A hash of the document's identity, if its writes need order: operations of one document have
    /// the same.
    ordered: Option<u64>,
}

/// What is known about records before anything is sent.
#[derive(Default)]
pub(crate) struct Decided {
    /// An earlier record did the same, or a later one of the same offset replaces it.
    pub(crate) superseded: Vec<RecordIndex>,
    pub(crate) rejected: Vec<(RecordIndex, Reason)>,
    /// Why a topic partition ends before its last record: the records that follow stay pending.
    pub(crate) held: Option<Error>,
}

impl BulkBody {
    /// Encodes the pending records.
    pub(crate) fn encode(
        options: &DocumentOptions,
        observers: &mut Observers<'_>,
        delivery: &Delivery,
    ) -> (Self, Decided) {
        // Topic partitions with a record that is held.
        let mut held = HashSet::new();
        let mut encoder = Encoder { needs_order: options.needs_order(), ..Encoder::default() };
        let values: usize = delivery.pending().map(|pending| value_len(&pending)).sum();
        let mut last = None;
        for pending in delivery.pending() {
            let partition = (pending.record.topic(), pending.record.entry().partition);
            if !held.is_empty() && held.contains(&partition) {
                continue;
            }
            let start = encoder.body.len();
            let ordinal = delivery.ordinal_in_offset(pending.index);
            let place = (pending.partition, pending.record.entry().offset);
            // The first records of an offset may be decided already.
            if ordinal == 0 || last != Some(place) {
                encoder.same_offset.clear();
            }
            last = Some(place);
            match document::append(options, pending.record, ordinal, observers, &mut encoder.body) {
                Ok(Appended::Operation(identity)) => {
                    if encoder.operations.is_empty() {
                        let action = (encoder.body.len() - start).saturating_sub(value_len(&pending));
                        encoder.reserve(values, action, delivery.pending_len());
                    }
                    encoder.push(pending.index, identity);
                }
                Ok(Appended::Nothing) => encoder.decided.superseded.push(pending.index),
                Ok(Appended::Held(error)) => {
                    held.insert(partition);
                    encoder.decided.held.get_or_insert(error);
                }
                Err(reason) => {
                    encoder.body.truncate(start);
                    encoder.decided.rejected.push((pending.index, reason));
                }
            }
        }
        let capacity = encoder.body.capacity() + encoder.operations.capacity() * size_of::<Operation>();
        (Self { body: encoder.body.into(), operations: encoder.operations, capacity }, encoder.decided)
    }

    /// Number of operations.
    pub(crate) fn len(&self) -> usize {
        self.operations.len()
    }

    /// Bytes of memory that all requests together need.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// The body of a request with these operations.
    pub(crate) fn body(&self, operations: &Range<usize>) -> Bytes {
        self.body.slice(self.start(operations.start)..self.start(operations.end))
    }

    /// The record of an operation.
    pub(crate) fn record(&self, operation: usize) -> RecordIndex {
        self.operations[operation].record
    }

    /// A hash of the identity of an operation's document, if its writes need order.
    pub(crate) fn ordered(&self, operation: usize) -> Option<u64> {
        self.operations[operation].ordered
    }

    /// Divides all operations into requests of at most this size, or of one operation.
    pub(crate) fn requests(&self, request_bytes: usize) -> Vec<Range<usize>> {
        let mut requests = Vec::new();
        let mut first = 0;
        for next in 1..=self.len() {
            if next == self.len() || self.start(next + 1) - self.start(first) > request_bytes {
                requests.push(first..next);
                first = next;
            }
        }
        requests
    }

    fn start(&self, operation: usize) -> usize {
        operation.checked_sub(1).map_or(0, |previous| self.operations[previous].end)
    }
}

#[derive(Default)]
struct Encoder {
    body: Vec<u8>,
    operations: Vec<Operation>,
    /// Identities and operations of the records with the current offset.
    same_offset: Vec<(Identity, usize)>,
    decided: Decided,
    needs_order: bool,
    hasher: RandomState,
}

fn value_len(pending: &PendingRecord<'_>) -> usize {
    pending.record.value().map_or(0, <[u8]>::len)
}

impl Encoder {
    /// Makes room for `records` documents of `values` bytes in sum. A body that grows by doubling
    /// would take up to three times its size for a moment, and up to twice until its last request
    /// is answered.
    ///
    /// `action`: bytes of the first action line. Ids with offsets of more digits are longer.
    fn reserve(&mut self, values: usize, action: usize, records: usize) {
        const MORE_DIGITS: usize = 4;
        let all = values + records * (action + MORE_DIGITS);
        self.body.reserve_exact(all.saturating_sub(self.body.len()));
        self.operations.reserve_exact(records);
    }

    /// Adds the operation that ends the body.
    fn push(&mut self, record: RecordIndex, identity: Option<Identity>) {
        let ordered = identity.as_ref().filter(|_| self.needs_order).map(|identity| self.hasher.hash_one(identity));
        self.operations.push(Operation { record, end: self.body.len(), ordered });
        let Some(identity) = identity.filter(|_| !self.needs_order) else { return };
        // Records of one offset have one version. Of those with the same document only the last one
        // may be sent, because the server takes the first of equal versions. All records of an
        // offset are in one delivery.
        if let Some(position) = self.same_offset.iter().position(|(earlier, _)| *earlier == identity) {
            let (_, superseded) = self.same_offset.remove(position);
            self.remove(superseded);
        }
        self.same_offset.push((identity, self.operations.len() - 1));
    }

    fn remove(&mut self, operation: usize) {
        let start = operation.checked_sub(1).map_or(0, |previous| self.operations[previous].end);
        let Operation { record, end, .. } = self.operations.remove(operation);
        self.body.drain(start..end);
        for later in &mut self.operations[operation..] {
            later.end -= end - start;
        }
        for (_, later) in self.same_offset.iter_mut().filter(|(_, later)| *later > operation) {
            *later -= 1;
        }
        self.decided.superseded.push(record);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test reports a failure by panicking")]
mod tests {
    use trunkline_connector::{Batch, PartitionRecords, Template, TopicPartition};

    use super::*;
    use crate::config::{IdRule, Mode, Target, VersionRule};

    fn options(id: IdRule) -> DocumentOptions {
        DocumentOptions {
            target: Target::Index(Template::parse("a", &[]).unwrap()),
            mode: Mode::Index,
            id,
            version: VersionRule::Offset,
            epoch: 0,
            unwrap: true,
            timestamp: None,
            routing: None,
            require_alias: false,
            supersedes: false,
        }
    }

    fn part(number: i32, records: &[(i64, &str, &str)]) -> PartitionRecords {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        for (offset, key, value) in records {
            let mut record = batch.record();
            record.read_from(topic, number, *offset).key(key.as_bytes()).value(value.as_bytes());
            record.finish();
        }
        PartitionRecords { partition: TopicPartition::new("t", number), records: batch }
    }

    fn encode(id: IdRule, records: &[(i64, &str, &str)]) -> (BulkBody, Decided, Delivery) {
        let delivery = Delivery::new(vec![part(0, records)]);
        let (body, decided) = BulkBody::encode(&options(id), &mut Observers::default(), &delivery);
        (body, decided, delivery)
    }

    fn text(body: &BulkBody, operations: Range<usize>) -> String {
        String::from_utf8(body.body(&operations).to_vec()).unwrap()
    }

    #[test]
    fn requests_stay_below_the_size_limit() {
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(500));
        let (body, ..) =
            encode(IdRule::Offset, &[(0, "", "{}"), (1, "", "{}"), (2, "", &long), (3, "", "{}"), (4, "", "{}")]);
        let one = body.body(&(0..1)).len();
        assert_eq!(body.requests(2 * one), [0..2, 2..3, 3..5]);
        assert_eq!(body.requests(1), [0..1, 1..2, 2..3, 3..4, 4..5]);
        assert_eq!(body.requests(1 << 20), std::slice::from_ref(&(0..5)));
        assert_eq!(text(&body, 3..4), "{\"index\":{\"_index\":\"a\",\"_id\":\"t+0+3\"}}\n{}\n");
        let (empty, ..) = encode(IdRule::Offset, &[]);
        assert!(empty.requests(1).is_empty());
    }

    #[test]
    fn a_body_takes_no_more_memory_than_its_requests() {
        let value = format!("{{\"a\":\"{}\"}}", "x".repeat(300));
        let records: Vec<_> = (0..20_000).map(|offset| (offset, "", value.as_str())).collect();
        let (body, ..) = encode(IdRule::Offset, &records);
        let sent = body.body(&(0..body.len())).len() + body.len() * size_of::<Operation>();
        assert!(body.capacity() >= sent && body.capacity() < sent + sent / 10, "{} for {sent} bytes", body.capacity());
    }

    #[test]
    fn rejected_records_leave_no_trace_in_the_body() {
        let (body, decided, delivery) = encode(IdRule::Offset, &[(0, "", "{}"), (1, "", "17"), (2, "", "{}")]);
        assert_eq!((body.len(), decided.rejected.len()), (2, 1));
        let pending: Vec<_> = delivery.pending().map(|pending| pending.index).collect();
        assert_eq!(decided.rejected[0].0, pending[1]);
        assert_eq!(text(&body, 0..2).lines().count(), 4);
        assert_eq!((body.record(0), body.record(1)), (pending[0], pending[2]));
    }

    #[test]
    fn records_of_one_offset_are_different_documents_or_the_last_one_counts() {
        let records = [(7, "x", "{}"), (7, "y", "{}"), (7, "x", r#"{"n":2}"#), (8, "x", "{}")];
        let (by_offset, ..) = encode(IdRule::Offset, &records);
        let text_of_all = text(&by_offset, 0..4);
        let ids = ["\"t+0+7\"", "\"t+0+7+1\"", "\"t+0+7+2\"", "\"t+0+8\""];
        assert!(ids.iter().all(|id| text_of_all.contains(id)), "{text_of_all}");
        let (by_key, decided, delivery) = encode(IdRule::Key, &records);
        let pending: Vec<_> = delivery.pending().map(|pending| pending.index).collect();
        assert_eq!(decided.superseded, [pending[0]]);
        assert_eq!((0..by_key.len()).map(|at| by_key.record(at)).collect::<Vec<_>>(), pending[1..]);
        assert!(text(&by_key, 1..2).ends_with("{\"n\":2}\n"));
        assert!(text(&by_key, 0..1).contains("\"y\""));
    }

    #[test]
    fn the_rest_of_an_offset_supersedes_no_record_of_another_partition() {
        let parts = vec![part(0, &[(7, "x", "{}")]), part(1, &[(3, "y", "{}"), (3, "x", "{}")])];
        let mut delivery = Delivery::new(parts);
        let indexes: Vec<_> = delivery.pending().map(|pending| pending.index).collect();
        delivery.acknowledge(indexes[1]);
        let (body, decided) = BulkBody::encode(&options(IdRule::Key), &mut Observers::default(), &delivery);
        assert_eq!((body.len(), decided.superseded.len()), (2, 0));
    }
}
