//! Topics are created with the partitions, replication and configuration asked for. One that exists is left alone, and where it differs
//! is said, because altering a topic changes what others built on it.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::metadata::Metadata;
use rdkafka::types::RDKafkaErrorCode;
use trunkline_connector::{Error, Result};

use super::client::{CALL_TIMEOUT, ClientLog, Cluster, classify};
use super::rebootstrap::Rebootstrap;

/// How long the brokers have to answer before the client is told anew where they are.
const PATIENCE: Duration = Duration::from_secs(5);

/// How soon they are asked again.
const ASK_AGAIN: Duration = Duration::from_millis(200);

/// A topic as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicSpec {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Number of replicas; -1 = the brokers' default.
    pub replication: i16,
    /// Topic configuration such as `cleanup.policy`.
    pub config: BTreeMap<String, String>,
}

/// Administration of topics.
pub struct Admin {
    client: AdminClient<ClientLog>,
    rebootstrap: Rebootstrap,
    runtime: tokio::runtime::Handle,
}

impl Admin {
    /// Connects lazily: the first call reaches the cluster.
    pub fn new(cluster: &Cluster, runtime: tokio::runtime::Handle) -> Result<Self> {
        let config = cluster.config(&[]);
        let client = cluster.create(&config, cluster.client_log())?;
        Ok(Self { client, rebootstrap: Rebootstrap::of(&config), runtime })
    }

    /// Finds the brokers, also if the client has lost them.
    pub fn reach(&self) -> Result<()> {
        self.metadata(None, "asking for the brokers").map(drop)
    }

    /// Creates the topics that do not exist. Returns, for those that do, a line for each difference from what was asked.
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

    /// Asks for a topic, or all, and for the brokers. The client serves many stages and lives as long as the worker: it must not stay lost.
    fn metadata(&self, topic: Option<&str>, doing: &str) -> Result<Metadata> {
        let begun = Instant::now();
        let client = self.client.inner();
        loop {
            let left = CALL_TIMEOUT.saturating_sub(begun.elapsed());
            let asked = client.fetch_metadata(topic, PATIENCE.min(left));
            let error = match asked.map_err(|error| classify(doing, &error)) {
                Ok(metadata) if !metadata.brokers().is_empty() => return Ok(metadata),
                Ok(_) => {
                    Error::external("kafka.unreachable", format!("{doing}: the broker does not know of any broker yet"))
                }
                Err(error) if error.code != "kafka.unreachable" => return Err(error),
                Err(error) => error,
            };
            if begun.elapsed() >= CALL_TIMEOUT {
                return Err(error);
            }
            self.rebootstrap.lost();
            self.rebootstrap.mind(client);
            // A broker that is not there, or knows of none, shows at once.
            std::thread::park_timeout(ASK_AGAIN);
        }
    }

    fn differences(&self, spec: &TopicSpec) -> Result<Vec<String>> {
        let mut differences = Vec::new();
        if let Some(partitions) = self.partitions(&spec.name)?
            && partitions != spec.partitions
        {
            differences.push(format!(
                "topic `{}` has {partitions} partitions, not {}: left as it is",
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
                    differences.push(format!("topic `{}` has {name}={actual}, not {wanted}: left as it is", spec.name));
                }
            }
        }
        Ok(differences)
    }

    /// The admin client completes its futures from a thread of its own; any executor will do.
    fn wait<T>(&self, call: impl Future<Output = T>) -> T {
        self.runtime.block_on(call)
    }
}

fn new_topic(spec: &TopicSpec) -> NewTopic<'_> {
    let topic = NewTopic::new(&spec.name, spec.partitions, TopicReplication::Fixed(i32::from(spec.replication)));
    spec.config.iter().fold(topic, |topic, (name, value)| topic.set(name, value))
}
