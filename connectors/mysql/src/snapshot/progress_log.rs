//! How a snapshot gets on, for the log: rows, rate, and how long it may still take.

use std::time::{Duration, Instant};

/// A line goes to the log this often.
const TELL: Duration = Duration::from_secs(10);

/// Counts the rows of a snapshot.
pub(crate) struct Meter {
    begun: Instant,
    told: Instant,
    rows: u64,
    /// What the server guesses, from its statistics.
    expected: u64,
    tables: usize,
}

impl Meter {
    /// Of so many tables that are to be read, with about so many rows.
    pub(crate) fn new(tables: usize, expected: u64) -> Self {
        let now = Instant::now();
        Self { begun: now, told: now, rows: 0, expected, tables }
    }

    pub(crate) fn add(&mut self, rows: usize) {
        self.rows += rows as u64;
    }

    /// What there is to be told now, if it is time, with so many tables left.
    pub(crate) fn due(&mut self, left: usize) -> Option<String> {
        if self.told.elapsed() < TELL {
            return None;
        }
        self.told = Instant::now();
        Some(self.line(self.begun.elapsed(), left))
    }

    /// What there is to be told at the end.
    pub(crate) fn end(&self) -> String {
        self.line(self.begun.elapsed(), 0)
    }

    fn line(&self, elapsed: Duration, left: usize) -> String {
        let rate = self.rows as f64 / elapsed.as_secs_f64().max(0.001);
        let done = self.tables.saturating_sub(left);
        let mut line = format!("snapshot: {done} of {} tables, {} rows", self.tables, self.rows);
        if left > 0 && self.expected > self.rows {
            line += &format!(" of about {}", self.expected);
        }
        line += &format!(", {rate:.0} rows/s");
        if left > 0 && self.expected > self.rows && rate > 0.0 {
            line += &format!(", about {:.0} s left", (self.expected - self.rows) as f64 / rate);
        }
        line
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_what_is_known() {
        let mut meter = Meter::new(3, 400);
        assert_eq!(meter.line(Duration::from_secs(1), 3), "snapshot: 0 of 3 tables, 0 rows of about 400, 0 rows/s");
        meter.add(100);
        assert_eq!(
            meter.line(Duration::from_secs(10), 1),
            "snapshot: 2 of 3 tables, 100 rows of about 400, 10 rows/s, about 30 s left"
        );
        // The server's guess was too low: then nobody knows.
        meter.add(500);
        assert_eq!(meter.line(Duration::from_secs(10), 1), "snapshot: 2 of 3 tables, 600 rows, 60 rows/s");
        assert_eq!(meter.line(Duration::from_secs(20), 0), "snapshot: 3 of 3 tables, 600 rows, 30 rows/s");
        assert_eq!(meter.due(1), None);
    }
}
