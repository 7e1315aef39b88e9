//! The brokers that chaos runs on, Apache Kafka and Trunkline's own, and how each is made to lose its answers: a proxy stands before the one,
//! the other can be told.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use trunkline_tests::{Kafka, KafkaClient, KafkaFault, KafkaFaults, Skip, wait};

/// How long a broker may take to end when it is asked to.
const STOP: Duration = Duration::from_secs(60);

/// A broker that can be stopped, killed, and started again with its data.
pub(crate) enum ChaosBroker {
    /// Apache Kafka, in a process of its own.
    Apache(Box<Apache>),
    /// Trunkline's own broker, in a process of its own.
    Embedded(Box<Embedded>),
}

impl ChaosBroker {
    /// Asks and tells it things as any client can.
    pub(crate) fn client(&self) -> &KafkaClient {
        match self {
            Self::Apache(apache) => &apache.kafka,
            Self::Embedded(broker) => &broker.client,
        }
    }

    /// The same at the address where its answers can be lost: the workers'.
    pub(crate) fn for_workers(&self) -> &KafkaClient {
        match self {
            Self::Apache(apache) => &apache.client,
            Self::Embedded(broker) => &broker.client,
        }
    }

    /// A crash.
    pub(crate) fn kill9(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.kill9(),
            Self::Embedded(broker) => broker.kill9(),
        }
    }

    /// A clean stop.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.stop(),
            Self::Embedded(broker) => broker.stop(),
        }
    }

    /// Starts it again with its data.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Apache(apache) => apache.kafka.restart(),
            Self::Embedded(broker) => broker.restart(),
        }
    }

    /// The answer to the `nth` request of this kind, counted from now, is lost.
    pub(crate) fn drop_reply(&mut self, api: &str, nth: u64) {
        match self {
            Self::Apache(apache) => apache.faults.nth(nth, api, KafkaFault::DropReply),
            Self::Embedded(broker) => broker.told(&format!("drop {api} {nth}")),
        }
    }

    /// That answer comes late.
    pub(crate) fn delay_reply(&mut self, api: &str, nth: u64, by: Duration) {
        match self {
            Self::Apache(apache) => apache.faults.nth(nth, api, KafkaFault::Delay(by)),
            Self::Embedded(broker) => broker.told(&format!("delay {api} {nth} {}", by.as_millis())),
        }
    }

    /// That request is answered with an error, and nothing done.
    pub(crate) fn answer_error(&mut self, api: &str, nth: u64, code: i16) -> Result<(), Skip> {
        match self {
            Self::Apache(_) => Err(Skip::new("Apache Kafka cannot be told to answer wrongly; the embedded broker can")),
            Self::Embedded(broker) => {
                broker.told(&format!("error {api} {nth} {code}"));
                Ok(())
            }
        }
    }

    /// How many of these faults have not come yet.
    pub(crate) fn pending(&mut self) -> u64 {
        match self {
            Self::Apache(apache) => apache.faults.pending() as u64,
            Self::Embedded(broker) => broker.order("pending").parse().expect("a number"),
        }
    }

    /// Forgets those.
    pub(crate) fn clear(&mut self) {
        match self {
            Self::Apache(apache) => apache.faults.clear(),
            Self::Embedded(broker) => broker.told("clear"),
        }
    }
}

/// Apache Kafka and the proxy before it.
pub(crate) struct Apache {
    kafka: Kafka,
    faults: KafkaFaults,
    client: KafkaClient,
}

impl Apache {
    /// Starts both.
    pub(crate) fn start() -> Result<Self, Skip> {
        let kafka = Kafka::start_apache()?;
        let faults = KafkaFaults::start(kafka.port());
        Ok(Self { client: KafkaClient::new(faults.address().to_owned()), faults, kafka })
    }
}

/// `runtime/broker/examples/broker`: its head says what it understands.
pub(crate) struct Embedded {
    folder: PathBuf,
    address: String,
    client: KafkaClient,
    running: Option<Running>,
}

struct Running {
    process: Child,
    /// Taken to end it: it runs until its standard input ends.
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Embedded {
    /// Starts one with its data in `folder`, which is created.
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let (running, address) = Running::start(folder, "127.0.0.1:0");
        Self { folder: folder.into(), client: KafkaClient::new(address.clone()), address, running: Some(running) }
    }

    /// Gives it a line that it must understand.
    fn told(&mut self, line: &str) {
        assert_eq!(self.order(line), "ok", "{line}");
    }

    /// Gives it a line, and returns its answer.
    fn order(&mut self, line: &str) -> String {
        let running = self.running.as_mut().expect("a broker that runs");
        writeln!(running.orders.as_ref().expect("a broker that runs"), "{line}").unwrap();
        let mut answer = String::new();
        running.answers.read_line(&mut answer).unwrap();
        answer.trim().to_owned()
    }

    fn kill9(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.process.kill().unwrap();
            running.process.wait().unwrap();
        }
    }

    fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.orders.take();
            wait::until("the broker ends", STOP, || running.process.try_wait().unwrap());
        }
    }

    /// Starts it again on its address and its data, and stops it before if it runs.
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
    fn start(folder: &Path, address: &str) -> (Self, String) {
        let binary = env::current_exe().unwrap().with_file_name("examples").join("broker");
        let log = fs::OpenOptions::new().create(true).append(true).open(folder.with_extension("log")).unwrap();
        let mut command = Command::new(&binary);
        command.arg(folder).arg(address).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        // SAFETY: prctl is async-signal-safe and touches nothing of ours.
        unsafe {
            command.pre_exec(|| match libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        let mut process = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", binary.display()));
        let mut answers = BufReader::new(process.stdout.take().unwrap());
        let mut found = String::new();
        answers.read_line(&mut found).unwrap();
        assert!(!found.is_empty(), "the broker does not start, see {}", folder.with_extension("log").display());
        let orders = process.stdin.take();
        (Self { process, orders, answers }, found.trim().to_owned())
    }
}
