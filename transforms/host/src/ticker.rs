//! [`Ticker`]: the clock that ends calls which take too long.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, Thread};
use std::time::Duration;

use wasmtime::Engine;

/// Interval at which the time limit of running calls is checked.
pub(crate) const EPOCH_TICK: Duration = Duration::from_millis(10);

/// Ticks without a call after which the thread sleeps: calls of a busy plugin follow each other.
const QUIET_TICKS: usize = 100;

/// Advances the epoch of an engine every [`EPOCH_TICK`] while calls run. Its thread ends when it is
/// dropped.
pub(crate) struct Ticker {
    shared: Arc<Shared>,
    thread: Thread,
}

#[derive(Default)]
struct Shared {
    /// Calls that run now.
    calls: AtomicUsize,
    /// The thread sleeps, or is about to.
    sleeps: AtomicBool,
    is_over: AtomicBool,
}

/// The epoch advances until this is dropped.
pub(crate) struct Ticking {
    ticker: Arc<Ticker>,
}

impl Ticker {
    pub(crate) fn start(engine: Engine) -> io::Result<Arc<Self>> {
        let shared = Arc::<Shared>::default();
        let of_thread = shared.clone();
        let handle = thread::Builder::new()
            .name("plugin-ticker".to_owned())
            .spawn(move || of_thread.run(|| engine.increment_epoch()))?;
        Ok(Arc::new(Self { shared, thread: handle.thread().clone() }))
    }

    /// Notes that a call begins; it ends when the result is dropped.
    pub(crate) fn begin_call(self: &Arc<Self>) -> Ticking {
        self.shared.calls.fetch_add(1, Ordering::SeqCst);
        // The thread announces its sleep before it looks for calls, so that one of the two sees the
        // other.
        if self.shared.sleeps.load(Ordering::SeqCst) {
            self.thread.unpark();
        }
        Ticking { ticker: self.clone() }
    }
}

impl Shared {
    fn run(&self, tick: impl Fn()) {
        let mut quiet = 0;
        while !self.is_over.load(Ordering::SeqCst) {
            let is_quiet = self.calls.load(Ordering::SeqCst) == 0;
            quiet = if is_quiet { quiet + 1 } else { 0 };
            if quiet < QUIET_TICKS {
                thread::park_timeout(EPOCH_TICK);
                tick();
                continue;
            }
            self.sleeps.store(true, Ordering::SeqCst);
            if self.calls.load(Ordering::SeqCst) == 0 && !self.is_over.load(Ordering::SeqCst) {
                thread::park();
            }
            self.sleeps.store(false, Ordering::SeqCst);
        }
    }
}

impl Drop for Ticking {
    fn drop(&mut self) {
        self.ticker.shared.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.thread.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Waits until the thread sleeps, or not.
    fn await_sleep(ticker: &Ticker, sleeps: bool) {
        let begun = Instant::now();
        while ticker.shared.sleeps.load(Ordering::SeqCst) != sleeps {
            assert!(begun.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
    }

    #[test]
    fn the_clock_runs_while_a_call_runs_and_stops_without_calls() {
        let shared = Arc::<Shared>::default();
        let ticks = Arc::<AtomicUsize>::default();
        let (of_thread, counted) = (shared.clone(), ticks.clone());
        let tick = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let handle = thread::spawn(move || of_thread.run(tick));
        let ticker = Arc::new(Ticker { shared, thread: handle.thread().clone() });
        await_sleep(&ticker, true);
        let before = ticks.load(Ordering::SeqCst);
        let call = ticker.begin_call();
        await_sleep(&ticker, false);
        // Longer than the quiet time: a call that does not return is interrupted.
        let begun = Instant::now();
        while ticks.load(Ordering::SeqCst) < before + QUIET_TICKS + 10 {
            assert!(begun.elapsed() < Duration::from_secs(30));
            thread::yield_now();
        }
        drop(call);
        await_sleep(&ticker, true);
        drop(ticker);
        handle.join().unwrap();
    }
}
