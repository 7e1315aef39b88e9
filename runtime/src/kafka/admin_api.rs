//! librdkafka's admin calls, each for many topics in one request.
//!
//! rdkafka's own `AdminClient` drops the text with which a broker explains a refusal, and it does
//! not serve the client's main queue, where the reason of a failed connection arrives. Here each
//! call waits on a separate queue and serves the main queue meanwhile.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::ptr::{self, NonNull};
use std::slice;
use std::time::{Duration, Instant};

use rdkafka::bindings::{self, rd_kafka_admin_op_t as Operation, rd_kafka_event_t, rd_kafka_queue_t};
use rdkafka::bindings::{rd_kafka_AdminOptions_t, rd_kafka_resp_err_t, rd_kafka_t};
use rdkafka::client::Client;
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::{ClientConfig, ClientContext};
use trunkline_connector::{Error, Result};

use super::admin::TopicSpec;
use super::client::{CALL_TIMEOUT, ClientLog, Cluster};
use super::logins::LoginLease;

/// A failure: its code and the broker's explanation.
pub(super) type Failure = (RDKafkaErrorCode, String);

/// The result for one topic.
pub(super) type Outcome<T> = std::result::Result<T, Failure>;

/// Time between two looks at the main queue during a call.
const SERVE_INTERVAL_MS: c_int = 50;

/// A call without an answer for this long refreshes the client's brokers, and again each time it
/// has passed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(1);

/// What the brokers know of a topic.
pub(super) struct DescribedTopic {
    pub(super) partitions: i32,
    /// `None` if the brokers give topics no ids.
    pub(super) id: Option<String>,
}

/// Configuration values of a topic by name.
pub(super) type TopicConfig = BTreeMap<String, String>;

/// A client for admin calls. Any number of threads may use it at the same time.
pub(super) struct AdminClient {
    /// Dropped before the client.
    _login: LoginLease,
    main_queue: Queue,
    client: Client<ClientLog>,
}

