//! What a plugin may take, and how often it may die.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Limits of one plugin instance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of linear memory, all memories of the plugin together. Rust plugins are content with 64 MiB; Python and JavaScript ones bring
    /// their interpreter and want 256 MiB.
    pub memory: usize,
    /// Records handed over in one call.
    pub batch_records: usize,
    /// Bytes handed over in one call. A single record that is larger is handed over alone.
    pub batch_bytes: usize,
    /// How long one call may take. It is checked every 10 ms.
    pub time: Duration,
    /// Bytes that one call may return, each record counted with 48 bytes more.
    pub output_bytes: usize,
    /// How many records an instance may not survive within a minute. After more of them its stage stops for a while: see [`Instance::ready`].
    ///
    /// [`Instance::ready`]: crate::Instance::ready
    pub deaths_per_minute: usize,
    /// No time limit, and code without the checks for it: up to a quarter faster. A plugin that never returns then hangs its task.
    pub trusted: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory: 64 << 20,
            batch_records: 1000,
            batch_bytes: 4 << 20,
            time: Duration::from_secs(5),
            output_bytes: 64 << 20,
            deaths_per_minute: 1000,
            trusted: false,
        }
    }
}

/// The records that an instance did not survive during the last minute.
#[derive(Debug, Default)]
pub(crate) struct Deaths {
    recent: VecDeque<Instant>,
}

const WINDOW: Duration = Duration::from_secs(60);

impl Deaths {
    pub(crate) fn note(&mut self, now: Instant) {
        self.recent.push_back(now);
    }

    /// After how long there is room for another one; `None` if there is now.
    pub(crate) fn wait(&mut self, now: Instant, per_minute: usize) -> Option<Duration> {
        while self.recent.front().is_some_and(|oldest| now.duration_since(*oldest) >= WINDOW) {
            self.recent.pop_front();
        }
        // The one after whose end fewer than the limit are left.
        let last = self.recent.len().checked_sub(per_minute)?;
        let until = self.recent.get(last).map_or(WINDOW, |at| WINDOW.saturating_sub(now.duration_since(*at)));
        Some(until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deaths_are_counted_over_a_sliding_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut deaths = Deaths::default();
        assert_eq!(deaths.wait(at(0), 2), None);
        deaths.note(at(0));
        assert_eq!(deaths.wait(at(10), 2), None);
        deaths.note(at(10));
        assert_eq!(deaths.wait(at(20), 2), Some(Duration::from_secs(40)));
        deaths.note(at(20));
        assert_eq!(deaths.wait(at(30), 2), Some(Duration::from_secs(40)));
        assert_eq!(deaths.wait(at(70), 2), None);
        assert_eq!(Deaths::default().wait(at(0), 0), Some(WINDOW));
    }
}
