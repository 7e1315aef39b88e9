//! The transactional producer: the only way Trunkline writes to Kafka.
//!
//! `init_transactions` fences whoever used the same transactional id before (I4) and settles what it left open, so a task that has a
//! producer may read its committed state and go on from there.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerGroupMetadata;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use rdkafka::topic_partition_list::TopicPartitionList;
use trunkline_connector::batch::Headers;
use trunkline_connector::{Error, Result, failpoint};

use super::client::{ClientLog, Cluster, FENCED, classify};
use super::rebootstrap::Rebootstrap;

/// A record on its way to a topic.
pub struct Outgoing<'a> {
    /// The topic.
    pub topic: &'a str,
    /// The partition, always named: order depends on it (I5).
    pub partition: i32,
    /// Milliseconds since the epoch; `None` = now.
    pub timestamp: Option<i64>,
    /// The key.
    pub key: Option<&'a [u8]>,
    /// The value; `None` = tombstone.
    pub value: Option<&'a [u8]>,
    /// Headers as a batch encodes them.
    pub headers: &'a [u8],
    /// Further headers.
    pub more_headers: &'a [(&'a str, &'a [u8])],
}

/// A producer with a transactional id, initialised.
pub struct TransactionalProducer {
    producer: Arc<BaseProducer<DeliveryContext>>,
    in_transaction: bool,
    /// A call into the client never came back: nothing more can be done with it.
    abandoned: bool,
    bytes: usize,
    records: usize,
    /// Bytes that may wait for being answered.
    most: usize,
    /// Bytes handed over since it was last looked how many do.
    since_look: usize,
    flush: Flush,
    /// When the last transaction ended.
    last_end: Option<Instant>,
}

/// When to flush. As long as a flush lasts, librdkafka's thread spins if a request is under way to a partition for which more records wait: a hundred
/// producers then take all processors away from the broker whose answers they wait for. So it is best done while nothing is under way.
struct Flush {
    /// Records, from the producer's first on.
    handed_over: usize,
    /// How many of them had been handed over at the last flush.
    flushed: usize,
    answered: usize,
    /// When the last answer came.
    progress: Instant,
    /// Has one come since the last flush?
    progressed: bool,
    patience: Duration,
}

impl Flush {
    fn new() -> Self {
        Self {
            handed_over: 0,
            flushed: 0,
            answered: 0,
            progress: Instant::now(),
            progressed: false,
            patience: PATIENCE,
        }
    }

    /// Takes up that so many records are not answered yet.
    fn left(&mut self, left: usize) {
        let answered = self.handed_over.saturating_sub(left);
        if answered > self.answered {
            (self.answered, self.progress, self.progressed, self.patience) = (answered, Instant::now(), true, PATIENCE);
        }
    }

    /// How long to flush for a commit, which waits for all of them; not at all while it is better to wait.
    fn for_commit(&self) -> Option<i32> {
        if self.answered >= self.flushed {
            return Some(FLUSH_MS);
        }
        (self.progressed || self.progress.elapsed() >= self.patience).then_some(SHORT_FLUSH_MS)
    }

    /// While the send buffer is full: full batches go out by themselves and make room, but there may be none.
    fn for_room(&self) -> Option<i32> {
        let quiet = self.progress.elapsed();
        let is_stuck = self.answered >= self.flushed && quiet >= QUIET || quiet >= MOST_PATIENCE;
        is_stuck.then_some(SHORT_FLUSH_MS)
    }

    fn begun(&mut self) {
        (self.flushed, self.progress, self.progressed) = (self.handed_over, Instant::now(), false);
        self.patience = (self.patience * 2).min(MOST_PATIENCE);
    }
}

/// Keeps the first delivery failure: the transaction it was part of cannot be committed.
struct DeliveryContext {
    failure: Mutex<Option<KafkaError>>,
    rebootstrap: Rebootstrap,
    log: ClientLog,
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.rebootstrap.reported(&error);
        self.log.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            self.failure.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_with(|| error.clone());
        }
    }
}

