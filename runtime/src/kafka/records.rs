//! Records of a consumer, taken out of the client many at once.
//!
//! rdkafka hands out one a call, and each call makes an event, takes locks and asks the clock: a third of what reading costs. So the
//! partitions that a member is assigned are forwarded to a queue that holds nothing else, and that is emptied by
//! `rd_kafka_consume_batch_queue`. The client's own queue is left with rebalances and errors.

use std::cell::Cell;
use std::ffi::{CStr, CString};
use std::marker::PhantomData;
use std::ptr;
use std::slice;

use rdkafka::bindings::{self, rd_kafka_message_t, rd_kafka_queue_t, rd_kafka_t};
use rdkafka::error::KafkaError;
use rdkafka::topic_partition_list::TopicPartitionList;
use trunkline_connector::Batch;

/// So many are taken at once, at most: what is taken has to be copied, whatever its size.
const MOST_AT_ONCE: usize = 256;

/// How large a record is taken to be before one was seen, in bytes.
const FIRST_GUESS: usize = 64 << 10;

/// The queue. The client has to outlive it.
pub(super) struct Records {
    queue: *mut rd_kafka_queue_t,
    /// Bytes of a record, of those that were taken last.
    mean: Cell<usize>,
}

impl Records {
    /// A queue without any partition.
    pub(super) fn new(client: *mut rd_kafka_t) -> Self {
        // SAFETY: the client is alive. The queue is given back in `drop`.
        Self { queue: unsafe { bindings::rd_kafka_queue_new(client) }, mean: Cell::new(FIRST_GUESS) }
    }

    /// The queue itself.
    pub(super) fn queue(&self) -> *mut rd_kafka_queue_t {
        self.queue
    }

    /// Hands what is there to `each`, about as many bytes as there is room for and at least one record; says how many it were.
    pub(super) fn take(&self, most: usize, room: usize, mut each: impl FnMut(Result<Record<'_>, KafkaError>)) -> usize {
        let mut taken = [ptr::null_mut::<rd_kafka_message_t>(); MOST_AT_ONCE];
        let wanted = (room / self.mean.get().max(1)).clamp(1, most.clamp(1, MOST_AT_ONCE));
        // SAFETY: the queue is ours, and the array has room for so many.
        let count = unsafe { bindings::rd_kafka_consume_batch_queue(self.queue, 0, taken.as_mut_ptr(), wanted) };
        // It is negative for a queue that is none.
        let count = usize::try_from(count).unwrap_or(0);
        let mut bytes = 0;
        for message in &taken[..count] {
            // SAFETY: the client gave so many messages; each is ours until it is destroyed, and `record` does not outlive that.
            unsafe {
                let record = Record::of(&**message);
                bytes += record.as_ref().map_or(0, Record::bytes);
                each(record);
                bindings::rd_kafka_message_destroy(*message);
            }
        }
        if let Some(mean) = bytes.checked_div(count) {
            self.mean.set(mean);
        }
        count
    }
}

impl Drop for Records {
    fn drop(&mut self) {
        // SAFETY: it is ours. Partitions that are forwarded to it keep what they need of it.
        unsafe { bindings::rd_kafka_queue_destroy(self.queue) };
    }
}

/// Has the records of partitions come to a queue, from their assignment on.
///
/// # Safety
/// Client and queue have to be alive.
pub(super) unsafe fn forward(client: *mut rd_kafka_t, partitions: &TopicPartitionList, queue: *mut rd_kafka_queue_t) {
    for partition in partitions.elements() {
        // A topic's name has no zero byte, or the broker would not know it.
        let Ok(topic) = CString::new(partition.topic()) else { continue };
        // SAFETY: the caller's; the partition's queue is given back at once, which leaves it forwarded.
        unsafe {
            let of_partition = bindings::rd_kafka_queue_get_partition(client, topic.as_ptr(), partition.partition());
            if !of_partition.is_null() {
                bindings::rd_kafka_queue_forward(of_partition, queue);
                bindings::rd_kafka_queue_destroy(of_partition);
            }
        }
    }
}

/// A record as the client holds it.
pub(super) struct Record<'a> {
    message: &'a rd_kafka_message_t,
}

impl<'a> Record<'a> {
    /// A message may also be an error of its partition.
    ///
    /// # Safety
    /// The message has to be one that a consumer gave out.
    pub(super) unsafe fn of(message: &'a rd_kafka_message_t) -> Result<Self, KafkaError> {
        match message.err {
            bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR => Ok(Self { message }),
            error => Err(KafkaError::MessageConsumption(error.into())),
        }
    }

    /// Bytes of key and value.
    pub(super) fn bytes(&self) -> usize {
        self.message.len + self.message.key_len
    }

    /// Its topic, told by its place in memory while any record of it is held.
    pub(super) fn partition(&self) -> Partition {
        Partition { topic: self.message.rkt.cast_const(), number: self.message.partition }
    }

    /// Its topic's name.
    pub(super) fn topic(&self) -> &'a str {
        // SAFETY: the message holds its topic, whose name ends with a zero.
        let name = unsafe { CStr::from_ptr(bindings::rd_kafka_topic_name(self.message.rkt)) };
        // The client knows topics that were subscribed to, by text or by a pattern of text.
        name.to_str().unwrap_or_default()
    }

    /// Copies it to a batch: the one copy out of the client.
    pub(super) fn push_to(&self, batch: &mut Batch, topic: u16) {
        let mut record = batch.record();
        record.read_from(topic, self.message.partition, self.message.offset);
        // SAFETY: the message is alive, and its key and value are of the lengths that it says.
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
                record.header(&name.to_string_lossy(), value);
            }
        }
        record.finish();
    }
}

/// A partition, for a comparison.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Partition {
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
        // SAFETY: the message is alive; it keeps the headers.
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
        // SAFETY: the headers live as long as their message; the name ends with a zero, the value is of the length that is told.
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
