//! Passes records to librdkafka's send queue.
//!
//! rdkafka names the topic of each record, and librdkafka then searches all of its topics for that
//! name, one by one. With a handle per topic, a record costs the same with one topic as with
//! 5,000.

use std::collections::HashMap;
use std::ffi::CString;
use std::ptr;

use rdkafka::bindings::{self, rd_kafka_t, rd_kafka_topic_t, rd_kafka_vtype_t as Field};
use rdkafka::error::{IsError, KafkaError};
use trunkline_connector::batch::Headers;

use super::producer::ProducerRecord;

/// Handles that are kept. A template may name any number of topics.
const MAX_TOPICS: usize = 8192;

/// Headers of a record, mostly.
const USUAL_HEADERS: usize = 4;

/// The topics to which a producer has sent records. The client must outlive it.
#[derive(Default)]
pub(super) struct TopicHandles {
    topics: HashMap<String, Handle>,
    /// The topic of the last record: records come in runs of one topic.
    last: Option<(String, *mut rd_kafka_topic_t)>,
}

// SAFETY: librdkafka's topics may be used by any thread.
unsafe impl Send for TopicHandles {}

impl TopicHandles {
    /// Copies a record into the client's send queue.
    ///
    /// # Safety
    /// The client must be alive, and the same in each call.
    pub(super) unsafe fn enqueue(
        &mut self,
        client: *mut rd_kafka_t,
        record: &ProducerRecord<'_>,
    ) -> Result<(), KafkaError> {
        // SAFETY: see the function's contract.
        let topic = unsafe { self.get(client, record.topic)? };
        let (key, key_len) = parts(record.key);
        let (value, value_len) = parts(record.value);
        let headers = encode_headers(record);
        // SAFETY: client and topic are alive. The types of the arguments are those that librdkafka
        // reads for each field. It copies key and value, and takes the headers if it succeeds.
        let outcome = unsafe {
            bindings::rd_kafka_producev(
                client,
                Field::RD_KAFKA_VTYPE_RKT,
                topic,
                Field::RD_KAFKA_VTYPE_PARTITION,
                record.partition,
                Field::RD_KAFKA_VTYPE_MSGFLAGS,
                bindings::RD_KAFKA_MSG_F_COPY,
                Field::RD_KAFKA_VTYPE_VALUE,
                value,
                value_len,
                Field::RD_KAFKA_VTYPE_KEY,
                key,
                key_len,
                Field::RD_KAFKA_VTYPE_TIMESTAMP,
                record.timestamp.unwrap_or(0),
                Field::RD_KAFKA_VTYPE_HEADERS,
                headers,
                Field::RD_KAFKA_VTYPE_END,
            )
        };
        if outcome.is_error() {
            if !headers.is_null() {
                // SAFETY: librdkafka has not taken them.
                unsafe { bindings::rd_kafka_headers_destroy(headers) };
            }
            return Err(KafkaError::MessageProduction(outcome.into()));
        }
        Ok(())
    }

    /// # Safety
    /// As for [`TopicHandles::enqueue`].
    unsafe fn get(&mut self, client: *mut rd_kafka_t, name: &str) -> Result<*mut rd_kafka_topic_t, KafkaError> {
        if let Some((last, topic)) = &self.last
            && last == name
        {
            return Ok(*topic);
        }
        let topic = match self.topics.get(name) {
            Some(handle) => handle.0,
            None => {
                let c_name = CString::new(name)?;
                // SAFETY: the client is alive. Without a configuration, the client's own applies.
                let topic = unsafe { bindings::rd_kafka_topic_new(client, c_name.as_ptr(), ptr::null_mut()) };
                if topic.is_null() {
                    // SAFETY: it reads the thread's last error.
                    let error = unsafe { bindings::rd_kafka_last_error() };
                    return Err(KafkaError::MessageProduction(error.into()));
                }
                if self.topics.len() >= MAX_TOPICS {
                    self.topics.clear();
                }
                self.topics.insert(name.to_owned(), Handle(topic));
                topic
            }
        };
        self.last = Some((name.to_owned(), topic));
        Ok(topic)
    }
}

/// A reference to a topic of the client.
struct Handle(*mut rd_kafka_topic_t);

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: the reference is ours, and the client is alive. Records that wait to be sent hold
        // separate references.
        unsafe { bindings::rd_kafka_topic_destroy(self.0) };
    }
}

/// Start and length; null if absent.
fn parts(bytes: Option<&[u8]>) -> (*mut libc::c_void, usize) {
    bytes.map_or((ptr::null_mut(), 0), |bytes| (bytes.as_ptr().cast_mut().cast(), bytes.len()))
}

/// The record's headers in librdkafka's form; null if it has none.
fn encode_headers(record: &ProducerRecord<'_>) -> *mut bindings::rd_kafka_headers_t {
    if record.headers.is_empty() && record.more_headers.is_empty() {
        return ptr::null_mut();
    }
    // SAFETY: the call only allocates. The array grows if a record has more headers.
    let encoded = unsafe { bindings::rd_kafka_headers_new(USUAL_HEADERS) };
    let add = |name: &[u8], value: Option<&[u8]>| {
        let (start, len) = parts(value);
        // SAFETY: the headers are ours, and name and value have the stated lengths. librdkafka
        // copies both. The call fails only for headers that belong to a received message.
        unsafe {
            bindings::rd_kafka_header_add(encoded, name.as_ptr().cast(), name.len() as isize, start, len as isize);
        }
    };
    let mut block = Headers::over(record.headers);
    while let Some((name, value)) = block.next_raw() {
        add(name, value);
    }
    for (name, value) in record.more_headers {
        add(name.as_bytes(), Some(value));
    }
    encoded
}
