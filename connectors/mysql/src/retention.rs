//! Compares the age of the transactions that the source reads with the server's binlog retention,
//! and warns before the server purges unread transactions.

use std::time::{Duration, Instant};

use crate::connection::dialect::Dialect;

/// A warning is due when less than this fraction (1/4) of the retention is left.
const WARN_BELOW: u32 = 4;
/// The minimum interval of warnings.
const WARN_INTERVAL: Duration = Duration::from_secs(600);

/// The retention of the server's binlog, compared with the source's lag.
#[derive(Debug)]
pub(crate) struct BinlogRetention {
    /// `None`: the server purges nothing by itself.
    retention: Option<Duration>,
    dialect: Dialect,
    /// The age of the last transaction; zero when everything was read.
    lag: Duration,
    warned: Option<Instant>,
}

impl BinlogRetention {
    pub(crate) fn new(retention: Option<Duration>, dialect: Dialect) -> Self {
        Self { retention, dialect, lag: Duration::ZERO, warned: None }
    }

    /// Notes a transaction, written at this time (microseconds since the Unix epoch).
    pub(crate) fn record(&mut self, written_at: u64, now_ms: i64) {
        let now = u64::try_from(now_ms).unwrap_or(0).saturating_mul(1000);
        self.lag = Duration::from_micros(now.saturating_sub(written_at));
    }

    /// Notes that everything was read.
    pub(crate) fn record_caught_up(&mut self) {
        self.lag = Duration::ZERO;
    }

    /// How long the server keeps the next transaction; `None` without a limit.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.retention.map(|retention| retention.saturating_sub(self.lag))
    }

    /// The warning that is due now.
    pub(crate) fn warning(&mut self) -> Option<String> {
        let (retention, left) = (self.retention?, self.left()?);
        if left >= retention / WARN_BELOW || self.warned.is_some_and(|warned| warned.elapsed() < WARN_INTERVAL) {
            return None;
        }
        self.warned = Some(Instant::now());
        let lag = Duration::from_secs(self.lag.as_secs());
        let keep = self.dialect.set_global(&format!("binlog_expire_logs_seconds = {}", 2 * retention.as_secs()));
        Some(format!(
            "the source reads transactions that are {lag:?} old, and the server keeps its binlog for {retention:?}: changes are lost \
             in {left:?}; keep it longer: {keep}"
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_lags_behind_the_retention_warns_once() {
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let mut retention = BinlogRetention::new(Some(hours(100)), Dialect::MySql);
        assert_eq!(retention.left(), Some(hours(100)));
        let now_ms = 1_800_000_000_000;
        let ago = |duration: Duration| (now_ms as u64) * 1000 - duration.as_micros() as u64;
        retention.record(ago(hours(75)), now_ms);
        assert_eq!((retention.left(), retention.warning()), (Some(hours(25)), None));
        retention.record(ago(hours(80)), now_ms);
        let warning = retention.warning().unwrap();
        assert!(warning.contains("288000s old") && warning.contains("lost in 72000s"), "{warning}");
        assert_eq!(retention.warning(), None, "one warning per interval");
        retention.record(ago(hours(200)), now_ms);
        assert_eq!(retention.left(), Some(Duration::ZERO));
        retention.record_caught_up();
        assert_eq!(retention.left(), Some(hours(100)));
        // The server's clock is ahead.
        retention.record(ago(Duration::ZERO) + 5_000_000, now_ms);
        assert_eq!(retention.left(), Some(hours(100)));
        let mut unlimited = BinlogRetention::new(None, Dialect::MariaDb);
        unlimited.record(0, now_ms);
        assert_eq!((unlimited.left(), unlimited.warning()), (None, None));
    }
}