impl AdminClient {
    pub(super) fn new(cluster: &Cluster, config: &ClientConfig) -> Result<Self> {
        let client = cluster.create_admin(config)?;
        // SAFETY: the client is alive, and the queue is dropped before it.
        let main_queue = unsafe { Queue::new(bindings::rd_kafka_queue_get_main(client.native_ptr())) }
            .ok_or_else(|| Error::internal("kafka.queue", "a Kafka client without a main queue"))?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(client.native_ptr()) };
        Ok(Self { _login: login, main_queue, client })
    }

    /// The client, for calls that are not admin calls.
    pub(super) fn client(&self) -> &Client<ClientLog> {
        &self.client
    }

    /// Passes pending events of the main queue to the client's context.
    pub(super) fn serve(&self) {
        while let Some(event) = self.main_queue.poll(0) {
            event.report(self.client.context().as_ref());
        }
    }

    /// Creates topics. Returns the result for each, in order.
    pub(super) fn create_topics(&self, topics: &[TopicSpec]) -> Outcome<Vec<Outcome<()>>> {
        let new = topics.iter().map(NewTopic::new).collect::<Outcome<Vec<_>>>()?;
        let mut pointers: Vec<_> = new.iter().map(|topic| topic.0.as_ptr()).collect();
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_CREATETOPICS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the topics.
            unsafe {
                bindings::rd_kafka_CreateTopics(client, pointers.as_mut_ptr(), pointers.len(), options, queue);
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_CreateTopics_result(event.0.as_ptr());
            let topics = bindings::rd_kafka_CreateTopics_result_topics(result, &raw mut count);
            topic_outcomes(topics, count)
        };
        Ok(in_order(topics.iter().map(|topic| topic.name.as_str()), results))
    }

    /// Deletes topics. Returns the result for each, in order.
    pub(super) fn delete_topics(&self, names: &[&str]) -> Outcome<Vec<Outcome<()>>> {
        let texts = names.iter().map(|name| c_text(name)).collect::<Outcome<Vec<_>>>()?;
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_DELETETOPICS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the topics, which are destroyed here.
            unsafe {
                let mut topics: Vec<_> =
                    texts.iter().map(|name| bindings::rd_kafka_DeleteTopic_new(name.as_ptr())).collect();
                bindings::rd_kafka_DeleteTopics(client, topics.as_mut_ptr(), topics.len(), options, queue);
                bindings::rd_kafka_DeleteTopic_destroy_array(topics.as_mut_ptr(), topics.len());
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_DeleteTopics_result(event.0.as_ptr());
            let topics = bindings::rd_kafka_DeleteTopics_result_topics(result, &raw mut count);
            topic_outcomes(topics, count)
        };
        Ok(in_order(names.iter().copied(), results))
    }

    /// Describes topics, in order. Never creates a topic.
    pub(super) fn describe_topics(&self, names: &[&str]) -> Outcome<Vec<Outcome<DescribedTopic>>> {
        let texts = names.iter().map(|name| c_text(name)).collect::<Outcome<Vec<_>>>()?;
        let mut pointers: Vec<*const c_char> = texts.iter().map(|name| name.as_ptr()).collect();
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the names.
            unsafe {
                let topics = bindings::rd_kafka_TopicCollection_of_topic_names(pointers.as_mut_ptr(), pointers.len());
                bindings::rd_kafka_DescribeTopics(client, topics, options, queue);
                bindings::rd_kafka_TopicCollection_destroy(topics);
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_DescribeTopics_result(event.0.as_ptr());
            let topics = bindings::rd_kafka_DescribeTopics_result_topics(result, &raw mut count);
            let read = |topic: &*const _| {
                let name = text(bindings::rd_kafka_TopicDescription_name(*topic));
                let error = bindings::rd_kafka_TopicDescription_error(*topic);
                let failure = check(bindings::rd_kafka_error_code(error), bindings::rd_kafka_error_string(error));
                let mut partitions = 0;
                bindings::rd_kafka_TopicDescription_partitions(*topic, &raw mut partitions);
                let id = bindings::rd_kafka_TopicDescription_topic_id(*topic);
                let id = (!id.is_null()).then(|| {
                    let (high, low) = (
                        bindings::rd_kafka_Uuid_most_significant_bits(id),
                        bindings::rd_kafka_Uuid_least_significant_bits(id),
                    );
                    format!("{high:016x}{low:016x}")
                });
                let described = DescribedTopic {
                    partitions: i32::try_from(partitions).unwrap_or(i32::MAX),
                    // Brokers before Kafka 2.8 answer with zeros.
                    id: id.filter(|id| id.bytes().any(|digit| digit != b'0')),
                };
                (name, failure.map(|()| described))
            };
            array(topics, count).iter().map(read).collect::<BTreeMap<_, _>>()
        };
        Ok(in_order(names.iter().copied(), results))
    }

    /// The configuration of each topic, in order.
    pub(super) fn describe_configs(&self, names: &[&str]) -> Outcome<Vec<Outcome<TopicConfig>>> {
        let resources = names.iter().map(|name| ConfigResource::topic(name)).collect::<Outcome<Vec<_>>>()?;
        Ok(in_order(names.iter().copied(), self.describe_resources(&resources)?))
    }

    /// The configuration of a broker.
    pub(super) fn describe_broker(&self, id: i32) -> Outcome<TopicConfig> {
        let name = id.to_string();
        let results = self.describe_resources(&[ConfigResource::broker(&name)?])?;
        in_order([name.as_str()].into_iter(), results).pop().unwrap_or_else(|| Ok(TopicConfig::new()))
    }

    fn describe_resources(&self, resources: &[ConfigResource]) -> Outcome<BTreeMap<String, Outcome<TopicConfig>>> {
        let mut pointers: Vec<_> = resources.iter().map(|resource| resource.0.as_ptr()).collect();
        let event = self.call(Operation::RD_KAFKA_ADMIN_OP_DESCRIBECONFIGS, |client, options, queue| {
            // SAFETY: all pointers are alive; the call copies the resources.
            unsafe {
                bindings::rd_kafka_DescribeConfigs(client, pointers.as_mut_ptr(), pointers.len(), options, queue);
            }
        })?;
        // SAFETY: the event is the result of this operation and owns all that is read here.
        let results = unsafe {
            let mut count = 0;
            let result = bindings::rd_kafka_event_DescribeConfigs_result(event.0.as_ptr());
            let resources = bindings::rd_kafka_DescribeConfigs_result_resources(result, &raw mut count);
            let read = |resource: &*const _| {
                let name = text(bindings::rd_kafka_ConfigResource_name(*resource));
                let failure = check(
                    bindings::rd_kafka_ConfigResource_error(*resource),
                    bindings::rd_kafka_ConfigResource_error_string(*resource),
                );
                let mut count = 0;
                let entries = bindings::rd_kafka_ConfigResource_configs(*resource, &raw mut count);
                let entry = |entry: &*const _| {
                    let value = bindings::rd_kafka_ConfigEntry_value(*entry);
                    (!value.is_null()).then(|| (text(bindings::rd_kafka_ConfigEntry_name(*entry)), text(value)))
                };
                (name, failure.map(|()| array(entries, count).iter().filter_map(entry).collect()))
            };
            array(resources, count).iter().map(read).collect::<BTreeMap<_, _>>()
        };
        Ok(results)
    }

    /// Sends a request and waits for its result.
    pub(super) fn call(
        &self,
        operation: Operation,
        send: impl FnOnce(*mut rd_kafka_t, *mut rd_kafka_AdminOptions_t, *mut rd_kafka_queue_t),
    ) -> Outcome<Event> {
        let client = self.client.native_ptr();
        // SAFETY: the client is alive, and the queue is dropped before it.
        let queue = unsafe { Queue::new(bindings::rd_kafka_queue_new(client)) }
            .ok_or_else(|| (RDKafkaErrorCode::Fail, "no queue for an admin call".to_owned()))?;
        let milliseconds = c_int::try_from(CALL_TIMEOUT.as_millis()).unwrap_or(c_int::MAX);
        // SAFETY: the options are created and destroyed here; the call copies them. A refused
        // timeout keeps the default.
        unsafe {
            let options = bindings::rd_kafka_AdminOptions_new(client, operation);
            bindings::rd_kafka_AdminOptions_set_request_timeout(options, milliseconds, ptr::null_mut(), 0);
            if matches!(operation, Operation::RD_KAFKA_ADMIN_OP_CREATETOPICS) {
                bindings::rd_kafka_AdminOptions_set_operation_timeout(options, milliseconds, ptr::null_mut(), 0);
            }
            send(client, options, queue.0.as_ptr());
            bindings::rd_kafka_AdminOptions_destroy(options);
        }
        // The client reports its own timeout first.
        let deadline = Instant::now() + CALL_TIMEOUT + Duration::from_secs(5);
        let mut refresh_at = Instant::now() + REFRESH_INTERVAL;
        while Instant::now() < deadline {
            let answer = queue.poll(SERVE_INTERVAL_MS);
            self.serve();
            if answer.is_none() && Instant::now() >= refresh_at {
                self.refresh_brokers();
                refresh_at = Instant::now() + REFRESH_INTERVAL;
            }
            if let Some(event) = answer {
                // SAFETY: the event is alive.
                let (code, explanation) = unsafe {
                    let event = event.0.as_ptr();
                    (bindings::rd_kafka_event_error(event), bindings::rd_kafka_event_error_string(event))
                };
                // SAFETY: the event owns the explanation.
                return unsafe { check(code, explanation) }.map(|()| event);
            }
        }
        Err((RDKafkaErrorCode::OperationTimedOut, "the brokers did not answer".to_owned()))
    }

    /// Requests the list of brokers, and which of them is the controller. librdkafka sends a call
    /// to the controller of its last metadata. If that broker is gone, it waits for it, and
    /// requests metadata again only every five minutes.
    fn refresh_brokers(&self) {
        let milliseconds = c_int::try_from(REFRESH_INTERVAL.as_millis()).unwrap_or(c_int::MAX);
        let mut metadata = ptr::null();
        // SAFETY: the client is alive. Without topics the request is about the brokers. The result
        // is owned here, and not used again. An error needs no action: the next refresh follows.
        unsafe {
            bindings::rd_kafka_metadata(self.client.native_ptr(), 0, ptr::null_mut(), &raw mut metadata, milliseconds);
            if !metadata.is_null() {
                bindings::rd_kafka_metadata_destroy(metadata);
            }
        }
    }
}

