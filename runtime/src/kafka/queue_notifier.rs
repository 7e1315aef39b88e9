//! Waits for a consumer's queues without polling them.
//!
//! rdkafka's `poll` with a timeout calls librdkafka again and again during the last fraction of a
//! millisecond: a thread spins at the end of each wait. One consumer wastes half a percent of a
//! processor this way, a hundred consumers half a processor. Here, librdkafka writes a byte to a
//! socket when a queue is no longer empty, and the wait is a read with a timeout.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::sync::Arc;
use std::time::Duration;

use rdkafka::bindings::{self, rd_kafka_queue_t, rd_kafka_t};

/// A consumer's event queue, its message queue if it has a separate one, and the socket that
/// reports activity on either.
pub(super) struct QueueNotifier {
    events: *mut rd_kafka_queue_t,
    messages: Option<*mut rd_kafka_queue_t>,
    receiver: UnixStream,
    /// librdkafka writes to it, and so does [`wake`].
    sender: Arc<UnixStream>,
}

impl QueueNotifier {
    /// Enables notifications. The client and the message queue must outlive the notifier.
    pub(super) fn new(client: *mut rd_kafka_t, messages: Option<*mut rd_kafka_queue_t>) -> io::Result<Self> {
        let (receiver, sender) = UnixStream::pair()?;
        // A full socket already holds a notification, and librdkafka must not block on it.
        sender.set_nonblocking(true)?;
        // SAFETY: client and queue are alive, and the payload is copied.
        let events = unsafe {
            let events = bindings::rd_kafka_queue_get_consumer(client);
            if events.is_null() {
                return Err(io::Error::other("the Kafka client is not a consumer"));
            }
            for queue in [Some(events), messages].into_iter().flatten() {
                bindings::rd_kafka_queue_io_event_enable(queue, sender.as_raw_fd(), b"!".as_ptr().cast(), 1);
            }
            events
        };
        Ok(Self { events, messages, receiver, sender: Arc::new(sender) })
    }

    /// The socket for [`wake`].
    pub(super) fn sender(&self) -> Arc<UnixStream> {
        self.sender.clone()
    }

    /// Waits at most `timeout` for an event or, with `for_messages`, a message. Call it after both
    /// queues were found empty.
    pub(super) fn wait(&self, timeout: Duration, for_messages: bool) {
        // SAFETY: the queues are held until `drop`.
        let is_filled = |queue| unsafe { bindings::rd_kafka_queue_length(queue) } > 0;
        if is_filled(self.events) || for_messages && self.messages.is_some_and(is_filled) {
            return;
        }
        // A failure makes the caller poll the queues earlier than needed, nothing else.
        if self.receiver.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))).is_ok() {
            let _ = (&self.receiver).read(&mut [0; 16]);
        }
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
        // event queue is ours until it is destroyed here, and the message queue outlives this.
        unsafe {
            for queue in [Some(self.events), self.messages].into_iter().flatten() {
                bindings::rd_kafka_queue_io_event_enable(queue, -1, ptr::null(), 0);
            }
            bindings::rd_kafka_queue_destroy(self.events);
        }
    }
}
