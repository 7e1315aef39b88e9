//! What a broker can be told.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

/// When an acknowledged write is on the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushPolicy {
    /// When the operating system gets to it, and at every checkpoint. Survives the death of the process, `kill -9`
    /// included, but not a power cut.
    #[default]
    Os,
    /// Before it is acknowledged. Survives a power cut.
    Always,
}

/// How a broker is started. [`BrokerOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// Where to listen. Port 0 takes a free one, see [`BrokerHandle::address`](crate::BrokerHandle::address).
    ///
    /// The default is loopback. The broker has no authentication, no encryption and no quotas: whoever can reach this
    /// address can read, write and delete everything. Listen on another address only in a network you trust.
    pub listen: SocketAddr,
    /// The host and port that clients are told to connect to. By default the address at which a client reached the broker,
    /// which is right unless something translates addresses in between.
    pub advertised: Option<(String, u16)>,
    /// Where everything is kept. Created when missing; one broker at a time can have it.
    pub data_dir: PathBuf,
    /// When an acknowledged write is on the device.
    pub flush: FlushPolicy,
    /// Create a topic when a client asks for one that does not exist, and allows it.
    pub auto_create_topics: bool,
    /// Partitions of a topic when its creator does not say.
    pub default_partitions: i32,
    /// Most partitions of all topics together: each one is an open file.
    pub max_partitions: usize,
    /// How long the first member of a group waits for others, `group.initial.rebalance.delay.ms`.
    pub initial_rebalance_delay: Duration,
    /// The shortest session timeout a group member may ask for, `group.min.session.timeout.ms`.
    pub min_session_timeout: Duration,
    /// The longest session timeout a group member may ask for, `group.max.session.timeout.ms`.
    pub max_session_timeout: Duration,
    /// Most members of one group, `group.max.size`.
    pub max_group_size: usize,
    /// The longest timeout a transaction may have, `transaction.max.timeout.ms`.
    pub max_transaction_timeout: Duration,
    /// How long the offsets of a group without members are kept, `offsets.retention.minutes`.
    pub offsets_retention: Duration,
    /// How long a transactional id is remembered without being used, `transactional.id.expiration.ms`.
    pub transactional_id_expiration: Duration,
    /// How often retention and compaction are looked at, `log.retention.check.interval.ms`.
    pub cleanup_interval: Duration,
    /// The largest request, `socket.request.max.bytes`.
    pub max_request_bytes: usize,
    /// Most bytes of all requests that are being received, `queued.max.request.bytes`.
    pub max_requests_bytes: usize,
    /// Most connections; more are closed at once.
    pub max_connections: usize,
    /// How long a connection may go without a request before it is closed, `connections.max.idle.ms`.
    pub max_idle: Duration,
    /// Threads that serve connections.
    pub threads: usize,
}

impl BrokerOptions {
    /// The defaults: loopback, a free port, and Kafka's values where Kafka has the setting, except that a group does not
    /// wait for its second member.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertised: None,
            data_dir: data_dir.into(),
            flush: FlushPolicy::default(),
            auto_create_topics: false,
            default_partitions: 1,
            max_partitions: 10_000,
            initial_rebalance_delay: Duration::ZERO,
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_secs(30 * 60),
            max_group_size: 1000,
            max_transaction_timeout: Duration::from_secs(15 * 60),
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
            transactional_id_expiration: Duration::from_secs(7 * 24 * 3600),
            cleanup_interval: Duration::from_secs(15),
            max_request_bytes: 100 << 20,
            max_requests_bytes: 256 << 20,
            max_connections: 20_000,
            max_idle: Duration::from_secs(10 * 60),
            threads: std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(1, 4)),
        }
    }
}
