//! Reports events of a consumer's client, without polling its queue.
//!
//! rdkafka's `poll` with a timeout calls librdkafka again and again during the last fraction of a
//! millisecond: a thread spins at the end of each wait. One consumer wastes half a percent of a
//! processor this way, a hundred consumers half a processor. Here, librdkafka writes a byte to a
//! socket when the queue is no longer empty, and the caller waits for the socket.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;

use rdkafka::bindings::{self, rd_kafka_queue_t, rd_kafka_t};

use super::wire::connection::readiness::Readiness;

/// A consumer's event queue, and the socket that reports activity on it.
pub(super) struct QueueNotifier {
    events: *mut rd_kafka_queue_t,
    receiver: UnixStream,
    /// librdkafka writes to it, and so does [`wake`].
    sender: Arc<UnixStream>,
}

impl QueueNotifier {
    /// Enables notifications. The client must outlive the notifier.
    pub(super) fn new(client: *mut rd_kafka_t) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        // A full socket already holds a notification, and librdkafka must not block on it.
        sender.set_nonblocking(true)?;
        // SAFETY: the client is alive, and the payload is copied.
        let events = unsafe {
            let events = bindings::rd_kafka_queue_get_consumer(client);
            if events.is_null() {
                return Err(io::Error::other("the Kafka client is not a consumer"));
            }
            bindings::rd_kafka_queue_io_event_enable(events, sender.as_raw_fd(), b"!".as_ptr().cast(), 1);
            events
        };
        Ok(Self { events, receiver, sender: Arc::new(sender) })
    }

    /// The socket for [`wake`].
    pub(super) fn sender(&self) -> Arc<UnixStream> {
        self.sender.clone()
    }

    /// What a wait for events has to wait for. Call it after the queue was found empty.
    pub(super) fn readiness(&self) -> Readiness {
        // SAFETY: the queue is held until `drop`.
        let is_ready = unsafe { bindings::rd_kafka_queue_length(self.events) } > 0;
        Readiness { fd: self.receiver.as_raw_fd(), for_writing: false, is_ready }
    }

    /// Forgets the notifications so far. Call it after a wait, before the queue is looked at.
    pub(super) fn clear(&self) {
        let mut bytes = [0; 64];
        // It fails when there are none.
        while matches!((&self.receiver).read(&mut bytes), Ok(64)) {}
    }
}

/// Ends the current wait of a notifier, or the next one.
pub(super) fn wake(mut sender: &UnixStream) {
    // It fails if the socket is full, or if the notifier is gone.
    let _ = sender.write(b"!");
}

impl Drop for QueueNotifier {
    fn drop(&mut self) {
        // Before the socket is closed, because its file descriptor may soon be reused. SAFETY: the
        // queue is ours until it is destroyed here.
        unsafe {
            bindings::rd_kafka_queue_io_event_enable(self.events, -1, ptr::null(), 0);
            bindings::rd_kafka_queue_destroy(self.events);
        }
    }
}
