//! Connections with TLS and logins, to servers of this process.

mod certificates;
mod logins;
mod tls;

use std::collections::BTreeMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use trunkline_broker::{Broker, BrokerHandle, BrokerOptions, TlsFiles, Users};
use trunkline_connector::{Error, Result};

use crate::kafka::client::Cluster;
use crate::kafka::wire::connection::readiness::{Readiness, wait};
use crate::kafka::wire::connection::stream::Stream;

/// What a test expects happens within this time, even on a busy machine.
const LIMIT: Duration = Duration::from_secs(20);

fn deadline() -> Instant {
    Instant::now() + LIMIT
}

type Setting<'s> = (&'s str, &'s str);

fn cluster(port: u16, settings: &[Setting<'_>]) -> Result<Cluster> {
    let settings: BTreeMap<String, String> =
        settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Cluster::new(&format!("localhost:{port}"), &settings)
}

/// How a user sees the reason of a failed connection.
fn explained(cluster: &Cluster, report: &str) -> Error {
    cluster.note_connection(report);
    cluster.connection().explain(Error::external("kafka.unreachable", "connecting"))
}

/// A server on loopback that handles one connection after the other.
struct Server {
    port: u16,
    is_stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    fn start(mut serve: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let is_stopped = Arc::new(AtomicBool::new(false));
        let stopped = is_stopped.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(io::Result::ok) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                stream.set_read_timeout(Some(LIMIT)).unwrap();
                stream.set_write_timeout(Some(LIMIT)).unwrap();
                serve(stream);
            }
        });
        Self { port, is_stopped, thread: Some(thread) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.is_stopped.store(true, Ordering::Relaxed);
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

/// Reads what the server has sent until now; waits for the first byte.
fn read_some(stream: &mut Stream) -> io::Result<Vec<u8>> {
    use std::os::fd::AsRawFd as _;
    let mut bytes = vec![0; 1 << 16];
    let end = deadline();
    loop {
        match stream.read(&mut bytes) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < end => {
                let socket = Readiness { fd: stream.as_raw_fd(), for_writing: false, is_ready: stream.has_buffered() };
                wait(&[socket], end);
            }
            read => return read.map(|count| bytes[..count].to_vec()),
        }
    }
}

/// Writes all bytes while it reads as many, and returns what it has read.
fn exchange(stream: &mut Stream, bytes: &[u8]) -> Vec<u8> {
    use std::os::fd::AsRawFd as _;
    let (mut written, mut received, end) = (0, Vec::new(), deadline());
    let mut buffer = vec![0; 5000];
    while received.len() < bytes.len() {
        assert!(Instant::now() < end, "{written} bytes written, {} read", received.len());
        let mut is_blocked = true;
        if written < bytes.len() {
            // Each time from another place in memory, as a queue of frames may have it.
            let copy = bytes[written..].to_vec();
            match stream.write(&copy) {
                Ok(count) => (written, is_blocked) = (written + count, false),
                Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
            }
        }
        match stream.read(&mut buffer) {
            Ok(count) => {
                assert!(count > 0, "the connection ended");
                received.extend_from_slice(&buffer[..count]);
                is_blocked = false;
            }
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}"),
        }
        if is_blocked {
            let is_ready = stream.has_buffered();
            wait(&[Readiness { fd: stream.as_raw_fd(), for_writing: written < bytes.len(), is_ready }], end);
        }
    }
    received
}

/// The embedded broker, with TLS and the user `worker`.
struct SecuredBroker {
    runtime: Runtime,
    broker: Option<BrokerHandle>,
    port: u16,
    _folder: tempfile::TempDir,
}

const PASSWORD: &str = "hunter2, with = and %";

impl SecuredBroker {
    fn start(tls: Option<TlsFiles>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let users =
            Users::new([("worker".to_owned(), PASSWORD.to_owned()), ("other".to_owned(), "secret2".to_owned())]);
        let options = BrokerOptions {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls,
            users: Some(users.unwrap()),
            ..BrokerOptions::new(folder.path())
        };
        let broker = runtime.block_on(Broker::start(options)).unwrap();
        let port = broker.address().port();
        Self { runtime, broker: Some(broker), port, _folder: folder }
    }
}

impl Drop for SecuredBroker {
    fn drop(&mut self) {
        if let Some(broker) = self.broker.take() {
            let _ = self.runtime.block_on(broker.stop());
        }
    }
}
