//! One connection. Requests are served one after the other, as in Kafka, so that responses are in
//! order.

use std::io;
use std::net::SocketAddr;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;
#[cfg(target_os = "linux")]
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_rustls::TlsAcceptor;

use super::dispatch::dispatch;
use super::frame::FrameReader;
use super::login::Login;
use super::stream::Stream;
use crate::log::Slice;
use crate::request::response::{Part, Response};
use crate::request::{Close, Peer};
use crate::state::BrokerState;

/// A client that does not read its response for this long is gone, or misbehaves.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A client must log in within this time.
const LOGIN_TIMEOUT: Duration = Duration::from_secs(30);

/// Serves a connection until the client closes it, violates the protocol, or the broker stops.
pub(crate) async fn run(
    stream: TcpStream,
    remote: SocketAddr,
    tls: Option<&TlsAcceptor>,
    broker: &Arc<BrokerState>,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Close> {
    stream.set_nodelay(true)?;
    let peer = Peer { local: stream.local_addr()?, remote };
    tokio::select! {
        served = async { serve(Stream::accept(stream, tls).await?, peer, broker).await } => served,
        // A stop ends waiting requests and slow responses: clients retry after the restart.
        _ = stopping.wait_for(|stopping| *stopping) => Ok(()),
    }
}

async fn serve(mut stream: Stream, peer: Peer, broker: &Arc<BrokerState>) -> Result<(), Close> {
    let mut frames = FrameReader::new(&broker.options, Arc::clone(&broker.request_memory));
    let mut login = Login::new(broker.options.users.as_ref());
    let login_end = Instant::now() + LOGIN_TIMEOUT;
    let _open = broker.stats.open();
    loop {
        let next = if login.is_done() {
            frames.next(&mut stream).await?
        } else {
            let next = timeout_at(login_end, frames.next_small(&mut stream)).await;
            next.map_err(|_| Close::protocol_violation("the client did not log in in time"))??
        };
        let Some(frame) = next else { return Ok(()) };
        broker.stats.request(frame.bytes.len());
        let response = CatchPanic(Box::pin(dispatch(broker, peer, &mut login, frame))).await?;
        if let Some(response) = response {
            broker.stats.response(response.length());
            // Boxed: an idle connection reserves no room for a response.
            Box::pin(write(&mut stream, response)).await?;
        }
    }
}

/// Turns a panic in a request into the end of its connection.
struct CatchPanic<F>(Pin<Box<F>>);

impl<T, F: Future<Output = Result<T, Close>>> Future for CatchPanic<F> {
    type Output = Result<T, Close>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let inner = self.0.as_mut();
        match std::panic::catch_unwind(AssertUnwindSafe(|| inner.poll(context))) {
            Ok(poll) => poll,
            Err(_) => {
                tracing::error!("a request panicked; its connection is closed");
                Poll::Ready(Err(Close::Bug("panic".into())))
            }
        }
    }
}

async fn write(stream: &mut Stream, response: Response) -> Result<(), Close> {
    let length = u32::try_from(response.length()).map_err(Close::bug)?;
    let is_whole = response.parts.len() == 1;
    if !is_whole {
        cork(stream.socket(), true)?;
    }
    let mut parts = response.parts.into_iter();
    // The length and the first part go out in one write.
    let mut head = length.to_be_bytes().to_vec();
    if let Some(Part::Bytes(bytes)) = parts.next() {
        head.extend_from_slice(&bytes);
    }
    write_bytes(stream, Bytes::from(head)).await?;
    for part in parts {
        match part {
            Part::Bytes(bytes) => write_bytes(stream, bytes).await?,
            Part::File(slice) => match stream {
                #[cfg(target_os = "linux")]
                Stream::Plain(stream) => send_file(stream, &slice).await?,
                _ => copy_file(stream, &slice).await?,
            },
        }
    }
    if let Stream::Tls(stream) = stream {
        // Records of TLS may be left in its buffer.
        let flushed = timeout(WRITE_TIMEOUT, stream.flush()).await;
        flushed.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    }
    if is_whole { Ok(()) } else { cork(stream.socket(), false) }
}

/// Corks the socket until the whole response is written: a client that is woken for the first bytes
/// would only wait for the others.
#[cfg(target_os = "linux")]
fn cork(stream: &TcpStream, is_corked: bool) -> Result<(), Close> {
    let value = libc::c_int::from(is_corked);
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open while `stream` is borrowed, and the option's value lives until
    // the call returns.
    let result = unsafe {
        libc::setsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_CORK, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error().into()) }
}

/// Other systems send the parts as they are written.
#[cfg(not(target_os = "linux"))]
fn cork(_: &TcpStream, _: bool) -> Result<(), Close> {
    Ok(())
}

async fn write_bytes(stream: &mut Stream, bytes: Bytes) -> Result<(), Close> {
    let written = timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await;
    Ok(written.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??)
}

/// Sends a range of a log file without copying it through this process.
#[cfg(target_os = "linux")]
async fn send_file(stream: &TcpStream, slice: &Slice) -> Result<(), Close> {
    let mut position = slice.position as libc::off_t;
    let end = (slice.position + slice.length) as libc::off_t;
    while position < end {
        let sent = stream.async_io(Interest::WRITABLE, || {
            let wanted = (end - position) as usize;
            // SAFETY: both descriptors are open for as long as `stream` and `slice.file` are
            // borrowed here, and `position` is a valid place for the kernel to read and write.
            let sent = unsafe { libc::sendfile(stream.as_raw_fd(), slice.file.as_raw_fd(), &mut position, wanted) };
            if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent) }
        });
        let sent = timeout(WRITE_TIMEOUT, sent).await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
        match sent {
            // The length was already sent, so the response cannot be completed.
            Ok(0) => return Err(Close::Bug("a segment is shorter than its index says".into())),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Sends a range of a log file through this process.
async fn copy_file(stream: &mut Stream, slice: &Slice) -> Result<(), Close> {
    use std::os::unix::fs::FileExt;
    const CHUNK: u64 = 256 << 10;
    let mut position = slice.position;
    let end = slice.position + slice.length;
    while position < end {
        let mut chunk = vec![0; (end - position).min(CHUNK) as usize];
        slice.file.read_exact_at(&mut chunk, position)?;
        position += chunk.len() as u64;
        write_bytes(stream, chunk.into()).await?;
    }
    Ok(())
}
