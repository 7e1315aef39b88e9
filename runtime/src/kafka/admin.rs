//! Creates topics with the requested partitions, replication and configuration. Existing topics are
//! never altered, because others may depend on them; their differences from the request are
//! reported.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaErrorCode;
use trunkline_connector::{Error, Result};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, classify};
use super::rebootstrap::Rebootstrap;

/// Time for the brokers to answer. Then the bootstrap servers are added again.
const METADATA_TIMEOUT: Duration = Duration::from_secs(5);

/// Pause between two metadata requests.
const METADATA_RETRY: Duration = Duration::from_millis(200);

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

/// Looks up and creates topics.
pub struct Admin {
    client: AdminClient<ClientLog>,
    rebootstrap: Rebootstrap,
    runtime: tokio::runtime::Handle,
}

impl Admin {
    /// Connects with the first call.
    pub fn new(cluster: &Cluster, runtime: tokio::runtime::Handle) -> Result<Self> {
        let config = cluster.config(&[]);
        let client = cluster.create(&config, cluster.client_log())?;
        Ok(Self { client, rebootstrap: Rebootstrap::new(&config), runtime })
    }

    /// Connects to the brokers, also if the client has lost them.
    pub fn connect(&self) -> Result<()> {
        self.metadata(None, "looking up the brokers").map(drop)
    }

    /// Creates the missing topics. Returns one line for each difference between an existing topic
    /// and its request.
    pub fn ensure(&self, topics: &[TopicSpec]) -> Result<Vec<String>> {
        let new: Vec<_> = topics.iter().map(new_topic).collect();
        let options = AdminOptions::new().operation_timeout(Some(CALL_TIMEOUT)).request_timeout(Some(CALL_TIMEOUT));
        let results = self
            .wait(self.client.create_topics(&new, &options))
            .map_err(|error| classify("creating topics", &error))?;
        let mut existing = Vec::new();
        for (spec, result) in topics.iter().zip(results) {
            match result {
                Ok(_) => tracing::info!(topic = spec.name, partitions = spec.partitions, "created topic"),
                Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => existing.push(spec),
                Err((_, code)) => {
                    let error = classify(
                        &format!("creating topic `{}`", spec.name),
                        &rdkafka::error::KafkaError::AdminOp(code),
                    );
                    return Err(error);
                }
            }
        }
        let mut differences = Vec::new();
        for spec in existing {
            differences.extend(self.differences(spec)?);
        }
        Ok(differences)
    }

    /// Number of partitions of a topic; `None` if it does not exist.
    pub fn partitions(&self, topic: &str) -> Result<Option<i32>> {
        let metadata = self.metadata(Some(topic), &format!("looking up topic `{topic}`"))?;
        let partitions = metadata
            .topics()
            .iter()
            .find(|found| found.name() == topic && found.error().is_none())
            .map(|found| found.partitions().len() as i32);
        Ok(partitions.filter(|count| *count > 0))
    }

    /// The names of all topics.
    pub fn topics(&self) -> Result<Vec<String>> {
        let metadata = self.metadata(None, "listing topics")?;
        Ok(metadata.topics().iter().map(|topic| topic.name().to_owned()).collect())
    }

    /// Requests the metadata of a topic, or of all topics, and of the brokers. The client serves
    /// many stages and lives as long as the worker, so it must find brokers again after it lost
    /// them.
    fn metadata(&self, topic: Option<&str>, doing: &str) -> Result<Metadata> {
        let begun = Instant::now();
        let client = self.client.inner();
        loop {
            let left = CALL_TIMEOUT.saturating_sub(begun.elapsed());
            let answer = client.fetch_metadata(topic, METADATA_TIMEOUT.min(left));
            let error = match answer.map_err(|error| classify(doing, &error)) {
                Ok(metadata) if !metadata.brokers().is_empty() => return Ok(metadata),
                Ok(_) => Error::external(
                    "kafka.unreachable",
                    format!("{doing}: the broker that answered knows no broker yet"),
                ),
                Err(error) if error.code != "kafka.unreachable" => return Err(error),
                Err(error) => error,
            };
            if begun.elapsed() >= CALL_TIMEOUT {
                return Err(error);
            }
            self.rebootstrap.set_lost();
            self.rebootstrap.run_if_due(client);
            // An unreachable broker, and one that knows no broker, fail at once.
            std::thread::park_timeout(METADATA_RETRY);
        }
    }

    fn differences(&self, spec: &TopicSpec) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        if let Some(partitions) = self.partitions(&spec.name)?
            && partitions != spec.partitions
        {
            differences.push(format!(
                "topic `{}` has {partitions} partitions, not {}: it is not altered",
                spec.name, spec.partitions
            ));
        }
        if spec.config.is_empty() {
            return Ok(differences);
        }
        let resource = [ResourceSpecifier::Topic(&spec.name)];
        let described = self
            .wait(self.client.describe_configs(&resource, &AdminOptions::new().request_timeout(Some(CALL_TIMEOUT))))
            .map_err(|error| classify(&format!("describing topic `{}`", spec.name), &error))?;
        for found in described.into_iter().flatten() {
            for (name, wanted) in &spec.config {
                if let Some(actual) = found.get(name).and_then(|entry| entry.value.as_ref())
                    && actual != wanted
                {
                    differences
                        .push(format!("topic `{}` has {name}={actual}, not {wanted}: it is not altered", spec.name));
                }
            }
        }
        Ok(differences)
    }

    /// The admin client completes its futures from its own thread, so any executor can run them.
    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(i32::from(spec.replication)));
    spec.config.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
}