/// A reference to a queue.
struct Queue(NonNull<rd_kafka_queue_t>);

// SAFETY: librdkafka's queues may be used from any thread.
unsafe impl Send for Queue {}
// SAFETY: see above.
unsafe impl Sync for Queue {}

impl Queue {
    /// # Safety
    /// The reference is owned by the result. The queue's client must outlive it.
    unsafe fn new(queue: *mut rd_kafka_queue_t) -> Option<Self> {
        NonNull::new(queue).map(Self)
    }

    fn poll(&self, milliseconds: c_int) -> Option<Event> {
        // SAFETY: the queue is alive, and the event is owned by the result.
        NonNull::new(unsafe { bindings::rd_kafka_queue_poll(self.0.as_ptr(), milliseconds) }).map(Event)
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: the reference is owned, and not used again.
        unsafe { bindings::rd_kafka_queue_destroy(self.0.as_ptr()) };
    }
}

/// An event, which owns everything that can be read from it.
pub(super) struct Event(NonNull<rd_kafka_event_t>);

impl Event {
    pub(super) fn pointer(&self) -> *mut rd_kafka_event_t {
        self.0.as_ptr()
    }

    /// Passes a log message or an error to the context, as rdkafka does for its other clients.
    fn report(&self, context: &impl ClientContext) {
        let event = self.0.as_ptr();
        // SAFETY: the event is alive and owns the texts.
        unsafe {
            match bindings::rd_kafka_event_type(event) {
                bindings::RD_KAFKA_EVENT_LOG => {
                    let (mut facility, mut message, mut level) = (ptr::null(), ptr::null(), 0);
                    if bindings::rd_kafka_event_log(event, &raw mut facility, &raw mut message, &raw mut level) == 0 {
                        context.log(log_level(level), text(facility).trim(), text(message).trim());
                    }
                }
                bindings::RD_KAFKA_EVENT_ERROR => {
                    let error = rdkafka::error::KafkaError::Global(bindings::rd_kafka_event_error(event).into());
                    context.error(error, text(bindings::rd_kafka_event_error_string(event)).trim());
                }
                _ => {}
            }
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is owned, and not used again.
        unsafe { bindings::rd_kafka_event_destroy(self.0.as_ptr()) };
    }
}

fn log_level(syslog: c_int) -> rdkafka::config::RDKafkaLogLevel {
    use rdkafka::config::RDKafkaLogLevel as Level;
    match syslog {
        ..=0 => Level::Emerg,
        1 => Level::Alert,
        2 => Level::Critical,
        3 => Level::Error,
        4 => Level::Warning,
        5 => Level::Notice,
        6 => Level::Info,
        7.. => Level::Debug,
    }
}

struct NewTopic(NonNull<bindings::rd_kafka_NewTopic_t>);

impl NewTopic {
    fn new(spec: &TopicSpec) -> Outcome<Self> {
        let name = c_text(&spec.name)?;
        let mut problem: [c_char; 512] = [0; 512];
        // SAFETY: the text and the buffer outlive the call; the topic is owned by the result.
        let topic = unsafe {
            let replication = c_int::from(spec.replication);
            let (buffer, length) = (problem.as_mut_ptr(), problem.len());
            bindings::rd_kafka_NewTopic_new(name.as_ptr(), spec.partitions, replication, buffer, length)
        };
        let Some(topic) = NonNull::new(topic).map(Self) else {
            // SAFETY: the client has written a text that ends with a zero.
            return Err((RDKafkaErrorCode::InvalidArgument, unsafe { text(problem.as_ptr()) }));
        };
        for (name, value) in &spec.config {
            let (name, value) = (c_text(name)?, c_text(value)?);
            // SAFETY: the topic is alive; the texts are copied.
            let code =
                unsafe { bindings::rd_kafka_NewTopic_set_config(topic.0.as_ptr(), name.as_ptr(), value.as_ptr()) };
            // SAFETY: there is no explanation.
            unsafe { check(code, ptr::null()) }?;
        }
        Ok(topic)
    }
}

impl Drop for NewTopic {
    fn drop(&mut self) {
        // SAFETY: the topic is owned, and not used again.
        unsafe { bindings::rd_kafka_NewTopic_destroy(self.0.as_ptr()) };
    }
}

struct ConfigResource(NonNull<bindings::rd_kafka_ConfigResource_t>);

impl ConfigResource {
    fn topic(name: &str) -> Outcome<Self> {
        Self::new(bindings::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC, name)
    }

