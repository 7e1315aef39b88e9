//! Reads requests off a connection: a length, then that many bytes.
//!
//! A length is only a claim. The buffer grows with the received bytes, at most [`READ_AHEAD`] ahead
//! of them. A request is limited, and so is the memory of all requests together. A client must not
//! pause inside a request.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::options::BrokerOptions;
use crate::request::Close;

/// How far the buffer grows ahead of the received bytes.
const READ_AHEAD: usize = 256 << 10;
/// Requests up to this size do not count against the common limit: each connection may have one.
const SMALL_REQUEST: usize = 64 << 10;
/// The unit of the common limit.
const PERMIT_BYTES: usize = 1024;
/// The longest pause inside a request.
const MAX_PAUSE_IN_REQUEST: Duration = Duration::from_secs(30);
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
    receiving: Arc<Semaphore>,
}

/// One request with its share of the memory limit.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The semaphore that counts the bytes of all requests in memory.
pub(crate) fn receiving_limit(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes / PERMIT_BYTES).min(Semaphore::MAX_PERMITS)))
}

impl FrameReader {
    pub(crate) fn new(options: &BrokerOptions, receiving: Arc<Semaphore>) -> Self {
        let BrokerOptions { max_request_bytes, max_idle, .. } = options;
        Self { buffer: BytesMut::new(), max_request: *max_request_bytes, max_idle: *max_idle, receiving }
    }

    /// The next request. `None`: the client closed the connection between requests, or was idle too
    /// long.
    pub(crate) async fn next(&mut self, stream: &mut TcpStream) -> Result<Option<Frame>, Close> {
        while self.buffer.len() < 4 {
            let is_first = self.buffer.is_empty();
            let read = if is_first { self.read_request_start(stream).await? } else { self.read(stream).await? };
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
        if length > self.max_request {
            return Err(Close::protocol_violation("the request is larger than socket.request.max.bytes"));
        }
        let permit = if length > SMALL_REQUEST { Some(self.permit(length).await?) } else { None };
        while self.buffer.len() < length {
            let missing = length - self.buffer.len();
            self.buffer.reserve(missing.min(READ_AHEAD));
            if self.read(stream).await? == 0 {
                return Err(Close::protocol_violation("the client closed the connection inside a request"));
            }
        }
        Ok(Some(Frame { bytes: self.buffer.split_to(length).freeze(), _permit: permit }))
    }

    /// Reads the first bytes of a request; idle time is allowed here. 0: there is no further
    /// request.
    async fn read_request_start(&mut self, stream: &mut TcpStream) -> Result<usize, Close> {
        self.buffer.reserve(INITIAL_BUFFER);
        let briefly = KEEP_BUFFER.min(self.max_idle);
        if let Ok(read) = timeout(briefly, stream.read_buf(&mut self.buffer)).await {
            return Ok(read?);
        }
        // A busy connection reuses its buffer, an idle one has none.
        self.buffer = BytesMut::new();
        match timeout(self.max_idle - briefly, stream.readable()).await {
            Ok(readable) => readable?,
            // As Apache Kafka does: clients reconnect when they have a request.
            Err(_) => return Ok(0),
        }
        self.buffer.reserve(INITIAL_BUFFER);
        self.read(stream).await
    }

    /// Reads more bytes of a started request.
    async fn read(&mut self, stream: &mut TcpStream) -> Result<usize, Close> {
        let read = timeout(MAX_PAUSE_IN_REQUEST, stream.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    }

    async fn permit(&self, length: usize) -> Result<OwnedSemaphorePermit, Close> {
        let permits = u32::try_from(length / PERMIT_BYTES).unwrap_or(u32::MAX);
        let acquired = Arc::clone(&self.receiving).acquire_many_owned(permits).await;
        acquired.map_err(|_| Close::protocol_violation("the broker is stopping"))
    }
}
