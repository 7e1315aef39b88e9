//! Settings that all clients share, and the classification of librdkafka's errors.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use rdkafka::ClientConfig;
use rdkafka::bindings::{rd_kafka_conf_set_ssl_cert_verify_cb, rd_kafka_t};
use rdkafka::client::{Client, ClientContext};
use rdkafka::config::{FromClientConfigAndContext, NativeClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::types::RDKafkaType;
use trunkline_connector::{Error, Result, Retry};

use super::admin_api::Failure;
use super::connection::{ConnectionMonitor, explain_certificate};
use super::logins::{LoginLease, Logins, Token};
use super::properties;
use super::secrets::Secrets;
use super::security::Security;
use super::timer_slack::with_timer_slack;
use super::topic_limits::TopicLimits;
use super::wire::connection::transport::Transport;
use super::wire::group::Keepers;

/// A Kafka cluster: its bootstrap servers and the properties of its clients. Cheap to clone.
#[derive(Clone)]
pub struct Cluster {
    properties: Arc<RwLock<Arc<BTreeMap<String, String>>>>,
    brokers: Arc<str>,
    secrets: Secrets,
    limits: TopicLimits,
    connection: Arc<ConnectionMonitor>,
    logins: Arc<Logins>,
    interrupt: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// What the names of Trunkline's own topics start with.
    prefix: Arc<str>,
    may_create_topics: bool,
    /// When a member of a group was last fenced by another one with its id.
    fenced_members: Arc<Mutex<HashMap<String, Instant>>>,
    /// How our own clients connect.
    transport: Arc<Mutex<Option<Arc<Transport>>>>,
    /// Keeps the memberships of consumer groups.
    keepers: Keepers,
}

impl Cluster {
    /// A cluster by its bootstrap servers and the settings `kafka`: `security`, `region` and
    /// librdkafka properties. Fails if a property is not accepted, or a certificate or key cannot
    /// be used.
    pub fn new(brokers: &str, settings: &BTreeMap<String, String>) -> Result<Self> {
        let Security { properties, tokens } = Security::of(settings, brokers)?;
        properties::check(&properties)?;
        let secrets = Secrets::of(settings);
        let connection = Arc::<ConnectionMonitor>::default();
        let logins = Arc::new(Logins::new(tokens, connection.clone(), secrets.clone()));
        let cluster = Self {
            properties: Arc::new(RwLock::new(Arc::new(properties))),
            brokers: Arc::from(brokers),
            secrets,
            limits: TopicLimits::default(),
            connection,
            logins,
            interrupt: None,
            prefix: Arc::from(""),
            may_create_topics: true,
            fenced_members: Arc::default(),
            transport: Arc::default(),
            keepers: Keepers::default(),
        };
        cluster.transport()?;
        Ok(cluster)
    }

    /// Takes over changed user names, passwords and sources of tokens, in all clients. Returns the
    /// names of the other changed properties, which take effect when the worker restarts.
    pub fn change_credentials(&self, settings: &BTreeMap<String, String>) -> Result<Vec<String>> {
        let Security { properties, tokens } = Security::of(settings, &self.brokers)?;
        properties::check(&properties)?;
        self.secrets.add(settings);
        if let Some(source) = tokens {
            self.logins.change_source(source);
        }
        let known = self.properties();
        let differs = |name: &&String| known.get(*name) != properties.get(*name);
        let all = known.keys().chain(properties.keys().filter(|name| !known.contains_key(*name)));
        let (credentials, others): (Vec<&String>, Vec<&String>) =
            all.filter(differs).partition(|name| CREDENTIALS.contains(&name.as_str()));
        if !credentials.is_empty() {
            let mut changed = BTreeMap::clone(&known);
            for name in CREDENTIALS {
                if let Some(value) = properties.get(name) {
                    changed.insert(name.to_owned(), value.clone());
                }
            }
            if let [Some(user), Some(password)] = CREDENTIALS.map(|name| changed.get(name)) {
                self.logins.set_credentials(user, password);
            }
            *self.properties.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(changed);
        }
        Ok(others.into_iter().cloned().collect())
    }

    fn properties(&self) -> Arc<BTreeMap<String, String>> {
        self.properties.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The same cluster, whose [`Admin`](super::Admin) stops looking for unreachable brokers once
    /// `interrupt` returns true.
    pub fn with_interrupt(self, interrupt: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { interrupt: Some(Arc::new(interrupt)), ..self }
    }

    /// The same cluster, in which the names of Trunkline's own topics start with `prefix`.
    pub fn with_prefix(self, prefix: &str) -> Self {
        Self { prefix: Arc::from(prefix), ..self }
    }

    /// The name of one of Trunkline's own topics, with the prefix.
    pub fn own_topic(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// The same cluster, in which missing topics are created, or only reported.
    pub fn with_topic_creation(self, may_create_topics: bool) -> Self {
        Self { may_create_topics, ..self }
    }

    /// Whether missing topics are created.
    pub(super) fn may_create_topics(&self) -> bool {
        self.may_create_topics
    }

    /// Whether to stop looking for unreachable brokers.
    pub(super) fn is_interrupted(&self) -> bool {
        self.interrupt.as_ref().is_some_and(|interrupt| interrupt())
    }

    /// The bootstrap servers.
    pub fn brokers(&self) -> &str {
        &self.brokers
    }

    /// The configuration that a client starts from: `defaults`, overridden by the user's
    /// properties. The caller then sets the properties that a user must not change.
    pub(super) fn config(&self, defaults: &[(&str, &str)]) -> ClientConfig {
        let properties = self.properties();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.brokers.as_ref());
        config.set("client.id", "trunkline");
        // OpenSSL is linked statically: the folder of certificates that it was built with need not
        // exist on this system.
        if !properties.keys().any(|name| name.starts_with("ssl.ca.") || name == "ssl_ca") {
            config.set("ssl.ca.location", "probe");
        }
        // A broker that returns is found within one second instead of ten.
        config.set("reconnect.backoff.ms", "50").set("reconnect.backoff.max.ms", "1000");
        config.set("socket.keepalive.enable", "true");
        // Each connection would keep a hundred kilobytes of histograms for the brokers' metrics
        // plugin (KIP-714).
        config.set("enable.metrics.push", "false");
        // Nagle's algorithm would delay small commits.
        config.set("socket.nagle.disable", "true");
        for (name, value) in defaults {
            config.set(*name, *value);
        }
        for (name, value) in properties.iter() {
            config.set(name, value);
        }
        // A broker that closes a connection because of the wrong protocol is reported at this
        // level.
        config.set_log_level(RDKafkaLogLevel::Info);
        config
    }

    /// Creates a client with this configuration. The error shows no value of a property (I8).
    pub(super) fn create<C, T>(&self, config: &ClientConfig, context: C) -> Result<T>
    where
        C: ClientContext,
        T: FromClientConfigAndContext<C>,
    {
        let create = || T::from_config_and_context(config, context);
        with_timer_slack(create).map_err(|error| self.creation_error(&error))
    }

    /// Creates a client that neither produces nor consumes.
    pub(super) fn create_admin(&self, config: &ClientConfig) -> Result<Client<ClientLog>> {
        // librdkafka has producers and consumers only; a producer is the smaller one.
        let kind = RDKafkaType::RD_KAFKA_PRODUCER;
        let create = |native: NativeClientConfig| {
            // SAFETY: the configuration is alive, and the function has the type that librdkafka
            // calls.
            unsafe { rd_kafka_conf_set_ssl_cert_verify_cb(native.ptr(), Some(explain_certificate)) };
            Client::new(config, native, kind, self.client_log())
        };
        with_timer_slack(|| config.create_native_config().and_then(create)).map_err(|error| self.creation_error(&error))
    }

    /// How our own clients connect. Files of certificates and keys are read again once they have
    /// changed.
    pub(super) fn transport(&self) -> Result<Arc<Transport>> {
        let mut known = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(transport) = known.as_ref().filter(|transport| transport.is_current()) {
            return Ok(transport.clone());
        }
        match (Transport::of(self), &*known) {
            (Ok(transport), _) => Ok(known.insert(Arc::new(transport)).clone()),
            // A certificate and its key are not replaced at the same moment.
            (Err(error), Some(transport)) => {
                tracing::warn!("the old certificates of Kafka remain in use: {error}");
                Ok(transport.clone())
            }
            (Err(error), None) => Err(error),
        }
    }

    /// Keeps the memberships of consumer groups.
    pub(super) fn keepers(&self) -> &Keepers {
        &self.keepers
    }

    /// The current user name and password; empty if they are not set.
    pub(super) fn user_and_password(&self) -> (String, String) {
        let properties = self.properties();
        let [user, password] = CREDENTIALS.map(|name| properties.get(name).cloned().unwrap_or_default());
        (user, password)
    }

    /// Whether the clients log in with tokens that are fetched.
    pub(super) fn has_tokens(&self) -> bool {
        self.logins.has_source()
    }

    /// The current token. Waits for the first one until the deadline.
    pub(super) fn wait_for_token(&self, deadline: Instant) -> Result<Token> {
        self.logins.wait_for_token(deadline)
    }

    /// Notes why one of our own clients cannot connect, in librdkafka's words.
    pub(super) fn note_connection(&self, report: &str) {
        self.connection.note(&self.secrets.hide(report));
    }

    /// Gives a client its tokens and each change of its credentials, until the result is dropped.
    ///
    /// # Safety
    /// The client must outlive the result.
    pub(super) unsafe fn attach_login(&self, client: *mut rd_kafka_t) -> LoginLease {
        // SAFETY: see the function's contract.
        unsafe { self.logins.attach(client) }
    }

    pub(super) fn creation_error(&self, error: &KafkaError) -> Error {
        let reason = match error {
            // The error's own text has the value too.
            KafkaError::ClientConfig(_, _, name, _) => format!("the value of the Kafka property `{name}` is not valid"),
            KafkaError::ClientCreation(reason) => return self.creation_failure(reason),
            other => self.secrets.hide(&other.to_string()).into_owned(),
        };
        not_created(&reason)
    }

    /// The error of a client that cannot be created. `reason` names the property.
    pub(super) fn creation_failure(&self, reason: &str) -> Error {
        not_created(&self.explain_creation(&self.secrets.hide(reason)))
    }

    /// Adds the file's path to a reason that names only its property, and the setting for a wrong
    /// password.
    fn explain_creation(&self, reason: &str) -> String {
        let mut text = reason.to_owned();
        let properties = self.properties();
        let file = properties.iter().find(|(name, value)| reason.contains(*name) && properties::is_path(name, value));
        if let Some((_, path)) = file.filter(|(_, path)| !reason.contains(*path)) {
            text = format!("{text} (file {path})");
        }
        for (property, password) in [("ssl.key.", "ssl.key.password"), ("ssl.keystore.", "ssl.keystore.password")] {
            if reason.contains(property) {
                text = format!("{text}; check the file's format and `{password}`");
            }
        }
        text
    }

    /// The largest records of the cluster's topics, as far as they are known.
    pub(super) fn limits(&self) -> &TopicLimits {
        &self.limits
    }

    /// The log of a client of this cluster.
    pub(super) fn client_log(&self) -> ClientLog {
        ClientLog { secrets: self.secrets.clone(), connection: self.connection.clone() }
    }

    /// The state of the connections to the cluster.
    pub(super) fn connection(&self) -> &ConnectionMonitor {
        &self.connection
    }

    /// The error of a group member that was fenced by another one with the same id. Once may be a
    /// restart whose predecessor still ran. Twice in a row are two workers with one id, which would
    /// fence each other forever.
    pub(super) fn fenced_member(&self, group: &str, instance: &str) -> Error {
        let last =
            self.fenced_members.lock().unwrap_or_else(PoisonError::into_inner).insert(group.to_owned(), Instant::now());
        if last.is_some_and(|last| last.elapsed() < FENCED_AGAIN) {
            let message = format!(
                "another worker uses this worker's id (group `{group}`, member `{instance}`): its data directory is a \
                 copy of this one's. Give one of the two workers a new id with --new-worker-id"
            );
            return Error::config(DUPLICATE_WORKER, message);
        }
        let message = format!("group `{group}`: another worker has taken over the membership `{instance}`");
        Error::fenced("kafka.fenced", message)
    }

    /// Classifies a client's error, with the reason if no broker is connected.
    pub(super) fn failed(&self, doing: &str, error: &KafkaError) -> Error {
        self.connection.explain(classify(doing, error))
    }
}

fn not_created(reason: &str) -> Error {
    Error::config("kafka.settings", format!("cannot create a Kafka client from the settings `kafka`: {reason}"))
}

/// The properties that all clients take over while they run.
const CREDENTIALS: [&str; 2] = ["sasl.username", "sasl.password"];

/// The code of the error of two workers with the same id.
pub const DUPLICATE_WORKER: &str = "worker.duplicate_id";

/// A member that is fenced again within this time has a double.
const FENCED_AGAIN: Duration = Duration::from_secs(60);

/// A call to the cluster fails after this time.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// Writes a client's messages to the log, without secrets.
#[derive(Clone, Default)]
pub(super) struct ClientLog {
    secrets: Secrets,
    connection: Arc<ConnectionMonitor>,
}

impl ClientContext for ClientLog {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        let message = self.secrets.hide(message);
        if matches!(facility, "FAIL" | "SSLCERTVRFY") {
            self.connection.note(&message);
        }
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::debug!(facility, "{message}");
            }
            _ => tracing::trace!(facility, "{message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        let reason = self.secrets.hide(reason);
        self.connection.note(&reason);
        tracing::debug!(%error, %reason, "Kafka client error");
    }
}

impl ConsumerContext for ClientLog {}

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

/// What to do about a refusal; `None` for other errors. The message names the resource.
fn missing_right(code: RDKafkaErrorCode, message: &str) -> Option<String> {
    use RDKafkaErrorCode as Code;
    Some(match code {
        Code::TopicAuthorizationFailed => {
            let operations: &[&str] = if ["consuming", "reading"].iter().any(|doing| message.starts_with(doing)) {
                &["Read"]
            } else if message.contains("sending to") || message.contains("not delivered") {
                &["Write"]
            } else {
                &["Describe", "Read", "Write"]
            };
            grant(operations, "topic", named(message, "topic `"))
        }
        Code::GroupAuthorizationFailed => grant(&["Read"], "group", named(message, "group `")),
        Code::TransactionalIdAuthorizationFailed => {
            grant(&["Describe", "Write"], "transactional id", named(message, "transactional id `"))
        }
        Code::ClusterAuthorizationFailed => "grant the right on the cluster".to_owned(),
        Code::Authentication | Code::SaslAuthenticationFailed => {
            "check `sasl.username`, `sasl.password` and `sasl.mechanism` in the settings `kafka`".to_owned()
        }
        _ => return None,
    })
}

/// The name in a message that follows `start` and ends with a backtick.
fn named<'m>(message: &'m str, start: &str) -> Option<&'m str> {
    message.split_once(start)?.1.split('`').next().filter(|name| !name.is_empty())
}

