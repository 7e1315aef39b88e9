//! The threads that call [`IdempotentSink::deliver`], each one delivery at a time, and retry it
//! until it succeeds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use trunkline_connector::{Delivery, Domain, Error, IdempotentSink, Result, Retry, failpoint};

use crate::stage::backoff::Backoff;
use crate::stage::stop_signal::StopSignal;
use crate::stage::supervise::{GIVE_UP, SHUTDOWN_GRACE};
use crate::telemetry::Trace;

/// See the module's header.
pub(super) struct DeliveryPool {
    sink: Arc<dyn IdempotentSink>,
    /// `None` once the pool is being dropped.
    jobs: Option<Sender<Job>>,
    events: Receiver<DeliveryEvent>,
    cancel: StopSignal,
}

/// What happened to a delivery.
pub(super) enum DeliveryEvent {
    /// It failed and is retried.
    Retrying {
        /// The cause.
        error: Error,
        /// The wait before the next attempt.
        retry_in: Duration,
    },
    /// All of its records were acknowledged or rejected.
    Finished {
        /// The number that it was sent with.
        number: u64,
        /// The records with their outcomes.
        delivery: Delivery,
    },
    /// It cannot succeed.
    Failed {
        /// The cause.
        error: Error,
    },
}

/// A delivery with its number, and the trace that ends with it.
type Job = (u64, Delivery, Trace);

/// What the threads share.
struct Worker {
    sink: Arc<dyn IdempotentSink>,
    jobs: Arc<Mutex<Receiver<Job>>>,
    events: Sender<DeliveryEvent>,
    cancel: StopSignal,
    until_idle: bool,
}

impl DeliveryPool {
    /// Starts the threads. `until_idle`: a delivery that fails for too long fails for good.
    pub(super) fn start(sink: Box<dyn IdempotentSink>, threads: usize, until_idle: bool) -> Result<Self> {
        let sink: Arc<dyn IdempotentSink> = Arc::from(sink);
        let (jobs, waiting) = channel();
        let (sender, events) = channel();
        let waiting = Arc::new(Mutex::new(waiting));
        let cancel = StopSignal::default();
        for _ in 0..threads {
            let worker = Worker {
                sink: Arc::clone(&sink),
                jobs: Arc::clone(&waiting),
                events: sender.clone(),
                cancel: cancel.clone(),
                until_idle,
            };
            let thread = std::thread::Builder::new().name("deliver".to_owned());
            thread.spawn(move || worker.run()).map_err(|error| {
                Error::external("sink.thread", format!("cannot start a thread for deliveries: {error}"))
            })?;
        }
        Ok(Self { sink, jobs: Some(jobs), events, cancel })
    }

    /// The sink that the threads call.
    pub(super) fn sink(&self) -> &dyn IdempotentSink {
        self.sink.as_ref()
    }

    /// Hands a delivery to the next free thread.
    pub(super) fn send(&self, number: u64, delivery: Delivery, trace: Trace) {
        if let Some(jobs) = &self.jobs {
            // It fails only if all threads have ended, which `event` reports.
            let _ = jobs.send((number, delivery, trace));
        }
    }

    /// The next event; `None` if there is none within `wait`.
    pub(super) fn event(&self, wait: Duration) -> Result<Option<DeliveryEvent>> {
        match self.events.recv_timeout(wait) {
            Ok(event) => Ok(Some(event)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => {
                Err(Error::internal("sink.delivery_threads", "the threads that deliver have ended"))
            }
        }
    }
}

impl Drop for DeliveryPool {
    /// Waits for the calls that are under way: the next run of the stage must not be overtaken by a
    /// delivery of this one (I5).
    fn drop(&mut self) {
        self.cancel.set();
        self.jobs = None;
        let until = Instant::now() + SHUTDOWN_GRACE;
        loop {
            match self.events.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {
                    tracing::warn!("a delivery is still under way after {SHUTDOWN_GRACE:?}; it is abandoned");
                    return;
                }
            }
        }
    }
}

impl Worker {
    fn run(self) {
        loop {
            let job = self.jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
            let Ok((number, delivery, mut trace)) = job else { return };
            let outcome = self.deliver(delivery, &mut trace);
            trace.finish(&outcome);
            let event = match outcome {
                Ok(Some(delivery)) => DeliveryEvent::Finished { number, delivery },
                Ok(None) => return,
                Err(error) => DeliveryEvent::Failed { error },
            };
            if self.events.send(event).is_err() {
                return;
            }
        }
    }