/// How long a call waits for the other side before it is tried again.
const STEP_TIMEOUT: Duration = Duration::from_secs(5);

/// The largest record.
const MOST_RECORD_BYTES: usize = 16_000_000;

/// A batch of records is sent when it has so many bytes.
const BATCH_BYTES: usize = 1_000_000;

/// Events that are served before a transaction begins.
const SERVED: usize = 8;

/// How long a flush lasts while nothing is under way: it ends when all is answered, and the brokers may first have to take the partitions into
/// the transaction.
const FLUSH_MS: i32 = 20;

/// How long it lasts otherwise: enough for librdkafka's thread to send what waits.
const SHORT_FLUSH_MS: i32 = 2;

/// A transaction begins so long after the last one at the earliest: the broker ends that one after it has answered, and would refuse the first
/// request of this one until it has, which librdkafka repeats after 20 ms.
const SETTLE: Duration = Duration::from_millis(2);

/// So long after the last answer nothing is under way, if everything that was flushed is answered.
const QUIET: Duration = Duration::from_millis(5);

/// A flush is tried again when no answer has come for so long, and then after twice the time each.
const PATIENCE: Duration = Duration::from_millis(5);
const MOST_PATIENCE: Duration = Duration::from_millis(400);

/// How long a group's coordinator has to take offsets; it may be moving to another node.
const OFFSETS_LIMIT: Duration = Duration::from_secs(20);

/// How long a transaction's coordinator has to begin or end it: longer than it is asked again, for this is only for a client that does not come back.
const END_LIMIT: Duration = Duration::from_secs(60);

/// How long a step is tried again while the brokers do not answer. The broker aborts the transaction by then
/// (`transaction.timeout.ms`), so there is nothing left to wait for.
const STEP_LIMIT: Duration = Duration::from_secs(45);

impl TransactionalProducer {
    /// Connects, by asking for a `topic` that exists, and fences the id's earlier owner. `buffer_bytes` bounds what waits to be sent (I6).
    pub fn new(cluster: &Cluster, transactional_id: &str, topic: &str, buffer_bytes: usize) -> Result<Self> {
        // A buffer that held little more than a batch would let that one go out by itself, and a rest wait behind it ([`Flush`]).
        let most = if buffer_bytes < 2 * BATCH_BYTES { buffer_bytes.min(BATCH_BYTES / 10 * 9) } else { buffer_bytes };
        // librdkafka refuses a record that is larger than its buffer for ever: the bound is kept by `send`.
        let buffer = ((most + 2 * MOST_RECORD_BYTES) / 1024).to_string();
        let mut config = cluster.config(&[
            ("compression.type", "lz4"),
            // Batches fill up; what is left is pushed out by a commit, or when the send buffer is full ([`TransactionalProducer::push_out`]).
            // A short time here would make no record earlier, for nobody reads them before the commit, but has librdkafka's thread spin
            // while a request is under way and what waits is older than this: more than half of its processor time with a broker that
            // is not very fast, and all of the machine's with a hundred such producers.
            ("linger.ms", "10000"),
            ("batch.size", &BATCH_BYTES.to_string()),
            ("batch.num.messages", "10000"),
            ("message.max.bytes", &MOST_RECORD_BYTES.to_string()),
            ("queue.buffering.max.kbytes", &buffer),
            ("queue.buffering.max.messages", "500000"),
            // A report for each record that arrived would cost a tenth of the processor time; what counts is the commit.
            ("delivery.report.only.error", "true"),
            // A dead task's open transaction holds up readers no longer than this.
            ("transaction.timeout.ms", "30000"),
        ]);
        config.set("transactional.id", transactional_id).set("acks", "all").set("enable.idempotence", "true");
        let rebootstrap = Rebootstrap::of(&config);
        let context = DeliveryContext { failure: Mutex::default(), rebootstrap, log: cluster.client_log() };
        let producer = cluster.create(&config, context)?;
        let mut this = Self {
            producer: Arc::new(producer),
            in_transaction: false,
            abandoned: false,
            bytes: 0,
            records: 0,
            most,
            since_look: 0,
            flush: Flush::new(),
            last_end: None,
        };
        this.connect(topic);
        failpoint!("producer.init.before")?;
        this.in_time("claiming the transactional id", END_LIMIT, |producer| producer.init_transactions(STEP_TIMEOUT))?;
        failpoint!("producer.init.after")?;
        Ok(this)
    }

