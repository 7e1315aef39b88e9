//! Watches the topic partitions of idle consumers, which then need not fetch themselves.
//!
//! A consumer at the end of its partitions sends a fetch every tenth of a second. In a worker with
//! hundreds of idle pipelines these fetches are most of the processor time, here and in the
//! brokers; and a fetch that waits longer delays the other requests on its connection. An idle
//! consumer therefore pauses its partitions ([`idle_pause`](super::idle_pause)), and one client
//! fetches the partitions of all idle consumers of the cluster instead, from their positions on.
//! Each broker answers its request at once when one of the partitions has a new committed record.
//! The record only ends the watch of the consumers that have not read it yet: they read it
//! themselves.
//!
//! Asking for the end offsets instead would need ten requests per second to be as quick. Their
//! answers cost librdkafka the square of the number of partitions, and aborted transactions would
//! wake consumers, too.
//!
//! An error of the client ends all watches. The next watch starts with a new client.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result, TopicPartition};

use super::client::{ClientLog, Cluster};
use super::logins::LoginLease;
use super::queue_notifier::{QueueNotifier, wake};

/// How long a broker waits for records, in milliseconds. A partition that is added meanwhile is
/// fetched afterwards.
const FETCH_WAIT: &str = "500";

/// The client is closed after this time without a watch.
const LINGER: Duration = Duration::from_secs(2);

/// The longest wait for records and for changes of the watches, which both end it.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// The watches of a cluster's idle consumers in this process.
#[derive(Clone, Default)]
pub(super) struct IdleWatches {
    shared: Arc<Shared>,
}

/// The watch of one consumer's partitions, until it is dropped.
pub(super) struct IdleWatch {
    shared: Arc<Shared>,
    id: u64,
    end: Arc<WatchEnd>,
}

/// How a watch ended: the partition that has a record, or `None` after a failure.
type WatchEnd = OnceLock<Option<TopicPartition>>;

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    watches: BTreeMap<u64, Watch>,
    last_id: u64,
    thread: Thread,
}

/// The thread that runs the client.
#[derive(Default)]
enum Thread {
    #[default]
    None,
    /// It creates the client.
    Starting,
    /// A byte on this socket makes it look at the watches.
    Running(Arc<UnixStream>),
}

struct Watch {
    /// Each partition and the offset of the next record to be read; -1 is the first record.
    positions: Vec<(TopicPartition, i64)>,
    end: Arc<WatchEnd>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl IdleWatches {
    /// Calls `wake` once, from any thread, when one of the partitions may have a committed record
    /// at its offset or after it. -1 is the offset of the first record. `wake` must not block.
    pub(super) fn watch(
        &self,
        cluster: &Cluster,
        positions: Vec<(TopicPartition, i64)>,
        wake: impl Fn() + Send + Sync + 'static,
    ) -> IdleWatch {
        let end = Arc::<WatchEnd>::default();
        let mut state = self.shared.lock();
        state.last_id += 1;
        let id = state.last_id;
        state.watches.insert(id, Watch { positions, end: end.clone(), wake: Box::new(wake) });
        match &state.thread {
            Thread::None => state.thread = Thread::Starting,
            Thread::Starting => return IdleWatch { shared: self.shared.clone(), id, end },
            Thread::Running(_) => {
                state.notify();
                return IdleWatch { shared: self.shared.clone(), id, end };
            }
        }
        drop(state);
        let (shared, cluster) = (self.shared.clone(), cluster.clone());
        let spawned = std::thread::Builder::new().name("idle-watch".to_owned()).spawn(move || run(&shared, &cluster));
        if let Err(error) = spawned {
            tracing::debug!(%error, "cannot start a thread that watches idle consumers");
            self.shared.end_all();
        }
        IdleWatch { shared: self.shared.clone(), id, end }
    }

    /// The number of watches.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.shared.lock().watches.len()
    }
}

impl IdleWatch {
    /// A partition may have a record, or the client failed.
    pub(super) fn is_over(&self) -> bool {
        self.end.get().is_some()
    }

    /// The partition that has a record, if one ended the watch.
    pub(super) fn found(&self) -> Option<&TopicPartition> {
        self.end.get()?.as_ref()
    }
}

impl Drop for IdleWatch {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        if state.watches.remove(&self.id).is_some() {
            state.notify();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the watches that a record concerns.
    fn end(&self, topic: &str, partition: i32, offset: i64) {
        let is_new = |(watched, position): &&(TopicPartition, i64)| {
            watched.partition == partition && watched.topic.as_ref() == topic && *position <= offset
        };
        let concerns = |watch: &Watch| watch.positions.iter().any(|watched| is_new(&watched));
        let ended: Vec<_> = self.lock().watches.extract_if(.., |_, watch| concerns(watch)).collect();
        for (_, watch) in ended {
            let found = watch.positions.iter().find(is_new).map(|(partition, _)| partition.clone());
            watch.end(found);
        }
    }

