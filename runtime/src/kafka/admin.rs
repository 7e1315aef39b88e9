//! Looks up topics and creates missing ones with the requested partitions, replication and
//! configuration. Existing topics are never altered, because others may depend on them; their
//! differences from the request are reported.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::metadata::Metadata;
use trunkline_connector::{Error, Result, Retry};

use super::admin_api::{AdminClient, Failure, TopicConfig};
use super::admin_rights::Permitted;
use super::client::{CALL_TIMEOUT, Cluster, classify, classify_failure};
use super::rebootstrap::Rebootstrap;
use super::topic_limits::MAX_RECORD_BYTES;

/// Time for the brokers to answer a metadata request. Then the bootstrap servers are added again.
/// The first requests are short, so that the reason of a failed connection is reported early. A
/// large cluster on a busy machine needs the longer time.
const METADATA_TIMEOUTS: [Duration; 3] = [Duration::from_secs(1), Duration::from_secs(1), Duration::from_secs(3)];

/// Pause between two metadata requests.
const METADATA_RETRY: Duration = Duration::from_millis(200);

/// The topic property that limits the size of records.
const MAX_MESSAGE_BYTES: &str = "max.message.bytes";

/// The topic property that says how long a compacted topic keeps deletions.
const DELETE_RETENTION: &str = "delete.retention.ms";

/// Topics per request. A broker refuses a request with more than 10,000 partitions.
const TOPICS_PER_REQUEST: usize = 250;

/// The requested properties of a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// The name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Number of replicas; -1 = the brokers' default.
    pub replication: i16,
    /// Topic configuration such as `cleanup.policy`.
    pub config: BTreeMap<String, String>,
}

/// The topics after [`Admin::ensure`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct EnsuredTopics {
    /// The number of partitions of each topic.
    pub partitions: BTreeMap<String, i32>,
    /// One line for each difference between an existing topic and its request.
    pub differences: Vec<String>,
}

/// What makes a topic this topic, and how long it keeps deletions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicIdentity {
    /// The id of the cluster.
    pub cluster: Option<String>,
    /// The id of the topic. One that was created again has another one.
    pub topic: Option<String>,
    /// `delete.retention.ms`; `None` if this client may not read the configuration.
    pub delete_retention: Option<Duration>,
}

/// What a client may do with a topic or group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Permission {
    /// It does not exist.
    Missing,
    /// It is hidden from this client, or does not exist.
    Denied,
    /// The broker does not say.
    Unknown,
    /// The names of the permitted operations.
    Operations(Vec<&'static str>),
}

impl Permission {
    fn of(outcome: std::result::Result<Permitted, Failure>) -> Self {
        match outcome {
            Ok(Some(operations)) => Self::Operations(operations),
            Err(failure) if is_unknown(&failure) => Self::Missing,
            Err(failure) if is_denied(&failure) => Self::Denied,
            Ok(None) | Err(_) => Self::Unknown,
        }
    }
}

/// The request for an existing topic, and the topic's number of partitions.
type Existing<'s> = (&'s TopicSpec, i32);

/// Looks up and creates topics.
pub struct Admin {
    pub(super) client: AdminClient,
    rebootstrap: Rebootstrap,
    cluster: Cluster,
}

impl Admin {
    /// Connects with the first call.
    pub fn new(cluster: &Cluster) -> Result<Self> {
        let config = cluster.config(&[]);
        let client = AdminClient::new(cluster, &config)?;
        Ok(Self { client, rebootstrap: Rebootstrap::new(&config), cluster: cluster.clone() })
    }

    /// Connects to the brokers, also if the client has lost them.
    pub fn connect(&self) -> Result<()> {
        self.metadata("looking up the brokers").map(drop)
    }

    /// Whether a broker answers within `timeout`. The topic must exist.
    pub fn is_reachable(&self, topic: &str, timeout: Duration) -> bool {
        self.client.client().fetch_metadata(Some(topic), timeout).is_ok()
    }

    /// Creates the missing ones of these topics, or reports them if topics are not to be created.
    /// The request to create them is sent only if a topic is missing, so that no right to create
    /// topics is needed otherwise.
    pub fn ensure(&self, topics: &[TopicSpec]) -> Result<EnsuredTopics> {
        let mut ensured = EnsuredTopics::default();
        if !self.cluster.may_create_topics() {
            self.require(topics)?;
        }
        for chunk in topics.chunks(TOPICS_PER_REQUEST) {
            let (mut existing, missing) = self.look_up(chunk)?;
            let created = self.create(&missing)?;
            for spec in missing {
                if created.contains(&spec.name.as_str()) {
                    ensured.partitions.insert(spec.name.clone(), spec.partitions);
                } else {
                    // Another worker was faster.
                    existing.push((spec, self.partitions(&spec.name)?.unwrap_or(spec.partitions)));
                }
            }
            ensured.differences.extend(self.compare(&existing)?);
            ensured.partitions.extend(existing.into_iter().map(|(spec, count)| (spec.name.clone(), count)));
        }
        Ok(ensured)
    }

