//! Waiting for a consumer's queue without polling it.
//!
//! rdkafka's `poll` with a timeout asks the client again and again for the fraction of a millisecond that the client itself does not wait: at the end
//! of each wait a thread spins. One consumer wastes half a percent of a processor by that, a hundred half of one. So librdkafka writes a
//! byte to a socket when its queue is no longer empty, and the wait is a read with a timeout.

use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr;
use std::time::Duration;

use rdkafka::bindings::{self, rd_kafka_queue_t, rd_kafka_t};

/// A consumer's queues, its own and that of its records, and the socket that tells when something is in one of them.
pub(super) struct Wake {
    queue: *mut rd_kafka_queue_t,
    records: *mut rd_kafka_queue_t,
    told: UnixStream,
    /// Written to by librdkafka, and kept open for it.
    _teller: UnixStream,
}

impl Wake {
    /// Has the consumer tell. The client and the queue of records have to outlive this.
    pub(super) fn of(client: *mut rd_kafka_t, records: *mut rd_kafka_queue_t) -> io::Result<Self> {
        let (told, teller) = UnixStream::pair()?;
        // When nobody has read for long the byte is there already, and librdkafka must not wait.
        teller.set_nonblocking(true)?;
        // SAFETY: client and queue are alive, and the payload is copied.
        let queue = unsafe {
            let queue = bindings::rd_kafka_queue_get_consumer(client);
            if queue.is_null() {
                return Err(io::Error::other("the client is no consumer"));
            }
            for queue in [queue, records] {
                bindings::rd_kafka_queue_io_event_enable(queue, teller.as_raw_fd(), b"!".as_ptr().cast(), 1);
            }
            queue
        };
        Ok(Self { queue, records, told, _teller: teller })
    }

    /// Waits until something is in the client's queue or, if they are wanted, in that of the records, at most `timeout`. Ask after they were
    /// polled, and found empty.
    pub(super) fn wait(&self, timeout: Duration, for_records: bool) {
        // SAFETY: the queues are held until `drop`.
        let (events, records) =
            unsafe { (bindings::rd_kafka_queue_length(self.queue), bindings::rd_kafka_queue_length(self.records)) };
        if events > 0 || for_records && records > 0 {
            return;
        }
        // What goes wrong only makes the caller ask the queue sooner than needed.
        if self.told.set_read_timeout(Some(timeout.max(Duration::from_millis(1)))).is_ok() {
            let _ = (&self.told).read(&mut [0; 16]);
        }
    }
}

impl Drop for Wake {
    fn drop(&mut self) {
        // Before the socket is closed: its number may soon be another's.
        // SAFETY: the queue is ours until it is given back here, and that of the records outlives this.
        unsafe {
            for queue in [self.queue, self.records] {
                bindings::rd_kafka_queue_io_event_enable(queue, -1, ptr::null(), 0);
            }
            bindings::rd_kafka_queue_destroy(self.queue);
        }
    }
}
