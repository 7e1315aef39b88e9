//! What a sink task knows of a topic partition that is assigned to it.

use std::time::{Duration, Instant};

use serde_json::Value;
use trunkline_connector::{Buffered, CommitPolicy};

use super::OFFSET_ONLY_COMMIT_INTERVAL;
use super::committer::Assignment;
use crate::checkpoint::{Counters, IntentRecord, IntentState};
use crate::stage::dead_letters::DeadLetters;

/// See the module's header.
#[derive(Default)]
pub(super) struct PartitionState {
    /// Committed totals.
    pub(super) totals: Counters,
    /// Counted since the last commit.
    pub(super) pending: Counters,
    /// Dead letters since the last commit.
    pub(super) dead_letters: DeadLetters,
    /// The group's committed offset; -1 if there is none.
    pub(super) committed: i64,
    /// The first pending offset.
    pub(super) first: i64,
    /// The offset after the last processed record; equal to `first` when nothing is pending.
    pub(super) next: i64,
    /// When the first pending record was processed.
    pending_since: Option<Instant>,
    /// When it was written to its topic.
    pub(super) oldest: Option<Instant>,
    /// When the first and the last buffered record arrived.
    buffered: Option<(Instant, Instant)>,
    /// When the buffered output was last sealed.
    sealed_at: Option<Instant>,
}

impl PartitionState {
    /// The state after an assignment.
    pub(super) fn of(assignment: Assignment) -> Self {
        let next = assignment.committed.max(0);
        let totals = assignment.intent.map(|row| row.counters).unwrap_or_default();
        Self { totals, committed: assignment.committed, first: next, next, ..Self::default() }
    }

    /// Records from `first` up to `next` are being processed.
    pub(super) fn advance(&mut self, first: i64, next: i64) {
        if !self.has_pending() {
            self.first = first;
            self.pending_since = Some(Instant::now());
        }
        self.next = next;
    }

    /// Records were buffered; the first of them had been in its topic for `waited`. That time
    /// counts towards `age`, as records wait in the topic while the sink commits, but no longer
    /// than since the last seal: a backlog is old, and still fills files.
    pub(super) fn mark_buffered(&mut self, waited: Duration) {
        let now = Instant::now();
        let arrived = || now - waited.min(self.sealed_at.map_or(Duration::ZERO, |sealed| now - sealed));
        self.buffered = Some((self.buffered.map_or_else(arrived, |(first, _)| first), now));
    }

    /// Processed records wait for a commit.
    pub(super) fn has_pending(&self) -> bool {
        self.pending_since.is_some()
    }

    /// When the topic partition becomes due by time.
    pub(super) fn due_at(&self, policy: &CommitPolicy, buffered: &Buffered) -> Option<Instant> {
        match self.buffered.filter(|_| !buffered.is_empty()) {
            Some((first, last)) => Some(policy.due_at(first, last)),
            None => self.pending_since.map(|since| since + OFFSET_ONLY_COMMIT_INTERVAL),
        }
    }

    /// The buffered output was sealed.
    pub(super) fn mark_sealed(&mut self) {
        self.buffered = None;
        self.sealed_at = Some(Instant::now());
    }

    /// Nothing is pending: it was committed, or moved to a delivery.
    pub(super) fn clear_pending(&mut self) {
        self.first = self.next;
        self.pending_since = None;
        self.oldest = None;
    }

    /// The offset for a transaction that advances none.
    pub(super) fn current_offset(&self) -> i64 {
        // Before the first commit there is nothing below the first record.
        if self.committed >= 0 { self.committed } else { self.first }
    }

    /// The row that records the pending records as prepared (with a committable) or committed
    /// (without).
    pub(super) fn row(&self, committable: Option<&Value>) -> IntentRecord {
        let mut counters = self.totals.clone();
        counters.add(&self.pending);
        IntentRecord {
            state: if committable.is_some() { IntentState::Prepared } else { IntentState::Committed },
            payload: committable.cloned().unwrap_or(Value::Null),
            first: self.first,
            next: self.next,
            counters,
            sink_state: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: CommitPolicy = CommitPolicy {
        bytes: 1,
        records: 1,
        age: Duration::from_secs(60),
        idle: Duration::from_secs(20),
        max_open_files: 1,
    };
    const SOME: Buffered = Buffered { bytes: 1, records: 1, open_files: 1 };

    #[test]
    fn age_counts_from_the_first_buffered_record_and_idle_from_the_last() {
        let mut state = PartitionState::default();
        assert_eq!(state.due_at(&POLICY, &Buffered::default()), None);
        state.advance(0, 1);
        state.mark_buffered(Duration::ZERO);
        let (first, last) = state.buffered.unwrap();
        assert_eq!(state.due_at(&POLICY, &SOME), Some((first + POLICY.age).min(last + POLICY.idle)));
        state.mark_buffered(Duration::ZERO);
        let (still, later) = state.buffered.unwrap();
        assert!(still == first && later >= last);
    }

    #[test]
    fn time_in_the_topic_counts_at_most_since_the_last_seal() {
        let hour = Duration::from_secs(3600);
        let mut state = PartitionState::default();
        state.advance(0, 1);
        let before = Instant::now();
        state.mark_buffered(hour);
        assert!(state.buffered.unwrap().0 >= before, "a backlog is not due at once");
        state.mark_sealed();
        state.sealed_at = Some(Instant::now() - Duration::from_secs(5));
        state.mark_buffered(hour);
        let age = state.buffered.unwrap().0.elapsed();
        assert!(age >= Duration::from_secs(5) && age < hour, "{age:?}");
    }

    #[test]
    fn offsets_without_output_are_committed_after_the_interval() {
        let mut state = PartitionState::default();
        let before = Instant::now();
        state.advance(3, 4);
        let due = state.due_at(&POLICY, &Buffered::default()).unwrap();
        assert!(due >= before + OFFSET_ONLY_COMMIT_INTERVAL && due <= Instant::now() + OFFSET_ONLY_COMMIT_INTERVAL);
        state.clear_pending();
        assert!(!state.has_pending() && state.first == 4 && state.due_at(&POLICY, &SOME).is_none());
    }
}
