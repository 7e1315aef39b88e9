//! A proxy before a Kafka broker that loses chosen answers, gives them late, or takes the brokers out of them: faults of a broker that cannot be told to have any.
//!
//! It knows how requests and answers are framed, and which request an answer belongs to. Clients must not find the way past it, so in answers
//! that name the broker's address it puts its own, which is as long: one node on 127.0.0.1 is what it can stand before.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::oneshot;

use crate::proxy;

/// The requests that can be named, by their numbers in the protocol.
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

/// The version of Metadata from which on its answers have a flexible header and compact arrays.
const FLEXIBLE_METADATA: i16 = 9;

/// Answers that name brokers: Metadata, FindCoordinator, DescribeCluster.
const NAME_BROKERS: [i16; 3] = [METADATA, 10, 60];

/// More than any frame has here: beyond it the stream is not what this takes it for.
const MOST_BYTES: usize = 128 << 20;

/// What happens to an answer. The broker has done the work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KafkaFault {
    /// It does not reach the client: the connection breaks.
    DropReply,
    /// It is so late.
    Delay(Duration),
    /// It tells of no broker at all, as that of a node does that has just started. Of Metadata only.
    NoBrokers,
}

/// The proxy. Tests switch it while requests pass.
pub struct KafkaFaults {
    address: String,
    shared: Arc<Shared>,
    _stop: oneshot::Sender<()>,
}

struct Shared {
    upstream: u16,
    port: u16,
    rules: Mutex<Vec<Rule>>,
}

struct Rule {
    api: i16,
    /// It is this many requests away; 1 is the next. Nothing: it comes with each of them.
    nth: Option<u64>,
    fault: KafkaFault,
    /// How often it has come.
    seen: u64,
}

/// What was asked on a connection and is not answered yet, by correlation id.
type Asked = Mutex<HashMap<i32, Request>>;

struct Request {
    api: i16,
    version: i16,
    fault: Option<KafkaFault>,
}

impl KafkaFaults {
    /// Starts a proxy before the broker on this port of 127.0.0.1, which may come and go.
    pub fn start(upstream: u16) -> Self {
        let (listener, port) = proxy::listen();
        let shared = Arc::new(Shared { upstream, port, rules: Mutex::default() });
        let serving = shared.clone();
        let stop = proxy::serve(listener, move |client| {
            let shared = serving.clone();
            async move { drop(connection(client, &shared).await) }
        });
        Self { address: format!("127.0.0.1:{port}"), shared, _stop: stop }
    }

    /// The proxy's host and port.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Breaks the answer to the `n`-th request (from 1, counted from now) of this kind.
    pub fn nth(&self, n: u64, api: &str, fault: KafkaFault) {
        self.add(api, Some(n), fault);
    }

    /// Breaks the answers to all requests of this kind from now on, until [`KafkaFaults::clear`].
    pub fn each(&self, api: &str, fault: KafkaFault) {
        self.add(api, None, fault);
    }

    fn add(&self, api: &str, nth: Option<u64>, fault: KafkaFault) {
        let number = APIS.iter().find(|(name, _)| *name == api).map(|(_, number)| *number);
        let api = number.unwrap_or_else(|| panic!("{api} is not among {APIS:?}"));
        self.shared.rules().push(Rule { api, nth, fault, seen: 0 });
    }

    /// How many answers were broken by faults that are still there.
    pub fn seen(&self) -> u64 {
        self.shared.rules().iter().map(|rule| rule.seen).sum()
    }

    /// How many faults of one request have not come yet.
    pub fn pending(&self) -> usize {
        self.shared.rules().iter().filter(|rule| rule.nth.is_some()).count()
    }

    /// Forgets those.
    pub fn clear(&self) {
        self.shared.rules().clear();
    }
}

