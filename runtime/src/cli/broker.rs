//! `trunkline broker`: runs the embedded broker without pipelines.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use trunkline_broker::{Broker, BrokerError, BrokerOptions, FlushPolicy, TlsFiles, Users};
use trunkline_connector::config::{Node, Value, parse_bytes, parse_duration};

use super::output::{log_to_stderr, print_error, print_problems};
use super::{Exit, print_data, run::StopSignals};
use crate::config::{Document, FileProblems, default_secrets};
use crate::worker::raise_open_files_limit;

/// `trunkline broker`.
#[derive(Args)]
pub(super) struct BrokerArgs {
    /// Address to listen on. An address beyond loopback needs --tls-cert, --tls-key and --users, or
    /// --insecure
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:9092")]
    listen: SocketAddr,
    /// PEM file with the certificate of the broker: clients must use TLS
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// PEM file with the private key of --tls-cert, not encrypted
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// TOML file with a line `NAME = "PASSWORD"` for each user: clients must log in with PLAIN,
    /// SCRAM-SHA-256 or SCRAM-SHA-512. References such as `${secret:NAME}` are resolved. Each user
    /// has all rights
    #[arg(long, value_name = "FILE")]
    users: Option<PathBuf>,
    /// Listen on an address that other machines reach, although clients need no login or no TLS
    #[arg(long)]
    insecure: bool,
    /// Host and port that clients connect to
    /// [default: the address at which a client reached the broker]
    #[arg(long, value_name = "HOST:PORT", value_parser = host_and_port)]
    advertised: Option<(String, u16)>,
    /// Data directory
    #[arg(long, value_name = "DIR", default_value = "trunkline-data/broker")]
    data: PathBuf,
    /// When an acknowledged record is on disk
    #[arg(long, value_enum, default_value_t = Flush::Os)]
    flush: Flush,
    /// Create a missing topic when a client asks for it
    #[arg(long)]
    auto_create_topics: bool,
    /// Partitions of a topic when its creator names no number
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(i32).range(1..=10_000))]
    partitions: i32,
    /// Largest record batch of a topic that does not set max.message.bytes [default: 64MiB]
    #[arg(long, value_name = "SIZE", value_parser = message_bytes)]
    max_message_bytes: Option<usize>,
    /// How often retention removes old segments
    #[arg(long, value_name = "DURATION", default_value = "5m", value_parser = interval)]
    retention_check_interval: Duration,
    /// Log filter, for example `warn` or `info,trunkline_broker=debug`
    #[arg(long, value_name = "FILTER", env = "TRUNKLINE_LOG", default_value = "info")]
    log: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Flush {
    /// When the operating system writes it. Survives kill -9, but not a power failure
    Os,
    /// Before it is acknowledged. Survives a power failure
    Always,
}

fn host_and_port(text: &str) -> Result<(String, u16), String> {
    let expected = || "expected HOST:PORT, for example broker.example.com:9092".to_owned();
    let (host, port) = text.rsplit_once(':').ok_or_else(expected)?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    match port.parse() {
        Ok(port) if port > 0 && !host.is_empty() => Ok((host.to_owned(), port)),
        _ => Err(expected()),
    }
}

/// A produce request with one batch needs some room for its other fields.
const REQUEST_OVERHEAD: usize = 1 << 20;

fn message_bytes(text: &str) -> Result<usize, String> {
    const MAX: usize = (1 << 30) - REQUEST_OVERHEAD;
    let bytes = usize::try_from(parse_bytes(text)?.0).unwrap_or(usize::MAX);
    match bytes {
        0 => Err("it must be larger than 0".to_owned()),
        bytes if bytes > MAX => Err("it must be smaller than 1023MiB".to_owned()),
        bytes => Ok(bytes),
    }
}

fn interval(text: &str) -> Result<Duration, String> {
    let duration = parse_duration(text)?;
    if duration < Duration::from_millis(100) { Err("it must be at least 100ms".to_owned()) } else { Ok(duration) }
}

impl BrokerArgs {
    fn options(&self) -> BrokerOptions {
        let mut options = BrokerOptions::new(&self.data);
        options.listen = self.listen;
        options.advertised.clone_from(&self.advertised);
        options.tls =
            self.tls_cert.clone().zip(self.tls_key.clone()).map(|(certificate, key)| TlsFiles { certificate, key });
        options.flush = match self.flush {
            Flush::Os => FlushPolicy::Os,
            Flush::Always => FlushPolicy::Always,
        };
        options.auto_create_topics = self.auto_create_topics;
        options.default_partitions = self.partitions;
        options.retention_check_interval = self.retention_check_interval;
        if let Some(bytes) = self.max_message_bytes {
            options.max_message_bytes = bytes;
            options.max_request_bytes = options.max_request_bytes.max(bytes + REQUEST_OVERHEAD);
            options.max_requests_bytes = options.max_requests_bytes.max(options.max_request_bytes * 2);
        }
        options
    }
}

