//! Reading requests off a connection: a length, then that many bytes.
//!
//! A length is only a claim. The buffer grows with the bytes that arrive, never ahead of them by more than
//! [`READ_AHEAD`]; a request as a whole is limited, and so are all requests together that are being received. A client
//! that began a request has to go on with it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::connection::Close;
use crate::options::BrokerOptions;

/// How far the buffer grows ahead of what has arrived.
const READ_AHEAD: usize = 256 << 10;
/// Requests up to this size are not counted against the limit for all: there may be one for each connection.
const SMALL_REQUEST: usize = 64 << 10;
/// The unit in which larger requests are counted.
const PERMIT_BYTES: usize = 1024;
/// The longest pause inside a request.
const PAUSE: Duration = Duration::from_secs(30);
/// After this long without a request a connection is idle, and keeps no memory.
const IDLE: Duration = Duration::from_secs(1);
/// Room for the beginning of a request, which for most is all of it.
const FIRST_READ: usize = 4096;

/// The reading half of a connection's state.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: BytesMut,
    max_request: usize,
    max_idle: Duration,
    receiving: Arc<Semaphore>,
}

/// One request, and its share of the memory for requests.
#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) bytes: Bytes,
    _permit: Option<OwnedSemaphorePermit>,
}

/// The semaphore that counts what is being received on all connections.
pub(crate) fn receiving_limit(bytes: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new((bytes / PERMIT_BYTES).min(Semaphore::MAX_PERMITS)))
}

impl Frames {
    pub(crate) fn new(options: &BrokerOptions, receiving: Arc<Semaphore>) -> Self {
        let BrokerOptions { max_request_bytes, max_idle, .. } = options;
        Self { buffer: BytesMut::new(), max_request: *max_request_bytes, max_idle: *max_idle, receiving }
    }

    /// The next request; `None` when the client has closed the connection between two, or was silent for too long.
    pub(crate) async fn next(&mut self, stream: &mut TcpStream) -> Result<Option<Frame>, Close> {
        while self.buffer.len() < 4 {
            let is_first = self.buffer.is_empty();
            let read = if is_first { self.read_first(stream).await? } else { self.read(stream).await? };
            if read == 0 {
                return if is_first { Ok(None) } else { Err(Close::hostile("closed inside a request")) };
            }
        }
        let length = self.buffer.get_i32();
        let length = usize::try_from(length).map_err(|_| Close::hostile("negative request length"))?;
        if length > self.max_request {
            return Err(Close::hostile("the request is larger than allowed"));
        }
        let permit = if length > SMALL_REQUEST { Some(self.permit(length).await?) } else { None };
        while self.buffer.len() < length {
            let missing = length - self.buffer.len();
            self.buffer.reserve(missing.min(READ_AHEAD));
            if self.read(stream).await? == 0 {
                return Err(Close::hostile("closed inside a request"));
            }
        }
        Ok(Some(Frame { bytes: self.buffer.split_to(length).freeze(), _permit: permit }))
    }

    /// The first bytes of a request, which a client may take its time for. 0 when there will be none.
    async fn read_first(&mut self, stream: &mut TcpStream) -> Result<usize, Close> {
        self.buffer.reserve(FIRST_READ);
        let briefly = IDLE.min(self.max_idle);
        if let Ok(read) = timeout(briefly, stream.read_buf(&mut self.buffer)).await {
            return Ok(read?);
        }
        // A busy connection uses its buffer again and again, an idle one holds none.
        self.buffer = BytesMut::new();
        match timeout(self.max_idle - briefly, stream.readable()).await {
            Ok(readable) => readable?,
            // As Apache Kafka does: clients expect it, and connect again when they have something to ask.
            Err(_) => return Ok(0),
        }
        self.buffer.reserve(FIRST_READ);
        self.read(stream).await
    }

    /// More of a request that has begun.
    async fn read(&mut self, stream: &mut TcpStream) -> Result<usize, Close> {
        let read = timeout(PAUSE, stream.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    }

    async fn permit(&self, length: usize) -> Result<OwnedSemaphorePermit, Close> {
        let permits = u32::try_from(length / PERMIT_BYTES).unwrap_or(u32::MAX);
        let acquired = Arc::clone(&self.receiving).acquire_many_owned(permits).await;
        acquired.map_err(|_| Close::hostile("the broker is stopping"))
    }
}