impl Shared {
    fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().unwrap()
    }

    /// Counts a request, and says what is to happen to its answer.
    fn judge(&self, api: i16) -> Option<KafkaFault> {
        let mut rules = self.rules();
        let ours = rules.iter_mut().filter(|rule| rule.api == api);
        ours.filter_map(|rule| rule.nth.as_mut()).for_each(|nth| *nth = nth.saturating_sub(1));
        let due = rules.iter().position(|rule| rule.api == api && rule.nth.unwrap_or(0) == 0)?;
        if rules[due].nth.is_none() {
            rules[due].seen += 1;
            return Some(rules[due].fault);
        }
        Some(rules.remove(due).fault)
    }

    /// Puts the proxy in the broker's place.
    fn rename(&self, answer: &mut [u8]) {
        let named = |port: u16| [b"127.0.0.1".as_slice(), &u32::from(port).to_be_bytes()].concat();
        let (theirs, ours) = (named(self.upstream), named(self.port));
        let mut from = 0;
        while let Some(found) = answer[from..].windows(theirs.len()).position(|window| window == theirs) {
            answer[from + found..][..ours.len()].copy_from_slice(&ours);
            from += found + ours.len();
        }
    }
}

/// Serves one connection of a client; the broker gets a connection of its own for it. Both end when either does.
async fn connection(client: TcpStream, shared: &Shared) -> io::Result<()> {
    let broker = TcpStream::connect(("127.0.0.1", shared.upstream)).await?;
    client.set_nodelay(true)?;
    broker.set_nodelay(true)?;
    let (from_client, to_client) = client.into_split();
    let (from_broker, to_broker) = broker.into_split();
    let asked = Asked::default();
    tokio::select! {
        ended = requests(from_client, to_broker, &asked, shared) => ended,
        ended = answers(from_broker, to_client, &asked, shared) => ended,
    }
}

async fn requests(from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: &Asked, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let frame = read_frame(&mut from).await?;
        // Size, kind, version, correlation id.
        let (Some(api), Some(version), Some(id)) = (number(&frame, 4), number(&frame, 6), number(&frame, 8)) else {
            return Err(broken());
        };
        let (api, version) = (i16::from_be_bytes(api), i16::from_be_bytes(version));
        let request = Request { api, version, fault: shared.judge(api) };
        asked.lock().unwrap().insert(i32::from_be_bytes(id), request);
        to.write_all(&frame).await?;
    }
}

async fn answers(from: OwnedReadHalf, mut to: OwnedWriteHalf, asked: &Asked, shared: &Shared) -> io::Result<()> {
    let mut from = BufReader::new(from);
    loop {
        let mut frame = read_frame(&mut from).await?;
        let id = i32::from_be_bytes(number(&frame, 4).ok_or_else(broken)?);
        let Request { api, version, fault } = asked.lock().unwrap().remove(&id).ok_or_else(broken)?;
        match fault {
            Some(KafkaFault::DropReply) => return Ok(()),
            Some(KafkaFault::Delay(delay)) => tokio::time::sleep(delay).await,
            Some(KafkaFault::NoBrokers) if version >= FLEXIBLE_METADATA => {
                frame = without_brokers(&frame).ok_or_else(broken)?
            }
            Some(KafkaFault::NoBrokers) => return Err(broken()),
            None => {}
        }
        if NAME_BROKERS.contains(&api) {
            shared.rename(&mut frame);
        }
        to.write_all(&frame).await?;
    }
}

/// Metadata without the brokers.
fn without_brokers(frame: &[u8]) -> Option<Vec<u8>> {
    // Size, correlation id, no tagged fields, throttle time.
    let head = 4 + 4 + 1 + 4;
    let mut rest = frame.get(head..)?;
    let brokers = varint(&mut rest)?.checked_sub(1)?;
    for _ in 0..brokers {
        rest = rest.get(4..)?; // node
        let host = varint(&mut rest)?.checked_sub(1)?;
        rest = rest.get(host + 4..)?; // host, port
        let rack = varint(&mut rest)?.saturating_sub(1);
        rest = rest.get(rack..)?;
        // No tagged fields are known.
        (varint(&mut rest)? == 0).then_some(())?;
    }
    // A compact array of none.
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

/// A frame with its size before it.
async fn read_frame(from: &mut (impl AsyncRead + Unpin)) -> io::Result<Vec<u8>> {
    let mut size = [0; 4];
    from.read_exact(&mut size).await?;
    let bytes = u32::from_be_bytes(size) as usize;
    if bytes > MOST_BYTES {
        return Err(broken());
    }
    let mut frame = vec![0; 4 + bytes];
    frame[..4].copy_from_slice(&size);
    from.read_exact(&mut frame[4..]).await?;
    Ok(frame)
}

fn number<const N: usize>(frame: &[u8], at: usize) -> Option<[u8; N]> {
    frame.get(at..at + N)?.try_into().ok()
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "this is not Kafka's protocol")
}