    /// Delivers until all records are decided; `None` if the pool was dropped meanwhile.
    fn deliver(&self, mut delivery: Delivery, trace: &mut Trace) -> Result<Option<Delivery>> {
        let mut backoff = Backoff::new();
        let started = Instant::now();
        loop {
            if self.cancel.is_set() {
                return Ok(None);
            }
            let pending = delivery.pending_len();
            trace.step("attempt");
            let called = catch_unwind(AssertUnwindSafe(|| {
                failpoint!("sink.deliver.before").and_then(|()| self.sink.deliver(&mut delivery))
            }));
            let error = match called {
                Ok(Ok(())) => return Ok(Some(delivery)),
                Ok(Err(error)) => error,
                Err(_) => {
                    Error::internal("sink.panic", "the connector panicked while it delivered (please report this)")
                }
            };
            let gives_up = self.until_idle && started.elapsed() > GIVE_UP;
            if error.domain != Domain::External || error.retry == Retry::Never || gives_up {
                return Err(error);
            }
            trace.step("wait");
            // An attempt that decided some of the records made progress.
            let retry_in = backoff.after(&error, delivery.pending_len() < pending);
            if self.events.send(DeliveryEvent::Retrying { error, retry_in }).is_err() || self.cancel.wait(retry_in) {
                return Ok(None);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use trunkline_connector::{Batch, PartitionRecords, TopicPartition};

    use super::*;

    /// Acknowledges one record in each call and then fails, until it has been called often enough.
    struct Flaky {
        calls: AtomicUsize,
        succeeds_at: usize,
        seen: Mutex<Vec<usize>>,
    }

    struct Shared(Arc<Flaky>);

    impl IdempotentSink for Shared {
        fn deliver(&self, delivery: &mut Delivery) -> Result<()> {
            self.0.seen.lock().unwrap().push(delivery.pending_len());
            if self.0.calls.fetch_add(1, Ordering::Relaxed) + 1 >= self.0.succeeds_at {
                return Ok(());
            }
            let first = delivery.pending().next().map(|pending| pending.index);
            delivery.acknowledge(first.unwrap());
            Err(Error::external("test.busy", "busy").retry(Retry::After(Duration::from_millis(1))))
        }
    }

    fn delivery(records: i64) -> Delivery {
        let mut batch = Batch::default();
        let topic = batch.topic_index("t");
        for offset in 0..records {
            let mut record = batch.record();
            record.read_from(topic, 0, offset).value(b"v");
            record.finish();
        }
        Delivery::new(vec![PartitionRecords { partition: TopicPartition::new("t", 0), records: batch }])
    }

    #[test]
    fn a_retry_sends_only_the_records_that_are_still_pending() {
        let sink = Arc::new(Flaky { calls: AtomicUsize::new(0), succeeds_at: 3, seen: Mutex::default() });
        let pool = DeliveryPool::start(Box::new(Shared(Arc::clone(&sink))), 1, false).unwrap();
        pool.send(7, delivery(5), Trace::none());
        let mut retries = 0;
        let limit = Instant::now() + Duration::from_secs(30);
        loop {
            assert!(Instant::now() < limit, "not finished in time");
            match pool.event(Duration::from_secs(1)).unwrap() {
                Some(DeliveryEvent::Retrying { .. }) => retries += 1,
                Some(DeliveryEvent::Finished { number, .. }) => {
                    assert_eq!((number, retries), (7, 2));
                    break;
                }
                Some(DeliveryEvent::Failed { error }) => panic!("{error}"),
                None => {}
            }
        }
        assert_eq!(*sink.seen.lock().unwrap(), [5, 4, 3]);
    }

    #[test]
    fn an_error_that_cannot_recover_ends_the_delivery() {
        struct Refuses;
        impl IdempotentSink for Refuses {
            fn deliver(&self, _: &mut Delivery) -> Result<()> {
                Err(Error::config("test.refused", "wrong password"))
            }
        }
        let pool = DeliveryPool::start(Box::new(Refuses), 2, false).unwrap();
        pool.send(0, delivery(1), Trace::none());
        let Some(DeliveryEvent::Failed { error }) = pool.event(Duration::from_secs(30)).unwrap() else {
            panic!("no failure")
        };
        assert_eq!(error.code, "test.refused");
    }
}
