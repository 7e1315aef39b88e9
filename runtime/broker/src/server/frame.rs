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

/// How far the buffer grows ahead of what has arrived.
const READ_AHEAD: usize = 256 << 10;
/// Requests up to this size are not counted against the limit for all: there may be one for each connection.
const SMALL_REQUEST: usize = 64 << 10;
/// The unit in which larger requests are counted.
const PERMIT_BYTES: usize = 1024;
/// The longest pause inside a request.
const PAUSE: Duration = Duration::from_secs(30);
/// After this long without a request a connection is idle.
const IDLE: Duration = Duration::from_secs(1);

/// The reading half of a connection's state.
#[derive(Debug)]
pub(crate) struct Frames {
    buffer: BytesMut,
    max_request: usize,
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
    pub(crate) fn new(max_request: usize, receiving: Arc<Semaphore>) -> Self {
        Self { buffer: BytesMut::new(), max_request, receiving }
    }

    /// The next request; `None` when the client has closed the connection between two.
    pub(crate) async fn next(&mut self, stream: &mut TcpStream) -> Result<Option<Frame>, Close> {
        while self.buffer.len() < 4 {
            let is_first = self.buffer.is_empty();
            if is_first && timeout(IDLE, stream.readable()).await.is_err() {
                // A busy connection uses its buffer again and again, an idle one holds none.
                self.buffer = BytesMut::new();
                stream.readable().await?;
            }
            self.buffer.reserve(4096);
            if self.read(stream, is_first).await? == 0 {
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
            if self.read(stream, false).await? == 0 {
                return Err(Close::hostile("closed inside a request"));
            }
        }
        Ok(Some(Frame { bytes: self.buffer.split_to(length).freeze(), _permit: permit }))
    }

    async fn read(&mut self, stream: &mut TcpStream, may_idle: bool) -> Result<usize, Close> {
        if may_idle {
            return Ok(stream.read_buf(&mut self.buffer).await?);
        }
        let read = timeout(PAUSE, stream.read_buf(&mut self.buffer)).await;
        Ok(read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
    }

    async fn permit(&self, length: usize) -> Result<OwnedSemaphorePermit, Close> {
        let permits = u32::try_from(length / PERMIT_BYTES).unwrap_or(u32::MAX);
        let acquired = Arc::clone(&self.receiving).acquire_many_owned(permits).await;
        acquired.map_err(|_| Close::hostile("the broker is stopping"))
    }
}