impl BrokerArgs {
    /// What a client can do that reaches an address beyond loopback.
    fn danger(&self) -> Option<&'static str> {
        match (self.listen.ip().is_loopback(), &self.users, &self.tls_cert) {
            (true, ..) | (false, Some(_), Some(_)) => None,
            (false, None, _) => Some("every client that reaches it can read, write and delete all data"),
            (false, Some(_), None) => Some("without TLS, passwords and records cross the network in plain text"),
        }
    }
}

/// Reads the users and reports problems of the file.
fn read_users(path: &Path) -> Result<Users, Exit> {
    let reported = |problems: FileProblems| {
        print_problems(&[problems]);
        Exit::Config
    };
    let document = Document::read(path, default_secrets().as_deref()).map_err(reported)?;
    if let Some(problems) = document.finish(Vec::new()) {
        return Err(reported(problems));
    }
    let password = |node: &Node| match &node.value {
        Value::String(text) => Some(text.resolved.clone()),
        _ => None,
    };
    let entries = document.table.entries.iter();
    let passwords = entries.map(|(key, node)| {
        let problem = || format!("the password of `{}` is not a string: write `NAME = \"PASSWORD\"`", key.name);
        password(node).map(|password| (key.name.clone(), password)).ok_or_else(problem)
    });
    let users = passwords.collect::<Result<Vec<_>, _>>().and_then(Users::new);
    if path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o077 != 0) {
        print_error(format_args!(
            "warning: other users of this machine may read the passwords: chmod 600 {}",
            path.display()
        ));
    }
    users.map_err(|reason| {
        print_error(format_args!("error: --users {}: {reason}", path.display()));
        Exit::Config
    })
}

/// Runs the verb.
pub(super) fn broker(args: &BrokerArgs) -> Exit {
    if let Err(error) = log_to_stderr(&args.log, false) {
        print_error(format_args!(
            "error: the filter of --log is invalid: {error}; for example `info` or `info,trunkline_broker=debug`"
        ));
        return Exit::Config;
    }
    if let Err(error) = raise_open_files_limit() {
        print_error(format_args!(
            "warning: cannot raise the limit of open files of this process (`ulimit -n`): {error}"
        ));
    }
    if let Some(danger) = args.danger() {
        if !args.insecure {
            print_error(format_args!(
                "error: --listen {} is not a loopback address: {danger}. Set --tls-cert, --tls-key and --users, use a \
                 loopback address, or add --insecure if only trusted clients reach this address",
                args.listen
            ));
            return Exit::Config;
        }
        print_error(format_args!("warning: {} is not a loopback address: {danger}", args.listen));
    }
    let users = match args.users.as_deref().map(read_users).transpose() {
        Ok(users) => users,
        Err(exit) => return exit,
    };
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            print_error(format_args!("error: cannot start threads: {error}"));
            return Exit::Environment;
        }
    };
    runtime.block_on(async {
        let mut signals = match StopSignals::install() {
            Ok(signals) => signals,
            Err(error) => {
                print_error(format_args!("error: signals cannot be received: {error}"));
                return Exit::Environment;
            }
        };
        let broker = match Broker::start(BrokerOptions { users, ..args.options() }).await {
            Ok(broker) => broker,
            Err(error @ BrokerError::Tls(_)) => {
                print_error(format_args!("error: {error}; check --tls-cert and --tls-key"));
                return Exit::Config;
            }
            Err(error) => {
                print_error(format_args!("error: {error}"));
                return Exit::Environment;
            }
        };
        // Clients cannot find a broker whose address is lost.
        let printed = print_data(&format!("{}\n", broker.address()));
        if printed == Exit::Ok {
            signals.next().await;
        }
        match broker.stop().await {
            Ok(()) => printed,
            Err(error) => {
                print_error(format_args!("error: {error}"));
                Exit::Runtime
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_ports_are_parsed() {
        assert_eq!(host_and_port("kafka.example:9092"), Ok(("kafka.example".to_owned(), 9092)));
        assert_eq!(host_and_port("[::1]:9092"), Ok(("::1".to_owned(), 9092)));
        for invalid in ["", "kafka", "kafka:", ":9092", "kafka:0", "kafka:70000"] {
            assert!(host_and_port(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn sizes_and_intervals_have_limits() {
        assert_eq!(message_bytes("1MiB"), Ok(1 << 20));
        for invalid in ["0", "1GiB", "much"] {
            assert!(message_bytes(invalid).is_err(), "{invalid}");
        }
        assert_eq!(interval("1m"), Ok(Duration::from_secs(60)));
        assert!(interval("1ms").is_err());
    }
}
