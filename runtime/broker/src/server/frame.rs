//! Reads requests off a connection: a length, then that many bytes.
//!
//! A length is only a claim. The buffer grows with the received bytes, at most [`READ_AHEAD`] ahead
//! of them. A request is limited, and so is the memory of all requests together (see
//! `request_memory`). A client must keep a minimum pace inside a request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::time::{Instant, timeout, timeout_at};

use super::stream::Stream;
use crate::options::BrokerOptions;
use crate::request::Close;
use crate::request_memory::{RequestMemory, Reservation};

/// How far the buffer grows ahead of the received bytes.
const READ_AHEAD: usize = 256 << 10;
/// Requests up to this size do not count against the common limit: each connection may have one.
const SMALL_REQUEST: usize = 64 << 10;
/// The first reservation of a larger request; the next ones double the received bytes.
const FIRST_RESERVATION: usize = 16 << 10;
/// How long the bytes of one reservation may take.
const RESERVATION_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a request may take as a whole. Clients give up their requests earlier.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(300);
/// A connection without a request for this long releases its buffer.
const KEEP_BUFFER: Duration = Duration::from_secs(1);
/// Size of the first buffer of a request. Most requests fit.
const INITIAL_BUFFER: usize = 4096;

/// The reading half of a connection.
#[derive(Debug)]
pub(crate) struct FrameReader {
    buffer: BytesMut,
    max_request: usize,
    max_idle: Duration,
    memory: Arc<RequestMemory>,
}

/// One request with its share of the memory limit.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    pub(crate) reservation: Reservation,
}

impl FrameReader {
    pub(crate) fn new(options: &BrokerOptions, memory: Arc<RequestMemory>) -> Self {
        let BrokerOptions { max_request_bytes, max_idle, .. } = options;
        Self { buffer: BytesMut::new(), max_request: *max_request_bytes, max_idle: *max_idle, memory }
    }

    /// The next request. `None`: the client closed the connection between requests, or was idle too
    /// long.
    pub(crate) async fn next(&mut self, stream: &mut Stream) -> Result<Option<Frame>, Close> {
        self.next_up_to(self.max_request, stream).await
    }

    /// The next request of a client that has not logged in yet.
    pub(crate) async fn next_small(&mut self, stream: &mut Stream) -> Result<Option<Frame>, Close> {
        self.next_up_to(SMALL_REQUEST.min(self.max_request), stream).await
    }

    async fn next_up_to(&mut self, limit: usize, stream: &mut Stream) -> Result<Option<Frame>, Close> {
        while self.buffer.len() < 4 {
            let is_first = self.buffer.is_empty();
            let until = Instant::now() + RESERVATION_TIMEOUT;
            let read = if is_first { self.read_request_start(stream).await? } else { self.read(stream, until).await? };
            if read == 0 {
                return if is_first {
                    Ok(None)
                } else {
                    Err(Close::protocol_violation("the client closed the connection inside a request"))
                };
            }
        }
        let length = self.buffer.get_i32();
        let length = usize::try_from(length).map_err(|_| Close::protocol_violation("negative request length"))?;
        if length > limit {
            return Err(Close::protocol_violation("the request is larger than socket.request.max.bytes"));
        }
        let reservation = self.read_body(stream, length).await?;
        Ok(Some(Frame { bytes: self.buffer.split_to(length).freeze(), reservation }))
    }

    /// Reads until the buffer has the whole request.
    async fn read_body(&mut self, stream: &mut Stream, length: usize) -> Result<Reservation, Close> {
        let mut reservation = Reservation::default();
        let end = Instant::now() + REQUEST_TIMEOUT;
        let mut turn_end = None;
        while self.buffer.len() < length {
            let received = self.buffer.len();
            let mut target = length;
            if length > SMALL_REQUEST {
                target = length.min(received + received.clamp(FIRST_RESERVATION, READ_AHEAD));
                let grown = timeout_at(end, reservation.grow(&self.memory, target)).await;
                let grown = grown.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
                grown.map_err(|_| Close::protocol_violation("the broker is stopping"))?;
            }
            let mut until = end.min(Instant::now() + RESERVATION_TIMEOUT);
            if reservation.has_turn() {
                let limit = Reservation::turn_limit(length - received);
                until = until.min(*turn_end.get_or_insert_with(|| Instant::now() + limit));
            }
            while self.buffer.len() < target {
                self.buffer.reserve(target - self.buffer.len());
                if self.read(stream, until).await? == 0 {
                    return Err(Close::protocol_violation("the client closed the connection inside a request"));
                }
            }
        }
        Ok(reservation)
    }

    /// Reads the first bytes of a request; idle time is allowed here. 0: there is no further
    /// request.
    async fn read_request_start(&mut self, stream: &mut Stream) -> Result<usize, Close> {
        self.buffer.reserve(INITIAL_BUFFER);
        let briefly = KEEP_BUFFER.min(self.max_idle);
        if let Ok(read) = timeout(briefly, stream.read_buf(&mut self.buffer)).await {
            return Ok(read?);
        }
        // A busy connection reuses its buffer, an idle one has none.
        self.buffer = BytesMut::new();
        let Stream::Plain(socket) = stream else {
            // The socket of TLS may be readable without bytes for this side.
            self.buffer.reserve(INITIAL_BUFFER);
            let read = timeout(self.max_idle - briefly, stream.read_buf(&mut self.buffer)).await;
            return Ok(read.unwrap_or(Ok(0))?);
        };
        match timeout(self.max_idle - briefly, socket.readable()).await {
            Ok(readable) => readable?,
            // As Apache Kafka does: clients reconnect when they have a request.
            Err(_) => return Ok(0),
        }
        self.buffer.reserve(INITIAL_BUFFER);
        self.read(stream, Instant::now() + RESERVATION_TIMEOUT).await
    }

    /// Reads more bytes of a started request.
    async fn read(&mut self, stream: &mut Stream, until: Instant) -> Result<usize, Close> {
        let read = timeout_at(until, stream.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    }
}
