//! The brokers of chaos runs and their faults: a proxy injects those of Apache Kafka, with and
//! without TLS, and the embedded broker injects its own on command.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use trunkline_tests::{
    BrokerKind, Kafka, KafkaClient, KafkaFault, KafkaFaults, SecuredKafka, Skip, TlsFiles, TokenServer, wait,
};

/// How long a broker may take to stop.
const STOP: Duration = Duration::from_secs(60);

/// A broker that can be stopped, killed, and started again on its data.
pub(crate) enum ChaosBroker {
    /// Apache Kafka.
    Apache(Box<Apache>),
    /// Apache Kafka over TLS, whose tokens expire within seconds.
    Secured(Box<Secured>),
    /// The embedded broker, in its own process.
    Embedded(Box<Embedded>),
}

impl ChaosBroker {
    /// A client that bypasses the faults of Apache Kafka's proxy.
    pub(crate) fn client(&self) -> &KafkaClient {
        match self {
            Self::Apache(apache) => &apache.kafka,
            Self::Secured(secured) => &secured.kafka,
            Self::Embedded(broker) => &broker.client,
        }
    }

    /// A client at the workers' address, where replies can be lost.
    pub(crate) fn for_workers(&self) -> &KafkaClient {
        match self {
            Self::Apache(apache) => &apache.client,
            Self::Secured(secured) => &secured.client,
            Self::Embedded(broker) => &broker.client,
        }
    }

    /// Kills it.
    pub(crate) fn kill9(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.kill9(),
            Self::Secured(secured) => secured.kafka.kill9(),
            Self::Embedded(broker) => broker.kill9(),
        }
    }

    /// Stops it cleanly.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.stop(),
            Self::Secured(secured) => secured.kafka.stop(),
            Self::Embedded(broker) => broker.stop(),
        }
    }

    /// Starts it again on its data.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.restart(),
            Self::Secured(secured) => secured.kafka.restart(),
            Self::Embedded(broker) => broker.restart(),
        }
    }

    /// The settings with which workers connect.
    pub(crate) fn settings(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Secured(secured) => secured.settings(),
            Self::Apache(_) | Self::Embedded(_) => Vec::new(),
        }
    }

    /// The certificate that the proxies of the other servers use, too.
    pub(crate) fn tls_files(&self) -> Option<TlsFiles> {
        match self {
            Self::Secured(secured) => Some(secured.kafka.tls_files()),
            Self::Apache(_) | Self::Embedded(_) => None,
        }
    }

    /// Loses the reply to the `nth` request of this kind, counted from now.
    pub(crate) fn drop_reply(&mut self, api: &str, nth: u64) {
        match self {
            Self::Apache(apache) => apache.faults.nth(nth, api, KafkaFault::DropReply),
            Self::Secured(secured) => secured.faults.nth(nth, api, KafkaFault::DropReply),
            Self::Embedded(broker) => broker.expect_ok(&format!("drop {api} {nth}")),
        }
    }

    /// Delays the reply to the `nth` request of this kind.
    pub(crate) fn delay_reply(&mut self, api: &str, nth: u64, by: Duration) {
        match self {
            Self::Apache(apache) => apache.faults.nth(nth, api, KafkaFault::Delay(by)),
            Self::Secured(secured) => secured.faults.nth(nth, api, KafkaFault::Delay(by)),
            Self::Embedded(broker) => broker.expect_ok(&format!("delay {api} {nth} {}", by.as_millis())),
        }
    }

    /// Answers the `nth` request of this kind with an error, without executing it.
    pub(crate) fn answer_error(&mut self, api: &str, nth: u64, code: i16) -> Result<(), Skip> {
        match self {
            Self::Apache(_) | Self::Secured(_) => {
                Err(Skip::new("Apache Kafka cannot inject errors; the embedded broker can"))
            }
            Self::Embedded(broker) => {
                broker.expect_ok(&format!("error {api} {nth} {code}"));
                Ok(())
            }
        }
    }

    /// The number of faults that have not applied yet.
    pub(crate) fn pending(&mut self) -> u64 {
        match self {
            Self::Apache(apache) => apache.faults.pending() as u64,
            Self::Secured(secured) => secured.faults.pending() as u64,
            Self::Embedded(broker) => broker.request("pending").parse().expect("a number"),
        }
    }

    /// Removes them.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Apache(apache) => apache.faults.clear(),
            Self::Secured(secured) => secured.faults.clear(),
            Self::Embedded(broker) => broker.expect_ok("clear"),
        }
    }
}