    fn broker(id: &str) -> Outcome<Self> {
        Self::new(bindings::rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_BROKER, id)
    }

    fn new(kind: bindings::rd_kafka_ResourceType_t, name: &str) -> Outcome<Self> {
        let text = c_text(name)?;
        // SAFETY: the text is copied; the resource is owned by the result.
        let resource = unsafe { bindings::rd_kafka_ConfigResource_new(kind, text.as_ptr()) };
        let refused = || (RDKafkaErrorCode::InvalidArgument, format!("`{name}` is not the name of a topic or broker"));
        NonNull::new(resource).map(Self).ok_or_else(refused)
    }
}

impl Drop for ConfigResource {
    fn drop(&mut self) {
        // SAFETY: the resource is owned, and not used again.
        unsafe { bindings::rd_kafka_ConfigResource_destroy(self.0.as_ptr()) };
    }
}

pub(super) fn c_text(text: &str) -> Outcome<CString> {
    CString::new(text).map_err(|_| (RDKafkaErrorCode::InvalidArgument, "a name contains a zero byte".to_owned()))
}

/// # Safety
/// The text must be null or end with a zero.
pub(super) unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: see the function's contract.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// # Safety
/// The array must be null or have `count` elements, and live as long as the result.
pub(super) unsafe fn array<'a, T>(elements: *mut *const T, count: usize) -> &'a [*const T] {
    if elements.is_null() {
        return &[];
    }
    // SAFETY: see the function's contract.
    unsafe { slice::from_raw_parts(elements, count) }
}

/// # Safety
/// The explanation must be null or end with a zero.
pub(super) unsafe fn check(code: rd_kafka_resp_err_t, explanation: *const c_char) -> Outcome<()> {
    if code == rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
        return Ok(());
    }
    // SAFETY: see the function's contract.
    Err((code.into(), unsafe { text(explanation) }))
}

/// The outcome of each topic.
///
/// # Safety
///
/// `topics` is an array of `count` results that live during the call.
unsafe fn topic_outcomes(
    topics: *mut *const bindings::rd_kafka_topic_result_t,
    count: usize,
) -> BTreeMap<String, Outcome<()>> {
    // SAFETY: see the function's contract.
    unsafe {
        let read = |topic: &*const _| {
            let name = text(bindings::rd_kafka_topic_result_name(*topic));
            let outcome = check(
                bindings::rd_kafka_topic_result_error(*topic),
                bindings::rd_kafka_topic_result_error_string(*topic),
            );
            (name, outcome)
        };
        array(topics, count).iter().map(read).collect()
    }
}

/// The results in the order of the request. A topic that is missing from the answer has failed.
pub(super) fn in_order<'n, T>(
    names: impl Iterator<Item = &'n str>,
    mut results: BTreeMap<String, Outcome<T>>,
) -> Vec<Outcome<T>> {
    let missing = || Err((RDKafkaErrorCode::Fail, "the answer does not contain this topic".to_owned()));
    names.map(|name| results.remove(name).unwrap_or_else(missing)).collect()
}
