//! The brokers that chaos runs on: Apache Kafka, or Trunkline's own with faults.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;
use std::{env, fs, io};

use trunkline_tests::{Kafka, KafkaClient, wait};

/// How long a broker may take to end when it is asked to.
const STOP: Duration = Duration::from_secs(60);

/// A broker that can be stopped, killed, and started again with its data.
pub(crate) enum ChaosBroker {
    /// Apache Kafka, in a process of its own.
    Apache(Box<Kafka>),
    /// Trunkline's own broker, in a process of its own.
    Embedded(Box<Embedded>),
}

impl ChaosBroker {
    /// Asks and tells it things as any client can.
    pub(crate) fn client(&self) -> &KafkaClient {
        match self {
            Self::Apache(kafka) => kafka,
            Self::Embedded(broker) => &broker.client,
        }
    }

    /// A crash.
    pub(crate) fn kill9(&mut self) {
        match self {
            Self::Apache(kafka) => kafka.kill9(),
            Self::Embedded(broker) => broker.kill9(),
        }
    }

    /// A clean stop.
    pub(crate) fn stop(&mut self) {
        match self {
            Self::Apache(kafka) => kafka.stop(),
            Self::Embedded(broker) => broker.stop(),
        }
    }

    /// Starts it again with its data.
    pub(crate) fn restart(&mut self) {
        match self {
            Self::Apache(kafka) => kafka.restart(),
            Self::Embedded(broker) => broker.restart(),
        }
    }

    /// The embedded one, which can be told to lose its replies.
    pub(crate) fn embedded(&mut self) -> Option<&mut Embedded> {
        match self {
            Self::Apache(_) => None,
            Self::Embedded(broker) => Some(broker),
        }
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

    /// Gives it a line, and returns its answer.
    pub(crate) fn order(&mut self, line: &str) -> String {
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
