//! How fast the tasks of a replay read.

use std::num::NonZeroU64;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// While live work is busy, a replay without a rate reads for this part of each period: it costs
/// live work a tenth of what it would cost at full speed.
const PERIOD: Duration = Duration::from_millis(1_000);
const TURN: Duration = Duration::from_millis(100);

/// How fast the tasks of a run read. Clones share it.
#[derive(Debug, Clone)]
pub enum Pace {
    /// At this rate.
    Rate(TaskRate),
    /// As fast as they can, and a tenth of the time while live work is busy.
    Yielding(LiveWork),
}

impl Default for Pace {
    fn default() -> Self {
        Self::Yielding(LiveWork::default())
    }
}

/// Whether live work is busy. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct LiveWork(Arc<AtomicBool>);

impl LiveWork {
    /// Returns whether that is a change.
    pub fn set_busy(&self, is_busy: bool) -> bool {
        self.0.swap(is_busy, Ordering::Relaxed) != is_busy
    }

    fn is_busy(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// The records per second of each task of a run. It changes when processes join the run or leave
/// it: all tasks together keep to the rate of the run. Clones share it.
#[derive(Debug, Clone)]
pub struct TaskRate {
    /// A thousandth of a record per second: a task may have less than one.
    thousandths: Arc<AtomicU64>,
}

impl TaskRate {
    /// The share of each of `tasks` tasks.
    pub fn new(total: NonZeroU64, tasks: usize) -> Self {
        let this = Self { thousandths: Arc::default() };
        this.share(total, tasks);
        this
    }

    /// Divides the rate of the run among this many tasks.
    pub fn share(&self, total: NonZeroU64, tasks: usize) {
        let share = total.get().saturating_mul(1_000) / (tasks.max(1) as u64);
        self.thousandths.store(share.max(1), Ordering::Relaxed);
    }

    fn per_second(&self) -> f64 {
        self.thousandths.load(Ordering::Relaxed) as f64 / 1_000.0
    }
}

/// Keeps a task to its pace. A pause is not made up for: the speed never exceeds a rate by more
/// than one second's records.
pub(super) struct Throttle {
    pace: Pace,
    started: Instant,
    refilled: Instant,
    available: f64,
}

impl Throttle {
    pub(super) fn new(pace: Pace) -> Self {
        let now = Instant::now();
        Self { pace, started: now, refilled: now, available: 0.0 }
    }

    /// The records that may be read now.
    pub(super) fn allowance(&self) -> usize {
        match &self.pace {
            Pace::Rate(rate) => self.available(rate).max(0.0) as usize,
            Pace::Yielding(_) if self.until_turn().is_zero() => usize::MAX,
            Pace::Yielding(_) => 0,
        }
    }

    /// The longest wait before the allowance is asked for again.
    pub(super) fn longest_wait(&self) -> Duration {
        let wait = self.until_turn();
        if wait.is_zero() { Duration::MAX } else { wait }
    }

    /// The time until the task may read; zero if it may now, or has a rate.
    fn until_turn(&self) -> Duration {
        match &self.pace {
            Pace::Yielding(live) if live.is_busy() => {
                let period = u64::try_from(PERIOD.as_nanos()).unwrap_or(u64::MAX);
                let at = Duration::from_nanos((self.started.elapsed().as_nanos() % u128::from(period)) as u64);
                if at < TURN { Duration::ZERO } else { PERIOD.saturating_sub(at) }
            }
            Pace::Yielding(_) | Pace::Rate(_) => Duration::ZERO,
        }
    }

    fn available(&self, rate: &TaskRate) -> f64 {
        let rate = rate.per_second();
        (self.available + self.refilled.elapsed().as_secs_f64() * rate).min(rate.max(1.0))
    }

    /// Records were selected.
    pub(super) fn count(&mut self, records: usize) {
        if let (Pace::Rate(rate), 1..) = (&self.pace, records) {
            self.available = self.available(rate) - records as f64;
            self.refilled = Instant::now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ago(time: Duration) -> Instant {
        Instant::now().checked_sub(time).unwrap()
    }

    #[test]
    fn the_rate_bounds_the_records_of_a_second() {
        let total = NonZeroU64::new(100).unwrap();
        let rate = TaskRate::new(total, 1);
        let mut throttle = Throttle::new(Pace::Rate(rate.clone()));
        throttle.refilled = ago(Duration::from_secs(60));
        assert_eq!(throttle.allowance(), 100);
        throttle.count(100);
        assert!(throttle.allowance() < 50, "{}", throttle.allowance());
        // Another process has joined the run.
        rate.share(total, 4);
        throttle.refilled = ago(Duration::from_secs(60));
        assert_eq!(throttle.allowance(), 25);
        // A share below one record per second is not rounded up, and does not stop the task.
        rate.share(NonZeroU64::MIN, 4);
        assert_eq!(throttle.allowance(), 1);
        throttle.count(1);
        throttle.refilled = ago(Duration::from_secs(2));
        assert_eq!(throttle.allowance(), 0);
    }

    #[test]
    fn busy_live_work_leaves_a_tenth_of_the_time() {
        let live = LiveWork::default();
        let mut throttle = Throttle::new(Pace::Yielding(live.clone()));
        let mut reads_at = |milliseconds| {
            throttle.started = ago(Duration::from_millis(milliseconds));
            throttle.count(5);
            throttle.allowance() > 0
        };
        assert!((0..30).all(|tenth| reads_at(tenth * 100 + 50)));
        assert!(live.set_busy(true) && !live.set_busy(true));
        let turns: Vec<u64> = (0..30).filter(|tenth| reads_at(tenth * 100 + 50)).collect();
        assert_eq!(turns, [0, 10, 20]);
        let throttle = Throttle { started: ago(Duration::from_millis(700)), ..throttle };
        assert!(throttle.longest_wait() <= Duration::from_millis(300), "{:?}", throttle.longest_wait());
        assert!(live.set_busy(false));
        assert_eq!((throttle.allowance(), throttle.longest_wait()), (usize::MAX, Duration::MAX));
    }
}
