//! The transport of a connection: TCP.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::os::fd::{AsRawFd, RawFd};
use std::time::Instant;

/// A connected stream that does not block.
pub(super) struct Stream(TcpStream);

impl Stream {
    pub(super) fn connect(host: &str, port: u16, deadline: Instant) -> Result<Self, String> {
        let addresses =
            (host, port).to_socket_addrs().map_err(|error| format!("Failed to resolve '{host}:{port}': {error}"))?;
        let mut last = format!("Failed to resolve '{host}:{port}': no address");
        for address in addresses {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            match TcpStream::connect_timeout(&address, left) {
                Ok(stream) => {
                    let ready = stream.set_nodelay(true).and_then(|()| stream.set_nonblocking(true));
                    return ready.map(|()| Self(stream)).map_err(|error| error.to_string());
                }
                Err(error) => last = format!("Connect to {address} failed: {error}"),
            }
        }
        Err(last)
    }

    /// Whether bytes can be read that poll(2) does not see.
    pub(super) fn has_buffered(&self) -> bool {
        false
    }
}

impl AsRawFd for Stream {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
