//! Follows the rows of one partition of a compacted topic, outside of groups.

use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use trunkline_connector::{Error, Result};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, close_in_background};
use super::logins::LoginLease;
use super::topic_reader::is_denied;

/// Time that one poll waits while the existing rows are read.
const POLL: Duration = Duration::from_millis(20);

/// Time for a new topic to get its leaders.
const LEADER_LIMIT: Duration = Duration::from_secs(5);

/// Time between two attempts.
const LEADER_RETRY: Duration = Duration::from_millis(50);

/// A reader of rows that were written outside of transactions.
pub struct TableFollower {
    /// Dropped before the consumer.
    _login: LoginLease,
    consumer: BaseConsumer<ClientLog>,
    cluster: Cluster,
    topic: String,
    partition: i32,
}

impl TableFollower {
    /// Starts at the first row.
    pub fn new(cluster: &Cluster, topic: &str, partition: i32) -> Result<Self> {
        // A broker answers such a request when a row arrives, or after the wait: an idle follower
        // costs two requests a second.
        let mut config = cluster.config(&[("fetch.wait.max.ms", "500"), ("queued.max.messages.kbytes", "1024")]);
        config
            .set("group.id", "trunkline-reader") // The client requires one. The group is never joined.
            .set("isolation.level", "read_uncommitted")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("enable.partition.eof", "true");
        let consumer: BaseConsumer<ClientLog> = cluster.create(&config, cluster.client_log())?;
        // SAFETY: the lease is dropped before the client.
        let login = unsafe { cluster.attach_login(consumer.client().native_ptr()) };
        let mut assignment = TopicPartitionList::with_capacity(1);
        assignment
            .add_partition_offset(topic, partition, Offset::Beginning)
            .and_then(|()| consumer.assign(&assignment))
            .map_err(|error| cluster.failed(&format!("reading topic `{topic}`"), &error))?;
        Ok(Self { _login: login, consumer, cluster: cluster.clone(), topic: topic.to_owned(), partition })
    }

    /// Passes the rows that exist now: a key, and its value if the row was not removed.
    pub fn load(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) -> Result<()> {
        let doing = format!("reading topic `{}`", self.topic);
        let failed = |error: KafkaError| self.cluster.failed(&doing, &error);
        let consumer = &self.consumer;
        let started = Instant::now();
        let (low, high) = loop {
            match consumer.fetch_watermarks(&self.topic, self.partition, CALL_TIMEOUT) {
                Ok(watermarks) => break watermarks,
                Err(error)
                    if has_no_leader(&error) && started.elapsed() < LEADER_LIMIT && !self.cluster.is_interrupted() =>
                {
                    std::thread::park_timeout(LEADER_RETRY);
                }
                Err(error) => return Err(failed(error)),
            }
        };
        let mut next = low;
        let mut last_progress = Instant::now();
        while next < high {
            match consumer.poll(POLL) {
                Some(Ok(message)) => {
                    next = message.offset() + 1;
                    last_progress = Instant::now();
                    each(message.key().unwrap_or_default(), message.payload());
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) if is_denied(&error) => return Err(failed(error)),
                Some(Err(error)) => tracing::debug!(%error, topic = self.topic, "reading continues after an error"),
                None => {}
            }
            if last_progress.elapsed() > CALL_TIMEOUT {
                return Err(Error::external("kafka.unreachable", format!("{doing}: no answer from the brokers")));
            }
        }
        Ok(())
    }

    /// Passes the rows that have arrived since the last call. Does not wait.
    pub fn poll(&self, mut each: impl FnMut(&[u8], Option<&[u8]>)) {
        while let Some(event) = self.consumer.poll(Duration::ZERO) {
            match event {
                Ok(message) => each(message.key().unwrap_or_default(), message.payload()),
                Err(KafkaError::PartitionEOF(_)) => {}
                // The client connects again, and continues where it was.
                Err(error) => tracing::debug!(%error, topic = self.topic, "reading continues after an error"),
            }
        }
    }

    /// Closes the client. Does not wait for that, because it takes a tenth of a second.
    pub fn close(self) {
        let _ = close_in_background(self);
    }
}

/// The partition was created a moment ago, or its leader is changing.
fn has_no_leader(error: &KafkaError) -> bool {
    let code = error.rdkafka_error_code();
    matches!(code, Some(RDKafkaErrorCode::NotLeaderForPartition | RDKafkaErrorCode::LeaderNotAvailable))
}
