//! Connects to brokers: resolves names, opens sockets, and starts TLS.

use std::io;
use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use trunkline_connector::Result;

use super::login::Login;
use super::settings::Settings;
use super::stream::Stream;
use super::tls::TlsClient;
use crate::kafka::client::Cluster;

/// A broker that accepts no connection within this time counts as unreachable, unless the user sets
/// another time.
const SETUP_LIMIT: Duration = Duration::from_secs(10);

const SETUP_LIMIT_PROPERTY: &str = "socket.connection.setup.timeout.ms";

/// When the system asks whether the other side is still there.
const KEEPALIVE: TcpKeepalive =
    TcpKeepalive::new().with_time(Duration::from_secs(15)).with_interval(Duration::from_secs(5));

/// How a connection that took too long is reported; its state follows.
pub(in crate::kafka::wire) const SETUP_TIMED_OUT: &str = "Connection setup timed out in state";

/// What the connections to a cluster's brokers need from the settings `kafka`.
pub(in crate::kafka) struct Transport {
    /// The protocol's name in messages; empty for plaintext.
    scheme: &'static str,
    setup_limit: Duration,
    family: Option<Family>,
    has_keepalive: bool,
    has_nodelay: bool,
    /// Zero: the system's sizes.
    send_buffer: usize,
    receive_buffer: usize,
    tls: Option<TlsClient>,
    login: Option<Login>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

/// How far an attempt came. The failure of the one that came farthest is reported.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Connect,
    Handshake,
}

impl Transport {
    /// Reads the files of certificates and keys. Fails with `kafka.settings` if a property cannot
    /// be used.
    pub(in crate::kafka) fn of(cluster: &Cluster) -> Result<Self> {
        let config = cluster.config(&[]);
        let settings = Settings::of(cluster, &config)?;
        let (scheme, has_tls, has_login) = match settings.get("security.protocol").as_deref() {
            Some("ssl") => ("ssl://", true, false),
            Some("sasl_ssl") => ("sasl_ssl://", true, true),
            Some("sasl_plaintext") => ("sasl_plaintext://", false, true),
            _ => ("", false, false),
        };
        let tls = has_tls.then(|| TlsClient::of(&settings)).transpose();
        let login = has_login.then(|| Login::of(&settings, cluster.has_tokens())).transpose();
        let refused = |problem: String| cluster.creation_failure(&problem);
        Ok(Self {
            scheme,
            setup_limit: match config.get(SETUP_LIMIT_PROPERTY) {
                Some(_) => Duration::from_millis(settings.number(SETUP_LIMIT_PROPERTY) as u64),
                None => SETUP_LIMIT,
            },
            family: match settings.get("broker.address.family").as_deref() {
                Some("v4") => Some(Family::V4),
                Some("v6") => Some(Family::V6),
                _ => None,
            },
            has_keepalive: settings.is("socket.keepalive.enable"),
            has_nodelay: settings.is("socket.nagle.disable"),
            send_buffer: settings.number("socket.send.buffer.bytes"),
            receive_buffer: settings.number("socket.receive.buffer.bytes"),
            tls: tls.map_err(refused)?,
            login: login.map_err(refused)?,
        })
    }

    /// Whether no file of a certificate or key has changed since it was read.
    pub(in crate::kafka) fn is_current(&self) -> bool {
        self.tls.as_ref().is_none_or(TlsClient::is_current)
    }

    #[cfg(test)]
    pub(in crate::kafka::wire) fn trusted_authorities(&self) -> usize {
        self.tls.as_ref().map_or(0, TlsClient::trusted_authorities)
    }

    /// The broker's name in messages.
    pub(in crate::kafka) fn broker_name(&self, host: &str, port: u16) -> String {
        format!("{}{host}:{port}", self.scheme)
    }

    /// How long a connection may take until it can be used, the login included.
    pub(in crate::kafka) fn setup_limit(&self) -> Duration {
        self.setup_limit
    }

    /// How connections log in; `None`: not at all.
    pub(in crate::kafka) fn login(&self) -> Option<&Login> {
        self.login.as_ref()
    }

