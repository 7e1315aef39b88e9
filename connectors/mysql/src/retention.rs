//! How much longer the server keeps the binlog that was not read yet. What it purges before it is read is lost to the source, so whoever runs it is
//! warned while there is time.

use std::time::{Duration, Instant};

/// A warning is given when less than one part in so many of the server's retention is left.
const WARN_BELOW: u32 = 4;
/// And not more often than this.
const WARN_EVERY: Duration = Duration::from_secs(600);

/// Watches over the headroom.
#[derive(Debug)]
pub(crate) struct Headroom {
    /// `None`: the server purges nothing by itself.
    retention: Option<Duration>,
    /// How old the transaction was that was read last; nothing when everything has been read.
    lag: Duration,
    warned: Option<Instant>,
}

impl Headroom {
    pub(crate) fn new(retention: Option<Duration>) -> Self {
        Self { retention, lag: Duration::ZERO, warned: None }
    }

    /// A transaction was read that was written at this time (microseconds since the Unix epoch).
    pub(crate) fn read(&mut self, written_at: u64, now_ms: i64) {
        let now = u64::try_from(now_ms).unwrap_or(0).saturating_mul(1000);
        self.lag = Duration::from_micros(now.saturating_sub(written_at));
    }

    /// Everything has been read.
    pub(crate) fn caught_up(&mut self) {
        self.lag = Duration::ZERO;
    }

    /// How much longer the server keeps what comes next; `None` if for ever.
    pub(crate) fn left(&self) -> Option<Duration> {
        self.retention.map(|retention| retention.saturating_sub(self.lag))
    }

    /// What to warn of now, if anything.
    pub(crate) fn warning(&mut self) -> Option<String> {
        let (retention, left) = (self.retention?, self.left()?);
        if left >= retention / WARN_BELOW || self.warned.is_some_and(|warned| warned.elapsed() < WARN_EVERY) {
            return None;
        }
        self.warned = Some(Instant::now());
        Some(format!(
            "what is read now was written {:?} ago, and the server keeps its binlog for {retention:?}: {left:?} are left until changes are lost. Keep it longer: \
             SET PERSIST binlog_expire_logs_seconds = {}",
            Duration::from_secs(self.lag.as_secs()),
            2 * retention.as_secs()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_that_lags_behind_the_retention_is_warned_of_once() {
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        let mut headroom = Headroom::new(Some(hours(100)));
        assert_eq!(headroom.left(), Some(hours(100)));
        let now_ms = 1_800_000_000_000;
        let ago = |duration: Duration| (now_ms as u64) * 1000 - duration.as_micros() as u64;
        headroom.read(ago(hours(75)), now_ms);
        assert_eq!((headroom.left(), headroom.warning()), (Some(hours(25)), None));
        headroom.read(ago(hours(80)), now_ms);
        let warning = headroom.warning().unwrap();
        assert!(warning.contains("288000s ago") && warning.contains("72000s are left"), "{warning}");
        assert_eq!(headroom.warning(), None, "not again and again");
        headroom.read(ago(hours(200)), now_ms);
        assert_eq!(headroom.left(), Some(Duration::ZERO));
        headroom.caught_up();
        assert_eq!(headroom.left(), Some(hours(100)));
        // A clock that goes before ours.
        headroom.read(ago(Duration::ZERO) + 5_000_000, now_ms);
        assert_eq!(headroom.left(), Some(hours(100)));
        let mut forever = Headroom::new(None);
        forever.read(0, now_ms);
        assert_eq!((forever.left(), forever.warning()), (None, None));
    }
}
