//! A connection to one broker: frames, versions of requests, and requests in flight.
//!
//! Nothing here blocks, except [`Connection::open`] and [`Connection::call`]. Requests are queued,
//! and [`Connection::progress`] writes and reads what the socket permits. A broker answers the
//! requests of a connection in their order.
//!
//! - [`stream`]: TCP or TLS; [`transport`]: opens streams; [`tls`]: certificates and handshakes;
//!   [`settings`]: the properties as librdkafka understands them.
//! - [`login`]: logs connections in; [`scram`] and [`unsecured_token`] are two of its mechanisms.
//! - [`readiness`]: waits for several connections.
//!
//! Source: <https://kafka.apache.org/protocol>.

mod login;
pub(in crate::kafka) mod readiness;
mod scram;
pub(in crate::kafka) mod settings;
mod stream;
#[cfg(test)]
mod tests;
mod tls;
pub(in crate::kafka) mod transport;
mod unsecured_token;

use std::collections::{HashMap, VecDeque};
use std::io::{self, Read as _, Write as _};
use std::ops::RangeInclusive;
use std::os::fd::{AsRawFd as _, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use kafka_protocol::messages::{
    ApiVersionsRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslAuthenticateResponse,
    SaslHandshakeRequest, SaslHandshakeResponse,
};
use kafka_protocol::protocol::{Decodable as _, Encodable as _, HeaderVersion as _, Request, StrBytes};
use trunkline_connector::Error;

use self::login::{Login, LoginExchange};
use self::readiness::{Readiness, wait};
use self::stream::Stream;
use crate::kafka::client::Cluster;
use crate::kafka::wire::Lost;

/// A request that is not answered within this time is lost, and with it the connection.
pub(in crate::kafka::wire) const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// Bytes that are read at once, at least.
const READ_BYTES: usize = 16 << 10;

/// Answers are at most this large: a broker limits batches, and a fetch its answer.
const MAX_ANSWER_BYTES: usize = 1 << 30;

/// Frames up to this size are copied together.
const SMALL_FRAME: usize = 1 << 10;

/// The buffer of answers is released if it has grown beyond this.
const KEPT_BYTES: usize = 64 << 10;

/// The number of the next connection.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// A host and a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::kafka::wire) struct Address {
    pub(in crate::kafka::wire) host: String,
    pub(in crate::kafka::wire) port: u16,
}

impl std::fmt::Display for Address {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}:{}", self.host, self.port)
    }
}

/// An open connection, logged in.
pub(in crate::kafka::wire) struct Connection {
    stream: Stream,
    address: Address,
    /// Differs from every other connection of this process.
    serial: u64,
    /// The broker's name in messages.
    broker_name: String,
    phase: Phase,
    client_id: StrBytes,
    /// When to log in again, before the broker ends the session (KIP-368).
    login_due: Option<Instant>,
    /// The versions that the broker supports, by API.
    versions: HashMap<i16, RangeInclusive<i16>>,
    last_correlation: i32,
    /// Frames that are not written completely, and the written bytes of the first.
    unsent: VecDeque<Bytes>,
    sent_of_first: usize,
    /// Requests without an answer, in their order.
    waiting: VecDeque<Waiting>,
    /// Room for answers. `filled` bytes of it were read.
    received: BytesMut,
    filled: usize,
    /// A request that is not answered within this time is lost.
    answer_limit: Duration,
    /// Answers that [`Connection::call`] found before its own.
    early: VecDeque<(i32, Bytes)>,
}

/// How far the connection has come. A broker that closes it early expects another protocol.
enum Phase {
    Versions,
    Login,
    Up(Instant),
}

struct Waiting {
    correlation: i32,
    /// Version of the answer's header.
    header: i16,
    since: Instant,
}

impl Connection {
    /// Connects to a broker, asks for its versions, and logs in. Waits at most until `deadline`.
    /// The reason of a failure is noted for the errors of the cluster.
    pub(in crate::kafka::wire) fn open(
        cluster: &Cluster,
        client_id: &str,
        address: &Address,
        deadline: Instant,
    ) -> Result<Self, Lost> {
        let opened = Self::try_open(cluster, client_id, address, deadline);
        if let Err(Lost(reason)) = &opened {
            cluster.note_connection(reason);
        }
        opened
    }

