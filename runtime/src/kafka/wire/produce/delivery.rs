//! Sends the batches of a [`SendBuffer`] to the leaders of their partitions, and collects the
//! answers.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ProduceRequest, TopicName, TransactionalId};
use kafka_protocol::protocol::StrBytes;
use trunkline_connector::{Error, Result};

use super::record_batch::Identity;
use super::send_buffer::{MAX_IN_FLIGHT, SendBuffer};
use crate::kafka::client::classify_code;
use crate::kafka::wire::Lost;
use crate::kafka::wire::brokers::{Brokers, CallError};
use crate::kafka::wire::connection::readiness::wait;
use crate::kafka::wire::errors::{code, is_transient};

/// Bytes of a request with batches of several partitions, about.
const REQUEST_BYTES: usize = 1 << 20;

/// A leader waits this long for its replicas: less than the client waits for the answer.
const REPLICAS_LIMIT: Duration = Duration::from_secs(15);

/// A call that looks topics up or opens a connection takes at most this long. Other partitions wait
/// meanwhile.
const STEP_LIMIT: Duration = Duration::from_secs(5);

/// The versions of Produce: from 2.5, the oldest broker; newer ones change the meaning of
/// transactions (KIP-890).
pub(in crate::kafka) const VERSIONS: std::ops::RangeInclusive<i16> = 3..=9;

/// The records of a producer on their way to the brokers.
pub(in crate::kafka) struct Delivery {
    pub(in crate::kafka::wire) brokers: Brokers,
    pub(in crate::kafka) buffer: SendBuffer,
    transactional_id: TransactionalId,
    /// Requests in flight, by broker, in their order.
    requests: HashMap<i32, VecDeque<Request>>,
    /// The first failure: the transaction cannot be committed.
    failure: Option<Error>,
    batch_bytes: usize,
    last_progress: Instant,
}

/// A request in flight.
struct Request {
    /// The connection that it was sent over.
    connection: u64,
    correlation: i32,
    version: i16,
    /// Partitions, and the sequence numbers of their batches.
    batches: Vec<(usize, i32)>,
}

impl Delivery {
    pub(in crate::kafka::wire) fn new(
        brokers: Brokers,
        buffer: SendBuffer,
        transactional_id: &str,
        batch_bytes: usize,
    ) -> Self {
        Self {
            brokers,
            buffer,
            transactional_id: TransactionalId(StrBytes::from_string(transactional_id.to_owned())),
            requests: HashMap::new(),
            failure: None,
            batch_bytes,
            last_progress: Instant::now(),
        }
    }

    /// Fails if a batch was refused.
    pub(in crate::kafka) fn check(&self) -> Result<()> {
        self.failure.clone().map_or(Ok(()), Err)
    }

    /// When a batch was acknowledged last.
    pub(in crate::kafka) fn last_progress(&self) -> Instant {
        self.last_progress
    }

    /// Topics and partitions with records that the transaction does not contain yet.
    pub(in crate::kafka::wire) fn not_added(&self) -> (Vec<usize>, BTreeMap<String, Vec<i32>>) {
        let found = self.buffer.not_added();
        let mut topics = BTreeMap::<String, Vec<i32>>::new();
        for at in &found {
            topics.entry(self.buffer.topic(*at).to_owned()).or_default().push(self.buffer.number(*at));
        }
        (found, topics)
    }

    /// Sends what may be sent, and takes the answers that have arrived, without waiting for any.
    /// The partitions must be a part of the transaction.
    pub(in crate::kafka::wire) fn advance(&mut self, producer: Identity) {
        self.receive();
        // Each round sends at most one batch of each partition.
        while self.buffer.has_ready() && self.failure.is_none() && self.send(producer) {}
        self.receive();
    }

    /// Whether a batch can be sent without waiting for an answer.
    pub(in crate::kafka::wire) fn has_sendable(&self) -> bool {
        let is_free = |at: &usize| match self.brokers.leader(self.buffer.topic(*at), self.buffer.number(*at)) {
            Some(leader) => self.requests.get(&leader.node).is_none_or(|requests| requests.len() < MAX_IN_FLIGHT),
            None => true,
        };
        self.buffer.sendable(Instant::now()).iter().any(is_free)
    }

    /// Waits until something has arrived or may be sent, at most until `deadline`.
    pub(in crate::kafka::wire) fn wait(&self, deadline: Instant) {
        let until = self.buffer.next_attempt(Instant::now()).map_or(deadline, |next| next.min(deadline));
        let sockets: Vec<_> = self.brokers.readiness().collect();
        wait(&sockets, until);
    }