    /// Ends all watches. The thread ends, too: the next watch starts another one.
    fn end_all(&self) {
        let ended = {
            let mut state = self.lock();
            state.thread = Thread::None;
            std::mem::take(&mut state.watches)
        };
        ended.into_values().for_each(|watch| watch.end(None));
    }
}

impl State {
    fn notify(&self) {
        if let Thread::Running(sender) = &self.thread {
            wake(sender);
        }
    }

    /// The watched partitions, each with the lowest of its positions.
    fn positions(&self) -> BTreeMap<TopicPartition, i64> {
        let mut lowest = BTreeMap::new();
        for (partition, position) in self.watches.values().flat_map(|watch| &watch.positions) {
            let known = lowest.entry(partition.clone()).or_insert(*position);
            *known = (*known).min(*position);
        }
        lowest
    }
}

impl Watch {
    fn end(self, found: Option<TopicPartition>) {
        // A watch ends once.
        let _ = self.end.set(found);
        (self.wake)();
    }
}

/// Runs the client as long as there are watches.
fn run(shared: &Shared, cluster: &Cluster) {
    if let Err(error) = Client::new(cluster).and_then(|mut client| client.run(shared)) {
        tracing::debug!(%error, "the client that watches idle consumers has failed");
        shared.end_all();
    }
}

struct Client {
    /// Login and notifier are dropped before the client.
    _login: LoginLease,
    notifier: QueueNotifier,
    consumer: BaseConsumer<ClientLog>,
    cluster: Cluster,
    /// The fetched partitions, each with an offset: every record before it was seen, or is not
    /// watched.
    fetched: HashMap<TopicPartition, i64>,
}

impl Client {
    fn new(cluster: &Cluster) -> Result<Self> {
        let mut config = cluster.config(&[
            ("fetch.wait.max.ms", FETCH_WAIT),
            // One record of each partition is enough.
            ("fetch.message.max.bytes", "4096"),
            ("queued.max.messages.kbytes", "1024"),
        ]);
        config
            .set("group.id", "trunkline-reader") // The client requires one. The group is never joined.
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer<ClientLog> = cluster.create(&config, cluster.client_log())?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        let notifier = QueueNotifier::new(consumer.client().native_ptr(), None).map_err(|error| {
            Error::external("kafka.wake", format!("cannot open a socket for the watch of idle consumers: {error}"))
        })?;
        Ok(Self { _login: login, notifier, consumer, cluster: cluster.clone(), fetched: HashMap::new() })
    }

    fn run(&mut self, shared: &Shared) -> Result<()> {
        shared.lock().thread = Thread::Running(self.notifier.sender());
        let mut unused_since = None;
        loop {
            let positions = {
                let mut state = shared.lock();
                if !state.watches.is_empty() {
                    unused_since = None;
                } else if unused_since.get_or_insert_with(Instant::now).elapsed() >= LINGER {
                    state.thread = Thread::None;
                    return Ok(());
                }
                state.positions()
            };
            self.fetch(positions)?;
            while let Some(polled) = self.consumer.poll(Duration::ZERO) {
                let message = match polled {
                    Ok(message) => message,
                    // The client looks up the coordinator of its group, which it never joins.
                    Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {
                        continue;
                    }
                    Err(error) => return Err(self.failed(&error)),
                };
                let (partition, mut offset) = (message.partition(), message.offset());
                let is_same =
                    |known: &TopicPartition| known.partition == partition && known.topic.as_ref() == message.topic();
                if let Some((_, next)) = self.fetched.iter_mut().find(|(known, _)| is_same(known)) {
                    // Before the position: the topic was created again, and has lower offsets now.
                    let is_reset = offset < *next;
                    *next = offset + 1;
                    offset = if is_reset { i64::MAX } else { offset };
                }
                shared.end(message.topic(), partition, offset);
            }
            self.notifier.wait(if unused_since.is_some() { LINGER } else { MAX_WAIT }, true);
        }
    }

    /// Fetches these partitions from these offsets on, and no others. A partition that is fetched
    /// already is started again if records from its offset on were passed over.
    fn fetch(&mut self, positions: BTreeMap<TopicPartition, i64>) -> Result<()> {
        let (mut stopped, mut started) = (TopicPartitionList::new(), TopicPartitionList::new());
        self.fetched.retain(|partition, next| {
            let stays = positions.get(partition).is_some_and(|position| position >= next);
            if !stays {
                stopped.add_partition(&partition.topic, partition.partition);
            }
            stays
        });
        for (partition, position) in positions {
            if self.fetched.contains_key(&partition) {
                continue;
            }
            let offset = if position < 0 { Offset::Beginning } else { Offset::Offset(position) };
            started
                .add_partition_offset(&partition.topic, partition.partition, offset)
                .map_err(|error| self.failed(&error))?;
            self.fetched.insert(partition, position);
        }
        if stopped.count() > 0 {
            self.consumer.incremental_unassign(&stopped).map_err(|error| self.failed(&error))?;
        }
        if started.count() > 0 {
            self.consumer.incremental_assign(&started).map_err(|error| self.failed(&error))?;
        }
        Ok(())
    }

    fn failed(&self, error: &KafkaError) -> Error {
        self.cluster.failed("watching the topics of idle consumers", error)
    }
}
