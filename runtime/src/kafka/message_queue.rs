//! Takes many messages out of a consumer at once.
//!
//! rdkafka returns one message per call, and each call creates an event, takes locks and reads the
//! clock: a third of the cost of reading. The assigned partitions are therefore forwarded to a
//! queue that holds only messages, and `rd_kafka_consume_batch_queue` empties it. The client's own
//! queue keeps rebalances and errors.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr;
use std::slice;

use rdkafka::bindings::{self, rd_kafka_message_t, rd_kafka_queue_t, rd_kafka_t};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use trunkline_connector::Batch;

use super::packed_headers::{PACKED, unpack};

/// Messages per call at most: each message that is taken must be copied, whatever its size.
const MAX_PER_CALL: usize = 256;

/// Assumed size of a message before one was seen, in bytes.
const FIRST_GUESS: usize = 64 << 10;

/// The queue. The client must outlive it.
pub(super) struct MessageQueue {
    queue: *mut rd_kafka_queue_t,
    /// Mean size of the messages that were taken last.
    mean_bytes: Cell<usize>,
}

impl MessageQueue {
    /// A queue to which no partition is forwarded yet.
    pub(super) fn new(client: *mut rd_kafka_t) -> Self {
        // SAFETY: the client is alive. The queue is destroyed in `drop`.
        Self { queue: unsafe { bindings::rd_kafka_queue_new(client) }, mean_bytes: Cell::new(FIRST_GUESS) }
    }

    /// The queue itself.
    pub(super) fn as_ptr(&self) -> *mut rd_kafka_queue_t {
        self.queue
    }

    /// Passes queued messages to `each`: at least one, at most `max` and about as many as fit into
    /// `room` bytes. Returns their number.
    pub(super) fn take(&self, max: usize, room: usize, mut each: impl FnMut(Taken<'_>)) -> usize {
        let mut taken = [ptr::null_mut::<rd_kafka_message_t>(); MAX_PER_CALL];
        let wanted = (room / self.mean_bytes.get().max(1)).clamp(1, max.clamp(1, MAX_PER_CALL));
        // SAFETY: the queue is ours, and the array has room for `wanted` messages.
        let count = unsafe { bindings::rd_kafka_consume_batch_queue(self.queue, 0, taken.as_mut_ptr(), wanted) };
        // A negative count is an invalid queue.
        let count = usize::try_from(count).unwrap_or(0);
        let mut bytes = 0;
        for message in &taken[..count] {
            // SAFETY: the client returned `count` messages. Each is ours until it is destroyed, and
            // the borrow ends before.
            unsafe {
                let borrowed = Taken::new(&**message);
                if let Taken::Message(message) = &borrowed {
                    bytes += message.bytes();
                }
                each(borrowed);
                bindings::rd_kafka_message_destroy(*message);
            }
        }
        if let Some(mean) = bytes.checked_div(count) {
            self.mean_bytes.set(mean);
        }
        count
    }
}

impl Drop for MessageQueue {
    fn drop(&mut self) {
        // SAFETY: the queue is ours. Partitions that are forwarded to it hold their own reference.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue) };
    }
}

/// Forwards the messages of partitions to a queue, from their assignment on.
///
/// # Safety
/// Client and queue must be alive.
pub(super) unsafe fn forward(client: *mut rd_kafka_t, partitions: &TopicPartitionList, queue: *mut rd_kafka_queue_t) {
    for partition in partitions.elements() {
        // A broker accepts no topic name with a zero byte.
        let Ok(topic) = CString::new(partition.topic()) else { continue };
        // SAFETY: see the function's contract. Destroying the reference to the partition's queue
        // leaves it forwarded.
        unsafe {
            let of_partition = bindings::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition.partition());
            if !of_partition.is_null() {
                bindings::rd_kafka_queue_forward(of_partition, queue);
                bindings::rd_kafka_queue_destroy(of_partition);
            }
        }
    }
}

/// An item of the queue.
pub(super) enum Taken<'a> {
    /// A message.
    Message(Message<'a>),
    /// An error of a partition, and the partition's topic.
    Failed(KafkaError, String),
}