    /// Sends one batch of each partition that may be sent. Returns whether there were any.
    fn send(&mut self, producer: Identity) -> bool {
        let mut by_node = BTreeMap::<i32, Vec<usize>>::new();
        let mut unknown = Vec::new();
        for at in self.buffer.sendable(Instant::now()) {
            match self.brokers.leader(self.buffer.topic(at), self.buffer.number(at)) {
                Some(leader) => by_node.entry(leader.node).or_default().push(at),
                None => unknown.push(at),
            }
        }
        if !unknown.is_empty() {
            self.look_up(&unknown);
            // With their leaders, they are sent in the next round; without, after a pause.
            return true;
        }
        let mut has_sent = false;
        for (node, partitions) in by_node {
            has_sent |= self.send_to(node, &partitions, producer);
        }
        has_sent
    }

    fn look_up(&mut self, partitions: &[usize]) {
        let mut topics: Vec<String> = partitions.iter().map(|at| self.buffer.topic(*at).to_owned()).collect();
        topics.sort_unstable();
        topics.dedup();
        let names: Vec<&str> = topics.iter().map(String::as_str).collect();
        match self.brokers.refresh(&names, Instant::now() + STEP_LIMIT) {
            Ok(()) | Err(CallError::Lost(_)) => {}
            Err(CallError::Refused(error)) => {
                self.failure.get_or_insert(error);
            }
        }
        for at in partitions {
            if self.brokers.leader(self.buffer.topic(*at), self.buffer.number(*at)).is_none() {
                self.buffer.partition(*at).delay();
            }
        }
    }

    /// Sends one batch of each of these partitions to their leader, in one request if they are
    /// small.
    fn send_to(&mut self, node: i32, partitions: &[usize], producer: Identity) -> bool {
        let in_flight = self.requests.get(&node).map_or(0, VecDeque::len);
        if in_flight >= MAX_IN_FLIGHT {
            return false;
        }
        let version = match self.brokers.connection(node, Instant::now() + STEP_LIMIT) {
            Ok(connection) => connection.version::<ProduceRequest>(VERSIONS),
            Err(lost) => {
                tracing::debug!(node, reason = lost.0, "the leader of partitions cannot be reached");
                // It may have moved: the leaders are looked up again.
                self.forget(partitions);
                return false;
            }
        };
        let version = match version {
            Ok(version) => version,
            Err(error) => {
                self.failure.get_or_insert(error);
                return false;
            }
        };
        let mut batches = Vec::new();
        let mut topics = BTreeMap::<String, Vec<PartitionProduceData>>::new();
        let mut bytes = 0;
        for at in partitions {
            if bytes >= REQUEST_BYTES {
                break;
            }
            let Some(batch) = self.buffer.take(*at, producer) else { continue };
            bytes += batch.bytes.len();
            batches.push((*at, batch.sequence));
            let data =
                PartitionProduceData::default().with_index(self.buffer.number(*at)).with_records(Some(batch.bytes));
            topics.entry(self.buffer.topic(*at).to_owned()).or_default().push(data);
        }
        let request = request(Some(self.transactional_id.clone()), REPLICAS_LIMIT, topics);
        let sent = match self.brokers.open_connection(node) {
            Some(connection) => connection.send(version, &request).map(|number| (connection.serial(), number)),
            None => Err(Lost("the connection is closed".to_owned())),
        };
        match sent {
            Ok((connection, correlation)) => {
                let request = Request { connection, correlation, version, batches };
                self.requests.entry(node).or_default().push_back(request);
                self.receive_from(node);
            }
            Err(lost) => {
                self.reject(&batches);
                self.lose(node, &lost);
            }
        }
        true
    }

    /// The leaders of these partitions are looked up again, after a pause.
    fn forget(&mut self, partitions: &[usize]) {
        for at in partitions {
            self.brokers.forget_leader(self.buffer.topic(*at));
            self.buffer.partition(*at).delay();
        }
    }

    fn reject(&mut self, batches: &[(usize, i32)]) {
        for (at, _) in batches {
            self.brokers.forget_leader(self.buffer.topic(*at));
            self.buffer.reject(*at);
        }
    }

    /// Closes a connection: the outcome of its requests is unknown, and they are sent again.
    fn lose(&mut self, node: i32, lost: &Lost) {
        tracing::debug!(node, reason = lost.0, "a connection to a broker was lost");
        self.brokers.note_lost(lost);
        self.brokers.close(node);
        self.give_up_requests(node);
    }

    fn give_up_requests(&mut self, node: i32) {
        for request in self.requests.remove(&node).unwrap_or_default() {
            self.reject(&request.batches);
        }
    }

    /// Takes all answers that have arrived.
    fn receive(&mut self) {
        let nodes: Vec<i32> = self.requests.keys().copied().collect();
        nodes.into_iter().for_each(|node| self.receive_from(node));
    }

    fn receive_from(&mut self, node: i32) {
        loop {
            let Some(first) = self.requests.get(&node).and_then(|requests| requests.front()) else { return };
            let Some(connection) =
                self.brokers.open_connection(node).filter(|connection| connection.serial() == first.connection)
            else {
                // A call over the connection has failed meanwhile, and closed it.
                self.give_up_requests(node);
                return;
            };
            match connection.progress() {
                Ok(None) => return,
                Ok(Some((correlation, body))) => {
                    if let Err(lost) = self.take_answer(node, correlation, body) {
                        self.lose(node, &lost);
                        return;
                    }
                }
                Err(lost) => {
                    self.lose(node, &lost);
                    return;
                }
            }
        }
    }

