//! Start and stop.

use std::fs::File;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fs4::fs_std::FileExt;
use thiserror::Error;
use tokio::net::{TcpListener, TcpSocket};
use tokio::runtime::Runtime;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::group::Groups;
use crate::group::state::GroupLimits;
use crate::options::{BrokerOptions, FlushPolicy};
use crate::request_memory::RequestMemory;
use crate::security::{TlsError, acceptor};
use crate::state::BrokerState;
use crate::stats::BrokerStats;
use crate::store::{Change, Key, Store};
use crate::topics::config::TopicDefaults;
use crate::topics::{TopicSettings, Topics};
use crate::transaction::Coordinator;
use crate::{maintenance, private_files, server};

const LOCK_FILE: &str = "lock";

/// Why a broker did not start, or did not stop cleanly.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The broker cannot bind the address.
    #[error(
        "the broker cannot listen on {address}: {source}; stop the program that uses the port, or choose another address"
    )]
    Listen {
        /// The address in the options.
        address: SocketAddr,
        /// The error of the operating system.
        source: io::Error,
    },
    /// Another broker uses the data directory.
    #[error("the data directory {} is in use by another broker; stop that broker or choose another directory", .0.display())]
    InUse(PathBuf),
    /// The data directory cannot be read or written.
    #[error("the broker cannot use its data directory {}: {source}", directory.display())]
    Data {
        /// The directory in the options.
        directory: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The certificate or its key cannot be used.
    #[error("the broker cannot offer TLS: {0}")]
    Tls(String),
    /// The broker cannot start its threads.
    #[error("cannot start the broker's threads: {0}")]
    Threads(io::Error),
}

/// An embedded Kafka broker. See [`Broker::start`].
#[derive(Debug)]
pub struct Broker;

/// A running broker. Dropping it stops the broker without waiting; [`BrokerHandle::stop`] stops it
/// cleanly.
#[derive(Debug)]
pub struct BrokerHandle {
    address: SocketAddr,
    broker: Arc<BrokerState>,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// `None` after the stop.
    runtime: Option<Runtime>,
    /// Held while the data directory is in use.
    _lock: File,
}

impl Broker {
    /// Opens the data directory, recovers its contents and listens.
    ///
    /// The broker has its own threads, so that it and its host do not block each other. A process
    /// can run several brokers, each with its own directory and address.
    pub async fn start(options: BrokerOptions) -> Result<BrokerHandle, BrokerError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(options.threads.max(1))
            .thread_name("trunkline-broker")
            .enable_all()
            .build()
            .map_err(BrokerError::Threads)?;
        let (sender, receiver) = oneshot::channel();
        let (stopping, stop_signal) = watch::channel(false);
        runtime.spawn(async move {
            let _ = sender.send(start_inside(options, stop_signal).await);
        });
        let started =
            receiver.await.unwrap_or_else(|_| Err(BrokerError::Threads(io::Error::other("startup panicked"))));
        match started {
            Ok(Started { address, broker, tasks, lock }) => {
                tracing::info!(%address, "broker started");
                Ok(BrokerHandle { address, broker, stopping, tasks, runtime: Some(runtime), _lock: lock })
            }
            Err(error) => {
                runtime.shutdown_background();
                Err(error)
            }
        }
    }
}

struct Started {
    address: SocketAddr,
    broker: Arc<BrokerState>,
    tasks: Vec<JoinHandle<()>>,
    lock: File,
}

async fn start_inside(options: BrokerOptions, stopping: watch::Receiver<bool>) -> Result<Started, BrokerError> {
    let address = options.listen;
    let listen = |source| BrokerError::Listen { address, source };
    let tls = options.tls.as_ref().map(acceptor).transpose().map_err(|TlsError(reason)| BrokerError::Tls(reason))?;
    // Binds before opening the data, which can take a while: a port conflict is reported at once.
    let listener = bind(address).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() && options.users.is_none() {
        tracing::warn!(%address, "the broker listens beyond loopback without authentication: every client that reaches this address can read, write and delete all data");
    }
    let directory = options.data_dir.clone();
    let opening = tokio::task::spawn_blocking(move || open(options));
    let opened = opening.await.map_err(|_| io::Error::other("opening the data panicked")).flatten();
    let (broker, lock) = opened.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => BrokerError::InUse(directory),
        _ => BrokerError::Data { directory, source },
    })?;
    let tasks = vec![
        tokio::spawn(server::serve(listener, tls, Arc::clone(&broker), stopping.clone())),
        tokio::spawn(maintenance::tick(Arc::clone(&broker), stopping.clone())),
        tokio::spawn(maintenance::run(Arc::clone(&broker), stopping)),
    ];
    Ok(Started { address, broker, tasks, lock })
}

