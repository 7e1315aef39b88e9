//! What the export has sent and lost. `/metrics` shows it.

use std::sync::atomic::{AtomicU64, Ordering};

/// The counters of an export.
#[derive(Debug, Default)]
pub struct Counts {
    spans: AtomicU64,
    spans_dropped: AtomicU64,
    points: AtomicU64,
    trace_failures: AtomicU64,
    metric_failures: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CountsSnapshot {
    /// Spans that the collector accepted.
    pub spans: u64,
    /// Spans that were not sent, or not accepted.
    pub spans_dropped: u64,
    /// Data points of metrics that the collector accepted.
    pub points: u64,
    /// Failed requests with spans.
    pub trace_failures: u64,
    /// Failed requests with metrics.
    pub metric_failures: u64,
}

impl Counts {
    /// The counters now.
    pub fn snapshot(&self) -> CountsSnapshot {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CountsSnapshot {
            spans: read(&self.spans),
            spans_dropped: read(&self.spans_dropped),
            points: read(&self.points),
            trace_failures: read(&self.trace_failures),
            metric_failures: read(&self.metric_failures),
        }
    }

    pub(super) fn send_spans(&self, count: u64) {
        self.spans.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn drop_spans(&self, count: u64) {
        self.spans_dropped.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn send_points(&self, count: u64) {
        self.points.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn fail_traces(&self) {
        self.trace_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn fail_metrics(&self) {
        self.metric_failures.fetch_add(1, Ordering::Relaxed);
    }
}
