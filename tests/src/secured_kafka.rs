//! Apache Kafka with TLS, SASL and access control, started by `tests/services/kafka-secured`.

use std::ops::Deref;
use std::path::PathBuf;
use std::sync::OnceLock;

use crate::server::Server;
use crate::{KafkaClient, Skip, Tool};

/// A broker with a listener per security protocol. It dereferences to a client with all rights.
pub struct SecuredKafka {
    server: Server,
    client: KafkaClient,
    tool: Tool,
}

impl SecuredKafka {
    /// The server that the tests of this process share.
    pub fn shared() -> Result<&'static Self, Skip> {
        static SHARED: OnceLock<Result<SecuredKafka, Skip>> = OnceLock::new();
        SHARED.get_or_init(Self::start).as_ref().map_err(Skip::clone)
    }

    fn start() -> Result<Self, Skip> {
        let server = Server::start("kafka-secured", &[], 4)?;
        let client = KafkaClient::new(format!("127.0.0.1:{}", server.port()));
        Ok(Self { server, client, tool: Tool::find("kafka-tool")? })
    }

    /// The address of the plaintext listener.
    pub fn plaintext(&self) -> String {
        self.address(0)
    }

    /// The address of the listener with TLS and SASL.
    pub fn sasl_tls(&self) -> String {
        self.address(2)
    }

    /// The address of the listener that requires a client certificate.
    pub fn mutual_tls(&self) -> String {
        self.address(3)
    }

    /// The address of the listener with SASL and without TLS.
    pub fn sasl_plaintext(&self) -> String {
        self.address(4)
    }

    /// The address of the listener with an expired certificate.
    pub fn expired(&self) -> String {
        self.address(5)
    }

    /// The address of the listener with TLS and OAuth tokens.
    pub fn oauth(&self) -> String {
        self.address(6)
    }

    fn address(&self, offset: u16) -> String {
        format!("localhost:{}", self.server.port() + offset)
    }

    /// The path of a certificate or key.
    pub fn file(&self, name: &str) -> PathBuf {
        self.server.directory().join(name)
    }

    /// Grants rights to `alice`: `operations` on a resource, such as `["--topic", "web"]`, or on
    /// all resources with a prefix.
    pub fn allow(&self, operations: &[&str], resource: &[&str]) {
        let bootstrap = self.client.brokers();
        let mut arguments =
            vec!["org.apache.kafka.tools.AclCommand", "--bootstrap-server", bootstrap, "--add", "--force"];
        arguments.extend(["--allow-principal", "User:alice", "--resource-pattern-type", "prefixed"]);
        operations.iter().for_each(|operation| arguments.extend(["--operation", *operation]));
        arguments.extend(resource);
        self.tool.run(&arguments);
    }
}

impl Deref for SecuredKafka {
    type Target = KafkaClient;

    fn deref(&self) -> &KafkaClient {
        &self.client
    }
}
