//! Fetch.
//!
//! A fetch that finds less than `min_bytes` waits for more, up to `max_wait_ms`. The response is
//! encoded by hand: the records are ranges of log files that the connection sends without reading
//! them.
//!
//! Incremental fetch sessions (KIP-227) shorten requests that name thousands of partitions. The
//! broker declines them the way the protocol defines: it answers a request for a new session with
//! session 0, and a request that names a session with `FETCH_SESSION_ID_NOT_FOUND`.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, BytesMut};
use kafka_protocol::ResponseError;
use kafka_protocol::messages::FetchRequest;
use kafka_protocol::messages::fetch_request::FetchPartition;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};
use uuid::Uuid;

use crate::log::{Isolation, Slice};
use crate::request::Call;
use crate::request::Close;
use crate::request::response::{Part, Response};
use crate::topics::Topic;
use crate::topics::partition::Partition;

/// Upper limit on `max_wait_ms`.
const MAX_WAIT: Duration = Duration::from_secs(300);

/// A partition in the request.
struct Wanted {
    partition: Option<Arc<Partition>>,
    missing: ResponseError,
    index: i32,
    offset: i64,
    current_leader_epoch: i32,
    max_bytes: u64,
}

/// A topic in the request.
struct WantedTopic {
    name: String,
    id: Uuid,
    partitions: Vec<Wanted>,
}

/// The response for one partition.
#[derive(Default)]
struct Fetched {
    index: i32,
    error: i16,
    end: i64,
    stable_end: i64,
    start: i64,
    slice: Option<Slice>,
}

pub(crate) async fn fetch(call: &Call<'_>, request: FetchRequest) -> Result<Response, Close> {
    const NEW_OR_NONE: [i32; 2] = [0, -1];
    if !NEW_OR_NONE.contains(&request.session_epoch) {
        return encode(call, ResponseError::FetchSessionIdNotFound.code(), &[], Vec::new());
    }
    let isolation = Isolation::from_wire(request.isolation_level);
    let min_bytes = u64::try_from(request.min_bytes).unwrap_or(0);
    let wait = Duration::from_millis(u64::try_from(request.max_wait_ms).unwrap_or(0)).min(MAX_WAIT);
    let deadline = Instant::now() + wait;
    let max_bytes = u64::try_from(request.max_bytes).unwrap_or(0);
    let topics = resolve(call, request);

    let (fetched, is_enough) = read(&topics, isolation, max_bytes, min_bytes);
    if is_enough || wait.is_zero() {
        return encode(call, 0, &topics, fetched);
    }
    let waiter = Waiter::new(&topics, isolation);
    loop {
        waiter.register();
        // Read after registering: an append between the first read and the registration would be
        // missed.
        let (fetched, is_enough) = read(&topics, isolation, max_bytes, min_bytes);
        let is_over = is_enough || timeout_at(deadline, waiter.notify.notified()).await.is_err();
        if is_over {
            return encode(call, 0, &topics, fetched);
        }
    }
}

/// The registration of a waiting fetch. Dropping it unregisters.
struct Waiter {
    notify: Arc<Notify>,
    isolation: Isolation,
    partitions: Vec<Arc<Partition>>,
}

impl Waiter {
    fn new(topics: &[WantedTopic], isolation: Isolation) -> Self {
        let wanted = topics.iter().flat_map(|topic| &topic.partitions);
        let partitions = wanted.filter_map(|wanted| wanted.partition.clone()).collect();
        Self { notify: Arc::new(Notify::new()), isolation, partitions }
    }

