//! Isolates the records on which a plugin crashes.
//!
//! When the plugin crashes in a call with several records, the host bisects the call: it runs each
//! half, in order, in a new instance. A single record that crashes the plugin is rejected with the
//! cause of the crash. Pending halves are on a stack with the left half on top, so outcomes keep
//! the order of the records and each record has exactly one (I3, I5).
//!
//! With state, each call has a savepoint: a crash takes back the changes of its call only, so that
//! a half sees the changes of the records before it.
//!
//! After a timeout, a half gets half the time. Otherwise a single bad record would cost the full
//! timeout at each of the up to ten bisection steps. A record is rejected for a timeout only after
//! it was run alone with the full timeout.

use std::ops::Range;
use std::time::{Duration, Instant};

use trunkline_connector::{Batch, Entry, Error, Reason};

use super::Instance;
use super::timed::Called;
use crate::guest::GuestCrash;

/// Minimum timeout of a bisected call.
const MIN_TIMEOUT: Duration = Duration::from_millis(100);

impl Instance {
    /// Rejects the records of a call that crash the plugin, and processes all others.
    pub(super) fn isolate(
        &mut self,
        batch: &Batch,
        records: Range<usize>,
        crash: GuestCrash,
        timeout: Duration,
    ) -> Result<(), Error> {
        let mut pending = Vec::new();
        self.bisect(batch, records, crash, timeout, &mut pending);
        while let Some((records, timeout)) = pending.pop() {
            let timeout = if records.len() == 1 { self.limits.timeout } else { timeout };
            if let Called::Crashed(crash) = self.call_packed(batch, records.clone(), timeout)? {
                self.bisect(batch, records, crash, timeout, &mut pending);
            }
        }
        Ok(())
    }

    /// Pushes both halves of a crashed call to `pending`, or rejects its only record.
    pub(super) fn bisect(
        &mut self,
        batch: &Batch,
        records: Range<usize>,
        crash: GuestCrash,
        timeout: Duration,
        pending: &mut Vec<(Range<usize>, Duration)>,
    ) {
        if records.len() == 1 {
            self.crashes.record(Instant::now());
            self.log_crash(batch.get(records.start).entry(), &crash);
            self.outcome.counts.records_in += 1;
            self.outcome.reject(records.start, Reason::new(crash.code, crash.message));
            return;
        }
        self.push_halves(records, &crash, timeout, pending);
    }

    pub(super) fn push_halves(
        &self,
        range: Range<usize>,
        crash: &GuestCrash,
        timeout: Duration,
        pending: &mut Vec<(Range<usize>, Duration)>,
    ) {
        let timeout = match crash.code {
            GuestCrash::TIMEOUT => (timeout / 2).max(MIN_TIMEOUT.min(self.limits.timeout)),
            _ => timeout,
        };
        let middle = range.start + range.len() / 2;
        pending.push((middle..range.end, timeout));
        pending.push((range.start..middle, timeout));
    }

    /// Logs a rejected record at most `CrashLog::MAX_PER_MINUTE` times per minute.
    fn log_crash(&mut self, record: &Entry, crash: &GuestCrash) {
        let plugin = self.plugin.name();
        let Some(not_logged) = self.crash_log.admit(Instant::now()) else { return };
        if not_logged > 0 {
            tracing::warn!(plugin, "{not_logged} more records were rejected because the plugin crashed on them");
        }
        crash.log_output(plugin);
        tracing::warn!(
            plugin,
            code = crash.code,
            partition = record.partition,
            offset = record.offset,
            "record rejected: the plugin crashed on it: {}",
            crash.message
        );
    }
}
