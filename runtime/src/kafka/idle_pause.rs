//! When an idle consumer pauses its partitions, and when it reads them again.
//!
//! After some seconds without a record, the partitions are watched by the client of all idle
//! consumers ([`idle_watch`](super::idle_watch)), and a moment later the consumer stops fetching.
//! It fetches again when the watch ends, when the group rebalances, when the stage pauses or seeks,
//! and after some minutes in any case: a consumer never waits longer for a record that the watch
//! has missed.

use std::time::{Duration, Instant};

use trunkline_connector::TopicPartition;

use super::idle_watch::IdleWatch;
use crate::backoff::jitter;

/// A consumer without records for this long is idle.
const IDLE_TIME: Duration = Duration::from_secs(5);

/// Both fetch for this long: longer than the fetch of the watch that was under way when the
/// partitions were added.
const OVERLAP: Duration = Duration::from_secs(1);

/// A pause ends after this time at the latest.
const MAX_PAUSE: Duration = Duration::from_secs(300);

/// After such a pause, this time without a record shows that the watch has missed none.
const CHECK_TIME: Duration = Duration::from_secs(1);

/// Looking for records that were not read takes at most this part of the time: the client searches
/// the topics for each partition.
const TIME_DIVISOR: u32 = 50;

/// What a consumer without records does.
pub(super) enum IdlePause {
    /// It fetches, and is idle at this time.
    Reading(Instant),
    /// It fetches until this time; its partitions are watched.
    Watched(IdleWatch, Instant),
    /// It does not fetch until this time; its partitions are watched.
    Paused(IdleWatch, Instant),
}

/// The next step of an idle consumer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IdleStep {
    /// Nothing.
    Stay,
    /// Watch the partitions, if all of their records were read.
    Watch,
    /// Pause the partitions.
    Pause,
}

impl IdlePause {
    /// A consumer that fetches.
    pub(super) fn reading() -> Self {
        Self::Reading(Instant::now() + IDLE_TIME)
    }

    /// The consumer has not read all records, or its position is unknown. It took this long to find
    /// that out.
    pub(super) fn note_behind(&mut self, took: Duration) {
        *self = Self::Reading(Instant::now() + CHECK_TIME.max(took * TIME_DIVISOR));
    }

    /// The partitions are watched.
    pub(super) fn note_watch(&mut self, watch: IdleWatch) {
        *self = Self::Watched(watch, Instant::now() + OVERLAP);
    }

    /// The partitions are paused.
    pub(super) fn note_pause(&mut self) {
        let watched = std::mem::replace(self, Self::reading());
        if let Self::Watched(watch, _) = watched {
            *self = Self::Paused(watch, Instant::now() + jitter(MAX_PAUSE));
        }
    }

    /// What to do after a poll without records.
    pub(super) fn next_step(&self) -> IdleStep {
        match self {
            Self::Reading(idle_at) if *idle_at <= Instant::now() => IdleStep::Watch,
            Self::Watched(_, pause_at) if *pause_at <= Instant::now() => IdleStep::Pause,
            Self::Reading(_) | Self::Watched(..) | Self::Paused(..) => IdleStep::Stay,
        }
    }

    /// Starts over. Returns whether the partitions are paused.
    pub(super) fn end(&mut self) -> bool {
        matches!(std::mem::replace(self, Self::reading()), Self::Paused(..))
    }

    /// Starts over if the watch is over, or the pause has lasted long enough. `Some` if the
    /// partitions are to be resumed, with the one that has a record if the watch has found one.
    pub(super) fn end_if_due(&mut self) -> Option<Option<TopicPartition>> {
        match self {
            Self::Paused(watch, end_at) if !watch.is_over() => {
                let is_due = *end_at <= Instant::now();
                is_due.then(|| {
                    self.note_behind(Duration::ZERO);
                    None
                })
            }
            Self::Paused(watch, _) => {
                let found = watch.found().cloned();
                *self = Self::reading();
                Some(found)
            }
            Self::Watched(watch, _) if watch.is_over() => {
                *self = Self::reading();
                None
            }
            Self::Watched(..) | Self::Reading(_) => None,
        }
    }

    #[cfg(test)]
    pub(super) fn is_paused(&self) -> bool {
        matches!(self, Self::Paused(..))
    }

    /// Makes the next step due.
    #[cfg(test)]
    pub(super) fn make_due(&mut self) {
        match self {
            Self::Reading(at) | Self::Watched(_, at) | Self::Paused(_, at) => *at = Instant::now(),
        }
    }
}
