//! Progress of a snapshot for the log: rows, rate, and the estimated time left.

use std::time::{Duration, Instant};

/// The interval of log lines.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Counts the rows of a snapshot.
pub(crate) struct ProgressLog {
    started: Instant,
    logged: Instant,
    rows: u64,
    /// The estimate of the server's statistics.
    expected: u64,
    tables: usize,
}

impl ProgressLog {
    pub(crate) fn new(tables: usize, expected: u64) -> Self {
        let now = Instant::now();
        Self { started: now, logged: now, rows: 0, expected, tables }
    }

    /// Counts rows.
    pub(crate) fn add(&mut self, rows: usize) {
        self.rows += rows as u64;
    }

    /// The line that is due now.
    pub(crate) fn due(&mut self, tables_left: usize) -> Option<String> {
        if self.logged.elapsed() < LOG_INTERVAL {
            return None;
        }
        self.logged = Instant::now();
        Some(self.line(self.started.elapsed(), tables_left))
    }

    /// The line at the end.
    pub(crate) fn end(&self) -> String {
        self.line(self.started.elapsed(), 0)
    }

    fn line(&self, elapsed: Duration, tables_left: usize) -> String {
        let rate = self.rows as f64 / elapsed.as_secs_f64().max(0.001);
        let done = self.tables.saturating_sub(tables_left);
        let mut line = format!("snapshot: {done} of {} tables, {} rows", self.tables, self.rows);
        if tables_left > 0 && self.expected > self.rows {
            line += &format!(" of about {}", self.expected);
        }
        line += &format!(", {rate:.0} rows/s");
        if tables_left > 0 && self.expected > self.rows && rate > 0.0 {
            line += &format!(", about {:.0} s left", (self.expected - self.rows) as f64 / rate);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_contains_the_known_figures() {
        let mut log = ProgressLog::new(3, 400);
        assert_eq!(log.line(Duration::from_secs(1), 3), "snapshot: 0 of 3 tables, 0 rows of about 400, 0 rows/s");
        log.add(100);
        assert_eq!(
            log.line(Duration::from_secs(10), 1),
            "snapshot: 2 of 3 tables, 100 rows of about 400, 10 rows/s, about 30 s left"
        );
        // The estimate was too low, so the time left is unknown.
        log.add(500);
        assert_eq!(log.line(Duration::from_secs(10), 1), "snapshot: 2 of 3 tables, 600 rows, 60 rows/s");
        assert_eq!(log.line(Duration::from_secs(20), 0), "snapshot: 3 of 3 tables, 600 rows, 30 rows/s");
        assert_eq!(log.due(1), None);
    }
}
