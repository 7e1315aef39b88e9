//! Apache Kafka with TLS, SASL and access control, started by `tests/services/kafka-secured`.

use std::ffi::CString;
use std::ops::Deref;
use std::path::PathBuf;
use std::ptr;
use std::sync::OnceLock;

use rdkafka::ClientConfig;
use rdkafka::admin::AdminClient;
use rdkafka::bindings::{self, rd_kafka_AclOperation_t, rd_kafka_ResourcePatternType_t, rd_kafka_ResourceType_t};
use rdkafka::client::DefaultClientContext;

use crate::kafka::QUICK_RESTART;
use crate::server::Server;
use crate::{KafkaClient, Skip, TlsFiles, Tool};

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
        Self::start_with(&[])
    }

    /// Starts a server that a test may kill.
    pub fn start_for_crashes() -> Result<Self, Skip> {
        Self::start_with(&QUICK_RESTART)
    }

    fn start_with(settings: &[(&str, &str)]) -> Result<Self, Skip> {
        let server = Server::start("kafka-secured", settings, 4)?;
        let client = KafkaClient::new(format!("127.0.0.1:{}", server.port()));
        Ok(Self { server, client, tool: Tool::find("kafka-tool")? })
    }

    /// Stops it cleanly.
    pub fn stop(&mut self) {
        self.server.end(libc::SIGTERM);
    }

    /// Kills it.
    pub fn kill9(&mut self) {
        self.server.end(libc::SIGKILL);
    }

    /// Starts it again on its data, after a clean stop if it runs.
    pub fn restart(&mut self) {
        self.stop();
        self.server.start_again();
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

    /// The port of the same listener.
    pub fn oauth_port(&self) -> u16 {
        self.server.port() + 6
    }

    /// The certificate of its listeners with TLS.
    pub fn tls_files(&self) -> TlsFiles {
        TlsFiles { ca: self.file("ca.pem"), certificate: self.file("broker.pem"), key: self.file("broker.key") }
    }

    /// The address of the listener with TLS and tokens of Amazon MSK IAM; a skip without a JDK.
    pub fn iam(&self) -> Result<String, Skip> {
        match std::fs::read_to_string(self.file("no-iam")) {
            Ok(reason) => Err(Skip::new(format!("the verifier of MSK's tokens cannot be compiled: {reason}"))),
            Err(_) => Ok(self.address(7)),
        }
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

/// A right of `alice`, as `trunkline acls --format json` lists it.
#[derive(Debug, Clone)]
pub struct Right {
    /// `topic`, `group` or `transactional-id`.
    pub resource: String,
    /// The name of the resource, or the start of it.
    pub name: String,
    /// Whether `name` is the start of names.
    pub is_prefix: bool,
    /// `Create`, `Read` or `Write`.
    pub operation: String,
}

impl Right {
    /// The kind of its resource, its pattern type and its operation, as librdkafka numbers them.
    fn codes(&self) -> (rd_kafka_ResourceType_t, rd_kafka_ResourcePatternType_t, rd_kafka_AclOperation_t) {
        let kind = match self.resource.as_str() {
            "topic" => rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TOPIC,
            "group" => rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_GROUP,
            "transactional-id" => rd_kafka_ResourceType_t::RD_KAFKA_RESOURCE_TRANSACTIONAL_ID,
            other => panic!("unknown resource {other}"),
        };
        let pattern = match self.is_prefix {
            true => rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_PREFIXED,
            false => rd_kafka_ResourcePatternType_t::RD_KAFKA_RESOURCE_PATTERN_LITERAL,
        };
        let operation = match self.operation.as_str() {
            "Create" => rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_CREATE,
            "Read" => rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_READ,
            "Write" => rd_kafka_AclOperation_t::RD_KAFKA_ACL_OPERATION_WRITE,
            other => panic!("unknown operation {other}"),
        };
        (kind, pattern, operation)
    }
}

impl SecuredKafka {
    /// Grants `alice` exactly these rights.
    pub fn grant(&self, rights: &[Right]) {
        self.change_rights(rights, true);
    }

    /// Takes these rights of `alice` back.
    pub fn revoke(&self, rights: &[Right]) {
        self.change_rights(rights, false);
    }

    /// By librdkafka: Kafka's own tool needs a second for each right.
    fn change_rights(&self, rights: &[Right], allow: bool) {
        let admin: AdminClient<DefaultClientContext> =
            ClientConfig::new().set("bootstrap.servers", self.client.brokers()).create().unwrap();
        let client = admin.inner().native_ptr();
        let permission = bindings::rd_kafka_AclPermissionType_t::RD_KAFKA_ACL_PERMISSION_TYPE_ALLOW;
        let (principal, host) = (CString::new("User:alice").unwrap(), CString::new("*").unwrap());
        // SAFETY: every object is created and destroyed here, and the client outlives them.
        unsafe {
            let queue = bindings::rd_kafka_queue_new(client);
            let binding = |right: &Right| {
                let (kind, pattern, operation) = right.codes();
                let name = CString::new(right.name.as_str()).unwrap();
                let (name, principal, host) = (name.as_ptr(), principal.as_ptr(), host.as_ptr());
                let new =
                    if allow { bindings::rd_kafka_AclBinding_new } else { bindings::rd_kafka_AclBindingFilter_new };
                let binding = new(kind, name, pattern, principal, host, operation, permission, ptr::null_mut(), 0);
                assert!(!binding.is_null(), "{right:?}");
                binding
            };
            let mut list: Vec<_> = rights.iter().map(binding).collect();
            let send = if allow { bindings::rd_kafka_CreateAcls } else { bindings::rd_kafka_DeleteAcls };
            send(client, list.as_mut_ptr(), list.len(), ptr::null(), queue);
            let event = bindings::rd_kafka_queue_poll(queue, 30_000);
            assert!(!event.is_null(), "the broker does not change rights");
            let code = bindings::rd_kafka_event_error(event);
            assert_eq!(code, bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR);
            if allow {
                let mut count = 0;
                let result = bindings::rd_kafka_event_CreateAcls_result(event);
                let results = bindings::rd_kafka_CreateAcls_result_acls(result, &raw mut count);
                assert_eq!(count, rights.len());
                for (index, right) in rights.iter().enumerate() {
                    let error = bindings::rd_kafka_acl_result_error(*results.add(index));
                    let code = bindings::rd_kafka_error_code(error);
                    assert_eq!(code, bindings::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR, "{right:?}");
                }
            }
            bindings::rd_kafka_event_destroy(event);
            bindings::rd_kafka_AclBinding_destroy_array(list.as_mut_ptr(), list.len());
            bindings::rd_kafka_queue_destroy(queue);
        }
    }
}

impl Deref for SecuredKafka {
    type Target = KafkaClient;

    fn deref(&self) -> &KafkaClient {
        &self.client
    }
}
