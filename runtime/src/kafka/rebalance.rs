//! What a consumer's client reports while it is polled: rebalances and errors.
//!
//! The client keeps the membership and nothing else: the [`Fetcher`](super::wire::fetch) reads
//! the records. librdkafka separates the assignment by the group, which it needs to join and to
//! rebalance, from the partitions that it fetches. Each rebalance is therefore answered with an
//! empty list: the client fetches no partition, looks up no offset, and holds no connection but the
//! one to the coordinator and one for metadata.

use std::ffi::CStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::bindings;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::types::RDKafkaRespErr;
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext};
use trunkline_connector::{TopicPartition, failpoint};

use super::client::{ClientLog, Cluster};
use super::rebootstrap::Rebootstrap;

/// What a rebalance changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RebalanceEvent {
    /// This member owns these partitions now.
    Assigned(Vec<TopicPartition>),
    /// This member no longer owns these partitions.
    Revoked(Vec<TopicPartition>),
}

/// Collects what a consumer's client reports while it is polled.
pub(super) struct EventContext {
    events: Mutex<Vec<RebalanceEvent>>,
    fatal: Mutex<Option<KafkaError>>,
    /// The text of the last error of a topic without the right Read.
    denied: Mutex<Option<String>>,
    rebootstrap: Rebootstrap,
    log: ClientLog,
}

impl EventContext {
    pub(super) fn new(cluster: &Cluster, config: &ClientConfig) -> Self {
        Self {
            events: Mutex::default(),
            fatal: Mutex::default(),
            denied: Mutex::default(),
            rebootstrap: Rebootstrap::new(config),
            log: cluster.client_log(),
        }
    }

    /// The changes of rebalances that were not taken yet.
    pub(super) fn events(&self) -> MutexGuard<'_, Vec<RebalanceEvent>> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first error after which the client cannot continue.
    pub(super) fn fatal_error(&self) -> Option<KafkaError> {
        self.fatal.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Takes the text of the last error of a topic without the right Read: it names the topic.
    pub(super) fn take_denied(&self) -> Option<String> {
        self.denied.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Recovers a client that has lost all brokers.
    pub(super) fn rebootstrap(&self) -> &Rebootstrap {
        &self.rebootstrap
    }
}

impl ClientContext for EventContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.log.error(error.clone(), reason);
        self.rebootstrap.note(&error);
        if error.rdkafka_error_code() == Some(RDKafkaErrorCode::TopicAuthorizationFailed) {
            *self.denied.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason.to_owned());
        }
        if matches!(error.rdkafka_error_code(), Some(RDKafkaErrorCode::Fatal | RDKafkaErrorCode::FencedInstanceId)) {
            self.fatal.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
        }
    }
}

impl ConsumerContext for EventContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, kind: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        let partitions = elements_of(partitions);
        let client = consumer.client().native_ptr();
        let fetched = TopicPartitionList::new();
        let is_assigned = kind == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        if !is_assigned {
            // The callback cannot return an error. The step exists to be killed at.
            let _ = failpoint!("consumer.revoke.before");
        }
        // SAFETY: client and list are alive. The client copies the list.
        let error = unsafe {
            if is_assigned {
                bindings::rd_kafka_incremental_assign(client, fetched.ptr())
            } else {
                bindings::rd_kafka_incremental_unassign(client, fetched.ptr())
            }
        };
        if !error.is_null() {
            // SAFETY: the error is ours, and its text lives as long as it does.
            unsafe {
                let reason = CStr::from_ptr(bindings::rd_kafka_error_string(error)).to_string_lossy();
                tracing::debug!(%reason, "the client of a consumer group did not take a rebalance");
                bindings::rd_kafka_error_destroy(error);
            }
        }
        self.events().push(if is_assigned {
            RebalanceEvent::Assigned(partitions)
        } else {
            RebalanceEvent::Revoked(partitions)
        });
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}

fn elements_of(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    let element = |topic: &str, partition| TopicPartition { topic: Arc::from(topic), partition };
    partitions.elements().iter().map(|found| element(found.topic(), found.partition())).collect()
}
