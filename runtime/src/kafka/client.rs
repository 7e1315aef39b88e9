//! Settings that all clients share, and the classification of librdkafka's errors.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use rdkafka::ClientConfig;
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{FromClientConfigAndContext, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaType;
use trunkline_connector::{Error, Result, Retry};

use super::admin_api::Failure;
use super::properties;
use super::secrets::Secrets;
use super::topic_limits::TopicLimits;

/// A Kafka cluster: its bootstrap servers and the properties of its clients. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    properties: Arc<BTreeMap<String, String>>,
    brokers: Arc<str>,
    secrets: Secrets,
    limits: TopicLimits,
}

impl Cluster {
    /// A cluster by its bootstrap servers and further librdkafka properties. Fails if librdkafka
    /// does not accept a property.
    pub fn new(brokers: &str, properties: &BTreeMap<String, String>) -> Result<Self> {
        properties::check(properties)?;
        let secrets = Secrets::of(properties);
        let properties = Arc::new(properties.clone());
        Ok(Self { properties, brokers: Arc::from(brokers), secrets, limits: TopicLimits::default() })
    }

    /// The bootstrap servers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The configuration that a client starts from: `defaults`, overridden by the user's
    /// properties. The caller then sets the properties that a user must not change.
    pub(super) fn config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.as_ref());
        config.set("client.id", "trunkline");
        // A broker that returns is found within one second instead of ten.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("socket.keepalive.enable", "true");
        // Nagle's algorithm would delay small commits.
        config.set("socket.nagle.disable", "true");
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in self.properties.iter() {
            config.set(name, value);
        }
        config.set_log_level(RDKafkaLogLevel::Warning);
        config
    }

    /// Creates a client with this configuration. The error shows no value of a property (I8).
    pub(super) fn create<C, T>(&self, config: &ClientConfig, context: C) -> Result<T>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C>,
    {
        T::from_config_and_context(config, context).map_err(|error| self.creation_error(&error))
    }

    /// Creates a client that neither produces nor consumes.
    pub(super) fn create_admin(&self, config: &ClientConfig) -> Result<Client<ClientLog>> {
        // librdkafka has producers and consumers only; a producer is the smaller one.
        let kind = RDKafkaType::RD_KAFKA_PRODUCER;
        config
            .create_native_config()
            .and_then(|native| Client::new(config, native, kind, self.client_log()))
            .map_err(|error| self.creation_error(&error))
    }

    fn creation_error(&self, error: &KafkaError) -> Error {
        let reason = match error {
            // The error's own text has the value too.
            KafkaError::ClientConfig(_, _, name, _) => format!("the value of the Kafka property `{name}` is not valid"),
            KafkaError::ClientCreation(reason) => self.secrets.hide(reason).into_owned(),
            other => self.secrets.hide(&other.to_string()).into_owned(),
        };
        Error::config("kafka.settings", format!("cannot create a Kafka client from the settings `kafka`: {reason}"))
    }

    /// The largest records of the cluster's topics, as far as they are known.
    pub(super) fn limits(&self) -> &TopicLimits {
        &self.limits
    }

    /// The log of a client of this cluster.
    pub(super) fn client_log(&self) -> ClientLog {
        ClientLog { secrets: self.secrets.clone() }
    }
}

/// A call to the cluster fails after this time.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes a client's messages to the log, without secrets.
#[derive(Clone, Default)]
pub(super) struct ClientLog {
    secrets: Secrets,
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let message = self.secrets.hide(message);
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::debug!(facility, "{message}");
            }
            _ => tracing::trace!(facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason = %self.secrets.hide(reason), "Kafka client error");
    }
}

impl ConsumerContext for ClientLog {}

/// Closes a client in a separate thread, because closing takes a tenth of a second and sometimes
/// does not return. The receiver is disconnected once the client is closed.
pub(super) fn close_in_background(client: impl Send + 'static) -> Receiver<()> {
    let (sender, closed) = sync_channel(0);
    let close = move || {
        drop(client);
        drop(sender);
    };
    // Without a thread, the closure and with it the client are dropped here.
    let _ = std::thread::Builder::new().name("close-client".to_owned()).spawn(close);
    closed
}

/// The codes with which brokers, and the client itself, refuse a member or producer that was
/// replaced.
pub(super) const FENCED: [RDKafkaErrorCode; 5] = [
    RDKafkaErrorCode::ProducerFenced,
    RDKafkaErrorCode::InvalidProducerEpoch,
    RDKafkaErrorCode::Fenced,
    RDKafkaErrorCode::FencedInstanceId,
    RDKafkaErrorCode::FencedLeaderEpoch,
];

/// Classifies a client's error: fenced, refused, or retriable.
pub(super) fn classify(doing: &str, error: &KafkaError) -> Error {
    let code = match error {
        KafkaError::Transaction(inner) => Some(inner.code()),
        other => other.rdkafka_error_code(),
    };
    classify_code(code, format!("{doing}: {error}"))
}

/// Classifies a failed admin call.
pub(super) fn classify_failure(doing: &str, (code, explanation): &Failure) -> Error {
    let reason = if explanation.is_empty() { code.to_string() } else { explanation.clone() };
    classify_code(Some(*code), format!("{doing}: {reason}"))
}

fn classify_code(code: Option<RDKafkaErrorCode>, message: String) -> Error {
    use RDKafkaErrorCode as Code;
    match code {
        Some(code) if FENCED.contains(&code) => {
            Error::fenced("kafka.fenced", format!("{message} (another task has taken over)"))
        }
        Some(
            Code::TopicAuthorizationFailed
            | Code::GroupAuthorizationFailed
            | Code::ClusterAuthorizationFailed
            | Code::TransactionalIdAuthorizationFailed
            | Code::Authentication
            | Code::SaslAuthenticationFailed,
        ) => Error::external("kafka.access_denied", message).retry(Retry::Never),
        Some(
            Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::RequestTimedOut,
        ) => Error::external("kafka.unreachable", message),
        // The producer refuses records that it knows to be too large. The stage starts over, and it
        // knows this one then.
        Some(Code::MessageSizeTooLarge | Code::InvalidMessageSize) => {
            Error::external("kafka.record_too_large", format!("{message} (the next attempt refuses this record alone)"))
        }
        Some(Code::UnknownTopicOrPartition | Code::UnknownTopic | Code::UnknownPartition) => {
            Error::external("kafka.unknown_topic", message)
        }
        Some(Code::InvalidTimestamp) => Error::external(
            "kafka.clock",
            format!(
                "{message} (records carry this machine's time, and a broker accepts a time of at most \
                 `message.timestamp.after.max.ms`, by default one hour, ahead of its own: correct the wrong clock)"
            ),
        ),
        _ => Error::external("kafka.failed", message),
    }
}
