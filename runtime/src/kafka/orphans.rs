//! Partitions of a group that nobody owns although its members are all there, and how they get an owner again.
//!
//! In a cooperative group a partition changes hands in two rebalances: its owner gives it up after the first, and joins again; the second gives it to
//! another member. A static member that dies in between and is back at once is handed its share of the first by the broker, which asks nobody
//! else: it has nothing to give up, so the second rebalance never comes. The partition would have no owner until somebody joins or leaves.
//!
//! So after each rebalance the group is looked at, until each partition is seen to be owned. A member that sees the same orphans twice leaves
//! and joins again, which makes everybody share out anew.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use trunkline_connector::TopicPartition;

/// From one look to the next. A rebalance is over by then, unless a member that has to give something up is busy.
const INTERVAL: Duration = Duration::from_secs(3);

/// A member that owns nothing and gets no answer for so long begins anew: the client may have lost the brokers for good.
const CUT_OFF: Duration = Duration::from_secs(15);

/// Whoever is that busy is not to be disturbed more often than this.
const LONGEST: Duration = Duration::from_secs(300);

/// The members of a stable group, with what they were assigned, as the broker tells it.
pub(super) type Members = Vec<(String, Vec<u8>)>;

/// When to look, and what was seen.
pub(super) struct OrphanWatch {
    due: Option<Instant>,
    interval: Duration,
    last: Option<Members>,
    /// Since when no look has had an answer.
    failing: Option<Instant>,
}

impl OrphanWatch {
    /// One that begins with the first rebalance.
    pub(super) fn new() -> Self {
        Self { due: None, interval: INTERVAL, last: None, failing: None }
    }

    /// There was a rebalance.
    pub(super) fn moved(&mut self) {
        self.last = None;
        self.again();
    }

    /// Is it time to look?
    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// The brokers did not tell: one of them may be down, and every look of a member that has something to read waits for it in vain. Says whether
    /// one that has nothing may be cut off from them all.
    pub(super) fn failed(&mut self, owns_nothing: bool) -> bool {
        let since = *self.failing.get_or_insert_with(Instant::now);
        if !owns_nothing {
            self.more_patience();
        }
        self.again();
        owns_nothing && since.elapsed() >= CUT_OFF
    }

    /// The brokers told something.
    pub(super) fn answered(&mut self) {
        self.failing = None;
    }

    fn more_patience(&mut self) {
        self.interval = (self.interval * 2).min(LONGEST);
    }

    /// Nothing could be seen for certain.
    pub(super) fn again(&mut self) {
        // Up to half as long again, so that not all members act at once.
        let share = (uuid::Uuid::new_v4().as_u128() % 512) as u32 + 1024;
        self.due = Some(Instant::now() + self.interval * share / 1024);
    }

    /// Judges what was seen: the orphans among `wanted` if they are to be taken up now.
    pub(super) fn judge(&mut self, members: Members, wanted: Vec<TopicPartition>) -> Option<Vec<TopicPartition>> {
        let mut owned = BTreeSet::new();
        for (_, assignment) in &members {
            // Another client's format: whoever shares a group with it has to do without this.
            owned.extend(assigned(assignment).unwrap_or_else(|| wanted.clone()));
        }
        let orphans: Vec<TopicPartition> = wanted.into_iter().filter(|claim| !owned.contains(claim)).collect();
        if orphans.is_empty() {
            *self = Self::new();
            return None;
        }
        if self.last.as_ref() != Some(&members) {
            self.last = Some(members);
            self.again();
            return None;
        }
        self.more_patience();
        self.moved();
        Some(orphans)
    }
}

/// Is this partition among what a member was assigned? One whose format is not understood may own it.
pub(super) fn owns(assignment: &[u8], claim: &TopicPartition) -> bool {
    assigned(assignment).is_none_or(|claims| claims.contains(claim))
}

/// What a member was assigned, in the format of Kafka's consumers: a version, then topics with their partitions.
fn assigned(bytes: &[u8]) -> Option<Vec<TopicPartition>> {
    if bytes.is_empty() {
        return Some(Vec::new());
    }
    let mut rest = bytes;
    let _version = take::<2>(&mut rest)?;
    let mut claims = Vec::new();
    for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
        let length = usize::try_from(i16::from_be_bytes(take(&mut rest)?)).ok()?;
        let (name, after) = rest.split_at_checked(length)?;
        rest = after;
        let topic: Arc<str> = Arc::from(std::str::from_utf8(name).ok()?);
        for _ in 0..i32::from_be_bytes(take(&mut rest)?) {
            claims.push(TopicPartition { topic: topic.clone(), partition: i32::from_be_bytes(take(&mut rest)?) });
        }
    }
    Some(claims)
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn claims(partitions: &[i32]) -> Vec<TopicPartition> {
        partitions.iter().map(|partition| TopicPartition { topic: Arc::from("t"), partition: *partition }).collect()
    }

    fn assignment(partitions: &[i32]) -> Vec<u8> {
        let mut bytes = [&[0, 1][..], &1i32.to_be_bytes(), &1i16.to_be_bytes(), b"t"].concat();
        bytes.extend((partitions.len() as i32).to_be_bytes());
        partitions.iter().for_each(|partition| bytes.extend(partition.to_be_bytes()));
        bytes.extend((-1i32).to_be_bytes());
        bytes
    }

    #[test]
    fn assignments_are_read_and_broken_ones_are_not() {
        let bytes = assignment(&[0, 2]);
        assert_eq!(assigned(&bytes), Some(claims(&[0, 2])));
        assert_eq!(assigned(&[]), Some(Vec::new()));
        (1..bytes.len() - 4).for_each(|length| assert_eq!(assigned(&bytes[..length]), None, "{length} bytes"));
    }

    #[test]
    fn orphans_are_believed_when_nothing_has_moved_between_two_looks() {
        let members = |a: &[i32], b: &[i32]| vec![("a".to_owned(), assignment(a)), ("b".to_owned(), assignment(b))];
        let all = || claims(&[0, 1, 2]);
        let mut watch = OrphanWatch::new();
        assert_eq!(watch.judge(members(&[1, 2], &[]), all()), None);
        assert_eq!(watch.judge(members(&[1], &[2]), all()), None, "something moved");
        watch.moved();
        assert_eq!(watch.judge(members(&[1], &[2]), all()), None, "there was a rebalance");
        assert_eq!(watch.judge(members(&[1], &[2]), all()), Some(claims(&[0])));
        assert!(watch.interval > INTERVAL, "the next time with more patience");
        assert_eq!(watch.judge(members(&[1], &[2, 0]), all()), None);
        assert!(watch.due.is_none() && watch.interval == INTERVAL, "all is well");
    }

    #[test]
    fn members_that_cannot_be_understood_own_everything() {
        let mut watch = OrphanWatch::new();
        let members = || vec![("a".to_owned(), vec![0])];
        assert_eq!(watch.judge(members(), claims(&[0])), None);
        assert_eq!(watch.judge(members(), claims(&[0])), None);
    }

    #[test]
    fn who_owns_nothing_and_gets_no_answer_is_cut_off() {
        let mut watch = OrphanWatch::new();
        assert!(!watch.failed(true));
        watch.failing = Instant::now().checked_sub(CUT_OFF);
        assert!(!watch.failed(false));
        assert!(watch.failed(true));
        watch.answered();
        assert!(!watch.failed(true));
    }
}
