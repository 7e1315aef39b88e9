//! Finds partitions that no member of a group owns although every member is present.
//!
//! In a cooperative group a partition changes its owner in two rebalances. The owner revokes it
//! after the first and joins again; the second assigns it to another member. Suppose that a static
//! member dies in between and restarts at once: the broker returns its assignment of the first
//! rebalance without asking any other member. It has nothing to revoke, so the second rebalance
//! never starts, and the partition stays unassigned until a member joins or leaves.
//!
//! After each rebalance, members therefore check the group until every partition has an owner. A
//! member that finds the same unassigned partitions twice leaves and joins again, which starts a
//! new assignment.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use trunkline_connector::TopicPartition;

use super::wire::group::partitions_of;
use super::wire::group_lookups::GroupMember;
use crate::backoff::{Backoff, jitter};

/// Time between two checks. A rebalance takes less, unless a member that must revoke a partition is
/// busy.
const INTERVAL: Duration = Duration::from_secs(3);

/// A busy member is interrupted by a check at most this often.
const MAX_INTERVAL: Duration = Duration::from_secs(300);

/// The time of the next check, and what the last one found.
pub(super) struct UnassignedMonitor {
    due: Option<Instant>,
    interval: Backoff,
    last: Option<Vec<GroupMember>>,
}

impl UnassignedMonitor {
    /// Starts with the first rebalance.
    pub(super) fn new() -> Self {
        Self { due: None, interval: Backoff::new(INTERVAL, MAX_INTERVAL), last: None }
    }

    /// Notes a rebalance.
    pub(super) fn note_rebalance(&mut self) {
        self.last = None;
        self.schedule();
    }

    /// Whether the group should be checked now.
    pub(super) fn is_due(&self) -> bool {
        self.due.is_some_and(|due| due <= Instant::now())
    }

    /// Notes a check without an answer. A broker may be down, and each check delays a member that
    /// has records to read.
    pub(super) fn note_failure(&mut self, owns_nothing: bool) {
        if !owns_nothing {
            self.interval.advance();
        }
        self.schedule();
    }

    /// Plans the next check.
    pub(super) fn schedule(&mut self) {
        // Up to half an interval later, so that not all members act at once.
        let interval = self.interval.current();
        self.due = Some(Instant::now() + interval / 2 + jitter(interval));
    }

    /// Returns the partitions among `subscribed` that have no owner, once two checks without a
    /// rebalance in between agree.
    pub(super) fn find_unassigned(
        &mut self,
        members: Vec<GroupMember>,
        subscribed: Vec<TopicPartition>,
    ) -> Option<Vec<TopicPartition>> {
        let mut owned = BTreeSet::new();
        for member in &members {
            // The format of another client: its member may own every partition.
            owned.extend(partitions_of(&member.assignment).unwrap_or_else(|| subscribed.clone()));
        }
        let unassigned: Vec<TopicPartition> =
            subscribed.into_iter().filter(|partition| !owned.contains(partition)).collect();
        if unassigned.is_empty() {
            *self = Self::new();
            return None;
        }
        if self.last.as_ref() != Some(&members) {
            self.last = Some(members);
            self.schedule();
            return None;
        }
        self.interval.advance();
        self.note_rebalance();
        Some(unassigned)
    }
}

#[cfg(test)]
mod tests {
    use super::super::membership::tests::{assignment, partitions};
    use super::*;

    #[test]
    fn unassigned_partitions_are_reported_when_two_checks_agree() {
        let member = |id: &str, owned: &[i32]| GroupMember { id: id.to_owned(), assignment: assignment(owned) };
        let members = |a: &[i32], b: &[i32]| vec![member("a", a), member("b", b)];
        let all = || partitions(&[0, 1, 2]);
        let mut monitor = UnassignedMonitor::new();
        assert_eq!(monitor.find_unassigned(members(&[1, 2], &[]), all()), None);
        assert_eq!(monitor.find_unassigned(members(&[1], &[2]), all()), None, "the assignment changed");
        monitor.note_rebalance();
        assert_eq!(monitor.find_unassigned(members(&[1], &[2]), all()), None, "there was a rebalance");
        assert_eq!(monitor.find_unassigned(members(&[1], &[2]), all()), Some(partitions(&[0])));
        assert!(monitor.interval.current() > INTERVAL, "the next check comes later");
        assert_eq!(monitor.find_unassigned(members(&[1], &[2, 0]), all()), None);
        assert!(monitor.due.is_none() && monitor.interval.current() == INTERVAL, "every partition has an owner");
    }

    #[test]
    fn a_member_with_an_unknown_format_owns_every_partition() {
        let mut monitor = UnassignedMonitor::new();
        let members = || vec![GroupMember { id: "a".to_owned(), assignment: vec![0].into() }];
        assert_eq!(monitor.find_unassigned(members(), partitions(&[0])), None);
        assert_eq!(monitor.find_unassigned(members(), partitions(&[0])), None);
    }

    #[test]
    fn checks_are_spread_over_half_an_interval() {
        let mut monitor = UnassignedMonitor::new();
        monitor.schedule();
        let wait = monitor.due.unwrap().saturating_duration_since(Instant::now());
        assert!(wait <= INTERVAL * 3 / 2 && !monitor.is_due(), "{wait:?}");
    }
}