/// Listens with a long backlog: a client that finds the backlog full waits a second before it
/// retries.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Opens the data directory.
fn open(options: BrokerOptions) -> io::Result<(Arc<BrokerState>, File)> {
    let directory = options.data_dir.clone();
    private_files::create_directory(&directory)?;
    private_files::check_mode(&directory)?;
    let lock = lock_directory(&directory)?;
    let sync_each_append = options.flush == FlushPolicy::Always;
    let store = Arc::new(Store::open(&directory, sync_each_append)?);
    let cluster_id = match store.get(&Key::Cluster)? {
        Some(id) => id,
        None => {
            let id = Uuid::new_v4().simple().to_string();
            store.apply(vec![Change::put(Key::Cluster, &id)?])?;
            id
        }
    };
    let settings = TopicSettings {
        sync_each_append,
        max_partitions: options.max_partitions,
        defaults: TopicDefaults { max_message_bytes: options.max_message_bytes },
    };
    let topics = Arc::new(Topics::open(&directory, &store, settings)?);
    let limits =
        GroupLimits { max_size: options.max_group_size, initial_rebalance_delay: options.initial_rebalance_delay };
    let groups = Arc::new(Groups::open(&store, limits)?);
    let transactions = Coordinator::open(Arc::clone(&store), Arc::clone(&topics), Arc::clone(&groups))?;
    let broker = BrokerState {
        request_memory: Arc::new(RequestMemory::new(&options)),
        stats: BrokerStats::default(),
        options,
        cluster_id,
        store,
        topics,
        groups,
        transactions,
        #[cfg(feature = "fault-injection")]
        faults: crate::faults::Faults::default(),
    };
    Ok((Arc::new(broker), lock))
}

fn lock_directory(directory: &Path) -> io::Result<File> {
    let lock = private_files::options().write(true).create(true).truncate(false).open(directory.join(LOCK_FILE))?;
    // A child process holds copies of all descriptors until it executes, including the lock of a
    // stopped broker. The copies vanish within milliseconds.
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        if FileExt::try_lock_exclusive(&lock)? {
            return Ok(lock);
        }
        if Instant::now() >= deadline {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

impl BrokerHandle {
    /// The address that the broker listens on. With port 0 in the options: the assigned port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The data directory.
    pub fn data_dir(&self) -> &Path {
        &self.broker.options.data_dir
    }

    /// What clients have asked of it.
    pub fn stats(&self) -> BrokerStats {
        self.broker.stats.clone()
    }

    /// The faults to inject into requests.
    #[cfg(feature = "fault-injection")]
    pub fn faults(&self) -> &crate::Faults {
        &self.broker.faults
    }

    /// Closes all connections, syncs everything to disk, and writes the checkpoints that make the
    /// next start fast.
    pub async fn stop(mut self) -> Result<(), BrokerError> {
        self.stopping.send_replace(true);
        for task in self.tasks.drain(..) {
            if task.await.is_err() {
                tracing::error!("a broker task panicked");
            }
        }
        let broker = Arc::clone(&self.broker);
        let Some(runtime) = self.runtime.take() else { return Ok(()) };
        let closing = runtime.spawn_blocking(move || close(&broker));
        let closed = closing.await.map_err(|_| io::Error::other("closing the data panicked")).flatten();
        runtime.shutdown_background();
        closed.map_err(|source| BrokerError::Data { directory: self.data_dir().to_owned(), source })
    }
}

impl Drop for BrokerHandle {
    fn drop(&mut self) {
        self.stopping.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            // Waiting for a runtime is not allowed here: the drop may happen inside another
            // runtime.
            runtime.shutdown_background();
        }
    }
}

fn close(broker: &BrokerState) -> io::Result<()> {
    for topic in broker.topics.all() {
        for partition in topic.partitions() {
            if partition.with_log(|log| log.is_checkpoint_stale()) {
                partition.checkpoint()?;
            }
        }
    }
    broker.store.sync()
}
