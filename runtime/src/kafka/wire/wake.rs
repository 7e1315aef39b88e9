//! Ends a wait for sockets from another thread.

use std::io::{self, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use super::connection::readiness::Readiness;

/// The end of a pair of sockets that a thread waits for.
pub(in crate::kafka) struct WakeUps {
    receiver: UnixStream,
    sender: Arc<UnixStream>,
}

impl WakeUps {
    pub(in crate::kafka) fn new() -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        // A full socket already holds a wake-up: the sender need not wait.
        sender.set_nonblocking(true)?;
        Ok(Self { receiver, sender: Arc::new(sender) })
    }

    /// The socket for [`wake`].
    pub(in crate::kafka) fn sender(&self) -> Arc<UnixStream> {
        self.sender.clone()
    }

    /// What poll(2) has to wait for.
    pub(in crate::kafka) fn readiness(&self) -> Readiness {
        Readiness { fd: self.receiver.as_raw_fd(), for_writing: false, is_ready: false }
    }

    /// Forgets the wake-ups so far. Call it after a wait, before looking for what has changed.
    pub(in crate::kafka) fn clear(&self) {
        let mut bytes = [0; 64];
        // It fails when there are none.
        while matches!((&self.receiver).read(&mut bytes), Ok(64)) {}
    }
}

/// Ends the current wait, or the next one.
pub(in crate::kafka) fn wake(mut sender: &UnixStream) {
    // It fails if the socket is full, or if the waiting side has ended.
    let _ = sender.write(b"!");
}