impl<'a> Taken<'a> {
    /// # Safety
    /// The message must come from a consumer.
    unsafe fn new(message: &'a rd_kafka_message_t) -> Self {
        match message.err {
            bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Self::Message(Message { message }),
            error => {
                let topic = if message.rkt.is_null() { "" } else { Message { message }.topic() };
                Self::Failed(KafkaError::MessageConsumption(error.into()), topic.to_owned())
            }
        }
    }
}

/// A consumed message in the client's memory.
pub(super) struct Message<'a> {
    message: &'a rd_kafka_message_t,
}

impl<'a> Message<'a> {
    /// Bytes of key and value.
    pub(super) fn bytes(&self) -> usize {
        self.message.len + self.message.key_len
    }

    /// The message's partition. It identifies the topic as long as a message of that topic is held.
    pub(super) fn partition(&self) -> PartitionKey {
        PartitionKey { topic: self.message.rkt.cast_const(), number: self.message.partition }
    }

    /// The name of the message's topic.
    pub(super) fn topic(&self) -> &'a str {
        // SAFETY: the message holds its topic, whose name ends with a zero.
        let name = unsafe { CStr::from_ptr(bindings::rd_kafka_topic_name(self.message.rkt)) };
        // The client knows topics by a subscription, which is text.
        name.to_str().unwrap_or_default()
    }

    /// Copies the message to a batch: the one copy out of the client. `scratch` is overwritten.
    pub(super) fn push_to(&self, batch: &mut Batch, topic: u16, scratch: &mut Vec<u8>) {
        let mut record = batch.record();
        record.read_from(topic, self.message.partition, self.message.offset);
        // SAFETY: the message is alive, and its key and value have the lengths that it states.
        unsafe {
            let mut kind = bindings::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
            let timestamp = bindings::rd_kafka_message_timestamp(self.message, &raw mut kind);
            if timestamp >= 0 {
                record.timestamp(timestamp);
            }
            if !self.message.key.is_null() {
                record.key(slice::from_raw_parts(self.message.key.cast(), self.message.key_len));
            }
            if !self.message.payload.is_null() {
                record.value(slice::from_raw_parts(self.message.payload.cast(), self.message.len));
            }
            for (name, value) in Headers::of(self.message) {
                match value {
                    Some(value) if name.to_bytes() == PACKED.as_bytes() && unpack(value, scratch) => {
                        record.header_block(scratch);
                    }
                    value => {
                        record.header(&name.to_string_lossy(), value);
                    }
                }
            }
        }
        record.finish();
    }
}

/// A partition that can be compared without reading the topic's name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct PartitionKey {
    topic: *const bindings::rd_kafka_topic_t,
    pub(super) number: i32,
}

/// The headers of a message.
struct Headers<'a> {
    headers: *mut bindings::rd_kafka_headers_t,
    next: usize,
    message: PhantomData<&'a rd_kafka_message_t>,
}

impl<'a> Headers<'a> {
    fn of(message: &'a rd_kafka_message_t) -> Self {
        let mut headers = ptr::null_mut();
        // SAFETY: the message is alive and owns the headers.
        let answer = unsafe { bindings::rd_kafka_message_headers(message, &raw mut headers) };
        if answer != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            headers = ptr::null_mut();
        }
        Self { headers, next: 0, message: PhantomData }
    }
}

impl<'a> Iterator for Headers<'a> {
    type Item = (&'a CStr, Option<&'a [u8]>);

    fn next(&mut self) -> Option<Self::Item> {
        if self.headers.is_null() {
            return None;
        }
        let (mut name, mut value, mut len) = (ptr::null(), ptr::null(), 0);
        // SAFETY: the headers live as long as their message. The name ends with a zero; the value
        // has the stated length.
        unsafe {
            let answer =
                bindings::rd_kafka_header_get_all(self.headers, self.next, &raw mut name, &raw mut value, &raw mut len);
            if answer != bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
                return None;
            }
            self.next += 1;
            let value = (!value.is_null()).then(|| slice::from_raw_parts(value.cast::<u8>(), len));
            Some((CStr::from_ptr(name), value))
        }
    }
}