    fn try_open(cluster: &Cluster, client_id: &str, address: &Address, deadline: Instant) -> Result<Self, Lost> {
        let transport = cluster.transport().map_err(|error| Lost(error.message().to_owned()))?;
        let deadline = deadline.min(Instant::now() + transport.setup_limit());
        let stream = transport.connect(&address.host, address.port, deadline).map_err(Lost)?;
        let mut this = Self {
            stream,
            address: address.clone(),
            serial: SERIAL.fetch_add(1, Ordering::Relaxed),
            broker_name: transport.broker_name(&address.host, address.port),
            phase: Phase::Versions,
            login_due: None,
            client_id: StrBytes::from_string(client_id.to_owned()),
            versions: HashMap::new(),
            last_correlation: 0,
            unsent: VecDeque::new(),
            sent_of_first: 0,
            waiting: VecDeque::new(),
            received: BytesMut::new(),
            filled: 0,
            answer_limit: ANSWER_LIMIT,
            early: VecDeque::new(),
        };
        this.learn_versions(deadline)?;
        if let Some(login) = transport.login() {
            this.phase = Phase::Login;
            this.log_in(cluster, login, deadline)?;
        }
        this.phase = Phase::Up(Instant::now());
        Ok(this)
    }

    /// Logs in again if the broker is about to end the session. Answers that arrive meanwhile are
    /// kept.
    pub(in crate::kafka::wire) fn renew_login(&mut self, cluster: &Cluster, deadline: Instant) -> Result<(), Lost> {
        if self.login_due.is_none_or(|due| Instant::now() < due) {
            return Ok(());
        }
        let transport = cluster.transport().map_err(|error| self.lost(error.message().to_owned()))?;
        match transport.login() {
            Some(login) => self.log_in(cluster, login, deadline),
            None => Ok(()),
        }
    }

    fn log_in(&mut self, cluster: &Cluster, login: &Login, deadline: Instant) -> Result<(), Lost> {
        let mut exchange = Exchange { connection: self, deadline };
        let due = login.log_in(cluster, &mut exchange, deadline);
        self.login_due = due.map_err(|reason| self.lost(reason))?;
        Ok(())
    }

    fn learn_versions(&mut self, deadline: Instant) -> Result<(), Lost> {
        let mut request = ApiVersionsRequest::default();
        request.client_software_name = StrBytes::from_static_str("trunkline");
        request.client_software_version = StrBytes::from_static_str(env!("CARGO_PKG_VERSION"));
        let answer = self.call(3, &request, deadline)?;
        if answer.error_code != 0 {
            return Err(self.lost(format!("ApiVersionsRequest failed with error {}", answer.error_code)));
        }
        let range = |api: &kafka_protocol::messages::api_versions_response::ApiVersion| {
            (api.api_key, api.min_version..=api.max_version)
        };
        self.versions = answer.api_keys.iter().map(range).collect();
        Ok(())
    }

    /// The newest version of a request that this client (`ours`) and the broker support.
    pub(in crate::kafka::wire) fn version<R: Request>(&self, ours: RangeInclusive<i16>) -> Result<i16, Error> {
        let theirs = self.versions.get(&R::KEY);
        let newest = theirs.map_or(-1, |theirs| *theirs.end()).min(*ours.end());
        if newest < *ours.start().max(theirs.map_or(&i16::MAX, RangeInclusive::start)) {
            let message = format!(
                "broker {} does not support the requests of this client (API {}, versions {} to {}): Kafka 2.5 or later \
                 is needed",
                self.address,
                R::KEY,
                ours.start(),
                ours.end()
            );
            return Err(Error::config("kafka.old_broker", message));
        }
        Ok(newest)
    }