/// The remedy of a missing right on a resource, with the command if the resource's name is known.
pub fn grant(operations: &[&str], resource: &str, name: Option<&str>) -> String {
    let rights = match operations {
        [operation] => format!("right {operation}"),
        [first @ .., last] => format!("rights {} and {last}", first.join(", ")),
        [] => "rights".to_owned(),
    };
    let Some(name) = name else {
        return format!("grant the {rights} on the {resource} (`trunkline acls` prints the commands)");
    };
    let options: String = operations.iter().map(|operation| format!(" --operation {operation}")).collect();
    format!(
        "grant the {rights} on the {resource}: kafka-acls.sh --bootstrap-server BROKER --add --allow-principal \
         User:NAME{options} --{} {name} (`trunkline acls` prints the commands for all rights)",
        resource.replace(' ', "-")
    )
}

/// Classifies an error by its code.
pub(super) fn classify_code(code: Option<RDKafkaErrorCode>, message: String) -> Error {
    use RDKafkaErrorCode as Code;
    if let Some(fix) = code.and_then(|code| missing_right(code, &message)) {
        return Error::external("kafka.access_denied", format!("{message}; {fix}")).retry(Retry::Never);
    }
    match code {
        Some(code) if FENCED.contains(&code) => {
            Error::fenced("kafka.fenced", format!("{message} (another task has taken over)"))
        }
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
                "{message} (records carry this machine's time, and the broker rejects a record that is more than \
                 `message.timestamp.after.max.ms`, by default one hour, ahead of the broker's clock: \
                 correct the wrong clock)"
            ),
        ),
        _ => Error::external("kafka.failed", message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ca_location(properties: &[(&str, &str)]) -> Option<String> {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Cluster::new("b:1", &properties).unwrap().config(&[]).get("ssl.ca.location").map(str::to_owned)
    }

    #[test]
    fn certificate_authorities_of_the_system_are_found_unless_the_user_names_one() {
        assert_eq!(ca_location(&[]).as_deref(), Some("probe"));
        assert_eq!(ca_location(&[("ssl.ca.location", "/etc")]).as_deref(), Some("/etc"));
        assert_eq!(ca_location(&[("ssl.ca.pem", "-----BEGIN CERTIFICATE-----")]), None);
    }

    #[test]
    fn missing_rights_are_permanent_and_have_their_remedy() {
        let error = classify("reading", &KafkaError::Global(RDKafkaErrorCode::GroupAuthorizationFailed));
        assert_eq!((error.code, error.retry), ("kafka.access_denied", Retry::Never));
        assert!(error.to_string().contains("grant the right Read on the group"), "{error}");
        let denied = KafkaError::Global(RDKafkaErrorCode::TransactionalIdAuthorizationFailed);
        let error = classify("initialising the transactional id `c.web`", &denied).to_string();
        assert!(error.contains("the rights Describe and Write on the transactional id: kafka-acls.sh"), "{error}");
        assert!(error.contains("--operation Describe --operation Write --transactional-id c.web ("), "{error}");
        let error = classify("reading", &KafkaError::Global(RDKafkaErrorCode::OperationTimedOut));
        assert_eq!((error.code, error.retry), ("kafka.unreachable", Retry::Backoff));
    }

    #[test]
    fn a_member_that_is_fenced_twice_has_a_double() {
        let cluster = Cluster::new("b:1", &BTreeMap::new()).unwrap();
        assert_eq!(cluster.fenced_member("a", "w").code, "kafka.fenced");
        assert_eq!(cluster.fenced_member("b", "w").code, "kafka.fenced");
        let error = cluster.fenced_member("a", "w");
        assert_eq!(error.code, DUPLICATE_WORKER);
        assert!(error.to_string().contains("--new-worker-id"), "{error}");
    }
}
