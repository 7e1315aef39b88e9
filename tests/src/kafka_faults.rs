//! A proxy for a Kafka broker that loses or delays selected replies, or removes the brokers from
//! them.
//!
//! Apache Kafka has no fault injection. The proxy parses the frames of requests and
//! replies, and matches them by correlation id. In replies that contain the broker's address it
//! writes its own, so that clients do not bypass it. Both addresses must have the same length: the
//! proxy supports one node on 127.0.0.1. For a listener with TLS it decrypts both directions and
//! encrypts them again.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use crate::proxy::{self, Stream, TlsFiles};

/// The API keys of the requests that tests name.
const APIS: [(&str, i16); 7] = [
    ("Produce", 0),
    ("Metadata", METADATA),
    ("InitProducerId", 22),
    ("AddPartitionsToTxn", 24),
    ("AddOffsetsToTxn", 25),
    ("EndTxn", 26),
    ("TxnOffsetCommit", 28),
];

const METADATA: i16 = 3;

/// The first version of Metadata whose replies have a flexible header and compact arrays.
const FLEXIBLE_METADATA: i16 = 9;

/// Requests whose replies contain broker addresses: Metadata, FindCoordinator, DescribeCluster.
const WITH_BROKERS: [i16; 3] = [METADATA, 10, 60];

/// A larger frame means that the stream is not Kafka's protocol.
const MAX_FRAME_BYTES: usize = 128 << 20;

/// What happens to a reply. The broker has executed the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaFault {
    /// It does not reach the client: the connection breaks.
    DropReply,
    /// It is delayed.
    Delay(Duration),
    /// It contains no brokers, like the reply of a node that has just started. For Metadata only.
    NoBrokers,
}

/// The proxy. Tests change its rules while requests pass.
pub struct KafkaFaults {
    address: String,
    state: Arc<ProxyState>,
    _stop: oneshot::Sender<()>,
}

struct ProxyState {
    /// The name by which the broker advertises itself.
    host: &'static str,
    upstream: u16,
    port: u16,
    tls: Option<TlsConnector>,
    rules: Mutex<Vec<Rule>>,
}

struct Rule {
    api: i16,
    /// Which of the next requests is affected; 1 is the next one. `None` affects all.
    nth: Option<u64>,
    fault: KafkaFault,
    /// How often the rule has applied.
    applied: u64,
}

/// Requests of a connection without a reply yet, by correlation id.
type PendingRequests = Mutex<HashMap<i32, Request>>;

struct Request {
    api: i16,
    version: i16,
    fault: Option<KafkaFault>,
}

impl KafkaFaults {
    /// Starts a proxy for the broker on this port of 127.0.0.1. The broker may stop and restart.
    pub fn start(upstream: u16) -> Self {
        Self::start_on(upstream, None)
    }

    /// Starts a proxy for the broker's listener with TLS on this port, which advertises itself as
    /// `localhost`. The proxy has this certificate, too.
    pub fn start_tls(upstream: u16, tls: &TlsFiles) -> Self {
        Self::start_on(upstream, Some(tls))
    }

    fn start_on(upstream: u16, tls: Option<&TlsFiles>) -> Self {
        let (listener, port) = proxy::listen();
        let host = if tls.is_some() { "localhost" } else { "127.0.0.1" };
        let connector = tls.map(TlsFiles::connector);
        let state = Arc::new(ProxyState { host, upstream, port, tls: connector, rules: Mutex::default() });
        let shared = state.clone();
        let stop = proxy::serve(listener, tls.map(TlsFiles::acceptor), move |client| {
            let state = shared.clone();
            // An error is a broken connection, which both sides notice.
            async move { drop(serve_connection(client, &state).await) }
        });
        Self { address: format!("{host}:{port}"), state, _stop: stop }
    }

    /// The proxy's host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Breaks the reply to the `n`-th request of this kind, counted from 1 and from now.
    pub fn nth(&self, n: u64, api: &str, fault: KafkaFault) {
        self.add(api, Some(n), fault);
    }

    /// Breaks the replies to all requests of this kind, until [`KafkaFaults::clear`].
    pub fn all(&self, api: &str, fault: KafkaFault) {
        self.add(api, None, fault);
    }

    fn add(&self, api: &str, nth: Option<u64>, fault: KafkaFault) {
        let number = APIS.iter().find(|(name, _)| *name == api).map(|(_, number)| *number);
        let api = number.unwrap_or_else(|| panic!("{api} is not among {APIS:?}"));
        self.state.rules().push(Rule { api, nth, fault, applied: 0 });
    }

    /// The number of replies that the current rules for all requests have broken.
    pub fn applied(&self) -> u64 {
        self.state.rules().iter().map(|rule| rule.applied).sum()
    }

    /// The number of rules for a single request that have not applied yet.
    pub fn pending(&self) -> usize {
        self.state.rules().iter().filter(|rule| rule.nth.is_some()).count()
    }

    /// Removes all rules.
    pub fn clear(&self) {
        self.state.rules().clear();
    }
}