/// Apache Kafka behind a proxy.
pub(crate) struct Apache {
    kafka: Kafka,
    faults: KafkaFaults,
    client: KafkaClient,
}

impl Apache {
    /// Starts both.
    pub(crate) fn start() -> Result<Self, Skip> {
        let kafka = Kafka::start_for_crashes(BrokerKind::Apache)?;
        let faults = KafkaFaults::start(kafka.port());
        Ok(Self { client: KafkaClient::new(faults.address().to_owned()), faults, kafka })
    }
}

/// Apache Kafka whose listener has TLS and OAuth tokens, behind a proxy, and the server of these
/// tokens.
pub(crate) struct Secured {
    kafka: SecuredKafka,
    tokens: TokenServer,
    faults: KafkaFaults,
    client: KafkaClient,
}

/// The clients replace a token after 70 % of its lifetime: every five seconds.
const TOKEN_LIFETIME: Duration = Duration::from_secs(7);

impl Secured {
    /// Starts all.
    pub(crate) fn start() -> Result<Self, Skip> {
        let kafka = SecuredKafka::start_for_crashes()?;
        let tokens = TokenServer::start(&kafka.file("oauth.key"), TOKEN_LIFETIME);
        let faults = KafkaFaults::start_tls(kafka.oauth_port(), &kafka.tls_files());
        Ok(Self { client: KafkaClient::new(faults.address().to_owned()), tokens, faults, kafka })
    }

    fn settings(&self) -> Vec<(&'static str, String)> {
        vec![
            ("TRUNKLINE_KAFKA_SECURITY", "oauth".to_owned()),
            ("TRUNKLINE_KAFKA_SSL_CA_LOCATION", self.kafka.file("ca.pem").display().to_string()),
            ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL", self.tokens.url()),
            ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_ID", TokenServer::ID.to_owned()),
            ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET", TokenServer::SECRET.to_owned()),
            ("TRUNKLINE_KAFKA_SASL_OAUTHBEARER_SCOPE", "kafka".to_owned()),
        ]
    }
}

/// The program `runtime/broker/examples/broker`, which describes its commands.
pub(crate) struct Embedded {
    folder: PathBuf,
    address: String,
    client: KafkaClient,
    running: Option<Running>,
}

struct Running {
    process: Child,
    /// The process runs until this is closed.
    commands: Option<ChildStdin>,
    replies: BufReader<ChildStdout>,
}

impl Embedded {
    /// Starts a broker with its data in `folder`, which is created.
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let (running, address) = Running::start(folder, "127.0.0.1:0");
        Self { folder: folder.into(), client: KafkaClient::new(address.clone()), address, running: Some(running) }
    }

    /// Sends a command that must succeed.
    fn expect_ok(&mut self, line: &str) {
        assert_eq!(self.request(line), "ok", "{line}");
    }

    /// Sends a command; returns the reply.
    fn request(&mut self, line: &str) -> String {
        let running = self.running.as_mut().expect("a running broker");
        writeln!(running.commands.as_ref().expect("a running broker"), "{line}").unwrap();
        let mut reply = String::new();
        running.replies.read_line(&mut reply).unwrap();
        reply.trim().to_owned()
    }

    fn kill9(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.process.kill().unwrap();
            running.process.wait().unwrap();
        }
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.commands.take();
            wait::until("the broker ends", STOP, || running.process.try_wait().unwrap());
        }
    }

    /// Starts it again on its address and data, after a stop if it runs.
    pub(crate) fn restart(&mut self) {
        self.stop();
        let (running, _) = Running::start(&self.folder, &self.address);
        self.running = Some(running);
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        self.kill9();
    }
}

impl Running {
    /// Starts the process; also returns its address.
    fn start(folder: &Path, address: &str) -> (Self, String) {
        let binary = env::current_exe().unwrap().with_file_name("examples").join("broker");
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.with_extension("log")).unwrap();
        let mut command = Command::new(&binary);
        command.arg(folder).arg(address).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // SAFETY: prctl is async-signal-safe and does not access this process's memory.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let mut replies = BufReader::new(process.stdout.take().unwrap());
        let mut found = String::new();
        replies.read_line(&mut found).unwrap();
        assert!(!found.is_empty(), "the broker does not start, see {}", folder.with_extension("log").display());
        let commands = process.stdin.take();
        (Self { process, commands, replies }, found.trim().to_owned())
    }
}
