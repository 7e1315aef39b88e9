//! An assigned partition: where it is read, and what was fetched of it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::records::FetchedRecords;
use crate::backoff::{Backoff, jitter};

/// Pauses after an error that passes.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// A partition is read from a replica for this long, until its leader is asked again.
const REPLICA_TIME: Duration = Duration::from_secs(300);

/// Where a partition is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka::wire) enum Position {
    /// At the group's committed offset, which was not read yet.
    Committed,
    /// At the first record, whose offset was not asked yet.
    First,
    /// At this offset.
    At(i64),
}

/// An assigned partition.
pub(in crate::kafka::wire) struct FetchPartition {
    /// What was not handed over begins here.
    pub(in crate::kafka::wire) position: Position,
    /// The next fetch begins here. Without a meaning until the position is an offset.
    next_fetch: i64,
    /// What is between the two, in order.
    pub(in crate::kafka::wire) fetched: VecDeque<FetchedRecords>,
    /// Answers to requests with another number are outdated.
    serial: u64,
    pub(in crate::kafka::wire) is_paused: bool,
    /// The offset after the last record, from the last answer.
    pub(in crate::kafka::wire) high_watermark: Option<i64>,
    /// The end of what the consumer may see, from the last answer.
    pub(in crate::kafka::wire) end: Option<i64>,
    /// A replica near this client that the leader has named, and until when it is used.
    replica: Option<(i32, Instant)>,
    /// Counts answers with records of any partition: those that waited longest come first.
    pub(in crate::kafka::wire) last_answer: u64,
    retry_at: Option<Instant>,
    backoff: Backoff,
}

impl FetchPartition {
    pub(in crate::kafka::wire) fn new(serial: u64) -> Self {
        Self {
            position: Position::Committed,
            next_fetch: 0,
            fetched: VecDeque::new(),
            serial,
            is_paused: false,
            high_watermark: None,
            end: None,
            replica: None,
            last_answer: 0,
            retry_at: None,
            backoff: Backoff::new(FIRST_PAUSE, MAX_PAUSE),
        }
    }

    /// Continues at another position. What was fetched is dropped, and so are answers that come
    /// later.
    pub(in crate::kafka::wire) fn move_to(&mut self, position: Position, serial: u64) {
        self.fetched.clear();
        self.serial = serial;
        self.position = position;
        if let Position::At(offset) = position {
            self.next_fetch = offset;
        }
    }

    /// Drops what was fetched and not handed over.
    pub(in crate::kafka::wire) fn drop_fetched(&mut self, serial: u64) {
        self.move_to(self.position, serial);
    }

    /// What a request for this partition asks: its answer is used only if this did not change.
    pub(in crate::kafka::wire) fn wanted(&self) -> Wanted {
        Wanted { serial: self.serial, offset: self.next_fetch }
    }

    /// Whether the partition can be asked now, with anything but the committed offset.
    pub(in crate::kafka::wire) fn is_askable(&self, now: Instant) -> bool {
        !self.is_paused && self.position != Position::Committed && self.retry_at.is_none_or(|at| at <= now)
    }

    /// When an error that passes is over.
    pub(in crate::kafka::wire) fn retry_at(&self) -> Option<Instant> {
        self.retry_at.filter(|_| !self.is_paused)
    }

    /// The partition is asked.
    pub(in crate::kafka::wire) fn note_request(&mut self) {
        self.retry_at = None;
    }

    /// Asks again after a pause.
    pub(in crate::kafka::wire) fn retry_later(&mut self) {
        self.retry_at = Some(Instant::now() + jitter(self.backoff.advance()));
    }

    /// Takes what the answer to the last request has.
    pub(in crate::kafka::wire) fn accept(&mut self, fetched: FetchedRecords, high_watermark: i64, end: i64) {
        self.high_watermark = Some(high_watermark);
        self.end = Some(end);
        self.backoff.reset();
        if fetched.has_batch() {
            self.next_fetch = fetched.end();
            self.fetched.push_back(fetched);
        }
    }

    /// The replica that is read instead of the leader.
    pub(in crate::kafka::wire) fn replica(&self, now: Instant) -> Option<i32> {
        self.replica.filter(|(_, until)| now < *until).map(|(node, _)| node)
    }

    pub(in crate::kafka::wire) fn set_replica(&mut self, node: Option<i32>) {
        self.replica = node.map(|node| (node, Instant::now() + REPLICA_TIME));
    }
}

/// What a request asks of a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::kafka::wire) struct Wanted {
    serial: u64,
    pub(in crate::kafka::wire) offset: i64,
}