impl ProxyState {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap()
    }

    /// Counts a request; returns the fault for its reply.
    fn fault_for(&self, api: i16) -> Option<KafkaFault> {
        let mut rules = self.rules();
        let matching = rules.iter_mut().filter(|rule| rule.api == api);
        matching.filter_map(|rule| rule.nth.as_mut()).for_each(|nth| *nth = nth.saturating_sub(1));
        let due = rules.iter().position(|rule| rule.api == api && rule.nth.unwrap_or(0) == 0)?;
        if rules[due].nth.is_none() {
            rules[due].applied += 1;
            return Some(rules[due].fault);
        }
        Some(rules.remove(due).fault)
    }

    /// Replaces the broker's address by the proxy's.
    fn replace_address(&self, reply: &mut [u8]) {
        let address = |port: u16| [self.host.as_bytes(), &u32::from(port).to_be_bytes()].concat();
        let (old, new) = (address(self.upstream), address(self.port));
        let mut from = 0;
        while let Some(found) = reply[from..].windows(old.len()).position(|window| window == old) {
            reply[from + found..][..new.len()].copy_from_slice(&new);
            from += found + new.len();
        }
    }
}

/// Serves a client's connection with one connection to the broker. When one ends, both end.
async fn serve_connection(client: Stream, state: &ProxyState) -> io::Result<()> {
    let broker = TcpStream::connect(("127.0.0.1", state.upstream)).await?;
    broker.set_nodelay(true)?;
    let broker: Stream = match &state.tls {
        Some(tls) => Box::new(tls.connect(ServerName::try_from(state.host).unwrap(), broker).await?),
        None => Box::new(broker),
    };
    let (from_client, to_client) = tokio::io::split(client);
    let (from_broker, to_broker) = tokio::io::split(broker);
    let pending = PendingRequests::default();
    tokio::select! {
        ended = forward_requests(from_client, to_broker, &pending, state) => ended,
        ended = forward_replies(from_broker, to_client, &pending, state) => ended,
    }
}

async fn forward_requests(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pending: &PendingRequests,
    state: &ProxyState,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let frame = read_frame(&mut from).await?;
        // Size, API key, version, correlation id.
        let (Some(api), Some(version), Some(id)) = (number(&frame, 4), number(&frame, 6), number(&frame, 8)) else {
            return Err(protocol_error());
        };
        let (api, version) = (i16::from_be_bytes(api), i16::from_be_bytes(version));
        let request = Request { api, version, fault: state.fault_for(api) };
        pending.lock().unwrap().insert(i32::from_be_bytes(id), request);
        to.write_all(&frame).await?;
        to.flush().await?;
    }
}

async fn forward_replies(
    from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    pending: &PendingRequests,
    state: &ProxyState,
) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut frame = read_frame(&mut from).await?;
        let id = i32::from_be_bytes(number(&frame, 4).ok_or_else(protocol_error)?);
        let Request { api, version, fault } = pending.lock().unwrap().remove(&id).ok_or_else(protocol_error)?;
        match fault {
            Some(KafkaFault::DropReply) => return Ok(()),
            Some(KafkaFault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(KafkaFault::NoBrokers) if version >= FLEXIBLE_METADATA => {
                frame = without_brokers(&frame).ok_or_else(protocol_error)?
            }
            Some(KafkaFault::NoBrokers) => return Err(protocol_error()),
            None => {}
        }
        if WITH_BROKERS.contains(&api) {
            state.replace_address(&mut frame);
        }
        to.write_all(&frame).await?;
        to.flush().await?;
    }
}

/// A Metadata reply without its brokers.
fn without_brokers(frame: &[u8]) -> Option<Vec<u8>> {
    // Size, correlation id, an empty set of tagged fields, throttle time.
    let head = 4 + 4 + 1 + 4;
    let mut rest = frame.get(head..)?;
    let brokers = varint(&mut rest)?.checked_sub(1)?;
    for _ in 0..brokers {
        rest = rest.get(4..)?; // node
        let host = varint(&mut rest)?.checked_sub(1)?;
        rest = rest.get(host + 4..)?; // host, port
        let rack = varint(&mut rest)?.saturating_sub(1);
        rest = rest.get(rack..)?;
        // This version defines no tagged fields.
        (varint(&mut rest)? == 0).then_some(())?;
    }
    // An empty compact array.
    let mut without = [&frame[..head], &[1], rest].concat();
    let size = u32::try_from(without.len() - 4).ok()?;
    without[..4].copy_from_slice(&size.to_be_bytes());
    Some(without)
}

fn varint(rest: &mut &[u8]) -> Option<usize> {
    let mut value = 0;
    for shift in (0..28).step_by(7) {
        let (byte, after) = rest.split_first()?;
        *rest = after;
        value |= usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Reads a frame, including its size.
async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut size = [0; 4];
    from.read_exact(&mut size).await?;
    let bytes = u32::from_be_bytes(size) as usize;
    if bytes > MAX_FRAME_BYTES {
        return Err(protocol_error());
    }
    let mut frame = vec![0; 4 + bytes];
    frame[..4].copy_from_slice(&size);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

fn number<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

fn protocol_error() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the stream is not Kafka's protocol")
}
