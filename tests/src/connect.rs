//! Kafka Connect, for comparisons of its REST API.

use crate::server::Server;
use crate::{KafkaClient, Skip};

/// A distributed worker of Kafka Connect, with its file connectors.
pub struct KafkaConnect {
    server: Server,
}

impl KafkaConnect {
    /// Starts a worker on a broker.
    pub fn start(kafka: &KafkaClient) -> Result<Self, Skip> {
        let settings = [
            ("BOOTSTRAP_SERVERS", kafka.brokers()),
            ("CONNECT_OPTS", "-Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1"),
        ];
        Ok(Self { server: Server::start("connect", &settings, 1)? })
    }

    /// The host and port of its REST API.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.server.port())
    }
}