    /// Queues a request, and returns the number that its answer will have.
    pub(in crate::kafka::wire) fn send<R: Request>(&mut self, version: i16, request: &R) -> Result<i32, Lost> {
        self.last_correlation = self.last_correlation.wrapping_add(1) & i32::MAX;
        let correlation = self.last_correlation;
        let header = RequestHeader::default()
            .with_request_api_key(R::KEY)
            .with_request_api_version(version)
            .with_correlation_id(correlation)
            .with_client_id(Some(self.client_id.clone()));
        let header_version = R::header_version(version);
        let size = header.compute_size(header_version).and_then(|header| Ok(header + request.compute_size(version)?));
        let frame = size.and_then(|size| {
            let mut frame = BytesMut::with_capacity(4 + size);
            frame.put_u32(size as u32);
            header.encode(&mut frame, header_version)?;
            request.encode(&mut frame, version)?;
            Ok(frame.freeze())
        });
        // The codec fails for values that a version cannot express, which the callers do not send.
        let frame = frame.map_err(|error| self.lost(format!("cannot encode a request: {error}")))?;
        self.unsent.push_back(frame);
        self.waiting.push_back(Waiting {
            correlation,
            header: R::Response::header_version(version),
            since: Instant::now(),
        });
        Ok(correlation)
    }

    /// Writes and reads what the socket permits. Returns an answer, if one is complete: its number
    /// and its body.
    pub(in crate::kafka::wire) fn progress(&mut self) -> Result<Option<(i32, Bytes)>, Lost> {
        if let Some(early) = self.early.pop_front() {
            return Ok(Some(early));
        }
        self.write()?;
        self.read()
    }

