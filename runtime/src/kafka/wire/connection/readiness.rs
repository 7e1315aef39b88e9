//! Waits for sockets with poll(2).

use std::os::fd::RawFd;
use std::time::Instant;

/// A socket to wait for.
#[derive(Debug, Clone, Copy)]
pub(in crate::kafka) struct Readiness {
    pub(in crate::kafka) fd: RawFd,
    /// Whether there is something to write. Reading is always of interest.
    pub(in crate::kafka) for_writing: bool,
    /// Whether there is something to do without a wait.
    pub(in crate::kafka) is_ready: bool,
}

/// Waits until one of the sockets is ready, or until `deadline`. Returns whether one is.
pub(in crate::kafka) fn wait(sockets: &[Readiness], deadline: Instant) -> bool {
    if sockets.iter().any(|socket| socket.is_ready) {
        return true;
    }
    let mut polled: Vec<libc::pollfd> = sockets
        .iter()
        .map(|socket| {
            let events = if socket.for_writing { libc::POLLIN | libc::POLLOUT } else { libc::POLLIN };
            libc::pollfd { fd: socket.fd, events, revents: 0 }
        })
        .collect();
    let left = deadline.saturating_duration_since(Instant::now());
    // Rounded up: a wait of less than a millisecond would be a loop without any.
    let milliseconds = i32::try_from(left.as_micros().div_ceil(1000)).unwrap_or(i32::MAX);
    // SAFETY: the array has as many elements as stated. An interrupted wait counts as a short one.
    let ready = unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, milliseconds) };
    ready > 0
}
