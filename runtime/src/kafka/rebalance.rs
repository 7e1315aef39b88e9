//! What a consumer's client reports while it is polled: rebalances and errors.

use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::bindings::rd_kafka_queue_t;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext, Rebalance};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::topic_partition_list::TopicPartitionList;
use rdkafka::util::Timeout;
use rdkafka::{ClientConfig, ClientContext};
use trunkline_connector::{TopicPartition, failpoint};

use super::client::{ClientLog, Cluster};
use super::message_queue::forward;
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
    /// The queue for messages of assigned partitions; null while there is none.
    messages: AtomicPtr<rd_kafka_queue_t>,
    rebootstrap: Rebootstrap,
    log: ClientLog,
}

impl EventContext {
    pub(super) fn new(cluster: &Cluster, config: &ClientConfig) -> Self {
        Self {
            events: Mutex::default(),
            fatal: Mutex::default(),
            denied: Mutex::default(),
            messages: AtomicPtr::default(),
            rebootstrap: Rebootstrap::new(config),
            log: cluster.client_log(),
        }
    }

    /// Forwards partitions that are assigned from now on to this queue; null stops that.
    pub(super) fn set_message_queue(&self, queue: *mut rd_kafka_queue_t) {
        self.messages.store(queue, Ordering::Release);
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
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        match rebalance {
            Rebalance::Assign(partitions) => {
                let queue = self.messages.load(Ordering::Acquire);
                if !queue.is_null() {
                    // SAFETY: the client makes this call, and the polling thread clears the pointer
                    // before it destroys the queue.
                    unsafe { forward(consumer.client().native_ptr(), partitions, queue) };
                }
            }
            Rebalance::Revoke(_) => {
                // The callback cannot return an error. The step exists to be killed at.
                let _ = failpoint!("consumer.revoke.before");
            }
            Rebalance::Error(_) => {}
        }
    }

    fn post_rebalance(&self, _: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        let event = match rebalance {
            Rebalance::Assign(partitions) => RebalanceEvent::Assigned(elements_of(partitions)),
            Rebalance::Revoke(partitions) => RebalanceEvent::Revoked(elements_of(partitions)),
            Rebalance::Error(error) => {
                tracing::warn!(%error, "a rebalance of a consumer group failed");
                return;
            }
        };
        self.events().push(event);
    }

    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::After(Duration::from_millis(100))
    }
}

fn elements_of(partitions: &TopicPartitionList) -> Vec<TopicPartition> {
    let element = |topic: &str, partition| TopicPartition { topic: Arc::from(topic), partition };
    partitions.elements().iter().map(|found| element(found.topic(), found.partition())).collect()
}
