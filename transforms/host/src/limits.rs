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
    /// How often an instance is built anew within a minute before its stage fails. To isolate one record out of 1000 takes eleven.
    pub restarts_per_minute: usize,
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
            restarts_per_minute: 1000,
            trusted: false,
        }
    }
}

/// When an instance was rebuilt during the last minute.
#[derive(Debug, Default)]
pub(crate) struct Restarts {
    recent: VecDeque<Instant>,
}

const WINDOW: Duration = Duration::from_secs(60);

impl Restarts {
    /// Notes a restart at `now`, or says after how long the next one is allowed.
    pub(crate) fn note(&mut self, now: Instant, per_minute: usize) -> Result<(), Duration> {
        while self.recent.front().is_some_and(|oldest| now.duration_since(*oldest) >= WINDOW) {
            self.recent.pop_front();
        }
        if self.recent.len() >= per_minute {
            let oldest = self.recent.front().copied().unwrap_or(now);
            return Err(WINDOW.saturating_sub(now.duration_since(oldest)));
        }
        self.recent.push_back(now);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restarts_are_counted_over_a_sliding_minute() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut restarts = Restarts::default();
        assert_eq!(restarts.note(at(0), 2), Ok(()));
        assert_eq!(restarts.note(at(10), 2), Ok(()));
        assert_eq!(restarts.note(at(20), 2), Err(Duration::from_secs(40)));
        assert_eq!(restarts.note(at(60), 2), Ok(()));
        assert_eq!(restarts.note(at(61), 2), Err(Duration::from_secs(9)));
        assert_eq!(Restarts::default().note(at(0), 0), Err(WINDOW));
    }
}