    /// Fails if a topic is missing. The error names all missing topics.
    fn require(&self, topics: &[TopicSpec]) -> Result<()> {
        let mut missing = Vec::new();
        for chunk in topics.chunks(TOPICS_PER_REQUEST) {
            missing.extend(self.look_up(chunk)?.1);
        }
        if missing.is_empty() { Ok(()) } else { Err(missing_error(self.cluster.brokers(), &missing)) }
    }

    /// Number of partitions of a topic; `None` if it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        let doing = format!("looking up topic `{topic}`");
        let mut found = self.client.describe_topics(&[topic]).map_err(|failure| classify_failure(&doing, &failure))?;
        match found.pop() {
            Some(Ok(described)) => Ok(Some(described.partitions)),
            Some(Err(failure)) if is_unknown(&failure) => Ok(None),
            Some(Err(failure)) => Err(classify_failure(&doing, &failure)),
            None => Err(Error::internal("kafka.admin", format!("{doing}: an empty answer"))),
        }
    }

    /// What makes a topic this topic, and how long it keeps deletions.
    pub fn topic_identity(&self, topic: &str) -> Result<TopicIdentity> {
        let doing = format!("looking up topic `{topic}`");
        let described = self.client.describe_topics(&[topic]).map_err(|failure| classify_failure(&doing, &failure))?;
        let configs = self.client.describe_configs(&[topic]).map_err(|failure| classify_failure(&doing, &failure))?;
        // The right to read the configuration is not needed to write records.
        let retention = configs.into_iter().next().and_then(std::result::Result::ok);
        let retention = retention.and_then(|config| config.get(DELETE_RETENTION)?.parse().ok());
        Ok(TopicIdentity {
            cluster: self.client.client().fetch_cluster_id(CALL_TIMEOUT),
            topic: described.into_iter().next().and_then(|described| described.ok()?.id),
            delete_retention: retention.map(Duration::from_millis),
        })
    }

    /// What this client may do with topics, in order.
    pub fn permissions_on_topics(&self, names: &[&str]) -> Result<Vec<Permission>> {
        let mut permissions = Vec::with_capacity(names.len());
        for chunk in names.chunks(TOPICS_PER_REQUEST) {
            let found = self.client.permitted_on_topics(chunk);
            permissions.extend(found.map_err(|failure| classify_failure("describing topics", &failure))?);
        }
        Ok(permissions.into_iter().map(Permission::of).collect())
    }

    /// What this client may do with groups, in order.
    pub fn permissions_on_groups(&self, names: &[&str]) -> Result<Vec<Permission>> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let found = self.client.permitted_on_groups(names);
        let found = found.map_err(|failure| classify_failure("describing groups", &failure))?;
        Ok(found.into_iter().map(Permission::of).collect())
    }

    /// The existing topics with their partitions, and the missing ones.
    fn look_up<'s>(&self, topics: &'s [TopicSpec]) -> Result<(Vec<Existing<'s>>, Vec<&'s TopicSpec>)> {
        let names: Vec<&str> = topics.iter().map(|spec| spec.name.as_str()).collect();
        let doing = "looking up topics";
        let found = self.client.describe_topics(&names).map_err(|failure| classify_failure(doing, &failure))?;
        let (mut existing, mut missing) = (Vec::new(), Vec::new());
        for (spec, outcome) in topics.iter().zip(found) {
            match outcome {
                Ok(described) => existing.push((spec, described.partitions)),
                // A broker also hides the existence of a topic from a principal without rights on
                // it.
                Err(failure) if is_unknown(&failure) || is_denied(&failure) => missing.push(spec),
                Err(failure) => return Err(classify_failure(&format!("{doing}: `{}`", spec.name), &failure)),
            }
        }
        Ok((existing, missing))
    }

    /// Creates topics in one request. Returns the names of those that did not exist.
    fn create<'s>(&self, topics: &[&'s TopicSpec]) -> Result<Vec<&'s str>> {
        let requested: Vec<TopicSpec> = topics.iter().map(|spec| with_default_limit(spec)).collect();
        let mut created = Vec::new();
        let mut failures: Vec<(&str, Failure)> = Vec::new();
        let mut refused = Vec::new();
        for (spec, (requested, outcome)) in topics.iter().zip(requested.iter().zip(self.request_creation(&requested)?))
        {
            match outcome {
                Ok(()) => created.push((*spec, requested.clone())),
                Err((RDKafkaErrorCode::TopicAlreadyExists, _)) => {}
                // The broker may not permit records that large: then its own limit applies.
                Err((RDKafkaErrorCode::PolicyViolation | RDKafkaErrorCode::InvalidConfig, _))
                    if requested.config != spec.config =>
                {
                    refused.push(*spec);
                }
                Err(failure) => failures.push((&spec.name, failure)),
            }
        }
        let requested: Vec<TopicSpec> = refused.iter().map(|spec| (*spec).clone()).collect();
        for (spec, outcome) in refused.into_iter().zip(self.request_creation(&requested)?) {
            match outcome {
                Ok(()) => created.push((spec, spec.clone())),
                Err((RDKafkaErrorCode::TopicAlreadyExists, _)) => {}
                Err(failure) => failures.push((&spec.name, failure)),
            }
        }
        log_created(&created.iter().map(|(spec, _)| *spec).collect::<Vec<_>>());
        for (spec, requested) in &created {
            self.note_limit(&spec.name, &requested.config);
        }
        if failures.is_empty() {
            Ok(created.into_iter().map(|(spec, _)| spec.name.as_str()).collect())
        } else {
            Err(creation_error(&failures))
        }
    }

    /// Deletes a topic; a missing one is no error.
    pub fn delete(&self, topic: &str) -> Result<()> {
        let doing = format!("deleting topic `{topic}`");
        let outcomes = self.client.delete_topics(&[topic]).map_err(|failure| classify_failure(&doing, &failure))?;
        match outcomes.into_iter().next() {
            Some(Err(failure)) if !is_unknown(&failure) => Err(classify_failure(&doing, &failure)),
            _ => Ok(()),
        }
    }

    fn request_creation(&self, topics: &[TopicSpec]) -> Result<Vec<std::result::Result<(), Failure>>> {
        if topics.is_empty() {
            return Ok(Vec::new());
        }
        self.client.create_topics(topics).map_err(|failure| classify_failure("creating topics", &failure))
    }

    /// Compares existing topics with their requests, and notes their limits for the producers.
    fn compare(&self, existing: &[Existing<'_>]) -> Result<Vec<String>> {
        if existing.is_empty() {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = existing.iter().map(|(spec, _)| spec.name.as_str()).collect();
        let configs = self
            .client
            .describe_configs(&names)
            .map_err(|failure| classify_failure("reading the configuration of topics", &failure))?;
        let mut differences = Vec::new();
        let mut small_limits: BTreeMap<usize, Vec<&str>> = BTreeMap::new();
        for ((spec, partitions), config) in existing.iter().zip(configs) {
            if *partitions != spec.partitions {
                differences.push(format!(
                    "topic `{}` has {partitions} partitions, not {}: it is not altered",
                    spec.name, spec.partitions
                ));
            }
            match config {
                Ok(config) => {
                    self.note_limit(&spec.name, &config);
                    differences.extend(config_differences(spec, &config));
                    if let Some(limit) = small_limit(spec, &config) {
                        small_limits.entry(limit).or_default().push(&spec.name);
                    }
                }
                // The right to read the configuration is not needed to write records.
                Err((code, explanation)) => {
                    tracing::debug!(topic = spec.name, %code, explanation, "the configuration cannot be read");
                }
            }
        }
        differences.extend(small_limits.iter().map(|(limit, topics)| describe_small_limit(*limit, topics)));
        Ok(differences)
    }

    fn note_limit(&self, topic: &str, config: &TopicConfig) {
        if let Some(bytes) = config.get(MAX_MESSAGE_BYTES).and_then(|value| value.parse().ok()) {
            self.cluster.limits().set(topic, bytes);
        }
    }

    /// Requests the metadata of all topics and brokers. The client serves many stages and lives as
    /// long as the worker, so it must find brokers again after it lost them.
    pub(super) fn metadata(&self, doing: &str) -> Result<Metadata> {
        let begun = Instant::now();
        let client = self.client.client();
        let mut attempts = 0;
        loop {
            let left = CALL_TIMEOUT.saturating_sub(begun.elapsed());
            let timeout = METADATA_TIMEOUTS[attempts.min(METADATA_TIMEOUTS.len() - 1)];
            let answer = client.fetch_metadata(None, timeout.min(left));
            attempts += 1;
            self.client.serve();
            let error = match answer.map_err(|error| self.cluster.failed(doing, &error)) {
                Ok(metadata) if !metadata.brokers().is_empty() => {
                    self.cluster.connection().set_reached();
                    return Ok(metadata);
                }
                Ok(_) => Error::external(
                    "kafka.unreachable",
                    format!("{doing}: the broker that answered knows no broker yet"),
                ),
                Err(error) if !is_connection_error(&error) => return Err(error),
                Err(error) => error,
            };
            let is_over = begun.elapsed() >= CALL_TIMEOUT || error.retry == Retry::Never;
            if is_over || self.cluster.is_interrupted() {
                return Err(error);
            }
            self.rebootstrap.set_lost();
            self.rebootstrap.run_if_due(client);
            // An unreachable broker, and one that knows no broker, fail at once.
            std::thread::park_timeout(METADATA_RETRY);
        }
    }
}

fn is_connection_error(error: &Error) -> bool {
    matches!(error.code, "kafka.unreachable" | "kafka.connection_rejected")
}

/// The request with the largest limit for records, unless the user has chosen one.
fn with_default_limit(spec: &TopicSpec) -> TopicSpec {
    let mut spec = spec.clone();
    spec.config.entry(MAX_MESSAGE_BYTES.to_owned()).or_insert_with(|| MAX_RECORD_BYTES.to_string());
    spec
}

fn config_differences(spec: &TopicSpec, config: &TopicConfig) -> Vec<String> {
    let mut differences = Vec::new();
    for (name, requested) in &spec.config {
        if let Some(actual) = config.get(name)
            && actual != requested
        {
            differences.push(format!("topic `{}` has {name}={actual}, not {requested}: it is not altered", spec.name));
        }
    }
    differences
}

/// The limit of a topic that does not accept the largest records, unless the user has chosen it.
fn small_limit(spec: &TopicSpec, config: &TopicConfig) -> Option<usize> {
    let limit = config.get(MAX_MESSAGE_BYTES)?.parse().ok()?;
    (limit < MAX_RECORD_BYTES && !spec.config.contains_key(MAX_MESSAGE_BYTES)).then_some(limit)
}

fn describe_small_limit(limit: usize, topics: &[&str]) -> String {
    let names: Vec<String> = topics.iter().map(|topic| format!("`{topic}`")).collect();
    format!(
        "records of more than {limit} bytes are data errors, because {MAX_MESSAGE_BYTES} of these topics is {limit}: \
         {}. To raise it: kafka-configs.sh --bootstrap-server BROKER --alter --entity-type topics --entity-name TOPIC \
         --add-config {MAX_MESSAGE_BYTES}={MAX_RECORD_BYTES}",
        names.join(", ")
    )
}

fn is_unknown((code, _): &Failure) -> bool {
    matches!(code, RDKafkaErrorCode::UnknownTopicOrPartition | RDKafkaErrorCode::UnknownTopic)
}

fn is_denied((code, _): &Failure) -> bool {
    matches!(
        code,
        RDKafkaErrorCode::TopicAuthorizationFailed
            | RDKafkaErrorCode::GroupAuthorizationFailed
            | RDKafkaErrorCode::ClusterAuthorizationFailed
    )
}

/// The error of missing topics that are not to be created, with the commands that create them.
fn missing_error(brokers: &str, missing: &[&TopicSpec]) -> Error {
    let names: Vec<String> = missing.iter().map(|spec| format!("`{}`", spec.name)).collect();
    let commands: Vec<String> = missing.iter().map(|spec| creation_command(brokers, spec)).collect();
    let message = format!(
        "these topics do not exist or cannot be described, and `topics.create` is false: {}. Create them, and grant the \
         right Describe on them: {}",
        names.join(", "),
        commands.join("; ")
    );
    Error::external("kafka.missing_topics", message).retry(Retry::Never)
}

/// Creates a topic by Kafka's own tool.
fn creation_command(brokers: &str, spec: &TopicSpec) -> String {
    let mut command = format!(
        "kafka-topics.sh --bootstrap-server {brokers} --create --topic {} --partitions {}",
        spec.name, spec.partitions
    );
    if spec.replication > 0 {
        command.push_str(&format!(" --replication-factor {}", spec.replication));
    }
    for (name, value) in &with_default_limit(spec).config {
        command.push_str(&format!(" --config {name}={value}"));
    }
    command
}

/// Logs the topics of a request in one line: a source of thousands of tables creates many.
fn log_created(created: &[&TopicSpec]) {
    const NAMES: usize = 3;
    match created {
        [] => {}
        [TopicSpec { name, partitions, .. }] => tracing::info!(topic = name, partitions, "created topic"),
        several => {
            let names: Vec<&str> = several.iter().take(NAMES).map(|spec| spec.name.as_str()).collect();
            let more = if several.len() > NAMES { ", .." } else { "" };
            tracing::info!(topics = format!("{}{more}", names.join(", ")), "created {} topics", several.len());
        }
    }
}

/// One error that names every topic that could not be created.
fn creation_error(failures: &[(&str, Failure)]) -> Error {
    let reasons: Vec<String> = failures
        .iter()
        .map(|(topic, (code, explanation))| {
            let reason = if explanation.is_empty() { code.to_string() } else { explanation.clone() };
            format!("`{topic}`: {reason}")
        })
        .collect();
    let names: Vec<String> = failures.iter().map(|(topic, _)| format!("`{topic}`")).collect();
    if failures.iter().all(|(_, failure)| is_denied(failure)) {
        let message = format!(
            "missing topics cannot be created: {}: create them, or grant the rights Create and Describe on them (`trunkline \
             acls` prints the commands)",
            names.join(", ")
        );
        return Error::external("kafka.access_denied", message).retry(Retry::Never);
    }
    let worst = failures.iter().map(|(_, failure)| failure).find(|failure| !is_denied(failure));
    let code = worst.map_or(RDKafkaErrorCode::Fail, |(code, _)| *code);
    let error = classify("", &KafkaError::AdminOp(code));
    let message = format!("topics cannot be created: {}", reasons.join("; "));
    let is_permanent = matches!(
        code,
        RDKafkaErrorCode::PolicyViolation
            | RDKafkaErrorCode::InvalidConfig
            | RDKafkaErrorCode::InvalidTopic
            | RDKafkaErrorCode::InvalidPartitions
            | RDKafkaErrorCode::InvalidReplicationFactor
    );
    let retry = if is_permanent { Retry::Never } else { error.retry };
    Error::external(error.code, message).retry(retry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(config: &[(&str, &str)]) -> TopicSpec {
        let config = config.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        TopicSpec { name: "logs".to_owned(), partitions: 4, replication: -1, config }
    }

    #[test]
    fn new_topics_accept_the_largest_records_unless_the_user_has_a_limit() {
        assert_eq!(with_default_limit(&spec(&[])).config[MAX_MESSAGE_BYTES], "67108864");
        assert_eq!(with_default_limit(&spec(&[(MAX_MESSAGE_BYTES, "5")])).config[MAX_MESSAGE_BYTES], "5");
    }

    #[test]
    fn differences_name_the_property_and_small_limits_their_remedy() {
        let actual = spec(&[("cleanup.policy", "delete"), (MAX_MESSAGE_BYTES, "1048588")]).config;
        let requested = spec(&[("cleanup.policy", "compact")]);
        let expected = ["topic `logs` has cleanup.policy=delete, not compact: it is not altered"];
        assert_eq!(config_differences(&requested, &actual), expected);
        assert_eq!(small_limit(&requested, &actual), Some(1_048_588));
        let line = describe_small_limit(1_048_588, &["a", "b"]);
        assert!(line.contains("more than 1048588 bytes") && line.contains("`a`, `b`"), "{line}");
        assert!(line.contains("--add-config max.message.bytes=67108864"), "{line}");
        let chosen = spec(&[(MAX_MESSAGE_BYTES, "1048588")]);
        assert_eq!((config_differences(&chosen, &actual).len(), small_limit(&chosen, &actual)), (0, None));
    }

    #[test]
    fn topics_that_cannot_be_created_are_all_named_with_the_brokers_explanation() {
        let denied = || (RDKafkaErrorCode::TopicAuthorizationFailed, "Topic authorization failed.".to_owned());
        let error = creation_error(&[("a", denied()), ("b", denied())]);
        assert_eq!((error.code, error.retry), ("kafka.access_denied", Retry::Never));
        let message = error.to_string();
        assert!(message.contains("`a`, `b`") && message.contains("Create and Describe"), "{message}");

        let policy = (RDKafkaErrorCode::PolicyViolation, "the broker has 10000 partitions at most".to_owned());
        let error = creation_error(&[("a", denied()), ("b", policy)]);
        assert_eq!(error.retry, Retry::Never);
        let message = error.to_string();
        assert!(
            message.contains("`b`: the broker has 10000 partitions at most") && message.contains("`a`"),
            "{message}"
        );
    }
}