    /// Waits for a connection. `init_transactions` looks for the coordinator at once, and if nothing is connected by then only 500 ms later.
    /// Twice, because the first answer makes the client leave the address it was given for the one that the broker gives itself.
    fn connect(&self, topic: &str) {
        let client = self.producer.client();
        let asked = client.fetch_metadata(Some(topic), STEP_TIMEOUT);
        // What goes wrong here goes wrong in the next step too, which says so.
        let _ = asked.and_then(|_| client.fetch_metadata(Some(topic), STEP_TIMEOUT));
    }

    /// Bytes sent in the open transaction.
    pub fn transaction_bytes(&self) -> usize {
        self.bytes
    }

    /// Is a transaction open?
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Sends a record in the open transaction, beginning one if there is none. Waits while the send buffer is full.
    pub fn send(&mut self, record: &Outgoing<'_>) -> Result<()> {
        self.begin()?;
        if self.since_look >= self.most / 8 {
            self.since_look = 0;
            self.wait_for_room()?;
        }
        let mut outgoing = BaseRecord::<[u8], [u8]>::to(record.topic).partition(record.partition);
        if let Some(key) = record.key {
            outgoing = outgoing.key(key);
        }
        if let Some(value) = record.value {
            outgoing = outgoing.payload(value);
        }
        if let Some(timestamp) = record.timestamp {
            outgoing = outgoing.timestamp(timestamp);
        }
        if !record.headers.is_empty() || !record.more_headers.is_empty() {
            outgoing = outgoing.headers(encode_headers(record));
        }
        let mut full_since = None;
        loop {
            match self.producer.send(outgoing) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), returned))
                    if full_since.get_or_insert_with(Instant::now).elapsed() < STEP_LIMIT =>
                {
                    outgoing = returned;
                    self.flush.left(self.left());
                    let begun = *full_since.get_or_insert_with(Instant::now);
                    self.push_out(self.flush.for_room(), nap_for_room(begun));
                    self.check_delivery()?;
                }
                Err((error, _)) => return Err(self.failed(&format!("sending to `{}`", record.topic), &error)),
            }
        }
        let bytes = record.key.map_or(0, <[u8]>::len) + record.value.map_or(0, <[u8]>::len) + record.headers.len();
        self.bytes += bytes;
        self.since_look += bytes;
        self.records += 1;
        self.flush.handed_over += 1;
        if self.records.is_multiple_of(1024) {
            poll(&self.producer, Duration::ZERO);
            self.check_delivery()?;
        }
        Ok(())
    }

    /// Adds consumer offsets to the open transaction, beginning one if there is none (I2). The group's generation fences members that
    /// lost their partitions (KIP-447).
    pub fn send_offsets(&mut self, offsets: &TopicPartitionList, group: ConsumerGroupMetadata) -> Result<()> {
        self.begin()?;
        failpoint!("producer.offsets.before")?;
        let offsets = offsets.clone();
        self.in_time("committing offsets in the transaction", OFFSETS_LIMIT, move |producer| {
            producer.send_offsets_to_transaction(&offsets, &group, STEP_TIMEOUT)
        })?;
        failpoint!("producer.offsets.after")
    }

    /// Calls a step, again while it says that it may be, in a thread of its own, and gives it up after `limit`: librdkafka 2.12 does not always keep
    /// its timeout, and waits for ever if a coordinator is removed from the cluster's metadata meanwhile (librdkafka issues 5456 and 5511). A
    /// producer that was given up fails every later call; the stage starts over with a new one, which settles the transaction.
    fn in_time(
        &mut self,
        doing: &'static str,
        limit: Duration,
        mut step: impl FnMut(&BaseProducer<DeliveryContext>) -> Result<(), KafkaError> + Send + 'static,
    ) -> Result<()> {
        let producer = self.producer.clone();
        let (sender, answer) = std::sync::mpsc::sync_channel(1);
        let call = move || {
            let outcome = retry(&producer, doing, || step(&producer));
            // Whoever waits has the client then: closing it takes time.
            drop(producer);
            // Nobody listens any more if it took too long.
            let _ = sender.send(outcome);
        };
        std::thread::Builder::new()
            .name("kafka-step".to_owned())
            .spawn(call)
            .map_err(|error| Error::external("kafka.thread", format!("cannot start a thread: {error}")))?;
        answer.recv_timeout(limit).unwrap_or_else(|_| {
            self.abandoned = true;
            let message = format!("{doing}: the coordinator did not answer in time; going on with a new producer");
            Err(Error::external("kafka.stuck", message))
        })
    }

    /// Commits the open transaction, if there is one. After an error the transaction is aborted or will be, and nothing of it counts.
    pub fn commit(&mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        failpoint!("producer.commit.before")?;
        self.drain()?;
        failpoint!("producer.commit.delivered")?;
        self.in_time("committing a transaction", END_LIMIT, |producer| producer.commit_transaction(STEP_TIMEOUT))?;
        self.ended();
        failpoint!("producer.commit.after")
    }

    /// Aborts the open transaction, if there is one.
    pub fn abort(&mut self) -> Result<()> {
        if !self.in_transaction {
            return Ok(());
        }
        if self.abandoned {
            return Err(Error::external("kafka.stuck", "the producer was given up"));
        }
        failpoint!("producer.abort.before")?;
        self.in_time("aborting a transaction", END_LIMIT, |producer| producer.abort_transaction(STEP_TIMEOUT))?;
        self.ended();
        failpoint!("producer.abort.after")
    }

    fn begin(&mut self) -> Result<()> {
        if !self.in_transaction {
            if let Some(left) = self.last_end.and_then(|at| SETTLE.checked_sub(at.elapsed())) {
                std::thread::park_timeout(left);
            }
            // Nobody has served it since the last one: its brokers may be lost. A call takes up one event.
            (0..SERVED).for_each(|_| poll(&self.producer, Duration::ZERO));
            self.producer.begin_transaction().map_err(|error| self.failed("beginning a transaction", &error))?;
            self.in_transaction = true;
        }
        Ok(())
    }

    fn ended(&mut self) {
        self.in_transaction = false;
        self.last_end = Some(Instant::now());
        self.bytes = 0;
        self.records = 0;
        *self.producer.context().failure.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Waits until no more bytes than allowed are unanswered, as far as the mean size of records tells.
    fn wait_for_room(&mut self) -> Result<()> {
        let mean = self.bytes / self.records.max(1);
        let started = Instant::now();
        loop {
            let left = self.left();
            self.flush.left(left);
            if left * mean <= self.most || left <= 1 {
                return Ok(());
            }
            self.push_out(self.flush.for_room(), nap_for_room(started));
            self.check_delivery()?;
            if started.elapsed() > STEP_LIMIT {
                return Err(unanswered());
            }
        }
    }

    /// Waits until everything sent was acknowledged. Committing would do so itself, but in steps of 100 ms.
    fn drain(&mut self) -> Result<()> {
        let started = Instant::now();
        loop {
            let left = self.left();
            self.flush.left(left);
            if left == 0 {
                return self.check_delivery();
            }
            self.push_out(self.flush.for_commit(), nap_for_commit(started));
            if started.elapsed() > STEP_LIMIT {
                return Err(unanswered());
            }
        }
    }

    /// Records that are not answered yet.
    fn left(&self) -> usize {
        usize::try_from(self.producer.in_flight_count()).unwrap_or(0)
    }

    /// Flushes for so many milliseconds, or naps.
    fn push_out(&mut self, flush: Option<i32>, nap: Duration) {
        if let Some(milliseconds) = flush {
            // SAFETY: the pointer is the client's, which lives as long as `self`; the call may be made from any thread.
            unsafe { rdkafka::bindings::rd_kafka_flush(self.producer.client().native_ptr(), milliseconds) };
            self.flush.begun();
        } else {
            // A poll with a short timeout would spin: rdkafka asks the client again and again for the fraction of a millisecond that the
            // client does not wait.
            std::thread::park_timeout(nap);
        }
        poll(&self.producer, Duration::ZERO);
    }

    fn check_delivery(&self) -> Result<()> {
        let failure = self.producer.context().failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match failure {
            Some(error) => Err(self.failed("a record was not delivered", &error)),
            None => Ok(()),
        }
    }

    fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        failed(&self.producer, doing, error)
    }
}

