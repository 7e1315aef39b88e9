//! Resource limits of a plugin instance, and the limit on its crashes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Limits of one plugin instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Maximum bytes of linear memory, summed over all memories of the plugin. The example
    /// `plugin_memory` measures a plugin's use: with calls of 4 MiB, a Rust plugin uses 13 MiB, and
    /// a JavaScript plugin 200 MiB before its garbage collector runs.
    pub memory: usize,
    /// Maximum number of records per call.
    pub batch_records: usize,
    /// Maximum number of record bytes per call. A single larger record is passed in a call with no
    /// other record.
    pub batch_bytes: usize,
    /// Maximum duration of a call. The host checks it every 10 ms.
    pub timeout: Duration,
    /// Maximum number of bytes that a call may return, including 48 bytes per record.
    pub output_bytes: usize,
    /// Maximum number of records per minute on which the instance may crash. When the limit is
    /// reached, the stage pauses: see [`Instance::ready`].
    ///
    /// [`Instance::ready`]: crate::Instance::ready
    pub crashes_per_minute: usize,
    /// Maximum number of calls at one record with timers that set timers which are due at once.
    pub chained_timers: usize,
    /// Disables the timeout and compiles the plugin without checks for it. Compute-heavy plugins
    /// run up to 25 % faster. A trusted plugin that never returns blocks its task.
    pub trusted: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 256 << 20,
            batch_records: 1000,
            batch_bytes: 4 << 20,
            timeout: Duration::from_secs(5),
            output_bytes: 64 << 20,
            crashes_per_minute: 1000,
            chained_timers: 1_000_000,
            trusted: false,
        }
    }
}

/// The times of the crashes within the last minute.
#[derive(Debug, Default)]
pub(crate) struct CrashWindow {
    recent: VecDeque<Instant>,
}

const WINDOW: Duration = Duration::from_secs(60);

impl CrashWindow {
    pub(crate) fn record(&mut self, now: Instant) {
        self.recent.push_back(now);
    }

    /// The time until another crash is allowed; `None` if it is allowed now.
    pub(crate) fn until_allowed(&mut self, now: Instant, per_minute: usize) -> Option<Duration> {
        while self.recent.front().is_some_and(|oldest| now.duration_since(*oldest) >= WINDOW) {
            self.recent.pop_front();
        }
        // fewer than `per_minute` crashes remain in the window once this one has left it
        let last = self.recent.len().checked_sub(per_minute)?;
        let until = self.recent.get(last).map_or(WINDOW, |at| WINDOW.saturating_sub(now.duration_since(*at)));
        Some(until)
    }
}

/// Limits the log lines about crashes.
#[derive(Debug, Default)]
pub(crate) struct CrashLog {
    minute_start: Option<Instant>,
    logged: u32,
    not_logged: u64,
}

impl CrashLog {
    pub(crate) const MAX_PER_MINUTE: u32 = 10;

    /// Returns `None` if a crash must not be logged now, otherwise the number of crashes that were
    /// not logged since the last one that was.
    pub(crate) fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.minute_start.is_none_or(|start| now.duration_since(start) >= WINDOW) {
            self.minute_start = Some(now);
            self.logged = 0;
        }
        if self.logged == Self::MAX_PER_MINUTE {
            self.not_logged += 1;
            return None;
        }
        self.logged += 1;
        Some(std::mem::take(&mut self.not_logged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crash_log_is_limited_per_minute_and_counts_the_rest() {
        let start = Instant::now();
        let mut log = CrashLog::default();
        let admitted = (0..15).filter(|_| log.admit(start).is_some()).count();
        assert_eq!(admitted, CrashLog::MAX_PER_MINUTE as usize);
        assert_eq!(log.admit(start + Duration::from_secs(59)), None);
        assert_eq!(log.admit(start + Duration::from_secs(60)), Some(6));
        assert_eq!(log.admit(start + Duration::from_secs(61)), Some(0));
    }

    #[test]
    fn crashes_are_counted_in_a_sliding_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut crashes = CrashWindow::default();
        assert_eq!(crashes.until_allowed(at(0), 2), None);
        crashes.record(at(0));
        assert_eq!(crashes.until_allowed(at(10), 2), None);
        crashes.record(at(10));
        assert_eq!(crashes.until_allowed(at(20), 2), Some(Duration::from_secs(40)));
        crashes.record(at(20));
        assert_eq!(crashes.until_allowed(at(30), 2), Some(Duration::from_secs(40)));
        assert_eq!(crashes.until_allowed(at(70), 2), None);
        assert_eq!(CrashWindow::default().until_allowed(at(0), 0), Some(WINDOW));
    }
}
