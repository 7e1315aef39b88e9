//! What a producer's client reports: failed deliveries, failed transactions and errors.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message as _};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::{ClientConfig, ClientContext};
use trunkline_connector::{Error, Result, Retry};

use super::client::{ClientLog, Cluster, FENCED, classify_code, grant};
use super::connection::without_variable_parts;
use super::rebootstrap::Rebootstrap;

/// Keeps the first delivery failure: its transaction cannot be committed.
pub(super) struct DeliveryContext {
    cluster: Cluster,
    log: ClientLog,
    rebootstrap: Rebootstrap,
    batch_bytes: usize,
    transaction: Mutex<TransactionState>,
}

/// The failures of the open transaction.
#[derive(Default)]
struct TransactionState {
    /// The topic of the first record that was not delivered, and the error.
    failure: Option<(String, KafkaError)>,
    /// Why the transaction failed: the client drops its records then, and reports only that.
    reason: Option<String>,
}

impl DeliveryContext {
    pub(super) fn new(cluster: &Cluster, config: &ClientConfig, batch_bytes: usize) -> Self {
        Self {
            cluster: cluster.clone(),
            log: cluster.client_log(),
            rebootstrap: Rebootstrap::new(config),
            batch_bytes,
            transaction: Mutex::default(),
        }
    }

    pub(super) fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Notes that no broker has answered for a while: [`poll`] adds the bootstrap servers again.
    pub(super) fn set_lost(&self) {
        self.rebootstrap.set_lost();
    }

    /// Forgets the failures of the transaction that ended.
    pub(super) fn reset(&self) {
        *self.lock() = TransactionState::default();
    }

    fn lock(&self) -> MutexGuard<'_, TransactionState> {
        // Each change leaves a valid state.
        self.transaction.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ClientContext for DeliveryContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        if matches!(facility, "ADDPARTS" | "TXNERR") && matches!(level, RDKafkaLogLevel::Error) {
            self.lock().reason.get_or_insert_with(|| without_variable_parts(message).to_owned());
        }
        self.log.log(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        self.rebootstrap.note(&error);
        self.log.error(error, reason);
    }
}

impl ProducerContext for DeliveryContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, message)) = result {
            if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) {
                let bytes = message.key_len() + message.payload_len();
                self.cluster.limits().note_refusal(message.topic(), bytes, self.batch_bytes);
            }
            self.lock().failure.get_or_insert_with(|| (message.topic().to_owned(), error.clone()));
        }
    }
}

/// Fails if a record of the open transaction was not delivered.
pub(super) fn check_delivery(producer: &BaseProducer<DeliveryContext>) -> Result<()> {
    let failure = producer.context().lock().failure.clone();
    match failure {
        Some((topic, error)) => {
            Err(failed(producer, &format!("a record was not delivered to topic `{topic}`"), &error))
        }
        None => Ok(()),
    }
}

/// Classifies an error. Once the producer was fenced, every call fails with a different message;
/// the fatal error has the reason. In a failed transaction, the client drops and refuses records;
/// its log had the reason.
pub(super) fn failed(producer: &BaseProducer<DeliveryContext>, doing: &str, error: &KafkaError) -> Error {
    use RDKafkaErrorCode as Code;
    match producer.client().fatal_error() {
        Some((code, reason)) if FENCED.contains(&code) => {
            let why = "another task has taken over, or the transaction timed out";
            return Error::fenced("kafka.fenced", format!("{doing}: {reason} ({why})"));
        }
        Some((code, reason)) => return classify_code(Some(code), format!("{doing}: {reason}")),
        None => {}
    }
    let is_consequence =
        matches!(error.rdkafka_error_code(), Some(Code::PurgeQueue | Code::PurgeInflight | Code::State));
    let reason = producer.context().lock().reason.clone();
    match reason.filter(|_| is_consequence) {
        // The record may belong to another topic than the one that made the transaction fail.
        Some(reason) if reason.contains("Topic authorization failed") => {
            // Failed to add partition "TOPIC" [0] to transaction: ..
            let topic = reason.split('"').nth(1);
            let message = format!("a transaction failed: {reason}; {}", grant(&["Write"], "topic", topic));
            Error::external("kafka.access_denied", message).retry(Retry::Never)
        }
        Some(reason) => Error::external("kafka.failed", format!("a transaction failed: {reason}")),
        None => producer.context().cluster.failed(doing, error),
    }
}

/// Serves delivery reports, and adds the bootstrap servers again if the client has lost its
/// brokers.
pub(super) fn poll(producer: &BaseProducer<DeliveryContext>, timeout: Duration) {
    producer.poll(timeout);
    producer.context().rebootstrap.run_if_due(producer.client());
}