/// How long to wait before looking again for room in the send buffer: the longer the longer it has been, or a hundred producers that wait on a busy machine
/// keep it busy by looking. The rest of the buffer is still being sent meanwhile.
fn nap_for_room(begun: Instant) -> Duration {
    (begun.elapsed() / 2).clamp(Duration::from_millis(1), Duration::from_millis(20))
}

/// The same for a commit, which readers wait for.
fn nap_for_commit(begun: Instant) -> Duration {
    (begun.elapsed() / 8).clamp(Duration::from_millis(1), Duration::from_millis(10))
}

fn unanswered() -> Error {
    Error::external("kafka.unreachable", "the brokers did not acknowledge what was sent within 45 s")
}

/// What an error means. Once the producer was fenced every call fails, with words of its own: the reason is the fatal error.
fn failed(producer: &BaseProducer<DeliveryContext>, doing: &str, error: &KafkaError) -> Error {
    match producer.client().fatal_error() {
        Some((code, reason)) if FENCED.contains(&code) => {
            let why = "another task has taken over, or the transaction timed out";
            Error::fenced("kafka.fenced", format!("{doing}: {reason} ({why})"))
        }
        Some((_, reason)) => Error::external("kafka.failed", format!("{doing}: {reason}")),
        None => classify(doing, error),
    }
}