    fn take_answer(&mut self, node: i32, correlation: i32, body: Bytes) -> Result<(), Lost> {
        let requests = self.requests.entry(node).or_default();
        let Some(request) = requests.pop_front_if(|first| first.correlation == correlation) else {
            return Err(Lost("an answer to another request".to_owned()));
        };
        if requests.is_empty() {
            self.requests.remove(&node);
        }
        let decoded = match self.brokers.open_connection(node) {
            Some(connection) => connection.decode::<ProduceRequest>(request.version, body),
            None => Err(Lost("the connection was closed".to_owned())),
        };
        let answer = match decoded {
            Ok(answer) => answer,
            Err(lost) => {
                self.reject(&request.batches);
                return Err(lost);
            }
        };
        let mut outcomes = HashMap::new();
        for topic in &answer.responses {
            for partition in &topic.partition_responses {
                outcomes.insert((topic.name.0.as_str(), partition.index), partition);
            }
        }
        for (at, sequence) in request.batches {
            let key = (self.buffer.topic(at).to_owned(), self.buffer.number(at));
            let outcome = outcomes.get(&(key.0.as_str(), key.1));
            let reason = outcome.and_then(|outcome| outcome.error_message.as_ref()).map(|text| text.to_string());
            self.take_outcome((at, sequence), outcome.map_or(-1, |outcome| outcome.error_code), reason);
        }
        Ok(())
    }

    fn take_outcome(&mut self, (at, sequence): (usize, i32), error: i16, reason: Option<String>) {
        use ResponseError as Code;
        let known = ResponseError::try_from_code(error);
        match known {
            None | Some(Code::DuplicateSequenceNumber) => {
                self.buffer.acknowledge(at, sequence);
                self.last_progress = Instant::now();
            }
            // A batch that follows a rejected one.
            Some(Code::OutOfOrderSequenceNumber) if !self.buffer.is_first(at, sequence) => self.buffer.reject(at),
            Some(_) if is_transient(error) => self.reject(&[(at, sequence)]),
            Some(other) => {
                let topic = self.buffer.topic(at).to_owned();
                if matches!(other, Code::MessageTooLarge | Code::RecordListTooLarge) {
                    let largest = self.buffer.largest(at, sequence);
                    self.brokers.cluster().limits().note_refusal(&topic, largest, self.batch_bytes);
                }
                let reason = reason.map_or(String::new(), |reason| format!(": {reason}"));
                let message = format!("a record was not delivered to topic `{topic}`: {}{reason}", code(error));
                self.failure.get_or_insert(failed(error, message));
                self.buffer.reject(at);
            }
        }
    }

    /// Discards all records and failures. Waits until the requests in flight are answered, at most
    /// until `deadline`, and gives them up then. Returns whether the next sequence numbers are
    /// unknown.
    pub(in crate::kafka::wire) fn discard(&mut self, deadline: Instant) -> bool {
        while !self.requests.is_empty() && Instant::now() < deadline {
            self.receive();
            if !self.requests.is_empty() {
                let sockets: Vec<_> = self.brokers.readiness().collect();
                wait(&sockets, deadline);
            }
        }
        for node in self.requests.keys().copied().collect::<Vec<_>>() {
            self.brokers.close(node);
        }
        self.requests.clear();
        self.failure = None;
        self.buffer.discard()
    }
}

/// A request that writes batches of partitions, by topic. Without a transactional id, they belong
/// to no transaction. All replicas in sync have to store them within `limit`.
pub(in crate::kafka) fn request(
    transactional_id: Option<TransactionalId>,
    limit: Duration,
    topics: BTreeMap<String, Vec<PartitionProduceData>>,
) -> ProduceRequest {
    let topics = topics.into_iter().map(|(name, partitions)| {
        TopicProduceData::default().with_name(TopicName(StrBytes::from_string(name))).with_partition_data(partitions)
    });
    ProduceRequest::default()
        .with_transactional_id(transactional_id)
        .with_acks(-1)
        .with_timeout_ms(limit.as_millis() as i32)
        .with_topic_data(topics.collect())
}

/// The error of a step that a broker refused.
pub(in crate::kafka::wire) fn failed(error: i16, message: String) -> Error {
    use ResponseError as Code;
    match ResponseError::try_from_code(error) {
        Some(Code::ProducerFenced | Code::InvalidProducerEpoch) => {
            let why = "another task has taken over, or the transaction timed out";
            Error::fenced("kafka.fenced", format!("{message} ({why})"))
        }
        _ => classify_code(Some(code(error)), message),
    }
}
