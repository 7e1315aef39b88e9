//! When a source has a second thread.
//!
//! The thread of a stage fills a batch, produces its records, and fills the next batch. While a
//! source has a backlog, a second thread fills batches meanwhile, if there are processors for it:
//! with more such sources than processors, a second thread for each only adds switches between
//! threads, and memory for batches that wait.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel, sync_channel};

use trunkline_connector::{Result, SourceBatch, SourceWaker};

use super::source_reader::{Filled, Reader};

/// Filled batches that wait for the stage's thread at most.
const WAITING_BATCHES: usize = 2;

/// Counts the sources of a worker that have a backlog.
#[derive(Clone)]
pub struct Backlogs {
    count: Arc<AtomicUsize>,
    processors: usize,
}

impl Backlogs {
    /// Second threads are for at most as many sources as this.
    pub fn new(processors: usize) -> Self {
        Self { count: Arc::default(), processors }
    }

    /// Whether each source with a backlog may have two threads.
    pub(super) fn fit_processors(&self) -> bool {
        self.count.load(Ordering::Relaxed) <= self.processors
    }

    /// Counts a source until the backlog is dropped.
    pub(super) fn begin(&self) -> Backlog {
        self.count.fetch_add(1, Ordering::Relaxed);
        Backlog { count: Arc::clone(&self.count) }
    }
}

impl Default for Backlogs {
    /// For the processors that the process may use.
    fn default() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, usize::from))
    }
}

/// The backlog of a source.
pub(super) struct Backlog {
    count: Arc<AtomicUsize>,
}

impl Drop for Backlog {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Lets `reader` fill batches in a second thread while `produce` takes them, and returns empty
/// ones. The thread ends when `produce` does, or by itself as [`Reader::run`] says: then the
/// receiver is disconnected.
pub(super) fn read_ahead<R>(
    reader: &mut Reader<'_>,
    produce: impl FnOnce(Receiver<Result<Filled>>, Sender<SourceBatch>) -> R,
) -> R {
    let is_abandoned = AtomicBool::new(false);
    let (full, filled) = sync_channel(WAITING_BATCHES);
    let (returned, empty) = channel();
    let is_abandoned = &is_abandoned;
    std::thread::scope(|scope| {
        // `produce` drops its ends of the channels before: that wakes a reader that waits for room.
        let _abandons = Abandons { is_abandoned, waker: reader.waker() };
        scope.spawn(move || reader.run(full, &empty, is_abandoned));
        produce(filled, returned)
    })
}

/// Ends the reader's thread, also after a panic of the stage's thread.
struct Abandons<'a> {
    is_abandoned: &'a AtomicBool,
    waker: Option<SourceWaker>,
}

impl Drop for Abandons<'_> {
    fn drop(&mut self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
        if let Some(wake) = &self.waker {
            wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_have_second_threads_while_there_are_processors_for_them() {
        let backlogs = Backlogs::new(2);
        let held = [backlogs.begin(), backlogs.begin()];
        assert!(backlogs.fit_processors());
        let third = backlogs.clone().begin();
        assert!(!backlogs.fit_processors());
        drop(held);
        assert!(backlogs.fit_processors());
        drop(third);
        assert_eq!(backlogs.count.load(Ordering::Relaxed), 0);
    }
}
