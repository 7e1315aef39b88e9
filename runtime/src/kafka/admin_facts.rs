//! What the brokers say about themselves and about topics, for `trunkline doctor`.

use std::collections::BTreeMap;

use trunkline_connector::Result;

use super::admin::Admin;
use super::client::classify_failure;

/// The property of a broker that names its version. Brokers since 4.0 do not have it.
const VERSION: &str = "inter.broker.protocol.version";

/// A broker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BrokerFacts {
    /// Host and port.
    pub address: String,
    /// The version of its protocol, such as `3.7-IV4`; `None` if it does not say.
    pub version: Option<String>,
}

/// An existing topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TopicFacts {
    /// Its name.
    pub name: String,
    /// Number of partitions.
    pub partitions: i32,
    /// Replicas of the partition with the fewest.
    pub replicas: usize,
    /// Replicas in sync, of the partition with the fewest.
    pub in_sync: usize,
    /// Partitions without a leader.
    pub leaderless: usize,
    /// Its configuration; empty if this client may not read it.
    pub config: BTreeMap<String, String>,
}

impl Admin {
    /// The brokers.
    pub fn brokers(&self) -> Result<Vec<BrokerFacts>> {
        let metadata = self.metadata("looking up the brokers")?;
        let facts = metadata.brokers().iter().map(|broker| {
            // Most principals may not read the configuration of brokers.
            let config = self.client.describe_broker(broker.id()).unwrap_or_default();
            BrokerFacts {
                address: format!("{}:{}", broker.host(), broker.port()),
                version: config.get(VERSION).cloned(),
            }
        });
        Ok(facts.collect())
    }

    /// Those of these topics that exist and that this client may see.
    pub fn topics(&self, names: &[&str]) -> Result<Vec<TopicFacts>> {
        let metadata = self.metadata("looking up topics")?;
        let existing =
            metadata.topics().iter().filter(|topic| topic.error().is_none() && names.contains(&topic.name()));
        let existing: Vec<_> = existing.collect();
        if existing.is_empty() {
            return Ok(Vec::new());
        }
        let existing_names: Vec<&str> = existing.iter().map(|topic| topic.name()).collect();
        let configs = self
            .client
            .describe_configs(&existing_names)
            .map_err(|failure| classify_failure("reading the configuration of topics", &failure))?;
        let facts = existing.iter().zip(configs).map(|(topic, config)| {
            let partitions = topic.partitions();
            TopicFacts {
                name: topic.name().to_owned(),
                partitions: i32::try_from(partitions.len()).unwrap_or(i32::MAX),
                replicas: partitions.iter().map(|partition| partition.replicas().len()).min().unwrap_or(0),
                in_sync: partitions.iter().map(|partition| partition.isr().len()).min().unwrap_or(0),
                leaderless: partitions.iter().filter(|partition| partition.leader() < 0).count(),
                config: config.unwrap_or_default(),
            }
        });
        Ok(facts.collect())
    }
}