    fn register(&self) {
        for partition in &self.partitions {
            // A notification removes the waiter from one partition's list, not from the others.
            partition.unregister(self.isolation, &self.notify);
            partition.register(self.isolation, &self.notify);
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        for partition in &self.partitions {
            partition.unregister(self.isolation, &self.notify);
        }
    }
}

fn resolve(call: &Call<'_>, request: FetchRequest) -> Vec<WantedTopic> {
    let by_id = call.version >= 13;
    let mut topics = Vec::with_capacity(request.topics.len());
    for asked in request.topics {
        let topic: Option<Arc<Topic>> =
            if by_id { call.broker.topics.by_id(asked.topic_id) } else { call.broker.topics.get(&asked.topic) };
        let is_unknown_id = by_id && topic.is_none();
        let missing =
            if is_unknown_id { ResponseError::UnknownTopicId } else { ResponseError::UnknownTopicOrPartition };
        let partitions = asked.partitions.into_iter().map(|request: FetchPartition| Wanted {
            partition: topic.as_ref().and_then(|topic| topic.partition(request.partition)),
            missing,
            index: request.partition,
            offset: request.fetch_offset,
            current_leader_epoch: request.current_leader_epoch,
            max_bytes: u64::try_from(request.partition_max_bytes).unwrap_or(0),
        });
        topics.push(WantedTopic {
            name: asked.topic.to_string(),
            id: asked.topic_id,
            partitions: partitions.collect(),
        });
    }
    topics
}

/// Reads every partition once. The flag says whether to respond now: there are enough bytes, or a
/// partition has an error.
fn read(topics: &[WantedTopic], isolation: Isolation, max_bytes: u64, min_bytes: u64) -> (Vec<Fetched>, bool) {
    let mut found = 0;
    let mut has_error = false;
    let mut fetched = Vec::new();
    for wanted in topics.iter().flat_map(|topic| &topic.partitions) {
        let one = read_partition(wanted, isolation, max_bytes.saturating_sub(found), found == 0);
        found += one.slice.as_ref().map_or(0, |slice| slice.length);
        has_error |= one.error != 0;
        fetched.push(one);
    }
    (fetched, has_error || found >= min_bytes)
}

fn read_partition(wanted: &Wanted, isolation: Isolation, max_bytes: u64, is_first: bool) -> Fetched {
    let index = wanted.index;
    let failed =
        |error: ResponseError| Fetched { index, error: error.code(), end: -1, stable_end: -1, start: -1, slice: None };
    let Some(partition) = wanted.partition.as_ref().filter(|partition| !partition.is_closed()) else {
        return failed(wanted.missing);
    };
    if wanted.current_leader_epoch > 0 {
        return failed(ResponseError::UnknownLeaderEpoch);
    }
    let offset = wanted.offset;
    let max_bytes = max_bytes.min(wanted.max_bytes);
    partition.with_log(|log| {
        let mut fetched = Fetched {
            index,
            error: 0,
            end: log.end_offset(),
            stable_end: log.last_stable_offset(),
            start: log.start_offset(),
            slice: None,
        };
        if offset < fetched.start || offset > fetched.end {
            return Fetched { error: ResponseError::OffsetOutOfRange.code(), ..fetched };
        }
        match log.read(offset, max_bytes, isolation, is_first) {
            Ok(slice) => fetched.slice = slice,
            Err(error) => {
                tracing::error!(topic = partition.topic, partition = index, %error, "cannot read the log");
                fetched.error = ResponseError::KafkaStorageError.code();
            }
        }
        fetched
    })
}

/// Encodes the response: <https://kafka.apache.org/protocol#The_Messages_Fetch>, versions 4 to 17.
fn encode(call: &Call<'_>, error: i16, topics: &[WantedTopic], fetched: Vec<Fetched>) -> Result<Response, Close> {
    let version = call.version;
    let mut encoder = Encoder { buffer: BytesMut::with_capacity(256), parts: Vec::new(), is_flexible: version >= 12 };
    call.envelope.header::<FetchRequest>(&mut encoder.buffer)?;
    encoder.buffer.put_i32(0); // throttle time
    if version >= 7 {
        encoder.buffer.put_i16(error);
        encoder.buffer.put_i32(0); // session
    }
    encoder.array_length(topics.len());
    let mut fetched = fetched.into_iter();
    for topic in topics {
        if version >= 13 {
            encoder.buffer.put_slice(topic.id.as_bytes());
        } else {
            encoder.string(&topic.name);
        }
        encoder.array_length(topic.partitions.len());
        for partition in fetched.by_ref().take(topic.partitions.len()) {
            encoder.partition(version, partition);
        }
        encoder.no_tagged_fields();
    }
    encoder.no_tagged_fields();
    encoder.flush();
    Ok(Response { parts: encoder.parts })
}

struct Encoder {
    buffer: BytesMut,
    parts: Vec<Part>,
    is_flexible: bool,
}

impl Encoder {
    fn partition(&mut self, version: i16, partition: Fetched) {
        self.buffer.put_i32(partition.index);
        self.buffer.put_i16(partition.error);
        self.buffer.put_i64(partition.end);
        self.buffer.put_i64(partition.stable_end);
        if version >= 5 {
            self.buffer.put_i64(partition.start);
        }
        let aborted = partition.slice.as_ref().map_or(&[][..], |slice| &slice.aborted);
        self.array_length(aborted.len());
        for transaction in aborted {
            self.buffer.put_i64(transaction.producer_id);
            self.buffer.put_i64(transaction.first_offset);
            self.no_tagged_fields();
        }
        if version >= 11 {
            self.buffer.put_i32(-1); // preferred read replica
        }
        let length = partition.slice.as_ref().map_or(0, |slice| slice.length);
        if self.is_flexible {
            self.varint(length + 1);
        } else {
            self.buffer.put_i32(length as i32);
        }
        if let Some(slice) = partition.slice {
            self.flush();
            self.parts.push(Part::File(slice));
        }
        self.no_tagged_fields();
    }

    fn flush(&mut self) {
        if !self.buffer.is_empty() {
            self.parts.push(Part::Bytes(self.buffer.split().freeze()));
        }
    }

    fn array_length(&mut self, length: usize) {
        if self.is_flexible {
            self.varint(length as u64 + 1);
        } else {
            self.buffer.put_i32(length as i32);
        }
    }

    fn string(&mut self, string: &str) {
        if self.is_flexible {
            self.varint(string.len() as u64 + 1);
        } else {
            self.buffer.put_i16(string.len() as i16);
        }
        self.buffer.put_slice(string.as_bytes());
    }

    fn no_tagged_fields(&mut self) {
        if self.is_flexible {
            self.buffer.put_u8(0);
        }
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.put_u8(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.put_u8(value as u8);
    }
}
