//! The byte stream of a connection, with or without TLS. It does not block.

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};

use openssl::error::ErrorStack;
use openssl::ssl::{self, ErrorCode, SslStream};

use super::tls;

/// A connected socket, with TLS if the cluster uses it. Reads and writes return
/// [`ErrorKind::WouldBlock`] instead of waiting.
///
/// With TLS, a write that was not possible is repeated with the same bytes, perhaps followed by
/// more: OpenSSL may have encrypted them already.
pub(in crate::kafka) enum Stream {
    Plain(TcpStream),
    Tls(SslStream<TcpStream>),
}

impl Stream {
    /// Whether bytes can be read that the socket does not have any more, so that `poll` does not
    /// report them.
    pub(in crate::kafka) fn has_buffered(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(stream) => stream.ssl().pending() > 0,
        }
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Plain(stream) => stream.as_raw_fd(),
            Self::Tls(stream) => stream.get_ref().as_raw_fd(),
        }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => match call(stream, |stream| stream.ssl_read(buffer)) {
                Ok(count) => Ok(count),
                // The broker has closed the connection, with or without a message of TLS.
                Err(error) if error.code() == ErrorCode::ZERO_RETURN => Ok(0),
                Err(error) if error.code() == ErrorCode::SYSCALL && error.io_error().is_none() => Ok(0),
                Err(error) => Err(io_error(error)),
            },
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => call(stream, |stream| stream.ssl_write(bytes)).map_err(io_error),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Calls OpenSSL until it has a result for the caller.
pub(in crate::kafka::wire) fn call<T>(
    stream: &mut SslStream<TcpStream>,
    mut operation: impl FnMut(&mut SslStream<TcpStream>) -> Result<T, ssl::Error>,
) -> Result<T, ssl::Error> {
    loop {
        // OpenSSL would take an error that librdkafka left on this thread for one of this call.
        drop(ErrorStack::get());
        match operation(stream) {
            // It has read a message that is not for the caller.
            Err(error) if error.code() == ErrorCode::WANT_READ && error.io_error().is_none() => {}
            result => return result,
        }
    }
}

fn io_error(error: ssl::Error) -> io::Error {
    match error.code() {
        ErrorCode::WANT_READ | ErrorCode::WANT_WRITE => ErrorKind::WouldBlock.into(),
        ErrorCode::ZERO_RETURN => ErrorKind::BrokenPipe.into(),
        _ => match error.ssl_error() {
            Some(stack) => io::Error::other(tls::reason(stack)),
            None => error.into_io_error().unwrap_or_else(|_| ErrorKind::ConnectionAborted.into()),
        },
    }
}