    /// Writes what the socket permits.
    pub(in crate::kafka::wire) fn write(&mut self) -> Result<(), Lost> {
        self.gather();
        while let Some(frame) = self.unsent.front() {
            match self.stream.write(&frame[self.sent_of_first..]) {
                Ok(0) => return Err(self.disconnected("connection closed by peer")),
                Ok(written) => {
                    self.sent_of_first += written;
                    if self.sent_of_first == frame.len() {
                        self.unsent.pop_front();
                        self.sent_of_first = 0;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_closed(&error) => return Err(self.disconnected(error)),
                Err(error) => return Err(self.lost(format!("Send failed: {error}"))),
            }
        }
        Ok(())
    }

    /// Makes one frame of several small ones, so that they are written at once: the heartbeats of
    /// all groups are due at the same time. A frame that is partly written stays as it is.
    fn gather(&mut self) {
        let small = self.unsent.iter().skip(1).take_while(|frame| frame.len() <= SMALL_FRAME).count();
        if small < 2 {
            return;
        }
        let bytes = self.unsent.iter().skip(1).take(small).map(Bytes::len).sum();
        let mut gathered = BytesMut::with_capacity(bytes);
        self.unsent.drain(1..=small).for_each(|frame| gathered.put(frame));
        self.unsent.insert(1, gathered.freeze());
    }

    fn read(&mut self) -> Result<Option<(i32, Bytes)>, Lost> {
        loop {
            let missing = match self.received[..self.filled].first_chunk::<4>() {
                Some(size) => {
                    let size = u32::from_be_bytes(*size) as usize;
                    if size > MAX_ANSWER_BYTES {
                        return Err(self.lost(format!("the broker announces an answer of {size} bytes")));
                    }
                    if self.filled >= 4 + size {
                        return self.take_answer(size).map(Some);
                    }
                    4 + size - self.filled
                }
                None => 4,
            };
            let wanted = self.filled + missing.max(READ_BYTES);
            if self.received.len() < wanted {
                self.received.resize(wanted, 0);
            }
            match self.stream.read(&mut self.received[self.filled..]) {
                Ok(0) => return Err(self.disconnected("connection closed by peer")),
                Ok(read) => {
                    self.filled += read;
                    // A broker that sends is alive, and the caller may have been busy.
                    if let Some(first) = self.waiting.front_mut() {
                        first.since = Instant::now();
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_closed(&error) => return Err(self.disconnected(error)),
                Err(error) => return Err(self.lost(format!("Receive failed: {error}"))),
            }
        }
        match self.waiting.front() {
            Some(first) if first.since.elapsed() > self.answer_limit => {
                Err(self.lost(format!("no answer within {} s", self.answer_limit.as_secs())))
            }
            _ => Ok(None),
        }
    }

    /// Changes the time after which a request counts as lost.
    pub(in crate::kafka::wire) fn set_answer_limit(&mut self, limit: Duration) {
        self.answer_limit = limit;
    }

    fn take_answer(&mut self, size: usize) -> Result<(i32, Bytes), Lost> {
        self.received.advance(4);
        let mut answer = self.received.split_to(size).freeze();
        self.filled -= 4 + size;
        if self.filled == 0 && self.received.capacity() > KEPT_BYTES {
            self.received = BytesMut::new();
        }
        let Some(expected) = self.waiting.pop_front() else {
            return Err(self.lost("an answer without a request".to_owned()));
        };
        let header = ResponseHeader::decode(&mut answer, expected.header)
            .map_err(|error| self.lost(format!("an answer that cannot be read: {error}")))?;
        if header.correlation_id != expected.correlation {
            return Err(self.lost("an answer to another request".to_owned()));
        }
        Ok((expected.correlation, answer))
    }

    /// Sends a request, and waits for its answer at most until `deadline`.
    pub(in crate::kafka::wire) fn call<R: Request>(
        &mut self,
        version: i16,
        request: &R,
        deadline: Instant,
    ) -> Result<R::Response, Lost> {
        let own = self.send(version, request)?;
        let mut early = std::mem::take(&mut self.early);
        let answer = loop {
            match self.progress() {
                Ok(Some((correlation, body))) if correlation == own => break Ok(body),
                Ok(Some(other)) => early.push_back(other),
                Ok(None) if Instant::now() >= deadline => break Err(self.lost("no answer in time".to_owned())),
                Ok(None) => {
                    wait(&[self.readiness()], deadline);
                }
                Err(lost) => break Err(lost),
            }
        };
        early.append(&mut self.early);
        self.early = early;
        self.decode::<R>(version, answer?)
    }

    /// Decodes the body of an answer.
    pub(in crate::kafka::wire) fn decode<R: Request>(
        &self,
        version: i16,
        mut body: Bytes,
    ) -> Result<R::Response, Lost> {
        R::Response::decode(&mut body, version)
            .map_err(|error| self.lost(format!("an answer that cannot be read: {error}")))
    }

    /// What poll(2) has to wait for.
    pub(in crate::kafka::wire) fn readiness(&self) -> Readiness {
        let is_ready = !self.early.is_empty() || self.stream.has_buffered();
        Readiness { fd: self.fd(), for_writing: !self.unsent.is_empty(), is_ready }
    }

    fn fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }

    /// Whether a request is not answered.
    pub(in crate::kafka::wire) fn is_busy(&self) -> bool {
        !self.waiting.is_empty() || !self.early.is_empty()
    }

    /// The number of this connection. No other one of this process has it.
    pub(in crate::kafka::wire) fn serial(&self) -> u64 {
        self.serial
    }

    /// Where the connection leads.
    pub(in crate::kafka::wire) fn address(&self) -> &Address {
        &self.address
    }

    fn lost(&self, reason: String) -> Lost {
        Lost(format!("{}: {reason}", self.broker_name))
    }

    /// The broker has closed the connection. librdkafka's form, from which the cluster's monitor
    /// concludes that the protocol is wrong.
    fn disconnected(&self, reason: impl std::fmt::Display) -> Lost {
        let (state, since) = match self.phase {
            Phase::Versions => ("APIVERSION_QUERY", None),
            Phase::Login => ("AUTH_REQ", None),
            Phase::Up(since) => ("UP", Some(since)),
        };
        let milliseconds = since.map_or(0, |since| since.elapsed().as_millis());
        self.lost(format!("Disconnected: {reason} (after {milliseconds}ms in state {state})"))
    }
}

/// Whether the other side has closed the connection.
fn is_closed(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe)
}

/// The requests of a login.
struct Exchange<'c> {
    connection: &'c mut Connection,
    deadline: Instant,
}

impl LoginExchange for Exchange<'_> {
    fn handshake(&mut self, mechanism: &str) -> Result<SaslHandshakeResponse, Lost> {
        let request = SaslHandshakeRequest::default().with_mechanism(StrBytes::from_string(mechanism.to_owned()));
        self.connection.call(1, &request, self.deadline)
    }

    fn authenticate(&mut self, bytes: Vec<u8>) -> Result<SaslAuthenticateResponse, Lost> {
        let version = self.connection.version::<SaslAuthenticateRequest>(0..=2);
        let version = version.map_err(|error| self.connection.lost(error.to_string()))?;
        let request = SaslAuthenticateRequest::default().with_auth_bytes(bytes.into());
        self.connection.call(version, &request, self.deadline)
    }
}