    /// Connects to a broker, and does the handshake of TLS. Tries all addresses of the name. `Err`
    /// is a report for [`Cluster::note_connection`].
    ///
    /// Looking up the name may take longer than the deadline: the system has no limit for it.
    pub(in crate::kafka) fn connect(
        &self,
        host: &str,
        port: u16,
        deadline: Instant,
    ) -> std::result::Result<Stream, String> {
        let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
        let report = |problem: String| format!("{}: {problem}", self.broker_name(host, port));
        let addresses = self.resolve(host, port).map_err(report)?;
        let mut failure: Option<(Stage, String)> = None;
        for (index, address) in addresses.iter().enumerate() {
            // An address that does not answer leaves time for the others.
            let now = Instant::now();
            let others = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
            let limit = now + deadline.saturating_duration_since(now) / others;
            match self.connect_to(host, *address, limit) {
                Ok(stream) => return Ok(stream),
                Err((stage, problem)) => {
                    if failure.as_ref().is_none_or(|(known, _)| stage > *known) {
                        failure = Some((stage, problem));
                    }
                }
            }
        }
        Err(report(failure.map_or_else(|| no_address(host, port, "it has no address"), |(_, problem)| problem)))
    }

    fn resolve(&self, host: &str, port: u16) -> std::result::Result<Vec<SocketAddr>, String> {
        let found = (host, port).to_socket_addrs().map_err(|error| {
            let text = error.to_string();
            no_address(host, port, text.strip_prefix("failed to lookup address information: ").unwrap_or(&text))
        })?;
        let is_meant = |address: &SocketAddr| match self.family {
            Some(family) => address.is_ipv4() == (family == Family::V4),
            None => true,
        };
        let addresses: Vec<_> = found.filter(is_meant).collect();
        if addresses.is_empty() {
            return Err(no_address(host, port, "it has no address of the family in `broker.address.family`"));
        }
        Ok(addresses)
    }

    fn connect_to(
        &self,
        host: &str,
        address: SocketAddr,
        deadline: Instant,
    ) -> std::result::Result<Stream, (Stage, String)> {
        let socket = self.open(address, deadline).map_err(|error| {
            let problem = match error.kind() {
                io::ErrorKind::TimedOut => format!("{SETUP_TIMED_OUT} CONNECT"),
                _ => {
                    let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
                    format!("Connect to {family}#{address} failed: {error}")
                }
            };
            (Stage::Connect, problem)
        })?;
        match &self.tls {
            None => Ok(Stream::Plain(socket)),
            Some(tls) => {
                tls.handshake(host, socket, deadline).map(Stream::Tls).map_err(|problem| (Stage::Handshake, problem))
            }
        }
    }

    /// A connected socket that does not block.
    fn open(&self, address: SocketAddr, deadline: Instant) -> io::Result<TcpStream> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        // The sizes of buffers must be known when the connection is opened. A size that the system
        // does not allow is no reason not to connect.
        if self.send_buffer > 0 {
            let _ = socket.set_send_buffer_size(self.send_buffer);
        }
        if self.receive_buffer > 0 {
            let _ = socket.set_recv_buffer_size(self.receive_buffer);
        }
        if self.has_keepalive {
            // The answer to a join may take minutes: a broker whose machine has vanished is
            // noticed.
            socket.set_tcp_keepalive(&KEEPALIVE)?;
        }
        socket.set_tcp_nodelay(self.has_nodelay)?;
        let left = deadline.saturating_duration_since(Instant::now());
        socket.connect_timeout(&address.into(), left.max(Duration::from_millis(1)))?;
        socket.set_nonblocking(true)?;
        Ok(socket.into())
    }
}

fn no_address(host: &str, port: u16, reason: &str) -> String {
    format!("Failed to resolve '{host}:{port}': {reason}")
}

/// Waits until the socket has one of the events of `poll`. Returns `false` after the deadline.
pub(in crate::kafka::wire) fn wait_for(
    socket: &TcpStream,
    events: libc::c_short,
    deadline: Instant,
) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let timeout = libc::c_int::try_from(left.as_millis() + 1).unwrap_or(libc::c_int::MAX);
        let mut poll = libc::pollfd { fd: socket.as_raw_fd(), events, revents: 0 };
        // SAFETY: `poll` is one valid entry, which outlives the call.
        match unsafe { libc::poll(&raw mut poll, 1, timeout) } {
            0 => return Ok(false),
            1.. => return Ok(true),
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
}
