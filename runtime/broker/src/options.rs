//! The options of a broker.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use crate::security::{TlsFiles, Users};

/// Room for the key, the headers and the batch header of a record of 64 MiB.
const MAX_MESSAGE_OVERHEAD: usize = 64 << 10;

/// When an acknowledged write is on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum FlushPolicy {
    /// When the operating system writes it, and at every checkpoint. Survives the death of the
    /// process, `kill -9` included, but not a power failure.
    #[default]
    Os,
    /// Before the acknowledgement. Survives a power failure.
    Always,
}

/// The options of a broker. [`BrokerOptions::new`] has the defaults.
#[derive(Debug, Clone)]
pub struct BrokerOptions {
    /// The address to listen on. Port 0 selects a free port, see
    /// [`BrokerHandle::address`](crate::BrokerHandle::address).
    ///
    /// The default is loopback. Without [`BrokerOptions::users`], every client that reaches this
    /// address can read, write and delete all data.
    pub listen: SocketAddr,
    /// The host and port that clients connect to. Default: the local address of the client's
    /// connection, which is right unless the network translates addresses.
    pub advertised: Option<(String, u16)>,
    /// The certificate with which clients must connect; `None`: no TLS.
    pub tls: Option<TlsFiles>,
    /// The users as which clients must log in; `None`: no login. Each user has all rights.
    pub users: Option<Users>,
    /// The data directory. Created if missing; used by one broker at a time.
    pub data_dir: PathBuf,
    /// When an acknowledged write is on disk.
    pub flush: FlushPolicy,
    /// Create a missing topic when a client requests its metadata and allows the creation.
    pub auto_create_topics: bool,
    /// Partitions of a topic when the request names no number.
    pub default_partitions: i32,
    /// The largest record batch of a topic that does not set `max.message.bytes`,
    /// `message.max.bytes`. Must be smaller than [`BrokerOptions::max_request_bytes`].
    pub max_message_bytes: usize,
    /// Limit on the partitions of all topics. Each one keeps a file open.
    pub max_partitions: usize,
    /// How long the first member of a group waits for others, `group.initial.rebalance.delay.ms`.
    pub initial_rebalance_delay: Duration,
    /// The shortest session timeout of a group member, `group.min.session.timeout.ms`.
    pub min_session_timeout: Duration,
    /// The longest session timeout of a group member, `group.max.session.timeout.ms`.
    pub max_session_timeout: Duration,
    /// Limit on the members of a group, `group.max.size`.
    pub max_group_size: usize,
    /// The longest transaction timeout, `transaction.max.timeout.ms`.
    pub max_transaction_timeout: Duration,
    /// How long the offsets of a group without members are kept, `offsets.retention.minutes`.
    pub offsets_retention: Duration,
    /// How long an unused transactional id is kept, `transactional.id.expiration.ms`.
    pub transactional_id_expiration: Duration,
    /// How often retention removes old segments, `log.retention.check.interval.ms`.
    pub retention_check_interval: Duration,
    /// How often compaction looks for work, `log.cleaner.backoff.ms`.
    pub compaction_interval: Duration,
    /// Limit on the size of a request, `socket.request.max.bytes`.
    pub max_request_bytes: usize,
    /// Limit on the bytes of all requests in memory, `queued.max.request.bytes`.
    pub max_requests_bytes: usize,
    /// Limit on connections; further ones are closed at once.
    pub max_connections: usize,
    /// How long a connection may be idle before it is closed, `connections.max.idle.ms`.
    pub max_idle: Duration,
    /// Threads that serve connections.
    pub threads: usize,
}

impl BrokerOptions {
    /// The defaults: loopback, a free port, and Kafka's values for Kafka's settings, except that
    /// records may have 64 MiB and a group does not wait for a second member.
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            advertised: None,
            tls: None,
            users: None,
            data_dir: data_dir.into(),
            flush: FlushPolicy::default(),
            auto_create_topics: false,
            default_partitions: 1,
            max_message_bytes: (64 << 20) + MAX_MESSAGE_OVERHEAD,
            max_partitions: 10_000,
            initial_rebalance_delay: Duration::ZERO,
            min_session_timeout: Duration::from_secs(6),
            max_session_timeout: Duration::from_secs(30 * 60),
            max_group_size: 1000,
            max_transaction_timeout: Duration::from_secs(15 * 60),
            offsets_retention: Duration::from_secs(7 * 24 * 3600),
            transactional_id_expiration: Duration::from_secs(7 * 24 * 3600),
            retention_check_interval: Duration::from_secs(5 * 60),
            compaction_interval: Duration::from_secs(15),
            max_request_bytes: 100 << 20,
            max_requests_bytes: 256 << 20,
            max_connections: 20_000,
            max_idle: Duration::from_secs(10 * 60),
            threads: std::thread::available_parallelism().map_or(2, |cores| cores.get().clamp(1, 4)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The defaults that clients can observe, from Kafka's documentation of broker configs.
    #[test]
    fn defaults_are_those_of_kafka() {
        let options = BrokerOptions::new("unused");
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        assert_eq!(options.retention_check_interval, minutes(5));
        assert_eq!(options.compaction_interval, Duration::from_secs(15));
        assert_eq!(options.offsets_retention, minutes(10_080));
        assert_eq!(options.transactional_id_expiration, minutes(7 * 24 * 60));
        assert_eq!(options.max_transaction_timeout, minutes(15));
        assert_eq!(options.min_session_timeout, Duration::from_secs(6));
        assert_eq!(options.max_session_timeout, minutes(30));
        assert_eq!(options.max_idle, minutes(10));
        assert_eq!(options.max_request_bytes, 104_857_600);
        assert_eq!(options.default_partitions, 1);
        assert!(options.max_message_bytes >= 64 << 20 && options.max_message_bytes < options.max_request_bytes);
        assert!(!options.auto_create_topics);
    }
}
