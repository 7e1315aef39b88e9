//! Starting and stopping.

use std::fs::{File, OpenOptions};
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
use crate::server::frame::receiving_limit;
use crate::shared::Shared;
use crate::store::{Change, Key, Store};
use crate::topics::Topics;
use crate::transaction::Coordinator;
use crate::{maintenance, server};

const LOCK_FILE: &str = "lock";

/// Why a broker could not be started, or did not stop cleanly.
#[derive(Debug, Error)]
pub enum BrokerError {
    /// The address to listen on cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address in the options.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// Another broker uses the data directory.
    #[error("{} is in use by another broker", .0.display())]
    InUse(PathBuf),
    /// The data directory cannot be read or written.
    #[error("cannot use the data in {}: {source}", directory.display())]
    Data {
        /// The directory in the options.
        directory: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Threads cannot be started.
    #[error("cannot start the broker's threads: {0}")]
    Threads(io::Error),
}

/// An embedded Kafka broker. See [`Broker::start`].
#[derive(Debug)]
pub struct Broker;

/// A broker that runs. Dropping it stops the broker without waiting; use [`BrokerHandle::stop`] to stop it cleanly.
#[derive(Debug)]
pub struct BrokerHandle {
    address: SocketAddr,
    shared: Arc<Shared>,
    stopping: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// Taken when the broker stops.
    runtime: Option<Runtime>,
    /// Held for as long as the data directory is in use.
    _lock: File,
}

impl Broker {
    /// Opens the data directory, recovers what is in it, and begins to listen.
    ///
    /// The broker runs on threads of its own, so that it and its host do not hold each other up. There can be several in a
    /// process, each with its own directory and address.
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
            Ok(Started { address, shared, tasks, lock }) => {
                tracing::info!(%address, "the broker listens");
                Ok(BrokerHandle { address, shared, stopping, tasks, runtime: Some(runtime), _lock: lock })
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
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
    lock: File,
}

async fn start_inside(options: BrokerOptions, stopping: watch::Receiver<bool>) -> Result<Started, BrokerError> {
    let address = options.listen;
    let listen = |source| BrokerError::Listen { address, source };
    // Before the data is opened, which can take a while: a port that is taken should be said at once.
    let listener = bind(address).map_err(listen)?;
    let address = listener.local_addr().map_err(listen)?;
    if !address.ip().is_loopback() {
        tracing::warn!(%address, "the broker listens beyond loopback: whoever reaches this address can read, write and delete everything");
    }
    let directory = options.data_dir.clone();
    let opening = tokio::task::spawn_blocking(move || open(options));
    let opened = opening.await.map_err(|_| io::Error::other("opening the data panicked")).flatten();
    let (shared, lock) = opened.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => BrokerError::InUse(directory),
        _ => BrokerError::Data { directory, source },
    })?;
    let tasks = vec![
        tokio::spawn(server::serve(listener, Arc::clone(&shared), stopping.clone())),
        tokio::spawn(maintenance::tick(Arc::clone(&shared), stopping.clone())),
        tokio::spawn(maintenance::run(Arc::clone(&shared), stopping)),
    ];
    Ok(Started { address, shared, tasks, lock })
}

/// Listens with room for many clients that come at once: one that finds none waits a second before it knocks again.
fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    const BACKLOG: u32 = 4096;
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// Opens everything that is in the data directory.
fn open(options: BrokerOptions) -> io::Result<(Arc<Shared>, File)> {
    let directory = options.data_dir.clone();
    std::fs::create_dir_all(&directory)?;
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
    let topics = Arc::new(Topics::open(&directory, &store, sync_each_append, options.max_partitions)?);
    let limits =
        GroupLimits { max_size: options.max_group_size, initial_rebalance_delay: options.initial_rebalance_delay };
    let groups = Arc::new(Groups::open(&store, limits)?);
    let transactions = Coordinator::open(Arc::clone(&store), Arc::clone(&topics), Arc::clone(&groups))?;
    let shared = Shared {
        receiving: receiving_limit(options.max_requests_bytes),
        options,
        cluster_id,
        store,
        topics,
        groups,
        transactions,
        #[cfg(feature = "fault-injection")]
        faults: crate::faults::Faults::default(),
    };
    Ok((Arc::new(shared), lock))
}

fn lock_directory(directory: &Path) -> io::Result<File> {
    let lock = OpenOptions::new().write(true).create(true).truncate(false).open(directory.join(LOCK_FILE))?;
    // A process that this one is just starting holds copies of its files until it executes, the lock of a broker that was stopped among
    // them: that passes in milliseconds.
    let patience = Instant::now() + Duration::from_secs(1);
    loop {
        if FileExt::try_lock_exclusive(&lock)? {
            return Ok(lock);
        }
        if Instant::now() >= patience {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

impl BrokerHandle {
    /// Where the broker listens; with port 0 in the options, the port it was given.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Where it keeps its data.
    pub fn data_dir(&self) -> &Path {
        &self.shared.options.data_dir
    }

    /// Faults to be injected into requests.
    #[cfg(feature = "fault-injection")]
    pub fn faults(&self) -> &crate::Faults {
        &self.shared.faults
    }

    /// Closes all connections, makes everything durable, and writes what makes the next start quick.
    pub async fn stop(mut self) -> Result<(), BrokerError> {
        self.stopping.send_replace(true);
        for task in self.tasks.drain(..) {
            if task.await.is_err() {
                tracing::error!("a task of the broker panicked");
            }
        }
        let shared = Arc::clone(&self.shared);
        let Some(runtime) = self.runtime.take() else { return Ok(()) };
        let closing = runtime.spawn_blocking(move || close(&shared));
        let closed = closing.await.map_err(|_| io::Error::other("closing the data panicked")).flatten();
        runtime.shutdown_background();
        closed.map_err(|source| BrokerError::Data { directory: self.data_dir().to_owned(), source })
    }
}

impl Drop for BrokerHandle {
    fn drop(&mut self) {
        self.stopping.send_replace(true);
        if let Some(runtime) = self.runtime.take() {
            // A runtime must not be waited for here: the drop may happen inside another one.
            runtime.shutdown_background();
        }
    }
}

fn close(shared: &Shared) -> io::Result<()> {
    for topic in shared.topics.all() {
        for partition in topic.partitions() {
            if partition.with_log(|log| log.has_unchecked()) {
                partition.checkpoint()?;
            }
        }
    }
    shared.store.sync()
}