/// Serves delivery reports, and the client if it has lost its brokers.
fn poll(producer: &BaseProducer<DeliveryContext>, most: Duration) {
    producer.poll(most);
    producer.context().rebootstrap.mind(producer.client());
}

/// Calls a step again while it says that it may be.
fn retry(
    producer: &BaseProducer<DeliveryContext>,
    doing: &str,
    mut step: impl FnMut() -> Result<(), KafkaError>,
) -> Result<()> {
    let started = Instant::now();
    loop {
        match step() {
            Ok(()) => return Ok(()),
            Err(KafkaError::Transaction(inner)) if inner.is_retriable() && started.elapsed() < STEP_LIMIT => {
                // Also serves delivery reports, which the step may be waiting for.
                poll(producer, Duration::from_millis(20));
            }
            Err(error) => return Err(failed(producer, doing, &error)),
        }
    }
}

fn encode_headers(record: &Outgoing<'_>) -> OwnedHeaders {
    let mut count = record.more_headers.len();
    count += Headers::over(record.headers).count();
    let mut headers = OwnedHeaders::new_with_capacity(count);
    for (key, value) in Headers::over(record.headers) {
        headers = headers.insert(Header { key, value });
    }
    for (key, value) in record.more_headers {
        headers = headers.insert(Header { key, value: Some(*value) });
    }
    headers
}
